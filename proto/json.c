/* json.c - from bytes to JSON values under a bound.
 *
 * A jansson value costs up to 84 times its text ("{}," makes an object with a hash table). The scan here counts nesting
 * and values first, so that a body of any content stays within DN_JSON_VALUES_MAX values; it also knows the path of the
 * member at any offset, which jansson's errors lack. */
#include "json.h"
#include "proto.h"

#include <stdio.h>
#include <string.h>

struct level {
    bool is_list;
    const char *key; /* NULL before the first member of an object */
    int key_len, index;
};

struct scan {
    struct level level[DN_JSON_DEPTH_MAX + 1];
    int depth, values;
    const char *word; /* the last string */
    int word_len;
};

/* The end of the string that starts after the quote at text[i]: the offset of its closing quote, or `len`. */
static size_t string_end(const char *text, size_t i, size_t len)
{
    for (i++; i < len && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i < len ? i : len;
}

/* Walk text[0..len). Syntax is not checked, only counted. Stops early, with depth past the limit, when nested too deep.
 */
static void scan_text(struct scan *s, const char *text, size_t len)
{
    for (size_t i = 0; i < len && s->depth <= DN_JSON_DEPTH_MAX; i++) {
        struct level *top = &s->level[s->depth];
        switch (text[i]) {
        case '"': {
            size_t end = string_end(text, i, len);
            s->word = text + i + 1;
            s->word_len = (int)(end - i) - 1;
            i = end;
            break;
        }
        case '{':
        case '[':
            s->values++;
            if (++s->depth <= DN_JSON_DEPTH_MAX)
                s->level[s->depth] = (struct level){ .is_list = text[i] == '[' };
            break;
        case '}':
        case ']':
            s->depth -= s->depth > 0;
            break;
        case ':':
            s->values++;
            top->key = s->word;
            top->key_len = s->word_len;
            break;
        case ',':
            s->values++;
            top->index++;
            break;
        }
    }
}

static void path_text(const struct scan *s, char *out, size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (int d = 1; d <= s->depth && n < size; d++) {
        const struct level *l = &s->level[d];
        if (!l->is_list && !l->key)
            break;
        int w = !l->is_list ? snprintf(out + n, size - n, "%s%.*s", n ? "." : "", l->key_len, l->key)
                            : snprintf(out + n, size - n, "[%d]", l->index);
        n += w > 0 ? (size_t)w : 0;
    }
}

static int fail_syntax(const char *text, size_t len, const json_error_t *e, dn_http_error *err)
{
    static const struct {
        enum json_error_code from;
        int to;
    } codes[] = { { json_error_duplicate_key, DN_H_DUPLICATE },
                  { json_error_numeric_overflow, DN_H_RANGE },
                  { json_error_out_of_memory, DN_H_MEMORY } };
    int code = DN_H_BAD_JSON;
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].from == json_error_code(e))
            code = codes[i].to;
    struct scan s = { .depth = 0 };
    char path[96];
    /* position is behind the last byte that was read; that byte may close what is at fault */
    scan_text(&s, text, e->position > 0 && (size_t)e->position <= len ? (size_t)e->position - 1 : len);
    if (code == DN_H_DUPLICATE) { /* found at the key, before its colon */
        s.level[s.depth].key = s.word;
        s.level[s.depth].key_len = s.word_len;
    }
    path_text(&s, path, sizeof path);
    return dn_http_fail(err, code, path, "line %d, column %d: %s", e->line, e->column, e->text);
}

json_t *dn_json_parse(const char *text, size_t len, dn_http_error *err)
{
    struct scan s = { .depth = 0 };
    if (memchr(text, 0, len)) { /* jansson takes it for the end */
        dn_http_fail(err, DN_H_BAD_JSON, NULL, "a NUL byte");
        return NULL;
    }
    scan_text(&s, text, len);
    if (s.depth > DN_JSON_DEPTH_MAX) {
        dn_http_fail(err, DN_H_TOO_DEEP, NULL, "JSON is nested deeper than %d", DN_JSON_DEPTH_MAX);
        return NULL;
    }
    if (s.values > DN_JSON_VALUES_MAX) {
        dn_http_fail(err, DN_H_TOO_DEEP, NULL, "JSON has more than %d values", DN_JSON_VALUES_MAX);
        return NULL;
    }
    json_error_t e;
    json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (!json) {
        fail_syntax(text, len, &e, err);
        return NULL;
    }
    if (!json_is_object(json)) {
        dn_http_fail(err, DN_H_TYPE, NULL, "the body must be a JSON object, got %s", dn_json_kind(json));
        json_decref(json);
        return NULL;
    }
    return json;
}

const char *dn_json_kind(const json_t *v)
{
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list", [JSON_STRING] = "a string", [JSON_INTEGER] = "an integer",
        [JSON_REAL] = "a number",    [JSON_TRUE] = "true",    [JSON_FALSE] = "false",     [JSON_NULL] = "null"
    };
    return kinds[json_typeof(v)];
}

void dn_json_brief(const json_t *v, char *out, size_t size)
{
    dn_buf b;
    dn_buf_init(&b, 4096);
    if (json_is_string(v))
        snprintf(out, size, "\"%.40s%s\"", json_string_value(v), json_string_length(v) > 40 ? "..." : "");
    else if (json_is_integer(v))
        snprintf(out, size, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    else if (json_is_real(v)) {
        dn_buf_json_number(&b, json_real_value(v));
        snprintf(out, size, "%s", b.data ? b.data : "a number");
    } else
        snprintf(out, size, "%s", dn_json_kind(v));
    dn_buf_fini(&b);
}

static void write_object(const json_t *v, dn_buf *b)
{
    const char *key, *comma = "{";
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)v, key, member)
    {
        dn_buf_puts(b, comma);
        dn_buf_json_string(b, key);
        dn_buf_puts(b, ":");
        dn_json_write(member, b);
        comma = ",";
    }
    dn_buf_puts(b, *comma == '{' ? "{}" : "}");
}

void dn_json_write(const json_t *v, dn_buf *b)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        write_object(v, b);
        break;
    case JSON_ARRAY:
        for (size_t i = 0; i < json_array_size(v); i++) {
            dn_buf_puts(b, i ? "," : "[");
            dn_json_write(json_array_get(v, i), b);
        }
        dn_buf_puts(b, json_array_size(v) ? "]" : "[]");
        break;
    case JSON_STRING:
        dn_buf_json_string(b, json_string_value(v));
        break;
    case JSON_INTEGER:
        dn_buf_printf(b, "%lld", (long long)json_integer_value(v));
        break;
    case JSON_REAL:
        dn_buf_json_number(b, json_real_value(v));
        break;
    default:
        dn_buf_puts(b, json_is_true(v) ? "true" : json_is_false(v) ? "false" : "null");
    }
}

char *dn_json_dump(const json_t *v)
{
    enum { TEXT_MAX = 64 << 20 };
    dn_buf b;
    size_t n;
    dn_buf_init(&b, TEXT_MAX);
    dn_json_write(v, &b);
    dn_buf_add(&b, "", 1);
    return dn_buf_take(&b, &n);
}
