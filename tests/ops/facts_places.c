/* facts_places.c - movement and embeddings, on tensors that hold their own index: against results worked out by hand or by a formula that shares
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
static const double pi = 3.14159265358979323846;

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(upsample_and_pool),
        cmocka_unit_test(concat_slice_permute),
        cmocka_unit_test(fir_closed_form),
        cmocka_unit_test(timestep_formula),
        cmocka_unit_test(timestep_order),
        cmocka_unit_test(fourier_formula),
        cmocka_unit_test(embed_by_hand),
        cmocka_unit_test(ids_out_of_range),
        cmocka_unit_test(vq_ties),
    };
    return cmocka_run_group_tests_name("op facts places", tests, NULL, NULL);
}
