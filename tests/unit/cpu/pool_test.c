/* pool_test.c - every item exactly once, whatever the threads and the chunk; results visible after the region. */
#include "pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

enum { N = 1000 };

typedef struct job {
    int visits[N]; /* plain: a region's end must order them */
    int n, chunk, threads;
    _Atomic int bad;
} job;

static void visit(void *arg, int64_t from, int64_t to, int thread)
{
    job *j = arg;
    if (from < 0 || to > j->n || from >= to || thread < 0 || thread >= j->threads)
        j->bad++;
    if (j->threads > 1 && j->n > j->chunk && (from % j->chunk || to - from > j->chunk))
        j->bad++;
    for (int64_t i = from; i < to; i++)
        j->visits[i]++;
}

static void region(dn_pool *p, int n, int chunk)
{
    job *j = calloc(1, sizeof *j);
    j->n = n;
    j->chunk = chunk;
    j->threads = dn_pool_threads(p);
    dn_pool_run(p, visit, j, n, chunk);
    for (int i = 0; i < N; i++)
        assert_int_equal(j->visits[i], i < n);
    assert_int_equal(j->bad, 0);
    free(j);
}

static void test_every_item_once(void **state)
{
    (void)state;
    static const int sizes[] = { 0, 1, 2, 7, 64, 999, N }, chunks[] = { 1, 3, 64, 2000 };
    for (int threads = 0; threads <= 4; threads++) {
        dn_pool *p = threads ? dn_pool_new(threads, NULL) : NULL;
        assert_int_equal(dn_pool_threads(p), threads ? threads : 1);
        for (int i = 0; i < 7; i++)
            for (int k = 0; k < 4; k++)
                region(p, sizes[i], chunks[k]);
        dn_pool_free(p);
    }
}

/* Back to back while the workers spin, and again after they have gone to sleep. */
static void test_many_regions(void **state)
{
    (void)state;
    dn_pool *p = dn_pool_new(3, NULL);
    for (int i = 0; i < 3000; i++) {
        region(p, 1 + i % 50, 1 + i % 3);
        if (i % 500 == 0)
            usleep(1000);
    }
    dn_pool_free(p);
}

typedef struct rendezvous {
    _Atomic int arrived, niced, pinned;
    pid_t caller;
    int cpu;
} rendezvous;

/* Two items in two threads: each waits until the other has come. */
static void meet(void *arg, int64_t from, int64_t to, int thread)
{
    rendezvous *r = arg;
    (void)from, (void)to;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    if (thread > 0) {
        cpu_set_t set;
        sched_getaffinity(0, sizeof set, &set);
        r->niced = getpriority(PRIO_PROCESS, (id_t)tid);
        r->pinned = CPU_COUNT(&set) == 1 && CPU_ISSET(r->cpu, &set);
    }
    r->arrived++;
    while (r->arrived < 2)
        sched_yield();
}

static void test_workers_run_beside_the_caller(void **state)
{
    (void)state;
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    rendezvous r = { 0 };
    while (!CPU_ISSET(r.cpu, &set))
        r.cpu++;
    const int cpus[] = { r.cpu, r.cpu };
    dn_pool *p = dn_pool_new(2, cpus);
    assert_non_null(p);
    dn_pool_run(p, meet, &r, 2, 1);
    assert_int_equal(r.arrived, 2);
    assert_true(r.niced >= 10);
    assert_true(r.pinned);
    assert_true(getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid)) < r.niced || r.niced == 19);
    dn_pool_free(p);
}

static void test_bad_arguments(void **state)
{
    (void)state;
    const int nowhere[] = { 0, 1000 };
    assert_null(dn_pool_new(0, NULL));
    assert_null(dn_pool_new(2, nowhere));
    dn_pool_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),
        cmocka_unit_test(test_many_regions),
        cmocka_unit_test(test_workers_run_beside_the_caller),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
