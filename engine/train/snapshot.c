/* snapshot.c - a trainer's state copied out at a boundary, so that the slow lane can write it while training goes on.
 */
#include "train_internal.h"
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

static float *copy_block(const float *src, int64_t count)
{
    float *x = src ? aligned_alloc(64, (sizeof *x * (size_t)count + 63) / 64 * 64) : NULL;
    return x ? memcpy(x, src, sizeof *x * (size_t)count) : NULL;
}

static int copy_all(dn_snapshot *s, const dn_trainer *t, dn_error *err)
{
    const float *const from[] = { t->flat.weights, t->flat.m, t->flat.v };
    s->header = dn_trainer_header(t);
    bool all = s->header != NULL;
    for (int i = 0; i < 3; i++) {
        s->block[i] = copy_block(from[i], t->flat.count);
        all &= !from[i] || s->block[i];
    }
    return all ? 0
               : dn_fail(err, DN_E_MEMORY, NULL, "out of memory for a snapshot of %lld parameters",
                         (long long)t->flat.count);
}

/* A model of its own with these weights. */
static int model_with(dn_model **out, const dn_model *like, const dn_block *b, const float *weights, dn_error *err)
{
    dn_model *m = NULL;
    int rc = dn_model_describe(&m, like->index, like->config_json, like->scheduler_json, like->extra, err);
    rc = rc ? rc : dn_model_weights_new(m, b, err);
    if (rc) {
        dn_model_free(m);
        return rc;
    }
    memcpy(m->weights, weights, m->info.bytes);
    *out = m;
    return 0;
}

int dn_trainer_snapshot(dn_snapshot **out, const dn_trainer *t, bool all, dn_error *err)
{
    if (!dn_trainer_at_boundary(t))
        return dn_fail(err, DN_E_INTERNAL, NULL, "a snapshot within an optimizer step");
    dn_snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    s->all = all;
    s->count = t->flat.count;
    s->prediction = t->params.objective.prediction;
    int rc = model_with(&s->model, t->model, &t->net.program->block[0], t->flat.ema, err);
    rc = rc || !all ? rc : copy_all(s, t, err);
    if (rc)
        dn_snapshot_free(s);
    else
        *out = s;
    return rc;
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
