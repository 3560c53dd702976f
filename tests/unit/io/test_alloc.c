/* test_alloc.c - opens, reads and writes with the Nth allocation failing, for every N: an error each time, no crash,
 * and (under a sanitizer) no leak.
 *
 * The allocations of engine/io are caught by the linker (--wrap). jansson's are left alone: its parser does not survive
 * one that fails (2.14 reads past a string buffer that could not grow). */
#include "util.h"

#include "checkpoint.h"

#include <denoised/image.h>
#include <stdlib.h>
#include <string.h>

static long countdown = -1; /* allocations until one fails; below 0: none does */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);

static int fails(void) { return countdown >= 0 && countdown-- == 0; }
void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t size) { return fails() ? NULL : __real_realloc(p, size); }

static int open_and_read(const char *dir, dn_error *err)
{
    dn_checkpoint *c = NULL;
    int rc = dn_checkpoint_open(&c, dir, NULL, err);
    if (rc != 0) {
        assert_null(c);
        return rc;
    }
    static float f[1 << 16];
    const dn_tensor *t = dn_checkpoint_find(c, "conv_in.weight");
    assert_true(t && t->count <= 1 << 16);
    rc = dn_checkpoint_read(c, t, f, err);
    dn_checkpoint_close(c);
    return rc;
}

static int write_and_parse(const char *dir, dn_error *err)
{
    (void)dir;
    float f[4] = { 1, 2, 3, 4 };
    dn_st_tensor t[2] = { { "a", "F32", 2, { 2, 2 }, f, 16 }, { "b", "F64", 1, { 1 }, f, 8 } }, found[2];
    uint8_t *out = NULL;
    size_t len;
    int n = 2, rc = dn_st_encode(&out, &len, t, 2, err);
    if (rc == 0)
        rc = dn_st_parse(found, &n, out, len, err);
    free(out);
    return rc;
}

static int images(const char *dir, dn_error *err)
{
    (void)dir;
    uint8_t pixels[24] = { 0 }, *grid = NULL, *npy = NULL;
    int h, w;
    size_t len;
    int64_t dims[1] = { 2 };
    int rc = dn_image_grid(&grid, &h, &w, pixels, 2, 2, 2, 3, 0, err);
    if (rc == 0)
        rc = dn_npy_encode(&npy, &len, (float[]){ 1, 2 }, dims, 1, err);
    free(grid);
    free(npy);
    return rc;
}

static void every_allocation(int (*work)(const char *dir, dn_error *err), const char *dir, int at_least)
{
    int n = 0;
    for (;; n++) {
        dn_error err = { 0 };
        countdown = n;
        int rc = work(dir, &err);
        int unused = countdown >= 0;
        countdown = -1;
        if (unused) {
            assert_int_equal(rc, 0);
            break;
        }
        if (rc != DN_E_MEMORY || err.code != rc || !err.message[0])
            fail_msg("%s: allocation %d failed, but this came of it: %d \"%s\"", dir, n, rc, err.message);
    }
    assert_true(n >= at_least);
}

static void loads(void **state)
{
    (void)state;
    every_allocation(open_and_read, GOLDEN_DIR "/unet_ddpm_legacy_attn", 6);
    every_allocation(open_and_read, GOLDEN_DIR "/unet_ddpm_sharded", 9);
    every_allocation(open_and_read, GOLDEN_DIR "/unet_ddpm_bin", 20);
}

static void writes(void **state)
{
    (void)state;
    every_allocation(write_and_parse, "", 4);
    every_allocation(images, "", 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(loads), cmocka_unit_test(writes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
