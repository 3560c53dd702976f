/* routes.c - which paths there are, which belong to a later version, and query strings. */
#include "json.h"
#include "proto.h"

#include <stdio.h>
#include <string.h>

/* clang-format off */
const dn_route dn_routes[DN_ROUTE_COUNT] = {
#define X(id, method, path, body_max, takes, gives, summary) [DN_ROUTE_##id] = { method, path, body_max, takes, gives, summary },
    DN_ROUTES(X)
#undef X
};

/* Endpoints of later versions; a NULL method is any. A last segment of * stands for all that follows. */
static const struct {
    const char *method, *path;
} later[] = {
    { NULL, "/blobs" }, { NULL, "/blobs/{id}" }, { NULL, "/usage" }, { NULL, "/v1/*" }, { NULL, "/v2/*" },
};
/* clang-format on */

bool dn_name_ok(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789._-");
    return n && !s[n] && n <= DN_NAME_LEN_MAX && !strchr("._-", *s);
}

/* Does `path` match the pattern, segment by segment? Fills hit->arg (hit may be NULL). */
static bool match(const char *pattern, const char *path, dn_route_hit *hit)
{
    int n = 0;
    while (*pattern == '/' && *path == '/') {
        size_t p = strcspn(++pattern, "/"), s = strcspn(++path, "/");
        if (*pattern == '*')
            return true;
        if (*pattern == '{') {
            if (!s || s > DN_ROUTE_ARG_LEN_MAX)
                return false;
            if (hit)
                snprintf(hit->arg[n++], sizeof hit->arg[0], "%.*s", (int)s, path);
        } else if (p != s || strncmp(pattern, path, s)) {
            return false;
        }
        pattern += p;
        path += s;
    }
    if (hit)
        hit->n_args = n;
    return !*pattern && !*path;
}

static void add_method(char *allow, size_t size, const char *method)
{
    size_t n = strlen(allow);
    snprintf(allow + n, size - n, "%s%s%s", n ? ", " : "", method, strcmp(method, "GET") ? "" : ", HEAD");
}

int dn_route_find(dn_route_hit *hit, const char *method, const char *path, dn_http_error *err)
{
    *hit = (dn_route_hit){ .route = -1 };
    const char *as = strcmp(method, "HEAD") ? method : "GET";
    for (int i = 0; i < DN_ROUTE_COUNT; i++) {
        if (!match(dn_routes[i].path, path, hit))
            continue;
        if (!strcmp(dn_routes[i].method, as)) {
            hit->route = i;
            hit->allow[0] = 0;
            return 0;
        }
        add_method(hit->allow, sizeof hit->allow, dn_routes[i].method);
    }
    hit->n_args = 0;
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if ((!later[i].method || !strcmp(later[i].method, as)) && match(later[i].path, path, NULL))
            return dn_http_fail(err, DN_H_NOT_IMPLEMENTED, NULL, "%.16s %.80s belongs to a later version", method,
                                path);
    if (hit->allow[0])
        return dn_http_fail(err, DN_H_METHOD, NULL, "%.80s does not know %.16s, but %s", path, method, hit->allow);
    return dn_http_fail(err, DN_H_NOT_FOUND, NULL, "there is no %.80s", path);
}

int dn_query_init(const dn_fields *t, void *out, dn_arena *a, dn_http_error *err)
{
    memset(out, 0, t->size);
    return dn_fields_defaults(t, out, a, err);
}

int dn_query_set(const dn_fields *t, void *out, dn_arena *a, const char *name, const char *value, dn_http_error *err)
{
    int i = dn_fields_find(t, name);
    if (i < 0)
        return dn_http_fail(err, DN_H_UNKNOWN, name, "there is no parameter %.64s here", name);
    if (*(uint64_t *)out >> i & 1)
        return dn_http_fail(err, DN_H_DUPLICATE, name, "%s is given twice", name);
    dn_http_error mine;
    err = err ? err : &mine;
    json_t *v = dn_field_from_text(&t->v[i], value ? value : "", err);
    int code = v ? dn_field_set(t, i, out, a, v, err) : err->id;
    json_decref(v);
    return code;
}
