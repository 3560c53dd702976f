/* dataset.c - opens a stored dataset. See dataset.h and store.h.
 *
 * Every record is checked once against the mapped bytes and against dataset.json, so that nothing which reads the
 * dataset later has to. */
#include "store.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int lies(const char *file, const char *why, dn_error *err)
{
    return dn_fail(err, DN_E_FORMAT, file, "%s: %s", file, why);
}

static int map_file(const void **map, size_t *bytes, int dirfd, const char *file, dn_error *err)
{
    struct stat st;
    int fd = openat(dirfd, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, file, "%s: cannot open it: %s", file,
                       strerror(errno));
    int rc = 0;
    void *p = MAP_FAILED;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
        rc = lies(file, "empty, or not a regular file", err);
    else if ((p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        rc = dn_fail(err, DN_E_IO, file, "%s: cannot map it: %s", file, strerror(errno));
    close(fd);
    if (rc == 0) {
        *map = p;
        *bytes = (size_t)st.st_size;
    }
    return rc;
}

/* The smallest and largest side, both in 1..DN_DATASET_SIDE_MAX. */
static bool get_sides(const json_t *root, const char *key, int *lo, int *hi)
{
    json_int_t a = 0, b = 0;
    if (json_unpack((json_t *)root, "{s:[II!]}", key, &a, &b) != 0 || a < 1 || a > b || b > DN_DATASET_SIDE_MAX)
        return false;
    *lo = (int)a;
    *hi = (int)b;
    return true;
}

static int read_classes(dn_dataset *d, const json_t *names, dn_error *err)
{
    if (json_is_null(names))
        return 0;
    if (json_array_size(names) != (size_t)d->info.n_classes || d->info.n_classes == 0)
        return lies(DN_STORE_JSON, "classes is not a list of n_classes names", err);
    d->classes = calloc((size_t)d->info.n_classes, sizeof *d->classes);
    d->info.classes = (const char *const *)d->classes;
    for (int i = 0; d->classes && i < d->info.n_classes; i++) {
        const char *name = json_string_value(json_array_get(names, (size_t)i));
        if (!name)
            return lies(DN_STORE_JSON, "a class is not a string", err);
        d->classes[i] = strdup(name);
        if (!d->classes[i])
            return dn_fail(err, DN_E_MEMORY, DN_STORE_JSON, "no memory for the names of the classes");
    }
    return d->classes ? 0 : dn_fail(err, DN_E_MEMORY, DN_STORE_JSON, "no memory for the names of the classes");
}

static int read_json(dn_dataset *d, const json_t *root, dn_error *err)
{
    json_int_t version = 0, n = 0, channels = 0, n_classes = -1;
    int floats = 0;
    const char *hash = NULL;
    json_t *names = NULL;
    dn_dataset_info *info = &d->info;
    if (json_unpack((json_t *)root, "{s:I, s:I, s:I, s:b, s:[FF!], s:I, s:o, s:s}", "version", &version, "n", &n,
                    "channels", &channels, "floats", &floats, "range", &info->range[0], &info->range[1], "n_classes",
                    &n_classes, "classes", &names, "hash", &hash) != 0)
        return lies(DN_STORE_JSON, "a field is missing or of the wrong type", err);
    if (version != DN_STORE_VERSION)
        return dn_fail(err, DN_E_UNSUPPORTED, DN_STORE_JSON, "%s: version %lld of the format; this build reads %d",
                       DN_STORE_JSON, (long long)version, DN_STORE_VERSION);
    if (n < 1 || n > INT32_MAX || channels < 1 || channels > DN_CHANNELS_MAX || n_classes < 0 ||
        n_classes > DN_DATASET_CLASSES_MAX || !get_sides(root, "height", &info->height_min, &info->height_max) ||
        !get_sides(root, "width", &info->width_min, &info->width_max) || !isfinite(info->range[0]) ||
        !isfinite(info->range[1]) || info->range[0] > info->range[1])
        return lies(DN_STORE_JSON, "a value out of range", err);
    if (strlen(hash) != 64 || strspn(hash, "0123456789abcdef") != 64)
        return lies(DN_STORE_JSON, "hash is not 64 hex digits", err);
    info->n = n;
    info->channels = (int)channels;
    info->floats = floats;
    info->n_classes = (int)n_classes;
    strcpy(info->hash, hash);
    return read_classes(d, names, err);
}

static bool record_is_good(const dn_dataset *d, const dn_record *r)
{
    const dn_dataset_info *info = &d->info;
    if (r->height < info->height_min || r->height > info->height_max || r->width < info->width_min ||
        r->width > info->width_max ||
        (r->channels != info->channels && (info->floats || info->channels != 3 || r->channels != 1)) ||
        r->offset % 4 != 0)
        return false;
    if (info->n_classes > 0 ? r->label < 0 || r->label >= info->n_classes : r->label != -1)
        return false;
    uint64_t bytes = (uint64_t)r->height * r->width * r->channels * (info->floats ? sizeof(float) : 1);
    return r->offset <= d->images_bytes && bytes <= d->images_bytes - r->offset;
}

static int check_records(const dn_dataset *d, dn_error *err)
{
    if (d->record_bytes != (size_t)d->info.n * sizeof(dn_record))
        return lies(DN_STORE_INDEX, "its size does not agree with dataset.json", err);
    for (int64_t i = 0; i < d->info.n; i++)
        if (!record_is_good(d, &d->record[i]))
            return dn_fail(err, DN_E_FORMAT, DN_STORE_INDEX,
                           "%s: the record of image %lld does not agree with the rest", DN_STORE_INDEX, (long long)i);
    return 0;
}

static int open_all(dn_dataset *d, int dirfd, dn_error *err)
{
    json_t *root = NULL;
    struct stat st;
    int rc = dn_json_load_at(&root, dirfd, DN_STORE_JSON, DN_STORE_JSON_MAX, err);
    if (rc == 0)
        rc = read_json(d, root, err);
    json_decref(root);
    if (rc == 0)
        rc = map_file((const void **)&d->record, &d->record_bytes, dirfd, DN_STORE_INDEX, err);
    if (rc == 0)
        rc = map_file((const void **)&d->images, &d->images_bytes, dirfd, DN_STORE_IMAGES, err);
    if (rc == 0)
        rc = check_records(d, err);
    if (rc == 0 && fstatat(dirfd, DN_STORE_JSON, &st, 0) != 0)
        rc = dn_fail(err, DN_E_IO, DN_STORE_JSON, "%s: %s", DN_STORE_JSON, strerror(errno));
    if (rc == 0)
        d->info.bytes = d->record_bytes + d->images_bytes + (uint64_t)st.st_size;
    return rc;
}

int dn_dataset_open(dn_dataset **out, const char *dir, dn_error *err)
{
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, NULL, "cannot open the dataset: %s",
                       strerror(errno));
    dn_dataset *d = calloc(1, sizeof *d);
    int rc = d ? open_all(d, dirfd, err) : dn_fail(err, DN_E_MEMORY, NULL, "no memory for a dataset");
    close(dirfd);
    if (rc == 0)
        *out = d;
    else
        dn_dataset_close(d);
    return rc;
}

void dn_dataset_close(dn_dataset *d)
{
    if (!d)
        return;
    if (d->record)
        munmap((void *)d->record, d->record_bytes);
    if (d->images)
        munmap((void *)d->images, d->images_bytes);
    for (int i = 0; d->classes && i < d->info.n_classes; i++)
        free(d->classes[i]);
    free(d->classes);
    free(d);
}

const dn_dataset_info *dn_dataset_info_of(const dn_dataset *d) { return &d->info; }
int dn_dataset_label(const dn_dataset *d, int64_t i) { return d->record[i].label; }
