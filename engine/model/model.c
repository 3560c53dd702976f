/* model.c - a diffusers folder becomes a dn_model: which network, its weights in our order, scheduler, labels.
 *
 * Everything in the folder is untrusted. The weights are one immutable block in registration order (channels last). */
#include "model_internal.h"
#include "checkpoint.h"
#include "settings.h"
#include <denoised/sha256.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { CONFIG_BYTES_MAX = 8 << 20 };

static bool exists(const char *dir, const char *file)
{
    char path[4096];
    struct stat st;
    return snprintf(path, sizeof path, "%s/%s", dir, file) < (int)sizeof path && !stat(path, &st);
}

/* ---- which network ---- */

/* The component of model_index.json that denoises: "unet". Leaves *component NULL for a bare component folder. */
static int read_index(dn_model *m, const char **component, dn_error *err)
{
    *component = NULL;
    if (!m->index)
        return 0;
    m->info.pipeline = json_string_value(json_object_get(m->index, "_class_name"));
    if (!m->info.pipeline)
        m->info.pipeline = "";
    if (!json_is_array(json_object_get(m->index, "unet")))
        return dn_fail(err, DN_E_UNSUPPORTED, "model_index.json",
                       "model_index.json: pipeline \"%.80s\" has no unet; only U-Net pipelines in pixel space are supported",
                       m->info.pipeline);
    if (json_is_array(json_object_get(m->index, "vae")) || json_is_array(json_object_get(m->index, "vqvae")))
        return dn_fail(err, DN_E_UNSUPPORTED, "model_index.json", "model_index.json: latent diffusion is not supported by this version");
    *component = "unet";
    return 0;
}

static int read_architecture(dn_model *m, const char *file, dn_error *err)
{
    const char *class_name = json_string_value(json_object_get(m->config_json, "_class_name"));
    m->arch = class_name ? dn_arch_find(class_name) : NULL;
    if (!m->arch)
        return dn_fail(err, DN_E_UNSUPPORTED, "_class_name", "%s: architecture \"%.80s\" is not supported", file,
                       class_name ? class_name : "");
    int rc = m->arch->parse(&m->config, m->config_json, err);
    if (rc)
        return rc;
    m->arch->describe(m->config, &m->arch_info);
    const dn_arch_info *a = &m->arch_info;
    dn_model_info *info = &m->info;
    info->architecture = m->arch->class_name;
    info->height = a->height;
    info->width = a->width;
    info->channels = a->in_channels;
    info->out_channels = a->out_channels;
    info->learned_variance = a->out_channels == 2 * a->in_channels;
    info->size_multiple = a->size_multiple;
    info->label_kind = a->label_kind;
    info->n_classes = (int)a->label_rows;
    info->label_dim = a->label_kind == DN_LABEL_VECTOR ? (int)a->label_dim : 0;
    return 0;
}

static int read_scheduler(dn_model *m, dn_error *err)
{
    if (!m->scheduler_json) /* a component alone: diffusers' usual scheduler */
        m->scheduler_json = json_pack("{ss}", "_class_name", "DDPMScheduler");
    dn_scheduler_config *c = NULL;
    int rc = dn_scheduler_config_new(&c, m->scheduler_json, err);
    m->info.scheduler = c;
    return rc;
}

/* A key of another scheduler is refused, as in a request. */
static int check_keys(const dn_scheduler_config *own, const json_t *keys, dn_error *err)
{
    dn_scheduler_config *c = dn_scheduler_config_copy(own);
    dn_settings settings;
    enum dn_sampler_kind kind;
    int rc = c ? dn_scheduler_config_overlay(c, keys, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc)
        rc = dn_settings_resolve(&settings, &kind, c, -1, err);
    dn_scheduler_config_free(c);
    return rc;
}

/* The scheduler of the model, or the one that `cls` names with the keys of the model's that it knows, as diffusers' from_config;
 * with `keys`. */
static int check_schedule(const json_t *json, const json_t *cls, const json_t *keys, dn_error *err)
{
    dn_scheduler_config *c = NULL;
    dn_error why = { 0 };
    int rc = dn_scheduler_config_new(&c, json, &why);
    if (!rc && cls && dn_scheduler_config_sampler(c, &why) < 0)
        rc = DN_E_UNSUPPORTED;
    if (rc)
        rc = dn_fail(err, rc, cls ? "scheduler._class_name" : why.param, "%s", why.message);
    else
        rc = check_keys(c, keys, err);
    dn_scheduler_config_free(c);
    return rc;
}

/* Checked strictly, the keys are the model's own from then on, as if its file had said so: other samplers leave out what they do not
 * know. */
int dn_model_reschedule(dn_model *m, const json_t *keys, dn_error *err)
{
    json_t *json = json_copy(m->scheduler_json), *rest = json_copy((json_t *)keys), *cls = json_object_get(keys, "_class_name");
    dn_scheduler_config *c = NULL;
    int rc = json && rest && !(cls && json_object_set(json, "_class_name", cls)) ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc) {
        json_object_del(rest, "_class_name");
        rc = check_schedule(json, cls, rest, err);
    }
    if (!rc && json_object_update(json, rest))
        rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    json_decref(rest);
    if (!rc)
        rc = dn_scheduler_config_new(&c, json, err);
    if (rc) {
        json_decref(json);
        return rc;
    }
    json_decref(m->scheduler_json);
    dn_scheduler_config_free((dn_scheduler_config *)m->info.scheduler);
    m->scheduler_json = json;
    m->info.scheduler = c;
    return 0;
}

/* ---- denoised.json ---- */

static int bad_extra(dn_error *err, const char *key, const char *expected)
{
    return dn_fail(err, DN_E_INVALID, key, "denoised.json: %s must be %s", key, expected);
}

static int read_labels(dn_model *m, const json_t *v, dn_error *err)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > (size_t)(m->info.n_classes ? m->info.n_classes : 1 << 20))
        return bad_extra(err, "labels", "a list of at most as many names as the network has classes");
    m->labels = calloc(n + 1, sizeof *m->labels);
    if (!m->labels)
        return dn_fail(err, DN_E_MEMORY, "labels", "out of memory");
    for (size_t i = 0; i < n; i++) {
        m->labels[i] = json_string_value(json_array_get(v, i));
        if (!m->labels[i] || !*m->labels[i] || strlen(m->labels[i]) > DN_LABEL_MAX)
            return bad_extra(err, "labels", "a list of names of 1 to 64 bytes");
    }
    m->info.labels = m->labels;
    m->info.n_labels = (int)n;
    return 0;
}

static int read_null_label(dn_model *m, const json_t *v, dn_error *err)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= m->info.n_classes)
        return bad_extra(err, "null_label", "a class of the network");
    m->info.null_label = (int)json_integer_value(v);
    return 0;
}

static int read_range(dn_model *m, const json_t *v, dn_error *err)
{
    double lo = json_number_value(json_array_get(v, 0)), hi = json_number_value(json_array_get(v, 1));
    if (json_array_size(v) != 2 || !(lo < hi))
        return bad_extra(err, "range", "[low, high] with low < high");
    m->info.range[0] = lo;
    m->info.range[1] = hi;
    return 0;
}

static int read_sizes(dn_model *m, const json_t *v, dn_error *err)
{
    if (!json_is_array(v) || json_array_size(v) > DN_SIZES_MAX)
        return bad_extra(err, "sizes", "a list of at most 32 [height, width]");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *size = json_array_get(v, i);
        for (int k = 0; k < 2; k++) {
            json_int_t d = json_integer_value(json_array_get(size, (size_t)k));
            if (json_array_size(size) != 2 || d < 1 || d > 8192 || d % m->info.size_multiple)
                return bad_extra(err, "sizes", "a list of [height, width] of at most 8192, each a multiple of the network's");
            m->info.sizes[i][k] = (int)d;
        }
    }
    m->info.n_sizes = (int)json_array_size(v);
    return 0;
}

static int read_description(dn_model *m, const json_t *v, dn_error *err)
{
    if (!json_is_string(v))
        return bad_extra(err, "description", "a string");
    m->info.description = json_string_value(v);
    return 0;
}

static int read_defaults(dn_model *m, const json_t *v, dn_error *err)
{
    if (!json_is_object(v))
        return bad_extra(err, "defaults", "an object of request fields");
    m->info.defaults = v;
    return 0;
}

static const struct { const char *name; int (*read)(dn_model *m, const json_t *v, dn_error *err); } extras[] = {
    { "labels", read_labels }, { "null_label", read_null_label },   { "range", read_range },
    { "sizes", read_sizes },   { "description", read_description }, { "defaults", read_defaults },
};

static int read_extra(dn_model *m, const char *key, const json_t *v, dn_error *err)
{
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++)
        if (!strcmp(key, extras[i].name))
            return extras[i].read(m, v, err);
    return dn_fail(err, DN_E_UNSUPPORTED, key, "denoised.json: key \"%.60s\" is not supported", key);
}

static int read_extras(dn_model *m, dn_error *err)
{
    const char *key;
    json_t *v;
    int rc = 0;
    json_object_foreach(m->extra, key, v)
        if ((rc = read_extra(m, key, v, err)))
            break;
    return rc;
}

/* Without sample_size the first of `sizes` is the model's own. */
static int settle_size(dn_model *m, dn_error *err)
{
    dn_model_info *info = &m->info;
    if (!info->height && info->n_sizes) {
        info->height = info->sizes[0][0];
        info->width = info->sizes[0][1];
    }
    if (info->height < 1 || info->height % info->size_multiple || info->width % info->size_multiple)
        return dn_fail(err, DN_E_INVALID, "sample_size",
                       "config.json: sample_size must be given (or `sizes` in denoised.json), in multiples of %d", info->size_multiple);
    return 0;
}

static dn_model *new_model(dn_error *err)
{
    dn_model *m = calloc(1, sizeof *m);
    if (!m)
        dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    else
        m->info = (dn_model_info){ .pipeline = "", .description = "", .null_label = -1, .range = { -1, 1 } };
    return m;
}

int dn_model_describe(dn_model **out, const json_t *index, const json_t *config, const json_t *scheduler, const json_t *extra,
                      dn_error *err)
{
    dn_model *m = new_model(err);
    if (!m)
        return DN_E_MEMORY;
    m->index = json_deep_copy(index);
    m->config_json = json_deep_copy(config);
    m->scheduler_json = json_deep_copy(scheduler);
    m->extra = json_deep_copy(extra);
    const char *component;
    int rc = read_index(m, &component, err);
    rc = rc ? rc : read_architecture(m, "config.json", err);
    rc = rc ? rc : read_scheduler(m, err);
    rc = rc ? rc : read_extras(m, err);
    rc = rc ? rc : settle_size(m, err);
    if (rc)
        dn_model_free(m);
    else
        *out = m;
    return rc;
}

/* The JSON files of a folder, and what they say. `component` is NULL for a bare component folder. */
static int read_folder(dn_model *m, const char *dir, const char **component, dn_error *err)
{
    char file[64] = "config.json";
    const char *scheduler = exists(dir, "scheduler") ? "scheduler/scheduler_config.json" : "scheduler_config.json";
    int rc = exists(dir, "model_index.json") ? dn_json_load(&m->index, dir, "model_index.json", CONFIG_BYTES_MAX, err) : 0;
    rc = rc ? rc : read_index(m, component, err);
    if (!rc && *component && exists(dir, *component))
        snprintf(file, sizeof file, "%s/config.json", *component);
    rc = rc ? rc : dn_json_load(&m->config_json, dir, file, CONFIG_BYTES_MAX, err);
    rc = rc ? rc : read_architecture(m, file, err);
    if (!rc && (m->index || exists(dir, scheduler)))
        rc = dn_json_load(&m->scheduler_json, dir, scheduler, CONFIG_BYTES_MAX, err);
    rc = rc ? rc : read_scheduler(m, err);
    if (!rc && exists(dir, "denoised.json"))
        rc = dn_json_load(&m->extra, dir, "denoised.json", CONFIG_BYTES_MAX, err);
    rc = rc ? rc : read_extras(m, err);
    return rc ? rc : settle_size(m, err);
}

/* ---- weights ---- */

dn_program *dn_model_program(const dn_model *m, int height, int width)
{
    dn_program *p = dn_program_new();
    if (!p)
        return NULL;
    int block = dn_block_add(p, "unet");
    m->arch->build(m->config, p, block, height, width);
    dn_program_prune(p);
    return p;
}

dn_shape dn_param_file_shape(const dn_param *q)
{
    const int64_t *d = q->shape.dim;
    switch (q->form) {
    case DN_PARAM_LINEAR:
        return dn_shape(d[1], d[0]);
    case DN_PARAM_CONV:
        return dn_shape(d[3], d[2], d[0], d[1]);
    case DN_PARAM_PLAIN:
        break;
    }
    return q->shape;
}

static void print_dims(char *out, size_t size, const int64_t *dim, int rank)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < rank && n < size - 24; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%lld", i ? "," : "", (long long)dim[i]);
}

/* File order [rows, cols] transposed: here [cols, rows]. */
static void transpose(float *dst, const float *src, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            dst[j * rows + i] = src[i * cols + j];
}

/* [K,C,kh,kw] -> [kh,kw,C,K] is a transpose within [K, (C, kh*kw)] and of (C, kh*kw). */
static void to_channels_last(float *dst, const float *src, const dn_shape *ours)
{
    int64_t taps = ours->dim[0] * ours->dim[1], c = ours->dim[2], k = ours->dim[3];
    for (int64_t o = 0; o < k; o++)
        for (int64_t i = 0; i < c; i++)
            for (int64_t t = 0; t < taps; t++)
                dst[(t * c + i) * k + o] = src[(o * c + i) * taps + t];
}

static void store(float *dst, const float *src, const dn_param *q)
{
    if (q->form == DN_PARAM_LINEAR)
        transpose(dst, src, q->shape.dim[1], q->shape.dim[0]);
    else if (q->form == DN_PARAM_CONV)
        to_channels_last(dst, src, &q->shape);
    else
        memcpy(dst, src, sizeof *dst * (size_t)dn_shape_count(&q->shape));
}

void dn_param_to_file(float *dst, const float *src, const dn_param *q)
{
    const int64_t *d = q->shape.dim;
    if (q->form == DN_PARAM_LINEAR)
        transpose(dst, src, d[0], d[1]);
    else if (q->form == DN_PARAM_CONV) /* [kh*kw, C, K] -> [K, C, kh*kw] */
        for (int64_t t = 0; t < d[0] * d[1]; t++)
            for (int64_t c = 0; c < d[2]; c++)
                for (int64_t k = 0; k < d[3]; k++)
                    dst[(k * d[2] + c) * d[0] * d[1] + t] = src[(t * d[2] + c) * d[3] + k];
    else
        memcpy(dst, src, sizeof *dst * (size_t)dn_shape_count(&q->shape));
}

static int check_param(const dn_checkpoint *c, const dn_param *q, dn_error *err)
{
    const dn_tensor *t = dn_checkpoint_find(c, q->name);
    char want[80], got[80];
    dn_shape shape = dn_param_file_shape(q);
    print_dims(want, sizeof want, shape.dim, shape.rank);
    if (!t)
        return dn_fail(err, DN_E_FORMAT, q->name, "the checkpoint has no tensor %s [%s]", q->name, want);
    print_dims(got, sizeof got, t->dim, t->rank);
    if (t->rank != shape.rank || memcmp(t->dim, shape.dim, sizeof(int64_t) * (size_t)shape.rank))
        return dn_fail(err, DN_E_FORMAT, q->name, "%s: tensor %s is [%s], the config asks for [%s]", t->file, q->name, got, want);
    return 0;
}

/* Before anything is allocated: what a config asks for is unbounded, what a file holds is not. */
static int check_params(const dn_checkpoint *c, const dn_block *b, dn_error *err)
{
    int rc = 0;
    for (int i = 0; i < b->n_params && !rc; i++)
        rc = check_param(c, &b->param[i], err);
    return rc;
}

static bool known_param(const dn_block *b, const char *name)
{
    /* NCSN++ files carry time_proj.weight twice */
    return dn_block_find(b, name) >= 0 || !strcmp(name, "time_proj.W");
}

static int check_superfluous(const dn_checkpoint *c, const dn_block *b, dn_error *err)
{
    for (int i = 0; i < dn_checkpoint_count(c); i++) {
        const dn_tensor *t = dn_checkpoint_tensor(c, i);
        char dims[80];
        print_dims(dims, sizeof dims, t->dim, t->rank);
        if (!known_param(b, t->name))
            return dn_fail(err, DN_E_FORMAT, t->name, "%s: tensor %.100s [%s] belongs to no layer of the config", t->file, t->name, dims);
    }
    return 0;
}

static int64_t largest_param(const dn_block *b)
{
    int64_t most = 1;
    for (int i = 0; i < b->n_params; i++)
        if (dn_shape_count(&b->param[i].shape) > most)
            most = dn_shape_count(&b->param[i].shape);
    return most;
}

int dn_model_weights_reserve(dn_model *m, const dn_block *b, dn_error *err)
{
    m->info.bytes = sizeof *m->weights * (size_t)b->count;
    m->weights = aligned_alloc(64, m->info.bytes);
    if (!m->weights)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for %lld weights", (long long)b->count);
    for (int i = 0; i < b->n_params; i++)
        m->info.parameters += dn_shape_count(&b->param[i].shape);
    return 0;
}

int dn_model_weights_new(dn_model *m, const dn_block *b, dn_error *err)
{
    int rc = dn_model_weights_reserve(m, b, err);
    if (!rc)
        memset(m->weights, 0, m->info.bytes);
    return rc;
}

static int fill_block(dn_model *m, const dn_checkpoint *c, const dn_block *b, dn_error *err)
{
    float *scratch = malloc(sizeof *scratch * (size_t)largest_param(b));
    int rc = scratch ? dn_model_weights_new(m, b, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    for (int i = 0; i < b->n_params && !rc; i++) {
        const dn_param *q = &b->param[i];
        rc = dn_checkpoint_read(c, dn_checkpoint_find(c, q->name), scratch, err);
        if (!rc)
            store(m->weights + q->offset, scratch, q);
    }
    free(scratch);
    return rc;
}

static int load_weights(dn_model *m, const char *dir, const char *component, dn_error *err)
{
    dn_program *p = dn_model_program(m, m->info.height, m->info.width);
    if (!p)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    dn_checkpoint *c = NULL;
    int rc = p->error.code;
    if (rc && err)
        *err = p->error;
    rc = rc ? rc : dn_checkpoint_open(&c, dir, component, err);
    rc = rc ? rc : check_superfluous(c, &p->block[0], err);
    rc = rc ? rc : check_params(c, &p->block[0], err);
    rc = rc ? rc : fill_block(m, c, &p->block[0], err);
    if (!rc && dn_sha256_hex(m->info.hash, m->weights, m->info.bytes))
        rc = dn_fail(err, DN_E_BACKEND, NULL, "the weights could not be hashed");
    dn_checkpoint_close(c);
    dn_program_free(p);
    return rc;
}

int dn_model_open(dn_model **out, const char *dir, const char **component, dn_error *err)
{
    dn_model *m = new_model(err);
    if (!m)
        return DN_E_MEMORY;
    int rc = read_folder(m, dir, component, err);
    if (rc)
        dn_model_free(m);
    else
        *out = m;
    return rc;
}

int dn_model_load(dn_model **out, const char *dir, dn_error *err)
{
    const char *component;
    dn_model *m = NULL;
    int rc = dn_model_open(&m, dir, &component, err);
    rc = rc ? rc : load_weights(m, dir, component, err);
    if (rc)
        dn_model_free(m);
    else
        *out = m;
    return rc;
}

void dn_model_free(dn_model *m)
{
    if (!m)
        return;
    for (int i = 0; i < m->n_form_blocks; i++)
        free(m->form_block[i]);
    free(m->form_block);
    free(m->form);
    free(m->weights);
    free(m->labels);
    free(m->config);
    dn_scheduler_config_free((dn_scheduler_config *)m->info.scheduler);
    json_decref(m->extra);
    json_decref(m->scheduler_json);
    json_decref(m->config_json);
    json_decref(m->index);
    free(m);
}

const dn_model_info *dn_model_info_of(const dn_model *m) { return &m->info; }

int dn_model_label(const dn_model *m, const char *name)
{
    for (int i = 0; i < m->info.n_labels; i++)
        if (!strcasecmp(m->info.labels[i], name))
            return i;
    return -1;
}

bool dn_model_size_ok(const dn_model *m, int height, int width)
{
    if (height == m->info.height && width == m->info.width)
        return true;
    for (int i = 0; i < m->info.n_sizes; i++)
        if (m->info.sizes[i][0] == height && m->info.sizes[i][1] == width)
            return true;
    return false;
}

/* ---- packed forms ---- */

static const void *find_form(const dn_model *m, const dn_form *f)
{
    for (int i = 0; i < m->n_forms; i++)
        if (dn_form_same(&m->form[i].form, f))
            return m->form[i].data;
    return NULL;
}

/* Memory for packed weights, the model's. Huge pages where it is worth one: they are read in order, once a run. */
static char *new_form_block(dn_model *m, size_t bytes)
{
    enum { HUGE = 2 << 20 };
    size_t align = bytes >= HUGE ? HUGE : 64;
    if (dn_grow(&m->form_block, m->n_form_blocks, &m->form_blocks_cap, sizeof *m->form_block))
        return NULL;
    char *block = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (block && align == HUGE)
        (void)madvise(block, bytes, MADV_HUGEPAGE); /* only a hint */
    if (block)
        m->form_block[m->n_form_blocks++] = block;
    return block;
}

int dn_model_forms(dn_model *m, const dn_lowered *l, const void **out, size_t *made, dn_error *err)
{
    size_t bytes = 0;
    int missing = 0;
    for (int i = 0; i < l->n_forms; i++) {
        out[i] = find_form(m, &l->form[i]);
        bytes += out[i] ? 0 : dn_form_room(&l->form[i]);
        missing += !out[i];
    }
    if (!missing)
        return 0;
    dn_packed *grown = realloc(m->form, sizeof *grown * (size_t)(m->n_forms + missing));
    m->form = grown ? grown : m->form;
    char *at = grown ? new_form_block(m, bytes) : NULL;
    if (!at)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for %zu bytes of packed weights", bytes);
    for (int i = 0; i < l->n_forms; i++) {
        const dn_form *f = &l->form[i];
        if (out[i])
            continue;
        dn_form_make(at, f, l->program, m->weights);
        m->form[m->n_forms++] = (dn_packed){ *f, at };
        out[i] = at;
        at += dn_form_room(f);
    }
    *made += bytes;
    return 0;
}
