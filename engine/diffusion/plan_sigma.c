/* plan_sigma.c - samplers in variance-exploding variables, x = x0 + sigma * noise: Euler, Euler ancestral, Heun; and
 * flow matching, whose x moves along the predicted velocity. */
#include "draft.h"

/* The start's deviation: diffusers adds the data's variance only where the list does not reach the noisiest level. */
static float start_scale(const dn_plan *p)
{
    double most = p->s->level[0];
    return (float)(dn_int(p->c, timestep_spacing) == DN_SPACING_LEADING ? sqrt(most * most + 1) : most);
}

/* x moves along (x - x0)/sigma from sigma to `to`: a mix of x and x0, exact for a constant x0. */
static dn_combo euler_step(double sigma, double to)
{
    dn_combo c = dn_term(DN_B_X, to / sigma);
    c.a[DN_B_X0] = 1 - to / sigma;
    return c;
}

/* Karras et al. 2022, algorithm 2, without the correction. With churn, diffusers evaluates the network before it adds
 * the noise k*z, and makes x0 of the noisy x: x0 there is ours + c_x*k*z. */
static void churn(dn_plan *p, dn_draft *d, double sigma, double to)
{
    const dn_settings *c = p->c;
    double gamma = fmin(dn_num(c, s_churn) / p->s->n, M_SQRT2 - 1), hat = sigma * (gamma + 1);
    if (!(sigma >= dn_num(c, s_tmin) && sigma <= dn_num(c, s_tmax)) || gamma <= 0)
        return;
    double k = dn_num(c, s_noise) * sqrt(hat * hat - sigma * sigma), move = (to - hat) / hat;
    if (dn_int(c, prediction_type) == DN_PREDICTION_EPSILON)
        d->c_o = -hat; /* x0 = x - sigma_hat * out; the v formula keeps sigma */
    d->x = dn_term(DN_B_X, 1 + move);
    d->x.a[DN_B_X0] = -move;
    d->x.a[DN_B_Z] = k * (1 + move * (1 - d->c_x));
}

void dn_plan_euler(dn_plan *p)
{
    p->init_scale = start_scale(p);
    for (int i = 0; i < p->s->n; i++) {
        double sigma = p->s->level[i], to = p->s->level[i + 1];
        dn_draft d = dn_draft_ve(p, p->s->timestep[i], sigma);
        d.x = euler_step(sigma, to);
        churn(p, &d, sigma, to);
        dn_plan_add(p, &d);
    }
}

void dn_plan_euler_ancestral(dn_plan *p)
{
    p->init_scale = start_scale(p);
    for (int i = 0; i < p->s->n; i++) {
        double sigma = p->s->level[i], to = p->s->level[i + 1];
        double up = to * dn_root(sigma * sigma - to * to) / sigma, down = dn_root(to * to - up * up);
        dn_draft d = dn_draft_ve(p, p->s->timestep[i], sigma);
        d.x = euler_step(sigma, down);
        d.x.a[DN_B_Z] = up;
        dn_plan_add(p, &d);
    }
}

/* Heun: an Euler step whose entry keeps h_0 = x + half of the move; the second evaluation, at the level reached, adds
 * the other half. The step to sigma 0 is Euler's. */
void dn_plan_heun(dn_plan *p)
{
    p->init_scale = start_scale(p);
    for (int i = 0; i < p->s->n; i++) {
        double sigma = p->s->level[i], to = p->s->level[i + 1];
        dn_draft d = dn_draft_ve(p, p->s->timestep[i], sigma);
        d.x = euler_step(sigma, to);
        if (i == p->s->n - 1) {
            dn_plan_add(p, &d);
            break;
        }
        dn_combo half = dn_term(DN_B_X, 0.5);
        dn_combo_add(&half, 0.5, &d.x);
        dn_draft_write(&d, 0, &half);
        d.e.flags &= ~DN_STEP_END;
        dn_plan_add(p, &d);
        dn_draft second = dn_draft_ve(p, p->s->timestep[i + 1], to);
        second.x = dn_term(DN_B_H0, 1);
        second.x.a[DN_B_X] = 0.5 * (to - sigma) / to;
        second.x.a[DN_B_X0] = -0.5 * (to - sigma) / to;
        dn_plan_add(p, &second);
    }
}

/* x = (1 - sigma) * x0 + sigma * noise; out = noise - x0. */
void dn_plan_flow(dn_plan *p)
{
    for (int i = 0; i < p->s->n; i++) {
        double sigma = p->s->level[i], to = p->s->level[i + 1];
        dn_draft d = dn_draft_vp(p, p->s->timestep[i], 1 - sigma, sigma);
        if (dn_is(p->c, stochastic_sampling)) {
            d.x.a[DN_B_X0] = 1 - to;
            d.x.a[DN_B_Z] = to;
        } else {
            d.x.a[DN_B_X] = 1;
            d.x.a[DN_B_OUT] = to - sigma;
        }
        dn_plan_add(p, &d);
    }
}
