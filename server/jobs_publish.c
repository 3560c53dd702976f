/* jobs_publish.c - what a job has learned becomes a version of a model, and live.
 *
 * Of a running job it is the EMA at the next step boundary, by the worker; of one that does not run, that of its newest checkpoint. */
#include "jobs.h"
#include "routes_app.h"

#include <stdlib.h>
#include <string.h>

struct publishing {
    dn_job *job;
    dn_call *call; /* NULL: the client left */
    char as[DN_NAME_LEN_MAX + 1];
    bool asked;            /* the worker has been asked, and has not answered */
    dn_snapshot *ema;      /* NULL: read the checkpoint */
    char *checkpoint;
};

static void call_gone(void *arg) { ((struct publishing *)arg)->call = NULL; }

static void publishing_free(struct publishing *p)
{
    p->job->publishing = NULL;
    dn_snapshot_free(p->ema);
    free(p->checkpoint);
    free(p);
}

static void refuse(struct publishing *p, const dn_http_error *err)
{
    dn_call *call = p->call;
    publishing_free(p);
    if (!call)
        return;
    dn_call_on_gone(call, NULL, NULL);
    dn_reply_error(call, err);
}

/* The EMA of the checkpoint, by way of a trainer on a device of its own. */
static int read_checkpoint(struct publishing *p, dn_error *err)
{
    const dn_job *j = p->job;
    dn_device *d = NULL;
    dn_model *model = NULL;
    dn_dataset *data = NULL;
    dn_trainer *t = NULL;
    int rc = dn_device_open(&d, j->place->name, err);
    if (!rc)
        rc = dn_job_open_parts(j, &model, &data, err);
    if (!rc)
        rc = dn_trainer_new(&t, d, model, data, &j->params, &j->plan, err);
    if (!rc)
        rc = dn_trainer_restore(t, p->checkpoint, err);
    if (!rc)
        rc = dn_trainer_snapshot(&p->ema, t, false, err);
    dn_trainer_free(t);
    dn_model_free(model);
    dn_dataset_close(data);
    dn_device_close(d);
    return rc;
}

static int make(void *arg, const char *dir, dn_error *err)
{
    struct publishing *p = arg;
    int rc = p->ema ? 0 : read_checkpoint(p, err);
    return rc ? rc : dn_snapshot_publish(p->ema, dir, err);
}

static void published(void *arg, dn_known *k, const dn_error *err)
{
    struct publishing *p = arg;
    dn_job *j = p->job;
    dn_call *call = p->call;
    if (p->checkpoint)
        j->stored->pins--;
    publishing_free(p);
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
    if (p->checkpoint)
        j->stored->pins++;
    j->working |= DN_WORK_PUBLISH;
}

void dn_job_publish_ema(dn_job *j, dn_snapshot *ema)
{
    struct publishing *p = j->publishing;
    if (!p || !p->asked) {
        dn_snapshot_free(ema);
        return;
    }
    p->asked = false;
    p->ema = ema;
    go(p);
}

void dn_job_publish_missed(dn_job *j)
{
    dn_http_error err = { 0 };
    if (!j->publishing || !j->publishing->asked)
        return;
    dn_http_fail(&err, DN_H_CONFLICT, NULL, "the job left its device before it could be published; ask again");
    refuse(j->publishing, &err);
}

/* What there is to publish; *err: nothing. */
static int choose(struct publishing *p, dn_http_error *err)
{
    dn_job *j = p->job;
    if (j->phase == DN_PHASE_ON_DEVICE) {
        p->asked = true;
        return 0;
    }
    if (j->phase != DN_PHASE_IDLE)
        return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job is on its way to or from its device; ask again");
    if (!j->n_saved)
        return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job is %s and has no checkpoint to publish", dn_job_states[j->state]);
    if (!j->stored || !j->place)
        return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job's data set, model or device is gone");
    if (!dn_budget_fits(&j->app->budget, (int64_t)j->plan.total))
        return dn_http_fail(err, DN_H_MEMORY, NULL, "reading the checkpoint takes %zu bytes, more than --memory leaves now",
                            (size_t)j->plan.total);
    p->checkpoint = dn_job_path(j, "checkpoints/%lld", (long long)j->saved[j->n_saved - 1].step);
    return p->checkpoint ? 0 : dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
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
    if (!dn_name_ok(as))
        dn_http_fail(&err, DN_H_INVALID, "as", "the name of a model matches [a-z0-9][a-z0-9._-]{0,63}");
    else
        snprintf(p->as, sizeof p->as, "%s", as);
    if (err.id || choose(p, &err))
        refuse(p, &err);
    else if (p->asked)
        dn_job_ask(j, DN_DUTY_PUBLISH);
    else
        go(p);
}
