/* store_requests.c - statements over `requests` and `gone`. */
#include "store_requests.h"

#include <sqlite3.h>
#include <string.h>

int dn_record_begin(sqlite3 *db, const dn_request_record *r, dn_error *err)
{
    return dn_sql_run(db, err,
                      "INSERT INTO requests (id, owner, state, spec, model, numerics, numerics_before, starts, tries, "
                      "created) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                      "spec = excluded.spec, model = excluded.model, numerics = excluded.numerics, numerics_before = "
                      "excluded.numerics_before, starts = starts + excluded.starts, tries = tries + excluded.tries",
                      "ssssssiid", r->id, r->owner, r->spec, r->model, r->numerics, r->numerics_before, r->starts,
                      r->tries, r->created);
}

int dn_record_moved(sqlite3 *db, const char *id, dn_error *err)
{
    return dn_sql_run(db, err, "UPDATE requests SET tries = 0 WHERE id = ?", "s", id);
}

int dn_record_left(sqlite3 *db, dn_error *err)
{
    return dn_sql_run(db, err, "UPDATE requests SET tries = 0 WHERE finished IS NULL AND tries > 0", "");
}

int dn_record_end(sqlite3 *db, const dn_request_record *r, dn_error *err)
{
    return dn_sql_run(db, err,
                      "UPDATE requests SET state = ?, finished = ?, ended = ?, model = ?, numerics = ?, "
                      "numerics_before = ?, file = ?, bytes = ? WHERE id = ?",
                      "sdsssssis", r->state, r->finished, r->ended, r->model, r->numerics, r->numerics_before, r->file,
                      r->bytes, r->id);
}

int dn_record_drop(sqlite3 *db, const char *id, dn_error *err)
{
    int rc = dn_sql_run(db, err, "DELETE FROM requests WHERE id = ?", "s", id);
    if (!rc)
        rc = dn_sql_run(db, err, "INSERT INTO gone (id) VALUES (?)", "s", id);
    if (!rc) /* as many as are remembered without a store */
        rc = dn_sql_run(db, err, "DELETE FROM gone WHERE seq <= last_insert_rowid() - 16384", "");
    return rc;
}

static const char *text(sqlite3_stmt *s, int i) { return (const char *)sqlite3_column_text(s, i); }

static dn_request_record row_of(sqlite3_stmt *s)
{
    return (dn_request_record){ .id = text(s, 0),
                                .owner = text(s, 1),
                                .state = text(s, 2),
                                .spec = text(s, 3),
                                .model = text(s, 4),
                                .numerics = text(s, 5),
                                .numerics_before = text(s, 6),
                                .starts = sqlite3_column_int64(s, 7),
                                .tries = sqlite3_column_int64(s, 8),
                                .created = sqlite3_column_double(s, 9),
                                .finished = sqlite3_column_double(s, 10),
                                .ended = text(s, 11),
                                .file = text(s, 12),
                                .bytes = sqlite3_column_int64(s, 13) };
}

int dn_record_read(sqlite3 *db, int (*take)(void *arg, const dn_request_record *row, dn_error *err), void *arg,
                   dn_error *err)
{
    sqlite3_stmt *s = NULL;
    int rc = dn_sql_query(&s, db, err,
                          "SELECT id, owner, state, spec, model, numerics, numerics_before, starts, tries, created, "
                          "finished, ended, file, bytes FROM requests ORDER BY seq",
                          "");
    while (!rc && dn_sql_next(s, &rc, err)) {
        dn_request_record row = row_of(s);
        rc = take(arg, &row, err);
    }
    dn_sql_end(s);
    return rc;
}

int dn_record_read_gone(sqlite3 *db, void (*take)(void *arg, const char *id), void *arg, dn_error *err)
{
    sqlite3_stmt *s = NULL;
    int rc = dn_sql_query(&s, db, err, "SELECT id FROM gone ORDER BY seq", "");
    while (!rc && dn_sql_next(s, &rc, err))
        take(arg, text(s, 0));
    dn_sql_end(s);
    return rc;
}
