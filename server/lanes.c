/* lanes.c - a locked FIFO and its threads.
 *
 * Unlike the loop's queue this one has several receivers, so a mutex guards it; it is held for a few instructions. */
#include "lanes.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LANE_THREADS_MAX = 8 };

struct dn_lane {
    dn_loop *loop;
    char name[16];
    int nice;
    pthread_mutex_t lock;
    pthread_cond_t ready;
    dn_msg *first, **last; /* under the lock, as are the next two */
    size_t waiting;
    bool stopping;
    pthread_t threads[LANE_THREADS_MAX];
    int n_threads;
};

static void run_done(dn_msg *msg)
{
    dn_work *work = dn_container_of(msg, dn_work, msg);
    work->done(work);
}

/* The next work, or NULL when there is none and there will be none. */
static dn_work *next_work(dn_lane *lane)
{
    pthread_mutex_lock(&lane->lock);
    while (!lane->first && !lane->stopping)
        pthread_cond_wait(&lane->ready, &lane->lock);
    dn_msg *msg = lane->first;
    if (msg) {
        lane->first = msg->next;
        if (!lane->first)
            lane->last = &lane->first;
        lane->waiting--;
    }
    pthread_mutex_unlock(&lane->lock);
    return msg ? dn_container_of(msg, dn_work, msg) : NULL;
}

static void do_work(dn_lane *lane, dn_work *work)
{
    work->work(work);
    work->msg.run = run_done;
    dn_loop_post(lane->loop, &work->msg);
}

static void *lane_main(void *arg)
{
    dn_lane *lane = arg;
    pthread_setname_np(pthread_self(), lane->name);
    if (lane->nice) {
        int tid = (int)syscall(SYS_gettid); /* on Linux niceness is a thread's own */
        setpriority(PRIO_PROCESS, tid, getpriority(PRIO_PROCESS, tid) + lane->nice);
    }
    for (dn_work *work; (work = next_work(lane));)
        do_work(lane, work);
    return NULL;
}

int dn_lane_new(dn_lane **out, dn_loop *loop, const char *name, int n_threads, int nice, dn_error *err)
{
    dn_lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for lane %s", name);
    lane->loop = loop;
    lane->nice = nice;
    lane->last = &lane->first;
    strncpy(lane->name, name, sizeof lane->name - 1);
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->ready, NULL);
    for (int i = 0; i < n_threads && i < LANE_THREADS_MAX; i++) {
        int rc = pthread_create(&lane->threads[i], NULL, lane_main, lane);
        if (rc) {
            dn_lane_free(lane);
            return dn_fail(err, DN_E_MEMORY, NULL, "lane %s cannot start a thread: %s", name, strerror(rc));
        }
        lane->n_threads++;
    }
    *out = lane;
    return 0;
}

void dn_lane_submit(dn_lane *lane, dn_work *work)
{
    work->msg.next = NULL;
    pthread_mutex_lock(&lane->lock);
    bool stopped = lane->stopping;
    if (!stopped) {
        *lane->last = &work->msg;
        lane->last = &work->msg.next;
        lane->waiting++;
    }
    pthread_mutex_unlock(&lane->lock);
    if (stopped)
        do_work(lane, work);
    else
        pthread_cond_signal(&lane->ready);
}

bool dn_lane_withdraw(dn_lane *lane, dn_work *work)
{
    pthread_mutex_lock(&lane->lock);
    dn_msg **at = &lane->first;
    while (*at && *at != &work->msg)
        at = &(*at)->next;
    bool found = *at != NULL;
    if (found) {
        *at = work->msg.next;
        if (lane->last == &work->msg.next)
            lane->last = at;
        lane->waiting--;
    }
    pthread_mutex_unlock(&lane->lock);
    return found;
}

size_t dn_lane_waiting(dn_lane *lane)
{
    pthread_mutex_lock(&lane->lock);
    size_t n = lane->waiting;
    pthread_mutex_unlock(&lane->lock);
    return n;
}

void dn_lane_stop(dn_lane *lane)
{
    pthread_mutex_lock(&lane->lock);
    lane->stopping = true;
    pthread_mutex_unlock(&lane->lock);
    pthread_cond_broadcast(&lane->ready);
    for (int i = 0; i < lane->n_threads; i++)
        pthread_join(lane->threads[i], NULL);
    lane->n_threads = 0;
}

void dn_lane_free(dn_lane *lane)
{
    if (!lane)
        return;
    dn_lane_stop(lane);
    pthread_cond_destroy(&lane->ready);
    pthread_mutex_destroy(&lane->lock);
    free(lane);
}
