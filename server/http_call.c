/* http_call.c - one exchange, from the request line to its end, as MHD's callbacks tell it. */
#include "http_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

enum { ARENA_BYTES_MAX = DN_REQUEST_BYTES_MAX + (64 << 10) /* what the request is parsed into, and its head */ };

static void make_id(char id[65])
{
    unsigned char random[16];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        abort(); /* cannot be after boot */
    for (int i = 0; i < 16; i++) {
        id[2 * i] = "0123456789abcdef"[random[i] >> 4];
        id[2 * i + 1] = "0123456789abcdef"[random[i] & 15];
    }
    id[32] = 0;
}

void *dn_call_begin(void *cls, const char *uri, struct MHD_Connection *c)
{
    dn_listener *l = cls;
    dn_conn *conn = dn_conn_of(c);
    l->progress++;
    dn_call *call = conn ? calloc(1, sizeof *call) : NULL;
    if (!call)
        return NULL;
    call->arena = dn_arena_new(ARENA_BYTES_MAX);
    /* One byte more than allowed is enough to see that it is too long. */
    call->uri = call->arena ? dn_arena_strndup(call->arena, uri, strnlen(uri, DN_URI_BYTES_MAX + 1)) : NULL;
    if (!call->uri) {
        dn_arena_free(call->arena);
        free(call);
        return NULL;
    }
    call->conn = conn;
    call->http = l->http;
    call->route = -1;
    call->path = call->method = "";
    call->start_ns = uv_hrtime();
    make_id(call->id);
    conn->call = call;
    dn_conn_set(conn, DN_CONN_HEAD, l->http->o.header_ms);
    return call;
}

/* ---- the body -------------------------------------------------------------------------------------------- */

static bool grow_body(dn_call *call, size_t need)
{
    dn_http *http = call->http;
    size_t cap = call->body_cap ? call->body_cap : 4096;
    while (cap < need)
        cap *= 2; /* by what has arrived, not by what was announced */
    size_t more = cap - call->body_cap;
    if (http->body_bytes + more > http->o.bodies_max)
        return false;
    char *grown = realloc(call->body, cap);
    if (!grown)
        return false;
    http->body_bytes += more;
    call->body = grown;
    call->body_cap = cap;
    return true;
}

static int hash_body(dn_call *call, const char *data, size_t n)
{
    if (!dn_call_header(call, "Idempotency-Key"))
        return 0;
    int rc = call->body_len ? 0 : dn_sha256_init(&call->body_hash);
    return rc ? rc : dn_sha256_update(&call->body_hash, data, n);
}

/* How much of it is left for the next time. */
static size_t take_body(dn_call *call, const char *data, size_t n)
{
    if (call->upload)
        return n - dn_upload_take(call, data, n);
    if (n > call->body_max - call->body_len) {
        dn_conn_refuse(call->conn, DN_H_TOO_LARGE, "the body is larger than %zu bytes", call->body_max);
        return 0;
    }
    if (call->body_len + n + 1 > call->body_cap && !grow_body(call, call->body_len + n + 1)) {
        dn_conn_refuse(call->conn, DN_H_MEMORY, "too many request bodies are being received");
        return 0;
    }
    if (hash_body(call, data, n)) {
        dn_conn_refuse(call->conn, DN_H_MEMORY, "the body could not be hashed");
        return 0;
    }
    memcpy(call->body + call->body_len, data, n);
    call->body_len += n;
    call->body[call->body_len] = 0;
    return 0;
}

void dn_call_free_body(dn_call *call)
{
    call->http->body_bytes -= call->body_cap;
    dn_sha256_fini(&call->body_hash, NULL);
    free(call->body);
    call->body = NULL;
    call->body_len = call->body_cap = 0;
}

/* ---- MHD's calls ----------------------------------------------------------------------------------------- */

/* How long the body may take: what the client announced, or else all that it may send, at the slowest allowed rate. */
static int body_ms(const dn_call *call)
{
    size_t n = call->body_announced ? call->body_announced : call->body_max;
    return call->http->o.body_ms + (int)(n * 1000 / DN_BODY_BYTES_PER_S);
}

/* The head is complete. A response given now would close the connection, because MHD takes it for a refusal to read the
 * body; so only requests that announce a body are refused here, and all others when they are complete. */
static void take_head(dn_call *call, const char *method)
{
    call->headed = true;
    dn_call_check(call, method);
    if (!call->has_body)
        dn_conn_set(call->conn, DN_CONN_WORKING, 0);
    else if (call->refusal.id)
        dn_reply_refusal(call);
    else if (call->upload)
        dn_upload_expect(call);
    else
        dn_conn_set(call->conn, DN_CONN_BODY, body_ms(call));
}

static void run_handler(dn_call *call)
{
    if (call->upload && !call->refusal.id && !dn_upload_finish(call))
        return;
    dn_conn_set(call->conn, DN_CONN_WORKING, 0);
    if (call->refusal.id)
        dn_reply_refusal(call);
    else if (call->options)
        dn_reply_options(call);
    else if (call->asset)
        dn_reply_asset(call);
    else
        call->endpoint->handler(call);
    if (call->replied || call->dead)
        return;
    if (call->conn->gone_ms) {
        dn_call_vanish(call);
        return;
    }
    MHD_suspend_connection(call->conn->mhd); /* MHD_YES without a response would be a busy loop */
    call->suspended = true;
}

enum MHD_Result dn_call_handle(void *cls, struct MHD_Connection *c, const char *url, const char *method,
                               const char *version, const char *data, size_t *n, void **context)
{
    (void)c, (void)url, (void)version;
    ((dn_listener *)cls)->progress++;
    dn_call *call = *context;
    if (!call || call->dead || call->http->stopping)
        return MHD_NO;
    /* Not by *n: with Expect and no body, MHD offers 0 bytes of it before it takes a response. */
    bool complete = call->headed && !data;
    size_t left = 0;
    if (!call->headed)
        take_head(call, method);
    else if (!complete && *n && call->conn->state != DN_CONN_LINGERING)
        left = take_body(call, data, *n);
    else if (complete && call->conn->state == DN_CONN_LINGERING)
        return MHD_NO;
    else if (complete && !call->replied)
        run_handler(call);
    *n = left;
    return call->dead ? MHD_NO : MHD_YES;
}

void dn_call_tell_end(dn_call *call, const dn_ending *ending)
{
    void (*ended)(void *, dn_call *, const dn_ending *) = call->on_end;
    call->on_end = NULL;
    if (ended)
        ended(call->on_end_arg, call, ending);
}

static void tell_gone(dn_call *call)
{
    if (!call->finished) {
        call->finished = true;
        if (call->on_gone)
            call->on_gone(call->on_gone_arg);
    }
    dn_call_tell_end(call, &(dn_ending){ 0 });
}

void dn_call_end(void *cls, struct MHD_Connection *c, void **context, enum MHD_RequestTerminationCode why)
{
    (void)c;
    dn_listener *l = cls;
    l->progress++;
    dn_call *call = *context;
    *context = NULL;
    if (!call)
        return;
    dn_conn *conn = call->conn;
    if (!call->status && why == MHD_REQUEST_TERMINATED_COMPLETED_OK)
        call->status = 400; /* MHD has refused it itself: http_pages.c */
    else if (!call->status && call->headed)
        call->status = 499; /* the client left */
    tell_gone(call);
    if (call->stream)
        dn_stream_end(call->stream);
    if (l->http->o.done)
        l->http->o.done(l->http->o.done_arg, call, call->status, (double)(uv_hrtime() - call->start_ns) / 1e6);
    dn_call_free_body(call);
    dn_upload_end(call);
    dn_arena_free(call->arena);
    free(call);
    conn->call = NULL;
    dn_conn_set(conn, DN_CONN_IDLE, l->http->o.idle_ms);
}

void dn_call_resume(dn_call *call)
{
    if (!call->suspended)
        return;
    call->suspended = false;
    MHD_resume_connection(call->conn->mhd);
    dn_listener_kick(call->conn->listener);
}

void dn_call_fail(dn_call *call)
{
    call->dead = call->finished = true;
    dn_conn_cut(call->conn);
    if (call->stream)
        dn_stream_cut(call->stream);
    dn_call_resume(call);
}

void dn_call_vanish(dn_call *call)
{
    if (call->dead)
        return;
    tell_gone(call);
    dn_call_fail(call);
}

/* ---- what handlers see ----------------------------------------------------------------------------------- */

struct dn_arena *dn_call_arena(dn_call *call) { return call->arena; }
void *dn_call_app(const dn_call *call) { return call->route < 0 ? NULL : call->http->owners[call->route]; }
const char *dn_call_id(const dn_call *call) { return call->id; }
const char *dn_call_method(const dn_call *call) { return call->method; }
const char *dn_call_path(const dn_call *call) { return call->path; }
const char *dn_call_content_type(const dn_call *call) { return call->content_type; }
const char *dn_call_gives(const dn_call *call) { return call->gives; }
const char *dn_call_tenant(const dn_call *call) { return call->principal ? call->principal->name : "local"; }
bool dn_call_admin(const dn_call *call) { return !call->http->o.auth || (call->principal && call->principal->admin); }
dn_call_facts *dn_call_facts_of(dn_call *call) { return &call->facts; }
int dn_call_route(const dn_call *call) { return call->route; }

const char *dn_call_arg(const dn_call *call, int i) { return i < call->hit.n_args ? call->hit.arg[i] : NULL; }

const char *dn_call_query(const dn_call *call, const char *name)
{
    for (int i = 0; i < call->n_query; i++)
        if (strcmp(call->query[i].name, name) == 0)
            return call->query[i].value;
    return NULL;
}

bool dn_call_query_at(const dn_call *call, int i, const char **name, const char **value)
{
    if (i >= call->n_query)
        return false;
    *name = call->query[i].name;
    *value = call->query[i].value;
    return true;
}

const char *dn_call_header(const dn_call *call, const char *name)
{
    for (int i = 0; i < call->n_fields; i++)
        if (strcasecmp(call->fields[i].name, name) == 0)
            return call->fields[i].value;
    return NULL;
}

const void *dn_call_body(const dn_call *call, size_t *n)
{
    *n = call->body_len;
    return call->body ? call->body : "";
}

int dn_call_body_sha256(dn_call *call, char hex[DN_SHA256_HEX_SIZE])
{
    if (!call->body_len)
        return dn_sha256_hex(hex, "", 0);
    assert(call->body_hash.state);
    dn_sha256_fini(&call->body_hash, hex);
    return 0;
}

void dn_call_on_end(dn_call *call, void (*ended)(void *arg, dn_call *call, const dn_ending *ending), void *arg)
{
    call->on_end = ended;
    call->on_end_arg = arg;
}

bool dn_call_reply_header_at(const dn_call *call, int i, const char **name, const char **value)
{
    if (i >= call->n_reply)
        return false;
    *name = call->reply[i].name;
    *value = call->reply[i].value;
    return true;
}

void dn_call_on_gone(dn_call *call, void (*gone)(void *arg), void *arg)
{
    call->on_gone = gone;
    call->on_gone_arg = arg;
}
