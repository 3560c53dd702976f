/* random.c - programs put together at random from what U-Nets and transformers are made of, with outputs in unlikely
 * places and gradients by some of the inputs: what a backend fuses, aliases, places or reorders must not show, nor what is
 * recomputed for the gradients.
 * `op_random N` runs program N alone and prints it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "agree.h"

enum { PROGRAMS = 120, MAPS_MAX = 64, ROWS = 5 };

static const dn_val none = DN_NONE;

typedef struct maker {
    subject s;
    uint64_t state;       /* of the choices */
    dn_val map[MAPS_MAX]; /* [H,W,C] */
    dn_val temb;          /* [12] */
    int n_maps, n_params;
} maker;

/* 0 .. n-1 */
static int choose(maker *m, int n)
{
    m->state = m->state * 6364136223846793005u + 1442695040888963407u;
    return (int)((m->state >> 33) % (uint64_t)n);
}

static dn_shape shape_of(const maker *m, dn_val v) { return *dn_shape_of(m->s.p, v); }

static dn_val param(maker *m, dn_shape shape, double lo, double hi)
{
    char name[16];
    snprintf(name, sizeof name, "p%d", m->n_params++);
    return weight(&m->s, name, shape, lo, hi);
}

/* Weights that keep the size of what passes through them. */
static dn_val scaled(maker *m, dn_shape shape)
{
    double bound = 1.7 / sqrt((double)(dn_shape_count(&shape) / shape.dim[shape.rank - 1]));
    return param(m, shape, -bound, bound);
}

static dn_val bias(maker *m, int64_t n) { return choose(m, 2) ? param(m, dn_shape(n), -0.5, 0.5) : none; }

static int64_t channels(maker *m)
{
    static const int64_t some[] = { 3, 4, 8, 12, 16, 20, 32 };
    return some[choose(m, sizeof some / sizeof *some)];
}

/* The latest are the likeliest. */
static dn_val any_map(maker *m)
{
    int back = choose(m, 3) ? 0 : choose(m, m->n_maps);
    return m->map[m->n_maps - 1 - back];
}

/* Another map that agrees with v in its first `dims` dimensions, or v itself. */
static dn_val like(maker *m, dn_val v, int dims)
{
    int first = choose(m, m->n_maps);
    for (int i = 0; i < m->n_maps; i++) {
        dn_val u = m->map[(first + i) % m->n_maps];
        if (u != v && !memcmp(shape_of(m, u).dim, shape_of(m, v).dim, (size_t)dims * sizeof(int64_t)))
            return u;
    }
    return v;
}

static dn_val vector(maker *m, int64_t n)
{
    return dn_matmul(m->s.p, choose(m, 2) ? dn_unary(m->s.p, DN_SILU, m->temb) : m->temb, scaled(m, dn_shape(12, n)),
                     bias(m, n), false);
}

static dn_val conv(maker *m, dn_val x)
{
    static const int pads[][4] = { { 1, 1, 1, 1 }, { 0, 0, 1, 1 }, { 0, 0, 0, 0 }, { 2, 1, 0, 1 } };
    dn_shape s = shape_of(m, x);
    int64_t K = channels(m), k = choose(m, 3) ? 3 : 1;
    int stride = choose(m, 4) ? 1 : 2, pad = choose(m, 2) ? 0 : choose(m, 4);
    if (k == 1 || s.dim[0] < 4 || s.dim[1] < 4)
        pad = k == 1 ? 2 : 0;
    return dn_conv2d(m->s.p, x, scaled(m, dn_shape(k, k, s.dim[2], K)), bias(m, K), stride, pads[pad]);
}

static dn_val norm(maker *m, dn_val x)
{
    int64_t c = shape_of(m, x).dim[2];
    int groups = 1 + choose(m, (int)c);
    while (c % groups)
        groups--;
    dn_val gamma = choose(m, 4) ? param(m, dn_shape(c), 0.5, 1.5) : none;
    dn_val beta = choose(m, 4) ? param(m, dn_shape(c), -0.5, 0.5) : none;
    dn_val y = choose(m, 4) ? dn_group_norm(m->s.p, x, gamma, beta, groups, 1e-3)
                            : dn_layer_norm(m->s.p, x, gamma, beta, 1e-3);
    if (choose(m, 3) == 0) { /* scale and shift from the time */
        y = dn_binary(m->s.p, DN_MUL, y, dn_affine(m->s.p, vector(m, c), 0.5, 1));
        y = dn_binary(m->s.p, DN_ADD, y, vector(m, c));
    }
    return choose(m, 2) ? dn_unary(m->s.p, DN_SILU, y) : y;
}

static dn_val tokens(maker *m, dn_val x)
{
    dn_shape s = shape_of(m, x);
    dn_program *p = m->s.p;
    dn_val t = dn_reshape(p, x, dn_shape(s.dim[0] * s.dim[1], s.dim[2])), y;
    int heads = s.dim[2] % 2 || choose(m, 2) ? 1 : 2;
    if (choose(m, 2)) {
        dn_val n = choose(m, 2) ? dn_layer_norm(p, t, none, none, 1e-3) : t, in[3];
        for (int i = 0; i < 3; i++)
            in[i] = dn_matmul(p, n, scaled(m, dn_shape(s.dim[2], s.dim[2])), bias(m, s.dim[2]), false);
        y = dn_attention(p, in[0], in[1], in[2], heads, 0.5);
    } else {
        int64_t wide = 2 * s.dim[2];
        y = dn_matmul(p, t, scaled(m, dn_shape(wide, s.dim[2])), none, true);
        y = dn_unary(p, choose(m, 2) ? DN_GELU : DN_GELU_TANH, y);
        y = dn_matmul(p, y, scaled(m, dn_shape(wide, s.dim[2])), bias(m, s.dim[2]), false);
    }
    return dn_reshape(p, choose(m, 3) ? dn_binary(p, DN_ADD, y, t) : y, s);
}

static dn_val resize(maker *m, dn_val x)
{
    dn_shape s = shape_of(m, x);
    bool up = s.dim[0] * s.dim[1] <= 64 && choose(m, 2), even = s.dim[0] % 2 == 0 && s.dim[1] % 2 == 0;
    if (s.dim[0] < 2 || s.dim[1] < 2)
        up = true;
    if ((up || even) && choose(m, 3) == 0)
        return dn_fir(m->s.p, x, up);
    return up ? dn_upsample2(m->s.p, x) : dn_avg_pool2(m->s.p, x);
}

static dn_val move(maker *m, dn_val x)
{
    int64_t c = shape_of(m, x).dim[2];
    if (choose(m, 3)) {
        dn_val in[] = { x, like(m, x, 2), like(m, x, 2) };
        return dn_concat(m->s.p, in, 2 + choose(m, 2));
    }
    int64_t n = 1 + choose(m, (int)c);
    return dn_slice(m->s.p, x, 2, choose(m, (int)(c - n) + 1), n);
}

/* clang-format off */
static dn_val arithmetic(maker *m, dn_val x)
{
    dn_program *p = m->s.p;
    int64_t c = shape_of(m, x).dim[2];
    switch (choose(m, 7)) {
    case 0: return dn_unary(p, (enum dn_unary)(int[]){ DN_SILU, DN_RELU, DN_MISH, DN_TANH, DN_ABS }[choose(m, 5)], x);
    case 1: return dn_affine(p, x, 0.7, choose(m, 2) ? 0.2 : 0);
    case 2: return dn_binary(p, DN_ADD, x, vector(m, c));
    case 3: return dn_binary(p, DN_MUL, x, dn_unary(p, DN_SIGMOID, dn_slice(p, x, 2, 0, 1)));
    case 4: return dn_binary(p, DN_SUB, like(m, x, 3), x);
    case 5: return dn_binary(p, DN_ADD, param(m, dn_shape(c), -1, 1), x);
    default: return dn_binary(p, DN_ADD, x, like(m, x, 3));
    }
}
/* clang-format on */

/* Every step is a marked block; the chosen ones are recomputed. */
static void make(maker *m, int number, const dn_marks *recompute)
{
    typedef dn_val (*maker_of)(maker * m, dn_val x);
    static const maker_of step[] = { conv,       conv,       conv, norm,   norm,  arithmetic,
                                     arithmetic, arithmetic, move, tokens, resize };
    *m = (maker){ .state = (uint64_t)number * 977 + 1 };
    subject_init(&m->s, ROWS);
    dn_val x = feed(&m->s, "x", dn_shape(2 + 2 * choose(m, 5), 2 + 2 * choose(m, 5), channels(m)), -1, 1);
    m->temb = feed(&m->s, "temb", dn_shape(12), -1, 1);
    m->map[m->n_maps++] = x;
    int n = 3 + choose(m, 12);
    while (n-- && m->s.n_tensors < TENSORS_MAX - 8 && !m->s.p->error.code) {
        dn_mark_begin(m->s.p);
        dn_val from = any_map(m), y = step[choose(m, sizeof step / sizeof *step)](m, from);
        dn_mark_end(m->s.p);
        m->map[m->n_maps++] = y;
        if (choose(m, 8) == 0 && m->s.n_outputs < 4)
            keep(&m->s, y);
    }
    dn_val y = m->map[m->n_maps - 1], wrt[3] = { x, m->temb, m->s.tensor[m->s.n_tensors - 1].val }, grad[3];
    if (!m->s.p->value[y].output)
        keep(&m->s, y);
    dn_val dy = feed_fixed(&m->s, "dy", shape_of(m, y), -1, 1);
    int n_wrt = choose(m, 4);
    dn_grad(m->s.p, y, dy, wrt, n_wrt, grad);
    for (int i = 0; i < n_wrt; i++)
        keep(&m->s, grad[i]);
    if (m->s.p->error.code)
        fail_msg("program %d: %s", number, m->s.p->error.message);
    dn_program_recompute(m->s.p, recompute);
    dn_program_prune(m->s.p);
}

static const dn_marks nothing, all = { { UINT64_MAX } };

/* Every output has the same bits, whatever is recomputed. */
static void same_outputs(int number, const dn_backend *b, const dn_marks *recompute)
{
    maker plain, again;
    make(&plain, number, &nothing);
    make(&again, number, recompute);
    assert_int_equal(subject_run(&plain.s, b, 0, ROWS, NULL, RUN_PLANNED), 0);
    assert_int_equal(subject_run(&again.s, b, 0, ROWS, NULL, RUN_POISONED), 0);
    for (int i = 0; i < plain.s.n_outputs; i++) {
        const output *x = &plain.s.output[i], *y = &again.s.output[i];
        if (memcmp(x->data, y->data, sizeof(double) * (size_t)(x->batch ? x->count : ROWS * x->count)))
            fail_msg("op_random %d on %s: output %d changes with what is recomputed", number, b->name, i);
    }
    subject_fini(&plain.s);
    subject_fini(&again.s);
}

static void test_recompute(void **state)
{
    (void)state;
    int recomputed = 0;
    for (int i = 0; i < PROGRAMS; i++) {
        const dn_marks some = { { 0x9E3779B97F4A7C15u * (uint64_t)(i + 1) } };
        maker plain, again;
        make(&plain, i, &nothing);
        make(&again, i, &all);
        recomputed += again.s.p->n_ops > plain.s.p->n_ops;
        subject_fini(&plain.s);
        subject_fini(&again.s);
        for (int b = 0; b < n_backends; b++)
            if (backends[b]->available()) {
                same_outputs(i, backends[b], &all);
                same_outputs(i, backends[b], &some);
            }
    }
    print_message("%d of %d programs recompute something\n", recomputed, PROGRAMS);
    assert_true(recomputed > PROGRAMS / 3);
}

static void test_program(void **state)
{
    int number = *(const int *)*state;
    char name[32];
    snprintf(name, sizeof name, "op_random %d", number);
    maker m;
    make(&m, number, &nothing);
    agree_backends(&m.s, name, 2e-4, false);
    subject_fini(&m.s);
}

static int run_one(int number)
{
    maker m;
    make(&m, number, &nothing);
    dn_program_print(m.s.p, stdout);
    subject_fini(&m.s);
    const struct CMUnitTest test[] = { { .name = "program", .test_func = test_program, .initial_state = &number } };
    return cmocka_run_group_tests_name("one program", test, NULL, NULL);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return run_one(atoi(argv[1]));
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("program *"); /* what is recomputed has one thread */
#endif
    static struct CMUnitTest tests[PROGRAMS + 1];
    static int number[PROGRAMS];
    static char name[PROGRAMS][16];
    for (int i = 0; i < PROGRAMS; i++) {
        number[i] = i;
        snprintf(name[i], sizeof name[i], "program %d", i);
        tests[i] = (struct CMUnitTest){ .name = name[i], .test_func = test_program, .initial_state = &number[i] };
    }
    tests[PROGRAMS] = (struct CMUnitTest){ .name = "recompute", .test_func = test_recompute };
    return cmocka_run_group_tests_name("random programs", tests, NULL, NULL);
}
