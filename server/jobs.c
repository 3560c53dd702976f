/* jobs.c - the list of jobs, their states, and who runs next. */
#include "disk.h"
#include "jobs.h"
#include "json.h"
#include "log.h"
#include "requests.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum {
    TRIES_MAX = 3,    /* starts in a row that ended the daemon before a step: as of requests */
    STARTS_MAX = 10,  /* the same before a checkpoint: what ends it in an evaluation, or in the first save, is found too */
};

double dn_unix_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the list -------------------------------------------------------------------------------------------------- */

static int new_id(char *out)
{
    unsigned char b[DN_JOB_ID_LEN / 2];
    if (getrandom(b, sizeof b, 0) != sizeof b)
        return DN_E_INTERNAL;
    for (size_t i = 0; i < sizeof b; i++)
        snprintf(out + 2 * i, 3, "%02x", b[i]);
    return 0;
}

dn_job *dn_job_new(dn_app *app, const char *id, const char *owner)
{
    dn_job *j = calloc(1, sizeof *j);
    if (!j)
        return NULL;
    j->app = app;
    dn_link_init(&j->link);
    dn_link_init(&j->watchers);
    dn_buf_init(&j->csv, DN_JOB_CSV_BYTES_MAX);
    dn_buf_init(&j->behind, DN_JOB_CSV_BYTES_MAX);
    j->csv_size = -1;
    snprintf(j->owner, sizeof j->owner, "%s", owner);
    snprintf(j->id, sizeof j->id, "%s", id ? id : "");
    j->created_at = dn_unix_now();
    if ((!id && new_id(j->id)) || asprintf(&j->dir, "%s/jobs/%s", dn_store_folder(app->server.store), j->id) < 0) {
        free(j);
        return NULL;
    }
    return j;
}

void dn_jobs_add(dn_app *app, dn_job *j)
{
    dn_link *first = app->jobs->jobs.next; /* newest first */
    j->listed = true;
    j->link.next = first;
    j->link.prev = first->prev;
    first->prev->next = &j->link;
    first->prev = &j->link;
}

static void unpin(dn_job *j)
{
    if (j->pinned)
        j->stored->pins--;
    j->pinned = false;
}

static void job_free(dn_job *j)
{
    unpin(j);
    dn_link_pop(&j->link);
    dn_arena_free(j->arena);
    json_decref(j->json);
    dn_buf_fini(&j->csv);
    dn_buf_fini(&j->behind);
    dn_job_publish_free(j);
    free(j->dir);
    free(j->plan_text);
    free(j->from_dir);
    free(j->line);
    free(j->saved);
    free(j->shown);
    free(j);
}

void dn_job_forget(dn_job *j)
{
    j->dead = true;
    dn_link_pop(&j->link);
    if (!j->working)
        job_free(j);
}

dn_job *dn_job_find(dn_app *app, const char *id)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        if (!strcmp(DN_LINK_OF(l, dn_job, link)->id, id))
            return DN_LINK_OF(l, dn_job, link);
    }
    return NULL;
}

dn_job *dn_job_by_number(dn_app *app, uint64_t number)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        if (DN_LINK_OF(l, dn_job, link)->number == number)
            return DN_LINK_OF(l, dn_job, link);
    }
    return NULL;
}

dn_job *dn_job_by_preview(dn_app *app, uint64_t number)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->preview && j->preview_number == number)
            return j;
    }
    return NULL;
}

static bool is_over(const dn_job *j) { return j->state >= DN_JOB_SUCCEEDED; }

/* Jobs that are to run on a device. */
static int load_of(const dn_app *app, const dn_place *p)
{
    int n = 0;
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        const dn_job *j = DN_LINK_OF(l, dn_job, link);
        n += j->place == p && (j->state == DN_JOB_QUEUED || j->state == DN_JOB_RUNNING);
    }
    return n;
}

dn_place *dn_jobs_idlest(dn_app *app)
{
    dn_place *best = &app->place[0];
    for (int i = 1; i < app->n_places; i++)
        best = load_of(app, &app->place[i]) < load_of(app, best) ? &app->place[i] : best;
    return best;
}

int dn_jobs_active(const dn_app *app)
{
    int n = 0;
    DN_LINK_EACH(l, &app->jobs->jobs) { n += DN_LINK_OF(l, dn_job, link)->phase != DN_PHASE_IDLE; }
    return n;
}

/* ---- states ---------------------------------------------------------------------------------------------------- */

static void say(const dn_job *j)
{
    dn_line line;
    dn_line_begin(&line, j->state == DN_JOB_FAILED ? DN_LOG_ERROR : DN_LOG_INFO, "job");
    dn_line_str(&line, "id", j->id);
    dn_line_str(&line, "tenant", j->owner);
    dn_line_str(&line, "name", j->in.name);
    dn_line_str(&line, "state", dn_job_states[j->state]);
    dn_line_int(&line, "step", j->step);
    dn_line_str(&line, "reason", *j->reason ? j->reason : NULL);
    dn_line_end(&line);
}

static void set_state(dn_job *j, enum dn_job_state state, const char *reason)
{
    j->state = state;
    snprintf(j->reason, sizeof j->reason, "%s", reason ? reason : "");
    if (is_over(j)) {
        j->finished_at = dn_unix_now();
        unpin(j);
    }
    say(j);
    dn_job_event_state(j);
    dn_job_store(j);
}

void dn_job_end(dn_job *j, enum dn_job_state state, const char *reason)
{
    dn_app *app = j->app;
    j->phase = DN_PHASE_IDLE;
    j->goal = DN_GOAL_RUN;
    app->budget.held[DN_HOLD_TRAINING] -= j->held;
    j->held = 0;
    dn_job_unsuspect(j);
    j->starts = 0; /* the daemon has survived it */
    set_state(j, state, reason);
    dn_job_publish_tick(j);
    dn_jobs_pump(app);
    dn_app_idle(app);
}

void dn_job_unsuspect(dn_job *j)
{
    j->tries = 0;
    j->suspect = false;
}

void dn_job_work_done(dn_job *j, unsigned work)
{
    j->working &= ~work;
    if (j->dead && !j->working)
        job_free(j);
    else if (!j->dead && j->phase == DN_PHASE_CLOSING)
        dn_job_close(j);
}

static int wrong_state(const dn_job *j, const char *what, dn_http_error *err)
{
    return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job is %s; it cannot be %s", dn_job_states[j->state], what);
}

int dn_job_pause(dn_job *j, dn_http_error *err)
{
    if (j->state == DN_JOB_PAUSED)
        return 0;
    if (is_over(j))
        return wrong_state(j, "paused", err);
    if (j->phase == DN_PHASE_IDLE) {
        set_state(j, DN_JOB_PAUSED, "asked to");
        return 0;
    }
    j->goal = j->goal == DN_GOAL_CANCEL ? DN_GOAL_CANCEL : DN_GOAL_PAUSE;
    dn_job_ask(j, DN_DUTY_STOP | DN_DUTY_CHECKPOINT);
    return 0;
}

int dn_job_resume(dn_job *j, dn_http_error *err)
{
    if (is_over(j))
        return wrong_state(j, "resumed", err);
    if (j->state == DN_JOB_PAUSED) {
        int rc = j->stored && j->place ? 0 : dn_job_resolve(j, err); /* it may be there again */
        if (rc)
            return rc;
        dn_job_unsuspect(j);
        j->starts = 0;
        set_state(j, DN_JOB_QUEUED, NULL);
        dn_jobs_pump(j->app);
    } else if (j->goal == DN_GOAL_PAUSE) {
        return dn_http_fail(err, DN_H_CONFLICT, NULL, "the job is being paused; resume it when it is");
    }
    return 0;
}

int dn_job_cancel(dn_job *j, dn_http_error *err)
{
    if (j->state == DN_JOB_CANCELLED)
        return 0;
    if (is_over(j))
        return wrong_state(j, "cancelled", err);
    if (j->phase == DN_PHASE_IDLE) {
        set_state(j, DN_JOB_CANCELLED, NULL);
        return 0;
    }
    j->goal = DN_GOAL_CANCEL;
    dn_job_ask(j, DN_DUTY_STOP);
    return 0;
}

int dn_job_change(dn_job *j, const dn_job_patch *patch, dn_http_error *err)
{
    if (is_over(j))
        return wrong_state(j, "changed", err);
    if (patch->has & DN_BIT(DN_JOB_PATCH_PRIORITY))
        j->priority = patch->priority;
    if (patch->has & DN_BIT(DN_JOB_PATCH_TRAIN_SHARE)) {
        j->share = patch->train_share;
        if (j->phase == DN_PHASE_ON_DEVICE)
            (void)dn_worker_train_share(j->place->worker, j->number, j->share);
    }
    dn_job_store(j);
    return 0;
}

/* ---- who runs next --------------------------------------------------------------------------------------------- */

static bool is_busy(const dn_app *app, const dn_place *p)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        const dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->place == p && j->phase != DN_PHASE_IDLE)
            return true;
    }
    return false;
}

/* The queued job of the highest priority, the oldest of those. */
static dn_job *next_of(const dn_app *app, const dn_place *p)
{
    dn_job *best = NULL;
    DN_LINK_EACH(l, &app->jobs->jobs) /* newest first: an equal one found later is older */
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->place == p && j->state == DN_JOB_QUEUED && !j->call && (!best || j->priority >= best->priority))
            best = j;
    }
    return best;
}

/* Room for the whole plan, and the row that says that it starts. */
static void begin(dn_job *j)
{
    dn_app *app = j->app;
    int room = dn_models_make_room(app, (int64_t)j->plan.total, NULL);
    if (room > 0)
        return; /* what is being unloaded makes room: the next tick tries again */
    if (room < 0) {
        char why[160];
        snprintf(why, sizeof why, "it takes %lld bytes, more than --memory leaves beside what is in use",
                 (long long)j->plan.total);
        set_state(j, DN_JOB_PAUSED, why);
        return;
    }
    if (j->tries >= TRIES_MAX || j->starts >= STARTS_MAX) {
        dn_http_fail(&j->failure, DN_H_CRASH_LOOP, NULL,
                     "it was begun %lld times without a checkpoint, the last %lld without a step, and the daemon ended each time",
                     (long long)j->starts, (long long)j->tries);
        set_state(j, DN_JOB_FAILED, "crash_loop");
        return;
    }
    j->held = (int64_t)j->plan.total;
    app->budget.held[DN_HOLD_TRAINING] += j->held;
    j->phase = DN_PHASE_COMMITTING;
    j->goal = DN_GOAL_RUN;
    j->attempt++;
    j->starts++;
    j->tries++;
    j->started_at = j->started_at > 0 ? j->started_at : dn_unix_now();
    set_state(j, DN_JOB_RUNNING, NULL);
}

/* The queued suspect with the fewest tries, so that those at their last one go last, when others have cleared themselves; *any: there
 * is one, queued or on its way to its first step. NULL: none may begin now. */
static dn_job *next_suspect(const dn_app *app, bool *any)
{
    dn_job *best = NULL;
    bool under_way = false;
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        under_way |= j->suspect && j->phase != DN_PHASE_IDLE;
        if (j->suspect && j->state == DN_JOB_QUEUED && j->phase == DN_PHASE_IDLE && (!best || j->tries < best->tries))
            best = j;
    }
    *any = best || under_way;
    return under_way ? NULL : best;
}

/* One suspect at a time is on its way to its first step, and nothing else begins meanwhile: so the one at fault is found, and the
 * others are not taken for it. Suspect requests, which are sooner there, go before (requests_recover.c). */
void dn_jobs_pump(dn_app *app)
{
    if (app->closing || app->draining || dn_requests_suspects(app))
        return;
    bool suspects;
    dn_job *suspect = next_suspect(app, &suspects);
    if (suspect && !is_busy(app, suspect->place))
        begin(suspect);
    for (int i = 0; i < app->n_places && !suspects; i++) {
        dn_job *j = is_busy(app, &app->place[i]) ? NULL : next_of(app, &app->place[i]);
        if (j)
            begin(j);
    }
}

/* Below the disk reserve: what is left of the disk is for saving what there is. */
static void pause_all(dn_app *app, const char *why)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->phase == DN_PHASE_IDLE || j->goal != DN_GOAL_RUN)
            continue;
        snprintf(j->reason, sizeof j->reason, "%.199s", why);
        (void)dn_job_pause(j, NULL);
    }
}

void dn_jobs_tick(dn_app *app)
{
    dn_http_error why = { 0 };
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        dn_job_write_metrics(j);
        dn_job_publish_tick(j);
        if (j->store_late)
            dn_job_store(j);
    }
    if (dn_disk_check(app, 0, &why))
        pause_all(app, why.message);
    else
        dn_jobs_pump(app);
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

int dn_jobs_open(dn_app *app, dn_error *err)
{
    app->jobs = calloc(1, sizeof *app->jobs);
    if (!app->jobs)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the list of jobs");
    dn_link_init(&app->jobs->jobs);
    return dn_jobs_read(app, err);
}

void dn_jobs_drain(dn_app *app)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->phase == DN_PHASE_IDLE || j->goal != DN_GOAL_RUN)
            continue;
        j->goal = DN_GOAL_YIELD;
        dn_job_ask(j, DN_DUTY_STOP | DN_DUTY_CHECKPOINT);
    }
}

void dn_jobs_abort(dn_app *app)
{
    if (dn_jobs_active(app))
        dn_jobs_store_leave(app);
}

/* The workers, the lanes and the store have stopped: nothing of any job is under way. */
void dn_jobs_close(dn_app *app)
{
    dn_jobs *jobs = app->jobs;
    if (!jobs)
        return; /* the start failed before */
    DN_LINK_EACH(l, &jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        dn_trainer_free(j->trainer);
        dn_dataset_close(j->data);
        job_free(j);
    }
    free(jobs);
    app->jobs = NULL;
}
