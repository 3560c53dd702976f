/* facts_layers.c - convolution, matmul, attention, softmax, norms: against results worked out by hand or by a formula that shares
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
    };
    return cmocka_run_group_tests_name("op facts layers", tests, NULL, NULL);
}
