/* worker_train.c - a job on its device, in segments: steps, and the duties of their ends.
 *
 * A duty (an evaluation, a copy) is done between two optimizer steps, and runs in segments as a step does; until those
 * that are due are done the next step does not begin. Of checkpoints and of previews there is one copy at a time, for
 * which the job's plan has memory: one that is due waits until the one before is written, and with it the job; a
 * preview is left out. */
#include "worker_internal.h"

#include <assert.h>
#include <stdlib.h>

/* ---- to the loop ------------------------------------------------------------------------------------------ */

static void news_arrives(dn_msg *msg)
{
    dn_train_news *n = dn_container_of(msg, dn_train_news, msg);
    n->worker->o.events->trained(n->worker->o.arg, n);
}

static void training_arrives(dn_msg *msg)
{
    dn_training *t = dn_container_of(msg, dn_training, msg);
    t->worker->o.events->train_gone(t->worker->o.arg, t);
}

/* ---- steps and duties ------------------------------------------------------------------------------------- */

static void training_ends(dn_worker *w, enum dn_train_end how)
{
    dn_training *t = w->training;
    t->end = how;
    w->training = NULL;
    w->share = (dn_sched_share){ 0 };
    dn_worker_post(w, &t->msg, training_arrives);
}

static void training_fails(dn_worker *w, int code, const dn_error *err)
{
    w->training->error = *err;
    if (!err->code)
        dn_fail(&w->training->error, code, NULL, "%s", dn_error_text(code));
    training_ends(w, DN_TRAIN_FAILED);
}

/* News of the step that has ended, or of one of its duties; without memory for it what is owed (a snapshot) fails the
 * job. */
static dn_train_news *news_new(dn_worker *w, unsigned duty)
{
    dn_train_news *n = calloc(1, sizeof *n);
    if (n) {
        *n = (dn_train_news){ .worker = w,
                              .training = w->training->id,
                              .duty = duty,
                              .step = dn_trainer_step(w->training->trainer),
                              .preempted_ms = w->preempted_ms };
        w->preempted_ms = 0;
    }
    return n;
}

static unsigned duties_of(const dn_training *t, int64_t step, double now)
{
    bool last = step >= t->steps;
    unsigned due = 0;
    if (t->eval_every && (last || step % t->eval_every == 0))
        due |= DN_DUTY_EVAL;
    if (t->preview_every && (last || step % t->preview_every == 0))
        due |= DN_DUTY_PREVIEW;
    if (last || (t->checkpoint_every && step % t->checkpoint_every == 0) ||
        (t->checkpoint_ms && now - t->saved_ms >= (double)t->checkpoint_ms))
        due |= DN_DUTY_CHECKPOINT;
    return due;
}

static void step_ends(dn_worker *w, const dn_train_report *report)
{
    dn_training *t = w->training;
    dn_train_news *n = news_new(w, 0);
    t->due = duties_of(t, report->step, dn_clock_ms()) | t->again;
    t->awaited |= t->again;
    t->again = 0;
    if (!n)
        return; /* figures, nothing that is owed */
    n->report = *report;
    dn_worker_post(w, &n->msg, news_arrives);
}

static void evaluate(dn_worker *w, double max_ms)
{
    dn_training *t = w->training;
    dn_error err = { 0 };
    dn_eval_report report;
    int rc = dn_trainer_eval_some(t->trainer, max_ms, &report, &err);
    if (rc < 0) {
        training_fails(w, -rc, &err);
    } else if (rc == 0) {
        t->due &= ~DN_DUTY_EVAL;
        dn_train_news *n = news_new(w, DN_DUTY_EVAL);
        if (!n)
            return;
        n->eval = report;
        dn_worker_post(w, &n->msg, news_arrives);
    }
}

/* A copy that found no memory, or no memory for the news of it. A preview is no loss. */
static void not_copied(dn_worker *w, unsigned duty, dn_train_news *n, int code, const dn_error *err)
{
    if (duty == DN_DUTY_PUBLISH && n) { /* somebody waits for it */
        dn_worker_post(w, &n->msg, news_arrives);
        return;
    }
    free(n);
    if (duty == DN_DUTY_CHECKPOINT)
        training_fails(w, code, err);
    else if (duty == DN_DUTY_PUBLISH)
        w->training->again = DN_DUTY_PUBLISH;
}

static void copy_out(dn_worker *w, unsigned duty, double max_ms)
{
    dn_training *t = w->training;
    dn_error err = { 0 };
    dn_snapshot *s = NULL;
    int rc = dn_trainer_snapshot(&s, t->trainer, duty == DN_DUTY_CHECKPOINT, max_ms, &err);
    if (rc > 0)
        return;
    t->due &= ~duty;
    t->awaited &= ~duty;
    if (duty == DN_DUTY_CHECKPOINT)
        t->saved_ms = dn_clock_ms();
    dn_train_news *n = news_new(w, duty);
    if (rc || !n) {
        dn_snapshot_free(s);
        not_copied(w, duty, n, rc ? -rc : DN_E_MEMORY, &err);
        return;
    }
    n->snapshot = s;
    t->away |= duty & (DN_DUTY_PREVIEW | DN_DUTY_CHECKPOINT);
    dn_worker_post(w, &n->msg, news_arrives);
}

/* All that is left to do at this boundary is a checkpoint, and the one before is being written. */
static bool is_held_up(const dn_training *t)
{
    return t->due & t->away & DN_DUTY_CHECKPOINT &&
           !((t->due | t->asked) & (DN_DUTY_EVAL | DN_DUTY_PREVIEW | DN_DUTY_PUBLISH));
}

/* One duty of the boundary, or a piece of it; false: there is none left. */
static bool do_duty(dn_worker *w, double max_ms)
{
    dn_training *t = w->training;
    t->due &= ~(t->away & DN_DUTY_PREVIEW);
    if (t->due & DN_DUTY_EVAL)
        evaluate(w, max_ms);
    else if (t->due & DN_DUTY_PREVIEW)
        copy_out(w, DN_DUTY_PREVIEW, max_ms);
    else if (t->due & DN_DUTY_PUBLISH)
        copy_out(w, DN_DUTY_PUBLISH, max_ms);
    else if (t->due & t->away & DN_DUTY_CHECKPOINT)
        return true; /* there is nothing else to do */
    else if (t->due & DN_DUTY_CHECKPOINT)
        copy_out(w, DN_DUTY_CHECKPOINT, max_ms);
    else if (dn_trainer_step(t->trainer) >= t->steps)
        training_ends(w, DN_TRAIN_DONE);
    else if (t->due & DN_DUTY_STOP)
        training_ends(w, DN_TRAIN_STOPPED);
    else
        return false;
    return true;
}

static void train_some(dn_worker *w, double max_ms)
{
    dn_training *t = w->training;
    bool boundary = dn_trainer_at_boundary(t->trainer);
    if (boundary) { /* not while a duty is under way: the first of them is the one that goes on */
        t->due |= t->asked;
        t->awaited |= t->asked;
        t->asked = 0;
    }
    if ((boundary || t->due) && do_duty(w, max_ms))
        return;
    dn_train_report report;
    dn_error err = { 0 };
    int rc = dn_trainer_some(t->trainer, max_ms, &report, &err);
    if (rc == 0)
        step_ends(w, &report);
    else if (rc < 0)
        training_fails(w, -rc, &err);
}

void dn_worker_train_some(dn_worker *w)
{
    double start = dn_clock_ms();
    train_some(w, w->o.yield_ms);
    dn_share_charge(&w->share, true, dn_clock_ms() - start);
}

bool dn_worker_train_ready(const dn_worker *w) { return w->training && !is_held_up(w->training); }

bool dn_worker_train_turn(dn_worker *w, bool samples_wait)
{
    const dn_training *t = dn_worker_train_ready(w) ? w->training : NULL;
    w->share.awaited = t && t->asked | t->awaited | t->again;
    bool owed = dn_share_owed(&w->share, dn_clock_ms(), samples_wait, t);
    return t && (!samples_wait || owed);
}

void dn_worker_train_beside(dn_worker *w, double ms)
{
    dn_share_charge(&w->share, false, ms);
    w->preempted_ms += dn_worker_train_ready(w) ? ms : 0;
}

void dn_worker_train_stop(dn_worker *w)
{
    if (w->training)
        training_ends(w, DN_TRAIN_STOPPED);
}

/* ---- from the loop ---------------------------------------------------------------------------------------- */

static void training_comes(dn_msg *msg)
{
    dn_training *t = dn_container_of(msg, dn_training, msg);
    dn_worker *w = t->worker;
    assert(!w->training);
    t->due = t->asked = t->awaited = t->again = t->away = 0;
    t->saved_ms = dn_clock_ms();
    w->training = t;
    w->share = (dn_sched_share){ .share = t->share };
    w->preempted_ms = 0;
}

typedef struct train_order {
    dn_msg msg;
    dn_worker *worker;
    uint64_t training;
    unsigned duties;
    double share; /* < 0: as it is */
} train_order;

static void training_is_told(dn_msg *msg)
{
    train_order *o = dn_container_of(msg, train_order, msg);
    dn_worker *w = o->worker;
    if (w->training && w->training->id == o->training) {
        w->training->asked |= o->duties;
        if (o->share >= 0)
            w->share.share = w->training->share = o->share;
    }
    free(o);
}

void dn_worker_train(dn_worker *w, dn_training *training)
{
    training->worker = w;
    dn_worker_deliver(w, &training->msg, training_comes);
}

static int tell(dn_worker *w, uint64_t training, unsigned duties, double share)
{
    train_order *o = malloc(sizeof *o);
    if (!o)
        return DN_E_MEMORY;
    *o = (train_order){ .worker = w, .training = training, .duties = duties, .share = share };
    dn_worker_deliver(w, &o->msg, training_is_told);
    return 0;
}

int dn_worker_train_ask(dn_worker *w, uint64_t training, unsigned duties) { return tell(w, training, duties, -1); }

int dn_worker_train_share(dn_worker *w, uint64_t training, double share) { return tell(w, training, 0, share); }

static void news_return(dn_msg *msg)
{
    dn_train_news *n = dn_container_of(msg, dn_train_news, msg);
    dn_training *t = n->worker->training;
    if (t && t->id == n->training)
        t->away &= ~n->duty;
    free(n);
}

void dn_worker_train_returned(dn_train_news *n)
{
    if (n->worker->stopped)
        free(n);
    else
        dn_worker_deliver(n->worker, &n->msg, news_return);
}
