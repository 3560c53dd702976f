/* test_schedule.c - betas, alphas_cumprod, timesteps and sigmas, against numbers computed elsewhere. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include "schedule.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dn_schedule schedule_of(const char *config, int sampler)
{
    dn_scheduler_config *c = config_of(config, NULL);
    dn_settings s;
    dn_schedule out;
    enum dn_sampler_kind kind;
    assert_int_equal(dn_settings_resolve(&s, &kind, c, sampler, NULL), 0);
    assert_int_equal(dn_schedule_init(&out, &s, NULL), 0);
    dn_scheduler_config_free(c);
    return out;
}

/* artifex's own values for T = 1000, 1e-4..2e-2 (float64 there). Its cosine lifts the first 13 betas to 1e-4 and lets
 * the last reach 0.9999, diffusers' caps at 0.999 only: abar differs by the lift, and t < 13 and 999 are not compared.
 */
static const struct {
    const char *name;
    double abar_tolerance;
    double beta[7], abar[7];
} guide[] = {
    { "linear",
      2e-6,
      { 1e-4, 1.1991992e-4, 5.07997998e-3, 1.005996e-2, 1.50399399e-2, 1.99800801e-2, 0.02 },
      { 0.9999, 0.999780092, 0.521423031, 0.0777966584, 3.30015836e-3, 4.11819364e-5, 4.03582977e-5 } },
    { "quadratic",
      2e-6,
      { 1e-4, 1.02648364e-4, 1.83940004e-3, 5.74207107e-3, 1.18080131e-2, 1.99628085e-2, 0.02 },
      { 0.9999, 0.999797362, 0.820010236, 0.33127458, 0.0381496574, 7.48380061e-4, 7.3341246e-4 } },
    { "sqrt",
      2e-6,
      { 1e-4, 7.29608137e-4, 1.00549787e-2, 1.41784659e-2, 1.7342529e-2, 1.99900375e-2, 0.02 },
      { 0.9999, 0.999170465, 0.183501545, 8.43536622e-3, 1.56559878e-4, 1.44929173e-6, 1.4203059e-6 } },
    { "cosine",
      5e-4,
      { NAN, NAN, 1.32722395e-3, 3.15569144e-3, 7.57912265e-3, 0.749999393, NAN },
      { NAN, NAN, 0.845562911, 0.492095987, 0.143123623, 2.42783353e-6, NAN } },
};

static void test_guide_schedules(void **state)
{
    (void)state;
    static const int at[7] = { 0, 1, 250, 500, 750, 998, 999 };
    for (int k = 0; k < 4; k++) {
        char config[64];
        snprintf(config, sizeof config, "{\"beta_schedule\":\"%s\"}", guide[k].name);
        dn_schedule s = schedule_of(config, DN_SAMPLER_DDPM);
        for (int i = 0; i < 7; i++) {
            double beta = guide[k].beta[i], abar = guide[k].abar[i];
            if (isnan(beta))
                continue;
            if (fabs(s.beta[at[i]] / beta - 1) > 1e-6 || fabs(s.abar[at[i]] / abar - 1) > guide[k].abar_tolerance)
                fail_msg("%s at %d: beta %g instead of %g, abar %g instead of %g", guide[k].name, at[i], s.beta[at[i]],
                         beta, s.abar[at[i]], abar);
        }
        dn_schedule_fini(&s);
    }
}

/* The guide's names and diffusers' are the same schedules, and no two schedules are. */
static void test_aliases(void **state)
{
    (void)state;
    static const char *const same[][2] = { { "cosine", "squaredcos_cap_v2" }, { "quadratic", "scaled_linear" } };
    static const char *const different[] = { "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace",
                                             "exp",    "sqrt" };
    char config[64];
    for (int k = 0; k < 2; k++) {
        snprintf(config, sizeof config, "{\"beta_schedule\":\"%s\"}", same[k][0]);
        dn_schedule a = schedule_of(config, DN_SAMPLER_DDIM);
        snprintf(config, sizeof config, "{\"beta_schedule\":\"%s\"}", same[k][1]);
        dn_schedule b = schedule_of(config, DN_SAMPLER_DDIM);
        assert_memory_equal(a.beta, b.beta, 1000 * sizeof(float));
        dn_schedule_fini(&a);
        dn_schedule_fini(&b);
    }
    float middle[7];
    for (int k = 0; k < 7; k++) {
        snprintf(config, sizeof config, "{\"beta_schedule\":\"%s\"}", different[k]);
        dn_schedule s = schedule_of(config, DN_SAMPLER_DDIM);
        middle[k] = s.beta[500];
        for (int j = 0; j < k; j++)
            assert_true(fabsf(middle[j] - middle[k]) > 1e-5f);
        for (int t = 1; t < 1000; t++)
            assert_true(s.abar[t] < s.abar[t - 1] && s.abar[t] > 0);
        dn_schedule_fini(&s);
    }
}

/* betas_for_alpha_bar in double, from its definition. */
static void test_alpha_bar_schedules(void **state)
{
    (void)state;
    dn_schedule s = schedule_of("{\"beta_schedule\":\"exp\"}", DN_SAMPLER_HEUN);
    for (int t = 0; t < 1000; t += 111)
        assert_float_equal(s.beta[t], 1 - exp(-0.012), 1e-7);
    dn_schedule_fini(&s);
    s = schedule_of("{\"beta_schedule\":\"laplace\"}", DN_SAMPLER_DDPM);
    /* at u = 1/2 the log-SNR is 0: abar = sqrt(1/2); betas telescope from abar(0) = 0.99950... */
    double first = sqrt(1e3 / (1 + 1e3)), half = sqrt(0.5);
    assert_float_equal(s.abar[499] / (half / first), 1, 1e-5);
    dn_schedule_fini(&s);
    s = schedule_of("{\"beta_schedule\":\"sigmoid\"}", DN_SAMPLER_DDPM);
    assert_float_equal(s.beta[0], 1e-4 + 0.0199 / (1 + exp(6)), 1e-8);
    assert_float_equal(s.beta[999], 1e-4 + 0.0199 / (1 + exp(-6)), 1e-8);
    dn_schedule_fini(&s);
}

static void test_trained_betas(void **state)
{
    (void)state;
    dn_schedule s = schedule_of("{\"num_train_timesteps\":3,\"trained_betas\":[0.1,0.2,0.5]}", DN_SAMPLER_DDPM);
    assert_float_equal(s.abar[2], 0.9 * 0.8 * 0.5, 1e-7);
    dn_schedule_fini(&s);
}

static void test_zero_snr(void **state)
{
    (void)state;
    const char *config = "{\"rescale_betas_zero_snr\":true,\"prediction_type\":\"v_prediction\"}";
    dn_schedule plain = schedule_of("{}", DN_SAMPLER_DDIM), s = schedule_of(config, DN_SAMPLER_DDIM);
    assert_true(s.abar[999] == 0);
    assert_float_equal(s.abar[0], plain.abar[0], 1e-7);
    double last = sqrt(plain.abar[999]), first = sqrt(plain.abar[0]);
    double want = pow((sqrt(plain.abar[500]) - last) * first / (first - last), 2);
    assert_float_equal(s.abar[500] / want, 1, 1e-5);
    dn_schedule_fini(&s);
    s = schedule_of(config, DN_SAMPLER_DPMPP2M);
    assert_true(s.abar[999] == 0x1p-24f);
    dn_schedule_fini(&s);
    dn_schedule_fini(&plain);
}

static int plan_status(dn_table *t, const char *config, int sampler, int steps, dn_error *err)
{
    dn_scheduler_config *c = config_of(config, NULL);
    dn_plan_params p = params_of(sampler, steps);
    int status = dn_table_plan(t, c, &p, err);
    dn_scheduler_config_free(c);
    return status;
}

/* Every number of steps with every spacing: exactly so many timesteps, descending, in range; or a refusal that says
 * steps. */
static void test_every_step_count(void **state)
{
    (void)state;
    static const char *const spacings[] = { "{\"timestep_spacing\":\"leading\"}", "{\"timestep_spacing\":\"trailing\"}",
                                            "{\"timestep_spacing\":\"linspace\"}" };
    static const int samplers[] = { DN_SAMPLER_DDIM, DN_SAMPLER_DDPM, DN_SAMPLER_DPMPP2M };
    static const int largest[3][3] = { { 1000, 1000, 1000 }, { 1000, 1000, 1000 }, { 999, 1000, 999 } };
    for (int k = 0; k < 3; k++)
        for (int j = 0; j < 3; j++)
            for (int n = 1; n <= 1000; n += n < 226 ? 1 : 31) {
                dn_table t = { 0 };
                dn_error err = { 0 };
                int status = plan_status(&t, spacings[j], samplers[k], n, &err);
                if (status) {
                    assert_int_equal(status, DN_E_IMPOSSIBLE);
                    assert_string_equal(err.param, "steps");
                    assert_true(n > largest[k][j]);
                    continue;
                }
                assert_int_equal(t.n_steps, n);
                for (int i = 0; i < n; i++) {
                    double v = t.entry[i].timestep;
                    assert_true(v >= 0 && v <= 999 && (i == 0 || v < t.entry[i - 1].timestep));
                }
                dn_table_fini(&t);
            }
}

static void test_past_the_end(void **state)
{
    (void)state;
    dn_table t = { 0 };
    dn_error err = { 0 };
    assert_int_equal(plan_status(&t, "{\"steps_offset\":1}", DN_SAMPLER_DDIM, 1000, &err), DN_E_IMPOSSIBLE);
    assert_string_equal(err.param, "steps");
    assert_int_equal(plan_status(&t, "{\"steps_offset\":1}", DN_SAMPLER_DDIM, 500, &err), 0);
    assert_float_equal(t.entry[0].timestep, 999, 0);
    dn_table_fini(&t);
}

/* diffusers' own tests: _get_variance of DDIM (420 to 400, 980 to 960) and of DDPM (487, 999). */
static void test_known_variances(void **state)
{
    (void)state;
    static const struct {
        int sampler;
        double eta, t[2], variance;
    } known[] = { { DN_SAMPLER_DDIM, 1, { 420, 400 }, 0.14771 },
                  { DN_SAMPLER_DDIM, 1, { 980, 960 }, 0.32460 },
                  { DN_SAMPLER_DDPM, 0, { 487, 486 }, 0.00979 },
                  { DN_SAMPLER_DDPM, 0, { 999, 998 }, 0.02 } };
    dn_scheduler_config *c = config_of("{}", NULL);
    for (int k = 0; k < 4; k++) {
        dn_plan_params p = params_of(known[k].sampler, 0);
        dn_table t = { 0 };
        p.timesteps = known[k].t;
        p.n_timesteps = 2;
        p.eta = known[k].eta;
        assert_int_equal(dn_table_plan(&t, c, &p, NULL), 0);
        assert_float_equal(pow(t.entry[0].x.a[DN_B_Z], 2), known[k].variance, 1e-5);
        dn_table_fini(&t);
    }
    dn_scheduler_config_free(c);
}

/* Explicit timesteps are a list; a named spacing of DDIM steps T/N down from each, as diffusers does. */
static void test_ddim_previous(void **state)
{
    (void)state;
    dn_scheduler_config *c = config_of("{\"timestep_spacing\":\"linspace\",\"clip_sample\":false}", NULL);
    dn_schedule s = schedule_of("{}", DN_SAMPLER_DDIM);
    dn_plan_params p = params_of(DN_SAMPLER_DDIM, 10);
    dn_table t = { 0 };
    assert_int_equal(dn_table_plan(&t, c, &p, NULL), 0);
    assert_float_equal(t.entry[1].timestep, 888, 0);
    assert_float_equal(t.entry[0].x.a[DN_B_X0], sqrt(s.abar[899]), 1e-6);
    dn_table_fini(&t);
    const double list[] = { 999, 888, 5 };
    p.timesteps = list;
    p.n_timesteps = 3;
    p.steps = 0;
    assert_int_equal(dn_table_plan(&t, c, &p, NULL), 0);
    assert_int_equal(t.n_steps, 3);
    assert_float_equal(t.entry[0].x.a[DN_B_X0], sqrt(s.abar[888]), 1e-6);
    assert_float_equal(t.entry[2].x.a[DN_B_X0], 1, 1e-6);
    dn_table_fini(&t);
    dn_schedule_fini(&s);
    dn_scheduler_config_free(c);
}

/* sigma_min + ppf * (sigma_max - sigma_min) with scipy.stats.beta.ppf(., 0.6, 0.6). Euler's x coefficient is the ratio.
 */
static void test_beta_sigmas(void **state)
{
    (void)state;
    static const double ppf[] = { 1.0, 0.8770782495416671, 0.6372990092467856, 0.36270099075321405, 0.12292175045833284,
                                  0.0 };
    dn_schedule s = schedule_of("{}", DN_SAMPLER_EULER);
    dn_table t = { 0 };
    assert_int_equal(plan_status(&t, "{\"use_beta_sigmas\":true}", DN_SAMPLER_EULER, 6, NULL), 0);
    double most = s.sigma[999], least = s.sigma[0], before = most;
    for (int i = 1; i < 6; i++) {
        double sigma = least + ppf[i] * (most - least);
        assert_float_equal(t.entry[i - 1].x.a[DN_B_X] / (sigma / before), 1, 1e-6);
        before = sigma;
    }
    dn_table_fini(&t);
    dn_schedule_fini(&s);
}

/* The distribution function of Beta(0.6, 0.6) for x <= 1/2, by Simpson's rule over y = x^0.6, in which it is smooth. */
static double beta_below(double x)
{
    enum { PARTS = 200 };
    double k = 0.6 * tgamma(0.6) * tgamma(0.6) / tgamma(1.2), y = pow(x, 0.6), sum = 0;
    for (int i = 0; i <= PARTS; i++)
        sum += (i == 0 || i == PARTS ? 1 : i % 2 ? 4 : 2) * pow(1 - pow(y * i / PARTS, 1 / 0.6), -0.4);
    return y / PARTS / 3 * sum / k;
}

/* All of a thousand are quantiles: the distribution function leads back. Only the fp32 of the list is lost. */
static void test_beta_quantiles(void **state)
{
    (void)state;
    dn_schedule s = schedule_of("{}", DN_SAMPLER_EULER);
    dn_scheduler_config *c = config_of("{\"use_beta_sigmas\":true}", NULL);
    dn_settings settings;
    enum dn_sampler_kind kind;
    dn_plan_params p = { .sampler = DN_SAMPLER_EULER, .steps = 1000 };
    assert_int_equal(dn_settings_resolve(&settings, &kind, c, DN_SAMPLER_EULER, NULL), 0);
    assert_int_equal(dn_schedule_steps(&s, &settings, &p, NULL), 0);
    double most = s.sigma[999], least = s.sigma[0];
    for (int i = 0; i < 1000; i++) {
        double x = (s.level[i] - least) / (most - least), want = 1 - i / 999.0;
        double got = x <= 0.5 ? beta_below(x) : 1 - beta_below(1 - x);
        if (!(fabs(got - want) < (x <= 0.5 ? 1e-7 : 1e-5)))
            fail_msg("sigma %d: its quantile is %.9g, not %.9g", i, got, want);
    }
    dn_scheduler_config_free(c);
    dn_schedule_fini(&s);
}

/* sigma_min and sigma_max bound a Karras spread. */
static void test_sigma_bounds(void **state)
{
    (void)state;
    dn_table t = { 0 };
    const char *config = "{\"use_karras_sigmas\":true,\"sigma_min\":0.1,\"sigma_max\":80}";
    assert_int_equal(plan_status(&t, config, DN_SAMPLER_EULER, 3, NULL), 0);
    double middle = pow((pow(80, 1 / 7.0) + pow(0.1, 1 / 7.0)) / 2, 7);
    assert_float_equal(t.init_scale, 80, 1e-5);
    assert_float_equal(t.entry[0].x.a[DN_B_X], middle / 80, 1e-6);
    assert_float_equal(t.entry[1].x.a[DN_B_X], 0.1 / middle, 1e-6);
    dn_table_fini(&t);
}

/* use_flow_sigmas: alpha = 1 - sigma, out = noise - x0. One first-order step from s to t of a constant x0 is exact:
 * x' = t/s x + (1 - t/s) x0. */
static void test_flow_sigmas(void **state)
{
    (void)state;
    static const int samplers[] = { DN_SAMPLER_DPMPP1, DN_SAMPLER_UNIPC };
    for (int k = 0; k < 2; k++) {
        dn_table t = { 0 };
        const char *config = "{\"use_flow_sigmas\":true,\"prediction_type\":\"flow_prediction\",\"flow_shift\":3,"
                             "\"disable_corrector\":[0,1,2,3],\"solver_order\":1}";
        assert_int_equal(plan_status(&t, config, samplers[k], 5, NULL), 0);
        double before = 0;
        for (int i = 0; i < 5; i++) {
            const dn_entry *e = &t.entry[i];
            double sigma = -e->c_o;
            if (i)
                assert_float_equal(t.entry[i - 1].x.a[DN_B_X], sigma / before, 1e-5);
            assert_float_equal(e->x.a[DN_B_X] + e->x.a[DN_B_X0], 1, 1e-5);
            assert_true(sigma > 0 && sigma < 1 && (i == 0 || sigma < before));
            assert_float_equal(e->timestep, trunc(1000 * sigma), 1);
            before = sigma;
        }
        dn_table_fini(&t);
    }
}

/* The last sigma of a stretched flow is shift_terminal, the first stays. */
static void test_shift_terminal(void **state)
{
    (void)state;
    static const struct {
        int sampler;
        const char *config;
    } flows[] = { { DN_SAMPLER_FLOW_EULER, "{\"shift_terminal\":0.1,\"shift\":3}" },
                  { DN_SAMPLER_UNIPC, "{\"shift_terminal\":0.1,\"flow_shift\":3,\"use_flow_sigmas\":true,"
                                      "\"prediction_type\":\"flow_prediction\"}" } };
    for (int k = 0; k < 2; k++) {
        dn_table t = { 0 };
        assert_int_equal(plan_status(&t, flows[k].config, flows[k].sampler, 8, NULL), 0);
        assert_float_equal(-t.entry[0].c_o, 1, 2e-6);
        assert_float_equal(-t.entry[7].c_o, 0.1, 1e-6);
        assert_true(-t.entry[3].c_o > 0.6);
        dn_table_fini(&t);
    }
}

/* DDPM draws wherever t > 0: with a trailing spacing on the last step too. */
static void test_ddpm_last_noise(void **state)
{
    (void)state;
    dn_schedule s = schedule_of("{}", DN_SAMPLER_DDPM);
    dn_table t = { 0 };
    const char *trailing = "{\"timestep_spacing\":\"trailing\",\"variance_type\":\"fixed_large\"}";
    assert_int_equal(plan_status(&t, trailing, DN_SAMPLER_DDPM, 10, NULL), 0);
    assert_float_equal(t.entry[9].timestep, 99, 0);
    assert_float_equal(t.entry[9].x.a[DN_B_Z], sqrt(1 - s.abar[99]), 1e-6);
    dn_table_fini(&t);
    assert_int_equal(plan_status(&t, "{\"variance_type\":\"fixed_large\"}", DN_SAMPLER_DDPM, 10, NULL), 0);
    assert_float_equal(t.entry[9].timestep, 0, 0);
    assert_float_equal(t.entry[9].x.a[DN_B_Z], 0, 0);
    dn_table_fini(&t);
    dn_schedule_fini(&s);
}

/* A continuous Euler network is told log(sigma) / 4. */
static void test_continuous_timesteps(void **state)
{
    (void)state;
    dn_table t = { 0 };
    const char *config = "{\"timestep_type\":\"continuous\",\"prediction_type\":\"v_prediction\"}";
    assert_int_equal(plan_status(&t, config, DN_SAMPLER_EULER, 4, NULL), 0);
    for (int i = 0; i < 4; i++) {
        double sigma = sqrt(1 / (double)t.entry[i].c_in / t.entry[i].c_in - 1);
        assert_float_equal(t.entry[i].timestep, 0.25 * log(sigma), 1e-3);
    }
    dn_table_fini(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guide_schedules),
        cmocka_unit_test(test_aliases),
        cmocka_unit_test(test_alpha_bar_schedules),
        cmocka_unit_test(test_trained_betas),
        cmocka_unit_test(test_zero_snr),
        cmocka_unit_test(test_every_step_count),
        cmocka_unit_test(test_past_the_end),
        cmocka_unit_test(test_known_variances),
        cmocka_unit_test(test_ddim_previous),
        cmocka_unit_test(test_beta_sigmas),
        cmocka_unit_test(test_beta_quantiles),
        cmocka_unit_test(test_sigma_bounds),
        cmocka_unit_test(test_flow_sigmas),
        cmocka_unit_test(test_continuous_timesteps),
        cmocka_unit_test(test_shift_terminal),
        cmocka_unit_test(test_ddpm_last_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
