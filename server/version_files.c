/* version_files.c - an upload becomes the folder of a model, and the folder is tried. */
#include "version_files.h"

#include "tree.h"
#include <denoised/model.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4400, SAFETENSORS_HEADER_MAX = 100000000, SLICE_MS = 20 };

/* ---- unpacking -------------------------------------------------------------------------------------------------- */

static bool exists(const char *dir, const char *file)
{
    char path[PATH_BYTES];
    return snprintf(path, sizeof path, "%s/%s", dir, file) < PATH_BYTES && !access(path, F_OK);
}

/* Its header's length, then JSON: no archive begins so. */
static bool is_safetensors(const char *path)
{
    unsigned char head[9];
    uint64_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool whole = fd >= 0 && read(fd, head, sizeof head) == sizeof head;
    if (fd >= 0)
        close(fd);
    for (int i = 8; whole && i--;)
        len = len << 8 | head[i];
    return whole && len <= SAFETENSORS_HEADER_MAX && head[8] == '{';
}

/* In one file, in shards, as variants: all of them are called so. */
static bool is_weights(const char *name) { return !strncmp(name, "diffusion_pytorch_model.", 24); }

/* A file that stays: its bytes are on the disk before its name is. */
static int move_file(const char *from, const char *to, dn_error *err)
{
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    int rc =
        fd < 0 || fsync(fd) || rename(from, to) ? dn_fail(err, DN_E_IO, "state", "%s: %s", to, strerror(errno)) : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

static int unpack_weights(const char *src, const char *base, const char *dir, dn_error *err)
{
    char folder[PATH_BYTES], path[PATH_BYTES + 64];
    if (!base)
        return dn_fail(
            err, DN_E_IMPOSSIBLE, "name",
            "one .safetensors file is only weights, and there is no model of this name whose config they could take: "
            "upload an archive of the folder, with its config.json");
    int rc = dn_tree_copy(base, dir, is_weights, err);
    snprintf(folder, sizeof folder, "%s%s", dir, exists(dir, "model_index.json") && exists(dir, "unet") ? "/unet" : "");
    snprintf(path, sizeof path, "%s/diffusion_pytorch_model.safetensors", folder);
    rc = rc ? rc : move_file(src, path, err);
    return rc ? rc : dn_tree_sync(folder, err);
}

int dn_version_unpack(const char *src, const char *base, const char *dir, const dn_archive_limits *limits,
                      dn_error *err)
{
    if (is_safetensors(src))
        return unpack_weights(src, base, dir, err);
    int rc = dn_tree_make(dir, err);
    return rc ? rc : dn_archive_unpack(src, dir, limits, err);
}

static bool has_config(const char *dir) { return exists(dir, "model_index.json") || exists(dir, "config.json"); }

char *dn_version_folder(const char *tmp)
{
    char *only = NULL, *path = NULL;
    int n = 0;
    if (has_config(tmp))
        return strdup(tmp);
    DIR *d = opendir(tmp);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (*e->d_name == '.' || n++)
            continue;
        if (asprintf(&path, "%s/%s", tmp, e->d_name) >= 0)
            only = path;
    }
    if (d)
        closedir(d);
    if (n == 1 && only && has_config(only))
        return only;
    free(only);
    return strdup(tmp); /* loading it says what is missing */
}

/* ---- trying ----------------------------------------------------------------------------------------------------- */

static int read_finite(const dn_sample *s, const dn_model_info *info, dn_error *err)
{
    size_t n = (size_t)info->height * info->width * info->out_channels;
    float *out = malloc(n * sizeof *out);
    if (!out)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    dn_sample_read(s, DN_READ_OUT, out);
    size_t i = 0;
    while (i < n && isfinite(out[i]))
        i++;
    free(out);
    return i < n ? dn_fail(err, DN_E_FORMAT, "model", "an evaluation of the network gives values that are not finite")
                 : 0;
}

static int check_stop(const _Atomic(bool) *stop, dn_error *err)
{
    return stop && atomic_load(stop) ? dn_fail(err, DN_E_CANCELLED, NULL, "trying the model was cancelled") : 0;
}

/* In slices, to look at `stop` between them. */
static int run_batch(dn_batch *b, const _Atomic(bool) *stop, dn_error *err)
{
    int more = 1, rc = 0;
    while (!rc && more > 0) {
        more = dn_batch_some(b, SLICE_MS);
        rc = more > 0 ? check_stop(stop, err) : -more;
    }
    return rc;
}

static int run_rows(dn_device *d, const dn_net *net, dn_sample *s, const dn_model_info *info, const _Atomic(bool) *stop,
                    dn_error *err)
{
    dn_row rows[8];
    dn_batch *b = NULL;
    int n = 0;
    for (unsigned left = dn_sample_rows(s), kind = 0; left && n < 8; left >>= 1, kind++) {
        if (left & 1)
            rows[n++] = (dn_row){ s, (enum dn_row_kind)kind };
    }
    int rc = dn_batch_begin(&b, d, net, rows, n, err);
    if (rc)
        return rc;
    rc = run_batch(b, stop, err);
    dn_batch_free(b);
    if (rc == DN_E_CANCELLED)
        return rc;
    if (!rc)
        rc = dn_sample_update(s);
    if (rc == DN_E_NON_FINITE)
        return dn_fail(err, DN_E_FORMAT, "model", "an evaluation of the network gives values that are not finite");
    return rc ? dn_fail(err, rc, NULL, "an evaluation of the network failed: %s", dn_error_text(rc))
              : read_finite(s, info, err);
}

/* One evaluation, at the model's own size. */
static int evaluate(dn_device *d, const dn_net *net, const dn_model *m, const _Atomic(bool) *stop, dn_error *err)
{
    const dn_model_info *info = dn_model_info_of(m);
    dn_table table = { 0 };
    dn_sample *s = NULL;
    float *vector = info->label_kind == DN_LABEL_VECTOR ? calloc((size_t)info->label_dim, sizeof *vector) : NULL;
    int rc = dn_table_plan_denoise(&table, 1, 1, err);
    dn_sample_params p = { .table = &table,
                           .table_shared = true,
                           .height = info->height,
                           .width = info->width,
                           .channels = info->channels,
                           .out_channels = info->out_channels,
                           .label = info->label_kind && info->null_label < 0 ? 0 : -1,
                           .label_b = -1,
                           .null_label = info->null_label,
                           .label_vector = vector,
                           .label_dim = vector ? info->label_dim : 0,
                           .temperature = 1 };
    if (!rc)
        rc = dn_sample_new(&s, d, &p, err);
    if (!rc)
        rc = run_rows(d, net, s, info, stop, err);
    dn_sample_free(s);
    dn_table_fini(&table);
    free(vector);
    return rc;
}

int dn_version_try(char hash[65], const dn_device *like, const char *dir, int64_t bytes_max, const _Atomic(bool) *stop,
                   dn_error *err)
{
    dn_footprint need;
    dn_device *d = NULL;
    dn_model *m = NULL;
    dn_net *net = NULL;
    int rc = check_stop(stop, err);
    rc = rc ? rc : dn_net_foresee(&need, like, dir, err);
    if (!rc && need.weights + need.forms + need.arena > (size_t)bytes_max)
        rc = dn_fail(err, DN_E_LIMIT, "model", "it takes %zu bytes, --memory is %lld",
                     need.weights + need.forms + need.arena, (long long)bytes_max);
    rc = rc ? rc : check_stop(stop, err);
    if (!rc)
        rc = dn_model_load(&m, dir, err);
    rc = rc ? rc : check_stop(stop, err);
    if (!rc)
        rc = dn_device_open(&d, dn_device_name(like), err);
    if (!rc)
        rc = dn_net_new(&net, d, m, dn_model_info_of(m)->height, dn_model_info_of(m)->width, 0, err);
    if (!rc)
        rc = evaluate(d, net, m, stop, err);
    if (!rc)
        snprintf(hash, 65, "%s", dn_model_info_of(m)->hash);
    dn_net_free(net);
    dn_model_free(m);
    dn_device_close(d);
    return rc;
}
