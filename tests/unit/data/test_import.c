/* test_import.c - what people upload becomes the right dataset, with one hash whatever it was packed in; what is broken
 * is named; whatever fails leaves nothing behind. */
#include "make.h"

#include "store.h"

#include <archive_entry.h>
#include <denoised/image.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

static char dir[64], upload[128], set[128];
static dn_import_report report;

static int setup(void **state)
{
    (void)state;
    scratch_make(dir);
    snprintf(upload, sizeof upload, "%s/upload", dir);
    snprintf(set, sizeof set, "%s/set", dir);
    memset(&report, 0, sizeof report);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

static int import(bool skip, uint64_t total_max, dn_error *err)
{
    return dn_dataset_import(
        upload, set, &(dn_import_params){ .skip_broken = skip, .threads = 2, .total_max = total_max }, &report, err);
}

/* Import dir/upload, open it, and leave only the upload. */
static dn_dataset *import_good(bool skip)
{
    dn_dataset *d = NULL;
    dn_error err = { 0 };
    if (import(skip, 0, &err) != 0 || dn_dataset_open(&d, set, &err) != 0)
        fail_msg("%s: %s", err.param, err.message);
    assert_folder(dir, (const char *const[]){ "upload", "set" }, 2);
    assert_folder(set, (const char *const[]){ "images.bin", "index.bin", "dataset.json" }, 3);
    scratch_remove(set); /* the map stays */
    assert_int_equal(report.n_images, dn_dataset_info_of(d)->n);
    return d;
}

static void import_bad(bool skip, int code, const char *param, const char *text)
{
    dn_error err = { 0 };
    dn_import_report before = report;
    assert_error(&err, import(skip, 0, &err), code, param, text);
    assert_memory_equal(&before, &report, sizeof report);
    assert_folder(dir, (const char *const[]){ "upload" }, 1);
}

static void put(blob b)
{
    file_write(dir, "upload", b.p, b.len);
    blob_free(&b);
}

static void put_items(enum packing packing, const item *items, int n)
{
    archive_make(dir, "upload", packing, items, n);
}

/* --- pictures --- */

enum { SIDE = 6, PIXELS = SIDE * SIDE * 3 };

/* Picture k as PNG. */
static blob picture(int k)
{
    uint8_t p[PIXELS];
    noise(p, sizeof p, (uint32_t)k + 1);
    return png_make(p, SIDE, SIDE, 3);
}

/* Item with picture k. Freed by free_items. */
static item picture_item(const char *name, int k)
{
    blob b = picture(k);
    return (item){ name, b.p, b.len };
}

static void free_items(const item *items, int n)
{
    for (int i = 0; i < n; i++)
        free((void *)items[i].data);
}

/* Image i of the dataset is picture k with that label. */
static void expect_image(const dn_dataset *d, int i, int k, int label)
{
    uint8_t p[PIXELS];
    noise(p, sizeof p, (uint32_t)k + 1);
    assert_int_equal(d->record[i].height, SIDE);
    assert_int_equal(d->record[i].channels, 3);
    if (memcmp(dn_dataset_pixels(d, i), p, sizeof p) != 0)
        fail_msg("image %d is not picture %d", i, k);
    assert_int_equal(dn_dataset_label(d, i), label);
}

static void class_folders(void **state)
{
    (void)state;
    item items[] = { picture_item("data/dog/1.png", 0),  picture_item("data/cat/b.png", 1),
                     picture_item("data/cat/a.png", 2),  picture_item("data/été/x/y.png", 3),
                     { "data/README.md", "hi", 2 },      { "data/cat/.DS_Store", "x", 1 },
                     { "__MACOSX/cat/._a.png", "x", 1 }, { "data/empty", NULL, 0, AE_IFDIR } };
    char hash[65] = "";
    for (int p = 0; p < PACKINGS; p++) {
        put_items(p, items, 8);
        dn_dataset *d = import_good(false);
        const dn_dataset_info *info = dn_dataset_info_of(d);
        assert_int_equal(info->n, 4);
        assert_int_equal(info->channels, 3);
        assert_true(info->height_min == SIDE && info->height_max == SIDE && info->width_min == SIDE &&
                    info->width_max == SIDE);
        assert_true(!info->floats && info->range[0] == 0 && info->range[1] == 255);
        assert_int_equal(info->n_classes, 3);
        assert_string_equal(info->classes[0], "cat");
        assert_string_equal(info->classes[1], "dog");
        assert_string_equal(info->classes[2], "été");
        expect_image(d, 0, 2, 0), expect_image(d, 1, 1, 0), expect_image(d, 2, 0, 1), expect_image(d, 3, 3, 2);
        assert_true(p == 0 || strcmp(hash, info->hash) == 0);
        strcpy(hash, info->hash);
        dn_dataset_close(d);
        item first = items[0]; /* another order each time */
        memmove(items, items + 1, 2 * sizeof *items);
        items[2] = first;
    }
    free_items(items, 4);
    /* without the shared folder, as WebP: the same dataset */
    static const char *const names[] = { "cat/a", "cat/b", "dog/1", "été/y" };
    static const int of[] = { 2, 1, 0, 3 };
    for (int i = 0; i < 4; i++) {
        uint8_t pixels[PIXELS];
        noise(pixels, sizeof pixels, (uint32_t)of[i] + 1);
        blob b = webp_make(pixels, SIDE, SIDE, 3);
        items[i] = (item){ names[i], b.p, b.len };
    }
    put_items(TAR, items, 4);
    dn_dataset *d = import_good(false);
    assert_string_equal(dn_dataset_info_of(d)->hash, hash);
    dn_dataset_close(d);
    /* another label, another hash */
    items[1].name = "dog/0";
    put_items(TAR, items, 4);
    d = import_good(false);
    assert_string_not_equal(dn_dataset_info_of(d)->hash, hash);
    dn_dataset_close(d);
    free_items(items, 4);
}

static void numbered_folders(void **state)
{
    (void)state;
    static char names[12][16];
    item items[12];
    for (int i = 0; i < 12; i++) {
        snprintf(names[i], sizeof names[i], "%d/p.png", 11 - i);
        items[i] = picture_item(names[i], i);
    }
    put_items(ZIP, items, 12);
    dn_dataset *d = import_good(false);
    assert_int_equal(dn_dataset_info_of(d)->n_classes, 12);
    assert_null(dn_dataset_info_of(d)->classes); /* the names are the numbers */
    for (int i = 0; i < 12; i++)                 /* sorted as text: 0, 1, 10, 11, 2, ... */
        assert_int_equal(dn_dataset_label(d, i), i < 2 ? i : i < 4 ? i + 8 : i - 2);
    dn_dataset_close(d);
    put_items(ZIP, items, 9); /* 3..11: names, in the order of numbers */
    d = import_good(false);
    assert_int_equal(dn_dataset_info_of(d)->n_classes, 9);
    assert_string_equal(dn_dataset_info_of(d)->classes[0], "3");
    assert_string_equal(dn_dataset_info_of(d)->classes[8], "11");
    dn_dataset_close(d);
    free_items(items, 12);
}

static void no_labels_and_grey(void **state)
{
    (void)state;
    uint8_t grey[35], equal[105], other[PIXELS];
    noise(grey, sizeof grey, 1), noise(other, sizeof other, 2);
    for (int i = 0; i < 35; i++)
        memset(equal + 3 * i, grey[i], 3);
    blob a = png_make(grey, 5, 7, 1), b = png_make(equal, 5, 7, 3), c = png_make(other, SIDE, SIDE, 3);
    item items[] = { { "one/a.png", a.p, a.len }, { "one/b.png", b.p, b.len }, { "one/c.png", c.p, c.len } };
    put_items(TAR, items, 2);
    dn_dataset *d = import_good(false);
    const dn_dataset_info *info = dn_dataset_info_of(d);
    assert_true(info->channels == 1 && info->n_classes == 0 && dn_dataset_label(d, 1) == -1);
    assert_memory_equal(dn_dataset_pixels(d, 1), grey, sizeof grey);
    dn_dataset_close(d);
    put_items(TAR, items, 3); /* one coloured picture among them */
    d = import_good(false);
    info = dn_dataset_info_of(d);
    assert_int_equal(info->channels, 3);
    assert_true(info->height_min == 5 && info->height_max == 6 && info->width_min == 6 && info->width_max == 7);
    struct stat st;
    put_items(TAR, items, 3);
    assert_int_equal(import(false, 0, NULL), 0);
    uint64_t bytes = 0;
    static const char *const files[] = { "images.bin", "index.bin", "dataset.json" };
    for (int i = 0; i < 3; i++) {
        char path[192];
        snprintf(path, sizeof path, "%s/%s", set, files[i]);
        assert_int_equal(stat(path, &st), 0);
        bytes += (uint64_t)st.st_size;
    }
    assert_int_equal(info->bytes, bytes);
    dn_dataset_close(d);
    blob_free(&a), blob_free(&b), blob_free(&c);
}

/* --- labels files --- */

static void labels_files(void **state)
{
    (void)state;
    static const struct {
        const char *file, *text;
        int label[3]; /* of a, b, c */
        const char *first_class;
    } cases[] = {
        { "labels.csv", "a.png,5\nsub/b.png,0\nc.png,7\n", { 5, 0, 7 }, NULL },
        { "labels.csv",
          "\xef\xbb\xbf"
          "file,label\r\nc.png,bird\r\n\r\n\"a.png\",\"a \"\"b\"\", c\"\r\n./sub/b.png,bird",
          { 0, 1, 1 },
          "a \"b\", c" },
        { "metadata.csv", "id,Label,file_name\n1,x,a.png\n2,x,sub/b.png\n3,w,c.png\n", { 1, 1, 0 }, "w" },
        { "labels.json", "{\"a.png\": 2, \"sub/b.png\": 0, \"c.png\": 1}", { 2, 0, 1 }, NULL },
        { "labels.json", "{\"a.png\": \"2\", \"sub/b.png\": \"x\", \"c.png\": 1}", { 1, 2, 0 }, "1" },
        { "labels.json", " [[\"a.png\", 3], [\"sub/b.png\", 3], [\"c.png\", 4]]", { 3, 3, 4 }, NULL },
        { "labels.json", "{\"labels\": [[\"a.png\", 3], [\"sub/b.png\", 3], [\"c.png\", 4]]}", { 3, 3, 4 }, NULL },
        { "labels.csv", "file, label\na.png, 1\n sub/b.png\t, 0 \r\nc.png,1 \n", { 1, 0, 1 }, NULL },
        { "dataset.json", "{\"labels\": [[\"a.png\", 3], [\"sub/b.png\", 3], [\"c.png\", 4]]}", { 3, 3, 4 }, NULL },
        { "labels.json",
          "[{\"file\": \"a.png\", \"class\": \"x\"}, {\"image\": \"sub/b.png\", \"label\": \"y\"}, [\"c.png\", \"x\"]]",
          { 0, 1, 0 },
          "x" },
        { "metadata.jsonl",
          "{\"filename\": \"a.png\", \"target\": 0}\n{\"path\": \"sub/b.png\", \"label\": 1}\n{\"image\": \"c.png\", "
          "\"class\": 1}",
          { 0, 1, 1 },
          NULL },
        { "metadata.jsonl",
          "{\"file_name\": \"sub/b.png\", \"label\": \"no\", \"more\": [1]}\n{\"label\": \"yes\", \"file_name\": "
          "\"a.png\"}\n\n"
          "{\"file_name\": \"c.png\", \"label\": \"no\"}",
          { 1, 0, 0 },
          "no" },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (int folder = 0; folder < 2; folder++) {
            char names[4][64];
            const char *base[] = { "a.png", "sub/b.png", "c.png", cases[k].file };
            for (int i = 0; i < 4; i++)
                snprintf(names[i], sizeof names[i], "%s%s", folder ? "top/ping/" : "", base[i]);
            item items[] = { picture_item(names[1], 1),
                             { names[3], cases[k].text, strlen(cases[k].text) },
                             picture_item(names[2], 2),
                             picture_item(names[0], 0) };
            put_items(k % PACKINGS, items, 4);
            dn_dataset *d = import_good(false);
            expect_image(d, 0, 0, cases[k].label[0]); /* a, c, sub/b */
            expect_image(d, 1, 2, cases[k].label[2]);
            expect_image(d, 2, 1, cases[k].label[1]);
            const dn_dataset_info *info = dn_dataset_info_of(d);
            if (cases[k].first_class)
                assert_string_equal(info->classes[0], cases[k].first_class);
            else
                assert_null(info->classes);
            dn_dataset_close(d);
            free_items(&items[0], 1), free_items(&items[2], 2);
        }
}

static void bad_labels(void **state)
{
    (void)state;
    static const struct {
        const char *file, *text;
        int code;
        const char *param, *message;
    } cases[] = {
        { "labels.csv", "a.png,-1\nb.png,2\n", DN_E_RANGE, "a.png", "label -1" },
        { "labels.csv", "a.png,1\nb.png,100000\n", DN_E_RANGE, "b.png", "label 100000" },
        { "labels.csv", "a.png,1\n", DN_E_FORMAT, "b.png", "no labels file names it" },
        { "labels.csv", "a.png,1\nb.png,1\nc.png,1\n", DN_E_FORMAT, "c.png", "not there" },
        { "labels.csv", "a.png,1\nb.png,1\na.png,2\n", DN_E_FORMAT, "a.png", "twice" },
        { "labels.csv", "a.png,1\nb.png\n", DN_E_FORMAT, "labels.csv", "line 2" },
        { "labels.csv", "a.png,1\nb.png,\n", DN_E_FORMAT, "labels.csv", "line 2" },
        { "labels.csv", "file,colour\na.png,1\n", DN_E_FORMAT, "labels.csv", "no column" },
        { "labels.csv", "a.png,\"1\nb.png,1\n", DN_E_FORMAT, "b.png", "no labels" },
        { "labels.json", "{\"a.png\": 1.5, \"b.png\": 2}", DN_E_FORMAT, "labels.json", "whole number" },
        { "labels.json", "{\"a.png\": 1, \"a.png\": 2}", DN_E_FORMAT, "labels.json", "duplicate" },
        { "labels.json", "{\"a.png\": 1", DN_E_FORMAT, "labels.json", "line" },
        { "labels.json", "[[\"a.png\", 1], [\"b.png\"]]", DN_E_FORMAT, "labels.json", "entry" },
        { "labels.json", "[1]}, {\"x\": [", DN_E_FORMAT, "labels.json", "line" },
        { "metadata.jsonl", "{\"file_name\": \"a.png\", \"label\": 1}\n{\"file_name\": \"b.png\"}\n", DN_E_FORMAT,
          "metadata.jsonl", "line 2" },
        { "labels.json", "[{\"file\": \"a.png\", \"label\": 1}, {\"file\": \"b.png\"}]", DN_E_FORMAT, "labels.json",
          "whole number" },
        { "metadata.jsonl", "{\"file_name\": \"a.png\", \"label\": 1}\nnonsense\n", DN_E_FORMAT, "metadata.jsonl",
          "line 2" },
    };
    item items[3] = { picture_item("a.png", 0), picture_item("b.png", 1) };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        items[2] = (item){ cases[k].file, cases[k].text, strlen(cases[k].text) };
        put_items(TAR, items, 3);
        import_bad(false, cases[k].code, cases[k].param, cases[k].message);
    }
    items[2] = (item){ "labels.csv", "a.png,1\0b", 10 };
    put_items(TAR, items, 3);
    import_bad(false, DN_E_FORMAT, "labels.csv", "zero byte");
    /* some in class folders, some not */
    items[2] = picture_item("dog/c.png", 2);
    put_items(TAR, items, 3);
    import_bad(false, DN_E_INVALID, "b.png", "no class folder");
    free_items(items, 3);
}

/* --- broken files --- */

static void broken_files(void **state)
{
    (void)state;
    blob cut = picture(9);
    item items[] = { picture_item("a/1.png", 0), { "a/2.png", cut.p, cut.len - 20 }, { "a/3.png", "no picture", 10 },
                     { "b/4.png", "", 0 },       picture_item("b/5.png", 1),         { "b/6.gif", "GIF89a", 6 } };
    put_items(TAR_GZ, items, 6);
    import_bad(false, DN_E_FORMAT, "a/2.png", "PNG");
    dn_dataset *d = import_good(true);
    assert_int_equal(dn_dataset_info_of(d)->n, 2);
    expect_image(d, 0, 0, 0), expect_image(d, 1, 1, 1);
    assert_int_equal(report.n_broken, 4);
    assert_int_equal(report.n_listed, 4);
    static const int broken[] = { 1, 2, 3, 5 }; /* in the order of the archive */
    for (int i = 0; i < 4; i++) {
        assert_true(report.broken[i].why[0]);
        assert_string_equal(report.broken[i].file, items[broken[i]].name);
    }
    dn_dataset_close(d);
    /* what has no label, and a label that has no picture */
    item more[] = { items[0], items[4], { "labels.csv", "a/1.png,3\nc.png,1\n", 18 } };
    put_items(ZIP, more, 3);
    d = import_good(true);
    assert_int_equal(dn_dataset_info_of(d)->n, 1);
    assert_int_equal(report.n_broken, 2);
    expect_image(d, 0, 0, 3);
    dn_dataset_close(d);
    blob_free(&cut);
    free((void *)items[0].data), free((void *)items[4].data);
}

static void many_broken_files(void **state)
{
    (void)state;
    enum { N = 120 };
    static char names[N][16];
    item items[N + 1];
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "%03d.png", i);
        items[i] = (item){ names[i], "bad", 3 };
    }
    items[N] = picture_item("z.png", 0);
    put_items(TAR, items, N);
    import_bad(true, DN_E_FORMAT, "", "no image");
    put_items(TAR, items, N + 1);
    dn_dataset *d = import_good(true);
    assert_int_equal(report.n_broken, N);
    assert_int_equal(report.n_listed, DN_DATASET_REPORT_MAX);
    assert_int_equal(dn_dataset_info_of(d)->n, 1);
    dn_dataset_close(d);
    free_items(&items[N], 1);
}

/* --- arrays --- */

enum { N = 5, AH = 4, AW = 3 };
static uint8_t pixels[N * AH * AW];
static const uint8_t labels[N] = { 3, 0, 1, 3, 2 };

static void expect_arrays(bool labelled)
{
    dn_dataset *d = import_good(false);
    const dn_dataset_info *info = dn_dataset_info_of(d);
    assert_true(info->n == N && info->channels == 1 && info->height_min == AH && info->width_max == AW &&
                !info->floats);
    assert_int_equal(info->n_classes, labelled ? 4 : 0);
    assert_null(info->classes);
    for (int i = 0; i < N; i++) {
        assert_memory_equal(dn_dataset_pixels(d, i), pixels + i * AH * AW, AH * AW);
        assert_int_equal(dn_dataset_label(d, i), labelled ? labels[i] : -1);
    }
    dn_dataset_close(d);
}

static blob idx_images(int n) { return idx_make(pixels, 3, (uint32_t[]){ (uint32_t)n, AH, AW }); }
static blob idx_labels(int n) { return idx_make(labels, 1, (uint32_t[]){ (uint32_t)n }); }
static item item_of(const char *name, blob b) { return (item){ name, b.p, b.len }; }

static void idx_files(void **state)
{
    (void)state;
    noise(pixels, sizeof pixels, 1);
    put(idx_images(N));
    expect_arrays(false);
    blob raw = idx_images(N), raw_labels = idx_labels(N);
    put(gzip_make(raw.p, raw.len));
    expect_arrays(false);
    blob gz = gzip_make(raw.p, raw.len), gz_labels = gzip_make(raw_labels.p, raw_labels.len), two = idx_images(2),
         two_labels = idx_labels(2);
    for (int p = 0; p < PACKINGS; p++) {
        item items[] = { item_of("t10k-images-idx3-ubyte", two), item_of("train-labels-idx1-ubyte.gz", gz_labels),
                         item_of("train-images-idx3-ubyte.gz", gz), item_of("t10k-labels-idx1-ubyte", two_labels) };
        put_items(p, items, 4);
        expect_arrays(true);
        items[2] = item_of("whatever", raw);
        put_items(p, items + 1, 2);
        expect_arrays(true);
        put_items(p, (item[]){ items[0], items[3] }, 2); /* the tests alone are taken */
        dn_dataset *d = import_good(false);
        assert_int_equal(dn_dataset_info_of(d)->n, 2);
        dn_dataset_close(d);
    }
    /* what does not fit together */
    put_items(TAR, (item[]){ item_of("i", raw), item_of("l", two_labels) }, 2);
    import_bad(false, DN_E_FORMAT, "l", "2 labels for 5 images");
    put_items(TAR, (item[]){ item_of("i", raw), item_of("k", two), item_of("l", two_labels) }, 3);
    import_bad(false, DN_E_INVALID, NULL, "2 arrays could be the images");
    put_items(TAR, (item[]){ item_of("l", raw_labels) }, 1);
    import_bad(false, DN_E_FORMAT, "", "no array of images");
    blob png = picture(0);
    put_items(TAR, (item[]){ item_of("i", raw), item_of("p.png", png) }, 2);
    import_bad(false, DN_E_INVALID, "i", "among pictures");
    for (size_t len = 0; len < raw.len; len++) { /* cut anywhere */
        dn_error err = { 0 };
        file_write(dir, "upload", raw.p, len);
        assert_true(import(false, 0, &err) != 0 && err.message[0]);
    }
    assert_folder(dir, (const char *const[]){ "upload" }, 1);
    blob_free(&raw), blob_free(&raw_labels), blob_free(&gz), blob_free(&gz_labels), blob_free(&two),
        blob_free(&two_labels), blob_free(&png);
}

static void lying_idx(void **state)
{
    (void)state;
    static const struct {
        uint8_t head[16];
        int code;
        const char *text;
    } cases[] = {
        { { 0, 0, 8, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
          DN_E_FORMAT,
          "overflows" },
        { { 0, 0, 8, 3, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 28, 0, 0, 0, 28 }, DN_E_FORMAT, "there are 0" },
        { { 0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28 }, DN_E_FORMAT, "no image" },
        { { 0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 28 }, DN_E_RANGE, "1..8192" },
        { { 0, 0, 13, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1 }, DN_E_UNSUPPORTED, "unsigned bytes" },
        { { 0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4 }, DN_E_FORMAT, "[n,H,W]" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        file_write(dir, "upload", cases[i].head, 16);
        import_bad(false, cases[i].code, NULL, cases[i].text);
    }
}

static void npy_types(void **state)
{
    (void)state;
    static const float want[2 * 2 * 2 * 3] = { 0, 1, -2, 0.5f, 4, 8, 1, 1, 1, 1, 1, 3,
                                               0, 0, 0,  0,    0, 0, 0, 0, 0, 0, 0, -0.25f };
    double f64[24];
    uint16_t f16[24], bf[24];
    for (int i = 0; i < 24; i++) {
        uint32_t bits;
        memcpy(&bits, &want[i], 4);
        f64[i] = want[i];
        bf[i] = (uint16_t)(bits >> 16);
        int e = (int)(bits >> 23 & 255) - 127 + 15;
        f16[i] = want[i] == 0 ? 0 : (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)e << 10 | (bits >> 13 & 0x3ff));
    }
    blob files[] = { npy_make("<f4", "(2, 2, 2, 3)", want, sizeof want), npy_make("<f8", "(2,2,2,3)", f64, sizeof f64),
                     npy_make("<f2", "(2, 2, 2, 3,)", f16, sizeof f16),
                     safetensors_make("{\"x\":{\"dtype\":\"BF16\",\"shape\":[2,2,2,3],\"data_offsets\":[0,48]}}", bf,
                                      sizeof bf) };
    for (int k = 0; k < 4; k++) {
        put(files[k]);
        dn_dataset *d = import_good(false);
        const dn_dataset_info *info = dn_dataset_info_of(d);
        assert_true(info->floats && info->n == 2 && info->channels == 3);
        assert_true(info->range[0] == -2 && info->range[1] == 8);
        assert_memory_equal(dn_dataset_pixels(d, 0), want, sizeof want / 2);
        assert_memory_equal(dn_dataset_pixels(d, 1), want + 12, sizeof want / 2);
        dn_dataset_close(d);
    }
    noise(pixels, sizeof pixels, 1);
    put(npy_make("|u1", "(5, 4, 3)", pixels, sizeof pixels));
    expect_arrays(false);
}

static void labelled_arrays(void **state)
{
    (void)state;
    noise(pixels, sizeof pixels, 1);
    static const struct {
        const char *descr;
        int size;
    } types[] = { { "|u1", 1 }, { "|i1", 1 }, { "<u2", 2 }, { "<i2", 2 },
                  { "<u4", 4 }, { "<i4", 4 }, { "<u8", 8 }, { "<i8", 8 } };
    blob x = npy_make("|u1", "(5, 4, 3, 1)", pixels, sizeof pixels);
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        blob raw = { 0 };
        for (int i = 0; i < N; i++)
            blob_le(&raw, labels[i], types[k].size);
        blob y = npy_make(types[k].descr, "(5,)", raw.p, raw.len);
        put_items(ZIP, (item[]){ item_of("y.npy", y), item_of("x.npy", x) }, 2); /* an npz */
        expect_arrays(true);
        put_items(TAR_ZST, (item[]){ item_of("set/images.npy", x), item_of("set/labels.npy", y) }, 2);
        expect_arrays(true);
        blob_free(&raw), blob_free(&y);
    }
    blob st = { 0 };
    blob_add(&st, pixels, sizeof pixels);
    for (int i = 0; i < N; i++)
        blob_le(&st, labels[i], 8);
    put(safetensors_make("{\"images\":{\"dtype\":\"U8\",\"shape\":[5,4,3],\"data_offsets\":[0,60]},"
                         "\"labels\":{\"dtype\":\"I64\",\"shape\":[5],\"data_offsets\":[60,100]}}",
                         st.p, st.len));
    expect_arrays(true);
    blob_free(&st), blob_free(&x);
}

/* [n,C,H,W] of bytes and of floats is the same pictures as [n,H,W,C]. */
static void planar_arrays(void **state)
{
    (void)state;
    enum { PN = 2, PH = 5, PW = 6, PC = 3, ONE = PH * PW * PC };
    uint8_t planar[PN * ONE], want[PN * ONE];
    float planar_f[PN * ONE], want_f[PN * ONE];
    noise(planar, sizeof planar, 5);
    for (int n = 0; n < PN; n++)
        for (int c = 0; c < PC; c++)
            for (int i = 0; i < PH * PW; i++) {
                int from = n * ONE + c * PH * PW + i, to = n * ONE + i * PC + c;
                want[to] = planar[from];
                want_f[to] = planar_f[from] = (float)planar[from] - 100;
            }
    put(npy_make("|u1", "(2, 3, 5, 6)", planar, sizeof planar));
    dn_dataset *d = import_good(false);
    const dn_dataset_info *info = dn_dataset_info_of(d);
    assert_true(info->n == PN && info->channels == PC && info->height_max == PH && info->width_max == PW);
    for (int n = 0; n < PN; n++)
        assert_memory_equal(dn_dataset_pixels(d, n), want + n * ONE, ONE);
    dn_dataset_close(d);
    put(npy_make("<f4", "(2, 3, 5, 6)", planar_f, sizeof planar_f));
    d = import_good(false);
    assert_true(dn_dataset_info_of(d)->channels == PC);
    for (int n = 0; n < PN; n++)
        assert_memory_equal(dn_dataset_pixels(d, n), want_f + n * ONE, ONE * sizeof(float));
    dn_dataset_close(d);
    put(npy_make("|u1", "(4, 1, 5, 9)", planar, sizeof planar));
    d = import_good(false);
    assert_true(dn_dataset_info_of(d)->channels == 1 && dn_dataset_info_of(d)->height_max == 5);
    dn_dataset_close(d);
    put(npy_make("|u1", "(2, 3, 15, 2)", planar, sizeof planar)); /* a low picture of two channels */
    d = import_good(false);
    assert_true(dn_dataset_info_of(d)->channels == 2 && dn_dataset_info_of(d)->height_max == 3);
    dn_dataset_close(d);
}

/* What Keras' and MedMNIST's npz files call their parts, and labels that are a column. */
static void arrays_by_name(void **state)
{
    (void)state;
    static const char *const names[][4] = { { "x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy" },
                                            { "train_images.npy", "train_labels.npy", "val_images.npy", "val_labels.npy" },
                                            { "Images.npy", "Labels.npy", "more.npy", "ids.npy" } };
    uint8_t other[N * AH * AW] = { 0 };
    noise(pixels, sizeof pixels, 1);
    blob x = npy_make("|u1", "(5, 4, 3)", pixels, sizeof pixels), y = npy_make("|u1", "(5, 1)", labels, sizeof labels),
         x2 = npy_make("|u1", "(5, 4, 3)", other, sizeof other), y2 = npy_make("|u1", "(5,)", other, 5);
    for (int k = 0; k < 3; k++) {
        put_items(ZIP,
                  (item[]){ item_of(names[k][2], x2), item_of(names[k][3], y2), item_of(names[k][0], x),
                            item_of(names[k][1], y) },
                  4);
        expect_arrays(true);
    }
    blob hot = npy_make("|u1", "(5, 2)", other, 10); /* one column for each class */
    put_items(ZIP, (item[]){ item_of("images.npy", x), item_of("labels.npy", hot) }, 2);
    import_bad(false, DN_E_FORMAT, "labels", "labels must be");
    blob_free(&x), blob_free(&y), blob_free(&x2), blob_free(&y2), blob_free(&hot);
}

/* Floats within a usual range are not stretched to their extremes. */
static void ranges_of_floats(void **state)
{
    (void)state;
    static const struct {
        float lo, hi, from, to;
    } rows[] = { { 0.02f, 0.98f, 0, 1 }, { -0.9f, 0.7f, -1, 1 }, { 0, 1, 0, 1 },       { 3, 250, 0, 255 },
                 { -1, 1.5f, -1, 1.5f }, { 0, 256, 0, 256 },     { -0.5f, 0, -1, 1 }, { 2, 2, 0, 255 } };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        float values[4] = { rows[k].hi, rows[k].lo, rows[k].lo, rows[k].hi };
        put(npy_make("<f4", "(1, 2, 2)", values, sizeof values));
        dn_dataset *d = import_good(false);
        const double *range = dn_dataset_info_of(d)->range;
        if (range[0] != rows[k].from || range[1] != rows[k].to)
            fail_msg("%g..%g spans %g..%g", rows[k].lo, rows[k].hi, range[0], range[1]);
        dn_dataset_close(d);
    }
}

static void bad_arrays(void **state)
{
    (void)state;
    float values[12] = { 1, 2, NAN };
    int32_t y[3] = { 0, 100000, -1 };
    put(npy_make("<f4", "(3, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_NON_FINITE, NULL, "image 0");
    values[2] = 0, values[11] = INFINITY;
    put(npy_make("<f4", "(3, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_NON_FINITE, NULL, "image 2");
    values[11] = 0;
    put(npy_make("<f4", "(3, 2, 3)", values, sizeof values));
    import_bad(false, DN_E_FORMAT, NULL, "72 bytes of data; there are 48");
    put(npy_make("<f4", "(2, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_FORMAT, NULL, "32 bytes of data; there are 48");
    put(npy_make(">f4", "(3, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_UNSUPPORTED, NULL, "dtype");
    put(npy_make("|O", "(3, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_UNSUPPORTED, NULL, "dtype");
    put(npy_make("<i4", "(3, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_UNSUPPORTED, NULL, "unsigned bytes or floats");
    put(npy_make("<f4", "(12,)", values, sizeof values));
    import_bad(false, DN_E_FORMAT, NULL, "no array of images");
    put(npy_make("|u1", "(1, 1, 1, 48)", values, sizeof values));
    dn_dataset_close(import_good(false));
    put(npy_make("|u1", "(9223372036854775807, 9223372036854775807, 2)", values, sizeof values));
    import_bad(false, DN_E_FORMAT, NULL, "overflows");
    put(npy_make("|u1", "(99999999999999999999, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_FORMAT, NULL, "shape");
    put(npy_make("|u1", "(-1, 2, 2)", values, sizeof values));
    import_bad(false, DN_E_FORMAT, NULL, "shape");
    blob x = npy_make("<f4", "(3, 2, 2)", values, sizeof values),
         fortran = npy_make("<f4", "(3, 2, 2)", values, sizeof values);
    char *order = memmem(fortran.p, fortran.len, "False", 5);
    memcpy(order, "True ", 5);
    put(fortran);
    import_bad(false, DN_E_UNSUPPORTED, NULL, "Fortran");
    blob out = npy_make("<i4", "(3,)", y, sizeof y);
    put_items(ZIP, (item[]){ item_of("x.npy", x), item_of("labels.npy", out) }, 2);
    import_bad(false, DN_E_RANGE, "labels.npy", "label 100000 of image 1");
    blob_free(&out);
    y[1] = 4;
    out = npy_make("<i4", "(3,)", y, sizeof y);
    put_items(ZIP, (item[]){ item_of("x.npy", x), item_of("labels.npy", out) }, 2);
    import_bad(false, DN_E_RANGE, "labels.npy", "label -1 of image 2");
    blob_free(&out);
    out = npy_make("<f4", "(3,)", values, 12);
    put_items(ZIP, (item[]){ item_of("x.npy", x), item_of("labels.npy", out) }, 2);
    import_bad(false, DN_E_UNSUPPORTED, "labels.npy", "not integers");
    blob_free(&out), blob_free(&x);
}

/* --- limits, and nothing left behind --- */

static void nothing_to_import(void **state)
{
    (void)state;
    dn_error err = { 0 };
    assert_error(&err, import(false, 0, &err), DN_E_NOT_FOUND, "", "open");
    put_items(TAR, NULL, 0);
    import_bad(false, DN_E_FORMAT, "", "no image");
    put_items(ZIP, (item[]){ { "README.md", "x", 1 } }, 1);
    import_bad(false, DN_E_FORMAT, "", "no image");
    file_write(dir, "upload", "", 0);
    import_bad(false, DN_E_FORMAT, "", "neither");
    put(picture(0));
    import_bad(false, DN_E_FORMAT, "", "neither");
    put(gzip_make("some text that is no array", 26));
    import_bad(false, DN_E_FORMAT, "", "neither");
    /* hostile archives are refused here too, in the middle of good pictures */
    item items[] = { picture_item("a.png", 0), { "l.png", NULL, 0, AE_IFLNK, "a.png" } };
    put_items(TAR, items, 2);
    import_bad(true, DN_E_FORMAT, "l.png", "link");
    put_items(TAR, (item[]){ items[0], { "../b.png", items[0].data, items[0].len } }, 2);
    import_bad(true, DN_E_FORMAT, "../b.png", "\"..\"");
    /* the folder is there already */
    put_items(TAR, items, 1);
    assert_int_equal(mkdir(set, 0700), 0);
    assert_error(&err, import(false, 0, &err), DN_E_INVALID, "", "exists");
    assert_folder(set, NULL, 0);
    free_items(items, 1);
}

static void total_limit(void **state)
{
    (void)state;
    item items[] = { picture_item("a.png", 0), picture_item("b.png", 1) };
    uint64_t total = 2 * (PIXELS + sizeof(dn_record));
    dn_error err = { 0 };
    put_items(TAR, items, 2);
    assert_error(&err, import(false, total - 1, &err), DN_E_LIMIT, "b.png", "the limit");
    assert_folder(dir, (const char *const[]){ "upload" }, 1);
    assert_int_equal(import(false, total, &err), 0);
    free_items(items, 2);
}

/* An upload cut at any byte: an error, or the whole dataset; nothing else is there afterwards. */
static void cut_uploads(void **state)
{
    (void)state;
    uint8_t p[3] = { 1, 2, 3 };
    blob small = png_make(p, 1, 1, 3);
    item items[] = { item_of("a/1.png", small), item_of("b/2.png", small) };
    for (int packing = TAR_GZ; packing < PACKINGS; packing++) {
        char hash[65];
        put_items(packing, items, 2);
        dn_dataset *d = import_good(false);
        strcpy(hash, dn_dataset_info_of(d)->hash);
        dn_dataset_close(d);
        blob file = file_read(dir, "upload");
        for (size_t len = 0; len < file.len; len++) {
            dn_error err = { 0 };
            file_write(dir, "upload", file.p, len);
            if (import(false, 0, &err) != 0) {
                assert_true(err.message[0]);
                assert_folder(dir, (const char *const[]){ "upload" }, 1);
                continue;
            }
            assert_int_equal(dn_dataset_open(&d, set, &err), 0);
            assert_string_equal(dn_dataset_info_of(d)->hash, hash);
            dn_dataset_close(d);
            scratch_remove(set);
        }
        blob_free(&file);
    }
    blob_free(&small);
}

/* A file that may not grow: as on a full disk. */
static void full_disk(void **state)
{
    (void)state;
    uint8_t big[256 * 256];
    struct rlimit was, now;
    noise(big, sizeof big, 4);
    blob b = npy_make("|u1", "(1, 256, 256)", big, sizeof big);
    put_items(TAR, (item[]){ item_of("x.npy", b) }, 1);
    blob_free(&b);
    getrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_IGN);
    static const rlim_t room[] = { 0, 10, 1000, 65536 };
    for (size_t i = 0; i < sizeof room / sizeof *room; i++) {
        dn_error err = { 0 };
        now = (struct rlimit){ room[i], was.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
        int rc = import(false, 0, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        assert_int_equal(rc, DN_E_IO);
        assert_non_null(strstr(err.message, "cannot write"));
        assert_folder(dir, (const char *const[]){ "upload" }, 1);
    }
    dn_dataset_close(import_good(false));
}

/* Another thread asks for its end: whatever is being read, nothing stays. */
static void cancelled(void **state)
{
    (void)state;
    uint8_t values[4 * 64];
    noise(values, sizeof values, 3);
    blob array = npy_make("|u1", "(4, 8, 8)", values, sizeof values);
    item items[] = { picture_item("a/0.png", 0), picture_item("b/1.png", 1) };
    for (int kind = 0; kind < PACKINGS + 3; kind++) {
        atomic_bool stop = true;
        dn_import_params p = { .threads = 2, .stop = &stop };
        dn_error err = { 0 };
        if (kind < PACKINGS)
            put_items((enum packing)kind, items, 2);
        else if (kind == PACKINGS)
            put_items(TAR, (item[]){ item_of("x.npy", array) }, 1);
        else if (kind == PACKINGS + 1)
            put(gzip_make(array.p, array.len));
        else
            file_write(dir, "upload", array.p, array.len);
        int rc = dn_dataset_import(upload, set, &p, &report, &err);
        assert_true(rc != 0 && err.message[0]);
        assert_folder(dir, (const char *const[]){ "upload" }, 1);
        stop = false;
        assert_int_equal(dn_dataset_import(upload, set, &p, &report, &err), 0);
        scratch_remove(set);
    }
    free_items(items, 2);
    blob_free(&array);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(class_folders),     T(numbered_folders), T(no_labels_and_grey), T(labels_files),
        T(bad_labels),        T(broken_files),     T(many_broken_files),  T(idx_files),
        T(lying_idx),         T(npy_types),        T(labelled_arrays),    T(bad_arrays),
        T(planar_arrays),     T(arrays_by_name),   T(ranges_of_floats),
        T(nothing_to_import), T(total_limit),      T(cut_uploads),        T(full_disk),
        T(cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
