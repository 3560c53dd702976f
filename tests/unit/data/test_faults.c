/* test_faults.c - import, opening, packing and unpacking with the Nth write, sync, open, rename or allocation failing,
 * for every N: an error with a message each time, no crash, no leak (under a sanitizer), and nothing left behind.
 *
 * The calls of the engine are caught by the linker (--wrap); those of the libraries that it uses are not. Syncing is
 * not done at all. */
#include "make.h"

#include <denoised/archive.h>
#include <denoised/dataset.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum fault { NO_FAULT, ALLOCATIONS, FILES };
static enum fault armed;
static atomic_long countdown; /* calls until one fails */

static bool fails(enum fault f) { return armed == f && atomic_fetch_sub(&countdown, 1) == 0; }

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) { return fails(ALLOCATIONS) ? NULL : __real_malloc(size); }
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size) { return fails(ALLOCATIONS) ? NULL : __real_calloc(n, size); }
void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size) { return fails(ALLOCATIONS) ? NULL : __real_realloc(p, size); }
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return fails(ALLOCATIONS) ? NULL : __real_aligned_alloc(align, size);
}
char *__real_strdup(const char *s);
char *__wrap_strdup(const char *s);
char *__wrap_strdup(const char *s) { return fails(ALLOCATIONS) ? NULL : __real_strdup(s); }
char *__real_strndup(const char *s, size_t n);
char *__wrap_strndup(const char *s, size_t n);
char *__wrap_strndup(const char *s, size_t n) { return fails(ALLOCATIONS) ? NULL : __real_strndup(s, n); }

static int fail_with(int e) { return errno = e, -1; }

ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n)
{
    return fails(FILES) ? fail_with(ENOSPC) : __real_write(fd, p, n);
}
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) { return (void)fd, fails(FILES) ? fail_with(EIO) : 0; }
int __real_renameat2(int a, const char *from, int b, const char *to, unsigned flags);
int __wrap_renameat2(int a, const char *from, int b, const char *to, unsigned flags);
int __wrap_renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    return fails(FILES) ? fail_with(EIO) : __real_renameat2(a, from, b, to, flags);
}
int __real_mkdirat(int fd, const char *name, mode_t mode);
int __wrap_mkdirat(int fd, const char *name, mode_t mode);
int __wrap_mkdirat(int fd, const char *name, mode_t mode)
{
    struct stat st; /* one that exists is no fault */
    return fstatat(fd, name, &st, 0) != 0 && fails(FILES) ? fail_with(ENOSPC) : __real_mkdirat(fd, name, mode);
}
int __real_openat64(int fd, const char *name, int flags, ...);
int __wrap_openat64(int fd, const char *name, int flags, ...);
int __wrap_openat64(int fd, const char *name, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails(FILES) ? fail_with(EMFILE) : __real_openat64(fd, name, flags, mode);
}

static char dir[64], upload[128], set[128], stored[128];

static int import(dn_error *err)
{
    static dn_import_report report;
    return dn_dataset_import(upload, set, &(dn_import_params){ .threads = 2 }, &report, err);
}

static int open_and_read(dn_error *err)
{
    dn_dataset *d = NULL;
    dn_reader *r = NULL;
    int rc = dn_dataset_open(&d, stored, err);
    if (rc != 0)
        return rc;
    const dn_dataset_info *info = dn_dataset_info_of(d);
    rc = dn_reader_new(&r,
                       &(dn_reader_params){ .data = d,
                                            .height = 4,
                                            .width = 4,
                                            .channels = info->channels,
                                            .range = { 0, 1 },
                                            .batch_size = 2,
                                            .n = info->n,
                                            .threads = 1 },
                       0, err);
    dn_reader_free(r);
    dn_dataset_close(d);
    return rc;
}

static int unpack(dn_error *err)
{
    return mkdir(set, 0700) != 0 ? DN_E_IO
                                 : dn_archive_unpack(upload, set, &(dn_archive_limits){ 1 << 20, 1 << 20 }, err);
}

static int pack(dn_error *err) { return dn_archive_pack(stored, set, err); }

/* Whatever was made is gone but for the folder that the caller of unpack removes. */
static void check_clean(int (*work)(dn_error *err), int rc)
{
    struct stat st;
    bool there = lstat(set, &st) == 0;
    if (work == unpack || (rc == 0 && there))
        scratch_remove(set);
    else
        assert_true(!there);
    assert_folder(dir, (const char *const[]){ "upload", "stored" }, 2);
}

static void every_one(int (*work)(dn_error *err), enum fault f, int at_least)
{
    int n = 0;
    for (;; n++) {
        dn_error err = { 0 };
        atomic_store(&countdown, n);
        armed = f;
        int rc = work(&err);
        armed = NO_FAULT;
        bool unused = atomic_load(&countdown) >= 0;
        check_clean(work, rc);
        if (unused) {
            if (rc != 0)
                fail_msg("without a fault: %s", err.message);
            break;
        }
        if (rc == 0 || !err.message[0])
            fail_msg("fault %d: code %d, \"%s\"", n, rc, err.message);
    }
    assert_true(n >= at_least);
}

static item picture_item(const char *name, uint32_t seed)
{
    uint8_t p[75];
    noise(p, sizeof p, seed);
    blob b = png_make(p, 5, 5, 3);
    return (item){ name, b.p, b.len };
}

static int setup(void **state)
{
    (void)state;
    dn_error err = { 0 };
    scratch_make(dir);
    snprintf(upload, sizeof upload, "%s/upload", dir);
    snprintf(set, sizeof set, "%s/set", dir);
    snprintf(stored, sizeof stored, "%s/stored", dir);
    item items[] = { picture_item("d/a.png", 1),
                     picture_item("d/b.png", 2),
                     { "d/labels.csv", "a.png,x\nb.png,y\n", 16 } };
    archive_make(dir, "upload", TAR, items, 3);
    static dn_import_report report;
    if (dn_dataset_import(upload, stored, &(dn_import_params){ 0 }, &report, &err) != 0)
        fail_msg("%s", err.message);
    free((void *)items[0].data), free((void *)items[1].data);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

static void pictures(void **state)
{
    (void)state;
    every_one(import, ALLOCATIONS, 20);
    every_one(import, FILES, 8);
}

static void arrays(void **state)
{
    (void)state;
    uint8_t p[48], y[3] = { 0, 1, 0 };
    noise(p, sizeof p, 1);
    blob images = idx_make(p, 3, (uint32_t[]){ 3, 4, 4 }), gz = gzip_make(images.p, images.len),
         l = idx_make(y, 1, (uint32_t[]){ 3 });
    archive_make(dir, "upload", TAR, (item[]){ { "images.gz", gz.p, gz.len }, { "labels", l.p, l.len } }, 2);
    blob_free(&images), blob_free(&gz), blob_free(&l);
    every_one(import, ALLOCATIONS, 10);
    every_one(import, FILES, 12);
}

static void opening(void **state)
{
    (void)state;
    every_one(open_and_read, ALLOCATIONS, 5);
    every_one(open_and_read, FILES, 3);
}

static void archives(void **state)
{
    (void)state;
    every_one(unpack, ALLOCATIONS, 3);
    every_one(unpack, FILES, 8);
    every_one(pack, ALLOCATIONS, 3);
    every_one(pack, FILES, 3);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = { T(pictures), T(arrays), T(opening), T(archives) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
