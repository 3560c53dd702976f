/* jobs_submit.c - from POST /jobs to a stored job: everything is validated and planned before the answer. */
#include "disk.h"
#include "jobs.h"
#include "json.h"
#include "routes_app.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { SPEC_BYTES_MAX = 1 << 20 };

/* ---- the trainer's parameters from the request's fields -------------------------------------------------------- */

static void objective_of(dn_objective *o, const dn_objective_in *in)
{
    *o = (dn_objective){ .prediction = in->prediction,
                         .timesteps = in->timesteps,
                         .timesteps_loc = in->timesteps_loc,
                         .timesteps_scale = in->timesteps_scale,
                         .low_discrepancy = in->low_discrepancy,
                         .loss = in->loss,
                         .huber_delta = in->huber_delta,
                         .weighting = in->weighting,
                         .snr_gamma = in->snr_gamma,
                         .p2_gamma = in->p2_gamma,
                         .p2_k = in->p2_k,
                         .sigma_data = in->sigma_data,
                         .noise_offset = in->noise_offset,
                         .input_perturbation = in->input_perturbation,
                         .label_dropout = in->label_dropout,
                         .vlb_weight = in->vlb_weight };
}

static void optimizer_of(dn_optimizer *o, const dn_optimizer_in *in)
{
    *o = (dn_optimizer){ .kind = in->kind,
                         .lr = in->lr,
                         .beta1 = in->kind == DN_SGD ? in->momentum : in->betas[0],
                         .beta2 = in->betas[1],
                         .eps = in->eps,
                         .weight_decay = in->weight_decay,
                         .clip_norm = in->clip_norm };
}

static void params_of(dn_train_params *p, const dn_job_request *in)
{
    dn_train_params_init(p);
    p->seed = (uint64_t)in->seed;
    p->steps = in->steps;
    p->batch_size = (int)in->batch_size;
    p->micro_batch = (int)in->micro_batch;
    p->precision = in->precision;
    objective_of(&p->objective, &in->objective);
    optimizer_of(&p->optimizer, &in->optimizer);
    p->lr_schedule = (dn_lr_schedule){ in->lr_schedule.kind, in->lr_schedule.warmup_steps, in->lr_schedule.cycles,
                                       in->lr_schedule.power, in->lr_schedule.lr_end };
    p->ema = (dn_ema){ in->ema.decay, (int)in->ema.every, in->ema.warmup, in->ema.inv_gamma, in->ema.power,
                       in->ema.min_decay };
    const dn_augment_in *a = in->augment.v;
    p->n_augment = in->augment.n;
    for (int i = 0; i < in->augment.n; i++)
        p->augment[i] = (dn_augment){ a[i].kind, a[i].p, a[i].amount };
    p->eval_fraction = in->eval.fraction;
    p->nan_max = (int)in->nan_max;
    p->height = (int)in->height;
    p->width = (int)in->width;
}

/* ---- a job's model and data, on the slow lane ------------------------------------------------------------------ */

/* A new network knows its labels from the data: their names, and the null label if it has one class more than they. */
static json_t *extra_of(const dn_job *j, const dn_dataset_info *data)
{
    json_int_t rows = json_integer_value(json_object_get(j->in.model, "num_class_embeds"));
    json_t *extra = json_object();
    if (rows && data->n_classes && rows == data->n_classes + 1)
        json_object_set_new(extra, "null_label", json_integer(data->n_classes));
    if (rows >= data->n_classes && data->classes) {
        json_t *names = json_array();
        for (int i = 0; i < data->n_classes; i++)
            json_array_append_new(names, json_string(data->classes[i]));
        json_object_set_new(extra, "labels", names);
    }
    return extra;
}

/* The job's field is `schedule`. */
static int reschedule(dn_model *m, const json_t *keys, dn_error *err)
{
    dn_error e = { 0 };
    int rc = dn_model_reschedule(m, keys, &e);
    if (rc && !strncmp(e.param, "scheduler", 9))
        memmove(e.param + 8, e.param + 9, strlen(e.param + 9) + 1);
    if (rc && err)
        *err = e;
    return rc;
}

/* A network that is to predict a flow begins with the scheduler of one. The job's field is `model`. */
static int new_network(const dn_job *j, const dn_dataset_info *data, dn_model **out, dn_error *err)
{
    dn_error e = { 0 };
    json_t *extra = extra_of(j, data), *scheduler = NULL;
    if (j->params.objective.prediction == DN_PREDICT_FLOW)
        scheduler = json_pack("{ss}", "_class_name", "FlowMatchEulerDiscreteScheduler");
    int rc = dn_model_init(out, j->in.model, scheduler, extra, (uint64_t)j->in.seed, &e);
    if (rc && err) {
        *err = e;
        bool whole = !e.param[0] || !strcmp(e.param, "config");
        snprintf(err->param, sizeof err->param, whole ? "model" : "model.%.56s", e.param);
    }
    json_decref(scheduler);
    json_decref(extra);
    return rc;
}

int dn_job_open_parts(const dn_job *j, dn_model **model, dn_dataset **data, dn_error *err)
{
    dn_dataset *d = NULL;
    dn_model *m = NULL;
    int rc = dn_dataset_open(&d, j->stored->dir, err);
    if (!rc && j->from_dir) {
        rc = dn_model_load(&m, j->from_dir, err);
    } else if (!rc) {
        rc = new_network(j, dn_dataset_info_of(d), &m, err);
    }
    if (!rc && j->in.schedule)
        rc = reschedule(m, j->in.schedule, err);
    if (rc) {
        dn_model_free(m);
        dn_dataset_close(d);
        return rc;
    }
    *model = m;
    *data = d;
    return 0;
}

/* ---- planning --------------------------------------------------------------------------------------------------- */

typedef struct planning {
    dn_work work;
    dn_job *job;
    dn_call *call; /* NULL: the client has left */
    size_t budget;
    dn_error err;
    int rc;
} planning;

/* Can its previews be made? Sets what their samples take. */
static int check_preview(dn_job *j, const dn_model *m, dn_error *err)
{
    int label[DN_N_MAX], n;
    dn_table table = { 0 };
    int rc = dn_job_preview_labels(j, m, label, &n, err);
    if (!rc && n)
        rc = dn_job_preview_table(j, m, &table, err);
    j->params.preview_bytes = rc || !n ? 0 : (size_t)(n * j->in.preview.seeds.n) * dn_job_preview_sample_bytes(m, &table);
    dn_table_fini(&table);
    return rc;
}

/* A model is trained on as it was trained. */
static int default_prediction(dn_job *j, const dn_model *m, dn_error *err)
{
    enum dn_train_prediction of = j->params.objective.prediction;
    bool given = j->in.objective.has >> DN_OBJ_PREDICTION & 1;
    int rc = given || !j->from_dir ? 0 : dn_train_prediction_of(&of, m, err);
    if (!rc)
        j->in.objective.prediction = (int)(j->params.objective.prediction = of);
    return rc;
}

static void plan_work(dn_work *work)
{
    planning *p = dn_container_of(work, planning, work);
    dn_job *j = p->job;
    dn_model *m = NULL;
    dn_dataset *d = NULL;
    p->rc = dn_job_open_parts(j, &m, &d, &p->err);
    if (!p->rc)
        p->rc = default_prediction(j, m, &p->err);
    if (!p->rc)
        p->rc = check_preview(j, m, &p->err);
    if (!p->rc)
        p->rc = dn_train_plan_make(&j->plan, j->place->device, m, d, &j->params, p->budget, &p->err);
    dn_model_free(m);
    dn_dataset_close(d);
}

static void call_gone(void *arg) { ((planning *)arg)->call = NULL; }

static char *spec_text(const dn_job *j)
{
    dn_buf b;
    size_t n;
    dn_job_request in = j->in;
    in.dataset = j->dataset;
    in.from = *j->from ? j->from : NULL;
    in.device = j->place->name;
    in.micro_batch = j->plan.micro_batch;
    dn_buf_init(&b, SPEC_BYTES_MAX);
    dn_job_write(&in, &b);
    return dn_buf_take(&b, &n);
}

static void plan_of(dn_job_plan *out, const dn_train_plan *p)
{
    *out = (dn_job_plan){ DN_HAS_ALL,
                          .micro_batch = p->micro_batch,
                          .recomputed_blocks = p->n_recomputed,
                          .weights = (int64_t)p->weights,
                          .gradients = (int64_t)p->gradients,
                          .moments = (int64_t)p->moments,
                          .ema = (int64_t)p->ema,
                          .arena = (int64_t)p->arena,
                          .data = (int64_t)p->data,
                          .copies = (int64_t)p->copies,
                          .previews = (int64_t)p->previews,
                          .total = (int64_t)p->total,
                          .gflop_per_step = p->gflop_per_step,
                          .numerics = p->numerics };
}

void dn_job_plan_of(const dn_job *j, dn_job_plan *out) { plan_of(out, &j->plan); }

/* The plan as it is stored: what clients see, and the mask that only we need. */
static const struct {
    const char *name;
    size_t at;
} plan_bytes[] = { { "weights", offsetof(dn_train_plan, weights) }, { "gradients", offsetof(dn_train_plan, gradients) },
                   { "moments", offsetof(dn_train_plan, moments) }, { "ema", offsetof(dn_train_plan, ema) },
                   { "arena", offsetof(dn_train_plan, arena) },     { "data", offsetof(dn_train_plan, data) },
                   { "total", offsetof(dn_train_plan, total) },     { "copies", offsetof(dn_train_plan, copies) },
                   { "previews", offsetof(dn_train_plan, previews) } };
enum { PLAN_BYTES = sizeof plan_bytes / sizeof *plan_bytes, PLAN_BYTES_OLD = 7 /* that every stored plan has */ };

static char *plan_text(const dn_train_plan *p)
{
    json_t *mask = json_array();
    for (int i = 0; i < 4; i++)
        json_array_append_new(mask, json_sprintf("%016llx", (unsigned long long)p->recompute[i]));
    json_t *all = json_pack("{s:i,s:i,s:f,s:s,s:o}", "micro_batch", p->micro_batch, "n_recomputed", p->n_recomputed,
                            "gflop_per_step", p->gflop_per_step, "numerics", p->numerics, "recompute", mask);
    int rc = all ? 0 : -1;
    for (int i = 0; i < PLAN_BYTES && !rc; i++)
        rc = json_object_set_new(all, plan_bytes[i].name,
                                 json_integer((json_int_t)*(const size_t *)((const char *)p + plan_bytes[i].at)));
    char *text = rc ? NULL : json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(all);
    return text;
}

/* A plan that was stored before copies and previews were part of it: with as much as they may take. */
static void plan_complete(dn_train_plan *p)
{
    p->copies = p->weights + p->moments + p->ema;
    p->previews = 2 * p->weights;
    p->total += p->copies + p->previews;
}

static int plan_read(dn_train_plan *p, const char *text)
{
    json_t *all = json_loads(text, 0, NULL), *mask = NULL;
    const char *numerics = NULL;
    dn_train_plan q = { 0 };
    int n = 0, rc = json_unpack(all, "{s:i,s:i,s:F,s:s,s:o}", "micro_batch", &q.micro_batch, "n_recomputed", &q.n_recomputed,
                                "gflop_per_step", &q.gflop_per_step, "numerics", &numerics, "recompute", &mask);
    for (json_t *v; n < PLAN_BYTES && (v = json_object_get(all, plan_bytes[n].name)) && json_is_integer(v); n++)
        *(size_t *)((char *)&q + plan_bytes[n].at) = (size_t)json_integer_value(v);
    if (rc || n < PLAN_BYTES_OLD) {
        json_decref(all);
        return DN_E_FORMAT;
    }
    if (n < PLAN_BYTES)
        plan_complete(&q);
    for (size_t i = 0; i < 4; i++) {
        const char *hex = json_string_value(json_array_get(mask, i));
        q.recompute[i] = hex ? strtoull(hex, NULL, 16) : 0;
    }
    snprintf(q.numerics, sizeof q.numerics, "%s", numerics);
    *p = q;
    json_decref(all);
    return 0;
}

/* ---- a job's request: parsed, or read again from what is stored ------------------------------------------------- */

/* The spec's text becomes the job's request; what was there is dropped. */
static int take_spec(dn_job *j, const char *spec, dn_http_error *err)
{
    json_t *json = dn_json_parse(spec, strlen(spec), err);
    dn_arena *arena = json ? dn_arena_new(DN_REQUEST_BYTES_MAX) : NULL;
    dn_job_request in = { 0 };
    int rc = arena ? dn_job_parse(&in, arena, json, err) : json ? DN_H_MEMORY : err->id;
    if (rc) {
        dn_arena_free(arena);
        json_decref(json);
        return rc;
    }
    dn_arena_free(j->arena);
    json_decref(j->json);
    j->arena = arena;
    j->json = json;
    j->in = in;
    params_of(&j->params, &j->in);
    return 0;
}

static dn_place *place_named(dn_app *app, const char *name)
{
    for (int i = 0; i < app->n_places; i++) {
        if (!strcmp(app->place[i].name, name))
            return &app->place[i];
    }
    return NULL;
}

int dn_job_resolve(dn_job *j, dn_http_error *err)
{
    dn_app *app = j->app;
    free(j->from_dir);
    j->from_dir = NULL;
    int rc = dn_datasets_find(&j->stored, app, j->in.dataset, err);
    if (rc)
        return rc;
    snprintf(j->dataset, sizeof j->dataset, "%s@%s", j->stored->name, j->stored->hash);
    if (j->in.from) {
        dn_known *k = NULL;
        rc = dn_models_find(&k, app->models, j->in.from, err);
        if (rc) {
            snprintf(err->param, sizeof err->param, "from");
            return rc;
        }
        snprintf(j->from, sizeof j->from, "%s", k->id);
        j->from_dir = strdup(k->dir);
        if (!j->from_dir)
            return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    }
    j->place = strcmp(j->in.device, "auto") ? place_named(app, j->in.device) : dn_jobs_idlest(app);
    return j->place ? 0
                    : dn_http_fail(err, DN_H_IMPOSSIBLE, "device", "no device %s; GET /status lists them", j->in.device);
}

int dn_job_restore(dn_job *j, const char *spec, const char *plan, dn_error *err)
{
    dn_http_error why = { 0 };
    j->plan_text = strdup(plan);
    if (!j->plan_text)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (plan_read(&j->plan, plan))
        return dn_fail(err, DN_E_FORMAT, "plan", "the job's stored plan cannot be read");
    if (take_spec(j, spec, &why) || dn_job_resolve(j, &why))
        return dn_fail(err, DN_E_NOT_FOUND, why.param, "%s", why.message);
    return 0;
}

/* The job's row is on the disk, or is not. */
void dn_job_accepted(dn_job *j, const dn_error *err, char *text, size_t n)
{
    dn_call *call = j->call;
    j->call = NULL;
    if (err->code) {
        if (call)
            dn_reply_engine_error(call, err);
        free(text);
        dn_job_forget(j);
        return;
    }
    if (call) {
        dn_reply_header(call, "Location", "/jobs/%s", j->id);
        dn_reply_take(call, 201, "application/json", text, n, free);
    } else {
        free(text);
    }
    dn_jobs_pump(j->app);
}

static void accepted_call_gone(void *arg) { ((dn_job *)arg)->call = NULL; }

static int accept_job(dn_job *j, dn_http_error *err)
{
    char *spec = spec_text(j);
    j->plan_text = plan_text(&j->plan);
    int rc = spec && j->plan_text ? take_spec(j, spec, err) : dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    free(spec);
    return rc;
}

static void plan_done(dn_work *work)
{
    planning *p = dn_container_of(work, planning, work);
    dn_job *j = p->job;
    dn_http_error err = { 0 };
    if (p->rc == DN_E_MEMORY && *p->err.param) /* never, not only now */
        dn_http_fail(&err, DN_H_IMPOSSIBLE, p->err.param, "%s", p->err.message);
    else if (p->rc)
        dn_http_fail_engine(&err, dn_error_name(p->rc), p->err.param, p->err.message);
    else if (j->app->closing || j->app->draining)
        dn_http_fail(&err, DN_H_DRAINING, NULL, NULL);
    else
        accept_job(j, &err);
    if (err.id) {
        if (p->call)
            dn_reply_error(p->call, &err);
        dn_job_forget(j);
    } else {
        j->call = p->call;
        if (j->call)
            dn_call_on_gone(j->call, accepted_call_gone, j);
        dn_jobs_add(j->app, j);
        dn_job_store(j);
    }
    free(p);
}

void dn_job_submit(dn_app *app, dn_call *call, json_t *json)
{
    dn_http_error err = { 0 };
    planning *p = calloc(1, sizeof *p);
    dn_job *j = p ? dn_job_new(app, NULL, dn_call_tenant(call)) : NULL;
    char *text = j ? dn_json_dump(json) : NULL;
    int rc = text ? take_spec(j, text, &err) : dn_http_fail(&err, DN_H_MEMORY, NULL, NULL);
    free(text);
    if (!rc && !dn_name_ok(j->in.name))
        rc = dn_http_fail(&err, DN_H_INVALID, "name", "name must match [a-z0-9][a-z0-9._-]{0,63}");
    if (!rc && !dn_store_folder(app->server.store))
        rc = dn_http_fail(&err, DN_H_IMPOSSIBLE, NULL, "training needs a folder to keep its state in: start denoised with --state");
    if (!rc)
        rc = dn_disk_check(app, 0, &err);
    if (!rc)
        rc = dn_job_resolve(j, &err);
    if (rc) {
        dn_reply_error(call, &err);
        if (j)
            dn_job_forget(j);
        free(p);
        return;
    }
    j->share = j->in.train_share;
    j->priority = j->in.priority;
    j->stored->pins++;
    j->pinned = true;
    *p = (planning){ .work = { .work = plan_work, .done = plan_done }, .job = j, .call = call,
                     .budget = (size_t)app->budget.limit };
    dn_call_on_gone(call, call_gone, p);
    dn_lane_submit(app->server.slow, &p->work);
}
