/* jobs_preview.c - pictures from a job's EMA weights at fixed seeds, sampled through the same rows as everyone's.
 *
 * EMA snapshot -> slow lane: a model and its network -> adopted by the job's device -> one run of seeds x labels samples -> fast lane:
 * PNG files -> dropped by the device -> freed on the slow lane. One at a time for a job, for which its plan has memory; while one is
 * under way the next is left out, so that a job whose previews take longer than its steps never piles them up. */
#include "jobs.h"
#include "log.h"

#include <denoised/image.h>
#include <denoised/sha256.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct preview {
    dn_work work;
    dn_job *job;
    uint64_t number; /* of its network and its run: DN_PREVIEW_BIT and a count */
    dn_train_news *news; /* with the copy of the EMA, until there is a model of it */
    dn_model *model;
    dn_net *net;
    dn_adoption *adoption;
    int label[DN_N_MAX], n_labels, n;
    dn_table table;
    double price_ms;
    bool adopted;
    dn_picture *picture[DN_N_MAX];
    dn_previewed made[DN_N_MAX];
    int n_made;
    dn_error err;
} preview;

static int64_t seed_of(const dn_job *j, int k) { return (int64_t)j->in.preview.seeds.v[k]; }

/* ---- what is asked for ----------------------------------------------------------------------------------------- */

static int label_number(const dn_label *l, const dn_model *m, int *out, dn_error *err)
{
    const dn_model_info *i = dn_model_info_of(m);
    *out = l->name ? dn_model_label(m, l->name) : (int)l->number;
    if (*out < 0 || (i->label_kind == DN_LABEL_EMBED && *out >= i->n_classes))
        return dn_fail(err, DN_E_IMPOSSIBLE, "preview.labels", "the model has no label %s", l->name ? l->name : "of that number");
    return 0;
}

int dn_job_preview_labels(const dn_job *j, const dn_model *m, int label[DN_N_MAX], int *n, dn_error *err)
{
    const dn_model_info *i = dn_model_info_of(m);
    const dn_labels *in = &j->in.preview.labels;
    bool all = in->n == 1 && !in->list && in->v[0].name && !strcmp(in->v[0].name, "all");
    int count = all ? i->n_classes - (i->null_label >= 0) : in->n ? in->n : 1, rc = 0;
    if (!j->in.preview.every_steps) {
        *n = 0;
        return 0;
    }
    if (in->n && i->label_kind != DN_LABEL_EMBED && i->label_kind != DN_LABEL_NUMBER)
        return dn_fail(err, DN_E_IMPOSSIBLE, "preview.labels", "the model takes no class labels");
    if (!in->n && i->label_kind == DN_LABEL_EMBED && i->null_label < 0)
        return dn_fail(err, DN_E_IMPOSSIBLE, "preview.labels", "the model has no null label: name the labels");
    if (j->in.preview.scale != 1 && i->null_label < 0)
        return dn_fail(err, DN_E_IMPOSSIBLE, "preview.scale", "guidance needs a null label, which the model does not have");
    if ((int64_t)count * j->in.preview.seeds.n > DN_N_MAX)
        return dn_fail(err, DN_E_RANGE, "preview.labels", "%d labels with %d seeds are more than %d pictures", count,
                       j->in.preview.seeds.n, DN_N_MAX);
    for (int k = 0; k < count && !rc; k++) {
        label[k] = all ? k + (i->null_label >= 0 && k >= i->null_label) : -1;
        if (!all && in->n)
            rc = label_number(&in->v[k], m, &label[k], err);
    }
    *n = count;
    return rc;
}

int dn_job_preview_table(const dn_job *j, const dn_model *m, dn_table *out, dn_error *err)
{
    const dn_model_info *i = dn_model_info_of(m);
    int own = dn_scheduler_config_sampler(i->scheduler, NULL);
    dn_plan_params p = { .sampler = own == DN_SAMPLER_FLOW_EULER ? own : DN_SAMPLER_DDIM,
                         .steps = (int)j->in.preview.steps,
                         .temperature = 1,
                         .guidance = { .scale = j->in.preview.scale, .interval = { 0, 1 } },
                         .learned_variance = i->learned_variance,
                         .elements = (int64_t)i->height * i->width * i->channels };
    int rc = dn_table_plan(out, i->scheduler, &p, err);
    if (rc && err)
        snprintf(err->param, sizeof err->param, "preview.steps");
    return rc;
}

/* A picture's place on the device. */
static dn_sample_params sample_params(const dn_model_info *i, const dn_table *t)
{
    return (dn_sample_params){ .table = t, .table_shared = true, .height = i->height, .width = i->width, .channels = i->channels,
                               .out_channels = i->out_channels, .label_b = -1, .null_label = i->null_label, .temperature = 1 };
}

size_t dn_job_preview_sample_bytes(const dn_model *m, const dn_table *t)
{
    const dn_sample_params p = sample_params(dn_model_info_of(m), t);
    return dn_sample_bytes(&p);
}

/* ---- from the device, and back --------------------------------------------------------------------------------- */

static void gone_work(dn_work *work)
{
    preview *p = dn_container_of(work, preview, work);
    dn_net_free(p->net);
    dn_model_free(p->model);
}

static void gone_done(dn_work *work)
{
    preview *p = dn_container_of(work, preview, work);
    dn_job *j = p->job;
    if (p->err.code)
        dn_log(DN_LOG_WARN, "job_preview", "job %s: step %lld: %s", j->id, (long long)p->news->step, p->err.message);
    for (int k = 0; k < p->n; k++)
        free(p->picture[k]);
    dn_table_fini(&p->table);
    free(p->adoption);
    j->preview = NULL;
    dn_worker_train_returned(p->news);
    free(p);
    dn_job_work_done(j, DN_WORK_PREVIEW);
}

/* Off the device, then off the host. */
static void leave(preview *p)
{
    if (p->adopted) {
        p->adopted = false;
        *p->adoption = (dn_adoption){ .net_id = p->number, .net = p->net, .drop = true, .owner = p };
        dn_worker_adopt(p->job->place->worker, p->adoption);
        return;
    }
    p->work = (dn_work){ .work = gone_work, .done = gone_done };
    dn_lane_submit(p->job->app->server.slow, &p->work);
}

/* ---- pictures -------------------------------------------------------------------------------------------------- */

static int write_png(const dn_job *j, const dn_previewed *s, const uint8_t *png, size_t n, dn_error *err)
{
    char *path = dn_job_path(j, "samples/%lld-%lld-%d.png", (long long)s->step, (long long)s->seed, s->label);
    FILE *f = path ? fopen(path, "we") : NULL;
    bool good = f && fwrite(png, 1, n, f) == n;
    good = f && !fclose(f) && good;
    free(path);
    return good ? 0 : dn_fail(err, DN_E_IO, "state", "a preview could not be written: %s", strerror(errno));
}

static int encode(preview *p, int k)
{
    const dn_model_info *i = dn_model_info_of(p->model);
    const dn_picture *pic = p->picture[k];
    uint8_t *pixels = malloc(pic->n), *png = NULL;
    size_t n;
    dn_previewed s = { .step = p->news->step, .seed = seed_of(p->job, k / p->n_labels), .label = p->label[k % p->n_labels] };
    if (!pixels)
        return dn_fail(&p->err, DN_E_MEMORY, NULL, "out of memory");
    dn_sha256_hex(s.sha256, pic->v, pic->n * sizeof(float));
    dn_image_to_u8(pixels, pic->v, (int64_t)pic->n, i->range[0], i->range[1]);
    int rc = dn_png_encode(&png, &n, pixels, i->height, i->width, i->channels, &p->err);
    if (!rc)
        rc = write_png(p->job, &s, png, n, &p->err);
    free(png);
    free(pixels);
    if (!rc)
        p->made[p->n_made++] = s;
    return rc;
}

static void encode_work(dn_work *work)
{
    preview *p = dn_container_of(work, preview, work);
    int rc = dn_job_make_folder(p->job->dir, "samples", &p->err);
    for (int k = 0; k < p->n && !rc; k++)
        rc = encode(p, k);
}

static void encode_done(dn_work *work)
{
    preview *p = dn_container_of(work, preview, work);
    dn_job *j = p->job;
    dn_previewed *grown = realloc(j->shown, (j->n_shown + p->n_made + 1) * sizeof *grown);
    if (grown)
        j->shown = grown;
    for (int k = 0; grown && k < p->n_made; k++) {
        p->made[k].told = dn_job_told_next(j);
        j->shown[j->n_shown++] = p->made[k];
        dn_job_store_shown(j, &p->made[k]);
        dn_job_event_shown(j, &p->made[k]);
    }
    leave(p);
}

void dn_job_preview_picture(dn_app *app, dn_picture *picture)
{
    dn_job *j = dn_job_by_preview(app, picture->run);
    if (j && picture->final)
        j->preview->picture[picture->index] = picture;
    else
        free(picture);
}

void dn_job_preview_gone(dn_app *app, dn_run *run)
{
    dn_job *j = dn_job_by_preview(app, run->id);
    preview *p = j ? j->preview : NULL;
    if (p && run->end == DN_RUN_DONE && !app->closing) {
        p->work = (dn_work){ .work = encode_work, .done = encode_done };
        dn_lane_submit(app->server.fast, &p->work);
    } else if (p) {
        p->err = run->error;
        leave(p);
    }
    dn_run_free(run);
}

/* ---- onto the device ------------------------------------------------------------------------------------------- */

static int begin_run(preview *p)
{
    dn_job *j = p->job;
    dn_run *run = calloc(1, sizeof *run);
    dn_sample_params *params = calloc(p->n, sizeof *params);
    dn_table *table = calloc(1, sizeof *table);
    if (!run || !params || !table) {
        free(run);
        free(params);
        free(table);
        return dn_fail(&p->err, DN_E_MEMORY, NULL, "out of memory");
    }
    *table = p->table;
    p->table = (dn_table){ 0 };
    for (int k = 0; k < p->n; k++) {
        params[k] = sample_params(dn_model_info_of(p->model), table);
        params[k].seed = (uint64_t)seed_of(j, k / p->n_labels);
        params[k].label = p->label[k % p->n_labels];
    }
    *run = (dn_run){ .id = p->number, .net = p->number, .weight = 1, .priority = DN_PRIORITY_LOW, .price_ms = p->price_ms,
                     .arrived_ms = dn_clock_ms(), .n = p->n, .params = params, .tables = table, .n_tables = 1 };
    snprintf(run->tenant, sizeof run->tenant, "%s", j->owner);
    dn_worker_run(j->place->worker, run);
    return 0;
}

void dn_job_preview_adopted(dn_adoption *a)
{
    preview *p = a->owner;
    if (a->drop) {
        p->work = (dn_work){ .work = gone_work, .done = gone_done };
        dn_lane_submit(p->job->app->server.slow, &p->work);
        return;
    }
    p->adopted = a->price_ms >= 0;
    p->price_ms = a->price_ms;
    if (!p->adopted)
        dn_fail(&p->err, DN_E_MEMORY, NULL, "out of memory");
    if (!p->adopted || p->job->app->closing || begin_run(p))
        leave(p);
}

static void make_work(dn_work *work)
{
    preview *p = dn_container_of(work, preview, work);
    int rc = dn_snapshot_model(&p->model, p->news->snapshot, &p->err);
    dn_snapshot_free(p->news->snapshot); /* before there is more: the job's plan counts on it */
    p->news->snapshot = NULL;
    if (!rc)
        rc = dn_job_preview_labels(p->job, p->model, p->label, &p->n_labels, &p->err);
    if (!rc)
        rc = dn_job_preview_table(p->job, p->model, &p->table, &p->err);
    const dn_model_info *i = rc ? NULL : dn_model_info_of(p->model);
    if (!rc)
        rc = dn_net_new(&p->net, p->job->place->device, p->model, i->height, i->width, 0, &p->err);
}

static void make_done(dn_work *work)
{
    preview *p = dn_container_of(work, preview, work);
    dn_job *j = p->job;
    p->adoption = p->net ? calloc(1, sizeof *p->adoption) : NULL;
    if (!p->adoption || j->app->closing) {
        leave(p);
        return;
    }
    const dn_model_info *i = dn_model_info_of(p->model);
    p->n = p->n_labels * j->in.preview.seeds.n;
    *p->adoption = (dn_adoption){ .net_id = p->number, .net = p->net, .gflop_per_row = dn_net_gflop_per_row(p->net), .owner = p,
                                  .probe = { .height = i->height, .width = i->width, .channels = i->channels,
                                             .out_channels = i->out_channels, .label = -1, .label_b = -1,
                                             .null_label = i->null_label, .temperature = 1 } };
    dn_worker_adopt(j->place->worker, p->adoption);
}

void dn_job_preview(dn_job *j, dn_train_news *n)
{
    preview *p = j->app->closing ? NULL : calloc(1, sizeof *p);
    if (!p) {
        dn_snapshot_free(n->snapshot);
        dn_worker_train_returned(n);
        return;
    }
    *p = (preview){ .work = { .work = make_work, .done = make_done }, .job = j, .news = n,
                    .number = DN_PREVIEW_BIT | ++j->app->jobs->number };
    j->preview = p;
    j->preview_number = p->number;
    j->working |= DN_WORK_PREVIEW;
    dn_lane_submit(j->app->server.slow, &p->work);
}
