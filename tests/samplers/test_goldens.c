/* test_goldens.c - every step of every scheduler case recorded from diffusers.
 *
 * The cases' headers define model, start and noise; a case's steps are our entries, one to one. Errors are relative to
 * the largest |x| of the step. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where x itself vanishes (a network that predicts x0 says 0 at t = 0) diffusers leaves rounding errors of about 1e-7.
 */
#define FLOOR 0.02

enum { B = 4, C = 3, H = 8, W = 8, PER = C * H * W, ALL = B * PER };

typedef struct batch {
    run sample[B];
    float factor; /* out = factor * in * t / (t + 1) */
    int variance; /* of the second half of the channels: 0 none, 1 learned, 2 learned_range */
    int draws;    /* noise draws so far, and whether this entry drew */
    bool drew;
    int current;
    double worst;
} batch;

/* Element e of a sample, [H,W,C], in the goldens' flat order [B,C,H,W]. */
static int flat(int b, int e) { return ((b * C + e % C) * H + e / C / W) * W + e / C % W; }

static void model(void *user, float *out, const float *in, const run *r, float t, enum dn_row_kind row)
{
    batch *a = user;
    assert_int_equal(row, DN_ROW_COND);
    int stride = r->slot.out_channels;
    for (int p = 0; p < H * W; p++)
        for (int k = 0; k < C; k++) {
            float x = in[p * C + k], v = a->factor * x * t / (t + 1);
            out[p * stride + k] = v;
            if (a->variance)
                out[p * stride + C + k] =
                    a->variance == 1 ? (float)(0.001 + 0.01 / (1 + exp(-x))) : (float)tanh(0.3 * v);
        }
}

static void noise(void *user, float *z, const run *r, enum dn_basis b)
{
    batch *a = user;
    assert_int_equal(b, DN_B_Z);
    assert_ptr_equal(r, &a->sample[a->current]);
    a->drew = true;
    for (int e = 0; e < PER; e++)
        z[e] = (float)(1.3 * cos(1.7 * (flat(a->current, e) + 1) + 0.9 * a->draws));
}

static void start(batch *a, bool clipped, float scale, int out_channels)
{
    for (int b = 0; b < B; b++) {
        run_init(&a->sample[b], PER, C, out_channels);
        for (int e = 0; e < PER; e++) {
            int in_sample = flat(0, e);
            float v = (float)((in_sample * B + b) / 768.0);
            a->sample[b].slot.x[e] = (clipped ? 6 * v - 3 : v) * scale;
        }
    }
}

static void check(batch *a, double got, double want, double scale)
{
    double error = fabs(got - want) / fmax(fabs(want), scale);
    if (!(error <= a->worst))
        a->worst = isnan(error) ? INFINITY : error; /* nothing later can be worse */
}

static void compare(batch *a, const json_t *want)
{
    float x[ALL];
    double sum_abs = 0, mean = 0, largest = FLOOR;
    for (int b = 0; b < B; b++)
        for (int e = 0; e < PER; e++)
            x[flat(b, e)] = a->sample[b].slot.x[e];
    for (int i = 0; i < ALL; i++) {
        sum_abs += fabs(x[i]);
        mean += x[i] / ALL;
        largest = fmax(largest, fabs(x[i]));
    }
    check(a, sum_abs, json_number_value(json_object_get(want, "sum_abs")), FLOOR * ALL);
    check(a, mean, json_number_value(json_object_get(want, "mean")), largest);
    for (int i = 0; i < 4; i++) {
        check(a, x[i], json_number_value(json_array_get(json_object_get(want, "first"), i)), largest);
        check(a, x[ALL - 4 + i], json_number_value(json_array_get(json_object_get(want, "last"), i)), largest);
    }
}

static bool has_null(const json_t *steps)
{
    size_t i;
    json_t *step;
    json_array_foreach((json_t *)steps, i, step) if (json_is_null(json_object_get(step, "sum_abs"))) return true;
    return false;
}

/* The case's configuration as a file names it, and its step arguments as a request's keys. */
static dn_scheduler_config *config_of_case(const json_t *c)
{
    dn_scheduler_config *config = NULL;
    dn_error err = { 0 };
    json_t *file = json_deep_copy(json_object_get(c, "config")), *request = json_object(), *value;
    const char *key;
    json_object_set(file, "_class_name", json_object_get(c, "class"));
    json_object_foreach(json_object_get(c, "step_kwargs"), key, value) if (strcmp(key, "eta"))
        json_object_set(request, key, value);
    if (json_is_number(json_object_get(c, "mu")))
        json_object_set(request, "mu", json_object_get(c, "mu"));
    if (dn_scheduler_config_new(&config, file, &err) || dn_scheduler_config_overlay(config, request, &err))
        fail_msg("%s: %s", err.param, err.message);
    json_decref(file);
    json_decref(request);
    return config;
}

static void run_case(batch *a, const dn_table *t, const json_t *c, bool clipped)
{
    const json_t *steps = json_object_get(c, "steps"), *timesteps = json_object_get(c, "timesteps");
    const char *variance = json_string_value(json_object_get(json_object_get(c, "config"), "variance_type"));
    a->factor = clipped ? -0.5f : 1;
    a->variance = !variance ? 0 : !strcmp(variance, "learned") ? 1 : !strcmp(variance, "learned_range") ? 2 : 0;
    const json_t *sigma = json_object_get(c, "init_noise_sigma");
    if (json_is_number(sigma))
        check(a, t->init_scale, json_number_value(sigma), 0);
    start(a, clipped, t->init_scale, a->variance ? 2 * C : C);
    assert_int_equal(t->n_entries, json_array_size(steps));
    for (int i = 0; i < t->n_entries; i++) {
        double want = json_number_value(json_array_get(timesteps, i));
        check(a, t->entry[i].timestep, want, 1);
        a->drew = false;
        for (a->current = 0; a->current < B; a->current++)
            assert_int_equal(run_entry(&a->sample[a->current], t, model, noise, a), 0);
        a->draws += a->drew;
        compare(a, json_array_get(steps, i));
    }
    for (int b = 0; b < B; b++)
        run_fini(&a->sample[b]);
}

/* diffusers' own fp32 cancellation: DPM-Solver++ with at most three steps. */
static double tolerance(const json_t *c)
{
    bool dpm = !strcmp(json_string_value(json_object_get(c, "class")), "DPMSolverMultistepScheduler");
    return dpm && json_array_size(json_object_get(c, "steps")) <= 3 ? 7e-5 : 1e-5;
}

enum outcome { AGREES, DIFFERS, IMPOSSIBLE, LATER };

static enum outcome try_case(const json_t *c, int number, bool clipped)
{
    dn_scheduler_config *config = config_of_case(c);
    const json_t *list = json_object_get(json_object_get(c, "set_timesteps"), "timesteps");
    const char *cls = json_string_value(json_object_get(c, "class"));
    double timesteps[16];
    dn_plan_params p = params_of(-1, (int)json_integer_value(json_object_get(c, "num_inference_steps")));
    p.eta = json_number_value(json_object_get(json_object_get(c, "step_kwargs"), "eta"));
    p.learned_variance = true;
    p.n_timesteps = (int)json_array_size(list);
    assert_true(p.n_timesteps <= (int)(sizeof timesteps / sizeof *timesteps));
    for (int i = 0; i < p.n_timesteps; i++)
        timesteps[i] = json_number_value(json_array_get(list, (size_t)i));
    p.timesteps = p.n_timesteps ? timesteps : NULL;
    dn_table t = { 0 };
    dn_error err = { 0 };
    batch a = { 0 };
    int status = dn_table_plan(&t, config, &p, &err);
    dn_scheduler_config_free(config);
    if (status) {
        if (status == DN_E_UNSUPPORTED)
            return LATER;
        if (!has_null(json_object_get(c, "steps")))
            print_error("case %d, %s: %s: %s\n", number, cls, err.param, err.message);
        return status == DN_E_IMPOSSIBLE ? IMPOSSIBLE : DIFFERS;
    }
    run_case(&a, &t, c, clipped);
    dn_table_fini(&t);
    if (a.worst > tolerance(c)) {
        print_error("case %d, %s: off by %g\n", number, cls, a.worst);
        return DIFFERS;
    }
    return AGREES;
}

/* What must become of the cases is counted, so that none is skipped by accident. */
static void run_file(const char *path, bool clipped, const int want[4])
{
    json_t *file = json_file(path), *c;
    int count[4] = { 0 };
    size_t i;
    json_array_foreach(json_object_get(file, "cases"), i, c)
    {
        bool nan = has_null(json_object_get(c, "steps"));
        enum outcome o = try_case(c, (int)i, clipped);
        if (o != LATER && nan != (o == IMPOSSIBLE))
            fail_msg("case %d: the golden %s NaN, we %s it", (int)i, nan ? "is" : "is no",
                     o == IMPOSSIBLE ? "refuse" : "run");
        count[o]++;
    }
    json_decref(file);
    for (int k = 0; k < 4; k++)
        assert_int_equal(count[k], want[k]);
}

static void test_schedulers(void **state)
{
    (void)state;
    run_file(GOLDEN_DIR "/schedulers.json", false, (int[4]){ [AGREES] = 113, [IMPOSSIBLE] = 2, [LATER] = 6 });
}

static void test_schedulers_clipped(void **state)
{
    (void)state;
    run_file(GOLDEN_DIR "/schedulers_clipped.json", true, (int[4]){ [AGREES] = 17, [LATER] = 1 });
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_schedulers), cmocka_unit_test(test_schedulers_clipped) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
