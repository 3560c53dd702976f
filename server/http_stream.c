/* http_stream.c - server-sent events: a queue of events between the app and MHD's reader.
 *
 * The reader takes events in order. While it is behind, a lossy event overwrites the queued one of its key (unless that
 * is already half sent); kept events add up to DN_STREAM_BYTES_MAX, then the reader is cut off. With nothing to send,
 * the connection is suspended. */
#include "http_internal.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_PING = INT_MAX };

typedef struct event {
    struct event *next;
    int key; /* < 0: kept */
    size_t n, sent;
    char text[];
} event;

struct dn_stream {
    dn_call *call; /* NULL when it is over */
    dn_conn *conn; /* outlives the stream */
    event *first, **last;
    size_t bytes;
    int64_t said_ms; /* when something was last sent */
    bool closed, cut;
};

static void pop(dn_stream *s)
{
    event *e = s->first;
    s->first = e->next;
    if (!s->first)
        s->last = &s->first;
    s->bytes -= e->n;
    free(e);
}

static size_t fill(dn_stream *s, char *buf, size_t max)
{
    size_t done = 0;
    while (s->first && done < max) {
        event *e = s->first;
        size_t n = e->n - e->sent < max - done ? e->n - e->sent : max - done;
        memcpy(buf + done, e->text + e->sent, n);
        e->sent += n;
        done += n;
        if (e->sent == e->n)
            pop(s);
    }
    return done;
}

static ssize_t stream_read(void *cls, uint64_t at, char *buf, size_t max)
{
    (void)at;
    dn_stream *s = cls;
    s->conn->listener->progress++;
    if (s->cut || !s->call) {
        /* END_WITH_ERROR would leak the connection's place: end it in good order over a dead socket. */
        dn_conn_cut(s->conn);
        return MHD_CONTENT_READER_END_OF_STREAM;
    }
    size_t n = fill(s, buf, max);
    s->conn->moved_ms = dn_now_ms();
    if (n) {
        s->said_ms = s->conn->moved_ms;
        return (ssize_t)n;
    }
    if (s->closed)
        return MHD_CONTENT_READER_END_OF_STREAM;
    MHD_suspend_connection(s->conn->mhd); /* 0 without this would be a busy loop */
    s->call->suspended = true;
    return 0;
}

static void stream_free(void *cls)
{
    dn_stream *s = cls;
    if (s->call) /* the response may go before the call is told of its end */
        s->call->stream = NULL;
    while (s->first)
        pop(s);
    free(s);
}

dn_stream *dn_stream_open(dn_call *call)
{
    dn_stream *s = calloc(1, sizeof *s);
    struct MHD_Response *r = NULL;
    if (s)
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 1024, stream_read, s, stream_free);
    if (!r) {
        free(s);
        dn_call_fail(call);
        return NULL;
    }
    *s = (dn_stream){ .call = call, .conn = call->conn, .last = &s->first, .said_ms = dn_now_ms() };
    call->stream = s;
    if (call->head) /* in answer to HEAD, MHD would send the last chunk of the body that there is not */
        MHD_set_response_options(r, MHD_RF_HTTP_1_0_COMPATIBLE_STRICT, MHD_RO_END);
    MHD_add_response_header(r, "Content-Type", "text/event-stream");
    MHD_add_response_header(r, "X-Accel-Buffering", "no");
    dn_reply_send(call, 200, r);
    return call->stream;
}

/* The queued event that a lossy one of `key` may replace: the place of the pointer to it, or NULL. */
static event **find_key(dn_stream *s, int key)
{
    for (event **at = &s->first; key >= 0 && *at; at = &(*at)->next)
        if ((*at)->key == key && (*at)->sent == 0)
            return at;
    return NULL;
}

static void replace(dn_stream *s, event **at, event *e)
{
    event *old = *at;
    e->next = old->next;
    *at = e;
    if (s->last == &old->next)
        s->last = &e->next;
    s->bytes += e->n - old->n;
    free(old);
}

void dn_stream_push(dn_stream *s, const void *text, size_t n, int lossy_key)
{
    if (s->closed || s->cut || !n)
        return;
    event *e = s->bytes + n <= DN_STREAM_BYTES_MAX ? malloc(sizeof *e + n) : NULL;
    if (!e) {
        dn_stream_cut(s);
        return;
    }
    *e = (event){ .key = lossy_key, .n = n };
    memcpy(e->text, text, n);
    event **same = find_key(s, lossy_key);
    if (same) {
        replace(s, same, e);
        return;
    }
    if (!s->first)
        s->conn->moved_ms = dn_now_ms(); /* from now on the reader has something to take */
    *s->last = e;
    s->last = &e->next;
    s->bytes += n;
    dn_call_resume(s->call);
}

void dn_stream_close(dn_stream *s)
{
    if (s->closed)
        return;
    s->closed = true;
    s->call->finished = true;
    dn_call_resume(s->call);
}

bool dn_stream_pending(const dn_stream *s) { return s->first != NULL; }

void dn_stream_sweep(dn_stream *s, int64_t now_ms)
{
    static const char ping[] = ": ping\n\n";
    if (!s->first && now_ms - s->said_ms >= s->conn->listener->http->o.ping_ms)
        dn_stream_push(s, ping, sizeof ping - 1, KEY_PING);
}

void dn_stream_cut(dn_stream *s)
{
    s->cut = true;
    dn_conn_cut(s->conn);
    dn_call_resume(s->call);
}

void dn_stream_end(dn_stream *s) { s->call = NULL; }

dn_call_facts *dn_stream_facts(dn_stream *s) { return &s->call->facts; }
