/* sse.h - a parser of server-sent events (WHATWG HTML, 9.2.6), fed with whatever pieces arrive.
 *
 * It holds one event at most, of `max` bytes; a longer one ends the parsing. */
#ifndef DN_CLI_SSE_H
#define DN_CLI_SSE_H

#include "buf.h"
#include <stdbool.h>
#include <stddef.h>

enum { DN_SSE_NAME_MAX = 63 };

/* One event; all of it is valid during the call. `name` is "message" if the event has none; `id` is the last that was
 * seen. Not 0: stop. */
typedef int dn_sse_fn(void *arg, const char *name, const char *id, const char *data, size_t len);

typedef struct dn_sse {
    dn_sse_fn *fn;
    void *arg;
    dn_buf line, data;
    char name[DN_SSE_NAME_MAX + 1], id[DN_SSE_NAME_MAX + 1];
    bool has_data; /* a data field came, be it empty */
    bool after_cr; /* a LF now belongs to the CR before */
    bool begun;    /* past a byte order mark */
    int result;    /* not 0: over */
} dn_sse;

enum { DN_SSE_OVERFLOW = -1 }; /* an event beyond `max`, or no memory */

void dn_sse_init(dn_sse *s, size_t max, dn_sse_fn *fn, void *arg);
void dn_sse_fini(dn_sse *s);
/* Returns 0, DN_SSE_OVERFLOW, or what fn returned to stop; from then on always that. */
int dn_sse_feed(dn_sse *s, const char *bytes, size_t len);

#endif
