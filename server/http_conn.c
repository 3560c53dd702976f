/* http_conn.c - one connection: its states, deadlines, and the client's going away. */
#include "http_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

void dn_conn_set(dn_conn *conn, enum dn_conn_state state, int timeout_ms)
{
    conn->state = state;
    conn->moved_ms = dn_now_ms();
    conn->deadline_ms = timeout_ms ? conn->moved_ms + timeout_ms : 0;
}

dn_conn *dn_conn_of(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

/* FIN came. While the exchange waits for us MHD would never see it; while MHD reads, it misses a FIN that comes
 * together with data, so the sweep looks at such connections again. */
static void on_disconnect(uv_poll_t *watch, int status, int events)
{
    (void)status, (void)events;
    dn_conn *conn = watch->data;
    uv_poll_stop(watch); /* level-triggered: once is enough */
    conn->gone_ms = dn_now_ms();
    if (conn->call && (conn->state == DN_CONN_WORKING || conn->call->stream))
        dn_call_vanish(conn->call);
}

static dn_conn *conn_open(dn_listener *l, struct MHD_Connection *c)
{
    dn_conn *conn = calloc(1, sizeof *conn);
    if (!conn)
        return NULL;
    conn->listener = l;
    conn->mhd = c;
    conn->fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    conn->watch.data = conn;
    if (uv_poll_init(dn_loop_uv(l->http->o.loop), &conn->watch, conn->fd) != 0) {
        free(conn);
        return NULL;
    }
    uv_poll_start(&conn->watch, UV_DISCONNECT, on_disconnect);
    dn_conn_set(conn, DN_CONN_IDLE, l->http->o.header_ms);
    conn->next = l->http->conns;
    if (conn->next)
        conn->next->prev = conn;
    l->http->conns = conn;
    return conn;
}

static void free_conn(uv_handle_t *watch) { free(watch->data); }

static void conn_close(dn_conn *conn)
{
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        conn->listener->http->conns = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    uv_close((uv_handle_t *)&conn->watch, free_conn); /* leaves epoll at once: the descriptor is closed next */
}

void dn_conn_notify(void *cls, struct MHD_Connection *c, void **context, enum MHD_ConnectionNotificationCode what)
{
    dn_listener *l = cls;
    l->progress++;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = conn_open(l, c);
        return;
    }
    dn_listener_kick(l);
    if (*context)
        conn_close(*context);
    *context = NULL;
}

void dn_conn_cut(dn_conn *conn) { shutdown(conn->fd, SHUT_RDWR); }

void dn_conn_refuse(dn_conn *conn, int id, const char *fmt, ...)
{
    char message[256], text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    dn_http_error err;
    dn_http_fail(&err, id, NULL, "%s", message);
    dn_buf body;
    dn_buf_init(&body, 4096);
    dn_http_error_write(&err, &body);
    int n = snprintf(
        text, sizeof text,
        "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        "Content-Length: %zu\r\n%s%s%s\r\n%.*s",
        err.status, MHD_get_reason_phrase_for((unsigned)err.status), body.len, conn->call ? "X-Request-Id: " : "",
        conn->call ? conn->call->id : "", conn->call ? "\r\n" : "", (int)body.len, body.data ? body.data : "");
    dn_buf_fini(&body);
    if (n > 0 && n < (int)sizeof text && send(conn->fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        dn_conn_cut(conn);
    if (conn->call) {
        conn->call->status = err.status;
        conn->call->finished = true;
        dn_call_free_body(conn->call);
    }
    shutdown(conn->fd, SHUT_WR);
    dn_conn_set(conn, DN_CONN_LINGERING, DN_LINGER_MS);
}

static void time_out(dn_conn *conn)
{
    const dn_http_options *o = &conn->listener->http->o;
    if (conn->state == DN_CONN_HEAD)
        dn_conn_refuse(conn, DN_H_TIMEOUT, "the request's head did not arrive within %d ms", o->header_ms);
    else if (conn->state == DN_CONN_BODY)
        dn_conn_refuse(conn, DN_H_TIMEOUT, "the request's body did not arrive in time");
    else
        dn_conn_cut(conn);
}

void dn_conn_sweep(dn_conn *conn, int64_t now_ms)
{
    const dn_http_options *o = &conn->listener->http->o;
    dn_stream *stream = conn->call ? conn->call->stream : NULL;
    if (stream)
        dn_stream_sweep(stream, now_ms);
    bool reading = conn->state == DN_CONN_IDLE || conn->state == DN_CONN_HEAD || conn->state == DN_CONN_BODY;
    bool stuck = conn->state == DN_CONN_REPLYING && (!stream || dn_stream_pending(stream)) &&
                 now_ms - conn->moved_ms > o->stall_ms;
    if (stuck || (reading && conn->gone_ms && now_ms - conn->gone_ms > DN_LINGER_MS))
        dn_conn_cut(conn);
    else if (conn->deadline_ms && now_ms >= conn->deadline_ms)
        time_out(conn);
}
