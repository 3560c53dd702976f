/* gradients_test.c - every kernel of a gradient by weights and of a strided gradient by the input, against plain loops in
 * double; one thread against two and AVX2 against AVX-512 to the bit; workspaces full of NaN. */
#include "conv_fixture.h"

#include "choose.h"
#include "gradients.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* clang-format off */
typedef struct layer { int n, C, K, H, W, kh, kw, stride, top, left, bottom, right; } layer;
static const layer layers[] = {
    { 1,  8, 16,  4,  4, 3, 3, 1, 1, 1, 1, 1 }, { 2, 12, 20,  5,  7, 3, 3, 1, 1, 1, 1, 1 },
    { 5, 40, 24,  8,  8, 3, 3, 1, 1, 1, 1, 1 }, { 3, 64, 40, 14, 14, 3, 3, 1, 1, 1, 1, 1 },
    { 2, 20, 64, 32, 32, 3, 3, 1, 1, 1, 1, 1 }, { 1, 16,  8, 28, 28, 3, 3, 1, 1, 1, 1, 1 },
    { 4, 33, 17,  9, 11, 3, 3, 1, 1, 1, 1, 1 }, { 3, 64, 64,  2,  2, 3, 3, 1, 1, 1, 1, 1 },
    { 2,136, 40,  6,  6, 3, 3, 1, 1, 1, 1, 1 }, { 5,  1, 32, 12, 12, 3, 3, 1, 1, 1, 1, 1 },
    { 2,  3, 40, 16, 16, 3, 3, 1, 1, 1, 1, 1 }, { 3, 32,  1, 12, 12, 3, 3, 1, 1, 1, 1, 1 },
    { 2, 40,  3, 32, 32, 3, 3, 1, 1, 1, 1, 1 }, { 1,  4,  4,  7,  5, 3, 3, 1, 1, 1, 1, 1 },
    { 3, 12, 20, 14, 14, 3, 3, 2, 1, 1, 1, 1 }, { 2, 40, 64,  8,  8, 3, 3, 2, 0, 0, 1, 1 },
    { 5, 20, 12,  7,  9, 3, 3, 2, 1, 1, 1, 1 }, { 2, 64, 20, 16, 16, 3, 3, 2, 0, 0, 1, 1 },
    { 2,  4, 40,  8,  8, 2, 2, 2, 0, 0, 0, 0 }, { 1,  3, 20, 12, 12, 4, 4, 4, 0, 0, 0, 0 },
    { 2, 12, 20,  9,  9, 1, 1, 2, 0, 0, 0, 0 }, { 3, 12,  8, 10, 11, 5, 3, 3, 2, 0, 1, 2 },
    { 3, 64, 40,  9,  9, 1, 1, 1, 0, 0, 0, 0 }, { 1,  1,  1,  4,  4, 1, 1, 1, 0, 0, 0, 0 },
    { 2, 20, 12,  6,  5, 5, 3, 1, 2, 0, 2, 2 }, { 5, 40, 70,  1,  1, 1, 1, 1, 0, 0, 0, 0 },
    { 2, 24, 32, 13, 13, 3, 3, 1, 1, 1, 1, 1 }, { 2,  2,  9,  5,  8, 3, 3, 1, 1, 1, 1, 1 },
    { 5, 17,  4,  8,  5, 3, 3, 1, 1, 1, 1, 1 }, { 3, 40, 72, 14, 14, 1, 1, 1, 0, 0, 0, 0 },
    { 2, 12, 70,  7,  7, 1, 1, 1, 0, 0, 0, 0 }, { 2, 33, 24, 12, 11, 1, 1, 1, 0, 0, 0, 0 },
    { 3, 20, 12, 28, 28, 3, 3, 1, 1, 1, 1, 1 }, { 9, 12, 20, 14, 15, 3, 3, 1, 1, 1, 1, 1 },
};
/* clang-format on */
enum { LAYERS = sizeof layers / sizeof *layers, GAP = 64 };

static const double tolerance = 3e-6; /* of the largest output; measured: F(4,3) 1.4e-6, F(2,3) 0.5e-6, others 0.9e-6 */

typedef struct problem {
    dn_conv_shape shape;
    int n;
    tensor x, dy;
    float *weights; /* [kh,kw,C,K] */
} problem;

static problem problem_new(const layer *l)
{
    problem p = { .n = l->n };
    int Ho = (l->H + l->top + l->bottom - l->kh) / l->stride + 1;
    int Wo = (l->W + l->left + l->right - l->kw) / l->stride + 1;
    p.shape = (dn_conv_shape){ l->C, l->K, l->H, l->W, Ho, Wo, l->kh, l->kw, l->stride, l->top, l->left };
    p.x = tensor_new(l->n, l->H * l->W, l->C, false, GAP);
    p.dy = tensor_new(l->n, Ho * Wo, l->K, false, GAP);
    tensor_fill(&p.x, 1);
    tensor_fill(&p.dy, 2);
    uint64_t seed = 3;
    p.weights = malloc((size_t)(l->kh * l->kw * l->C * l->K) * sizeof(float));
    for (int i = 0; i < l->kh * l->kw * l->C * l->K; i++)
        p.weights[i] = fixture_random(&seed);
    return p;
}

static void problem_free(problem *p)
{
    tensor_free(&p->x);
    tensor_free(&p->dy);
    free(p->weights);
}

static int weights_count(const dn_conv_shape *s) { return s->kh * s->kw * s->C * s->K; }

static void *spoiled(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes + 64), 0);
    memset(p, 0xff, bytes + 64); /* NaN */
    return p;
}

/* Call f for every pair of an input and an output that a tap joins. */
#define EACH_TAP(s, row, n, oy, ox, ky, kx, y, v)                                                                    \
    for (int row = 0; row < (n); row++)                                                                              \
        for (int oy = 0; oy < (s)->Ho; oy++)                                                                         \
            for (int ox = 0; ox < (s)->Wo; ox++)                                                                     \
                for (int ky = 0, y; ky < (s)->kh && (y = oy * (s)->stride + ky - (s)->pad_top, true); ky++)          \
                    for (int kx = 0, v; kx < (s)->kw && (v = ox * (s)->stride + kx - (s)->pad_left, true); kx++)     \
                        if (y >= 0 && y < (s)->H && v >= 0 && v < (s)->W)

static double *reference_dw(const problem *p)
{
    const dn_conv_shape *s = &p->shape;
    double *dw = calloc((size_t)weights_count(s), sizeof *dw);
    EACH_TAP(s, row, p->n, oy, ox, ky, kx, y, v)
    for (int c = 0; c < s->C; c++)
        for (int k = 0; k < s->K; k++)
            dw[((ky * s->kw + kx) * s->C + c) * s->K + k] +=
                (double)*tensor_at(&p->x, row, y * s->W + v, c) * *tensor_at(&p->dy, row, oy * s->Wo + ox, k);
    return dw;
}

/* [n][H*W][C] */
static double *reference_dx(const problem *p)
{
    const dn_conv_shape *s = &p->shape;
    double *dx = calloc((size_t)p->n * s->H * s->W * s->C, sizeof *dx);
    EACH_TAP(s, row, p->n, oy, ox, ky, kx, y, v)
    for (int c = 0; c < s->C; c++)
        for (int k = 0; k < s->K; k++)
            dx[(((size_t)row * s->H + y) * s->W + v) * s->C + c] +=
                (double)p->weights[((ky * s->kw + kx) * s->C + c) * s->K + k] *
                *tensor_at(&p->dy, row, oy * s->Wo + ox, k);
    return dx;
}

static double largest(const double *x, size_t n)
{
    double m = 0;
    for (size_t i = 0; i < n; i++)
        m = fmax(m, fabs(x[i]));
    return m > 0 ? m : 1;
}

/* ---- by the weights ---- */

static float *run_dw(const problem *p, const dn_conv_dw_kernel *kernel, dn_pool *pool, bool dense, int parts)
{
    const bool dense_x = dense && kernel->any_x, dense_dy = dense && kernel->any_dy;
    tensor x = tensor_copy(&p->x, dense_x, dense_x ? 3 : GAP), dy = tensor_copy(&p->dy, dense_dy, dense_dy ? 3 : GAP);
    void *workspace = spoiled(kernel->workspace_bytes(&p->shape, p->n));
    float *dw = malloc((size_t)weights_count(&p->shape) * sizeof *dw);
    memset(dw, 0xff, (size_t)weights_count(&p->shape) * sizeof *dw);
    for (int part = 0; part < parts; part++)
        kernel->run(&(dn_conv_dw_call){ p->shape, p->n, x.rows, dy.rows, dw, workspace, pool, part, parts });
    free(workspace);
    tensor_free(&x);
    tensor_free(&dy);
    return dw;
}

static void same_bits(const float *a, float *b, int n, const char *what)
{
    if (memcmp(a, b, (size_t)n * sizeof *a))
        fail_msg("%s: other bits", what);
    free(b);
}

static bool is_winograd(const dn_conv_shape *s)
{
    return s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad_top == 1 && s->pad_left == 1 && s->Ho == s->H &&
           s->Wo == s->W;
}

/* `same`: a kernel that gives the same bits, or NULL. */
static void check_dw_against(const problem *p, const dn_conv_dw_kernel *kernel, const dn_conv_dw_kernel *same,
                             dn_pool *pool, const double *reference)
{
    const int n = weights_count(&p->shape);
    const double scale = largest(reference, (size_t)n);
    float *dw = run_dw(p, kernel, NULL, false, 1);
    for (int i = 0; i < n; i++)
        if (!(fabs(dw[i] - reference[i]) <= tolerance * scale))
            fail_msg("%s, %d->%d at %dx%d, element %d: %g, not %g", kernel->name, p->shape.C, p->shape.K, p->shape.H,
                     p->shape.W, i, dw[i], reference[i]);
    same_bits(dw, run_dw(p, kernel, pool, false, 1), n, "two threads");
    same_bits(dw, run_dw(p, kernel, pool, false, 5), n, "five parts");
    dn_pool *three = dn_pool_new(3, NULL);
    same_bits(dw, run_dw(p, kernel, three, false, 2), n, "three threads");
    dn_pool_free(three);
    if (same)
        same_bits(dw, run_dw(p, same, pool, false, 1), n, same->name);
    same_bits(dw, run_dw(p, kernel, pool, true, 1), n, "dense");
    free(dw);
}

static void check_dw(const problem *p, const dn_conv_dw_kernel *kernel, const dn_conv_dw_kernel *same, dn_pool *pool)
{
    double *reference = reference_dw(p);
    check_dw_against(p, kernel, same, pool, reference);
    free(reference);
}

static void test_by_weights(void **state)
{
    dn_pool *pool = *state;
    for (int i = 0; i < LAYERS; i++) {
        problem p = problem_new(&layers[i]);
        check_dw(&p, &dn_cpu_implicit_dw, NULL, pool);
        if (is_winograd(&p.shape)) {
            bool both = dn_cpu_has_avx512();
            if (p.shape.C <= 4)
                check_dw(&p, &dn_cpu_few_in_dw, NULL, pool);
            if (p.shape.K <= 4)
                check_dw(&p, &dn_cpu_few_out_dw, NULL, pool);
            check_dw(&p, &dn_cpu_winograd4_dw_avx2, both ? &dn_cpu_winograd4_dw_avx512 : NULL, pool);
            check_dw(&p, &dn_cpu_winograd2_dw_avx2, both ? &dn_cpu_winograd2_dw_avx512 : NULL, pool);
        }
        problem_free(&p);
    }
}

/* By the weights of a map that is doubled first: the large one is what the reference reads. */
static void test_doubled(void **state)
{
    for (int i = 0; i < LAYERS; i++) {
        const layer *l = &layers[i];
        if (l->kh != 3 || l->kw != 3 || l->stride != 1 || l->C <= 4 || l->K <= 7 || l->H > 20)
            continue;
        layer twice = *l;
        twice.H *= 2;
        twice.W *= 2;
        problem small = problem_new(l), large = problem_new(&twice);
        for (int r = 0; r < l->n; r++)
            for (int at = 0; at < twice.H * twice.W; at++)
                for (int c = 0; c < l->C; c++)
                    *tensor_at(&large.x, r, at, c) =
                        *tensor_at(&small.x, r, at / twice.W / 2 * l->W + at % twice.W / 2, c);
        double *reference = reference_dw(&large);
        tensor_free(&small.dy);
        small.dy = tensor_copy(&large.dy, false, GAP);
        small.shape.Ho = large.shape.Ho;
        small.shape.Wo = large.shape.Wo;
        assert_non_null(dn_cpu_doubled_dw_choose(&small.shape));
        check_dw_against(&small, &dn_cpu_doubled_dw_avx2, dn_cpu_has_avx512() ? &dn_cpu_doubled_dw_avx512 : NULL,
                         *state, reference);
        free(reference);
        problem_free(&small);
        problem_free(&large);
    }
}

/* Adding rows of zeros changes nothing: sums of chunks are added in order. */
static void test_zero_rows(void **state)
{
    const layer few = { 2, 16, 24, 8, 8, 3, 3, 1, 1, 1, 1, 1 }, more = { 40, 16, 24, 8, 8, 3, 3, 1, 1, 1, 1, 1 };
    problem a = problem_new(&few), b = problem_new(&more);
    for (int r = few.n; r < more.n; r++)
        for (int at = 0; at < 64; at++)
            for (int k = 0; k < 24; k++)
                *tensor_at(&b.dy, r, at, k) = 0;
    const dn_conv_dw_kernel *kernels[] = { &dn_cpu_implicit_dw, &dn_cpu_winograd4_dw_avx2, &dn_cpu_winograd2_dw_avx2 };
    for (int i = 0; i < 3; i++) {
        float *one = run_dw(&a, kernels[i], NULL, false, 1), *other = run_dw(&b, kernels[i], *state, false, 3);
        for (int j = 0; j < weights_count(&a.shape); j++)
            assert_true(one[j] == other[j]);
        free(one);
        free(other);
    }
    problem_free(&a);
    problem_free(&b);
}

/* ---- by the input, with a stride ---- */

static tensor run_dx(const problem *p, int row, int n, dn_pool *pool)
{
    const dn_conv_shape *s = &p->shape;
    const dn_shape w = dn_shape(s->kh, s->kw, s->C, s->K), turned = dn_shape(s->kh, s->kw, s->K, s->C);
    float *rotated = spoiled(dn_cpu_rotated_bytes(&w)), *form = spoiled(dn_cpu_implicit.form_bytes(&turned));
    void *workspace = spoiled(dn_cpu_implicit_dx_workspace(s, n));
    tensor dx = tensor_new(n, s->H * s->W, s->C, false, GAP);
    dn_rows dy = p->dy.rows;
    dy.base = (char *)dy.base + row * dy.row_bytes;
    dn_cpu_rotate(rotated, p->weights, &w);
    for (int part = 4; part >= 0; part--)
        dn_cpu_implicit.pack_part(form, rotated, &turned, part, 5);
    dn_cpu_implicit_dx(&(dn_conv_call){
        .shape = *s, .n = n, .x = dx.rows, .y = dy, .weights = form, .workspace = workspace, .pool = pool });
    free(workspace);
    free(form);
    free(rotated);
    return dx;
}

static void check_dx(const problem *p, dn_pool *pool)
{
    const dn_conv_shape *s = &p->shape;
    const int per_row = s->H * s->W * s->C;
    double *reference = reference_dx(p), scale = largest(reference, (size_t)p->n * per_row);
    tensor dx = run_dx(p, 0, p->n, NULL), two = run_dx(p, 0, p->n, pool);
    for (int i = 0; i < p->n * per_row; i++) {
        float got = *tensor_at(&dx, i / per_row, i % per_row / s->C, i % s->C);
        if (!(fabs(got - reference[i]) <= tolerance * scale))
            fail_msg("dx, %d->%d at %dx%d, element %d: %g, not %g", s->C, s->K, s->H, s->W, i, got, reference[i]);
    }
    assert_true(tensor_padding_is_zero(&dx));
    assert_true(tensor_gaps_are_spoiled(&dx));
    for (int r = 0; r < p->n; r++) {
        tensor alone = run_dx(p, r, 1, pool);
        assert_true(tensor_row_equal(&dx, r, &alone, 0));
        assert_true(tensor_row_equal(&dx, r, &two, r));
        tensor_free(&alone);
    }
    tensor_free(&dx);
    tensor_free(&two);
    free(reference);
}

static void test_strided(void **state)
{
    for (int i = 0; i < LAYERS; i++) {
        problem p = problem_new(&layers[i]);
        check_dx(&p, *state);
        problem_free(&p);
    }
}

/* ---- forms ---- */

static void test_rotated(void **state)
{
    (void)state;
    enum { T = 6, C = 13, K = 9 };
    const dn_shape w = dn_shape(2, 3, C, K);
    float in[T * C * K], out[T * C * K];
    for (int i = 0; i < T * C * K; i++)
        in[i] = (float)i;
    for (int part = 2; part >= 0; part--)
        dn_cpu_rotate_part(out, in, &w, part, 3);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++)
            for (int k = 0; k < K; k++)
                assert_true(out[((T - 1 - t) * K + k) * C + c] == in[(t * C + c) * K + k]);
}

/* Straight, and in two steps. */
static void test_rotated_forms(void **state)
{
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        problem p = problem_new(&layers[i]);
        const dn_conv_shape *s = &p.shape;
        const dn_shape w = dn_shape(s->kh, s->kw, s->C, s->K), turned = dn_shape(s->kh, s->kw, s->K, s->C);
        const dn_conv_kernel *kernels[] = { &dn_cpu_pointwise, &dn_cpu_winograd4_plain_avx2 };
        for (int k = 0; k < 2; k++) {
            if (s->kh != (k ? 3 : 1) || s->kw != s->kh)
                continue;
            const size_t bytes = kernels[k]->form_bytes(&turned);
            char *straight = spoiled(bytes), *other = spoiled(bytes);
            float *rotated = spoiled(dn_cpu_rotated_bytes(&w));
            dn_cpu_rotate(rotated, p.weights, &w);
            kernels[k]->pack(other, rotated, &turned);
            for (int part = 2; part >= 0; part--)
                kernels[k]->pack_rotated_part(straight, p.weights, &w, part, 3);
            assert_memory_equal(straight, other, bytes);
            memset(straight, 0xff, bytes);
            kernels[k]->pack_rotated(straight, p.weights, &w);
            assert_memory_equal(straight, other, bytes);
            free(straight);
            free(other);
            free(rotated);
        }
        problem_free(&p);
    }
}

/* Parts in any order make the whole form. */
static void test_parts(void **state)
{
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        problem p = problem_new(&layers[i]);
        const dn_shape w = dn_shape(p.shape.kh, p.shape.kw, p.shape.C, p.shape.K);
        const dn_conv_kernel *kernels[] = { dn_cpu_conv_choose(&p.shape, DN_FORM_KEPT),
                                            dn_cpu_conv_choose(&p.shape, DN_FORM_EACH_RUN), &dn_cpu_implicit };
        for (int k = 0; k < 3; k++) {
            assert_non_null(kernels[k]->form_key);
            if (!kernels[k]->pack_part)
                continue;
            const size_t bytes = kernels[k]->form_bytes(&w);
            char *whole = spoiled(bytes), *parts = spoiled(bytes);
            kernels[k]->pack(whole, p.weights, &w);
            for (int part = 6; part >= 0; part--)
                kernels[k]->pack_part(parts, p.weights, &w, part, 7);
            assert_memory_equal(whole, parts, bytes);
            free(whole);
            free(parts);
        }
        problem_free(&p);
    }
}

/* ---- outer products ---- */

enum { N = 37 };

/* Row i, column j of A^T B, b in blocks of so many columns. */
static float outer_sum(const float *a, const float *b, int wide, int i, int j)
{
    float sum = 0;
    for (int t = 0; t < N; t++)
        sum = fmaf(a[t * 8 + i], b[(j / wide * N + t) * wide + j % wide], sum);
    return sum;
}

static void test_outer(void **state)
{
    (void)state;
    enum { PITCH = 40 };
    float a[N * 8], b[2 * N * 16], c[2][8 * PITCH];
    uint64_t seed = 5;
    for (int i = 0; i < N * 8; i++)
        a[i] = fixture_random(&seed);
    for (int i = 0; i < 2 * N * 16; i++)
        b[i] = fixture_random(&seed);
    for (int panels = 1; panels <= 2; panels++)
        for (int more = 0; more < 2; more++) {
            for (int i = 0; i < 8 * PITCH; i++)
                c[0][i] = c[1][i] = 0.25f;
            dn_cpu_outer_avx2(N, a, b, N * 16, panels, c[0], PITCH, more);
            for (int i = 0; i < 8 * PITCH; i++) {
                const int column = i % PITCH;
                const float sum = column < panels * 16 ? outer_sum(a, b, 16, i / PITCH, column) : 0;
                assert_true(c[0][i] == (column >= panels * 16 ? 0.25f : more ? 0.25f + sum : sum));
            }
            if (dn_cpu_has_avx512()) {
                dn_cpu_outer_avx512(N, a, b, N * 16, panels, c[1], PITCH, more);
                assert_memory_equal(c[0], c[1], sizeof c[0]);
            }
        }
    for (int planes = 1; planes <= 4; planes++)
        for (int more = 0; more < 2; more++) {
            for (int i = 0; i < 8 * PITCH; i++)
                c[0][i] = c[1][i] = 0.25f;
            dn_cpu_outer_planes_avx2(N, a, b, N * 8, planes, c[0], PITCH, more);
            for (int i = 0; i < 8 * PITCH; i++) {
                const int column = i % PITCH;
                const float sum = column < planes * 8 ? outer_sum(a, b, 8, i / PITCH, column) : 0;
                if (column < planes * 8 || column >= (planes + 1) / 2 * 16)
                    assert_true(c[0][i] == (column >= planes * 8 ? 0.25f : more ? 0.25f + sum : sum));
            }
            if (dn_cpu_has_avx512()) {
                dn_cpu_outer_planes_avx512(N, a, b, N * 8, planes, c[1], PITCH, more);
                assert_memory_equal(c[0], c[1], sizeof c[0]);
            }
        }
}

static int start(void **state) { return (*state = dn_pool_new(2, NULL)) ? 0 : -1; }

static int stop(void **state)
{
    dn_pool_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_weights), cmocka_unit_test(test_zero_rows),     cmocka_unit_test(test_strided),
        cmocka_unit_test(test_rotated),    cmocka_unit_test(test_rotated_forms), cmocka_unit_test(test_parts),
        cmocka_unit_test(test_outer),      cmocka_unit_test(test_doubled),
    };
    if (!dn_cpu_has_avx2())
        return 77; /* meson: skipped */
    return cmocka_run_group_tests(tests, start, stop);
}
