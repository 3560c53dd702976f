/* test_store.c - the store's thread: order, group commit, rolling back, failing writes, migrations, backup. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "store.h"

/* ---- a file system that fails ------------------------------------------------------------------------------ */

/* Counts writes, truncations and syncs of every file; from number `fail_at` on, `fail_n` of them fail. */
typedef struct patched {
    sqlite3_io_methods mine;
    const sqlite3_io_methods *real;
} patched;

static struct {
    sqlite3_vfs vfs, *real;
    patched methods[8]; /* for each table of the real one's: files with and without locks have different ones */
    int calls, syncs, fail_at, fail_n, code;
} disk;

static const sqlite3_io_methods *real_of(sqlite3_file *f) { return ((const patched *)f->pMethods)->real; }

static int disk_fails(void)
{
    int call = ++disk.calls;
    return disk.fail_at && call >= disk.fail_at && call - disk.fail_at < disk.fail_n;
}

static int disk_write(sqlite3_file *f, const void *data, int n, sqlite3_int64 at)
{
    return disk_fails() ? disk.code : real_of(f)->xWrite(f, data, n, at);
}

static int disk_truncate(sqlite3_file *f, sqlite3_int64 n)
{
    return disk_fails() ? SQLITE_IOERR_TRUNCATE : real_of(f)->xTruncate(f, n);
}

static int disk_sync(sqlite3_file *f, int flags)
{
    disk.syncs++;
    return disk_fails() ? SQLITE_IOERR_FSYNC : real_of(f)->xSync(f, flags);
}

static int disk_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out)
{
    (void)vfs;
    int rc = disk.real->xOpen(disk.real, name, f, flags, out);
    if (rc)
        return rc;
    patched *p = disk.methods;
    while (p->real && p->real != f->pMethods)
        p++;
    assert_in_range(p - disk.methods, 0, 7);
    p->real = f->pMethods;
    p->mine = *f->pMethods;
    p->mine.xWrite = disk_write;
    p->mine.xTruncate = disk_truncate;
    p->mine.xSync = disk_sync;
    f->pMethods = &p->mine;
    return 0;
}

static void disk_install(void)
{
    disk.real = sqlite3_vfs_find(NULL);
    disk.vfs = *disk.real;
    disk.vfs.zName = "failing";
    disk.vfs.xOpen = disk_open;
    assert_int_equal(sqlite3_vfs_register(&disk.vfs, 1), 0);
}

/* ---- a store in a folder of its own ------------------------------------------------------------------------ */

typedef struct fixture {
    dn_loop *loop;
    dn_store *store;
    char folder[64];
} fixture;

static int remove_tree(const char *path)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    return system(command);
}

static void open_store(fixture *f)
{
    dn_error err = { 0 };
    assert_int_equal(dn_store_open(&f->store, f->loop, f->folder, &err), 0);
}

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    strcpy(f->folder, "/tmp/denoised-store-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    assert_int_equal(dn_loop_new(&f->loop, NULL), 0);
    open_store(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    disk.fail_at = 0;
    dn_store_free(f->store);
    while (dn_loop_messages(f->loop))
        ;
    dn_loop_free(f->loop);
    remove_tree(f->folder);
    free(f);
    return 0;
}

static void reopen(fixture *f)
{
    dn_store_free(f->store);
    f->store = NULL;
    open_store(f);
}

/* An operation that adds one id to `gone`, and then fails if told so. */
typedef struct adding {
    dn_store_op op;
    const char *id;
    int fail; /* DN_E code */
    int done;
} adding;

static int n_done;

static int add_work(dn_store_op *op, sqlite3 *db)
{
    adding *a = dn_container_of(op, adding, op);
    int rc = dn_sql_run(db, &op->error, "INSERT INTO gone (id) VALUES (?)", "s", a->id);
    return rc ? rc : a->fail ? dn_fail(&op->error, a->fail, "id", "%s is to fail", a->id) : 0;
}

static void add_done(dn_store_op *op) { dn_container_of(op, adding, op)->done = ++n_done; }

static void submit(fixture *f, adding *a, const char *id, int fail)
{
    *a = (adding){ .op = { .work = add_work, .done = add_done }, .id = id, .fail = fail };
    dn_store_submit(f->store, &a->op);
}

/* Stop the store and take all its answers. */
static void settle(fixture *f)
{
    dn_store_stop(f->store);
    while (dn_loop_messages(f->loop))
        ;
}

static int64_t count_gone(fixture *f)
{
    int64_t n = -1;
    reopen(f);
    assert_int_equal(dn_sql_int(&n, dn_store_db(f->store), NULL, "SELECT count(*) FROM gone"), 0);
    return n;
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

static void test_what_is_answered_is_kept(void **state)
{
    fixture *f = *state;
    adding a[3];
    n_done = 0;
    for (int i = 0; i < 3; i++)
        submit(f, &a[i], "x", 0);
    assert_int_equal(dn_store_start(f->store, NULL), 0);
    settle(f);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(a[i].op.rc, 0);
        assert_int_equal(a[i].done, i + 1);
    }
    assert_int_equal(count_gone(f), 3);
}

static void test_queued_operations_share_a_commit(void **state)
{
    enum { N = 200 };
    fixture *f = *state;
    static adding a[N];
    for (int i = 0; i < N; i++)
        submit(f, &a[i], "x", 0);
    disk.syncs = 0;
    assert_int_equal(dn_store_start(f->store, NULL), 0);
    settle(f);
    assert_in_range(disk.syncs, 1, 5); /* of 200 operations: the log's header and one commit */
    assert_int_equal(count_gone(f), N);
}

static void test_a_failing_operation_takes_only_itself_back(void **state)
{
    fixture *f = *state;
    adding a[3];
    submit(f, &a[0], "first", 0);
    submit(f, &a[1], "second", DN_E_RANGE);
    submit(f, &a[2], "third", 0);
    assert_int_equal(dn_store_start(f->store, NULL), 0);
    settle(f);
    assert_int_equal(a[0].op.rc, 0);
    assert_int_equal(a[1].op.rc, DN_E_RANGE);
    assert_string_equal(a[1].op.error.message, "second is to fail");
    assert_int_equal(a[2].op.rc, 0);
    assert_int_equal(count_gone(f), 2);
    int64_t n = -1;
    assert_int_equal(dn_sql_int(&n, dn_store_db(f->store), NULL, "SELECT count(*) FROM gone WHERE id = 'second'"), 0);
    assert_int_equal(n, 0);
}

static void test_after_the_stop_operations_fail(void **state)
{
    fixture *f = *state;
    adding a;
    assert_int_equal(dn_store_start(f->store, NULL), 0);
    dn_store_stop(f->store);
    submit(f, &a, "late", 0);
    settle(f);
    assert_true(a.done);
    assert_int_equal(a.op.rc, DN_E_IO);
}

/* Fail each write, truncation and sync in turn, once and for good: an operation that says it is kept is, one that says
 * it is not is not, and the store goes on with the next. */
static void fail_in_turn(fixture *f, int code, int fail_n)
{
    static const char *const ids[] = { "a", "b", "c" };
    for (int at = 1;; at++) {
        adding a[3], after;
        remove_tree(f->folder);
        mkdir(f->folder, 0700);
        reopen(f);
        disk.calls = 0;
        disk.fail_at = at;
        disk.fail_n = fail_n;
        disk.code = code;
        for (int i = 0; i < 2; i++)
            submit(f, &a[i], ids[i], 0);
        assert_int_equal(dn_store_start(f->store, NULL), 0);
        while (!dn_loop_messages(f->loop))
            usleep(100);
        submit(f, &a[2], ids[2], 0);
        settle(f);
        int calls = disk.calls;
        disk.fail_at = 0;
        int64_t kept = 0;
        for (int i = 0; i < 3; i++) {
            char sql[80];
            int64_t n = -1;
            if (i == 0)
                reopen(f);
            snprintf(sql, sizeof sql, "SELECT count(*) FROM gone WHERE id = '%s'", ids[i]);
            assert_int_equal(dn_sql_int(&n, dn_store_db(f->store), NULL, sql), 0);
            assert_int_equal(n, a[i].op.rc ? 0 : 1);
            assert_true(a[i].op.rc == 0 || a[i].op.rc == DN_E_IO);
            kept += n;
        }
        submit(f, &after, "after", 0); /* the disk is well again */
        assert_int_equal(dn_store_start(f->store, NULL), 0);
        settle(f);
        assert_int_equal(after.op.rc, 0);
        assert_int_equal(count_gone(f), kept + 1);
        if (calls < at)
            return;
        assert_in_range(at, 1, 200);
    }
}

static void test_no_write_that_fails_loses_or_invents_anything(void **state)
{
    fixture *f = *state;
    fail_in_turn(f, SQLITE_FULL, 1);
    fail_in_turn(f, SQLITE_IOERR_WRITE, 1);
    fail_in_turn(f, SQLITE_FULL, 1 << 20);
}

static void test_a_newer_database_is_refused_by_name(void **state)
{
    fixture *f = *state;
    dn_error err = { 0 };
    assert_int_equal(sqlite3_exec(dn_store_db(f->store), "PRAGMA user_version = 99", NULL, NULL, NULL), 0);
    dn_store_free(f->store);
    f->store = NULL;
    assert_int_equal(dn_store_open(&f->store, f->loop, f->folder, &err), DN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "schema 99"));
    assert_non_null(strstr(err.message, f->folder));
    assert_null(f->store);
}

static void test_a_foreign_database_is_refused(void **state)
{
    fixture *f = *state;
    dn_error err = { 0 };
    sqlite3 *db = NULL;
    char path[100];
    dn_store_free(f->store);
    f->store = NULL;
    remove_tree(f->folder);
    mkdir(f->folder, 0700);
    snprintf(path, sizeof path, "%s/denoised.db", f->folder);
    assert_int_equal(sqlite3_open(path, &db), 0);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE theirs (x)", NULL, NULL, NULL), 0);
    sqlite3_close(db);
    assert_int_equal(dn_store_open(&f->store, f->loop, f->folder, &err), DN_E_FORMAT);
    FILE *out = fopen(path, "w");
    fputs("this is no database, though it is long enough to look like a page of one", out);
    fclose(out);
    assert_int_equal(dn_store_open(&f->store, f->loop, f->folder, &err), DN_E_IO);
    assert_null(f->store);
}

static void test_every_migration_starts_from_the_one_before(void **state)
{
    fixture *f = *state;
    int64_t version = 0;
    assert_int_equal(dn_sql_int(&version, dn_store_db(f->store), NULL, "PRAGMA user_version"), 0);
    assert_int_equal(version, dn_store_n_migrations);
    for (int from = 0; from < dn_store_n_migrations; from++) { /* a database as the older versions left it */
        sqlite3 *db = NULL;
        char path[100], tail[80];
        dn_store_free(f->store);
        f->store = NULL;
        remove_tree(f->folder);
        mkdir(f->folder, 0700);
        snprintf(path, sizeof path, "%s/denoised.db", f->folder);
        snprintf(tail, sizeof tail, "PRAGMA user_version = %d; PRAGMA application_id = %d", from, DN_STORE_APPLICATION);
        assert_int_equal(sqlite3_open(path, &db), 0);
        for (int v = 0; v < from; v++)
            assert_int_equal(sqlite3_exec(db, dn_store_migrations[v], NULL, NULL, NULL), 0);
        assert_int_equal(sqlite3_exec(db, tail, NULL, NULL, NULL), 0);
        sqlite3_close(db);
        open_store(f);
        assert_int_equal(dn_sql_int(&version, dn_store_db(f->store), NULL, "PRAGMA user_version"), 0);
        assert_int_equal(version, dn_store_n_migrations);
        assert_int_equal(dn_sql_int(&version, dn_store_db(f->store), NULL, "SELECT count(*) FROM jobs"), 0);
    }
}

static void test_a_start_that_fails_leaves_the_old_database(void **state)
{
    fixture *f = *state;
    for (int at = 1; at < 12; at++) {
        dn_error err = { 0 };
        dn_store_free(f->store);
        f->store = NULL;
        remove_tree(f->folder);
        mkdir(f->folder, 0700);
        disk.calls = 0;
        disk.fail_at = at;
        disk.fail_n = 1;
        disk.code = SQLITE_FULL;
        int rc = dn_store_open(&f->store, f->loop, f->folder, &err);
        disk.fail_at = 0;
        assert_true(rc == 0 || (rc == DN_E_IO && *err.message && !f->store));
        if (!rc)
            dn_store_free(f->store);
        f->store = NULL;
        open_store(f);
        int64_t n = -1;
        assert_int_equal(dn_sql_int(&n, dn_store_db(f->store), NULL, "SELECT count(*) FROM requests"), 0);
        assert_int_equal(n, 0);
    }
}

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_a_backup_holds_what_it_refers_to(void **state)
{
    fixture *f = *state;
    dn_error err = { 0 };
    char to[100], path[200], text[32] = "";
    int missing = -1;
    snprintf(path, sizeof path, "%s/results", f->folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/datasets", f->folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/datasets/d1", f->folder);
    mkdir(path, 0700);
    write_file(f->folder, "datasets/d1/images", "pixels");
    write_file(f->folder, "results/r1", "picture");
    write_file(f->folder, "results/stray", "nobody's");
    sqlite3 *db = dn_store_db(f->store);
    assert_int_equal(dn_sql_run(db, &err,
                                "INSERT INTO datasets (name, hash, owner, created, bytes, info, path) "
                                "VALUES ('d', 'h', 'o', 0, 6, '{}', 'datasets/d1')",
                                ""),
                     0);
    for (int i = 1; i <= 2; i++)
        assert_int_equal(dn_sql_run(db, &err,
                                    "INSERT INTO requests (id, owner, state, spec, created, file) "
                                    "VALUES (?, 'o', 'succeeded', '{}', 0, ?)",
                                    "ss", i == 1 ? "r1" : "r2", i == 1 ? "results/r1" : "results/r2"),
                         0);
    assert_int_equal(dn_store_start(f->store, NULL), 0); /* it is running */
    snprintf(to, sizeof to, "%s-backup", f->folder);
    assert_int_equal(dn_store_backup(f->folder, to, &missing, &err), 0);
    assert_int_equal(missing, 1); /* r2 was dropped */
    snprintf(path, sizeof path, "%s/datasets/d1/images", to);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    assert_non_null(fgets(text, sizeof text, in));
    fclose(in);
    assert_string_equal(text, "pixels");
    snprintf(path, sizeof path, "%s/results/stray", to);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(dn_store_backup(f->folder, to, &missing, &err), DN_E_INVALID); /* never over another */
    dn_store *copy = NULL;
    int64_t n = 0;
    assert_int_equal(dn_store_open(&copy, f->loop, to, &err), 0);
    assert_int_equal(dn_sql_int(&n, dn_store_db(copy), &err, "SELECT count(*) FROM requests"), 0);
    assert_int_equal(n, 2);
    dn_store_free(copy);
    remove_tree(to);
}

static void test_a_backup_does_not_leave_the_state(void **state)
{
    fixture *f = *state;
    dn_error err = { 0 };
    char to[100];
    int missing;
    snprintf(to, sizeof to, "%s-backup", f->folder);
    assert_int_equal(dn_sql_run(dn_store_db(f->store), &err,
                                "INSERT INTO requests (id, owner, state, spec, created, "
                                "file) VALUES ('r', 'o', 'succeeded', '{}', 0, 'results/../../etc/passwd')",
                                ""),
                     0);
    assert_int_equal(dn_store_backup(f->folder, to, &missing, &err), DN_E_FORMAT);
    assert_int_equal(access(to, F_OK), -1);
    snprintf(to, sizeof to, "%s-backup.partial", f->folder);
    remove_tree(to);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_what_is_answered_is_kept),
        TEST(test_queued_operations_share_a_commit),
        TEST(test_a_failing_operation_takes_only_itself_back),
        TEST(test_after_the_stop_operations_fail),
        TEST(test_no_write_that_fails_loses_or_invents_anything),
        TEST(test_a_newer_database_is_refused_by_name),
        TEST(test_a_foreign_database_is_refused),
        TEST(test_every_migration_starts_from_the_one_before),
        TEST(test_a_start_that_fails_leaves_the_old_database),
        TEST(test_a_backup_holds_what_it_refers_to),
        TEST(test_a_backup_does_not_leave_the_state),
    };
    disk_install();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
