/* util.c - see util.h. */
#include "util.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void blob_add(blob *b, const void *p, size_t len)
{
    if (b->len + len >= b->cap) {
        b->cap = 2 * (b->len + len) + 64;
        b->p = realloc(b->p, b->cap);
        assert_non_null(b->p);
    }
    if (len > 0)
        memcpy(b->p + b->len, p, len);
    b->len += len;
}

void blob_le(blob *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++, v >>= 8)
        blob_add(b, &(uint8_t){ (uint8_t)v }, 1);
}

void blob_free(blob *b)
{
    free(b->p);
    *b = (blob){ 0 };
}

void scratch_make(char dir[64])
{
    strcpy(dir, "io-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void scratch_remove(const char *dir) { assert_int_equal(nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0); }

void file_write(const char *dir, const char *name, const void *p, size_t len)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

blob file_read(const char *dir, const char *name)
{
    char path[512], chunk[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s: no such file", path);
    blob b = { 0 };
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        blob_add(&b, chunk, n);
    fclose(f);
    return b;
}

void file_copy(const char *from_dir, const char *from, const char *to_dir, const char *to)
{
    blob b = file_read(from_dir, from);
    file_write(to_dir, to, b.p, b.len);
    blob_free(&b);
}

blob safetensors_make(const char *header, const void *data, size_t len)
{
    blob b = { 0 };
    blob_le(&b, strlen(header), 8);
    blob_add(&b, header, strlen(header));
    blob_add(&b, data, len);
    return b;
}

/* The zip64 extra field of the central directory: both sizes and the offset. */
static void add_central(blob *b, const zip_item *item, uint64_t header)
{
    uint64_t size = item->data.len + (uint64_t)item->size_lie, at = header + (uint64_t)item->header_lie;
    blob_le(b, 0x02014b50, 4);
    blob_le(b, 0, 4);
    blob_le(b, item->flags, 2);
    blob_le(b, item->method, 2);
    blob_le(b, 0, 8);
    blob_le(b, item->zip64 ? UINT32_MAX : size, 4);
    blob_le(b, item->zip64 ? UINT32_MAX : size, 4);
    blob_le(b, strlen(item->name), 2);
    blob_le(b, item->zip64 ? 28 : 0, 2);
    blob_le(b, 0, 10);
    blob_le(b, item->zip64 ? UINT32_MAX : at, 4);
    blob_add(b, item->name, strlen(item->name));
    if (item->zip64) {
        blob_le(b, 1, 2);
        blob_le(b, 24, 2);
        blob_le(b, size, 8);
        blob_le(b, size, 8);
        blob_le(b, at, 8);
    }
}

blob zip_make(const zip_item *items, int n)
{
    blob b = { 0 }, central = { 0 };
    int zip64 = 0;
    for (int i = 0; i < n; i++) {
        size_t header = b.len, name_len = strlen(items[i].name);
        size_t pad = (64 - (header + 30 + name_len) % 64) % 64; /* the payload at a multiple of 64, as torch has it */
        blob_le(&b, 0x04034b50, 4);
        blob_le(&b, 0, 22); /* sizes and checksum are in the central directory only, as with flag 8 */
        blob_le(&b, name_len, 2);
        blob_le(&b, pad, 2);
        blob_add(&b, items[i].name, name_len);
        for (size_t k = 0; k < pad; k++)
            blob_le(&b, 'Z', 1);
        blob_add(&b, items[i].data.p, items[i].data.len);
        add_central(&central, &items[i], header);
        zip64 |= items[i].zip64;
    }
    size_t start = b.len;
    blob_add(&b, central.p, central.len);
    if (zip64) {
        size_t record = b.len;
        blob_le(&b, 0x06064b50, 4);
        blob_le(&b, 44, 8);
        blob_le(&b, 0, 12);
        blob_le(&b, (uint64_t)n, 8);
        blob_le(&b, (uint64_t)n, 8);
        blob_le(&b, central.len, 8);
        blob_le(&b, start, 8);
        blob_le(&b, 0x07064b50, 4);
        blob_le(&b, 0, 4);
        blob_le(&b, record, 8);
        blob_le(&b, 1, 4);
    }
    blob_le(&b, 0x06054b50, 4);
    blob_le(&b, 0, 4);
    blob_le(&b, zip64 ? 0xffff : (uint64_t)n, 2);
    blob_le(&b, zip64 ? 0xffff : (uint64_t)n, 2);
    blob_le(&b, zip64 ? UINT32_MAX : central.len, 4);
    blob_le(&b, zip64 ? UINT32_MAX : start, 4);
    blob_le(&b, 0, 2);
    blob_free(&central);
    return b;
}

void pickle_begin(blob *b) { blob_str(b, "\x80\x02}("); }

void pickle_text(blob *b, const char *s)
{
    blob_str(b, "X");
    blob_le(b, strlen(s), 4);
    blob_add(b, s, strlen(s));
}

void pickle_int(blob *b, int64_t v)
{
    if (v == (int32_t)v) {
        blob_str(b, "J");
        blob_le(b, (uint64_t)v, 4);
    } else {
        blob_str(b, "\x8a\x08");
        blob_le(b, (uint64_t)v, 8);
    }
}

static void pickle_sizes(blob *b, int rank, const int64_t *v)
{
    blob_str(b, "(");
    for (int d = 0; d < rank; d++)
        pickle_int(b, v[d]);
    blob_str(b, "t");
}

void pickle_storage(blob *b, const char *type, const char *key, int64_t numel)
{
    blob_str(b, "(");
    pickle_text(b, "storage");
    blob_str(b, "ctorch\n");
    blob_add(b, type, strlen(type));
    blob_str(b, "\n");
    pickle_text(b, key);
    pickle_text(b, "cuda:0");
    pickle_int(b, numel);
    blob_str(b, "tQ");
}

void pickle_tensor(blob *b, const char *name, const char *type, const char *key, int64_t numel, int64_t offset,
                   int rank, const int64_t *dims, const int64_t *strides)
{
    pickle_text(b, name);
    blob_str(b, "ctorch._utils\n_rebuild_tensor_v2\n(");
    pickle_storage(b, type, key, numel);
    pickle_int(b, offset);
    pickle_sizes(b, rank, dims);
    pickle_sizes(b, rank, strides);
    blob_str(b, "\211ccollections\nOrderedDict\n)RtR");
}

void pickle_end(blob *b) { blob_str(b, "u."); }

void assert_error(const dn_error *err, int rc, int code, const char *param, const char *text)
{
    if (rc != code || err->code != code || (param && strcmp(err->param, param) != 0) || !strstr(err->message, text))
        fail_msg("got %s (%d, err %d), param \"%s\", message \"%s\"; expected %s, param \"%s\", message \"...%s...\"",
                 dn_error_name(rc), rc, err->code, err->param, err->message, dn_error_name(code), param ? param : "*",
                 text);
}
