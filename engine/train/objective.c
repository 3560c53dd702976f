/* objective.c - which timestep, which target, which weight: the numbers of one row.
 *
 * Weights are those of the error of x0 (w), turned into weights of the error of what is predicted:
 *   |x0 - x0'|^2 = |eps - eps'|^2 / SNR = |v - v'|^2 / (1 + SNR) = sigma^2 |u - u'|^2 (flow). */
#include "train_internal.h"
#include <math.h>

/* The quantile function of N(0,1): Wichura 1988, algorithm AS 241 (PPND16). */
static double ratio(const double *a, const double *b, double r)
{
    double p = a[7], q = b[7];
    for (int i = 6; i >= 0; i--) {
        p = p * r + a[i];
        q = q * r + b[i];
    }
    return p / q;
}

static double normal_quantile(double u)
{
    /* clang-format off */
    static const double a[] = { 3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
                                4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3 },
                        b[] = { 1, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
                                2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3 },
                        c[] = { 1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
                                1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4 },
                        d[] = { 1, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
                                1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9 },
                        e[] = { 6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
                                2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7 },
                        f[] = { 1, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
                                7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15 };
    /* clang-format on */
    double q = u - 0.5;
    if (fabs(q) <= 0.425)
        return q * ratio(a, b, 0.180625 - q * q);
    double r = sqrt(-log(q < 0 ? u : 1 - u));
    double z = r <= 5 ? ratio(c, d, r - 1.6) : ratio(e, f, r - 5);
    return q < 0 ? -z : z;
}

double dn_timesteps_scale(const dn_objective *o)
{
    return !isnan(o->timesteps_scale) ? o->timesteps_scale : o->timesteps == DN_TIMESTEPS_MODE ? 1.29 : 1;
}

static double law_uniform(const dn_objective *o, double u)
{
    return u;
    (void)o;
}

/* Esser et al. 2024, eq. 19. */
static double law_logit_normal(const dn_objective *o, double u)
{
    return 1 / (1 + exp(-(o->timesteps_loc + dn_timesteps_scale(o) * normal_quantile(u))));
}

/* Esser et al. 2024, eq. 20. */
static double law_mode(const dn_objective *o, double u)
{
    double c = cos(M_PI / 2 * u);
    return 1 - u - dn_timesteps_scale(o) * (c * c - 1 + u);
}

int dn_timestep_of(const dn_objective *o, int n, double u)
{
    static double (*const law[])(const dn_objective *o, double u) = { [DN_TIMESTEPS_UNIFORM] = law_uniform,
                                                                      [DN_TIMESTEPS_LOGIT_NORMAL] = law_logit_normal,
                                                                      [DN_TIMESTEPS_MODE] = law_mode };
    int t = (int)floor(n * law[o->timesteps](o, u));
    return t < 0 ? 0 : t >= n ? n - 1 : t;
}

/* The weight of the error of x0. Salimans and Ho 2022; Hang et al. 2023; Karras et al. 2022; Choi et al. 2022. Without
 * weighting the error of the prediction itself counts 1. */
static double weight_of_x0(const dn_objective *o, double snr)
{
    switch (o->weighting) {
    case DN_WEIGHT_UNIFORM:
        break;
    case DN_WEIGHT_SNR:
        return snr;
    case DN_WEIGHT_MIN_SNR:
        return fmin(snr, o->snr_gamma);
    case DN_WEIGHT_EDM:
        return snr + 1 / (o->sigma_data * o->sigma_data); /* (sigma^2 + sd^2) / (sigma sd)^2, sigma^2 = 1/SNR */
    case DN_WEIGHT_P2:
        return snr / pow(o->p2_k + snr, o->p2_gamma);
    }
    return 1;
}

/* |x0 - x0'|^2 / |prediction - prediction'|^2. */
static double x0_error(enum dn_train_prediction prediction, double sigma, double snr)
{
    switch (prediction) {
    case DN_PREDICT_EPSILON:
        return 1 / snr;
    case DN_PREDICT_V:
        return 1 / (1 + snr);
    case DN_PREDICT_SAMPLE:
        break;
    case DN_PREDICT_FLOW:
        return sigma * sigma;
    }
    return 1;
}

/* Nichol and Dhariwal 2021: the posterior q(x_{t-1} | x_t, x0). Its mean moves by beta sqrt(abar') / (1 - abar) of what
 * x0 moves; its variance at t = 0 is clipped to that of t = 1. */
static void posterior(dn_row_terms *r, const dn_levels *l, const dn_objective *o, int t)
{
    int at = t ? t : l->n > 1;
    double before = t ? l->abar[t - 1] : 1,
           clipped = at ? (1 - l->abar[at - 1]) / (1 - l->abar[at]) * l->beta[at] : l->beta[0];
    double x0 = o->prediction == DN_PREDICT_EPSILON ? -r->sigma / r->alpha
                : o->prediction == DN_PREDICT_V     ? -r->sigma
                                                    : 1;
    r->mean_scale = x0 * sqrt(before) * l->beta[t] / (1 - l->abar[t]);
    r->lv_min = log(fmax(clipped, 1e-20));
    r->lv_max = log(l->beta[t]);
    r->lv_true = r->lv_min;
}

dn_row_terms dn_row_terms_of(const dn_levels *l, const dn_objective *o, int t)
{
    double a = l->alpha[t], s = l->sigma[t];
    double snr = l->abar ? l->abar[t] / fmax(1 - l->abar[t], 1e-8) : a * a / (s * s);
    dn_row_terms r = { .alpha = (float)a, .sigma = (float)s, .weight = 1 };
    const float target[][2] = { [DN_PREDICT_EPSILON] = { 0, 1 },
                                [DN_PREDICT_V] = { -r.sigma, r.alpha },
                                [DN_PREDICT_SAMPLE] = { 1, 0 },
                                [DN_PREDICT_FLOW] = { -1, 1 } };
    r.of_x0 = target[o->prediction][0];
    r.of_noise = target[o->prediction][1];
    if (o->weighting != DN_WEIGHT_UNIFORM)
        r.weight = weight_of_x0(o, snr) * x0_error(o->prediction, s, snr);
    if (l->abar)
        posterior(&r, l, o, t);
    return r;
}
