/* array.c - see array.h. Both formats are a head that says the shape, then the numbers. */
#include "array.h"
#include "proto.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_MAX = 4096, NPY_ALIGN = 64, NPY_PREFIX = 10, ST_ALIGN = 8, ST_PREFIX = 8 };

static uint64_t little_endian(const uint8_t *bytes, int n)
{
    uint64_t v = 0;
    while (n--)
        v = v << 8 | bytes[n];
    return v;
}

static void add_little_endian(dn_buf *b, uint64_t v, int n)
{
    for (; n--; v >>= 8)
        dn_buf_add(b, &(uint8_t){ (uint8_t)v }, 1);
}

/* Blanks and a last byte up to a multiple of `align`. */
static void pad(dn_buf *head, size_t prefix, size_t align, const char *last)
{
    while ((prefix + head->len + strlen(last)) % align)
        dn_buf_puts(head, " ");
    dn_buf_puts(head, last);
}

/* ---- npy 1.0: magic, version, length, a Python dictionary ---------------------------------------------------- */

static size_t npy_head(const uint8_t *p, size_t len)
{
    if (len < NPY_PREFIX || memcmp(p, "\x93NUMPY\x01\x00", 8))
        return 0;
    return NPY_PREFIX + (size_t)little_endian(p + 8, 2);
}

static bool npy_rewrite(dn_buf *out, const uint8_t *old, size_t len, int n)
{
    static const char one[] = "(1, ";
    const char *text = (const char *)old + NPY_PREFIX, *at = memmem(text, len - NPY_PREFIX, one, sizeof one - 1);
    const char *end = memrchr(text, '}', len - NPY_PREFIX);
    dn_buf head;
    if (!at || !end || end < at)
        return false;
    dn_buf_init(&head, HEAD_MAX);
    dn_buf_add(&head, text, (size_t)(at - text));
    dn_buf_printf(&head, "(%d, ", n);
    dn_buf_add(&head, at + sizeof one - 1, (size_t)(end + 1 - at) - (sizeof one - 1));
    pad(&head, NPY_PREFIX, NPY_ALIGN, "\n");
    dn_buf_add(out, old, 8);
    add_little_endian(out, head.len, 2);
    dn_buf_add(out, head.data, head.len);
    bool ok = !head.failed;
    dn_buf_fini(&head);
    return ok;
}

/* ---- safetensors: length, JSON with one tensor --------------------------------------------------------------- */

static size_t st_head(const uint8_t *p, size_t len)
{
    uint64_t n = len >= ST_PREFIX ? little_endian(p, 8) : 0;
    return n && n <= HEAD_MAX ? ST_PREFIX + (size_t)n : 0;
}

/* Its shape becomes [n, ...], its offsets [0, n * bytes]. */
static bool st_change(json_t *head, int n)
{
    const char *name;
    json_t *tensor = NULL, *member;
    json_object_foreach(head, name, member)
    {
        if (strcmp(name, "__metadata__"))
            tensor = member;
    }
    json_t *shape = json_object_get(tensor, "shape"), *offsets = json_object_get(tensor, "data_offsets");
    json_int_t bytes = json_integer_value(json_array_get(offsets, 1));
    return json_integer_value(json_array_get(shape, 0)) == 1 && bytes > 0 && bytes <= (1ll << 40) &&
           !json_array_set_new(shape, 0, json_integer(n)) && !json_array_set_new(offsets, 1, json_integer(bytes * n));
}

static bool st_rewrite(dn_buf *out, const uint8_t *old, size_t len, int n)
{
    dn_http_error err;
    dn_buf head;
    json_t *json = dn_json_parse((const char *)old + ST_PREFIX, len - ST_PREFIX, &err);
    char *text = json && st_change(json, n) ? json_dumps(json, JSON_COMPACT) : NULL;
    bool ok = text;
    dn_buf_init(&head, HEAD_MAX);
    if (ok) {
        dn_buf_puts(&head, text);
        pad(&head, ST_PREFIX, ST_ALIGN, "");
        add_little_endian(out, head.len, 8);
        dn_buf_add(out, head.data, head.len);
        ok = !head.failed;
    }
    dn_buf_fini(&head);
    free(text);
    json_decref(json);
    return ok;
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

static const struct format {
    const char *content_type;
    size_t (*head)(const uint8_t *p, size_t len); /* how long it says it is; 0: it is none */
    bool (*rewrite)(dn_buf *out, const uint8_t *old, size_t len, int n);
} formats[] = {
    { "application/x-npy", npy_head, npy_rewrite },
    { "application/x-safetensors", st_head, st_rewrite },
};

static const struct format *format_of(const char *content_type)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(formats[i].content_type, content_type))
            return &formats[i];
    return NULL;
}

bool dn_array_is(const char *content_type) { return format_of(content_type); }

bool dn_array_join(dn_buf *out, const char *content_type, const dn_bytes *part, int n)
{
    const struct format *f = format_of(content_type);
    size_t head = f ? f->head(part[0].data, part[0].len) : 0;
    if (!head || head > part[0].len)
        return false;
    for (int i = 1; i < n; i++)
        if (part[i].len != part[0].len || memcmp(part[i].data, part[0].data, head))
            return false;
    if (!f->rewrite(out, part[0].data, head, n))
        return false;
    for (int i = 0; i < n; i++)
        dn_buf_add(out, (const char *)part[i].data + head, part[i].len - head);
    return !out->failed;
}
