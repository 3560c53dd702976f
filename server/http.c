/* http.c - libmicrohttpd inside libuv.
 *
 * Each address has an MHD daemon without threads. Its epoll descriptor is watched by a uv_poll, its timeout by a
 * uv_timer, and both end in pump(), the only place where MHD_run is called. A timer sweeps the connections once a
 * second, because MHD has timeouts for inactivity only. */
#include "http_internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum {
    FRUITLESS_MAX = 16, /* passes without any effect before we wait */
    FRUITLESS_MS = 5,
    RUNS_MAX = 4, /* MHD_run's in one pass, so that other handles have their turn */
    SWEEP_MS = 1000,
    FDS_RESERVED = 64 /* files, pipes, sockets of our own */
};

static void pump(dn_listener *l);

static void on_timer(uv_timer_t *timer) { pump(timer->data); }

static void on_poll(uv_poll_t *poll, int status, int events)
{
    (void)status, (void)events;
    pump(poll->data);
}

static void pump(dn_listener *l)
{
    unsigned before = l->progress;
    l->pumping = true;
    int runs = 0;
    do {
        l->again = false;
        MHD_run(l->mhd);
    } while (l->again && ++runs < RUNS_MAX);
    l->pumping = false;
    MHD_UNSIGNED_LONG_LONG ms = 0;
    if (!l->again && MHD_get_timeout(l->mhd, &ms) != MHD_YES) {
        l->fruitless = 0;
        uv_timer_stop(&l->timer);
        return;
    }
    /* A client can bring MHD to want another pass for ever (a TLS record that never ends): do not spin on it. */
    l->fruitless = ms == 0 && l->progress == before ? l->fruitless + 1 : 0;
    if (l->fruitless >= FRUITLESS_MAX)
        ms = FRUITLESS_MS;
    uv_timer_start(&l->timer, on_timer, ms, 0);
}

void dn_listener_kick(dn_listener *l)
{
    l->again = true;
    if (!l->pumping && !l->http->stopping)
        uv_timer_start(&l->timer, on_timer, 0, 0);
}

static void on_sweep(uv_timer_t *timer)
{
    dn_http *http = timer->data;
    int64_t now = dn_now_ms();
    for (dn_conn *conn = http->conns, *next; conn; conn = next) {
        next = conn->next;
        dn_conn_sweep(conn, now);
    }
}

/* Every connection that we allow must have its descriptor: MHD stops accepting at its limit in good order, and not so
 * well when accept() fails. */
static int check_descriptors(dn_http *http, dn_error *err)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 0;
    rlim_t want = (rlim_t)http->o.connections_max * (rlim_t)http->n_listeners + FDS_RESERVED;
    if (limit.rlim_cur < want) {
        struct rlimit raised = { .rlim_cur = limit.rlim_max < want ? limit.rlim_max : want,
                                 .rlim_max = limit.rlim_max };
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    if (limit.rlim_cur >= want)
        return 0;
    if (limit.rlim_cur < FDS_RESERVED * 2)
        return dn_fail(err, DN_E_LIMIT, "listen",
                       "%llu file descriptors are too few (ulimit -n): at least %d are needed",
                       (unsigned long long)limit.rlim_cur, FDS_RESERVED * 2);
    http->o.connections_max = (int)((limit.rlim_cur - FDS_RESERVED) / (rlim_t)http->n_listeners);
    return 0;
}

int dn_http_new(dn_http **out, const dn_http_options *o, dn_error *err)
{
    if (o->n_listen < 1 || o->n_listen > DN_LISTEN_MAX)
        return dn_fail(err, DN_E_RANGE, "listen", "1 to %d addresses can be listened on, not %d", DN_LISTEN_MAX,
                       o->n_listen);
    dn_http *http = calloc(1, sizeof *http);
    if (!http)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the HTTP server");
    http->o = *o;
    uv_timer_init(dn_loop_uv(o->loop), &http->sweep);
    http->sweep.data = http;
    http->open_handles = 1;
    int rc = 0;
    for (int i = 0; i < o->n_listen && !rc; i++) {
        dn_listener *l = &http->listeners[i];
        l->http = http;
        rc = dn_listener_open(l, o->listen[i], err);
        http->n_listeners += rc == 0;
    }
    if (!rc)
        rc = check_descriptors(http, err);
    if (rc)
        dn_http_free(http);
    else
        *out = http;
    return rc;
}

void dn_http_bind(dn_http *http, const dn_endpoint *endpoints, size_t n, void *owner)
{
    for (size_t i = 0; i < n; i++) {
        http->endpoints[endpoints[i].route] = &endpoints[i];
        http->owners[endpoints[i].route] = owner;
    }
}

static int start_listener(dn_listener *l, dn_error *err)
{
    const unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    /* clang-format off */
    l->mhd = MHD_start_daemon(flags, 0, NULL, NULL, dn_call_handle, l,
        MHD_OPTION_EXTERNAL_LOGGER, dn_http_pages_log, l, /* first: it hears of the others */
        MHD_OPTION_LISTEN_SOCKET, l->fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)l->http->o.connections_max,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)DN_CONN_MEMORY,
        MHD_OPTION_CONNECTION_MEMORY_INCREMENT, (size_t)4096,
        MHD_OPTION_URI_LOG_CALLBACK, dn_call_begin, l,
        MHD_OPTION_NOTIFY_CONNECTION, dn_conn_notify, l,
        MHD_OPTION_NOTIFY_COMPLETED, dn_call_end, l,
        MHD_OPTION_END);
    /* clang-format on */
    if (!l->mhd)
        return dn_fail(err, DN_E_IO, "listen", "%s: libmicrohttpd cannot start", l->address);
    int epoll_fd = MHD_get_daemon_info(l->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    uv_loop_t *loop = dn_loop_uv(l->http->o.loop);
    uv_timer_init(loop, &l->timer);
    uv_poll_init(loop, &l->poll, epoll_fd);
    l->timer.data = l->poll.data = l;
    l->http->open_handles += 2;
    uv_poll_start(&l->poll, UV_READABLE, on_poll);
    pump(l);
    return 0;
}

int dn_http_start(dn_http *http, dn_error *err)
{
    for (int i = 0; i < http->n_listeners; i++) {
        int rc = start_listener(&http->listeners[i], err);
        if (rc)
            return rc;
    }
    http->started = true;
    uv_timer_start(&http->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    return 0;
}

const char *dn_http_address(const dn_http *http, int i)
{
    return i < http->n_listeners ? http->listeners[i].address : NULL;
}

void dn_http_drain(dn_http *http) { http->draining = true; }

bool dn_http_draining(const dn_http *http) { return http->draining; }

size_t dn_http_busy(const dn_http *http)
{
    size_t n = 0;
    for (const dn_conn *conn = http->conns; conn; conn = conn->next)
        n += conn->call != NULL;
    return n;
}

/* The handles are part of the structure: it goes with the last of them. */
static void release(dn_http *http)
{
    if (--http->open_handles == 0)
        free(http);
}

static void sweep_closed(uv_handle_t *sweep) { release(sweep->data); }

static void listener_handle_closed(uv_handle_t *handle) { release(((dn_listener *)handle->data)->http); }

static void stop_listener(dn_listener *l)
{
    if (!l->mhd) {
        dn_listener_close(l);
        return;
    }
    uv_close((uv_handle_t *)&l->poll, listener_handle_closed);
    uv_close((uv_handle_t *)&l->timer, listener_handle_closed);
    MHD_run(l->mhd); /* takes the resumed connections in: MHD_stop_daemon aborts on a suspended one */
    MHD_stop_daemon(l->mhd);
    l->fd = -1; /* MHD has closed it */
    dn_listener_close(l);
}

void dn_http_free(dn_http *http)
{
    if (!http)
        return;
    http->stopping = true;
    for (dn_conn *conn = http->conns; conn; conn = conn->next)
        if (conn->call)
            dn_call_vanish(conn->call);
    for (int i = 0; i < http->n_listeners; i++)
        stop_listener(&http->listeners[i]);
    uv_close((uv_handle_t *)&http->sweep, sweep_closed);
}
