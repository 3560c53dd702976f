/* publish.c - the EMA as a diffusers folder. */
#include "train_internal.h"
#include "files.h"
#include <denoised/image.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIFFUSERS_VERSION "0.31.0" /* whose layout this is */

static int write_json(const dn_folder *f, const char *name, json_t *json, dn_error *err)
{
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    int rc = text ? dn_folder_file(f, name, text, strlen(text), err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    free(text);
    json_decref(json);
    return rc;
}

static json_t *index_of(const dn_snapshot *s, const json_t *scheduler)
{
    if (s->model->index)
        return json_deep_copy(s->model->index);
    return json_pack("{sssss[ss]s[ss]}", "_class_name", "DDPMPipeline", "_diffusers_version", DIFFUSERS_VERSION,
                     "scheduler", "diffusers", json_string_value(json_object_get(scheduler, "_class_name")), "unet",
                     "diffusers", s->model->info.architecture);
}

/* The tensors in the file's order; the data of one is *values + its offset, which is the block's size in all. */
static int list_tensors(dn_st_tensor *t, float *values, const dn_block *b, const float *weights)
{
    for (int i = 0; i < b->n_params; i++) {
        const dn_param *q = &b->param[i];
        dn_shape shape = dn_param_file_shape(q);
        dn_param_to_file(values + q->offset, weights + q->offset, q);
        if (snprintf(t[i].name, sizeof t[i].name, "%s", q->name) >= (int)sizeof t[i].name)
            return -1;
        strcpy(t[i].dtype, "F32");
        t[i].rank = shape.rank;
        memcpy(t[i].dim, shape.dim, sizeof shape.dim[0] * (size_t)shape.rank);
        t[i].data = values + q->offset;
        t[i].bytes = sizeof(float) * (size_t)dn_shape_count(&shape);
    }
    return 0;
}

static int write_weights(const dn_folder *f, const dn_snapshot *s, dn_error *err)
{
    const dn_model *m = s->model;
    dn_program *p = dn_model_program(m, m->info.height, m->info.width);
    const dn_block *b = p && !p->error.code ? &p->block[0] : NULL;
    dn_st_tensor *t = b ? calloc((size_t)b->n_params + 1, sizeof *t) : NULL;
    float *values = b ? malloc(m->info.bytes) : NULL;
    uint8_t *bytes = NULL;
    size_t n = 0;
    int rc =
        t && values && !list_tensors(t, values, b, m->weights) ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    rc = rc ? rc : dn_st_encode(&bytes, &n, t, b->n_params, err);
    free(values);
    rc = rc ? rc : dn_folder_file(f, "unet/diffusion_pytorch_model.safetensors", bytes, n, err);
    free(bytes);
    free(t);
    dn_program_free(p);
    return rc;
}

int dn_snapshot_publish(const dn_snapshot *s, const char *dir, dn_error *err)
{
    dn_folder f;
    json_t *scheduler = dn_snapshot_scheduler(s);
    int rc = scheduler ? dn_folder_begin(&f, dir, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (rc) {
        json_decref(scheduler);
        return rc;
    }
    json_t *index = index_of(s, scheduler);
    rc = dn_folder_make(&f, "unet", err);
    rc = rc ? rc : dn_folder_make(&f, "scheduler", err);
    rc = rc ? rc : write_json(&f, "model_index.json", json_incref(index), err);
    rc = rc ? rc : write_json(&f, "unet/config.json", json_deep_copy(s->model->config_json), err);
    rc = rc ? rc : write_json(&f, "scheduler/scheduler_config.json", json_incref(scheduler), err);
    if (!rc && s->model->extra)
        rc = write_json(&f, "denoised.json", json_deep_copy(s->model->extra), err);
    rc = rc ? rc : write_weights(&f, s, err);
    json_decref(index);
    json_decref(scheduler);
    return dn_folder_end(&f, rc, err);
}
