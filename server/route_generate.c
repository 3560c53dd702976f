/* route_generate.c - POST /generate: the body into a request. */
#include "idempotency.h"
#include "requests.h"
#include "routes_app.h"

#include <jansson.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

static bool prefers_async(const dn_call *call)
{
    const char *prefer = dn_call_header(call, "Prefer");
    static const char token[] = "respond-async";
    for (const char *p = prefer; p && (p = strcasestr(p, token)); p++) {
        char after = p[sizeof token - 1];
        if ((p == prefer || strchr(", \t", p[-1])) && (!after || strchr(",; \t", after)))
            return true;
    }
    return false;
}

static int parse(dn_request *r, dn_call *call, dn_http_error *err)
{
    size_t n;
    const char *body = dn_call_body(call, &n);
    r->json = n ? dn_json_parse(body, n, err) : json_object();
    if (!r->json)
        return err->id ? err->id : dn_http_fail(err, DN_H_MEMORY, NULL, "no memory for the request");
    int rc = dn_generate_parse(&r->in, r->arena, r->json, err);
    if (rc)
        return rc;
    uint32_t drawn = 0;
    if (!(r->in.has & DN_BIT(DN_GENERATE_SEED)) && getrandom(&drawn, sizeof drawn, 0) != sizeof drawn)
        return dn_http_fail(err, DN_H_INTERNAL, "seed", "no random numbers");
    r->seed = r->in.has & DN_BIT(DN_GENERATE_SEED) ? r->in.seed : drawn;
    return 0;
}

static void generate(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_request *r = dn_request_new(dn_call_app(call), call);
    if (!r) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the request");
        return;
    }
    const char *accept = dn_call_gives(call);
    r->async = prefers_async(call);
    r->accept_given = dn_call_accept_given(call);
    r->keyed = dn_call_header(call, "Idempotency-Key") != NULL;
    strncpy(r->accept, accept ? accept : "", sizeof r->accept - 1);
    if (parse(r, call, &err))
        dn_request_refuse(r, &err, 0);
    else
        dn_request_begin(r);
}

void dn_route_generate(dn_call *call) { dn_idem_handle(dn_call_app(call), call, generate); }
