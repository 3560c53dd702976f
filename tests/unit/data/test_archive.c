/* test_archive.c - archives in every packing give their files; hostile ones are refused by name; cut ones are errors or
 * whole; packing is deterministic. */
#include "make.h"

#include <archive_entry.h>
#include <denoised/archive.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static const dn_archive_limits wide = { 1 << 30, 1 << 30 };
static const char *const packing_names[] = { "tar", "tar.gz", "tar.zst", "zip" };

static char dir[64];
static char path[128];

static int setup(void **state)
{
    (void)state;
    scratch_make(dir);
    snprintf(path, sizeof path, "%s/x", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

/* All names and bytes one after the other in *all. 0 or the positive code. */
static int read_all(blob *all, const char *file, const dn_archive_limits *limits, dn_error *err)
{
    dn_archive *a = NULL;
    dn_archive_entry e;
    int rc = dn_archive_open(&a, file, limits, err);
    if (rc != 0) {
        assert_null(a);
        return rc;
    }
    while ((rc = dn_archive_next(a, &e, err)) == 0) {
        uint8_t *data;
        size_t len;
        blob_add(all, e.name, strlen(e.name) + 1);
        rc = -dn_archive_read(a, &data, &len, 1 << 28, err);
        if (rc != 0)
            break;
        blob_add(all, data, len);
        free(data);
    }
    dn_archive_close(a);
    return rc == 1 ? 0 : -rc;
}

static void expect_refused(const item *items, int n, enum packing packing, int code, const char *param,
                           const char *text)
{
    dn_error err = { 0 };
    blob all = { 0 };
    archive_make(dir, "x", packing, items, n);
    assert_error(&err, read_all(&all, path, &wide, &err), code, param, text);
    blob_free(&all);
}

static void every_packing(void **state)
{
    (void)state;
    static const char want[] = "a/b.txt\0hello\0b/é.txt\0world\0";
    item items[] = { { "a", NULL, 0, AE_IFDIR }, { "a/b.txt", "hello", 6 }, { "./b//./é.txt", "world", 6 } };
    for (int p = 0; p < PACKINGS; p++) {
        dn_error err = { 0 };
        blob all = { 0 };
        archive_make(dir, "x", p, items, 3);
        int rc = read_all(&all, path, &wide, &err);
        if (rc != 0)
            fail_msg("%s: %s", packing_names[p], err.message);
        assert_int_equal(all.len, sizeof want - 1);
        assert_memory_equal(all.p, want, all.len);
        blob_free(&all);
    }
}

/* Entries that nobody reads, and ones that were only peeked at. */
static void skipping_and_peeking(void **state)
{
    (void)state;
    uint8_t big[100000];
    noise(big, sizeof big, 1);
    item items[] = { { "big", big, sizeof big }, { "small", "abc", 3 }, { "last", big, sizeof big } };
    for (int p = 0; p < PACKINGS; p++) {
        dn_archive *a = NULL;
        dn_archive_entry e;
        dn_error err = { 0 };
        const uint8_t *head;
        size_t len;
        uint8_t *data;
        archive_make(dir, "x", p, items, 3);
        assert_int_equal(dn_archive_open(&a, path, &wide, &err), 0);
        assert_int_equal(dn_archive_next(a, &e, &err), 0);
        assert_int_equal(e.size, sizeof big);
        assert_int_equal(dn_archive_next(a, &e, &err), 0);
        assert_string_equal(e.name, "small");
        assert_int_equal(dn_archive_peek(a, &head, &len, &err), 0);
        assert_int_equal(len, 3);
        assert_int_equal(dn_archive_next(a, &e, &err), 0);
        assert_int_equal(dn_archive_peek(a, &head, &len, &err), 0);
        assert_int_equal(len, 64);
        assert_memory_equal(head, big, 64);
        assert_int_equal(dn_archive_peek(a, &head, &len, &err), 0);
        assert_int_equal(len, 64);
        assert_int_equal(dn_archive_read(a, &data, &len, sizeof big, &err), 0);
        assert_int_equal(len, sizeof big);
        assert_memory_equal(data, big, len);
        free(data);
        assert_int_equal(dn_archive_next(a, &e, &err), 1);
        assert_int_equal(dn_archive_next(a, &e, &err), 1);
        dn_archive_close(a);
    }
}

static void bad_names(void **state)
{
    (void)state;
    char longest[1100];
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    const struct {
        const char *name, *text;
        int code;
    } cases[] = {
        { "../x", "\"..\"", DN_E_FORMAT },    { "a/../../x", "\"..\"", DN_E_FORMAT },
        { "a/..", "\"..\"", DN_E_FORMAT },    { "/etc/x", "absolute", DN_E_FORMAT },
        { "a\\b", "backslash", DN_E_FORMAT }, { "c:x", "drive", DN_E_FORMAT },
        { "a\nb", "control", DN_E_FORMAT },   { "a\x7f", "control", DN_E_FORMAT },
        { longest, "1024", DN_E_LIMIT },      { "caf\xe9", "UTF-8", DN_E_FORMAT },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int p = 0; p < PACKINGS; p++) {
            /* a writer must not mend what the reader has to refuse */
            item items[] = { { "good", "1", 1 }, { cases[i].name, "2", 1 } };
            dn_error err = { 0 };
            blob all = { 0 };
            archive_make(dir, "x", p, items, 2);
            int rc = read_all(&all, path, &wide, &err);
            if (p == ZIP && strchr(cases[i].name, '\\')) { /* of zips the library makes it a slash */
                assert_int_equal(rc, 0);
                assert_string_equal((char *)all.p + sizeof "good" + 1, "a/b");
                blob_free(&all);
                continue;
            }
            if (rc != cases[i].code || !strstr(err.message, cases[i].text))
                fail_msg("%s, case %zu: code %d, \"%s\"", packing_names[p], i, rc, err.message);
            assert_memory_equal(err.param, cases[i].name, strlen(cases[i].name) < 60 ? strlen(cases[i].name) : 60);
            blob_free(&all);
        }
}

static void bad_kinds(void **state)
{
    (void)state;
    expect_refused((item[]){ { "l", NULL, 0, AE_IFLNK, "/etc/passwd" } }, 1, TAR, DN_E_FORMAT, "l", "link");
    expect_refused((item[]){ { "l", NULL, 0, AE_IFLNK, "x" } }, 1, ZIP, DN_E_FORMAT, "l", "link");
    expect_refused((item[]){ { "f", "1", 1 }, { "h", NULL, 0, 0, NULL, "f" } }, 2, TAR, DN_E_FORMAT, "h", "link");
    expect_refused((item[]){ { "c", NULL, 0, AE_IFCHR } }, 1, TAR, DN_E_FORMAT, "c", "neither");
    expect_refused((item[]){ { "b", NULL, 0, AE_IFBLK } }, 1, TAR, DN_E_FORMAT, "b", "neither");
    expect_refused((item[]){ { "p", NULL, 0, AE_IFIFO } }, 1, TAR, DN_E_FORMAT, "p", "neither");
    for (int p = 0; p < PACKINGS; p++)
        expect_refused((item[]){ { "a", "1", 1 }, { "./a", "2", 1 } }, 2, p, DN_E_FORMAT, "a", "twice");
}

/* A zip of one deflated entry, with `value` of two or four bytes at that place of its local and of its central header.
 */
static int read_patched(int local, int central, uint32_t value, size_t bytes, dn_error *err)
{
    blob all = { 0 };
    char text[500] = { 0 };
    archive_make(dir, "x", ZIP, (item[]){ { "e", text, sizeof text } }, 1);
    blob z = file_read(dir, "x");
    uint8_t *directory = memmem(z.p, z.len, "PK\x01\x02", 4);
    assert_memory_equal(z.p, "PK\x03\x04", 4);
    assert_non_null(directory);
    memcpy(z.p + local, &value, bytes);
    memcpy(directory + central, &value, bytes);
    file_write(dir, "x", z.p, z.len);
    int rc = read_all(&all, path, &wide, err);
    blob_free(&z);
    blob_free(&all);
    return rc;
}

static void lying_zips(void **state)
{
    (void)state;
    dn_error err = { 0 };
    assert_error(&err, read_patched(6, 8, 1, 2, &err), DN_E_UNSUPPORTED, "e", "encrypted");
    assert_error(&err, read_patched(8, 10, 77, 2, &err), DN_E_FORMAT, "e", "e");
    assert_error(&err, read_patched(22, 24, 499, 4, &err), DN_E_FORMAT, "e", "e");
    assert_error(&err, read_patched(22, 24, 5000, 4, &err), DN_E_FORMAT, "e", "e");
    assert_error(&err, read_patched(22, 24, 0x7ffffff0, 4, &err), DN_E_LIMIT, "e", "limit of one file");
    assert_error(&err, read_patched(14, 16, 0xdeadbeef, 4, &err), DN_E_FORMAT, "e", "CRC");
}

static void limits(void **state)
{
    (void)state;
    uint8_t data[3000];
    noise(data, sizeof data, 3);
    item items[] = { { "a", data, 1000 }, { "b", data, 3000 }, { "c", data, 1000 } };
    static const struct {
        dn_archive_limits limits;
        const char *param; /* NULL: it is fine */
    } cases[] = {
        { { 3000, 5000 }, NULL }, { { 2999, 5000 }, "b" }, { { 3000, 4999 }, "c" },
        { { 999, 5000 }, "a" },   { { 3000, 999 }, "a" },
    };
    for (int p = 0; p < PACKINGS; p++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            dn_error err = { 0 };
            blob all = { 0 };
            archive_make(dir, "x", p, items, 3);
            int rc = read_all(&all, path, &cases[i].limits, &err);
            if (cases[i].param)
                assert_error(&err, rc, DN_E_LIMIT, cases[i].param, "limit");
            else
                assert_int_equal(rc, 0);
            blob_free(&all);
        }
}

/* Few bytes that become many: each packing, the one file read or skipped. */
static void bombs(void **state)
{
    (void)state;
    size_t len = (size_t)32 << 20;
    uint8_t *zeros = calloc(len, 1);
    item items[] = { { "bomb", zeros, len }, { "after", "1", 1 } };
    for (int p = TAR_GZ; p < PACKINGS; p++) {
        dn_error err = { 0 };
        blob all = { 0 };
        dn_archive *a = NULL;
        dn_archive_entry e;
        archive_make(dir, "x", p, items, 2);
        assert_error(&err, read_all(&all, path, &wide, &err), DN_E_LIMIT, "bomb", "200 times");
        blob_free(&all);
        err = (dn_error){ 0 };
        assert_int_equal(dn_archive_open(&a, path, &wide, &err), 0);
        assert_int_equal(dn_archive_next(a, &e, &err), -DN_E_LIMIT);
        dn_archive_close(a);
    }
    free(zeros);
    /* a sparse tar says little and unpacks to zeros */
    item sparse[] = { { .name = "sparse", .data = "end", .len = 3, .hole = (int64_t)64 << 20 } };
    expect_refused(sparse, 1, TAR, DN_E_LIMIT, "sparse", "200 times");
}

static void not_archives(void **state)
{
    (void)state;
    dn_error err = { 0 };
    blob all = { 0 }, text = { 0 };
    assert_error(&err, read_all(&all, path, &wide, &err), DN_E_NOT_FOUND, "", "open");
    file_write(dir, "x", "", 0);
    assert_error(&err, read_all(&all, path, &wide, &err), DN_E_FORMAT, "", "neither");
    for (int i = 0; i < 200; i++)
        blob_str(&text, "no archive at all\n");
    file_write(dir, "x", text.p, text.len);
    assert_error(&err, read_all(&all, path, &wide, &err), DN_E_FORMAT, "", "neither");
    blob once = gzip_make(text.p, text.len);
    file_write(dir, "x", once.p, once.len);
    assert_error(&err, read_all(&all, path, &wide, &err), DN_E_FORMAT, "", "neither");
    assert_error(&err, read_all(&all, dir, &wide, &err), DN_E_FORMAT, "", "regular");
    archive_make(dir, "y", TAR_GZ, (item[]){ { "a", "1", 1 } }, 1);
    blob tar = file_read(dir, "y"), twice = gzip_make(tar.p, tar.len);
    file_write(dir, "x", twice.p, twice.len);
    assert_error(&err, read_all(&all, path, &wide, &err), DN_E_FORMAT, "", "more than once");
    assert_int_equal(all.len, 0);
    archive_make(dir, "x", TAR, NULL, 0); /* empty, but an archive */
    if (read_all(&all, path, &wide, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(all.len, 0);
    blob_free(&text), blob_free(&once), blob_free(&tar), blob_free(&twice), blob_free(&all);
}

/* Cut at every byte, and with every byte changed: an error with a message, or the whole content. */
static void cut_anywhere(void **state)
{
    (void)state;
    item items[] = { { "a/one", "first file", 10 }, { "two", "second", 6 } };
    for (int p = 0; p < PACKINGS; p++) {
        blob want = { 0 };
        archive_make(dir, "x", p, items, 2);
        assert_int_equal(read_all(&want, path, &wide, NULL), 0);
        blob file = file_read(dir, "x");
        int errors = 0;
        for (size_t len = 0; len < file.len; len++) {
            dn_error err = { 0 };
            blob all = { 0 };
            file_write(dir, "x", file.p, len);
            int rc = read_all(&all, path, &wide, &err);
            if (rc == 0 && (all.len != want.len || memcmp(all.p, want.p, all.len) != 0))
                fail_msg("%s cut to %zu of %zu bytes: another content", packing_names[p], len, file.len);
            assert_true(rc == 0 || err.message[0]);
            errors += rc != 0;
            blob_free(&all);
        }
        assert_true(errors > (int)file.len / 2);
        for (size_t i = 0; i < file.len; i++) {
            dn_error err = { 0 };
            blob all = { 0 };
            file.p[i] ^= 0x41;
            file_write(dir, "x", file.p, file.len);
            file.p[i] ^= 0x41;
            int rc = read_all(&all, path, &wide, &err);
            assert_true(rc == 0 || err.message[0]);
            blob_free(&all);
        }
        blob_free(&file);
        blob_free(&want);
    }
}

/* --- unpacking and packing --- */

static void unpacks(void **state)
{
    (void)state;
    char to[128];
    snprintf(to, sizeof to, "%s/out", dir);
    item items[] = { { "m.json", "{}", 2 }, { "unet/w", "weights", 7 }, { "unet/deep/er/x", "1", 1 } };
    for (int p = TAR; p < PACKINGS; p += ZIP - TAR) { /* syncing is slow */
        dn_error err = { 0 };
        struct stat st;
        archive_make(dir, "x", p, items, 3);
        assert_int_equal(mkdir(to, 0700), 0);
        assert_int_equal(dn_archive_unpack(path, to, &wide, &err), 0);
        assert_folder(to, (const char *const[]){ "m.json", "unet" }, 2);
        blob w = file_read(to, "unet/w");
        assert_int_equal(w.len, 7);
        assert_memory_equal(w.p, "weights", 7);
        blob_free(&w);
        char deep[192];
        snprintf(deep, sizeof deep, "%s/unet/deep/er/x", to);
        assert_int_equal(stat(deep, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        scratch_remove(to);
    }
}

static void unpack_refuses(void **state)
{
    (void)state;
    char to[128];
    dn_error err = { 0 };
    snprintf(to, sizeof to, "%s/out", dir);
    assert_int_equal(mkdir(to, 0700), 0);
    archive_make(dir, "x", TAR, (item[]){ { "../evil", "1", 1 } }, 1);
    assert_error(&err, dn_archive_unpack(path, to, &wide, &err), DN_E_FORMAT, "../evil", "\"..\"");
    archive_make(dir, "x", TAR, (item[]){ { "a", "1", 1 }, { "a/b", "1", 1 } }, 2);
    assert_error(&err, dn_archive_unpack(path, to, &wide, &err), DN_E_IO, "a/b", "cannot make");
    /* what lies in the folder already is not written through */
    char link[192];
    snprintf(link, sizeof link, "%s/s", to);
    assert_int_equal(symlink("..", link), 0);
    archive_make(dir, "x", TAR, (item[]){ { "s/evil", "1", 1 } }, 1);
    assert_error(&err, dn_archive_unpack(path, to, &wide, &err), DN_E_IO, "s/evil", "cannot make");
    assert_folder(dir, (const char *const[]){ "out", "x" }, 2);
}

static void fill_folder(const char *to)
{
    char sub[192];
    assert_int_equal(mkdir(to, 0700), 0);
    snprintf(sub, sizeof sub, "%s/unet", to);
    assert_int_equal(mkdir(sub, 0700), 0);
    uint8_t data[5000];
    noise(data, sizeof data, 5);
    file_write(to, "unet/weights", data, sizeof data);
    file_write(to, "model_index.json", "{}", 2);
    file_write(to, "ünï.txt", "x", 1);
}

static void packs(void **state)
{
    (void)state;
    char from[128], again[128], to[128];
    dn_error err = { 0 };
    snprintf(from, sizeof from, "%s/from", dir);
    snprintf(again, sizeof again, "%s/y", dir);
    snprintf(to, sizeof to, "%s/to", dir);
    fill_folder(from);
    assert_int_equal(dn_archive_pack(from, path, &err), 0);
    assert_int_equal(utimensat(AT_FDCWD, from, (struct timespec[]){ { 1, 0 }, { 1, 0 } }, 0), 0);
    char weights[192];
    snprintf(weights, sizeof weights, "%s/unet/weights", from);
    assert_int_equal(utimensat(AT_FDCWD, weights, (struct timespec[]){ { 1, 0 }, { 1, 0 } }, 0), 0);
    assert_int_equal(chmod(weights, 0600), 0);
    assert_int_equal(dn_archive_pack(from, again, &err), 0);
    blob a = file_read(dir, "x"), b = file_read(dir, "y");
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.p, b.p, a.len);
    assert_memory_equal(a.p, "\x28\xb5\x2f\xfd", 4);
    assert_int_equal(mkdir(to, 0700), 0);
    assert_int_equal(dn_archive_unpack(path, to, &wide, &err), 0);
    assert_folder(to, (const char *const[]){ "model_index.json", "unet", "ünï.txt" }, 3);
    blob was = file_read(from, "unet/weights"), is = file_read(to, "unet/weights");
    assert_int_equal(was.len, is.len);
    assert_memory_equal(was.p, is.p, is.len);
    blob_free(&a), blob_free(&b), blob_free(&was), blob_free(&is);
}

static void pack_refuses(void **state)
{
    (void)state;
    char from[128], inner[192];
    dn_error err = { 0 };
    snprintf(from, sizeof from, "%s/from", dir);
    assert_error(&err, dn_archive_pack(from, path, &err), DN_E_IO, "", "open");
    fill_folder(from);
    snprintf(inner, sizeof inner, "%s/link", from);
    assert_int_equal(symlink("model_index.json", inner), 0);
    assert_error(&err, dn_archive_pack(from, path, &err), DN_E_FORMAT, "link", "neither");
    assert_int_equal(unlink(inner), 0);
    snprintf(inner, sizeof inner, "%s/unet/a", from);
    assert_int_equal(mkdir(inner, 0700), 0);
    assert_int_equal(dn_archive_pack(from, path, &err), 0);
    assert_int_equal(unlink(path), 0);
    snprintf(inner, sizeof inner, "%s/unet/a/b", from);
    assert_int_equal(mkdir(inner, 0700), 0);
    assert_error(&err, dn_archive_pack(from, path, &err), DN_E_LIMIT, "unet/a/b", "deep");
    assert_int_equal(rmdir(inner), 0);
    /* no room */
    struct rlimit was, tiny = { 1000, RLIM_INFINITY };
    getrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_IGN);
    tiny.rlim_max = was.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tiny), 0);
    int rc = dn_archive_pack(from, path, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(rc, DN_E_IO);
    assert_folder(dir, (const char *const[]){ "from" }, 1);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(every_packing), T(skipping_and_peeking), T(bad_names),    T(bad_kinds), T(lying_zips),     T(limits),
        T(bombs),         T(not_archives),         T(cut_anywhere), T(unpacks),   T(unpack_refuses), T(packs),
        T(pack_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
