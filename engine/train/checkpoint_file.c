/* checkpoint_file.c - a snapshot as a file.
 *
 *   8 bytes magic, 4 bytes length of the header and 4 bytes its CRC-32 (little endian), the header (JSON);
 *   then the blocks (weights, m, v unless SGD, EMA) as one zstd frame with content size and checksum.
 *
 * A file is untrusted: nothing is taken over before all of it has been read and its checksum was right. */
#include "train_internal.h"
#include "checkpoint.h"
#include "files.h"
#include "json.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum { HEADER_MAX = 8 << 20, LEVEL = 1, HEAD = 16 };
static const char magic[8] = "DNTRAIN1";

uint32_t dn_checkpoint_crc(const void *data, size_t n)
{
    const unsigned char *byte = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= byte[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (0xEDB88320u & -(crc & 1));
    }
    return ~crc;
}

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}
static uint32_t get32(const unsigned char *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- writing ---- */

static int write_header(dn_file *f, const json_t *header, dn_error *err)
{
    char *text = json_dumps(header, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    if (!text)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    unsigned char head[HEAD];
    memcpy(head, magic, sizeof magic);
    put32(head + 8, (uint32_t)strlen(text));
    put32(head + 12, dn_checkpoint_crc(text, strlen(text)));
    int rc = dn_file_write(f, head, sizeof head, err);
    rc = rc ? rc : dn_file_write(f, text, strlen(text), err);
    free(text);
    return rc;
}

typedef struct {
    ZSTD_CCtx *zstd;
    char *buffer;
    size_t size;
    dn_file *file;
} packer;

static int pack(packer *k, const void *data, size_t n, bool last, dn_error *err)
{
    ZSTD_inBuffer in = { data, n, 0 };
    for (size_t left = 1; left || in.pos < in.size;) {
        ZSTD_outBuffer out = { k->buffer, k->size, 0 };
        left = ZSTD_compressStream2(k->zstd, &out, &in, last ? ZSTD_e_end : ZSTD_e_continue);
        if (ZSTD_isError(left))
            return dn_fail(err, DN_E_INTERNAL, NULL, "zstd: %s", ZSTD_getErrorName(left));
        int rc = dn_file_write(k->file, k->buffer, out.pos, err);
        if (rc)
            return rc;
        if (!last && in.pos == in.size)
            break;
    }
    return 0;
}

static int write_blocks(dn_file *f, const dn_snapshot *s, dn_error *err)
{
    const float *const block[] = { s->block[0], s->block[1], s->block[2], s->model->weights };
    size_t bytes = sizeof(float) * (size_t)s->count;
    packer k = { ZSTD_createCCtx(), malloc(ZSTD_CStreamOutSize()), ZSTD_CStreamOutSize(), f };
    int rc = k.zstd && k.buffer ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc) {
        ZSTD_CCtx_setParameter(k.zstd, ZSTD_c_compressionLevel, LEVEL);
        ZSTD_CCtx_setParameter(k.zstd, ZSTD_c_checksumFlag, 1);
        ZSTD_CCtx_setPledgedSrcSize(k.zstd, bytes * (s->block[2] ? 4 : 3));
    }
    for (int i = 0; i < 4 && !rc; i++)
        if (block[i])
            rc = pack(&k, block[i], bytes, i == 3, err);
    ZSTD_freeCCtx(k.zstd);
    free(k.buffer);
    return rc;
}

int dn_snapshot_write(const dn_snapshot *s, const char *path, dn_error *err)
{
    if (!s->all)
        return dn_fail(err, DN_E_INTERNAL, NULL, "a snapshot of the EMA alone is no checkpoint");
    dn_file f;
    int rc = dn_file_begin(&f, path, err);
    if (rc)
        return rc;
    rc = write_header(&f, s->header, err);
    rc = rc ? rc : write_blocks(&f, s, err);
    return dn_file_end(&f, rc, err);
}

/* ---- reading ---- */

static int broken(const char *path, const char *why, dn_error *err)
{
    return dn_fail(err, DN_E_FORMAT, "checkpoint", "%s is not a whole checkpoint: %s", path, why);
}

static int read_header(json_t **out, FILE *f, const char *path, dn_error *err)
{
    unsigned char head[HEAD];
    if (fread(head, 1, sizeof head, f) != sizeof head || memcmp(head, magic, sizeof magic))
        return broken(path, "it does not begin as one", err);
    uint32_t n = get32(head + 8);
    if (n > HEADER_MAX)
        return broken(path, "its header has an impossible length", err);
    char *text = malloc(n + 1);
    if (!text)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    int rc = 0;
    if (fread(text, 1, n, f) != n || dn_checkpoint_crc(text, n) != get32(head + 12))
        rc = broken(path, "its header is cut off or damaged", err);
    rc = rc ? rc : dn_json_text(out, text, n, path, err);
    free(text);
    return rc;
}

/* The first key of two objects whose values differ, or NULL. */
static const char *difference(json_t *a, json_t *b)
{
    const char *key;
    json_t *v;
    json_object_foreach(a, key, v) if (!json_equal(v, json_object_get(b, key))) return key;
    json_object_foreach(b, key, v) if (!json_object_get(a, key)) return key;
    return NULL;
}

/* `mine` is taken: what dn_train_identity says of the job that the file should be of. */
static int check_job(json_t *mine, json_t *header, const char *path, dn_error *err)
{
    json_t *job = json_object_get(header, "job");
    const char *key = difference(mine, job);
    int rc = mine ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (rc)
        return rc;
    if (!json_is_integer(json_object_get(header, "version")) ||
        json_integer_value(json_object_get(header, "version")) != DN_CHECKPOINT_VERSION)
        rc = dn_fail(err, DN_E_UNSUPPORTED, "version", "%s is a checkpoint of another version", path);
    else if (key && !strcmp(key, "params") && json_is_object(json_object_get(job, "params"))) {
        key = difference(json_object_get(mine, "params"), json_object_get(job, "params"));
        rc = dn_fail(err, DN_E_INVALID, key, "%s is a checkpoint of another job: %s differs", path, key);
    } else if (key) {
        const char *theirs = json_string_value(json_object_get(job, key));
        rc = dn_fail(err, DN_E_INVALID, key, "%s is a checkpoint of another job: its %s is %.80s", path, key,
                     theirs ? theirs : "missing");
    }
    json_decref(mine);
    return rc;
}

static bool has_number(const json_t *header, const char *key, int64_t want)
{
    const json_t *v = json_object_get(header, key);
    return json_is_integer(v) && json_integer_value(v) == want;
}

static int check_size(const json_t *header, int64_t count, int blocks, const char *path, dn_error *err)
{
    if (has_number(header, "count", count) && has_number(header, "blocks", blocks))
        return 0;
    return broken(path, "its blocks have another size", err);
}

static int read_counters(dn_train_counters *c, const json_t *header, const char *path, dn_error *err)
{
    json_int_t step, updates, good, nan_run;
    double scale;
    if (json_unpack((json_t *)json_object_get(header, "counters"), "{sIsIsFsIsI}", "step", &step, "updates", &updates,
                    "loss_scale", &scale, "good_steps", &good, "nan_run", &nan_run) ||
        step < 0 || step > DN_TRAIN_STEPS_MAX || updates < 0 || updates > step || good < 0 || good > step || nan_run < 0 ||
        nan_run > step || !(scale >= 1 && scale <= 0x1p24))
        return broken(path, "its counters make no sense", err);
    *c = (dn_train_counters){ step, updates, scale, good, nan_run };
    return 0;
}

/* Reads the frame; each byte goes to block[] (NULL: only looked at). */
static int read_blocks(FILE *f, float *const *block, int n_blocks, int64_t count, const char *path, dn_error *err)
{
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    size_t in_size = ZSTD_DStreamInSize(), out_size = ZSTD_DStreamOutSize(), left = 1, total = 0;
    const size_t bytes = sizeof(float) * (size_t)count;
    char *in_buffer = malloc(in_size), *out_buffer = malloc(out_size);
    int rc = zstd && in_buffer && out_buffer ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    ZSTD_inBuffer in = { in_buffer, 0, 0 };
    while (!rc && left) {
        if (in.pos == in.size)
            in = (ZSTD_inBuffer){ in_buffer, fread(in_buffer, 1, in_size, f), 0 };
        if (!in.size) {
            rc = broken(path, "it is cut off", err);
            break;
        }
        ZSTD_outBuffer out = { out_buffer, out_size, 0 };
        left = ZSTD_decompressStream(zstd, &out, &in);
        if (ZSTD_isError(left))
            rc = broken(path, ZSTD_getErrorName(left), err);
        else if (out.pos > bytes * (size_t)n_blocks - total)
            rc = broken(path, "it holds too many bytes", err);
        for (size_t at = 0; !rc && at < out.pos;) {
            size_t within = total % bytes, n = bytes - within < out.pos - at ? bytes - within : out.pos - at;
            if (block && block[total / bytes])
                memcpy((char *)block[total / bytes] + within, out_buffer + at, n);
            total += n;
            at += n;
        }
    }
    if (!rc && (total != bytes * (size_t)n_blocks || in.pos != in.size || fgetc(f) != EOF))
        rc = broken(path, "it does not end where it should", err);
    ZSTD_freeDCtx(zstd);
    free(in_buffer);
    free(out_buffer);
    return rc;
}

/* Once to look whether all of it is right, then again into the blocks. */
static int take_over(dn_trainer *t, FILE *f, const dn_train_counters *counters, const char *path, dn_error *err)
{
    float *block[4];
    int n = 0;
    float *const all[] = { t->flat.weights, t->flat.m, t->flat.v, t->flat.ema };
    for (int i = 0; i < 4; i++)
        if (all[i])
            block[n++] = all[i];
    long start = ftell(f);
    int rc = read_blocks(f, NULL, n, t->flat.count, path, err);
    if (rc)
        return rc;
    dn_train_counters before = t->counters;
    t->counters = *counters;
    rc = dn_trainer_readers(t, err);
    if (rc) {
        t->counters = before;
        return rc;
    }
    if (start < 0 || fseek(f, start, SEEK_SET))
        return dn_fail(err, DN_E_IO, "checkpoint", "%s: %s", path, strerror(errno));
    return read_blocks(f, block, n, t->flat.count, path, err);
}

/* *f stands behind the header, whose version and job are right. */
static int open_checkpoint(FILE **f, json_t **header, json_t *mine, const char *path, dn_error *err)
{
    *f = fopen(path, "rbe");
    if (!*f) {
        json_decref(mine);
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, "checkpoint", "%s: %s", path, strerror(errno));
    }
    *header = NULL;
    int rc = read_header(header, *f, path, err);
    if (rc)
        json_decref(mine);
    rc = rc ? rc : check_job(mine, *header, path, err);
    if (rc) {
        json_decref(*header);
        fclose(*f);
    }
    return rc;
}

int dn_trainer_restore(dn_trainer *t, const char *path, dn_error *err)
{
    if (!dn_trainer_at_boundary(t))
        return dn_fail(err, DN_E_INTERNAL, NULL, "a restore within an optimizer step");
    FILE *f;
    json_t *header;
    dn_train_counters counters;
    json_t *mine = dn_train_identity(t->model_hash, t->data_hash, &t->params, &t->plan);
    int rc = open_checkpoint(&f, &header, mine, path, err);
    if (rc)
        return rc;
    rc = check_size(header, t->flat.count, dn_train_blocks(t->params.optimizer.kind), path, err);
    rc = rc ? rc : read_counters(&counters, header, path, err);
    rc = rc ? rc : take_over(t, f, &counters, path, err);
    json_decref(header);
    fclose(f);
    return rc;
}

/* The last block, the EMA, straight into the model's weights. */
static int read_ema(dn_model *m, const dn_dataset *data, const dn_train_params *p, const dn_train_plan *plan,
                    const char *path, dn_error *err)
{
    FILE *f;
    json_t *header;
    const int n = dn_train_blocks(p->optimizer.kind);
    const int64_t count = (int64_t)(m->info.bytes / sizeof(float));
    float *block[4] = { NULL };
    block[n - 1] = m->weights;
    json_t *mine = dn_train_identity(m->info.hash, dn_dataset_info_of(data)->hash, p, plan);
    int rc = open_checkpoint(&f, &header, mine, path, err);
    if (rc)
        return rc;
    rc = check_size(header, count, n, path, err);
    rc = rc ? rc : read_blocks(f, block, n, count, path, err);
    json_decref(header);
    fclose(f);
    return rc;
}

int dn_snapshot_read(dn_snapshot **out, dn_model *m, const dn_dataset *data, const dn_train_params *p,
                     const dn_train_plan *plan, const char *path, dn_error *err)
{
    dn_snapshot *s = calloc(1, sizeof *s);
    int rc = s ? read_ema(m, data, p, plan, path, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (rc) {
        free(s);
        dn_model_free(m);
        return rc;
    }
    *s = (dn_snapshot){ .model = m,
                        .prediction = p->objective.prediction,
                        .count = (int64_t)(m->info.bytes / sizeof(float)) };
    *out = s;
    return 0;
}
