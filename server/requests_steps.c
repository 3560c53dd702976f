/* requests_steps.c - what workers tell: steps that were run, pictures, runs that come back. */
#include "jobs.h"
#include "requests.h"

#include <stdlib.h>
#include <string.h>

static void note_step(dn_place *p, const dn_step *step, dn_app *app)
{
    dn_metrics *m = app->server.metrics;
    p->steps++;
    p->row_steps += step->rows;
    p->bytes = step->device_bytes;
    p->net = step->net;
    p->rows = step->rows;
    p->step_ms = step->ms;
    p->n_shares = 0;
    dn_metrics_add(m, DN_M_STEPS, 0, 0, 0, 1);
    dn_metrics_add(m, DN_M_ROW_STEPS, 0, 0, 0, step->rows);
    dn_metrics_observe(m, DN_M_BATCH_ROWS, 0, step->rows);
    dn_metrics_observe(m, DN_M_STEP_SECONDS, dn_metrics_rows(step->rows), step->ms / 1e3);
    dn_metrics_add(m, DN_M_DEVICE_SECONDS, DN_KIND_INFER, 0, 0, step->ms / 1e3);
    dn_net_use *u = dn_models_net(app->models, step->net);
    if (u)
        u->price_ms[dn_worker_index(step->worker)] = step->price_ms;
}

static void on_share(dn_request *r, const dn_share *share)
{
    if (r->state == DN_STATE_QUEUED && !r->ended)
        r->state = DN_STATE_RUNNING;
    int64_t rows = share->rows < r->rows_left ? share->rows : r->rows_left;
    r->rows_left -= rows;
    r->place->figures.backlog_ms -= rows * r->price_ms;
    r->left_ms = r->rows_left * r->price_ms;
    bool moved = share->step > r->step;
    r->step = share->step;
    if (r->row.there && !r->row.moved) /* any batch will do */
        dn_request_store_moved(r);
    if (moved)
        dn_request_event_progress(r);
}

static void on_step(void *arg, dn_step *step)
{
    dn_app *app = arg;
    dn_place *p = &app->place[dn_worker_index(step->worker)];
    double list_ms = 0;
    note_step(p, step, app);
    for (int i = 0; i < step->n_shares; i++) {
        dn_request *r = dn_request_by_run(app, step->share[i].run);
        if (!r)
            continue;
        list_ms += r->price_ms * step->share[i].rows;
        on_share(r, &step->share[i]);
        if (p->n_shares < DN_N_MAX) {
            memcpy(p->share[p->n_shares].id, r->id, sizeof r->id);
            p->share[p->n_shares++].rows = step->share[i].rows;
        }
    }
    dn_figures_step(&p->figures, list_ms, step->ms);
    free(step);
    dn_requests_resume(app);
}

static void on_preview(dn_request *r, dn_picture *picture)
{
    bool heard = r->eventful && !r->cancelling && !r->app->closing; /* else nobody would ever see it */
    if (!heard || r->previewing[picture->index]) {
        free(picture);
        return;
    }
    if (!r->previewed)
        dn_metrics_observe(r->app->server.metrics, DN_M_TIME_TO_FIRST_PREVIEW_SECONDS, 0,
                           (dn_clock_ms() - r->arrived_ms) / 1e3);
    r->previewed = true;
    (void)dn_request_encode_preview(r, picture); /* without memory there is no preview */
}

static void on_picture(void *arg, dn_picture *picture)
{
    dn_app *app = arg;
    if (picture->run & DN_PREVIEW_BIT) {
        dn_job_preview_picture(app, picture);
        return;
    }
    dn_request *r = dn_request_by_run(app, picture->run);
    if (!r) {
        free(picture);
        return;
    }
    if (!picture->final) {
        on_preview(r, picture);
        return;
    }
    r->picture[picture->index] = picture;
    r->timing.decode_ms += picture->read_ms;
    dn_metrics_observe(app->server.metrics, DN_M_DECODE_SECONDS, 0, picture->read_ms / 1e3);
    dn_metrics_add(app->server.metrics, DN_M_IMAGES, 0, 0, 0, 1);
    if (r->cancelling || app->closing || !dn_request_needs_pictures(r))
        return;
    if (dn_request_encode_picture(r, picture->index) && !r->failure.id)
        dn_http_fail(&r->failure, DN_H_MEMORY, NULL, "no memory to encode a result");
}

static void take_timing(dn_request *r, const dn_run *run)
{
    r->timing.has = DN_HAS_ALL;
    r->timing.queue_ms = run->queue_ms;
    r->timing.steps = r->steps;
    r->timing.row_steps = run->row_steps;
    r->timing.batch_rows_mean = run->row_steps ? run->batch_rows_sum / run->row_steps : 0;
    r->timing.device_ms = run->device_ms;
    if (run->row_steps)
        dn_metrics_observe(r->app->server.metrics, DN_M_REQUEST_QUEUE_SECONDS, 0, run->queue_ms / 1e3);
}

static void on_gone(void *arg, dn_run *run)
{
    dn_app *app = arg;
    if (run->id & DN_PREVIEW_BIT) {
        dn_job_preview_gone(app, run);
        return;
    }
    dn_request *r = dn_request_by_run(app, run->id);
    r->on_device = false;
    r->place->figures.backlog_ms -= r->rows_left * r->price_ms;
    r->rows_left = 0;
    r->left_ms = 0;
    app->budget.held[DN_HOLD_SLOTS] -= r->slot_bytes;
    r->slot_bytes = 0;
    take_timing(r, run);
    if (r->failure.id)
        ; /* the first reason stands */
    else if (run->end == DN_RUN_EXPIRED)
        dn_http_fail(&r->failure, DN_H_DEADLINE, "deadline_ms", "deadline_ms has passed at step %d of %d", r->step,
                     r->steps);
    else if (run->end == DN_RUN_FAILED)
        dn_http_fail_engine(&r->failure, dn_error_name(run->error.code), run->error.param, run->error.message);
    else if (run->end == DN_RUN_CANCELLED)
        r->cancelling = true;
    dn_run_free(run);
    dn_request_advance(r);
    dn_requests_resume(app);
}

static void on_adopted(void *arg, dn_adoption *adoption)
{
    if (adoption->net_id & DN_PREVIEW_BIT)
        dn_job_preview_adopted(adoption);
    else
        dn_models_adopted(arg, adoption);
}

static void on_trained(void *arg, dn_train_news *news) { dn_job_news(arg, news); }
static void on_train_gone(void *arg, dn_training *training) { dn_job_back(arg, training); }

const dn_worker_events dn_requests_events = { on_step, on_picture, on_gone, on_adopted, on_trained, on_train_gone };
