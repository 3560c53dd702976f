/* http.h - HTTP exchanges, as the routes see them.
 *
 * All of it belongs to the loop's thread. A request that passes the rules (headers, Host, Origin, token, route, method,
 * type, length, draining) becomes a dn_call with its body complete, and its route's handler is called once. The handler
 * replies, opens a stream, or returns and replies later, from any callback on the loop's thread (other threads post a
 * message, loop.h). A reply or the end of a stream ends the handler's right to touch the call. If the client goes away
 * first, or the server stops, dn_call_on_gone's callback is told, once, and the call is gone when it returns: whoever
 * keeps a dn_call or dn_stream across the return of the handler must set it.
 *
 * Every refusal is the error object of proto/. HEAD is answered by GET's route. */
#ifndef DN_SERVER_HTTP_H
#define DN_SERVER_HTTP_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dn_http dn_http;
typedef struct dn_call dn_call;
typedef struct dn_stream dn_stream;

enum { DN_STREAM_BYTES_MAX = 128 << 20 };
struct dn_lane;       /* lanes.h */
struct dn_arena;      /* proto/arena.h */
struct dn_http_error; /* proto/http_error.h */

/* ---- endpoints ------------------------------------------------------------------------------------------- */

enum dn_scope {
    DN_SCOPE_NONE,  /* anyone: health, the page */
    DN_SCOPE_USE,   /* any token (or none are configured) */
    DN_SCOPE_ADMIN, /* a token with the scope `admin` (or none are configured) */
};
enum {
    DN_WHILE_DRAINING = 1, /* answered while draining too (a GET always is) */
    DN_BODY_TO_FILE = 2,   /* its body goes to a file: dn_call_file */
};
/* What answers a route of proto's table (dn_routes). Path, method, body limit, Content-Type and Accept are checked by
 * that table before the handler sees the call. A body may always be left out (the handler sees 0 bytes); one that the
 * table does not name a type for must be JSON. */
typedef struct dn_endpoint {
    int route; /* enum dn_route_id */
    void (*handler)(dn_call *call);
    enum dn_scope scope;
    const char *gives; /* media types for Accept, preferred first, blank-separated; NULL: the table's. None fits: 406 */
    unsigned flags;
} dn_endpoint;

/* ---- the call -------------------------------------------------------------------------------------------- */

struct dn_arena *dn_call_arena(dn_call *call);                    /* freed with the call */
void *dn_call_app(const dn_call *call);                           /* whose endpoint it is: the dn_app */
const char *dn_call_id(const dn_call *call);                      /* X-Request-Id, taken or made */
const char *dn_call_method(const dn_call *call);                  /* "GET" for HEAD */
const char *dn_call_path(const dn_call *call);                    /* as sent, without the query */
const char *dn_call_arg(const dn_call *call, int i);              /* what the path's i-th {..} matched, decoded */
const char *dn_call_query(const dn_call *call, const char *name); /* decoded; NULL if absent. A doubled one was 400 */
/* The i-th query parameter, for dn_query_set; false past the last. */
bool dn_call_query_at(const dn_call *call, int i, const char **name, const char **value);
const char *dn_call_header(const dn_call *call, const char *name); /* NULL if absent; lists come joined by ", " */
const void *dn_call_body(const dn_call *call, size_t *n);          /* valid until the call ends; a 0 byte follows it */
/* Of a body in memory that came with an Idempotency-Key, once. Returns 0 or a DN_E code. */
int dn_call_body_sha256(dn_call *call, char hex[65]);
const char *dn_call_content_type(const dn_call *call); /* without parameters, lower case; "" without a body */
/* DN_BODY_TO_FILE: the file that holds the whole body, removed with the call; NULL: there was none. */
const char *dn_call_file(const dn_call *call);
/* The same, and the file is the caller's to remove: its path, malloc'ed. NULL: there was none, or no memory. */
char *dn_call_take_file(dn_call *call);
/* How much of the body has come. */
typedef struct dn_body_progress {
    int64_t received, announced; /* bytes; announced 0: it is not known */
    double age_s;                /* since the request line */
} dn_body_progress;
void dn_call_body_progress(const dn_call *call, dn_body_progress *out);
/* The next call to `route` whose body is on its way to a file, among all of the server that has `call`; NULL: the first, the end. */
const dn_call *dn_call_uploading(const dn_call *call, const dn_call *after, int route);
/* The media type that the endpoint's `gives` and Accept agree on (the first that the client likes best). */
const char *dn_call_gives(const dn_call *call);
bool dn_call_accept_given(const dn_call *call);  /* false: no Accept, or it only says anything goes */
const char *dn_call_tenant(const dn_call *call); /* the token's name; "local" without tokens */
bool dn_call_admin(const dn_call *call);

/* What the request's log line says beside id, tenant, route, code and milliseconds. Strings must live as long as the
 * call (arena). A caller who keeps a call fills it just before the reply. */
typedef struct dn_call_facts {
    const char *model;
    const char *reason; /* of a failure */
    int rows;
    double queue_ms, device_ms;
} dn_call_facts;
dn_call_facts *dn_call_facts_of(dn_call *call);

/* The client left, or the server stops, before the reply was given or the stream closed. Never called from inside a
 * function of this header. */
void dn_call_on_gone(dn_call *call, void (*gone)(void *arg), void *arg);

/* How a call ends: told once, just before its reply leaves (status 200 ...), or when it gets none (status 0: the client
 * left, on_gone was told before). An event stream is no reply: it is told with status 0 when it is over. */
typedef struct dn_ending {
    int status;
    const char *content_type; /* NULL: no body */
    const void *data;         /* n bytes */
    size_t n;
} dn_ending;
void dn_call_on_end(dn_call *call, void (*ended)(void *arg, dn_call *call, const dn_ending *ending), void *arg);
/* The i-th header that dn_reply_header has added so far; false past the last. */
bool dn_call_reply_header_at(const dn_call *call, int i, const char **name, const char **value);

/* ---- replies --------------------------------------------------------------------------------------------- */

/* Before the reply. The value is copied; one with a line break is a bug of ours. */
void dn_reply_header(dn_call *call, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* `data` is copied. */
void dn_reply(dn_call *call, int status, const char *content_type, const void *data, size_t n);
/* `data` is the reply's; `release(data)` (free, say; NULL for static data) is called when it has left. */
void dn_reply_take(dn_call *call, int status, const char *content_type, void *data, size_t n, void (*release)(void *));
/* The same of bytes that are not the reply's alone: `release(arg)` is called, on the loop's thread, when they have left. */
void dn_reply_lend(dn_call *call, int status, const char *content_type, const void *data, size_t n,
                   void (*release)(void *), void *arg);
/* The file behind `fd`, `size` bytes, read on the lane. Takes the descriptor. */
void dn_reply_fd(dn_call *call, int status, const char *content_type, int fd, uint64_t size, struct dn_lane *lane);
/* A refusal as parsing and admission report it (proto/http_error.h), with its status. */
void dn_reply_error(dn_call *call, const struct dn_http_error *err);
/* The same, made on the spot: dn_reply_refuse(call, DN_H_NOT_FOUND, "id", "no request %s", id). `param` may be NULL. */
void dn_reply_refuse(dn_call *call, int id, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* What the engine reported. */
void dn_reply_engine_error(dn_call *call, const dn_error *err);

/* ---- server-sent events ---------------------------------------------------------------------------------- */

/* Answer 200 text/event-stream with what dn_reply_header has added. The call belongs to the stream now; on_gone stays.
 * NULL: it cannot be sent (no memory), and the call is over as after a reply: on_gone is not called. */
dn_stream *dn_stream_open(dn_call *call);
/* Copies `text`, one whole event as dn_event_write makes it. lossy_key < 0: kept, never dropped (image, done, error); a
 * reader that lets DN_STREAM_BYTES_MAX pile up is cut off, and on_gone is told later, from the loop, never from inside
 * this call. lossy_key >= 0 (progress, previews by index): for a slow reader the newer one of a key replaces the older.
 */
void dn_stream_push(dn_stream *stream, const void *text, size_t n, int lossy_key);
/* No more events: what is queued is still sent. The stream is not the caller's any more; on_gone will not be called. */
void dn_stream_close(dn_stream *stream);
/* Of the call that it answers; before it is closed. */
dn_call_facts *dn_stream_facts(dn_stream *stream);

/* ---- files of the page (made by web/embed.py), answered to GET without any endpoint ---------------------- */

typedef struct dn_asset {
    const char *path; /* "/app.js" */
    const char *content_type;
    const char *etag; /* "\"<hash>\"" */
    const unsigned char *data;
    size_t n;
} dn_asset;

#endif
