/* import.c - an uploaded file to a stored dataset. See dataset.h.
 *
 * The archive is read once. Pictures go to the decoders and from them, in order, to the store; arrays are copied to
 * scratch files of the store and read from there, so that their order in the archive does not matter. Which it is,
 * pictures or arrays, the content says. */
#include "array.h"
#include "decoders.h"
#include "inflate.h"
#include "labels.h"

#include <denoised/archive.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ARRAYS_MAX = 64, PICTURE_FILE_MAX = 64 << 20, HEAD_BYTES = 64, PATH_BYTES = 4200 };
static const uint64_t scratch_floor = (uint64_t)1 << 30,
                      scratch_factor = 8; /* int64 labels, float64 values of a store in bytes */

struct import {
    const dn_import_params *p;
    dn_import_report report;
    dn_store *store;
    dn_decoders *decoders;
    dn_labels labels;
    dn_source array[ARRAYS_MAX]; /* files of arrays */
    enum dn_array_kind kind[ARRAYS_MAX];
    int n_arrays;
    bool pictures; /* at least one was seen */
};

/* A file that is not in the dataset for what `why` says: named in the report, or the error. */
static int broken(void *arg, const char *file, const char *why, dn_error *err)
{
    struct import *im = arg;
    if (!im->p->skip_broken)
        return dn_fail(err, DN_E_FORMAT, file, "%s: %s", dn_show(file, strlen(file)).text, why);
    im->report.n_broken++;
    if (im->report.n_listed < DN_DATASET_REPORT_MAX) {
        dn_broken *b = &im->report.broken[im->report.n_listed++];
        snprintf(b->file, sizeof b->file, "%s", file);
        snprintf(b->why, sizeof b->why, "%s", why);
    }
    return 0;
}

/* --- pictures --- */

static int store_oldest(struct import *im, dn_error *err)
{
    dn_decoded d;
    dn_decoders_collect(im->decoders, &d);
    if (d.rc == DN_E_MEMORY)
        return dn_fail(err, d.rc, d.name, "%s: %s", dn_show(d.name, strlen(d.name)).text, d.error.message);
    if (d.rc != 0)
        return broken(im, d.name, d.error.message, err);
    int rc = dn_store_add(im->store, d.name, d.picture.pixels, d.picture.height, d.picture.width, d.picture.channels,
                          -1, d.digest, err);
    free(d.picture.pixels);
    return rc;
}

static int store_all(struct import *im, dn_error *err)
{
    int rc = 0;
    while (rc == 0 && im->decoders && dn_decoders_pending(im->decoders))
        rc = store_oldest(im, err);
    return rc;
}

/* broken() after what came before it, so that the first broken file of the archive is the error. */
static int broken_here(struct import *im, const char *file, const char *why, dn_error *err)
{
    int rc = store_all(im, err);
    return rc == 0 ? broken(im, file, why, err) : rc;
}

static int read_picture(struct import *im, dn_archive *a, const char *name, dn_error *err)
{
    uint8_t *data;
    size_t len, cost;
    dn_error why = { 0 };
    im->pictures = true;
    int rc = dn_archive_read(a, &data, &len, PICTURE_FILE_MAX, err);
    if (rc != 0)
        return rc;
    rc = dn_picture_cost(&cost, data, len, &why);
    if (rc != 0) {
        free(data);
        return rc == DN_E_MEMORY ? dn_fail(err, rc, name, "%s", why.message) : broken_here(im, name, why.message, err);
    }
    while (rc == 0 && !dn_decoders_have_room(im->decoders, len + cost))
        rc = store_oldest(im, err);
    if (rc == 0)
        dn_decoders_submit(im->decoders, name, data, len, len + cost);
    else
        free(data);
    return rc;
}

/* --- arrays --- */

static dn_archive_limits scratch_limits(const struct import *im)
{
    uint64_t max = im->p->total_max, most = UINT64_MAX / 4;
    max = max == 0 || max > most / scratch_factor ? most : max * scratch_factor + scratch_floor;
    return (dn_archive_limits){ max, max, im->p->stop };
}

/* The open file `fd`, named `name`, as an array; it becomes the import's. */
static int take_array(struct import *im, int fd, const char *name, enum dn_array_kind *kind, dn_error *err)
{
    uint8_t head[16] = { 0 };
    struct stat st;
    if (im->n_arrays == ARRAYS_MAX) {
        close(fd);
        return dn_fail(err, DN_E_LIMIT, name, "more than %d arrays", ARRAYS_MAX);
    }
    dn_source *src = &im->array[im->n_arrays];
    *src = (dn_source){ .fd = fd, .size = fstat(fd, &st) == 0 ? (uint64_t)st.st_size : 0 };
    snprintf(src->name, sizeof src->name, "%s", name);
    size_t len = src->size < sizeof head ? (size_t)src->size : sizeof head;
    int rc = dn_source_read(src, 0, head, len, err);
    *kind = rc == 0 ? dn_array_kind_of(head, len, src->size) : DN_NO_ARRAY;
    im->kind[im->n_arrays] = *kind;
    if (*kind != DN_NO_ARRAY)
        im->n_arrays++;
    else
        dn_source_close(src);
    return rc;
}

/* The gzip or zstd file `path` as an array. */
static int inflate_array(struct import *im, const char *path, const char *name, enum dn_array_kind *kind, dn_error *err)
{
    char scratch[PATH_BYTES];
    int fd;
    dn_archive_limits limits = scratch_limits(im);
    int rc = dn_store_scratch(im->store, scratch, sizeof scratch, &fd, err);
    if (rc != 0)
        return rc;
    rc = dn_inflate(fd, path, name, &limits, err);
    if (rc == 0)
        return take_array(im, fd, name, kind, err);
    close(fd);
    return rc;
}

static bool is_packed(const uint8_t *head, size_t len)
{
    return (len >= 2 && memcmp(head, "\x1f\x8b", 2) == 0) || (len >= 4 && memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0);
}

static int read_array(struct import *im, dn_archive *a, const char *name, bool packed, dn_error *err)
{
    char path[PATH_BYTES], kept[DN_ARCHIVE_NAME_MAX + 1];
    enum dn_array_kind kind = DN_NO_ARRAY;
    int fd;
    snprintf(kept, sizeof kept, "%s", name);
    int rc = dn_store_scratch(im->store, path, sizeof path, &fd, err);
    if (rc != 0)
        return rc;
    rc = dn_archive_copy(a, fd, err);
    if (rc == 0 && !packed)
        return take_array(im, fd, kept, &kind, err);
    close(fd);
    if (rc == 0)
        rc = inflate_array(im, path, kept, &kind, err);
    return rc == 0 && kind == DN_NO_ARRAY ? broken_here(im, kept, "a compressed file that holds no array", err) : rc;
}

/* --- the archive --- */

/* What systems and people leave beside the data: hidden files, macOS' shadows, notes. */
static bool is_clutter(const char *name)
{
    static const char *const endings[] = { ".txt",      ".md",         ".html",   ".rst",  ".pdf",
                                           "Thumbs.db", "desktop.ini", "LICENSE", "README" };
    const char *slash = strrchr(name, '/'), *base = slash ? slash + 1 : name;
    size_t len = strlen(base);
    if (base[0] == '.' || strncmp(name, "__MACOSX/", 9) == 0 || strstr(name, "/__MACOSX/"))
        return true;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t n = strlen(endings[i]);
        if (len >= n && strcasecmp(base + len - n, endings[i]) == 0)
            return true;
    }
    return false;
}

static int read_labels(struct import *im, dn_archive *a, const char *name, dn_error *err)
{
    uint8_t *data;
    size_t len;
    int rc = dn_archive_read(a, &data, &len, DN_LABELS_FILE_MAX, err);
    if (rc != 0)
        return rc;
    rc = dn_labels_parse(&im->labels, name, (char *)data, len, err);
    free(data);
    return rc;
}

static int read_entry(struct import *im, dn_archive *a, const dn_archive_entry *e, dn_error *err)
{
    const uint8_t *head;
    size_t len;
    if (is_clutter(e->name))
        return 0;
    if (dn_labels_is_file(e->name))
        return read_labels(im, a, e->name, err);
    int rc = dn_archive_peek(a, &head, &len, err);
    if (rc != 0)
        return rc;
    if (dn_picture_kind_of(head, len) != DN_NO_PICTURE)
        return read_picture(im, a, e->name, err);
    bool packed = is_packed(head, len);
    if (packed || dn_array_kind_of(head, len, e->size > len ? e->size : len) != DN_NO_ARRAY)
        return read_array(im, a, e->name, packed, err);
    return broken_here(im, e->name, "neither a PNG, JPEG or WebP picture nor an IDX, .npy or .safetensors array", err);
}

static int read_archive(struct import *im, dn_archive *a, dn_error *err)
{
    dn_archive_entry e;
    int rc = dn_decoders_new(&im->decoders, im->p->threads, err);
    if (rc != 0)
        return rc;
    while ((rc = dn_archive_next(a, &e, err)) == 0)
        if ((rc = -read_entry(im, a, &e, err)) != 0)
            break;
    return rc == 1 ? store_all(im, err) : -rc;
}

/* --- the end --- */

static int commit_pictures(struct import *im, dn_error *err)
{
    int64_t n;
    dn_classes classes = { 0 };
    dn_item *item = dn_store_items(im->store, &n);
    if (im->n_arrays > 0)
        return dn_fail(err, DN_E_INVALID, im->array[0].name, "%s: an array among pictures", im->array[0].name);
    int rc = dn_labels_apply(&classes, &im->labels, item, n, broken, im, err);
    if (rc == 0) {
        dn_store_compact(im->store);
        dn_store_items(im->store, &im->report.n_images);
        rc = dn_store_commit(im->store, classes.n, classes.name, err);
        im->store = NULL;
    }
    dn_classes_fini(&classes);
    return rc;
}

static bool contains(const char *text, const char *part) { return strstr(text, part) != NULL; }

/* MNIST's test files beside others are left out. */
static void drop_tests(struct import *im)
{
    int n = 0, tests = 0;
    for (int i = 0; i < im->n_arrays; i++)
        tests += contains(im->array[i].name, "t10k");
    if (tests == im->n_arrays)
        return;
    for (int i = 0; i < im->n_arrays; i++) {
        if (contains(im->array[i].name, "t10k")) {
            dn_source_close(&im->array[i]);
            continue;
        }
        im->array[n] = im->array[i];
        im->kind[n++] = im->kind[i];
    }
    im->n_arrays = n;
}

static bool has_name(const dn_stored *t, const char *const *names)
{
    for (int k = 0; names[k]; k++)
        if (strcasecmp(t->name, names[k]) == 0)
            return true;
    return false;
}

/* Of the arrays that could be it, the only one, or the only one that has one of these names. NULL: none, or *err. */
static const dn_stored *choose(const dn_stored_list *l, bool labels, const char *const *names, int *rc, dn_error *err)
{
    const dn_stored *any = NULL, *named = NULL;
    int n_any = 0, n_named = 0;
    for (int i = 0; i < l->len; i++) {
        if (dn_array_is_labels(&l->at[i]) != labels)
            continue;
        n_any++;
        any = &l->at[i];
        if (has_name(&l->at[i], names)) {
            n_named++;
            named = &l->at[i];
        }
    }
    if (n_any == 0 || n_any == 1)
        return any;
    if (n_named != 1)
        *rc = dn_fail(err, DN_E_INVALID, any->name, "%d arrays could be the %s; name one \"%s\"", n_any,
                      labels ? "labels" : "images", names[0]);
    return named;
}

/* An array that is named as labels are and has another shape is not passed over in silence. */
static int check_labels(const dn_stored_list *l, const char *const *names, dn_error *err)
{
    for (int i = 0; i < l->len; i++)
        if (!dn_array_is_labels(&l->at[i]) && has_name(&l->at[i], names))
            return dn_fail(err, DN_E_FORMAT, l->at[i].name, "%s: labels must be whole numbers [n]",
                           dn_show(l->at[i].name, strlen(l->at[i].name)).text);
    return 0;
}

static int commit_arrays(struct import *im, dn_error *err)
{
    static const char *const image_names[] = {
        "images", "image", "x", "data", "x_train", "train_images", "arr_0", NULL
    };
    static const char *const label_names[] = { "labels",  "label",        "y",     "targets",
                                               "y_train", "train_labels", "arr_1", NULL };
    dn_stored_list l = { 0 };
    int rc = 0, n_classes = 0;
    drop_tests(im);
    for (int i = 0; rc == 0 && i < im->n_arrays; i++)
        rc = dn_array_list(&l, im->kind[i], &im->array[i], i, err);
    const dn_stored *images = rc == 0 ? choose(&l, false, image_names, &rc, err) : NULL;
    const dn_stored *labels = rc == 0 ? choose(&l, true, label_names, &rc, err) : NULL;
    if (rc == 0 && !labels)
        rc = check_labels(&l, label_names, err);
    if (rc == 0 && !images)
        rc = dn_fail(err, DN_E_FORMAT, NULL, "there is no array of images in it");
    if (rc == 0)
        rc = dn_array_import(im->store, images, &im->array[images->source], labels,
                             labels ? &im->array[labels->source] : NULL, &n_classes, err);
    dn_stored_fini(&l);
    if (rc == 0) {
        dn_store_items(im->store, &im->report.n_images);
        rc = dn_store_commit(im->store, n_classes, NULL, err);
        im->store = NULL;
    }
    return rc;
}

/* --- what was uploaded --- */

static int read_head(const char *path, uint8_t head[HEAD_BYTES], size_t *len, uint64_t *size, int *fd, dn_error *err)
{
    struct stat st;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (*fd < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, NULL, "cannot open the upload: %s",
                       strerror(errno));
    ssize_t n = fstat(*fd, &st) == 0 && S_ISREG(st.st_mode) ? pread(*fd, head, HEAD_BYTES, 0) : -1;
    if (n < 0) {
        close(*fd);
        return dn_fail(err, DN_E_IO, NULL, "cannot read the upload");
    }
    *len = (size_t)n;
    *size = (uint64_t)st.st_size;
    return 0;
}

/* Everything but the end: pictures are in the store, arrays in im->array. */
static int read_upload(struct import *im, const char *path, dn_error *err)
{
    uint8_t head[HEAD_BYTES];
    size_t len = 0;
    uint64_t size = 0;
    int fd = -1;
    dn_archive *a = NULL;
    dn_archive_limits limits = scratch_limits(im);
    dn_error why = { 0 };
    enum dn_array_kind kind;
    int rc = read_head(path, head, &len, &size, &fd, err);
    if (rc != 0)
        return rc;
    if (dn_array_kind_of(head, len, size) != DN_NO_ARRAY)
        return take_array(im, fd, "upload", &kind, err);
    close(fd);
    rc = dn_archive_open(&a, path, &limits, &why);
    if (rc == 0)
        rc = read_archive(im, a, err);
    else if (rc == DN_E_FORMAT && is_packed(head, len) && inflate_array(im, path, "upload", &kind, NULL) == 0 &&
             kind != DN_NO_ARRAY)
        rc = 0;
    else
        dn_fail(err, rc, why.param, "%s", why.message);
    dn_archive_close(a);
    return rc;
}

int dn_dataset_import(const char *src, const char *dir, const dn_import_params *p, dn_import_report *report,
                      dn_error *err)
{
    struct import *im = calloc(1, sizeof *im);
    if (!im)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory to import");
    im->p = p;
    int rc = dn_store_begin(&im->store, dir, p->total_max, err);
    if (rc == 0)
        dn_store_set_stop(im->store, p->stop);
    if (rc == 0)
        rc = read_upload(im, src, err);
    if (rc == 0)
        rc = im->pictures || im->n_arrays == 0 ? commit_pictures(im, err) : commit_arrays(im, err);
    if (rc == 0)
        *report = im->report;
    for (int i = 0; i < im->n_arrays; i++)
        dn_source_close(&im->array[i]);
    dn_decoders_free(im->decoders);
    dn_labels_fini(&im->labels);
    dn_store_abort(im->store);
    free(im);
    return rc;
}
