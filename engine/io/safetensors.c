/* safetensors.c - the safetensors format, in and out.
 *
 * One reader serves files and memory. It accepts what the format's own reader accepts, within named limits: a header of
 * at most 100 MB, DN_TENSORS_MAX tensors, DN_TENSOR_RANK_MAX dimensions, the limits of json.h. */
#include "json.h"
#include "stored.h"

#include <denoised/image.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, HEADER_MAX = 100000000, ALIGN = 8 };
static const char metadata_key[] = "__metadata__";

/* --- reading --- */

static int bad_tensor(const dn_source *src, int code, const char *name, const char *why, dn_error *err)
{
    return dn_fail(err, code, src->name, "%s: tensor \"%s\": %s", src->name, dn_show(name, strlen(name)).text, why);
}

static int check_metadata(const json_t *metadata, const dn_source *src, dn_error *err)
{
    const char *key;
    json_t *value;
    bool good = json_is_object(metadata);
    json_object_foreach((json_t *)metadata, key, value) { good = good && json_is_string(value); }
    return good ? 0 : dn_fail(err, DN_E_FORMAT, src->name, "%s: __metadata__ is not a map of strings", src->name);
}

/* A size or an offset: an integer >= 0. */
static bool get_size(const json_t *v, int64_t *out)
{
    *out = json_integer_value(v);
    return json_is_integer(v) && *out >= 0;
}

static int parse_shape(dn_stored *t, const json_t *shape, const dn_source *src, dn_error *err)
{
    if (!json_is_array(shape))
        return bad_tensor(src, DN_E_FORMAT, t->name, "it has no shape", err);
    if (json_array_size(shape) > DN_TENSOR_RANK_MAX)
        return bad_tensor(src, DN_E_LIMIT, t->name, "it has more than 8 dimensions", err);
    t->rank = (int)json_array_size(shape);
    for (int d = 0; d < t->rank; d++)
        if (!get_size(json_array_get(shape, (size_t)d), &t->dim[d]))
            return bad_tensor(src, DN_E_FORMAT, t->name, "its shape is not a list of sizes", err);
    if (dn_stored_set_shape(t) != 0)
        return bad_tensor(src, DN_E_FORMAT, t->name, "the product of its shape overflows", err);
    return 0;
}

static int parse_offsets(dn_stored *t, const json_t *offsets, const dn_source *src, dn_error *err)
{
    int64_t begin, end, bits;
    if (json_array_size(offsets) != 2 || !get_size(json_array_get(offsets, 0), &begin) ||
        !get_size(json_array_get(offsets, 1), &end) || end < begin)
        return bad_tensor(src, DN_E_FORMAT, t->name, "its data_offsets are not [begin, end]", err);
    if (__builtin_mul_overflow(t->count, (int64_t)t->dtype->bits, &bits))
        return bad_tensor(src, DN_E_FORMAT, t->name, "its size overflows", err);
    if (bits % 8 != 0 || bits / 8 != end - begin)
        return bad_tensor(src, DN_E_FORMAT, t->name, "its data_offsets do not agree with its shape and dtype", err);
    t->offset = (uint64_t)begin; /* from the start of the data; list() adds that */
    t->bytes = (uint64_t)(end - begin);
    return 0;
}

static int parse_tensor(dn_stored *t, const char *name, const json_t *info, const dn_source *src, dn_error *err)
{
    if (strlen(name) >= sizeof t->name)
        return bad_tensor(src, DN_E_LIMIT, name, "its name is longer than 255 bytes", err);
    strcpy(t->name, name);
    if (!json_is_object(info))
        return bad_tensor(src, DN_E_FORMAT, name, "its entry is not an object", err);
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    t->dtype = dtype ? dn_dtype_find(dtype) : NULL;
    if (!t->dtype)
        return bad_tensor(src, DN_E_FORMAT, name, "its dtype is missing or unknown", err);
    int rc = parse_shape(t, json_object_get(info, "shape"), src, err);
    return rc == 0 ? parse_offsets(t, json_object_get(info, "data_offsets"), src, err) : rc;
}

static int by_offset(const void *a, const void *b)
{
    const dn_stored *x = a, *y = b;
    uint64_t x_end = x->offset + x->bytes, y_end = y->offset + y->bytes;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x_end < y_end ? -1 : x_end > y_end;
}

/* The data is the tensors, one after the other, and nothing else. */
static int check_layout(dn_stored *t, size_t n, uint64_t data_bytes, const dn_source *src, dn_error *err)
{
    uint64_t at = 0;
    qsort(t, n, sizeof *t, by_offset);
    for (size_t i = 0; i < n; at += t[i].bytes, i++)
        if (t[i].offset != at)
            return bad_tensor(src, DN_E_FORMAT, t[i].name, "there is a hole before it, or it overlaps another", err);
    if (at != data_bytes)
        return dn_fail(err, DN_E_FORMAT, src->name, "%s: the header speaks of %llu bytes of data; there are %llu",
                       src->name, (unsigned long long)at, (unsigned long long)data_bytes);
    return 0;
}

static int load_header(json_t **out, uint64_t *data_start, const dn_source *src, dn_error *err)
{
    uint64_t len;
    if (src->size < LENGTH_BYTES)
        return dn_fail(err, DN_E_FORMAT, src->name, "%s: too short for a safetensors file", src->name);
    int rc = dn_source_read(src, 0, &len, LENGTH_BYTES, err);
    if (rc != 0)
        return rc;
    if (len > HEADER_MAX)
        return dn_fail(err, DN_E_LIMIT, src->name, "%s: a header of %llu bytes; the limit is %d", src->name,
                       (unsigned long long)len, HEADER_MAX);
    if (len > src->size - LENGTH_BYTES)
        return dn_fail(err, DN_E_FORMAT, src->name, "%s: cut short in its header", src->name);
    uint8_t *text;
    rc = dn_source_load(&text, src, LENGTH_BYTES, (size_t)len, err);
    if (rc != 0)
        return rc;
    rc = dn_json_text(out, (const char *)text, (size_t)len, src->name, err);
    free(text);
    *data_start = LENGTH_BYTES + len;
    return rc;
}

static int parse_header(dn_stored_list *l, json_t *header, const dn_source *src, dn_error *err)
{
    const char *name;
    json_t *info;
    int rc = dn_stored_reserve(l, json_object_size(header), src->name, err);
    if (rc != 0)
        return rc;
    json_object_foreach(header, name, info)
    {
        dn_stored t = { 0 };
        bool is_tensor = strcmp(name, metadata_key) != 0;
        rc = is_tensor ? parse_tensor(&t, name, info, src, err) : check_metadata(info, src, err);
        if (rc != 0)
            return rc;
        if (is_tensor)
            l->at[l->len++] = t;
    }
    return 0;
}

int dn_safetensors_list(dn_stored_list *l, const dn_source *src, int source, dn_error *err)
{
    json_t *header;
    uint64_t data_start = 0;
    int first = l->len;
    int rc = load_header(&header, &data_start, src, err);
    if (rc != 0)
        return rc;
    rc = parse_header(l, header, src, err);
    json_decref(header);
    if (rc == 0 && l->len > first)
        rc = check_layout(l->at + first, (size_t)(l->len - first), src->size - data_start, src, err);
    else if (rc == 0 && src->size != data_start)
        rc = dn_fail(err, DN_E_FORMAT, src->name, "%s: there is data, but no tensor", src->name);
    if (rc != 0) {
        l->len = first;
        return rc;
    }
    for (int i = first; i < l->len; i++) {
        l->at[i].offset += data_start;
        l->at[i].source = source;
    }
    return 0;
}

static int give(dn_st_tensor *out, const dn_stored *t, const dn_source *src, dn_error *err)
{
    *out = (dn_st_tensor){ .rank = t->rank, .data = src->mem + t->offset, .bytes = (size_t)t->bytes };
    if (strlen(t->name) >= sizeof out->name)
        return dn_fail(err, DN_E_LIMIT, src->name, "%s: tensor \"%s\": its name is longer than %zu bytes", src->name,
                       dn_show(t->name, strlen(t->name)).text, sizeof out->name - 1);
    if (strlen(t->dtype->name) >= sizeof out->dtype)
        return bad_tensor(src, DN_E_UNSUPPORTED, t->name, "its dtype is not supported", err);
    strcpy(out->name, t->name);
    strcpy(out->dtype, t->dtype->name);
    memcpy(out->dim, t->dim, sizeof out->dim);
    return 0;
}

int dn_st_parse(dn_st_tensor *t, int *n, const void *buf, size_t len, dn_error *err)
{
    dn_source src = dn_source_memory(buf, len, "safetensors");
    dn_stored_list l = { 0 };
    int rc = dn_safetensors_list(&l, &src, 0, err);
    if (rc == 0 && l.len > *n)
        rc = dn_fail(err, DN_E_LIMIT, src.name, "%s: %d tensors; the limit is %d", src.name, l.len, *n);
    dn_st_tensor *found = rc == 0 && l.len > 0 ? malloc((size_t)l.len * sizeof *found) : NULL;
    if (rc == 0 && l.len > 0 && !found)
        rc = dn_fail(err, DN_E_MEMORY, src.name, "%s: no memory for its list of tensors", src.name);
    for (int i = 0; rc == 0 && i < l.len; i++)
        rc = give(&found[i], &l.at[i], &src, err);
    if (rc == 0) {
        *n = l.len;
        if (found)
            memcpy(t, found, (size_t)l.len * sizeof *t);
    }
    free(found);
    dn_stored_fini(&l);
    return rc;
}

/* --- writing --- */

typedef struct piece {
    const dn_st_tensor *t;
    const dn_dtype *dtype;
} piece;

static int by_name(const void *a, const void *b)
{
    return strcmp(((const piece *)a)->t->name, ((const piece *)b)->t->name);
}

/* The widest types first, so that everything is aligned; then by name. */
static int by_dtype_and_name(const void *a, const void *b)
{
    const piece *x = a, *y = b;
    if (x->dtype != y->dtype)
        return x->dtype < y->dtype ? -1 : 1;
    return by_name(a, b);
}

static int bad_item(const dn_st_tensor *t, const char *why, dn_error *err)
{
    dn_shown name = dn_show(t->name, strnlen(t->name, sizeof t->name));
    return dn_fail(err, DN_E_INVALID, name.text, "tensor \"%s\": %s", name.text, why);
}

/* 0, or what is wrong with the name: JSON holds UTF-8 only. */
static int check_name(const dn_st_tensor *t, dn_error *err)
{
    if (!memchr(t->name, 0, sizeof t->name) || strcmp(t->name, metadata_key) == 0)
        return bad_item(t, "not a name for a tensor", err);
    json_error_t e;
    json_t *string = json_pack_ex(&e, 0, "s", t->name);
    if (!string && json_error_code(&e) == json_error_invalid_utf8)
        return bad_item(t, "its name is not UTF-8", err);
    if (!string)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a safetensors header");
    json_decref(string);
    return 0;
}

static int check_item(piece *item, const dn_st_tensor *t, dn_error *err)
{
    int rc = check_name(t, err);
    if (rc != 0)
        return rc;
    *item = (struct piece){ .t = t, .dtype = memchr(t->dtype, 0, sizeof t->dtype) ? dn_dtype_find(t->dtype) : NULL };
    if (!item->dtype)
        return bad_item(t, "unknown dtype", err);
    if (t->rank < 0 || t->rank > DN_TENSOR_RANK_MAX)
        return bad_item(t, "it has more than 8 dimensions", err);
    dn_stored shape = { .rank = t->rank };
    memcpy(shape.dim, t->dim, sizeof shape.dim);
    for (int d = 0; d < t->rank; d++)
        if (t->dim[d] < 0)
            return bad_item(t, "a dimension is negative", err);
    uint64_t bits;
    if (dn_stored_set_shape(&shape) != 0 ||
        __builtin_mul_overflow((uint64_t)shape.count, (uint64_t)item->dtype->bits, &bits) || bits % 8 != 0 ||
        bits / 8 != t->bytes)
        return bad_item(t, "its bytes do not agree with its shape and dtype", err);
    return 0;
}

static int check_items(piece *items, const dn_st_tensor *t, int n, size_t *data_bytes, dn_error *err)
{
    *data_bytes = 0;
    for (int i = 0; i < n; i++) {
        int rc = check_item(&items[i], &t[i], err);
        if (rc != 0)
            return rc;
        if (__builtin_add_overflow(*data_bytes, t[i].bytes, data_bytes) || *data_bytes > SIZE_MAX / 2)
            return bad_item(&t[i], "too much data for one file", err);
    }
    qsort(items, (size_t)n, sizeof *items, by_name);
    for (int i = 1; i < n; i++)
        if (by_name(&items[i], &items[i - 1]) == 0)
            return bad_item(items[i].t, "it is there twice", err);
    qsort(items, (size_t)n, sizeof *items, by_dtype_and_name);
    return 0;
}

static json_t *item_to_json(const piece *item, size_t begin)
{
    json_t *shape = json_array();
    for (int d = 0; d < item->t->rank; d++)
        if (json_array_append_new(shape, json_integer(item->t->dim[d])) != 0) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", item->dtype->name, "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + item->t->bytes));
}

/* The JSON text (free it), or NULL: no memory. */
static char *header_text(const piece *items, int n)
{
    json_t *header = json_object();
    size_t begin = 0;
    for (int i = 0; i < n; begin += items[i].t->bytes, i++)
        if (json_object_set_new(header, items[i].t->name, item_to_json(&items[i], begin)) != 0) {
            json_decref(header);
            return NULL;
        }
    char *text = header ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    return text;
}

static int write_all(uint8_t **out, size_t *out_len, const piece *items, int n, size_t data_bytes, dn_error *err)
{
    char *text = header_text(items, n);
    if (!text)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a safetensors header");
    size_t text_len = strlen(text), header_len = (text_len + ALIGN - 1) / ALIGN * ALIGN;
    uint8_t *buf = malloc(LENGTH_BYTES + header_len + data_bytes);
    if (!buf) {
        free(text);
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for %zu bytes of safetensors", header_len + data_bytes);
    }
    uint64_t length = header_len;
    memcpy(buf, &length, LENGTH_BYTES);
    uint8_t *at = buf + LENGTH_BYTES;
    memset(at, ' ', header_len);
    memcpy(at, text, text_len);
    free(text);
    at += header_len;
    for (int i = 0; i < n; at += items[i].t->bytes, i++)
        if (items[i].t->bytes > 0)
            memcpy(at, items[i].t->data, items[i].t->bytes);
    *out = buf;
    *out_len = (size_t)(at - buf);
    return 0;
}

int dn_st_encode(uint8_t **out, size_t *out_len, const dn_st_tensor *t, int n, dn_error *err)
{
    if (n < 0 || n > DN_TENSORS_MAX)
        return dn_fail(err, DN_E_LIMIT, NULL, "%d tensors; the limit is %d", n, DN_TENSORS_MAX);
    piece *items = calloc((size_t)n + 1, sizeof *items);
    if (!items)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a list of %d tensors", n);
    size_t data_bytes;
    int rc = check_items(items, t, n, &data_bytes, err);
    if (rc == 0)
        rc = write_all(out, out_len, items, n, data_bytes, err);
    free(items);
    return rc;
}
