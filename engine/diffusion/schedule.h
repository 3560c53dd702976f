/* schedule.h - noise levels and timesteps, as diffusers' set_timesteps makes them.
 *
 * Three things are fp32 because diffusers' are and the difference shows: betas, alphas_cumprod and the sigmas of the
 * final list. Everything else is double. */
#ifndef DN_DIFFUSION_SCHEDULE_H
#define DN_DIFFUSION_SCHEDULE_H

#include "settings.h"

typedef struct dn_schedule {
    int n_train;      /* T */
    float *beta;      /* [T]; beta, abar, sigma are NULL for flow matching */
    float *abar;      /* [T] alphas_cumprod */
    float *sigma;     /* [T] sqrt((1 - abar) / abar) */
    int n;            /* steps: timesteps that the network is asked at, before any sampler repeats some */
    double *timestep; /* [n] descending */
    double *level;    /* [n+1] sigmas for the samplers that use them, then the final one; else NULL */
} dn_schedule;

/* Betas and what follows from them. */
int dn_schedule_init(dn_schedule *s, const dn_settings *c, dn_error *err);
/* Timesteps and levels, from the configuration's spacing or from explicit ones. */
int dn_schedule_steps(dn_schedule *s, const dn_settings *c, const dn_plan_params *p, dn_error *err);
void dn_schedule_fini(dn_schedule *s);

/* Is the level list of a flow (alpha = 1 - sigma) rather than of a variance-preserving process? */
static inline bool dn_is_flow(const dn_settings *c) { return c->cls == DN_CLASS_FLOW || dn_is(c, use_flow_sigmas); }

#endif
