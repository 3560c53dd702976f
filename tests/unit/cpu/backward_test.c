/* Gradients on the CPU backend: every kernel of the backward pass inside a small program, against ref; and the same
 * bits whatever the threads, the plan and (of what rows have for themselves) the batch. */
#include "lower_run.h"
#include "plan.h"
#include "program.h"
#include "ref.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { WRT_MAX = 8 };

/* A program under way: what is differentiated by. */
typedef struct lab {
    dn_program *p;
    int block, n_wrt;
    dn_val wrt[WRT_MAX];
} lab;

typedef struct spec {
    const char *name;
    dn_val (*build)(lab *m, const int *c);
    int rows, c[8];
} spec;

static dn_val wanted(lab *m, dn_val v)
{
    m->wrt[m->n_wrt++] = v;
    return v;
}

static dn_val feed(lab *m, const char *name, dn_shape shape) { return wanted(m, dn_input(m->p, name, DN_F32, shape)); }

static dn_val param(lab *m, const char *name, dn_shape shape)
{
    return wanted(m, dn_param_add(m->p, m->block, name, shape, DN_PARAM_PLAIN, false));
}

/* Through a norm without parameters: a value that is at home in the blocked layout. */
static dn_val blocked(lab *m, dn_val x) { return dn_group_norm(m->p, x, DN_NONE, DN_NONE, 1, 1e-3); }

enum { PLAIN, AFFINE, MODULATED };

/* c: H, W, C, groups, PLAIN .. MODULATED, activation or -1, residual */
static dn_val group_norm(lab *m, const int *c)
{
    dn_program *p = m->p;
    dn_val x = feed(m, "x", dn_shape(c[0], c[1], c[2])), gamma = DN_NONE, beta = DN_NONE;
    if (c[4] != PLAIN) {
        gamma = param(m, "weight", dn_shape(c[2]));
        beta = param(m, "bias", dn_shape(c[2]));
    }
    dn_val y = dn_group_norm(p, x, gamma, beta, c[3], 1e-5);
    if (c[4] == MODULATED) {
        dn_val emb = feed(m, "emb", dn_shape(2 * c[2]));
        y = dn_binary(p, DN_MUL, y, dn_affine(p, dn_slice(p, emb, 0, 0, c[2]), 1, 1));
        y = dn_binary(p, DN_ADD, y, dn_slice(p, emb, 0, c[2], c[2]));
    }
    y = c[5] < 0 ? y : dn_unary(p, (enum dn_unary)c[5], y);
    return c[6] ? dn_binary(p, DN_ADD, y, x) : y;
}

/* Of a sum with an embedding for each row and a bias, as a convolution leaves it. c: H, W, C, groups, activation or -1
 */
static dn_val norm_of_sum(lab *m, const int *c)
{
    dn_program *p = m->p;
    dn_val h = blocked(m, feed(m, "x", dn_shape(c[0], c[1], c[2])));
    h = dn_binary(p, DN_ADD, h, param(m, "b", dn_shape(c[2])));
    h = dn_binary(p, DN_ADD, h, feed(m, "e", dn_shape(c[2])));
    dn_val y = dn_group_norm(p, h, param(m, "weight", dn_shape(c[2])), param(m, "bias", dn_shape(c[2])), c[3], 1e-5);
    return dn_binary(p, DN_ADD, c[4] < 0 ? y : dn_unary(p, (enum dn_unary)c[4], y), h);
}

/* c: positions, C, affine */
static dn_val layer_norm(lab *m, const int *c)
{
    dn_val x = feed(m, "x", dn_shape(c[0], c[1]));
    return dn_layer_norm(m->p, x, c[2] ? param(m, "weight", dn_shape(c[1])) : DN_NONE,
                         c[2] ? param(m, "bias", dn_shape(c[1])) : DN_NONE, 1e-5);
}

/* c: L, M, C, heads, 1: not by q, 2: not by k and v */
static dn_val attention(lab *m, const int *c)
{
    dn_val q = feed(m, "q", dn_shape(c[0], c[2])), k = feed(m, "k", dn_shape(c[1], c[2]));
    dn_val v = feed(m, "v", dn_shape(c[1], c[2]));
    if (c[4] == 1)
        m->wrt[0] = m->wrt[--m->n_wrt];
    if (c[4] == 2)
        m->n_wrt = 1;
    return dn_attention(m->p, q, k, v, c[3], 1.5);
}

/* Of a positive value where the kind needs one. c: kind, C, dense */
static dn_val unary(lab *m, const int *c)
{
    dn_val x = feed(m, "x", dn_shape(5, 3, c[1]));
    x = c[2] ? x : blocked(m, x);
    if (c[0] == DN_LOG || c[0] == DN_SQRT || c[0] == DN_RECIPROCAL)
        x = dn_affine(m->p, dn_unary(m->p, DN_SQUARE, x), 1, 0.5);
    return c[0] == DN_CLAMP ? dn_clamp(m->p, x, -0.5, 0.75) : dn_unary(m->p, (enum dn_unary)c[0], x);
}

/* Sums of gradients: over positions for each row, over rows, over both. c: H, W, C, dense */
static dn_val broadcasts(lab *m, const int *c)
{
    dn_program *p = m->p;
    dn_val x = feed(m, "x", dn_shape(c[0], c[1], c[2])), e = feed(m, "e", dn_shape(c[2]));
    x = c[3] ? x : blocked(m, x);
    dn_val y = dn_binary(p, DN_MUL, dn_binary(p, DN_ADD, x, e), param(m, "scale.weight", dn_shape(c[2])));
    y = dn_binary(p, DN_ADD, y, dn_binary(p, DN_MUL, e, param(m, "vector", dn_shape(c[2]))));
    return dn_binary(p, DN_ADD, y, param(m, "everywhere", dn_shape(c[0], c[1], c[2])));
}

/* c: H, W, C, C of a second part */
static dn_val copies(lab *m, const int *c)
{
    dn_program *p = m->p;
    dn_val x = blocked(m, feed(m, "x", dn_shape(c[0], c[1], c[2])));
    dn_val y = blocked(m, feed(m, "y", dn_shape(c[0], c[1], c[3])));
    dn_val both = dn_concat(p, (dn_val[]){ x, y, x }, 3);
    both = dn_binary(p, DN_MUL, both, both);
    dn_val low = dn_avg_pool2(p, both), high = dn_upsample2(p, dn_slice(p, low, 2, c[2], c[3]));
    return dn_unary(p, DN_SILU, dn_concat(p, (dn_val[]){ high, dn_upsample2(p, low) }, 2));
}

/* A doubled map, convolved. c: H, W, C, K, 1: and read elsewhere too, 2: twice and smaller again */
static dn_val doubled(lab *m, const int *c)
{
    dn_program *p = m->p;
    const int pad[4] = { 1, 1, 1, 1 };
    dn_val x = blocked(m, feed(m, "x", dn_shape(c[0], c[1], c[2]))), large = dn_upsample2(p, x);
    dn_val y =
        dn_conv2d(p, large, param(m, "weight", dn_shape(3, 3, c[2], c[3])), param(m, "bias", dn_shape(c[3])), 1, pad);
    if (c[4] == 1)
        return dn_concat(p, (dn_val[]){ y, dn_unary(p, DN_SILU, large) }, 2);
    if (c[4] == 2)
        y = dn_binary(p, DN_MUL, y,
                      dn_conv2d(p, large, param(m, "second", dn_shape(3, 3, c[2], c[3])), DN_NONE, 1, pad));
    return dn_binary(p, DN_ADD, c[4] ? dn_avg_pool2(p, y) : y, feed(m, "e", dn_shape(c[3])));
}

/* c: kind, C */
static dn_val losses(lab *m, const int *c)
{
    dn_val x = feed(m, "x", dn_shape(7, 5, c[1])), t = feed(m, "t", dn_shape(7, 5, c[1]));
    return dn_loss(m->p, (enum dn_loss)c[0], dn_affine(m->p, x, 1.25, 0), t, 0.6);
}

/* c: positions, channels */
static dn_val softmax(lab *m, const int *c) { return dn_softmax(m->p, feed(m, "x", dn_shape(c[0], c[1]))); }

/* c: entries, channels */
static dn_val embedding(lab *m, const int *c)
{
    dn_val ids = dn_input(m->p, "ids", DN_I32, dn_shape(2)), w = dn_input(m->p, "w", DN_F32, dn_shape(1));
    return dn_embed(m->p, param(m, "table", dn_shape(c[0], c[1])), ids, w);
}

/* c: H, W, C, dense */
static dn_val dropout(lab *m, const int *c)
{
    dn_val x = feed(m, "x", dn_shape(c[0], c[1], c[2])), rng = dn_input(m->p, "rng", DN_I32, dn_shape(4));
    return dn_dropout(m->p, c[3] ? x : blocked(m, x), rng, 0.3, 7);
}

/* Kept in 16 bits on the way. c: type, C, dense */
static dn_val cast(lab *m, const int *c)
{
    dn_val x = feed(m, "x", dn_shape(5, 3, c[1]));
    x = c[2] ? x : blocked(m, x);
    return dn_unary(m->p, DN_SQUARE, dn_cast(m->p, dn_cast(m->p, x, (enum dn_dtype)c[0]), DN_F32));
}

/* clang-format off */
static const spec specs[] = {
    { "norm 4 in 1",            group_norm, 1, { 5, 7, 4, 1, AFFINE, DN_SILU } },
    { "norm 4 in 4",            group_norm, 2, { 3, 5, 4, 4, AFFINE, DN_SILU, 1 } },
    { "norm 12 in 4",           group_norm, 3, { 7, 3, 12, 4, AFFINE, DN_SILU } },
    { "norm 12 in 1",           group_norm, 5, { 1, 3, 12, 1, PLAIN, DN_SILU, 1 } },
    { "norm 20 in 4",           group_norm, 4, { 5, 5, 20, 4, MODULATED, DN_SILU } },
    { "norm 20 in 1",           group_norm, 2, { 9, 1, 20, 1, AFFINE, -1, 1 } },
    { "norm 40 in 4",           group_norm, 3, { 4, 9, 40, 4, MODULATED, DN_SILU, 1 } },
    { "norm 40 in 1",           group_norm, 1, { 6, 6, 40, 1, AFFINE, DN_MISH } },
    { "norm 64 in 4",           group_norm, 2, { 7, 7, 64, 4, AFFINE, DN_SILU, 1 } },
    { "norm 64 in 32",          group_norm, 5, { 3, 3, 64, 32, MODULATED, DN_RELU } },
    { "norm 128 in 32",         group_norm, 3, { 8, 8, 128, 32, AFFINE, DN_SILU } },
    { "norm 128 in 32, scaled", group_norm, 4, { 5, 6, 128, 32, MODULATED, DN_SILU } },
    { "norm 128 in 1",          group_norm, 2, { 2, 3, 128, 1, AFFINE, -1 } },
    { "norm 16, two chunks",    group_norm, 3, { 31, 17, 16, 4, AFFINE, DN_SILU, 1 } },
    { "norm of one position",   group_norm, 3, { 1, 1, 24, 4, AFFINE, DN_SILU } },
    { "norm of a sum, 12",      norm_of_sum, 3, { 5, 3, 12, 4, DN_SILU } },
    { "norm of a sum, 64",      norm_of_sum, 2, { 19, 21, 64, 32, DN_SILU } },
    { "norm of a sum, bare",    norm_of_sum, 4, { 4, 5, 20, 1, -1 } },
    { "layer norm 4",           layer_norm, 2, { 5, 4, 1 } },
    { "layer norm 20",          layer_norm, 5, { 3, 20, 0 } },
    { "layer norm 40",          layer_norm, 1, { 11, 40, 1 } },
    { "layer norm, two chunks", layer_norm, 2, { 300, 12, 1 } },
    { "attention",              attention, 2, { 16, 16, 16, 2 } },
    { "attention, head 16",     attention, 3, { 49, 49, 64, 4 } },
    { "attention, one head",    attention, 1, { 35, 35, 40, 1 } },
    { "attention, heads of 5",  attention, 5, { 7, 9, 20, 4 } },
    { "attention, heads of 12", attention, 2, { 9, 50, 24, 2 } },
    { "attention, heads of 1",  attention, 3, { 5, 3, 4, 4 } },
    { "attention, two strips",  attention, 2, { 101, 17, 8, 1 } },
    { "attention, low strips",  attention, 1, { 19, 3001, 8, 1 } },
    { "attention, too long",    attention, 1, { 3, 4100, 8, 1 } },
    { "attention, by k and v",  attention, 2, { 9, 8, 32, 4, 1 } },
    { "attention, by q",        attention, 2, { 9, 8, 32, 4, 2 } },
    { "broadcasts 4",           broadcasts, 3, { 3, 5, 4 } },
    { "broadcasts 12, dense",   broadcasts, 5, { 3, 5, 12, 1 } },
    { "broadcasts 40",          broadcasts, 2, { 17, 31, 40 } },
    { "broadcasts 128",         broadcasts, 1, { 3, 3, 128 } },
    { "broadcasts 3, dense",    broadcasts, 2, { 27, 31, 3, 1 } },
    { "copies 8 and 8",         copies, 2, { 6, 4, 8, 8 } },
    { "copies 16 and 4",        copies, 3, { 5, 7, 16, 4 } },
    { "copies 12 and 20",       copies, 1, { 4, 5, 12, 20 } },
    { "copies 64 and 40",       copies, 2, { 3, 2, 64, 40 } },
    { "copies 1 and 3",         copies, 2, { 5, 4, 1, 3 } },
    { "doubled",                doubled, 3, { 5, 7, 16, 24 } },
    { "doubled 12 to 40",       doubled, 2, { 4, 3, 12, 40 } },
    { "doubled, read",          doubled, 2, { 5, 4, 16, 20, 1 } },
    { "doubled, twice",         doubled, 2, { 6, 4, 20, 16, 2 } },
    { "mse",                    losses, 5, { DN_MSE, 3 } },
    { "mse, long",              losses, 2, { DN_MSE, 64 } },
    { "l1",                     losses, 3, { DN_L1, 4 } },
    { "huber",                  losses, 2, { DN_HUBER, 20 } },
    { "silu",                   unary, 1, { DN_SILU, 4 } },
    { "gelu",                   unary, 2, { DN_GELU, 12, 1 } },
    { "gelu tanh",              unary, 3, { DN_GELU_TANH, 20 } },
    { "relu",                   unary, 4, { DN_RELU, 40 } },
    { "mish",                   unary, 5, { DN_MISH, 64 } },
    { "sigmoid",                unary, 1, { DN_SIGMOID, 128, 1 } },
    { "tanh",                   unary, 2, { DN_TANH, 4 } },
    { "exp",                    unary, 3, { DN_EXP, 12 } },
    { "log",                    unary, 4, { DN_LOG, 20 } },
    { "sqrt",                   unary, 5, { DN_SQRT, 40, 1 } },
    { "square",                 unary, 1, { DN_SQUARE, 64 } },
    { "reciprocal",             unary, 2, { DN_RECIPROCAL, 128 } },
    { "abs",                    unary, 3, { DN_ABS, 4 } },
    { "clamp",                  unary, 4, { DN_CLAMP, 12, 1 } },
    { "softmax 5",              softmax, 3, { 4, 5 } },
    { "softmax 40",             softmax, 1, { 7, 40 } },
    { "embedding 12",           embedding, 5, { 5, 12 } },
    { "embedding 64",           embedding, 1, { 4, 64 } },
    { "dropout 4",              dropout, 3, { 3, 5, 4 } },
    { "dropout 12",             dropout, 2, { 5, 5, 12 } },
    { "dropout 64",             dropout, 1, { 2, 3, 64 } },
    { "dropout 7",              dropout, 2, { 5, 3, 7 } },
    { "dropout 20, dense",      dropout, 2, { 5, 3, 20, 1 } },
    { "bf16 20",                cast, 2, { DN_BF16, 20 } },
    { "bf16 5, dense",          cast, 3, { DN_BF16, 5, 1 } },
    { "f16 64",                 cast, 1, { DN_F16, 64 } },
    { "f16 12, dense",          cast, 2, { DN_F16, 12, 1 } },
};
/* clang-format on */
enum { SPECS = sizeof specs / sizeof *specs };

/* The program with its output "y", and "grad0" .. of everything wanted. */
static dn_program *record(const spec *s)
{
    lab m = { .p = dn_program_new() };
    dn_val grad[WRT_MAX];
    char name[16];
    assert_non_null(m.p);
    m.block = dn_block_add(m.p, "net");
    dn_val y = s->build(&m, s->c);
    dn_val dy = y == DN_NONE ? DN_NONE : dn_input(m.p, "dy", DN_F32, *dn_shape_of(m.p, y));
    dn_grad(m.p, y, dy, m.wrt, m.n_wrt, grad);
    dn_output(m.p, "y", y);
    for (int i = 0; i < m.n_wrt; i++) {
        snprintf(name, sizeof name, "grad%d", i);
        if (grad[i] != DN_NONE)
            dn_output(m.p, name, grad[i]);
    }
    if (m.p->error.code)
        fail_msg("%s: %s", s->name, m.p->error.message);
    dn_program_prune(m.p);
    return m.p;
}

typedef void (*check_fn)(const spec *s, const dn_program *p, const float *block, const char *name);

static void each_output(check_fn check)
{
    for (int i = 0; i < SPECS; i++) {
        dn_program *p = record(&specs[i]);
        float *block = parameters(p, 0, 11);
        check(&specs[i], p, block, "y");
        for (int k = 0; k < WRT_MAX; k++) {
            char name[16];
            snprintf(name, sizeof name, "grad%d", k);
            if (dn_find(p, name) != DN_NONE)
                check(&specs[i], p, block, name);
        }
        free(block);
        dn_program_free(p);
    }
}

static bool has_rows(const dn_program *p, const char *name) { return p->value[dn_find(p, name)].kind == DN_ROW; }

static void check_ref(const spec *s, const dn_program *p, const float *block, const char *name)
{
    int64_t n;
    float *a = run_program(&dn_backend_cpu, p, block, name, (batch){ .n = s->rows, .threads = 2 }, &n);
    float *b = run_program(&dn_backend_ref, p, block, name, (batch){ .n = s->rows }, &n);
    double d = difference(a, b, has_rows(p, name) ? n * s->rows : n);
    if (!(d <= 1e-5))
        fail_msg("%s: %s differs by %.2e of the largest", s->name, name, d);
    free(a);
    free(b);
}

static void agrees_with_ref(void **state)
{
    (void)state;
    each_output(check_ref);
}

static void check_bits(const spec *s, const dn_program *p, const float *block, const char *name)
{
    const batch others[] = { { .n = s->rows, .threads = 1 },
                             { .n = s->rows, .threads = 3 },
                             { .n = s->rows, .threads = 2, .apart = true },
                             { .n = s->rows, .rows_max = 7 },
                             { .n = 1, .first = s->rows - 1 } };
    int64_t n, m, rows = has_rows(p, name) ? s->rows : 1;
    float *all = run_program(&dn_backend_cpu, p, block, name, (batch){ .n = s->rows, .threads = 2 }, &n);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (others[i].n != s->rows && rows == 1)
            continue;
        float *part = run_program(&dn_backend_cpu, p, block, name, others[i], &m);
        int64_t count = others[i].n == s->rows ? rows * n : n;
        if (memcmp(part, all + others[i].first * n, (size_t)count * sizeof *part))
            fail_msg("%s: %s: other bits in variant %zu", s->name, name, i);
        free(part);
    }
    free(all);
}

static void bits_stay(void **state)
{
    (void)state;
    each_output(check_bits);
}

static bool on_ref(const dn_program *p, const dn_step *step)
{
    return step->op_first <= step->op_last && step->fn == dn_ref_step(p->op[step->op_first].kind);
}

static int64_t positions(const dn_program *p, dn_val v)
{
    const dn_shape *s = &p->value[v].shape;
    return dn_shape_count(s) / (s->rank ? s->dim[s->rank - 1] : 1);
}

/* The only ops that may run on ref: those of a few numbers, and what is beyond the kernels' limits. */
static void leaves_nothing_to_ref(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        dn_program *p = record(&specs[i]);
        dn_lowered *l = NULL;
        dn_error err = { 0 };
        if (dn_lower(&l, &dn_backend_cpu, p, specs[i].rows, &err))
            fail_msg("%s: %s", err.param, err.message);
        for (int k = 0; k < l->n_steps && !strstr(specs[i].name, "too long"); k++) {
            if (!on_ref(p, &l->step[k]))
                continue;
            const dn_op *op = &p->op[l->step[k].op_first];
            bool vector = op->kind == DN_OP_COPY && (positions(p, op->in[0]) == 1 || positions(p, op->out[0]) == 1);
            bool forward = op->kind == DN_OP_EMBED;
            bool plain = op->kind == DN_OP_UNARY && specs[i].build == unary; /* kinds that only the gradient has */
            if (!vector && !forward && !plain)
                fail_msg("%s: %s runs on ref", specs[i].name, dn_op_name(op->kind));
        }
        dn_lowered_free(l);
        dn_program_free(p);
    }
}

static int count(const dn_lowered *l, enum dn_op_kind kind)
{
    int n = 0;
    for (int i = 0; i < l->n_steps; i++)
        n += l->step[i].op_first <= l->step[i].op_last && l->program->op[l->step[i].op_first].kind == kind;
    return n;
}

/* The sums that a bias and an embedding need come with the gradient that they are sums of. */
static void sums_come_with_the_norm(void **state)
{
    (void)state;
    const spec s = { "norm of a sum", norm_of_sum, 2, { 4, 4, 16, 4, DN_SILU } };
    dn_program *p = record(&s);
    dn_lowered *l = NULL;
    dn_error err = { 0 };
    assert_int_equal(dn_lower(&l, &dn_backend_cpu, p, 2, &err), 0);
    assert_int_equal(count(l, DN_OP_SUM_TO), 0);
    dn_lowered_free(l);
    dn_program_free(p);
}

/* What is kept in 16 bits has a blocked place of half the bytes, and nothing is converted on the way there and back. */
static void narrow_values_stay_blocked(void **state)
{
    (void)state;
    const spec s = { "bf16", cast, 2, { DN_BF16, 20 } };
    dn_program *p = record(&s);
    dn_lowered *l = NULL;
    dn_error err = { 0 };
    int narrow = 0;
    assert_int_equal(dn_lower(&l, &dn_backend_cpu, p, 2, &err), 0);
    for (int i = 0; i < l->n_places; i++) {
        const dn_place *place = &l->place[i];
        if (place->val == DN_NONE || p->value[place->val].dtype != DN_BF16)
            continue;
        assert_int_equal(place->plane, 15 * 8 * 2 + 64);
        narrow++;
    }
    assert_true(narrow > 0);
    for (int i = 0; i < l->n_steps; i++)
        for (int j = 0; j < l->step[i].n_in && l->step[i].op_first > l->step[i].op_last; j++)
            assert_true(p->value[l->place[l->step[i].in[j]].val].dtype == DN_F32);
    dn_lowered_free(l);
    dn_program_free(p);
}

/* silu(norm(x) * scale + shift) + x forward and back: a norm, its gradient with the sum of gradients in it, and an
 * addition; the rest are vectors. Nobody keeps what is between norm and SiLU. */
static void norm_and_silu_are_one(void **state)
{
    (void)state;
    for (int modulated = 0; modulated < 2; modulated++) {
        const spec s = { "norm", group_norm, 2, { 4, 4, 16, 4, modulated ? MODULATED : AFFINE, DN_SILU, 1 } };
        dn_program *p = record(&s);
        dn_lowered *l = NULL;
        dn_error err = { 0 };
        assert_int_equal(dn_lower(&l, &dn_backend_cpu, p, 2, &err), 0);
        assert_int_equal(count(l, DN_OP_NORM), 1);
        assert_int_equal(count(l, DN_OP_UNARY_BWD), 1); /* where the chain of gradients begins */
        assert_int_equal(count(l, DN_OP_NORM_DX) + count(l, DN_OP_NORM_DW) + count(l, DN_OP_SUM_TO), 0);
        assert_int_equal(count(l, DN_OP_BINARY), modulated ? 2 : 1); /* + x; and two vectors */
        dn_lowered_free(l);
        dn_program_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_ref),         cmocka_unit_test(bits_stay),
        cmocka_unit_test(leaves_nothing_to_ref),   cmocka_unit_test(norm_and_silu_are_one),
        cmocka_unit_test(sums_come_with_the_norm), cmocka_unit_test(narrow_values_stay_blocked),
    };
    if (!dn_backend_cpu.available()) {
        printf("SKIPPED: this machine has no AVX2\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
