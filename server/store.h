/* store.h - the durable store: one thread that owns SQLite.
 *
 * Whoever needs something kept embeds a dn_store_op, gives it up with dn_store_submit, and has it back when `done` runs
 * on the loop's thread. All operations that have queued up are committed together (group commit): `done` is called
 * after that commit, so what it tells the world is on the disk. An operation that fails is rolled back alone; a commit
 * that fails (disk full, EIO) fails every operation of its transaction with DN_E_IO, and the store goes on.
 *
 * Each module keeps its SQL in its own file (store_requests.c ...) and uses the dn_sql_* functions below. The tables
 * are in store_schema.c: migrations go forward only.
 *
 * The file is `denoised.db` in the folder of --state (WAL, synchronous FULL). Without a folder the same tables live in
 * memory and end with the process: dn_store_folder() is NULL then. */
#ifndef DN_SERVER_STORE_H
#define DN_SERVER_STORE_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "loop.h"

struct dn_metrics; /* proto/metric_set.h */
struct sqlite3;
struct sqlite3_stmt;

typedef struct dn_store dn_store;
typedef struct dn_store_op dn_store_op;
struct dn_store_op {
    dn_msg msg; /* the store's */
    /* On the store's thread, inside a savepoint. Not 0 (a DN_E code, `error` says why): it is rolled back. It must not
     * begin or end transactions. It may be rolled back after it returned 0 too, so what it writes into its own
     * structure is worth nothing unless rc is 0 in `done`. */
    int (*work)(dn_store_op *op, struct sqlite3 *db);
    void (*done)(dn_store_op *op); /* on the loop's thread, after the commit; owns the operation. NULL: nobody asks */
    int rc;                        /* 0, or a DN_E code: nothing of it was kept */
    dn_error error;
    dn_store *store; /* the store's */
};

/* Open (make) the database, migrate it, and start the thread later: until dn_store_start, dn_store_db is the caller's,
 * for modules to read what they have to go on with. `folder` NULL: in memory. A database that a newer denoised wrote,
 * or something else, is refused by name. */
int dn_store_open(dn_store **out, dn_loop *loop, const char *folder, dn_error *err);
struct sqlite3 *dn_store_db(dn_store *store);       /* before dn_store_start only */
/* Before anything is submitted: where to record commits and what waits. */
void dn_store_measure(dn_store *store, struct dn_metrics *metrics);
const char *dn_store_folder(const dn_store *store); /* of --state; NULL: nothing here survives the process */
int dn_store_start(dn_store *store, dn_error *err);
/* Any thread. After dn_store_stop it fails with DN_E_IO; `done` is called all the same. */
void dn_store_submit(dn_store *store, dn_store_op *op);
/* Commit what is queued and end the thread; `done` of all of it is then among the loop's messages. */
void dn_store_stop(dn_store *store);
void dn_store_free(dn_store *store); /* stops it. NULL is fine */

/* ---- SQL (store_sql.c): any thread that owns the connection ------------------------------------------------- */

/* `types` says what follows, one letter a parameter: s const char * (NULL: null), i int64_t, d double, b const void *
 * and size_t (a blob; NULL: null). Statements are prepared once a connection. Texts and blobs must live until the
 * statement has run. All return 0 or a DN_E code and fill *err. */

/* Run one that gives no rows. */
int dn_sql_run(struct sqlite3 *db, dn_error *err, const char *sql, const char *types, ...);
/* Begin one that gives rows; then dn_sql_next until it is false, reading with sqlite3_column_...; then dn_sql_end, at
 * any time. */
int dn_sql_query(struct sqlite3_stmt **out, struct sqlite3 *db, dn_error *err, const char *sql, const char *types, ...);
/* A row; false: no more, or *rc is a DN_E code and *err says why. */
bool dn_sql_next(struct sqlite3_stmt *row, int *rc, dn_error *err);
void dn_sql_end(struct sqlite3_stmt *row); /* NULL is fine */
/* The one number that a query gives; 0 when there is no row, or null. */
int dn_sql_int(int64_t *out, struct sqlite3 *db, dn_error *err, const char *sql);
/* What SQLite reported last, as ours. */
int dn_sql_fail(struct sqlite3 *db, dn_error *err);

/* ---- the schema (store_schema.c) ------------------------------------------------------------------------- */

enum { DN_STORE_APPLICATION = 0x646e6f69 }; /* "dnoi": SQLite's application_id of our files */

/* Entry i brings a database of user_version i to i + 1. Only ever appended to. */
extern const char *const dn_store_migrations[];
extern const int dn_store_n_migrations;

/* ---- backup (store_backup.c) ----------------------------------------------------------------------------- */

/* A consistent copy of the state `folder` as the new folder `to`: its database and every file that it refers to. Works
 * beside a running daemon, and needs no lock. `to` appears when it is complete. *missing: files that were dropped
 * meanwhile (expired results). */
int dn_store_backup(const char *folder, const char *to, int *missing, dn_error *err);

#endif
