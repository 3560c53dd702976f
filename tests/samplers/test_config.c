/* test_config.c - configurations: what a file may say, what a request may say, what becomes of both. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include "settings.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Refused when it is laid over: param is "scheduler." and the key. */
static const struct {
    const char *request;
    int code;
    const char *param;
} bad_overlays[] = {
    { "{\"beta_shedule\":\"linear\"}", DN_E_UNKNOWN, "scheduler.beta_shedule" },
    { "{\"_class_name\":\"DDIMScheduler\"}", DN_E_UNKNOWN, "scheduler._class_name" },
    { "{\"solver_p\":null}", DN_E_UNKNOWN, "scheduler.solver_p" },
    { "{\"\":1}", DN_E_UNKNOWN, "scheduler." },
    { "{\"1234567890123456789012345678901234567890123456é\":1}", DN_E_UNKNOWN,
      "scheduler.1234567890123456789012345678901234567890123456é" },
    { "{\"12345678901234567890123456789012345678901234567é\":1}", DN_E_UNKNOWN,
      "scheduler.12345678901234567890123456789012345678901234567" },
    { "{\"num_train_timesteps\":0}", DN_E_RANGE, "scheduler.num_train_timesteps" },
    { "{\"num_train_timesteps\":10001}", DN_E_RANGE, "scheduler.num_train_timesteps" },
    { "{\"num_train_timesteps\":1000.0}", DN_E_INVALID, "scheduler.num_train_timesteps" },
    { "{\"num_train_timesteps\":\"1000\"}", DN_E_INVALID, "scheduler.num_train_timesteps" },
    { "{\"num_train_timesteps\":null}", DN_E_INVALID, "scheduler.num_train_timesteps" },
    { "{\"num_train_timesteps\":true}", DN_E_INVALID, "scheduler.num_train_timesteps" },
    { "{\"beta_start\":0}", DN_E_RANGE, "scheduler.beta_start" },
    { "{\"beta_start\":-1e-4}", DN_E_RANGE, "scheduler.beta_start" },
    { "{\"beta_end\":1}", DN_E_RANGE, "scheduler.beta_end" },
    { "{\"beta_end\":1e308}", DN_E_RANGE, "scheduler.beta_end" },
    { "{\"beta_end\":[0.02]}", DN_E_INVALID, "scheduler.beta_end" },
    { "{\"beta_schedule\":\"Linear\"}", DN_E_RANGE, "scheduler.beta_schedule" },
    { "{\"beta_schedule\":1}", DN_E_INVALID, "scheduler.beta_schedule" },
    { "{\"beta_schedule\":null}", DN_E_INVALID, "scheduler.beta_schedule" },
    { "{\"trained_betas\":0.1}", DN_E_INVALID, "scheduler.trained_betas" },
    { "{\"trained_betas\":[0.1,\"x\"]}", DN_E_RANGE, "scheduler.trained_betas" },
    { "{\"trained_betas\":[0.1,-0.1]}", DN_E_RANGE, "scheduler.trained_betas" },
    { "{\"trained_betas\":[0.1,1.5]}", DN_E_RANGE, "scheduler.trained_betas" },
    { "{\"rescale_betas_zero_snr\":1}", DN_E_INVALID, "scheduler.rescale_betas_zero_snr" },
    { "{\"prediction_type\":\"noise\"}", DN_E_RANGE, "scheduler.prediction_type" },
    { "{\"timestep_spacing\":\"even\"}", DN_E_RANGE, "scheduler.timestep_spacing" },
    { "{\"steps_offset\":-1}", DN_E_RANGE, "scheduler.steps_offset" },
    { "{\"clip_sample\":\"yes\"}", DN_E_INVALID, "scheduler.clip_sample" },
    { "{\"clip_sample_range\":0}", DN_E_RANGE, "scheduler.clip_sample_range" },
    { "{\"thresholding\":null}", DN_E_INVALID, "scheduler.thresholding" },
    { "{\"dynamic_thresholding_ratio\":1.001}", DN_E_RANGE, "scheduler.dynamic_thresholding_ratio" },
    { "{\"sample_max_value\":0}", DN_E_RANGE, "scheduler.sample_max_value" },
    { "{\"variance_type\":\"learnt\"}", DN_E_RANGE, "scheduler.variance_type" },
    { "{\"set_alpha_to_one\":0}", DN_E_INVALID, "scheduler.set_alpha_to_one" },
    { "{\"use_clipped_model_output\":\"\"}", DN_E_INVALID, "scheduler.use_clipped_model_output" },
    { "{\"solver_order\":0}", DN_E_RANGE, "scheduler.solver_order" },
    { "{\"solver_order\":4}", DN_E_RANGE, "scheduler.solver_order" },
    { "{\"algorithm_type\":\"dpm\"}", DN_E_RANGE, "scheduler.algorithm_type" },
    { "{\"solver_type\":\"euler\"}", DN_E_RANGE, "scheduler.solver_type" },
    { "{\"lower_order_final\":2}", DN_E_INVALID, "scheduler.lower_order_final" },
    { "{\"euler_at_final\":{}}", DN_E_INVALID, "scheduler.euler_at_final" },
    { "{\"predict_x0\":[]}", DN_E_INVALID, "scheduler.predict_x0" },
    { "{\"disable_corrector\":[0.5]}", DN_E_RANGE, "scheduler.disable_corrector" },
    { "{\"disable_corrector\":[-1]}", DN_E_RANGE, "scheduler.disable_corrector" },
    { "{\"lambda_min_clipped\":-101}", DN_E_RANGE, "scheduler.lambda_min_clipped" },
    { "{\"final_sigmas_type\":\"none\"}", DN_E_RANGE, "scheduler.final_sigmas_type" },
    { "{\"use_karras_sigmas\":\"true\"}", DN_E_INVALID, "scheduler.use_karras_sigmas" },
    { "{\"use_exponential_sigmas\":1}", DN_E_INVALID, "scheduler.use_exponential_sigmas" },
    { "{\"use_beta_sigmas\":1}", DN_E_INVALID, "scheduler.use_beta_sigmas" },
    { "{\"use_lu_lambdas\":1}", DN_E_INVALID, "scheduler.use_lu_lambdas" },
    { "{\"use_flow_sigmas\":1}", DN_E_INVALID, "scheduler.use_flow_sigmas" },
    { "{\"flow_shift\":0}", DN_E_RANGE, "scheduler.flow_shift" },
    { "{\"shift\":-3}", DN_E_RANGE, "scheduler.shift" },
    { "{\"use_dynamic_shifting\":1}", DN_E_INVALID, "scheduler.use_dynamic_shifting" },
    { "{\"time_shift_type\":\"cubic\"}", DN_E_RANGE, "scheduler.time_shift_type" },
    { "{\"mu\":11}", DN_E_RANGE, "scheduler.mu" },
    { "{\"shift_terminal\":1}", DN_E_RANGE, "scheduler.shift_terminal" },
    { "{\"sigma_min\":0}", DN_E_RANGE, "scheduler.sigma_min" },
    { "{\"sigma_max\":1e7}", DN_E_RANGE, "scheduler.sigma_max" },
    { "{\"interpolation_type\":\"cubic\"}", DN_E_RANGE, "scheduler.interpolation_type" },
    { "{\"timestep_type\":\"integer\"}", DN_E_RANGE, "scheduler.timestep_type" },
    { "{\"s_churn\":-1}", DN_E_RANGE, "scheduler.s_churn" },
    { "{\"s_tmin\":-1}", DN_E_RANGE, "scheduler.s_tmin" },
    { "{\"s_tmax\":\"inf\"}", DN_E_INVALID, "scheduler.s_tmax" },
    { "{\"s_noise\":101}", DN_E_RANGE, "scheduler.s_noise" },
    { "{\"skip_prk_steps\":1}", DN_E_INVALID, "scheduler.skip_prk_steps" },
    { "{\"original_inference_steps\":0}", DN_E_RANGE, "scheduler.original_inference_steps" },
    { "{\"timestep_scaling\":0}", DN_E_RANGE, "scheduler.timestep_scaling" },
    { "{\"invert_sigmas\":1}", DN_E_INVALID, "scheduler.invert_sigmas" },
    { "{\"stochastic_sampling\":1}", DN_E_INVALID, "scheduler.stochastic_sampling" },
    { "{\"beta_start\":0.001,\"beta_end\":2}", DN_E_RANGE, "scheduler.beta_end" },
    { "[]", DN_E_INVALID, "scheduler" },
    { "\"linear\"", DN_E_INVALID, "scheduler" },
};

static void test_bad_overlays(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_overlays / sizeof *bad_overlays; i++) {
        dn_scheduler_config *c = config_of("{\"trained_betas\":[0.1,0.2],\"num_train_timesteps\":2}", NULL);
        json_t *j = json_loads(bad_overlays[i].request, JSON_DECODE_ANY, NULL);
        dn_error err = { 0 };
        assert_non_null(j);
        int code = dn_scheduler_config_overlay(c, j, &err);
        if (code != bad_overlays[i].code || strcmp(err.param, bad_overlays[i].param) || !err.message[0])
            fail_msg("%s: code %s, param %s: %s", bad_overlays[i].request, dn_error_name(code), err.param, err.message);
        json_decref(j);
        dn_scheduler_config_free(c);
    }
}

/* A refused overlay changes nothing, though its first keys were good. */
static void test_overlay_is_atomic(void **state)
{
    (void)state;
    dn_scheduler_config *c = config_of("{\"clip_sample\":false}", NULL);
    json_t *j = json_loads("{\"timestep_spacing\":\"trailing\",\"trained_betas\":[0.5],\"beta_end\":5}", 0, NULL);
    dn_plan_params p = params_of(DN_SAMPLER_DDIM, 10);
    dn_table before = { 0 }, after = { 0 };
    assert_int_equal(dn_table_plan(&before, c, &p, NULL), 0);
    assert_int_equal(dn_scheduler_config_overlay(c, j, NULL), DN_E_RANGE);
    assert_int_equal(dn_table_plan(&after, c, &p, NULL), 0);
    assert_memory_equal(before.entry, after.entry, 10 * sizeof *before.entry);
    dn_table_fini(&before);
    dn_table_fini(&after);
    json_decref(j);
    dn_scheduler_config_free(c);
}

static void test_copy_is_independent(void **state)
{
    (void)state;
    dn_scheduler_config *a = config_of("{\"trained_betas\":[0.1,0.2,0.3],\"num_train_timesteps\":3}", NULL);
    dn_scheduler_config *b = dn_scheduler_config_copy(a);
    json_t *j = json_loads("{\"trained_betas\":[0.3,0.2,0.1]}", 0, NULL);
    dn_plan_params p = params_of(DN_SAMPLER_DDIM, 3);
    dn_table ta = { 0 }, tb = { 0 };
    assert_int_equal(dn_scheduler_config_overlay(b, j, NULL), 0);
    assert_int_equal(dn_table_plan(&ta, a, &p, NULL), 0);
    dn_scheduler_config_free(a);
    assert_int_equal(dn_table_plan(&tb, b, &p, NULL), 0);
    assert_float_equal(ta.entry[2].c_s, 1 / sqrt(0.9), 1e-6);
    assert_float_equal(tb.entry[2].c_s, 1 / sqrt(0.7), 1e-6);
    dn_table_fini(&ta);
    dn_table_fini(&tb);
    json_decref(j);
    dn_scheduler_config_free(b);
}

static void check_file(const char *text, int code, const char *param)
{
    dn_scheduler_config *c = NULL;
    dn_error err = { 0 };
    json_t *j = json_loads(text, JSON_DECODE_ANY, NULL);
    int got = dn_scheduler_config_new(&c, j, &err);
    if (got != code || (code && strcmp(err.param, param)))
        fail_msg("%s: code %s, param %s: %s", text, dn_error_name(got), err.param, err.message);
    assert_true(!!c == !code);
    if (code == DN_E_INVALID || code == DN_E_RANGE)
        assert_non_null(strstr(err.message, "scheduler_config.json"));
    dn_scheduler_config_free(c);
    json_decref(j);
}

static void test_files(void **state)
{
    (void)state;
    check_file("{}", 0, "");
    check_file(
        "{\"_class_name\":\"DDPMScheduler\",\"_diffusers_version\":\"0.42.1\",\"whatever\":[1,{}],\"solver_p\":null}",
        0, "");
    check_file("{\"trained_betas\":null,\"variance_type\":null,\"sigma_min\":null,\"beta_end\":null}", 0, "");
    check_file("{\"beta_end\":\"0.02\"}", DN_E_INVALID, "beta_end");
    check_file("{\"beta_schedule\":\"cubic\"}", DN_E_RANGE, "beta_schedule");
    check_file("{\"_class_name\":7}", DN_E_FORMAT, "_class_name");
    check_file("[]", DN_E_FORMAT, "");
    dn_scheduler_config *c = NULL;
    assert_int_equal(dn_scheduler_config_new(&c, NULL, NULL), 0);
    assert_int_equal(dn_scheduler_config_sampler(c, NULL), DN_SAMPLER_DDPM);
    dn_scheduler_config_free(c);
}

static void test_classes(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        int sampler;
    } classes[] = {
        { "{\"_class_name\":\"DDPMScheduler\"}", DN_SAMPLER_DDPM },
        { "{\"_class_name\":\"DDIMScheduler\"}", DN_SAMPLER_DDIM },
        { "{\"_class_name\":\"DPMSolverMultistepScheduler\"}", DN_SAMPLER_DPMPP2M },
        { "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"solver_order\":1}", DN_SAMPLER_DPMPP1 },
        { "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"solver_order\":3}", DN_SAMPLER_DPMPP3M },
        { "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"algorithm_type\":\"sde-dpmsolver++\"}",
          DN_SAMPLER_DPMPP2M_SDE },
        { "{\"_class_name\":\"EulerDiscreteScheduler\"}", DN_SAMPLER_EULER },
        { "{\"_class_name\":\"EulerAncestralDiscreteScheduler\"}", DN_SAMPLER_EULER_ANCESTRAL },
        { "{\"_class_name\":\"HeunDiscreteScheduler\"}", DN_SAMPLER_HEUN },
        { "{\"_class_name\":\"UniPCMultistepScheduler\"}", DN_SAMPLER_UNIPC },
        { "{\"_class_name\":\"PNDMScheduler\"}", DN_SAMPLER_PNDM },
        { "{\"_class_name\":\"LCMScheduler\"}", DN_SAMPLER_LCM },
        { "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}", DN_SAMPLER_FLOW_EULER },
        { "{\"_class_name\":\"DDIMInverseScheduler\"}", -1 },
        { "{\"_class_name\":\"ScoreSdeVeScheduler\",\"snr\":0.15}", -1 },
        { "{\"_class_name\":\"ScoreSdeVpScheduler\"}", -1 },
        { "{\"_class_name\":\"MyScheduler\"}", -1 },
    };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        dn_scheduler_config *c = config_of(classes[i].file, NULL);
        dn_error err = { 0 };
        dn_plan_params p = params_of(-1, 4);
        dn_table t = { 0 };
        assert_int_equal(dn_scheduler_config_sampler(c, &err), classes[i].sampler);
        if (classes[i].sampler < 0) {
            assert_int_equal(err.code, DN_E_UNSUPPORTED);
            assert_string_equal(err.param, "sampler");
            assert_int_equal(dn_table_plan(&t, c, &p, &err), DN_E_UNSUPPORTED);
            p.sampler = DN_SAMPLER_DDIM; /* another sampler can be asked for by name */
        }
        assert_int_equal(dn_table_plan(&t, c, &p, &err), 0);
        dn_table_fini(&t);
        dn_scheduler_config_free(c);
    }
    for (int k = 0; k < DN_SAMPLER_COUNT; k++)
        assert_int_equal(dn_sampler_find(dn_sampler_name(k)), k);
    assert_int_equal(dn_sampler_find("dpm"), -1);
}

static double first_timestep(const char *file, const char *request, int sampler)
{
    dn_scheduler_config *c = config_of(file, request);
    dn_plan_params p = params_of(sampler, 10);
    dn_table t = { 0 };
    assert_int_equal(dn_table_plan(&t, c, &p, NULL), 0);
    double first = t.entry[0].timestep;
    dn_table_fini(&t);
    dn_scheduler_config_free(c);
    return first;
}

/* The constructors' defaults where the classes of diffusers differ. */
static void test_constructor_defaults(void **state)
{
    (void)state;
    static const struct {
        int sampler;
        double first, last, spacing, clip, alpha_to_one, solver; /* NAN: the class has no such key */
        int schedule;
    } want[] = {
        { DN_SAMPLER_DDPM, 1e-4, 0.02, DN_SPACING_LEADING, 1, NAN, NAN, DN_BETA_LINEAR },
        { DN_SAMPLER_DDIM, 1e-4, 0.02, DN_SPACING_LEADING, 1, 1, NAN, DN_BETA_LINEAR },
        { DN_SAMPLER_DPMPP2M, 1e-4, 0.02, DN_SPACING_LINSPACE, NAN, NAN, DN_SOLVER_MIDPOINT, DN_BETA_LINEAR },
        { DN_SAMPLER_EULER, 1e-4, 0.02, DN_SPACING_LINSPACE, NAN, NAN, NAN, DN_BETA_LINEAR },
        { DN_SAMPLER_EULER_ANCESTRAL, 1e-4, 0.02, DN_SPACING_LINSPACE, NAN, NAN, NAN, DN_BETA_LINEAR },
        { DN_SAMPLER_HEUN, 0.00085, 0.012, DN_SPACING_LINSPACE, 0, NAN, NAN, DN_BETA_LINEAR },
        { DN_SAMPLER_UNIPC, 1e-4, 0.02, DN_SPACING_LINSPACE, NAN, NAN, DN_SOLVER_BH2, DN_BETA_LINEAR },
        { DN_SAMPLER_PNDM, 1e-4, 0.02, DN_SPACING_LEADING, NAN, 0, NAN, DN_BETA_LINEAR },
        { DN_SAMPLER_LCM, 0.00085, 0.012, NAN, 0, NAN, NAN, DN_BETA_SCALED_LINEAR },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        dn_scheduler_config *c = config_of("{}", NULL);
        dn_settings s;
        enum dn_sampler_kind kind;
        assert_int_equal(dn_settings_resolve(&s, &kind, c, want[i].sampler, NULL), 0);
        assert_int_equal(kind, want[i].sampler);
        assert_int_equal(dn_int(&s, beta_schedule), want[i].schedule);
        const double pairs[][2] = { { dn_num(&s, beta_start), want[i].first },
                                    { dn_num(&s, beta_end), want[i].last },
                                    { dn_num(&s, timestep_spacing), want[i].spacing },
                                    { dn_num(&s, clip_sample), want[i].clip },
                                    { dn_num(&s, set_alpha_to_one), want[i].alpha_to_one },
                                    { dn_num(&s, solver_type), want[i].solver } };
        for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++)
            if (!isnan(pairs[k][1]))
                assert_float_equal(pairs[k][0], pairs[k][1], 0);
        dn_scheduler_config_free(c);
    }
}

/* from_config: an absent key takes the default of the class that samples, a given one sticks. */
static void test_class_defaults(void **state)
{
    (void)state;
    const char *bare = "{\"_class_name\":\"DDPMScheduler\"}", *leading = "{\"timestep_spacing\":\"leading\"}";
    assert_float_equal(first_timestep(bare, NULL, DN_SAMPLER_DDIM), 900, 0);
    assert_float_equal(first_timestep(bare, NULL, DN_SAMPLER_DPMPP2M), 999, 0);
    assert_float_equal(first_timestep(leading, NULL, DN_SAMPLER_DPMPP2M), 900, 0);
    assert_float_equal(first_timestep(leading, "{\"timestep_spacing\":\"linspace\"}", DN_SAMPLER_EULER), 999, 0);
    assert_float_equal(first_timestep(leading, NULL, DN_SAMPLER_EULER), 900, 0);
}

/* Refused when it is planned, by a field. */
static const struct {
    const char *request;
    int sampler, steps, code;
    const char *param;
} bad_plans[] = {
    { "{\"skip_prk_steps\":true}", DN_SAMPLER_DDIM, 10, DN_E_IMPOSSIBLE, "scheduler.skip_prk_steps" },
    { "{\"clip_sample\":true}", DN_SAMPLER_DPMPP2M, 10, DN_E_IMPOSSIBLE, "scheduler.clip_sample" },
    { "{\"thresholding\":true}", DN_SAMPLER_EULER, 10, DN_E_IMPOSSIBLE, "scheduler.thresholding" },
    { "{\"variance_type\":\"fixed_large\"}", DN_SAMPLER_DDIM, 10, DN_E_IMPOSSIBLE, "scheduler.variance_type" },
    { "{\"variance_type\":\"fixed_large_log\"}", DN_SAMPLER_DDPM, 10, DN_E_IMPOSSIBLE, "scheduler.variance_type" },
    { "{\"variance_type\":\"learned\"}", DN_SAMPLER_DDPM, 10, DN_E_IMPOSSIBLE, "scheduler.variance_type" },
    { "{\"variance_type\":\"learned_range\"}", DN_SAMPLER_DDPM, 10, DN_E_IMPOSSIBLE, "scheduler.variance_type" },
    { "{\"solver_order\":3}", DN_SAMPLER_DPMPP2M, 10, DN_E_IMPOSSIBLE, "scheduler.solver_order" },
    { "{\"algorithm_type\":\"sde-dpmsolver++\"}", DN_SAMPLER_DPMPP2M, 10, DN_E_IMPOSSIBLE, "scheduler.algorithm_type" },
    { "{\"solver_type\":\"bh2\"}", DN_SAMPLER_DPMPP2M, 10, DN_E_IMPOSSIBLE, "scheduler.solver_type" },
    { "{\"solver_type\":\"heun\"}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE, "scheduler.solver_type" },
    { "{\"solver_type\":\"bh1\"}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE, "scheduler.solver_type" },
    { "{\"predict_x0\":false}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE, "scheduler.final_sigmas_type" },
    { "{\"lower_order_final\":false}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE, "scheduler" },
    { "{\"use_karras_sigmas\":true,\"use_exponential_sigmas\":true}", DN_SAMPLER_EULER, 10, DN_E_INVALID,
      "scheduler.use_exponential_sigmas" },
    { "{\"use_karras_sigmas\":true,\"sigma_min\":5,\"sigma_max\":1}", DN_SAMPLER_EULER, 10, DN_E_IMPOSSIBLE,
      "scheduler" },
    { "{\"prediction_type\":\"flow_prediction\"}", DN_SAMPLER_DDIM, 10, DN_E_IMPOSSIBLE, "scheduler.prediction_type" },
    { "{\"use_flow_sigmas\":true}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE, "scheduler.prediction_type" },
    { "{\"use_dynamic_shifting\":true}", DN_SAMPLER_FLOW_EULER, 10, DN_E_IMPOSSIBLE, "scheduler.mu" },
    { "{\"mu\":1}", DN_SAMPLER_FLOW_EULER, 10, DN_E_IMPOSSIBLE, "scheduler.mu" },
    { "{\"use_dynamic_shifting\":true,\"mu\":1}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE,
      "scheduler.use_dynamic_shifting" },
    { "{\"shift_terminal\":0.1}", DN_SAMPLER_UNIPC, 10, DN_E_IMPOSSIBLE, "scheduler.shift_terminal" },
    { "{\"rescale_betas_zero_snr\":true,\"timestep_spacing\":\"trailing\"}", DN_SAMPLER_DDIM, 10, DN_E_IMPOSSIBLE,
      "scheduler" },
    { "{\"timestep_type\":\"continuous\"}", DN_SAMPLER_EULER, 10, DN_E_IMPOSSIBLE, "scheduler.timestep_type" },
    { "{\"trained_betas\":[0.1,0.2]}", DN_SAMPLER_DDPM, 1, DN_E_INVALID, "scheduler.trained_betas" },
    { "{\"trained_betas\":[0,0],\"num_train_timesteps\":2}", DN_SAMPLER_DDIM, 2, DN_E_IMPOSSIBLE, "scheduler" },
    { "{\"original_inference_steps\":1001}", DN_SAMPLER_LCM, 4, DN_E_RANGE, "scheduler.original_inference_steps" },
    { "{}", DN_SAMPLER_LCM, 51, DN_E_RANGE, "steps" },
    { "{}", DN_SAMPLER_PNDM, 3, DN_E_IMPOSSIBLE, "steps" },
    { "{}", DN_SAMPLER_DDIM, 0, DN_E_RANGE, "steps" },
    { "{}", DN_SAMPLER_DDIM, -5, DN_E_RANGE, "steps" },
    { "{}", DN_SAMPLER_DDIM, 1001, DN_E_RANGE, "steps" },
    { "{\"num_train_timesteps\":10000}", DN_SAMPLER_DDIM, 5000, DN_E_RANGE, "steps" },
    { "{\"num_train_timesteps\":10000}", DN_SAMPLER_HEUN, 4000, DN_E_LIMIT, "steps" },
};

static void check_refused(const char *request, const dn_plan_params *p, int code, const char *param)
{
    dn_scheduler_config *c = config_of("{}", request);
    dn_table t = { .n_entries = 77 };
    dn_error err = { 0 };
    int got = dn_table_plan(&t, c, p, &err);
    if (got != code || strcmp(err.param, param) || t.n_entries != 77 || t.entry)
        fail_msg("%s, %s: code %s, param %s: %s", dn_sampler_name(p->sampler), request, dn_error_name(got), err.param,
                 err.message);
    dn_scheduler_config_free(c);
}

static void test_bad_plans(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_plans / sizeof *bad_plans; i++) {
        dn_plan_params p = params_of(bad_plans[i].sampler, bad_plans[i].steps);
        check_refused(bad_plans[i].request, &p, bad_plans[i].code, bad_plans[i].param);
    }
}

static void test_bad_params(void **state)
{
    (void)state;
    const dn_plan_params good = params_of(DN_SAMPLER_DDIM, 10);
    dn_plan_params p = good;
#define REFUSED(change, code, param) (p = good, change, check_refused("{}", &p, code, param))
    REFUSED(p.eta = 1.5, DN_E_RANGE, "eta");
    REFUSED(p.eta = NAN, DN_E_RANGE, "eta");
    REFUSED((p.eta = 0.5, p.sampler = DN_SAMPLER_DDPM), DN_E_IMPOSSIBLE, "eta");
    REFUSED((p.eta = 0.5, p.sampler = DN_SAMPLER_EULER), DN_E_IMPOSSIBLE, "eta");
    REFUSED(p.temperature = 2.1, DN_E_RANGE, "temperature");
    REFUSED(p.temperature = NAN, DN_E_RANGE, "temperature");
    REFUSED(p.temperature = 0.9, DN_E_IMPOSSIBLE, "temperature");
    REFUSED((p.temperature = 0, p.sampler = DN_SAMPLER_HEUN), DN_E_IMPOSSIBLE, "temperature");
    REFUSED(p.guidance.scale = INFINITY, DN_E_RANGE, "guidance.cfg.scale");
    REFUSED(p.guidance.scale = NAN, DN_E_RANGE, "guidance.cfg.scale");
    REFUSED(p.guidance.interval[0] = -0.1, DN_E_RANGE, "guidance.cfg.interval");
    REFUSED(p.guidance.interval[1] = 1.1, DN_E_RANGE, "guidance.cfg.interval");
    REFUSED((p.guidance.interval[0] = 0.6, p.guidance.interval[1] = 0.5), DN_E_RANGE, "guidance.cfg.interval");
    REFUSED(p.guidance.rescale = 1.1, DN_E_RANGE, "guidance.cfg.rescale");
    REFUSED(p.guidance.schedule = 3, DN_E_RANGE, "guidance.cfg.schedule");
    const double repeated[] = { 9, 9 }, up[] = { 1, 2 }, past[] = { 1000 }, negative[] = { -1 }, broken[] = { 5.5 },
                 nan[] = { NAN };
    REFUSED((p.timesteps = repeated, p.n_timesteps = 2), DN_E_INVALID, "timesteps");
    REFUSED((p.timesteps = up, p.n_timesteps = 2), DN_E_INVALID, "timesteps");
    REFUSED((p.timesteps = past, p.n_timesteps = 1), DN_E_RANGE, "timesteps");
    REFUSED((p.timesteps = negative, p.n_timesteps = 1), DN_E_RANGE, "timesteps");
    REFUSED((p.timesteps = broken, p.n_timesteps = 1), DN_E_RANGE, "timesteps");
    REFUSED((p.timesteps = nan, p.n_timesteps = 1), DN_E_RANGE, "timesteps");
    REFUSED((p.timesteps = up, p.n_timesteps = 0), DN_E_RANGE, "timesteps");
    REFUSED((p.timesteps = past, p.n_timesteps = 1, p.sampler = DN_SAMPLER_PNDM), DN_E_RANGE, "timesteps");
    const double ten[] = { 10 };
    REFUSED((p.timesteps = ten, p.n_timesteps = 1, p.sampler = DN_SAMPLER_PNDM), DN_E_IMPOSSIBLE, "timesteps");
#undef REFUSED
    p = good;
    p.timesteps = ten;
    p.n_timesteps = 1;
    p.sampler = DN_SAMPLER_EULER;
    check_refused("{\"use_karras_sigmas\":true}", &p, DN_E_IMPOSSIBLE, "scheduler.use_karras_sigmas");
    p = good;
    p.elements = (1 << 24) + 1;
    check_refused("{\"thresholding\":true}", &p, DN_E_IMPOSSIBLE, "scheduler.thresholding");
}

/* Single keys of test_any_combination. */
static const char *const any_keys[] = {
    "\"num_train_timesteps\":1",
    "\"num_train_timesteps\":2",
    "\"num_train_timesteps\":17",
    "\"beta_start\":0.9",
    "\"beta_end\":0.9",
    "\"beta_schedule\":\"cosine\"",
    "\"beta_schedule\":\"laplace\"",
    "\"beta_schedule\":\"exp\"",
    "\"trained_betas\":[0,0]",
    "\"rescale_betas_zero_snr\":true",
    "\"prediction_type\":\"v_prediction\"",
    "\"prediction_type\":\"sample\"",
    "\"prediction_type\":\"flow_prediction\"",
    "\"timestep_spacing\":\"trailing\"",
    "\"timestep_spacing\":\"linspace\"",
    "\"steps_offset\":1",
    "\"steps_offset\":9999",
    "\"thresholding\":true",
    "\"solver_type\":\"heun\"",
    "\"solver_type\":\"bh1\"",
    "\"solver_order\":3",
    "\"solver_order\":1",
    "\"lower_order_final\":false",
    "\"euler_at_final\":true",
    "\"predict_x0\":false",
    "\"disable_corrector\":[0,2]",
    "\"lambda_min_clipped\":-5",
    "\"lambda_min_clipped\":100",
    "\"final_sigmas_type\":\"sigma_min\"",
    "\"use_karras_sigmas\":true",
    "\"use_exponential_sigmas\":true",
    "\"use_beta_sigmas\":true",
    "\"use_lu_lambdas\":true",
    "\"use_flow_sigmas\":true",
    "\"flow_shift\":1000",
    "\"shift\":0.001",
    "\"use_dynamic_shifting\":true",
    "\"mu\":-10",
    "\"time_shift_type\":\"linear\"",
    "\"shift_terminal\":0.9",
    "\"sigma_min\":1e-6",
    "\"sigma_max\":1e6",
    "\"interpolation_type\":\"log_linear\"",
    "\"timestep_type\":\"continuous\"",
    "\"s_churn\":1e6",
    "\"skip_prk_steps\":true",
    "\"original_inference_steps\":1",
    "\"timestep_scaling\":0.001",
    "\"invert_sigmas\":true",
    "\"stochastic_sampling\":true",
};

/* Random keys, right and absurd, in random company: a table of finite numbers, or an error that names a field. */
static void test_any_combination(void **state)
{
    (void)state;
    enum { KEYS = sizeof any_keys / sizeof *any_keys, TRIES = 6000 };
    static const int steps[] = { 1, 2, 3, 4, 7, 17, 50 };
    uint64_t random = 88172645463325252ull;
    int planned = 0;
    for (int i = 0; i < TRIES; i++) {
        char text[1024] = "{";
        for (int k = 0; k < KEYS; k++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            if (random % KEYS < 3)
                snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", text[1] ? "," : "", any_keys[k]);
        }
        strcat(text, "}");
        dn_scheduler_config *c = config_of(text, NULL); /* as a file: keys of other classes are dropped */
        dn_plan_params p = params_of((int)(random >> 20) % DN_SAMPLER_COUNT, steps[(random >> 30) % 7]);
        dn_table t = { 0 };
        dn_error err = { 0 };
        p.eta = p.sampler == DN_SAMPLER_DDIM && random >> 60 & 1 ? 1 : 0;
        if (dn_table_plan(&t, c, &p, &err)) {
            if (!err.param[0])
                fail_msg("%s with %s: %s", dn_sampler_name(p.sampler), text, err.message);
        } else {
            planned++;
            assert_true(t.n_steps >= 1 && t.n_steps <= p.steps && t.n_history <= DN_HISTORY_MAX && t.init_scale > 0);
            for (int j = 0; j < t.n_entries; j++)
                for (int b = 0; b < DN_BASIS; b++)
                    assert_true(isfinite(t.entry[j].x.a[b]));
        }
        dn_table_fini(&t);
        dn_scheduler_config_free(c);
    }
    assert_true(planned > TRIES / 4 && planned < TRIES);
}

/* Every sampler takes a temperature exactly when it draws. */
static void test_temperature(void **state)
{
    (void)state;
    for (int k = 0; k < DN_SAMPLER_COUNT; k++) {
        dn_scheduler_config *c = config_of("{}", NULL);
        dn_plan_params p = params_of(k, 10);
        dn_table t = { 0 };
        assert_int_equal(dn_table_plan(&t, c, &p, NULL), 0);
        bool draws = t.draws_noise;
        bool want = k == DN_SAMPLER_DDPM || k == DN_SAMPLER_DPMPP2M_SDE || k == DN_SAMPLER_EULER_ANCESTRAL ||
                    k == DN_SAMPLER_LCM;
        assert_int_equal(draws, want);
        assert_int_equal(t.n_steps, 10);
        dn_table_fini(&t);
        p.temperature = 0.5;
        assert_int_equal(dn_table_plan(&t, c, &p, NULL), draws ? 0 : DN_E_IMPOSSIBLE);
        dn_table_fini(&t);
        dn_scheduler_config_free(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_overlays),
        cmocka_unit_test(test_overlay_is_atomic),
        cmocka_unit_test(test_copy_is_independent),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_constructor_defaults),
        cmocka_unit_test(test_class_defaults),
        cmocka_unit_test(test_bad_plans),
        cmocka_unit_test(test_bad_params),
        cmocka_unit_test(test_any_combination),
        cmocka_unit_test(test_temperature),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
