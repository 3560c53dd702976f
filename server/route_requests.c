/* route_requests.c - /requests: one's own requests, their results, events and cancelling. A token with the scope admin
 * sees everybody's. */
#include "requests.h"
#include "routes_app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool may_see(const dn_call *call, const dn_request *r)
{
    return dn_call_admin(call) || !strcmp(r->tenant, dn_call_tenant(call));
}

/* The request that the path names; NULL: the call has been refused. */
static dn_request *asked_for(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    const char *id = dn_call_arg(call, 0);
    dn_request *r = dn_request_find(app, id);
    if (r && may_see(call, r))
        return r;
    if (r)
        dn_reply_refuse(call, DN_H_FORBIDDEN, "id", "the request %s is another's", id);
    else if (dn_request_forgotten(app, id))
        dn_reply_refuse(call, DN_H_EXPIRED, "id", "nothing is kept of the request %s any more", id);
    else
        dn_reply_refuse(call, DN_H_NOT_FOUND, "id", "no request %s", id);
    return NULL;
}

void dn_route_request(dn_call *call)
{
    dn_request_info info;
    dn_info_scratch scratch;
    dn_request *r = asked_for(call);
    if (!r)
        return;
    dn_request_info_of(r, &info, &scratch);
    dn_route_reply(call, 200, &dn_request_info_fields, &info);
}

void dn_route_request_cancel(dn_call *call)
{
    dn_request *r = asked_for(call);
    if (!r)
        return;
    /* the answer comes when it has ended: that is at most one step away */
    if (dn_request_await(r, call))
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
    else
        dn_request_cancel(r);
}

void dn_route_request_image(dn_call *call)
{
    dn_request *r = asked_for(call);
    if (!r)
        return;
    char *end;
    const char *arg = dn_call_arg(call, 1);
    long k = strtol(arg, &end, 10);
    int n = r->encoded ? dn_request_needs_pictures(r) ? r->n : 1 : 0;
    if (*end || end == arg || k < 0 || k >= n || (!r->encoded[k].data && !r->row.file_bytes)) {
        dn_reply_refuse(call, DN_H_NOT_FOUND, "k", "the request has no image %.20s%s", arg,
                        r->ended ? "" : " (it is not done)");
        return;
    }
    const char *type = dn_format_type(r->format), *gives = dn_call_gives(call);
    if (dn_call_accept_given(call) && gives && strcmp(gives, type)) {
        dn_reply_refuse(call, DN_H_NOT_ACCEPTABLE, NULL, "the result is %s", type);
        return;
    }
    dn_reply_header(call, "X-Model", "%s", r->model);
    dn_reply_header(call, "X-Numerics", "%s", r->numerics);
    dn_reply_header(call, "X-Seed", "%lld", (long long)r->seed + k);
    if (!r->row.file_bytes)
        dn_encoded_reply(&r->encoded[k], call, type);
    else if (dn_request_send_file(r, (int)k, call, type))
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the answer");
}

void dn_route_request_events(dn_call *call)
{
    dn_request *r = asked_for(call);
    if (!r)
        return;
    char *end;
    const char *last = dn_call_header(call, "Last-Event-ID");
    long long id = last ? strtoll(last, &end, 10) : 0;
    if (last && (*end || end == last || id < 0))
        dn_reply_refuse(call, DN_H_BAD_HEADER, "Last-Event-ID", "Last-Event-ID must be a number, got %.40s", last);
    else if (dn_request_watch(r, call, id))
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for a stream");
}

/* ---- the list: pages, newest first -------------------------------------------------------------------------- */

enum { PAGE_BYTES = 60 << 10, INFO_BYTES = 640 }; /* the loop writes no longer bodies */

/* A cursor is a request's number, which outlives the request; 0: from the newest on. */
static int parse_cursor(uint64_t *out, const char *text, dn_http_error *err)
{
    *out = 0;
    if (text && (strspn(text, "0123456789") != strlen(text) || strlen(text) > 18 || !(*out = strtoull(text, NULL, 10))))
        return dn_http_fail(err, DN_H_TYPE, "after", "after must be the next of a page, got %.40s", text);
    return 0;
}

static size_t info_bytes(const dn_request *r)
{
    return INFO_BYTES + strlen(r->model) + strlen(r->numerics) + (r->failure.id ? strlen(r->failure.message) : 0);
}

static bool is_wanted(const dn_call *call, const dn_requests_query *q, const dn_request *r, uint64_t before)
{
    bool of_state = !(q->has & DN_BIT(DN_REQUESTS_STATE)) || q->state == (int)r->state;
    return of_state && (!before || r->run < before) && may_see(call, r);
}

void dn_route_requests(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    dn_requests_query q;
    dn_http_error err;
    uint64_t before, last = 0;
    if (dn_route_query(call, &dn_requests_query_fields, &q))
        return;
    if (parse_cursor(&before, q.after, &err)) {
        dn_reply_error(call, &err);
        return;
    }
    dn_request_info *infos = calloc(q.limit, sizeof *infos);
    dn_info_scratch *scratch = calloc(1, sizeof *scratch);
    char next[24];
    int n = 0;
    size_t bytes = 0;
    dn_request *r = dn_requests_prev(app, NULL);
    for (; infos && scratch && r; r = dn_requests_prev(app, r)) {
        if (!is_wanted(call, &q, r, before))
            continue;
        bytes += info_bytes(r);
        if (n == q.limit || (n && bytes > PAGE_BYTES))
            break;
        dn_request_info_of(r, &infos[n], scratch);
        infos[n].has &=
            ~DN_BIT(DN_REQUEST_IMAGES); /* of which there is only one scratch; GET /requests/{id} has them */
        n++;
        last = r->run;
    }
    snprintf(next, sizeof next, "%llu", (unsigned long long)last);
    dn_request_list list = { DN_HAS_ALL, .requests = { infos, n }, .next = r && n ? next : NULL };
    if (infos && scratch)
        dn_route_reply(call, 200, &dn_request_list_fields, &list);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the list");
    free(infos);
    free(scratch);
}
