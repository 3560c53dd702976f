/* settings.h - the keys of a scheduler configuration, one row each.
 *
 * A key has a type, a range, the classes that know it and diffusers' default; the few classes whose default differs are
 * listed in settings.c. Keys that diffusers passes to step() or set_timesteps() rather than to the constructor
 * (use_clipped_model_output, s_churn, mu, ...) are keys here, so that a request can reach them. */
#ifndef DN_DIFFUSION_SETTINGS_H
#define DN_DIFFUSION_SETTINGS_H

#include <denoised/sampler.h>
#include <math.h>

/* clang-format off */
enum dn_class {
    DN_CLASS_DDPM, DN_CLASS_DDIM, DN_CLASS_DPM, DN_CLASS_EULER, DN_CLASS_EULER_A, DN_CLASS_HEUN, DN_CLASS_UNIPC,
    DN_CLASS_PNDM, DN_CLASS_LCM, DN_CLASS_FLOW, DN_CLASS_COUNT
};

enum dn_beta_schedule {
    DN_BETA_LINEAR, DN_BETA_SCALED_LINEAR, DN_BETA_COSINE, DN_BETA_SIGMOID, DN_BETA_LAPLACE, DN_BETA_EXP, DN_BETA_SQRT
};
enum dn_prediction { DN_PREDICTION_EPSILON, DN_PREDICTION_V, DN_PREDICTION_SAMPLE, DN_PREDICTION_FLOW };
enum dn_spacing { DN_SPACING_LEADING, DN_SPACING_TRAILING, DN_SPACING_LINSPACE };
enum dn_variance {
    DN_VAR_FIXED_SMALL, DN_VAR_FIXED_SMALL_LOG, DN_VAR_FIXED_LARGE, DN_VAR_FIXED_LARGE_LOG, DN_VAR_LEARNED,
    DN_VAR_LEARNED_RANGE
};
enum dn_algorithm { DN_DPMPP, DN_SDE_DPMPP, DN_DPM, DN_SDE_DPM };
enum dn_solver { DN_SOLVER_MIDPOINT, DN_SOLVER_HEUN, DN_SOLVER_BH1, DN_SOLVER_BH2, DN_SOLVER_LOGRHO };
enum dn_final { DN_FINAL_ZERO, DN_FINAL_SIGMA_MIN };
enum dn_shift_type { DN_SHIFT_EXPONENTIAL, DN_SHIFT_LINEAR };
enum dn_interpolation { DN_INTERPOLATE_LINEAR, DN_INTERPOLATE_LOG_LINEAR };
enum dn_timestep_type { DN_TIMESTEP_DISCRETE, DN_TIMESTEP_CONTINUOUS };

/* Sets of classes, for the table below. */
#define C_(x) (1u << DN_CLASS_##x)
#define C_DISCRETE (C_(DDPM) | C_(DDIM) | C_(LCM))
#define C_MULTISTEP (C_(DPM) | C_(UNIPC))
#define C_VE (C_(EULER) | C_(EULER_A) | C_(HEUN))
#define C_ALL ((1u << DN_CLASS_COUNT) - 1)
#define C_BETAS (C_ALL & ~C_(FLOW))
#define C_SIGMAS (C_MULTISTEP | C_(EULER) | C_(HEUN) | C_(FLOW))

/* name, type, least, largest, default, classes. Bounds are inclusive. A NULLABLE number is NAN when it is not set; a LIST's
 * bounds are of its elements. The other types are enumerations of settings.c. A class that does not know a key sees 0. */
#define DN_KEYS(X)                                                                        \
    X(num_train_timesteps,      INT,           1,      10000,  1000,   C_ALL)             \
    X(beta_start,               REAL,          1e-9,   0.9999, 1e-4,   C_BETAS)           \
    X(beta_end,                 REAL,          1e-9,   0.9999, 0.02,   C_BETAS)           \
    X(beta_schedule,            BETA_SCHEDULE, 0,      0,      DN_BETA_LINEAR, C_BETAS)   \
    X(trained_betas,            LIST,          0,      0.9999, 0,      C_BETAS)           \
    X(rescale_betas_zero_snr,   BOOL,          0,      1,      0,      C_BETAS & ~(C_(HEUN) | C_(PNDM))) \
    X(prediction_type,          PREDICTION,    0,      0,      DN_PREDICTION_EPSILON, C_BETAS) \
    X(timestep_spacing,         SPACING,       0,      0,      DN_SPACING_LEADING, C_BETAS & ~C_(LCM)) \
    X(steps_offset,             INT,           0,      9999,   0,      C_BETAS & ~C_(LCM)) \
    X(clip_sample,              BOOL,          0,      1,      1,      C_DISCRETE | C_(HEUN)) \
    X(clip_sample_range,        REAL,          1e-6,   1e6,    1,      C_DISCRETE | C_(HEUN)) \
    X(thresholding,             BOOL,          0,      1,      0,      C_DISCRETE | C_MULTISTEP) \
    X(dynamic_thresholding_ratio, REAL,        0,      1,      0.995,  C_DISCRETE | C_MULTISTEP) \
    X(sample_max_value,         REAL,          1e-6,   1e6,    1,      C_DISCRETE | C_MULTISTEP) \
    X(variance_type,            VARIANCE,      0,      0,      DN_VAR_FIXED_SMALL, C_(DDPM)) \
    X(set_alpha_to_one,         BOOL,          0,      1,      1,      C_(DDIM) | C_(PNDM)) \
    X(use_clipped_model_output, BOOL,          0,      1,      0,      C_(DDIM))          \
    X(solver_order,             INT,           1,      3,      2,      C_MULTISTEP)       \
    X(algorithm_type,           ALGORITHM,     0,      0,      DN_DPMPP, C_(DPM))         \
    X(solver_type,              SOLVER,        0,      0,      DN_SOLVER_MIDPOINT, C_MULTISTEP) \
    X(lower_order_final,        BOOL,          0,      1,      1,      C_MULTISTEP)       \
    X(euler_at_final,           BOOL,          0,      1,      0,      C_(DPM))           \
    X(predict_x0,               BOOL,          0,      1,      1,      C_(UNIPC))         \
    X(disable_corrector,        INT_LIST,      0,      9999,   0,      C_(UNIPC))         \
    X(lambda_min_clipped,       REAL,          -100,   100,    -INFINITY, C_(DPM))        \
    X(final_sigmas_type,        FINAL,         0,      0,      DN_FINAL_ZERO, C_MULTISTEP | C_(EULER)) \
    X(use_karras_sigmas,        BOOL,          0,      1,      0,      C_SIGMAS)          \
    X(use_exponential_sigmas,   BOOL,          0,      1,      0,      C_SIGMAS)          \
    X(use_beta_sigmas,          BOOL,          0,      1,      0,      C_SIGMAS)          \
    X(use_lu_lambdas,           BOOL,          0,      1,      0,      C_(DPM))           \
    X(use_flow_sigmas,          BOOL,          0,      1,      0,      C_MULTISTEP)       \
    X(flow_shift,               REAL,          1e-3,   1e3,    1,      C_MULTISTEP)       \
    X(shift,                    REAL,          1e-3,   1e3,    1,      C_(FLOW))          \
    X(use_dynamic_shifting,     BOOL,          0,      1,      0,      C_MULTISTEP | C_(FLOW)) \
    X(time_shift_type,          SHIFT_TYPE,    0,      0,      DN_SHIFT_EXPONENTIAL, C_MULTISTEP | C_(FLOW)) \
    X(mu,                       NULLABLE,      -10,    10,     NAN,    C_MULTISTEP | C_(FLOW)) \
    X(shift_terminal,           NULLABLE,      0,      0.999,  NAN,    C_(UNIPC) | C_(FLOW)) \
    X(sigma_min,                NULLABLE,      1e-6,   1e6,    NAN,    C_(EULER) | C_(UNIPC)) \
    X(sigma_max,                NULLABLE,      1e-6,   1e6,    NAN,    C_(EULER) | C_(UNIPC)) \
    X(interpolation_type,       INTERPOLATION, 0,      0,      DN_INTERPOLATE_LINEAR, C_(EULER)) \
    X(timestep_type,            TIMESTEP_TYPE, 0,      0,      DN_TIMESTEP_DISCRETE, C_(EULER)) \
    X(s_churn,                  REAL,          0,      1e6,    0,      C_(EULER))         \
    X(s_tmin,                   REAL,          0,      1e6,    0,      C_(EULER))         \
    X(s_tmax,                   REAL,          0,      1e6,    INFINITY, C_(EULER))       \
    X(s_noise,                  REAL,          0,      100,    1,      C_(EULER))         \
    X(skip_prk_steps,           BOOL,          0,      1,      0,      C_(PNDM))          \
    X(original_inference_steps, INT,           1,      10000,  50,     C_(LCM))           \
    X(timestep_scaling,         REAL,          1e-3,   1e6,    10,     C_(LCM))           \
    X(invert_sigmas,            BOOL,          0,      1,      0,      C_(FLOW))          \
    X(stochastic_sampling,      BOOL,          0,      1,      0,      C_(FLOW))
/* clang-format on */

enum dn_key {
#define X(name, type, least, largest, dflt, classes) K_##name,
    DN_KEYS(X)
#undef X
        K_COUNT
};

typedef struct dn_setting {
    double num;   /* a number, a bool, an index of the enumeration */
    double *list; /* of a LIST; owned */
    int n;
} dn_setting;

/* Every key's value for one class: what a plan function reads. Lists are borrowed from the configuration. */
typedef struct dn_settings {
    enum dn_class cls;
    dn_setting v[K_COUNT];
} dn_settings;
#define dn_num(s, key) ((s)->v[K_##key].num)
#define dn_is(s, key) ((s)->v[K_##key].num != 0)
#define dn_int(s, key) ((int)(s)->v[K_##key].num)

const char *dn_key_name(enum dn_key k);
/* Fail with `code` on a key: param is "scheduler.KEY". */
int dn_key_fail(dn_error *err, int code, enum dn_key k, const char *message);

/* The settings for `sampler` (-1: the config's own): its class's defaults, then what the file gave for keys that this
 * class knows, then what the sampler's name implies, then the request's keys; one of these that the class does not
 * know, or that contradicts the name, is refused. Writes the sampler that was chosen. */
int dn_settings_resolve(dn_settings *out, enum dn_sampler_kind *kind, const dn_scheduler_config *c, int sampler,
                        dn_error *err);

#endif
