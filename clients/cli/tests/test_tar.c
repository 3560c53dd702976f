/* Tars that are made while they are read: in any pieces the same, and what becomes of files that change meanwhile. */
#include "tar.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[64];

static const char *at(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void put(const char *name, size_t n)
{
    FILE *f = fopen(at(name), "w");
    for (size_t i = 0; i < n; i++)
        fputc((int)(i % 251), f);
    assert_false(fclose(f));
}

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/denoise-tar-XXXXXX");
    assert_non_null(mkdtemp(folder));
    assert_false(mkdir(at("sub"), 0700));
    put("sub/b", 200000);
    put("a", 513);
    put("empty", 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    static const char *const names[] = { "sub/b", "a", "empty" };
    for (int i = 0; i < 3; i++)
        unlink(at(names[i]));
    return rmdir(at("sub")) | rmdir(folder);
}

/* All of it, read `n` bytes at a time; -1 with the fault in `t`. */
static ssize_t read_all(dn_tar *t, dn_buf *b, size_t n)
{
    char block[70000];
    ssize_t k;
    const char *path = folder;
    dn_buf_init(b, 1 << 20);
    assert_int_equal(dn_tar_init(t, &path, 1), 0);
    while ((k = dn_tar_read(t, block, n)) > 0)
        dn_buf_add(b, block, (size_t)k);
    assert_false(b->failed);
    return k;
}

static void any_pieces(void **state)
{
    (void)state;
    static const size_t pieces[] = { 1, 511, 70000 };
    dn_buf first, b;
    dn_tar t;
    assert_int_equal(read_all(&t, &first, 512), 0);
    assert_true(first.len % 512 == 0 && first.len >= 200000 + 513 && t.read == t.bytes && t.bytes == 200513);
    dn_tar_fini(&t);
    assert_int_equal(strcmp(first.data, "a"), 0); /* a header begins with its name */
    assert_true(first.data[512] == 0 && (unsigned char)first.data[512 + 250] == 250);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(read_all(&t, &b, pieces[i]), 0);
        dn_tar_fini(&t);
        assert_int_equal(b.len, first.len);
        assert_memory_equal(b.data, first.data, b.len);
        dn_buf_fini(&b);
    }
    dn_buf_fini(&first);
}

/* `change` is made after the first bytes; then the tar ends with a fault of sub/b. */
static void expect_fault(void (*change)(void), const char *why)
{
    char block[512];
    const char *path = folder;
    dn_tar t;
    ssize_t k;
    assert_int_equal(dn_tar_init(&t, &path, 1), 0);
    assert_int_equal(dn_tar_read(&t, block, sizeof block), 512);
    change();
    while ((k = dn_tar_read(&t, block, sizeof block)) > 0)
        ;
    assert_int_equal(k, -1);
    assert_string_equal(t.at_fault, at("sub/b"));
    assert_non_null(strstr(t.why, why));
    dn_tar_fini(&t);
}

static void shrink(void) { assert_false(truncate(at("sub/b"), 5)); }
static void vanish(void) { assert_false(unlink(at("sub/b"))); }

static void become_a_link(void)
{
    put("sub/b", 200000);
    unlink(at("sub/b"));
    assert_false(symlink("/etc/hostname", at("sub/b")));
}

static void files_that_change(void **state)
{
    (void)state;
    expect_fault(shrink, "it has changed");
    expect_fault(vanish, "No such file");
    put("sub/b", 200000);
    expect_fault(become_a_link, "symbolic links");
}

/* It is open, and what was promised does not come. */
static void a_file_that_ends_early(void **state)
{
    (void)state;
    char block[512];
    const char *path = folder;
    dn_tar t;
    ssize_t k = 0;
    unlink(at("sub/b"));
    put("sub/b", 200000);
    assert_int_equal(dn_tar_init(&t, &path, 1), 0);
    while (t.read < 100000 && k >= 0)
        k = dn_tar_read(&t, block, sizeof block);
    shrink();
    while (k > 0)
        k = dn_tar_read(&t, block, sizeof block);
    assert_int_equal(k, -1);
    assert_string_equal(t.why, "it has become shorter");
    dn_tar_fini(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_pieces),
        cmocka_unit_test(files_that_change),
        cmocka_unit_test(a_file_that_ends_early),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
