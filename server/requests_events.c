/* requests_events.c - a request's events: to the client that streams it, to those that watch it, and kept for those
 * that come later or come back.
 *
 * Ids count from 1 in the order of sending. Of progress, and of each sample's previews, only the newest is kept. Kept
 * `image` events name a URL; the client whose own request it is gets the picture itself. */
#include "requests.h"

#include <stdlib.h>
#include <string.h>

enum { EVENT_MAX = 1 << 20, KEY_PROGRESS = 0, KEY_PREVIEW = 1 };

/* Who listens beside the requester: a stream of events, or a call that waits for the end. */
typedef struct watcher {
    dn_link link;
    dn_stream *stream;
    dn_call *call;
} watcher;

void dn_request_log_free(dn_request *r)
{
    for (int i = 0; i < r->n_log; i++)
        free(r->log[i].text);
    free(r->log);
    r->log = NULL;
    r->n_log = 0;
}

/* Takes the text. An event that finds no memory is lost to those that come later, not to those that listen. */
static void keep(dn_request *r, int64_t id, int key, char *text, size_t n)
{
    int at = r->n_log;
    for (int i = 0; key >= 0 && i < r->n_log; i++) {
        if (r->log[i].key == key) {
            free(r->log[i].text);
            memmove(&r->log[i], &r->log[i + 1], (--r->n_log - i) * sizeof *r->log);
            at = r->n_log;
            break;
        }
    }
    if (at == r->log_cap) {
        int cap = r->log_cap ? 2 * r->log_cap : 8;
        dn_logged *grown = realloc(r->log, cap * sizeof *grown);
        if (!grown) {
            free(text);
            return;
        }
        r->log = grown;
        r->log_cap = cap;
    }
    r->log[r->n_log++] = (dn_logged){ id, key, text, n };
}

void dn_request_event_again(dn_request *r, int64_t id, const char *text, size_t n)
{
    char *copy = malloc(n + 1);
    if (!copy)
        return;
    memcpy(copy, text, n);
    copy[n] = 0;
    keep(r, id, -1, copy, n);
}

/* To all that listen and into the log; takes the text. `own` (borrowed, may be NULL) is what the requester gets
 * instead. */
static void publish(dn_request *r, int64_t id, int key, char *text, size_t n, const char *own, size_t own_n)
{
    if (r->stream)
        dn_stream_push(r->stream, own ? own : text, own ? own_n : n, key);
    DN_LINK_EACH(l, &r->watchers)
    {
        watcher *w = DN_LINK_OF(l, watcher, link);
        if (w->stream)
            dn_stream_push(w->stream, text, n, key);
    }
    keep(r, id, key, text, n);
}

static void publish_fields(dn_request *r, const char *name, int key, const dn_fields *t, const void *data)
{
    dn_buf b;
    size_t n;
    int64_t id = ++r->event_id;
    dn_buf_init(&b, EVENT_MAX);
    dn_event_write(&b, id, name, t, data);
    char *text = dn_buf_take(&b, &n);
    if (text)
        publish(r, id, key, text, n, NULL, 0);
}

void dn_request_event_queued(dn_request *r)
{
    if (!r->eventful)
        return;
    dn_request_info info;
    dn_info_scratch scratch;
    dn_request_info_of(r, &info, &scratch);
    dn_event_queued e = { DN_HAS_ALL, .id = r->id, .seed = r->seed, .position = info.position, .eta_ms = info.eta_ms };
    publish_fields(r, "queued", -1, &dn_event_queued_fields, &e);
}

void dn_request_event_progress(dn_request *r)
{
    if (!r->eventful || r->ended)
        return;
    dn_event_progress e = { DN_HAS_ALL, .step = r->step, .steps = r->steps, .eta_ms = dn_request_eta_ms(r) };
    publish_fields(r, "progress", KEY_PROGRESS, &dn_event_progress_fields, &e);
}

/* Lane work wrote "event: ..\ndata: ..\n"; the id, known only when it is sent, ends it. NULL when out of memory. */
static char *with_id(char *text, size_t *n, int64_t id)
{
    char tail[40];
    int more = snprintf(tail, sizeof tail, "id: %lld\n\n", (long long)id);
    char *grown = realloc(text, *n + more + 1);
    if (!grown) {
        free(text);
        return NULL;
    }
    memcpy(grown + *n, tail, more + 1);
    *n += more;
    return grown;
}

void dn_request_event_preview(dn_request *r, int index, char *text, size_t n)
{
    if (!r->eventful || r->ended || r->cancelling) {
        free(text);
        return;
    }
    int64_t id = ++r->event_id;
    text = with_id(text, &n, id);
    if (text)
        publish(r, id, KEY_PREVIEW + index, text, n, NULL, 0);
}

void dn_request_event_image(dn_request *r, int index, char *own, size_t own_n)
{
    if (!r->eventful || r->cancelling) {
        free(own);
        return;
    }
    char url[64];
    dn_buf b;
    size_t n;
    int64_t id = ++r->event_id;
    snprintf(url, sizeof url, "/requests/%s/images/%d", r->id, index);
    dn_image image = { DN_HAS_ALL,
                       .index = index,
                       .seed = r->seed + index,
                       .url = url,
                       .content_type = dn_format_type(r->format),
                       .sha256 = *r->encoded[index].sha256 ? r->encoded[index].sha256 : NULL };
    dn_buf_init(&b, EVENT_MAX);
    dn_event_write(&b, id, "image", &dn_image_fields, &image);
    char *text = dn_buf_take(&b, &n);
    own = own ? with_id(own, &own_n, id) : NULL;
    if (text)
        publish(r, id, -1, text, n, own, own_n);
    free(own);
}

static void publish_end(dn_request *r)
{
    if (!r->failure.id) {
        dn_event_done e = { DN_HAS_ALL, .model = r->model, .numerics = r->numerics, .seed = r->seed,
                            .timing = r->timing };
        publish_fields(r, "done", -1, &dn_event_done_fields, &e);
        return;
    }
    dn_buf b;
    size_t n;
    int64_t id = ++r->event_id;
    dn_buf_init(&b, EVENT_MAX);
    dn_event_error_write(&b, id, &r->failure);
    char *text = dn_buf_take(&b, &n);
    if (text)
        publish(r, id, -1, text, n, NULL, 0);
}

static void reply_info(dn_request *r, dn_call *call)
{
    dn_request_info info;
    dn_info_scratch scratch;
    dn_buf b;
    size_t n;
    dn_request_info_of(r, &info, &scratch);
    dn_buf_init(&b, 64 << 10);
    dn_fields_write(&dn_request_info_fields, &info, &b);
    char *text = dn_buf_take(&b, &n);
    if (text)
        dn_reply_take(call, 200, "application/json", text, n, free);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the answer");
}

/* Streams end; calls that wait for the end get `unfinished`, or without it what has become of the request. */
static void close_all(dn_request *r, const dn_http_error *unfinished)
{
    r->eventful = false;
    if (r->stream)
        dn_stream_close(r->stream);
    r->stream = NULL;
    while (!dn_link_empty(&r->watchers)) {
        watcher *w = DN_LINK_OF(r->watchers.next, watcher, link);
        dn_link_pop(&w->link);
        if (w->stream)
            dn_stream_close(w->stream);
        else if (unfinished)
            dn_reply_error(w->call, unfinished);
        else
            reply_info(r, w->call);
        free(w);
    }
}

void dn_request_event_end(dn_request *r)
{
    if (r->eventful)
        publish_end(r);
    close_all(r, NULL);
}

void dn_request_event_leave(dn_request *r)
{
    dn_http_error err;
    dn_http_fail(&err, DN_H_DRAINING, NULL, NULL);
    close_all(r, &err);
}

static void watcher_gone(void *arg)
{
    watcher *w = arg;
    dn_link_pop(&w->link);
    free(w);
}

static void watch(dn_request *r, watcher *w, dn_call *call)
{
    dn_link_push(&r->watchers, &w->link);
    dn_call_on_gone(call, watcher_gone, w);
}

int dn_request_watch(dn_request *r, dn_call *call, int64_t last_id)
{
    watcher *w = calloc(1, sizeof *w);
    if (!w)
        return DN_H_MEMORY;
    w->stream = dn_stream_open(call);
    if (!w->stream) { /* the call has been refused */
        free(w);
        return 0;
    }
    if (!r->eventful && !r->ended) { /* nobody has listened so far: the story begins here */
        r->eventful = true;
        dn_request_event_queued(r);
    }
    watch(r, w, call);
    for (int i = 0; i < r->n_log; i++) {
        if (r->log[i].id > last_id)
            dn_stream_push(w->stream, r->log[i].text, r->log[i].n, r->log[i].key);
    }
    if (r->ended) {
        dn_link_pop(&w->link);
        dn_stream_close(w->stream);
        free(w);
    }
    return 0;
}

int dn_request_await(dn_request *r, dn_call *call)
{
    if (r->ended) {
        reply_info(r, call);
        return 0;
    }
    watcher *w = calloc(1, sizeof *w);
    if (!w)
        return DN_H_MEMORY;
    w->call = call;
    watch(r, w, call);
    return 0;
}
