/* facts_random.c - random numbers, from Philox written down a second time: against results worked out by hand or by a formula that shares
 * nothing with the kernels. */
#include "facts.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "rng.h"

static const double pi = 3.14159265358979323846;

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dropout_rule),
        cmocka_unit_test(philox_known),
        cmocka_unit_test(normal_bits),
        cmocka_unit_test(normal_rule),
    };
    return cmocka_run_group_tests_name("op facts random", tests, NULL, NULL);
}
