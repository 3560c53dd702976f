#include "lower_run.h"
#include "plan.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

float noise(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

void noise_fill(float *x, int64_t n, uint64_t *state)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = noise(state);
}

static void fill_param(float *x, const dn_param *q, uint64_t *state)
{
    int64_t n = dn_shape_count(&q->shape), out = q->shape.rank ? q->shape.dim[q->shape.rank - 1] : 1;
    float scale = q->shape.rank > 1 ? 1.7f / sqrtf((float)(n / out)) : 0.3f;
    bool gamma = q->shape.rank == 1 && strstr(q->name, "weight");
    for (int64_t i = 0; i < n; i++)
        x[i] = noise(state) * scale + (gamma ? 1 : 0);
}

float *parameters(const dn_program *p, int block, uint64_t seed)
{
    const dn_block *b = &p->block[block];
    float *x = aligned_alloc(64, (size_t)(b->count + 16) / 16 * 64);
    assert_non_null(x);
    memset(x, 0, (size_t)(b->count + 16) / 16 * 64);
    for (int i = 0; i < b->n_params; i++)
        fill_param(x + b->param[i].offset, &b->param[i], &seed);
    return x;
}

static void fill_inputs(const dn_run *run, const batch *how)
{
    const dn_lowered *l = run->lowered;
    for (int v = 0; v < l->program->n_values; v++) {
        const dn_value *value = &l->program->value[v];
        if (value->op >= 0 || value->kind == DN_PARAM)
            continue;
        for (int r = 0; r < how->n; r++) {
            uint64_t state = (uint64_t)(v * 1000 + how->first + r) * 77773 + 5;
            void *x = dn_place_at(run, l->value_place[v], r);
            noise(&state);
            for (int64_t i = 0; i < dn_shape_count(&value->shape); i++)
                if (value->dtype == DN_I32)
                    ((int32_t *)x)[i] = (int32_t)((noise(&state) + 1) * 1.99f);
                else
                    ((float *)x)[i] = noise(&state) * 1.5f;
        }
    }
}

/* All packed forms, one allocation each. */
static const void **pack_forms(const dn_lowered *l, const float *block)
{
    const void **form = calloc((size_t)l->n_forms + 1, sizeof *form);
    assert_non_null(form);
    for (int i = 0; i < l->n_forms; i++) {
        const dn_form *f = &l->form[i];
        void *dst = aligned_alloc(64, (f->bytes + 63) / 64 * 64);
        assert_non_null(dst);
        dn_form_make(dst, f, l->program, block);
        form[i] = dst;
    }
    return form;
}

float *run_program(const dn_backend *b, const dn_program *p, const float *block, const char *name, batch how,
                   int64_t *count)
{
    dn_lowered *l = NULL;
    dn_error err = { 0 };
    if (dn_lower(&l, b, p, how.rows_max ? how.rows_max : how.n, &err))
        fail_msg("%s: %s", err.param, err.message);
    if (how.apart)
        assert_int_equal(dn_plan_apart(l, &err), 0);
    const void **form = pack_forms(l, block);
    dn_run run = { .lowered = l,
                   .arena = aligned_alloc(64, l->arena_bytes + 64),
                   .block = { (const char *)block },
                   .form = form,
                   .n = how.n,
                   .pool = how.threads > 1 ? dn_pool_new(how.threads, NULL) : NULL };
    memset(run.arena, 0xff, l->arena_bytes); /* NaN */
    fill_inputs(&run, &how);
    assert_int_equal(dn_run_some(&run, 0), 0);
    dn_val v = dn_find(p, name);
    assert_int_not_equal(v, DN_NONE);
    *count = dn_shape_count(dn_shape_of(p, v));
    float *out = malloc((size_t)(*count * how.n) * sizeof *out);
    for (int r = 0; r < how.n; r++)
        memcpy(out + r * *count, dn_place_at(&run, l->value_place[v], r), (size_t)*count * sizeof *out);
    for (int i = 0; i < l->n_forms; i++)
        free((void *)form[i]);
    free(form);
    free(run.arena);
    dn_pool_free(run.pool);
    dn_lowered_free(l);
    return out;
}

double difference(const float *a, const float *b, int64_t n)
{
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(a[i]) || !isfinite(b[i]))
            return INFINITY;
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return worst / (largest > 0 ? largest : 1);
}
