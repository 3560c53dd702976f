/* buf.c - the growable buffer and the three encodings that every body needs: JSON strings, numbers, base64. */
#include "buf.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void dn_buf_init(dn_buf *b, size_t max) { *b = (dn_buf){ .max = max }; }

void dn_buf_fini(dn_buf *b)
{
    if (!b)
        return;
    free(b->data);
    dn_buf_init(b, b->max);
}

/* Room for `extra` bytes and the NUL; false (and sticky) when that is over the cap. */
static bool reserve(dn_buf *b, size_t extra)
{
    if (b->failed || extra > b->max - b->len || extra >= SIZE_MAX - b->len) {
        b->failed = true;
        return false;
    }
    size_t need = b->len + extra + 1;
    if (need <= b->cap)
        return true;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    char *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->cap = cap;
    return true;
}

void dn_buf_add(dn_buf *b, const void *data, size_t len)
{
    if (!reserve(b, len))
        return;
    if (len)
        memcpy(b->data + b->len, data, len);
    b->data[b->len += len] = 0;
}

void dn_buf_puts(dn_buf *b, const char *s) { dn_buf_add(b, s, strlen(s)); }

void dn_buf_printf(dn_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (len < 0 || !reserve(b, (size_t)len)) {
        b->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)len + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)len;
}

/* Bytes of the well-formed UTF-8 sequence at s (RFC 3629: no overlong forms, no surrogates), 0 if there is none. */
static size_t utf8_len(const unsigned char *s, size_t len)
{
    static const struct {
        unsigned char lo, hi, second_lo, second_hi, n;
    } forms[] = {
        { 0x00, 0x7f, 0x00, 0x00, 1 }, { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
        { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
        { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 },
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (s[0] < forms[i].lo || s[0] > forms[i].hi)
            continue;
        size_t n = forms[i].n;
        if (n > len || (n > 1 && (s[1] < forms[i].second_lo || s[1] > forms[i].second_hi)))
            return 0;
        for (size_t k = 2; k < n; k++)
            if ((s[k] & 0xc0) != 0x80)
                return 0;
        return n;
    }
    return 0;
}

static void add_escaped(dn_buf *b, unsigned char c)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *p = c ? strchr(from, c) : NULL;
    if (p)
        dn_buf_add(b, (char[]){ '\\', to[p - from] }, 2);
    else
        dn_buf_printf(b, "\\u%04x", c);
}

void dn_buf_json_string_n(dn_buf *b, const char *s, size_t len)
{
    dn_buf_puts(b, "\"");
    for (size_t i = 0, n; i < len; i += n) {
        unsigned char c = (unsigned char)s[i];
        n = utf8_len((const unsigned char *)s + i, len - i);
        if (!n) {
            dn_buf_puts(b, "\xef\xbf\xbd");
            n = 1;
        } else if (c < 0x20 || c == '"' || c == '\\' || c == 0x7f) {
            add_escaped(b, c);
        } else {
            dn_buf_add(b, s + i, n);
        }
    }
    dn_buf_puts(b, "\"");
}

void dn_buf_json_string(dn_buf *b, const char *s) { dn_buf_json_string_n(b, s, strlen(s)); }

void dn_buf_json_number(dn_buf *b, double v)
{
    if (!isfinite(v)) {
        dn_buf_puts(b, "null");
        return;
    }
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    dn_buf_puts(b, text);
}

void dn_buf_base64(dn_buf *b, const void *data, size_t len)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *s = data;
    if (len / 3 > (SIZE_MAX - 8) / 4 || !reserve(b, (len + 2) / 3 * 4)) {
        b->failed = true;
        return;
    }
    char *d = b->data + b->len;
    for (size_t i = 0; i < len; i += 3, d += 4) {
        size_t left = len - i;
        unsigned v = (unsigned)s[i] << 16 | (left > 1 ? (unsigned)s[i + 1] << 8 : 0) | (left > 2 ? s[i + 2] : 0);
        d[0] = digit[v >> 18];
        d[1] = digit[v >> 12 & 63];
        d[2] = left > 1 ? digit[v >> 6 & 63] : '=';
        d[3] = left > 2 ? digit[v & 63] : '=';
    }
    *d = 0;
    b->len = (size_t)(d - b->data);
}

char *dn_buf_take(dn_buf *b, size_t *len)
{
    if (b->failed || !b->data)
        return NULL;
    char *data = b->data;
    *len = b->len;
    dn_buf_init(b, b->max);
    return data;
}
