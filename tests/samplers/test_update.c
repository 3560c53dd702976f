/* test_update.c - the update by itself: odd sizes, thresholding, learned variance, history, non-finite values; and
 * torch's random numbers. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float value(int64_t i, int k)
{
    return (float)(2.5 * sin(0.7 * (double)i + 1.3 * k) * cos(0.013 * (double)i * (k + 1)));
}

static void fill(run *r)
{
    float *v[] = { r->slot.x, r->slot.z, r->slot.z2, r->slot.h[0], r->slot.h[1], r->slot.h[7] };
    for (int k = 0; k < 6; k++)
        for (int64_t i = 0; i < r->slot.n; i++)
            v[k][i] = value(i, k);
    for (int64_t i = 0; i < r->slot.n / r->slot.channels * r->slot.out_channels; i++)
        r->slot.out[0][i] = value(i, 6);
}

/* Every basis vector at once, and writes that swap two history vectors: all is read before anything is written. */
static void check_linear(int64_t n)
{
    run r;
    run_init(&r, n, 1, 1);
    fill(&r);
    dn_entry e = {
        .rows = 1 << DN_ROW_COND, .c_s = 2, .c_x = 0.5f, .c_o = -0.25f, .n_writes = 3, .write = { 0, 1, 7 }
    };
    e.x = (dn_linear){ { 0.5f, 0.25f, -1, 2, 3, -0.5f, 0.125f, 0, 0, 0, 0, 0, 4 } };
    e.writes[0].a[DN_B_H0 + 1] = 1;
    e.writes[1].a[DN_B_H0] = 1;
    e.writes[2].a[DN_B_X] = 2;
    assert_int_equal(dn_update(&r.slot, &e), 0);
    for (int64_t i = 0; i < n; i++) {
        double x = value(i, 0), out = value(i, 6), x0 = 2 * (0.5 * x - 0.25 * out);
        double want = 0.5 * x + 0.25 * x0 - out + 2 * value(i, 1) + 3 * value(i, 2) - 0.5 * value(i, 3) +
                      0.125 * value(i, 4) + 4 * value(i, 5);
        assert_float_equal(r.slot.x[i], want, 2e-5);
        assert_float_equal(r.slot.x0[i], x0, 1e-5);
        assert_true(r.slot.h[0][i] == value(i, 4) && r.slot.h[1][i] == value(i, 3) &&
                    r.slot.h[7][i] == 2 * value(i, 0));
    }
    run_fini(&r);
}

static void test_linear(void **state)
{
    (void)state;
    check_linear(1);
    check_linear(1023);
    check_linear(1024);
    check_linear(5001);
}

static void test_no_forward(void **state)
{
    (void)state;
    run r;
    run_init(&r, 100, 1, 1);
    fill(&r);
    r.slot.out[0] = NULL;
    r.slot.x0[3] = 42;
    dn_entry e = { .flags = DN_NO_FORWARD };
    e.x.a[DN_B_H0 + 1] = 3;
    assert_int_equal(dn_update(&r.slot, &e), 0);
    assert_true(r.slot.x[5] == 3 * value(5, 4) && r.slot.x0[3] == 42);
    memset(&e.x, 0, sizeof e.x);
    assert_int_equal(dn_update(&r.slot, &e), 0);
    assert_true(r.slot.x[5] == 0);
    run_fini(&r);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* x0 = out; s = the quantile of |x0| in [1, most]; x0 = clamp(x0, -s, s) / s. The quantile here by sorting. */
static void check_threshold(int n, float ratio, float most, float factor)
{
    run r;
    run_init(&r, n, 1, 1);
    float *sorted = malloc((size_t)n * sizeof *sorted);
    for (int i = 0; i < n; i++) {
        r.slot.out[0][i] = factor * value(i, i % 5);
        sorted[i] = fabsf(r.slot.out[0][i]);
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    double rank = ratio * (n - 1.0), low = floor(rank);
    double q = sorted[(int)low] + (rank - low) * (low + 1 < n ? sorted[(int)low + 1] - sorted[(int)low] : 0);
    double s = fmin(fmax(q, 1), most);
    dn_entry e = { .flags = DN_THRESHOLD, .rows = 1, .c_s = 1, .c_o = 1, .clip = most, .ratio = ratio };
    e.x.a[DN_B_X0] = 1;
    assert_int_equal(dn_update(&r.slot, &e), 0);
    for (int i = 0; i < n; i++)
        assert_float_equal(r.slot.x[i], fmin(fmax(r.slot.out[0][i], -s), s) / s, 1e-5);
    free(sorted);
    run_fini(&r);
}

static void test_threshold(void **state)
{
    (void)state;
    check_threshold(1, 0.995f, 10, 3);
    check_threshold(2, 0.5f, 10, 3);
    check_threshold(784, 0.995f, 10, 3);
    check_threshold(3072, 0.9f, 10, 1);
    check_threshold(3072, 0.9f, 1.2f, 1);  /* sample_max_value wins */
    check_threshold(3072, 0.9f, 10, 0.1f); /* never below 1 */
    check_threshold(3072, 0, 10, 1);
    check_threshold(3072, 1, 10, 1);
    check_threshold(1000, 0.75f, 1e9f, 1e6f);
}

static void test_clip(void **state)
{
    (void)state;
    run r;
    run_init(&r, 500, 1, 1);
    fill(&r);
    dn_entry e = { .flags = DN_CLIP, .rows = 1, .c_s = 1, .c_o = 1, .clip = 0.75f };
    e.x.a[DN_B_X0] = 1;
    e.x.a[DN_B_OUT] = 1; /* the raw output, not the clipped x0 */
    assert_int_equal(dn_update(&r.slot, &e), 0);
    for (int i = 0; i < 500; i++)
        assert_float_equal(r.slot.x[i], value(i, 6) + fmin(fmax(value(i, 6), -0.75), 0.75), 1e-6);
    run_fini(&r);
}

/* The variance lies in the second half of the channels, per pixel. */
static void test_learned_variance(void **state)
{
    (void)state;
    enum { PIXELS = 700, C = 3 };
    for (int raw = 0; raw < 2; raw++) {
        run r;
        run_init(&r, PIXELS * C, C, 2 * C);
        fill(&r);
        for (int p = 0; p < PIXELS; p++)
            for (int k = 0; k < C; k++)
                r.slot.out[0][p * 2 * C + C + k] = raw ? 0.01f * (float)(p + k + 1) : (float)sin(p + k);
        dn_entry e = { .flags = raw ? DN_SIGMA_RAW : DN_SIGMA_LEARNED, .rows = 1, .c_s = 1, .z_scale = 0.5f };
        e.lv_min = -8;
        e.lv_max = -2;
        e.x.a[DN_B_X] = 1;
        assert_true(dn_entry_uses(&e, DN_B_Z));
        assert_int_equal(dn_update(&r.slot, &e), 0);
        for (int i = 0; i < PIXELS * C; i++) {
            double v = r.slot.out[0][i / C * 2 * C + C + i % C];
            double deviation = raw ? sqrt(v) : exp(0.5 * (-8 + 6 * (v + 1) / 2));
            assert_float_equal(r.slot.x[i], value(i, 0) + 0.5 * deviation * value(i, 1), 2e-6);
        }
        run_fini(&r);
    }
}

static void test_non_finite(void **state)
{
    (void)state;
    const uint32_t flags[] = { 0, DN_CLIP, DN_THRESHOLD };
    for (int k = 0; k < 3; k++) {
        run r;
        run_init(&r, 2000, 1, 1);
        fill(&r);
        r.slot.out[0][0] = NAN;
        r.slot.out[0][1500] = -NAN;
        dn_entry e = { .flags = flags[k], .rows = 1, .c_s = 1, .c_o = 1, .clip = 1, .ratio = 0.5f };
        e.x.a[DN_B_X0] = 1;
        assert_int_equal(dn_update(&r.slot, &e), 2 + 2); /* in the output, and in x' */
        run_fini(&r);
    }
    run r;
    run_init(&r, 10, 1, 2);
    fill(&r);
    r.slot.out[0][3] = NAN; /* a predicted variance */
    dn_entry learned = { .flags = DN_SIGMA_LEARNED, .rows = 1, .c_s = 1, .z_scale = 1, .lv_min = -8, .lv_max = -2 };
    learned.x.a[DN_B_X] = 1;
    assert_int_equal(dn_update(&r.slot, &learned), 1 + 1);
    fill(&r);
    r.slot.out[0][3] = -INFINITY; /* exp makes 0 of it */
    assert_int_equal(dn_update(&r.slot, &learned), 1);
    r.slot.x[1] = 0;
    r.slot.x[9] = INFINITY;
    dn_entry e = { .flags = DN_NO_FORWARD };
    e.x.a[DN_B_X] = 1;
    assert_int_equal(dn_update(&r.slot, &e), 1);
    run_fini(&r);
}

/* A network whose output at one entry has an infinite value; a finite one else. */
typedef struct {
    int entry;
    enum dn_row_kind row;
} bad_output;

static void bad_model(void *user, float *out, const float *in, const run *r, float timestep, enum dn_row_kind row)
{
    const bad_output *bad = user;
    (void)timestep;
    for (int64_t i = 0; i < r->slot.n; i++)
        out[i] = 0.5f * in[i];
    if (r->entry == bad->entry && row == bad->row)
        out[7] = INFINITY;
}

static void some_noise(void *user, float *z, const run *r, enum dn_basis b)
{
    (void)user;
    for (int64_t i = 0; i < r->slot.n; i++)
        z[i] = value(i, (int)b);
}

/* Clipped or not, every sampler tells it at once, of either row; and nothing else. */
static void check_infinite(const char *config, int sampler, double scale)
{
    dn_scheduler_config *c = config_of(config, NULL);
    dn_plan_params p = params_of(sampler, 5);
    dn_table t = { 0 };
    dn_error err = { 0 };
    p.guidance.scale = scale;
    if (dn_table_plan(&t, c, &p, &err))
        fail_msg("%s: %s", dn_sampler_name(sampler), err.message);
    for (int at = 0; at < t.n_entries; at++) {
        run r;
        bad_output bad = { at, scale == 1 ? DN_ROW_COND : DN_ROW_UNCOND };
        run_init(&r, 192, 3, 3);
        for (int64_t i = 0; i < 192; i++)
            r.slot.x[i] = t.init_scale * value(i, 0);
        for (int i = 0; i < at; i++)
            assert_int_equal(run_entry(&r, &t, bad_model, some_noise, &bad), 0);
        bool evaluated = t.entry[at].rows & 1 << bad.row;
        int64_t told = run_entry(&r, &t, bad_model, some_noise, &bad);
        if ((told > 0) != evaluated)
            fail_msg("%s, entry %d: %lld told", dn_sampler_name(sampler), at, (long long)told);
        run_fini(&r);
    }
    dn_table_fini(&t);
    dn_scheduler_config_free(c);
}

static void test_infinite_outputs(void **state)
{
    (void)state;
    for (int k = 0; k < DN_SAMPLER_COUNT; k++) {
        check_infinite("{\"clip_sample\":true}", k, 1);
        check_infinite("{\"clip_sample\":false}", k, 1);
        check_infinite("{\"clip_sample\":true}", k, 3);
        check_infinite("{\"thresholding\":true}", k, 1);
    }
}

/* Tensors of tests/golden's torch_cpu_rng.safetensors: "randn.SEED.COUNT" and, drawn next, "randn.SEED.second_768". */
static json_t *header;
static unsigned char *file;

static const float *tensor(const char *name, int n)
{
    const json_t *t = json_object_get(header, name), *offsets = json_object_get(t, "data_offsets");
    if (!t)
        fail_msg("no tensor %s", name);
    int64_t from = json_integer_value(json_array_get(offsets, 0)), to = json_integer_value(json_array_get(offsets, 1));
    assert_int_equal(to - from, n * 4);
    uint64_t length;
    memcpy(&length, file, 8);
    return (const float *)(file + 8 + length + from);
}

static int load(void **state)
{
    (void)state;
    FILE *f = fopen(GOLDEN_DIR "/torch_cpu_rng.safetensors", "rb");
    file = malloc(1 << 16);
    if (!f || !file)
        return -1;
    size_t n = fread(file, 1, 1 << 16, f);
    fclose(f);
    uint64_t length;
    memcpy(&length, file, 8);
    header = length + 8 < n ? json_loadb((const char *)file + 8, length, 0, NULL) : NULL;
    return header ? 0 : -1;
}

static int unload(void **state)
{
    (void)state;
    json_decref(header);
    free(file);
    return 0;
}

static void compare(dn_torch_rng *rng, const char *name, int n)
{
    float got[768];
    const float *want = tensor(name, n);
    dn_torch_randn(rng, got, n);
    for (int i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-6f))
            fail_msg("%s[%d]: %.8g instead of %.8g", name, i, got[i], want[i]);
}

static void test_torch_randn(void **state)
{
    (void)state;
    static const char *const seeds[] = { "0", "1234", "1099511627781" };
    for (int k = 0; k < 3; k++) {
        static const int counts[] = { 5, 37, 768 };
        dn_torch_rng rng;
        char name[64];
        for (int j = 0; j < 3; j++) {
            dn_torch_seed(&rng, strtoull(seeds[k], NULL, 10));
            snprintf(name, sizeof name, "randn.%s.%d", seeds[k], counts[j]);
            compare(&rng, name, counts[j]);
        }
        snprintf(name, sizeof name, "randn.%s.second_768", seeds[k]);
        compare(&rng, name, 768);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),      cmocka_unit_test(test_no_forward),       cmocka_unit_test(test_threshold),
        cmocka_unit_test(test_clip),        cmocka_unit_test(test_learned_variance), cmocka_unit_test(test_non_finite),
        cmocka_unit_test(test_infinite_outputs),
        cmocka_unit_test(test_torch_randn),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
