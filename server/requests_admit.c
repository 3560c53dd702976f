/* requests_admit.c - from what was asked to a run on a device: the model's network, every default, label and size, the
 * sampler's table, the price, and whether it is taken.
 *
 * A request whose model is not there waits for it first; it is resolved, priced and admitted when it has come. */
#include "requests.h"
#include "disk.h"
#include "requests_rows.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SAMPLE_BYTES = 512, /* host memory of one sample's parameters and accounts, at most */
    WAITING_MAX = 512,  /* requests that wait for models: they have no price yet, so their number is bounded */
};

/* A request in the engine's terms: what all its samples share, and what they do not. */
typedef struct plan {
    dn_table table[DN_N_MAX]; /* of POST /generate only the first, which all share */
    int n_tables;
    int label[DN_N_MAX];
    int64_t rows;
} plan;

static void plan_fini(plan *p)
{
    for (int k = 0; k < p->n_tables; k++)
        dn_table_fini(&p->table[k]);
    p->n_tables = 0;
}

static int engine_error(dn_http_error *err, const dn_error *e)
{
    return dn_http_fail_engine(err, dn_error_name(e->code), e->param, e->message);
}

/* ---- how the answer goes out -------------------------------------------------------------------------------- */

/* What Accept asks for must agree with an explicit format; without one it chooses the format. */
static int agree_on_bare(dn_request *r, dn_http_error *err)
{
    for (int f = DN_FORMAT_PNG; f <= DN_FORMAT_SAFETENSORS; f++) {
        if (strcmp(r->accept, dn_format_type(f)))
            continue;
        if (r->in.output.has & DN_BIT(DN_OUTPUT_FORMAT) && r->in.output.format != f)
            return dn_http_fail(err, DN_H_NOT_ACCEPTABLE, "output.format", "Accept is %s, output.format is %s",
                                r->accept, dn_format_type(r->in.output.format));
        if (f == DN_FORMAT_PNG && r->in.n > 1 && r->in.output.layout == DN_LAYOUT_LIST)
            return dn_http_fail(err, DN_H_NOT_ACCEPTABLE, "n",
                                "image/png is one picture: n is %lld and output.layout is list", (long long)r->in.n);
        if (f != DN_FORMAT_PNG && r->in.output.layout == DN_LAYOUT_GRID)
            return dn_http_fail(err, DN_H_NOT_ACCEPTABLE, "output.layout", "a grid is a PNG, Accept is %s", r->accept);
        r->in.output.format = f;
        r->answer = DN_ANSWER_BARE;
        return 0;
    }
    return 0;
}

static int decide_answer(dn_request *r, dn_http_error *err)
{
    if (r->answer == DN_ANSWER_LATER) /* its 202 has gone out */
        return 0;
    bool events = !strcmp(r->accept, "text/event-stream");
    r->answer = DN_ANSWER_JSON;
    int rc = r->accept_given && !events ? agree_on_bare(r, err) : 0;
    if (rc)
        return rc;
    if (r->answer == DN_ANSWER_BARE && (r->in.stream || r->async))
        return dn_http_fail(err, DN_H_NOT_ACCEPTABLE, r->in.stream ? "stream" : NULL, "%s cannot be answered as %s",
                            r->in.stream ? "an event stream" : "an asynchronous request", r->accept);
    if (r->in.stream || (events && r->accept_given)) {
        if (r->keyed)
            return dn_http_fail(err, DN_H_CONTRADICTION, "Idempotency-Key", "an event stream is no answer to be kept");
        r->answer = DN_ANSWER_EVENTS;
        r->async = false;
    } else if (r->async) {
        rc = dn_disk_check(r->app, 0, err);
        if (rc)
            return rc;
        r->answer = DN_ANSWER_LATER;
    }
    r->keep_on = r->in.on_disconnect == DN_ON_DISCONNECT_CONTINUE;
    r->eventful = r->answer == DN_ANSWER_EVENTS || r->answer == DN_ANSWER_LATER || r->keep_on;
    return 0;
}

/* ---- resolving ---------------------------------------------------------------------------------------------- */

static int number_label(int *out, int64_t number, const dn_known *k, dn_http_error *err)
{
    const dn_model_info *i = k->info;
    int64_t max = i->label_kind == DN_LABEL_EMBED ? i->n_classes - 1 : INT32_MAX;
    if (number < 0 || number > max)
        return dn_http_fail(err, DN_H_RANGE, "class_label", "class_label must be 0..%lld, got %lld", (long long)max,
                            (long long)number);
    *out = (int)number;
    return 0;
}

static int label_of(int *out, const dn_label *l, const dn_known *k, dn_http_error *err)
{
    const dn_model_info *i = k->info;
    if (i->label_kind == DN_LABEL_NONE)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "class_label", "%s takes no class label", k->name);
    if (i->label_kind == DN_LABEL_VECTOR)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "class_label", "a label of %s is a vector of %d numbers", k->name,
                            i->label_dim);
    if (!l->name)
        return number_label(out, l->number, k, err);
    *out = dn_model_label(k->model, l->name);
    return *out >= 0 ? 0 : dn_http_fail(err, DN_H_CHOICE, "class_label", "%s has no class \"%s\"", k->name, l->name);
}

static int resolve_labels(dn_request *r, plan *p, dn_http_error *err)
{
    const dn_labels *asked = &r->in.class_label;
    const dn_model_info *i = r->known->info;
    if (!asked->n && i->label_kind != DN_LABEL_NONE && i->null_label < 0)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "class_label", "%s has no null label: name a class", r->known->name);
    for (int k = 0; k < r->n; k++) {
        p->label[k] = -1;
        int rc = asked->n ? label_of(&p->label[k], &asked->v[asked->list ? k : 0], r->known, err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

static int check_guidance(const dn_known *k, double scale, const char *param, dn_http_error *err)
{
    if (scale == 1 || k->info->null_label >= 0)
        return 0;
    return dn_http_fail(err, DN_H_IMPOSSIBLE, param, "%s has no null label, so there is no guidance", k->name);
}

static double scale_of(const dn_generate_request *in)
{
    bool given = in->has & DN_BIT(DN_GENERATE_GUIDANCE) && in->guidance.has & DN_BIT(DN_GUIDANCE_CFG);
    return given ? in->guidance.cfg.scale : 1;
}

/* What shapes guidance shapes nothing when there is none. Of the request itself: a model's defaults may have it. */
static int check_shaping(const dn_generate_request *in, dn_http_error *err)
{
    const dn_cfg *cfg = &in->guidance.cfg;
    bool given = in->has & DN_BIT(DN_GENERATE_GUIDANCE) && in->guidance.has & DN_BIT(DN_GUIDANCE_CFG);
    const char *param = cfg->rescale != 0                                   ? "guidance.cfg.rescale"
                        : cfg->schedule != DN_CFG_CONSTANT                  ? "guidance.cfg.schedule"
                        : cfg->interval[0] != 0 || cfg->interval[1] != 1    ? "guidance.cfg.interval"
                                                                            : NULL;
    if (!given || cfg->scale != 1 || !param)
        return 0;
    return dn_http_fail(err, DN_H_IMPOSSIBLE, param, "%s has no effect: guidance.cfg.scale is 1", param);
}

/* The sampler's table, from the checkpoint's scheduler with the request's keys over it. */
static int resolve_table(dn_request *r, plan *p, dn_http_error *err)
{
    const dn_generate_request *in = &r->in;
    const dn_model_info *i = r->known->info;
    dn_error e = { 0 };
    dn_scheduler_config *config = dn_scheduler_config_copy(i->scheduler);
    if (!config)
        return dn_http_fail(err, DN_H_MEMORY, NULL, "no memory for a scheduler");
    int rc = in->scheduler ? dn_scheduler_config_overlay(config, in->scheduler, &e) : 0;
    dn_plan_params params = { .sampler = in->sampler ? dn_sampler_find(in->sampler) : -1,
                              .steps = (int)in->steps,
                              .timesteps = in->timesteps.n ? in->timesteps.v : NULL,
                              .n_timesteps = in->timesteps.n,
                              .eta = in->eta,
                              .temperature = in->temperature,
                              .guidance = { scale_of(in),
                                            { in->guidance.cfg.interval[0], in->guidance.cfg.interval[1] },
                                            in->guidance.cfg.rescale,
                                            in->guidance.cfg.schedule },
                              .learned_variance = i->learned_variance,
                              .elements = (int64_t)r->height * r->width * r->channels };
    if (!rc)
        rc = dn_table_plan(&p->table[0], config, &params, &e);
    dn_scheduler_config_free(config);
    if (rc)
        return engine_error(err, &e);
    p->n_tables = 1;
    r->steps = p->table[0].n_steps;
    p->rows = r->n * dn_table_rows(&p->table[0]);
    return 0;
}

/* The model's own defaults lie under the request. */
static int merge_defaults(dn_request *r, dn_http_error *err)
{
    if (!r->known->info->defaults || r->row.resolved)
        return 0;
    struct json_t *merged = dn_generate_merge(r->known->info->defaults, r->json);
    if (!merged)
        return dn_http_fail(err, DN_H_MEMORY, NULL, "no memory for the model's defaults");
    json_decref(r->json);
    r->json = merged;
    return dn_generate_parse(&r->in, r->arena, r->json, err);
}

static int resolve_generate(dn_request *r, plan *p, dn_http_error *err)
{
    int rc = check_shaping(&r->in, err);
    if (!rc)
        rc = merge_defaults(r, err);
    if (!rc)
        rc = decide_answer(r, err);
    if (rc)
        return rc;
    r->n = (int)r->in.n;
    r->format = r->in.output.format;
    r->layout = r->in.output.layout;
    r->preview_every = (int)r->in.preview_every;
    if ((r->format == DN_FORMAT_PNG || r->preview_every) && r->channels > 4)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, r->format == DN_FORMAT_PNG ? "output.format" : "preview_every",
                            "%s makes %d channels; a PNG has at most 4", r->known->name, r->channels);
    rc = check_guidance(r->known, scale_of(&r->in), "guidance.cfg.scale", err);
    if (!rc)
        rc = resolve_labels(r, p, err);
    return rc ? rc : resolve_table(r, p, err);
}

static int check_row_labels(const dn_request *r, dn_http_error *err)
{
    const dn_rows *rows = r->rows;
    const dn_model_info *i = r->known->info;
    bool vector = i->label_kind == DN_LABEL_VECTOR;
    if (!rows->labelled && i->label_kind != DN_LABEL_NONE && i->null_label < 0)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "class_labels", "%s has no null label: bring class_labels",
                            r->known->name);
    if (rows->labelled && vector && (!rows->label_vector || rows->label_dim != i->label_dim))
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "class_labels", "class_labels of %s are F32 [n,%d]", r->known->name,
                            i->label_dim);
    if (rows->label_vector && !vector)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "class_labels", "class_labels of %s are I64 [n]", r->known->name);
    return 0;
}

static int resolve_denoise(dn_request *r, plan *p, dn_http_error *err)
{
    const dn_rows *rows = r->rows;
    r->answer = DN_ANSWER_BARE;
    r->format = DN_FORMAT_SAFETENSORS;
    r->n = rows->n;
    r->steps = 1;
    if (rows->channels != r->channels)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, "sample", "%s takes %d channels, sample has %d", r->known->name,
                            r->channels, rows->channels);
    int rc = check_row_labels(r, err);
    if (rc)
        return rc;
    for (int k = 0; k < rows->n; k++) {
        dn_label label = { NULL, rows->label[k] };
        p->label[k] = -1;
        rc = check_guidance(r->known, rows->scale[k], "guidance_scale", err);
        if (!rc && rows->labelled && !rows->label_vector)
            rc = label_of(&p->label[k], &label, r->known, err);
        dn_error e = { 0 };
        if (!rc && dn_table_plan_denoise(&p->table[k], rows->timestep[k], rows->scale[k], &e))
            rc = engine_error(err, &e);
        if (rc)
            return rc;
        p->n_tables++;
        p->rows += dn_table_rows(&p->table[k]);
    }
    return 0;
}

/* The part of a numerics id that names the weights. */
static size_t weights_part(const char *numerics, const char **at)
{
    *at = strstr(numerics, "/w");
    return *at ? strcspn(*at + 1, "/") + 1 : 0;
}

/* An accepted request that is begun again, perhaps elsewhere: other weights are not what was asked for; another way to
 * compute is, with other bytes, and that is said. */
static int take_numerics(dn_request *r, const char *numerics, dn_http_error *err)
{
    const char *was, *is;
    size_t n_was = weights_part(r->numerics, &was), n_is = weights_part(numerics, &is);
    if (*r->numerics && (n_was != n_is || (n_is && memcmp(was, is, n_is))))
        return dn_http_fail(err, DN_H_CONFLICT, "model", "%s has other weights than when the request was accepted",
                            r->model);
    if (*r->numerics && strcmp(r->numerics, numerics) && !*r->row.numerics_before)
        memcpy(r->row.numerics_before, r->numerics, sizeof r->numerics);
    snprintf(r->numerics, sizeof r->numerics, "%s", numerics);
    return 0;
}

static int resolve(dn_request *r, const dn_net_use *use, plan *p, dn_http_error *err)
{
    const dn_model_info *i = r->known->info;
    r->height = use->height;
    r->width = use->width;
    r->channels = i->channels;
    r->out_channels = i->out_channels;
    r->range[0] = i->range[0];
    r->range[1] = i->range[1];
    snprintf(r->model, sizeof r->model, "%s", r->known->id);
    int rc = take_numerics(r, dn_net_numerics(use->net), err);
    if (rc)
        return rc;
    return r->denoise ? resolve_denoise(r, p, err) : resolve_generate(r, p, err);
}

/* ---- the run ------------------------------------------------------------------------------------------------ */

static dn_sample_params params_of(const dn_request *r, const plan *p, int k)
{
    const dn_model_info *i = r->known->info;
    size_t elements = (size_t)r->height * r->width * r->channels;
    return (dn_sample_params){ .height = r->height,
                               .width = r->width,
                               .channels = r->channels,
                               .out_channels = i->out_channels,
                               .table_shared = true,
                               .seed = (uint64_t)r->seed + k,
                               .label = p->label[k],
                               .label_b = -1,
                               .null_label = i->null_label,
                               .temperature = r->denoise ? 1 : (float)r->in.temperature,
                               .torch_rng = !r->denoise && r->in.rng == DN_RNG_TORCH,
                               .keep_x0 = r->preview_every > 0,
                               .x = r->denoise ? r->rows->x + k * elements : NULL,
                               .label_vector = r->denoise && r->rows->label_vector
                                                   ? r->rows->label_vector + k * i->label_dim
                                                   : NULL,
                               .label_dim = r->denoise && r->rows->label_vector ? i->label_dim : 0 };
}

/* Takes the plan's tables. NULL when out of memory. */
static dn_run *make_run(dn_request *r, const dn_net_use *use, plan *p)
{
    dn_run *run = calloc(1, sizeof *run);
    if (!run)
        return NULL;
    *run = (dn_run){ .id = r->run,
                     .net = use->id,
                     .weight = r->weight,
                     .priority = DN_PRIORITY_NORMAL,
                     .price_ms = r->price_ms,
                     .arrived_ms = r->arrived_ms,
                     .preview_every = r->preview_every,
                     .n = r->n };
    memcpy(run->tenant, r->tenant, sizeof run->tenant);
    if (!r->denoise) {
        run->priority = r->in.priority;
        run->deadline_ms = r->in.deadline_ms ? r->arrived_ms + (double)r->in.deadline_ms : 0;
    }
    run->tables = calloc(p->n_tables, sizeof *run->tables);
    run->params = calloc(r->n, sizeof *run->params);
    r->picture = calloc(r->n, sizeof *r->picture);
    r->encoded = calloc(r->n, sizeof *r->encoded);
    if (!run->tables || !run->params || !r->picture || !r->encoded) {
        dn_run_free(run);
        return NULL;
    }
    memcpy(run->tables, p->table, p->n_tables * sizeof *run->tables);
    run->n_tables = p->n_tables;
    p->n_tables = 0;
    for (int k = 0; k < r->n; k++) {
        run->params[k] = params_of(r, p, k);
        run->params[k].table = &run->tables[run->n_tables > 1 ? k : 0];
    }
    if (r->denoise) {
        run->read_out = true;
        run->x = r->rows->x;
        run->label_vector = r->rows->label_vector;
        r->rows->x = r->rows->label_vector = NULL;
    }
    return run;
}

/* ---- admission ---------------------------------------------------------------------------------------------- */

static double finish_ms(dn_app *app, dn_place *place, double own_ms)
{
    dn_forecast f = { .own_ms = own_ms };
    for (dn_request *q = dn_requests_next(app, NULL); q; q = dn_requests_next(app, q)) {
        if (q->place == place && q->on_device)
            dn_forecast_add(&f, q->left_ms);
    }
    return dn_forecast_finish_ms(&f, &place->figures);
}

/* The device with the earliest predicted finish. */
static double choose_place(dn_request *r, const dn_net_use *use, int64_t rows)
{
    dn_app *app = r->app;
    double best = 0;
    for (int i = 0; i < app->n_places; i++) {
        double ms = finish_ms(app, &app->place[i], rows * use->price_ms[i]);
        if (!r->place || ms < best) {
            r->place = &app->place[i];
            r->price_ms = use->price_ms[i];
            best = ms;
        }
    }
    return best;
}

/* Slots; results: floats, encoded bytes, and base64 of them. */
static int admit_memory(dn_request *r, const plan *p, dn_http_error *err, double *retry_ms)
{
    dn_app *app = r->app;
    size_t elements = (size_t)r->height * r->width * r->channels;
    int64_t slots = sizeof *r + sizeof(dn_run) + r->n * SAMPLE_BYTES,
            results = (int64_t)(r->n * elements) * (r->format == DN_FORMAT_PNG ? 7 : 14);
    for (int k = 0; k < r->n; k++) {
        dn_sample_params params = params_of(r, p, k);
        params.table = &p->table[p->n_tables > 1 ? k : 0];
        slots += dn_sample_bytes(&params);
    }
    for (int k = 0; k < p->n_tables; k++)
        slots += p->table[k].n_entries * sizeof(dn_entry);
    if (slots + results > app->budget.limit)
        return dn_http_fail(err, DN_H_IMPOSSIBLE, r->denoise ? "sample" : "n", "it takes %lld bytes, --memory is %lld",
                            (long long)(slots + results), (long long)app->budget.limit);
    int room = dn_models_make_room(app, slots + results, r->known);
    if (room && !dn_requests_shed(app, slots + results)) {
        *retry_ms = room > 0 ? 1000 : dn_queue_excess_ms(&r->place->figures, 1, 0) + 1000;
        return dn_http_fail(err, DN_H_MEMORY, NULL, "%lld bytes are more than --memory leaves now",
                            (long long)(slots + results));
    }
    r->slot_bytes = slots;
    r->result_bytes = results;
    return 0;
}

/* Its 202 has gone out: it waits, it is not refused for want of room. */
static bool is_accepted(const dn_request *r) { return r->row.there && !r->call; }

static int admit(dn_request *r, const dn_net_use *use, const plan *p, dn_http_error *err, double *retry_ms)
{
    const dn_config *c = r->app->server.config;
    double finish = choose_place(r, use, p->rows), own = p->rows * r->price_ms;
    double excess = dn_queue_excess_ms(&r->place->figures, own, (double)c->max_queue_ms);
    if (excess > 0 && !is_accepted(r)) {
        *retry_ms = excess;
        return dn_http_fail(err, DN_H_QUEUE_FULL, NULL, "about %.0f ms of work wait already, --max-queue-ms is %lld",
                            dn_backlog_ms(&r->place->figures), (long long)c->max_queue_ms);
    }
    double deadline = r->denoise ? 0 : (double)r->in.deadline_ms;
    double elapsed = dn_clock_ms() - r->arrived_ms;
    if (deadline > 0 && elapsed + finish > deadline) {
        dn_forecast alone = { .own_ms = own };
        if (dn_forecast_finish_ms(&alone, &r->place->figures) <= deadline) /* later it may be met */
            *retry_ms = elapsed + finish - deadline;
        return dn_http_fail(err, DN_H_DEADLINE, "deadline_ms", "it would take about %.0f ms, deadline_ms is %.0f",
                            elapsed + finish, deadline);
    }
    return admit_memory(r, p, err, retry_ms);
}

static void go(dn_request *r, dn_net_use *use)
{
    plan p = { 0 };
    dn_http_error err = { 0 };
    double retry_ms = 0;
    dn_run *run = NULL;
    int rc = resolve(r, use, &p, &err);
    if (!rc)
        rc = admit(r, use, &p, &err, &retry_ms);
    if (!rc && !(run = make_run(r, use, &p))) {
        rc = dn_http_fail(&err, DN_H_MEMORY, NULL, "no memory for its samples");
        r->slot_bytes = r->result_bytes = 0;
    }
    if (rc == DN_H_MEMORY && is_accepted(r))
        dn_request_park(r);
    else if (rc)
        dn_request_refuse(r, &err, retry_ms);
    else
        dn_request_start(r, p.rows, run);
    plan_fini(&p);
}

static void net_ready(dn_waiter *waiter, dn_net_use *use, const dn_http_error *err)
{
    dn_request *r = dn_container_of(waiter, dn_request, waiter);
    r->waiting = false;
    if (use)
        go(r, use);
    else
        dn_request_refuse(r, err, 0);
}

void dn_request_stop_waiting(dn_request *r)
{
    if (r->waiting)
        dn_waiter_leave(&r->waiter);
    r->waiting = false;
}

static dn_request *first_late(dn_app *app)
{
    double now = dn_clock_ms();
    for (dn_request *r = dn_requests_next(app, NULL); r; r = dn_requests_next(app, r)) {
        if (r->waiting && r->in.deadline_ms && now >= r->arrived_ms + (double)r->in.deadline_ms)
            return r;
    }
    return NULL;
}

void dn_requests_expire(dn_app *app)
{
    for (dn_request *r; (r = first_late(app));) {
        dn_http_error err = { 0 };
        dn_http_fail(&err, DN_H_DEADLINE, "deadline_ms", "deadline_ms has passed while %s was loading", r->known->name);
        dn_request_stop_waiting(r);
        dn_request_refuse(r, &err, 0);
    }
}

static bool too_many_wait(dn_app *app)
{
    int n = 0;
    for (dn_request *r = dn_requests_next(app, NULL); r && n <= WAITING_MAX; r = dn_requests_next(app, r))
        n += r->waiting;
    return n > WAITING_MAX;
}

/* An asynchronous request is accepted before its model has come: what is wrong with it beyond that, it fails of. */
static void wait_for_model(dn_request *r)
{
    r->waiting = true;
    dn_http_error err = { 0 };
    double retry_ms = 0;
    int rc = r->denoise ? 0 : decide_answer(r, &err);
    if (!rc && !is_accepted(r) && too_many_wait(r->app)) {
        retry_ms = fmax(dn_models_wait_ms(r->app, r->known), 1); /* then they have gone */
        rc = dn_http_fail(&err, DN_H_QUEUE_FULL, NULL, "%d requests wait for models already", WAITING_MAX);
    }
    if (rc) {
        dn_request_stop_waiting(r);
        dn_request_refuse(r, &err, retry_ms);
    } else if (r->answer == DN_ANSWER_LATER && !r->row.there) {
        if (!dn_requests_durable(r->app))
            dn_request_accept(r);
        else if (dn_request_store_accept(r)) {
            dn_http_fail(&err, DN_H_MEMORY, NULL, "no memory to keep the request");
            dn_request_stop_waiting(r);
            dn_request_refuse(r, &err, 0);
        }
    }
}

void dn_request_begin(dn_request *r)
{
    dn_http_error err = { 0 };
    dn_net_use *use = NULL;
    const char *name = r->in.model;
    dn_request_unpark(r);
    r->waiter.ready = net_ready;
    r->waiter.height = r->denoise ? r->rows->height : (int)r->in.height;
    r->waiter.width = r->denoise ? r->rows->width : (int)r->in.width;
    int rc = r->holds ? 0 : dn_models_find(&r->known, r->app->models, name, &err);
    if (!rc) {
        if (!r->holds)
            dn_known_hold(r->app, r->known);
        r->holds = true;
        rc = dn_models_want(r->app, r->known, &r->waiter, &use, &err);
    }
    if (rc)
        dn_request_refuse(r, &err, 0);
    else if (use)
        go(r, use);
    else
        wait_for_model(r);
}
