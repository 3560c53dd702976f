/* snapshot.c - a trainer's state copied out at a boundary, so that the slow lane can write it while training goes on.
 *
 * The copy is made in pieces of a bounded number of bytes, and may stop after any of them: samples wait for one segment
 * of it, never for all. Until it is whole the trainer stays where it is. */
#include "train_internal.h"
#include <assert.h>
#include <denoised/sha256.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Which job this is: a resume is refused by the name of the first of these that differs. */
json_t *dn_train_identity(const char *model_hash, const char *data_hash, const dn_train_params *p,
                          const dn_train_plan *plan)
{
    return json_pack("{ssssssso}", "model", model_hash, "dataset", data_hash, "numerics", plan->numerics, "params",
                     dn_train_params_json(p));
}

/* Weights, moments, EMA. */
int dn_train_blocks(enum dn_optimizer_kind kind) { return kind == DN_SGD ? 3 : 4; }

json_t *dn_trainer_header(const dn_trainer *t)
{
    const dn_train_counters *c = &t->counters;
    json_t *counters =
        json_pack("{sIsIsfsIsI}", "step", (json_int_t)c->step, "updates", (json_int_t)c->updates, "loss_scale",
                  c->loss_scale, "good_steps", (json_int_t)c->good_steps, "nan_run", (json_int_t)c->nan_run);
    return json_pack("{sisosososIsi}", "version", DN_CHECKPOINT_VERSION, "job",
                     dn_train_identity(t->model_hash, t->data_hash, &t->params, &t->plan), "counters", counters,
                     "config", json_deep_copy(t->model->config_json), "count", (json_int_t)t->flat.count, "blocks",
                     dn_train_blocks(t->params.optimizer.kind));
}

/* ---- the copy ---- */

static float *block_new(int64_t count) { return aligned_alloc(64, (sizeof(float) * (size_t)count + 63) / 64 * 64); }

/* Memory for weights and moments, and the header. */
static int reserve_all(dn_snapshot *s, const dn_trainer *t, dn_error *err)
{
    const float *const from[] = { t->flat.weights, t->flat.m, t->flat.v };
    s->header = dn_trainer_header(t);
    bool all = s->header != NULL;
    for (int i = 0; i < 3; i++) {
        s->block[i] = from[i] ? block_new(s->count) : NULL;
        all &= !from[i] || s->block[i];
    }
    return all ? 0
               : dn_fail(err, DN_E_MEMORY, NULL, "out of memory for a snapshot of %lld parameters",
                         (long long)s->count);
}

static int begin_copy(dn_trainer *t, bool all, dn_error *err)
{
    const dn_model *like = t->model;
    dn_snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    s->all = all;
    s->count = t->flat.count;
    s->prediction = t->params.objective.prediction;
    int rc = dn_model_describe(&s->model, like->index, like->config_json, like->scheduler_json, like->extra, err);
    rc = rc ? rc : dn_model_weights_reserve(s->model, &t->net.program->block[0], err);
    rc = rc || !all ? rc : reserve_all(s, t, err);
    if (rc)
        dn_snapshot_free(s);
    else
        t->copy = (dn_copying){ .to = s };
    return rc;
}

/* One piece; false: that was the last. */
static bool copy_piece(const dn_trainer *t, dn_copying *c)
{
    const float *const from[] = { t->flat.weights, t->flat.m, t->flat.v, t->flat.ema };
    float *const to[] = { c->to->block[0], c->to->block[1], c->to->block[2], c->to->model->weights };
    while (!to[c->block])
        c->block++;
    int64_t left = c->to->count - c->at, n = left < DN_COPY_PIECE ? left : DN_COPY_PIECE;
    memcpy(to[c->block] + c->at, from[c->block] + c->at, sizeof(float) * (size_t)n);
    c->at = n < left ? c->at + n : 0;
    c->block += n == left;
    return c->block < 4;
}

int dn_trainer_snapshot(dn_snapshot **out, dn_trainer *t, bool all, double max_ms, dn_error *err)
{
    double end = max_ms > 0 ? dn_monotonic_ms() + max_ms : 0;
    if (!t->copy.to && !dn_trainer_at_boundary(t))
        return -dn_fail(err, DN_E_INTERNAL, NULL, "a snapshot within an optimizer step");
    int rc = t->copy.to ? 0 : begin_copy(t, all, err);
    if (rc)
        return -rc;
    assert(t->copy.to->all == all);
    while (copy_piece(t, &t->copy))
        if (end > 0 && dn_monotonic_ms() >= end)
            return 1;
    *out = t->copy.to;
    t->copy = (dn_copying){ 0 };
    return 0;
}

void dn_snapshot_free(dn_snapshot *s)
{
    if (!s)
        return;
    dn_model_free(s->model);
    for (int i = 0; i < 3; i++)
        free(s->block[i]);
    json_decref(s->header);
    free(s);
}

/* The scheduler's configuration with what was trained: the model's own cannot say otherwise. */
json_t *dn_snapshot_scheduler(const dn_snapshot *s)
{
    static const char *const names[] = {
        [DN_PREDICT_EPSILON] = "epsilon", [DN_PREDICT_V] = "v_prediction", [DN_PREDICT_SAMPLE] = "sample"
    };
    json_t *j = json_deep_copy(s->model->scheduler_json);
    const char *cls = json_string_value(json_object_get(j, "_class_name"));
    if (s->prediction != DN_PREDICT_FLOW)
        json_object_set_new(j, "prediction_type", json_string(names[s->prediction]));
    const char *variance = json_string_value(json_object_get(j, "variance_type"));
    if (s->model->info.learned_variance && cls && !strcmp(cls, "DDPMScheduler") &&
        (!variance || strcmp(variance, "learned")))
        json_object_set_new(j, "variance_type", json_string("learned_range"));
    return j;
}

int dn_snapshot_model(dn_model **out, const dn_snapshot *s, dn_error *err)
{
    const dn_model *like = s->model;
    dn_model *m = NULL;
    json_t *scheduler = dn_snapshot_scheduler(s);
    dn_program *p = dn_model_program(like, like->info.height, like->info.width);
    int rc = scheduler && p ? p->error.code : DN_E_MEMORY;
    if (rc)
        dn_fail(err, rc, NULL, "%s", p ? p->error.message : "out of memory");
    rc = rc ? rc : dn_model_describe(&m, like->index, like->config_json, scheduler, like->extra, err);
    rc = rc ? rc : dn_model_weights_new(m, &p->block[0], err);
    if (!rc) {
        memcpy(m->weights, like->weights, m->info.bytes);
        dn_sha256_hex(m->info.hash, m->weights, m->info.bytes);
        *out = m;
    } else {
        dn_model_free(m);
    }
    json_decref(scheduler);
    dn_program_free(p);
    return rc;
}
