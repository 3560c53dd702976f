/* datasets_upload.c - an uploaded file becomes a dataset, and a dataset goes.
 *
 * The import is made under incoming/ and renamed into datasets/ when it is whole; then its row is committed, and only then is it in
 * the list. Each row has a folder of its own (<hash>.<8 digits>), so that one can go while the same content comes again. A folder
 * without a row is removed at the next start. */
#include "datasets.h"
#include "disk.h"
#include "tree.h"
#include "jobs.h"
#include "log.h"
#include "multipart.h"

#include <sqlite3.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

struct dn_arrival {
    dn_link link; /* until it has ended */
    atomic_bool stop; /* the lane looks at it */
    bool storing;     /* it is in the lane no more */
    atomic_bool reading;      /* the lane has begun */
    _Atomic(int64_t) images;  /* so far; the lane's */
    int64_t received;         /* bytes of the body */
    double started_at;
    void (*stopped)(void *arg);
    void *stopped_arg;
    dn_work work;
    dn_store_op op;
    dn_app *app;
    void (*done)(void *arg, const dn_arrival *a);
    void *arg;
    char name[DN_NAME_LEN_MAX + 1], owner[DN_TENANT_MAX], id[33];
    char boundary[DN_BOUNDARY_MAX + 1]; /* of a multipart body; "": it is none */
    char *src, *made, *dir; /* the upload; what is made of it; where it goes */
    char path[96];          /* of dir, below the state folder */
    char hash[65];
    char *info;
    int64_t bytes;
    double created;
    bool inserted;
    dn_import_params params;
    dn_import_report report;
    dn_stored *stored;
    bool fresh;
    dn_error err;
};

const dn_stored *dn_arrival_stored(const dn_arrival *a) { return a->stored; }
bool dn_arrival_fresh(const dn_arrival *a) { return a->fresh; }
const dn_import_report *dn_arrival_report(const dn_arrival *a) { return &a->report; }
const dn_error *dn_arrival_error(const dn_arrival *a) { return &a->err; }

static void arrival_free(dn_arrival *a)
{
    free(a->src);
    free(a->made);
    free(a->dir);
    free(a->info);
    free(a);
}

/* ---- folders that go ------------------------------------------------------------------------------------------- */

typedef struct removal {
    dn_work work;
    char *path;
} removal;

static void removal_work(dn_work *work) { dn_tree_remove(dn_container_of(work, removal, work)->path); }

static void removal_done(dn_work *work)
{
    removal *r = dn_container_of(work, removal, work);
    free(r->path);
    free(r);
}

void dn_app_remove(dn_app *app, const char *path)
{
    removal *r = calloc(1, sizeof *r);
    char *copy = r ? strdup(path) : NULL;
    if (!copy) {
        free(r); /* it goes at the next start */
        return;
    }
    *r = (removal){ .work = { .work = removal_work, .done = removal_done }, .path = copy };
    dn_lane_submit(app->server.files, &r->work);
}

static bool has_row(void *arg, const char *name)
{
    dn_app *app = arg;
    for (const dn_stored *s = NULL; (s = dn_datasets_next(app, (dn_stored *)(uintptr_t)s));) {
        if (!strcmp(strrchr(s->dir, '/') + 1, name))
            return true;
    }
    return false;
}

int dn_datasets_sweep(dn_app *app, dn_error *err)
{
    const char *state = dn_store_folder(app->server.store);
    char *path = NULL;
    if (!state)
        return 0;
    if (asprintf(&path, "%s/datasets", state) < 0)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    int rc = dn_tree_make(path, err);
    if (!rc)
        dn_tree_clear(path, has_row, app);
    free(path);
    return rc;
}

/* ---- coming ---------------------------------------------------------------------------------------------------- */

/* Where it stays: known when its content is. */
static int place(dn_arrival *a, dn_error *err)
{
    const char *state = dn_store_folder(a->app->server.store);
    char above[4096];
    snprintf(a->path, sizeof a->path, "datasets/%s.%.8s", a->hash, a->id);
    snprintf(above, sizeof above, "%s/datasets", state);
    if (asprintf(&a->dir, "%s/%s", state, a->path) < 0) {
        a->dir = NULL;
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    }
    if (rename(a->made, a->dir))
        return dn_fail(err, DN_E_IO, "state", "%s: %m", a->dir);
    return dn_tree_sync(above, err);
}

static int describe(dn_arrival *a, dn_error *err)
{
    dn_dataset *d;
    int rc = dn_dataset_open(&d, a->made, err);
    if (rc)
        return rc;
    const dn_dataset_info *info = dn_dataset_info_of(d);
    snprintf(a->hash, sizeof a->hash, "%s", info->hash);
    a->bytes = (int64_t)info->bytes;
    a->info = dn_stored_info(info);
    dn_dataset_close(d);
    return a->info ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
}

static void import_work(dn_work *work)
{
    dn_arrival *a = dn_container_of(work, dn_arrival, work);
    atomic_store(&a->reading, true);
    int rc = *a->boundary ? dn_multipart_unwrap(a->src, a->boundary, a->params.total_max, &a->err) : 0;
    if (!rc)
        rc = dn_dataset_import(a->src, a->made, &a->params, &a->report, &a->err);
    dn_tree_remove(a->src);
    if (!rc)
        rc = describe(a, &a->err);
    if (!rc)
        rc = place(a, &a->err);
    if (rc && !a->err.code)
        dn_fail(&a->err, rc, NULL, "%s", dn_error_text(rc));
    if (rc)
        dn_tree_remove(a->made);
}

static void arrived(dn_arrival *a)
{
    dn_link_pop(&a->link);
    if (!a->fresh && a->dir)
        dn_app_remove(a->app, a->dir);
    if (atomic_load(&a->stop))
        dn_log(DN_LOG_INFO, "dataset_cancelled", "%s of %s", a->name, a->owner);
    else if (a->err.code)
        dn_log(DN_LOG_WARN, "dataset_refused", "%s: %s", a->name, a->err.message);
    else
        dn_log(DN_LOG_INFO, a->fresh ? "dataset" : "dataset_again", "%s@%s of %s", a->name, a->hash, a->owner);
    a->done(a->arg, a);
    if (a->stopped)
        a->stopped(a->stopped_arg);
    arrival_free(a);
}

static dn_stored *find_exact(dn_app *app, const char *name, const char *hash)
{
    for (dn_stored *s = NULL; (s = dn_datasets_next(app, s));) {
        if (!strcmp(s->name, name) && !strcmp(s->hash, hash))
            return s;
    }
    return NULL;
}

/* Another tenant has the name. */
static bool is_taken(dn_app *app, const char *name, const char *owner)
{
    for (dn_stored *s = NULL; (s = dn_datasets_next(app, s));) {
        if (!strcmp(s->name, name))
            return strcmp(s->owner, owner) != 0;
    }
    return false;
}

static int insert_row(dn_store_op *op, sqlite3 *db)
{
    dn_arrival *a = dn_container_of(op, dn_arrival, op);
    int rc = dn_sql_run(db, &op->error,
                        "INSERT INTO datasets (name, hash, owner, created, bytes, info, path) SELECT ?1,?2,?3,?4,?5,?6,?7"
                        " WHERE NOT EXISTS (SELECT 1 FROM datasets WHERE name=?1 AND (hash=?2 OR owner<>?3))",
                        "sssdiss", a->name, a->hash, a->owner, a->created, a->bytes, a->info, a->path);
    a->inserted = sqlite3_changes(db) > 0;
    a->stored->seq = sqlite3_last_insert_rowid(db);
    return rc;
}

static void row_inserted(dn_store_op *op)
{
    dn_arrival *a = dn_container_of(op, dn_arrival, op);
    a->fresh = !op->rc && a->inserted;
    if (a->fresh) {
        dn_datasets_add(a->app, a->stored);
        arrived(a);
        return;
    }
    dn_stored_free(a->stored);
    a->stored = find_exact(a->app, a->name, a->hash); /* the same came at the same time */
    if (op->rc)
        a->err = op->error;
    if (op->rc && !a->err.code)
        dn_fail(&a->err, op->rc, NULL, "%s", dn_error_text(op->rc));
    if (!op->rc && !a->stored)
        dn_fail(&a->err, DN_E_INVALID, "name", "the name %s has just been taken by another", a->name);
    arrived(a);
}

static void cancelled(dn_arrival *a)
{
    a->err = (dn_error){ 0 };
    dn_fail(&a->err, DN_E_CANCELLED, NULL, "the import was cancelled");
}

static void import_done(dn_work *work)
{
    dn_arrival *a = dn_container_of(work, dn_arrival, work);
    a->storing = true;
    if (atomic_load(&a->stop))
        cancelled(a);
    a->stored = a->err.code ? NULL : find_exact(a->app, a->name, a->hash);
    if (a->stored || a->err.code) {
        arrived(a);
        return;
    }
    a->created = dn_unix_now();
    a->stored = dn_stored_new(dn_store_folder(a->app->server.store), a->name, a->hash, a->owner, a->path, a->info);
    if (!a->stored) {
        dn_fail(&a->err, DN_E_MEMORY, NULL, "out of memory");
        arrived(a);
        return;
    }
    a->stored->created_at = a->created;
    a->op = (dn_store_op){ .work = insert_row, .done = row_inserted };
    dn_store_submit(a->app->server.store, &a->op);
}

int dn_datasets_import(dn_app *app, const char *name, const char *owner, char *src, const char *boundary, bool skip_broken,
                       const dn_body_progress *body, void (*done)(void *arg, const dn_arrival *a), void *arg, dn_http_error *err)
{
    enum { THREADS = 2 };
    dn_arrival *a = src ? calloc(1, sizeof *a) : NULL;
    unsigned char id[16];
    if (a && is_taken(app, name, owner)) {
        free(a);
        dn_app_remove(app, src);
        free(src);
        return dn_http_fail(err, DN_H_FORBIDDEN, "name", "the name %s is another's", name);
    }
    if (!a || getrandom(id, sizeof id, 0) != sizeof id || asprintf(&a->made, "%s.made", src) < 0) {
        free(a);
        if (src)
            dn_app_remove(app, src);
        free(src);
        return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    }
    for (int i = 0; i < 16; i++)
        snprintf(a->id + 2 * i, 3, "%02x", id[i]);
    snprintf(a->name, sizeof a->name, "%s", name);
    snprintf(a->owner, sizeof a->owner, "%s", owner);
    snprintf(a->boundary, sizeof a->boundary, "%s", boundary);
    a->app = app;
    a->src = src;
    a->received = body->received;
    a->started_at = dn_unix_now() - body->age_s;
    a->done = done;
    a->arg = arg;
    a->params = (dn_import_params){ .skip_broken = skip_broken, .threads = THREADS, .total_max = (uint64_t)dn_disk_room(app), .stop = &a->stop, .images = &a->images };
    dn_link_push(dn_datasets_arrivals(app), &a->link);
    a->work = (dn_work){ .work = import_work, .done = import_done };
    dn_lane_submit(app->server.imports, &a->work);
    return 0;
}

dn_arrival *dn_datasets_arriving(dn_app *app, const char *name, const char *tenant)
{
    dn_arrival *last = NULL;
    DN_LINK_EACH(l, dn_datasets_arrivals(app))
    {
        dn_arrival *a = DN_LINK_OF(l, dn_arrival, link);
        if (!strcmp(a->name, name) && (!tenant || !strcmp(a->owner, tenant)))
            last = a;
    }
    return last;
}

dn_arrival *dn_datasets_importing(dn_app *app, dn_arrival *a)
{
    dn_link *all = dn_datasets_arrivals(app);
    for (dn_link *l = a ? a->link.next : all->next; l != all; l = l->next) {
        if (!atomic_load(&DN_LINK_OF(l, dn_arrival, link)->stop))
            return DN_LINK_OF(l, dn_arrival, link);
    }
    return NULL;
}

const char *dn_arrival_owner(const dn_arrival *a) { return a->owner; }

void dn_arrival_card(const dn_arrival *a, dn_import_card *card)
{
    *card = (dn_import_card){ .has = DN_HAS_ALL,
                              .name = a->name,
                              .state = a->storing                  ? DN_IMPORT_STORING
                                       : atomic_load(&a->reading) ? DN_IMPORT_READING
                                                                  : DN_IMPORT_WAITING,
                              .bytes = a->received,
                              .total = a->received,
                              .images = atomic_load_explicit(&a->images, memory_order_relaxed),
                              .started_at = a->started_at };
}

int dn_arrival_stop(dn_arrival *a, void (*stopped)(void *arg), void *arg, dn_http_error *err)
{
    if (a->storing || atomic_load(&a->stop))
        return dn_http_fail(err, DN_H_CONFLICT, "name", "%s is being %s", a->name, a->storing ? "stored just now" : "cancelled already");
    a->stopped = stopped;
    a->stopped_arg = arg;
    atomic_store(&a->stop, true);
    if (dn_lane_withdraw(a->app->server.imports, &a->work)) {
        dn_app_remove(a->app, a->src);
        cancelled(a);
        arrived(a);
    }
    return 0;
}

void dn_datasets_abort(dn_app *app)
{
    DN_LINK_EACH(l, dn_datasets_arrivals(app)) { atomic_store(&DN_LINK_OF(l, dn_arrival, link)->stop, true); }
}

/* ---- going ----------------------------------------------------------------------------------------------------- */

typedef struct departure {
    dn_store_op op;
    dn_app *app;
    dn_stored *stored;
    void (*done)(void *arg, const dn_stored *s, const dn_error *err);
    void *arg;
} departure;

static int delete_row(dn_store_op *op, sqlite3 *db)
{
    const departure *d = dn_container_of(op, departure, op);
    int rc = dn_sql_run(db, &op->error, "UPDATE jobs SET dataset=NULL WHERE dataset=?1", "i", d->stored->seq);
    return rc ? rc : dn_sql_run(db, &op->error, "DELETE FROM datasets WHERE seq=?1", "i", d->stored->seq);
}

static void row_deleted(dn_store_op *op)
{
    departure *d = dn_container_of(op, departure, op);
    if (op->rc && !op->error.code)
        dn_fail(&op->error, op->rc, NULL, "%s", dn_error_text(op->rc));
    d->done(d->arg, d->stored, &op->error);
    if (op->rc) {
        dn_datasets_add(d->app, d->stored);
    } else {
        dn_log(DN_LOG_INFO, "dataset_deleted", "%s@%s", d->stored->name, d->stored->hash);
        dn_app_remove(d->app, d->stored->dir);
        dn_stored_free(d->stored);
    }
    free(d);
}

int dn_datasets_delete(dn_app *app, dn_stored *s, void (*done)(void *arg, const dn_stored *s, const dn_error *err), void *arg,
                       dn_http_error *err)
{
    if (s->pins)
        return dn_http_fail(err, DN_H_CONFLICT, "name", "%d job%s that %s not over need%s %s@%.12s", s->pins, s->pins > 1 ? "s" : "",
                            s->pins > 1 ? "are" : "is", s->pins > 1 ? "" : "s", s->name, s->hash);
    departure *d = calloc(1, sizeof *d);
    if (!d)
        return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    dn_link_pop(&s->link); /* nobody finds it from here on */
    DN_LINK_EACH(l, &app->jobs->jobs)
    {
        dn_job *j = DN_LINK_OF(l, dn_job, link);
        if (j->stored == s)
            j->stored = NULL;
    }
    *d = (departure){ .op = { .work = delete_row, .done = row_deleted }, .app = app, .stored = s, .done = done, .arg = arg };
    dn_store_submit(app->server.store, &d->op);
    return 0;
}
