/* http_internal.h - the structures shared by the http*.c files; nobody else includes it.
 *
 * Lifetimes: a dn_conn lives from MHD's "connection started" until its uv handle is closed; a dn_call from the request
 * line until MHD's "request completed"; a dn_stream until MHD destroys the response that it feeds. */
#ifndef DN_SERVER_HTTP_INTERNAL_H
#define DN_SERVER_HTTP_INTERNAL_H

#include <denoised/sha256.h>
#include <microhttpd.h>
#include <proto.h>
#include "http_server.h"

enum {
    DN_URI_BYTES_MAX = 4096,
    DN_HEAD_BYTES_MAX = 12 << 10, /* all header fields */
    DN_HEAD_FIELDS_MAX = 64,
    DN_QUERY_MAX = 16,
    DN_CONN_MEMORY = 32 << 10, /* MHD's pool: the head, then pieces of the body */
    DN_REPLY_FIELDS_MAX = 8,
    DN_BODY_BYTES_PER_S = 64 << 10, /* the slowest body that is waited for */
    DN_LINGER_MS = 1000,
};

typedef struct dn_listener {
    dn_http *http;
    struct MHD_Daemon *mhd;
    int fd;
    char address[160];
    char *unix_path;
    uv_poll_t poll;
    uv_timer_t timer;
    unsigned progress;   /* callbacks of MHD's so far: did a pass do anything? */
    unsigned fruitless;  /* passes in a row that did nothing and want another at once */
    bool pumping, again; /* inside MHD_run; another run is wanted */
} dn_listener;

enum dn_conn_state {
    DN_CONN_IDLE, /* no request line yet */
    DN_CONN_HEAD, /* reading the header fields */
    DN_CONN_BODY,
    DN_CONN_WORKING, /* the handler has the call */
    DN_CONN_REPLYING,
    DN_CONN_LINGERING, /* refused by hand: the other side may finish reading */
};

typedef struct dn_conn dn_conn;
typedef struct dn_upload dn_upload;
struct dn_conn {
    dn_conn *prev, *next;
    dn_listener *listener;
    struct MHD_Connection *mhd;
    uv_poll_t watch; /* for the client's going away, which MHD does not notice while suspended */
    int fd;
    enum dn_conn_state state;
    int64_t deadline_ms; /* of this state; 0: none */
    int64_t moved_ms;    /* when the reader last took something of the reply */
    int64_t gone_ms;     /* when the other side's FIN was seen; 0: not yet */
    dn_call *call;
};

typedef struct dn_pair {
    const char *name, *value;
} dn_pair;

struct dn_call {
    dn_conn *conn;
    dn_http *http;
    dn_arena *arena;
    char id[65];
    char *uri;          /* as sent */
    const char *path;   /* as sent, without the query */
    const char *method; /* "GET" for HEAD */
    dn_pair *fields;    /* header fields; repeated ones joined */
    int n_fields;
    dn_pair query[DN_QUERY_MAX];
    int n_query;
    int route; /* -1: none yet */
    dn_route_hit hit;
    const dn_endpoint *endpoint;
    const dn_asset *asset;
    const dn_principal *principal; /* NULL: no tokens */
    char gives[64], content_type[64];
    const char *cors_origin; /* to be told to the browser */
    bool headed;             /* MHD's first call was made: the rules were applied */
    bool head;               /* HEAD: the body is not sent */
    bool options;            /* answer 204 with what is allowed */
    dn_http_error refusal;   /* id 0: none */
    dn_upload *upload; /* of a body that goes to a file */
    char *body;
    bool has_body;
    size_t body_announced; /* Content-Length; 0: chunked */
    size_t body_len, body_cap, body_max;
    dn_sha256 body_hash; /* of what has come, with an Idempotency-Key: piece by piece, so that no large body holds up the loop */
    dn_pair reply[DN_REPLY_FIELDS_MAX];
    int n_reply;
    dn_stream *stream;
    int status;
    bool replied, finished, suspended, dead; /* finished: the app has no more to say */
    void (*on_gone)(void *arg);
    void *on_gone_arg;
    void (*on_end)(void *arg, dn_call *call, const dn_ending *ending);
    void *on_end_arg;
    dn_call_facts facts;
    uint64_t start_ns;
};

struct dn_http {
    dn_http_options o;
    dn_listener listeners[DN_LISTEN_MAX];
    int n_listeners;
    dn_conn *conns;
    const dn_endpoint *endpoints[DN_ROUTE_COUNT];
    void *owners[DN_ROUTE_COUNT]; /* of their handlers */
    uv_timer_t sweep;
    int open_handles; /* libuv's, inside this structure */
    size_t body_bytes;
    bool draining, started, stopping;
};

/* http_listen.c */
int dn_listener_open(dn_listener *l, const char *address, dn_error *err);
void dn_listener_close(dn_listener *l);

/* http.c: have MHD run again soon. After a connection was closed (at its limit MHD adds the listening socket one run
 * late) and after one was resumed (without a thread of its own MHD has nothing to wake itself with). */
void dn_listener_kick(dn_listener *l);

/* http_conn.c */
void dn_conn_notify(void *cls, struct MHD_Connection *c, void **context, enum MHD_ConnectionNotificationCode what);
dn_conn *dn_conn_of(struct MHD_Connection *c);
void dn_conn_set(dn_conn *conn, enum dn_conn_state state, int timeout_ms); /* timeout 0: no deadline */
/* Refuse where MHD takes no response: write it by hand and end the connection. */
void dn_conn_refuse(dn_conn *conn, int id, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void dn_conn_cut(dn_conn *conn); /* both directions, now */
void dn_conn_sweep(dn_conn *conn, int64_t now_ms);

/* http_call.c */
void *dn_call_begin(void *cls, const char *uri, struct MHD_Connection *c);
enum MHD_Result dn_call_handle(void *cls, struct MHD_Connection *c, const char *url, const char *method,
                               const char *version, const char *data, size_t *n, void **context);
void dn_call_end(void *cls, struct MHD_Connection *c, void **context, enum MHD_RequestTerminationCode why);
void dn_call_resume(dn_call *call);
void dn_call_free_body(dn_call *call);
/* Nothing more can be sent: end the exchange, as a reply would. */
void dn_call_fail(dn_call *call);
/* Once, whoever it was that asked for it. */
void dn_call_tell_end(dn_call *call, const dn_ending *ending);
/* The client is not there any more: tell the app now, end the exchange. */
void dn_call_vanish(dn_call *call);

/* http_upload.c: bodies of DN_BODY_TO_FILE */
dn_upload *dn_upload_new(dn_call *call); /* NULL: out of memory, or too many */
int dn_upload_check(dn_call *call);      /* may there be one? Fills call->refusal */
void dn_upload_expect(dn_call *call);    /* the time that the next block may take begins now */
/* How much of it was used. The connection may be suspended now, or have been refused. */
size_t dn_upload_take(dn_call *call, const char *data, size_t n);
/* All of it came. false: the connection is suspended until it is in the file; then this is asked again. */
bool dn_upload_finish(dn_call *call);
void dn_upload_end(dn_call *call); /* the call is over */

/* http_rules.c: fills call->refusal, or makes the call ready for its handler. */
void dn_call_check(dn_call *call, const char *method);

/* http_reply.c: takes the response over. */
void dn_reply_send(dn_call *call, int status, struct MHD_Response *response);
void dn_reply_refusal(dn_call *call);
void dn_reply_options(dn_call *call);
void dn_reply_asset(dn_call *call);

/* http_stream.c */
void dn_stream_sweep(dn_stream *stream, int64_t now_ms);
void dn_stream_end(dn_stream *stream); /* the call is over */
bool dn_stream_pending(const dn_stream *stream);
void dn_stream_cut(dn_stream *stream);

/* http_pages.c */
void dn_http_pages_log(void *cls, const char *fmt, va_list args);

#endif
