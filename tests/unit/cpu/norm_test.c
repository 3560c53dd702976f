/* GroupNorm and LayerNorm of the CPU backend against double loops. */
#include "lower_blocks.h"
#include "lower_run.h"
#include "norm.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct spec {
    int positions, channels, groups;
    bool silu, affine, modulated;
    float offset; /* mean of x: far from zero, only a centred variance is right */
} spec;

/* clang-format off */
static const spec specs[] = {
    { 64, 128, 32, true, true, false, 0 },   /* groups of 4: DDPM's main shape */
    { 49, 64, 8, true, true, false, 0 },     /* of 8 */
    { 35, 256, 32, true, true, true, 0 },    /* of 8, modulated */
    { 17, 32, 16, false, true, false, 0 },   /* of 2 */
    { 9, 24, 24, true, true, false, 0 },     /* of 1: instance norm */
    { 30, 96, 8, true, true, true, 0 },      /* of 12: cross the blocks */
    { 30, 20, 5, true, true, true, 0 },      /* of 4, ragged end */
    { 6, 12, 4, true, true, false, 0 },      /* of 3 */
    { 11, 7, 1, false, false, false, 0 },
    { 1, 40, 8, true, true, true, 0 },       /* of 5, one position */
    { 300, 64, 2, true, true, false, 0 },    /* of 32 */
    { 1023, 36, 3, false, true, false, 0 },  /* longer than a chunk */
    { 257, 48, 4, false, true, false, 500 },
    { 600, 8, 4, true, false, true, -300 },
};
/* clang-format on */
enum { SPECS = sizeof specs / sizeof *specs, ROWS = 3 };

/* gamma, beta for all rows; scale, shift for each. */
typedef struct vectors {
    float *gamma, *beta, *scale, *shift;
} vectors;

static float *vector(int n, uint64_t seed, float offset)
{
    float *x = malloc(sizeof *x * (size_t)n);
    noise_fill(x, n, &seed);
    for (int i = 0; i < n; i++)
        x[i] += offset;
    return x;
}

static vectors vectors_new(int channels)
{
    return (vectors){ vector(channels, 3, 1), vector(channels, 4, 0), vector(channels * ROWS, 5, 1),
                      vector(channels * ROWS, 6, 0) };
}

static void vectors_free(vectors v)
{
    free(v.gamma);
    free(v.beta);
    free(v.scale);
    free(v.shift);
}

static dn_group_norm_args args_of(const spec *s, dn_rows x, dn_rows y, int first, int n, const vectors *v)
{
    dn_group_norm_args a = {
        .x = x, .y = y, .e = { n, s->positions, s->channels }, .groups = s->groups, .eps = 1e-5f, .silu = s->silu
    };
    if (s->affine) {
        a.gamma.data = v->gamma;
        a.beta.data = v->beta;
    }
    if (s->modulated) {
        a.scale = (dn_row_vector){ v->scale + first * s->channels, s->channels * 4 };
        a.shift = (dn_row_vector){ v->shift + first * s->channels, s->channels * 4 };
    }
    return a;
}

/* Mean and deviation of one group, in double. */
static void moments(const dn_rows *x, const spec *s, int row, int group, double *mean, double *rstd)
{
    int per = s->channels / s->groups;
    double sum = 0, squares = 0, n = (double)per * s->positions;
    for (int c = group * per; c < (group + 1) * per; c++)
        for (int p = 0; p < s->positions; p++)
            sum += *block_at(x, row, p, c);
    *mean = sum / n;
    for (int c = group * per; c < (group + 1) * per; c++)
        for (int p = 0; p < s->positions; p++)
            squares += pow(*block_at(x, row, p, c) - *mean, 2);
    *rstd = 1 / sqrt(squares / n + (double)1e-5f);
}

static double wanted(const spec *s, const vectors *v, double x, int row, int c, double mean, double rstd)
{
    double y = (x - mean) * rstd;
    if (s->affine)
        y = y * v->gamma[c] + v->beta[c];
    if (s->modulated)
        y = y * v->scale[row * s->channels + c] + v->shift[row * s->channels + c];
    return s->silu ? y / (1 + exp(-y)) : y;
}

static void check_group(const spec *s, const vectors *v, const dn_rows *x, const dn_rows *y, int row, int group,
                        const float *stats)
{
    double mean, rstd, tolerance = 4e-6 * (1 + fabs((double)s->offset) / 20);
    int per = s->channels / s->groups;
    moments(x, s, row, group, &mean, &rstd);
    assert_true(fabs(stats[0] - mean) <= 1e-6 * (1 + fabs(mean)));
    assert_true(fabs(stats[1] / rstd - 1) <= 1e-5);
    for (int c = group * per; c < (group + 1) * per; c++)
        for (int p = 0; p < s->positions; p++) {
            double want = wanted(s, v, *block_at(x, row, p, c), row, c, mean, rstd);
            double got = *block_at(y, row, p, c);
            if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
                fail_msg("%d channels in %d groups, channel %d: %.8g, not %.8g", s->channels, s->groups, c, got, want);
        }
}

static void group_norm(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        const spec *s = &specs[i];
        vectors v = vectors_new(s->channels);
        dn_rows x = blocks_random(ROWS, 0, s->positions, s->channels, i, 2, s->offset);
        dn_rows y = blocks_new(ROWS, s->positions, s->channels);
        float *stats = malloc(sizeof *stats * (size_t)(ROWS * s->groups * 2));
        dn_group_norm_args a = args_of(s, x, y, 0, ROWS, &v);
        a.stats = (dn_rows){ .base = stats, .row_bytes = s->groups * 8 };
        dn_pool *pool = dn_pool_new(2, NULL);
        dn_group_norm_blocked(pool, &a);
        dn_pool_free(pool);
        check_padding(&y, ROWS, s->positions, s->channels);
        for (int row = 0; row < ROWS; row++)
            for (int g = 0; g < s->groups; g++)
                check_group(s, &v, &x, &y, row, g, stats + (row * s->groups + g) * 2);
        free(stats);
        blocks_free(x);
        blocks_free(y);
        vectors_free(v);
    }
}

static void group_norm_rows_alone(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        const spec *s = &specs[i];
        vectors v = vectors_new(s->channels);
        dn_rows x = blocks_random(ROWS, 0, s->positions, s->channels, i, 2, s->offset);
        dn_rows y = blocks_new(ROWS, s->positions, s->channels);
        dn_group_norm_args a = args_of(s, x, y, 0, ROWS, &v);
        dn_pool *pool = dn_pool_new(3, NULL);
        dn_group_norm_blocked(pool, &a);
        dn_pool_free(pool);
        for (int row = 0; row < ROWS; row++) {
            dn_rows x1 = blocks_random(1, row, s->positions, s->channels, i, 2, s->offset);
            dn_rows y1 = blocks_new(1, s->positions, s->channels);
            dn_group_norm_args alone = args_of(s, x1, y1, row, 1, &v);
            dn_group_norm_blocked(NULL, &alone);
            check_row_bits(&y, row, &y1, s->positions, s->channels);
            blocks_free(x1);
            blocks_free(y1);
        }
        blocks_free(x);
        blocks_free(y);
        vectors_free(v);
    }
}

static void check_position(const float *x, const float *y, const float *stats, int n, const vectors *v)
{
    double mean = 0, squares = 0;
    for (int c = 0; c < n; c++)
        mean += (double)x[c] / n;
    for (int c = 0; c < n; c++)
        squares += pow(x[c] - mean, 2) / n;
    double rstd = 1 / sqrt(squares + (double)1e-5f);
    assert_true(fabs(stats[0] - mean) <= 2e-6);
    assert_true(fabs(stats[1] / rstd - 1) <= 1e-5);
    for (int c = 0; c < n; c++) {
        double want = (x[c] - mean) * rstd * (v ? v->gamma[c] : 1) + (v ? v->beta[c] : 0);
        assert_true(fabs(y[c] - want) <= 1e-5 * (1 + fabs(want)));
    }
}

static void layer_norm(void **state)
{
    (void)state;
    static const int channels[] = { 1, 5, 8, 31, 72, 384 };
    enum { POSITIONS = 7 };
    for (int i = 0; i < 6; i++) {
        int n = channels[i], count = POSITIONS * n;
        vectors v = vectors_new(n);
        float *x = vector(count * ROWS, 9, 0.5f), *y = vector(count * ROWS, 1, 0),
              *stats = vector(POSITIONS * 2 * ROWS, 1, 0);
        dn_layer_norm_args a = { .x = { x, count * 4, 0, n * 4 },
                                 .y = { y, count * 4, 0, n * 4 },
                                 .e = { ROWS, POSITIONS, n },
                                 .eps = 1e-5f,
                                 .stats = { .base = stats, .row_bytes = POSITIONS * 8 } };
        if (i % 2) {
            a.gamma.data = v.gamma;
            a.beta.data = v.beta;
        }
        dn_layer_norm_dense(NULL, &a);
        for (int p = 0; p < POSITIONS * ROWS; p++)
            check_position(x + p * n, y + p * n, stats + p * 2, n, i % 2 ? &v : NULL);
        free(x);
        free(y);
        free(stats);
        vectors_free(v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(group_norm),
        cmocka_unit_test(group_norm_rows_alone),
        cmocka_unit_test(layer_norm),
    };
    if (!dn_cpu_has_avx2()) {
        printf("SKIPPED: this machine has no AVX2\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
