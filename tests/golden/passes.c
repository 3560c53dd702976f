/* passes.c - accumulation, recomputing, 16-bit storage and the search for a mask: what they promise about bits and
 * bytes, on small programs and on a golden U-Net. */
#include "model_internal.h"
#include "plan.h"
#include "rng.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 2 };

static const dn_marks none, all = { { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX } };
static const dn_backend *const backends[] = { &dn_backend_ref, &dn_backend_cpu, &dn_backend_ref64 };

/* ---- running a program with block 0 as weights and block 1 as its gradient ---- */

typedef struct result {
    double loss[ROWS];
    double *grad; /* the gradient block */
    int64_t n;
    size_t arena;
} result;

static void *zeros(size_t bytes)
{
    size_t room = (bytes + 64) / 64 * 64;
    void *x = aligned_alloc(64, room);
    assert_non_null(x);
    memset(x, 0, room);
    return x;
}

static void put(void *dst, size_t real_size, int64_t i, double x)
{
    if (real_size == sizeof(double))
        ((double *)dst)[i] = x;
    else
        ((float *)dst)[i] = (float)x;
}

static double get(const void *src, size_t real_size, int64_t i)
{
    return real_size == sizeof(double) ? ((const double *)src)[i] : (double)((const float *)src)[i];
}

/* A stream of numbers of its own for each name and row. */
static void fill(char *dst, size_t real_size, const char *name, int row, int64_t n, double scale)
{
    dn_rng_key key = { .sample = (uint32_t)row, .purpose = DN_RNG_TEST << 24 };
    for (const char *c = name; *c; c++)
        key.seed = key.seed * 31 + (unsigned char)*c;
    float *z = zeros(sizeof *z * (size_t)n);
    dn_rng_normal(z, 0, n, &key);
    for (int64_t i = 0; i < n; i++)
        put(dst, real_size, i, (float)(scale * z[i]));
    free(z);
}

/* "rng" is {seed, 0, optimizer step, sample}; other integers are labels; "t" is a timestep. */
static void fill_input(const dn_run *r, dn_val v, int step)
{
    const dn_value *value = &r->lowered->program->value[v];
    for (int row = 0; row < ROWS; row++) {
        char *at = dn_place_at(r, r->lowered->value_place[v], row);
        if (value->dtype == DN_I32 && !strcmp(value->name, "rng"))
            memcpy(at, (int32_t[4]){ 77, 0, step, row }, sizeof(int32_t[4]));
        else if (value->dtype == DN_I32)
            memcpy(at, (int32_t[2]){ 1 + row, 1 + row }, sizeof(int32_t[2]));
        else if (!strcmp(value->name, "t"))
            put(at, r->lowered->backend->real_size, 0, 100 + 250 * row);
        else
            fill(at, r->lowered->backend->real_size, value->name, row, dn_shape_count(&value->shape), 1);
    }
}

static char *make_weights(const dn_block *b, size_t real_size, const float *weights)
{
    char *block = zeros((size_t)b->count * real_size);
    for (int64_t i = 0; weights && i < b->count; i++)
        put(block, real_size, i, weights[i]);
    for (int i = 0; !weights && i < b->n_params; i++)
        fill(block + (size_t)b->param[i].offset * real_size, real_size, b->param[i].name, 0,
             dn_shape_count(&b->param[i].shape), 0.2);
    return block;
}

static void **make_forms(const dn_lowered *l, const char *block)
{
    void **form = zeros(sizeof *form * (size_t)(l->n_forms + 1));
    for (int i = 0; i < l->n_forms; i++) {
        const dn_param *q = &l->program->block[l->form[i].block].param[l->form[i].param];
        assert_int_equal(l->form[i].block, 0);
        form[i] = zeros(l->form[i].bytes);
        l->form[i].pack(form[i], (const float *)block + q->offset, &q->shape);
    }
    return form;
}

/* `times` runs into one gradient block. weights NULL: made up. Frees the program. */
static result run_steps(dn_program *p, const dn_backend *b, const float *weights, int times, int step)
{
    dn_error err = { 0 };
    dn_lowered *l = NULL;
    if (dn_lower(&l, b, p, ROWS, &err))
        fail_msg("%s", err.message);
    char *block = make_weights(&p->block[0], b->real_size, weights);
    char *sum = zeros((size_t)p->block[0].count * b->real_size);
    void **form = make_forms(l, block);
    dn_run r = { .lowered = l,
                 .arena = zeros(l->arena_bytes),
                 .block = { block, sum },
                 .form = (const void *const *)form,
                 .n = ROWS };
    memset(r.arena, 0xff, l->arena_bytes); /* NaN */
    for (int k = 0; k < times; k++) {
        for (int v = 0; v < p->n_values; v++)
            if (p->value[v].op < 0 && p->value[v].kind == DN_ROW)
                fill_input(&r, v, step);
        r.next = 0;
        assert_int_equal(dn_run_some(&r, 0), 0);
    }
    result out = { .n = p->block[0].count, .arena = l->arena_bytes };
    out.grad = zeros(sizeof *out.grad * (size_t)out.n);
    for (int64_t i = 0; i < out.n; i++)
        out.grad[i] = get(sum, b->real_size, i);
    for (int row = 0; row < ROWS; row++)
        out.loss[row] = get(dn_place_at(&r, l->value_place[dn_find(p, "loss")], row), b->real_size, 0);
    for (int i = 0; i < l->n_forms; i++)
        free(form[i]);
    free(form);
    free(block);
    free(sum);
    free(r.arena);
    dn_lowered_free(l);
    dn_program_free(p);
    return out;
}

static result run(dn_program *p, const dn_backend *b, const float *weights) { return run_steps(p, b, weights, 1, 5); }

static void assert_same_bits(const result *a, const result *b)
{
    assert_memory_equal(a->loss, b->loss, sizeof a->loss);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->grad, b->grad, sizeof *a->grad * (size_t)a->n);
}

/* ---- programs ---- */

/* What is done to a program. */
typedef struct passes {
    dn_marks recompute;
    enum dn_dtype store; /* DN_F32: nothing */
} passes;

/* Differentiate, accumulate into a mirror of block 0, rewrite, prune. */
static void finish(dn_program *p, dn_val loss, const passes *how)
{
    int n = p->block[0].n_params;
    dn_val *wrt = zeros(sizeof *wrt * (size_t)n), *grad = zeros(sizeof *grad * (size_t)n);
    for (int i = 0; i < n; i++)
        wrt[i] = p->block[0].param[i].val;
    dn_output(p, "loss", loss);
    dn_grad(p, loss, DN_NONE, wrt, n, grad);
    int mirror = dn_block_mirror(p, 0, "gradient");
    for (int i = 0; i < n; i++)
        dn_accumulate(p, mirror, i, grad[i]);
    dn_program_recompute(p, &how->recompute);
    if (how->store != DN_F32)
        dn_program_store16(p, how->store);
    dn_program_prune(p);
    if (p->error.code)
        fail_msg("%s", p->error.message);
    free(wrt);
    free(grad);
}

static dn_program *unet(const dn_model *m, const passes *how)
{
    dn_program *p = dn_program_new();
    int block = dn_block_add(p, "unet");
    p->block[block].trains = true;
    m->arch->build(m->config, p, block, m->info.height, m->info.width);
    dn_val target = dn_input(p, "target", DN_F32, *dn_shape_of(p, dn_find(p, "out")));
    finish(p, dn_loss(p, DN_MSE, dn_find(p, "out"), target, 0), how);
    return p;
}

static dn_model *load(const char *folder)
{
    char path[1024];
    dn_error err = { 0 };
    dn_model *m = NULL;
    snprintf(path, sizeof path, "%s/%s", GOLDEN_DIR, folder);
    if (dn_model_load(&m, path, &err))
        fail_msg("%s", err.message);
    return m;
}

static dn_val conv(dn_program *p, const char *name, dn_val x, int64_t c)
{
    dn_val w = dn_param_add(p, 0, name, dn_shape(3, 3, dn_shape_of(p, x)->dim[2], c), DN_PARAM_CONV, true);
    return dn_conv2d(p, x, w, DN_NONE, 1, (int[4]){ 1, 1, 1, 1 });
}

/* Three marked blocks (norm, SiLU, dropout, convolution, residual), the second of which the third and the end read. */
static dn_program *small(const passes *how)
{
    dn_program *p = dn_program_new();
    dn_block_add(p, "small");
    dn_val x = conv(p, "in", dn_input(p, "x", DN_F32, dn_shape(8, 8, 3)), 16),
           rng = dn_input(p, "rng", DN_I32, dn_shape(4));
    dn_val skip = x;
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "block%d", i);
        dn_mark_begin(p);
        dn_val h = dn_unary(p, DN_SILU, dn_group_norm(p, x, DN_NONE, DN_NONE, 4, 1e-5));
        x = dn_binary(p, DN_ADD, x, conv(p, name, dn_dropout(p, h, rng, 0.25, i), 16));
        dn_mark_end(p);
        skip = i == 1 ? x : skip;
    }
    dn_val y = conv(p, "out", dn_concat(p, (dn_val[]){ x, skip }, 2), 3);
    finish(p, dn_loss(p, DN_MSE, y, dn_input(p, "target", DN_F32, dn_shape(8, 8, 3)), 0), how);
    return p;
}

static int count_ops(const dn_program *p, enum dn_op_kind kind)
{
    int n = 0;
    for (int i = 0; i < p->n_ops; i++)
        n += p->op[i].kind == kind;
    return n;
}

/* ---- accumulation ---- */

/* y = x * w summed: the gradient of w is the sum of x over rows. By hand: rows of x are known. */
static void accumulate_by_hand(void **state)
{
    (void)state;
    for (int b = 0; b < 3; b++) {
        if (!backends[b]->available())
            continue;
        dn_program *p = dn_program_new();
        dn_block_add(p, "block");
        dn_param_add(p, 0, "unused", dn_shape(3), DN_PARAM_PLAIN, false);
        dn_val w = dn_param_add(p, 0, "w", dn_shape(20001), DN_PARAM_PLAIN, false);
        dn_val x = dn_input(p, "x", DN_F32, dn_shape(20001));
        dn_val y = dn_sum_to(p, dn_binary(p, DN_MUL, x, w), dn_shape(1), DN_ROW);
        finish(p, y, &(passes){ .store = DN_F32 });
        assert_int_equal(count_ops(p, DN_OP_ACCUMULATE), 1);
        result r = run_steps(p, backends[b], NULL, 2, 0);
        double *rows[ROWS];
        for (int i = 0; i < ROWS; i++)
            fill((char *)(rows[i] = zeros(20001 * sizeof(double))), sizeof(double), "x", i, 20001, 1);
        for (int i = 0; i < 20001; i++)
            assert_true(fabs(r.grad[16 + i] - 2 * (rows[0][i] + rows[1][i])) < 1e-5);
        for (int i = 0; i < 16; i++)
            assert_true(r.grad[i] == 0);
        for (int i = 0; i < ROWS; i++)
            free(rows[i]);
        free(r.grad);
    }
}

/* Each ACCUMULATE stands right behind what makes its value; without one nothing of the backward part is left. */
static void accumulate_is_a_root(void **state)
{
    (void)state;
    dn_program *p = small(&(passes){ .store = DN_F32 });
    int n = 0;
    for (int i = 0; i < p->n_ops; i++)
        if (p->op[i].kind == DN_OP_ACCUMULATE) {
            assert_int_equal(p->value[p->op[i].in[1]].op, i - 1);
            assert_true(p->block[p->value[p->op[i].in[0]].block].state);
            n++;
        }
    assert_int_equal(n, p->block[0].n_params);
    for (int i = 0; i < p->n_ops; i++)
        if (p->op[i].kind == DN_OP_ACCUMULATE)
            p->op[i--] = p->op[--p->n_ops];
    int first = p->first_backward;
    dn_program_prune(p);
    assert_int_equal(p->n_ops, first);
    dn_program_free(p);
}

static void accumulate_refuses(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        dn_program *p = dn_program_new();
        dn_block_add(p, "block");
        dn_val w = dn_param_add(p, 0, "w", dn_shape(4), DN_PARAM_PLAIN, false),
               x = dn_input(p, "x", DN_F32, dn_shape(4));
        dn_param_add(p, 0, "v", dn_shape(5), DN_PARAM_PLAIN, false);
        dn_val g = dn_sum_to(p, dn_binary(p, DN_MUL, x, w), dn_shape(4), DN_BATCH);
        int mirror = dn_block_mirror(p, 0, "gradient");
        dn_accumulate(p, mirror, 0, DN_NONE);
        assert_int_equal(p->error.code, 0);
        /* not a state block; no such parameter; another shape; a ROW */
        dn_accumulate(p, k == 0 ? 0 : mirror, k == 1 ? 2 : k == 2 ? 1 : 0, k == 3 ? x : g);
        assert_int_equal(p->error.code, DN_E_INTERNAL);
        dn_program_free(p);
    }
}

/* On ref each gradient lives from one step to the next, or to the one after: a norm makes two. */
static void assert_short_lives(const dn_program *p)
{
    dn_lowered *l = NULL;
    assert_int_equal(dn_lower(&l, &dn_backend_ref, p, ROWS, NULL), 0);
    dn_life *lives = zeros(sizeof *lives * (size_t)l->n_places);
    dn_plan_lives(l, lives);
    int n = 0;
    for (int i = 0; i < l->n_places; i++) {
        dn_val v = l->place[i].val;
        if (v == DN_NONE || p->value[v].kind != DN_BATCH || p->value[v].op < 0)
            continue;
        assert_in_range(lives[i].last - lives[i].first, 1, 2);
        n++;
    }
    assert_int_equal(n, p->block[0].n_params);
    free(lives);
    dn_lowered_free(l);
}

/* The gradient block is what the same program hands out as outputs. */
static void accumulate_unet(void **state)
{
    (void)state;
    dn_model *m = load("unet_ddpm");
    for (int b = 0; b < 2; b++) {
        if (!backends[b]->available())
            continue;
        const passes few = { all, DN_F32 };
        dn_program *p = unet(m, &few), *q = unet(m, &few);
        for (int i = 0; i < q->n_ops; i++)
            if (q->op[i].kind == DN_OP_ACCUMULATE)
                dn_output(q, "gradient", q->op[i].in[1]);
        assert_short_lives(p);
        result once = run(p, backends[b], m->weights), kept = run(q, backends[b], m->weights);
        result twice = run_steps(unet(m, &few), backends[b], m->weights, 2, 5);
        assert_same_bits(&once, &kept);
        for (int64_t i = 0; i < once.n; i++)
            assert_true(twice.grad[i] == 2 * once.grad[i]);
        assert_true(once.arena < kept.arena);
        free(once.grad);
        free(kept.grad);
        free(twice.grad);
    }
    dn_model_free(m);
}

/* ---- recomputing ---- */

static void recompute_small(void **state)
{
    (void)state;
    for (int b = 0; b < 3; b++) {
        if (!backends[b]->available())
            continue;
        result want = run(small(&(passes){ .store = DN_F32 }), backends[b], NULL);
        for (uint64_t mask = 1; mask < 8; mask++) {
            dn_program *p = small(&(passes){ .recompute = { { mask } }, .store = DN_F32 });
            /* the norm, dropout (of the same op id) and SiLU of each block, no convolution */
            assert_int_equal(count_ops(p, DN_OP_NORM), 3 + __builtin_popcountll(mask));
            assert_int_equal(count_ops(p, DN_OP_CONV2D), 5);
            result got = run(p, backends[b], NULL);
            assert_same_bits(&want, &got);
            free(got.grad);
        }
        /* another optimizer step drops other elements */
        result other = run_steps(small(&(passes){ .recompute = all, .store = DN_F32 }), backends[b], NULL, 1, 6);
        assert_memory_not_equal(other.loss, want.loss, sizeof want.loss);
        free(other.grad);
        free(want.grad);
    }
}

static void recompute_unet(void **state)
{
    (void)state;
    static const char *const folders[] = { "unet_ddpm", "unet_ldm", "unet_adm" };
    static const uint64_t masks[] = { UINT64_MAX, 0x9249249249249249 };
    for (int f = 0; f < 3; f++) {
        dn_model *m = load(folders[f]);
        for (int b = 0; b < 2; b++) {
            if (!backends[b]->available())
                continue;
            result want = run(unet(m, &(passes){ .store = DN_F32 }), backends[b], m->weights);
            for (int k = 0; k < 2; k++) {
                result got = run(unet(m, &(passes){ { { masks[k] } }, DN_F32 }), backends[b], m->weights);
                assert_same_bits(&want, &got);
                assert_true(got.arena < want.arena);
                if (k == 0)
                    print_message("%s on %s: %zu bytes, all recomputed %zu\n", folders[f], backends[b]->name,
                                  want.arena, got.arena);
                free(got.grad);
            }
            free(want.grad);
        }
        dn_model_free(m);
    }
}

/* ---- 16-bit storage ---- */

/* |x - y| over |y|. */
static double distance(const double *x, const double *y, int64_t n, double floor)
{
    double error = 0, size = floor * floor;
    for (int64_t i = 0; i < n; i++) {
        error += (x[i] - y[i]) * (x[i] - y[i]);
        size += y[i] * y[i];
    }
    return isfinite(error) ? sqrt(error / size) : INFINITY;
}

/* Of any parameter's gradient; those of biases before a GroupNorm are nothing but rounding, hence the floor. */
static double worst_distance(const dn_block *b, const result *got, const result *want)
{
    double worst = 0, squares = 0;
    for (int64_t i = 0; i < want->n; i++)
        squares += want->grad[i] * want->grad[i];
    for (int k = 0; k < b->n_params; k++)
        worst = fmax(worst, distance(got->grad + b->param[k].offset, want->grad + b->param[k].offset,
                                     dn_shape_count(&b->param[k].shape), 1e-2 * sqrt(squares)));
    return worst;
}

/* Bytes of one row that the forward part leaves for the backward part. */
static int64_t kept_bytes(const dn_program *p)
{
    int64_t bytes = 0;
    char *seen = zeros((size_t)p->n_values);
    for (int i = p->first_backward; i < p->n_ops; i++)
        for (int j = 0; j < p->op[i].n_in; j++) {
            dn_val v = p->op[i].in[j];
            if (v == DN_NONE || seen[v] || p->value[v].op < 0 || p->value[v].op >= p->first_backward)
                continue;
            seen[v] = 1;
            bytes += dn_shape_count(&p->value[v].shape) * (int64_t)dn_dtype_size(p->value[v].dtype);
        }
    free(seen);
    return bytes;
}

static void store16_unet(void **state)
{
    (void)state;
    static const struct {
        enum dn_dtype dtype;
        double bound;
    } kinds[] = { { DN_BF16, 1e-2 }, { DN_F16, 1e-3 } };
    dn_model *m = load("unet_ddpm");
    dn_program *layout = unet(m, &(passes){ .store = DN_F32 });
    int64_t full = kept_bytes(layout);
    for (int b = 0; b < 2; b++) {
        if (!backends[b]->available())
            continue;
        result want = run(unet(m, &(passes){ .store = DN_F32 }), backends[b], m->weights);
        for (int k = 0; k < 4; k++) {
            dn_program *p = unet(m, &(passes){ k / 2 ? all : none, kinds[k % 2].dtype });
            int64_t kept = kept_bytes(p);
            result got = run(p, backends[b], m->weights);
            assert_memory_equal(got.loss, want.loss, sizeof want.loss);
            double error = distance(got.grad, want.grad, want.n, 0),
                   worst = worst_distance(&layout->block[0], &got, &want);
            print_message(
                "%s, %s%s: gradient within %.2e, a parameter's %.2e, kept %lld of %lld bytes, arena %zu of %zu\n",
                backends[b]->name, k % 2 ? "f16" : "bf16", k / 2 ? ", recomputed" : "", error, worst, (long long)kept,
                (long long)full, got.arena, want.arena);
            assert_true(error > 0 && error < kinds[k % 2].bound && worst < 4 * kinds[k % 2].bound);
            assert_true(kept < (k / 2 ? 0.3 : 0.55) * (double)full);
            assert_true(got.arena < want.arena);
            free(got.grad);
        }
        free(want.grad);
    }
    dn_program_free(layout);
    dn_model_free(m);
}

/* ---- the search ---- */

typedef struct searched {
    const dn_model *m;
    enum dn_dtype store;
    int built;
} searched;

static dn_program *build_for(void *arg, const dn_marks *recompute)
{
    searched *s = arg;
    s->built++;
    return unet(s->m, &(passes){ *recompute, s->store });
}

static size_t bytes_of(searched *s, const dn_marks *chosen)
{
    size_t bytes = 0;
    dn_program *p = build_for(s, chosen);
    assert_int_equal(dn_plan_bytes(p, &dn_backend_ref, ROWS, &bytes, NULL), 0);
    dn_program_free(p);
    return bytes;
}

static void search(void **state)
{
    (void)state;
    dn_model *m = load("unet_ddpm");
    for (int k = 0; k < 2; k++) {
        searched s = { m, k ? DN_BF16 : DN_F32, 0 };
        size_t most = bytes_of(&s, &none), least = bytes_of(&s, &all), got = 0;
        dn_search q = { build_for, &s, &dn_backend_ref, ROWS, most };
        dn_error err = { 0 };
        dn_marks chosen = all;
        assert_int_equal(dn_plan_search(&q, &chosen, &got, &err), 0);
        assert_memory_equal(&chosen, &none, sizeof none);
        assert_int_equal(got, most);

        q.budget = (most + least) / 2;
        s.built = 0;
        assert_int_equal(dn_plan_search(&q, &chosen, &got, &err), 0);
        assert_true(got <= q.budget && got == bytes_of(&s, &chosen));
        int n = 0;
        for (int i = 0; i < DN_MARKS_MAX; i++) {
            dn_marks less = chosen;
            if (!dn_marks_has(&chosen, i))
                continue;
            dn_marks_set(&less, i, false);
            assert_true(bytes_of(&s, &less) > q.budget); /* none too many */
            n++;
        }
        assert_true(n > 0 && n < 11);

        q.budget = 1000;
        assert_int_equal(dn_plan_search(&q, &chosen, &got, &err), DN_E_MEMORY);
        assert_true(got <= least && got == bytes_of(&s, &chosen));
        char number[32];
        snprintf(number, sizeof number, "%zu", got);
        assert_non_null(strstr(err.message, number));
    }
    dn_model_free(m);
}

/* By hand: what each block keeps, and the elements of the three ops that make it again. */
static void costs(void **state)
{
    (void)state;
    dn_program *p = small(&(passes){ .store = DN_F32 });
    dn_mark_cost cost[DN_MARKS_MAX];
    assert_int_equal(p->n_marks, 3);
    assert_int_equal(dn_program_mark_costs(p, cost), 0);
    for (int i = 0; i < 3; i++) {
        /* the norm's result and dropout's, each [8,8,16]; SiLU's is kept by nobody, statistics always */
        assert_int_equal(cost[i].bytes, 2 * 8 * 8 * 16 * sizeof(float));
        assert_true(cost[i].flop == 3.0 * 8 * 8 * 16);
    }
    dn_program_free(p);
}

/* ---- names, randomness ---- */

static void names(void **state)
{
    (void)state;
    enum { MANY = 3000 };
    dn_program *p = dn_program_new();
    dn_block_add(p, "block");
    dn_block_add(p, "other");
    assert_int_equal(dn_block_find(&p->block[0], "w0"), -1);
    char name[32];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "w%d", i);
        dn_val v = dn_param_add(p, 0, name, dn_shape(i % 7 + 1), DN_PARAM_PLAIN, false);
        assert_int_equal(dn_param_add(p, 0, name, dn_shape(i % 7 + 1), DN_PARAM_PLAIN, false), v);
    }
    int mirror = dn_block_mirror(p, 0, "mirror");
    assert_int_equal(p->block[mirror].count, p->block[0].count);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "w%d", i);
        assert_int_equal(dn_block_find(&p->block[0], name), i);
        assert_int_equal(dn_block_find(&p->block[mirror], name), i);
        assert_int_equal(dn_block_find(&p->block[1], name), -1);
        assert_int_equal(p->block[mirror].param[i].offset, p->block[0].param[i].offset);
    }
    assert_int_equal(dn_block_find(&p->block[0], "w3000"), -1);
    dn_param_add(p, 0, "w5", dn_shape(100), DN_PARAM_PLAIN, false);
    assert_int_equal(p->error.code, DN_E_INTERNAL);
    dn_program_free(p);
}

/* The mask of element i is Philox of (job's seed; i / 4, optimizer step, purpose << 24 | op id, sample). */
static void dropout_counter(void **state)
{
    (void)state;
    enum { N = 64, ID = 9, STEP = 1234 };
    for (int b = 0; b < 2; b++) {
        if (!backends[b]->available())
            continue;
        dn_program *p = dn_program_new();
        dn_block_add(p, "block");
        dn_val w = dn_param_add(p, 0, "w", dn_shape(N), DN_PARAM_PLAIN, false),
               rng = dn_input(p, "rng", DN_I32, dn_shape(4));
        dn_val ones = dn_affine(p, dn_input(p, "x", DN_F32, dn_shape(N)), 0, 1);
        dn_val y = dn_dropout(p, dn_binary(p, DN_MUL, ones, w), rng, 0.5, ID);
        finish(p, dn_sum_to(p, y, dn_shape(1), DN_ROW), &(passes){ .store = DN_F32 });
        result r = run_steps(p, backends[b], NULL, 1, STEP);
        for (int i = 0; i < N; i++) {
            double want = 0;
            for (uint32_t row = 0; row < ROWS; row++) {
                uint32_t bits[4], counter[4] = { (uint32_t)i / 4, STEP, (uint32_t)DN_RNG_DROPOUT << 24 | ID, row };
                dn_philox(bits, counter, 77);
                want += dn_uniform(bits[i % 4]) >= 0.5f ? 2 : 0;
            }
            assert_true(r.grad[i] == want);
        }
        free(r.grad);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accumulate_by_hand),
        cmocka_unit_test(accumulate_is_a_root),
        cmocka_unit_test(accumulate_refuses),
        cmocka_unit_test(accumulate_unet),
        cmocka_unit_test(recompute_small),
        cmocka_unit_test(recompute_unet),
        cmocka_unit_test(store16_unet),
        cmocka_unit_test(search),
        cmocka_unit_test(costs),
        cmocka_unit_test(names),
        cmocka_unit_test(dropout_counter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
