/* sampler.h - schedules and samplers: from a checkpoint's scheduler_config.json and a request to a dn_table.
 *
 * A scheduler configuration is a set of keys with diffusers' names and meanings (scheduler_config.json). The file gives
 * a base; a request may lay other keys over it; a key that neither gives takes the default of the class that is
 * finally used, as diffusers' from_config does. */
#ifndef DENOISED_SAMPLER_H
#define DENOISED_SAMPLER_H

#include <denoised/error.h>
#include <denoised/table.h>
#include <stddef.h>

struct json_t;

/* our name on the wire, diffusers' class. A dpm++ name also fixes solver_order and algorithm_type, whatever the file says;
 * a request that contradicts it is refused. */
#define DN_SAMPLERS(X)                                                                                                 \
    X(DDPM, "ddpm", "DDPMScheduler")                                                                                   \
    X(DDIM, "ddim", "DDIMScheduler")                                                                                   \
    X(DPMPP1, "dpm++1", "DPMSolverMultistepScheduler")                                                                 \
    X(DPMPP2M, "dpm++2m", "DPMSolverMultistepScheduler")                                                               \
    X(DPMPP3M, "dpm++3m", "DPMSolverMultistepScheduler")                                                               \
    X(DPMPP2M_SDE, "dpm++2m_sde", "DPMSolverMultistepScheduler")                                                       \
    X(EULER, "euler", "EulerDiscreteScheduler")                                                                        \
    X(EULER_ANCESTRAL, "euler_ancestral", "EulerAncestralDiscreteScheduler")                                           \
    X(HEUN, "heun", "HeunDiscreteScheduler")                                                                           \
    X(UNIPC, "unipc", "UniPCMultistepScheduler")                                                                       \
    X(PNDM, "pndm", "PNDMScheduler")                                                                                   \
    X(LCM, "lcm", "LCMScheduler")                                                                                      \
    X(FLOW_EULER, "flow_euler", "FlowMatchEulerDiscreteScheduler")

enum dn_sampler_kind {
#define X(code, name, cls) DN_SAMPLER_##code,
    DN_SAMPLERS(X)
#undef X
        DN_SAMPLER_COUNT
};
const char *dn_sampler_name(enum dn_sampler_kind k);
int dn_sampler_find(const char *name);       /* by our name; -1: unknown */

/* Opaque set of config keys. */
typedef struct dn_scheduler_config dn_scheduler_config;

/* From a parsed scheduler_config.json (NULL: an empty one). Unknown keys and keys that start with "_" (but _class_name) are
 * ignored there, and null is as if the key were not there.
 * On failure *out is untouched. */
int dn_scheduler_config_new(dn_scheduler_config **out, const struct json_t *json, dn_error *err);
dn_scheduler_config *dn_scheduler_config_copy(const dn_scheduler_config *c);
void dn_scheduler_config_free(dn_scheduler_config *c);
/* Lay a request's "scheduler" object over it. Strict: an unknown key, a wrong type, a value out of range is refused and
 * err->param is "scheduler.KEY". */
int dn_scheduler_config_overlay(dn_scheduler_config *c, const struct json_t *json, dn_error *err);
/* The sampler of its _class_name (none: DDPM's), or -1 (err says which class is unknown or belongs to a later version). */
int dn_scheduler_config_sampler(const dn_scheduler_config *c, dn_error *err);

typedef struct dn_guidance {
    double scale;              /* 1: no unconditional row is emitted */
    double interval[2];        /* fractions [a,b) of the run, entry i of N counts as i/N; outside it w = 1 ({0,1}) */
    double rescale;            /* 0..1 (0) */
    int schedule;              /* enum dn_guidance_schedule: w goes from 1 at the first entry to scale at the last */
} dn_guidance;
enum dn_guidance_schedule { DN_GUIDANCE_CONSTANT, DN_GUIDANCE_LINEAR, DN_GUIDANCE_COSINE };

typedef struct dn_plan_params {
    int sampler;               /* enum dn_sampler_kind; -1: the config's own class */
    int steps;                 /* 1..num_train_timesteps (50); ignored with explicit timesteps */
    const double *timesteps;   /* explicit, strictly descending; NULL: by the config's spacing */
    int n_timesteps;
    double eta;                /* ddim only, 0..1 (0) */
    double temperature;        /* factor on the noise drawn in steps, 0..2 (1) */
    dn_guidance guidance;
    bool learned_variance;     /* the network has 2*C output channels */
    int64_t elements;          /* H*W*C of the sample, for limits */
} dn_plan_params;

/* Fill *out, the caller's. On failure *out is untouched; DN_E_IMPOSSIBLE where diffusers itself gives NaN, or where the sampler
 * cannot take what is asked (explicit timesteps, eta, temperature on a run that draws no noise). err->param is the
 * request's field: "steps", "scheduler.KEY", "guidance.cfg.scale"; "scheduler" when several keys together are at fault. */
int dn_table_plan(dn_table *out, const dn_scheduler_config *c, const dn_plan_params *p, dn_error *err);

/* One evaluation of a row that the caller brings: x' = the network's output (POST /denoise). */
int dn_table_plan_denoise(dn_table *out, double timestep, double guidance_scale, dn_error *err);

#endif
