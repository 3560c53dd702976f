/* conv_test.c - every convolution kernel on every shape it accepts: against plain loops in double, a row of a batch
 * against the row alone and one thread against two (bits), padded lanes zero, nothing written beside the output. */
#include "conv_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct algorithm {
    const dn_conv_kernel *kernel;
    double tolerance; /* relative to the largest output */
    bool (*accepts)(const dn_conv_shape *s);
    int bits;
} algorithm;

static bool any(const dn_conv_shape *s) { return s->C > 0; }
static bool few_out(const dn_conv_shape *s) { return s->K <= 7; }
static bool same3x3(const dn_conv_shape *s)
{
    return s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad_top == 1 && s->Ho == s->H && s->Wo == s->W;
}
static bool same3x3_avx512(const dn_conv_shape *s) { return same3x3(s) && dn_cpu_has_avx512(); }
static bool pointwise(const dn_conv_shape *s) { return s->kh == 1 && s->kw == 1 && s->stride == 1; }

/* The first WINOGRADS are Winograd's, those with the same `bits` the same function in several forms. */
static const algorithm algorithms[] = {
    { &dn_cpu_winograd4_avx2, 3e-6, same3x3, 4 },
    { &dn_cpu_winograd4_plain_avx2, 3e-6, same3x3, 4 },
    { &dn_cpu_winograd4_live_avx2, 3e-6, same3x3, 4 },
    { &dn_cpu_winograd2_avx2, 1e-6, same3x3, 2 },
    { &dn_cpu_winograd2_live_avx2, 1e-6, same3x3, 2 },
    { &dn_cpu_winograd4_avx512, 3e-6, same3x3_avx512, 4 },
    { &dn_cpu_winograd4_plain_avx512, 3e-6, same3x3_avx512, 4 },
    { &dn_cpu_winograd4_live_avx512, 3e-6, same3x3_avx512, 4 },
    { &dn_cpu_winograd2_avx512, 1e-6, same3x3_avx512, 2 },
    { &dn_cpu_winograd2_live_avx512, 1e-6, same3x3_avx512, 2 },
    { &dn_cpu_implicit, 2e-6, any },
    { &dn_cpu_few_in, 2e-6, any },
    { &dn_cpu_few_out, 1e-6, few_out },
    { &dn_cpu_pointwise, 1e-6, pointwise },
};
enum { ALGORITHMS = sizeof algorithms / sizeof *algorithms, WINOGRADS = 10 };

/* clang-format off */
typedef struct layer { int n, C, K, H, W, k, stride, top, left, bottom, right; } layer;
static const layer layers[] = {
    { 3,  32,  48, 10,  9, 3, 1, 1, 1, 1, 1 }, /* 3x3, stride 1: Winograd's own */
    { 2,  64,  64, 14, 14, 3, 1, 1, 1, 1, 1 },
    { 5,  24,  40,  7,  7, 3, 1, 1, 1, 1, 1 },
    { 3,  12,  20,  5, 11, 3, 1, 1, 1, 1, 1 }, /* channels that fill no block */
    { 2,   9,  17,  4,  4, 3, 1, 1, 1, 1, 1 },
    { 2, 130,  33,  8,  8, 3, 1, 1, 1, 1, 1 }, /* more than one step of live weights */
    { 7,  16,   8,  2,  2, 3, 1, 1, 1, 1, 1 },
    { 3,   8,  16,  1,  1, 3, 1, 1, 1, 1, 1 },
    { 2,  20,  12,  1, 13, 3, 1, 1, 1, 1, 1 },
    { 2,  16,  32, 28, 28, 3, 1, 1, 1, 1, 1 }, /* more than one chunk */
    { 3,  32,  32, 13,  9, 3, 2, 1, 1, 1, 1 }, /* stride 2 */
    { 3,  24,  20,  8,  8, 3, 2, 0, 0, 1, 1 }, /* padded below and on the right only */
    { 2,  16,  16,  7,  6, 3, 2, 0, 0, 1, 1 },
    { 2,   1,  32, 11,  9, 3, 1, 1, 1, 1, 1 }, /* few channels in */
    { 3,   3,  20,  9, 12, 3, 1, 1, 1, 1, 1 },
    { 2,   4,   8,  6,  6, 3, 2, 1, 1, 1, 1 },
    { 2,   3,   3,  5,  5, 1, 1, 0, 0, 0, 0 },
    { 2,   4,   5, 200, 164, 3, 1, 1, 1, 1, 1 }, /* more than one group of padded images */
    { 2,  32,   1, 12, 13, 3, 1, 1, 1, 1, 1 }, /* few channels out */
    { 2,  20,   2,  7,  9, 3, 1, 1, 1, 1, 1 },
    { 2,  24,   3,  8, 11, 3, 1, 1, 1, 1, 1 },
    { 2,  12,   4,  5,  9, 3, 1, 1, 1, 1, 1 },
    { 2,   9,   5,  4,  7, 3, 2, 1, 1, 1, 1 },
    { 2,  40,   6,  3,  5, 5, 1, 2, 2, 2, 2 },
    { 2,  16,   7,  6,  6, 1, 1, 0, 0, 0, 0 },
    { 2,  40,  20,  9,  7, 1, 1, 0, 0, 0, 0 }, /* 1x1 */
    { 2, 400,  24,  5,  5, 1, 1, 0, 0, 0, 0 }, /* more than one step over k */
    { 2,  16,  24,  9,  9, 1, 2, 0, 0, 0, 0 }, /* 1x1 with a stride */
    { 2,  20,  24,  9,  8, 5, 3, 2, 1, 2, 1 }, /* odd ones */
    { 2,  72,  16,  6,  6, 3, 3, 1, 1, 0, 0 },
    { 2,   8,  16, 10, 10, 2, 2, 0, 0, 0, 0 },
};
/* clang-format on */
enum { LAYERS = sizeof layers / sizeof *layers, WINOGRAD_LAYERS = 10, GAP = 64 };

static float *random_block(size_t n, size_t padded, float scale, uint64_t seed)
{
    float *p = malloc(padded * sizeof *p);
    for (size_t i = 0; i < padded; i++)
        p[i] = i < n ? scale * fixture_random(&seed) : 0;
    return p;
}

/* `variant` turns parts of the epilogue on. */
static fixture fixture_new(const layer *l, int variant)
{
    fixture f = { .n = l->n, .scale = variant & 4 ? 0.7071f : 1, .silu = variant & 1 };
    f.shape = (dn_conv_shape){ .C = l->C,
                               .K = l->K,
                               .H = l->H,
                               .W = l->W,
                               .kh = l->k,
                               .kw = l->k,
                               .stride = l->stride,
                               .pad_top = l->top,
                               .pad_left = l->left };
    f.shape.Ho = (l->H + l->top + l->bottom - l->k) / l->stride + 1;
    f.shape.Wo = (l->W + l->left + l->right - l->k) / l->stride + 1;
    f.x = tensor_new(l->n, l->H * l->W, l->C, false, GAP);
    tensor_fill(&f.x, 11);
    f.weights = random_block((size_t)l->k * l->k * l->C * l->K, (size_t)l->k * l->k * l->C * l->K, 0.2f, 22);
    if (variant & 1)
        f.bias = random_block(l->K, (l->K + 15) / 16 * 16, 1, 33);
    if (variant & 2) {
        f.row_bias = random_block((size_t)l->n * l->K, (size_t)l->n * l->K, 1, 44);
        f.residual = tensor_new(l->n, f.shape.Ho * f.shape.Wo, l->K, false, GAP);
        tensor_fill(&f.residual, 55);
    }
    return f;
}

static void fixture_free(fixture *f)
{
    tensor_free(&f->x);
    tensor_free(&f->residual);
    free(f->weights);
    free(f->bias);
    free(f->row_bias);
}

static void *aligned(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes ? bytes : 1), 0);
    memset(p, 0xff, bytes);
    return p;
}

/* Rows row .. row+n-1 of the fixture through one kernel. */
static tensor run(const fixture *f, const dn_conv_kernel *kernel, int row, int n, dn_pool *pool)
{
    const dn_conv_shape *s = &f->shape;
    dn_shape w = dn_shape(s->kh, s->kw, s->C, s->K);
    tensor x = tensor_copy(&f->x, kernel->dense_in, kernel->dense_in ? 3 : GAP), r = { 0 };
    tensor y = tensor_new(n, s->Ho * s->Wo, s->K, kernel->dense_out, kernel->dense_out ? 3 : GAP);
    dn_conv_call c = { .shape = *s, .n = n, .x = x.rows, .y = y.rows, .pool = pool };
    c.x.base = (char *)c.x.base + row * x.rows.row_bytes;
    c.epilogue = (dn_epilogue){ .bias = f->bias, .row_bias_bytes = s->K * 4, .scale = f->scale, .silu = f->silu };
    c.epilogue.row_bias = f->row_bias ? f->row_bias + row * s->K : NULL;
    if (f->residual.rows.base) {
        r = tensor_copy(&f->residual, kernel->dense_out, 5 * !kernel->dense_out * 32);
        c.epilogue.residual = r.rows;
        c.epilogue.residual.base = (char *)r.rows.base + row * r.rows.row_bytes;
    }
    void *form = NULL;
    if (kernel->form_key) {
        form = aligned(kernel->form_bytes(&w));
        kernel->pack(form, f->weights, &w);
    }
    c.weights = form ? form : f->weights;
    c.workspace = aligned(kernel->workspace_bytes(s, f->n)); /* for n rows or more */
    kernel->run(&c);
    free(c.workspace);
    free(form);
    tensor_free(&x);
    tensor_free(&r);
    return y;
}

static void check(const fixture *f, const algorithm *a, const double *reference, dn_pool *pool)
{
    tensor y = run(f, a->kernel, 0, f->n, NULL), two = run(f, a->kernel, 0, f->n, pool);
    double error = reference_error(&y, reference);
    if (!(error <= a->tolerance))
        fail_msg("%s on %d->%d, %dx%d kernel %d: error %g", a->kernel->name, f->shape.C, f->shape.K, f->shape.H,
                 f->shape.W, f->shape.kh, error);
    assert_true(tensor_padding_is_zero(&y));
    assert_true(tensor_gaps_are_spoiled(&y));
    for (int r = 0; r < f->n; r++) {
        tensor alone = run(f, a->kernel, r, 1, r & 1 ? pool : NULL);
        if (!tensor_row_equal(&y, r, &alone, 0))
            fail_msg("%s on %d->%d, %dx%d: row %d of a batch differs", a->kernel->name, f->shape.C, f->shape.K,
                     f->shape.H, f->shape.W, r);
        if (!tensor_row_equal(&y, r, &two, r))
            fail_msg("%s on %d->%d, %dx%d: two threads differ from one", a->kernel->name, f->shape.C, f->shape.K,
                     f->shape.H, f->shape.W);
        tensor_free(&alone);
    }
    tensor_free(&y);
    tensor_free(&two);
}

static void test_kernels(void **state)
{
    (void)state;
    dn_pool *pool = dn_pool_new(2, NULL);
    assert_non_null(pool);
    for (int i = 0; i < LAYERS; i++) {
        fixture f = fixture_new(&layers[i], i % 8);
        double *reference = reference_conv(&f);
        for (int a = 0; a < ALGORITHMS; a++)
            if (algorithms[a].accepts(&f.shape))
                check(&f, &algorithms[a], reference, pool);
        free(reference);
        fixture_free(&f);
    }
    dn_pool_free(pool);
}

/* 3x3 of a map that is doubled first. All three forms of the weights and both instruction sets have the same bits. */
static void test_doubled(void **state)
{
    (void)state;
#define X(name) { &dn_cpu_##name##_avx2, 1e-6, any }, { &dn_cpu_##name##_avx512, 1e-6, same3x3_avx512 },
    const algorithm doubled[] = { DN_DOUBLEDS(X) };
#undef X
    dn_pool *pool = dn_pool_new(2, NULL);
    for (int i = 0; i < WINOGRAD_LAYERS; i++) {
        fixture f = fixture_new(&layers[i], i % 8);
        f.doubled = true;
        f.shape.Ho = 2 * f.shape.H;
        f.shape.Wo = 2 * f.shape.W;
        if (f.residual.rows.base) {
            tensor_free(&f.residual);
            f.residual = tensor_new(f.n, f.shape.Ho * f.shape.Wo, f.shape.K, false, GAP);
            tensor_fill(&f.residual, 66);
        }
        double *reference = reference_conv(&f);
        tensor first = run(&f, doubled[0].kernel, 0, f.n, NULL);
        for (size_t a = 0; a < sizeof doubled / sizeof *doubled; a++) {
            if (doubled[a].accepts != any && !dn_cpu_has_avx512())
                continue;
            check(&f, &doubled[a], reference, pool);
            tensor other = run(&f, doubled[a].kernel, 0, f.n, NULL);
            for (int r = 0; r < f.n; r++)
                assert_true(tensor_row_equal(&first, r, &other, r));
            tensor_free(&other);
        }
        for (int use = DN_FORM_KEPT; use <= DN_FORM_EACH_RUN; use++) {
            const dn_conv_kernel *k = dn_cpu_doubled_choose(&f.shape, use);
            assert_non_null(k);
            assert_true(use != DN_FORM_NONE || !k->form_key);
        }
        tensor_free(&first);
        free(reference);
        fixture_free(&f);
    }
    dn_pool_free(pool);
}

/* The gradient of that: 3x3, then sums of 2x2. */
static void test_halved(void **state)
{
    (void)state;
#define X(name) { &dn_cpu_##name##_avx2, 1e-6, any }, { &dn_cpu_##name##_avx512, 1e-6, same3x3_avx512 },
    const algorithm halved[] = { DN_HALVEDS(X) };
#undef X
    dn_pool *pool = dn_pool_new(2, NULL);
    for (int i = 0; i < WINOGRAD_LAYERS; i++) {
        fixture f = fixture_new(&layers[i], i % 8);
        f.halved = true;
        f.shape.H *= 2;
        f.shape.W *= 2;
        tensor_free(&f.x);
        f.x = tensor_new(f.n, f.shape.H * f.shape.W, f.shape.C, false, GAP);
        tensor_fill(&f.x, 67);
        double *reference = reference_conv(&f);
        tensor first = run(&f, halved[0].kernel, 0, f.n, NULL);
        for (size_t a = 0; a < sizeof halved / sizeof *halved; a++) {
            if (halved[a].accepts != any && !dn_cpu_has_avx512())
                continue;
            check(&f, &halved[a], reference, pool);
            tensor other = run(&f, halved[a].kernel, 0, f.n, NULL);
            for (int r = 0; r < f.n; r++)
                assert_true(tensor_row_equal(&first, r, &other, r));
            tensor_free(&other);
        }
        assert_non_null(dn_cpu_halved_choose(&f.shape));
        tensor_free(&first);
        free(reference);
        fixture_free(&f);
    }
    dn_pool_free(pool);
}

/* Weights transformed ahead and on the way, and both instruction sets, give the same bits. */
static void test_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        fixture f = fixture_new(&layers[i], 7);
        for (int a = 0; a < WINOGRADS && same3x3(&f.shape); a++) {
            if (!algorithms[a].accepts(&f.shape))
                continue;
            const dn_conv_kernel *same = algorithms[a].bits == 4 ? &dn_cpu_winograd4_avx2 : &dn_cpu_winograd2_avx2;
            tensor one = run(&f, same, 0, f.n, NULL), other = run(&f, algorithms[a].kernel, 0, f.n, NULL);
            for (int r = 0; r < f.n; r++)
                assert_true(tensor_row_equal(&one, r, &other, r));
            tensor_free(&one);
            tensor_free(&other);
        }
        fixture_free(&f);
    }
}

/* The residual may be y's own memory. */
static void test_in_place(void **state)
{
    (void)state;
    const layer l = { 2, 16, 24, 9, 7, 3, 1, 1, 1, 1, 1 };
    fixture f = fixture_new(&l, 7);
    dn_shape w = dn_shape(3, 3, l.C, l.K);
    for (int a = 0; a <= WINOGRADS; a++) { /* and the one behind them, implicit */
        if (!algorithms[a].accepts(&f.shape))
            continue;
        const dn_conv_kernel *k = algorithms[a].kernel;
        tensor apart = run(&f, k, 0, f.n, NULL), y = tensor_copy(&f.residual, false, GAP);
        void *form = aligned(k->form_key ? k->form_bytes(&w) : 1),
             *workspace = aligned(k->workspace_bytes(&f.shape, l.n));
        if (k->form_key)
            k->pack(form, f.weights, &w);
        k->run(&(dn_conv_call){ .shape = f.shape,
                                .n = l.n,
                                .x = f.x.rows,
                                .y = y.rows,
                                .workspace = workspace,
                                .weights = k->form_key ? form : f.weights,
                                .epilogue = { f.bias, f.row_bias, l.K * 4, y.rows, f.scale, f.silu } });
        for (int r = 0; r < f.n; r++)
            assert_true(tensor_row_equal(&apart, r, &y, r));
        free(form);
        free(workspace);
        tensor_free(&apart);
        tensor_free(&y);
    }
    fixture_free(&f);
}

/* What is chosen accepts the layer, and the batch plays no part in it. */
static void test_choose(void **state)
{
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        fixture f = fixture_new(&layers[i], 0);
        for (int live = 0; live < 2; live++) {
            const dn_conv_kernel *k = dn_cpu_conv_choose(&f.shape, live);
            bool known = false;
            for (int a = 0; a < ALGORITHMS; a++)
                known = known || (algorithms[a].kernel == k && algorithms[a].accepts(&f.shape));
            assert_true(known);
        }
        fixture_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels),  cmocka_unit_test(test_same_bits), cmocka_unit_test(test_doubled),
        cmocka_unit_test(test_in_place), cmocka_unit_test(test_choose),    cmocka_unit_test(test_halved),
    };
    if (!dn_cpu_has_avx2())
        return 77; /* meson: skipped */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
