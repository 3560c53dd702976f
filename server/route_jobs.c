/* route_jobs.c - /jobs: submit, list, look, change. A token with the scope admin sees and changes everybody's. */
#include "idempotency.h"
#include "jobs.h"
#include "json.h"
#include "routes_app.h"

#include <stdlib.h>
#include <string.h>

static bool may_see(const dn_call *call, const dn_job *j)
{
    return dn_call_admin(call) || !strcmp(j->owner, dn_call_tenant(call));
}

/* The job that the path names; NULL: the call has been refused. */
static dn_job *asked_for(dn_call *call)
{
    dn_job *j = dn_job_find(dn_call_app(call), dn_call_arg(call, 0));
    if (j && may_see(call, j))
        return j;
    if (j)
        dn_reply_refuse(call, DN_H_FORBIDDEN, "id", "the job %s is another's", j->id);
    else
        dn_reply_refuse(call, DN_H_NOT_FOUND, "id", "no job %s", dn_call_arg(call, 0));
    return NULL;
}

static void reply_job(dn_call *call, int status, dn_job *j)
{
    dn_job_info info;
    dn_job_info_of(j, &info);
    dn_route_reply(call, status, &dn_job_info_fields, &info);
}

/* The body as a JSON object; NULL: the call has been refused. An empty one is {}. */
static json_t *body_of(dn_call *call)
{
    dn_http_error err = { 0 };
    size_t n;
    const char *text = dn_call_body(call, &n);
    json_t *json = dn_json_parse(n ? text : "{}", n ? n : 2, &err);
    if (!json)
        dn_reply_error(call, &err);
    return json;
}

static void submit(dn_call *call)
{
    json_t *json = body_of(call);
    if (json)
        dn_job_submit(dn_call_app(call), call, json);
    json_decref(json);
}

void dn_route_jobs_submit(dn_call *call) { dn_idem_handle(dn_call_app(call), call, submit); }

void dn_route_job(dn_call *call)
{
    dn_job *j = asked_for(call);
    if (j)
        reply_job(call, 200, j);
}

/* The link after which the page begins; NULL: the call has been refused. */
static dn_link *page_start(dn_call *call, const dn_jobs_query *q)
{
    dn_app *app = dn_call_app(call);
    dn_job *after = q->after ? dn_job_find(app, q->after) : NULL;
    if (!q->after)
        return &app->jobs->jobs;
    if (after && may_see(call, after))
        return &after->link;
    dn_reply_refuse(call, DN_H_NOT_FOUND, "after", "no job %.40s", q->after);
    return NULL;
}

void dn_route_jobs(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    dn_jobs_query q;
    if (dn_route_query(call, &dn_jobs_query_fields, &q))
        return;
    dn_link *at = page_start(call, &q);
    if (!at)
        return;
    dn_job_info *infos = calloc(q.limit, sizeof *infos);
    dn_job_list list = { DN_HAS_ALL, .jobs = { infos, 0 } };
    for (at = at->next; infos && at != &app->jobs->jobs; at = at->next) {
        dn_job *j = DN_LINK_OF(at, dn_job, link);
        if (!may_see(call, j) || (q.has & DN_BIT(DN_JOBS_STATE) && q.state != (int)j->state))
            continue;
        if (list.jobs.n == q.limit) {
            list.next = infos[list.jobs.n - 1].id;
            break;
        }
        dn_job_info_of(j, &infos[list.jobs.n]);
        infos[list.jobs.n++].has &= ~DN_BIT(DN_JOBINFO_REQUEST); /* GET /jobs/{id} has it */
    }
    if (infos)
        dn_route_reply(call, 200, &dn_job_list_fields, &list);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the list");
    free(infos);
}

static void act(dn_call *call, int (*action)(dn_job *, dn_http_error *))
{
    dn_http_error err = { 0 };
    dn_job *j = asked_for(call);
    if (!j)
        return;
    if (action(j, &err))
        dn_reply_error(call, &err);
    else
        reply_job(call, j->phase == DN_PHASE_IDLE || j->goal == DN_GOAL_RUN ? 200 : 202, j);
}

void dn_route_job_pause(dn_call *call) { act(call, dn_job_pause); }
void dn_route_job_resume(dn_call *call) { act(call, dn_job_resume); }
void dn_route_job_cancel(dn_call *call) { act(call, dn_job_cancel); }

void dn_route_job_publish(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_publish_in in = { 0 };
    dn_job *j = asked_for(call);
    json_t *json = j ? body_of(call) : NULL;
    if (!json)
        return;
    int rc = dn_fields_parse(&dn_publish_fields, &in, dn_call_arena(call), json, &err);
    json_decref(json);
    if (rc)
        dn_reply_error(call, &err);
    else
        dn_job_publish(j, in.as, call);
}

void dn_route_job_change(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_job_patch patch = { 0 };
    dn_job *j = asked_for(call);
    json_t *json = j ? body_of(call) : NULL;
    if (!json)
        return;
    int rc = dn_fields_parse(&dn_job_patch_fields, &patch, dn_call_arena(call), json, &err);
    if (!rc && !patch.has)
        rc = dn_http_fail(&err, DN_H_MISSING, "train_share", "give train_share, priority, or both");
    if (!rc)
        rc = dn_job_change(j, &patch, &err);
    json_decref(json);
    if (rc)
        dn_reply_error(call, &err);
    else
        reply_job(call, 200, j);
}

void dn_route_job_events(dn_call *call)
{
    dn_job *j = asked_for(call);
    if (j)
        dn_job_watch(j, call, dn_call_header(call, "Last-Event-ID"));
}

/* ---- checkpoints and samples ----------------------------------------------------------------------------------- */

static const dn_saved *best_of(const dn_job *j)
{
    const dn_saved *best = NULL;
    for (int i = 0; i < j->n_saved; i++) {
        if (j->saved[i].has_eval && (!best || j->saved[i].eval_loss < best->eval_loss))
            best = &j->saved[i];
    }
    return best;
}

void dn_route_job_checkpoints(dn_call *call)
{
    dn_job *j = asked_for(call);
    if (!j)
        return;
    dn_job_checkpoint *c = calloc(j->n_saved + 1, sizeof *c);
    dn_job_checkpoint_list list = { DN_HAS_ALL, { c, j->n_saved } };
    for (int i = 0; c && i < j->n_saved; i++) {
        const dn_saved *s = &j->saved[j->n_saved - 1 - i];
        c[i] = (dn_job_checkpoint){ DN_HAS_ALL & ~(s->has_eval ? 0 : DN_BIT(3)), .step = s->step, .bytes = s->bytes,
                                    .created_at = s->created_at, .eval_loss = s->eval_loss, .best = s == best_of(j) };
    }
    if (c)
        dn_route_reply(call, 200, &dn_job_checkpoint_list_fields, &list);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the list");
    free(c);
}

/* Save now: at the end of the present optimizer step; of one on its way to the device, of its first. One that is on its way back is
 * saved as it is. */
void dn_route_job_save(dn_call *call)
{
    dn_job *j = asked_for(call);
    if (!j)
        return;
    if (j->phase == DN_PHASE_IDLE) {
        dn_reply_refuse(call, DN_H_CONFLICT, NULL, "the job is %s; only a running one has something to save",
                        dn_job_states[j->state]);
        return;
    }
    j->save = j->phase < DN_PHASE_ON_DEVICE;
    dn_job_ask(j, DN_DUTY_CHECKPOINT);
    reply_job(call, 202, j);
}

/* A page of previews, newest first, and what it points into. */
typedef struct samples_page {
    dn_job_sample sample[DN_JOB_SAMPLES_MAX];
    char url[DN_JOB_SAMPLES_MAX][128], label[DN_JOB_SAMPLES_MAX][16];
} samples_page;

static const char *last_part(const char *url) { return strrchr(url, '/') + 1; }

/* How many previews are as new as the one that is called `name`, or newer; -1: there is none. */
static int newer_than(const dn_job *j, const char *name)
{
    dn_job_sample sample;
    char url[128], label[16];
    for (int i = 0; i < j->n_shown; i++) {
        dn_job_sample_of(j, &j->shown[j->n_shown - 1 - i], &sample, url, label);
        if (!strcmp(last_part(url), name))
            return i + 1;
    }
    return -1;
}

void dn_route_job_samples(dn_call *call)
{
    dn_samples_query q;
    dn_job *j = dn_route_query(call, &dn_samples_query_fields, &q) ? NULL : asked_for(call);
    int from = j && q.after ? newer_than(j, q.after) : 0;
    samples_page *p = j && from >= 0 ? malloc(sizeof *p) : NULL;
    if (!j)
        return;
    if (from < 0) {
        dn_reply_refuse(call, DN_H_NOT_FOUND, "after", "no sample %.64s", q.after);
        return;
    }
    dn_job_sample_list list = { DN_HAS_ALL, { p ? p->sample : NULL, 0 }, NULL };
    for (int i = 0; p && i < q.limit && from + i < j->n_shown; i++, list.samples.n++)
        dn_job_sample_of(j, &j->shown[j->n_shown - 1 - from - i], &p->sample[i], p->url[i], p->label[i]);
    if (list.samples.n && from + list.samples.n < j->n_shown)
        list.next = last_part(p->url[list.samples.n - 1]);
    if (p)
        dn_route_reply(call, 200, &dn_job_sample_list_fields, &list);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the list");
    free(p);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

void dn_route_job_metrics(dn_call *call)
{
    dn_job *j = asked_for(call);
    char *path = j ? dn_job_path(j, "metrics.csv") : NULL;
    if (!j)
        return;
    dn_job_write_metrics(j); /* before it on the same lane */
    dn_reply_file(call, path, "text/csv", NULL);
}

/* {k} is what the list of samples names: step-seed-label. */
void dn_route_job_sample(dn_call *call)
{
    dn_job *j = asked_for(call);
    const char *k = dn_call_arg(call, 1);
    if (!j)
        return;
    if (!*k || k[strspn(k, "0123456789-")])
        dn_reply_refuse(call, DN_H_NOT_FOUND, "k", "no sample %.40s", k);
    else
        dn_reply_file(call, dn_job_path(j, "samples/%s.png", k), "image/png", "no such sample");
}
