/* daemon.h - the process: what main.c builds and the operations' endpoints (ops.c) look at. */
#ifndef DN_SERVER_DAEMON_H
#define DN_SERVER_DAEMON_H

#include <daemon_config.h>
#include <metric_set.h>
#include <proto.h>
#include "app.h"
#include "auth.h"
#include "http_server.h"

typedef struct dn_daemon {
    dn_config config;
    dn_arena *arena; /* the config's strings */
    dn_loop *loop;
    dn_lane *fast, *slow, *uploads, *imports, *files;
    dn_metrics *metrics;
    dn_auth *auth; /* NULL: no tokens */
    int state_lock; /* state.h; 0: no --state */
    dn_store *store;
    const char *incoming; /* folder of uploads; NULL: there is no --state */
    dn_http *http;
    dn_server server; /* what the app sees of all this */
    dn_app *app;
    uv_signal_t sigterm, sigint;
    uv_timer_t timer; /* the limit of the drain, then the wait for the last bytes */
    dn_buf openapi;   /* written at the first request for it */
    int64_t flush_until_ms;
    bool draining, drained, stopping; /* stopping: a signal came, the process ends when drained */
} dn_daemon;

/* ops.c */
extern const dn_endpoint dn_ops_endpoints[];
extern const size_t dn_ops_n_endpoints;
/* dn_http_options.done: the log line and the counter of each request. */
void dn_ops_record(void *daemon, dn_call *call, int status, double ms);

/* main.c: refuse new work; idempotent. */
void dn_daemon_drain(dn_daemon *d);

/* Made by web/embed.py from the files of the page. */
extern const dn_asset dn_web_assets[];
extern const size_t dn_web_n_assets;

#endif
