/* draft.h - how a plan function writes a table: entries in double, converted and checked in one place.
 *
 * A plan function knows its sampler's equations and nothing else. Guidance, clipping, prediction types, the limit on
 * entries and the check that every coefficient is finite belong to draft.c. */
#ifndef DN_DIFFUSION_DRAFT_H
#define DN_DIFFUSION_DRAFT_H

#include "schedule.h"

/* A linear combination of the basis (x, x0, out, z, z2, h_0 .. h_7). */
typedef struct dn_combo {
    double a[DN_BASIS];
} dn_combo;

static inline dn_combo dn_term(enum dn_basis b, double k)
{
    dn_combo c = { 0 };
    c.a[b] = k;
    return c;
}
static inline void dn_combo_add(dn_combo *to, double k, const dn_combo *c)
{
    for (int b = 0; b < DN_BASIS; b++)
        to->a[b] += k * c->a[b];
}

/* The root of what rounding may have put below 0. NaN stays NaN, to be refused. */
static inline double dn_root(double v) { return v < 0 ? 0 : sqrt(v); }

typedef struct dn_plan {
    const dn_settings *c;
    const dn_schedule *s;
    const dn_plan_params *p;
    dn_entry *entry;
    int n, room;
    float init_scale;
    dn_error *err;
    int status; /* sticky: after the first failure nothing is added */
} dn_plan;

/* One entry. x0 = c_s * (c_x * x + c_o * out); eps is the noise prediction that `out` stands for, before clipping. */
typedef struct dn_draft {
    dn_entry e; /* flags, timestep, c_in and what plan functions set directly */
    double c_s, c_x, c_o;
    dn_combo x, write[DN_WRITES_MAX], eps;
    double alpha, sigma;
} dn_draft;

/* Start an entry at a noise level: x = alpha * x0 + sigma * noise. dn_draft_ve: x = x0 + sigma * noise, and the network
 * sees x / sqrt(sigma^2 + 1). */
dn_draft dn_draft_vp(const dn_plan *p, double timestep, double alpha, double sigma);
dn_draft dn_draft_ve(const dn_plan *p, double timestep, double sigma);
/* eps after clipping: what the clipped x0 makes of x. */
dn_combo dn_draft_clipped_eps(const dn_draft *d);
void dn_draft_write(dn_draft *d, int slot, const dn_combo *c);
void dn_plan_add(dn_plan *p, const dn_draft *d);
int dn_plan_fail(dn_plan *p, enum dn_key k, const char *message); /* DN_E_IMPOSSIBLE */

/* The samplers. */
void dn_plan_ddpm(dn_plan *p);
void dn_plan_ddim(dn_plan *p);
void dn_plan_lcm(dn_plan *p);
void dn_plan_dpm(dn_plan *p);
void dn_plan_unipc(dn_plan *p);
void dn_plan_euler(dn_plan *p);
void dn_plan_euler_ancestral(dn_plan *p);
void dn_plan_heun(dn_plan *p);
void dn_plan_pndm(dn_plan *p);
void dn_plan_flow(dn_plan *p);

#endif
