/* jobs_publish.c - what a job has learned becomes a version of a model, and live.
 *
 * Of a running job it is the EMA at the next step boundary, by the worker; of one that does not run, that of its newest checkpoint.
 * One that is on its way to its device, or from it, is waited for: where it arrives its publication takes its turn. Memory for the
 * EMA and for what is written of it is held from the moment that the turn comes until the version is there. */
#include "jobs.h"
#include "routes_app.h"

#include <stdlib.h>
#include <string.h>

enum {
    COPIES = 3,          /* of the weights: the EMA, its tensors in the file's order, the file */
    ROOM_WAIT_MS = 30000 /* for models that are being unloaded */
};

struct publishing {
    dn_job *job;
    dn_call *call; /* NULL: the client left */
    char as[DN_NAME_LEN_MAX + 1];
    bool waits;            /* for the job on its way, or for room */
    double until_ms;       /* for room not longer than that; 0: its turn has not come */
    int64_t held;          /* bytes in the budget */
    bool asked;            /* the worker has been asked, and has not answered */
    dn_snapshot *ema;      /* NULL: read the checkpoint */
    char *checkpoint;
};

static void call_gone(void *arg) { ((struct publishing *)arg)->call = NULL; }

static void let_go(struct publishing *p)
{
    p->job->app->budget.held[DN_HOLD_TRAINING] -= p->held;
    p->held = 0;
}

void dn_job_publish_free(dn_job *j)
{
    struct publishing *p = j->publishing;
    if (!p)
        return;
    j->publishing = NULL;
    let_go(p);
    dn_snapshot_free(p->ema);
    free(p->checkpoint);
    free(p);
}

static void refuse(struct publishing *p, const dn_http_error *err)
{
    dn_call *call = p->call;
    dn_job_publish_free(p->job);
    if (!call)
        return;
    dn_call_on_gone(call, NULL, NULL);
    dn_reply_error(call, err);
}

/* The EMA of the checkpoint. */
static int read_checkpoint(struct publishing *p, dn_error *err)
{
    const dn_job *j = p->job;
    dn_model *model = NULL;
    dn_dataset *data = NULL;
    int rc = dn_job_open_parts(j, &model, &data, err);
    if (!rc)
        rc = dn_snapshot_read(&p->ema, model, data, &j->params, &j->plan, p->checkpoint, err);
    dn_dataset_close(data);
    return rc;
}

static int make(void *arg, const char *dir, dn_error *err)
{
    struct publishing *p = arg;
    int rc = p->ema ? 0 : read_checkpoint(p, err);
    if (!rc)
        rc = dn_snapshot_publish(p->ema, dir, err);
    dn_snapshot_free(p->ema); /* what was written is tried next, which takes memory of its own */
    p->ema = NULL;
    return rc;
}

static void published(void *arg, dn_known *k, const dn_error *err)
{
    struct publishing *p = arg;
    dn_job *j = p->job;
    dn_call *call = p->call;
    if (p->checkpoint)
        j->stored->pins--;
    j->reading = 0;
    dn_job_publish_free(j);
    if (!err->code) {
        snprintf(j->published, sizeof j->published, "%s", k->id);
        dn_job_store(j);
        dn_job_event_state(j);
    }
    if (call && err->code) {
        dn_reply_engine_error(call, err);
    } else if (call) {
        dn_job_info info;
        dn_job_info_of(j, &info);
        dn_reply_header(call, "Location", "/models/%s", k->id);
        dn_route_reply(call, 200, &dn_job_info_fields, &info);
    }
    dn_job_work_done(j, DN_WORK_PUBLISH);
}

static void go(struct publishing *p)
{
    dn_http_error err = { 0 };
    dn_job *j = p->job;
    char source[DN_JOB_ID_LEN + 8];
    snprintf(source, sizeof source, "job:%s", j->id);
    if (dn_versions_make(j->app, p->as, j->owner, source, true, make, published, p, &err)) {
        refuse(p, &err);
        return;
    }
    if (p->checkpoint) {
        j->stored->pins++;
        j->reading = j->saved[j->n_saved - 1].step;
    }
    j->working |= DN_WORK_PUBLISH;
}

void dn_job_publish_ema(dn_job *j, dn_snapshot *ema)
{
    struct publishing *p = j->publishing;
    dn_http_error err = { 0 };
    if (!p || !p->asked) {
        dn_snapshot_free(ema);
        return;
    }
    p->asked = false;
    p->ema = ema;
    if (ema) {
        go(p);
        return;
    }
    dn_http_fail(&err, DN_H_MEMORY, NULL, "the device's worker found no memory for a copy of the weights; ask again");
    refuse(p, &err);
}

void dn_job_publish_missed(dn_job *j)
{
    struct publishing *p = j->publishing;
    if (!p || !p->asked)
        return;
    p->asked = false;
    p->waits = true; /* for its last checkpoint */
    p->until_ms = 0;
    let_go(p);
}

/* Is there something to publish? The newest checkpoint, unless the worker has the job. 0, or 1: not yet; else a DN_H code. */
static int choose(struct publishing *p, dn_http_error *err)
{
    dn_job *j = p->job;
    if (j->app->draining || j->app->closing)
        return dn_http_fail(err, DN_H_DRAINING, NULL, NULL);
    if (j->phase == DN_PHASE_ON_DEVICE)
        return 0;
    if (j->phase != DN_PHASE_IDLE)
        return 1;
    if (!j->n_saved)
        return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job is %s and has no checkpoint to publish", dn_job_states[j->state]);
    if (!j->stored || !j->place)
        return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job's data set, model or device is gone");
    p->checkpoint = dn_job_path(j, "checkpoints/%lld", (long long)j->saved[j->n_saved - 1].step);
    return p->checkpoint ? 0 : dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
}

/* 0: it is held. 1: what is being unloaded will make room. Else a DN_H code. */
static int hold(struct publishing *p, dn_http_error *err)
{
    dn_app *app = p->job->app;
    int64_t bytes = COPIES * (int64_t)p->job->plan.weights;
    int room = dn_models_make_room(app, bytes, NULL);
    p->until_ms = p->until_ms > 0 ? p->until_ms : dn_clock_ms() + ROOM_WAIT_MS;
    if (room > 0 && dn_clock_ms() < p->until_ms)
        return 1;
    if (room)
        return dn_http_fail(err, DN_H_MEMORY, NULL, "publishing takes %lld bytes, more than --memory leaves now; ask again",
                            (long long)bytes);
    p->held = bytes;
    app->budget.held[DN_HOLD_TRAINING] += bytes;
    return 0;
}

static void try_turn(struct publishing *p)
{
    dn_http_error err = { 0 };
    int rc = choose(p, &err);
    if (!rc)
        rc = hold(p, &err);
    p->waits = rc && !err.id;
    if (p->waits) {
        free(p->checkpoint); /* chosen again: the job may have moved by then */
        p->checkpoint = NULL;
        return;
    }
    p->asked = !rc && !p->checkpoint;
    if (p->asked && dn_job_ask(p->job, DN_DUTY_PUBLISH))
        rc = dn_http_fail(&err, DN_H_MEMORY, NULL, "no memory to ask the device's worker");
    if (rc)
        refuse(p, &err);
    else if (!p->asked)
        go(p);
}

void dn_job_publish_tick(dn_job *j)
{
    if (j->publishing && j->publishing->waits)
        try_turn(j->publishing);
}

void dn_job_publish(dn_job *j, const char *as, dn_call *call)
{
    dn_http_error err = { 0 };
    struct publishing *p = j->publishing ? NULL : calloc(1, sizeof *p);
    if (!p) {
        dn_reply_refuse(call, j->publishing ? DN_H_CONFLICT : DN_H_MEMORY, NULL, j->publishing ? "the job is being published" : "no memory");
        return;
    }
    *p = (struct publishing){ .job = j, .call = call };
    j->publishing = p;
    dn_call_on_gone(call, call_gone, p);
    if (!dn_name_ok(as)) {
        dn_http_fail(&err, DN_H_INVALID, "as", "the name of a model matches [a-z0-9][a-z0-9._-]{0,63}");
        refuse(p, &err);
        return;
    }
    snprintf(p->as, sizeof p->as, "%s", as);
    try_turn(p);
}
