/* follow.c - see follow.h. */
#include "follow.h"
#include "base64.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int broken(dn_follow *f, const char *event)
{
    dn_progress_clear(&f->progress);
    dn_complain("the daemon sent an event `%s` that cannot be understood", event);
    f->done = true;
    return f->exit = DN_EXIT_SERVER;
}

static int on_queued(dn_follow *f, const json_t *data)
{
    const char *id = dn_json_text(data, "id");
    if (!dn_id_is_plain(id))
        return broken(f, "queued");
    snprintf(f->id, sizeof f->id, "%s", id);
    dn_progress_queued(&f->progress, dn_json_count(data, "position"), dn_json_number(data, "eta_ms") / 1e3);
    return 0;
}

static int on_progress(dn_follow *f, const json_t *data)
{
    long step = dn_json_count(data, "step"), steps = dn_json_count(data, "steps");
    if (!steps || step > steps)
        return broken(f, "progress");
    dn_progress_step(&f->progress, step, steps, dn_json_number(data, "eta_ms") / 1e3);
    return 0;
}

/* The bytes of member `b64`; NULL: none. */
static unsigned char *bytes_of(const json_t *data, size_t *n)
{
    const json_t *b64 = json_object_get(data, "b64");
    return json_is_string(b64) ? dn_base64_decode(n, json_string_value(b64), json_string_length(b64)) : NULL;
}

/* 0 .. DN_N_MAX-1, or -1 */
static int index_of(const json_t *data)
{
    const json_t *index = json_object_get(data, "index");
    json_int_t k = json_integer_value(index);
    return json_is_integer(index) && k >= 0 && k < DN_N_MAX ? (int)k : -1;
}

static int on_preview(dn_follow *f, const json_t *data)
{
    size_t n;
    int k = index_of(data);
    unsigned char *png = k >= 0 ? bytes_of(data, &n) : NULL;
    if (!png)
        return broken(f, "preview");
    dn_progress_clear(&f->progress);
    if (!dn_output_preview(f->output, k, png, n) && !f->progress.silent)
        fprintf(stderr, "preview of sample %d after step %ld\n", k, dn_json_count(data, "step"));
    free(png);
    return 0;
}

static int on_image(dn_follow *f, const json_t *data)
{
    size_t n;
    int k = index_of(data);
    if (!json_object_get(data, "b64") && json_object_get(data, "url"))
        return 0; /* kept on the daemon: wait.c fetches it */
    unsigned char *bytes = k >= 0 ? bytes_of(data, &n) : NULL;
    if (!bytes)
        return broken(f, "image");
    dn_progress_clear(&f->progress);
    f->exit = dn_output_result(f->output, k, dn_json_text(data, "content_type"), bytes, n);
    free(bytes);
    f->done = f->exit;
    return f->exit;
}

static int on_done(dn_follow *f, const json_t *data)
{
    dn_progress_clear(&f->progress);
    f->exit = dn_output_finish(f->output);
    dn_follow_summary(f, data);
    f->done = true;
    return 1;
}

static int on_error(dn_follow *f, const json_t *data)
{
    const json_t *error = json_object_get(data, "error");
    if (!json_is_object(error))
        return broken(f, "error");
    dn_progress_clear(&f->progress);
    f->exit = dn_error_complain(error, 0);
    f->done = true;
    return 1;
}

static const struct {
    const char *name;
    int (*fn)(dn_follow *f, const json_t *data); /* not 0: stop */
} handlers[] = {
    { "queued", on_queued }, { "progress", on_progress }, { "preview", on_preview },
    { "image", on_image },   { "done", on_done },         { "error", on_error },
};

static int on_event(void *arg, const char *name, const char *id, const char *text, size_t len)
{
    dn_follow *f = arg;
    size_t i = 0, n = sizeof handlers / sizeof *handlers;
    while (i < n && strcmp(handlers[i].name, name))
        i++;
    if (i == n) /* of a later version */
        return 0;
    dn_http_error err;
    json_t *data = dn_json_parse(text, len, &err);
    int rc = data ? handlers[i].fn(f, data) : broken(f, name);
    json_decref(data);
    snprintf(f->last_event, sizeof f->last_event, "%s", id);
    return rc;
}

/* ---- who shares the batches ------------------------------------------------------------------------------------- */

static void take_shares(dn_follow *f, const json_t *shares)
{
    size_t i;
    json_t *share;
    bool mine = false;
    long rows = 0;
    json_array_foreach(shares, i, share)
    {
        rows += dn_json_count(share, "rows");
        mine |= !strcmp(dn_json_text(share, "id"), f->id);
    }
    if (mine)
        dn_progress_share(&f->progress, rows, (long)json_array_size(shares));
}

static int on_status(void *arg, const char *name, const char *id, const char *text, size_t len)
{
    (void)id;
    dn_follow *f = arg;
    json_error_t e;
    json_t *status = *f->id && !strcmp(name, "status") ? json_loadb(text, len, 0, &e) : NULL, *device;
    size_t i;
    json_array_foreach(json_object_get(status, "devices"), i, device)
    {
        take_shares(f, json_object_get(device, "shares"));
    }
    json_decref(status);
    return 0;
}

/* ---- the stream ------------------------------------------------------------------------------------------------ */

void dn_follow_init(dn_follow *f, dn_client *client, dn_output_to *output, bool silent)
{
    *f = (dn_follow){ .client = client, .output = output };
    dn_progress_init(&f->progress, stderr, silent);
    dn_sse_init(&f->sse, DN_EVENT_MAX, on_event, f);
    dn_sse_init(&f->status_sse, DN_STATUS_EVENT_MAX, on_status, f);
}

void dn_follow_fini(dn_follow *f)
{
    dn_sse_fini(&f->sse);
    dn_sse_fini(&f->status_sse);
}

int dn_follow_run(dn_follow *f, dn_transfer *t)
{
    static const char events[] = "text/event-stream";
    dn_sse_fini(&f->sse); /* a stream that was cut off may have left half an event */
    dn_sse_init(&f->sse, DN_EVENT_MAX, on_event, f);
    dn_transfer side = { .method = "GET", .path = "/status", .accept = events, .sse = &f->status_sse };
    t->sse = &f->sse;
    t->accept = events;
    bool beside = f->progress.tty && !f->progress.silent;
    int rc = dn_client_run(f->client, t, beside ? &side : NULL);
    dn_transfer_fini(&side);
    dn_progress_clear(&f->progress);
    return rc;
}

void dn_follow_summary(const dn_follow *f, const json_t *done)
{
    char time[24];
    const json_t *timing = json_object_get(done, "timing");
    if (f->progress.silent)
        return;
    dn_text_printf(stderr, "seed %" JSON_INTEGER_FORMAT ", model %s", json_integer_value(json_object_get(done, "seed")),
                   dn_json_text(done, "model"));
    if (json_is_object(timing))
        fprintf(stderr, ", %.0f steps, %s on the device, %.1f rows a batch", dn_json_number(timing, "steps"),
                dn_text_time(time, dn_json_number(timing, "device_ms") / 1e3),
                dn_json_number(timing, "batch_rows_mean"));
    fputc('\n', stderr);
}
