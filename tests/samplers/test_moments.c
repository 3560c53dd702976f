/* test_moments.c - every sampler on data whose score is known exactly.
 *
 * Data: a Gaussian, and a mixture of two. The network is the exact posterior mean E[x0 | x_t] in whatever form the
 * prediction type asks for. Deterministic samplers solve the probability-flow ODE, whose solution from x_T is known for
 * the Gaussian: every element is compared with it. For all samplers mean, variance and (mixture) the mass left of zero
 * of the result must be the data's. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "run.h"
#include "rng.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 1 << 12, FEW = 64, T = 1000 };

typedef struct data {
    int n;
    double weight[2], mean[2], deviation[2];
} data;

static const data gaussian = { 1, { 1 }, { 0.5 }, { 0.4 } };
static const data mixture = { 2, { 0.3, 0.7 }, { -0.8, 0.6 }, { 0.15, 0.25 } };

/* What the network says. A consistency model says where the ODE ends, instead of the posterior mean. */
enum kind { EPSILON, V, SAMPLE, FLOW_VELOCITY, CONSISTENCY, FLOW_CONSISTENCY };
typedef struct world {
    const data *d;
    enum kind kind;
    uint64_t seed;
} world;

static double sigma_of[T]; /* sqrt((1 - abar) / abar) of the linear schedule, made here */
static double stratum[N];  /* quantiles of N(0,1): strata instead of draws */

static void make_sigmas(void)
{
    double abar = 1;
    for (int t = 0; t < T; t++) {
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * t / (T - 1));
        sigma_of[t] = sqrt((1 - abar) / abar);
    }
}

static bool is_flow(enum kind k) { return k == FLOW_VELOCITY || k == FLOW_CONSISTENCY; }

static void level(double t, bool flow, double *alpha, double *sigma)
{
    if (flow) {
        *sigma = t / T;
        *alpha = 1 - *sigma;
        return;
    }
    int low = (int)t < T - 1 ? (int)t : T - 2;
    double s = sigma_of[low] + (sigma_of[low + 1] - sigma_of[low]) * (t - low);
    *alpha = 1 / sqrt(s * s + 1);
    *sigma = s * *alpha;
}

/* E[x0 | alpha * x0 + sigma * noise = u], with what does not depend on u made once. */
typedef struct posterior {
    const data *d;
    double alpha, variance[2], log_scale[2];
} posterior;

static posterior posterior_at(const data *d, double alpha, double sigma)
{
    posterior p = { .d = d, .alpha = alpha };
    for (int k = 0; k < d->n; k++) {
        p.variance[k] = alpha * alpha * d->deviation[k] * d->deviation[k] + sigma * sigma;
        p.log_scale[k] = log(d->weight[k]) - 0.5 * log(p.variance[k]);
    }
    return p;
}

static double posterior_mean(const posterior *p, double u)
{
    const data *d = p->d;
    double mean[2], likelihood[2];
    for (int k = 0; k < d->n; k++) {
        double r = u - p->alpha * d->mean[k];
        mean[k] = d->mean[k] + p->alpha * d->deviation[k] * d->deviation[k] / p->variance[k] * r;
        likelihood[k] = p->log_scale[k] - 0.5 * r * r / p->variance[k];
    }
    return d->n == 1 ? mean[0] : mean[0] + (mean[1] - mean[0]) / (1 + exp(likelihood[0] - likelihood[1]));
}

/* The end of the probability-flow ODE from u (one Gaussian): deviations map to deviations. */
static double ode_end(const data *d, double u, double alpha, double sigma)
{
    double v = alpha * alpha * d->deviation[0] * d->deviation[0] + sigma * sigma;
    return d->mean[0] + d->deviation[0] * (u - alpha * d->mean[0]) / sqrt(v);
}

static void model(void *user, float *out, const float *in, const run *r, float t, enum dn_row_kind row)
{
    const world *w = user;
    double alpha, sigma;
    assert_int_equal(row, DN_ROW_COND);
    level(t, is_flow(w->kind), &alpha, &sigma);
    const posterior p = posterior_at(w->d, alpha, sigma);
    for (int64_t i = 0; i < r->slot.n; i++) {
        double u = in[i];
        bool end = w->kind == CONSISTENCY || w->kind == FLOW_CONSISTENCY;
        double x0 = end ? ode_end(w->d, u, alpha, sigma) : posterior_mean(&p, u);
        double eps = (u - alpha * x0) / sigma;
        const double as[] = {
            [EPSILON] = eps,    [V] = alpha * eps - sigma * x0, [SAMPLE] = x0, [FLOW_VELOCITY] = eps - x0,
            [CONSISTENCY] = x0, [FLOW_CONSISTENCY] = eps - x0
        };
        out[i] = (float)as[w->kind];
    }
}

static void noise(void *user, float *z, const run *r, enum dn_basis b)
{
    const world *w = user;
    dn_rng_key key = { w->seed, (uint32_t)r->entry, (b == DN_B_Z ? DN_RNG_STEP : DN_RNG_STEP2) << 24, 0 };
    dn_rng_normal(z, 0, r->slot.n, &key);
}

/* By Newton, from the middle. */
static double normal_quantile(double p)
{
    double x = 0;
    for (int i = 0; i < 60; i++) {
        double cdf = 0.5 * erfc(-x * M_SQRT1_2), density = exp(-0.5 * x * x) / sqrt(2 * M_PI);
        double step = (p - cdf) / density;
        x += fmax(-1, fmin(1, step));
    }
    return x;
}

typedef struct moments {
    double mean, variance, left;
} moments;

static moments moments_of_data(const data *d)
{
    moments m = { 0 };
    double square = 0;
    for (int k = 0; k < d->n; k++) {
        m.mean += d->weight[k] * d->mean[k];
        square += d->weight[k] * (d->mean[k] * d->mean[k] + d->deviation[k] * d->deviation[k]);
        m.left += d->weight[k] * 0.5 * erfc(d->mean[k] / d->deviation[k] * M_SQRT1_2);
    }
    m.variance = square - m.mean * m.mean;
    return m;
}

static moments moments_of(const float *x, int n)
{
    moments m = { 0 };
    for (int i = 0; i < n; i++) {
        m.mean += x[i] / (double)n;
        m.left += (x[i] < 0) / (double)n;
    }
    for (int i = 0; i < n; i++)
        m.variance += (x[i] - m.mean) * (x[i] - m.mean) / n;
    return m;
}

/* One way to sample: the least that is promised of it. `ode` bounds the distance of any element within 3 deviations
 * from the exact solution, in data deviations; 0: the sampler draws noise. Most of it is the last step, a jump from the
 * last sigma to 0, which takes E[x0 | x] for x0: short by 3 * sigma^2 / (2 * deviation^2). `bias` bounds what the step
 * count alone does to mean, deviation (relative) and mass; drawing adds four standard errors. test_order has the bounds
 * that tell the samplers' orders apart. */
static const struct way {
    const char *sampler, *request;
    enum kind kind;
    int steps;
    double eta, ode, bias;
} ways[] = {
    { "ddpm", "{\"variance_type\":\"fixed_small\"}", EPSILON, 1000, 0, 0, 0.01 },
    { "ddpm", "{\"variance_type\":\"fixed_large\"}", EPSILON, 1000, 0, 0, 0.01 },
    { "ddpm", "{\"prediction_type\":\"v_prediction\"}", V, 500, 0, 0, 0.015 },
    { "ddim", "{}", EPSILON, 200, 0, 0.07, 0.025 },
    { "ddim", "{\"timestep_spacing\":\"trailing\"}", EPSILON, 200, 0, 0.07, 0.025 },
    { "ddim", "{\"prediction_type\":\"sample\"}", SAMPLE, 200, 0, 0.07, 0.025 },
    { "ddim", "{\"prediction_type\":\"v_prediction\"}", V, 200, 0, 0.07, 0.025 },
    { "ddim", "{}", EPSILON, 500, 1, 0, 0.015 },
    { "dpm++1", "{}", EPSILON, 200, 0, 0.07, 0.025 },
    { "dpm++2m", "{}", EPSILON, 40, 0, 0.05, 0.02 },
    { "dpm++2m", "{\"solver_type\":\"heun\"}", EPSILON, 40, 0, 0.05, 0.02 },
    { "dpm++2m", "{\"prediction_type\":\"v_prediction\"}", V, 40, 0, 0.05, 0.02 },
    { "dpm++3m", "{}", EPSILON, 40, 0, 0.09, 0.03 },
    { "dpm++2m_sde", "{}", EPSILON, 100, 0, 0, 0.02 },
    { "dpm++2m_sde", "{\"solver_type\":\"heun\"}", EPSILON, 100, 0, 0, 0.02 },
    { "euler", "{}", EPSILON, 200, 0, 0.07, 0.025 },
    { "euler", "{\"use_karras_sigmas\":true}", EPSILON, 200, 0, 0.07, 0.025 },
    { "euler", "{\"prediction_type\":\"v_prediction\"}", V, 200, 0, 0.07, 0.025 },
    { "euler", "{\"s_churn\":40}", EPSILON, 400, 0, 0, 0.05 },
    { "euler_ancestral", "{}", EPSILON, 500, 0, 0, 0.02 },
    { "heun", "{\"beta_start\":0.0001,\"beta_end\":0.02}", EPSILON, 60, 0, 0.01, 0.01 },
    { "unipc", "{}", EPSILON, 60, 0, 0.05, 0.02 },
    { "unipc", "{\"solver_order\":1}", EPSILON, 60, 0, 0.12, 0.04 },
    { "unipc", "{\"solver_order\":3}", EPSILON, 60, 0, 0.05, 0.02 },
    { "unipc", "{\"solver_type\":\"bh1\",\"final_sigmas_type\":\"sigma_min\"}", EPSILON, 60, 0, 0.05, 0.02 },
    { "unipc", "{\"predict_x0\":false,\"final_sigmas_type\":\"sigma_min\"}", EPSILON, 60, 0, 0.05, 0.02 },
    { "pndm", "{}", EPSILON, 50, 0, 0.002, 0.01 },
    { "pndm", "{\"skip_prk_steps\":true}", EPSILON, 50, 0, 0.002, 0.01 },
    { "lcm", "{\"prediction_type\":\"sample\"}", CONSISTENCY, 8, 0, 0, 0.005 },
    { "flow_euler", "{}", FLOW_VELOCITY, 200, 0, 0.07, 0.025 },
    { "flow_euler", "{\"shift\":3}", FLOW_VELOCITY, 200, 0, 0.07, 0.025 },
    { "flow_euler", "{\"stochastic_sampling\":true}", FLOW_CONSISTENCY, 8, 0, 0, 0.005 },
};

#define FILE_CONFIG                                                                                            \
    "{\"_class_name\":\"DDPMScheduler\",\"beta_start\":0.0001,\"beta_end\":0.02,\"beta_schedule\":\"linear\"," \
    "\"clip_sample\":false}"

static void check_ode(const struct way *w, const dn_table *t, const run *r, const float *start)
{
    double worst = 0, alpha, sigma;
    level(t->entry[0].timestep, is_flow(w->kind), &alpha, &sigma);
    for (int i = 0; i < N; i++) {
        double u = (double)start[i] * t->entry[0].c_in;
        if (fabs(stratum[i]) < 3)
            worst = fmax(worst, fabs(r->slot.x[i] - ode_end(&gaussian, u, alpha, sigma)) / gaussian.deviation[0]);
    }
    if (!(worst < w->ode))
        fail_msg("%s %s: %g deviations from the exact solution", w->sampler, w->request, worst);
}

static void check_moments(const struct way *w, const data *d, moments got)
{
    moments want = moments_of_data(d);
    double deviation = sqrt(want.variance), draws = w->ode > 0 ? 0 : 4 / sqrt(N);
    double mean = fabs(got.mean - want.mean) / deviation, spread = fabs(sqrt(got.variance / want.variance) - 1);
    double left = fabs(got.left - want.left);
    if (!(mean < w->bias + draws && spread < w->bias + draws && left < w->bias + draws))
        fail_msg("%s %s on %d: mean %g instead of %g, variance %g instead of %g, left of zero %g instead of %g",
                 w->sampler, w->request, d->n, got.mean, want.mean, got.variance, want.variance, got.left, want.left);
}

static void sample(const struct way *w, const data *d)
{
    dn_scheduler_config *c = config_of(FILE_CONFIG, w->request);
    dn_plan_params p = params_of(dn_sampler_find(w->sampler), w->steps);
    dn_table t = { 0 };
    dn_error err = { 0 };
    run r;
    world user = { d, w->kind, 7 };
    p.eta = w->eta;
    if (dn_table_plan(&t, c, &p, &err))
        fail_msg("%s: %s: %s", w->sampler, err.param, err.message);
    assert_int_equal(t.n_steps, w->steps);
    assert_int_equal(t.draws_noise, w->ode == 0);
    run_init(&r, N, 1, 1);
    float *start = malloc(N * sizeof *start);
    assert_non_null(start);
    for (int i = 0; i < N; i++)
        start[i] = r.slot.x[i] = (float)(t.init_scale * stratum[i]);
    while (r.entry < t.n_entries)
        assert_int_equal(run_entry(&r, &t, model, noise, &user), 0);
    if (w->ode > 0 && d == &gaussian)
        check_ode(w, &t, &r, start);
    check_moments(w, d, moments_of(r.slot.x, N));
    free(start);
    run_fini(&r);
    dn_table_fini(&t);
    dn_scheduler_config_free(c);
}

static void test_gaussian(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        sample(&ways[i], &gaussian);
}

static void test_mixture(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (ways[i].kind != CONSISTENCY && ways[i].kind != FLOW_CONSISTENCY)
            sample(&ways[i], &mixture);
}

/* The error of a solver of order k falls by 2^k when the steps are doubled. Steps end at sigma_min, so that no step is
 * a jump to zero, and keep their order to the end. */
static double ode_error(const char *sampler, const char *request, int steps)
{
    dn_scheduler_config *c = config_of(FILE_CONFIG, request);
    dn_plan_params p = params_of(dn_sampler_find(sampler), steps);
    dn_table t = { 0 };
    dn_error err = { 0 };
    run r;
    world user = { &gaussian, EPSILON, 0 };
    double alpha, sigma, end_alpha, end_sigma, worst = 0;
    if (dn_table_plan(&t, c, &p, &err))
        fail_msg("%s: %s: %s", sampler, err.param, err.message);
    run_init(&r, FEW, 1, 1);
    for (int i = 0; i < FEW; i++)
        r.slot.x[i] = (float)(t.init_scale * stratum[i * (N / FEW)]);
    while (r.entry < t.n_entries)
        assert_int_equal(run_entry(&r, &t, model, noise, &user), 0);
    level(t.entry[0].timestep, false, &alpha, &sigma);
    level(0, false, &end_alpha, &end_sigma);
    double m = end_alpha * gaussian.mean[0], s = gaussian.deviation[0];
    double from = sqrt(alpha * alpha * s * s + sigma * sigma),
           to = sqrt(end_alpha * end_alpha * s * s + end_sigma * end_sigma);
    for (int i = 0; i < FEW; i++) {
        double u = t.init_scale * stratum[i * (N / FEW)] * t.entry[0].c_in;
        double ve = t.entry[0].c_in == 1 ? 1 : end_alpha;
        double exact = m + to * (u - alpha * gaussian.mean[0]) / from;
        worst = fmax(worst, fabs(r.slot.x[i] * ve - exact));
    }
    run_fini(&r);
    dn_table_fini(&t);
    dn_scheduler_config_free(c);
    return worst;
}

#define TO_SIGMA_MIN "\"final_sigmas_type\":\"sigma_min\",\"lower_order_final\":false"
static const struct {
    const char *sampler, *request;
    double ratio, error; /* the least that doubling 160 steps divides the error by; the most that is left */
} orders[] = {
    { "ddim", "{\"set_alpha_to_one\":false}", 1.9, 0.02 },
    { "euler", "{\"final_sigmas_type\":\"sigma_min\"}", 1.9, 0.02 },
    { "dpm++1", "{" TO_SIGMA_MIN "}", 1.9, 0.02 },
    { "dpm++2m", "{" TO_SIGMA_MIN "}", 3.7, 0.004 },
    { "dpm++2m", "{" TO_SIGMA_MIN ",\"solver_type\":\"heun\"}", 3.7, 0.004 },
    { "dpm++3m", "{" TO_SIGMA_MIN "}", 7, 0.001 },
    { "unipc", "{" TO_SIGMA_MIN ",\"solver_order\":1}", 3, 0.004 }, /* the corrector adds an order */
    { "unipc", "{" TO_SIGMA_MIN ",\"solver_order\":2}", 4.8, 0.002 },
    { "unipc", "{" TO_SIGMA_MIN ",\"solver_order\":2,\"predict_x0\":false}", 4.6, 0.001 },
    { "unipc", "{" TO_SIGMA_MIN ",\"solver_order\":2,\"solver_type\":\"bh1\"}", 4.6, 0.004 },
    { "unipc", "{" TO_SIGMA_MIN ",\"solver_order\":3}", 7, 0.003 },
    { "pndm", "{}", 2.5, 2e-4 },
    { "pndm", "{\"skip_prk_steps\":true}", 2.5, 2e-4 },
};

static void test_order(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        double coarse = ode_error(orders[i].sampler, orders[i].request, 160);
        double fine = ode_error(orders[i].sampler, orders[i].request, 320);
        if (!(coarse / fine > orders[i].ratio && fine < orders[i].error))
            fail_msg("%s %s: an error of %g, then %g", orders[i].sampler, orders[i].request, coarse, fine);
    }
}

/* No sampler of the enumeration is left out above. */
static void test_all_samplers(void **state)
{
    (void)state;
    for (int k = 0; k < DN_SAMPLER_COUNT; k++) {
        bool found = false;
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
            found = found || !strcmp(ways[i].sampler, dn_sampler_name(k));
        if (!found)
            fail_msg("%s is not tested", dn_sampler_name(k));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_gaussian), cmocka_unit_test(test_mixture),
                                        cmocka_unit_test(test_order), cmocka_unit_test(test_all_samplers) };
    make_sigmas();
    for (int i = 0; i < N; i++)
        stratum[i] = normal_quantile((i + 0.5) / N);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
