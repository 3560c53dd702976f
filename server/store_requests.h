/* store_requests.h - the SQL of asynchronous requests. All of it runs on the store's thread, inside an operation, or
 * before that thread runs. */
#ifndef DN_SERVER_STORE_REQUESTS_H
#define DN_SERVER_STORE_REQUESTS_H

#include "store.h"

/* A row; NULL: nothing (yet). When it is read, texts live until the next one. */
typedef struct dn_request_record {
    const char *id, *owner, *state, *spec, *model, *numerics, *numerics_before, *ended, *file;
    int64_t starts, tries, bytes;
    double created, finished;
} dn_request_record;

/* Made, or (by id) brought up to date: spec, model, numerics; starts and tries are added. */
int dn_record_begin(struct sqlite3 *db, const dn_request_record *row, dn_error *err);
int dn_record_moved(struct sqlite3 *db, const char *id, dn_error *err); /* no tries so far */
int dn_record_left(struct sqlite3 *db, dn_error *err);                  /* the same of all that have not ended */
/* state, finished, ended, model, numerics, file, bytes. */
int dn_record_end(struct sqlite3 *db, const dn_request_record *row, dn_error *err);
int dn_record_drop(struct sqlite3 *db, const char *id, dn_error *err); /* it is remembered as gone */
/* Oldest first. `take` returns a DN_E code to stop. */
int dn_record_read(struct sqlite3 *db, int (*take)(void *arg, const dn_request_record *row, dn_error *err), void *arg,
                   dn_error *err);
int dn_record_read_gone(struct sqlite3 *db, void (*take)(void *arg, const char *id), void *arg, dn_error *err);

#endif
