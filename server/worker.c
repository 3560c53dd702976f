/* worker.c - the tick: messages, the next batch, the step boundary. Training is in worker_train.c.
 *
 * The thread alone touches the device, its samples, the queues and the virtual times. A queue is one adopted network;
 * its list price is measured, per row, at the batch size where it is lowest. */
#include "worker_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    BUCKETS = 8, /* of batch sizes: 1, 2-3, 4-7 .. 128 rows and more */
    TRIAL_ROWS = 6,
    TRIAL_MS = 100, /* no further row is tried after this */
};

typedef struct queue {
    dn_sched_queue sched;
    dn_link link;
    uint64_t id;
    const dn_net *net;
    double gflop_per_row;
    double ms[BUCKETS]; /* per row, smoothed; 0: never ran */
    bool warm;          /* the first run pays for page faults: not measured */
} queue;

typedef struct dn_run_sample {
    dn_sched_sample sched;
    dn_run *run;
    dn_sample *sample; /* NULL when done */
    int step;          /* sampler steps behind it */
    int n_steps;
} run_sample;

struct stop_message {
    dn_msg msg;
    dn_worker *worker;
};

double dn_clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * t.tv_sec + 1e-6 * t.tv_nsec;
}

void dn_run_free(dn_run *run)
{
    if (!run)
        return;
    for (int k = 0; run->tables && k < run->n_tables; k++)
        dn_table_fini(&run->tables[k]);
    free(run->tables);
    free(run->params);
    free(run->x);
    free(run->label_vector);
    free(run->samples);
    free(run);
}

/* ---- to the loop ------------------------------------------------------------------------------------------ */

static void step_arrives(dn_msg *msg)
{
    dn_step *s = dn_container_of(msg, dn_step, msg);
    s->worker->o.events->step(s->worker->o.arg, s);
}

static void picture_arrives(dn_msg *msg)
{
    dn_picture *p = dn_container_of(msg, dn_picture, msg);
    p->worker->o.events->picture(p->worker->o.arg, p);
}

static void run_arrives(dn_msg *msg)
{
    dn_run *r = dn_container_of(msg, dn_run, msg);
    r->worker->o.events->gone(r->worker->o.arg, r);
}

static void adoption_arrives(dn_msg *msg)
{
    dn_adoption *a = dn_container_of(msg, dn_adoption, msg);
    a->worker->o.events->adopted(a->worker->o.arg, a);
}

void dn_worker_post(dn_worker *w, dn_msg *msg, void (*run)(dn_msg *))
{
    msg->run = run;
    dn_loop_post(w->o.loop, msg);
}

static int post_picture(dn_worker *w, run_sample *x, enum dn_what what)
{
    const dn_sample_params *p = &x->run->params[x - x->run->samples];
    size_t n = (size_t)p->height * p->width * (what == DN_READ_OUT ? p->out_channels : p->channels);
    dn_picture *pic = malloc(sizeof *pic + n * sizeof(float));
    if (!pic)
        return DN_E_MEMORY;
    *pic = (dn_picture){ .worker = w,
                         .run = x->run->id,
                         .index = (int)(x - x->run->samples),
                         .step = x->step,
                         .final = what != DN_READ_X0,
                         .n = n };
    double start = dn_clock_ms();
    dn_sample_read(x->sample, what, pic->v);
    pic->read_ms = dn_clock_ms() - start;
    dn_worker_post(w, &pic->msg, picture_arrives);
    return 0;
}

/* ---- runs: join and leave --------------------------------------------------------------------------------- */

static queue *queue_find(dn_worker *w, uint64_t id)
{
    DN_LINK_EACH(l, &w->queues)
    {
        if (DN_LINK_OF(l, queue, link)->id == id)
            return DN_LINK_OF(l, queue, link);
    }
    return NULL;
}

/* The run ends, one way or another, when the boundary does; the first verdict stands. */
static void end(dn_worker *w, dn_run *run, enum dn_run_end how)
{
    if (run->over)
        return;
    run->over = true;
    run->end = how;
    dn_link_pop(&run->link);
    dn_link_push(&w->over, &run->link);
}

static void fail(dn_worker *w, run_sample *x, int code, const char *message)
{
    dn_run *run = x->run;
    if (run->over)
        return;
    run->failed_sample = (int)(x - run->samples);
    dn_fail(&run->error, code, NULL, "sample %d (seed %llu): %s", run->failed_sample,
            (unsigned long long)run->params[run->failed_sample].seed, message);
    end(w, run, DN_RUN_FAILED);
}

/* Free the slots of a run that is over, and give it back to the loop. */
static void leave(dn_worker *w, dn_run *run)
{
    for (int k = 0; run->samples && k < run->n; k++) {
        dn_sched_unwait(&run->samples[k].sched);
        dn_sample_free(run->samples[k].sample);
        run->samples[k].sample = NULL;
    }
    if (run->sched.flow)
        dn_sched_leave(&run->sched);
    w->n_deadlines -= run->deadline_ms > 0;
    if (!run->row_steps)
        run->queue_ms = dn_clock_ms() - run->arrived_ms;
    dn_link_pop(&run->link);
    dn_worker_post(w, &run->msg, run_arrives);
}

static void sweep(dn_worker *w)
{
    DN_LINK_EACH(l, &w->over) { leave(w, DN_LINK_OF(l, dn_run, link)); }
}

/* The sample's current entry asks for rows, or it is done. */
static void advance(dn_worker *w, run_sample *x)
{
    while (!dn_sample_done(x->sample) && !dn_sample_rows(x->sample)) {
        int rc = dn_sample_update(x->sample);
        if (rc) {
            fail(w, x, rc, dn_error_text(rc));
            return;
        }
    }
    x->step = dn_sample_step(x->sample);
    if (!dn_sample_done(x->sample)) {
        x->sched.rows = __builtin_popcount(dn_sample_rows(x->sample));
        dn_sched_wait(&w->sched, &x->sched);
        return;
    }
    if (post_picture(w, x, x->run->read_out ? DN_READ_OUT : DN_READ_X)) {
        fail(w, x, DN_E_MEMORY, "no memory for the result");
        return;
    }
    dn_sample_free(x->sample);
    x->sample = NULL;
    x->step = x->n_steps;
    if (--x->run->n_open == 0)
        end(w, x->run, DN_RUN_DONE);
}

static int make_samples(dn_worker *w, dn_run *run, const queue *q)
{
    run->samples = calloc(run->n, sizeof *run->samples);
    if (!run->samples)
        return dn_fail(&run->error, DN_E_MEMORY, NULL, "no memory for %d samples", run->n);
    for (int k = 0; k < run->n; k++) {
        run_sample *x = &run->samples[k];
        *x = (run_sample){ .sched = { .request = &run->sched, .queue = &q->sched },
                           .run = run,
                           .n_steps = run->params[k].table->n_steps };
        int rc = dn_sample_new(&x->sample, w->o.device, &run->params[k], &run->error);
        if (rc)
            return rc;
    }
    return 0;
}

static void run_joins(dn_msg *msg)
{
    dn_run *run = dn_container_of(msg, dn_run, msg);
    dn_worker *w = run->worker;
    queue *q = queue_find(w, run->net);
    dn_link_push(&w->runs, &run->link);
    w->n_deadlines += run->deadline_ms > 0;
    run->n_open = run->n;
    assert(q);
    int rc = dn_sched_join(&w->sched, &run->sched, run->tenant, run->weight, run->priority, run->price_ms);
    if (rc)
        dn_fail(&run->error, rc, NULL, "no memory for a tenant's account");
    else
        rc = make_samples(w, run, q);
    if (rc)
        end(w, run, DN_RUN_FAILED);
    for (int k = 0; k < run->n && !run->over; k++)
        advance(w, &run->samples[k]);
    sweep(w);
}

typedef struct cancel {
    dn_msg msg;
    dn_worker *worker;
    uint64_t run;
} cancel;

static void run_is_cancelled(dn_msg *msg)
{
    cancel *c = dn_container_of(msg, cancel, msg);
    DN_LINK_EACH(l, &c->worker->runs)
    {
        if (DN_LINK_OF(l, dn_run, link)->id == c->run) {
            end(c->worker, DN_LINK_OF(l, dn_run, link), DN_RUN_CANCELLED);
            break;
        }
    }
    sweep(c->worker);
    free(c);
}

static void expire(dn_worker *w)
{
    if (!w->n_deadlines)
        return;
    double now = dn_clock_ms();
    DN_LINK_EACH(l, &w->runs)
    {
        dn_run *run = DN_LINK_OF(l, dn_run, link);
        if (run->deadline_ms > 0 && now >= run->deadline_ms)
            end(w, run, DN_RUN_EXPIRED);
    }
    sweep(w);
}

/* ---- prices ----------------------------------------------------------------------------------------------- */

static void measure(dn_worker *w, queue *q, int rows, double ms)
{
    if (!q->warm) {
        q->warm = true;
        return;
    }
    int bucket = 31 - __builtin_clz(rows);
    bucket = bucket < BUCKETS ? bucket : BUCKETS - 1;
    double per_row = ms / rows;
    q->ms[bucket] = q->ms[bucket] > 0 ? 0.8 * q->ms[bucket] + 0.2 * per_row : per_row;
    double best = q->ms[bucket];
    for (int i = 0; i < BUCKETS; i++)
        best = q->ms[i] > 0 && q->ms[i] < best ? q->ms[i] : best;
    q->sched.price_ms = best;
    if (q->gflop_per_row > 0)
        w->ms_per_gflop = best / q->gflop_per_row;
}

static int run_batch(dn_worker *w, const queue *q, const dn_row *rows, int n_rows, double *ms)
{
    dn_batch *batch = NULL;
    double start = dn_clock_ms();
    int rc = dn_batch_begin(&batch, w->o.device, q->net, rows, n_rows, NULL);
    while (!rc) {
        int more = dn_batch_some(batch, 0);
        if (more <= 0) {
            rc = -more;
            break;
        }
    }
    dn_batch_free(batch);
    *ms = dn_clock_ms() - start;
    return rc;
}

/* One row of a throw-away sample: how long it took, or a negative number. */
static double try_row(dn_worker *w, const queue *q, const dn_sample_params *probe)
{
    dn_table table = { 0 };
    dn_sample_params p = *probe;
    dn_sample *sample = NULL;
    double ms = -1;
    if (dn_table_plan_denoise(&table, 0, 1, NULL))
        return ms;
    p.table = &table;
    if (!dn_sample_new(&sample, w->o.device, &p, NULL)) {
        dn_row row = { sample, DN_ROW_COND };
        if (run_batch(w, q, &row, 1, &ms))
            ms = -1;
        dn_sample_free(sample);
    }
    dn_table_fini(&table);
    return ms;
}

/* What a GFLOP costs here, from the device's first network. The first row pays for page faults, and others' work on the
 * same cores can only make a row slower: the fastest of a few tells the price. */
static void trial(dn_worker *w, queue *q, const dn_sample_params *probe)
{
    double best = -1, until = dn_clock_ms() + TRIAL_MS;
    for (int i = 0; i < TRIAL_ROWS && (best < 0 || dn_clock_ms() < until); i++) {
        double ms = try_row(w, q, probe);
        if (ms < 0)
            return;
        if (i && (best < 0 || ms < best))
            best = ms;
    }
    q->warm = true;
    measure(w, q, 1, best);
}

static void net_comes(dn_msg *msg)
{
    dn_adoption *a = dn_container_of(msg, dn_adoption, msg);
    dn_worker *w = a->worker;
    queue *q = calloc(1, sizeof *q);
    if (q) {
        *q = (queue){ .id = a->net_id, .net = a->net, .gflop_per_row = a->gflop_per_row };
        dn_link_push(&w->queues, &q->link);
        if (w->ms_per_gflop <= 0)
            trial(w, q, &a->probe);
        if (q->sched.price_ms <= 0)
            q->sched.price_ms = w->ms_per_gflop * q->gflop_per_row;
        a->price_ms = q->sched.price_ms;
    } else {
        a->price_ms = -1;
    }
    a->device_bytes = dn_device_bytes(w->o.device);
    dn_worker_post(w, &a->msg, adoption_arrives);
}

/* As large as the largest network that is left needs. */
static void trim_arena(dn_worker *w)
{
    size_t most = 0;
    DN_LINK_EACH(l, &w->queues)
    {
        size_t bytes = dn_net_arena_bytes(DN_LINK_OF(l, queue, link)->net);
        most = bytes > most ? bytes : most;
    }
    dn_device_trim(w->o.device, most);
}

static void net_goes(dn_msg *msg)
{
    dn_adoption *a = dn_container_of(msg, dn_adoption, msg);
    queue *q = queue_find(a->worker, a->net_id);
    if (q) {
        dn_link_pop(&q->link);
        free(q);
    }
    trim_arena(a->worker);
    a->device_bytes = dn_device_bytes(a->worker->o.device);
    dn_worker_post(a->worker, &a->msg, adoption_arrives);
}

/* ---- the tick --------------------------------------------------------------------------------------------- */

static int rows_of(dn_row *rows, dn_sched_sample *const *x, int n)
{
    int n_rows = 0;
    for (int i = 0; i < n; i++) {
        dn_sample *sample = dn_container_of(x[i], run_sample, sched)->sample;
        unsigned set = dn_sample_rows(sample);
        for (int kind = 0; kind < DN_ROWS_MAX; kind++) {
            if (set >> kind & 1)
                rows[n_rows++] = (dn_row){ sample, kind };
        }
    }
    return n_rows;
}

/* What the batch was for its request: accounts that come back with the run. */
static void account(run_sample *x, int rows, int batch_rows, double batch_ms, double started)
{
    dn_run *run = x->run;
    if (!run->row_steps)
        run->queue_ms = started - run->arrived_ms;
    run->row_steps += rows;
    run->device_ms += batch_ms * rows / batch_rows;
    run->batch_rows_sum += (double)rows * batch_rows;
}

static int slowest_step(const dn_run *run)
{
    int step = run->samples[0].step;
    for (int k = 1; k < run->n; k++)
        step = run->samples[k].step < step ? run->samples[k].step : step;
    return step;
}

/* The step boundary of one sample: update, preview, result, or back into the queue. */
static void boundary(dn_worker *w, run_sample *x)
{
    int before = x->step, every = x->run->preview_every;
    int rc = dn_sample_update(x->sample);
    if (rc) {
        fail(w, x, rc, dn_error_text(rc));
        return;
    }
    int step = x->step = dn_sample_step(x->sample);
    /* a preview that finds no memory is no loss */
    if (every && step / every > before / every && !dn_sample_done(x->sample))
        (void)post_picture(w, x, DN_READ_X0);
    advance(w, x);
}

/* Tell the loop who shared the batch, and how far each is. */
static void report(dn_worker *w, const queue *q, dn_sched_sample *const *x, int n, const int *rows, double ms)
{
    dn_step *step = calloc(1, sizeof *step + n * sizeof step->share[0]);
    if (!step)
        return; /* figures, nothing that is owed */
    *step = (dn_step){
        .worker = w, .net = q->id, .ms = ms, .price_ms = q->sched.price_ms, .device_bytes = dn_device_bytes(w->o.device)
    };
    for (int i = 0; i < n; i++) {
        const dn_run *run = dn_container_of(x[i], run_sample, sched)->run;
        int k = 0;
        while (k < step->n_shares && step->share[k].run != run->id)
            k++;
        step->n_shares += k == step->n_shares;
        step->share[k].run = run->id;
        step->share[k].rows += rows[i];
        step->share[k].step = slowest_step(run);
        step->rows += rows[i];
    }
    dn_worker_post(w, &step->msg, step_arrives);
}

static void sample_some(dn_worker *w)
{
    int n = dn_sched_pick(&w->sched, &w->o.limits, w->pick, w->n_pick);
    if (!n)
        return;
    queue *q = dn_container_of(w->pick[0]->queue, queue, sched);
    int n_rows = rows_of(w->rows, w->pick, n);
    double ms, started = dn_clock_ms();
    int rc = run_batch(w, q, w->rows, n_rows, &ms);
    if (!rc)
        measure(w, q, n_rows, ms);
    dn_worker_train_beside(w, ms);
    for (int i = 0; i < n; i++) {
        run_sample *x = dn_container_of(w->pick[i], run_sample, sched);
        w->entry_rows[i] = x->sched.rows;
        account(x, x->sched.rows, n_rows, ms, started);
        if (rc)
            fail(w, x, rc, dn_error_text(rc));
        else if (!x->run->over)
            boundary(w, x);
    }
    report(w, q, w->pick, n, w->entry_rows, ms);
    sweep(w);
}

static void tick(dn_worker *w)
{
    if (dn_worker_train_turn(w, !dn_link_empty(&w->runs)))
        dn_worker_train_some(w);
    else
        sample_some(w);
}

/* ---- life ------------------------------------------------------------------------------------------------- */

static void *work(void *arg)
{
    dn_worker *w = arg;
    pthread_setname_np(pthread_self(), "dn-device");
    while (!w->stopping) {
        dn_mailbox_run(&w->box, dn_link_empty(&w->runs) && !dn_worker_train_ready(w) ? -1 : 0);
        expire(w);
        tick(w);
    }
    dn_mailbox_run(&w->box, 0);
    DN_LINK_EACH(l, &w->runs) { end(w, DN_LINK_OF(l, dn_run, link), DN_RUN_CANCELLED); }
    sweep(w);
    dn_worker_train_stop(w);
    return NULL;
}

int dn_worker_start(dn_worker **out, const dn_worker_options *options, dn_error *err)
{
    dn_worker *w = calloc(1, sizeof *w);
    if (!w)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a worker");
    w->o = *options;
    int rows_max = options->limits.rows_max > 0 ? options->limits.rows_max : 1;
    w->n_pick = rows_max;
    w->pick = calloc(rows_max, sizeof *w->pick);
    w->entry_rows = calloc(rows_max, sizeof *w->entry_rows);
    w->rows = calloc(rows_max + DN_ROWS_MAX, sizeof *w->rows); /* one entry always runs */
    dn_sched_init(&w->sched);
    dn_link_init(&w->queues);
    dn_link_init(&w->runs);
    dn_link_init(&w->over);
    dn_mailbox_init(&w->box);
    int rc = w->pick && w->entry_rows && w->rows ? 0 : DN_E_MEMORY;
    if (rc || pthread_create(&w->thread, NULL, work, w)) {
        dn_worker_free(w);
        return dn_fail(err, rc ? rc : DN_E_INTERNAL, NULL, "no thread for device %s", dn_device_name(options->device));
    }
    *out = w;
    return 0;
}

static void stop(dn_msg *msg) { dn_container_of(msg, struct stop_message, msg)->worker->stopping = true; }

void dn_worker_stop(dn_worker *w)
{
    struct stop_message s = { .msg = { .run = stop }, .worker = w };
    dn_mailbox_post(&w->box, &s.msg);
    pthread_join(w->thread, NULL);
    w->stopped = true;
}

void dn_worker_free(dn_worker *w)
{
    if (!w)
        return;
    DN_LINK_EACH(l, &w->queues) { free(DN_LINK_OF(l, queue, link)); }
    dn_sched_fini(&w->sched);
    dn_mailbox_fini(&w->box);
    free(w->pick);
    free(w->entry_rows);
    free(w->rows);
    free(w);
}

int dn_worker_index(const dn_worker *w) { return w->o.index; }

void dn_worker_deliver(dn_worker *w, dn_msg *msg, void (*run)(dn_msg *))
{
    msg->run = run;
    dn_mailbox_post(&w->box, msg);
}

void dn_worker_run(dn_worker *w, dn_run *run)
{
    run->worker = w;
    dn_worker_deliver(w, &run->msg, run_joins);
}

void dn_worker_adopt(dn_worker *w, dn_adoption *adoption)
{
    adoption->worker = w;
    dn_worker_deliver(w, &adoption->msg, adoption->drop ? net_goes : net_comes);
}

int dn_worker_cancel(dn_worker *w, uint64_t run)
{
    cancel *c = calloc(1, sizeof *c);
    if (!c)
        return DN_E_MEMORY;
    c->worker = w;
    c->run = run;
    dn_worker_deliver(w, &c->msg, run_is_cancelled);
    return 0;
}
