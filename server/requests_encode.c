/* requests_encode.c - pictures, previews and bodies, made on the fast lane.
 *
 * A piece of work carries everything it reads and makes; of the request only its `done`, on the loop, knows. */
#include "requests.h"

#include <denoised/image.h>
#include <denoised/sha256.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BODY_MAX = 1 << 30, PREVIEW_MAX = 16 << 20 };

/* What floats are to become. */
typedef struct shape {
    int n, height, width, channels;
    int format, layout;
    double range[2];
    const char *tensor; /* its name in a safetensors file */
} shape;

static shape shape_of(const dn_request *r, int n)
{
    return (shape){ n,
                    r->height,
                    r->width,
                    r->denoise ? r->out_channels : r->channels,
                    r->format,
                    r->layout,
                    { r->range[0], r->range[1] },
                    r->denoise ? "output" : "images" };
}

static size_t floats_of(const shape *s) { return (size_t)s->n * s->height * s->width * s->channels; }

/* ---- floats to bytes ---------------------------------------------------------------------------------------- */

static int to_png(uint8_t **out, size_t *len, const float *v, const shape *s, dn_error *err)
{
    size_t n = floats_of(s);
    uint8_t *pixels = malloc(n), *grid = NULL;
    int height = s->height, width = s->width;
    if (!pixels)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for pixels");
    dn_image_to_u8(pixels, v, n, s->range[0], s->range[1]);
    int rc = 0;
    if (s->layout == DN_LAYOUT_GRID)
        rc = dn_image_grid(&grid, &height, &width, pixels, s->n, s->height, s->width, s->channels, 0, err);
    if (!rc)
        rc = dn_png_encode(out, len, grid ? grid : pixels, height, width, s->channels, err);
    free(grid);
    free(pixels);
    return rc;
}

static int to_npy(uint8_t **out, size_t *len, const float *v, const shape *s, dn_error *err)
{
    int64_t dims[4] = { s->n, s->height, s->width, s->channels };
    return dn_npy_encode(out, len, v, dims, 4, err);
}

static int to_safetensors(uint8_t **out, size_t *len, const float *v, const shape *s, dn_error *err)
{
    dn_st_tensor t = { .dtype = "F32",
                       .rank = 4,
                       .dim = { s->n, s->height, s->width, s->channels },
                       .data = v,
                       .bytes = floats_of(s) * sizeof(float) };
    strcpy(t.name, s->tensor);
    return dn_st_encode(out, len, &t, 1, err);
}

static int encode(dn_encoded *out, const float *v, const shape *s, dn_error *err)
{
    static int (*const encoders[])(uint8_t **, size_t *, const float *, const shape *, dn_error *) = {
        [DN_FORMAT_PNG] = to_png, [DN_FORMAT_NPY] = to_npy, [DN_FORMAT_SAFETENSORS] = to_safetensors
    };
    uint8_t *data = NULL;
    int rc = encoders[s->format](&data, &out->n, v, s, err);
    out->data = data;
    return rc;
}

/* The event without its id. NULL when out of memory. */
static char *event_text(const char *name, const dn_fields *t, const void *data, size_t *n)
{
    dn_buf b;
    dn_buf_init(&b, BODY_MAX);
    dn_buf_printf(&b, "event: %s\ndata: ", name);
    dn_fields_write(t, data, &b);
    dn_buf_puts(&b, "\n");
    return dn_buf_take(&b, n);
}

static char *image_event(const dn_encoded *e, int index, int64_t seed, int format, size_t *n)
{
    dn_image image = { DN_HAS_ALL,
                       .index = index,
                       .seed = seed,
                       .content_type = dn_format_type(format),
                       .sha256 = *e->sha256 ? e->sha256 : NULL,
                       .b64 = { e->data, e->n } };
    return event_text("image", &dn_image_fields, &image, n);
}

/* ---- one sample --------------------------------------------------------------------------------------------- */

typedef struct picture_work {
    dn_work work;
    dn_request *request;
    dn_picture *picture;
    shape shape;
    int64_t seed;
    bool preview, event;
    dn_encoded encoded;
    char *text;
    size_t text_n;
    double ms;
    dn_error err;
} picture_work;

static void work_picture(dn_work *work)
{
    picture_work *w = dn_container_of(work, picture_work, work);
    double start = dn_clock_ms();
    if (encode(&w->encoded, w->picture->v, &w->shape, &w->err))
        return;
    if (dn_sha256_hex(w->encoded.sha256, w->picture->v, floats_of(&w->shape) * sizeof(float))) {
        dn_fail(&w->err, DN_E_BACKEND, NULL, "the result could not be hashed");
        return;
    }
    w->ms = dn_clock_ms() - start;
    if (w->event)
        w->text = image_event(&w->encoded, w->picture->index, w->seed, w->shape.format, &w->text_n);
}

static void picture_done(dn_work *work)
{
    picture_work *w = dn_container_of(work, picture_work, work);
    dn_request *r = w->request;
    int index = w->picture->index;
    free(w->picture);
    r->jobs--;
    r->timing.encode_ms += w->ms;
    r->encoded[index] = w->encoded;
    if (w->err.code) {
        if (!r->failure.id)
            dn_http_fail_engine(&r->failure, dn_error_name(w->err.code), w->err.param, w->err.message);
        if (r->on_device)
            (void)dn_worker_cancel(r->place->worker, r->run);
    } else {
        dn_metrics_observe(r->app->server.metrics, DN_M_ENCODE_SECONDS, 0, w->ms / 1e3);
        dn_request_event_image(r, index, w->text, w->text_n);
    }
    free(w);
    dn_request_advance(r);
}

static void work_preview(dn_work *work)
{
    picture_work *w = dn_container_of(work, picture_work, work);
    if (encode(&w->encoded, w->picture->v, &w->shape, &w->err))
        return;
    dn_event_preview e = { DN_HAS_ALL, .index = w->picture->index, .step = w->picture->step,
                           .b64 = { w->encoded.data, w->encoded.n } };
    w->text = event_text("preview", &dn_event_preview_fields, &e, &w->text_n);
}

static void preview_done(dn_work *work)
{
    picture_work *w = dn_container_of(work, picture_work, work);
    dn_request *r = w->request;
    int index = w->picture->index;
    free(w->picture);
    free(w->encoded.data);
    r->jobs--;
    r->previewing[index] = false;
    /* The fast lane has two threads: the picture itself may have come first. */
    bool late = dn_request_needs_pictures(r) && r->encoded && r->encoded[index].data;
    if (w->text && !late)
        dn_request_event_preview(r, index, w->text, w->text_n);
    else
        free(w->text);
    free(w);
    dn_request_advance(r);
}

static int submit_picture(dn_request *r, dn_picture *picture, bool preview)
{
    picture_work *w = calloc(1, sizeof *w);
    if (!w)
        return DN_E_MEMORY;
    *w = (picture_work){ .work = { .work = preview ? work_preview : work_picture,
                                   .done = preview ? preview_done : picture_done },
                         .request = r,
                         .picture = picture,
                         .shape = shape_of(r, 1),
                         .seed = r->seed + picture->index,
                         .preview = preview,
                         .event = r->stream != NULL };
    if (preview)
        w->shape.format = DN_FORMAT_PNG;
    w->shape.layout = DN_LAYOUT_LIST;
    r->jobs++;
    dn_lane_submit(r->app->server.fast, &w->work);
    return 0;
}

int dn_request_encode_picture(dn_request *r, int index)
{
    int rc = submit_picture(r, r->picture[index], false);
    if (!rc)
        r->picture[index] = NULL;
    return rc;
}

int dn_request_encode_preview(dn_request *r, dn_picture *picture)
{
    int index = picture->index;
    if (submit_picture(r, picture, true)) {
        free(picture);
        return DN_E_MEMORY;
    }
    r->previewing[index] = true;
    return 0;
}

/* ---- all samples together ----------------------------------------------------------------------------------- */

bool dn_request_needs_pictures(const dn_request *r)
{
    bool array = r->answer == DN_ANSWER_BARE && r->format != DN_FORMAT_PNG;
    return !r->denoise && r->layout == DN_LAYOUT_LIST && !array;
}

bool dn_request_needs_body(const dn_request *r)
{
    return !dn_request_needs_pictures(r) || (r->answer == DN_ANSWER_JSON && r->call);
}

typedef struct body_work {
    dn_work work;
    dn_request *request;
    dn_picture **picture; /* of a grid or array; NULL: everything is encoded */
    dn_encoded *encoded;
    shape shape;
    char id[DN_REQUEST_ID_LEN + 1], model[sizeof((dn_request *)0)->model], numerics[sizeof((dn_request *)0)->numerics];
    int64_t seed;
    dn_timing timing;
    bool json, event;
    char *body, *text;
    size_t body_n, text_n;
    double ms;
    dn_error err;
} body_work;

static void encode_whole(body_work *w)
{
    double start = dn_clock_ms();
    size_t each = floats_of(&w->shape) / w->shape.n;
    float *all = malloc(each * w->shape.n * sizeof *all);
    if (!all) {
        dn_fail(&w->err, DN_E_MEMORY, NULL, "no memory for the result");
        return;
    }
    for (int k = 0; k < w->shape.n; k++)
        memcpy(all + k * each, w->picture[k]->v, each * sizeof *all);
    if (!encode(&w->encoded[0], all, &w->shape, &w->err) && w->event)
        w->text = image_event(&w->encoded[0], 0, w->seed, w->shape.format, &w->text_n);
    free(all);
    w->ms = dn_clock_ms() - start;
    w->timing.encode_ms += w->ms;
}

static void write_json(body_work *w)
{
    dn_image image[DN_N_MAX];
    int n = w->picture ? 1 : w->shape.n;
    for (int k = 0; k < n; k++) {
        const dn_encoded *e = &w->encoded[k];
        image[k] = (dn_image){ DN_HAS_ALL,
                               .index = k,
                               .seed = w->seed + k,
                               .content_type = dn_format_type(w->shape.format),
                               .sha256 = *e->sha256 ? e->sha256 : NULL,
                               .b64 = { e->data, e->n } };
    }
    dn_result result = { DN_HAS_ALL,         .id = w->id,
                         .model = w->model,  .numerics = w->numerics,
                         .seed = w->seed,    .images = { image, n },
                         .timing = w->timing };
    dn_buf b;
    dn_buf_init(&b, BODY_MAX);
    dn_fields_write(&dn_result_fields, &result, &b);
    w->body = dn_buf_take(&b, &w->body_n);
    if (!w->body)
        dn_fail(&w->err, DN_E_MEMORY, NULL, "no memory for the answer");
}

static void work_body(dn_work *work)
{
    body_work *w = dn_container_of(work, body_work, work);
    if (w->picture)
        encode_whole(w);
    if (w->json && !w->err.code)
        write_json(w);
}

static void body_done(dn_work *work)
{
    body_work *w = dn_container_of(work, body_work, work);
    dn_request *r = w->request;
    r->jobs--;
    r->encoded = w->encoded;
    r->timing.encode_ms = w->timing.encode_ms;
    r->body = w->body;
    r->body_n = w->body_n;
    if (w->err.code && !r->failure.id)
        dn_http_fail_engine(&r->failure, dn_error_name(w->err.code), w->err.param, w->err.message);
    if (w->picture) {
        dn_metrics_observe(r->app->server.metrics, DN_M_ENCODE_SECONDS, 0, w->ms / 1e3);
        if (!w->err.code && !r->denoise)
            dn_request_event_image(r, 0, w->text, w->text_n);
        for (int k = 0; k < w->shape.n; k++)
            free(w->picture[k]);
        free(w->picture);
    }
    free(w);
    dn_request_advance(r);
}

int dn_request_encode_body(dn_request *r)
{
    body_work *w = calloc(1, sizeof *w);
    if (!w || r->app->closing) {
        free(w);
        return DN_E_MEMORY;
    }
    *w = (body_work){ .work = { .work = work_body, .done = body_done },
                      .request = r,
                      .encoded = r->encoded,
                      .shape = shape_of(r, r->n),
                      .seed = r->seed,
                      .timing = r->timing,
                      .json = r->answer == DN_ANSWER_JSON && r->call,
                      .event = r->stream != NULL };
    if (!dn_request_needs_pictures(r)) {
        w->picture = r->picture;
        r->picture = NULL;
    }
    memcpy(w->id, r->id, sizeof w->id);
    memcpy(w->model, r->model, sizeof w->model);
    memcpy(w->numerics, r->numerics, sizeof w->numerics);
    r->encoded = NULL;
    r->jobs++;
    dn_lane_submit(r->app->server.fast, &w->work);
    return 0;
}
