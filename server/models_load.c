/* models_load.c - the queue of loads, networks on their way to the workers and back, freeing.
 *
 * A model's way: queue -> slow lane foresees what it will hold -> room is made -> slow lane reads, checks and packs -> adopted by every worker -> loaded ->
 * unloading: nobody holds it -> dropped by every worker -> freed on the slow lane -> available. */
#include "models.h"

#include "log.h"
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

/* Foreseeing what a model will hold, reading it, or making one more network of it. */
typedef struct load {
    dn_work work;
    dn_app *app;
    dn_known *known;
    char *dir;               /* NULL: the model is there */
    const dn_device *device; /* for its backend */
    dn_model *model;
    dn_net *net;
    dn_net_use *use; /* filled when done */
    dn_footprint need;
    dn_error err;
} load;

static void pump(dn_app *app);

static void say(const dn_known *k, const char *event, double ms)
{
    dn_line line;
    dn_line_begin(&line, k->state == DN_MODEL_FAILED ? DN_LOG_WARN : DN_LOG_INFO, event);
    dn_line_str(&line, "model", k->id);
    dn_line_int(&line, "bytes", k->weights + k->forms);
    if (ms >= 0)
        dn_line_ms(&line, "ms", ms);
    if (k->state == DN_MODEL_FAILED)
        dn_line_str(&line, "error", k->error.message);
    dn_line_end(&line);
}

/* Arenas are as large as the largest program needs, once per device. */
static void hold_arenas(dn_app *app)
{
    int64_t most = 0;
    for (int i = 0; i < app->models->n; i++)
        most = app->models->known[i]->arena > most ? app->models->known[i]->arena : most;
    app->budget.held[DN_HOLD_ARENAS] = most * app->n_places;
}

/* What it takes beside what is held already. */
static int64_t lacks(const dn_app *app, const dn_known *k)
{
    int64_t arenas = (int64_t)k->need.arena * app->n_places - app->budget.held[DN_HOLD_ARENAS];
    return (int64_t)(k->need.weights + k->need.forms) + (arenas > 0 ? arenas : 0);
}

static void set_holdings(dn_app *app, dn_known *k, int64_t weights, int64_t forms)
{
    app->budget.held[DN_HOLD_WEIGHTS] += weights - k->weights;
    app->budget.held[DN_HOLD_FORMS] += forms - k->forms;
    k->weights = weights;
    k->forms = forms;
}

static void hold_foreseen(dn_app *app, dn_known *k)
{
    k->arena = (int64_t)k->need.arena;
    set_holdings(app, k, (int64_t)k->need.weights, (int64_t)k->need.forms);
    hold_arenas(app);
}

static void hold_nothing(dn_app *app, dn_known *k)
{
    k->arena = 0;
    set_holdings(app, k, 0, 0);
    hold_arenas(app);
}

/* ---- telling who waits -------------------------------------------------------------------------------------- */

static void tell(dn_link *waiters, dn_net_use *use, const dn_http_error *err)
{
    dn_link all;
    dn_link_init(&all);
    DN_LINK_EACH(l, waiters)
    {
        dn_link_pop(l);
        dn_link_push(&all, l);
    }
    /* one that is told may make others leave: take the first until none is left */
    while (!dn_link_empty(&all)) {
        dn_waiter *w = DN_LINK_OF(all.next, dn_waiter, link);
        dn_link_pop(&w->link);
        w->ready(w, use, err);
    }
}

/* The model is loaded: each who waited for it now waits for its size, or has it. */
static void tell_loaded(dn_app *app, dn_known *k)
{
    dn_link all;
    dn_link_init(&all);
    DN_LINK_EACH(l, &k->waiters)
    {
        dn_link_pop(l);
        dn_link_push(&all, l);
    }
    while (!dn_link_empty(&all)) {
        dn_waiter *w = DN_LINK_OF(all.next, dn_waiter, link);
        dn_net_use *use = NULL;
        dn_http_error err = { 0 };
        dn_link_pop(&w->link);
        int rc = dn_models_want(app, k, w, &use, &err);
        if (rc || use)
            w->ready(w, use, rc ? &err : NULL);
    }
}

typedef struct model_call {
    dn_link link;
    dn_call *call;
} model_call;

static void model_call_gone(void *arg)
{
    model_call *c = arg;
    dn_link_pop(&c->link);
    free(c);
}

int dn_models_await(dn_known *k, dn_call *call)
{
    model_call *c = calloc(1, sizeof *c);
    if (!c)
        return DN_H_MEMORY;
    c->call = call;
    dn_link_push(&k->calls, &c->link);
    dn_call_on_gone(call, model_call_gone, c);
    return 0;
}

static void answer_calls(dn_known *k)
{
    while (!dn_link_empty(&k->calls)) {
        model_call *c = DN_LINK_OF(k->calls.next, model_call, link);
        dn_model_card card;
        dn_card_scratch scratch;
        dn_buf b;
        size_t n;
        dn_link_pop(&c->link);
        if (k->state == DN_MODEL_FAILED) {
            dn_http_error err = { 0 };
            dn_known_failed(k, &err);
            dn_reply_error(c->call, &err);
        } else {
            dn_known_card(k, &card, &scratch);
            dn_buf_init(&b, 64 << 10);
            dn_fields_write(&dn_model_card_fields, &card, &b);
            char *text = dn_buf_take(&b, &n);
            dn_reply_take(c->call, 200, "application/json", text, text ? n : 0, free);
        }
        free(c);
    }
}

/* ---- the end of a load -------------------------------------------------------------------------------------- */

/* The load has ended, well or not: the next may begin. */
static void load_over(dn_app *app, dn_known *k)
{
    dn_models *m = app->models;
    m->loading = m->loading == k ? NULL : m->loading;
    m->n_start -= k->start;
    k->start = k->stay = false;
    answer_calls(k);
    pump(app);
}

static void set_loaded_gauge(dn_app *app, const dn_known *k)
{
    int version = dn_metrics_label(app->server.metrics, DN_L_VERSION, strchr(k->id, '@') + 1);
    dn_metrics_set(app->server.metrics, DN_M_MODEL_LOADED, k->label, version, k->state == DN_MODEL_LOADED);
}

static void load_failed(dn_app *app, dn_known *k)
{
    dn_http_error err = { 0 };
    k->state = DN_MODEL_FAILED;
    hold_nothing(app, k);
    say(k, "model_failed", -1);
    dn_known_failed(k, &err);
    tell(&k->waiters, NULL, &err);
    load_over(app, k);
}

static void net_failed(dn_app *app, dn_net_use *u, const dn_error *why)
{
    dn_known *k = u->known;
    dn_http_error err = { 0 };
    dn_http_fail_engine(&err, dn_error_name(why->code), why->param, why->message);
    dn_link_pop(&u->link);
    tell(&u->waiters, NULL, &err);
    free(u);
    dn_known_settle(app, k);
}

/* ---- adoption ----------------------------------------------------------------------------------------------- */

void dn_net_use_free(dn_net_use *u)
{
    for (int i = 0; i < DN_DEVICES_MAX; i++)
        free(u->message[i]);
    dn_net_free(u->net);
    free(u);
}

static dn_sample_params probe_of(const dn_net_use *u)
{
    const dn_model_info *info = u->known->info;
    return (dn_sample_params){ .height = u->height,
                               .width = u->width,
                               .channels = info->channels,
                               .out_channels = info->out_channels,
                               .label_b = -1,
                               .label = info->label_kind && info->null_label < 0 ? 0 : -1,
                               .null_label = info->null_label,
                               .temperature = 1 };
}

/* Every message is there before the first is sent. */
static int make_messages(dn_net_use *u, int n)
{
    for (int i = 0; i < n; i++) {
        dn_adoption *a = u->message[i] = calloc(1, sizeof *a);
        if (!a)
            return DN_E_MEMORY;
        *a = (dn_adoption){
            .net_id = u->id, .net = u->net, .gflop_per_row = dn_net_gflop_per_row(u->net), .probe = probe_of(u), .owner = u
        };
    }
    return 0;
}

static void send_to_workers(dn_app *app, dn_net_use *u, bool drop)
{
    for (int i = 0; i < app->n_places; i++) {
        dn_adoption *a = u->message[i];
        if (!a)
            continue;
        u->message[i] = NULL;
        a->drop = drop;
        u->n_away++;
        u->known->busy++;
        dn_worker_adopt(app->place[i].worker, a);
    }
}

static void note_pace(dn_app *app, const dn_known *k)
{
    double pace = (double)(dn_now_ms() - k->begun_ms) / (double)(k->file_bytes ? k->file_bytes : 1);
    double *byte_ms = &app->models->byte_ms;
    *byte_ms = *byte_ms > 0 ? (*byte_ms + pace) / 2 : pace;
}

double dn_models_wait_ms(const dn_app *app, const dn_known *k)
{
    enum { TYPICAL_BYTES_PER_MS = 300000 }; /* until one has been loaded here */
    const dn_models *m = app->models;
    double byte_ms = m->byte_ms > 0 ? m->byte_ms : 1.0 / TYPICAL_BYTES_PER_MS, ms = 0;
    if (m->loading) {
        ms = byte_ms * (double)m->loading->file_bytes - (double)(dn_now_ms() - m->loading->begun_ms);
        ms = ms > 0 ? ms : 0;
    }
    DN_LINK_EACH(l, &m->loads)
    {
        const dn_known *q = DN_LINK_OF(l, dn_known, load_link);
        if (m->loading == k)
            break;
        ms += q == m->loading ? 0 : byte_ms * (double)q->file_bytes;
        if (q == k)
            break;
    }
    return ms;
}

static void adopted_by_all(dn_app *app, dn_net_use *u)
{
    dn_known *k = u->known;
    if (u->lost) { /* it goes back, and the model with it */
        dn_fail(&k->error, DN_E_MEMORY, NULL, "a device had no memory for it");
        dn_http_error err = { 0 };
        dn_known_failed(k, &err);
        k->state = DN_MODEL_UNLOADING;
        tell(&u->waiters, NULL, &err);
        tell(&k->waiters, NULL, &err);
        dn_known_settle(app, k);
        return;
    }
    u->ready = true;
    if (k->state == DN_MODEL_LOADING) {
        k->state = DN_MODEL_LOADED;
        note_pace(app, k);
        say(k, "model_loaded", (double)(dn_now_ms() - k->asked_ms));
        set_loaded_gauge(app, k);
        tell_loaded(app, k);
        load_over(app, k);
    }
    tell(&u->waiters, u, NULL);
    dn_known_settle(app, k);
}

void dn_models_adopted(dn_app *app, dn_adoption *a)
{
    dn_net_use *u = a->owner;
    dn_known *k = u->known;
    k->busy--;
    u->n_away--;
    app->place[dn_worker_index(a->worker)].bytes = a->device_bytes;
    if (!a->drop) {
        u->message[dn_worker_index(a->worker)] = a;
        u->lost = u->lost || a->price_ms < 0;
        u->price_ms[dn_worker_index(a->worker)] = a->price_ms;
        if (!u->n_away)
            adopted_by_all(app, u);
    } else {
        free(a);
        dn_known_settle(app, k);
    }
}

/* ---- reading, on the slow lane ------------------------------------------------------------------------------ */

static void load_work(dn_work *work)
{
    load *l = dn_container_of(work, load, work);
    if (l->dir && dn_model_load(&l->model, l->dir, &l->err))
        return;
    const dn_model_info *info = dn_model_info_of(l->model);
    int height = l->dir ? info->height : l->use->height, width = l->dir ? info->width : l->use->width;
    if (dn_net_new(&l->net, l->device, l->model, height, width, 0, &l->err) && l->dir) {
        dn_model_free(l->model);
        l->model = NULL;
    }
}

/* A model was read, or another network of it made: count it, and give it to the workers. Takes l->use, l->net. */
static void install(dn_app *app, load *l)
{
    dn_known *k = l->known;
    dn_net_use *u = l->use;
    if (l->dir) {
        k->model = l->model;
        k->info = dn_model_info_of(l->model);
        u->height = k->info->height;
        u->width = k->info->width;
    }
    u->net = l->net;
    int64_t forms = (l->dir ? 0 : k->forms) + (int64_t)dn_net_form_bytes(u->net), arena = dn_net_arena_bytes(u->net);
    set_holdings(app, k, k->info->bytes, forms);
    k->arena = arena > k->arena ? arena : k->arena;
    hold_arenas(app);
    bool fits = dn_models_make_room(app, 0, k) >= 0;
    if (!fits && !l->dir) { /* the model stays, without this size */
        dn_error err = { 0 };
        dn_fail(&err, DN_E_MEMORY, NULL, "a network of %dx%d takes more than --memory leaves", u->height, u->width);
        set_holdings(app, k, k->weights, forms - (int64_t)dn_net_form_bytes(u->net));
        dn_net_free(u->net);
        net_failed(app, u, &err);
        return;
    }
    if (fits && !make_messages(u, app->n_places)) {
        send_to_workers(app, u, false);
        return;
    }
    dn_fail(&k->error, DN_E_MEMORY, NULL, "it takes %lld bytes, more than --memory leaves",
            (long long)(k->info->bytes + forms + arena * app->n_places));
    u->lost = true;
    adopted_by_all(app, u);
}

static void load_done(dn_work *work)
{
    load *l = dn_container_of(work, load, work);
    dn_app *app = l->app;
    dn_known *k = l->known;
    bool whole = l->dir != NULL;
    k->busy--;
    if (!l->err.code) {
        if (whole)
            dn_link_push(&k->nets, &l->use->link);
        install(app, l);
    } else if (whole) {
        free(l->use);
        k->error = l->err;
        load_failed(app, k);
    } else {
        net_failed(app, l->use, &l->err);
    }
    free(l->dir);
    free(l);
}

static void foresee_work(dn_work *work)
{
    load *l = dn_container_of(work, load, work);
    (void)dn_net_foresee(&l->need, l->device, l->dir, &l->err);
}

static void foresee_done(dn_work *work)
{
    load *l = dn_container_of(work, load, work);
    dn_app *app = l->app;
    dn_known *k = l->known;
    k->busy--;
    k->need = l->need;
    k->error = l->err;
    app->models->loading = NULL;
    free(l->dir);
    free(l);
    if (k->error.code) {
        dn_link_pop(&k->load_link);
        load_failed(app, k);
    } else {
        pump(app);
    }
}

/* Out of memory: DN_E_MEMORY. */
static int foresee(dn_app *app, dn_known *k)
{
    load *l = calloc(1, sizeof *l);
    char *dir = strdup(k->dir);
    if (!l || !dir) {
        free(l);
        free(dir);
        return DN_E_MEMORY;
    }
    *l = (load){ .work = { .work = foresee_work, .done = foresee_done },
                 .app = app,
                 .known = k,
                 .dir = dir,
                 .device = app->place[0].device };
    k->busy++;
    dn_lane_submit(app->server.slow, &l->work);
    return 0;
}

/* `dir`: read the model too. NULL when out of memory. */
static dn_net_use *begin(dn_app *app, dn_known *k, const char *dir, int height, int width)
{
    load *l = calloc(1, sizeof *l);
    dn_net_use *u = calloc(1, sizeof *u);
    char *copy = dir ? strdup(dir) : NULL;
    if (!l || !u || (dir && !copy)) {
        free(l);
        free(u);
        free(copy);
        return NULL;
    }
    *u = (dn_net_use){ .known = k, .id = ++app->models->net_id, .height = height, .width = width };
    dn_link_init(&u->waiters);
    *l = (load){ .work = { .work = load_work, .done = load_done },
                 .app = app,
                 .known = k,
                 .dir = copy,
                 .device = app->place[0].device,
                 .model = dir ? NULL : k->model,
                 .use = u };
    k->busy++;
    dn_lane_submit(app->server.slow, &l->work);
    return u;
}

dn_net_use *dn_known_make_net(dn_app *app, dn_known *k, int height, int width)
{
    dn_net_use *u = app->closing ? NULL : begin(app, k, NULL, height, width);
    if (u)
        dn_link_push(&k->nets, &u->link);
    return u;
}

/* ---- the queue of loads ------------------------------------------------------------------------------------- */

void dn_known_enqueue(dn_app *app, dn_known *k)
{
    k->state = DN_MODEL_LOADING;
    k->error = (dn_error){ 0 };
    k->need = (dn_footprint){ 0 };
    k->asked_ms = k->begun_ms = dn_now_ms();
    dn_link_push(&app->models->loads, &k->load_link);
    pump(app);
}

static void pump(dn_app *app)
{
    dn_models *m = app->models;
    if (m->loading || app->closing || dn_link_empty(&m->loads))
        return;
    dn_known *k = DN_LINK_OF(m->loads.next, dn_known, load_link);
    m->loading = k;
    k->begun_ms = dn_now_ms();
    if (!k->need.weights && !foresee(app, k))
        return; /* when that is known it calls again */
    bool known = k->need.weights, fits = known && dn_budget_fits(&app->budget, lacks(app, k));
    int room = fits || !known ? 0 : k->stay ? -1 : dn_models_make_room(app, lacks(app, k), k);
    if (room > 0) {
        m->loading = NULL;
        return; /* what is being unloaded calls again */
    }
    dn_link_pop(&k->load_link);
    if (!room && known) {
        hold_foreseen(app, k);
        if (begin(app, k, k->dir, 0, 0))
            return;
        hold_nothing(app, k);
    }
    if (k->stay && known) { /* of "all that fit", this one does not */
        k->state = DN_MODEL_AVAILABLE;
        load_over(app, k);
        return;
    }
    if (room)
        dn_fail(&k->error, DN_E_MEMORY, NULL, "it takes %lld bytes, more than --memory leaves", (long long)lacks(app, k));
    else
        dn_fail(&k->error, DN_E_MEMORY, NULL, "no memory to load it");
    load_failed(app, k);
}

int dn_models_load(dn_app *app, dn_known *k, dn_http_error *err)
{
    if (k->state == DN_MODEL_UNLOADING)
        return dn_http_fail(err, DN_H_CONFLICT, "model", "%s is being unloaded", k->name);
    if (k->state == DN_MODEL_AVAILABLE || k->state == DN_MODEL_FAILED)
        dn_known_enqueue(app, k);
    else
        k->stay = false;
    k->used = ++app->models->order;
    return 0;
}

/* ---- unloading ---------------------------------------------------------------------------------------------- */

static void free_nets(dn_link *nets)
{
    while (!dn_link_empty(nets)) {
        dn_net_use *u = DN_LINK_OF(nets->next, dn_net_use, link);
        dn_link_pop(&u->link);
        dn_net_use_free(u);
    }
}

static void freeing_work(dn_work *work)
{
    dn_known *k = dn_container_of(work, dn_known, freeing);
    free_nets(&k->freed_nets);
    dn_model_free(k->freed);
    malloc_trim(0); /* its pages go back now, not with the next large free */
}

static void freeing_done(dn_work *work)
{
    dn_known *k = dn_container_of(work, dn_known, freeing);
    dn_app *app = k->app;
    k->busy--;
    k->dropped = false;
    hold_nothing(app, k);
    k->state = k->error.code ? DN_MODEL_FAILED : DN_MODEL_AVAILABLE;
    say(k, k->error.code ? "model_failed" : "model_unloaded", -1);
    set_loaded_gauge(app, k);
    load_over(app, k);
}

/* Every worker has given it back. */
static void free_model(dn_app *app, dn_known *k)
{
    DN_LINK_EACH(l, &k->nets)
    {
        dn_link_pop(l);
        dn_link_push(&k->freed_nets, l);
    }
    k->freed = k->model;
    k->freeing = (dn_work){ .work = freeing_work, .done = freeing_done };
    k->model = NULL;
    k->info = NULL;
    k->busy++;
    dn_lane_submit(app->server.slow, &k->freeing);
}

void dn_known_settle(dn_app *app, dn_known *k)
{
    if (k->state != DN_MODEL_UNLOADING || k->holders || k->busy || app->closing)
        return;
    if (k->dropped) {
        free_model(app, k);
        return;
    }
    k->dropped = true;
    DN_LINK_EACH(l, &k->nets) { send_to_workers(app, DN_LINK_OF(l, dn_net_use, link), true); }
    if (!k->busy)
        free_model(app, k);
}

int dn_models_unload(dn_app *app, dn_known *k, dn_http_error *err)
{
    if (k->state == DN_MODEL_LOADING)
        return dn_http_fail(err, DN_H_CONFLICT, "model", "%s is being loaded", k->name);
    if (k->state == DN_MODEL_FAILED)
        k->state = DN_MODEL_AVAILABLE;
    if (k->state != DN_MODEL_LOADED)
        return 0;
    k->state = DN_MODEL_UNLOADING;
    k->error = (dn_error){ 0 };
    set_loaded_gauge(app, k);
    say(k, "model_unloading", -1);
    dn_known_settle(app, k);
    return 0;
}
