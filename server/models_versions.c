/* models_versions.c - versions that the state folder keeps: models/<name>/<version>.
 *
 * A version is made under incoming/, loaded and tried with one evaluation there, away from the loop; the operation of the store that
 * gives it its number renames it into place and commits its row, and only then is it known. What a row does not name is removed at the
 * next start. */
#include "models.h"

#include "datasets.h"
#include "disk.h"
#include "jobs.h"
#include "log.h"
#include "requests.h"
#include "tree.h"
#include "version_files.h"
#include <dirent.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { REFUSED_MAX = 256 /* attempts that are kept */ };

struct dn_making {
    dn_link link;     /* while it is made and tried */
    atomic_bool stop; /* the lane looks at it */
    dn_work work;
    dn_store_op op;
    dn_app *app;
    char name[DN_NAME_LEN_MAX + 1], owner[DN_TENANT_MAX], source[DN_JOB_ID_LEN + 16];
    bool publish;
    dn_version_source *make;
    dn_version_done *done;
    void *arg;
    char *tmp; /* the folder while it is made */
    char *dir; /* the model's own in it: archives often have one folder above all */
    char hash[65];
    int64_t bytes, version;
    bool live, base; /* base: --models has a version 1 of it */
    char *path;      /* where it stays */
    dn_attempt *attempt; /* the loop's */
    dn_error err;
};

/* ---- what there is ---------------------------------------------------------------------------------------------- */

static const char *text_at(sqlite3_stmt *q, int i)
{
    const char *t = (const char *)sqlite3_column_text(q, i);
    return t ? t : "";
}

static void set_live(dn_models *m, const dn_known *live)
{
    for (int i = 0; i < m->n; i++) {
        if (!strcmp(m->known[i]->name, live->name))
            m->known[i]->live = m->known[i] == live;
    }
}

static int read_rows(dn_app *app, dn_error *err)
{
    const char *folder = dn_store_folder(app->server.store);
    sqlite3_stmt *q = NULL;
    int rc = dn_sql_query(&q, dn_store_db(app->server.store), err,
                          "SELECT model, version, owner, path, hash, live FROM versions WHERE path IS NOT NULL ORDER BY model, version", "");
    while (!rc && dn_sql_next(q, &rc, err)) {
        char *dir = NULL;
        if (asprintf(&dir, "%s/%s", folder, text_at(q, 3)) < 0)
            dir = NULL;
        int64_t bytes = dir ? dn_model_file_bytes(dir) : 0;
        dn_known *k = dn_models_add(app->models, text_at(q, 0), sqlite3_column_int64(q, 1), dir, bytes);
        if (!k) {
            rc = dn_fail(err, DN_E_MEMORY, NULL, "no memory for the list of models");
            break;
        }
        k->kept = true;
        snprintf(k->owner, sizeof k->owner, "%s", text_at(q, 2));
        snprintf(k->hash, sizeof k->hash, "%s", text_at(q, 4));
        if (sqlite3_column_int(q, 5))
            set_live(app->models, k);
    }
    dn_sql_end(q);
    return rc;
}

/* A name without a live row has its oldest version live: the folder of --models, if there is one. */
static void choose_live(dn_models *m)
{
    for (int i = 0; i < m->n; i++) {
        if (!dn_models_live(m, m->known[i]->name))
            m->known[i]->live = true;
    }
}

static bool has_row(void *arg, const char *name)
{
    const dn_app *app = arg;
    for (int i = 0; i < app->models->n; i++) {
        if (app->models->known[i]->kept && !strcmp(app->models->known[i]->name, name))
            return true;
    }
    return false;
}

typedef struct one_model {
    dn_app *app;
    const char *name;
} one_model;

static bool has_version(void *arg, const char *version)
{
    const one_model *o = arg;
    char id[DN_NAME_LEN_MAX + 300];
    snprintf(id, sizeof id, "%s@%s", o->name, version);
    for (int i = 0; i < o->app->models->n; i++) {
        if (o->app->models->known[i]->kept && !strcmp(o->app->models->known[i]->id, id))
            return true;
    }
    return false;
}

static int sweep(dn_app *app, dn_error *err)
{
    char above[4096], path[4400];
    snprintf(above, sizeof above, "%s/models", dn_store_folder(app->server.store));
    int rc = dn_tree_make(above, err);
    if (rc)
        return rc;
    dn_tree_clear(above, has_row, app);
    DIR *d = opendir(above);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (*e->d_name == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", above, e->d_name);
        dn_tree_clear(path, has_version, &(one_model){ app, e->d_name });
    }
    if (d)
        closedir(d);
    return 0;
}

int dn_versions_open(dn_app *app, dn_error *err)
{
    int rc = dn_store_folder(app->server.store) ? read_rows(app, err) : 0;
    choose_live(app->models);
    return rc || !dn_store_folder(app->server.store) ? rc : sweep(app, err);
}

bool dn_versions_mine(const dn_app *app, const char *name, const char *tenant)
{
    for (int i = 0; i < app->models->n; i++) {
        const dn_known *k = app->models->known[i];
        if (k->kept && !k->doomed && !strcmp(k->name, name) && strcmp(k->owner, tenant))
            return false;
    }
    return true;
}

/* ---- what was asked for and is no version ----------------------------------------------------------------------- */

static dn_attempt *attempt_new(dn_models *m, const char *name, const char *owner, const char *source)
{
    dn_attempt *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    snprintf(a->name, sizeof a->name, "%s", name);
    snprintf(a->owner, sizeof a->owner, "%s", owner);
    snprintf(a->source, sizeof a->source, "%s", source);
    a->created_at = dn_unix_now();
    dn_link_push(&m->attempts, &a->link);
    return a;
}

static void attempt_free(dn_models *m, dn_attempt *a)
{
    m->n_refused -= a->error.code != 0;
    dn_link_pop(&a->link);
    free(a);
}

/* Refused ones that came before this: of its name and owner, or, if it was refused too, beyond what is kept. */
static void attempts_trim(dn_models *m, const dn_attempt *since)
{
    DN_LINK_EACH(l, &m->attempts)
    {
        dn_attempt *a = DN_LINK_OF(l, dn_attempt, link);
        if (a == since)
            return;
        if (a->error.code && ((!strcmp(a->name, since->name) && !strcmp(a->owner, since->owner)) || m->n_refused > REFUSED_MAX))
            attempt_free(m, a);
    }
}

static void attempt_over(dn_models *m, dn_attempt *a, const dn_error *err)
{
    if (err->code == DN_E_CANCELLED) { /* nobody waits to hear of it */
        attempt_free(m, a);
        return;
    }
    a->error = *err;
    m->n_refused += err->code != 0;
    attempts_trim(m, a);
    if (!err->code)
        attempt_free(m, a);
}

const dn_attempt *dn_versions_attempt(const dn_app *app, const char *name, const char *tenant)
{
    const dn_attempt *last = NULL;
    DN_LINK_EACH(l, &app->models->attempts)
    {
        const dn_attempt *a = DN_LINK_OF(l, dn_attempt, link);
        if (!strcmp(a->name, name) && (!tenant || !strcmp(a->owner, tenant)))
            last = a;
    }
    return last;
}

void dn_versions_close(dn_models *m)
{
    DN_LINK_EACH(l, &m->attempts) { free(DN_LINK_OF(l, dn_attempt, link)); }
}

/* ---- made and tried, on the lane -------------------------------------------------------------------------------- */

static void make_work(dn_work *work)
{
    dn_making *g = dn_container_of(work, dn_making, work);
    int rc = atomic_load(&g->stop) ? DN_E_CANCELLED : g->make(g->arg, g->tmp, &g->stop, &g->err);
    if (!rc && !(g->dir = dn_version_folder(g->tmp)))
        rc = DN_E_MEMORY;
    if (!rc)
        rc = dn_version_try(g->hash, g->app->place[0].device, g->dir, g->app->budget.limit, &g->stop, &g->err);
    if (!rc)
        g->bytes = dn_tree_bytes(g->dir);
    if (rc && !g->err.code)
        dn_fail(&g->err, rc, NULL, "%s", dn_error_text(rc));
}

/* ---- making it known -------------------------------------------------------------------------------------------- */

static void made(dn_making *g, dn_known *k)
{
    if (g->err.code == DN_E_CANCELLED)
        dn_log(DN_LOG_INFO, "version_cancelled", "%s of %s", g->name, g->owner);
    else if (g->err.code)
        dn_log(DN_LOG_WARN, "version_refused", "%s: %s", g->name, g->err.message);
    else
        dn_log(DN_LOG_INFO, "version", "%s of %s%s", k->id, g->source, k->live ? ", live" : "");
    dn_app_remove(g->app, g->tmp); /* what is left of it */
    attempt_over(g->app->models, g->attempt, &g->err);
    g->done(g->arg, k, &g->err);
    free(g->tmp);
    free(g->dir);
    free(g->path);
    free(g);
}

static int number_of(dn_making *g, sqlite3 *db, dn_error *err)
{
    sqlite3_stmt *q = NULL;
    int64_t rows = 0, live = 0, most = 0;
    int rc = dn_sql_query(&q, db, err,
                          "SELECT count(*), total(live), max(coalesce(max(version),0), coalesce((SELECT highest FROM model_numbers"
                          " WHERE model=?1),0)) FROM versions WHERE model=?1",
                          "s", g->name);
    if (!rc && dn_sql_next(q, &rc, err)) {
        rows = sqlite3_column_int64(q, 0);
        live = sqlite3_column_int64(q, 1);
        most = sqlite3_column_int64(q, 2);
    }
    dn_sql_end(q);
    if (rc)
        return rc;
    if (rows + g->base >= DN_VERSIONS_MAX)
        return dn_fail(err, DN_E_LIMIT, "name", "%s has %d versions; delete one first", g->name, DN_VERSIONS_MAX);
    g->version = (most > g->base ? most : g->base) + 1;
    g->live = g->publish || (!live && !rows && !g->base);
    return 0;
}

static int put_in_place(dn_making *g, dn_error *err)
{
    const char *state = dn_store_folder(g->app->server.store);
    char above[4096];
    snprintf(above, sizeof above, "%s/models/%s", state, g->name);
    free(g->path);
    if (asprintf(&g->path, "%s/%lld", above, (long long)g->version) < 0)
        g->path = NULL;
    int rc = g->path ? dn_tree_make(above, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc)
        dn_tree_remove(g->path); /* of a version without a row */
    if (!rc && rename(g->dir, g->path))
        rc = dn_fail(err, DN_E_IO, "state", "%s: %m", g->path);
    return rc ? rc : dn_tree_sync(above, err);
}

static int insert_version(dn_store_op *op, sqlite3 *db)
{
    dn_making *g = dn_container_of(op, dn_making, op);
    char path[DN_NAME_LEN_MAX + 40];
    int rc = number_of(g, db, &op->error);
    if (!rc && g->live)
        rc = dn_sql_run(db, &op->error, "UPDATE versions SET live=0 WHERE model=?1", "s", g->name);
    snprintf(path, sizeof path, "models/%s/%lld", g->name, (long long)g->version);
    if (!rc)
        rc = dn_sql_run(db, &op->error,
                        "INSERT INTO versions (model, version, owner, path, hash, bytes, live, source, created)"
                        " VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)",
                        "sisssiisd", g->name, g->version, g->owner, path, g->hash, g->bytes, (int64_t)g->live, g->source,
                        dn_unix_now());
    if (!rc)
        rc = dn_sql_run(db, &op->error, "INSERT OR REPLACE INTO model_numbers (model, highest) VALUES (?1,?2)", "si", g->name, g->version);
    return rc ? rc : put_in_place(g, &op->error);
}

/* It was not kept. Its number may be another's by now, and so may the place: the rows know. */
static int take_back(dn_store_op *op, sqlite3 *db)
{
    dn_making *g = dn_container_of(op, dn_making, op);
    sqlite3_stmt *q = NULL;
    int rc = dn_sql_query(&q, db, &op->error, "SELECT 1 FROM versions WHERE model=?1 AND version=?2", "si", g->name, g->version);
    bool taken = !rc && dn_sql_next(q, &rc, &op->error);
    dn_sql_end(q);
    if (!rc && !taken)
        (void)rename(g->path, g->dir); /* if it is there at all */
    return rc;
}

static void taken_back(dn_store_op *op) { made(dn_container_of(op, dn_making, op), NULL); }

static void version_inserted(dn_store_op *op)
{
    dn_making *g = dn_container_of(op, dn_making, op);
    dn_app *app = g->app;
    dn_known *k = NULL;
    if (op->rc) {
        g->err = op->error;
        if (!g->err.code)
            dn_fail(&g->err, op->rc, NULL, "%s", dn_error_text(op->rc));
        g->op = (dn_store_op){ .work = take_back, .done = taken_back };
        if (g->path)
            dn_store_submit(app->server.store, &g->op);
        else
            made(g, NULL);
        return;
    }
    k = dn_models_add(app->models, g->name, g->version, strdup(g->path), g->bytes);
    if (!k) {
        dn_fail(&g->err, DN_E_MEMORY, NULL, "no memory for it: it will be known after the next start");
        made(g, NULL);
        return;
    }
    k->app = app;
    k->kept = true;
    k->label = dn_metrics_label(app->server.metrics, DN_L_MODEL, k->name);
    snprintf(k->owner, sizeof k->owner, "%s", g->owner);
    snprintf(k->hash, sizeof k->hash, "%s", g->hash);
    if (g->live)
        set_live(app->models, k);
    made(g, k);
}

static void make_done(dn_work *work)
{
    dn_making *g = dn_container_of(work, dn_making, work);
    dn_link_pop(&g->link);
    if (atomic_load(&g->stop)) {
        g->err = (dn_error){ 0 };
        dn_fail(&g->err, DN_E_CANCELLED, NULL, "the model was not taken: its check was cancelled");
    }
    if (g->err.code) {
        made(g, NULL);
        return;
    }
    g->op = (dn_store_op){ .work = insert_version, .done = version_inserted };
    dn_store_submit(g->app->server.store, &g->op);
}

static bool has_base(const dn_app *app, const char *name)
{
    for (int i = 0; i < app->models->n; i++) {
        if (!app->models->known[i]->kept && !strcmp(app->models->known[i]->name, name))
            return true;
    }
    return false;
}

int dn_versions_may(const dn_app *app, const char *name, bool admin, dn_http_error *err)
{
    if (admin || !has_base(app, name))
        return 0;
    return dn_http_fail(err, DN_H_FORBIDDEN, "name", "%s is a model of the daemon's own folder: versions of it need a token with the scope admin",
                        name);
}

char *dn_state_fresh(const dn_app *app)
{
    uint64_t id[2];
    char *path = NULL;
    if (getrandom(id, sizeof id, 0) != sizeof id ||
        asprintf(&path, "%s/incoming/%016llx%016llx", dn_store_folder(app->server.store), (unsigned long long)id[0],
                 (unsigned long long)id[1]) < 0)
        return NULL;
    return path;
}

int dn_versions_make(dn_app *app, const char *name, const char *owner, const char *source, bool publish, dn_version_source *make,
                     dn_version_done *done, void *arg, dn_http_error *err)
{
    if (!dn_name_ok(name))
        return dn_http_fail(err, DN_H_INVALID, "name", "the name of a model matches [a-z0-9][a-z0-9._-]{0,63}");
    if (!dn_store_folder(app->server.store))
        return dn_http_fail(err, DN_H_IMPOSSIBLE, NULL, "versions need a folder to be kept in: start denoised with --state");
    if (!has_base(app, name) && !dn_versions_mine(app, name, owner)) /* else dn_versions_may has been asked */
        return dn_http_fail(err, DN_H_FORBIDDEN, "name", "the name %s is another's", name);
    int rc = dn_disk_check(app, 0, err);
    if (rc)
        return rc;
    dn_making *g = calloc(1, sizeof *g);
    if (g)
        g->tmp = dn_state_fresh(app);
    if (g && g->tmp)
        g->attempt = attempt_new(app->models, name, owner, source);
    if (!g || !g->attempt) {
        if (g)
            free(g->tmp);
        free(g);
        return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    }
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->owner, sizeof g->owner, "%s", owner);
    snprintf(g->source, sizeof g->source, "%s", source);
    g->app = app;
    g->publish = publish;
    g->base = has_base(app, name);
    g->make = make;
    g->done = done;
    g->arg = arg;
    g->work = (dn_work){ .work = make_work, .done = make_done };
    dn_link_push(&app->models->makings, &g->link);
    dn_lane_submit(app->server.files, &g->work);
    return 0;
}

void dn_versions_stop(dn_app *app, const void *arg)
{
    DN_LINK_EACH(l, &app->models->makings)
    {
        dn_making *g = DN_LINK_OF(l, dn_making, link);
        if (g->arg == arg)
            atomic_store(&g->stop, true);
    }
}

void dn_versions_abort(dn_app *app)
{
    DN_LINK_EACH(l, &app->models->makings) { atomic_store(&DN_LINK_OF(l, dn_making, link)->stop, true); }
}

/* ---- live, and gone --------------------------------------------------------------------------------------------- */

typedef struct change {
    dn_store_op op;
    dn_app *app;
    dn_known *known;
    dn_version_done *done;
    void *arg;
} change;

static int submit(dn_app *app, dn_known *k, int (*work)(dn_store_op *, sqlite3 *), void (*after)(dn_store_op *), dn_version_done *done,
                  void *arg, dn_http_error *err)
{
    change *c = calloc(1, sizeof *c);
    if (!c)
        return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    *c = (change){ .op = { .work = work, .done = after }, .app = app, .known = k, .done = done, .arg = arg };
    k->busy++; /* it is not freed meanwhile */
    dn_store_submit(app->server.store, &c->op);
    return 0;
}

static void changed(change *c)
{
    if (c->op.rc && !c->op.error.code)
        dn_fail(&c->op.error, c->op.rc, NULL, "%s", dn_error_text(c->op.rc));
    c->known->busy--;
    c->done(c->arg, c->known, &c->op.error);
    dn_known_settle(c->app, c->known);
    free(c);
}

static int write_alias(dn_store_op *op, sqlite3 *db)
{
    const dn_known *k = dn_container_of(op, change, op)->known;
    int rc = dn_sql_run(db, &op->error, "UPDATE versions SET live=0 WHERE model=?1", "s", k->name);
    if (!rc && !k->kept) /* the folder of --models: the row says no more than this */
        rc = dn_sql_run(db, &op->error, "INSERT OR IGNORE INTO versions (model, version, owner, created) VALUES (?1,?2,'',0)", "si",
                        k->name, k->version);
    return rc ? rc : dn_sql_run(db, &op->error, "UPDATE versions SET live=1 WHERE model=?1 AND version=?2", "si", k->name, k->version);
}

static void alias_written(dn_store_op *op)
{
    change *c = dn_container_of(op, change, op);
    if (!op->rc) {
        set_live(c->app->models, c->known);
        dn_log(DN_LOG_INFO, "version_live", "%s", c->known->id);
    }
    changed(c);
}

int dn_versions_alias(dn_app *app, dn_known *k, dn_version_done *done, void *arg, dn_http_error *err)
{
    return submit(app, k, write_alias, alias_written, done, arg, err);
}

static int delete_version(dn_store_op *op, sqlite3 *db)
{
    const dn_known *k = dn_container_of(op, change, op)->known;
    return dn_sql_run(db, &op->error, "DELETE FROM versions WHERE model=?1 AND version=?2", "si", k->name, k->version);
}

static void version_deleted(dn_store_op *op)
{
    change *c = dn_container_of(op, change, op);
    if (op->rc) {
        c->known->doomed = false;
    } else {
        dn_log(DN_LOG_INFO, "version_deleted", "%s", c->known->id);
        (void)dn_models_unload(c->app, c->known, NULL);
    }
    changed(c);
}

/* A job that is not over starts from it. */
static bool is_needed(dn_app *app, const dn_known *k)
{
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        const dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->state < DN_JOB_SUCCEEDED && j->from_dir && !strcmp(j->from_dir, k->dir))
            return true;
    }
    return false;
}

int dn_versions_delete(dn_app *app, dn_known *k, dn_version_done *done, void *arg, dn_http_error *err)
{
    if (!k->kept)
        return dn_http_fail(err, DN_H_CONFLICT, "name", "%s is a folder of --models; it is not ours to delete", k->id);
    if (k->live)
        return dn_http_fail(err, DN_H_CONFLICT, "name", "%s is live; make another version live first", k->id);
    if (k->holders || k->readers || is_needed(app, k))
        return dn_http_fail(err, DN_H_CONFLICT, "name", "%s is in use", k->id);
    if (k->state == DN_MODEL_LOADING || k->busy)
        return dn_http_fail(err, DN_H_CONFLICT, "name", "%s is being loaded or changed", k->id);
    int rc = submit(app, k, delete_version, version_deleted, done, arg, err);
    k->doomed = !rc;
    return rc;
}

static void forget(dn_app *app, int i)
{
    dn_models *m = app->models;
    dn_known *k = m->known[i];
    for (dn_request *r = dn_requests_prev(app, NULL); r; r = dn_requests_prev(app, r)) {
        if (r->known == k)
            r->known = NULL; /* it has ended */
    }
    dn_app_remove(app, k->dir);
    memmove(&m->known[i], &m->known[i + 1], (size_t)(m->n - i - 1) * sizeof *m->known);
    m->n--;
    free(k->dir);
    free(k);
}

void dn_versions_tick(dn_app *app)
{
    dn_models *m = app->models;
    for (int i = m->n - 1; i >= 0; i--) {
        const dn_known *k = m->known[i];
        bool idle = k->state == DN_MODEL_AVAILABLE || k->state == DN_MODEL_FAILED;
        if (k->doomed && idle && !k->busy && !k->holders && dn_link_empty(&k->calls) && dn_link_empty(&k->waiters))
            forget(app, i);
    }
}
