/* test_dataset.c - a stored dataset that was tampered with, or cut, is refused when it is opened. */
#include "make.h"

#include "store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64], set[128];

/* Three images of 4 by 5 pixels, the second with three channels; labels 0, 1, 0 of two named classes. */
static int setup(void **state)
{
    (void)state;
    dn_store *s;
    dn_error err = { 0 };
    uint8_t p[60], digest[32];
    char *classes[] = { "cat", "dog" };
    scratch_make(dir);
    snprintf(set, sizeof set, "%s/set", dir);
    assert_int_equal(dn_store_begin(&s, set, 0, &err), 0);
    for (int i = 0; i < 3; i++) {
        int channels = i == 1 ? 3 : 1;
        noise(p, sizeof p, (uint32_t)i + 1);
        assert_int_equal(dn_store_digest(digest, p, (size_t)(20 * channels)), 0);
        assert_int_equal(dn_store_add(s, NULL, p, 4, 5, channels, i % 2, digest, &err), 0);
    }
    assert_int_equal(dn_store_commit(s, 2, classes, &err), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

static void expect_refused(int code, const char *file, const char *text)
{
    dn_dataset *d = NULL;
    dn_error err = { 0 };
    assert_error(&err, dn_dataset_open(&d, set, &err), code, file, text);
    assert_null(d);
}

static void opens(void **state)
{
    (void)state;
    dn_dataset *d = NULL;
    dn_error err = { 0 };
    assert_int_equal(dn_dataset_open(&d, set, &err), 0);
    const dn_dataset_info *info = dn_dataset_info_of(d);
    assert_true(info->n == 3 && info->channels == 3 && info->n_classes == 2 && strcmp(info->classes[1], "dog") == 0);
    assert_true(info->height_min == 4 && info->width_max == 5 && strlen(info->hash) == 64);
    assert_true(dn_dataset_label(d, 0) == 0 && dn_dataset_label(d, 1) == 1 && dn_dataset_label(d, 2) == 0);
    dn_dataset_close(d);
    dn_dataset_close(NULL);
    scratch_remove(set);
    expect_refused(DN_E_NOT_FOUND, "", "cannot open");
    assert_int_equal(mkdir(set, 0700), 0);
    expect_refused(DN_E_NOT_FOUND, "dataset.json", "dataset.json");
}

/* Every file cut at every byte. */
static void cut_files(void **state)
{
    (void)state;
    static const char *const files[] = { "images.bin", "index.bin", "dataset.json" };
    for (int f = 0; f < 3; f++) {
        blob b = file_read(set, files[f]);
        for (size_t len = 0; len < b.len; len++) {
            dn_dataset *d = NULL;
            dn_error err = { 0 };
            file_write(set, files[f], b.p, len);
            if (dn_dataset_open(&d, set, &err) == 0 && !(f == 2 && len == b.len - 1))
                fail_msg("%s cut to %zu of %zu bytes was opened", files[f], len, b.len);
            assert_true(d || err.message[0]);
            dn_dataset_close(d);
        }
        char path[192];
        snprintf(path, sizeof path, "%s/%s", set, files[f]);
        assert_int_equal(unlink(path), 0);
        expect_refused(DN_E_NOT_FOUND, files[f], files[f]);
        assert_int_equal(symlink("/etc/passwd", path), 0);
        dn_dataset *d = NULL;
        assert_true(dn_dataset_open(&d, set, NULL) != 0);
        assert_int_equal(unlink(path), 0);
        file_write(set, files[f], b.p, b.len);
        blob_free(&b);
    }
    dn_dataset *d = NULL;
    assert_int_equal(dn_dataset_open(&d, set, NULL), 0);
    dn_dataset_close(d);
}

static void lying_records(void **state)
{
    (void)state;
    blob b = file_read(set, "index.bin");
    const dn_record good = ((dn_record *)b.p)[1];
    dn_record bad[9];
    for (int i = 0; i < 9; i++)
        bad[i] = good;
    bad[0].offset = 1 << 20, bad[1].offset = UINT64_MAX - 3, bad[2].offset += 28, bad[3].offset += 2;
    bad[4].height = 5, bad[5].width = 0, bad[6].channels = 2, bad[7].label = 2, bad[8].label = -1;
    for (int i = 0; i < 9; i++) {
        ((dn_record *)b.p)[1] = bad[i];
        file_write(set, "index.bin", b.p, b.len);
        expect_refused(DN_E_FORMAT, "index.bin", "image 1");
    }
    ((dn_record *)b.p)[1] = good;
    blob_add(&b, &good, sizeof good);
    file_write(set, "index.bin", b.p, b.len);
    expect_refused(DN_E_FORMAT, "index.bin", "size");
    blob_free(&b);
}

static void lying_json(void **state)
{
    (void)state;
    static const struct {
        const char *was, *is;
        int code;
        const char *file;
    } cases[] = {
        { "\"version\": 1", "\"version\": 2", DN_E_UNSUPPORTED, "dataset.json" },
        { "\"n\": 3", "\"n\": 4", DN_E_FORMAT, "index.bin" },
        { "\"n\": 3", "\"n\": 0", DN_E_FORMAT, "dataset.json" },
        { "\"n\": 3", "\"n\": 768614336404564651", DN_E_FORMAT, "dataset.json" },
        { "\"n\": 3", "\"m\": 3", DN_E_FORMAT, "dataset.json" },
        { "\"channels\": 3", "\"channels\": 1", DN_E_FORMAT, "index.bin" },
        { "\"channels\": 3", "\"channels\": 65", DN_E_FORMAT, "dataset.json" },
        { "\"floats\": false", "\"floats\": true", DN_E_FORMAT, "index.bin" },
        { "\"floats\": false", "\"floats\": 1", DN_E_FORMAT, "dataset.json" },
        { "\"n_classes\": 2", "\"n_classes\": 1", DN_E_FORMAT, "dataset.json" },
        { "\"n_classes\": 2", "\"n_classes\": 100001", DN_E_FORMAT, "dataset.json" },
        { "\"dog\"", "7", DN_E_FORMAT, "dataset.json" },
        { "\"hash\": \"", "\"hash\": \"x", DN_E_FORMAT, "dataset.json" },
        { "255.0", "-1.0", DN_E_FORMAT, "dataset.json" },
    };
    blob b = file_read(set, "dataset.json");
    blob_add(&b, "", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2000];
        char *at = strstr((char *)b.p, cases[i].was);
        if (!at)
            fail_msg("no %s in %s", cases[i].was, (char *)b.p);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - (char *)b.p), (char *)b.p, cases[i].is,
                 at + strlen(cases[i].was));
        file_write(set, "dataset.json", text, strlen(text));
        expect_refused(cases[i].code, cases[i].file, "");
    }
    blob_free(&b);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = { T(opens), T(cut_files), T(lying_records), T(lying_json) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
