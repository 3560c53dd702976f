/* jobs.h - training jobs from submission to their end.
 *
 * A job is the loop's. Its trainer is the worker's while it runs, and the slow lane's while it is made or written; snapshots travel
 * in messages. One job at a time runs on a device; the others are queued, by priority, then age.
 *
 *     queued -> running -> succeeded | failed
 *        ^         |  ^
 *        |         v  |          pause ends the optimizer step, saves, frees the device; a drain does the same
 *        +----- paused           and leaves the job queued, so that the next start goes on with it
 *     any of them -> cancelled
 *
 * What is durable: the row in the store (spec with every default resolved, plan, state), and the job's folder jobs/<id>:
 * checkpoints/<step>, metrics.csv, samples/. After a kill -9 a job goes on from its newest good checkpoint, to the same weights;
 * metrics and previews are cut back to it. */
#ifndef DN_SERVER_JOBS_H
#define DN_SERVER_JOBS_H

#include "app_parts.h"
#include "datasets.h"
#include "job.h"
#include "models.h"

enum { DN_JOB_ID_LEN = 32, DN_JOB_LOG_MAX = 8192, DN_JOB_CSV_BYTES_MAX = 64 << 20 /* lines that are not written yet */ };

/* What shall become of it when it comes back from its device. */
enum dn_job_goal { DN_GOAL_RUN, DN_GOAL_PAUSE, DN_GOAL_CANCEL, DN_GOAL_YIELD /* back into the queue: a drain */ };

/* Where a running job is. */
enum dn_job_phase {
    DN_PHASE_IDLE,       /* not running */
    DN_PHASE_COMMITTING, /* that it starts is being stored, so that a job that ends the daemon is found */
    DN_PHASE_MAKING,     /* the slow lane makes its trainer */
    DN_PHASE_ON_DEVICE,  /* the worker has the trainer */
    DN_PHASE_CLOSING     /* it came back; what is left to write is being written */
};

/* Lane work that is under way for a job; a set. */
enum dn_job_work { DN_WORK_SAVE = 1, DN_WORK_METRICS = 2, DN_WORK_STORE = 4, DN_WORK_PREVIEW = 8, DN_WORK_OTHER = 16, DN_WORK_PUBLISH = 32 };

/* One line of metrics.csv, and one event. */
typedef struct dn_job_line {
    int64_t step;
    int32_t attempt;
    bool is_eval, skipped;
    double loss, lr, grad_norm, images_per_s, eta_s;
    double bucket[DN_EVAL_BUCKETS];
} dn_job_line;

typedef struct dn_saved {
    int64_t step, bytes;
    double created_at, eval_loss;
    bool has_eval;
} dn_saved;

/* A place in a job's stream of events: behind the line of this step, or of its evaluation, and behind the previews told since. */
typedef struct dn_told {
    int attempt;
    int64_t step;
    bool evaluated;
    int previews;
} dn_told;

typedef struct dn_previewed {
    int64_t step, seed;
    int label; /* -1: the null label */
    char sha256[65];
    dn_told told; /* where its event stands: later than its step, and never before that of an older preview */
} dn_previewed;

typedef struct dn_job {
    dn_link link; /* newest first */
    dn_app *app;
    char id[DN_JOB_ID_LEN + 1];
    char owner[DN_TENANT_MAX];
    char *dir; /* jobs/<id> in the state folder */

    /* what was asked, resolved */
    dn_arena *arena;
    struct json_t *json; /* the resolved request: what GET shows */
    dn_job_request in;
    dn_train_params params;
    dn_train_plan plan;
    char *plan_text; /* the plan as JSON */
    dn_stored *stored;
    bool pinned;
    char dataset[DN_NAME_LEN_MAX + 68], from[DN_NAME_LEN_MAX + 16];
    char *from_dir;
    dn_place *place;
    double share;
    int priority;

    enum dn_job_state state;
    enum dn_job_goal goal;
    enum dn_job_phase phase;
    enum dn_train_end end; /* CLOSING: how it came back */
    unsigned working;      /* enum dn_job_work */
    dn_call *call;         /* POST /jobs: waits for the row to be stored */
    bool listed;           /* in the list; else it is being planned */
    bool stored_once;      /* the store has its row */
    bool dead;             /* refused, or the app stops: freed when no work is under way */
    char reason[200];
    dn_http_error failure; /* of a failed one */
    int attempt;
    int64_t starts, tries; /* in a row that ended the daemon before a checkpoint; of those the last ones before a step */
    bool suspect;          /* such was its last start, in an earlier process */
    double created_at, started_at, finished_at;

    /* figures */
    int64_t step;
    bool has_loss, has_eval;
    double loss, lr, grad_norm, eval_loss, images_per_s, eta_s;
    double began_ms, wait_ms; /* of this attempt */
    int64_t began_step;
    char published[DN_NAME_LEN_MAX + 16];
    struct publishing *publishing; /* under way */
    int64_t reading;               /* the step of the checkpoint that is being published, which stays; 0: none */

    /* while it runs */
    uint64_t number;        /* for the worker: never used twice */
    bool save;              /* asked for on the way to the device */
    dn_dataset *data;
    dn_trainer *trainer;
    int64_t held;           /* bytes in the budget */
    struct preview *preview; /* under way; its number */
    uint64_t preview_number;
    bool store_again;       /* it has changed while it was being stored */
    bool store_late;        /* its row could not be written: the next tick tries again */

    /* what is kept of its way */
    dn_job_line *line; /* a ring of DN_JOB_LOG_MAX */
    int64_t n_lines;   /* ever */
    dn_buf csv;        /* not written yet */
    bool csv_late;     /* the slow lane has lines that it could not write */
    dn_buf behind;     /* the slow lane's: those lines, in order before csv */
    int64_t csv_size;  /* the slow lane's: of the file, whole lines; -1: all of it is */
    dn_saved *saved;   /* oldest first */
    int n_saved;
    dn_previewed *shown; /* oldest first */
    int n_shown;
    dn_link watchers;
    unsigned n_kept; /* events told to them that no reader loses */
} dn_job;

typedef struct dn_jobs {
    dn_link jobs; /* newest first */
    uint64_t number;
} dn_jobs;

/* ---- jobs.c: the list, states, who runs next ---- */

/* Read the list from the store, before its thread starts; jobs that were running are queued. */
int dn_jobs_open(dn_app *app, dn_error *err);
void dn_jobs_close(dn_app *app);
/* Running jobs save themselves and go back into the queue. */
void dn_jobs_drain(dn_app *app);
/* The time to drain is over: the daemon stops in good order, and no job is why. */
void dn_jobs_abort(dn_app *app);
int dn_jobs_active(const dn_app *app); /* that a drain waits for */
void dn_jobs_pump(dn_app *app);        /* start what can be started */
void dn_jobs_tick(dn_app *app);        /* now and then: write metrics, pump */
dn_job *dn_job_new(dn_app *app, const char *id, const char *owner); /* NULL: out of memory */
void dn_jobs_add(dn_app *app, dn_job *j);
void dn_job_forget(dn_job *j); /* out of the list; freed when no work is under way */
dn_job *dn_job_find(dn_app *app, const char *id);
dn_job *dn_job_by_number(dn_app *app, uint64_t number);
dn_job *dn_job_by_preview(dn_app *app, uint64_t number);
dn_place *dn_jobs_idlest(dn_app *app);
/* 0, or a DN_H code: not in this state. */
int dn_job_pause(dn_job *j, dn_http_error *err);
int dn_job_resume(dn_job *j, dn_http_error *err);
int dn_job_cancel(dn_job *j, dn_http_error *err);
int dn_job_change(dn_job *j, const dn_job_patch *patch, dn_http_error *err);
void dn_job_unsuspect(dn_job *j); /* it has made a step, or ended in good order */
void dn_job_work_done(dn_job *j, unsigned work); /* an enum dn_job_work has come back */
/* It leaves its device, or never had one. */
void dn_job_end(dn_job *j, enum dn_job_state state, const char *reason);
double dn_unix_now(void);

/* ---- jobs_submit.c: from a parsed request to a stored job ---- */

/* Validate, plan on the slow lane, store, answer 201. */
void dn_job_submit(dn_app *app, dn_call *call, struct json_t *json);
/* The row of a new job is stored, or is not; takes the text, the answer to its call. */
void dn_job_accepted(dn_job *j, const dn_error *err, char *text, size_t n);
/* A job from its stored row; the spec was written by dn_job_write. */
int dn_job_restore(dn_job *j, const char *spec, const char *plan, dn_error *err);
/* What the names in its request stand for: dataset, model, device. 0 or a DN_H code. */
int dn_job_resolve(dn_job *j, dn_http_error *err);
void dn_job_plan_of(const dn_job *j, dn_job_plan *out);
/* Slow lane: its model (read, or made anew from its config and seed) and its data. */
int dn_job_open_parts(const dn_job *j, dn_model **model, dn_dataset **data, dn_error *err);

/* ---- jobs_run.c: on the device ---- */

void dn_job_start(dn_job *j); /* that it starts is stored: make the trainer, restore, give it to the worker */
void dn_job_news(dn_app *app, dn_train_news *news);
void dn_job_back(dn_app *app, dn_training *training);
void dn_job_close(dn_job *j); /* CLOSING: when nothing is left to write, end */
int dn_job_ask(dn_job *j, unsigned duties); /* 0, also when it is not on its device; or DN_E_MEMORY */

/* ---- jobs_store.c ---- */

/* Make the row what the job is. If a write is under way it is done again after it. */
void dn_job_store(dn_job *j);
void dn_job_store_saved(dn_job *j, const dn_saved *s);
void dn_job_store_unsaved(dn_job *j, int64_t step); /* a checkpoint that is no longer kept */
void dn_job_store_shown(dn_job *j, const dn_previewed *s);
/* A job goes on from `step`: what was stored of later steps is void. */
void dn_job_store_cut(dn_job *j, int64_t step);
int dn_jobs_read(dn_app *app, dn_error *err);
void dn_jobs_store_leave(dn_app *app); /* what still runs ends in good order */

/* ---- jobs_publish.c ---- */

void dn_job_publish(dn_job *j, const char *as, dn_call *call); /* answers the call when it is live */
void dn_job_publish_ema(dn_job *j, dn_snapshot *ema);          /* the worker's copy, taken; NULL: it found no memory */
void dn_job_publish_missed(dn_job *j);                         /* the worker has none to give any more */
void dn_job_publish_tick(dn_job *j);                           /* does what waits go on? the job has arrived, or time has passed */
void dn_job_publish_free(dn_job *j);                           /* nothing of it is under way: it never answers */

/* ---- jobs_files.c: its folder ---- */

void dn_job_save(dn_job *j, dn_train_news *n); /* a copy for a checkpoint; takes it */
void dn_job_remember_saved(dn_job *j, const dn_saved *as); /* the newest checkpoint: it is in the folder */
void dn_job_write_metrics(dn_job *j);
/* Lane thread. Restore the newest good checkpoint into t, cut metrics.csv back to it, and read its last lines. from->step 0: there
 * is none. */
int dn_job_files_restore(dn_job *j, dn_trainer *t, dn_saved *from, dn_job_line **lines, int *n_lines, dn_error *err);
int dn_job_make_folder(const char *dir, const char *name, dn_error *err); /* jobs/<id>/name and what is above it */
char *dn_job_path(const dn_job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* malloc'ed; NULL: no memory */

/* ---- jobs_events.c ---- */

void dn_job_line_add(dn_job *j, const dn_job_line *line, bool fresh); /* the ring; fresh: the csv and who listens too */
void dn_job_event_state(dn_job *j);
void dn_job_event_saved(dn_job *j, const dn_saved *s);
dn_told dn_job_told_next(const dn_job *j); /* the place of a preview that is told now */
void dn_job_event_shown(dn_job *j, const dn_previewed *s);
void dn_job_event_resumed(dn_job *j);
/* A place as the id of the event there, and back; false: it is none. */
enum { DN_TOLD_LEN = 64 };
void dn_told_write(char id[DN_TOLD_LEN], const dn_told *at);
bool dn_told_read(dn_told *at, const char *id);
/* Answer with a stream of events after `last_id` (NULL: all that is kept). */
void dn_job_watch(dn_job *j, dn_call *call, const char *last_id);
void dn_job_unwatch_all(dn_job *j);
void dn_job_info_of(dn_job *j, dn_job_info *info);
void dn_job_sample_of(const dn_job *j, const dn_previewed *s, dn_job_sample *out, char url[128], char label[16]);

/* ---- jobs_preview.c: pictures from the EMA, sampled through the same rows as everyone's ---- */

#define DN_PREVIEW_BIT (1ull << 63) /* in the number of a network or a run: it is a job's preview */

/* Which labels its previews show; *n 0: it has none. Any thread. */
int dn_job_preview_labels(const dn_job *j, const dn_model *m, int label[DN_N_MAX], int *n, dn_error *err);
int dn_job_preview_table(const dn_job *j, const dn_model *m, dn_table *out, dn_error *err);
size_t dn_job_preview_sample_bytes(const dn_model *m, const dn_table *t); /* of each of its pictures, on the device */
void dn_job_preview(dn_job *j, dn_train_news *n); /* a copy of the EMA; takes it */
/* What workers tell of networks and runs that have DN_PREVIEW_BIT; each takes what it is given. */
void dn_job_preview_adopted(dn_adoption *a);
void dn_job_preview_picture(dn_app *app, dn_picture *picture);
void dn_job_preview_gone(dn_app *app, dn_run *run);

#endif
