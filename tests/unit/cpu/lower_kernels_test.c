/* Copies and elementwise operations of the CPU backend against plain loops. */
#include "elementwise.h"
#include "pointwise.h"
#include "lower_blocks.h"
#include "lower_run.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { ROWS = 3 };

static const int channel_counts[] = { 1, 3, 8, 12, 20, 64 };
#define EACH_CHANNELS(c) for (int i_ = 0, c; i_ < 6 && (c = channel_counts[i_], true); i_++)

static dn_pool *pool;

static float *dense_new(int64_t floats)
{
    float *x = malloc(sizeof *x * (size_t)floats);
    for (int64_t i = 0; i < floats; i++)
        x[i] = NAN;
    return x;
}

static void there_and_back(void **state)
{
    (void)state;
    enum { POSITIONS = 70 };
    EACH_CHANNELS(c)
    {
        dn_rows x = blocks_random(ROWS, 0, POSITIONS, c, 1, 1, 0), back = blocks_new(ROWS, POSITIONS, c);
        int pitch = c + 3; /* wider than the row */
        float *data = dense_new(ROWS * POSITIONS * pitch);
        dn_rows dense = { data, POSITIONS * pitch * 4, 0, pitch * 4 };
        dn_copy_to_dense(pool, dense, x, (dn_extent){ ROWS, POSITIONS, c });
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < POSITIONS; p++)
                for (int j = 0; j < pitch; j++) {
                    float got = data[(r * POSITIONS + p) * pitch + j];
                    assert_true(j < c ? got == *block_at(&x, r, p, j) : isnan(got));
                }
        dn_copy_to_blocked(pool, back, dense, (dn_extent){ ROWS, POSITIONS, c });
        check_padding(&back, ROWS, POSITIONS, c);
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < POSITIONS; p++)
                for (int j = 0; j < c; j++)
                    assert_true(*block_at(&back, r, p, j) == *block_at(&x, r, p, j));
        free(data);
        blocks_free(x);
        blocks_free(back);
    }
}

/* Pieces of several widths one after the other: a concatenation; then each cut out again: slices. */
static void concatenate_and_slice(void **state)
{
    (void)state;
    static const int widths[][3] = {
        { 8, 16, 8 }, { 8, 12, 3 }, { 5, 8, 11 }, { 1, 1, 1 }, { 12, 20, 40 }, { 7, 1, 16 }
    };
    enum { POSITIONS = 9 };
    for (int i = 0; i < 6; i++) {
        int total = widths[i][0] + widths[i][1] + widths[i][2];
        dn_rows all = blocks_new(ROWS, POSITIONS, total), piece[3], cut[3];
        for (int k = 0, at = 0; k < 3; at += widths[i][k++]) {
            piece[k] = blocks_random(ROWS, 0, POSITIONS, widths[i][k], k, 1, 0);
            dn_copy_channels(pool, all, at, piece[k], 0, (dn_extent){ ROWS, POSITIONS, widths[i][k] });
        }
        check_padding(&all, ROWS, POSITIONS, total);
        for (int k = 0, at = 0; k < 3; at += widths[i][k++]) {
            cut[k] = blocks_new(ROWS, POSITIONS, widths[i][k]);
            dn_copy_channels(pool, cut[k], 0, all, at, (dn_extent){ ROWS, POSITIONS, widths[i][k] });
            check_padding(&cut[k], ROWS, POSITIONS, widths[i][k]);
            for (int r = 0; r < ROWS; r++)
                for (int p = 0; p < POSITIONS; p++)
                    for (int c = 0; c < widths[i][k]; c++) {
                        assert_true(*block_at(&all, r, p, at + c) == *block_at(&piece[k], r, p, c));
                        assert_true(*block_at(&cut[k], r, p, c) == *block_at(&piece[k], r, p, c));
                    }
        }
        for (int k = 0; k < 3; k++) {
            blocks_free(piece[k]);
            blocks_free(cut[k]);
        }
        blocks_free(all);
    }
}

static void resample(void **state)
{
    (void)state;
    enum { H = 5, W = 7 };
    EACH_CHANNELS(c)
    {
        dn_rows x = blocks_random(ROWS, 0, H * W, c, 2, 1, 0), up = blocks_new(ROWS, 4 * H * W, c);
        dn_rows down = blocks_new(ROWS, (H / 2) * (W / 2), c);
        dn_extent e = { ROWS, H * W, c };
        dn_copy_upsample2(pool, up, x, e, &(dn_resample_size){ H, W, 2 * H, 2 * W }, 1);
        dn_copy_pool2(pool, down, x, e, H, W, 0.25f);
        check_padding(&up, ROWS, 4 * H * W, c);
        check_padding(&down, ROWS, (H / 2) * (W / 2), c);
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < c; j++) {
                for (int p = 0; p < 4 * H * W; p++)
                    assert_true(*block_at(&up, r, p, j) == *block_at(&x, r, p / (2 * W) / 2 * W + p % (2 * W) / 2, j));
                for (int p = 0; p < (H / 2) * (W / 2); p++) {
                    int at = p / (W / 2) * 2 * W + p % (W / 2) * 2;
                    double want = 0;
                    for (int k = 0; k < 4; k++)
                        want += 0.25 * (double)*block_at(&x, r, at + k / 2 * W + k % 2, j);
                    assert_true(fabs(*block_at(&down, r, p, j) - want) < 1e-6);
                }
            }
        blocks_free(x);
        blocks_free(up);
        blocks_free(down);
    }
}

static double unary_of(int kind, double x)
{
    switch (kind) {
    case DN_SILU:
        return x / (1 + exp(-x));
    case DN_GELU:
        return 0.5 * x * erfc(-x * sqrt(0.5));
    case DN_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case DN_SIGMOID:
        return 1 / (1 + exp(-x));
    case DN_RELU:
        return x > 0 ? x : 0;
    case DN_SQUARE:
        return x * x;
    case DN_ABS:
        return fabs(x);
    case DN_AFFINE:
        return 1.5 * x - 0.75;
    case DN_CLAMP:
        return fmin(fmax(x, 0.1), 0.6);
    case DN_MISH:
        return x * tanh(log1p(exp(x)));
    case DN_SQRT:
        return sqrt(x);
    case DN_RECIPROCAL:
        return 1 / x;
    default:
        return NAN;
    }
}

/* Every kind that claims a kernel, blocked and dense; those that do not map 0 to 0 too must leave padding alone. */
static void unary(void **state)
{
    (void)state;
    enum { POSITIONS = 11 };
    for (int kind = 0; kind < DN_UNARY_COUNT; kind++) {
        if (!dn_unary_has_kernel(kind))
            continue;
        float p = kind == DN_CLAMP ? 0.1f : 1.5f, q = kind == DN_CLAMP ? 0.6f : -0.75f;
        EACH_CHANNELS(c)
        {
            dn_rows x = blocks_random(ROWS, 0, POSITIONS, c, 3, kind == DN_SQRT ? 4 : 30, kind == DN_SQRT ? 4 : 0),
                    y = blocks_new(ROWS, POSITIONS, c);
            dn_elementwise_args a = { .x = x, .y = y, .e = { ROWS, POSITIONS, c }, .p = p, .q = q };
            dn_unary_run(pool, kind, &a);
            check_padding(&y, ROWS, POSITIONS, c);
            float *in = dense_new(ROWS * POSITIONS * c), *out = dense_new(ROWS * POSITIONS * c);
            dn_copy_to_dense(pool, (dn_rows){ in, POSITIONS * c * 4, 0, c * 4 }, x, a.e);
            a.x = (dn_rows){ in, POSITIONS * c * 4, 0, c * 4 };
            a.y = (dn_rows){ out, POSITIONS * c * 4, 0, c * 4 };
            dn_unary_run(NULL, kind, &a);
            for (int i = 0; i < ROWS * POSITIONS * c; i++) {
                double want = unary_of(kind, in[i]);
                float blocked = *block_at(&y, i / c / POSITIONS, i / c % POSITIONS, i % c);
                assert_true(fabs(out[i] - want) <= 5e-7 * (1 + fabs(want)));
                assert_memory_equal(&blocked, &out[i], sizeof blocked);
            }
            free(in);
            free(out);
            blocks_free(x);
            blocks_free(y);
        }
    }
}

static float binary_of(int kind, float a, float b)
{
    return kind == DN_ADD ? a + b : kind == DN_SUB ? a - b : kind == DN_MUL ? a * b : a / b;
}

/* x op b and b op x for every kind of operand. Division by zero in padded lanes must not leave NaN there. */
static void binary(void **state)
{
    (void)state;
    enum { POSITIONS = 5 };
    for (int variant = 0; variant < 4 * 3 * 2; variant++) {
        int kind = variant / 6, operand = variant / 2 % 3, swapped = variant % 2;
        EACH_CHANNELS(c)
        {
            dn_rows x = blocks_random(ROWS, 0, POSITIONS, c, 4, 1, 2), y = blocks_new(ROWS, POSITIONS, c);
            dn_rows same = blocks_random(ROWS, 0, POSITIONS, c, 5, 1, 3);
            float *vector = dense_new(ROWS * c);
            uint64_t seed = 17;
            noise_fill(vector, ROWS * c, &seed);
            for (int i = 0; i < ROWS * c; i++)
                vector[i] += 2;
            dn_elementwise_args a = { .x = x,
                                      .y = y,
                                      .b = operand == DN_OPERAND_SAME ? same : (dn_rows){ vector, c * 4, 0, c * 4 },
                                      .e = { ROWS, POSITIONS, c },
                                      .operand = operand,
                                      .swapped = swapped };
            dn_binary_run(pool, kind, &a);
            check_padding(&y, ROWS, POSITIONS, c);
            for (int i = 0; i < ROWS * POSITIONS * c; i++) {
                int r = i / c / POSITIONS, p = i / c % POSITIONS, j = i % c;
                float v = *block_at(&x, r, p, j), b = operand == DN_OPERAND_SAME
                                                          ? *block_at(&same, r, p, j)
                                                          : vector[r * c + (operand == DN_OPERAND_SCALAR ? 0 : j)];
                assert_true(*block_at(&y, r, p, j) == (swapped ? binary_of(kind, b, v) : binary_of(kind, v, b)));
            }
            free(vector);
            blocks_free(x);
            blocks_free(same);
            blocks_free(y);
        }
    }
}

/* The value of 16 bits with so many of mantissa and such a bias. */
static double value_of(uint16_t h, int mantissa, int bias)
{
    int field = (h & 0x7fff) >> mantissa, fraction = h & ((1 << mantissa) - 1), top = 0x7fff >> mantissa;
    double x = field == top ? (fraction ? NAN : INFINITY)
               : field      ? ldexp(fraction + (1 << mantissa), field - bias - mantissa)
                            : ldexp(fraction, 1 - bias - mantissa);
    return h & 0x8000 ? -x : x;
}

static void cast_all(void *y, enum dn_dtype to, const void *x, enum dn_dtype from, int n)
{
    dn_cast_run(NULL, &(dn_cast_args){ .x.base = (void *)x, .y.base = y, .from = from, .to = to, .n = 1, .runs = 1, .count = n });
}

static void check_narrow(float x, uint16_t want, enum dn_dtype t)
{
    uint16_t got;
    cast_all(&got, t, &x, DN_F32, 1);
    if (got != want)
        fail_msg("%a becomes %04x, not %04x", (double)x, got, want);
}

/* All 65536 values to float and back; and what lies halfway between two neighbours, or a little to either side. */
static void narrow_floats(void **state)
{
    (void)state;
    static const struct {
        enum dn_dtype type;
        int mantissa, bias;
    } types[] = { { DN_F16, 10, 15 }, { DN_BF16, 7, 127 } };
    static uint16_t all[65536], back[65536];
    static float wide[65536];
    for (int t = dn_cpu_has_f16c() ? 0 : 1; t < 2; t++) {
        enum dn_dtype type = types[t].type;
        int infinity = 0x7fff >> types[t].mantissa << types[t].mantissa, quiet = infinity | 1 << (types[t].mantissa - 1);
        for (int h = 0; h < 65536; h++)
            all[h] = (uint16_t)h;
        cast_all(wide, DN_F32, all, type, 65536);
        cast_all(back, type, wide, DN_F32, 65536);
        for (int h = 0; h < 65536; h++) {
            double want = value_of((uint16_t)h, types[t].mantissa, types[t].bias);
            assert_true(isnan(want) ? isnan(wide[h]) : wide[h] == (float)want);
            assert_int_equal(!!signbit(wide[h]), h >> 15);
            assert_int_equal(back[h], isnan(want) ? (h & 0x8000) | quiet : h);
            int last = (h & 0x7fff) + 1 == infinity;
            if ((h & 0x7fff) >= infinity || (last && type == DN_BF16)) /* 2^128 is no float */
                continue;
            float sign = h & 0x8000 ? -1 : 1;
            float next = last ? sign * 0x1p16f : (float)value_of((uint16_t)(h + 1), types[t].mantissa, types[t].bias);
            float half = wide[h] + (next - wide[h]) / 2;
            check_narrow(nextafterf(half, wide[h]), (uint16_t)h, type);
            check_narrow(half, (uint16_t)(h + (h & 1)), type);
            check_narrow(nextafterf(half, sign * INFINITY), (uint16_t)(h + 1), type);
        }
        const uint32_t payload[] = { 0x7f800001, 0xff812345 };
        float x[2];
        memcpy(x, payload, sizeof x);
        check_narrow(x[0], (uint16_t)quiet, type);
        check_narrow(x[1], (uint16_t)(0x8000 | quiet), type);
        check_narrow(0x1.fffffep127f, (uint16_t)infinity, type);
    }
}

static int start_pool(void **state)
{
    (void)state;
    pool = dn_pool_new(2, NULL);
    return pool ? 0 : -1;
}

static int stop_pool(void **state)
{
    (void)state;
    dn_pool_free(pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back), cmocka_unit_test(concatenate_and_slice),
        cmocka_unit_test(resample),       cmocka_unit_test(unary),
        cmocka_unit_test(binary),           cmocka_unit_test(narrow_floats),
    };
    if (!dn_cpu_has_avx2()) {
        printf("SKIPPED: this machine has no AVX2\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, start_pool, stop_pool);
}
