/* facts_values.c - ops on single numbers, losses, casts, what the gradient stops at and what pruning leaves: against results worked out by hand or by a formula that shares
 * nothing with the kernels. */
#include "facts.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const dn_val none = DN_NONE;

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

/* The place += the sum over rows; the rest of the state block, its padding too, stays. */
static void accumulate_adds(void **state)
{
    (void)state;
    subject s;
    subject_init(&s, 1);
    weight(&s, "before", dn_shape(5), -1, 1);
    dn_val w = weight(&s, "w", dn_shape(3), 0, 0), x = feed(&s, "x", dn_shape(3), 0, 0);
    weight(&s, "after", dn_shape(2), -1, 1);
    dn_val g = dn_sum_to(s.p, dn_binary(s.p, DN_SUB, x, w), dn_shape(3), DN_BATCH);
    keep_sum(&s, 1, g);
    keep_sum(&s, 1, g);
    s.output[s.n_outputs++] = (output){ s.p->block[1].param[0].val, 5, true, true, calloc(5, sizeof(double)) };
    s.output[s.n_outputs++] = (output){ s.p->block[1].param[2].val, 2, true, true, calloc(2, sizeof(double)) };
    SET(&s, "x", 1, 20, 300);
    SET(&s, "w", 0.5, 0, -1);
    finish(&s, x);
    for (int which = 0; which < 2; which++)
        expect(&s, which, 1e-6, (double[]){ SUM_START + 2 * 0.5, SUM_START + 2 * 20, SUM_START + 2 * 301 }, 3);
    expect(&s, 2, 0, (double[]){ SUM_START, SUM_START, SUM_START, SUM_START, SUM_START }, 5);
    expect(&s, 3, 0, (double[]){ SUM_START, SUM_START }, 2);
    subject_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_values),
        cmocka_unit_test(nan_passes),
        cmocka_unit_test(affine_clamp),
        cmocka_unit_test(broadcast_by_hand),
        cmocka_unit_test(losses_by_hand),
        cmocka_unit_test(cross_entropy_by_hand),
        cmocka_unit_test(cast_rounding),
        cmocka_unit_test(cast_all),
        cmocka_unit_test(cast_back),
        cmocka_unit_test(detach_stops),
        cmocka_unit_test(pruned_outputs),
        cmocka_unit_test(accumulate_adds),
    };
    return cmocka_run_group_tests_name("op facts values", tests, NULL, NULL);
}
