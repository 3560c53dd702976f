/* worker.h - the thread that owns a device.
 *
 * The loop gives a worker networks (adopt) and runs (one request's samples), the worker gives them back; what happens
 * in between is told by events, which are messages to the loop. Nothing is shared: whoever posts a struct gives it up.
 * Join, leave, cancel, adopt and preview take place between two batches, nowhere else. */
#ifndef DN_SERVER_WORKER_H
#define DN_SERVER_WORKER_H

#include <denoised/device.h>
#include <denoised/trainer.h>
#include "loop.h"
#include "msg.h"
#include "scheduler.h"

typedef struct dn_worker dn_worker;

/* dn_now_ms() with its fraction: any thread. */
double dn_clock_ms(void);

/* Why a run came back. */
enum dn_run_end { DN_RUN_DONE, DN_RUN_CANCELLED, DN_RUN_EXPIRED, DN_RUN_FAILED };

/* One request's samples on one device. */
typedef struct dn_run {
    dn_msg msg;
    dn_worker *worker; /* it is on; dn_worker_run sets it */
    uint64_t id;       /* the loop's, never used twice: events and cancel name it */
    uint64_t net;      /* adopted before */
    char tenant[DN_TENANT_MAX];
    double weight;
    enum dn_priority priority;
    double price_ms;    /* per row, at admission */
    double arrived_ms;  /* dn_clock_ms() of the request */
    double deadline_ms; /* on the same clock; 0: none */
    int preview_every;  /* sampler steps; 0: no previews */
    bool read_out;      /* the result is the network's output [H,W,out_channels], not x */
    int n;
    dn_sample_params *params; /* n, malloc'ed */
    dn_table *tables;         /* malloc'ed: what params[k].table points to, shared by the samples */
    int n_tables;
    float *x; /* what params[k].x and label_vector point into, if they bring it; malloc'ed */
    float *label_vector;

    /* the worker's answer */
    enum dn_run_end end;
    dn_error error; /* of DN_RUN_FAILED */
    int failed_sample;
    double queue_ms;  /* until its first row ran; until its end when none did */
    double device_ms; /* its share of its batches, by rows */
    int64_t row_steps;
    double batch_rows_sum; /* over its row-steps, of the rows of their batches */

    /* the worker's own */
    struct dn_run_sample *samples;
    int n_open; /* samples not done */
    bool over;
    dn_sched_request sched;
    dn_link link;
} dn_run;

void dn_run_free(dn_run *run); /* not while a worker has it; NULL is fine */

/* ---- events: the receiver frees them with free() ---------------------------------------------------------- */

typedef struct dn_share {
    uint64_t run;
    int rows;
    int step; /* sampler steps that the last of its samples has behind it */
} dn_share;

/* One batch has run. */
typedef struct dn_step {
    dn_msg msg;
    dn_worker *worker;
    uint64_t net;
    int rows;
    double ms, price_ms; /* of the batch; the network's list price per row after it */
    size_t device_bytes;
    int n_shares;
    dn_share share[];
} dn_step;

/* A sample's predicted x0, or its result. */
typedef struct dn_picture {
    dn_msg msg;
    dn_worker *worker;
    uint64_t run;
    int index, step;
    bool final;
    double read_ms; /* from the device to here */
    size_t n;
    float v[]; /* [H,W,C]; [H,W,out_channels] of read_out */
} dn_picture;

/* A network on its way to a worker (adopt) or out of it (drop), and back when that is done. */
typedef struct dn_adoption {
    dn_msg msg;
    dn_worker *worker;
    uint64_t net_id;
    const dn_net *net;
    double gflop_per_row;
    dn_sample_params probe; /* adopt: a sample of the network for the device's first trial; its table is dn_worker's */
    double price_ms;        /* answer: list price per row, estimated until its first run */
    size_t device_bytes;    /* answer: what the device holds now */
    bool drop;
    void *owner; /* the sender's */
} dn_adoption;

/* ---- training ---------------------------------------------------------------------------------------------- */

/* What is done at the end of an optimizer step, before the next; a set. */
enum dn_train_duty {
    DN_DUTY_EVAL = 1,       /* the held-out loss */
    DN_DUTY_PREVIEW = 2,    /* a copy of the EMA */
    DN_DUTY_CHECKPOINT = 4, /* a copy of everything */
    DN_DUTY_STOP = 8,       /* give the job back */
    DN_DUTY_PUBLISH = 16    /* a copy of the EMA, for a version */
};

enum dn_train_end { DN_TRAIN_DONE, DN_TRAIN_STOPPED, DN_TRAIN_FAILED };

/* A job on its device. It runs in segments: whenever no sample waits, and when its share is owed to it. */
typedef struct dn_training {
    dn_msg msg;
    dn_worker *worker;
    uint64_t id;         /* the loop's, never used twice */
    dn_trainer *trainer; /* the worker alone touches it */
    double share;
    int64_t steps;       /* of the whole job: then it is evaluated if it ever was, saved, and comes back */
    /* every so many steps, 0: never; a checkpoint also after so many milliseconds */
    int64_t eval_every, preview_every, checkpoint_every, checkpoint_ms;

    /* the worker's answer */
    enum dn_train_end end;
    dn_error error; /* of DN_TRAIN_FAILED */

    /* the worker's own */
    unsigned due; /* of this boundary: enum dn_train_duty */
    unsigned asked;
    unsigned awaited; /* of `due`: what was asked for */
    unsigned again; /* at the next boundary: there was no memory even to say that there was none */
    unsigned away;  /* duties whose copies are with the loop: a preview is left out then, a checkpoint is waited for */
    double saved_ms;
} dn_training;

/* A step has ended, or a duty of its end is done. The receiver frees it with free(), and the snapshot; news of a PREVIEW or a CHECKPOINT
 * it gives back instead (dn_worker_train_returned) when all memory of its copy is free: until then there is no second one. */
typedef struct dn_train_news {
    dn_msg msg;
    dn_worker *worker;
    uint64_t training;
    unsigned duty; /* 0: the step; else one of DN_DUTY_EVAL, PREVIEW, CHECKPOINT, PUBLISH */
    int64_t step;
    dn_train_report report;
    dn_eval_report eval;
    dn_snapshot *snapshot; /* NULL of PUBLISH: there was no memory for it */
    double preempted_ms; /* since the last news: owed to samples while the job could have run */
} dn_train_news;

/* Called on the loop's thread; each owns what it is given. */
typedef struct dn_worker_events {
    void (*step)(void *arg, dn_step *step);
    void (*picture)(void *arg, dn_picture *picture);
    void (*gone)(void *arg, dn_run *run);
    void (*adopted)(void *arg, dn_adoption *adoption);
    void (*trained)(void *arg, dn_train_news *news);
    void (*train_gone)(void *arg, dn_training *training);
} dn_worker_events;

typedef struct dn_worker_options {
    dn_device *device; /* the worker's until dn_worker_stop */
    dn_loop *loop;
    int index;
    dn_sched_limits limits;
    double yield_ms; /* of a training segment, at the most */
    const dn_worker_events *events;
    void *arg;
} dn_worker_options;

int dn_worker_start(dn_worker **out, const dn_worker_options *options, dn_error *err);
/* Cancel what runs, join the thread. Every run and adoption has then been posted back: run the loop's messages once
 * more, then free the worker. */
void dn_worker_stop(dn_worker *w);
void dn_worker_free(dn_worker *w); /* NULL is fine */
int dn_worker_index(const dn_worker *w);

/* The loop's thread. */
void dn_worker_run(dn_worker *w, dn_run *run);
void dn_worker_adopt(dn_worker *w, dn_adoption *adoption);
/* At the next boundary the run comes back, DN_RUN_CANCELLED; nothing happens when it is on its way back already. 0 or
 * DN_E_MEMORY. */
int dn_worker_cancel(dn_worker *w, uint64_t run);
/* One job at a time: the one before must have come back. */
void dn_worker_train(dn_worker *w, dn_training *training);
/* At the end of the present optimizer step do this as well; until it is done the job's share is DN_SHARE_AWAITED at least. 0 or
 * DN_E_MEMORY; nothing happens when the job is on its way back. */
int dn_worker_train_ask(dn_worker *w, uint64_t training, unsigned duties);
int dn_worker_train_share(dn_worker *w, uint64_t training, double share);
/* The copy that came with this news is gone; takes it. Also when the job has come back, or the worker has stopped. */
void dn_worker_train_returned(dn_train_news *news);

#endif
