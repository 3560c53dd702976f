/* store_sql.c - statements: prepared once a connection, bound by a string of types.
 *
 * The cache is SQLite's own list of a connection's statements; it is as long as the program has different texts. */
#include "store.h"

#include <sqlite3.h>
#include <stdarg.h>
#include <string.h>

int dn_sql_fail(sqlite3 *db, dn_error *err)
{
    int code = sqlite3_errcode(db);
    return dn_fail(err, code == SQLITE_NOMEM ? DN_E_MEMORY : DN_E_IO, "state", "the store: %s", sqlite3_errmsg(db));
}

static sqlite3_stmt *find_idle(sqlite3 *db, const char *sql)
{
    for (sqlite3_stmt *s = sqlite3_next_stmt(db, NULL); s; s = sqlite3_next_stmt(db, s)) {
        if (!strcmp(sqlite3_sql(s), sql) && !sqlite3_stmt_busy(s))
            return s;
    }
    return NULL;
}

static int bind_all(sqlite3_stmt *s, const char *types, va_list args)
{
    int rc = SQLITE_OK;
    for (int i = 1; types[i - 1] && !rc; i++) {
        switch (types[i - 1]) {
        case 'i':
            rc = sqlite3_bind_int64(s, i, va_arg(args, int64_t));
            break;
        case 'd':
            rc = sqlite3_bind_double(s, i, va_arg(args, double));
            break;
        case 's':
            rc = sqlite3_bind_text(s, i, va_arg(args, const char *), -1, SQLITE_STATIC);
            break;
        case 'b': {
            const void *data = va_arg(args, const void *);
            rc = sqlite3_bind_blob64(s, i, data, va_arg(args, size_t), SQLITE_STATIC);
            break;
        }
        default:
            rc = SQLITE_MISUSE;
        }
    }
    return rc;
}

static int prepare(sqlite3_stmt **out, sqlite3 *db, dn_error *err, const char *sql, const char *types, va_list args)
{
    sqlite3_stmt *s = find_idle(db, sql);
    if (!s && sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &s, NULL))
        return dn_sql_fail(db, err);
    if (bind_all(s, types, args)) {
        int rc = dn_sql_fail(db, err);
        dn_sql_end(s);
        return rc;
    }
    *out = s;
    return 0;
}

int dn_sql_run(sqlite3 *db, dn_error *err, const char *sql, const char *types, ...)
{
    sqlite3_stmt *s = NULL;
    va_list args;
    va_start(args, types);
    int rc = prepare(&s, db, err, sql, types, args);
    va_end(args);
    if (!rc && sqlite3_step(s) != SQLITE_DONE)
        rc = dn_sql_fail(db, err);
    dn_sql_end(s);
    return rc;
}

int dn_sql_query(sqlite3_stmt **out, sqlite3 *db, dn_error *err, const char *sql, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    int rc = prepare(out, db, err, sql, types, args);
    va_end(args);
    return rc;
}

bool dn_sql_next(sqlite3_stmt *row, int *rc, dn_error *err)
{
    int code = sqlite3_step(row);
    if (code != SQLITE_ROW && code != SQLITE_DONE)
        *rc = dn_sql_fail(sqlite3_db_handle(row), err);
    return code == SQLITE_ROW;
}

void dn_sql_end(sqlite3_stmt *row)
{
    if (!row)
        return;
    sqlite3_reset(row);
    sqlite3_clear_bindings(row);
}

int dn_sql_int(int64_t *out, sqlite3 *db, dn_error *err, const char *sql)
{
    sqlite3_stmt *s = NULL;
    int rc = dn_sql_query(&s, db, err, sql, "");
    if (rc)
        return rc;
    bool row = dn_sql_next(s, &rc, err);
    if (!rc)
        *out = row ? sqlite3_column_int64(s, 0) : 0;
    dn_sql_end(s);
    return rc;
}
