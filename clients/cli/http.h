/* http.h - one daemon, asked over libcurl: bodies with a cap or streamed, event streams, Ctrl-C.
 *
 * A transfer is run to its end by dn_client_run, which also drives the transfer beside it. Nothing here trusts the
 * other side: every body that is kept in memory and every event has a cap, redirects are not followed. */
#ifndef DN_CLI_HTTP_H
#define DN_CLI_HTTP_H

#include "cli.h"
#include "sse.h"
#include <curl/curl.h>

enum {
    DN_ANSWER_MAX = 4 << 20,  /* bytes of a JSON answer */
    DN_EVENT_MAX = 512 << 20, /* of one event, which may hold a result in base64 */
    DN_RESULT_MAX = 1 << 30,  /* of a result that is fetched */
    DN_STATUS_EVENT_MAX = 4 << 20
};

typedef struct dn_client {
    char *url;               /* "http://127.0.0.1:8760", no slash at the end */
    const char *named;       /* what the user called it */
    const char *unix_path;   /* NULL: TCP */
    bool direct;             /* a loopback address: no proxy */
    struct curl_slist *auth; /* the token's header; NULL: none */
    CURLM *multi;
} dn_client;

/* A body that is made while it is sent. */
typedef struct dn_giver {
    /* The next bytes, at most `n`; their number, 0: the end, -1: failed, after a complaint. */
    ssize_t (*give)(void *arg, char *out, size_t n);
    void *arg;
    int64_t size; /* bytes in all; -1: not known */
    const char *type;
} dn_giver;

/* Where a body goes while it comes. */
typedef struct dn_taker {
    int (*take)(void *arg, const char *bytes, size_t n); /* 0, or -1 after a complaint */
    void *arg;
} dn_taker;

typedef struct dn_transfer {
    /* what is asked */
    const char *method, *path;  /* path with its query */
    const char *body;           /* JSON; NULL: none */
    const dn_giver *giver;      /* or a PUT's body; NULL: none */
    const dn_taker *taker;      /* takes the body of a 200, which must say where it ends; NULL: it goes to `answer` */
    const char *accept;         /* NULL: anything */
    const char *header;         /* one more, "Name: value"; NULL: none */
    size_t max;                 /* of the answer's body; 0: DN_ANSWER_MAX */
    dn_sse *sse;                /* takes the body of a 200 that is an event stream; NULL: nothing does */
    void (*between)(void *arg); /* called now and then while it runs, and may run other transfers; NULL: nothing is */
    void *between_arg;

    /* what came */
    long status;           /* 0: no answer */
    char content_type[80]; /* without parameters */
    long retry_after_s;    /* -1: not said */
    dn_buf answer;         /* what went to no parser */
    int64_t length;        /* of the body, as the answer says; -1: not said */
    bool stopped;          /* by the parser's function */
    bool sent;             /* some of it has left: the daemon may have done it */

    /* while it runs */
    CURL *easy;
    struct curl_slist *headers;
    char error[CURL_ERROR_SIZE];
    CURLcode result;
    long os_errno;
    bool finished;
    bool framed;     /* the answer says where it ends */
    bool failed;     /* by giver or taker */
    const char *why; /* the answer was given up; NULL: it was not */
} dn_transfer;

/* From --server, --token, --token-file and their variables. Returns 0 or a dn_exit after a complaint. */
int dn_client_init(dn_client *c, const dn_args *args);
void dn_client_fini(dn_client *c);

/* Ask and wait for the end of the answer. `side` (may be NULL) runs as long as `t` does; how it fares does not matter.
 * Returns 0 when an answer came whole, its parser stopped it or it is a refusal that came before all was sent
 * (t->status may be anything), DN_EXIT_INTERRUPTED, DN_EXIT_FAILED when giver or taker failed, which have complained,
 * or DN_EXIT_UNREACHABLE or _SERVER with the reason in t->error. Call dn_transfer_fini in every case. */
int dn_client_run(dn_client *c, dn_transfer *t, dn_transfer *side);
void dn_transfer_fini(dn_transfer *t);
/* dn_client_run; what is no 2xx is complained about and becomes an exit code. */
int dn_client_ask(dn_client *c, dn_transfer *t);
/* dn_client_ask, then the body as a JSON object. *out is only set on success. */
int dn_client_json(dn_client *c, dn_transfer *t, struct json_t **out);
/* The body of an answer as a JSON object; 0 or, after a complaint, DN_EXIT_SERVER. */
int dn_client_parse(const dn_transfer *t, struct json_t **out);
/* Complain about an answer that is no 2xx, or about why there is none; `rc` is dn_client_run's. Returns the exit code.
 */
int dn_client_complain(const dn_client *c, const dn_transfer *t, int rc);
/* Complain with an error object as the daemon writes it; `status` 0: look it up by the code. Returns the exit code. */
int dn_error_complain(const struct json_t *error, int status);

/* ask.c: one question of a command from beginning to end: `path` and the query of its flags, the body (NULL: none),
 * complaints, --raw. *out is only set on success. Returns 0 or a dn_exit. */
int dn_ask(const dn_args *args, const char *method, const char *path, const struct json_t *body, struct json_t **out);
/* The same with a path like "/models/%/load", in which % stands for `name`, escaped. */
int dn_ask_about(const dn_args *args, const char *method, const char *path, const char *name, const struct json_t *body,
                 struct json_t **out);
/* Such a path, malloc'ed; NULL after a complaint. */
char *dn_path_about(const char *path, const char *name);

/* Ctrl-C and SIGTERM only set a flag from now on; the second one kills. */
void dn_interrupt_catch(void);
bool dn_interrupted(void);
/* The interrupt has been seen: what follows (saying so to the daemon) is not stopped by it. */
void dn_interrupt_forget(void);
/* Returns early when interrupted. */
void dn_pause(double seconds);
/* Before the n-th try again, n from 1: twice as long each time. */
void dn_pause_again(int n);

#endif
