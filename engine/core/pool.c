/* pool.c - the compute threads of one device.
 *
 * The state of a region is one atomic word: its number in the upper half, the chunks nobody has claimed yet in the
 * lower. A thread reads the word, then the job's fields, then claims a chunk by compare-and-swap. Success proves that
 * the fields belonged to that region: they change only after all its chunks have been claimed and done. So a region
 * never waits for a worker that has claimed nothing, and a late worker can do no harm. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_NS = 70000, SPINS_PER_LOOK = 32, WORKER_NICE = 10, WORKER_STACK = 2 << 20 };

typedef struct worker {
    dn_pool *pool;
    pthread_t thread;
    int number;
} worker;

struct dn_pool {
    int n_threads, n_started;
    _Alignas(64) _Atomic uint64_t state; /* region << 32 | unclaimed chunks */
    _Alignas(64) _Atomic int64_t undone; /* chunks of the region that are not finished */
    _Alignas(64) _Atomic(dn_task) task;
    _Atomic(void *) arg;
    _Atomic int64_t n, chunk, n_chunks;
    _Atomic int sleepers; /* workers that wait on `work`, or are about to */
    _Atomic bool caller_sleeps, stop;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    worker worker[];
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Spin until ready(p, x) or SPIN_NS have passed; returns whether it became ready. */
static bool spin(dn_pool *p, bool (*ready)(dn_pool *p, uint64_t x), uint64_t x)
{
    for (int64_t end = now_ns() + SPIN_NS;;) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (ready(p, x))
                return true;
            relax();
        }
        if (now_ns() >= end)
            return false;
    }
}

static bool region_opened(dn_pool *p, uint64_t last)
{
    return atomic_load(&p->state) >> 32 != last || atomic_load(&p->stop);
}

static bool region_done(dn_pool *p, uint64_t unused)
{
    (void)unused;
    return atomic_load(&p->undone) == 0;
}

/* Work on the open region until nothing is left to claim. */
static void work(dn_pool *p, int thread)
{
    uint64_t state = atomic_load(&p->state);
    while ((uint32_t)state != 0) {
        dn_task task = atomic_load_explicit(&p->task, memory_order_relaxed);
        void *arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
        int64_t n = atomic_load_explicit(&p->n, memory_order_relaxed);
        int64_t chunk = atomic_load_explicit(&p->chunk, memory_order_relaxed);
        int64_t n_chunks = atomic_load_explicit(&p->n_chunks, memory_order_relaxed);
        if (!atomic_compare_exchange_weak(&p->state, &state, state - 1))
            continue;
        int64_t from = (n_chunks - (int64_t)(uint32_t)state) * chunk;
        task(arg, from, n - from < chunk ? n : from + chunk, thread);
        if (atomic_fetch_sub(&p->undone, 1) == 1 && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
        state = atomic_load(&p->state);
    }
}

static void sleep_until_opened(dn_pool *p, uint64_t last)
{
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!region_opened(p, last))
        pthread_cond_wait(&p->work, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    dn_pool *p = w->pool;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), WORKER_NICE);
    for (uint64_t last = 0;;) {
        if (!spin(p, region_opened, last))
            sleep_until_opened(p, last);
        if (atomic_load(&p->stop))
            return NULL;
        last = atomic_load(&p->state) >> 32;
        work(p, w->number);
    }
}

static int worker_start(dn_pool *p, int number, int cpu)
{
    worker *w = &p->worker[number - 1];
    *w = (worker){ .pool = p, .number = number };
    pthread_attr_t attr;
    if (pthread_attr_init(&attr))
        return -1;
    pthread_attr_setstacksize(&attr, WORKER_STACK);
    cpu_set_t set;
    CPU_ZERO(&set);
    int failed = 0;
    if (cpu >= 0 && cpu < CPU_SETSIZE) {
        CPU_SET(cpu, &set);
        failed = pthread_attr_setaffinity_np(&attr, sizeof set, &set);
    }
    if (!failed)
        failed = pthread_create(&w->thread, &attr, worker_main, w);
    pthread_attr_destroy(&attr);
    return failed ? -1 : 0;
}

/* Signals are for the threads that asked for them: workers start with all blocked. */
static int workers_start(dn_pool *p, const int *cpus)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = 0;
    for (int i = 1; i < p->n_threads && !failed; i++) {
        failed = worker_start(p, i, cpus ? cpus[i] : -1);
        p->n_started += !failed;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed;
}

dn_pool *dn_pool_new(int n_threads, const int *cpus)
{
    if (n_threads < 1)
        return NULL;
    size_t bytes = sizeof(dn_pool) + (size_t)(n_threads - 1) * sizeof(worker);
    dn_pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p)
        return NULL;
    *p = (dn_pool){ .n_threads = n_threads };
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    if (workers_start(p, cpus)) {
        dn_pool_free(p);
        return NULL;
    }
    return p;
}

void dn_pool_free(dn_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_started; i++)
        pthread_join(p->worker[i].thread, NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int dn_pool_threads(const dn_pool *p) { return p ? p->n_threads : 1; }

static void region_open(dn_pool *p, dn_task task, void *arg, int64_t n, int64_t chunk)
{
    int64_t n_chunks = (n - 1) / chunk + 1;
    atomic_store_explicit(&p->task, task, memory_order_relaxed);
    atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&p->n, n, memory_order_relaxed);
    atomic_store_explicit(&p->chunk, chunk, memory_order_relaxed);
    atomic_store_explicit(&p->n_chunks, n_chunks, memory_order_relaxed);
    atomic_store(&p->undone, n_chunks);
    uint64_t region = (atomic_load(&p->state) >> 32) + 1;
    atomic_store(&p->state, region << 32 | (uint64_t)n_chunks);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
    }
}

static void region_wait(dn_pool *p)
{
    if (spin(p, region_done, 0))
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (!region_done(p, 0))
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

void dn_pool_run(dn_pool *p, dn_task task, void *arg, int64_t n, int64_t chunk)
{
    if (n <= 0)
        return;
    if (chunk < 1)
        chunk = 1;
    if (n / chunk >= UINT32_MAX)
        chunk = n / (UINT32_MAX / 2);
    if (dn_pool_threads(p) == 1 || n <= chunk) {
        task(arg, 0, n, 0);
        return;
    }
    region_open(p, task, arg, n, chunk);
    work(p, 0);
    region_wait(p);
}
