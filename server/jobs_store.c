/* jobs_store.c - jobs in the store: their rows, checkpoints and previews. */
#include "idempotency.h"
#include "jobs.h"
#include "json.h"
#include "log.h"

#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

static const char *const priorities[] = { "low", "normal", "high" };

/* ---- writing --------------------------------------------------------------------------------------------------- */

/* The row as it was when the write was asked for. */
typedef struct row_op {
    dn_store_op op;
    dn_job *job;
    char id[DN_JOB_ID_LEN + 1], owner[DN_TENANT_MAX], name[DN_NAME_LEN_MAX + 1], state[16], reason[200], priority[8];
    char published[DN_NAME_LEN_MAX + 16], path[DN_JOB_ID_LEN + 8];
    char *spec, *plan, *figures;
    int64_t dataset, attempt, step, starts;
    double share, created, started, finished;
    char *text; /* a new job's: the answer to its call, kept with it */
    size_t text_n;
    dn_idem_answer *answer;
} row_op;

static int write_row(dn_store_op *op, sqlite3 *db)
{
    row_op *o = dn_container_of(op, row_op, op);
    static const char sql[] =
        "INSERT INTO jobs (id, owner, name, state, reason, spec, plan, dataset, attempt, step, starts, priority, train_share,"
        " path, created, started, finished, published, figures)"
        " VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,nullif(?16,0),nullif(?17,0),nullif(?18,''),?19)"
        " ON CONFLICT (id) DO UPDATE SET state=?4, reason=?5, attempt=?9, step=?10, starts=?11, priority=?12, train_share=?13,"
        " started=nullif(?16,0), finished=nullif(?17,0), published=nullif(?18,''), figures=?19";
    int rc = dn_sql_run(db, &op->error, sql, "sssssssiiiisdsdddss", o->id, o->owner, o->name, o->state,
                      *o->reason ? o->reason : NULL, o->spec, o->plan, o->dataset, o->attempt, o->step, o->starts, o->priority,
                      o->share, o->path, o->created, o->started, o->finished, o->published, o->figures);
    return rc ? rc : dn_idem_keep(db, o->answer, &op->error);
}

static void complain(const dn_job *j, const char *what, const dn_error *err)
{
    dn_log(DN_LOG_ERROR, "job_store", "job %s: %s: %s", j->id, what, err->message);
}

static void row_free(row_op *o)
{
    if (!o)
        return;
    free(o->spec);
    free(o->plan);
    free(o->figures);
    free(o->text);
    dn_idem_answer_free(o->answer);
    free(o);
}

static void row_written(dn_store_op *op)
{
    row_op *o = dn_container_of(op, row_op, op);
    dn_job *j = o->job;
    dn_error err = op->error;
    if (op->rc && !err.code)
        dn_fail(&err, op->rc, NULL, "%s", dn_error_text(op->rc));
    char *text = o->text;
    size_t text_n = o->text_n;
    o->text = NULL;
    row_free(o);
    bool fresh = !j->stored_once;
    j->store_late = err.code && !fresh;
    if (err.code)
        complain(j, "its row", &err);
    j->stored_once = fresh ? !err.code : true;
    j->working &= ~DN_WORK_STORE;
    if (j->store_again) {
        j->store_again = false;
        dn_job_store(j);
    }
    if (fresh)
        dn_job_accepted(j, &err, text, text_n);
    else if (j->phase == DN_PHASE_COMMITTING && !(j->working & DN_WORK_STORE))
        dn_job_start(j);
    else
        dn_job_work_done(j, 0);
}

/* The last figures, so that they are there after a restart; `tries` beside the column `starts`. */
static char *figures_of(const dn_job *j)
{
    json_t *f = json_object();
    const struct {
        const char *name;
        double v;
        bool has;
    } all[] = { { "loss", j->loss, j->has_loss },
                { "lr", j->lr, j->has_loss },
                { "grad_norm", j->grad_norm, j->has_loss && isfinite(j->grad_norm) },
                { "eval_loss", j->eval_loss, j->has_eval && isfinite(j->eval_loss) },
                { "images_per_s", j->images_per_s, j->has_loss } };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].has)
            json_object_set_new(f, all[i].name, json_real(all[i].v));
    }
    if (j->tries)
        json_object_set_new(f, "tries", json_integer(j->tries));
    char *text = json_dumps(f, JSON_COMPACT);
    json_decref(f);
    return text;
}

static int64_t saved_step(const dn_job *j) { return j->n_saved ? j->saved[j->n_saved - 1].step : 0; }

/* The answer to the call that waits for a new job. */
static int answer_of(row_op *o, dn_job *j)
{
    char location[DN_JOB_ID_LEN + 16];
    dn_job_info info;
    dn_buf b;
    snprintf(location, sizeof location, "/jobs/%s", j->id);
    dn_job_info_of(j, &info);
    dn_buf_init(&b, 1 << 20);
    dn_fields_write(&dn_job_info_fields, &info, &b);
    o->text = dn_buf_take(&b, &o->text_n);
    if (!o->text)
        return DN_E_MEMORY;
    return dn_idem_answer_of(&o->answer, j->app, j->call, 201, location, "application/json", o->text, o->text_n);
}

void dn_job_store(dn_job *j)
{
    if (!j->listed)
        return;
    if (j->working & DN_WORK_STORE) {
        j->store_again = true;
        return;
    }
    row_op *o = calloc(1, sizeof *o);
    char *spec = o ? dn_json_dump(j->json) : NULL;
    bool answered = !spec || !j->call || !answer_of(o, j);
    if (!spec || !answered) {
        free(spec);
        row_free(o);
        dn_error err = { .code = DN_E_MEMORY, .message = "out of memory" };
        complain(j, "its row", &err);
        j->store_late = j->stored_once;
        if (!j->stored_once)
            dn_job_accepted(j, &err, NULL, 0);
        return;
    }
    *o = (row_op){ .op = { .work = write_row, .done = row_written },
                   .job = j,
                   .text = o->text,
                   .text_n = o->text_n,
                   .answer = o->answer,
                   .spec = spec,
                   .plan = strdup(j->plan_text),
                   .figures = figures_of(j),
                   .dataset = j->stored ? j->stored->seq : 0,
                   .attempt = j->attempt,
                   .step = saved_step(j),
                   .starts = j->starts,
                   .share = j->share,
                   .created = j->created_at,
                   .started = j->started_at,
                   .finished = j->finished_at };
    memcpy(o->id, j->id, sizeof o->id);
    memcpy(o->owner, j->owner, sizeof o->owner);
    memcpy(o->reason, j->reason, sizeof o->reason);
    memcpy(o->published, j->published, sizeof o->published);
    snprintf(o->name, sizeof o->name, "%s", j->in.name);
    snprintf(o->state, sizeof o->state, "%s", dn_job_states[j->state]);
    snprintf(o->priority, sizeof o->priority, "%s", priorities[j->priority]);
    snprintf(o->path, sizeof o->path, "jobs/%s", j->id);
    j->working |= DN_WORK_STORE;
    dn_store_submit(j->app->server.store, &o->op);
}

enum { SMALL_TRIES = 3 };

/* Small writes that nobody waits for. */
typedef struct small_op {
    dn_store_op op;
    dn_app *app;
    int tries;
    char id[DN_JOB_ID_LEN + 1];
    int64_t step;
    dn_saved saved;
    dn_previewed shown;
} small_op;

static void small_written(dn_store_op *op)
{
    small_op *o = dn_container_of(op, small_op, op);
    if (op->rc)
        dn_log(DN_LOG_ERROR, "job_store", "job %s: %s", o->id, op->error.message);
    if (op->rc && ++o->tries < SMALL_TRIES && !o->app->closing) {
        o->op = (dn_store_op){ .work = op->work, .done = small_written };
        dn_store_submit(o->app->server.store, &o->op);
        return;
    }
    free(o);
}

/* j NULL: it is about no job in particular. */
static small_op *small_op_new(dn_app *app, const dn_job *j, int (*work)(dn_store_op *, sqlite3 *))
{
    small_op *o = calloc(1, sizeof *o);
    if (!o)
        return NULL;
    o->op = (dn_store_op){ .work = work, .done = small_written };
    o->app = app;
    snprintf(o->id, sizeof o->id, "%s", j ? j->id : "");
    return o;
}

static int write_saved(dn_store_op *op, sqlite3 *db)
{
    small_op *o = dn_container_of(op, small_op, op);
    const char *sql = o->saved.has_eval ? "INSERT OR REPLACE INTO job_saved (job, step, bytes, created, eval) VALUES (?,?,?,?,?)"
                                        : "INSERT OR REPLACE INTO job_saved (job, step, bytes, created) VALUES (?,?,?,?)";
    return dn_sql_run(db, &op->error, sql, o->saved.has_eval ? "siidd" : "siid", o->id, o->saved.step, o->saved.bytes,
                      o->saved.created_at, o->saved.eval_loss);
}

void dn_job_store_saved(dn_job *j, const dn_saved *s)
{
    small_op *o = small_op_new(j->app, j, write_saved);
    if (!o)
        return;
    o->saved = *s;
    dn_store_submit(j->app->server.store, &o->op);
}

static int write_unsaved(dn_store_op *op, sqlite3 *db)
{
    small_op *o = dn_container_of(op, small_op, op);
    return dn_sql_run(db, &op->error, "DELETE FROM job_saved WHERE job = ? AND step = ?", "si", o->id, o->step);
}

void dn_job_store_unsaved(dn_job *j, int64_t step)
{
    small_op *o = small_op_new(j->app, j, write_unsaved);
    if (!o)
        return;
    o->step = step;
    dn_store_submit(j->app->server.store, &o->op);
}

static int write_shown(dn_store_op *op, sqlite3 *db)
{
    small_op *o = dn_container_of(op, small_op, op);
    char told[DN_TOLD_LEN];
    dn_told_write(told, &o->shown.told);
    return dn_sql_run(db, &op->error, "INSERT OR REPLACE INTO job_shown (job, step, seed, label, sha256, told) VALUES (?,?,?,?,?,?)",
                      "siiiss", o->id, o->shown.step, o->shown.seed, (int64_t)o->shown.label, o->shown.sha256, told);
}

void dn_job_store_shown(dn_job *j, const dn_previewed *s)
{
    small_op *o = small_op_new(j->app, j, write_shown);
    if (!o)
        return;
    o->shown = *s;
    dn_store_submit(j->app->server.store, &o->op);
}

static int write_cut(dn_store_op *op, sqlite3 *db)
{
    small_op *o = dn_container_of(op, small_op, op);
    int rc = dn_sql_run(db, &op->error, "DELETE FROM job_saved WHERE job = ? AND step > ?", "si", o->id, o->step);
    return rc ? rc : dn_sql_run(db, &op->error, "DELETE FROM job_shown WHERE job = ? AND step > ?", "si", o->id, o->step);
}

void dn_job_store_cut(dn_job *j, int64_t step)
{
    small_op *o = small_op_new(j->app, j, write_cut);
    if (!o)
        return;
    o->step = step;
    dn_store_submit(j->app->server.store, &o->op);
}

static int write_left(dn_store_op *op, sqlite3 *db)
{
    return dn_sql_run(db, &op->error,
                      "UPDATE jobs SET starts = 0, figures = json_remove(figures, '$.tries') WHERE state = 'running'", "");
}

void dn_jobs_store_leave(dn_app *app)
{
    small_op *o = small_op_new(app, NULL, write_left);
    if (!o)
        return; /* then a start counts that should not: no harm if it is not the third */
    dn_store_submit(app->server.store, &o->op);
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static int state_named(const char *name)
{
    for (int i = 0; i < DN_JOB_STATES; i++) {
        if (!strcmp(dn_job_states[i], name))
            return i;
    }
    return DN_JOB_FAILED;
}

static const char *text_at(sqlite3_stmt *s, int i)
{
    const char *t = (const char *)sqlite3_column_text(s, i);
    return t ? t : "";
}

static void read_figures(dn_job *j, const char *text)
{
    json_t *f = json_loads(text, 0, NULL), *v;
    if ((v = json_object_get(f, "loss")))
        j->has_loss = true, j->loss = json_number_value(v);
    if ((v = json_object_get(f, "eval_loss")))
        j->has_eval = true, j->eval_loss = json_number_value(v);
    j->lr = json_number_value(json_object_get(f, "lr"));
    j->grad_norm = json_number_value(json_object_get(f, "grad_norm"));
    j->images_per_s = json_number_value(json_object_get(f, "images_per_s"));
    j->tries = json_integer_value(json_object_get(f, "tries"));
    j->suspect = j->tries > 0;
    json_decref(f);
}

static int read_saved(dn_job *j, sqlite3 *db, dn_error *err)
{
    sqlite3_stmt *s;
    int rc = dn_sql_query(&s, db, err, "SELECT step, bytes, created, eval FROM job_saved WHERE job = ? ORDER BY step", "s", j->id);
    while (!rc && dn_sql_next(s, &rc, err)) {
        dn_saved *grown = realloc(j->saved, (j->n_saved + 1) * sizeof *grown);
        if (!grown) {
            rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
            break;
        }
        j->saved = grown;
        j->saved[j->n_saved++] = (dn_saved){ .step = sqlite3_column_int64(s, 0), .bytes = sqlite3_column_int64(s, 1),
                                             .created_at = sqlite3_column_double(s, 2), .eval_loss = sqlite3_column_double(s, 3),
                                             .has_eval = sqlite3_column_type(s, 3) != SQLITE_NULL };
    }
    dn_sql_end(s);
    return rc;
}

static int read_shown(dn_job *j, sqlite3 *db, dn_error *err)
{
    sqlite3_stmt *s;
    int rc = dn_sql_query(&s, db, err, "SELECT step, seed, label, sha256, told FROM job_shown WHERE job = ? ORDER BY step, rowid",
                          "s", j->id);
    while (!rc && dn_sql_next(s, &rc, err)) {
        dn_previewed *grown = realloc(j->shown, (j->n_shown + 1) * sizeof *grown);
        if (!grown) {
            rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
            break;
        }
        j->shown = grown;
        dn_previewed *p = &j->shown[j->n_shown++];
        *p = (dn_previewed){ .step = sqlite3_column_int64(s, 0), .seed = sqlite3_column_int64(s, 1),
                             .label = sqlite3_column_int(s, 2) };
        snprintf(p->sha256, sizeof p->sha256, "%s", text_at(s, 3));
        if (!dn_told_read(&p->told, text_at(s, 4))) /* of before that was kept: behind its own step */
            p->told = (dn_told){ 1, p->step, true, j->n_shown };
    }
    dn_sql_end(s);
    return rc;
}

enum { C_ID, C_OWNER, C_STATE, C_REASON, C_SPEC, C_PLAN, C_ATTEMPT, C_STEP, C_STARTS, C_PRIORITY, C_SHARE, C_CREATED, C_STARTED,
       C_FINISHED, C_PUBLISHED, C_FIGURES };

/* A job that was running goes on: it is queued. One whose dataset or model is gone fails, and says so. */
static int read_row(dn_app *app, sqlite3_stmt *s, sqlite3 *db, dn_error *err)
{
    dn_job *j = dn_job_new(app, text_at(s, C_ID), text_at(s, C_OWNER));
    if (!j)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    dn_error why = { 0 };
    int rc = dn_job_restore(j, text_at(s, C_SPEC), text_at(s, C_PLAN), &why);
    j->state = state_named(text_at(s, C_STATE));
    snprintf(j->reason, sizeof j->reason, "%s", text_at(s, C_REASON));
    j->attempt = sqlite3_column_int(s, C_ATTEMPT);
    j->step = sqlite3_column_int64(s, C_STEP);
    j->starts = sqlite3_column_int64(s, C_STARTS);
    j->share = sqlite3_column_double(s, C_SHARE);
    j->created_at = sqlite3_column_double(s, C_CREATED);
    j->started_at = sqlite3_column_double(s, C_STARTED);
    j->finished_at = sqlite3_column_double(s, C_FINISHED);
    snprintf(j->published, sizeof j->published, "%s", text_at(s, C_PUBLISHED));
    read_figures(j, text_at(s, C_FIGURES));
    for (int i = 0; i < 3; i++)
        j->priority = strcmp(text_at(s, C_PRIORITY), priorities[i]) ? j->priority : i;
    j->stored_once = true;
    bool over = j->state >= DN_JOB_SUCCEEDED;
    if (rc && !j->json) { /* not even its request can be read: it stays in the store, for a denoised that can */
        dn_log(DN_LOG_ERROR, "job_unreadable", "job %s: %s", j->id, why.message);
        dn_job_forget(j);
        return 0;
    }
    if (j->state == DN_JOB_RUNNING)
        j->state = DN_JOB_QUEUED;
    if (rc && !over) {
        j->state = DN_JOB_PAUSED;
        snprintf(j->reason, sizeof j->reason, "%.199s", why.message);
    }
    if (!over && j->stored) {
        j->stored->pins++;
        j->pinned = true;
    }
    dn_jobs_add(app, j);
    rc = read_saved(j, db, err);
    return rc ? rc : read_shown(j, db, err);
}

int dn_jobs_read(dn_app *app, dn_error *err)
{
    sqlite3 *db = dn_store_db(app->server.store);
    sqlite3_stmt *s;
    int rc = dn_sql_query(&s, db, err,
                          "SELECT id, owner, state, reason, spec, plan, attempt, step, starts, priority, train_share, created,"
                          " started, finished, published, figures FROM jobs ORDER BY seq",
                          "");
    while (!rc && dn_sql_next(s, &rc, err))
        rc = read_row(app, s, db, err);
    dn_sql_end(s);
    return rc;
}
