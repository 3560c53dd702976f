/* http_rules.c - what a request's head must satisfy before its body is read and its handler called.
 *
 * The rules are a table, applied in order; the first that refuses decides. */
#include "http_internal.h"
#include "http_parse.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Header fields that may come more than once (their values are then one list); any other may not. */
/* clang-format off */
static const char *const lists[] = {
    "accept", "accept-charset", "accept-encoding", "accept-language", "cache-control", "connection", "cookie", "forwarded",
    "if-match", "if-none-match", "pragma", "prefer", "te", "upgrade", "via", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-proto", NULL };
/* clang-format on */

static bool is_in(const char *const *names, const char *name)
{
    for (; *names; names++)
        if (strcasecmp(*names, name) == 0)
            return true;
    return false;
}

static int refuse_memory(dn_call *call) { return dn_http_fail(&call->refusal, DN_H_MEMORY, NULL, NULL); }

/* ---- collecting the fields ------------------------------------------------------------------------------- */

typedef struct collector {
    dn_call *call;
    size_t bytes;
} collector;

static int join_field(dn_call *call, dn_pair *field, const char *value)
{
    if (!is_in(lists, field->name))
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, field->name, "the header %s is given more than once",
                            field->name);
    size_t a = strlen(field->value), b = strlen(value);
    char *joined = dn_arena_alloc(call->arena, a + b + 3);
    if (!joined)
        return refuse_memory(call);
    memcpy(joined, field->value, a);
    memcpy(joined + a, ", ", 2);
    memcpy(joined + a + 2, value, b + 1);
    field->value = joined;
    return 0;
}

static int add_field(collector *c, const char *name, const char *value)
{
    dn_call *call = c->call;
    c->bytes += strlen(name) + strlen(value) + 4;
    if (c->bytes > DN_HEAD_BYTES_MAX || call->n_fields == DN_HEAD_FIELDS_MAX)
        return dn_http_fail(&call->refusal, DN_H_HEADERS, NULL, "the headers are more than %d bytes or %d fields",
                            DN_HEAD_BYTES_MAX, DN_HEAD_FIELDS_MAX);
    if (!dn_is_token(name))
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, NULL, "a header's name is not a token");
    for (const char *s = value; *s; s++)
        if (((unsigned char)*s < 0x20 && *s != '\t') || *s == 0x7f)
            return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, name, "the header %s has a control character", name);
    for (int i = 0; i < call->n_fields; i++)
        if (strcasecmp(call->fields[i].name, name) == 0)
            return join_field(call, &call->fields[i], value);
    call->fields[call->n_fields++] = (dn_pair){ name, value };
    return 0;
}

static enum MHD_Result on_field(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
    (void)kind;
    return add_field(cls, name, value ? value : "") == 0 ? MHD_YES : MHD_NO;
}

static int collect_fields(dn_call *call)
{
    call->fields = dn_arena_alloc(call->arena, DN_HEAD_FIELDS_MAX * sizeof *call->fields);
    if (!call->fields)
        return refuse_memory(call);
    collector c = { .call = call };
    MHD_get_connection_values(call->conn->mhd, MHD_HEADER_KIND, on_field, &c);
    const char *id = dn_call_header(call, "X-Request-Id");
    if (id && dn_is_request_id(id))
        strcpy(call->id, id);
    return call->refusal.id;
}

/* ---- the request line ------------------------------------------------------------------------------------ */

static int add_query(dn_call *call, char *text)
{
    char *value = strchr(text, '=');
    if (value)
        *value++ = 0;
    else
        value = text + strlen(text);
    if (!dn_percent_decode(text, true) || !dn_percent_decode(value, true))
        return dn_http_fail(&call->refusal, DN_H_INVALID, NULL,
                            "the query has a malformed escape or a control character");
    if (dn_call_query(call, text))
        return dn_http_fail(&call->refusal, DN_H_DUPLICATE, text, "the query has %s more than once", text);
    if (call->n_query == DN_QUERY_MAX)
        return dn_http_fail(&call->refusal, DN_H_LIMIT, NULL, "the query has more than %d parameters", DN_QUERY_MAX);
    call->query[call->n_query++] = (dn_pair){ text, value };
    return 0;
}

static int parse_uri(dn_call *call)
{
    if (strlen(call->uri) > DN_URI_BYTES_MAX)
        return dn_http_fail(&call->refusal, DN_H_URI, NULL, "the path is longer than %d bytes", DN_URI_BYTES_MAX);
    if (*call->uri != '/' && strcmp(call->uri, "*") != 0)
        return dn_http_fail(&call->refusal, DN_H_INVALID, NULL, "the request line needs a path that begins with /");
    if (!dn_is_visible(call->uri))
        return dn_http_fail(&call->refusal, DN_H_INVALID, NULL, "the path has blanks or bytes that are not ASCII");
    char *copy = dn_arena_strndup(call->arena, call->uri, strlen(call->uri));
    if (!copy)
        return refuse_memory(call);
    copy[strcspn(copy, "#")] = 0;
    char *query = strchr(copy, '?');
    if (query)
        *query++ = 0;
    call->path = copy;
    for (char *rest = query, *text; (text = query ? strtok_r(rest, "&", &query) : NULL); rest = NULL)
        if (add_query(call, text) != 0)
            return call->refusal.id;
    return 0;
}

/* ---- framing: nothing that two readers could understand in two ways -------------------------------------- */

static int check_framing(dn_call *call)
{
    const char *length = dn_call_header(call, "Content-Length"), *coding = dn_call_header(call, "Transfer-Encoding");
    if (length && coding)
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, "Content-Length",
                            "Content-Length and Transfer-Encoding exclude each other");
    if (coding && strcasecmp(coding, "chunked") != 0)
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, "Transfer-Encoding",
                            "Transfer-Encoding can only be chunked");
    if (!length)
        return 0;
    if (!dn_is_length(length))
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, "Content-Length",
                            "Content-Length is not a number of bytes");
    call->body_announced = strtoull(length, NULL, 10);
    return 0;
}

/* ---- who may ask ----------------------------------------------------------------------------------------- */

static int check_host(dn_call *call)
{
    const char *host = dn_call_header(call, "Host");
    char name[256];
    int port;
    if (!host)
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, "Host", "a request needs one Host");
    if (!dn_host_split(host, name, sizeof name, &port))
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, "Host", "Host is malformed");
    if (dn_host_is_loopback(name))
        return 0;
    const dn_http_options *o = &call->http->o;
    for (int i = 0; i < o->n_host_names; i++)
        if (strcasecmp(o->host_names[i], name) == 0)
            return 0;
    return dn_http_fail(&call->refusal, DN_H_HOST, "Host", "%s is neither loopback nor one of --host-names", name);
}

static int check_origin(dn_call *call)
{
    const char *origin = dn_call_header(call, "Origin");
    if (!origin || dn_origin_is_host(origin, dn_call_header(call, "Host")))
        return 0;
    const dn_http_options *o = &call->http->o;
    for (int i = 0; i < o->n_cors_origins; i++) {
        if (strcasecmp(o->cors_origins[i], origin) == 0) {
            call->cors_origin = o->cors_origins[i];
            return 0;
        }
    }
    return dn_http_fail(&call->refusal, DN_H_ORIGIN, "Origin", "pages of this Origin are not in --cors-origin");
}

/* ---- what is asked for ----------------------------------------------------------------------------------- */

static const dn_asset *find_asset(const dn_call *call)
{
    const dn_http_options *o = &call->http->o;
    for (size_t i = 0; i < o->n_assets; i++)
        if (strcmp(o->assets[i].path, call->path) == 0)
            return &o->assets[i];
    return NULL;
}

static int find_asset_route(dn_call *call)
{
    strcpy(call->hit.allow, "GET, HEAD");
    if (strcmp(call->method, "GET") != 0 && !call->options)
        return dn_http_fail(&call->refusal, DN_H_METHOD, NULL, "%s is read with GET", call->path);
    call->route = DN_ROUTE_PAGE;
    return 0;
}

static int find_route(dn_call *call)
{
    call->asset = find_asset(call);
    if (call->asset)
        return find_asset_route(call);
    int rc = dn_route_find(&call->hit, call->method, call->path, &call->refusal);
    if (call->options && rc == DN_H_METHOD) {
        call->refusal = (dn_http_error){ 0 };
        return 0;
    }
    if (rc)
        return rc;
    for (int i = 0; i < call->hit.n_args; i++)
        if (!dn_percent_decode(call->hit.arg[i], false))
            return dn_http_fail(&call->refusal, DN_H_INVALID, NULL,
                                "the path has a malformed escape or a control character");
    call->route = call->hit.route;
    call->endpoint = call->http->endpoints[call->route];
    if (!call->endpoint)
        return dn_http_fail(&call->refusal, DN_H_NOT_FOUND, NULL, "nothing here answers %s", call->path);
    return 0;
}

static int check_token(dn_call *call)
{
    const dn_http_options *o = &call->http->o;
    if (!o->auth || !call->endpoint || call->endpoint->scope == DN_SCOPE_NONE)
        return 0;
    const char *given = dn_call_header(call, "Authorization");
    if (!given || strncasecmp(given, "Bearer ", 7) != 0)
        return dn_http_fail(&call->refusal, DN_H_UNAUTHORIZED, "Authorization",
                            "Authorization: Bearer TOKEN is needed");
    call->principal = dn_auth_find(o->auth, given + 7);
    if (!call->principal)
        return dn_http_fail(&call->refusal, DN_H_UNAUTHORIZED, "Authorization", "the token is not known");
    if (call->endpoint->scope == DN_SCOPE_ADMIN && !call->principal->admin)
        return dn_http_fail(&call->refusal, DN_H_FORBIDDEN, "Authorization", "the token has no scope `admin`");
    return 0;
}

static int check_draining(dn_call *call)
{
    if (!call->http->draining || !call->endpoint || strcmp(call->method, "GET") == 0 ||
        (call->endpoint->flags & DN_WHILE_DRAINING))
        return 0;
    return dn_http_fail(&call->refusal, DN_H_DRAINING, NULL, "the daemon is stopping and takes no new work");
}

static int check_body(dn_call *call)
{
    if (!call->endpoint)
        return call->has_body ? dn_http_fail(&call->refusal, DN_H_TOO_LARGE, NULL, "%s takes no body", call->path) : 0;
    const dn_route *route = &dn_routes[call->route];
    const char *type = dn_call_header(call, "Content-Type"), *takes = route->takes ? route->takes : "application/json";
    bool to_file = call->endpoint->flags & DN_BODY_TO_FILE;
    call->body_max = to_file ? call->http->o.upload_max : route->body_max;
    if (to_file && dn_upload_check(call))
        return call->refusal.id;
    if (!call->has_body) {
        bool silent =
            !dn_call_header(call, "Content-Length") && route->takes && !dn_media_listed(takes, "application/json");
        return silent ? dn_http_fail(&call->refusal, DN_H_LENGTH, NULL, NULL) : 0;
    }
    if (call->body_announced > call->body_max || !call->body_max)
        return dn_http_fail(&call->refusal, DN_H_TOO_LARGE, NULL, "the body of %s %s can have %zu bytes", route->method,
                            route->path, call->body_max);
    if (dn_call_header(call, "Content-Encoding"))
        return dn_http_fail(&call->refusal, DN_H_MEDIA, "Content-Encoding",
                            "bodies are taken without Content-Encoding");
    if (!type || !dn_media_type(type, call->content_type, sizeof call->content_type) ||
        !dn_media_listed(takes, call->content_type))
        return dn_http_fail(&call->refusal, DN_H_MEDIA, "Content-Type", "the Content-Type must be %s", takes);
    return 0;
}

/* Last: nobody is refused any more. */
static int make_upload(dn_call *call)
{
    if (!call->has_body || !call->endpoint || !(call->endpoint->flags & DN_BODY_TO_FILE))
        return 0;
    call->upload = dn_upload_new(call);
    return call->upload ? 0 : dn_http_fail(&call->refusal, DN_H_MEMORY, NULL, "too many request bodies are being received");
}

static int check_accept(dn_call *call)
{
    if (!call->endpoint)
        return 0;
    const char *gives = call->endpoint->gives ? call->endpoint->gives : dn_routes[call->route].gives;
    if (!dn_accept_best(dn_call_header(call, "Accept"), gives, call->gives, sizeof call->gives))
        return dn_http_fail(&call->refusal, DN_H_NOT_ACCEPTABLE, "Accept", "this can be had as %s", gives);
    return 0;
}

/* What libmicrohttpd takes for a body, whatever we think of the head. */
static bool announces_body(struct MHD_Connection *c)
{
    const char *length = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Length");
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Transfer-Encoding") ||
           (length && strspn(length, "0") != strlen(length));
}

/* clang-format off */
static int (*const rules[])(dn_call *) = {
    collect_fields, check_framing, parse_uri, check_host, check_origin, find_route, check_token, check_draining, check_body,
    check_accept, make_upload };
/* clang-format on */

void dn_call_check(dn_call *call, const char *method)
{
    call->has_body = announces_body(call->conn->mhd);
    call->options = strcmp(method, "OPTIONS") == 0;
    call->head = strcmp(method, "HEAD") == 0;
    const char *meant = call->head ? "GET" : method;
    call->method = dn_arena_strndup(call->arena, meant, strnlen(meant, 32));
    if (!call->method) {
        call->method = "";
        refuse_memory(call);
        return;
    }
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i](call) != 0)
            return;
}

bool dn_call_accept_given(const dn_call *call)
{
    const char *accept = dn_call_header(call, "Accept");
    return accept && dn_accept_is_specific(accept);
}
