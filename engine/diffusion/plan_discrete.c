/* plan_discrete.c - samplers that index alphas_cumprod by timestep: DDPM, DDIM, LCM. */
#include "draft.h"

/* The alpha_bar of the timestep after entry i in the list, `final` after the last. */
static double abar_after(const dn_plan *p, int i, double final)
{
    return i + 1 < p->s->n ? p->s->abar[(int)p->s->timestep[i + 1]] : final;
}

/* The noise of a DDPM step: its coefficient of z, or what the network's second half is to be made into. */
static void ddpm_variance(dn_plan *p, dn_draft *d, double small, double large)
{
    enum dn_variance kind = dn_int(p->c, variance_type);
    switch (kind) {
    case DN_VAR_FIXED_SMALL:
    case DN_VAR_FIXED_SMALL_LOG:
        d->x.a[DN_B_Z] = sqrt(small);
        break;
    case DN_VAR_FIXED_LARGE:
        d->x.a[DN_B_Z] = sqrt(large);
        break;
    case DN_VAR_FIXED_LARGE_LOG:
        break; /* refused before */
    case DN_VAR_LEARNED_RANGE:
        d->e.flags |= DN_SIGMA_LEARNED;
        d->e.lv_min = (float)log(small);
        d->e.lv_max = (float)log(large);
        d->e.z_scale = 1;
        break;
    case DN_VAR_LEARNED:
        d->e.flags |= DN_SIGMA_RAW;
        d->e.z_scale = 1;
        break;
    }
}

/* Ho et al. 2020, eq. 7, between any two timesteps of the list. */
void dn_plan_ddpm(dn_plan *p)
{
    enum dn_variance kind = dn_int(p->c, variance_type);
    if (kind == DN_VAR_FIXED_LARGE_LOG)
        dn_plan_fail(p, K_variance_type,
                     "fixed_large_log takes the square root of a negative number (in diffusers too)");
    else if (kind >= DN_VAR_LEARNED && !p->p->learned_variance)
        dn_plan_fail(p, K_variance_type, "needs a network that predicts its variance");
    for (int i = 0; i < p->s->n && !p->status; i++) {
        int t = (int)p->s->timestep[i];
        double a = p->s->abar[t], before = abar_after(p, i, 1), alpha = a / before, beta = 1 - alpha;
        dn_draft d = dn_draft_vp(p, t, sqrt(a), sqrt(1 - a));
        d.x.a[DN_B_X0] = sqrt(before) * beta / (1 - a);
        d.x.a[DN_B_X] = sqrt(alpha) * (1 - before) / (1 - a);
        if (t > 0)
            ddpm_variance(p, &d, fmax((1 - before) / (1 - a) * beta, 1e-20), beta);
        dn_plan_add(p, &d);
    }
}

/* Song et al. 2021, eq. 12. A named spacing steps to t - T/N, as diffusers does, even where the list does not; explicit
 * timesteps follow their list. */
void dn_plan_ddim(dn_plan *p)
{
    double final = dn_is(p->c, set_alpha_to_one) ? 1 : p->s->abar[0], eta = p->p->eta;
    for (int i = 0; i < p->s->n; i++) {
        int t = (int)p->s->timestep[i], to = p->p->timesteps ? -1 : t - p->s->n_train / p->p->steps;
        double a = p->s->abar[t], before = to >= 0 ? p->s->abar[to] : final;
        if (p->p->timesteps)
            before = abar_after(p, i, final);
        double variance = eta * eta * (1 - before) / (1 - a) * (1 - a / before);
        dn_draft d = dn_draft_vp(p, t, sqrt(a), sqrt(1 - a));
        dn_combo eps = dn_is(p->c, use_clipped_model_output) ? dn_draft_clipped_eps(&d) : d.eps;
        d.x = dn_term(DN_B_X0, sqrt(before));
        dn_combo_add(&d.x, dn_root(1 - before - variance), &eps);
        if (eta > 0)
            d.x.a[DN_B_Z] = dn_root(variance);
        dn_plan_add(p, &d);
    }
}

/* Luo et al. 2023, algorithm 3: the boundary-condition mix of x0 and x, noised to the next timestep. */
void dn_plan_lcm(dn_plan *p)
{
    const double data = 0.5;
    for (int i = 0; i < p->s->n; i++) {
        int t = (int)p->s->timestep[i];
        bool last = i == p->s->n - 1;
        double a = p->s->abar[t], to = last ? 1 : abar_after(p, i, 1), u = t * dn_num(p->c, timestep_scaling);
        dn_draft d = dn_draft_vp(p, t, sqrt(a), sqrt(1 - a));
        d.x.a[DN_B_X] = sqrt(to) * data * data / (u * u + data * data);
        d.x.a[DN_B_X0] = sqrt(to) * u / sqrt(u * u + data * data);
        d.x.a[DN_B_Z] = last ? 0 : sqrt(1 - to);
        dn_plan_add(p, &d);
    }
}
