/* requests.c - the life of a request on the loop, and what is kept of it afterwards. */
#include "requests.h"

#include "log.h"
#include "requests_rows.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { BUCKETS = 4096, GONE_MAX = 16384, KEPT_MAX = 16384, CANCELLED_MAX = 64 };

struct dn_requests {
    dn_link all, alive; /* oldest first */
    dn_link by_id[BUCKETS], by_run[BUCKETS];
    uint64_t last_run;
    int active, parked, kept, cancelled; /* cancelled ones have nothing to fetch: few of the kept may be */
    int64_t kept_bytes;
    /* ids of what is no longer kept, a ring */
    unsigned char gone[GONE_MAX][DN_REQUEST_ID_LEN / 2];
    int n_gone, gone_at;
};

static double unix_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* ---- ids ---------------------------------------------------------------------------------------------------- */

/* The 16 bytes of an id; false when it is none. */
static bool id_bytes(unsigned char out[DN_REQUEST_ID_LEN / 2], const char *id)
{
    if (strlen(id) != DN_REQUEST_ID_LEN || strspn(id, "0123456789abcdef") != DN_REQUEST_ID_LEN)
        return false;
    for (int i = 0; i < DN_REQUEST_ID_LEN / 2; i++) {
        char two[3] = { id[2 * i], id[2 * i + 1], 0 };
        out[i] = (unsigned char)strtoul(two, NULL, 16);
    }
    return true;
}

static dn_link *id_bucket(dn_requests *rs, const unsigned char *b) { return &rs->by_id[(b[0] << 8 | b[1]) % BUCKETS]; }

static int draw_id(char id[DN_REQUEST_ID_LEN + 1], unsigned char b[DN_REQUEST_ID_LEN / 2])
{
    if (getrandom(b, DN_REQUEST_ID_LEN / 2, 0) != DN_REQUEST_ID_LEN / 2)
        return -1;
    for (int i = 0; i < DN_REQUEST_ID_LEN / 2; i++)
        sprintf(id + 2 * i, "%02x", b[i]);
    return 0;
}

dn_request *dn_request_find(dn_app *app, const char *id)
{
    unsigned char b[DN_REQUEST_ID_LEN / 2];
    if (!id_bytes(b, id))
        return NULL;
    DN_LINK_EACH(l, id_bucket(app->requests, b))
    {
        dn_request *r = DN_LINK_OF(l, dn_request, by_id);
        if (!strcmp(r->id, id))
            return r;
    }
    return NULL;
}

dn_request *dn_request_by_run(dn_app *app, uint64_t run)
{
    DN_LINK_EACH(l, &app->requests->by_run[run % BUCKETS])
    {
        if (DN_LINK_OF(l, dn_request, by_run)->run == run)
            return DN_LINK_OF(l, dn_request, by_run);
    }
    return NULL;
}

bool dn_request_forgotten(dn_app *app, const char *id)
{
    unsigned char b[DN_REQUEST_ID_LEN / 2];
    if (!id_bytes(b, id))
        return false;
    for (int i = 0; i < app->requests->n_gone; i++) {
        if (!memcmp(app->requests->gone[i], b, sizeof b))
            return true;
    }
    return false;
}

static void remember_gone(dn_requests *rs, const char *id)
{
    if (!id_bytes(rs->gone[rs->gone_at], id))
        return;
    rs->gone_at = (rs->gone_at + 1) % GONE_MAX;
    rs->n_gone += rs->n_gone < GONE_MAX;
}

void dn_request_remember_gone(dn_app *app, const char *id) { remember_gone(app->requests, id); }

/* ---- new and free ------------------------------------------------------------------------------------------- */

int dn_requests_open(dn_app *app, dn_error *err)
{
    dn_requests *rs = app->requests = calloc(1, sizeof *rs);
    if (!rs)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the list of requests");
    dn_link_init(&rs->all);
    dn_link_init(&rs->alive);
    for (int i = 0; i < BUCKETS; i++) {
        dn_link_init(&rs->by_id[i]);
        dn_link_init(&rs->by_run[i]);
    }
    return 0;
}

static void call_gone(void *arg)
{
    dn_request *r = arg;
    r->call = NULL;
    r->stream = NULL;
    if (!r->keep_on && !r->async)
        dn_request_cancel(r);
}

/* With the id whose bytes `b` are. NULL when out of memory. */
static dn_request *request_make(dn_app *app, const char *id, const unsigned char *b)
{
    dn_requests *rs = app->requests;
    dn_request *r = calloc(1, sizeof *r);
    if (!r || !(r->arena = dn_arena_new(DN_REQUEST_BYTES_MAX))) {
        free(r);
        return NULL;
    }
    memcpy(r->id, id, sizeof r->id);
    r->app = app;
    r->run = ++rs->last_run;
    r->weight = 1;
    r->arrived_ms = dn_clock_ms();
    r->created_at = unix_now();
    dn_link_init(&r->watchers);
    dn_link_push(&rs->all, &r->link);
    dn_link_push(&rs->alive, &r->alive);
    dn_link_push(id_bucket(rs, b), &r->by_id);
    dn_link_push(&rs->by_run[r->run % BUCKETS], &r->by_run);
    rs->active++;
    return r;
}

dn_request *dn_request_new(dn_app *app, dn_call *call)
{
    char id[DN_REQUEST_ID_LEN + 1];
    unsigned char b[DN_REQUEST_ID_LEN / 2];
    dn_request *r = draw_id(id, b) ? NULL : request_make(app, id, b);
    if (!r)
        return NULL;
    r->call = call;
    strncpy(r->tenant, dn_call_tenant(call), sizeof r->tenant - 1);
    dn_call_on_gone(call, call_gone, r);
    return r;
}

dn_request *dn_request_again(dn_app *app, const char *id)
{
    unsigned char b[DN_REQUEST_ID_LEN / 2];
    return id_bytes(b, id) ? request_make(app, id, b) : NULL;
}

void dn_request_park(dn_request *r)
{
    r->row.parked = true;
    r->app->requests->parked++;
    r->app->requests->active--;
}

void dn_request_unpark(dn_request *r)
{
    r->app->requests->active += r->row.parked;
    r->app->requests->parked -= r->row.parked;
    r->row.parked = false;
}

int dn_requests_parked(const dn_app *app) { return app->requests->parked; }

static int n_encoded(const dn_request *r) { return dn_request_needs_pictures(r) ? r->n : 1; }
int dn_request_results(const dn_request *r) { return n_encoded(r); }

void dn_request_forget_asked(dn_request *r)
{
    if (r->rows) {
        free(r->rows->x);
        free(r->rows->label_vector);
    }
    json_decref(r->json);
    dn_arena_free(r->arena);
    r->json = NULL;
    r->arena = NULL;
    r->rows = NULL;
}

static void free_pictures(dn_request *r)
{
    for (int k = 0; r->picture && k < r->n; k++)
        free(r->picture[k]);
    free(r->picture);
    r->picture = NULL;
}

/* The last of an encoded result's holders, itself and answers, frees its bytes. */
struct dn_shared {
    void *data;
    int holders;
};

static void shared_drop(void *arg)
{
    struct dn_shared *s = arg;
    if (--s->holders)
        return;
    free(s->data);
    free(s);
}

void dn_encoded_reply(dn_encoded *e, dn_call *call, const char *type)
{
    if (!e->shared && (e->shared = malloc(sizeof *e->shared)))
        *e->shared = (struct dn_shared){ e->data, 1 };
    if (!e->shared) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the answer");
        return;
    }
    e->shared->holders++;
    dn_reply_lend(call, 200, type, e->data, e->n, shared_drop, e->shared);
}

void dn_encoded_drop(dn_encoded *e)
{
    if (e->shared)
        shared_drop(e->shared);
    else
        free(e->data);
    e->shared = NULL;
    e->data = NULL;
}

static void request_free(dn_request *r)
{
    dn_requests *rs = r->app->requests;
    dn_link_pop(&r->link);
    dn_link_pop(&r->alive);
    dn_link_pop(&r->by_id);
    dn_link_pop(&r->by_run);
    dn_request_forget_asked(r);
    free_pictures(r);
    dn_run_free(r->row.run);
    for (int k = 0; r->encoded && k < n_encoded(r); k++)
        dn_encoded_drop(&r->encoded[k]);
    free(r->encoded);
    free(r->body);
    dn_request_log_free(r);
    r->app->budget.held[DN_HOLD_RESULTS] -= r->result_bytes;
    remember_gone(rs, r->id);
    free(r);
}

void dn_requests_close(dn_app *app)
{
    dn_requests *rs = app->requests;
    if (!rs)
        return;
    DN_LINK_EACH(l, &rs->all) { request_free(DN_LINK_OF(l, dn_request, link)); }
    free(rs);
    app->requests = NULL;
}

/* ---- counting and walking ----------------------------------------------------------------------------------- */

int dn_requests_active(const dn_app *app) { return app->requests->active; }
uint64_t dn_requests_total(const dn_app *app) { return app->requests->last_run; }

dn_request *dn_requests_next(dn_app *app, dn_request *r)
{
    dn_link *l = r ? r->alive.next : app->requests->alive.next;
    return l == &app->requests->alive ? NULL : DN_LINK_OF(l, dn_request, alive);
}

dn_request *dn_requests_prev(dn_app *app, dn_request *r)
{
    dn_link *l = r ? r->link.prev : app->requests->all.prev;
    return l == &app->requests->all ? NULL : DN_LINK_OF(l, dn_request, link);
}

void dn_requests_count(const dn_app *app, int *running, int *waiting)
{
    *running = *waiting = 0;
    DN_LINK_EACH(l, &app->requests->alive)
    {
        const dn_request *r = DN_LINK_OF(l, dn_request, alive);
        *running += r->state == DN_STATE_RUNNING;
        *waiting += r->state == DN_STATE_QUEUED;
    }
}

/* ---- what is kept ------------------------------------------------------------------------------------------- */

static int64_t kept_size(const dn_request *r)
{
    int64_t bytes = sizeof *r;
    for (int k = 0; r->encoded && k < n_encoded(r); k++)
        bytes += sizeof *r->encoded + (r->row.file_bytes ? 0 : r->encoded[k].n);
    for (int i = 0; i < r->n_log; i++)
        bytes += sizeof *r->log + r->log[i].n;
    return bytes;
}

static void hold_result(dn_request *r, int64_t bytes)
{
    r->app->budget.held[DN_HOLD_RESULTS] += bytes - r->result_bytes;
    r->result_bytes = bytes;
}

static void keep(dn_request *r)
{
    dn_requests *rs = r->app->requests;
    dn_request_forget_asked(r);
    free_pictures(r);
    free(r->body);
    r->body = NULL;
    hold_result(r, kept_size(r));
    rs->kept++;
    rs->cancelled += r->state == DN_STATE_CANCELLED;
    rs->kept_bytes += r->result_bytes + r->row.file_bytes;
}

void dn_request_kept_again(dn_request *r)
{
    r->ended = true;
    dn_link_pop(&r->alive);
    r->app->requests->active--;
    keep(r);
}

static void drop_kept(dn_request *r)
{
    dn_requests *rs = r->app->requests;
    rs->kept--;
    rs->cancelled -= r->state == DN_STATE_CANCELLED;
    rs->kept_bytes -= r->result_bytes + r->row.file_bytes;
    dn_request_store_drop(r);
    request_free(r);
}

/* Of bytes, of results, of those that were cancelled. */
static bool too_much_kept(const dn_app *app)
{
    const dn_requests *rs = app->requests;
    return rs->kept_bytes > app->server.config->result_bytes || rs->kept > KEPT_MAX || rs->cancelled > CANCELLED_MAX;
}

void dn_requests_trim(dn_app *app)
{
    const dn_config *c = app->server.config;
    dn_requests *rs = app->requests;
    double now = unix_now();
    DN_LINK_EACH(l, &rs->all)
    {
        dn_request *r = DN_LINK_OF(l, dn_request, link);
        if (!rs->kept)
            break;
        bool over = rs->kept_bytes > c->result_bytes || rs->kept > KEPT_MAX ||
                    (rs->cancelled > CANCELLED_MAX && r->state == DN_STATE_CANCELLED);
        if (r->ended && (over || now > r->finished_at + c->result_ttl_ms / 1000.0))
            drop_kept(r);
    }
}

bool dn_requests_shed(dn_app *app, int64_t bytes)
{
    DN_LINK_EACH(l, &app->requests->all)
    {
        dn_request *r = DN_LINK_OF(l, dn_request, link);
        if (!app->requests->kept || dn_budget_fits(&app->budget, bytes))
            break;
        if (r->ended && !r->row.file_bytes) /* what is on the disk holds next to no memory */
            drop_kept(r);
    }
    return dn_budget_fits(&app->budget, bytes);
}

/* ---- the end ------------------------------------------------------------------------------------------------ */

static enum dn_reason reason_of(int id)
{
    static const struct {
        int id;
        enum dn_reason reason;
    } table[] = {
        { DN_H_CANCELLED, DN_REASON_CANCELLED }, { DN_H_DEADLINE, DN_REASON_DEADLINE },
        { DN_H_MEMORY, DN_REASON_MEMORY },       { DN_H_NON_FINITE, DN_REASON_NON_FINITE },
        { DN_H_BACKEND, DN_REASON_BACKEND },     { DN_H_MODEL_FAILED, DN_REASON_OTHER },
        { DN_H_INTERNAL, DN_REASON_OTHER },      { DN_H_DRAINING, DN_REASON_OTHER },
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].id == id)
            return table[i].reason;
    }
    return DN_REASON_REJECTED;
}

static void count_failure(const dn_request *r, int id)
{
    dn_metrics *m = r->app->server.metrics;
    int label = r->known ? r->known->label : dn_metrics_label(m, DN_L_MODEL, "none");
    dn_metrics_add(m, DN_M_REQUESTS_FAILED, label, reason_of(id), 0, 1);
}

/* For the log line of whoever hears of it. */
static void state_facts(const dn_request *r)
{
    if (!r->call && !r->stream)
        return;
    dn_call_facts *f = r->call ? dn_call_facts_of(r->call) : dn_stream_facts(r->stream);
    f->model = r->known ? r->known->name : NULL;
    f->reason = r->failure.id ? r->failure.code : NULL;
    f->rows = (int)r->timing.row_steps;
    f->queue_ms = r->timing.queue_ms;
    f->device_ms = r->timing.device_ms;
}

/* What was answered with 202, or whose client has left, has a line of its own. */
static void log_unheard(const dn_request *r)
{
    dn_line line;
    dn_line_begin(&line, DN_LOG_INFO, "request_ended");
    dn_line_str(&line, "id", r->id);
    dn_line_str(&line, "tenant", r->tenant);
    dn_line_str(&line, "state", dn_request_states[r->state]);
    dn_line_str(&line, "model", r->known ? r->known->name : NULL);
    dn_line_str(&line, "reason", r->failure.id ? r->failure.code : NULL);
    dn_line_int(&line, "rows", r->timing.row_steps);
    dn_line_ms(&line, "queue_ms", r->timing.queue_ms);
    dn_line_ms(&line, "device_ms", r->timing.device_ms);
    dn_line_end(&line);
}

static void answer(dn_request *r)
{
    dn_call *call = r->call;
    if (!call)
        return;
    r->call = NULL;
    if (r->state != DN_STATE_SUCCEEDED) {
        dn_reply_error(call, &r->failure);
        return;
    }
    if (r->answer == DN_ANSWER_BARE) {
        dn_reply_header(call, "X-Model", "%s", r->model);
        dn_reply_header(call, "X-Numerics", "%s", r->numerics);
        if (!r->denoise)
            dn_reply_header(call, "X-Seed", "%lld", (long long)r->seed);
        dn_encoded_reply(&r->encoded[0], call, dn_format_type(r->format));
        return;
    }
    dn_reply_take(call, 200, "application/json", r->body, r->body_n, free);
    r->body = NULL;
}

static void end(dn_request *r, enum dn_request_state state)
{
    dn_requests *rs = r->app->requests;
    dn_app *app = r->app;
    dn_known *known = r->holds ? r->known : NULL;
    bool orphan = !r->call && !r->stream;
    r->ended = true;
    dn_link_pop(&r->alive);
    r->state = state;
    r->finished_at = r->row.saved ? r->finished_at : unix_now();
    rs->active--;
    if (state == DN_STATE_SUCCEEDED)
        dn_metrics_observe(app->server.metrics, DN_M_REQUEST_DURATION_SECONDS, 0,
                           (dn_clock_ms() - r->arrived_ms) / 1e3);
    else
        count_failure(r, r->failure.id);
    state_facts(r);
    if (orphan)
        log_unheard(r);
    answer(r);
    dn_request_event_end(r);
    if (r->async || (r->keep_on && orphan))
        keep(r);
    else
        request_free(r);
    if (known)
        dn_known_release(app, known);
    if (too_much_kept(app))
        dn_requests_trim(app);
    dn_app_idle(app);
}

/* The daemon stops before it is done: its row stays, and it is begun again after the next start. */
static void leave(dn_request *r)
{
    dn_app *app = r->app;
    dn_known *known = r->holds ? r->known : NULL;
    dn_line line;
    dn_line_begin(&line, DN_LOG_INFO, "request_left");
    dn_line_str(&line, "id", r->id);
    dn_line_end(&line);
    app->requests->active--;
    request_free(r);
    if (known)
        dn_known_release(app, known);
    dn_app_idle(app);
}

/* It ends like this, as soon as the store has it. */
static void finish(dn_request *r, enum dn_request_state state)
{
    dn_request_unpark(r);
    if (r->row.leaving && !r->row.saved)
        leave(r);
    else if (!dn_request_store_end(r, state))
        end(r, r->row.saved ? (enum dn_request_state)r->row.end_state : state);
}

void dn_request_refuse(dn_request *r, const dn_http_error *err, double retry_ms)
{
    r->failure = *err;
    if (!r->call && r->row.there) { /* accepted: it fails */
        dn_request_advance(r);
        return;
    }
    dn_request_store_drop(r);
    if (r->call)
        r->async = false; /* its 202 has not gone out: nothing is kept of it */
    if (r->call && retry_ms > 0)
        dn_reply_header(r->call, "Retry-After", "%d", dn_retry_after_s(retry_ms));
    end(r, DN_STATE_FAILED);
}

void dn_request_cancel(dn_request *r)
{
    if (r->ended || r->cancelling)
        return;
    r->cancelling = true;
    dn_request_stop_waiting(r);
    /* out of memory here: the run goes on to its end, and is then cancelled all the same */
    if (r->on_device)
        (void)dn_worker_cancel(r->place->worker, r->run);
    else
        dn_request_advance(r);
}

void dn_request_advance(dn_request *r)
{
    if (r->ended || r->on_device || r->waiting || r->jobs)
        return;
    if (!r->failure.id && r->cancelling && !r->row.saving)
        dn_http_fail(&r->failure, DN_H_CANCELLED, NULL, NULL);
    if (r->failure.id) {
        finish(r, r->failure.id == DN_H_CANCELLED ? DN_STATE_CANCELLED : DN_STATE_FAILED);
        return;
    }
    if (dn_request_needs_body(r) && !r->body_made) {
        r->body_made = true;
        if (!dn_request_encode_body(r))
            return;
        dn_http_fail(&r->failure, DN_H_MEMORY, NULL, "no memory for the answer");
        finish(r, DN_STATE_FAILED);
        return;
    }
    finish(r, DN_STATE_SUCCEEDED);
}

/* The first that has not ended nor been cancelled (of a model, if not NULL). What is done to it may free any other. */
static dn_request *first_alive(dn_app *app, const dn_known *k)
{
    DN_LINK_EACH(l, &app->requests->alive)
    {
        dn_request *r = DN_LINK_OF(l, dn_request, alive);
        if (!r->cancelling && (!k || r->known == k))
            return r;
    }
    return NULL;
}

void dn_requests_cancel_all(dn_app *app, const dn_known *k)
{
    for (dn_request *r; (r = first_alive(app, k));)
        dn_request_cancel(r);
}

void dn_requests_abort(dn_app *app)
{
    dn_requests_store_leave(app);
    for (dn_request *r; (r = first_alive(app, NULL));) {
        if (r->row.there && !r->call) {
            r->row.leaving = !r->row.saving;
            dn_request_event_leave(r);
            dn_request_cancel(r);
            continue;
        }
        if (!r->failure.id)
            dn_http_fail(&r->failure, DN_H_DRAINING, NULL, NULL);
        if (r->call) {
            dn_call *call = r->call;
            r->call = NULL;
            dn_reply_error(call, &r->failure);
        }
        dn_request_event_end(r);
        dn_request_cancel(r);
    }
}
