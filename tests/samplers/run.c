/* run.c - a sample in memory and its way through a table; configurations from JSON text. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include <stdlib.h>
#include <string.h>

void run_init(run *r, int64_t n, int channels, int out_channels)
{
    enum { VECTORS = 5 + DN_HISTORY_MAX };
    int64_t out = n / channels * out_channels;
    float *p = r->memory = calloc((size_t)(VECTORS * n + DN_ROWS_MAX * out), sizeof *p);
    assert_non_null(p);
    r->entry = 0;
    r->slot = (dn_slot){ .n = n, .channels = channels, .out_channels = out_channels };
    float **vectors[VECTORS] = { &r->slot.x, &r->slot.z, &r->slot.z2, &r->slot.x0, &r->slot.scratch };
    for (int k = 0; k < DN_HISTORY_MAX; k++)
        vectors[5 + k] = &r->slot.h[k];
    for (int k = 0; k < VECTORS; k++, p += n)
        *vectors[k] = p;
    for (int k = 0; k < DN_ROWS_MAX; k++, p += out)
        r->slot.out[k] = p;
}

void run_fini(run *r) { free(r->memory); }

int64_t run_entry(run *r, const dn_table *t, model_fn model, noise_fn noise, void *user)
{
    const dn_entry *e = &t->entry[r->entry];
    dn_slot slot = r->slot;
    float *in = malloc((size_t)slot.n * sizeof *in);
    assert_non_null(in);
    for (int64_t i = 0; i < slot.n; i++)
        in[i] = e->c_in * slot.x[i];
    for (int k = 0; k < DN_ROWS_MAX; k++)
        if (e->rows & 1 << k)
            model(user, slot.out[k], in, r, e->timestep, k);
        else
            slot.out[k] = NULL;
    free(in);
    float **z[2] = { &slot.z, &slot.z2 };
    for (int k = 0; k < 2; k++)
        if (dn_entry_uses(e, DN_B_Z + k))
            noise(user, *z[k], r, DN_B_Z + k);
        else
            *z[k] = NULL;
    for (int k = t->n_history; k < DN_HISTORY_MAX; k++)
        slot.h[k] = NULL;
    r->entry++;
    return dn_update(&slot, e);
}

dn_scheduler_config *config_of(const char *file, const char *request)
{
    dn_scheduler_config *c = NULL;
    dn_error err = { 0 };
    json_t *base = file ? json_loads(file, 0, NULL) : NULL, *over = request ? json_loads(request, 0, NULL) : NULL;
    assert_int_equal(!!file, !!base);
    assert_int_equal(!!request, !!over);
    if (dn_scheduler_config_new(&c, base, &err) || (over && dn_scheduler_config_overlay(c, over, &err)))
        fail_msg("%s: %s", err.param, err.message);
    json_decref(base);
    json_decref(over);
    return c;
}

dn_plan_params params_of(int sampler, int steps)
{
    return (dn_plan_params){ .sampler = sampler,
                             .steps = steps,
                             .temperature = 1,
                             .guidance = { .scale = 1, .interval = { 0, 1 } },
                             .elements = 192 };
}

json_t *json_file(const char *path)
{
    json_error_t error;
    json_t *j = json_load_file(path, 0, &error);
    if (!j)
        fail_msg("%s: %s", path, error.text);
    return j;
}
