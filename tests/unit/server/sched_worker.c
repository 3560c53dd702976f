/* The worker's thread over a fake device: runs come back once and whole, whatever happens to their neighbours. */
#include "fake_device.h"
#include "worker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { RUNS_MAX = 4096 };

/* What the loop has been told; only its thread looks at it. */
typedef struct world {
    dn_loop *loop;
    dn_device *device;
    dn_worker *worker;
    dn_net *net[2];
    int adopted, steps, gone, rows_max_seen, pictures, previews, last_n_shares;
    double price[2];
    struct {
        int end, failed_sample, step, pictures, previews, code;
        int64_t row_steps;
        double batch_rows_sum, device_ms;
        float x[8];
        bool gone;
    } run[RUNS_MAX];
    int cancel_at_step; /* cancel run 1 when this many steps have been told */
    int train_steps, evals, previews_taken, checkpoints, published, missed, train_gone, train_end, train_code;
    int64_t last_train_step, last_checkpoint;
    double preempted_ms;
    bool holds; /* what is copied is not given back, but kept */
    dn_train_news *held[4];
    int n_held;
    int trained_first, trained_last; /* train_steps when the latest request had its first batch, and its last */
} world;

static void on_step(void *arg, dn_step *s)
{
    world *w = arg;
    w->steps++;
    w->rows_max_seen = s->rows > w->rows_max_seen ? s->rows : w->rows_max_seen;
    w->last_n_shares = s->n_shares;
    int rows = 0;
    for (int i = 0; i < s->n_shares; i++) {
        rows += s->share[i].rows;
        assert_true(s->share[i].step >= w->run[s->share[i].run].step);
        assert_false(w->run[s->share[i].run].gone);
        w->run[s->share[i].run].step = s->share[i].step;
    }
    assert_int_equal(rows, s->rows);
    w->trained_last = w->train_steps;
    if (s->n_shares && s->share[0].step == 1)
        w->trained_first = w->train_steps;
    if (w->cancel_at_step && w->steps == w->cancel_at_step)
        assert_int_equal(dn_worker_cancel(w->worker, 1), 0);
    free(s);
}

static void on_picture(void *arg, dn_picture *p)
{
    world *w = arg;
    assert_false(w->run[p->run].gone);
    if (p->final) {
        w->run[p->run].pictures++;
        w->run[p->run].x[p->index] = p->v[0];
    } else {
        w->run[p->run].previews++;
        assert_true(p->v[0] == (float)p->step);
    }
    free(p);
}

static void on_gone(void *arg, dn_run *r)
{
    world *w = arg;
    assert_false(w->run[r->id].gone);
    w->run[r->id].gone = true;
    w->run[r->id].end = r->end;
    w->run[r->id].code = r->error.code;
    w->run[r->id].failed_sample = r->failed_sample;
    w->run[r->id].row_steps = r->row_steps;
    w->run[r->id].batch_rows_sum = r->batch_rows_sum;
    w->run[r->id].device_ms = r->device_ms;
    w->gone++;
    dn_run_free(r);
}

static void on_adopted(void *arg, dn_adoption *a)
{
    world *w = arg;
    w->adopted++;
    w->price[a->net_id] = a->price_ms;
    free(a);
}

static void on_trained(void *arg, dn_train_news *n)
{
    world *w = arg;
    assert_int_equal(n->training, 9);
    assert_false(w->train_gone);
    w->preempted_ms += n->preempted_ms;
    if (n->duty == 0) {
        assert_int_equal(n->step, w->last_train_step + 1); /* every step is told, in order */
        w->last_train_step = n->step;
        w->train_steps++;
    } else {
        assert_int_equal(n->step, w->last_train_step); /* a duty is done before the next step */
        w->evals += n->duty == DN_DUTY_EVAL;
        w->previews_taken += n->duty == DN_DUTY_PREVIEW;
        w->checkpoints += n->duty == DN_DUTY_CHECKPOINT;
        w->last_checkpoint = n->duty == DN_DUTY_CHECKPOINT ? n->step : w->last_checkpoint;
        w->published += n->duty == DN_DUTY_PUBLISH && n->snapshot;
        w->missed += n->duty == DN_DUTY_PUBLISH && !n->snapshot;
        assert_true(n->snapshot || n->duty == DN_DUTY_EVAL || n->duty == DN_DUTY_PUBLISH);
    }
    dn_snapshot_free(n->snapshot);
    if (!(n->duty & (DN_DUTY_PREVIEW | DN_DUTY_CHECKPOINT))) {
        free(n);
    } else if (w->holds) {
        assert_in_range(w->n_held, 0, 3);
        w->held[w->n_held++] = n;
    } else {
        dn_worker_train_returned(n);
    }
}

static void give_back(world *w)
{
    while (w->n_held)
        dn_worker_train_returned(w->held[--w->n_held]);
}

static void on_train_gone(void *arg, dn_training *t)
{
    world *w = arg;
    w->train_gone++;
    w->train_end = t->end;
    w->train_code = t->error.code;
    dn_trainer_free(t->trainer);
    free(t);
}

static const dn_worker_events events = { on_step, on_picture, on_gone, on_adopted, on_trained, on_train_gone };

static void pump(world *w, const int *counter, int until)
{
    for (int i = 0; *counter < until && i < 20000; i++) {
        if (!dn_loop_messages(w->loop)) {
            struct timespec ms = { 0, 500000 };
            nanosleep(&ms, NULL);
        }
    }
    assert_true(*counter >= until);
}

static void adopt(world *w, int k, double gflop, bool drop)
{
    dn_adoption *a = calloc(1, sizeof *a);
    *a = (dn_adoption){ .net_id = k, .net = w->net[k], .gflop_per_row = gflop, .drop = drop };
    a->probe = (dn_sample_params){ .height = 1, .width = 1, .channels = 1, .out_channels = 1 };
    int before = w->adopted;
    dn_worker_adopt(w->worker, a);
    pump(w, &w->adopted, before + 1);
}

static world *start(dn_sched_limits limits, double batch_ms, double row_ms)
{
    world *w = calloc(1, sizeof *w);
    assert_int_equal(dn_loop_new(&w->loop, NULL), 0);
    assert_int_equal(dn_device_open(&w->device, "fake", NULL), 0);
    dn_worker_options o = {
        .device = w->device, .loop = w->loop, .limits = limits, .yield_ms = 5, .events = &events, .arg = w
    };
    assert_int_equal(dn_worker_start(&w->worker, &o, NULL), 0);
    for (int k = 0; k < 2; k++)
        w->net[k] = fake_net_new(batch_ms, row_ms);
    adopt(w, 0, 1, false);
    adopt(w, 1, 3, false);
    return w;
}

static void stop(world *w)
{
    dn_worker_stop(w->worker);
    dn_loop_messages(w->loop);
    dn_worker_free(w->worker);
    assert_int_equal(fake_samples(), 0);
    dn_device_close(w->device);
    dn_loop_free(w->loop);
    fake_net_free(w->net[0]);
    fake_net_free(w->net[1]);
    free(w);
}

typedef struct order {
    uint64_t id, seed;
    int n, entries, idle, net, preview_every;
    unsigned rows;
    double deadline_ms;
} order;

static void submit(world *w, order o)
{
    dn_run *r = calloc(1, sizeof *r);
    *r = (dn_run){ .id = o.id,
                   .net = o.net,
                   .tenant = "local",
                   .weight = 1,
                   .priority = DN_PRIORITY_NORMAL,
                   .price_ms = 1,
                   .arrived_ms = dn_clock_ms(),
                   .deadline_ms = o.deadline_ms,
                   .preview_every = o.preview_every,
                   .n = o.n };
    r->params = calloc(o.n, sizeof *r->params);
    r->tables = calloc(1, sizeof *r->tables);
    r->tables[0] = fake_table(o.entries, o.rows, o.idle);
    r->n_tables = 1;
    for (int k = 0; k < o.n; k++) {
        r->params[k] = (dn_sample_params){ .table = r->tables,
                                           .table_shared = true,
                                           .height = 1,
                                           .width = 1,
                                           .channels = 1,
                                           .out_channels = 1,
                                           .seed = o.seed + k };
    }
    dn_worker_run(w->worker, r);
}

static const dn_sched_limits wide = { .rows_max = 64, .step_ms = 1e9 };

static void a_run_comes_back_with_its_results(void **state)
{
    (void)state;
    world *w = start(wide, 0.1, 0);
    submit(w, (order){ .id = 1, .seed = 10, .n = 3, .entries = 12, .rows = 3, .idle = 4, .preview_every = 3 });
    pump(w, &w->gone, 1);
    assert_int_equal(w->run[1].end, DN_RUN_DONE);
    assert_int_equal(w->run[1].pictures, 3);
    for (int k = 0; k < 3; k++)
        assert_true(w->run[1].x[k] == 10 + k + 12);
    assert_int_equal(w->run[1].row_steps, 3 * 8 * 2);
    assert_int_equal(w->steps, 8);
    assert_int_equal(w->run[1].step, 12);
    assert_true(w->run[1].batch_rows_sum == 48 * 6);
    assert_int_equal(w->run[1].previews, 3 * 3); /* past 3, 6 and 9; the 12th is the result */
    stop(w);
}

static void the_first_network_is_tried_and_the_next_is_priced_by_its_flops(void **state)
{
    (void)state;
    world *w = start(wide, 2, 0);
    assert_true(w->price[0] >= 2);
    assert_true(w->price[1] > 2.99 * w->price[0] && w->price[1] < 3.01 * w->price[0]);
    stop(w);
}

/* The warm-up and one row after it meet a busy machine: neither is the price. */
static void a_disturbed_trial_is_not_the_price(void **state)
{
    (void)state;
    fake_slow_batches(2);
    world *w = start(wide, 2, 0);
    assert_true(w->price[0] >= 2 && w->price[0] < FAKE_SLOW_MS);
    stop(w);
}

static void runs_of_different_length_share_batches(void **state)
{
    (void)state;
    world *w = start(wide, 0.2, 0);
    for (int i = 0; i < 20; i++)
        submit(w, (order){ .id = 1 + i, .seed = i, .n = 1 + i % 3, .entries = 5 + i, .rows = 1 + 2 * (i & 1) });
    pump(w, &w->gone, 20);
    assert_true(w->rows_max_seen > 30);
    assert_true(w->steps < 60); /* the longest has 24 entries; alone they would take 290 */
    for (int i = 0; i < 20; i++) {
        assert_int_equal(w->run[1 + i].end, DN_RUN_DONE);
        assert_true(w->run[1 + i].x[0] == 2 * i + 5);
    }
    stop(w);
}

static void networks_do_not_mix(void **state)
{
    (void)state;
    world *w = start(wide, 0.1, 0); /* the fake device asserts nothing of it; the policy's test does: here both end */
    submit(w, (order){ .id = 1, .n = 4, .entries = 20, .rows = 1, .net = 0 });
    submit(w, (order){ .id = 2, .n = 4, .entries = 20, .rows = 1, .net = 1 });
    pump(w, &w->gone, 2);
    assert_int_equal(w->rows_max_seen, 4);
    assert_int_equal(w->last_n_shares, 1);
    stop(w);
}

static void a_non_finite_sample_fails_its_request_alone(void **state)
{
    (void)state;
    world *w = start(wide, 0.2, 0);
    submit(w, (order){ .id = 1, .seed = FAKE_SEED_NON_FINITE - 1, .n = 4, .entries = 30, .rows = 3 });
    submit(w, (order){ .id = 2, .seed = 7, .n = 2, .entries = 30, .rows = 3 });
    pump(w, &w->gone, 2);
    assert_int_equal(w->run[1].end, DN_RUN_FAILED);
    assert_int_equal(w->run[1].code, DN_E_NON_FINITE);
    assert_int_equal(w->run[1].failed_sample, 1);
    assert_int_equal(w->run[1].step, 2);
    assert_int_equal(w->run[2].end, DN_RUN_DONE);
    assert_true(w->run[2].x[1] == 8 + 30);
    stop(w);
}

static void a_failed_batch_fails_those_in_it_and_the_worker_goes_on(void **state)
{
    (void)state;
    world *w = start(wide, 0.2, 0);
    fake_fail_batches(1);
    submit(w, (order){ .id = 1, .n = 2, .entries = 3, .rows = 1 });
    pump(w, &w->gone, 1);
    assert_int_equal(w->run[1].end, DN_RUN_FAILED);
    assert_int_equal(w->run[1].code, DN_E_BACKEND);
    submit(w, (order){ .id = 2, .n = 2, .entries = 3, .rows = 1 });
    pump(w, &w->gone, 2);
    assert_int_equal(w->run[2].end, DN_RUN_DONE);
    stop(w);
}

static void a_slot_that_cannot_be_had_fails_the_run(void **state)
{
    (void)state;
    world *w = start(wide, 0.2, 0);
    fake_fail_samples(2);
    submit(w, (order){ .id = 1, .n = 4, .entries = 3, .rows = 1 });
    pump(w, &w->gone, 1);
    fake_fail_samples(-1);
    assert_int_equal(w->run[1].end, DN_RUN_FAILED);
    assert_int_equal(w->run[1].code, DN_E_MEMORY);
    assert_int_equal(fake_samples(), 0);
    stop(w);
}

static void cancel_takes_effect_at_the_next_boundary(void **state)
{
    (void)state;
    world *w = start(wide, 3, 0);
    w->cancel_at_step = 5;
    submit(w, (order){ .id = 1, .n = 2, .entries = 1000, .rows = 1 });
    submit(w, (order){ .id = 2, .n = 1, .entries = 12, .rows = 1 });
    pump(w, &w->gone, 2);
    assert_int_equal(w->run[1].end, DN_RUN_CANCELLED);
    assert_in_range(w->run[1].row_steps, 2 * 5, 2 * 7);
    assert_int_equal(w->run[2].end, DN_RUN_DONE);
    assert_int_equal(dn_worker_cancel(w->worker, 1), 0); /* long gone: nothing happens */
    stop(w);
}

static void a_deadline_expires_at_a_boundary(void **state)
{
    (void)state;
    world *w = start(wide, 2, 0);
    submit(w, (order){ .id = 1, .n = 1, .entries = 100000, .rows = 1, .deadline_ms = dn_clock_ms() + 20 });
    pump(w, &w->gone, 1);
    assert_int_equal(w->run[1].end, DN_RUN_EXPIRED);
    stop(w);
}

static void thousands_of_cancelled_runs_leave_nothing(void **state)
{
    (void)state;
    world *w = start(wide, 0.05, 0);
    for (int i = 1; i < 2000; i++) {
        submit(w, (order){ .id = i, .n = 1 + i % 2, .entries = 1000, .rows = 1 });
        assert_int_equal(dn_worker_cancel(w->worker, i), 0);
    }
    pump(w, &w->gone, 1999);
    for (int i = 1; i < 2000; i++)
        assert_int_equal(w->run[i].end, DN_RUN_CANCELLED);
    assert_int_equal(fake_samples(), 0);
    stop(w);
}

static void a_stopped_worker_gives_everything_back(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    for (int i = 1; i <= 5; i++)
        submit(w, (order){ .id = i, .n = 2, .entries = 100000, .rows = 1 });
    pump(w, &w->steps, 3);
    adopt(w, 1, 3, true);
    dn_worker_stop(w->worker);
    dn_loop_messages(w->loop);
    assert_int_equal(w->gone, 5);
    for (int i = 1; i <= 5; i++)
        assert_int_equal(w->run[i].end, DN_RUN_CANCELLED);
    dn_worker_free(w->worker);
    dn_device_close(w->device);
    dn_loop_free(w->loop);
    fake_net_free(w->net[0]);
    fake_net_free(w->net[1]);
    free(w);
}

typedef struct job {
    double step_ms, share;
    int64_t steps, eval_every, preview_every, checkpoint_every, fails_at;
} job;

static void train(world *w, job j)
{
    dn_training *t = calloc(1, sizeof *t);
    *t = (dn_training){ .id = 9,
                        .trainer = fake_trainer_new(j.step_ms, j.fails_at),
                        .share = j.share,
                        .steps = j.steps,
                        .eval_every = j.eval_every,
                        .preview_every = j.preview_every,
                        .checkpoint_every = j.checkpoint_every };
    dn_worker_train(w->worker, t);
}

static void a_job_does_its_duties_and_comes_back_saved(void **state)
{
    (void)state;
    world *w = start(wide, 0.1, 0);
    train(w, (job){ .step_ms = 12, .steps = 10, .eval_every = 4, .preview_every = 5, .checkpoint_every = 3 });
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->train_end, DN_TRAIN_DONE);
    assert_int_equal(w->train_steps, 10);
    assert_int_equal(w->evals, 3);          /* 4, 8, and the last */
    assert_int_equal(w->previews_taken, 2); /* 5 and 10 */
    assert_int_equal(w->checkpoints, 4);    /* 3, 6, 9 and the last */
    assert_int_equal(w->last_checkpoint, 10);
    stop(w);
}

static void a_job_stops_saved_at_the_end_of_a_step(void **state)
{
    (void)state;
    world *w = start(wide, 0.1, 0);
    train(w, (job){ .step_ms = 20, .steps = 1000 });
    pump(w, &w->train_steps, 2);
    assert_int_equal(dn_worker_train_ask(w->worker, 8, DN_DUTY_STOP), 0); /* another's: nothing happens */
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_STOP | DN_DUTY_CHECKPOINT), 0);
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->train_end, DN_TRAIN_STOPPED);
    assert_int_equal(w->last_checkpoint, w->last_train_step);
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_STOP), 0); /* long gone: nothing happens */
    stop(w);
}

static void a_failing_step_ends_the_job_and_the_worker_goes_on(void **state)
{
    (void)state;
    world *w = start(wide, 0.1, 0);
    train(w, (job){ .step_ms = 0.2, .steps = 10, .fails_at = 3 });
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->train_end, DN_TRAIN_FAILED);
    assert_int_equal(w->train_code, DN_E_NON_FINITE);
    submit(w, (order){ .id = 1, .n = 1, .entries = 3, .rows = 1 });
    pump(w, &w->gone, 1);
    assert_int_equal(w->run[1].end, DN_RUN_DONE);
    stop(w);
}

/* A step of 100 ms is cut into segments: a request beside it waits for one at each boundary, and is not starved. */
static void sampling_waits_for_a_segment_never_for_a_step(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    train(w, (job){ .step_ms = 1e5, .steps = 10, .share = 0 });
    submit(w, (order){ .id = 1, .n = 1, .entries = 20, .rows = 1 });
    pump(w, &w->gone, 1); /* its 20 steps are done although the training step never ends */
    assert_int_equal(w->run[1].end, DN_RUN_DONE);
    assert_int_equal(w->train_steps, 0);
    stop(w);
}

static void wait_for_copy(world *w, int segments)
{
    for (int i = 0; fake_copied() < segments && i < 20000; i++) {
        dn_loop_messages(w->loop);
        nanosleep(&(struct timespec){ 0, 500000 }, NULL);
    }
    assert_true(fake_copied() >= segments);
}

/* A snapshot that never ends: requests run between its segments, and training stays where it is. */
static void sampling_waits_for_a_segment_never_for_a_snapshot(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    fake_copies(1 << 30);
    int before = fake_copied();
    train(w, (job){ .step_ms = 0.1, .steps = 10, .checkpoint_every = 1, .share = 0.5 });
    wait_for_copy(w, before + 1);
    submit(w, (order){ .id = 1, .n = 1, .entries = 20, .rows = 1 });
    pump(w, &w->gone, 1);
    assert_int_equal(w->run[1].end, DN_RUN_DONE);
    assert_int_equal(w->train_steps, 1);
    assert_int_equal(w->checkpoints, 0);
    assert_true(fake_copied() > before + 1);
    stop(w);
    fake_copies(1);
}

/* What is asked for while a copy is under way is done after it. */
static void a_snapshot_under_way_is_finished_first(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    fake_copies(20000);
    int before = fake_copied();
    train(w, (job){ .step_ms = 0.1, .steps = 1000, .preview_every = 1 });
    wait_for_copy(w, before + 1);
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_PUBLISH | DN_DUTY_CHECKPOINT | DN_DUTY_STOP), 0);
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->train_end, DN_TRAIN_STOPPED);
    assert_int_equal(w->previews_taken, w->train_steps);
    assert_int_equal(w->checkpoints, 1);
    assert_int_equal(w->published, 1);
    assert_int_equal(w->last_checkpoint, w->last_train_step);
    stop(w);
    fake_copies(1);
}

/* Of checkpoints there is one copy at a time, and none is left out: the job waits, but neither requests nor who
 * publishes it. */
static void a_checkpoint_waits_for_the_one_before(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    w->holds = true;
    train(w, (job){ .step_ms = 0.1, .steps = 4, .checkpoint_every = 1 });
    for (int step = 2; step <= 4; step++) {
        pump(w, &w->train_steps, step);
        submit(w, (order){ .id = step, .n = 1, .entries = 10, .rows = 1 });
        pump(w, &w->gone, step - 1);
        assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_PUBLISH), 0);
        pump(w, &w->published, step - 1);
        assert_int_equal(w->train_steps, step);
        assert_int_equal(w->checkpoints, step - 1);
        give_back(w);
    }
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->checkpoints, 4);
    give_back(w); /* nobody needs it any more */
    stop(w);
}

static void a_preview_is_left_out_while_there_is_one(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    w->holds = true;
    train(w, (job){ .step_ms = 0.1, .steps = 20, .preview_every = 1 });
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->previews_taken, 1);
    assert_int_equal(w->checkpoints, 1);
    dn_worker_stop(w->worker);
    give_back(w); /* also when the worker has stopped */
    dn_loop_messages(w->loop);
    dn_worker_free(w->worker);
    dn_device_close(w->device);
    dn_loop_free(w->loop);
    fake_net_free(w->net[0]);
    fake_net_free(w->net[1]);
    free(w);
}

/* Who waits for a copy hears that there is no memory for one; the job goes on. */
static void a_publication_without_memory_is_told(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    train(w, (job){ .step_ms = 0.1, .steps = 1 << 30 });
    fake_fail_copies(1);
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_PUBLISH), 0);
    pump(w, &w->missed, 1);
    assert_int_equal(w->published, 0);
    int steps = w->train_steps;
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_PUBLISH), 0);
    pump(w, &w->published, 1);
    pump(w, &w->train_steps, steps + 1);
    assert_int_equal(w->missed, 1);
    stop(w);
}

/* Under load a job gets its share: steps of 5 ms beside batches of 5 ms, share 1/2. */
static void a_job_gets_its_share_while_requests_wait(void **state)
{
    (void)state;
    world *w = start(wide, 5, 0);
    train(w, (job){ .step_ms = 5, .steps = 1000, .share = 0.5 });
    submit(w, (order){ .id = 1, .n = 1, .entries = 40, .rows = 1 });
    pump(w, &w->gone, 1);
    assert_in_range(w->trained_last - w->trained_first, 20, 60); /* about as many as the 39 batches between */
    assert_true(w->preempted_ms > 0);
    stop(w);
}

static void without_a_share_a_job_waits_until_requests_are_done(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    train(w, (job){ .step_ms = 0.5, .steps = 1 << 30, .share = 1 });
    assert_int_equal(dn_worker_train_share(w->worker, 9, 0), 0);
    submit(w, (order){ .id = 1, .n = 1, .entries = 1, .rows = 1 });
    pump(w, &w->gone, 1); /* the share has been told by now */
    submit(w, (order){ .id = 2, .n = 1, .entries = 200, .rows = 1 });
    pump(w, &w->gone, 2);
    assert_int_equal(w->trained_last, w->trained_first);
    stop(w);
}

/* Share 0, and a request that does not end: only who asks for the end of a step gets it, and then the job waits again.
 */
static void who_waits_for_the_end_of_a_step_gets_it(void **state)
{
    (void)state;
    world *w = start(wide, 1, 0);
    train(w, (job){ .step_ms = 60, .steps = 1 << 30, .share = 0 });
    nanosleep(&(struct timespec){ 0, 20000000 }, NULL); /* it is within a step by now */
    submit(w, (order){ .id = 1, .n = 1, .entries = 100000, .rows = 1 });
    pump(w, &w->steps, 1);
    int before = w->train_steps;
    pump(w, &w->steps, w->steps + 30);
    assert_int_equal(w->train_steps, before);
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_PUBLISH), 0);
    pump(w, &w->published, 1);
    int after = w->train_steps;
    assert_in_range(after, before, before + 1);
    pump(w, &w->steps, w->steps + 30);
    assert_int_equal(w->train_steps, after);
    assert_int_equal(dn_worker_train_ask(w->worker, 9, DN_DUTY_CHECKPOINT | DN_DUTY_STOP), 0);
    pump(w, &w->train_gone, 1);
    assert_int_equal(w->train_end, DN_TRAIN_STOPPED);
    assert_int_equal(w->last_checkpoint, w->last_train_step);
    assert_false(w->run[1].gone);
    stop(w);
}

static void a_dropped_network_takes_its_arena_with_it(void **state)
{
    (void)state;
    world *w = start((dn_sched_limits){ 8, 100 }, 0.1, 0.1);
    fake_net_arena(w->net[0], 100);
    fake_net_arena(w->net[1], 300);
    adopt(w, 1, 3, true);
    assert_int_equal(fake_trimmed(), 100);
    adopt(w, 1, 3, false);
    adopt(w, 0, 3, true);
    assert_int_equal(fake_trimmed(), 300);
    adopt(w, 1, 3, true);
    assert_int_equal(fake_trimmed(), 0);
    stop(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_comes_back_with_its_results),
        cmocka_unit_test(the_first_network_is_tried_and_the_next_is_priced_by_its_flops),
        cmocka_unit_test(a_disturbed_trial_is_not_the_price),
        cmocka_unit_test(runs_of_different_length_share_batches),
        cmocka_unit_test(networks_do_not_mix),
        cmocka_unit_test(a_non_finite_sample_fails_its_request_alone),
        cmocka_unit_test(a_failed_batch_fails_those_in_it_and_the_worker_goes_on),
        cmocka_unit_test(a_slot_that_cannot_be_had_fails_the_run),
        cmocka_unit_test(cancel_takes_effect_at_the_next_boundary),
        cmocka_unit_test(a_deadline_expires_at_a_boundary),
        cmocka_unit_test(thousands_of_cancelled_runs_leave_nothing),
        cmocka_unit_test(a_dropped_network_takes_its_arena_with_it),
        cmocka_unit_test(a_stopped_worker_gives_everything_back),
        cmocka_unit_test(a_job_does_its_duties_and_comes_back_saved),
        cmocka_unit_test(a_job_stops_saved_at_the_end_of_a_step),
        cmocka_unit_test(a_failing_step_ends_the_job_and_the_worker_goes_on),
        cmocka_unit_test(sampling_waits_for_a_segment_never_for_a_step),
        cmocka_unit_test(sampling_waits_for_a_segment_never_for_a_snapshot),
        cmocka_unit_test(a_snapshot_under_way_is_finished_first),
        cmocka_unit_test(a_checkpoint_waits_for_the_one_before),
        cmocka_unit_test(a_preview_is_left_out_while_there_is_one),
        cmocka_unit_test(a_publication_without_memory_is_told),
        cmocka_unit_test(a_job_gets_its_share_while_requests_wait),
        cmocka_unit_test(without_a_share_a_job_waits_until_requests_are_done),
        cmocka_unit_test(who_waits_for_the_end_of_a_step_gets_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
