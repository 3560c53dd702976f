/* store.c - opening and migrating the database, and the thread that commits to it.
 *
 * The thread sleeps in its mailbox. Each message is an operation that runs at once, in a transaction that the first one
 * opens; when the mailbox is empty the transaction is committed and its operations go back to the loop. While a commit
 * waits for the disk the next ones queue up: that is the group. */
#include "store.h"

#include "log.h"
#include "metric_set.h"
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUSY_MS = 10000 /* a backup or a person with the sqlite3 shell holds the file */ };

struct dn_store {
    dn_loop *loop;
    char *folder;
    dn_metrics *metrics; /* NULL: nobody looks */
    sqlite3 *db;
    dn_mailbox box;
    pthread_t thread;
    bool started;
    pthread_mutex_t gate; /* whether it takes more: nothing may be posted behind the last message */
    bool closed;          /* under the gate */
    dn_msg last;          /* the message that ends the thread */
    bool ending;          /* the thread's, as are these */
    bool open;            /* a transaction */
    dn_msg *batch, **batch_end;
};

/* ---- opening ------------------------------------------------------------------------------------------------ */

static int run_text(sqlite3 *db, const char *sql, dn_error *err)
{
    return sqlite3_exec(db, sql, NULL, NULL, NULL) ? dn_sql_fail(db, err) : 0;
}

static int migrate_one(sqlite3 *db, int from, dn_error *err)
{
    char tail[96];
    snprintf(tail, sizeof tail, "PRAGMA user_version = %d; PRAGMA application_id = %d; COMMIT", from + 1,
             DN_STORE_APPLICATION);
    int rc = run_text(db, "BEGIN IMMEDIATE", err);
    if (!rc)
        rc = run_text(db, dn_store_migrations[from], err);
    if (!rc)
        rc = run_text(db, tail, err);
    if (rc && !sqlite3_get_autocommit(db))
        sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

static int migrate(sqlite3 *db, const char *folder, dn_error *err)
{
    int64_t version = 0, application = 0, tables = 0;
    int rc = dn_sql_int(&version, db, err, "PRAGMA user_version");
    if (!rc)
        rc = dn_sql_int(&application, db, err, "PRAGMA application_id");
    if (!rc)
        rc = dn_sql_int(&tables, db, err, "SELECT count(*) FROM sqlite_schema");
    if (rc)
        return rc;
    if (tables && application != DN_STORE_APPLICATION)
        return dn_fail(err, DN_E_FORMAT, "state", "%s/denoised.db is no database of denoised", folder);
    if (version < 0 || version > dn_store_n_migrations)
        return dn_fail(err, DN_E_UNSUPPORTED, "state",
                       "%s/denoised.db has the schema %lld of a newer denoised; this one knows up to %d", folder,
                       (long long)version, dn_store_n_migrations);
    for (int v = (int)version; v < dn_store_n_migrations && !rc; v++)
        rc = migrate_one(db, v, err);
    return rc;
}

static int open_database(sqlite3 **out, const char *folder, dn_error *err)
{
    char *path = NULL;
    if (folder && asprintf(&path, "%s/denoised.db", folder) < 0)
        return dn_fail(err, DN_E_MEMORY, "state", "no memory for the store");
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int code = sqlite3_open_v2(path ? path : ":memory:", out, flags, NULL);
    int rc = 0;
    if (code)
        rc = dn_fail(err, code == SQLITE_NOMEM ? DN_E_MEMORY : DN_E_IO, "state", "%s cannot be opened: %s",
                     path ? path : "the store", *out ? sqlite3_errmsg(*out) : sqlite3_errstr(code));
    free(path);
    return rc;
}

static int set_up(sqlite3 *db, const char *folder, dn_error *err)
{
    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, BUSY_MS);
    int rc = migrate(db, folder ? folder : ":memory:", err);
    if (!rc && folder)
        rc = run_text(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL", err);
    if (!rc)
        rc = run_text(db, "PRAGMA foreign_keys = ON", err);
    return rc;
}

int dn_store_open(dn_store **out, dn_loop *loop, const char *folder, dn_error *err)
{
    dn_store *s = calloc(1, sizeof *s);
    if (!s || (folder && !(s->folder = strdup(folder)))) {
        free(s);
        return dn_fail(err, DN_E_MEMORY, "state", "no memory for the store");
    }
    s->loop = loop;
    s->batch_end = &s->batch;
    dn_mailbox_init(&s->box);
    pthread_mutex_init(&s->gate, NULL);
    int rc = open_database(&s->db, folder, err);
    if (!rc)
        rc = set_up(s->db, folder, err);
    if (rc)
        dn_store_free(s);
    else
        *out = s;
    return rc;
}

sqlite3 *dn_store_db(dn_store *s) { return s->db; }
const char *dn_store_folder(const dn_store *s) { return s->folder; }

void dn_store_measure(dn_store *s, dn_metrics *metrics) { s->metrics = metrics; }

/* ---- the thread --------------------------------------------------------------------------------------------- */

static void tell_done(dn_msg *msg)
{
    dn_store_op *op = dn_container_of(msg, dn_store_op, msg);
    if (op->done)
        op->done(op);
}

static void count(dn_store *s, enum dn_metric id, double n)
{
    if (s->metrics)
        dn_metrics_add(s->metrics, id, 0, 0, 0, n);
}

static void send_back(dn_store *s, dn_store_op *op)
{
    count(s, DN_M_STORE_WAITING, -1);
    count(s, op->rc ? DN_M_STORE_FAILED : DN_M_STORE_OPERATIONS, 1);
    op->msg.run = tell_done;
    dn_loop_post(s->loop, &op->msg);
}

/* All of the transaction; `err` NULL: it is committed. Those that had failed keep their own reason. */
static void send_back_all(dn_store *s, const dn_error *err)
{
    for (dn_msg *msg = s->batch, *next; msg; msg = next) {
        next = msg->next;
        dn_store_op *op = dn_container_of(msg, dn_store_op, msg);
        if (err && !op->rc) {
            op->error = *err;
            op->rc = err->code;
        }
        send_back(s, op);
    }
    s->batch = NULL;
    s->batch_end = &s->batch;
    s->open = false;
}

static void fail_all(dn_store *s, dn_error *err)
{
    if (!sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    dn_log(DN_LOG_ERROR, "store_failed", "%s", err->message);
    send_back_all(s, err);
}

static void commit(dn_store *s)
{
    dn_error err = { 0 };
    if (!s->open)
        return;
    bool wrote = sqlite3_txn_state(s->db, NULL) == SQLITE_TXN_WRITE;
    uint64_t start = uv_hrtime();
    int rc = dn_sql_run(s->db, &err, "COMMIT", "");
    if (s->metrics && wrote)
        dn_metrics_observe(s->metrics, DN_M_STORE_COMMIT_SECONDS, 0, (double)(uv_hrtime() - start) / 1e9);
    if (rc)
        fail_all(s, &err);
    else
        send_back_all(s, NULL);
}

/* In its savepoint. Not 0: nothing of it is left. */
static int run_inside(dn_store *s, dn_store_op *op)
{
    int rc = dn_sql_run(s->db, &op->error, "SAVEPOINT op", "");
    if (rc)
        return rc;
    rc = op->work(op, s->db);
    if (rc && !sqlite3_get_autocommit(s->db))
        dn_sql_run(s->db, NULL, "ROLLBACK TO op", "");
    if (!sqlite3_get_autocommit(s->db)) {
        int released = dn_sql_run(s->db, rc ? NULL : &op->error, "RELEASE op", "");
        rc = rc ? rc : released;
    }
    return rc;
}

static void run_op(dn_msg *msg)
{
    dn_store_op *op = dn_container_of(msg, dn_store_op, msg);
    dn_store *s = op->store;
    op->error = (dn_error){ 0 };
    op->rc = s->open ? 0 : dn_sql_run(s->db, &op->error, "BEGIN", "");
    if (op->rc) {
        send_back(s, op);
        return;
    }
    s->open = true;
    op->rc = run_inside(s, op);
    if (op->rc && !op->error.code)
        dn_fail(&op->error, op->rc, "state", "the store: %s", dn_error_text(op->rc));
    msg->next = NULL;
    *s->batch_end = msg;
    s->batch_end = &msg->next;
    if (sqlite3_get_autocommit(s->db)) { /* SQLite has rolled all of it back (disk full, I/O error) */
        dn_error err = op->error;
        if (!op->rc)
            dn_fail(&err, DN_E_IO, "state", "the store: the transaction was rolled back");
        fail_all(s, &err);
    }
}

static void run_last(dn_msg *msg) { dn_container_of(msg, dn_store, last)->ending = true; }

static void *store_main(void *arg)
{
    dn_store *s = arg;
    pthread_setname_np(pthread_self(), "store");
    while (!s->ending) {
        dn_mailbox_run(&s->box, -1);
        commit(s);
    }
    return NULL;
}

int dn_store_start(dn_store *s, dn_error *err)
{
    int rc = pthread_create(&s->thread, NULL, store_main, s);
    if (rc)
        return dn_fail(err, DN_E_MEMORY, NULL, "the store cannot start a thread: %s", strerror(rc));
    s->started = true;
    return 0;
}

static void send_back_stopped(dn_store *s, dn_store_op *op)
{
    op->rc = dn_fail(&op->error, DN_E_IO, "state", "the store has stopped");
    send_back(s, op);
}

void dn_store_submit(dn_store *s, dn_store_op *op)
{
    op->store = s;
    op->msg.run = run_op;
    count(s, DN_M_STORE_WAITING, 1);
    pthread_mutex_lock(&s->gate);
    bool closed = s->closed;
    if (!closed)
        dn_mailbox_post(&s->box, &op->msg);
    pthread_mutex_unlock(&s->gate);
    if (!closed)
        return;
    send_back_stopped(s, op);
}

void dn_store_stop(dn_store *s)
{
    pthread_mutex_lock(&s->gate);
    bool first = !s->closed;
    s->closed = true;
    s->last.run = run_last;
    if (first && s->started)
        dn_mailbox_post(&s->box, &s->last);
    pthread_mutex_unlock(&s->gate);
    if (first && s->started)
        pthread_join(s->thread, NULL);
    if (s->started)
        return;
    for (dn_msg *msg = dn_queue_take(&s->box.queue), *next; msg; msg = next) { /* a start that failed */
        next = msg->next;
        send_back_stopped(s, dn_container_of(msg, dn_store_op, msg));
    }
}

void dn_store_free(dn_store *s)
{
    if (!s)
        return;
    dn_store_stop(s);
    for (sqlite3_stmt *p; s->db && (p = sqlite3_next_stmt(s->db, NULL));)
        sqlite3_finalize(p);
    sqlite3_close(s->db);
    dn_mailbox_fini(&s->box);
    pthread_mutex_destroy(&s->gate);
    free(s->folder);
    free(s);
}
