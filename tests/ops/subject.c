#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include "plan.h"
#include "rng.h"
#include "subject.h"

const dn_backend *const backends[] = {
    &dn_backend_ref,
    &dn_backend_ref64,
    &dn_backend_cpu,
};
const int n_backends = sizeof backends / sizeof *backends;

void subject_init(subject *s, int rows)
{
    *s = (subject){ .p = dn_program_new(), .rows = rows };
    assert_non_null(s->p);
    assert_int_equal(dn_block_add(s->p, "block"), 0);
}

void subject_fini(subject *s)
{
    for (int i = 0; i < s->n_tensors; i++)
        free(s->tensor[i].data);
    for (int i = 0; i < s->n_outputs; i++)
        free(s->output[i].data);
    dn_program_free(s->p);
}

static void *alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(p);
    memset(p, 0, (bytes + 64) / 64 * 64);
    return p;
}

/* n numbers between lo and hi, a stream of its own for each tensor. */
static double *fill(subject *s, int64_t n, double lo, double hi)
{
    float *u = alloc((size_t)n * sizeof *u);
    double *x = alloc((size_t)n * sizeof *x);
    dn_rng_uniform(u, 0, n, &(dn_rng_key){ .seed = 7, .purpose = DN_RNG_TEST << 24, .sample = (uint32_t)s->seed++ });
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(lo + (hi - lo) * u[i]);
    free(u);
    return x;
}

static dn_val add(subject *s, dn_val v, double *data, bool differentiate)
{
    assert_true(s->n_tensors < TENSORS_MAX);
    if (v == DN_NONE)
        fail_msg("%s", s->p->error.message);
    s->tensor[s->n_tensors++] = (tensor){ v, dn_shape_count(dn_shape_of(s->p, v)), differentiate, data };
    return v;
}

dn_val feed(subject *s, const char *name, dn_shape shape, double lo, double hi)
{
    return add(s, dn_input(s->p, name, DN_F32, shape), fill(s, s->rows * dn_shape_count(&shape), lo, hi), true);
}

dn_val feed_fixed(subject *s, const char *name, dn_shape shape, double lo, double hi)
{
    return add(s, dn_input(s->p, name, DN_F32, shape), fill(s, s->rows * dn_shape_count(&shape), lo, hi), false);
}

dn_val feed_int(subject *s, const char *name, dn_shape shape, int lo, int hi)
{
    int64_t n = s->rows * dn_shape_count(&shape);
    double *x = fill(s, n, 0, 1);
    for (int64_t i = 0; i < n; i++)
        x[i] = lo + (int)(x[i] * (hi - lo + 1));
    return add(s, dn_input(s->p, name, DN_I32, shape), x, false);
}

dn_val weight(subject *s, const char *name, dn_shape shape, double lo, double hi)
{
    dn_val v = dn_param_add(s->p, 0, name, shape, DN_PARAM_PLAIN, true);
    return add(s, v, fill(s, dn_shape_count(&shape), lo, hi), true);
}

void keep(subject *s, dn_val v)
{
    if (v == DN_NONE)
        return;
    assert_true(s->n_outputs < OUTPUTS_MAX);
    char name[16];
    snprintf(name, sizeof name, "out%d", s->n_outputs);
    dn_output(s->p, name, v);
    int64_t n = dn_shape_count(dn_shape_of(s->p, v));
    s->output[s->n_outputs++] =
        (output){ v, n, s->p->value[v].kind != DN_ROW, false, alloc((size_t)(n * s->rows) * sizeof(double)) };
}

void keep_sum(subject *s, int param, dn_val v)
{
    int sums = s->p->n_blocks > 1 ? 1 : dn_block_mirror(s->p, 0, "sums");
    assert_int_equal(sums, 1);
    assert_true(s->n_outputs < OUTPUTS_MAX);
    dn_accumulate(s->p, sums, param, v);
    dn_val place = s->p->block[sums].param[param].val;
    int64_t n = dn_shape_count(dn_shape_of(s->p, place));
    s->output[s->n_outputs++] = (output){ place, n, true, true, alloc((size_t)n * sizeof(double)) };
}

tensor *subject_tensor(subject *s, const char *name)
{
    for (int i = 0; i < s->n_tensors; i++)
        if (!strcmp(s->p->value[s->tensor[i].val].name, name))
            return &s->tensor[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

void subject_set(subject *s, const char *name, const double *x, int64_t n)
{
    tensor *t = subject_tensor(s, name);
    assert_int_equal(t->count, n);
    memcpy(t->data, x, (size_t)n * sizeof *x);
}

/* ---- numbers in a backend's memory ---- */

static void put(void *dst, enum dn_dtype t, size_t real_size, int64_t i, double x)
{
    if (t == DN_I32)
        ((int32_t *)dst)[i] = (int32_t)x;
    else if (real_size == sizeof(double))
        ((double *)dst)[i] = x;
    else
        ((float *)dst)[i] = (float)x;
}

/* 16-bit floats are read as their bits. */
static double get(const void *src, enum dn_dtype t, size_t real_size, int64_t i)
{
    if (t == DN_I32)
        return ((const int32_t *)src)[i];
    if (t == DN_F16 || t == DN_BF16)
        return ((const uint16_t *)src)[i];
    return real_size == sizeof(double) ? ((const double *)src)[i] : ((const float *)src)[i];
}

static char *make_block(const subject *s, size_t real_size)
{
    const dn_block *b = &s->p->block[0];
    char *block = alloc((size_t)b->count * real_size);
    for (int i = 0; i < s->n_tensors; i++) {
        const dn_value *v = &s->p->value[s->tensor[i].val];
        for (int64_t k = 0; v->kind == DN_PARAM && k < s->tensor[i].count; k++)
            put(block, DN_F32, real_size, b->param[v->param].offset + k, s->tensor[i].data[k]);
    }
    return block;
}

/* What is accumulated into; NULL: nothing is. */
static char *make_sums(const subject *s, size_t real_size)
{
    int64_t n = s->p->n_blocks > 1 ? s->p->block[1].count : 0;
    char *sums = n ? alloc((size_t)n * real_size) : NULL;
    for (int64_t i = 0; i < n; i++)
        put(sums, DN_F32, real_size, i, SUM_START);
    return sums;
}

static void **make_forms(const dn_lowered *l, const char *block)
{
    void **form = alloc(sizeof *form * (size_t)(l->n_forms + 1));
    for (int i = 0; i < l->n_forms; i++) {
        const dn_form *f = &l->form[i];
        form[i] = alloc(f->bytes);
        dn_form_make(form[i], f, l->program, (const float *)block);
    }
    return form;
}

static void write_inputs(const subject *s, const dn_run *r, int first, int n)
{
    for (int i = 0; i < s->n_tensors; i++) {
        const tensor *t = &s->tensor[i];
        int place = r->lowered->value_place[t->val];
        if (s->p->value[t->val].kind == DN_PARAM || place < 0)
            continue;
        for (int row = 0; row < n; row++)
            for (int64_t k = 0; k < t->count; k++)
                put(dn_place_at(r, place, row), s->p->value[t->val].dtype, r->lowered->backend->real_size, k,
                    t->data[(first + row) * t->count + k]);
    }
}

static void read_outputs(subject *s, const dn_run *r, int n)
{
    for (int i = 0; i < s->n_outputs; i++) {
        output *o = &s->output[i];
        int place = r->lowered->value_place[o->val];
        const dn_value *v = &s->p->value[o->val];
        for (int64_t k = 0; o->sum && k < o->count; k++)
            o->data[k] =
                get(r->block[1], DN_F32, r->lowered->backend->real_size, s->p->block[1].param[v->param].offset + k);
        if (o->sum)
            continue;
        assert_true(place >= 0);
        for (int row = 0; row < (o->batch ? 1 : n); row++)
            for (int64_t k = 0; k < o->count; k++)
                o->data[row * o->count + k] =
                    get(dn_place_at(r, place, row), s->p->value[o->val].dtype, r->lowered->backend->real_size, k);
    }
}

/* ---- running ---- */

typedef struct bound {
    dn_lowered *l;
    dn_run run;
    char *block, *sums;
    void **form;
} bound;

static void bind(bound *b, const subject *s, const dn_backend *backend, int n, dn_pool *pool, enum run_mode mode)
{
    dn_error err = { 0 };
    if (dn_lower(&b->l, backend, s->p, mode == RUN_ROOMY ? 2 * n + 1 : n, &err))
        fail_msg("%s: %s", backend->name, err.message);
    if (mode == RUN_APART)
        assert_int_equal(dn_plan_apart(b->l, &err), 0);
    b->block = make_block(s, backend->real_size);
    b->sums = make_sums(s, backend->real_size);
    b->form = make_forms(b->l, b->block);
    b->run = (dn_run){ .lowered = b->l,
                       .arena = alloc(b->l->arena_bytes),
                       .block = { b->block, b->sums },
                       .form = (const void *const *)b->form,
                       .pool = pool,
                       .n = n };
    memset(b->run.arena, 0xff, b->l->arena_bytes); /* NaN: nothing may read what nothing wrote */
}

static void unbind(bound *b)
{
    for (int i = 0; i < b->l->n_forms; i++)
        free(b->form[i]);
    free(b->form);
    free(b->block);
    free(b->sums);
    free(b->run.arena);
    dn_lowered_free(b->l);
}

static void poison(const dn_run *r, const dn_life *lives, int step)
{
    const dn_lowered *l = r->lowered;
    for (int i = 0; i < l->n_places; i++) {
        const dn_place *p = &l->place[i];
        if (p->memory == DN_IN_ARENA && p->inside < 0 && lives[i].first <= lives[i].last && lives[i].last == step)
            memset(r->arena + p->offset, 0xff, (size_t)(p->row_bytes ? p->row_bytes * l->rows_max : p->bytes));
    }
}

static int run_poisoned(dn_run *r)
{
    dn_life *lives = alloc(sizeof *lives * (size_t)(r->lowered->n_places + 1));
    dn_plan_lives(r->lowered, lives);
    int rc = 0;
    for (; r->next < r->lowered->n_steps && !rc; r->next++) {
        const dn_step *step = &r->lowered->step[r->next];
        rc = -step->fn(r, step);
        poison(r, lives, r->next);
    }
    free(lives);
    return rc;
}

int subject_run(subject *s, const dn_backend *backend, int first, int n, dn_pool *pool, enum run_mode mode)
{
    bound b;
    bind(&b, s, backend, n, pool, mode);
    write_inputs(s, &b.run, first, n);
    int rc = mode == RUN_POISONED ? run_poisoned(&b.run) : dn_run_some(&b.run, 0);
    if (!rc)
        read_outputs(s, &b.run, n);
    unbind(&b);
    return rc;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

double subject_time(subject *s, const dn_backend *backend, dn_pool *pool, double ms)
{
    bound b;
    bind(&b, s, backend, s->rows, pool, RUN_PLANNED);
    double best = 1e300, end = now_ms() + ms, start;
    do {
        write_inputs(s, &b.run, 0, s->rows);
        b.run.next = 0;
        start = now_ms();
        assert_int_equal(dn_run_some(&b.run, 0), 0);
        double took = now_ms() - start;
        best = took < best ? took : best;
    } while (now_ms() < end);
    unbind(&b);
    return best;
}
