/* field_write.c - structs to JSON by table: every response and event. */
#include "field.h"
#include "json.h"

#include <assert.h>
#include <inttypes.h>

typedef void write_fn(const dn_field *f, const void *src, dn_buf *b);

static void write_bool(const dn_field *f, const void *src, dn_buf *b)
{
    (void)f;
    dn_buf_puts(b, *(const bool *)src ? "true" : "false");
}

static void write_int(const dn_field *f, const void *src, dn_buf *b)
{
    (void)f;
    dn_buf_printf(b, "%" PRId64, *(const int64_t *)src);
}

static void write_num(const dn_field *f, const void *src, dn_buf *b)
{
    (void)f;
    dn_buf_json_number(b, *(const double *)src);
}

static void write_str(const dn_field *f, const void *src, dn_buf *b)
{
    (void)f;
    dn_buf_json_string(b, *(const char *const *)src);
}

static void write_enum(const dn_field *f, const void *src, dn_buf *b)
{
    dn_buf_json_string(b, f->choices[*(const int *)src]);
}

static void write_json(const dn_field *f, const void *src, dn_buf *b)
{
    (void)f;
    dn_json_write(*(const json_t *const *)src, b);
}

static void write_object(const dn_field *f, const void *src, dn_buf *b) { dn_fields_write(f->sub, src, b); }

static void write_list(const dn_field *f, const void *src, dn_buf *b)
{
    const dn_items *items = src;
    dn_buf_puts(b, "[");
    for (int i = 0; i < items->n; i++) {
        dn_buf_puts(b, i ? "," : "");
        dn_fields_write(f->sub, (const char *)items->v + (size_t)i * f->sub->size, b);
    }
    dn_buf_puts(b, "]");
}

static void write_numbers(const double *v, int n, dn_buf *b)
{
    for (int i = 0; i < n; i++) {
        dn_buf_puts(b, i ? "," : "[");
        dn_buf_json_number(b, v[i]);
    }
    dn_buf_puts(b, n ? "]" : "[]");
}

static void write_pair(const dn_field *f, const void *src, dn_buf *b)
{
    (void)f;
    write_numbers(src, 2, b);
}

static void write_nums(const dn_field *f, const void *src, dn_buf *b)
{
    const dn_nums *nums = src;
    (void)f;
    write_numbers(nums->v, nums->n, b);
}

/* As it was written: one label, or a list. */
static void write_labels(const dn_field *f, const void *src, dn_buf *b)
{
    const dn_labels *labels = src;
    (void)f;
    dn_buf_puts(b, labels->list ? "[" : "");
    for (int i = 0; i < labels->n; i++) {
        dn_buf_puts(b, i ? "," : "");
        if (labels->v[i].name)
            dn_buf_json_string(b, labels->v[i].name);
        else
            dn_buf_printf(b, "%lld", (long long)labels->v[i].number);
    }
    dn_buf_puts(b, labels->list ? "]" : "");
}

static void write_strs(const dn_field *f, const void *src, dn_buf *b)
{
    const dn_strs *strs = src;
    (void)f;
    dn_buf_puts(b, "[");
    for (int i = 0; i < strs->n; i++) {
        dn_buf_puts(b, i ? "," : "");
        dn_buf_json_string(b, strs->v[i]);
    }
    dn_buf_puts(b, "]");
}

static void write_bytes(const dn_field *f, const void *src, dn_buf *b)
{
    const dn_bytes *bytes = src;
    (void)f;
    dn_buf_puts(b, "\"");
    dn_buf_base64(b, bytes->data, bytes->len);
    dn_buf_puts(b, "\"");
}

static write_fn *const writers[DN_T_COUNT] = {
    [DN_T_BOOL] = write_bool, [DN_T_INT] = write_int,   [DN_T_NUM] = write_num,     [DN_T_STR] = write_str,
    [DN_T_ENUM] = write_enum, [DN_T_NAME] = write_str,  [DN_T_JSON] = write_json,   [DN_T_OBJECT] = write_object,
    [DN_T_LIST] = write_list, [DN_T_STRS] = write_strs, [DN_T_BYTES] = write_bytes,
    [DN_T_PAIR] = write_pair, [DN_T_NUMS] = write_nums, [DN_T_LABELS] = write_labels,
};

static bool is_absent(const dn_field *f, const void *src, bool has)
{
    switch (f->type) {
    case DN_T_STR:
    case DN_T_NAME:
    case DN_T_JSON:
        return !has || !*(const void *const *)src;
    case DN_T_BYTES:
        return !has || !((const dn_bytes *)src)->data;
    case DN_T_LABELS:
        return !has || !((const dn_labels *)src)->n;
    case DN_T_OBJECT:
        return !has || !*(const uint64_t *)src;
    default:
        return !has;
    }
}

void dn_fields_write(const dn_fields *t, const void *in, dn_buf *b)
{
    uint64_t has = *(const uint64_t *)in;
    bool any = false;
    dn_buf_puts(b, "{");
    for (int i = 0; i < t->n; i++) {
        const dn_field *f = &t->v[i];
        const void *src = (const char *)in + f->offset;
        bool absent = is_absent(f, src, has >> i & 1);
        if (absent && !(f->flags & DN_F_NULL))
            continue;
        dn_buf_puts(b, any ? "," : "");
        any = true;
        dn_buf_json_string(b, f->name);
        dn_buf_puts(b, ":");
        assert(writers[f->type]);
        if (absent)
            dn_buf_puts(b, "null");
        else
            writers[f->type](f, src, b);
    }
    dn_buf_puts(b, "}");
}
