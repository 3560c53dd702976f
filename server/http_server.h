/* http_server.h - starting, draining and stopping the HTTP side: what main.c sees beside http.h. */
#ifndef DN_SERVER_HTTP_SERVER_H
#define DN_SERVER_HTTP_SERVER_H

#include "auth.h"
#include "http.h"
#include "lanes.h"
#include "loop.h"

enum { DN_LISTEN_MAX = 8 };

typedef struct dn_http_options {
    dn_loop *loop;
    const dn_auth *auth;       /* NULL: no tokens, everyone is `local` and admin */
    const char *const *listen; /* "127.0.0.1:8760", "[::1]:0", "localhost:80", "unix:/path" */
    int n_listen;
    const char *const *host_names; /* Hosts beside loopback */
    int n_host_names;
    const char *const *cors_origins; /* Origins beside our own, "https://app.example" */
    int n_cors_origins;
    const dn_asset *assets;
    size_t n_assets;
    int connections_max;             /* of each address */
    int header_ms, body_ms, idle_ms; /* absolute: a head; a body, plus its length at 64 KiB/s; between two requests */
    int stall_ms;                    /* a reader that takes nothing for so long is cut off */
    int ping_ms;                     /* of silence on a stream */
    size_t bodies_max;               /* bytes of request bodies held at once */
    const char *incoming;            /* folder of the bodies that go to files; NULL: there are none */
    dn_lane *uploads;                /* that writes them */
    size_t upload_max;               /* bytes of one */
    /* May `bytes` more be kept? 0, or a DN_H code. */
    int (*room)(void *arg, int64_t bytes, struct dn_http_error *err);
    void *room_arg;
    /* An exchange is over. `status` is 499 if the client left before the reply, 0 if nothing was said. */
    void (*done)(void *arg, dn_call *call, int status, double ms);
    void *done_arg;
} dn_http_options;
/* The daemon's limits; tests build one with limits that they can wait for. */
#ifndef DN_HTTP_LIMITS
#define DN_HTTP_LIMITS \
    .header_ms = 10000, .body_ms = 30000, .idle_ms = 75000, .stall_ms = 60000, .ping_ms = 15000, .bodies_max = 256 << 20
#endif
#define dn_http_options(...) (&(dn_http_options){ .connections_max = 4096, DN_HTTP_LIMITS, __VA_ARGS__ })

/* Bind all addresses (which may need a token is proto's rule, daemon_config.c); nothing is accepted yet. Strings and
 * arrays of *o must stay. */
int dn_http_new(dn_http **out, const dn_http_options *o, dn_error *err);
/* Let these endpoints (the table must stay) answer; `owner` is what dn_call_app gives to their handlers. */
void dn_http_bind(dn_http *http, const dn_endpoint *endpoints, size_t n, void *owner);
int dn_http_start(dn_http *http, dn_error *err); /* accept */
/* The i-th address as a client would write it, "http://127.0.0.1:8760" or "unix:/path"; NULL past the last. */
const char *dn_http_address(const dn_http *http, int i);
/* Refuse new work from now on (503 draining). */
void dn_http_drain(dn_http *http);
bool dn_http_draining(const dn_http *http);
size_t dn_http_busy(const dn_http *http); /* exchanges that have begun and not ended */
/* Tell every open call that it is gone, close all connections, free. Run dn_loop_settle afterwards. NULL is fine. */
void dn_http_free(dn_http *http);
/* Which of proto's routes it was; -1 if none. */
int dn_call_route(const dn_call *call);

#endif
