/* app.c - what main.c sees of the modules that do the work: devices and their workers, endpoints, starting, draining,
 * stopping. */
#include "app_parts.h"
#include "datasets.h"
#include "jobs.h"
#include "disk.h"
#include "idempotency.h"
#include "models.h"
#include "requests.h"
#include "routes_app.h"

#include <denoised/caps.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum { TICK_MS = 500, MMAP_BYTES = 128 << 10, ARENAS_MAX = 2 };

/* clang-format off */
static const dn_endpoint endpoints[] = {
    { DN_ROUTE_GENERATE, dn_route_generate, DN_SCOPE_USE,
      "application/json text/event-stream image/png application/x-npy application/x-safetensors", 0 },
    { DN_ROUTE_DENOISE, dn_route_denoise, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_REQUESTS, dn_route_requests, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_REQUEST, dn_route_request, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_REQUEST_CANCEL, dn_route_request_cancel, DN_SCOPE_USE, NULL, DN_WHILE_DRAINING },
    { DN_ROUTE_REQUEST_IMAGE, dn_route_request_image, DN_SCOPE_USE,
      "image/png application/x-npy application/x-safetensors", 0 },
    { DN_ROUTE_REQUEST_EVENTS, dn_route_request_events, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODELS, dn_route_models, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL, dn_route_model, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL_LOAD, dn_route_model_load, DN_SCOPE_ADMIN, NULL, 0 },
    { DN_ROUTE_MODEL_UNLOAD, dn_route_model_unload, DN_SCOPE_ADMIN, NULL, 0 },
    { DN_ROUTE_JOBS, dn_route_jobs, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOBS_SUBMIT, dn_route_jobs_submit, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB, dn_route_job, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_CHANGE, dn_route_job_change, DN_SCOPE_USE, NULL, DN_WHILE_DRAINING },
    { DN_ROUTE_JOB_PAUSE, dn_route_job_pause, DN_SCOPE_USE, NULL, DN_WHILE_DRAINING },
    { DN_ROUTE_JOB_RESUME, dn_route_job_resume, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_CANCEL, dn_route_job_cancel, DN_SCOPE_USE, NULL, DN_WHILE_DRAINING },
    { DN_ROUTE_JOB_PUBLISH, dn_route_job_publish, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_SAVE, dn_route_job_save, DN_SCOPE_USE, NULL, DN_WHILE_DRAINING },
    { DN_ROUTE_JOB_CHECKPOINTS, dn_route_job_checkpoints, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_SAMPLES, dn_route_job_samples, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_SAMPLE, dn_route_job_sample, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_METRICS, dn_route_job_metrics, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_JOB_EVENTS, dn_route_job_events, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL_PUT, dn_route_model_put, DN_SCOPE_USE, NULL, DN_BODY_TO_FILE },
    { DN_ROUTE_MODEL_DELETE, dn_route_model_delete, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL_ALIAS, dn_route_model_alias, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL_SAVE, dn_route_model_save, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL_CONFIG, dn_route_model_config, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_MODEL_CHECKPOINT, dn_route_model_checkpoint, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_DATASETS, dn_route_datasets, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_DATASET, dn_route_dataset, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_DATASET_PUT, dn_route_dataset_put, DN_SCOPE_USE, NULL, DN_BODY_TO_FILE },
    { DN_ROUTE_DATASET_DELETE, dn_route_dataset_delete, DN_SCOPE_USE, NULL, 0 },
    { DN_ROUTE_STATUS, dn_route_status, DN_SCOPE_USE, "application/json text/event-stream", 0 },
};
/* clang-format on */

const dn_endpoint *dn_app_endpoints(size_t *n)
{
    *n = sizeof endpoints / sizeof endpoints[0];
    return endpoints;
}

/* ---- what the routes share ---------------------------------------------------------------------------------- */

int dn_route_query(dn_call *call, const dn_fields *t, void *out)
{
    dn_http_error err = { 0 };
    const char *name, *value;
    memset(out, 0, t->size);
    int rc = dn_query_init(t, out, dn_call_arena(call), &err);
    for (int i = 0; !rc && dn_call_query_at(call, i, &name, &value); i++)
        rc = dn_query_set(t, out, dn_call_arena(call), name, value, &err);
    if (rc)
        dn_reply_error(call, &err);
    return rc;
}

int dn_route_upload(dn_call *call, char boundary[DN_BOUNDARY_MAX + 1])
{
    dn_error err = { 0 };
    boundary[0] = 0;
    if (!dn_call_file(call)) {
        dn_reply_refuse(call, DN_H_FORMAT, NULL, "the body is empty");
        return DN_H_FORMAT;
    }
    if (strcmp(dn_call_content_type(call), "multipart/form-data") ||
        !dn_multipart_boundary(boundary, dn_call_header(call, "Content-Type"), &err))
        return 0;
    dn_reply_engine_error(call, &err);
    return DN_H_FORMAT;
}

void dn_route_reply(dn_call *call, int status, const dn_fields *t, const void *data)
{
    dn_buf b;
    size_t n;
    dn_buf_init(&b, 16 << 20);
    dn_fields_write(t, data, &b);
    char *text = dn_buf_take(&b, &n);
    if (text)
        dn_reply_take(call, status, "application/json", text, n, free);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the answer");
}

/* ---- devices ------------------------------------------------------------------------------------------------ */

static int open_place(dn_app *app, const char *spec, dn_error *err)
{
    dn_place *p = &app->place[app->n_places];
    int rc = dn_device_open(&p->device, spec, err);
    if (rc)
        return rc;
    app->n_places++;
    p->name = dn_device_name(p->device);
    p->backend = dn_device_backend(p->device);
    p->threads = dn_device_threads(p->device);
    /* all that serve one version have one numerics id */
    if (strcmp(p->backend, app->place[0].backend))
        return dn_fail(err, DN_E_UNSUPPORTED, "devices", "--devices: %s is %s and %s is %s; answers would differ",
                       app->place[0].name, app->place[0].backend, p->name, p->backend);
    return 0;
}

static int start_workers(dn_app *app, dn_error *err)
{
    const dn_config *c = app->server.config;
    for (int i = 0; i < app->n_places; i++) {
        dn_worker_options o = { .device = app->place[i].device,
                                .loop = app->server.loop,
                                .index = i,
                                .limits = { (int)c->max_rows, c->step_ms },
                                .yield_ms = c->yield_ms,
                                .events = &dn_requests_events,
                                .arg = app };
        int rc = dn_worker_start(&app->place[i].worker, &o, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int open_places(dn_app *app, dn_error *err)
{
    const dn_config *c = app->server.config;
    if (c->devices.n > DN_DEVICES_MAX)
        return dn_fail(err, DN_E_LIMIT, "devices", "--devices: at most %d", DN_DEVICES_MAX);
    int rc = 0;
    for (int i = 0; !rc && i < c->devices.n; i++)
        rc = open_place(app, c->devices.v[i], err);
    if (!rc && !c->devices.n)
        rc = open_place(app, "cpu", err);
    return rc;
}

static void close_places(dn_app *app)
{
    for (int i = 0; i < app->n_places; i++) {
        dn_worker_free(app->place[i].worker);
        dn_device_close(app->place[i].device);
    }
}

/* ---- life --------------------------------------------------------------------------------------------------- */

int dn_app_check(const dn_config *config, dn_error *err)
{
    dn_app *app = calloc(1, sizeof *app);
    if (!app)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory");
    app->server.config = config;
    int rc = open_places(app, err);
    close_places(app);
    free(app);
    return rc || !config->models ? rc : dn_models_check(config->models, err);
}

static void work_trim(dn_work *work)
{
    (void)work;
    malloc_trim(0);
}

static void trim_done(dn_work *work) { dn_container_of(work, dn_app, trim)->trimming = false; }

/* glibc keeps what is freed below a block that lives on. After work, when none is left, it goes back to the system. */
static void trim_memory(dn_app *app)
{
    if (app->trimming || app->closing || dn_requests_active(app) || dn_requests_total(app) == app->trimmed_at)
        return;
    app->trimmed_at = dn_requests_total(app);
    app->trimming = true;
    app->trim = (dn_work){ .work = work_trim, .done = trim_done };
    dn_lane_submit(app->server.slow, &app->trim);
}

static void on_tick(uv_timer_t *timer)
{
    dn_app *app = timer->data;
    trim_memory(app);
    dn_requests_expire(app);
    dn_watch_tick(app);
    dn_requests_trim(app);
    dn_jobs_tick(app);
    dn_requests_resume(app);
    dn_disk_tick(app);
    dn_versions_tick(app);
    dn_idem_tick(app);
}

static int start_timer(dn_app *app, dn_error *err)
{
    app->timer = calloc(1, sizeof *app->timer);
    if (!app->timer)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a timer");
    uv_timer_init(dn_loop_uv(app->server.loop), app->timer);
    app->timer->data = app;
    uv_timer_start(app->timer, on_tick, 0, TICK_MS);
    return 0;
}

int dn_app_start(dn_app **out, const dn_server *server, dn_error *err)
{
    dn_app *app = calloc(1, sizeof *app);
    if (!app)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the app");
    /* tables, results and bodies come and go: what is larger than this goes back to the system at once, for ever (glibc
     * would raise its threshold with the first one freed) */
    mallopt(M_MMAP_THRESHOLD, MMAP_BYTES);
    mallopt(M_ARENA_MAX, ARENAS_MAX);
    app->server = *server;
    app->started_ms = dn_now_ms();
    app->budget.limit = server->config->memory ? server->config->memory : dn_caps_memory() / 10 * 8;
    int rc = open_places(app, err);
    if (!rc)
        rc = start_workers(app, err);
    if (!rc)
        rc = dn_requests_open(app, err);
    if (!rc)
        rc = dn_disk_open(app, err);
    if (!rc)
        rc = dn_idem_open(app, err);
    if (!rc)
        rc = start_timer(app, err);
    if (!rc)
        rc = dn_models_open(app, err);
    if (!rc)
        rc = dn_datasets_open(app, err);
    if (!rc)
        rc = dn_jobs_open(app, err);
    if (!rc)
        rc = dn_requests_recover(app, err);
    *out = app; /* dn_app_stop takes what there is */
    return rc;
}

bool dn_app_ready(const dn_app *app, const char **why)
{
    if (dn_models_started(app->models))
        return true;
    *why = "the start set of models is being loaded";
    return false;
}

int dn_app_room(const dn_app *app, int64_t bytes, struct dn_http_error *err) { return dn_disk_check(app, bytes, err); }

void dn_app_measure(dn_app *app)
{
    static const int kinds[DN_HOLD_COUNT] = { DN_MEMORY_WEIGHTS, DN_MEMORY_FORMS, DN_MEMORY_ARENAS, DN_MEMORY_SLOTS,
                                              DN_MEMORY_RESULTS, DN_MEMORY_TRAINING };
    dn_metrics *m = app->server.metrics;
    int running, waiting;
    dn_requests_count(app, &running, &waiting);
    dn_metrics_set(m, DN_M_REQUESTS_RUNNING, 0, 0, running);
    dn_metrics_set(m, DN_M_REQUESTS_WAITING, 0, 0, waiting);
    dn_metrics_set(m, DN_M_MEMORY_BYTES, DN_MEMORY_LIMIT, 0, (double)app->budget.limit);
    for (int i = 0; i < DN_HOLD_COUNT; i++)
        dn_metrics_set(m, DN_M_MEMORY_BYTES, kinds[i], 0, (double)app->budget.held[i]);
}

void dn_app_idle(dn_app *app)
{
    if (!app->drained || dn_requests_active(app) || dn_jobs_active(app))
        return;
    void (*drained)(void *) = app->drained;
    app->drained = NULL;
    drained(app->drained_arg);
}

void dn_app_drain(dn_app *app, void (*done)(void *arg), void *arg)
{
    app->draining = true;
    app->drained = done;
    app->drained_arg = arg;
    dn_jobs_drain(app);
    dn_app_idle(app);
}

void dn_app_abort(dn_app *app)
{
    app->closing = true;
    dn_datasets_abort(app);
    dn_requests_abort(app);
    dn_jobs_abort(app);
    dn_watch_close(app);
}

static void free_timer(uv_handle_t *handle) { free(handle); }

void dn_app_stop(dn_app *app)
{
    app->closing = true;
    app->drained = NULL;
    while (dn_loop_messages(app->server.loop)) /* what the lanes finished may still go to the workers */
        ;
    for (int i = 0; i < app->n_places; i++) {
        if (app->place[i].worker)
            dn_worker_stop(app->place[i].worker);
    }
    while (dn_loop_messages(app->server.loop))
        ;
    dn_store_stop(app->server.store);
    while (dn_loop_messages(app->server.loop))
        ;
    dn_watch_close(app);
    dn_jobs_close(app);
    dn_datasets_close(app);
    dn_idem_close(app);
    dn_disk_close(app);
    dn_models_close(app);
    dn_requests_close(app);
    close_places(app);
    if (app->timer)
        uv_close((uv_handle_t *)app->timer, free_timer);
    free(app);
}
