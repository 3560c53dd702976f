/* facts.c - ops against results worked out by hand or by a formula that shares nothing with the kernels, on every
 * backend. Programs here have one row. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "rng.h"
#include "subject.h"

static const dn_val none = DN_NONE;
static const double pi = 3.14159265358979323846;

#define COUNT(...) (sizeof((double[]){ __VA_ARGS__ }) / sizeof(double))
#define SET(s, name, ...) subject_set(s, name, (double[]){ __VA_ARGS__ }, COUNT(__VA_ARGS__))
#define EXPECT(s, tol, ...) expect(s, 0, tol, (double[]){ __VA_ARGS__ }, COUNT(__VA_ARGS__))

/* Run on every backend; output `which` is these n numbers. */
static void expect(subject *s, int which, double tol, const double *want, int64_t n)
{
    assert_int_equal(s->output[which].count, n);
    for (int b = 0; b < n_backends; b++) {
        if (!backends[b]->available())
            continue;
        assert_int_equal(subject_run(s, backends[b], 0, 1, NULL, RUN_PLANNED), 0);
        for (int64_t i = 0; i < n; i++) {
            double got = s->output[which].data[i];
            if (!(fabs(got - want[i]) <= tol * (1 + fabs(want[i])) || (isnan(got) && isnan(want[i])) || got == want[i]))
                fail_msg("%s: element %lld is %.9g, not %.9g", backends[b]->name, (long long)i, got, want[i]);
        }
    }
}

static void finish(subject *s, dn_val y)
{
    if (y == DN_NONE)
        fail_msg("%s", s->p->error.message);
    keep(s, y);
    dn_program_prune(s->p);
}

/* ---- convolution, matmul ---- */

static dn_val conv(subject *s, dn_shape x, dn_shape w, int stride, const int pad[4])
{
    dn_val vx = feed(s, "x", x, 0, 1);
    return dn_conv2d(s->p, vx, weight(s, "w", w, 0, 1), weight(s, "b", dn_shape(w.dim[3]), 0, 1), stride, pad);
}

static void conv_same(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, conv(&s, dn_shape(3, 3, 1), dn_shape(3, 3, 1, 1), 1, (int[]){ 1, 1, 1, 1 }));
    SET(&s, "x", 1, 2, 3, 4, 5, 6, 7, 8, 9);
    SET(&s, "w", 1, 2, 3, 4, 5, 6, 7, 8, 9);
    SET(&s, "b", 0.5);
    EXPECT(&s, 1e-5, 94.5, 154.5, 106.5, 186.5, 285.5, 186.5, 106.5, 154.5, 94.5);
    subject_fini(&s);
}

/* Padded at the bottom and the right only; the window starts at 0,0. */
static void conv_asymmetric(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, conv(&s, dn_shape(2, 2, 1), dn_shape(3, 3, 1, 1), 2, (int[]){ 0, 0, 1, 1 }));
    SET(&s, "x", 1, 2, 3, 4);
    SET(&s, "w", 1, 2, 3, 4, 5, 6, 7, 8, 9);
    SET(&s, "b", 0);
    EXPECT(&s, 1e-6, 1 + 4 + 12 + 20);
    subject_fini(&s);
}

static void conv_channels(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, conv(&s, dn_shape(1, 2, 2), dn_shape(1, 1, 2, 3), 1, (int[]){ 0, 0, 0, 0 }));
    SET(&s, "x", 2, 3, -1, 1);
    SET(&s, "w", 0, 1, 2, 10, 11, 12);
    SET(&s, "b", 100, 200, 300);
    EXPECT(&s, 1e-6, 130, 235, 340, 110, 210, 310);
    subject_fini(&s);
}

static void matmul_both_ways(void **state)
{
    (void)state;
    for (int transposed = 0; transposed < 2; transposed++) {
        subject s;
        subject_init(&s, 1);
        dn_val x = feed(&s, "x", dn_shape(2, 2), 0, 1);
        dn_val w = weight(&s, "w", transposed ? dn_shape(3, 2) : dn_shape(2, 3), 0, 1);
        finish(&s, dn_matmul(s.p, x, w, none, transposed));
        SET(&s, "x", 1, 2, 3, 4);
        SET(&s, "w", 1, 2, 3, 4, 5, 6);
        if (transposed)
            EXPECT(&s, 1e-6, 5, 11, 17, 11, 25, 39);
        else
            EXPECT(&s, 1e-6, 9, 12, 15, 19, 26, 33);
        subject_fini(&s);
    }
}

/* ---- attention, softmax, norms ---- */

static void attention_uniform(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val q = feed(&s, "q", dn_shape(1, 4), 0, 0), k = feed(&s, "k", dn_shape(3, 4), -1, 1);
    finish(&s, dn_attention(s.p, q, k, feed(&s, "v", dn_shape(3, 4), 0, 1), 2, 1));
    SET(&s, "v", 1, 2, 3, 4, 4, 5, 6, 7, 10, 11, 12, 13);
    EXPECT(&s, 1e-6, 5, 6, 7, 8);
    subject_fini(&s);
}

/* Scores of ln 1, ln 2, ln 5 (after the scale) in head 0, equal ones in head 1: weights 1/8 1/4 5/8, and 1/3 each. */
static void attention_heads(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val q = feed(&s, "q", dn_shape(1, 2), 0, 1), k = feed(&s, "k", dn_shape(3, 2), 0, 1);
    finish(&s, dn_attention(s.p, q, k, feed(&s, "v", dn_shape(3, 2), 0, 1), 2, 0.5));
    SET(&s, "q", 2, 7);
    SET(&s, "k", log(1), 1, log(2), 1, log(5), 1);
    SET(&s, "v", 8, 3, 16, 6, 24, 9);
    EXPECT(&s, 1e-6, 1 + 4 + 15, 6);
    subject_fini(&s);
}

static void softmax_by_hand(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, dn_softmax(s.p, feed(&s, "x", dn_shape(2, 3), 0, 1)));
    SET(&s, "x", 500 + log(1), 500 + log(2), 500 + log(5), -400, -400, -400);
    EXPECT(&s, 3e-5, 0.125, 0.25, 0.625, 1. / 3, 1. / 3, 1. / 3);
    subject_fini(&s);
}

static void norms_by_hand(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed(&s, "x", dn_shape(1, 2, 4), 0, 1);
    dn_val gamma = weight(&s, "gamma", dn_shape(4), 0, 1), beta = weight(&s, "beta", dn_shape(4), 0, 1);
    dn_val y = dn_group_norm(s.p, x, gamma, beta, 2, 3);
    keep(&s, y);
    finish(&s, s.p->op[s.p->n_ops - 1].out[1]);
    SET(&s, "x", 1, 3, 10, 10, 1, 3, 10, 10); /* group 0: mean 2, variance 1; group 1: 10, 0; eps 3 */
    SET(&s, "gamma", 1, 2, 3, 4);
    SET(&s, "beta", 0, 10, 20, 30);
    EXPECT(&s, 1e-6, -0.5, 11, 20, 30, -0.5, 11, 20, 30);
    expect(&s, 1, 1e-6, (double[]){ 2, 0.5, 10, 1 / sqrt(3) }, 4);
    subject_fini(&s);
}

static void layer_norm_by_hand(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, dn_layer_norm(s.p, feed(&s, "x", dn_shape(2, 2), 0, 1), none, none, 0));
    SET(&s, "x", 1, 3, 50, 10);
    EXPECT(&s, 1e-6, -1, 1, 1, -1);
    subject_fini(&s);
}

/* ---- one number ---- */

static void unary_values(void **state)
{
    (void)state;
    static const struct {
        enum dn_unary kind;
        double x[3], y[3];
    } known[] = {
        { DN_SILU, { 1, -2, -1000 }, { 0.731058578630, -0.238405844044, 0 } },
        { DN_GELU, { 1, -2, 50 }, { 0.841344746069, -0.0455002638964, 50 } },
        { DN_GELU_TANH, { 1, -2, 50 }, { 0.841191990608, -0.0454022978754, 50 } },
        { DN_RELU, { 1, -2, 0 }, { 1, 0, 0 } },
        { DN_MISH, { 1, -2, 1000 }, { 0.865098388267, -0.252501481940, 1000 } },
        { DN_SIGMOID, { 0, -1000, 1000 }, { 0.5, 0, 1 } },
        { DN_TANH, { 1, -0.5, 100 }, { 0.761594155956, -0.462117157260, 1 } },
        { DN_EXP, { 0, 1, -1 }, { 1, 2.718281828459, 0.367879441171 } },
        { DN_LOG, { 1, 2.718281828459, 0.125 }, { 0, 1, -2.079441541680 } },
        { DN_SQRT, { 0, 4, 2 }, { 0, 2, 1.414213562373 } },
        { DN_SQUARE, { -3, 0, 0.5 }, { 9, 0, 0.25 } },
        { DN_RECIPROCAL, { -4, 0.5, 1 }, { -0.25, 2, 1 } },
        { DN_ABS, { -3, 3, 0 }, { 3, 3, 0 } },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        subject s;
        subject_init(&s, 1);
        finish(&s, dn_unary(s.p, known[i].kind, feed(&s, "x", dn_shape(3), 0, 1)));
        subject_set(&s, "x", known[i].x, 3);
        expect(&s, 0, 1e-6, known[i].y, 3);
        subject_fini(&s);
    }
}

/* A clamp inside an exponential must not make a number of NaN: a spoilt sample would pass for a good one. */
static void nan_passes(void **state)
{
    (void)state;
    static const enum dn_unary kinds[] = { DN_SILU, DN_SIGMOID, DN_RELU, DN_MISH, DN_GELU };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        subject s;
        subject_init(&s, 1);
        finish(&s, dn_unary(s.p, kinds[i], feed(&s, "x", dn_shape(9), 0, 1)));
        SET(&s, "x", NAN, 0, NAN, 0, NAN, 0, NAN, 0, NAN);
        double zero = kinds[i] == DN_SIGMOID ? 0.5 : 0;
        EXPECT(&s, 1e-6, NAN, zero, NAN, zero, NAN, zero, NAN, zero, NAN);
        subject_fini(&s);
    }
}

static void affine_clamp(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed(&s, "x", dn_shape(4), 0, 1), y = dn_clamp(s.p, dn_affine(s.p, x, 2, 1), -1, 3), dx;
    dn_grad(s.p, y, none, &x, 1, &dx);
    keep(&s, y);
    finish(&s, dx);
    SET(&s, "x", -2, 0, 1, 1.25);
    EXPECT(&s, 1e-6, -1, 1, 3, 3);
    expect(&s, 1, 1e-6, (double[]){ 0, 2, 2, 0 }, 4); /* passes on the bound itself */
    subject_fini(&s);
}

static void broadcast_by_hand(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val a = feed(&s, "a", dn_shape(2, 1), 0, 1), b = feed(&s, "b", dn_shape(3), 0, 1);
    dn_val y = dn_binary(s.p, DN_SUB, a, b);
    keep(&s, y);
    finish(&s, dn_sum_to(s.p, y, dn_shape(2, 1), DN_ROW));
    SET(&s, "a", 10, 20);
    SET(&s, "b", 1, 2, 4);
    EXPECT(&s, 1e-6, 9, 8, 6, 19, 18, 16);
    expect(&s, 1, 1e-6, (double[]){ 23, 53 }, 2);
    subject_fini(&s);
}

/* ---- movement, on tensors that hold their own index ---- */

enum { H = 3, W = 4, C = 5 };

static dn_val feed_index(subject *s, const char *name, dn_shape shape, double first)
{
    dn_val v = feed(s, name, shape, 0, 1);
    tensor *t = subject_tensor(s, name);
    for (int64_t i = 0; i < t->count; i++)
        t->data[i] = first + (double)i;
    return v;
}

static double at(int64_t h, int64_t w, int64_t c) { return (double)((h * W + w) * C + c); }

static void upsample_and_pool(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed_index(&s, "x", dn_shape(H, W, C), 0);
    keep(&s, dn_upsample2(s.p, x));
    finish(&s, dn_avg_pool2(s.p, x)); /* of 3 rows the last is left out */
    double up[2 * H][2 * W][C], down[H / 2][W / 2][C];
    for (int h = 0; h < 2 * H; h++)
        for (int w = 0; w < 2 * W; w++)
            for (int c = 0; c < C; c++)
                up[h][w][c] = at(h / 2, w / 2, c);
    for (int h = 0; h < H / 2; h++)
        for (int w = 0; w < W / 2; w++)
            for (int c = 0; c < C; c++)
                down[h][w][c] = at(2 * h, 2 * w, c) + (W * C + C) / 2.0;
    expect(&s, 0, 0, &up[0][0][0], sizeof up / sizeof(double));
    expect(&s, 1, 1e-6, &down[0][0][0], sizeof down / sizeof(double));
    subject_fini(&s);
}

static void concat_slice_permute(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed_index(&s, "x", dn_shape(H, W, C), 0), y = feed_index(&s, "y", dn_shape(H, W, 2), 1000);
    dn_val both[] = { y, x };
    keep(&s, dn_concat(s.p, both, 2));
    keep(&s, dn_slice(s.p, x, 1, 1, 2));
    finish(&s, dn_permute(s.p, x, (int[]){ 2, 0, 1 }));
    double cat[H][W][2 + C], cut[H][2][C], turned[C][H][W];
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++)
            for (int c = 0; c < 2 + C; c++) {
                cat[h][w][c] = c < 2 ? 1000 + (h * W + w) * 2 + c : at(h, w, c - 2);
                if (c < C && w < 2)
                    cut[h][w][c] = at(h, 1 + w, c);
                if (c < C)
                    turned[c][h][w] = at(h, w, c);
            }
    expect(&s, 0, 0, &cat[0][0][0], sizeof cat / sizeof(double));
    expect(&s, 1, 0, &cut[0][0][0], sizeof cut / sizeof(double));
    expect(&s, 2, 0, &turned[0][0][0], sizeof turned / sizeof(double));
    subject_fini(&s);
}

/* The closed form of one axis. */
static double fir_down(const double *x, int n, int i)
{
    double y = 3 * x[2 * i] + 3 * x[2 * i + 1];
    y += i > 0 ? x[2 * i - 1] : 0;
    y += 2 * i + 2 < n ? x[2 * i + 2] : 0;
    return y / 8;
}

static double fir_up(const double *x, int n, int i)
{
    int k = i / 2, next = i % 2 ? k + 1 : k - 1;
    return 0.75 * x[k] + (next >= 0 && next < n ? 0.25 * x[next] : 0);
}

/* Of the picture a[h] * b[w] the result is the product of the results on a and b. */
static void fir_closed_form(void **state)
{
    (void)state;
    const double a[4] = { 1, -2, 4, 3 }, b[6] = { 2, 5, -1, 3, 0, 7 };
    for (int up = 0; up < 2; up++) {
        subject s;
        subject_init(&s, 1);
        finish(&s, dn_fir(s.p, feed(&s, "x", dn_shape(4, 6, 1), 0, 1), up));
        double x[24], y[8 * 12];
        for (int i = 0; i < 24; i++)
            x[i] = a[i / 6] * b[i % 6];
        int h = up ? 8 : 2, w = up ? 12 : 3;
        for (int i = 0; i < h * w; i++)
            y[i] = up ? fir_up(a, 4, i / w) * fir_up(b, 6, i % w) : fir_down(a, 4, i / w) * fir_down(b, 6, i % w);
        subject_set(&s, "x", x, 24);
        expect(&s, 0, 1e-6, y, h * w);
        subject_fini(&s);
    }
}

/* ---- embeddings ---- */

static void timestep_formula(void **state)
{
    (void)state;
    for (int flip = 0; flip < 2; flip++)
        for (int shift = 0; shift < 2; shift++) {
            subject s;
            subject_init(&s, 1);
            finish(&s, dn_timestep(s.p, feed(&s, "t", dn_shape(1), 0, 1), 9, flip, shift));
            SET(&s, "t", 321);
            double y[9] = { 0 };
            for (int i = 0; i < 4; i++) {
                double angle = 321 * pow(10000, -i / (4.0 - shift));
                y[flip ? 4 + i : i] = sin(angle);
                y[flip ? i : 4 + i] = cos(angle);
            }
            expect(&s, 0, 5e-5, y, 9);
            subject_fini(&s);
        }
}

/* PyTorch's fp32 order of operations, to the bit in the float build: 321 * e^(-ln(10000) * 1 / 3), as floats. */
static void timestep_order(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, dn_timestep(s.p, feed(&s, "t", dn_shape(1), 0, 1), 8, false, 1));
    SET(&s, "t", 987);
    assert_int_equal(subject_run(&s, &dn_backend_ref, 0, 1, NULL, RUN_PLANNED), 0);
    for (int i = 0; i < 4; i++) {
        volatile float exponent = -9.210340371976184f * (float)i;
        exponent = exponent / 3.0f;
        volatile float angle = 987.0f * expf(exponent);
        assert_true(s.output[0].data[i] == sinf(angle) && s.output[0].data[4 + i] == cosf(angle));
    }
    subject_fini(&s);
}

static void fourier_formula(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val w = weight(&s, "w", dn_shape(3), 0, 1);
    finish(&s, dn_fourier(s.p, feed(&s, "t", dn_shape(1), 0, 1), w));
    SET(&s, "t", exp(0.5));
    SET(&s, "w", 1, 0.5, -0.25);
    EXPECT(&s, 1e-6, 0, 1, -sin(pi / 4), -1, 0, cos(pi / 4));
    subject_fini(&s);
}

static dn_val embed(subject *s)
{
    dn_val table = weight(s, "table", dn_shape(3, 2), 0, 1), ids = feed_int(s, "ids", dn_shape(2), 0, 0);
    return dn_embed(s->p, table, ids, feed_fixed(s, "w", dn_shape(1), 0, 1));
}

static void embed_by_hand(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, embed(&s));
    SET(&s, "table", 1, 2, NAN, NAN, 10, 20);
    SET(&s, "ids", 0, 2);
    SET(&s, "w", 0.25);
    EXPECT(&s, 1e-6, 3.25, 6.5);
    SET(&s, "ids", 2, 1);
    SET(&s, "w", 0); /* the second is not read */
    EXPECT(&s, 0, 10, 20);
    subject_fini(&s);
}

/* An id that the table does not have stops the run; nothing is read outside. */
static void ids_out_of_range(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, embed(&s));
    SET(&s, "w", 0.5);
    const double bad[][2] = { { 3, 0 }, { -1, 0 }, { 0, 3 }, { 0, INT32_MIN }, { INT32_MAX, 0 } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int b = 0; b < n_backends; b++)
            if (backends[b]->available()) {
                subject_set(&s, "ids", bad[i], 2);
                assert_int_equal(subject_run(&s, backends[b], 0, 1, NULL, RUN_PLANNED), -DN_E_RANGE);
            }
    subject_fini(&s);
}

static void vq_ties(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val index, codes = weight(&s, "codes", dn_shape(4, 2), 0, 1), dcodes;
    dn_val y = dn_vq(s.p, feed(&s, "x", dn_shape(3, 2), 0, 1), codes, &index);
    dn_grad(s.p, y, none, &codes, 1, &dcodes);
    keep(&s, y);
    keep(&s, dcodes);
    finish(&s, index);
    SET(&s, "codes", 1, 1, 0, 0, 0, 0, 9, 9);
    SET(&s, "x", 0.5, 0.5, 0, -1, 7, 8); /* as far from 0 as from 1; nearest to 1 and 2, which are equal; 3 */
    EXPECT(&s, 0, 1, 1, 0, 0, 9, 9);
    expect(&s, 1, 0, (double[]){ 1, 1, 1, 1, 0, 0, 1, 1 }, 8);
    expect(&s, 2, 0, (double[]){ 0, 1, 3 }, 3);
    subject_fini(&s);
}

/* ---- losses ---- */

static void losses_by_hand(void **state)
{
    (void)state;
    const double want[] = { [DN_MSE] = 2.5, [DN_L1] = 1.5, [DN_HUBER] = (0.5 + 1.5) / 2 };
    for (int kind = DN_MSE; kind <= DN_HUBER; kind++) {
        subject s;
        subject_init(&s, 1);
        dn_val a = feed(&s, "a", dn_shape(2), 0, 1);
        finish(&s, dn_loss(s.p, (enum dn_loss)kind, a, feed(&s, "b", dn_shape(2), 0, 1), 1));
        SET(&s, "a", 1, 2);
        SET(&s, "b", 0, 4);
        expect(&s, 0, 1e-6, &want[kind], 1);
        subject_fini(&s);
    }
}

static void cross_entropy_by_hand(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed(&s, "x", dn_shape(3), 0, 1), dx;
    dn_val y = dn_cross_entropy(s.p, x, feed_int(&s, "label", dn_shape(1), 1, 1));
    dn_grad(s.p, y, none, &x, 1, &dx);
    keep(&s, y);
    finish(&s, dx);
    SET(&s, "x", log(1), log(2), log(5));
    EXPECT(&s, 1e-6, log(4));
    expect(&s, 1, 1e-6, (double[]){ 0.125, 0.25 - 1, 0.625 }, 3);
    SET(&s, "label", 3);
    assert_int_equal(subject_run(&s, &dn_backend_ref, 0, 1, NULL, RUN_PLANNED), -DN_E_RANGE);
    subject_fini(&s);
}

/* ---- random numbers ---- */

enum { MANY = 20000 };

static const double rng_row[4] = { 0x12345678, -5, 17, 3 }; /* seed lo, seed hi, step, sample */
static const uint64_t rng_seed = 0xfffffffb12345678;

static void philox(uint32_t bits[4], int64_t element, uint32_t purpose, uint32_t op)
{
    dn_philox(bits, (uint32_t[4]){ (uint32_t)(element / 4), 17, purpose << 24 | op, 3 }, rng_seed);
}

/* The sum is a float, to the nearest even: above one half the 0.5 is rounded away. */
static double uniform(uint32_t bits)
{
    double x = bits >> 8;
    return (x < 8388608 ? x + 0.5 : x + (bits >> 8 & 1)) / 16777216;
}

static void dropout_rule(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val rng = feed_int(&s, "rng", dn_shape(4), 0, 0);
    finish(&s, dn_dropout(s.p, feed(&s, "x", dn_shape(MANY), 1, 2), rng, 0.3, 21));
    subject_set(&s, "rng", rng_row, 4);
    const double *x = subject_tensor(&s, "x")->data;
    double *want = calloc(MANY, sizeof *want);
    assert_non_null(want);
    int kept = 0;
    for (int i = 0; i < MANY; i++) {
        uint32_t bits[4];
        philox(bits, i, DN_RNG_DROPOUT, 21);
        bool keeps = uniform(bits[i % 4]) >= 0.3f;
        want[i] = keeps ? x[i] / 0.7 : 0;
        kept += keeps;
    }
    expect(&s, 0, 1e-6, want, MANY);
    assert_true(fabs(kept / (double)MANY - 0.7) < 4 * sqrt(0.3 * 0.7 / MANY));
    free(want);
    subject_fini(&s);
}

/* Box-Muller in double by libm; then the first four moments. */
static void normal_rule(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    finish(&s, dn_normal(s.p, feed_int(&s, "rng", dn_shape(4), 0, 0), dn_shape(MANY), DN_RNG_STEP, 6));
    subject_set(&s, "rng", rng_row, 4);
    double *want = calloc(MANY, sizeof *want), moment[5] = { 0 };
    assert_non_null(want);
    for (int i = 0; i < MANY; i += 2) {
        uint32_t bits[4];
        philox(bits, i, DN_RNG_STEP, 6);
        double u = uniform(bits[i % 4]), v = uniform(bits[i % 4 + 1]);
        want[i] = sqrt(-2 * log(u)) * cos(2 * pi * v);
        want[i + 1] = sqrt(-2 * log(u)) * sin(2 * pi * v);
    }
    expect(&s, 0, 2e-6, want, MANY);
    for (int i = 0; i < MANY; i++)
        for (int k = 1; k < 5; k++)
            moment[k] += pow(s.output[0].data[i], k) / MANY;
    assert_true(fabs(moment[1]) < 4 / sqrt(MANY) && fabs(moment[2] - 1) < 4 * sqrt(2. / MANY));
    assert_true(fabs(moment[3]) < 4 * sqrt(15. / MANY) && fabs(moment[4] - 3) < 4 * sqrt(96. / MANY));
    free(want);
    subject_fini(&s);
}

/* Known answers of Random123 for philox4x32-10. */
static void philox_known(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4];
        uint64_t key;
        uint32_t bits[4];
    } known[] = {
        { { 0 }, 0, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, ~0ull, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
          0x299f31d0a4093822,
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (int i = 0; i < 3; i++) {
        uint32_t bits[4];
        dn_philox(bits, known[i].counter, known[i].key);
        assert_memory_equal(bits, known[i].bits, sizeof bits);
    }
}

/* 2^20 normals have the same bits on every backend, and as dn_rng_normal. */
static void normal_bits(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    subject s;
    subject_init(&s, 1);
    finish(&s, dn_normal(s.p, feed_int(&s, "rng", dn_shape(4), 0, 0), dn_shape(N), DN_RNG_NOISE, 1));
    subject_set(&s, "rng", rng_row, 4);
    float *z = calloc(N, sizeof *z);
    double *want = calloc(N, sizeof *want);
    assert_true(z && want);
    dn_rng_normal(z, 0, N,
                  &(dn_rng_key){ .seed = rng_seed, .step = 17, .purpose = DN_RNG_NOISE << 24 | 1, .sample = 3 });
    for (int i = 0; i < N; i++)
        want[i] = z[i];
    expect(&s, 0, 0, want, N);
    free(want);
    free(z);
    subject_fini(&s);
}

/* ---- casts ---- */

static void cast_to(enum dn_dtype t, const double *x, const double *bits, int64_t n)
{
    subject s;
    subject_init(&s, 1);
    finish(&s, dn_cast(s.p, feed(&s, "x", dn_shape(n), 0, 1), t));
    subject_set(&s, "x", x, n);
    expect(&s, 0, 0, bits, n);
    subject_fini(&s);
}

static void cast_rounding(void **state)
{
    (void)state;
    /* ties to even, carry into the exponent, the largest, overflow, subnormals, below the least */
    const double half_x[] = {
        1,       1 + 0x1p-11, 1 + 0x3p-11, 1 + 0x1.1p-11,     2 - 0x1p-12,       65504,   65519, 65520, -1e10, -0.,
        0x1p-24, 0x1p-25,     0x1.8p-25,   0x1p-14 - 0x1p-24, 0x1p-14 - 0x1p-26, INFINITY
    };
    const double half[] = { 0x3c00, 0x3c00, 0x3c02, 0x3c01, 0x4000, 0x7bff, 0x7bff, 0x7c00,
                            0xfc00, 0x8000, 0x0001, 0x0000, 0x0001, 0x03ff, 0x0400, 0x7c00 };
    cast_to(DN_F16, half_x, half, sizeof half / sizeof *half);
    const double bfloat_x[] = {
        1,   1 + 0x1p-8, 1 + 0x3p-8, 1 + 0x1.1p-8, 2 - 0x1p-9,          0x1.fep127,          0x1.fffffep127,
        -0., 0x1p-133,   0x1p-134,   0x1.8p-134,   0x1p-126 - 0x1p-133, 0x1p-126 - 0x1p-135, -INFINITY
    };
    const double bfloat[] = { 0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x4000, 0x7f7f, 0x7f80,
                              0x8000, 0x0001, 0x0000, 0x0001, 0x007f, 0x0080, 0xff80 };
    cast_to(DN_BF16, bfloat_x, bfloat, sizeof bfloat / sizeof *bfloat);
}

/* Every finite 16-bit float is a float, and comes back from it as itself. */
static void cast_all(void **state)
{
    (void)state;
    static const struct {
        enum dn_dtype t;
        int mantissa, bias;
    } format[] = { { DN_F16, 10, 15 }, { DN_BF16, 7, 127 } };
    double *x = calloc(65536, sizeof *x), *bits = calloc(65536, sizeof *bits);
    assert_true(x && bits);
    for (int f = 0; f < 2; f++) {
        int n = 0, one = 1 << format[f].mantissa;
        for (int h = 0; h < 65536; h++) {
            int exponent = (h & 0x7fff) >> format[f].mantissa, fraction = h & (one - 1);
            if (exponent == 0x7fff >> format[f].mantissa)
                continue;
            double m = (exponent ? 1 : 0) + (double)fraction / one;
            x[n] = (h & 0x8000 ? -1 : 1) * m * exp2((exponent ? exponent : 1) - format[f].bias);
            bits[n++] = h;
        }
        cast_to(format[f].t, x, bits, n);
    }
    free(x);
    free(bits);
}

static void cast_back(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed(&s, "x", dn_shape(3), 0, 1), dy = feed(&s, "dy", dn_shape(3), 0, 1), dx;
    dn_val y = dn_cast(s.p, dn_cast(s.p, x, DN_BF16), DN_F32);
    dn_grad(s.p, y, dy, &x, 1, &dx);
    keep(&s, y);
    finish(&s, dx);
    SET(&s, "x", 1.001, -3.25, 1e-3);
    SET(&s, "dy", 0.5, -7, 96);
    EXPECT(&s, 0, 1, -3.25, 0x1.06p-10);
    expect(&s, 1, 0, (double[]){ 0.5, -7, 96 }, 3); /* straight through */
    subject_fini(&s);
}

static void detach_stops(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    dn_val x = feed(&s, "x", dn_shape(2), 0, 1), dx;
    dn_val y = dn_binary(s.p, DN_MUL, x, dn_detach(s.p, dn_unary(s.p, DN_SQUARE, x)));
    dn_grad(s.p, y, none, &x, 1, &dx);
    keep(&s, y);
    finish(&s, dx);
    SET(&s, "x", 3, -2);
    EXPECT(&s, 1e-6, 27, -8);
    expect(&s, 1, 1e-6, (double[]){ 9, 4 }, 2);
    subject_fini(&s);
}

/* ---- pruning ---- */

/* Of three gradients any subset may be asked for; what is left has the same bits. */
static void pruned_outputs(void **state)
{
    (void)state;
    double full[3][12];
    for (int mask = 7; mask > 0; mask--) {
        subject s;
        subject_init(&s, 1);
        dn_val in[3] = { feed(&s, "q", dn_shape(3, 4), -1, 1), feed(&s, "k", dn_shape(3, 4), -1, 1),
                         feed(&s, "v", dn_shape(3, 4), -1, 1) };
        dn_val grad[3], y = dn_attention(s.p, in[0], in[1], in[2], 2, 0.5);
        dn_grad(s.p, y, none, in, 3, grad);
        for (int i = 0; i < 3; i++)
            if (mask >> i & 1)
                keep(&s, grad[i]);
        dn_program_prune(s.p);
        assert_int_equal(subject_run(&s, &dn_backend_ref, 0, 1, NULL, RUN_PLANNED), 0);
        for (int i = 0, k = 0; i < 3; i++)
            if (mask >> i & 1) {
                if (mask == 7)
                    memcpy(full[i], s.output[k].data, sizeof full[i]);
                assert_memory_equal(full[i], s.output[k++].data, sizeof full[i]);
            }
        subject_fini(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv_same),
        cmocka_unit_test(conv_asymmetric),
        cmocka_unit_test(conv_channels),
        cmocka_unit_test(matmul_both_ways),
        cmocka_unit_test(attention_uniform),
        cmocka_unit_test(attention_heads),
        cmocka_unit_test(softmax_by_hand),
        cmocka_unit_test(norms_by_hand),
        cmocka_unit_test(layer_norm_by_hand),
        cmocka_unit_test(unary_values),
        cmocka_unit_test(nan_passes),
        cmocka_unit_test(affine_clamp),
        cmocka_unit_test(broadcast_by_hand),
        cmocka_unit_test(upsample_and_pool),
        cmocka_unit_test(concat_slice_permute),
        cmocka_unit_test(fir_closed_form),
        cmocka_unit_test(timestep_formula),
        cmocka_unit_test(timestep_order),
        cmocka_unit_test(fourier_formula),
        cmocka_unit_test(embed_by_hand),
        cmocka_unit_test(ids_out_of_range),
        cmocka_unit_test(vq_ties),
        cmocka_unit_test(losses_by_hand),
        cmocka_unit_test(cross_entropy_by_hand),
        cmocka_unit_test(dropout_rule),
        cmocka_unit_test(philox_known),
        cmocka_unit_test(normal_bits),
        cmocka_unit_test(normal_rule),
        cmocka_unit_test(cast_rounding),
        cmocka_unit_test(cast_all),
        cmocka_unit_test(cast_back),
        cmocka_unit_test(detach_stops),
        cmocka_unit_test(pruned_outputs),
    };
    return cmocka_run_group_tests_name("op facts", tests, NULL, NULL);
}
