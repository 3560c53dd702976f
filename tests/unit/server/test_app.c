/* test_app.c - an app.h for tests of the transport: no engine, answers that are told what to do.
 *
 * POST /generate {"do": ...}: "echo" (the body), "later" (from a lane, after "ms"), "hang" (never, until the client
 * leaves or the daemon stops), "big" ("bytes" of it). POST /denoise: length and sum of the body. GET
 * /requests/{script}/events: a stream. GET /status: what has happened so far. The start set is "loaded" by the slow
 * lane; --load never: never. */
#include <app.h>
#include <daemon_config.h>
#include <jansson.h>
#include <proto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct open_call {
    struct open_call *prev, *next;
    dn_app *app;
    dn_call *call;
    dn_stream *stream;
    uv_timer_t *timer; /* of a stream that says something now and then */
    int said;
    struct later *later; /* that answers it */
} open_call;

typedef struct later { /* an answer under way on a lane */
    dn_work work;
    open_call *oc; /* NULL when the client has left */
    dn_app *app;
    int ms;
} later;

struct dn_app {
    const dn_server *server;
    open_call *open;
    dn_work load;
    bool ready;
    int n_open, n_gone, n_later, n_load_pending;
    void (*drained)(void *);
    void *drained_arg;
};

int dn_app_check(const dn_config *config, dn_error *err)
{
    if (access(config->models, R_OK) != 0)
        return dn_fail(err, DN_E_NOT_FOUND, "models", "%s: no such folder", config->models);
    return 0;
}

static void load(dn_work *work)
{
    (void)work;
    usleep(20000);
}

static void loaded(dn_work *work)
{
    dn_app *app = dn_container_of(work, dn_app, load);
    app->n_load_pending = 0;
    app->ready = true;
}

int dn_app_start(dn_app **out, const dn_server *server, dn_error *err)
{
    dn_app *app = calloc(1, sizeof *app);
    if (!app)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory");
    app->server = server;
    const dn_strs *names = &server->config->load;
    if (names->n == 0 || strcmp(names->v[0], "never") != 0) {
        app->load = (dn_work){ .work = load, .done = loaded };
        app->n_load_pending = 1;
        dn_lane_submit(server->slow, &app->load);
    }
    *out = app;
    return 0;
}

bool dn_app_ready(const dn_app *app, const char **why)
{
    *why = "the start set is being loaded";
    return app->ready;
}

int dn_app_room(const dn_app *app, int64_t bytes, dn_http_error *err)
{
    (void)app, (void)bytes, (void)err;
    return 0;
}

void dn_app_measure(dn_app *app) { (void)app; }

/* ---- open calls ------------------------------------------------------------------------------------------ */

static void free_timer(uv_handle_t *timer) { free(timer); }

static void forget(open_call *oc)
{
    dn_app *app = oc->app;
    *(oc->prev ? &oc->prev->next : &app->open) = oc->next;
    if (oc->next)
        oc->next->prev = oc->prev;
    if (oc->later)
        oc->later->oc = NULL;
    if (oc->timer)
        uv_close((uv_handle_t *)oc->timer, free_timer);
    free(oc);
    app->n_open--;
    if (!app->n_open && app->drained) {
        app->drained(app->drained_arg);
        app->drained = NULL;
    }
}

static void on_gone(void *arg)
{
    open_call *oc = arg;
    oc->app->n_gone++;
    forget(oc);
}

static open_call *keep(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    open_call *oc = calloc(1, sizeof *oc);
    if (!oc) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
        return NULL;
    }
    *oc = (open_call){ .app = app, .call = call, .next = app->open };
    if (oc->next)
        oc->next->prev = oc;
    app->open = oc;
    app->n_open++;
    dn_call_on_gone(call, on_gone, oc);
    return oc;
}

/* ---- POST /generate -------------------------------------------------------------------------------------- */

static void do_echo(dn_call *call, json_t *request)
{
    (void)request;
    size_t n;
    const void *body = dn_call_body(call, &n);
    dn_call_facts *facts = dn_call_facts_of(call);
    facts->model = "echo";
    facts->rows = 1;
    dn_reply_header(call, "X-Seed", "%d", 7);
    dn_reply(call, 200, "application/json", body, n);
}

static void later_work(dn_work *work)
{
    later *l = dn_container_of(work, later, work);
    usleep((useconds_t)l->ms * 1000);
}

static void later_done(dn_work *work)
{
    later *l = dn_container_of(work, later, work);
    l->app->n_later++;
    if (l->oc) {
        dn_reply(l->oc->call, 200, "application/json", "{\"later\":true}", 14);
        forget(l->oc);
    }
    free(l);
}

static void do_later(dn_call *call, json_t *request)
{
    later *l = calloc(1, sizeof *l);
    open_call *oc = l ? keep(call) : NULL;
    if (!oc) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory"); /* the second time nothing happens */
        free(l);
        return;
    }
    *l = (later){ .work = { .work = later_work, .done = later_done }, .oc = oc, .app = oc->app };
    l->ms = (int)json_integer_value(json_object_get(request, "ms"));
    oc->later = l;
    dn_lane_submit(l->app->server->fast, &l->work);
}

static void do_hang(dn_call *call, json_t *request)
{
    (void)request;
    keep(call);
}

static void do_big(dn_call *call, json_t *request)
{
    size_t n = (size_t)json_integer_value(json_object_get(request, "bytes"));
    char *data = malloc(n ? n : 1);
    if (!data) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
        return;
    }
    for (size_t i = 0; i < n; i++)
        data[i] = (char)('a' + i % 26);
    dn_reply_take(call, 200, "text/plain", data, n, free);
}

static const struct {
    const char *name;
    void (*run)(dn_call *, json_t *);
} deeds[] = { { "echo", do_echo }, { "later", do_later }, { "hang", do_hang }, { "big", do_big } };

static void post_generate(dn_call *call)
{
    size_t n;
    const char *body = dn_call_body(call, &n);
    dn_http_error err;
    json_t *request = dn_json_parse(n ? body : "{}", n ? n : 2, &err);
    if (!request) {
        dn_reply_error(call, &err);
        return;
    }
    const char *name = json_string_value(json_object_get(request, "do"));
    size_t i = 0;
    while (i + 1 < sizeof deeds / sizeof *deeds && name && strcmp(deeds[i].name, name) != 0)
        i++;
    deeds[i].run(call, request);
    json_decref(request);
}

static void post_denoise(dn_call *call)
{
    size_t n;
    const unsigned char *body = dn_call_body(call, &n);
    unsigned long sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += body[i];
    char text[128];
    int len = snprintf(text, sizeof text, "{\"bytes\":%zu,\"sum\":%lu}", n, sum);
    dn_reply(call, 200, "application/x-safetensors", text, (size_t)len);
}

/* ---- GET /requests/{script}/events ----------------------------------------------------------------------- */

static void say(dn_stream *s, int id, const char *event, size_t pad, int lossy_key)
{
    size_t n = pad + 128;
    char *text = malloc(n);
    if (!text)
        return;
    int head = snprintf(text, n, "id: %d\nevent: %s\ndata: {\"id\":%d,\"pad\":\"", id, event, id);
    memset(text + head, 'x', pad);
    int tail = snprintf(text + head + pad, n - (size_t)head - pad, "\"}\n\n");
    dn_stream_push(s, text, (size_t)head + pad + (size_t)tail, lossy_key);
    free(text);
}

/* Much more than a socket takes, of both sorts, at once: a reader that is slow must find all images and the last
 * progress. */
static void stream_flood(open_call *oc)
{
    for (int i = 0; i < 2000; i++)
        say(oc->stream, i, "progress", 4096, 0);
    for (int i = 0; i < 64; i++)
        say(oc->stream, i, "image", 65536, -1);
    say(oc->stream, 2000, "progress", 10, 0);
    say(oc->stream, 64, "done", 0, -1);
    dn_stream_close(oc->stream);
    forget(oc);
}

/* More kept events than a stream may hold. */
static void stream_overflow(open_call *oc)
{
    for (int i = 0; i < DN_STREAM_BYTES_MAX / (1 << 20) + 64; i++)
        say(oc->stream, i, "image", 1 << 20, -1);
}

static void on_tick(uv_timer_t *timer)
{
    open_call *oc = timer->data;
    say(oc->stream, oc->said++, "progress", 0, 0);
    if (oc->said < 5)
        return;
    say(oc->stream, oc->said, "done", 0, -1);
    dn_stream_close(oc->stream);
    forget(oc);
}

static void stream_slow(open_call *oc)
{
    oc->timer = malloc(sizeof *oc->timer);
    if (!oc->timer) {
        dn_stream_close(oc->stream);
        forget(oc);
        return;
    }
    oc->timer->data = oc;
    uv_timer_init(dn_loop_uv(oc->app->server->loop), oc->timer);
    uv_timer_start(oc->timer, on_tick, 20, 20);
}

static void stream_silent(open_call *oc) { (void)oc; }

static const struct {
    const char *name;
    void (*run)(open_call *);
} scripts[] = {
    { "flood", stream_flood }, { "overflow", stream_overflow }, { "slow", stream_slow }, { "silent", stream_silent }
};

static void get_events(dn_call *call)
{
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        if (strcmp(scripts[i].name, dn_call_arg(call, 0)) != 0)
            continue;
        open_call *oc = keep(call);
        if (!oc)
            return;
        oc->stream = dn_stream_open(call);
        if (oc->stream)
            scripts[i].run(oc);
        else
            forget(oc);
        return;
    }
    dn_reply_refuse(call, DN_H_NOT_FOUND, "id", "no script %s", dn_call_arg(call, 0));
}

static void get_request(dn_call *call)
{
    json_t *o = json_pack("{s:s, s:s, s:s}", "arg", dn_call_arg(call, 0), "path", dn_call_path(call), "tenant",
                          dn_call_tenant(call));
    const char *name, *value;
    for (int i = 0; dn_call_query_at(call, i, &name, &value); i++)
        json_object_set_new(o, name, json_string(value));
    char *text = json_dumps(o, 0);
    json_decref(o);
    dn_reply_take(call, 200, "application/json", text, strlen(text), free);
}

static void get_status(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    char text[256];
    int n = snprintf(text, sizeof text, "{\"open\":%d,\"gone\":%d,\"later\":%d,\"gives\":\"%s\",\"given\":%d}",
                     app->n_open, app->n_gone, app->n_later, dn_call_gives(call), dn_call_accept_given(call));
    dn_reply(call, 200, "application/json", text, (size_t)n);
}

/* clang-format off */
static const dn_endpoint endpoints[] = {
    { DN_ROUTE_GENERATE,       post_generate, DN_SCOPE_USE, "application/json text/event-stream image/png", 0 },
    { DN_ROUTE_DENOISE,        post_denoise,  DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_REQUEST,        get_request,   DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_REQUEST_EVENTS, get_events,    DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_STATUS,         get_status,    DN_SCOPE_USE, "application/json text/event-stream", 0 },
};
/* clang-format on */

const dn_endpoint *dn_app_endpoints(size_t *n)
{
    *n = sizeof endpoints / sizeof *endpoints;
    return endpoints;
}

void dn_app_drain(dn_app *app, void (*done)(void *), void *arg)
{
    if (!app->n_open) {
        done(arg);
        return;
    }
    app->drained = done;
    app->drained_arg = arg;
}

void dn_app_abort(dn_app *app)
{
    for (open_call *oc = app->open, *next; oc; oc = next) {
        next = oc->next;
        if (oc->stream) {
            say(oc->stream, 0, "error", 0, -1);
            dn_stream_close(oc->stream);
            forget(oc);
        } else {
            dn_call *call = oc->call;
            dn_call_on_gone(call, NULL, NULL);
            forget(oc);
            dn_reply_refuse(call, DN_H_DRAINING, NULL, "the daemon is stopping");
        }
    }
}

void dn_app_stop(dn_app *app)
{
    while (dn_loop_messages(app->server->loop) || app->n_load_pending)
        ;
    free(app);
}
