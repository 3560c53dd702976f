/* jobs_run.c - a job on its device: the trainer made and restored on the slow lane, what the worker tells, coming back. */
#include "jobs.h"
#include "log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- making ---------------------------------------------------------------------------------------------------- */

typedef struct making {
    dn_work work;
    dn_job *job;
    dn_dataset *data;
    dn_trainer *trainer;
    dn_saved from; /* the checkpoint that it goes on from */
    dn_job_line *lines;
    int n_lines;
    int rc;
    dn_error err;
} making;

static void make_work(dn_work *work)
{
    making *m = dn_container_of(work, making, work);
    const dn_job *j = m->job;
    dn_model *model = NULL;
    m->rc = dn_job_open_parts(j, &model, &m->data, &m->err);
    if (!m->rc)
        m->rc = dn_trainer_new(&m->trainer, j->place->device, model, m->data, &j->params, &j->plan, &m->err);
    dn_model_free(model); /* the trainer has weights of its own: these have room where copies will be */
    if (!m->rc)
        m->rc = dn_job_files_restore(m->job, m->trainer, &m->from, &m->lines, &m->n_lines, &m->err);
}

/* What may pass is no failure: the job waits for somebody to resume it. False: it is one. */
static bool stops_for_now(dn_job *j, int code, const char *message)
{
    if (code != DN_E_IO && code != DN_E_MEMORY)
        return false;
    j->end = DN_TRAIN_STOPPED;
    j->goal = j->goal == DN_GOAL_CANCEL ? DN_GOAL_CANCEL : DN_GOAL_PAUSE;
    snprintf(j->reason, sizeof j->reason, "%.199s", message);
    return true;
}

static void give_to_worker(dn_job *j)
{
    dn_training *t = calloc(1, sizeof *t);
    if (!t) {
        (void)stops_for_now(j, DN_E_MEMORY, "out of memory");
        j->phase = DN_PHASE_CLOSING;
        dn_job_close(j);
        return;
    }
    *t = (dn_training){ .id = j->number,
                        .trainer = j->trainer,
                        .share = j->share,
                        .steps = j->in.steps,
                        .eval_every = j->in.eval.fraction > 0 ? j->in.eval.every_steps : 0,
                        .preview_every = j->in.preview.every_steps,
                        .checkpoint_every = j->in.checkpoint.every_steps,
                        .checkpoint_ms = j->in.checkpoint.every_s * 1000 };
    j->phase = DN_PHASE_ON_DEVICE;
    dn_metrics_reuse(j->app->server.metrics, DN_L_JOB, dn_worker_index(j->place->worker), j->id);
    j->began_ms = dn_clock_ms();
    j->began_step = j->step;
    j->wait_ms = 0;
    dn_worker_train(j->place->worker, t);
    if (j->save)
        dn_job_ask(j, DN_DUTY_CHECKPOINT);
    j->save = false;
    dn_job_publish_tick(j);
}

/* Go on from `step`: what was told of later steps is void. */
static void cut_back(dn_job *j, making *m)
{
    j->n_lines = 0;
    for (int i = 0; i < m->n_lines; i++)
        dn_job_line_add(j, &m->lines[i], false);
    while (j->n_shown && j->shown[j->n_shown - 1].step > m->from.step)
        j->n_shown--;
    while (j->n_saved && j->saved[j->n_saved - 1].step > m->from.step)
        j->n_saved--;
    j->step = m->from.step;
    if (j->attempt > 1)
        dn_job_event_resumed(j);
    dn_job_store_cut(j, m->from.step);
    bool known = j->n_saved && j->saved[j->n_saved - 1].step == m->from.step;
    if (m->from.step && !known) /* it is in the folder, but the process ended, or a write failed, before that was kept */
        dn_job_remember_saved(j, &m->from);
}

static void make_done(dn_work *work)
{
    making *m = dn_container_of(work, making, work);
    dn_job *j = m->job;
    j->data = m->data;
    j->trainer = m->trainer;
    j->working &= ~DN_WORK_OTHER;
    j->end = DN_TRAIN_STOPPED;
    if (m->rc && !stops_for_now(j, m->rc, m->err.message)) {
        dn_http_fail_engine(&j->failure, dn_error_name(m->rc), m->err.param, m->err.message);
        j->end = DN_TRAIN_FAILED;
    } else if (!m->rc) {
        cut_back(j, m);
    }
    free(m->lines);
    free(m);
    if (j->end == DN_TRAIN_FAILED || j->goal != DN_GOAL_RUN || j->app->closing) {
        j->phase = DN_PHASE_CLOSING;
        dn_job_close(j);
        return;
    }
    j->number = ++j->app->jobs->number;
    give_to_worker(j);
}

void dn_job_start(dn_job *j)
{
    making *m = calloc(1, sizeof *m);
    if (!m || j->goal != DN_GOAL_RUN || j->app->closing) {
        free(m);
        j->phase = DN_PHASE_CLOSING;
        j->end = DN_TRAIN_STOPPED;
        j->goal = j->goal == DN_GOAL_RUN ? DN_GOAL_YIELD : j->goal;
        dn_job_close(j);
        return;
    }
    *m = (making){ .work = { .work = make_work, .done = make_done }, .job = j };
    j->phase = DN_PHASE_MAKING;
    j->working |= DN_WORK_OTHER;
    dn_lane_submit(j->app->server.slow, &m->work);
}

/* ---- what the worker tells ------------------------------------------------------------------------------------- */

int dn_job_ask(dn_job *j, unsigned duties)
{
    return j->phase == DN_PHASE_ON_DEVICE ? dn_worker_train_ask(j->place->worker, j->number, duties) : 0;
}

static void step_told(dn_job *j, const dn_train_news *n)
{
    const dn_train_report *r = &n->report;
    double ms = dn_clock_ms() - j->began_ms;
    j->step = r->step;
    j->has_loss = isfinite(r->loss);
    j->loss = r->loss;
    j->lr = r->lr;
    j->grad_norm = r->grad_norm;
    j->wait_ms += r->wait_ms;
    j->images_per_s = ms > 0 ? 1e3 * (double)(r->step - j->began_step) * (double)j->in.batch_size / ms : 0;
    j->eta_s = j->images_per_s > 0 ? (double)(j->in.steps - r->step) * (double)j->in.batch_size / j->images_per_s : 0;
    dn_job_line line = { .step = r->step, .attempt = j->attempt, .skipped = r->skipped, .loss = r->loss, .lr = r->lr,
                         .grad_norm = r->grad_norm, .images_per_s = j->images_per_s, .eta_s = j->eta_s };
    dn_job_line_add(j, &line, true);
    if (j->tries) { /* the first of this start: whatever ends the daemon now, it is not that */
        dn_job_unsuspect(j);
        dn_job_store(j);
        dn_jobs_pump(j->app);
    }
    dn_metrics *m = j->app->server.metrics;
    dn_metrics_add(m, DN_M_DEVICE_SECONDS, DN_KIND_TRAIN, 0, 0, r->device_ms / 1e3);
    dn_metrics_add(m, DN_M_TRAIN_STEPS, dn_worker_index(n->worker), 0, 0, 1);
    dn_metrics_set(m, DN_M_TRAIN_LOSS, dn_worker_index(n->worker), 0, j->has_loss ? r->loss : 0);
}

static void eval_told(dn_job *j, const dn_train_news *n)
{
    j->has_eval = true;
    j->eval_loss = n->eval.loss;
    dn_job_line line = { .step = n->step, .attempt = j->attempt, .is_eval = true, .loss = n->eval.loss };
    memcpy(line.bucket, n->eval.bucket, sizeof line.bucket);
    dn_job_line_add(j, &line, true);
}

void dn_job_news(dn_app *app, dn_train_news *n)
{
    dn_job *j = dn_job_by_number(app, n->training);
    if (j)
        dn_metrics_add(app->server.metrics, DN_M_TRAIN_PREEMPTED, 0, 0, 0, n->preempted_ms / 1e3);
    if (!j) {
        dn_snapshot_free(n->snapshot);
    } else if (n->duty == DN_DUTY_EVAL) {
        eval_told(j, n);
    } else if (n->duty == DN_DUTY_CHECKPOINT) {
        dn_job_save(j, n);
        return;
    } else if (n->duty == DN_DUTY_PREVIEW) {
        dn_job_preview(j, n);
        return;
    } else if (n->duty == DN_DUTY_PUBLISH) {
        dn_job_publish_ema(j, n->snapshot);
    } else {
        step_told(j, n);
    }
    free(n);
}

/* ---- coming back ----------------------------------------------------------------------------------------------- */

typedef struct clearing {
    dn_work work;
    dn_job *job;
    dn_dataset *data;
    dn_trainer *trainer;
} clearing;

static void clear_work(dn_work *work)
{
    clearing *c = dn_container_of(work, clearing, work);
    dn_trainer_free(c->trainer);
    dn_dataset_close(c->data);
}

static void finish(dn_job *j)
{
    static const struct {
        enum dn_job_state state;
        const char *reason;
    } after[] = { [DN_GOAL_RUN] = { DN_JOB_QUEUED, NULL }, /* the process ends */
                  [DN_GOAL_PAUSE] = { DN_JOB_PAUSED, "asked to" },
                  [DN_GOAL_CANCEL] = { DN_JOB_CANCELLED, NULL },
                  [DN_GOAL_YIELD] = { DN_JOB_QUEUED, NULL } };
    char reason[sizeof j->reason];
    memcpy(reason, j->reason, sizeof reason);
    bool all = j->end == DN_TRAIN_DONE && j->goal != DN_GOAL_CANCEL;
    if (j->end == DN_TRAIN_FAILED)
        dn_job_end(j, DN_JOB_FAILED, j->failure.message);
    else if (all && j->n_saved && j->saved[j->n_saved - 1].step >= j->in.steps)
        dn_job_end(j, DN_JOB_SUCCEEDED, NULL);
    else
        dn_job_end(j, after[j->goal].state, *reason && j->goal == DN_GOAL_PAUSE ? reason : after[j->goal].reason);
}

static void clear_done(dn_work *work)
{
    clearing *c = dn_container_of(work, clearing, work);
    dn_job *j = c->job;
    free(c);
    j->working &= ~DN_WORK_OTHER;
    finish(j);
}

/* Everything that the job holds goes, away from the loop; then it has its last state. */
void dn_job_close(dn_job *j)
{
    if (j->csv.len) /* what could not be written is tried again by the tick */
        dn_job_write_metrics(j);
    if (j->working & ~(unsigned)DN_WORK_STORE)
        return;
    clearing *c = calloc(1, sizeof *c);
    if (!c)
        return; /* the next work that is done tries again */
    *c = (clearing){ .work = { .work = clear_work, .done = clear_done }, .job = j, .data = j->data,
                     .trainer = j->trainer };
    j->data = NULL;
    j->trainer = NULL;
    j->working |= DN_WORK_OTHER;
    dn_lane_submit(j->app->server.slow, &c->work);
}

void dn_job_back(dn_app *app, dn_training *t)
{
    dn_job *j = dn_job_by_number(app, t->id);
    if (j) {
        j->phase = DN_PHASE_CLOSING;
        j->end = t->end;
        dn_job_publish_missed(j);
        dn_metrics_reuse(app->server.metrics, DN_L_JOB, dn_worker_index(t->worker), NULL);
        if (t->end == DN_TRAIN_FAILED && !stops_for_now(j, t->error.code, t->error.message))
            dn_http_fail_engine(&j->failure, dn_error_name(t->error.code), t->error.param, t->error.message);
        dn_job_close(j);
    }
    free(t);
}
