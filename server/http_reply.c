/* http_reply.c - answers: whole bodies, refusals, files of the page, OPTIONS. */
#include "http_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DIRECT_BYTES_MAX = 32 << 10, /* larger bodies go through a reader, so that a stuck one is noticed */
    BLOCK_BYTES = 64 << 10,
    REPLY_VALUE_MAX = 1024
};

static const char allowed_headers[] = "Authorization, Content-Type, Prefer, Idempotency-Key, X-Request-Id, Last-Event-ID";
static const char exposed_headers[] = "Location, Retry-After, X-Request-Id, X-Model, X-Numerics, X-Seed";

void dn_reply_header(dn_call *call, const char *name, const char *fmt, ...)
{
    char value[REPLY_VALUE_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(value, sizeof value, fmt, args);
    va_end(args);
    char *copy = call->n_reply < DN_REPLY_FIELDS_MAX ? dn_arena_strndup(call->arena, value, strlen(value)) : NULL;
    if (copy)
        call->reply[call->n_reply++] = (dn_pair){ name, copy };
}

static void add_headers(dn_call *call, int status, struct MHD_Response *response)
{
    MHD_add_response_header(response, "X-Request-Id", call->id);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (call->cors_origin) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", call->cors_origin);
        MHD_add_response_header(response, "Access-Control-Expose-Headers", exposed_headers);
    }
    if (call->http->o.n_cors_origins)
        MHD_add_response_header(response, "Vary", "Origin");
    if (!call->asset || status >= 400)
        MHD_add_response_header(response, "Cache-Control", "no-store");
    if (call->http->draining)
        MHD_add_response_header(response, "Connection", "close");
    for (int i = 0; i < call->n_reply; i++)
        MHD_add_response_header(response, call->reply[i].name, call->reply[i].value);
}

void dn_reply_send(dn_call *call, int status, struct MHD_Response *response)
{
    if (!response) { /* out of memory: nothing can be said */
        dn_call_fail(call);
        return;
    }
    add_headers(call, status, response);
    call->replied = true;
    call->status = status;
    dn_conn_set(call->conn, DN_CONN_REPLYING, 0);
    bool queued = MHD_queue_response(call->conn->mhd, (unsigned)status, response) == MHD_YES;
    if (!queued)
        call->stream = NULL; /* it dies with the response */
    MHD_destroy_response(response);
    if (queued)
        dn_call_resume(call);
    else
        dn_call_fail(call);
}

/* ---- bodies ---------------------------------------------------------------------------------------------- */

typedef struct source {
    dn_conn *conn; /* outlives the response */
    const char *data;
    size_t n;
    void (*release)(void *);
    void *arg;
} source;

static void source_free(void *cls)
{
    source *s = cls;
    s->release(s->arg);
    free(s);
}

static ssize_t source_read(void *cls, uint64_t at, char *buf, size_t max)
{
    source *s = cls;
    size_t n = s->n - (size_t)at < max ? s->n - (size_t)at : max;
    memcpy(buf, s->data + at, n);
    s->conn->moved_ms = dn_now_ms();
    s->conn->listener->progress++;
    return (ssize_t)n;
}

static struct MHD_Response *response_large(const source *from)
{
    source *s = malloc(sizeof *s);
    if (!s)
        return NULL;
    *s = *from;
    struct MHD_Response *r = MHD_create_response_from_callback(s->n, BLOCK_BYTES, source_read, s, source_free);
    if (!r)
        free(s);
    return r;
}

static void keep(void *data) { (void)data; }

void dn_reply_lend(dn_call *call, int status, const char *content_type, const void *data, size_t n,
                   void (*release)(void *), void *arg)
{
    source s = { call->conn, data, n, release ? release : keep, arg };
    struct MHD_Response *response = NULL;
    if (!call->finished)
        dn_call_tell_end(call, &(dn_ending){ status, content_type, data, n });
    if (!call->finished && n > DIRECT_BYTES_MAX)
        response = response_large(&s);
    else if (!call->finished)
        response = MHD_create_response_from_buffer_with_free_callback_cls(n, (void *)(uintptr_t)data, s.release, arg);
    if (!response)
        s.release(arg);
    if (call->finished)
        return;
    call->finished = true;
    if (response && content_type)
        MHD_add_response_header(response, "Content-Type", content_type);
    dn_reply_send(call, status, response);
}

void dn_reply_take(dn_call *call, int status, const char *content_type, void *data, size_t n, void (*release)(void *))
{
    dn_reply_lend(call, status, content_type, data, n, release, data);
}

void dn_reply(dn_call *call, int status, const char *content_type, const void *data, size_t n)
{
    char *copy = malloc(n ? n : 1);
    if (!copy) {
        dn_call_fail(call);
        return;
    }
    if (n)
        memcpy(copy, data, n);
    dn_reply_take(call, status, content_type, copy, n, free);
}

/* ---- refusals -------------------------------------------------------------------------------------------- */

void dn_reply_error(dn_call *call, const struct dn_http_error *err)
{
    if (err->status == 401)
        dn_reply_header(call, "WWW-Authenticate", "Bearer");
    if (err->status == 405)
        dn_reply_header(call, "Allow", "%s", call->hit.allow);
    dn_buf body;
    dn_buf_init(&body, 16 << 10);
    dn_http_error_write(err, &body);
    size_t n;
    char *data = dn_buf_take(&body, &n);
    if (data)
        dn_reply_take(call, err->status, "application/json", data, n, free);
    else
        dn_call_fail(call);
    dn_buf_fini(&body);
}

void dn_reply_refuse(dn_call *call, int id, const char *param, const char *fmt, ...)
{
    char message[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    dn_http_error err;
    dn_http_fail(&err, id, param, "%s", message);
    dn_reply_error(call, &err);
}

void dn_reply_engine_error(dn_call *call, const dn_error *err)
{
    dn_http_error e;
    dn_http_fail_engine(&e, dn_error_name(err->code), err->param, err->message);
    dn_reply_error(call, &e);
}

void dn_reply_refusal(dn_call *call) { dn_reply_error(call, &call->refusal); }

/* ---- OPTIONS and the page -------------------------------------------------------------------------------- */

void dn_reply_options(dn_call *call)
{
    dn_reply_header(call, "Allow", "%s, OPTIONS", call->hit.allow);
    if (call->cors_origin) {
        dn_reply_header(call, "Access-Control-Allow-Methods", "%s", call->hit.allow);
        dn_reply_header(call, "Access-Control-Allow-Headers", "%s", allowed_headers);
        dn_reply_header(call, "Access-Control-Max-Age", "600");
    }
    dn_reply(call, 204, NULL, NULL, 0);
}

void dn_reply_asset(dn_call *call)
{
    const dn_asset *a = call->asset;
    const char *known = dn_call_header(call, "If-None-Match");
    dn_reply_header(call, "ETag", "%s", a->etag);
    dn_reply_header(call, "Cache-Control", "no-cache"); /* kept, but asked for each time: the ETag answers */
    if (strncmp(a->content_type, "text/html", 9) == 0)
        dn_reply_header(call, "Content-Security-Policy",
                        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
                        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    if (known && strstr(known, a->etag))
        dn_reply(call, 304, NULL, NULL, 0);
    else
        dn_reply_take(call, 200, a->content_type, (void *)(uintptr_t)a->data, a->n, NULL);
}
