/* route_status.c - GET /status: devices, the rows of the last step and who shares them, what waits, models, memory; as
 * JSON, or as an event twice a second. */
#include "models.h"
#include "requests.h"
#include "routes_app.h"

#include <stdlib.h>
#include <string.h>

#ifndef DN_VERSION
#error "the build gives DN_VERSION"
#endif

enum { REQUESTS_SHOWN = 64, MODELS_SHOWN = 64, STATUS_MAX = 1 << 20 };

/* The streams of /status. */
struct dn_watch {
    dn_link streams;
    int64_t id;
};

typedef struct watcher {
    dn_link link;
    dn_stream *stream;
} watcher;

/* Everything that a dn_status points to. */
typedef struct scratch {
    dn_status status;
    dn_status_device device[DN_DEVICES_MAX];
    dn_status_share share[DN_DEVICES_MAX][DN_N_MAX];
    dn_request_info request[REQUESTS_SHOWN];
    dn_info_scratch image;
    dn_model_card card[MODELS_SHOWN];
    dn_card_scratch card_scratch[MODELS_SHOWN];
} scratch;

static void fill_devices(scratch *s, dn_app *app)
{
    for (int i = 0; i < app->n_places; i++) {
        const dn_place *p = &app->place[i];
        const dn_net_use *u = p->net ? dn_models_net(app->models, p->net) : NULL;
        for (int k = 0; k < p->n_shares; k++)
            s->share[i][k] = (dn_status_share){ DN_HAS_ALL, p->share[k].id, p->share[k].rows };
        s->device[i] = (dn_status_device){ DN_HAS_ALL,
                                           .name = p->name,
                                           .backend = p->backend,
                                           .threads = p->threads,
                                           .bytes = (int64_t)p->bytes,
                                           .steps = p->steps,
                                           .row_steps = p->row_steps,
                                           .model = u ? u->known->name : NULL,
                                           .rows = p->rows,
                                           .step_ms = p->step_ms,
                                           .shares = { s->share[i], p->n_shares } };
    }
    s->status.devices = (dn_items){ s->device, app->n_places };
}

static void fill_requests(scratch *s, dn_app *app)
{
    int n = 0;
    for (dn_request *r = dn_requests_next(app, NULL); r && n < REQUESTS_SHOWN; r = dn_requests_next(app, r))
        dn_request_info_of(r, &s->request[n++], &s->image);
    s->status.requests = (dn_items){ s->request, n };
}

static void fill_models(scratch *s, dn_app *app)
{
    int n = 0;
    for (int i = 0; i < dn_models_count(app->models) && n < MODELS_SHOWN; i++) {
        if (!dn_models_at(app->models, i)->live)
            continue;
        dn_known_card(dn_models_at(app->models, i), &s->card[n], &s->card_scratch[n]);
        s->card[n].has &= DN_BIT(DN_CARD_NAME) | DN_BIT(DN_CARD_STATE) | DN_BIT(DN_CARD_BYTES) |
                          DN_BIT(DN_CARD_MS_PER_ROW) | DN_BIT(DN_CARD_ERROR);
        n++;
    }
    s->status.models = (dn_items){ s->card, n };
}

static void fill(scratch *s, dn_app *app)
{
    int running, waiting;
    double queue_ms = 0;
    const int64_t *held = app->budget.held;
    dn_requests_count(app, &running, &waiting);
    for (int i = 0; i < app->n_places; i++)
        queue_ms += app->place[i].figures.backlog_ms;
    s->status = (dn_status){ DN_HAS_ALL,
                             .version = DN_VERSION,
                             .uptime_s = (double)(dn_now_ms() - app->started_ms) / 1e3,
                             .draining = app->draining,
                             .running = running,
                             .waiting = waiting,
                             .queue_ms = queue_ms > 0 ? queue_ms : 0,
                             .memory = { DN_HAS_ALL, app->budget.limit, held[DN_HOLD_WEIGHTS], held[DN_HOLD_FORMS],
                                         held[DN_HOLD_ARENAS], held[DN_HOLD_SLOTS], held[DN_HOLD_RESULTS] } };
    fill_devices(s, app);
    fill_requests(s, app);
    fill_models(s, app);
}

static void push(dn_app *app, dn_stream *one)
{
    scratch *s = calloc(1, sizeof *s);
    dn_buf b;
    dn_buf_init(&b, STATUS_MAX);
    if (s) {
        fill(s, app);
        dn_event_write(&b, ++app->watch->id, "status", &dn_status_fields, &s->status);
        if (one && !b.failed)
            dn_stream_push(one, b.data, b.len, 0);
        DN_LINK_EACH(l, &app->watch->streams)
        {
            if (!one && !b.failed)
                dn_stream_push(DN_LINK_OF(l, watcher, link)->stream, b.data, b.len, 0);
        }
    }
    dn_buf_fini(&b);
    free(s);
}

void dn_watch_tick(dn_app *app)
{
    if (app->watch && !dn_link_empty(&app->watch->streams))
        push(app, NULL);
}

static void watcher_gone(void *arg)
{
    watcher *w = arg;
    dn_link_pop(&w->link);
    free(w);
}

void dn_watch_close(dn_app *app)
{
    while (app->watch && !dn_link_empty(&app->watch->streams)) {
        watcher *w = DN_LINK_OF(app->watch->streams.next, watcher, link);
        dn_stream_close(w->stream);
        watcher_gone(w);
    }
    free(app->watch);
    app->watch = NULL;
}

static void open_stream(dn_app *app, dn_call *call)
{
    if (!app->watch && (app->watch = calloc(1, sizeof *app->watch)))
        dn_link_init(&app->watch->streams);
    watcher *w = app->watch ? calloc(1, sizeof *w) : NULL;
    if (!w) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for a stream");
        return;
    }
    dn_link_push(&app->watch->streams, &w->link);
    dn_call_on_gone(call, watcher_gone, w);
    w->stream = dn_stream_open(call);
    if (w->stream)
        push(app, w->stream);
    else
        watcher_gone(w);
}

void dn_route_status(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    const char *type = dn_call_gives(call);
    if (type && !strcmp(type, "text/event-stream")) {
        open_stream(app, call);
        return;
    }
    scratch *s = calloc(1, sizeof *s);
    if (!s) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the status");
        return;
    }
    fill(s, app);
    dn_route_reply(call, 200, &dn_status_fields, &s->status);
    free(s);
}
