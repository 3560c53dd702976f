/* trainer.h - a training job on one device: the step, its plan, its checkpoints.
 *
 * A trainer owns one parameter block, its gradient, the optimizer's moments and the EMA, each a flat block in registration
 * order, and one program (forward, loss, backward) for micro_batch rows. It belongs to its device's worker and runs in segments
 * (dn_trainer_some), so that sampling waits for one segment at most. Everything random is Philox of (seed, purpose, optimizer
 * step, sample within the step): the blocks and the step number are all that an exact resume needs.
 *
 * Ho et al. 2020 (epsilon), Salimans and Ho 2022 (v, SNR weights), Nichol and Dhariwal 2021 (learned variance), Hang et al. 2023
 * (min-SNR), Choi et al. 2022 (P2), Karras et al. 2022 (EDM weight), Esser et al. 2024 (logit-normal, mode, flow matching),
 * Loshchilov and Hutter 2019 (AdamW). */
#ifndef DENOISED_TRAINER_H
#define DENOISED_TRAINER_H

#include <denoised/dataset.h>
#include <denoised/device.h>

typedef struct dn_trainer dn_trainer;
typedef struct dn_snapshot dn_snapshot;

enum dn_train_prediction { DN_PREDICT_EPSILON, DN_PREDICT_V, DN_PREDICT_SAMPLE, DN_PREDICT_FLOW };
enum dn_train_timesteps { DN_TIMESTEPS_UNIFORM, DN_TIMESTEPS_LOGIT_NORMAL, DN_TIMESTEPS_MODE };
enum dn_train_loss { DN_TRAIN_MSE, DN_TRAIN_L1, DN_TRAIN_HUBER };
enum dn_train_weighting { DN_WEIGHT_UNIFORM, DN_WEIGHT_SNR, DN_WEIGHT_MIN_SNR, DN_WEIGHT_EDM, DN_WEIGHT_P2 };
enum dn_optimizer_kind { DN_ADAMW, DN_ADAM, DN_SGD };
enum dn_lr_kind { DN_LR_CONSTANT, DN_LR_LINEAR, DN_LR_COSINE, DN_LR_COSINE_RESTARTS, DN_LR_POLYNOMIAL, DN_LR_ONE_CYCLE };
enum dn_precision { DN_PRECISION_FP32, DN_PRECISION_BF16, DN_PRECISION_FP16 }; /* of what is kept for the backward pass; arithmetic is fp32 on a CPU */

typedef struct dn_objective {
    enum dn_train_prediction prediction;
    enum dn_train_timesteps timesteps;
    double timesteps_loc, timesteps_scale; /* logit_normal: loc (0), scale (NAN: 1); mode: scale (NAN: 1.29) */
    bool low_discrepancy;     /* timesteps of one optimizer step are stratified over all its samples */
    enum dn_train_loss loss;
    double huber_delta;       /* (1) */
    enum dn_train_weighting weighting;
    double snr_gamma;         /* min_snr (5) */
    double p2_gamma, p2_k;    /* (1, 1) */
    double sigma_data;        /* edm (0.5) */
    double noise_offset;      /* (0) */
    double input_perturbation; /* (0) */
    double label_dropout;     /* to the null label, 0..1 (0) */
    double vlb_weight;        /* learned variance: of the variational term in units of T/1000 (1: IDDPM's 0.001 * T) */
} dn_objective;

typedef struct dn_optimizer {
    enum dn_optimizer_kind kind;
    double lr, beta1, beta2, eps, weight_decay; /* decay not on norms and biases; momentum of SGD is beta1 */
    double clip_norm;                           /* of the global norm; 0: none */
} dn_optimizer;

typedef struct dn_lr_schedule {
    enum dn_lr_kind kind;
    int64_t warmup_steps; /* optimizer steps */
    double cycles;        /* cosine_restarts (1) */
    double power;         /* polynomial (1) */
    double lr_end;        /* as a fraction of lr: linear, polynomial, one_cycle (0; PyTorch's one cycle ends at 4e-6) */
} dn_lr_schedule;

typedef struct dn_ema {
    double decay;  /* per optimizer step (0.9999); corrected for `every` */
    int every;     /* optimizer steps between updates (1) */
    bool warmup;   /* diffusers' 1 - (1 + s/inv_gamma)^-power; else (1+s)/(10+s) */
    double inv_gamma, power; /* (1, 0.75) */
    double min_decay;        /* (0) */
} dn_ema;

typedef struct dn_train_params {
    uint64_t seed;
    int64_t steps;            /* optimizer steps of the whole job */
    int batch_size;           /* samples of an optimizer step */
    int micro_batch;          /* rows of one forward and backward; divides batch_size; 0: "auto", as many as help and fit */
    enum dn_precision precision;
    dn_objective objective;
    dn_optimizer optimizer;
    dn_lr_schedule lr_schedule;
    dn_ema ema;
    dn_augment augment[DN_AUGMENT_MAX];
    int n_augment;
    double eval_fraction;     /* of the dataset, held out (0); one image at least if not 0 */
    int nan_max;              /* non-finite steps in a row that end the job (10) */
    int height, width;        /* 0: the model's own */
    size_t preview_bytes;     /* of the samples that a preview has on its device; 0: there are none. Changes nothing but the plan */
} dn_train_params;
/* Everything that is not named has the default above. */
void dn_train_params_init(dn_train_params *p);

/* What a job will need, by arithmetic. Written into the job before its first step and never chosen again. */
typedef struct dn_train_plan {
    int micro_batch;
    uint64_t recompute[4];   /* a bit per marked block of layers: run again in the backward pass */
    int n_recomputed;
    size_t weights, gradients, moments, ema, arena, data; /* bytes */
    size_t copies;           /* while a checkpoint is written: of weights, moments and EMA; one at a time */
    size_t previews;         /* while a preview is made: its copy of the EMA, its model, forms, arena and samples; one at a time */
    size_t total;            /* their sum: what the engine will hand out */
    double gflop_per_step;   /* of one optimizer step */
    char numerics[96];       /* names every source of different weights */
} dn_train_plan;

/* What the model's scheduler says that it predicts: what a job goes on with unless it says otherwise. */
int dn_train_prediction_of(enum dn_train_prediction *out, const dn_model *m, dn_error *err);

/* Check the parameters against model and data (labels, sizes, channels, learned variance) and plan within `budget` bytes. On
 * failure err->param is the field's path on the wire ("objective.prediction", "batch_size"); DN_E_MEMORY says how many bytes the
 * smallest plan takes and what would fit. */
int dn_train_plan_make(dn_train_plan *out, const dn_device *d, const dn_model *m, const dn_dataset *data, const dn_train_params *p,
                       size_t budget, dn_error *err);

/* A new model from a diffusers config (architecture and scheduler), with PyTorch's default initialisation drawn from `seed`. `config`: the
 * object of a component's config.json; `scheduler`: of scheduler_config.json; `extra`: of denoised.json (labels, null_label, range); either of
 * the last two may be NULL. */
int dn_model_init(dn_model **out, const struct json_t *config, const struct json_t *scheduler, const struct json_t *extra, uint64_t seed,
                  dn_error *err);

/* The start: step 0, weights of `m`. The plan must be of the same device, model, data and parameters. `data` outlives the trainer, `m` need
 * not. */
int dn_trainer_new(dn_trainer **out, dn_device *d, const dn_model *m, const dn_dataset *data, const dn_train_params *p,
                   const dn_train_plan *plan, dn_error *err);
void dn_trainer_free(dn_trainer *t); /* NULL is fine */

/* What one optimizer step did. */
typedef struct dn_train_report {
    int64_t step;        /* finished optimizer steps, from 1 */
    double loss;         /* weighted mean over the step's samples */
    double lr, grad_norm; /* before clipping */
    double ema_decay;
    double loss_scale;   /* fp16; 1 otherwise */
    bool skipped;        /* non-finite gradients: nothing was changed */
    double device_ms, wait_ms; /* computing; waiting for data */
} dn_train_report;

/* Compute for about max_ms (<= 0: to the end of the optimizer step). 0: the step has ended, *report is filled; 1: more to do; < 0: a negated
 * DN_E code (NON_FINITE after nan_max skipped steps in a row). */
int dn_trainer_some(dn_trainer *t, double max_ms, dn_train_report *report, dn_error *err);
int64_t dn_trainer_step(const dn_trainer *t); /* finished optimizer steps */
/* Is it between two optimizer steps, with nothing under way? Snapshots and evaluations begin only there. */
bool dn_trainer_at_boundary(const dn_trainer *t);
size_t dn_trainer_bytes(const dn_trainer *t); /* what plan->total promised, but for copies and previews */

/* Held-out loss of the EMA weights at fixed noise, by timestep bucket: eight of equal width. Runs in segments like a step. */
enum { DN_EVAL_BUCKETS = 8 };
typedef struct dn_eval_report {
    double loss, bucket[DN_EVAL_BUCKETS];
    int64_t n;
} dn_eval_report;
int dn_trainer_eval_some(dn_trainer *t, double max_ms, dn_eval_report *report, dn_error *err); /* 0 done, 1 more, < 0 error */

/* Copy everything that a resume needs (all: weights, moments, EMA, counters), or the EMA alone (publish, previews). Begins at a boundary
 * and runs in segments of max_ms like a step; until it is done nothing else can begin. 0 done, *out is the caller's; 1 more, < 0 error. */
int dn_trainer_snapshot(dn_snapshot **out, dn_trainer *t, bool all, double max_ms, dn_error *err);
void dn_snapshot_free(dn_snapshot *s);
/* Slow lane. Write it as the file `path`: a header with step, parameters and numerics, then zstd frames with a checksum; temporary name,
 * fsync, rename, fsync of the folder. */
int dn_snapshot_write(const dn_snapshot *s, const char *path, dn_error *err);
/* Slow lane. Write the EMA as a diffusers folder (made whole or not at all) that dn_model_load and diffusers read. */
int dn_snapshot_publish(const dn_snapshot *s, const char *dir, dn_error *err);
/* Go on from a file: refuses one of another job, model or numerics by name. */
int dn_trainer_restore(dn_trainer *t, const char *path, dn_error *err);
/* Slow lane. The EMA of a file without a trainer: what the restored one's snapshot of the EMA alone would be. `m`, `data`, `p` and
 * `plan` are what the job's trainer is made of, and a file of another job is refused as above. Takes `m`, whose weights make room for
 * the EMA, also when it fails; beside them it needs a few buffers. */
int dn_snapshot_read(dn_snapshot **out, dn_model *m, const dn_dataset *data, const dn_train_params *p, const dn_train_plan *plan,
                     const char *path, dn_error *err);
/* The EMA as a model version in memory, a copy: previews. */
int dn_snapshot_model(dn_model **out, const dn_snapshot *s, dn_error *err);

/* What a job is told to train another network like that of a model folder; both objects are the caller's. */
typedef struct dn_recipe {
    struct json_t *network;  /* diffusers' config.json */
    struct json_t *schedule; /* what dn_model_reschedule takes for a network that has just been made */
    enum dn_train_prediction prediction; /* what this one learned */
} dn_recipe;
/* Slow lane. Weights are not read. */
int dn_recipe_read(dn_recipe *out, const char *dir, dn_error *err);
void dn_recipe_fini(dn_recipe *r);

#endif
