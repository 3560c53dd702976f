/* gemm_test.c - the packed product in every combination of layouts, against plain loops in double; row i of a batch
 * against the row alone and one thread against two (bits); and the normals, against the scalar arithmetic. */
#include "conv_fixture.h"

#include "choose.h"
#include "fmath.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* clang-format off */
typedef struct product { int n, M, C, N; } product;
static const product products[] = {
    { 1,   1,    8,  16 }, { 5,   1,   20,  33 }, { 9,  1, 500, 70 }, /* one position: the rows are the matrix' rows */
    { 2,  49,   64, 192 }, { 3, 100,   12,  20 }, { 2, 7,  40,  24 },
    { 1, 200,  385,  48 }, { 2,  16, 1000,  10 }, { 1, 97,  5, 300 }, { 4, 11,   1,   1 },
};
/* clang-format on */
enum { PRODUCTS = sizeof products / sizeof *products };

typedef struct problem {
    fixture f; /* as a 1x1 convolution over an M x 1 image */
    float *transposed;
    double *reference;
} problem;

static float *random_block(size_t n, size_t padded, uint64_t seed)
{
    float *p = malloc(padded * sizeof *p);
    for (size_t i = 0; i < padded; i++)
        p[i] = i < n ? fixture_random(&seed) : 0;
    return p;
}

static problem problem_new(const product *t, bool full)
{
    problem p = { .f = { .n = t->n, .scale = full ? 0.5f : 1, .silu = full } };
    fixture *f = &p.f;
    f->shape = (dn_conv_shape){ t->C, t->N, t->M, 1, t->M, 1, 1, 1, 1, 0, 0 };
    f->x = tensor_new(t->n, t->M, t->C, true, 0);
    tensor_fill(&f->x, 1);
    f->weights = random_block((size_t)t->C * t->N, (size_t)t->C * t->N, 2);
    p.transposed = malloc((size_t)t->C * t->N * sizeof(float));
    for (int c = 0; c < t->C; c++)
        for (int n = 0; n < t->N; n++)
            p.transposed[n * t->C + c] = f->weights[c * t->N + n];
    if (full) {
        f->bias = random_block(t->N, (t->N + 15) / 16 * 16, 3);
        f->row_bias = random_block((size_t)t->n * t->N, (size_t)t->n * t->N, 4);
        f->residual = tensor_new(t->n, t->M, t->N, true, 0);
        tensor_fill(&f->residual, 5);
    }
    p.reference = reference_conv(f);
    return p;
}

static void problem_free(problem *p)
{
    tensor_free(&p->f.x);
    tensor_free(&p->f.residual);
    free(p->f.weights);
    free(p->f.bias);
    free(p->f.row_bias);
    free(p->transposed);
    free(p->reference);
}

static tensor run(const problem *p, bool dense_in, bool dense_out, bool transposed, int row, int n, dn_pool *pool)
{
    const fixture *f = &p->f;
    const int C = f->shape.C, N = f->shape.K, M = f->shape.H;
    tensor x = tensor_copy(&f->x, dense_in, dense_in ? 1 : 64), r = { 0 };
    tensor y = tensor_new(n, M, N, dense_out, dense_out ? 5 : 64);
    void *form = NULL;
    assert_int_equal(posix_memalign(&form, 64, dn_cpu_gemm_form_bytes(C, N)), 0);
    if (transposed)
        dn_cpu_gemm_pack_transposed(form, p->transposed, &dn_shape(N, C));
    else
        dn_cpu_gemm_pack(form, f->weights, &dn_shape(C, N));
    dn_gemm_call c = { .n = n, .M = M, .C = C, .N = N, .x = x.rows, .y = y.rows, .weights = form, .pool = pool };
    c.x.base = (char *)c.x.base + row * x.rows.row_bytes;
    c.epilogue = (dn_epilogue){ .bias = f->bias, .row_bias_bytes = N * 4, .scale = f->scale, .silu = f->silu };
    c.epilogue.row_bias = f->row_bias ? f->row_bias + row * N : NULL;
    if (f->residual.rows.base) {
        r = tensor_copy(&f->residual, dense_out, 0);
        c.epilogue.residual = r.rows;
        c.epilogue.residual.base = (char *)r.rows.base + row * r.rows.row_bytes;
    }
    dn_cpu_gemm(&c);
    free(form);
    tensor_free(&x);
    tensor_free(&r);
    return y;
}

static void check(const problem *p, int layouts, dn_pool *pool)
{
    const bool in = layouts & 1, out = layouts & 2;
    tensor y = run(p, in, out, false, 0, p->f.n, NULL), two = run(p, in, out, true, 0, p->f.n, pool);
    double error = reference_error(&y, p->reference);
    if (!(error <= 2e-6))
        fail_msg("M %d C %d N %d layouts %d: error %g", p->f.shape.H, p->f.shape.C, p->f.shape.K, layouts, error);
    assert_true(tensor_padding_is_zero(&y));
    assert_true(tensor_gaps_are_spoiled(&y));
    for (int r = 0; r < p->f.n; r++) {
        tensor alone = run(p, in, out, false, r, 1, r & 1 ? pool : NULL);
        assert_true(tensor_row_equal(&y, r, &alone, 0));
        assert_true(tensor_row_equal(&y, r, &two, r));
        tensor_free(&alone);
    }
    tensor_free(&y);
    tensor_free(&two);
}

static void test_products(void **state)
{
    (void)state;
    dn_pool *pool = dn_pool_new(2, NULL);
    assert_non_null(pool);
    for (int i = 0; i < PRODUCTS; i++)
        for (int full = 0; full < 2; full++) {
            problem p = problem_new(&products[i], full);
            for (int layouts = 0; layouts < 4; layouts++)
                check(&p, layouts, pool);
            problem_free(&p);
        }
    dn_pool_free(pool);
}

/* rng.h in words: element / 4 counts draws, two pairs of normals from each. */
static float normal_at(int64_t i, const dn_rng_key *key)
{
    uint32_t counter[4] = { (uint32_t)(i / 4), key->step, key->purpose, key->sample }, bits[4];
    dn_philox(bits, counter, key->seed);
    float pair[2];
    int first = (int)(i % 4) / 2 * 2;
    dn_f_box_muller(dn_uniform(bits[first]), dn_uniform(bits[first + 1]), &pair[0], &pair[1]);
    return pair[i % 2];
}

static void test_normals(void **state)
{
    (void)state;
    enum { MANY = 1 << 20 };
    static const int counts[] = { 1, 3, 4, 31, 32, 33, 100, MANY };
    float *out = malloc(MANY * sizeof *out);
    for (int k = 0; k < 8; k++) {
        dn_rng_key key = { UINT64_C(0xfedcba9876543210) * (k + 1), 7u * k, (unsigned)DN_RNG_STEP << 24 | k, k };
        const int64_t first = k & 1 ? INT64_C(4) * 4294967290 : 0;
        float *exact = malloc(counts[k] * sizeof *exact);
        dn_cpu_rng_normal(exact, first, counts[k], &key);
        for (int i = 0; i < counts[k]; i++)
            out[i] = normal_at(first + i, &key);
        assert_memory_equal(out, exact, counts[k] * sizeof *exact);
        free(exact);
    }
    free(out);
}

/* Each sum is one chain of fused multiply-adds in the order of k, on every instruction set, begun or continued. */
static void test_strips(void **state)
{
    (void)state;
    enum { ROWS = 50, BLOCKS = 5, BLOCK = ROWS * 8 };
    typedef void (*strip)(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more);
    const strip strips[] = { dn_cpu_strip_avx2, dn_cpu_has_avx512() ? dn_cpu_strip_avx512 : dn_cpu_strip_avx2 };
    float *a = random_block(BLOCKS * BLOCK, BLOCKS * BLOCK, 1), *b = random_block(BLOCKS * 128, BLOCKS * 128, 2);
    float *start = random_block(ROWS * 16, ROWS * 16, 3), want[ROWS * 16], got[ROWS * 16];
    for (int i = 0; i < ROWS * 16 * 2; i++) {
        int more = i / (ROWS * 16), row = i / 16 % ROWS, column = i % 16;
        float sum = more ? start[row * 16 + column] : 0;
        for (int k = 0; k < BLOCKS * 8; k++)
            sum = fmaf(a[k / 8 * BLOCK + row * 8 + k % 8], b[k * 16 + column], sum);
        want[row * 16 + column] = sum;
        for (int s = 0; s < 4 && row * 16 + column == ROWS * 16 - 1; s++) {
            int rows = s & 1 ? ROWS : ROWS - 13;
            memcpy(got, start, sizeof got);
            strips[s / 2](rows, BLOCKS, a, BLOCK, b, got, more);
            assert_memory_equal(got, want, sizeof(float) * 16 * rows);
            assert_memory_equal(got + 16 * rows, start + 16 * rows, sizeof(float) * 16 * (ROWS - rows));
        }
    }
    for (int rows = 1; rows < ROWS; rows++) {
        memset(got, 0, sizeof got);
        dn_cpu_strip_avx2(rows, BLOCKS, a, BLOCK, b, got, false);
        memset(want, 0, sizeof want);
        strips[1](rows, BLOCKS, a, BLOCK, b, want, false);
        assert_memory_equal(got, want, sizeof got);
    }
    free(start);
    free(b);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_products), cmocka_unit_test(test_strips),
                                        cmocka_unit_test(test_normals) };
    if (!dn_cpu_has_avx2())
        return 77; /* meson: skipped */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
