/* sse.c - see sse.h. */
#include "sse.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

void dn_sse_init(dn_sse *s, size_t max, dn_sse_fn *fn, void *arg)
{
    *s = (dn_sse){ .fn = fn, .arg = arg };
    dn_buf_init(&s->line, max);
    dn_buf_init(&s->data, max);
}

void dn_sse_fini(dn_sse *s)
{
    dn_buf_fini(&s->line);
    dn_buf_fini(&s->data);
}

static void dispatch(dn_sse *s)
{
    if (s->has_data)
        s->result = s->fn(s->arg, *s->name ? s->name : "message", s->id, s->data.data ? s->data.data : "", s->data.len);
    s->data.len = 0;
    s->has_data = false;
    s->name[0] = 0;
}

/* A value that does not fit is no name of ours: it is taken as absent. */
static void copy(char out[DN_SSE_NAME_MAX + 1], const char *value, size_t len)
{
    bool fits = len <= DN_SSE_NAME_MAX && !memchr(value, 0, len);
    snprintf(out, DN_SSE_NAME_MAX + 1, "%.*s", fits ? (int)len : 0, value);
}

static void add_data(dn_sse *s, const char *value, size_t len)
{
    if (s->has_data)
        dn_buf_add(&s->data, "\n", 1);
    dn_buf_add(&s->data, value, len);
    s->has_data = true;
}

/* "field: value", "field:value", "field" or ": comment" */
static void field(dn_sse *s, const char *line, size_t len)
{
    const char *colon = memchr(line, ':', len);
    size_t n = colon ? (size_t)(colon - line) : len, skip = colon ? n + 1 : n;
    if (skip < len && line[skip] == ' ')
        skip++;
    const char *value = line + skip;
    if (n == 4 && !memcmp(line, "data", 4))
        add_data(s, value, len - skip);
    else if (n == 5 && !memcmp(line, "event", 5))
        copy(s->name, value, len - skip);
    else if (n == 2 && !memcmp(line, "id", 2))
        copy(s->id, value, len - skip);
}

static void end_line(dn_sse *s)
{
    const char *line = s->line.len ? s->line.data : "";
    size_t len = s->line.len;
    if (!s->begun && len >= 3 && !memcmp(line, "\xef\xbb\xbf", 3)) {
        line += 3;
        len -= 3;
    }
    s->begun = true;
    if (len)
        field(s, line, len);
    else
        dispatch(s);
    s->line.len = 0;
}

static size_t line_len(const char *bytes, size_t len)
{
    const char *lf = memchr(bytes, '\n', len);
    size_t n = lf ? (size_t)(lf - bytes) : len;
    const char *cr = memchr(bytes, '\r', n);
    return cr ? (size_t)(cr - bytes) : n;
}

int dn_sse_feed(dn_sse *s, const char *bytes, size_t len)
{
    while (len && !s->result) {
        if (s->after_cr && *bytes == '\n') {
            s->after_cr = false;
            bytes++;
            len--;
            continue;
        }
        s->after_cr = false;
        size_t n = line_len(bytes, len);
        dn_buf_add(&s->line, bytes, n);
        if (n < len) {
            s->after_cr = bytes[n++] == '\r';
            end_line(s);
        }
        if (!s->result && (s->line.failed || s->data.failed))
            s->result = DN_SSE_OVERFLOW;
        bytes += n;
        len -= n;
    }
    return s->result;
}
