/* store_backup.c - denoised --backup: the database by SQLite's own online backup, then the files that the copy names.
 *
 * Files of the state never change once the database names them, so a consistent database needs no other order: a file
 * that is gone by the time it is copied was dropped meanwhile. Everything is made in `to`.partial, synced, and renamed
 * when it is complete. */
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUSY_MS = 10000, COPY_BYTES = 1 << 16, DEPTH_MAX = 8 };

/* What the database refers to: files or folders, relative to the state. */
static const char *const references[] = {
    "SELECT file FROM requests WHERE file IS NOT NULL",
    "SELECT path FROM datasets",
    "SELECT path FROM versions WHERE path IS NOT NULL",
    "SELECT path FROM jobs",
};

/* ---- the database ------------------------------------------------------------------------------------------- */

/* In one step, which is one read transaction: in smaller ones each commit of the daemon would make it begin again. */
static int copy_pages(sqlite3 *to, sqlite3 *from, dn_error *err)
{
    sqlite3_backup *b = sqlite3_backup_init(to, "main", from, "main");
    if (!b)
        return dn_sql_fail(to, err);
    int code;
    for (int waited_ms = 0; (code = sqlite3_backup_step(b, -1)) == SQLITE_BUSY || code == SQLITE_LOCKED;
         waited_ms += 10) {
        if (waited_ms > BUSY_MS)
            break;
        sqlite3_sleep(10);
    }
    sqlite3_backup_finish(b);
    return code == SQLITE_DONE
               ? 0
               : dn_fail(err, DN_E_IO, "backup", "the database cannot be copied: %s", sqlite3_errstr(code));
}

static int open_at(sqlite3 **out, const char *folder, int flags, dn_error *err)
{
    char *path = NULL;
    if (asprintf(&path, "%s/denoised.db", folder) < 0)
        return dn_fail(err, DN_E_MEMORY, "backup", "no memory");
    int code = sqlite3_open_v2(path, out, flags, NULL);
    if (!code)
        sqlite3_busy_timeout(*out, BUSY_MS);
    int rc = code ? dn_fail(err, DN_E_IO, "backup", "%s cannot be opened: %s", path, sqlite3_errstr(code)) : 0;
    free(path);
    return rc;
}

static int copy_database(const char *folder, const char *to, dn_error *err)
{
    sqlite3 *from = NULL, *copy = NULL;
    int64_t application = 0;
    int rc = open_at(&from, folder, SQLITE_OPEN_READWRITE, err);
    if (!rc)
        rc = dn_sql_int(&application, from, err, "PRAGMA application_id");
    if (!rc && application != DN_STORE_APPLICATION)
        rc = dn_fail(err, DN_E_FORMAT, "backup", "%s/denoised.db is no database of denoised", folder);
    if (!rc)
        rc = open_at(&copy, to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
    if (!rc)
        rc = copy_pages(copy, from, err);
    for (sqlite3_stmt *s; from && (s = sqlite3_next_stmt(from, NULL));)
        sqlite3_finalize(s);
    sqlite3_close(from);
    sqlite3_close(copy);
    return rc;
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static int fail_file(dn_error *err, const char *path)
{
    return dn_fail(err, DN_E_IO, "backup", "%.300s: %s", path, strerror(errno));
}

static int copy_bytes(int to, int from)
{
    char block[COPY_BYTES];
    ssize_t n;
    while ((n = read(from, block, sizeof block)) > 0) {
        for (ssize_t at = 0, k; at < n; at += k) {
            if ((k = write(to, block + at, n - at)) < 0)
                return -1;
        }
    }
    return n < 0 || fsync(to) ? -1 : 0;
}

static int copy_file(const char *to, const char *from, int *missing, dn_error *err)
{
    int in = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (in < 0 && errno == ENOENT) {
        ++*missing;
        return 0;
    }
    int out = in < 0 ? -1 : open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = in < 0 || out < 0 || copy_bytes(out, in) ? fail_file(err, out < 0 && in >= 0 ? to : from) : 0;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return rc;
}

static int sync_folder(const char *path, dn_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) ? fail_file(err, path) : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

static int copy_tree(const char *to, const char *from, int depth, int *missing, dn_error *err);

static int copy_entries(DIR *d, const char *to, const char *from, int depth, int *missing, dn_error *err)
{
    int rc = 0;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        char *a = NULL, *b = NULL;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        if (asprintf(&a, "%s/%s", to, e->d_name) < 0 || asprintf(&b, "%s/%s", from, e->d_name) < 0)
            rc = dn_fail(err, DN_E_MEMORY, "backup", "no memory");
        else
            rc = copy_tree(a, b, depth + 1, missing, err);
        free(a);
        free(b);
    }
    return rc;
}

/* A file, or a folder with all in it. */
static int copy_tree(const char *to, const char *from, int depth, int *missing, dn_error *err)
{
    struct stat st;
    if (lstat(from, &st) && errno == ENOENT) {
        ++*missing;
        return 0;
    }
    if (!S_ISDIR(st.st_mode))
        return S_ISREG(st.st_mode) ? copy_file(to, from, missing, err) : 0;
    if (depth == DEPTH_MAX)
        return dn_fail(err, DN_E_LIMIT, "backup", "%.300s: folders in folders, %d deep", from, DEPTH_MAX);
    DIR *d = opendir(from);
    if (!d && errno == ENOENT) {
        ++*missing;
        return 0;
    }
    if (!d || (mkdir(to, 0700) && errno != EEXIST)) {
        int rc = fail_file(err, d ? to : from);
        if (d)
            closedir(d);
        return rc;
    }
    int rc = copy_entries(d, to, from, depth, missing, err);
    closedir(d);
    return rc ? rc : sync_folder(to, err);
}

/* The folders above `path`, below `root`. */
static int make_parents(char *path, size_t root, dn_error *err)
{
    for (char *slash = strchr(path + root + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int bad = mkdir(path, 0700) && errno != EEXIST;
        *slash = '/';
        if (bad)
            return fail_file(err, path);
    }
    return 0;
}

static bool stays_inside(const char *path)
{
    return *path && *path != '/' && strcmp(path, "..") && strncmp(path, "../", 3) && !strstr(path, "/..");
}

static int copy_reference(const char *to, const char *folder, const char *path, int *missing, dn_error *err)
{
    char *a = NULL, *b = NULL;
    int rc;
    if (!path || !stays_inside(path))
        return dn_fail(err, DN_E_FORMAT, "backup", "the database names a path outside of the state: %.200s", path);
    if (asprintf(&a, "%s/%s", to, path) < 0 || asprintf(&b, "%s/%s", folder, path) < 0)
        rc = dn_fail(err, DN_E_MEMORY, "backup", "no memory");
    else
        rc = make_parents(a, strlen(to), err);
    if (!rc)
        rc = copy_tree(a, b, 0, missing, err);
    free(a);
    free(b);
    return rc;
}

static int copy_references(sqlite3 *db, const char *sql, const char *to, const char *folder, int *missing,
                           dn_error *err)
{
    sqlite3_stmt *row = NULL;
    int rc = dn_sql_query(&row, db, err, sql, "");
    while (!rc && dn_sql_next(row, &rc, err))
        rc = copy_reference(to, folder, (const char *)sqlite3_column_text(row, 0), missing, err);
    sqlite3_finalize(row);
    return rc;
}

static int copy_files(const char *to, const char *folder, int *missing, dn_error *err)
{
    sqlite3 *db = NULL;
    int rc = open_at(&db, to, SQLITE_OPEN_READWRITE, err);
    for (size_t i = 0; !rc && i < sizeof references / sizeof references[0]; i++)
        rc = copy_references(db, references[i], to, folder, missing, err);
    sqlite3_close(db);
    return rc;
}

/* ---- all of it ---------------------------------------------------------------------------------------------- */

int dn_store_backup(const char *folder, const char *to, int *missing, dn_error *err)
{
    char *partial = NULL;
    *missing = 0;
    if (!access(to, F_OK))
        return dn_fail(err, DN_E_INVALID, "backup", "--backup %s: it is there already", to);
    if (asprintf(&partial, "%s.partial", to) < 0)
        return dn_fail(err, DN_E_MEMORY, "backup", "no memory");
    int rc = mkdir(partial, 0700) ? fail_file(err, partial) : 0;
    if (!rc)
        rc = copy_database(folder, partial, err);
    if (!rc)
        rc = copy_files(partial, folder, missing, err);
    if (!rc)
        rc = sync_folder(partial, err);
    if (!rc && rename(partial, to))
        rc = fail_file(err, to);
    free(partial);
    return rc;
}
