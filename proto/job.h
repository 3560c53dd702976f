/* job.h - what is said about training: jobs, their events, checkpoints, datasets, and model versions that come and go.
 *
 * Like proto.h: plain structs, one table of fields each. Ranges that need the model or the data are the caller's to check. */
#ifndef DN_PROTO_JOB_H
#define DN_PROTO_JOB_H

#include "proto.h"

/* ---- POST /jobs ------------------------------------------------------------------------------------------------- */

enum { DN_JOB_AUGMENT_MAX = 8, DN_JOB_PREVIEW_SEEDS_MAX = 16, DN_JOB_STEPS_MAX = 100000000 };

typedef struct dn_objective_in {
    uint64_t has;
    int prediction, timesteps, loss, weighting; /* the order of trainer.h's enums */
    double timesteps_loc, timesteps_scale, huber_delta, snr_gamma, p2_gamma, p2_k, sigma_data;
    bool low_discrepancy;
    double noise_offset, input_perturbation, label_dropout, vlb_weight;
} dn_objective_in;
enum {
    DN_OBJ_PREDICTION, DN_OBJ_TIMESTEPS, DN_OBJ_TIMESTEPS_LOC, DN_OBJ_TIMESTEPS_SCALE, DN_OBJ_LOW_DISCREPANCY, DN_OBJ_LOSS,
    DN_OBJ_HUBER_DELTA, DN_OBJ_WEIGHTING, DN_OBJ_SNR_GAMMA, DN_OBJ_P2_GAMMA, DN_OBJ_P2_K, DN_OBJ_SIGMA_DATA, DN_OBJ_NOISE_OFFSET,
    DN_OBJ_INPUT_PERTURBATION, DN_OBJ_LABEL_DROPOUT, DN_OBJ_VLB_WEIGHT, DN_OBJ_FIELDS
};

typedef struct dn_optimizer_in {
    uint64_t has;
    int kind;
    double lr, betas[2], momentum, eps, weight_decay, clip_norm;
} dn_optimizer_in;
enum { DN_OPT_KIND, DN_OPT_LR, DN_OPT_BETAS, DN_OPT_MOMENTUM, DN_OPT_EPS, DN_OPT_WEIGHT_DECAY, DN_OPT_CLIP_NORM, DN_OPT_FIELDS };

typedef struct dn_lr_in {
    uint64_t has;
    int kind;
    int64_t warmup_steps;
    double cycles, power, lr_end;
} dn_lr_in;
enum { DN_LRS_KIND, DN_LRS_WARMUP_STEPS, DN_LRS_CYCLES, DN_LRS_POWER, DN_LRS_LR_END, DN_LRS_FIELDS };

typedef struct dn_ema_in {
    uint64_t has;
    double decay;
    int64_t every;
    bool warmup;
    double inv_gamma, power, min_decay;
} dn_ema_in;

typedef struct dn_augment_in {
    uint64_t has;
    int kind; /* enum dn_augment_kind's order: flip crop rotate brightness contrast cutout */
    double p, amount;
} dn_augment_in;
enum { DN_AUGMENT_KIND, DN_AUGMENT_P, DN_AUGMENT_AMOUNT, DN_AUGMENT_FIELDS };

typedef struct dn_checkpoint_in {
    uint64_t has;
    int64_t every_steps, every_s; /* 0: not by this measure */
    int64_t keep_last, keep_best; /* best by the held-out loss */
} dn_checkpoint_in;

typedef struct dn_preview_in {
    uint64_t has;
    int64_t every_steps; /* 0: none */
    dn_nums seeds;       /* n = 0: {0} */
    dn_labels labels;    /* the name "all": one picture for each class; n = 0: the null label */
    int64_t steps;       /* sampler steps */
    double scale;        /* of classifier-free guidance (1) */
} dn_preview_in;

typedef struct dn_eval_in {
    uint64_t has;
    double fraction;     /* of the dataset, held out */
    int64_t every_steps; /* 0: none */
} dn_eval_in;

enum {
    DN_JOB_KIND, DN_JOB_NAME, DN_JOB_DATASET, DN_JOB_FROM, DN_JOB_MODEL, DN_JOB_SEED, DN_JOB_DEVICE, DN_JOB_TRAIN_SHARE, DN_JOB_PRIORITY,
    DN_JOB_STEPS, DN_JOB_BATCH_SIZE, DN_JOB_MICRO_BATCH, DN_JOB_PRECISION, DN_JOB_HEIGHT, DN_JOB_WIDTH, DN_JOB_OBJECTIVE, DN_JOB_SCHEDULE,
    DN_JOB_OPTIMIZER, DN_JOB_LR_SCHEDULE, DN_JOB_EMA, DN_JOB_AUGMENT, DN_JOB_CHECKPOINT, DN_JOB_PREVIEW, DN_JOB_EVAL, DN_JOB_NAN_MAX,
    DN_JOB_FIELDS
};
typedef struct dn_job_request {
    uint64_t has;
    int kind;                      /* 0: train, the only kind of this version */
    const char *name;              /* required */
    const char *dataset;           /* required: "name" or "name@hash prefix" */
    const char *from;              /* "name@version": start from its weights; or */
    const struct json_t *model;    /* a diffusers config: a new network. Exactly one of the two */
    int64_t seed;                  /* 0..2^53-1 (0) */
    const char *device;            /* "auto": the one with the least to do; or one of --devices */
    double train_share;            /* guaranteed share of the device while requests wait, 0..1 (0.2) */
    int priority;                  /* enum dn_priority: among queued jobs */
    int64_t steps, batch_size;     /* optimizer steps (required), samples of each (required) */
    int64_t micro_batch;           /* 0: "auto" */
    int precision;                 /* fp32 bf16 fp16 */
    int64_t height, width;         /* 0: the model's */
    dn_objective_in objective;
    const struct json_t *schedule; /* diffusers' scheduler keys, over the model's; NULL */
    dn_optimizer_in optimizer;
    dn_lr_in lr_schedule;
    dn_ema_in ema;
    dn_items augment;              /* dn_augment_in */
    dn_checkpoint_in checkpoint;
    dn_preview_in preview;
    dn_eval_in eval;
    int64_t nan_max;
} dn_job_request;

/* As dn_generate_parse. Options that have no effect beside the others (snr_gamma without min_snr, betas with sgd, ...) are
 * refused as a contradiction. */
int dn_job_parse(dn_job_request *out, dn_arena *a, struct json_t *json, dn_http_error *err);
/* The request with every default written out, and nothing that has no effect: parsing it gives the same request. */
void dn_job_write(const dn_job_request *r, dn_buf *b);

/* PATCH /jobs/{id} */
enum { DN_JOB_PATCH_TRAIN_SHARE, DN_JOB_PATCH_PRIORITY, DN_JOB_PATCH_FIELDS };
typedef struct dn_job_patch {
    uint64_t has;
    double train_share;
    int priority;
} dn_job_patch;

/* POST /jobs/{id}/publish and POST /models/{name}/save {"as"}; POST /models/{name}/alias {"version"} */
typedef struct dn_publish_in {
    uint64_t has;
    const char *as;
} dn_publish_in;
typedef struct dn_alias_in {
    uint64_t has;
    int64_t version;
} dn_alias_in;

/* ---- answers ---------------------------------------------------------------------------------------------------- */

enum dn_job_state { DN_JOB_QUEUED, DN_JOB_RUNNING, DN_JOB_PAUSED, DN_JOB_SUCCEEDED, DN_JOB_FAILED, DN_JOB_CANCELLED, DN_JOB_STATES };
extern const char *const dn_job_states[]; /* NULL-terminated */

/* What `auto` was resolved to, before the first step. */
typedef struct dn_job_plan {
    uint64_t has;
    int64_t micro_batch, recomputed_blocks;
    int64_t weights, gradients, moments, ema, arena, data, copies, previews, total; /* bytes */
    double gflop_per_step;
    const char *numerics;
} dn_job_plan;

typedef struct dn_job_info {
    uint64_t has; /* bits: DN_JOBINFO_... */
    const char *id, *name;
    int state;
    const char *reason;        /* why it is paused or failed, for people */
    const char *dataset;       /* "name@hash" */
    const char *from;
    const char *device;
    int64_t step, steps, attempt;
    double loss, lr, grad_norm; /* of the last step */
    double eval_loss;
    double images_per_s, eta_s;
    double data_wait;           /* share of the wall time that the device waited for data */
    double train_share;
    int priority;
    int64_t position;           /* queued: jobs ahead of it on its device */
    double created_at, started_at, finished_at;
    dn_job_plan plan;
    const struct json_t *request; /* the job as it was resolved */
    const char *published;        /* the last "model@version" that came of it */
    dn_error_body error;
} dn_job_info;
enum {
    DN_JOBINFO_ID, DN_JOBINFO_NAME, DN_JOBINFO_STATE, DN_JOBINFO_REASON, DN_JOBINFO_DATASET, DN_JOBINFO_FROM, DN_JOBINFO_DEVICE,
    DN_JOBINFO_STEP, DN_JOBINFO_STEPS, DN_JOBINFO_ATTEMPT, DN_JOBINFO_LOSS, DN_JOBINFO_LR, DN_JOBINFO_GRAD_NORM, DN_JOBINFO_EVAL_LOSS,
    DN_JOBINFO_IMAGES_PER_S, DN_JOBINFO_ETA_S, DN_JOBINFO_DATA_WAIT, DN_JOBINFO_TRAIN_SHARE, DN_JOBINFO_PRIORITY, DN_JOBINFO_POSITION,
    DN_JOBINFO_CREATED_AT, DN_JOBINFO_STARTED_AT, DN_JOBINFO_FINISHED_AT, DN_JOBINFO_PLAN, DN_JOBINFO_REQUEST, DN_JOBINFO_PUBLISHED,
    DN_JOBINFO_ERROR, DN_JOBINFO_FIELDS
};
/* GET /models/{name}/config: a part of a JobRequest. */
typedef struct dn_job_recipe {
    uint64_t has;
    const struct json_t *model, *schedule;
    dn_objective_in objective; /* only its prediction */
} dn_job_recipe;

typedef struct dn_job_list {
    uint64_t has;
    dn_items jobs; /* dn_job_info, newest first */
    const char *next;
} dn_job_list;
typedef struct dn_jobs_query {
    uint64_t has;
    int state;
    int64_t limit;
    const char *after;
} dn_jobs_query;
enum { DN_JOBS_STATE, DN_JOBS_LIMIT, DN_JOBS_AFTER };

typedef struct dn_job_checkpoint {
    uint64_t has;
    int64_t step, bytes;
    double created_at, eval_loss; /* eval_loss without its bit: not measured */
    bool best;
} dn_job_checkpoint;
typedef struct dn_job_checkpoint_list {
    uint64_t has;
    dn_items checkpoints; /* dn_job_checkpoint, newest first */
} dn_job_checkpoint_list;

typedef struct dn_job_sample {
    uint64_t has;
    int64_t step, seed;
    const char *label; /* NULL: the null label */
    const char *sha256, *url;
} dn_job_sample;
typedef struct dn_job_sample_list {
    uint64_t has;
    dn_items samples; /* dn_job_sample, newest first */
    const char *next;
} dn_job_sample_list;
enum { DN_JOB_SAMPLES_MAX = 256 /* of a page */ };
typedef struct dn_samples_query {
    uint64_t has;
    int64_t limit;
    const char *after;
} dn_samples_query;

/* Events of /jobs/{id}/events; their ids are "attempt.step[.e][.pN]" (server/jobs_events.c). Besides these: `error`, and `state` with a dn_job_info. */
typedef struct dn_event_step {
    uint64_t has;
    int64_t step, steps;
    double loss, lr, grad_norm, images_per_s, eta_s;
    bool skipped;
} dn_event_step;
typedef struct dn_event_eval {
    uint64_t has;
    int64_t step;
    double loss;
    dn_nums buckets; /* loss by timestep, low to high */
} dn_event_eval;
typedef struct dn_event_resumed {
    uint64_t has;
    int64_t step; /* what was told of later steps is void */
} dn_event_resumed;
/* `preview`: dn_job_sample; `checkpoint`: dn_job_checkpoint */

/* ---- datasets ---------------------------------------------------------------------------------------------------- */

/* PUT /datasets/{name}?skip_broken=, PUT /models/{name}?wait= (dn_model_query) */
typedef struct dn_dataset_query {
    uint64_t has;
    bool skip_broken;
} dn_dataset_query;

/* DELETE /datasets/{name}?importing= */
typedef struct dn_dataset_delete_query {
    uint64_t has;
    bool importing; /* only an import that is under way */
} dn_dataset_delete_query;

typedef struct dn_broken_file {
    uint64_t has;
    const char *file, *why;
} dn_broken_file;
typedef struct dn_dataset_card {
    uint64_t has; /* bits: DN_DATASET_CARD_... */
    const char *name, *hash;   /* jobs take "name@hash" */
    int64_t images, bytes, channels;
    int64_t height_min, height_max, width_min, width_max;
    dn_strs classes;
    int64_t n_classes;
    double created_at;
    int64_t pinned_by;         /* jobs that are not over */
    int64_t n_broken;          /* left out with skip_broken */
    dn_items broken;           /* dn_broken_file, the first 50; only in the answer to PUT */
    bool cancelled;            /* the answer to DELETE that stopped an import */
} dn_dataset_card;
enum {
    DN_DATASET_CARD_NAME, DN_DATASET_CARD_HASH, DN_DATASET_CARD_IMAGES, DN_DATASET_CARD_BYTES, DN_DATASET_CARD_CHANNELS,
    DN_DATASET_CARD_HEIGHT_MIN, DN_DATASET_CARD_HEIGHT_MAX, DN_DATASET_CARD_WIDTH_MIN, DN_DATASET_CARD_WIDTH_MAX, DN_DATASET_CARD_CLASSES,
    DN_DATASET_CARD_N_CLASSES, DN_DATASET_CARD_CREATED_AT, DN_DATASET_CARD_PINNED_BY, DN_DATASET_CARD_N_BROKEN, DN_DATASET_CARD_BROKEN,
    DN_DATASET_CARD_CANCELLED,
    DN_DATASET_CARD_FIELDS
};
typedef struct dn_dataset_list {
    uint64_t has;
    dn_items datasets; /* dn_dataset_card */
} dn_dataset_list;

extern const dn_fields dn_job_fields, dn_job_patch_fields, dn_publish_fields, dn_alias_fields;
extern const dn_fields dn_job_info_fields, dn_job_recipe_fields, dn_job_list_fields, dn_jobs_query_fields, dn_job_plan_fields;
extern const dn_fields dn_job_checkpoint_fields, dn_job_checkpoint_list_fields, dn_job_sample_fields, dn_job_sample_list_fields,
    dn_samples_query_fields;
extern const dn_fields dn_event_step_fields, dn_event_eval_fields, dn_event_resumed_fields;
extern const dn_fields dn_dataset_query_fields, dn_dataset_delete_query_fields, dn_dataset_card_fields, dn_dataset_list_fields;

#endif
