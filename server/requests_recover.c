/* requests_recover.c - what an earlier process left of its asynchronous requests: those that ended are shown again,
 * those that did not are begun anew, from their seed.
 *
 * A request whose last start ended without a step may be what ended the daemon: a suspect. Only one suspect at a time
 * is on its way to its first step, so that the one at fault is found and the others are not taken for it. */
#include "requests.h"

#include "log.h"
#include "store_requests.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    TRIES_MAX = 3,    /* starts in a row without a step */
    STARTS_MAX = 100, /* starts at all: what ends the daemon in its last step is found too */
};

/* ---- those that had ended ----------------------------------------------------------------------------------- */

static int state_of(const char *name)
{
    for (int s = 0; dn_request_states[s]; s++) {
        if (!strcmp(dn_request_states[s], name))
            return s;
    }
    return -1;
}

static void take_failure(dn_request *r, json_t *error)
{
    const char *code = "", *param = "", *message = "";
    if (!error || json_unpack(error, "[s,s,s]", &code, &param, &message))
        return;
    int id = dn_http_code_find(code);
    dn_http_fail(&r->failure, id ? id : DN_H_INTERNAL, param, "%s", message);
}

static void take_timing(dn_request *r, json_t *timing)
{
    json_int_t steps, rows;
    if (json_unpack(timing, "[F,I,I,F,F,F,F]", &r->timing.queue_ms, &steps, &rows, &r->timing.batch_rows_mean,
                    &r->timing.device_ms, &r->timing.decode_ms, &r->timing.encode_ms))
        return;
    r->timing.has = DN_HAS_ALL;
    r->timing.steps = steps;
    r->timing.row_steps = rows;
}

/* 0, or -1: they are not what they should be. */
static int take_results(dn_request *r, json_t *results, int64_t bytes)
{
    int n = dn_request_results(r);
    if ((int)json_array_size(results) != n || !(r->encoded = calloc(n, sizeof *r->encoded)))
        return -1;
    for (int k = 0; k < n; k++) {
        json_int_t size;
        const char *sha;
        if (json_unpack(json_array_get(results, k), "[I,s]", &size, &sha) || size < 0 || size > bytes)
            return -1;
        r->encoded[k].n = (size_t)size;
        bytes -= size;
        snprintf(r->encoded[k].sha256, sizeof r->encoded[k].sha256, "%s", sha);
    }
    return bytes ? -1 : 0;
}

static void take_events(dn_request *r, json_t *events)
{
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event)
    {
        json_int_t id;
        const char *text;
        size_t n;
        if (!json_unpack(event, "[I,s%]", &id, &text, &n))
            dn_request_event_again(r, id, text, n);
    }
}

/* 0, or -1: the row cannot be understood. */
static int take_ended(dn_request *r, const dn_request_record *row)
{
    json_t *j = json_loads(row->ended ? row->ended : "", 0, NULL);
    json_t *timing = NULL, *events = NULL;
    json_int_t seed, event;
    int state = state_of(row->state);
    int bad = state < 0 ||
              json_unpack(j, "{s:i,s:i,s:i,s:i,s:i,s:I,s:o,s:I,s:o}", "n", &r->n, "step", &r->step, "steps", &r->steps,
                          "format", &r->format, "layout", &r->layout, "seed", &seed, "timing", &timing, "event", &event,
                          "events", &events) ||
              r->n < 0 || r->n > DN_N_MAX || r->format < 0 || r->format > DN_FORMAT_SAFETENSORS;
    if (!bad) {
        r->state = state;
        r->seed = seed;
        r->finished_at = row->finished;
        r->row.saved = true;
        r->row.file_bytes = row->bytes;
        take_timing(r, timing);
        take_failure(r, json_object_get(j, "error"));
        take_events(r, events);
        r->event_id = event;
        bad = row->file ? take_results(r, json_object_get(j, "results"), row->bytes) : 0;
    }
    json_decref(j);
    return bad ? -1 : 0;
}

/* ---- those that had not ------------------------------------------------------------------------------------- */

static int take_spec(dn_request *r, const char *spec, dn_http_error *err)
{
    r->json = json_loads(spec, 0, NULL);
    if (!r->json)
        return dn_http_fail(err, DN_H_INTERNAL, NULL, "its stored form is no JSON");
    int rc = dn_generate_parse(&r->in, r->arena, r->json, err);
    r->seed = r->in.seed;
    return rc;
}

static void take_unfinished(dn_request *r, const dn_request_record *row)
{
    dn_http_error err = { 0 };
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double age_s = now.tv_sec + 1e-9 * now.tv_nsec - row->created;
    r->arrived_ms -= age_s > 0 ? 1e3 * age_s : 0; /* a deadline counts from the first arrival */
    r->eventful = true;
    r->row.resolved = row->numerics != NULL;
    r->row.starts = (int)row->starts;
    r->row.tries = (int)row->tries;
    r->row.suspect = row->tries > 0;
    r->event_id = row->starts * DN_EVENTS_PER_RUN;
    if (row->tries >= TRIES_MAX || row->starts >= STARTS_MAX)
        dn_http_fail(&err, DN_H_CRASH_LOOP, NULL,
                     "it was begun %lld times, the last %lld without a step, and the daemon ended each time",
                     (long long)row->starts, (long long)row->tries);
    if (err.id || take_spec(r, row->spec, &err))
        dn_request_refuse(r, &err, 0);
    else
        dn_request_park(r);
}

/* ---- all of them -------------------------------------------------------------------------------------------- */

static void copy_text(char *out, size_t size, const char *text) { snprintf(out, size, "%s", text ? text : ""); }

/* A file that is not as long as its row says is none. */
static bool file_is_there(const dn_app *app, const dn_request_record *row)
{
    char *path = NULL;
    struct stat st;
    if (asprintf(&path, "%s/%s", dn_store_folder(app->server.store), row->file) < 0)
        return false;
    bool there = !lstat(path, &st) && S_ISREG(st.st_mode) && st.st_size == row->bytes;
    free(path);
    return there;
}

static int take_row(void *arg, const dn_request_record *row, dn_error *err)
{
    dn_app *app = arg;
    bool ended = row->finished > 0, lost = row->file && !file_is_there(app, row);
    dn_request *r = lost ? NULL : dn_request_again(app, row->id);
    if (lost) {
        dn_log(DN_LOG_WARN, "result_lost", "%s has not the %lld bytes that it should", row->file,
               (long long)row->bytes);
        dn_request_remember_gone(app, row->id);
        return dn_record_drop(dn_store_db(app->server.store), row->id, err);
    }
    if (!r)
        return dn_fail(err, DN_E_MEMORY, "state", "no memory for the stored requests");
    r->async = true;
    r->answer = DN_ANSWER_LATER;
    r->row.there = true;
    r->created_at = row->created;
    copy_text(r->tenant, sizeof r->tenant, row->owner);
    copy_text(r->model, sizeof r->model, row->model);
    copy_text(r->numerics, sizeof r->numerics, row->numerics);
    copy_text(r->row.numerics_before, sizeof r->row.numerics_before, row->numerics_before);
    if (!ended) {
        take_unfinished(r, row);
        return 0;
    }
    if (take_ended(r, row)) {
        r->state = DN_STATE_FAILED;
        dn_http_fail(&r->failure, DN_H_INTERNAL, NULL, "what the store has of it cannot be understood");
    }
    r->eventful = true;
    dn_request_event_end(r);
    dn_request_kept_again(r);
    return 0;
}

static void take_gone(void *arg, const char *id) { dn_request_remember_gone(arg, id); }

/* Files that no row names: of a process that ended between the two. */
static void sweep(dn_app *app, DIR *d)
{
    for (struct dirent *e; (e = readdir(d));) {
        const dn_request *r = dn_request_find(app, e->d_name);
        if (*e->d_name != '.' && !(r && r->row.file_bytes))
            (void)unlinkat(dirfd(d), e->d_name, 0);
    }
}

static int open_results(dn_app *app, dn_error *err)
{
    const char *state = dn_store_folder(app->server.store);
    int fd = open(state, O_RDONLY | O_DIRECTORY | O_CLOEXEC), in = -1;
    bool good = fd >= 0 && (!mkdirat(fd, "results", 0700) || errno == EEXIST) && !fsync(fd) &&
                (in = openat(fd, "results", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)) >= 0;
    DIR *d = good ? fdopendir(in) : NULL;
    int rc = d ? 0 : dn_fail(err, DN_E_IO, "state", "%s/results: %m", state);
    if (d) {
        sweep(app, d);
        closedir(d);
    } else if (in >= 0) {
        close(in);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

int dn_requests_recover(dn_app *app, dn_error *err)
{
    if (!dn_requests_durable(app))
        return 0;
    struct sqlite3 *db = dn_store_db(app->server.store);
    int rc = dn_record_read_gone(db, take_gone, app, err);
    if (!rc)
        rc = dn_record_read(db, take_row, app, err);
    if (!rc)
        rc = open_results(app, err);
    if (!rc && dn_requests_parked(app))
        dn_log(DN_LOG_INFO, "requests_resumed", "%d asynchronous requests go on", dn_requests_parked(app));
    if (!rc)
        dn_requests_resume(app);
    return rc;
}

/* ---- beginning what is parked ------------------------------------------------------------------------------- */

/* The parked suspect with the fewest tries, so that those at their last one go last, when others have cleared
 * themselves; *any: there is one, parked or on its way. NULL: none may begin now. */
static dn_request *next_suspect(dn_app *app, bool *any)
{
    dn_request *best = NULL;
    bool under_way = false;
    for (dn_request *r = dn_requests_next(app, NULL); r; r = dn_requests_next(app, r)) {
        if (!r->row.suspect)
            continue;
        under_way |= !r->row.parked;
        if (r->row.parked && (!best || r->row.tries < best->row.tries))
            best = r;
    }
    *any = best || under_way;
    return under_way ? NULL : best;
}

bool dn_requests_suspects(dn_app *app)
{
    bool any;
    (void)next_suspect(app, &any);
    return any;
}

/* The others stay away from the device meanwhile: a suspect's first step is to come at once, lest it be taken for the
 * culprit of an end that has nothing to do with it. */
void dn_requests_resume(dn_app *app)
{
    if (!dn_requests_parked(app) || app->closing || app->draining)
        return;
    bool suspects;
    dn_request *suspect = next_suspect(app, &suspects);
    if (suspect)
        dn_request_begin(suspect);
    for (dn_request *r = suspects ? NULL : dn_requests_next(app, NULL), *next; r; r = next) {
        next = dn_requests_next(app, r);
        if (!r->row.parked)
            continue;
        int parked = dn_requests_parked(app);
        dn_request_begin(r);
        if (dn_requests_parked(app) == parked) /* no room */
            break;
    }
}
