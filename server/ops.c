/* ops.c - the endpoints that operate the daemon, and the record of every request: its log line and its counter. */
#include "daemon.h"
#include "log.h"
#include <stdio.h>
#include <stdlib.h>

enum { METRICS_BYTES_MAX = 1 << 20, OPENAPI_BYTES_MAX = 1 << 20 };

static void reply_buf(dn_call *call, int status, const char *content_type, dn_buf *b)
{
    size_t n;
    char *data = dn_buf_take(b, &n);
    if (data)
        dn_reply_take(call, status, content_type, data, n, free);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the answer");
    dn_buf_fini(b);
}

static void reply_health(dn_call *call, int status, const char *text)
{
    dn_health health = { .has = DN_HAS_ALL, .status = text };
    dn_buf b;
    dn_buf_init(&b, 1024);
    dn_fields_write(&dn_health_fields, &health, &b);
    reply_buf(call, status, "application/json", &b);
}

static void get_healthz(dn_call *call) { reply_health(call, 200, "ok"); }

static void get_readyz(dn_call *call)
{
    dn_daemon *d = dn_call_app(call);
    const char *why = "loading";
    if (d->draining)
        dn_reply_refuse(call, DN_H_DRAINING, NULL, "the daemon is stopping");
    else if (!dn_app_ready(d->app, &why))
        dn_reply_refuse(call, DN_H_NOT_READY, NULL, "not ready: %s", why);
    else
        reply_health(call, 200, "ready");
}

static void get_metrics(dn_call *call)
{
    dn_daemon *d = dn_call_app(call);
    dn_app_measure(d->app);
    dn_buf b;
    dn_buf_init(&b, METRICS_BYTES_MAX);
    dn_metrics_write(d->metrics, &b);
    reply_buf(call, 200, "text/plain; version=0.0.4; charset=utf-8", &b);
}

static void get_openapi(dn_call *call)
{
    dn_daemon *d = dn_call_app(call);
    if (!d->openapi.data) {
        dn_buf_init(&d->openapi, OPENAPI_BYTES_MAX);
        dn_openapi_write(&d->openapi, DN_VERSION);
    }
    if (d->openapi.failed)
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the document");
    else
        dn_reply_take(call, 200, "application/json", d->openapi.data, d->openapi.len, NULL);
}

static void post_drain(dn_call *call)
{
    dn_daemon_drain(dn_call_app(call));
    reply_health(call, 202, "draining");
}

/* clang-format off */
const dn_endpoint dn_ops_endpoints[] = {
    { DN_ROUTE_HEALTHZ, get_healthz, DN_SCOPE_NONE,  NULL, 0 },
    { DN_ROUTE_READYZ,  get_readyz,  DN_SCOPE_NONE,  NULL, 0 },
    { DN_ROUTE_METRICS, get_metrics, DN_SCOPE_USE,   NULL, 0 },
    { DN_ROUTE_OPENAPI, get_openapi, DN_SCOPE_NONE,  NULL, 0 },
    { DN_ROUTE_DRAIN,   post_drain,  DN_SCOPE_ADMIN, NULL, DN_WHILE_DRAINING },
};
/* clang-format on */
const size_t dn_ops_n_endpoints = sizeof dn_ops_endpoints / sizeof *dn_ops_endpoints;

/* ---- the record ------------------------------------------------------------------------------------------ */

static void log_request(dn_call *call, const char *route, int status, double ms)
{
    const dn_call_facts *facts = dn_call_facts_of(call);
    dn_line line;
    dn_line_begin(&line, status >= 500 && status != 503 ? DN_LOG_ERROR : DN_LOG_INFO, "request");
    dn_line_str(&line, "id", dn_call_id(call));
    dn_line_str(&line, "tenant", dn_call_tenant(call));
    dn_line_str(&line, "method", dn_call_method(call));
    dn_line_str(&line, "route", route);
    dn_line_int(&line, "code", status);
    dn_line_ms(&line, "ms", ms);
    dn_line_str(&line, "model", facts->model);
    dn_line_str(&line, "reason", facts->reason);
    if (facts->rows) {
        dn_line_int(&line, "rows", facts->rows);
        dn_line_ms(&line, "queue_ms", facts->queue_ms);
        dn_line_ms(&line, "device_ms", facts->device_ms);
    }
    dn_line_end(&line);
}

void dn_ops_record(void *daemon, dn_call *call, int status, double ms)
{
    if (!status)
        return; /* the client left before it had asked for anything */
    dn_daemon *d = daemon;
    int id = dn_call_route(call);
    const char *route = id < 0 ? "other" : dn_routes[id].path, *model = dn_call_facts_of(call)->model;
    char code[8];
    snprintf(code, sizeof code, "%d", status);
    dn_metrics_add(d->metrics, DN_M_REQUESTS, dn_metrics_label(d->metrics, DN_L_MODEL, model ? model : ""),
                   dn_metrics_label(d->metrics, DN_L_ROUTE, route), dn_metrics_label(d->metrics, DN_L_CODE, code), 1);
    log_request(call, route, status, ms);
}
