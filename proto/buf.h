/* buf.h - a growable byte buffer with a cap: every body and event is written into one.
 *
 * Failure (out of memory, over the cap) is sticky: later writes do nothing, the caller looks at `failed` once. */
#ifndef DN_PROTO_BUF_H
#define DN_PROTO_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dn_buf {
    char *data; /* len bytes, then a NUL that is not counted; NULL while nothing was written */
    size_t len, cap, max;
    bool failed;
} dn_buf;

void dn_buf_init(dn_buf *b, size_t max);
void dn_buf_fini(dn_buf *b); /* NULL is fine; leaves it empty */
void dn_buf_add(dn_buf *b, const void *data, size_t len);
void dn_buf_puts(dn_buf *b, const char *s);
void dn_buf_printf(dn_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* "..." with JSON's escapes; bytes that are no UTF-8 become U+FFFD. */
void dn_buf_json_string(dn_buf *b, const char *s);
void dn_buf_json_string_n(dn_buf *b, const char *s, size_t len);
/* The shortest text that reads back as `v`; null when it is not finite (JSON has no other way to say it). */
void dn_buf_json_number(dn_buf *b, double v);
/* RFC 4648 section 4, padded, without quotes. */
void dn_buf_base64(dn_buf *b, const void *data, size_t len);
/* Hand the malloc'ed bytes over and leave the buffer empty. NULL when failed or nothing was written. */
char *dn_buf_take(dn_buf *b, size_t *len);

#endif
