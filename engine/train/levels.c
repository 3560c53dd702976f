/* levels.c - alpha, sigma and the network's time at every training timestep, from the model's scheduler. */
#include "train_internal.h"
#include <math.h>
#include <stdlib.h>

static int allocate(dn_levels *l, int n, dn_error *err)
{
    *l =
        (dn_levels){ .n = n, .alpha = calloc(4 * (size_t)n, sizeof(double)), .time = calloc((size_t)n, sizeof(float)) };
    if (!l->alpha || !l->time) {
        dn_levels_fini(l);
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    }
    l->sigma = l->alpha + n;
    return 0;
}

/* Variance preserving: diffusers' add_noise takes the roots of its fp32 alphas_cumprod. Weights and variances are made
 * from the product in double, because 1 - alphas_cumprod loses its digits at small timesteps. */
static void from_betas(dn_levels *l, const dn_schedule *s)
{
    l->abar = l->alpha + 2 * l->n;
    l->beta = l->alpha + 3 * l->n;
    double product = 1;
    for (int i = 0; i < l->n; i++) {
        l->abar[i] = product *= 1 - (double)s->beta[i];
        l->beta[i] = s->beta[i];
        l->alpha[i] = sqrtf(s->abar[i]);
        l->sigma[i] = sqrtf(1.0f - s->abar[i]);
        l->time[i] = (float)i;
    }
}

/* Flow matching: sigma from 1/n to 1, shifted as FlowMatchEulerDiscreteScheduler's constructor does. */
static void from_shift(dn_levels *l, double shift)
{
    l->flow = true;
    for (int i = 0; i < l->n; i++) {
        double s = (i + 1.0) / l->n;
        l->sigma[i] = shift * s / (1 + (shift - 1) * s);
        l->alpha[i] = 1 - l->sigma[i];
        l->time[i] = (float)(l->sigma[i] * l->n);
    }
}

int dn_levels_init(dn_levels *l, const dn_model_info *info, dn_error *err)
{
    dn_settings c;
    enum dn_sampler_kind kind;
    dn_schedule s = { 0 };
    dn_levels out;
    int rc = dn_settings_resolve(&c, &kind, info->scheduler, -1, err);
    rc = rc ? rc : dn_schedule_init(&s, &c, err);
    rc = rc ? rc : allocate(&out, s.n_train, err);
    if (!rc) {
        if (dn_is_flow(&c))
            from_shift(&out, dn_is(&c, use_dynamic_shifting) ? 1
                             : c.cls == DN_CLASS_FLOW        ? dn_num(&c, shift)
                                                             : dn_num(&c, flow_shift));
        else
            from_betas(&out, &s);
        out.learned_range = dn_int(&c, variance_type) != DN_VAR_LEARNED;
        *l = out;
    }
    dn_schedule_fini(&s);
    return rc;
}

int dn_train_prediction_of(enum dn_train_prediction *out, const dn_model *m, dn_error *err)
{
    static const enum dn_train_prediction of[] = { [DN_PREDICTION_EPSILON] = DN_PREDICT_EPSILON,
                                                   [DN_PREDICTION_V] = DN_PREDICT_V,
                                                   [DN_PREDICTION_SAMPLE] = DN_PREDICT_SAMPLE,
                                                   [DN_PREDICTION_FLOW] = DN_PREDICT_FLOW };
    dn_settings c;
    enum dn_sampler_kind kind;
    int rc = dn_settings_resolve(&c, &kind, m->info.scheduler, -1, err);
    if (!rc)
        *out = dn_is_flow(&c) ? DN_PREDICT_FLOW : of[dn_int(&c, prediction_type)];
    return rc;
}

void dn_levels_fini(dn_levels *l)
{
    free(l->alpha);
    free(l->time);
    *l = (dn_levels){ 0 };
}
