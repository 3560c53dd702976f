/* store.c - writes a stored dataset, whole or not at all. See store.h.
 *
 * Until the rename everything lives in a temporary folder beside the final one; dn_store_abort removes whatever is in
 * it. */
#include "store.h"
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20, PATH_BYTES = 4096, ALIGN = 4 };
static const size_t names_max = (size_t)256 << 20; /* bytes of the names of all images */

/* A file that is written once, through a buffer. */
struct out {
    int fd;
    size_t len;
    uint8_t *buf;
};

struct dn_store {
    char dir[PATH_BYTES], tmp[PATH_BYTES];
    int dirfd; /* of tmp */
    int scratches;
    struct out images;
    uint64_t images_bytes, total_max;
    bool floats;
    float lo, hi;
    const _Atomic(bool) *stop;
    dn_item *item;
    int n_items, items_cap;
    struct dn_heap_chunk *names;
    size_t names_bytes;
};

static int cannot_write(const char *file, dn_error *err)
{
    return dn_fail(err, DN_E_IO, file, "%s: cannot write it: %s", file, strerror(errno));
}

static int flush(struct out *o, const char *file, dn_error *err)
{
    for (size_t done = 0; done < o->len;) {
        ssize_t n = write(o->fd, o->buf + done, o->len - done);
        if (n < 0 && errno != EINTR)
            return cannot_write(file, err);
        done += n > 0 ? (size_t)n : 0;
    }
    o->len = 0;
    return 0;
}

static int put(struct out *o, const void *data, size_t len, const char *file, dn_error *err)
{
    const uint8_t *p = data;
    while (len > 0) {
        size_t n = BUFFER_BYTES - o->len < len ? BUFFER_BYTES - o->len : len;
        memcpy(o->buf + o->len, p, n);
        o->len += n;
        p += n;
        len -= n;
        int rc = o->len == BUFFER_BYTES ? flush(o, file, err) : 0;
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int open_out(struct out *o, int dirfd, const char *file, dn_error *err)
{
    o->buf = malloc(BUFFER_BYTES);
    if (!o->buf)
        return dn_fail(err, DN_E_MEMORY, file, "%s: no memory to write it", file);
    o->fd = openat(dirfd, file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return o->fd >= 0 ? 0 : cannot_write(file, err);
}

static int sync_out(struct out *o, const char *file, dn_error *err)
{
    int rc = flush(o, file, err);
    return rc != 0 || fsync(o->fd) == 0 ? rc : cannot_write(file, err);
}

static void close_out(struct out *o)
{
    if (o->fd >= 0)
        close(o->fd);
    free(o->buf);
    *o = (struct out){ .fd = -1 };
}

int dn_store_begin(dn_store **out, const char *dir, uint64_t total_max, dn_error *err)
{
    struct stat st;
    dn_store *s = calloc(1, sizeof *s);
    if (!s)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory to import");
    *s = (dn_store){ .dirfd = -1, .images.fd = -1, .total_max = total_max, .lo = FLT_MAX, .hi = -FLT_MAX };
    int rc = 0;
    if ((size_t)snprintf(s->dir, sizeof s->dir, "%s", dir) >= sizeof s->dir ||
        (size_t)snprintf(s->tmp, sizeof s->tmp, "%s.import-XXXXXX", dir) >= sizeof s->tmp)
        rc = dn_fail(err, DN_E_LIMIT, NULL, "the path of the dataset is too long");
    else if (lstat(dir, &st) == 0)
        rc = dn_fail(err, DN_E_INVALID, NULL, "the folder of the dataset exists");
    else if (!mkdtemp(s->tmp))
        rc = dn_fail(err, DN_E_IO, NULL, "cannot make a folder for the dataset: %s", strerror(errno));
    if (rc != 0) {
        free(s);
        return rc;
    }
    s->dirfd = open(s->tmp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rc = s->dirfd >= 0 ? open_out(&s->images, s->dirfd, DN_STORE_IMAGES, err) : cannot_write("dataset", err);
    if (rc == 0)
        *out = s;
    else
        dn_store_abort(s);
    return rc;
}

void dn_store_set_stop(dn_store *s, const _Atomic(bool) *stop) { s->stop = stop; }

void dn_store_set_floats(dn_store *s, bool floats) { s->floats = floats; }

int dn_store_scratch(dn_store *s, char *path, size_t room, int *fd, dn_error *err)
{
    char name[32];
    snprintf(name, sizeof name, "scratch-%d", s->scratches);
    if ((size_t)snprintf(path, room, "%s/%s", s->tmp, name) >= room)
        return dn_fail(err, DN_E_LIMIT, NULL, "the path of the dataset is too long");
    *fd = openat(s->dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (*fd < 0)
        return cannot_write(name, err);
    s->scratches++;
    return 0;
}

static int remove_scratch(dn_store *s)
{
    int rc = 0;
    for (; s->scratches > 0; s->scratches--) {
        char name[32];
        snprintf(name, sizeof name, "scratch-%d", s->scratches - 1);
        rc |= unlinkat(s->dirfd, name, 0);
    }
    return rc;
}

static void store_free(dn_store *s)
{
    close_out(&s->images);
    if (s->dirfd >= 0)
        close(s->dirfd);
    dn_heap_free(s->names);
    free(s->item);
    free(s);
}

void dn_store_abort(dn_store *s)
{
    if (!s)
        return;
    static const char *const files[] = { DN_STORE_IMAGES, DN_STORE_INDEX, DN_STORE_JSON };
    if (s->dirfd >= 0) {
        remove_scratch(s);
        for (int i = 0; i < 3; i++)
            unlinkat(s->dirfd, files[i], 0);
    }
    rmdir(s->tmp);
    store_free(s);
}

/* --- images --- */

int dn_store_digest(uint8_t digest[32], const void *pixels, size_t bytes)
{
    dn_sha256 h;
    char hex[DN_SHA256_HEX_SIZE];
    int rc = dn_sha256_init(&h);
    if (rc != 0)
        return rc;
    rc = dn_sha256_update(&h, pixels, bytes);
    dn_sha256_fini(&h, hex);
    for (int i = 0; i < 32; i++) {
        int hi = hex[2 * i], lo = hex[2 * i + 1];
        digest[i] = (uint8_t)((hi <= '9' ? hi - '0' : hi - 'a' + 10) << 4 | (lo <= '9' ? lo - '0' : lo - 'a' + 10));
    }
    return rc;
}

static int check_floats(dn_store *s, const float *v, size_t n, const char *name, dn_error *err)
{
    float lo = s->lo, hi = s->hi;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(v[i]))
            return dn_fail(err, DN_E_NON_FINITE, name, "image %d holds NaN or infinity", s->n_items);
        lo = v[i] < lo ? v[i] : lo;
        hi = v[i] > hi ? v[i] : hi;
    }
    s->lo = lo;
    s->hi = hi;
    return 0;
}

static int add_name(dn_store *s, dn_item *item, const char *name, dn_error *err)
{
    item->name = NULL;
    if (!name)
        return 0;
    s->names_bytes += strlen(name) + 1;
    if (s->names_bytes > names_max)
        return dn_fail(err, DN_E_LIMIT, name, "the names of all images take more than %zu bytes", names_max);
    item->name = dn_heap_string(&s->names, name);
    return item->name ? 0 : dn_fail(err, DN_E_MEMORY, name, "no memory for the names of the images");
}

int dn_store_add(dn_store *s, const char *name, const void *pixels, int height, int width, int channels, int32_t label,
                 const uint8_t digest[32], dn_error *err)
{
    static const uint8_t zeros[ALIGN];
    size_t count = (size_t)height * (size_t)width * (size_t)channels, bytes = count * (s->floats ? sizeof(float) : 1);
    size_t pad = (ALIGN - bytes % ALIGN) % ALIGN;
    if (s->stop && atomic_load_explicit(s->stop, memory_order_relaxed))
        return dn_fail(err, DN_E_CANCELLED, NULL, "the import was cancelled");
    uint64_t total = s->images_bytes + bytes + pad + ((uint64_t)s->n_items + 1) * sizeof(dn_record);
    if (s->total_max > 0 && total > s->total_max)
        return dn_fail(err, DN_E_LIMIT, name, "the decoded dataset takes more than %llu bytes, the limit",
                       (unsigned long long)s->total_max);
    if (s->n_items == INT32_MAX)
        return dn_fail(err, DN_E_LIMIT, name, "more than %d images", INT32_MAX);
    if (dn_grow(&s->item, s->n_items, &s->items_cap, sizeof *s->item) != 0)
        return dn_fail(err, DN_E_MEMORY, name, "no memory for the list of images");
    dn_item *item = &s->item[s->n_items];
    item->record = (dn_record){ .offset = s->images_bytes,
                                .height = (uint16_t)height,
                                .width = (uint16_t)width,
                                .channels = (uint16_t)channels,
                                .label = label };
    memcpy(item->digest, digest, sizeof item->digest);
    int rc = add_name(s, item, name, err);
    if (rc == 0 && s->floats)
        rc = check_floats(s, pixels, count, name, err);
    if (rc == 0)
        rc = put(&s->images, pixels, bytes, DN_STORE_IMAGES, err);
    if (rc == 0)
        rc = put(&s->images, zeros, pad, DN_STORE_IMAGES, err);
    s->images_bytes += bytes + pad;
    s->n_items += rc == 0;
    return rc;
}

dn_item *dn_store_items(dn_store *s, int64_t *n)
{
    *n = s->n_items;
    return s->item;
}

void dn_store_compact(dn_store *s)
{
    int n = 0;
    for (int i = 0; i < s->n_items; i++)
        if (s->item[i].record.height > 0)
            s->item[n++] = s->item[i];
    s->n_items = n;
}

/* --- the end --- */

static int by_name(const void *a, const void *b)
{
    const dn_item *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* What floats are meant to span: [0, 1], [-1, 1] or [0, 255] where they lie in it, so that a set whose brightest pixel
 * is 0.98 is not stretched; else what they do span. */
static void range_of_floats(double range[2], double lo, double hi)
{
    static const double usual[][2] = { { 0, 1 }, { -1, 1 }, { 0, 255 } };
    range[0] = lo;
    range[1] = hi;
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (lo >= usual[i][0] && hi <= usual[i][1]) {
            memcpy(range, usual[i], sizeof usual[i]);
            return;
        }
}

static dn_dataset_info summary(const dn_store *s, int n_classes)
{
    dn_dataset_info info = { .n = s->n_items, .floats = s->floats, .range = { 0, 255 }, .n_classes = n_classes };
    info.height_min = info.width_min = INT32_MAX;
    for (int i = 0; i < s->n_items; i++) {
        const dn_record *r = &s->item[i].record;
        info.channels = r->channels > info.channels ? r->channels : info.channels;
        info.height_min = r->height < info.height_min ? r->height : info.height_min;
        info.height_max = r->height > info.height_max ? r->height : info.height_max;
        info.width_min = r->width < info.width_min ? r->width : info.width_min;
        info.width_max = r->width > info.width_max ? r->width : info.width_max;
    }
    if (s->floats)
        range_of_floats(info.range, s->lo, s->hi);
    return info;
}

/* What the hash covers comes in as fixed-width little-endian numbers and names with their zero. */
static int hash_items(char hex[DN_SHA256_HEX_SIZE], const dn_store *s, const dn_dataset_info *info,
                      char *const *classes)
{
    dn_sha256 h;
    int64_t head[4] = { info->n, info->channels, info->floats, info->n_classes };
    int rc = dn_sha256_init(&h);
    if (rc != 0)
        return rc;
    rc = dn_sha256_update(&h, head, sizeof head);
    for (int i = 0; rc == 0 && classes && i < info->n_classes; i++)
        rc = dn_sha256_update(&h, classes[i], strlen(classes[i]) + 1);
    for (int i = 0; rc == 0 && i < s->n_items; i++) {
        const dn_item *it = &s->item[i];
        int32_t size[4] = { it->record.height, it->record.width, it->record.channels, it->record.label };
        uint8_t row[sizeof size + sizeof it->digest];
        memcpy(row, size, sizeof size);
        memcpy(row + sizeof size, it->digest, sizeof it->digest);
        rc = dn_sha256_update(&h, row, sizeof row);
    }
    dn_sha256_fini(&h, hex);
    return rc;
}

static int write_file(const dn_store *s, const char *file, const void *data, size_t len, dn_error *err)
{
    struct out o = { .fd = -1 };
    int rc = open_out(&o, s->dirfd, file, err);
    if (rc == 0)
        rc = put(&o, data, len, file, err);
    if (rc == 0)
        rc = sync_out(&o, file, err);
    close_out(&o);
    return rc;
}

static int write_index(const dn_store *s, dn_error *err)
{
    struct out o = { .fd = -1 };
    int rc = open_out(&o, s->dirfd, DN_STORE_INDEX, err);
    for (int i = 0; rc == 0 && i < s->n_items; i++)
        rc = put(&o, &s->item[i].record, sizeof(dn_record), DN_STORE_INDEX, err);
    if (rc == 0)
        rc = sync_out(&o, DN_STORE_INDEX, err);
    close_out(&o);
    return rc;
}

static json_t *describe(const dn_dataset_info *info, char *const *classes)
{
    json_t *names = classes ? json_array() : json_null();
    for (int i = 0; classes && i < info->n_classes; i++)
        json_array_append_new(names, json_string(classes[i]));
    return json_pack("{s:i, s:I, s:i, s:[ii], s:[ii], s:b, s:[ff], s:i, s:o, s:s}", "version", DN_STORE_VERSION, "n",
                     (json_int_t)info->n, "channels", info->channels, "height", info->height_min, info->height_max,
                     "width", info->width_min, info->width_max, "floats", info->floats, "range", info->range[0],
                     info->range[1], "n_classes", info->n_classes, "classes", names, "hash", info->hash);
}

static int write_json(const dn_store *s, const dn_dataset_info *info, char *const *classes, dn_error *err)
{
    json_t *root = describe(info, classes);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    if (!text)
        return dn_fail(err, DN_E_MEMORY, DN_STORE_JSON, "%s: no memory to write it", DN_STORE_JSON);
    size_t len = strlen(text);
    int rc = len > DN_STORE_JSON_MAX
                 ? dn_fail(err, DN_E_LIMIT, NULL, "the names of the classes take more than %d bytes", DN_STORE_JSON_MAX)
                 : write_file(s, DN_STORE_JSON, text, len, err);
    free(text);
    return rc;
}

static int sync_parent(const char *dir)
{
    char parent[PATH_BYTES];
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = 0;
    int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 ? fsync(fd) : -1;
    if (fd >= 0)
        close(fd);
    return rc;
}

/* The last step: after the rename the dataset exists. */
static int publish(dn_store *s, dn_error *err)
{
    if (remove_scratch(s) != 0 || fsync(s->dirfd) != 0)
        return cannot_write("dataset", err);
    if (renameat2(AT_FDCWD, s->tmp, AT_FDCWD, s->dir, RENAME_NOREPLACE) != 0)
        return errno == EEXIST ? dn_fail(err, DN_E_INVALID, NULL, "the folder of the dataset exists")
                               : cannot_write("dataset", err);
    if (sync_parent(s->dir) == 0)
        return 0;
    int rc = cannot_write("dataset", err);
    rename(s->dir, s->tmp);
    return rc;
}

static int finish(dn_store *s, int n_classes, char *const *classes, dn_error *err)
{
    if (s->n_items == 0)
        return dn_fail(err, DN_E_FORMAT, NULL, "there is no image in it");
    if (s->item[0].name)
        qsort(s->item, (size_t)s->n_items, sizeof *s->item, by_name);
    dn_dataset_info info = summary(s, n_classes);
    int rc = hash_items(info.hash, s, &info, classes);
    if (rc != 0)
        return dn_fail(err, rc, NULL, "cannot hash the dataset");
    rc = sync_out(&s->images, DN_STORE_IMAGES, err);
    if (rc == 0)
        rc = write_index(s, err);
    if (rc == 0)
        rc = write_json(s, &info, classes, err);
    return rc == 0 ? publish(s, err) : rc;
}

int dn_store_commit(dn_store *s, int n_classes, char *const *classes, dn_error *err)
{
    int rc = finish(s, n_classes, classes, err);
    if (rc == 0)
        store_free(s);
    else
        dn_store_abort(s);
    return rc;
}
