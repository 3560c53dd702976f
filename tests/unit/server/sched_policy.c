/* The policy as data: who runs next, what it is charged, and that shares come out as promised. */
#include "scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { SAMPLES_MAX = 64, BATCH_MAX = 64 };

/* A request of n samples, each with `entries` entries of `rows` rows. */
typedef struct job {
    dn_sched_request request;
    dn_sched_sample sample[SAMPLES_MAX];
    int left[SAMPLES_MAX]; /* entries still to run */
    int n, served;         /* served: row-steps so far */
    double done_at;        /* simulated ms; < 0 while it runs */
} job;

static const dn_sched_limits wide = { .rows_max = 64, .step_ms = 1e9 };

static void job_start(dn_sched *s, job *j, const char *tenant, double weight, enum dn_priority priority,
                      const dn_sched_queue *q, int n, int entries, int rows)
{
    memset(j, 0, sizeof *j);
    j->n = n;
    j->done_at = -1;
    assert_int_equal(dn_sched_join(s, &j->request, tenant, weight, priority, q->price_ms), 0);
    for (int k = 0; k < n; k++) {
        j->left[k] = entries;
        j->sample[k] = (dn_sched_sample){ .request = &j->request, .queue = q, .rows = rows };
        dn_sched_wait(s, &j->sample[k]);
    }
}

static job *job_of(dn_sched_sample *x) { return DN_LINK_OF(x->request, job, request); }

static void job_stop(job *j)
{
    for (int k = 0; k < j->n; k++)
        dn_sched_unwait(&j->sample[k]);
    dn_sched_leave(&j->request);
}

/* One tick: pick, "run", put back what has entries left. Returns the rows of the batch. */
static int tick(dn_sched *s, const dn_sched_limits *limits)
{
    dn_sched_sample *x[BATCH_MAX];
    int n = dn_sched_pick(s, limits, x, BATCH_MAX), rows = 0;
    for (int i = 0; i < n; i++) {
        job *j = job_of(x[i]);
        assert_ptr_equal(x[i]->queue, x[0]->queue);
        rows += x[i]->rows;
        j->served += x[i]->rows;
        if (--j->left[x[i] - j->sample])
            dn_sched_wait(s, x[i]);
    }
    return rows;
}

static bool job_done(const job *j)
{
    for (int k = 0; k < j->n; k++) {
        if (j->left[k])
            return false;
    }
    return true;
}

static void an_empty_scheduler_picks_nothing(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_init(&s);
    assert_int_equal(tick(&s, &wide), 0);
    dn_sched_fini(&s);
}

static void an_entry_runs_whole_or_not(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 1 };
    dn_sched_init(&s);
    job a, b, c;
    job_start(&s, &a, "local", 1, DN_PRIORITY_NORMAL, &q, 1, 10, 2);
    job_start(&s, &b, "local", 1, DN_PRIORITY_NORMAL, &q, 1, 10, 2);
    job_start(&s, &c, "local", 1, DN_PRIORITY_NORMAL, &q, 1, 10, 1);
    dn_sched_limits five = { .rows_max = 5, .step_ms = 1e9 }, three = { .rows_max = 3, .step_ms = 1e9 };
    assert_int_equal(tick(&s, &five), 5);
    /* 3 rows: the oldest pair, then the single row; the other pair does not fit */
    assert_int_equal(tick(&s, &three), 3);
    assert_int_equal(c.served, 2);
    assert_int_equal(a.served + b.served, 6);
    job_stop(&a);
    job_stop(&b);
    job_stop(&c);
    dn_sched_fini(&s);
}

static void one_entry_always_runs(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 5000 };
    dn_sched_init(&s);
    job a, b;
    job_start(&s, &a, "local", 1, DN_PRIORITY_NORMAL, &q, 1, 3, 2);
    job_start(&s, &b, "local", 1, DN_PRIORITY_NORMAL, &q, 1, 3, 2);
    dn_sched_limits tight = { .rows_max = 1, .step_ms = 100 };
    for (int i = 0; i < 6; i++)
        assert_int_equal(tick(&s, &tight), 2);
    assert_true(job_done(&a) && job_done(&b));
    assert_int_equal(tick(&s, &tight), 0);
    job_stop(&a);
    job_stop(&b);
    dn_sched_fini(&s);
}

static void the_step_is_limited_by_time(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 10 };
    dn_sched_init(&s);
    job a;
    job_start(&s, &a, "local", 1, DN_PRIORITY_NORMAL, &q, 40, 5, 1);
    dn_sched_limits l = { .rows_max = 64, .step_ms = 100 };
    assert_int_equal(tick(&s, &l), 10);
    q.price_ms = 2.5; /* measured anew */
    assert_int_equal(tick(&s, &l), 40);
    job_stop(&a);
    dn_sched_fini(&s);
}

static void requests_of_a_tenant_take_turns(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 1 };
    dn_sched_init(&s);
    job big, small[3];
    job_start(&s, &big, "local", 1, DN_PRIORITY_NORMAL, &q, 64, 1000, 1);
    for (int i = 0; i < 3; i++)
        job_start(&s, &small[i], "local", 1, DN_PRIORITY_NORMAL, &q, 1, 1000, 1);
    dn_sched_limits eight = { .rows_max = 8, .step_ms = 1e9 };
    for (int i = 0; i < 100; i++)
        tick(&s, &eight);
    /* in nearly every batch the single samples are in, whatever stands before them */
    for (int i = 0; i < 3; i++)
        assert_in_range(small[i].served, 99, 100);
    assert_int_equal(big.served + small[0].served + small[1].served + small[2].served, 800);
    /* and within a request no sample is left behind */
    int least = 1000, most = 0;
    for (int k = 0; k < 64; k++) {
        least = big.left[k] < least ? big.left[k] : least;
        most = big.left[k] > most ? big.left[k] : most;
    }
    assert_in_range(most - least, 0, 1);
    job_stop(&big);
    for (int i = 0; i < 3; i++)
        job_stop(&small[i]);
    dn_sched_fini(&s);
}

/* Row-steps of b per row-step of a after many ticks, a with na samples and b with nb. */
static double share(const char *ta, double wa, enum dn_priority pa, int na, const char *tb, double wb,
                    enum dn_priority pb, int nb)
{
    dn_sched s;
    dn_sched_queue q = { 3 };
    dn_sched_init(&s);
    job a, b;
    job_start(&s, &a, ta, wa, pa, &q, na, 100000, 1);
    job_start(&s, &b, tb, wb, pb, &q, nb, 100000, 1);
    dn_sched_limits eight = { .rows_max = 8, .step_ms = 1e9 };
    for (int i = 0; i < 4000; i++)
        tick(&s, &eight);
    double ratio = (double)b.served / a.served;
    job_stop(&a);
    job_stop(&b);
    dn_sched_fini(&s);
    return ratio;
}

static void near(double got, double want) { assert_true(got > want * 0.98 && got < want * 1.02); }

static void tenants_share_by_weight_not_by_appetite(void **state)
{
    (void)state;
    near(share("a", 1, DN_PRIORITY_NORMAL, 60, "b", 1, DN_PRIORITY_NORMAL, 8), 1);
    near(share("a", 1, DN_PRIORITY_NORMAL, 60, "b", 2, DN_PRIORITY_NORMAL, 20), 2);
    near(share("a", 1, DN_PRIORITY_NORMAL, 60, "b", 0.5, DN_PRIORITY_NORMAL, 60), 0.5);
}

static void priority_multiplies_weight_also_within_a_tenant(void **state)
{
    (void)state;
    near(share("local", 1, DN_PRIORITY_NORMAL, 60, "local", 1, DN_PRIORITY_HIGH, 60), 4);
    near(share("local", 1, DN_PRIORITY_NORMAL, 60, "local", 1, DN_PRIORITY_LOW, 60), 0.25);
    near(share("a", 1, DN_PRIORITY_LOW, 60, "b", 1, DN_PRIORITY_HIGH, 60), 16);
}

/* Two networks, one ten times as dear: equal device time, so a tenth of the rows; neither blocks the other. */
static void device_time_is_shared_not_rows(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue cheap = { 1 }, dear = { 10 };
    dn_sched_init(&s);
    job a, b;
    job_start(&s, &a, "a", 1, DN_PRIORITY_NORMAL, &cheap, 16, 100000, 1);
    job_start(&s, &b, "b", 1, DN_PRIORITY_NORMAL, &dear, 16, 100000, 2);
    dn_sched_limits l = { .rows_max = 16, .step_ms = 100 };
    for (int i = 0; i < 4000; i++)
        tick(&s, &l);
    near((double)a.served / b.served, 10);
    job_stop(&a);
    job_stop(&b);
    dn_sched_fini(&s);
}

static void another_network_at_the_head_blocks_nobody(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q[3] = { { 1 }, { 1 }, { 1 } };
    dn_sched_init(&s);
    job j[30];
    for (int i = 0; i < 30; i++)
        job_start(&s, &j[i], "local", 1, DN_PRIORITY_NORMAL, &q[i % 3], 1, 20, 1);
    int ticks = 0;
    for (; tick(&s, &wide); ticks++)
        ;
    assert_int_equal(ticks, 60); /* each network's ten together, 20 times */
    for (int i = 0; i < 30; i++) {
        assert_true(job_done(&j[i]));
        job_stop(&j[i]);
    }
    dn_sched_fini(&s);
}

static void absence_earns_no_credit(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 1 };
    dn_sched_init(&s);
    job a, b;
    job_start(&s, &b, "b", 1, DN_PRIORITY_NORMAL, &q, 1, 1, 1);
    tick(&s, &wide);
    job_stop(&b);
    job_start(&s, &a, "a", 1, DN_PRIORITY_NORMAL, &q, 8, 100000, 1);
    dn_sched_limits four = { .rows_max = 4, .step_ms = 1e9 };
    for (int i = 0; i < 1000; i++)
        tick(&s, &four);
    job_start(&s, &b, "b", 1, DN_PRIORITY_NORMAL, &q, 8, 100000, 1);
    int before = a.served;
    for (int i = 0; i < 100; i++)
        tick(&s, &four);
    assert_in_range(a.served - before, 190, 210);
    assert_in_range(b.served, 190, 210);
    job_stop(&a);
    job_stop(&b);
    /* both idle, both back: the one that had less gets no more than the other */
    job_start(&s, &b, "b", 1, DN_PRIORITY_NORMAL, &q, 8, 100000, 1);
    job_start(&s, &a, "a", 1, DN_PRIORITY_NORMAL, &q, 8, 100000, 1);
    for (int i = 0; i < 100; i++)
        tick(&s, &four);
    assert_in_range(a.served, 190, 210);
    job_stop(&a);
    job_stop(&b);
    dn_sched_fini(&s);
}

static void a_request_keeps_the_price_it_was_admitted_at(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 1 };
    dn_sched_init(&s);
    job a;
    job_start(&s, &a, "local", 1, DN_PRIORITY_NORMAL, &q, 4, 10, 1);
    q.price_ms = 50;
    tick(&s, &wide);
    assert_true(a.request.flow->vtime == 4.0);
    job_stop(&a);
    dn_sched_fini(&s);
}

static void a_cancelled_sample_is_never_picked(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 1 };
    dn_sched_init(&s);
    job a;
    job_start(&s, &a, "local", 1, DN_PRIORITY_NORMAL, &q, 8, 10, 1);
    for (int k = 0; k < 8; k += 2)
        dn_sched_unwait(&a.sample[k]);
    dn_sched_unwait(&a.sample[0]);
    assert_int_equal(tick(&s, &wide), 4);
    for (int k = 0; k < 8; k++)
        assert_int_equal(a.left[k], k % 2 ? 9 : 10);
    job_stop(&a);
    dn_sched_fini(&s);
}

/* Every request finishes although new ones keep coming, at any priority: nobody starves. */
static void low_priority_finishes_under_a_flood(void **state)
{
    (void)state;
    dn_sched s;
    dn_sched_queue q = { 1 };
    dn_sched_init(&s);
    job low, flood[32];
    for (int i = 0; i < 32; i++)
        job_start(&s, &flood[i], "x", 1, DN_PRIORITY_HIGH, &q, 8, 5, 1);
    job_start(&s, &low, "local", 1, DN_PRIORITY_LOW, &q, 1, 50, 1);
    dn_sched_limits eight = { .rows_max = 8, .step_ms = 1e9 };
    int ticks = 0;
    for (; !job_done(&low) && ticks < 10000; ticks++) {
        tick(&s, &eight);
        for (int i = 0; i < 32; i++) {
            if (job_done(&flood[i])) {
                job_stop(&flood[i]);
                job_start(&s, &flood[i], "x", 1, DN_PRIORITY_HIGH, &q, 8, 5, 1);
            }
        }
    }
    /* a seventeenth of the rows is its due: 50 * 17 / 8 ticks */
    assert_in_range(ticks, 50, 120);
    job_stop(&low);
    for (int i = 0; i < 32; i++)
        job_stop(&flood[i]);
    dn_sched_fini(&s);
}

/* 16 long requests, probes of 10 steps now and then; batches cost a + b * rows. Ideal processor sharing would finish a
 * probe in 10 steps of all 17; when the batch is narrower, in 10 * 17 / width of them. */
static double probe_ratio(int rows_max)
{
    dn_sched s;
    dn_sched_queue q = { 1.2 };
    dn_sched_init(&s);
    static job longs[16], probe;
    double now = 0, worst = 0;
    dn_sched_limits l = { .rows_max = rows_max, .step_ms = 1e9 };
    for (int i = 0; i < 16; i++) {
        job_start(&s, &longs[i], "local", 1, DN_PRIORITY_NORMAL, &q, 1, 2000, 1);
        now += 2.0 + 1.2 * tick(&s, &l); /* they stand at different steps */
    }
    int width = rows_max < 17 ? rows_max : 17;
    double ideal = 10 * 17.0 / width * (2.0 + 1.2 * width);
    for (int p = 0; p < 30; p++) {
        double start = now;
        job_start(&s, &probe, "local", 1, DN_PRIORITY_NORMAL, &q, 1, 10, 1);
        while (!job_done(&probe))
            now += 2.0 + 1.2 * tick(&s, &l);
        worst = (now - start) / ideal > worst ? (now - start) / ideal : worst;
        job_stop(&probe);
        for (int i = 0; i < p % 5; i++)
            now += 2.0 + 1.2 * tick(&s, &l);
    }
    for (int i = 0; i < 16; i++)
        job_stop(&longs[i]);
    dn_sched_fini(&s);
    return worst;
}

static void probes_are_served_as_by_processor_sharing(void **state)
{
    (void)state;
    int widths[] = { 64, 16, 8, 5, 3, 1 };
    for (int i = 0; i < 6; i++)
        assert_true(probe_ratio(widths[i]) <= 1.25);
}

/* ---- training's share --------------------------------------------------------------------------------------- */

/* Batches and segments take turns for a while: the part of it that was training's. */
static double part_of_training(dn_sched_share *s, double *now, double batch_ms, double segment_ms, double for_ms)
{
    double train_ms = 0, start = *now;
    while (*now - start < for_ms) {
        bool owed = dn_share_owed(s, *now, true, true);
        double ms = owed ? segment_ms : batch_ms;
        dn_share_charge(s, owed, ms);
        train_ms += owed ? ms : 0;
        *now += ms;
    }
    return train_ms / (*now - start);
}

static void is_about(double x, double want) { assert_true(x > 0.9 * want && x < 1.1 * want); }

static void training_gets_its_share_beside_samples(void **state)
{
    (void)state;
    double now = 0;
    dn_sched_share s = { .share = 0.3 }, none = { .share = 0 };
    is_about(part_of_training(&s, &now, 20, 5, 3e4), 0.3);
    is_about(part_of_training(&s, &now, 7, 40, 3e4), 0.3);
    assert_true(part_of_training(&none, &now, 20, 5, 3e4) == 0);
    assert_false(dn_share_owed(&s, now, false, true)); /* nobody is in its way: it need not be owed anything */
    assert_false(dn_share_owed(&s, now, true, false));
}

/* A batch that is as long as a period. */
static void long_batches_leave_training_its_turn(void **state)
{
    (void)state;
    double now = 0;
    dn_sched_share s = { .share = 0.1 };
    assert_true(part_of_training(&s, &now, 1.5 * DN_SHARE_PERIOD_MS, 5, 10 * DN_SHARE_PERIOD_MS) > 0);
}

/* Who waits for the end of a step does not wait for ever; nor do samples pay at once for the time before. */
static void an_awaited_step_has_a_share_of_its_own(void **state)
{
    (void)state;
    double now = 0;
    dn_sched_share s = { .share = 0 }, more = { .share = 0.5, .awaited = true };
    assert_true(part_of_training(&s, &now, 10, 5, 0.9 * DN_SHARE_PERIOD_MS) == 0);
    s.awaited = true;
    is_about(part_of_training(&s, &now, 10, 5, 1000), DN_SHARE_AWAITED);
    is_about(part_of_training(&s, &now, 10, 5, 5 * DN_SHARE_PERIOD_MS), DN_SHARE_AWAITED);
    s.awaited = false;
    assert_true(part_of_training(&s, &now, 10, 5, 1000) == 0);
    is_about(part_of_training(&more, &now, 10, 5, 1e4), 0.5); /* it is the least, not the most */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_scheduler_picks_nothing),
        cmocka_unit_test(an_entry_runs_whole_or_not),
        cmocka_unit_test(one_entry_always_runs),
        cmocka_unit_test(the_step_is_limited_by_time),
        cmocka_unit_test(requests_of_a_tenant_take_turns),
        cmocka_unit_test(tenants_share_by_weight_not_by_appetite),
        cmocka_unit_test(priority_multiplies_weight_also_within_a_tenant),
        cmocka_unit_test(device_time_is_shared_not_rows),
        cmocka_unit_test(another_network_at_the_head_blocks_nobody),
        cmocka_unit_test(absence_earns_no_credit),
        cmocka_unit_test(a_request_keeps_the_price_it_was_admitted_at),
        cmocka_unit_test(a_cancelled_sample_is_never_picked),
        cmocka_unit_test(low_priority_finishes_under_a_flood),
        cmocka_unit_test(probes_are_served_as_by_processor_sharing),
        cmocka_unit_test(training_gets_its_share_beside_samples),
        cmocka_unit_test(long_batches_leave_training_its_turn),
        cmocka_unit_test(an_awaited_step_has_a_share_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
