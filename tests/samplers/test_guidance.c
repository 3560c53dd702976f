/* test_guidance.c - guidance in tables (scale, interval, schedule, rescale) and in the update, against sums done here.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include <math.h>
#include <string.h>

enum { STEPS = 10 };

static dn_table plan(const char *sampler, int steps, dn_guidance g)
{
    dn_scheduler_config *c = config_of("{\"clip_sample\":false}", NULL);
    dn_plan_params p = params_of(dn_sampler_find(sampler), steps);
    dn_table t = { 0 };
    dn_error err = { 0 };
    p.guidance = g;
    if (dn_table_plan(&t, c, &p, &err))
        fail_msg("%s: %s", err.param, err.message);
    dn_scheduler_config_free(c);
    return t;
}

static void check_w(const dn_table *t, const double *want)
{
    int64_t rows = 0;
    for (int i = 0; i < t->n_entries; i++) {
        bool both = want[i] != 1;
        assert_float_equal(t->entry[i].w, want[i], 1e-6);
        assert_int_equal(t->entry[i].rows, 1 << DN_ROW_COND | both << DN_ROW_UNCOND);
        rows += 1 + both;
    }
    assert_int_equal(dn_table_rows(t), rows);
}

static void test_scale(void **state)
{
    (void)state;
    double one[STEPS], three[STEPS];
    for (int i = 0; i < STEPS; i++)
        one[i] = 1, three[i] = 3;
    dn_table t = plan("ddim", STEPS, (dn_guidance){ .scale = 1, .interval = { 0, 1 }, .rescale = 0.7 });
    check_w(&t, one);
    assert_int_equal(t.entry[0].flags & DN_RESCALE, 0);
    dn_table_fini(&t);
    t = plan("ddim", STEPS, (dn_guidance){ .scale = 3, .interval = { 0, 1 } });
    check_w(&t, three);
    assert_int_equal(t.entry[0].flags & DN_RESCALE, 0);
    dn_table_fini(&t);
}

static void test_interval(void **state)
{
    (void)state;
    /* [0.2, 0.5) of ten entries: 2, 3, 4 */
    dn_table t = plan("ddim", STEPS, (dn_guidance){ .scale = 3, .interval = { 0.2, 0.5 } });
    check_w(&t, (double[STEPS]){ 1, 1, 3, 3, 3, 1, 1, 1, 1, 1 });
    dn_table_fini(&t);
    t = plan("ddim", STEPS, (dn_guidance){ .scale = 3, .interval = { 0.5, 0.5 } });
    check_w(&t, (double[STEPS]){ 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 });
    dn_table_fini(&t);
}

static void test_interval_counts_entries(void **state)
{
    (void)state;
    /* Heun: 3 steps are 5 entries; 0.4 of them starts at entry 2. */
    dn_table t = plan("heun", 3, (dn_guidance){ .scale = 2, .interval = { 0.4, 1 } });
    assert_int_equal(t.n_entries, 5);
    assert_int_equal(t.n_steps, 3);
    check_w(&t, (double[]){ 1, 1, 2, 2, 2 });
    dn_table_fini(&t);
}

static void test_schedules(void **state)
{
    (void)state;
    dn_table t = plan("ddim", 5, (dn_guidance){ .scale = 5, .interval = { 0, 1 }, .schedule = DN_GUIDANCE_LINEAR });
    check_w(&t, (double[]){ 1, 2, 3, 4, 5 });
    dn_table_fini(&t);
    t = plan("ddim", 5, (dn_guidance){ .scale = 5, .interval = { 0, 1 }, .schedule = DN_GUIDANCE_COSINE });
    check_w(&t, (double[]){ 1, 3 - M_SQRT2, 3, 3 + M_SQRT2, 5 });
    dn_table_fini(&t);
    t = plan("ddim", 1, (dn_guidance){ .scale = 5, .interval = { 0, 1 }, .schedule = DN_GUIDANCE_LINEAR });
    check_w(&t, (double[]){ 5 });
    dn_table_fini(&t);
    t = plan("ddim", 5, (dn_guidance){ .scale = 5, .interval = { 0.5, 1 }, .schedule = DN_GUIDANCE_LINEAR });
    check_w(&t, (double[]){ 1, 1, 1, 4, 5 });
    dn_table_fini(&t);
}

/* Two different fields for the two rows; the second half of the channels, if any, is not guided. */
static float field(int64_t pixel, int channel, enum dn_row_kind row)
{
    return row == DN_ROW_COND ? (float)sin(0.37 * (double)pixel + channel) * 1.5f + 0.1f
                              : (float)cos(0.21 * (double)pixel - channel) * 0.5f;
}

static void two_fields(void *user, float *out, const float *in, const run *r, float t, enum dn_row_kind row)
{
    (void)user, (void)in, (void)t;
    for (int64_t p = 0; p < r->slot.n / r->slot.channels; p++)
        for (int k = 0; k < r->slot.out_channels; k++)
            out[p * r->slot.out_channels + k] = field(p, k, row);
}

/* One guided DDIM step, with diffusers' own sequence of operations in double. */
static void check_step(double scale, double rescale, int channels, int out_channels)
{
    enum { PIXELS = 1000 };
    dn_table t = plan("ddim", 2, (dn_guidance){ .scale = scale, .interval = { 0, 1 }, .rescale = rescale });
    run r;
    run_init(&r, PIXELS * channels, channels, out_channels);
    double n = (double)r.slot.n, abar = 1, mean[2] = { 0 }, square[2] = { 0 }, before = 1;
    for (int i = 0; i <= 500; i++) {
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999);
        before = i == 0 ? abar : before; /* set_alpha_to_one: the step from 500 goes to timestep 0 */
    }
    for (int64_t i = 0; i < r.slot.n; i++) {
        r.slot.x[i] = (float)sin(0.01 * (double)i);
        double c = field(i / channels, (int)(i % channels), DN_ROW_COND),
               u = field(i / channels, (int)(i % channels), DN_ROW_UNCOND);
        double v[2] = { c, u + scale * (c - u) };
        for (int k = 0; k < 2; k++)
            mean[k] += v[k] / n, square[k] += v[k] * v[k];
    }
    double std[2];
    for (int k = 0; k < 2; k++)
        std[k] = sqrt((square[k] - n * mean[k] * mean[k]) / (n - 1));
    double factor = rescale * std[0] / std[1] + 1 - rescale;
    assert_int_equal(run_entry(&r, &t, two_fields, NULL, NULL), 0);
    for (int64_t i = 0; i < r.slot.n; i++) {
        double x = (float)sin(0.01 * (double)i);
        double c = field(i / channels, (int)(i % channels), DN_ROW_COND),
               u = field(i / channels, (int)(i % channels), DN_ROW_UNCOND);
        double eps = factor * (u + scale * (c - u)), x0 = (x - sqrt(1 - abar) * eps) / sqrt(abar);
        double want = sqrt(before) * x0 + sqrt(1 - before) * eps;
        if (!(fabs(r.slot.x[i] - want) <= 2e-5 * (1 + fabs(want))))
            fail_msg("element %d: %g instead of %g", (int)i, r.slot.x[i], want);
    }
    run_fini(&r);
    dn_table_fini(&t);
}

static void test_step(void **state)
{
    (void)state;
    check_step(3, 0, 1, 1);
    check_step(3, 0, 3, 3);
    check_step(3, 0, 3, 6);
    check_step(-1, 0, 3, 3);
    check_step(0, 0, 3, 3);
}

static void test_rescale(void **state)
{
    (void)state;
    check_step(7.5, 0.7, 3, 3);
    check_step(7.5, 1, 3, 6);
    check_step(7.5, 0.25, 1, 1);
}

/* A scale of 1 is the same bits as no guidance at all. */
static void test_scale_one_is_none(void **state)
{
    (void)state;
    dn_table a = plan("dpm++2m", STEPS, (dn_guidance){ .scale = 1, .interval = { 0, 1 } });
    dn_table b = plan("dpm++2m", STEPS, (dn_guidance){ .scale = 4, .interval = { 0, 0 } });
    assert_memory_equal(a.entry, b.entry, (size_t)a.n_entries * sizeof *a.entry);
    dn_table_fini(&a);
    dn_table_fini(&b);
}

/* POST /denoise: the network's output, guided. */
static void test_denoise(void **state)
{
    (void)state;
    dn_table t = { 0 };
    run r;
    assert_int_equal(dn_table_plan_denoise(&t, 12.5, 2, NULL), 0);
    assert_int_equal(t.n_entries, 1);
    assert_float_equal(t.entry[0].timestep, 12.5, 0);
    run_init(&r, 300, 3, 3);
    assert_int_equal(run_entry(&r, &t, two_fields, NULL, NULL), 0);
    for (int i = 0; i < 300; i++) {
        float c = field(i / 3, i % 3, DN_ROW_COND), u = field(i / 3, i % 3, DN_ROW_UNCOND);
        assert_float_equal(r.slot.x[i], u + 2 * (c - u), 1e-6);
    }
    run_fini(&r);
    dn_table_fini(&t);
    assert_int_equal(dn_table_plan_denoise(&t, 5, 1, NULL), 0);
    assert_int_equal(dn_table_rows(&t), 1);
    dn_table_fini(&t);
    dn_error err = { 0 };
    assert_int_equal(dn_table_plan_denoise(&t, NAN, 1, &err), DN_E_RANGE);
    assert_string_equal(err.param, "timestep");
    assert_int_equal(dn_table_plan_denoise(&t, 5, INFINITY, &err), DN_E_RANGE);
    assert_string_equal(err.param, "guidance_scale");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_interval),
        cmocka_unit_test(test_interval_counts_entries),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_step),
        cmocka_unit_test(test_rescale),
        cmocka_unit_test(test_scale_one_is_none),
        cmocka_unit_test(test_denoise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
