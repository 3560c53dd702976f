/* requests_store.c - asynchronous requests on the disk, as the loop sees it: accepted, begun, ended, dropped
 * (requests_recover.c goes on with them after a restart).
 *
 * The row is written before the 202 and before each run, its end before anybody hears of it. Results are one file,
 * results/<id>: what was encoded, one after the other; the row names it once it is complete. A request whose row cannot
 * be brought to its end (disk full) ends in memory all the same, and is run again after a restart.
 *
 * Operations carry copies; of the request only their `done` knows, by its number, because it may be gone by then. */
#include "requests.h"

#include "idempotency.h"
#include "log.h"
#include "models.h"
#include "store_requests.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FILE_NAME_MAX = 64 };

bool dn_requests_durable(const dn_app *app) { return dn_store_folder(app->server.store) != NULL; }

static void file_name(char out[FILE_NAME_MAX], const char *id) { snprintf(out, FILE_NAME_MAX, "results/%s", id); }

/* ---- the row: accepted, begun ------------------------------------------------------------------------------- */

typedef struct begin_op {
    dn_store_op op;
    dn_app *app;
    uint64_t run;
    bool starts;
    char id[DN_REQUEST_ID_LEN + 1], owner[DN_TENANT_MAX];
    char model[sizeof((dn_request *)0)->model], numerics[sizeof((dn_request *)0)->numerics];
    char before[sizeof((dn_request *)0)->numerics];
    double created;
    char *spec, *text; /* the body of its 202 */
    size_t text_n;
    dn_idem_answer *answer;
} begin_op;

static void begin_free(begin_op *b)
{
    dn_idem_answer_free(b->answer);
    free(b->spec);
    free(b->text);
    free(b);
}

/* What was asked, so that it means the same to any later process: the model by name and version, the seed, the size;
 * and every default once the model's are merged in. NULL when out of memory. */
static char *spec_of(const dn_request *r)
{
    bool resolved = *r->numerics;
    json_t *spec = resolved ? dn_generate_complete(r->json) : json_deep_copy(r->json);
    char *text = NULL;
    int bad = !spec || json_object_set_new(spec, "seed", json_integer(r->seed)) ||
              json_object_set_new(spec, "model", json_string(r->known->id));
    if (!bad && resolved)
        bad = json_object_set_new(spec, "height", json_integer(r->height)) ||
              json_object_set_new(spec, "width", json_integer(r->width));
    if (!bad)
        text = json_dumps(spec, JSON_COMPACT);
    json_decref(spec);
    return text;
}

static int begin_work(dn_store_op *op, struct sqlite3 *db)
{
    begin_op *b = dn_container_of(op, begin_op, op);
    dn_request_record row = { .id = b->id,
                              .owner = b->owner,
                              .spec = b->spec,
                              .model = *b->model ? b->model : NULL,
                              .numerics = *b->numerics ? b->numerics : NULL,
                              .numerics_before = *b->before ? b->before : NULL,
                              .starts = b->starts,
                              .tries = b->starts,
                              .created = b->created };
    int rc = dn_record_begin(db, &row, &op->error);
    return rc ? rc : dn_idem_keep(db, b->answer, &op->error);
}

static begin_op *begin_new(dn_request *r, void (*done)(dn_store_op *op))
{
    begin_op *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    *b = (begin_op){
        .op = { .work = begin_work, .done = done }, .app = r->app, .run = r->run, .created = r->created_at
    };
    memcpy(b->id, r->id, sizeof b->id);
    memcpy(b->owner, r->tenant, sizeof b->owner);
    memcpy(b->model, r->model, sizeof b->model);
    memcpy(b->numerics, r->numerics, sizeof b->numerics);
    memcpy(b->before, r->row.numerics_before, sizeof b->before);
    char location[64];
    snprintf(location, sizeof location, "/requests/%s", r->id);
    bool good = (b->spec = spec_of(r)) != NULL;
    if (good && r->call)
        good = (b->text = dn_request_accepted_text(r, &b->text_n)) &&
               !dn_idem_answer_of(&b->answer, r->app, r->call, 202, location, "application/json", b->text, b->text_n);
    if (!good) {
        begin_free(b);
        return NULL;
    }
    return b;
}

static void reply_begun(dn_request *r, begin_op *b)
{
    dn_request_reply_accepted(r, b->text, b->text_n);
    b->text = NULL;
}

static void accepted(dn_store_op *op)
{
    begin_op *b = dn_container_of(op, begin_op, op);
    dn_request *r = dn_request_by_run(b->app, b->run);
    if (r && !op->rc) {
        reply_begun(r, b);
    } else if (r && !r->row.run && !r->ended) { /* else its start, which has all of it, decides */
        dn_http_error err = { 0 };
        dn_http_fail_engine(&err, dn_error_name(op->rc), NULL, op->error.message);
        dn_request_stop_waiting(r);
        dn_request_refuse(r, &err, 0);
    }
    begin_free(b);
}

int dn_request_store_accept(dn_request *r)
{
    begin_op *b = begin_new(r, accepted);
    if (!b)
        return DN_E_MEMORY;
    r->row.there = true;
    dn_store_submit(r->app->server.store, &b->op);
    return 0;
}

/* Its start is not kept. Accepted before, it waits for a better time. */
static void not_begun(dn_request *r, dn_run *run, const dn_store_op *op)
{
    dn_http_error err = { 0 };
    dn_http_fail_engine(&err, dn_error_name(op->rc), NULL, op->error.message);
    dn_request_undo_start(r, run);
    if (r->call || r->cancelling)
        dn_request_refuse(r, &err, 0);
    else
        dn_request_park(r);
}

static void begun(dn_store_op *op)
{
    begin_op *b = dn_container_of(op, begin_op, op);
    dn_request *r = dn_request_by_run(b->app, b->run);
    dn_run *run = r->row.run;
    r->row.run = NULL;
    r->jobs--;
    if (op->rc) {
        not_begun(r, run, op);
    } else {
        reply_begun(r, b);
        r->event_id = (int64_t)r->row.starts * DN_EVENTS_PER_RUN;
        r->row.starts++;
        r->row.tries++;
        r->row.moved = false;
        if (r->cancelling) {
            dn_request_undo_start(r, run);
            dn_request_advance(r);
        } else {
            dn_request_launch(r, run);
        }
    }
    begin_free(b);
}

int dn_request_store_start(dn_request *r, dn_run *run)
{
    begin_op *b = begin_new(r, begun);
    if (!b)
        return DN_E_MEMORY;
    b->starts = true;
    r->row.there = r->row.resolved = true;
    r->row.run = run;
    r->jobs++;
    dn_store_submit(r->app->server.store, &b->op);
    return 0;
}

/* ---- small notes -------------------------------------------------------------------------------------------- */

typedef struct note_op {
    dn_store_op op;
    dn_app *app;
    char id[DN_REQUEST_ID_LEN + 1];
    bool file; /* has results to be removed */
} note_op;

static void note_done(dn_store_op *op)
{
    if (op->rc)
        dn_log(DN_LOG_WARN, "store_note_lost", "%s", op->error.message);
    free(dn_container_of(op, note_op, op));
}

/* Without memory the note is lost: it would only have saved work. */
static void submit_note(dn_app *app, const char *id, int (*work)(dn_store_op *op, struct sqlite3 *db),
                        void (*done)(dn_store_op *op), bool file)
{
    note_op *n = calloc(1, sizeof *n);
    if (!n)
        return;
    *n = (note_op){ .op = { .work = work, .done = done }, .app = app, .file = file };
    snprintf(n->id, sizeof n->id, "%s", id);
    dn_store_submit(app->server.store, &n->op);
}

static int moved_work(dn_store_op *op, struct sqlite3 *db)
{
    return dn_record_moved(db, dn_container_of(op, note_op, op)->id, &op->error);
}

void dn_request_store_moved(dn_request *r)
{
    r->row.moved = true;
    r->row.suspect = false;
    submit_note(r->app, r->id, moved_work, note_done, false);
}

static int left_work(dn_store_op *op, struct sqlite3 *db) { return dn_record_left(db, &op->error); }

void dn_requests_store_leave(dn_app *app) { submit_note(app, "", left_work, note_done, false); }

/* ---- dropping ----------------------------------------------------------------------------------------------- */

typedef struct unlink_work {
    dn_work work;
    char *path;
} unlink_work;

static void work_unlink(dn_work *work) { (void)unlink(dn_container_of(work, unlink_work, work)->path); }

static void unlink_done(dn_work *work)
{
    unlink_work *w = dn_container_of(work, unlink_work, work);
    free(w->path);
    free(w);
}

/* What is not unlinked now is found at the next start. */
static void unlink_later(dn_app *app, const char *id)
{
    unlink_work *w = calloc(1, sizeof *w);
    if (w && asprintf(&w->path, "%s/results/%s", dn_store_folder(app->server.store), id) < 0)
        w->path = NULL;
    if (!w || !w->path) {
        free(w);
        return;
    }
    w->work = (dn_work){ .work = work_unlink, .done = unlink_done };
    dn_lane_submit(app->server.slow, &w->work);
}

static int drop_work(dn_store_op *op, struct sqlite3 *db)
{
    return dn_record_drop(db, dn_container_of(op, note_op, op)->id, &op->error);
}

static void dropped(dn_store_op *op)
{
    note_op *n = dn_container_of(op, note_op, op);
    if (!op->rc && n->file)
        unlink_later(n->app, n->id);
    note_done(op);
}

void dn_request_store_drop(dn_request *r)
{
    if (r->row.there)
        submit_note(r->app, r->id, drop_work, dropped, r->row.file_bytes > 0);
    r->row.there = false;
}

/* ---- the end ------------------------------------------------------------------------------------------------ */

/* First the file of the results, on a lane, if there are any, then the row. */
typedef struct end_op {
    dn_store_op op;
    dn_work work;
    dn_app *app;
    uint64_t run;
    char id[DN_REQUEST_ID_LEN + 1];
    char model[sizeof((dn_request *)0)->model], numerics[sizeof((dn_request *)0)->numerics];
    char before[sizeof((dn_request *)0)->numerics];
    const char *state;
    char *ended;
    double finished;
    const dn_encoded *encoded; /* the request's: it does not change them while it is being saved */
    int n;
    int64_t bytes;
    dn_error error;
} end_op;

static void end_free(end_op *e)
{
    free(e->ended);
    free(e);
}

static json_t *timing_json(const dn_timing *t)
{
    return json_pack("[f,I,I,f,f,f,f]", t->queue_ms, (json_int_t)t->steps, (json_int_t)t->row_steps, t->batch_rows_mean,
                     t->device_ms, t->decode_ms, t->encode_ms);
}

/* A message may have been cut within a character. */
static json_t *text_json(const char *text, size_t n)
{
    json_t *j = json_stringn(text, n);
    char *ascii = j ? NULL : malloc(n + 1);
    if (!ascii)
        return j;
    for (size_t i = 0; i < n; i++)
        ascii[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    j = json_stringn(ascii, n);
    free(ascii);
    return j;
}

/* The events that may not be lost; `done` or `error` comes later and is known from the state. */
static json_t *events_json(const dn_request *r)
{
    json_t *list = json_array();
    for (int i = 0; list && i < r->n_log; i++) {
        json_t *text = r->log[i].key < 0 ? text_json(r->log[i].text, r->log[i].n) : NULL;
        if (r->log[i].key < 0 && json_array_append_new(list, json_pack("[I,o]", (json_int_t)r->log[i].id, text))) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *results_json(const dn_request *r)
{
    json_t *list = json_array();
    for (int k = 0; list && k < dn_request_results(r); k++) {
        if (json_array_append_new(list, json_pack("[I,s]", (json_int_t)r->encoded[k].n, r->encoded[k].sha256))) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* NULL when out of memory. */
static char *ended_text(const dn_request *r, bool results)
{
    json_t *j = json_pack("{s:i,s:i,s:i,s:i,s:i,s:I,s:o,s:I,s:o}", "n", r->n, "step", r->step, "steps", r->steps,
                          "format", r->format, "layout", r->layout, "seed", (json_int_t)r->seed, "timing",
                          timing_json(&r->timing), "event", (json_int_t)r->event_id, "events", events_json(r));
    int bad = !j;
    if (!bad && r->failure.id)
        bad = json_object_set_new(j, "error",
                                  json_pack("[s,o,o]", r->failure.code,
                                            text_json(r->failure.param, strlen(r->failure.param)),
                                            text_json(r->failure.message, strlen(r->failure.message))));
    if (!bad && results)
        bad = json_object_set_new(j, "results", results_json(r));
    char *text = bad ? NULL : json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return text;
}

static int end_work(dn_store_op *op, struct sqlite3 *db)
{
    end_op *e = dn_container_of(op, end_op, op);
    char file[FILE_NAME_MAX];
    file_name(file, e->id);
    dn_request_record row = { .id = e->id,
                              .state = e->state,
                              .finished = e->finished,
                              .ended = e->ended,
                              .model = *e->model ? e->model : NULL,
                              .numerics = *e->numerics ? e->numerics : NULL,
                              .numerics_before = *e->before ? e->before : NULL,
                              .file = e->bytes ? file : NULL,
                              .bytes = e->bytes };
    return dn_record_end(db, &row, &op->error);
}

static void log_unsaved(const char *id, const dn_error *err)
{
    dn_line line;
    dn_line_begin(&line, DN_LOG_ERROR, "request_not_kept");
    dn_line_str(&line, "id", id);
    dn_line_str(&line, "msg", err->message);
    dn_line_end(&line);
}

static void saved(dn_store_op *op)
{
    end_op *e = dn_container_of(op, end_op, op);
    dn_request *r = dn_request_by_run(e->app, e->run);
    r->jobs--;
    r->row.saved = true;
    if (op->rc) {
        log_unsaved(r->id, &op->error);
    } else if (e->bytes) {
        r->row.file_bytes = e->bytes;
        for (int k = 0; k < e->n; k++)
            dn_encoded_drop(&r->encoded[k]);
    }
    end_free(e);
    dn_request_advance(r);
}

static void work_results(dn_work *work)
{
    end_op *e = dn_container_of(work, end_op, work);
    char *folder = NULL, *part = NULL, *path = NULL;
    if (asprintf(&folder, "%s/results", dn_store_folder(e->app->server.store)) < 0 ||
        asprintf(&part, "%s/%s.part", folder, e->id) < 0 || asprintf(&path, "%s/%s", folder, e->id) < 0)
        dn_fail(&e->error, DN_E_MEMORY, NULL, "no memory to write the results");
    else if (dn_results_write(e->encoded, e->n, folder, part, path))
        dn_fail(&e->error, DN_E_IO, "state", "%.200s: %m", path);
    free(folder);
    free(part);
    free(path);
}

static void results_written(dn_work *work)
{
    end_op *e = dn_container_of(work, end_op, work);
    if (!e->error.code) {
        dn_store_submit(e->app->server.store, &e->op);
        return;
    }
    e->op.rc = e->error.code;
    e->op.error = e->error;
    saved(&e->op);
}

static end_op *end_new(dn_request *r, enum dn_request_state state)
{
    end_op *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    bool results = state == DN_STATE_SUCCEEDED;
    *e = (end_op){ .op = { .work = end_work, .done = saved },
                   .work = { .work = work_results, .done = results_written },
                   .app = r->app,
                   .run = r->run,
                   .state = dn_request_states[state],
                   .ended = ended_text(r, results),
                   .encoded = r->encoded,
                   .n = results ? dn_request_results(r) : 0 };
    for (int k = 0; k < e->n; k++)
        e->bytes += (int64_t)r->encoded[k].n;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    e->finished = r->finished_at = now.tv_sec + 1e-9 * now.tv_nsec;
    memcpy(e->id, r->id, sizeof e->id);
    memcpy(e->model, r->model, sizeof e->model);
    memcpy(e->numerics, r->numerics, sizeof e->numerics);
    memcpy(e->before, r->row.numerics_before, sizeof e->before);
    if (!e->ended) {
        end_free(e);
        return NULL;
    }
    return e;
}

bool dn_request_store_end(dn_request *r, enum dn_request_state state)
{
    if (!r->row.there || r->row.saved)
        return false;
    end_op *e = end_new(r, state);
    if (!e) {
        log_unsaved(r->id, &(dn_error){ .message = "no memory to keep the request's end" });
        return false;
    }
    r->row.saving = true;
    r->row.end_state = state;
    r->jobs++;
    if (e->bytes)
        dn_lane_submit(r->app->server.slow, &e->work);
    else
        dn_store_submit(r->app->server.store, &e->op);
    return true;
}
