/* route_denoise.c - POST /denoise: rows that the caller brings, as safetensors. */
#include "idempotency.h"
#include "requests.h"
#include "requests_rows.h"
#include "routes_app.h"

#include <denoised/image.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TENSORS_MAX = 16 };

typedef struct tensors {
    dn_st_tensor v[TENSORS_MAX];
    int n;
} tensors;

/* name, dtype, rank, must be there */
static const struct {
    const char *name, *dtype;
    int rank;
    bool required;
} known_tensors[] = {
    { "sample", "F32", 4, true },
    { "timestep", "F32", 1, true },
    { "class_labels", "I64", 1, false },
    { "guidance_scale", "F32", 1, false },
};
enum { SAMPLE, TIMESTEP, CLASS_LABELS, GUIDANCE_SCALE, KNOWN };

static int check_tensor(const dn_st_tensor *t, int k, dn_http_error *err)
{
    if (k == CLASS_LABELS && !strcmp(t->dtype, "F32") && t->rank == 2)
        return 0; /* vectors, for a model that takes them */
    if (strcmp(t->dtype, known_tensors[k].dtype) || t->rank != known_tensors[k].rank)
        return dn_http_fail(err, DN_H_TYPE, t->name, "%s must be %s of rank %d, got %s of rank %d", t->name,
                            known_tensors[k].dtype, known_tensors[k].rank, t->dtype, t->rank);
    return 0;
}

/* Sort them by known name. */
static int sort_tensors(const tensors *all, const dn_st_tensor *out[KNOWN], dn_http_error *err)
{
    memset(out, 0, KNOWN * sizeof *out);
    for (int i = 0; i < all->n; i++) {
        const dn_st_tensor *t = &all->v[i];
        int k = 0;
        while (k < KNOWN && strcmp(t->name, known_tensors[k].name))
            k++;
        if (!strcmp(t->name, "cotangent"))
            return dn_http_fail(err, DN_H_UNSUPPORTED, t->name, "cotangent (gradients) comes with a later version");
        if (k == KNOWN)
            return dn_http_fail(err, DN_H_UNKNOWN, t->name, "no tensor %s is known here", t->name);
        int rc = check_tensor(t, k, err);
        if (rc)
            return rc;
        out[k] = t;
    }
    for (int k = 0; k < KNOWN; k++) {
        if (known_tensors[k].required && !out[k])
            return dn_http_fail(err, DN_H_MISSING, known_tensors[k].name, "tensor %s is missing",
                                known_tensors[k].name);
    }
    return 0;
}

static int check_shapes(const dn_st_tensor *const t[KNOWN], dn_http_error *err)
{
    const int64_t *dim = t[SAMPLE]->dim;
    if (dim[0] < 1 || dim[0] > DN_N_MAX)
        return dn_http_fail(err, DN_H_RANGE, "sample", "sample must have 1..%d rows, got %lld", DN_N_MAX,
                            (long long)dim[0]);
    for (int i = 1; i < 4; i++) {
        if (dim[i] < 1 || dim[i] > DN_SIDE_MAX)
            return dn_http_fail(err, DN_H_RANGE, "sample", "dimension %d of sample must be 1..%d, got %lld", i,
                                DN_SIDE_MAX, (long long)dim[i]);
    }
    for (int k = TIMESTEP; k < KNOWN; k++) {
        if (t[k] && t[k]->dim[0] != dim[0])
            return dn_http_fail(err, DN_H_CONTRADICTION, t[k]->name, "sample has %lld rows, %s %lld", (long long)dim[0],
                                t[k]->name, (long long)t[k]->dim[0]);
    }
    return 0;
}

static int check_finite(const float *v, int n, const char *name, dn_http_error *err)
{
    for (int i = 0; i < n; i++) {
        if (!isfinite(v[i]))
            return dn_http_fail(err, DN_H_RANGE, name, "%s[%d] is not finite", name, i);
    }
    return 0;
}

static int take_floats(float **out, const dn_st_tensor *t, dn_http_error *err)
{
    *out = malloc(t->bytes ? t->bytes : 1);
    if (!*out)
        return dn_http_fail(err, DN_H_MEMORY, t->name, "no memory for %zu bytes", t->bytes);
    memcpy(*out, t->data, t->bytes);
    return check_finite(*out, (int)(t->bytes / sizeof(float)), t->name, err);
}

static int take_rows(dn_rows *rows, const dn_st_tensor *const t[KNOWN], dn_http_error *err)
{
    const int64_t *dim = t[SAMPLE]->dim;
    *rows = (dn_rows){ .n = (int)dim[0],
                       .height = (int)dim[1],
                       .width = (int)dim[2],
                       .channels = (int)dim[3],
                       .labelled = t[CLASS_LABELS] != NULL };
    for (int i = 0; i < rows->n; i++)
        rows->scale[i] = 1;
    memcpy(rows->timestep, t[TIMESTEP]->data, rows->n * sizeof rows->timestep[0]);
    if (t[GUIDANCE_SCALE])
        memcpy(rows->scale, t[GUIDANCE_SCALE]->data, rows->n * sizeof rows->scale[0]);
    if (t[CLASS_LABELS] && t[CLASS_LABELS]->rank == 1)
        memcpy(rows->label, t[CLASS_LABELS]->data, rows->n * sizeof rows->label[0]);
    int rc = check_finite(rows->timestep, rows->n, "timestep", err);
    if (!rc)
        rc = check_finite(rows->scale, rows->n, "guidance_scale", err);
    if (!rc)
        rc = take_floats(&rows->x, t[SAMPLE], err);
    if (!rc && t[CLASS_LABELS] && t[CLASS_LABELS]->rank == 2) {
        rows->label_dim = (int)t[CLASS_LABELS]->dim[1];
        rc = take_floats(&rows->label_vector, t[CLASS_LABELS], err);
    }
    return rc;
}

static int parse(dn_request *r, dn_call *call, dn_http_error *err)
{
    size_t n;
    const void *body = dn_call_body(call, &n);
    tensors *all = dn_arena_alloc(dn_call_arena(call), sizeof *all);
    const dn_st_tensor *t[KNOWN];
    dn_error e = { 0 };
    r->rows = dn_arena_alloc(r->arena, sizeof *r->rows);
    if (!r->rows || !all)
        return dn_http_fail(err, DN_H_MEMORY, NULL, "no memory for the request");
    all->n = TENSORS_MAX;
    if (dn_st_parse(all->v, &all->n, body, n, &e))
        return dn_http_fail_engine(err, dn_error_name(e.code), e.param, e.message);
    int rc = sort_tensors(all, t, err);
    if (!rc)
        rc = check_shapes(t, err);
    return rc ? rc : take_rows(r->rows, t, err);
}

static void denoise(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_denoise_query query;
    if (dn_route_query(call, &dn_denoise_query_fields, &query))
        return;
    dn_request *r = dn_request_new(dn_call_app(call), call);
    if (!r) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the request");
        return;
    }
    r->denoise = true;
    int rc = parse(r, call, &err);
    if (!rc && query.model && !(r->in.model = dn_arena_strndup(r->arena, query.model, strlen(query.model))))
        rc = dn_http_fail(&err, DN_H_MEMORY, NULL, "no memory for the request");
    if (rc)
        dn_request_refuse(r, &err, 0);
    else
        dn_request_begin(r);
}

void dn_route_denoise(dn_call *call) { dn_idem_handle(dn_call_app(call), call, denoise); }
