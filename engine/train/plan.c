/* plan.c - checks a job against its model and data, and says by arithmetic what it will need. */
#include "train_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    ARENA_ROUND = 2 << 20, /* huge pages */
    ROWS_ENOUGH = 16,      /* of a micro-batch: more only leave the cache sooner (docs/SPEED.md) */
};

/* ---- does it make sense ---- */

static int check_prediction(const dn_train_params *p, const dn_model_info *info, const dn_levels *l, dn_error *err)
{
    bool flow = p->objective.prediction == DN_PREDICT_FLOW;
    if (flow != l->flow)
        return dn_fail(
            err, DN_E_IMPOSSIBLE, "objective.prediction",
            flow ? "prediction flow needs a model with a flow-matching scheduler (FlowMatchEulerDiscreteScheduler)"
                 : "the model's scheduler is a flow-matching one: prediction must be flow");
    if (p->objective.prediction == DN_PREDICT_EPSILON && l->alpha[l->n - 1] < 1e-6)
        return dn_fail(
            err, DN_E_IMPOSSIBLE, "objective.prediction",
            "the model's schedule ends in pure noise (rescale_betas_zero_snr), where epsilon says nothing: use v");
    if (info->out_channels != info->channels && !info->learned_variance)
        return dn_fail(err, DN_E_IMPOSSIBLE, "model", "the network has %d output channels for %d input channels",
                       info->out_channels, info->channels);
    if (!info->learned_variance && p->objective.vlb_weight != 1)
        return dn_fail(err, DN_E_IMPOSSIBLE, "objective.vlb_weight",
                       "objective.vlb_weight has an effect only on a network with learned variance");
    if (info->learned_variance && flow)
        return dn_fail(err, DN_E_IMPOSSIBLE, "objective.prediction",
                       "a network with learned variance cannot predict a flow");
    return 0;
}

static int check_labels(const dn_train_params *p, const dn_model_info *info, const dn_dataset *data, dn_error *err)
{
    const dn_dataset_info *d = dn_dataset_info_of(data);
    if (p->objective.label_dropout > 0 && info->null_label < 0)
        return dn_fail(err, DN_E_IMPOSSIBLE, "objective.label_dropout",
                       "label dropout needs a model with a null_label");
    if (info->label_kind == DN_LABEL_NONE)
        return 0;
    if (info->label_kind == DN_LABEL_VECTOR)
        return dn_fail(err, DN_E_UNSUPPORTED, "model",
                       "a network that takes a vector as its label cannot be trained from class labels");
    for (int64_t i = 0; i < d->n; i++) {
        int label = dn_dataset_label(data, i);
        if (label < 0 && info->null_label < 0)
            return dn_fail(err, DN_E_INVALID, "dataset", "image %lld has no label, and the model has no null_label",
                           (long long)i);
        if (info->label_kind == DN_LABEL_EMBED && label >= info->n_classes)
            return dn_fail(err, DN_E_RANGE, "dataset", "image %lld has label %d, the model has %d classes",
                           (long long)i, label, info->n_classes);
    }
    return 0;
}

static int check_pictures(const dn_train_params *p, const dn_model *m, const dn_dataset *data, dn_error *err)
{
    const dn_dataset_info *d = dn_dataset_info_of(data);
    int64_t n_train, n_eval;
    dn_train_split(p, data, &n_train, &n_eval);
    if (n_train < 1)
        return dn_fail(err, DN_E_INVALID, "dataset", "the dataset has %lld images, none of them is left to train on",
                       (long long)d->n);
    bool converts = d->channels == 1 || (d->channels == 3 && m->info.channels == 1); /* grey to colours and back */
    if (d->channels != m->info.channels && !converts)
        return dn_fail(err, DN_E_IMPOSSIBLE, "dataset", "the dataset's images have %d channels, the model's %d",
                       d->channels, m->info.channels);
    if (p->height && !dn_model_size_ok(m, p->height, p->width))
        return dn_fail(err, DN_E_IMPOSSIBLE, "height", "%d x %d is neither the model's size nor one of its `sizes`",
                       p->height, p->width);
    return 0;
}

/* ---- what is derived from the parameters ---- */

void dn_train_split(const dn_train_params *p, const dn_dataset *data, int64_t *n_train, int64_t *n_eval)
{
    int64_t n = dn_dataset_info_of(data)->n;
    *n_eval = (int64_t)floor((double)n * p->eval_fraction);
    *n_eval += !*n_eval && p->eval_fraction > 0; /* what was asked for is done, with one image if need be */
    *n_train = n - *n_eval;
}

dn_reader_params dn_train_reader(const dn_train_params *p, const dn_model_info *info, const dn_dataset *data,
                                 bool held_out)
{
    int64_t n_train, n_eval;
    dn_train_split(p, data, &n_train, &n_eval);
    dn_reader_params r = { .data = data,
                           .height = p->height ? p->height : info->height,
                           .width = p->width ? p->width : info->width,
                           .channels = info->channels,
                           .range = { info->range[0], info->range[1] },
                           .seed = p->seed,
                           .batch_size = p->batch_size,
                           .n = n_train,
                           .shuffle = true,
                           .threads = 1 };
    if (held_out) { /* in order, as they are; a "step" is one image */
        r.batch_size = 1;
        r.first = n_train;
        r.n = n_eval;
        r.shuffle = false;
        r.threads = 0;
        return r;
    }
    memcpy(r.augment, p->augment, sizeof r.augment);
    r.n_augment = p->n_augment;
    return r;
}

size_t dn_train_feed_bytes(const dn_train_params *p, const dn_model_info *info, int rows)
{
    int64_t height = p->height ? p->height : info->height, width = p->width ? p->width : info->width;
    return (size_t)rows *
           (2 * sizeof(float) * (size_t)(height * width * info->channels) + sizeof(int32_t) + sizeof(int));
}

void dn_train_numerics(char *out, size_t size, const dn_device *d, const dn_train_params *p, const dn_train_plan *plan)
{
    static const char *const precision[] = { "fp32", "bf16", "fp16" };
    uint64_t blocks = 0; /* which blocks are recomputed matters when they start from 16 bits */
    for (int i = 0; i < 4; i++)
        blocks = blocks * 0x9E3779B97F4A7C15u + plan->recompute[i];
    snprintf(out, size, "%s/k%d/t2/m%d/%s/r%llx", d->backend->name, DN_KERNEL_VERSION, plan->micro_batch,
             precision[p->precision], (unsigned long long)blocks);
}

/* ---- bytes ---- */

typedef struct {
    dn_train_recipe recipe;
    const dn_device *device;
    const dn_dataset *data;
    size_t budget;
    size_t previews;
    size_t arena; /* of the last plan: what the choice of blocks changes */
} planner;

static dn_program *build(void *arg, const dn_marks *recompute) { return dn_train_record(arg, recompute); }

static int count_recomputed(const dn_marks *m)
{
    int n = 0;
    for (int i = 0; i < DN_MARKS_MAX; i++)
        n += dn_marks_has(m, i);
    return n;
}

/* Everything but the choice of blocks; fills `out` for these rows and this choice. */
static int measure(dn_train_plan *out, planner *s, int rows, const dn_marks *chosen, dn_error *err)
{
    const dn_train_params *p = s->recipe.params;
    dn_train_net net, eval = { 0 };
    dn_train_plan plan = { .micro_batch = rows, .n_recomputed = count_recomputed(chosen) };
    dn_train_recipe forward = s->recipe;
    int64_t n_train, n_eval;
    dn_train_split(p, s->data, &n_train, &n_eval);
    s->recipe.rows = forward.rows = rows;
    forward.backward = false;
    int rc = dn_train_net_init(&net, &s->recipe, chosen, s->device, err);
    if (rc)
        return rc;
    size_t arena = net.lowered->arena_bytes, rest = dn_train_net_bytes(&net);
    rc = n_eval ? dn_train_net_init(&eval, &forward, chosen, s->device, err) : 0;
    if (!rc && n_eval) {
        arena = eval.lowered->arena_bytes > arena ? eval.lowered->arena_bytes : arena;
        rest += dn_train_net_bytes(&eval);
    }
    if (!rc) {
        const dn_model_info *info = &s->recipe.model->info;
        dn_reader_params read = dn_train_reader(p, info, s->data, false),
                         held = dn_train_reader(p, info, s->data, true);
        memcpy(plan.recompute, chosen->bit, sizeof plan.recompute);
        plan.weights = dn_flat_bytes(net.program->block[0].count, p->optimizer.kind, &plan.gradients, &plan.moments);
        plan.ema = plan.weights;
        s->arena = (arena + ARENA_ROUND - 1) / ARENA_ROUND * ARENA_ROUND;
        plan.arena = s->arena + rest;
        plan.data = dn_train_feed_bytes(p, info, rows) + dn_reader_bytes(&read) + (n_eval ? dn_reader_bytes(&held) : 0);
        plan.copies = plan.weights + plan.moments + plan.ema;
        plan.previews = s->previews;
        plan.total = plan.weights + plan.gradients + plan.moments + plan.ema + plan.arena + plan.data + plan.copies +
                     plan.previews;
        plan.gflop_per_step = dn_program_flop(net.program) * p->batch_size * 1e-9;
        dn_train_numerics(plan.numerics, sizeof plan.numerics, s->device, p, &plan);
        *out = plan;
    }
    dn_train_net_fini(&net);
    dn_train_net_fini(&eval);
    return rc;
}

/* With as many blocks recomputed as it takes to fit; *out is the smallest plan if none does. */
static int measure_recomputed(dn_train_plan *out, planner *s, int rows, dn_error *err)
{
    dn_train_plan bare, most;
    dn_marks chosen = { 0 }, all;
    memset(&all, 0xff, sizeof all);
    int rc = measure(&bare, s, rows, &chosen, err);
    if (rc || bare.total <= s->budget) {
        *out = rc ? *out : bare;
        return rc;
    }
    rc = measure(&most, s, rows, &all, err);
    if (rc)
        return rc;
    size_t rest = most.total - s->arena, bytes; /* lists grow with what is recomputed */
    size_t left = s->budget > rest ? (s->budget - rest) / ARENA_ROUND * ARENA_ROUND : 0;
    dn_search search = { build, &s->recipe, s->device->backend, rows, left };
    rc = dn_plan_search(&search, &chosen, &bytes, err);
    return rc && rc != DN_E_MEMORY ? rc : measure(out, s, rows, &chosen, err);
}

static int too_large(const dn_train_plan *smallest, const planner *s, int fits, dn_error *err)
{
    char hint[96];
    if (fits)
        snprintf(hint, sizeof hint, "micro_batch %d would fit", fits);
    else
        snprintf(hint, sizeof hint, "the network would have to be smaller, or the budget %zu bytes", smallest->total);
    return dn_fail(err, DN_E_MEMORY, "micro_batch",
                   "the job needs at least %zu bytes (arena %zu, weights %zu, gradient %zu, moments %zu, ema %zu, "
                   "data %zu, copies %zu, previews %zu) with micro_batch %d; %zu are allowed: %s",
                   smallest->total, smallest->arena, smallest->weights, smallest->gradients, smallest->moments,
                   smallest->ema, smallest->data, smallest->copies, smallest->previews, smallest->micro_batch,
                   s->budget, hint);
}

/* The largest divisor of batch_size, at most `most`, that fits with nothing recomputed; 0: none. *out only then. */
static int largest_that_fits(dn_train_plan *out, planner *s, int most, int *found, dn_error *err)
{
    static const dn_marks none;
    int batch = s->recipe.params->batch_size;
    *found = 0;
    for (int rows = most; rows >= 1; rows--) {
        dn_train_plan plan;
        if (batch % rows)
            continue;
        int rc = measure(&plan, s, rows, &none, err);
        if (rc)
            return rc;
        if (plan.total <= s->budget) {
            *out = plan;
            *found = rows;
            return 0;
        }
    }
    return 0;
}

/* Where the search for a micro-batch begins: the smallest divisor of batch_size that is enough. */
static int rows_enough(int batch)
{
    int rows = batch < ROWS_ENOUGH ? batch : ROWS_ENOUGH;
    while (batch % rows)
        rows++;
    return rows;
}

/* A copy of the EMA, a model of it beside it, and when the copy is gone, what the model needs to run. */
static int measure_previews(planner *s, const dn_train_params *p, const dn_model *m, dn_error *err)
{
    dn_footprint need;
    int rc = p->preview_bytes ? dn_model_footprint(&need, s->device, m, err) : 0;
    if (rc || !p->preview_bytes)
        return rc;
    size_t run = need.forms + need.arena + p->preview_bytes;
    s->previews = need.weights + (run > need.weights ? run : need.weights);
    return 0;
}

static int choose(dn_train_plan *out, planner *s, dn_error *err)
{
    const dn_train_params *p = s->recipe.params;
    dn_train_plan plan, smaller;
    int found = 0, rc = 0;
    if (!p->micro_batch)
        rc = largest_that_fits(&plan, s, rows_enough(p->batch_size), &found, err);
    if (!rc && !found)
        rc = measure_recomputed(&plan, s, p->micro_batch ? p->micro_batch : 1, err);
    if (rc)
        return rc;
    if (plan.total <= s->budget) {
        *out = plan;
        return 0;
    }
    if (p->micro_batch > 1)
        rc = largest_that_fits(&smaller, s, p->micro_batch - 1, &found, err);
    return rc ? rc : too_large(&plan, s, found, err);
}

int dn_train_plan_make(dn_train_plan *out, const dn_device *d, const dn_model *m, const dn_dataset *data,
                       const dn_train_params *p, size_t budget, dn_error *err)
{
    dn_levels levels = { 0 };
    int rc = dn_train_params_check(p, err);
    rc = rc ? rc : dn_levels_init(&levels, &m->info, err);
    rc = rc ? rc : check_prediction(p, &m->info, &levels, err);
    if (!rc && m->arch_info.time_rows && levels.n > m->arch_info.time_rows)
        rc = dn_fail(err, DN_E_IMPOSSIBLE, "model",
                     "the network has learned embeddings of %lld timesteps, its scheduler has %d",
                     (long long)m->arch_info.time_rows, levels.n);
    rc = rc ? rc : check_pictures(p, m, data, err);
    rc = rc ? rc : check_labels(p, &m->info, data, err);
    if (!rc) {
        planner s = { .recipe = { m, &levels, p, p->height ? p->height : m->info.height,
                                  p->width ? p->width : m->info.width, 0, true },
                      .device = d,
                      .data = data,
                      .budget = budget ? budget : SIZE_MAX };
        rc = measure_previews(&s, p, m, err);
        rc = rc ? rc : choose(out, &s, err);
    }
    dn_levels_fini(&levels);
    return rc;
}
