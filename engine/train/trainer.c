/* trainer.c - a job on its device: memory, and the phases of an optimizer step.
 *
 * clear -> (feed -> run) for each micro-batch -> norm -> update (optimizer and EMA). Every phase can stop and go on
 * where it was, so that a segment is as short as the longest op or chunk. */
#include "train_internal.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, CHUNKS_AT_ONCE = 32, SCALE_GROWTH_STEPS = 2000 };
static const double first_loss_scale = 0x1p15, loss_scale_max = 0x1p24;

/* ---- birth ---- */

static int describe(dn_trainer *t, const dn_model *m, dn_error *err)
{
    memcpy(t->model_hash, m->info.hash, sizeof t->model_hash);
    memcpy(t->data_hash, dn_dataset_info_of(t->data)->hash, sizeof t->data_hash);
    int rc = dn_model_describe(&t->model, m->index, m->config_json, m->scheduler_json, m->extra, err);
    return rc ? rc : dn_levels_init(&t->levels, &m->info, err);
}

static int make_nets(dn_trainer *t, dn_error *err)
{
    dn_marks recompute;
    memcpy(recompute.bit, t->plan.recompute, sizeof recompute.bit);
    dn_train_recipe recipe = { t->model, &t->levels, &t->params, t->height, t->width, t->plan.micro_batch, true };
    int rc = dn_train_net_init(&t->net, &recipe, &recompute, t->device, err);
    recipe.backward = false;
    rc = rc || !t->n_eval ? rc : dn_train_net_init(&t->eval_net, &recipe, &recompute, t->device, err);
    return rc ? rc : dn_inspection_init(t, err);
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static int make_arena(dn_trainer *t, dn_error *err)
{
    size_t bytes = larger(t->net.lowered->arena_bytes, t->n_eval ? t->eval_net.lowered->arena_bytes : 0);
    t->arena_bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    t->arena = aligned_alloc(HUGE_PAGE, t->arena_bytes);
    if (!t->arena)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for an arena of %zu bytes", t->arena_bytes);
    (void)madvise(t->arena, t->arena_bytes, MADV_HUGEPAGE); /* only a hint */
    return 0;
}

static int make_feed(dn_trainer *t, dn_error *err)
{
    size_t rows = (size_t)t->plan.micro_batch, bytes = sizeof(float) * rows * (size_t)t->row;
    t->feed = (dn_feed){ malloc(bytes), malloc(bytes), malloc(sizeof(int32_t) * rows), malloc(sizeof(int) * rows) };
    if (!t->feed.x0 || !t->feed.noise || !t->feed.label || !t->feed.t)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for a micro-batch of %d rows", t->plan.micro_batch);
    return 0;
}

int dn_trainer_readers(dn_trainer *t, dn_error *err)
{
    dn_reader_params p = dn_train_reader(&t->params, &t->model->info, t->data, false);
    dn_reader_params held = dn_train_reader(&t->params, &t->model->info, t->data, true);
    dn_reader *reader = NULL;
    int rc = dn_reader_new(&reader, &p, t->counters.step, err);
    if (rc)
        return rc;
    dn_reader_free(t->reader);
    t->reader = reader;
    t->reader_bytes = dn_reader_bytes(&p) + (t->n_eval ? dn_reader_bytes(&held) : 0);
    return t->n_eval && !t->eval_reader ? dn_reader_new(&t->eval_reader, &held, 0, err) : 0;
}

static int check_plan(const dn_trainer *t, dn_error *err)
{
    char numerics[sizeof t->plan.numerics];
    dn_train_numerics(numerics, sizeof numerics, t->device, &t->params, &t->plan);
    if (t->plan.micro_batch < 1 || t->params.batch_size % t->plan.micro_batch || strcmp(numerics, t->plan.numerics))
        return dn_fail(err, DN_E_INVALID, "plan", "the plan (%s) is of another job or device (%s)", t->plan.numerics,
                       numerics);
    return 0;
}

static void first_weights(dn_trainer *t, const dn_model *m)
{
    memcpy(t->flat.weights, m->weights, sizeof(float) * (size_t)t->flat.count);
    memcpy(t->flat.ema, m->weights, sizeof(float) * (size_t)t->flat.count);
}

int dn_trainer_new(dn_trainer **out, dn_device *d, const dn_model *m, const dn_dataset *data, const dn_train_params *p,
                   const dn_train_plan *plan, dn_error *err)
{
    dn_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    t->device = d;
    t->data = data;
    t->params = *p;
    t->plan = *plan;
    t->height = p->height ? p->height : m->info.height;
    t->width = p->width ? p->width : m->info.width;
    t->channels = m->info.channels;
    t->row = (int64_t)t->height * t->width * t->channels;
    t->counters.loss_scale = p->precision == DN_PRECISION_FP16 ? first_loss_scale : 1;
    dn_train_split(p, data, &t->n_train, &t->n_eval);
    int rc = dn_train_params_check(p, err);
    rc = rc ? rc : check_plan(t, err);
    rc = rc ? rc : describe(t, m, err);
    rc = rc ? rc : make_nets(t, err);
    rc = rc ? rc : dn_flat_init(&t->flat, &t->net.program->block[0], p->optimizer.kind, err);
    rc = rc ? rc : make_arena(t, err);
    rc = rc ? rc : make_feed(t, err);
    rc = rc ? rc : dn_trainer_readers(t, err);
    if (rc) {
        dn_trainer_free(t);
        return rc;
    }
    first_weights(t, m);
    *out = t;
    return 0;
}

void dn_trainer_free(dn_trainer *t)
{
    if (!t)
        return;
    dn_reader_free(t->reader);
    dn_reader_free(t->eval_reader);
    dn_inspection_fini(t);
    dn_train_net_fini(&t->net);
    dn_train_net_fini(&t->eval_net);
    dn_flat_fini(&t->flat);
    dn_levels_fini(&t->levels);
    dn_model_free(t->model);
    dn_snapshot_free(t->copy.to);
    free(t->arena);
    free(t->feed.x0);
    free(t->feed.noise);
    free(t->feed.label);
    free(t->feed.t);
    free(t);
}

int64_t dn_trainer_step(const dn_trainer *t) { return t->counters.step; }
bool dn_trainer_at_boundary(const dn_trainer *t)
{
    return t->phase == DN_PHASE_CLEAR && !t->chunk && !t->eval.running && !t->copy.to;
}

size_t dn_trainer_bytes(const dn_trainer *t)
{
    size_t gradients, moments, weights = dn_flat_bytes(t->flat.count, t->params.optimizer.kind, &gradients, &moments);
    size_t nets = dn_train_net_bytes(&t->net) + (t->n_eval ? dn_train_net_bytes(&t->eval_net) : 0);
    return 2 * weights + gradients + moments + t->arena_bytes + nets + t->reader_bytes +
           dn_train_feed_bytes(&t->params, &t->model->info, t->plan.micro_batch);
}

/* ---- phases: 0 when done (the next one is set), 1 when time is up, < 0 a negated DN_E code ---- */

static bool late(double end) { return end > 0 && dn_monotonic_ms() >= end; }

/* A flat pass from t->chunk on. */
static int flat_pass(dn_trainer *t, double end, void (*run)(dn_trainer *t, int64_t from, int64_t to))
{
    int64_t n = dn_flat_chunks(&t->flat);
    while (t->chunk < n) {
        int64_t to = t->chunk + CHUNKS_AT_ONCE < n ? t->chunk + CHUNKS_AT_ONCE : n;
        run(t, t->chunk, to);
        t->chunk = to;
        if (to < n && late(end))
            return 1;
    }
    t->chunk = 0;
    return 0;
}

static void clear(dn_trainer *t, int64_t from, int64_t to) { dn_flat_clear(&t->flat, t->device->pool, from, to); }
static void squares(dn_trainer *t, int64_t from, int64_t to) { dn_flat_squares(&t->flat, t->device->pool, from, to); }
static void update(dn_trainer *t, int64_t from, int64_t to)
{
    dn_flat_update(&t->flat, &t->update, t->device->pool, from, to);
}

static int phase_clear(dn_trainer *t, double end)
{
    int rc = flat_pass(t, end, clear);
    if (!rc)
        t->phase = DN_PHASE_FEED;
    return rc;
}

static int phase_feed(dn_trainer *t, double end)
{
    (void)end;
    t->run = (dn_run){ .lowered = t->net.lowered,
                       .arena = t->arena,
                       .pool = t->device->pool,
                       .block = { (const char *)t->flat.weights, (const char *)t->flat.gradient },
                       .n = t->plan.micro_batch };
    dn_feed_train(t, t->micro * t->plan.micro_batch, t->plan.micro_batch);
    t->phase = DN_PHASE_RUN;
    return dn_inspection_begin(t);
}

static int phase_run(dn_trainer *t, double end)
{
    int rc = dn_run_some(&t->run, end > 0 ? fmax(end - dn_monotonic_ms(), 1e-6) : 0);
    if (rc)
        return rc;
    for (int i = 0; i < t->run.n; i++)
        t->loss += *(float *)dn_place_at(&t->run, t->net.loss, i);
    t->phase = ++t->micro < t->params.batch_size / t->plan.micro_batch ? DN_PHASE_FEED : DN_PHASE_NORM;
    return 0;
}

/* Clipping and unscaling in one factor, PyTorch's clip_grad_norm_. */
static void prepare_update(dn_trainer *t)
{
    dn_train_report *r = &t->report;
    double clip = t->params.optimizer.clip_norm, coef = clip > 0 ? fmin(1, clip / (r->grad_norm + 1e-6)) : 1;
    int64_t u = t->counters.updates + 1;
    t->update = dn_update_terms_of(&t->params.optimizer, r->lr, u, coef / t->counters.loss_scale);
    r->ema_decay = u % t->params.ema.every ? 1 : dn_ema_decay(&t->params.ema, u);
    if (u % t->params.ema.every == 0)
        t->update.ema = (float)(1 - r->ema_decay);
}

static int phase_norm(dn_trainer *t, double end)
{
    int rc = flat_pass(t, end, squares);
    if (rc)
        return rc;
    dn_train_report *r = &t->report;
    r->loss = t->loss / t->params.batch_size;
    r->grad_norm = dn_flat_norm(&t->flat) / t->counters.loss_scale;
    r->lr = dn_lr_at(&t->params.lr_schedule, t->params.optimizer.lr, t->counters.step, t->params.steps);
    r->loss_scale = t->counters.loss_scale;
    r->skipped = !isfinite(r->grad_norm) || !isfinite(r->loss);
    if (!r->skipped)
        prepare_update(t);
    t->phase = r->skipped ? DN_PHASE_COUNT : DN_PHASE_UPDATE;
    return 0;
}

static int phase_update(dn_trainer *t, double end)
{
    int rc = flat_pass(t, end, update);
    if (!rc)
        t->phase = DN_PHASE_COUNT;
    return rc;
}

static int (*const phases[DN_PHASE_COUNT])(dn_trainer *t, double end) = {
    [DN_PHASE_CLEAR] = phase_clear, [DN_PHASE_FEED] = phase_feed,     [DN_PHASE_RUN] = phase_run,
    [DN_PHASE_NORM] = phase_norm,   [DN_PHASE_UPDATE] = phase_update,
};

/* ---- the step's end ---- */

/* Micikevicius et al. 2018: halve on overflow, double after 2000 good steps. An overflow is what a smaller scale may
 * cure: only what stays when the scale is 1, or a loss that is no number, counts as a bad step. */
static void settle_scale(dn_trainer *t)
{
    dn_train_counters *c = &t->counters;
    bool overflow = t->report.skipped && c->loss_scale > 1 && isfinite(t->report.loss);
    c->nan_run = !t->report.skipped ? 0 : c->nan_run + !overflow;
    if (t->params.precision != DN_PRECISION_FP16)
        return;
    c->good_steps = t->report.skipped ? 0 : c->good_steps + 1;
    if (t->report.skipped)
        c->loss_scale = fmax(1, c->loss_scale / 2);
    if (c->good_steps == SCALE_GROWTH_STEPS) {
        c->loss_scale = fmin(loss_scale_max, c->loss_scale * 2);
        c->good_steps = 0;
    }
}

static int end_step(dn_trainer *t, dn_train_report *report, dn_error *err)
{
    t->report.step = ++t->counters.step;
    t->counters.updates += !t->report.skipped;
    settle_scale(t);
    *report = t->report;
    t->report = (dn_train_report){ 0 };
    t->phase = DN_PHASE_CLEAR;
    t->micro = 0;
    t->loss = 0;
    if (t->counters.nan_run < t->params.nan_max)
        return 0;
    return -dn_fail(err, DN_E_NON_FINITE, NULL,
                    "%d optimizer steps in a row had a loss or gradient that is not finite, the last is step %lld",
                    t->params.nan_max, (long long)t->counters.step);
}

int dn_trainer_some(dn_trainer *t, double max_ms, dn_train_report *report, dn_error *err)
{
    double start = dn_monotonic_ms(), end = max_ms > 0 ? start + max_ms : 0, waited = t->report.wait_ms;
    int rc = 0;
    if (t->eval.running || t->copy.to)
        return -dn_fail(err, DN_E_INTERNAL, NULL, "a step while %s is under way",
                        t->copy.to ? "a snapshot" : "an evaluation");
    while (!rc && t->phase < DN_PHASE_COUNT) {
        rc = phases[t->phase](t, end);
        if (!rc && t->phase < DN_PHASE_COUNT && late(end))
            rc = 1;
    }
    t->report.device_ms += dn_monotonic_ms() - start - (t->report.wait_ms - waited);
    if (rc < 0)
        return -dn_fail(err, -rc, NULL, "step %lld failed on the device: %s", (long long)t->counters.step,
                        dn_error_text(-rc));
    return rc ? rc : end_step(t, report, err);
}
