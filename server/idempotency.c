/* idempotency.c - keys in flight on the loop, answers in the store.
 *
 * An entry exists from the first call of a key until its answer is stored (or is no answer to be kept). It first asks
 * the store; then one call, the lead, is worked on, and the others wait for what it gets. */
#include "idempotency.h"

#include "log.h"
#include <denoised/sha256.h>
#include <jansson.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    KEY_LEN_MAX = 255,
    BODY_MAX = 16 << 20, /* of a stored answer; a larger one is answered once, and then 410 */
    ROWS_MAX = 1 << 20,
    TICKS_PER_TRIM = 120,
};
static const double kept_s = 24 * 3600;

/* owner, method, path, key: what a key is good for; and the sha256 of what was asked with it: the body, and the query if any */
typedef struct ident {
    char *owner, *method, *path, *key;
    char asked[DN_SHA256_HEX_SIZE];
} ident;

struct dn_idem_answer {
    ident id;
    int status;
    char *headers, *type; /* a JSON object; type may be NULL */
    char *body;           /* NULL: not kept */
    size_t n;
    double created;
};

enum phase { ASKING, WORKING, STORING };

typedef struct entry {
    dn_link link;
    dn_app *app;
    ident id;
    enum phase phase;
    dn_call *lead; /* NULL: it has left, or is answered */
    dn_link waiters;
    void (*handler)(dn_call *call);
    bool kept;      /* whoever answers keeps the answer too */
    dn_store_op op; /* ASKING: reads *found; STORING: keeps it */
    dn_idem_answer *found;
} entry;

typedef struct waiter {
    dn_link link;
    dn_call *call;
} waiter;

struct dn_idem {
    dn_link entries;
    dn_store_op trim;
    bool trimming;
    int ticks;
    int64_t bytes_max; /* of all stored bodies */
};

/* ---- identities and answers --------------------------------------------------------------------------------- */

static void ident_fini(ident *id)
{
    free(id->owner);
    free(id->method);
    free(id->path);
    free(id->key);
}

static int ident_init(ident *out, const char *owner, const char *method, const char *path, const char *key,
                      const char *asked)
{
    *out = (ident){ strdup(owner), strdup(method), strdup(path), strdup(key), "" };
    memcpy(out->asked, asked, sizeof out->asked);
    if (out->owner && out->method && out->path && out->key)
        return 0;
    ident_fini(out);
    return DN_E_MEMORY;
}

static bool is_of(const ident *id, const dn_call *call, const char *key)
{
    return !strcmp(id->key, key) && !strcmp(id->path, dn_call_path(call)) && !strcmp(id->owner, dn_call_tenant(call)) &&
           !strcmp(id->method, dn_call_method(call));
}

void dn_idem_answer_free(dn_idem_answer *a)
{
    if (!a)
        return;
    ident_fini(&a->id);
    free(a->headers);
    free(a->type);
    free(a->body);
    free(a);
}

static double unix_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Takes `headers`. NULL when out of memory. */
static dn_idem_answer *answer_new(const ident *id, int status, json_t *headers, const char *type, const void *data,
                                  size_t n)
{
    dn_idem_answer *a = calloc(1, sizeof *a);
    bool good = a && headers && !ident_init(&a->id, id->owner, id->method, id->path, id->key, id->asked);
    if (good) {
        a->status = status;
        a->created = unix_now();
        a->headers = json_dumps(headers, JSON_COMPACT);
        a->type = type ? strdup(type) : NULL;
        a->n = n;
        a->body = n <= BODY_MAX ? malloc(n + 1) : NULL;
        if (a->body && n)
            memcpy(a->body, data, n);
        good = a->headers && (!type || a->type) && (a->body || n > BODY_MAX);
    }
    json_decref(headers);
    if (good)
        return a;
    dn_idem_answer_free(a);
    return NULL;
}

static json_t *headers_of(const dn_call *call)
{
    const char *name, *value;
    json_t *j = json_object();
    for (int i = 0; dn_call_reply_header_at(call, i, &name, &value); i++)
        json_object_set_new(j, name, json_string(value));
    return j;
}

/* ---- the store's thread ------------------------------------------------------------------------------------- */

int dn_idem_keep(sqlite3 *db, const dn_idem_answer *a, dn_error *err)
{
    if (!a)
        return 0;
    return dn_sql_run(
        db, err,
        "INSERT OR REPLACE INTO answers (owner, method, path, key, asked, created, status, headers, type, "
        "body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        "sssssdissb", a->id.owner, a->id.method, a->id.path, a->id.key, a->id.asked, a->created, (int64_t)a->status,
        a->headers, a->type, a->body, a->n);
}

static char *copy_text(sqlite3_stmt *s, int i)
{
    const unsigned char *text = sqlite3_column_text(s, i);
    return text ? strdup((const char *)text) : NULL;
}

static int read_answer(dn_idem_answer *a, sqlite3_stmt *s, dn_error *err)
{
    const void *body = sqlite3_column_blob(s, 4);
    const unsigned char *asked = sqlite3_column_text(s, 0);
    a->n = (size_t)sqlite3_column_bytes(s, 4);
    bool kept = sqlite3_column_type(s, 4) != SQLITE_NULL;
    a->status = sqlite3_column_int(s, 1);
    a->headers = copy_text(s, 2);
    a->type = copy_text(s, 3);
    a->body = kept ? malloc(a->n + 1) : NULL;
    if (!asked || !a->headers || (kept && !a->body))
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a stored answer");
    if (kept && a->n)
        memcpy(a->body, body, a->n);
    strncpy(a->id.asked, (const char *)asked, sizeof a->id.asked - 1);
    return 0;
}

static int ask_work(dn_store_op *op, sqlite3 *db)
{
    entry *e = dn_container_of(op, entry, op);
    sqlite3_stmt *s = NULL;
    int rc = dn_sql_query(&s, db, &op->error,
                          "SELECT asked, status, headers, type, body FROM answers WHERE owner = ? AND method = ? AND "
                          "path = ? AND key = ? AND created > ?",
                          "ssssd", e->id.owner, e->id.method, e->id.path, e->id.key, unix_now() - kept_s);
    if (!rc && dn_sql_next(s, &rc, &op->error)) {
        e->found = calloc(1, sizeof *e->found);
        rc = e->found ? read_answer(e->found, s, &op->error) : DN_E_MEMORY;
    }
    dn_sql_end(s);
    return rc;
}

static int keep_work(dn_store_op *op, sqlite3 *db)
{
    return dn_idem_keep(db, dn_container_of(op, entry, op)->found, &op->error);
}

/* The oldest bodies go first; their keys stay, and answer 410. */
static int trim_work(dn_store_op *op, sqlite3 *db)
{
    dn_idem *idem = dn_container_of(op, dn_idem, trim);
    int rc = dn_sql_run(db, &op->error, "DELETE FROM answers WHERE created <= ?", "d", unix_now() - kept_s);
    if (!rc)
        rc = dn_sql_run(db, &op->error, "DELETE FROM answers WHERE seq <= (SELECT max(seq) FROM answers) - ?", "i",
                        (int64_t)ROWS_MAX);
    if (!rc)
        rc =
            dn_sql_run(db, &op->error,
                       "UPDATE answers SET body = NULL WHERE body IS NOT NULL AND seq <= (SELECT max(seq) FROM (SELECT "
                       "seq, sum(length(body)) OVER (ORDER BY seq DESC) AS held FROM answers WHERE body IS NOT NULL) "
                       "WHERE held > ?)",
                       "i", idem->bytes_max);
    return rc;
}

/* ---- answering ---------------------------------------------------------------------------------------------- */

/* The answer with this body; NULL: it is not kept. `a` stays whose it is. */
static void replay(dn_call *call, const dn_idem_answer *a, const void *body)
{
    if (!body) {
        dn_reply_refuse(call, DN_H_EXPIRED, "Idempotency-Key", "it was answered with %d; that answer is no longer kept",
                        a->status);
        return;
    }
    const char *name;
    json_t *value, *headers = json_loads(a->headers, 0, NULL);
    json_object_foreach(headers, name, value)
    {
        char *own = dn_arena_strndup(dn_call_arena(call), name, strlen(name)); /* dn_reply_header keeps the pointer */
        if (own && json_string_value(value))
            dn_reply_header(call, own, "%s", json_string_value(value));
    }
    json_decref(headers);
    dn_reply(call, a->status, a->type, body, a->n);
}

static void entry_free(entry *e)
{
    dn_link_pop(&e->link);
    ident_fini(&e->id);
    dn_idem_answer_free(e->found);
    free(e);
}

/* The next who waits; NULL: nobody. */
static dn_call *take_waiter(entry *e)
{
    if (dn_link_empty(&e->waiters))
        return NULL;
    waiter *w = DN_LINK_OF(e->waiters.next, waiter, link);
    dn_call *call = w->call;
    dn_call_on_gone(call, NULL, NULL);
    dn_link_pop(&w->link);
    free(w);
    return call;
}

static void refuse_all(entry *e, const dn_http_error *err)
{
    for (dn_call *call; (call = take_waiter(e));)
        dn_reply_error(call, err);
}

static void replay_all(entry *e, const void *body)
{
    for (dn_call *call; (call = take_waiter(e));)
        replay(call, e->found, body);
}

static void lead_left(void *arg) { ((entry *)arg)->lead = NULL; }

static void stored(dn_store_op *op)
{
    entry *e = dn_container_of(op, entry, op);
    if (op->rc)
        dn_log(DN_LOG_WARN, "answer_not_kept", "%s", op->error.message);
    replay_all(e, e->found->body);
    entry_free(e);
}

static void work_on(entry *e);
static void asked(dn_store_op *op);

static void ask(entry *e)
{
    e->phase = ASKING;
    e->op = (dn_store_op){ .work = ask_work, .done = asked };
    dn_store_submit(e->app->server.store, &e->op);
}

/* The lead has its answer, or has gone without one. */
static void ended(void *arg, dn_call *call, const dn_ending *ending)
{
    entry *e = arg;
    e->lead = NULL;
    if (!ending->status && e->kept) { /* it has gone, but its answer may be in the store by now */
        ask(e);
        return;
    }
    if (!ending->status) {
        work_on(e);
        return;
    }
    e->found = answer_new(&e->id, ending->status, headers_of(call), ending->content_type, ending->data, ending->n);
    if (!e->found) {
        dn_http_error err;
        dn_http_fail(&err, DN_H_MEMORY, NULL, "no memory for the answer");
        refuse_all(e, &err);
        entry_free(e);
        return;
    }
    replay_all(e, ending->data);
    if (ending->status >= 300 || e->kept) {
        entry_free(e);
        return;
    }
    e->phase = STORING; /* a call that comes now waits for that */
    e->op = (dn_store_op){ .work = keep_work, .done = stored };
    dn_store_submit(e->app->server.store, &e->op);
}

/* The first who is there becomes the lead. */
static void work_on(entry *e)
{
    if (!e->lead && e->app->closing) {
        dn_http_error err;
        dn_http_fail(&err, DN_H_DRAINING, NULL, NULL);
        refuse_all(e, &err);
    }
    if (!e->lead)
        e->lead = take_waiter(e);
    if (!e->lead) {
        entry_free(e);
        return;
    }
    e->phase = WORKING;
    e->kept = false;
    dn_call_on_gone(e->lead, NULL, NULL);
    dn_call_on_end(e->lead, ended, e);
    e->handler(e->lead);
}

static void asked(dn_store_op *op)
{
    entry *e = dn_container_of(op, entry, op);
    dn_http_error err = { 0 };
    if (op->rc)
        dn_http_fail_engine(&err, dn_error_name(op->rc), NULL, op->error.message);
    else if (e->found && strcmp(e->found->id.asked, e->id.asked))
        dn_http_fail(&err, DN_H_IDEMPOTENCY, "Idempotency-Key", NULL);
    if (!err.id && !e->found) {
        work_on(e);
        return;
    }
    if (e->lead) {
        dn_call_on_gone(e->lead, NULL, NULL);
        if (err.id)
            dn_reply_error(e->lead, &err);
        else
            replay(e->lead, e->found, e->found->body);
    }
    if (err.id)
        refuse_all(e, &err);
    else
        replay_all(e, e->found->body);
    entry_free(e);
}

/* ---- the calls ---------------------------------------------------------------------------------------------- */

static void waiter_left(void *arg)
{
    waiter *w = arg;
    dn_link_pop(&w->link);
    free(w);
}

static void wait_for(entry *e, dn_call *call, const char *asked)
{
    if (strcmp(e->id.asked, asked)) {
        dn_reply_refuse(call, DN_H_IDEMPOTENCY, "Idempotency-Key", "the key came with another body before");
        return;
    }
    waiter *w = calloc(1, sizeof *w);
    if (!w) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the request");
        return;
    }
    w->call = call;
    dn_link_push(&e->waiters, &w->link);
    dn_call_on_gone(call, waiter_left, w);
}

static void ask_store(dn_app *app, dn_call *call, const char *key, const char *body_sha, void (*handler)(dn_call *call))
{
    entry *e = calloc(1, sizeof *e);
    if (!e || ident_init(&e->id, dn_call_tenant(call), dn_call_method(call), dn_call_path(call), key, body_sha)) {
        free(e);
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the request");
        return;
    }
    e->app = app;
    e->lead = call;
    e->handler = handler;
    dn_link_init(&e->waiters);
    dn_link_push(&app->idem->entries, &e->link);
    dn_call_on_gone(call, lead_left, e);
    ask(e);
}

static bool key_is_good(const char *key)
{
    size_t n = strlen(key);
    for (size_t i = 0; i < n; i++) {
        if (key[i] < 0x21 || key[i] > 0x7e)
            return false;
    }
    return n >= 1 && n <= KEY_LEN_MAX;
}

/* Without a query it is the body's alone. */
static int hash_asked(char sha[DN_SHA256_HEX_SIZE], dn_call *call)
{
    const char *name, *value;
    dn_sha256 h;
    int rc = dn_call_body_sha256(call, sha);
    if (rc || !dn_call_query_at(call, 0, &name, &value))
        return rc;
    rc = dn_sha256_init(&h);
    if (rc)
        return rc;
    rc = dn_sha256_update(&h, sha, DN_SHA256_HEX_SIZE);
    for (int i = 0; !rc && dn_call_query_at(call, i, &name, &value); i++) {
        rc = dn_sha256_update(&h, name, strlen(name) + 1);
        rc = rc ? rc : dn_sha256_update(&h, value ? value : "", strlen(value ? value : "") + 1);
    }
    dn_sha256_fini(&h, sha);
    return rc;
}

void dn_idem_handle(dn_app *app, dn_call *call, void (*handler)(dn_call *call))
{
    const char *key = dn_call_header(call, "Idempotency-Key");
    char sha[DN_SHA256_HEX_SIZE];
    if (!key) {
        handler(call);
        return;
    }
    if (!key_is_good(key)) {
        dn_reply_refuse(call, DN_H_BAD_HEADER, "Idempotency-Key", "Idempotency-Key must be 1 to %d visible characters",
                        KEY_LEN_MAX);
        return;
    }
    if (hash_asked(sha, call)) {
        dn_reply_refuse(call, DN_H_INTERNAL, NULL, "the body could not be hashed");
        return;
    }
    DN_LINK_EACH(l, &app->idem->entries)
    {
        entry *e = DN_LINK_OF(l, entry, link);
        if (is_of(&e->id, call, key)) {
            wait_for(e, call, sha);
            return;
        }
    }
    ask_store(app, call, key, sha, handler);
}

int dn_idem_answer_of(dn_idem_answer **out, dn_app *app, const dn_call *call, int status, const char *location,
                      const char *content_type, const void *data, size_t n)
{
    *out = NULL;
    DN_LINK_EACH(l, &app->idem->entries)
    {
        entry *e = DN_LINK_OF(l, entry, link);
        if (e->lead != call || e->phase != WORKING)
            continue;
        json_t *headers = json_object();
        if (location)
            json_object_set_new(headers, "Location", json_string(location));
        *out = answer_new(&e->id, status, headers, content_type, data, n);
        e->kept = *out != NULL;
        return *out ? 0 : DN_E_MEMORY;
    }
    return 0;
}

/* ---- life --------------------------------------------------------------------------------------------------- */

int dn_idem_open(dn_app *app, dn_error *err)
{
    dn_idem *idem = app->idem = calloc(1, sizeof *idem);
    if (!idem)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory");
    dn_link_init(&idem->entries);
    idem->bytes_max = app->server.config->result_bytes;
    return 0;
}

static void trimmed(dn_store_op *op)
{
    dn_container_of(op, dn_idem, trim)->trimming = false;
    if (op->rc)
        dn_log(DN_LOG_WARN, "answers_not_trimmed", "%s", op->error.message);
}

void dn_idem_tick(dn_app *app)
{
    dn_idem *idem = app->idem;
    if (idem->trimming || app->closing || idem->ticks++ % TICKS_PER_TRIM)
        return;
    idem->trimming = true;
    idem->trim = (dn_store_op){ .work = trim_work, .done = trimmed };
    dn_store_submit(app->server.store, &idem->trim);
}

void dn_idem_close(dn_app *app)
{
    dn_idem *idem = app->idem;
    if (!idem)
        return;
    DN_LINK_EACH(l, &idem->entries) { entry_free(DN_LINK_OF(l, entry, link)); }
    free(idem);
    app->idem = NULL;
}
