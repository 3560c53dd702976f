/* train_internal.h - shared by the files of engine/train.
 *
 * The trainer's memory is one arena for the program and flat blocks of `count` floats in registration order: weights,
 * gradient, one or two moments, EMA. A flat pass goes over them in chunks whose bounds never depend on threads or on
 * the clock, so a pass may stop after any chunk and give the same bits. */
#ifndef DN_TRAIN_INTERNAL_H
#define DN_TRAIN_INTERNAL_H

#include "device_internal.h"
#include "inspect.h"
#include "plan.h"
#include "schedule.h"
#include <denoised/trainer.h>

/* ---- params.c: names, ranges, JSON ---- */

enum { DN_TRAIN_STEPS_MAX = 100000000, DN_TRAIN_BATCH_MAX = 65536 };
/* Every field within its range; err->param is its path on the wire. */
int dn_train_params_check(const dn_train_params *p, dn_error *err);
/* Everything as JSON, floats exactly. The caller's; NULL: out of memory. */
struct json_t *dn_train_params_json(const dn_train_params *p);

/* ---- levels.c: the noise process that a model is trained on ---- */

typedef struct dn_levels {
    int n;                 /* training timesteps */
    bool flow;             /* x_t = (1 - sigma) x0 + sigma n, else variance preserving */
    bool learned_range;    /* learned variance: the output interpolates two log variances; else it is the variance */
    double *alpha, *sigma; /* [n] */
    float *time;           /* [n] what the network is told */
    double *beta, *abar;   /* [n] of the variance-preserving process, else NULL */
} dn_levels;

int dn_levels_init(dn_levels *l, const dn_model_info *info, dn_error *err);
void dn_levels_fini(dn_levels *l);

/* ---- objective.c: laws of the timestep, weights, targets ---- */

double dn_timesteps_scale(const dn_objective *o); /* the law's own where none is given */
/* The index of the timestep that the law makes of u in (0,1). */
int dn_timestep_of(const dn_objective *o, int n, double u);
/* What one row's loss needs: the numbers that go in with it. */
typedef struct dn_row_terms {
    float alpha, sigma;    /* x_t = alpha*x0 + sigma*n */
    float of_x0, of_noise; /* target = of_x0*x0 + of_noise*n */
    double weight;
    double mean_scale;              /* learned variance: error of the posterior mean / error of the output */
    double lv_min, lv_max, lv_true; /* log variances: posterior (clipped), beta, posterior */
} dn_row_terms;
dn_row_terms dn_row_terms_of(const dn_levels *l, const dn_objective *o, int t);

/* ---- lr.c, ema.c ---- */

double dn_lr_at(const dn_lr_schedule *s, double lr, int64_t k, int64_t steps); /* of optimizer step k, from 0 */
/* The decay of the update that follows optimizer step u (from 1): the product of the decays of the steps since the last
 * one. */
double dn_ema_decay(const dn_ema *e, int64_t u);

/* ---- record.c: the program of forward, loss and backward ---- */

typedef struct dn_train_net {
    dn_program *program;
    dn_lowered *lowered;
    dn_ports ports;
    int target, weight, dloss, rng, loss;                                /* places; -1: none */
    int mean_scale, lv_min, lv_max, lv_true, first, edge_low, edge_high; /* of learned variance */
} dn_train_net;

/* What a program is recorded from. */
typedef struct dn_train_recipe {
    const dn_model *model;
    const dn_levels *levels;
    const dn_train_params *params;
    int height, width, rows;
    bool backward; /* else the loss alone: evaluation */
} dn_train_recipe;

/* Block 0 is read, block 1 (only with `backward`) is the gradient, to which a run adds. NULL: out of memory; other
 * failures are the program's. */
dn_program *dn_train_record(const dn_train_recipe *c, const dn_marks *recompute);
int dn_train_net_init(dn_train_net *t, const dn_train_recipe *c, const dn_marks *recompute, const dn_device *d,
                      dn_error *err);
void dn_train_net_fini(dn_train_net *t);
size_t dn_train_net_bytes(const dn_train_net *t); /* all but the arena */

/* ---- optimizer.c: flat passes ---- */

enum { DN_FLAT_CHUNK = 16384 }; /* elements; a multiple of a parameter's alignment */
typedef struct dn_segment {
    int64_t from, to;
    bool decay;
} dn_segment;

typedef struct dn_flat {
    int64_t count;
    float *weights, *gradient, *m, *v, *ema; /* v: NULL for SGD */
    double *partial;                         /* [chunks] sums of squares */
    dn_segment *segment;
    int n_segments;
} dn_flat;

size_t dn_flat_bytes(int64_t count, enum dn_optimizer_kind kind, size_t *gradients, size_t *moments);
int dn_flat_init(dn_flat *f, const dn_block *b, enum dn_optimizer_kind kind, dn_error *err);
void dn_flat_fini(dn_flat *f);
int64_t dn_flat_chunks(const dn_flat *f);

typedef struct dn_update_terms {
    enum dn_optimizer_kind kind;
    float factor;             /* of the gradient: clipping, loss scale */
    float keep, weight_decay; /* AdamW: 1 - lr*wd; Adam, SGD: wd */
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    float step, root; /* lr / (1 - beta1^k), sqrt(1 - beta2^k) */
    float ema;        /* 1 - decay; negative: no update of the EMA */
} dn_update_terms;
dn_update_terms dn_update_terms_of(const dn_optimizer *o, double lr, int64_t k, double factor);

/* Chunks [from, to) of each pass. */
void dn_flat_clear(const dn_flat *f, dn_pool *pool, int64_t from, int64_t to);
void dn_flat_squares(const dn_flat *f, dn_pool *pool, int64_t from, int64_t to);
double dn_flat_norm(const dn_flat *f); /* when all chunks are done */
void dn_flat_update(const dn_flat *f, const dn_update_terms *u, dn_pool *pool, int64_t from, int64_t to);

/* ---- trainer.c ---- */

/* Rows of a micro-batch before they enter the program. */
typedef struct dn_feed {
    float *x0, *noise; /* [rows,H,W,C] */
    int32_t *label;
    int *t;
} dn_feed;

enum dn_phase { DN_PHASE_CLEAR, DN_PHASE_FEED, DN_PHASE_RUN, DN_PHASE_NORM, DN_PHASE_UPDATE, DN_PHASE_COUNT };

/* What a resume needs beside the blocks. */
typedef struct dn_train_counters {
    int64_t step;    /* finished optimizer steps, skipped ones too */
    int64_t updates; /* of the weights */
    double loss_scale;
    int64_t good_steps; /* since the scale changed */
    int64_t nan_run;    /* non-finite steps in a row */
} dn_train_counters;

typedef struct dn_evaluation {
    bool running, fed;
    int64_t at; /* the next held-out image */
    double sum[DN_EVAL_BUCKETS];
    int64_t n[DN_EVAL_BUCKETS];
} dn_evaluation;

/* Looking into runs, for people: inspection.c. */
typedef struct dn_inspection {
    bool trace;
    dn_lowered *check, *eval_check; /* of net and eval_net on ref; NULL: no check */
    dn_run ref;                     /* for the run under way */
    float *gradient;                /* that it adds to */
    dn_inspector inspector;
} dn_inspection;

/* A snapshot under way: what comes next is element `at` of its block (weights, m, v, EMA). */
enum { DN_COPY_PIECE = 1 << 18 }; /* floats */
typedef struct dn_copying {
    dn_snapshot *to; /* NULL: none */
    int block;
    int64_t at;
} dn_copying;

struct dn_trainer {
    dn_device *device;
    dn_model *model; /* described, without weights: the trainer's own */
    char model_hash[65], data_hash[65];
    const dn_dataset *data;
    dn_train_params params;
    dn_train_plan plan;
    dn_levels levels;
    dn_train_net net, eval_net;
    dn_flat flat;
    char *arena;
    size_t arena_bytes;
    dn_feed feed;
    int height, width, channels;
    int64_t row; /* elements of x0 */
    int64_t n_train, n_eval;
    dn_reader *reader, *eval_reader;
    size_t reader_bytes;
    dn_run run;
    enum dn_phase phase;
    int micro;     /* the micro-batch under way */
    int64_t chunk; /* where a flat pass stopped */
    double loss;   /* of the step so far */
    dn_train_report report;
    dn_update_terms update;
    dn_train_counters counters;
    dn_evaluation eval;
    dn_copying copy;
    dn_inspection look;
    /* Tests put their own x0, noise, t and labels in. */
    void (*inject)(void *arg, const struct dn_trainer *t, int first, int n);
    void *inject_arg;
};

/* feed.c: samples first .. first+n-1 of the step (or of the held-out part) into the run's inputs. */
void dn_feed_train(dn_trainer *t, int first, int n);
void dn_feed_eval(dn_trainer *t, int64_t first, int n);

/* inspection.c */
int dn_inspection_init(dn_trainer *t, dn_error *err); /* when the nets are made */
void dn_inspection_fini(dn_trainer *t);
int dn_inspection_begin(dn_trainer *t); /* t->run is bound, its inputs are there: 0 or a negated DN_E code */

int dn_trainer_readers(dn_trainer *t, dn_error *err); /* from the step it is at */

/* ---- plan.c ---- */

dn_reader_params dn_train_reader(const dn_train_params *p, const dn_model_info *info, const dn_dataset *data,
                                 bool held_out);
void dn_train_split(const dn_train_params *p, const dn_dataset *data, int64_t *n_train, int64_t *n_eval);
size_t dn_train_feed_bytes(const dn_train_params *p, const dn_model_info *info, int rows);
void dn_train_numerics(char *out, size_t size, const dn_device *d, const dn_train_params *p, const dn_train_plan *plan);

/* ---- snapshot.c ---- */

struct dn_snapshot {
    dn_model *model; /* with the EMA as its weights */
    enum dn_train_prediction prediction;
    bool all;
    float *block[3]; /* weights, m, v: NULL where there is none */
    int64_t count;
    struct json_t *header;
};
enum { DN_CHECKPOINT_VERSION = 1 };
uint32_t dn_checkpoint_crc(const void *data, size_t n); /* of its header: CRC-32 as in zip and PNG */
struct json_t *dn_trainer_header(const dn_trainer *t);
/* Which job a checkpoint is of: hashes of model and data, numerics, parameters. NULL: out of memory. */
struct json_t *dn_train_identity(const char *model_hash, const char *data_hash, const dn_train_params *p,
                                 const dn_train_plan *plan);
int dn_train_blocks(enum dn_optimizer_kind kind);           /* in a checkpoint */
struct json_t *dn_snapshot_scheduler(const dn_snapshot *s); /* scheduler_config.json of what was trained */

#endif
