/* jobs_events.c - what is told of a job: lines of metrics, events, its card.
 *
 * An event's id is its place in the stream (dn_told): "attempt.step" of the line of a step, "attempt.step.e" of its evaluation's, and
 * either with ".pN" of the N-th preview told behind that line. Previews take their time, so a preview stands behind the line that had
 * been told when it was done, not behind the step that it shows. Every other event has the id of what was told before it: who comes
 * back with it misses nothing and hears no line and no preview twice. The last DN_JOB_LOG_MAX lines and previews are kept in memory
 * for those who come later or come back; all are on the disk. A slow reader loses steps, never anything else. */
#include "jobs.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EVENT_MAX = 1 << 20, KEPT = -1, KEYS = 1 << 30 };

typedef struct watcher {
    dn_link link;
    dn_stream *stream;
} watcher;

/* ---- lines ----------------------------------------------------------------------------------------------------- */

/* What is not finite, or was not measured, is an empty cell: that is what a spreadsheet leaves out of a curve. */
static void cell(dn_buf *b, double v)
{
    if (isfinite(v))
        dn_buf_printf(b, ",%.9g", v);
    else
        dn_buf_puts(b, ",");
}

static void write_csv(dn_job *j, const dn_job_line *l)
{
    dn_buf *b = &j->csv;
    dn_buf_printf(b, "%lld,%d,%s", (long long)l->step, l->attempt, l->is_eval ? "eval" : "step");
    const double of_step[] = { l->lr, l->grad_norm, l->images_per_s };
    cell(b, l->loss);
    for (int i = 0; i < 3; i++)
        cell(b, l->is_eval ? NAN : of_step[i]);
    dn_buf_printf(b, ",%d", l->skipped);
    for (int i = 0; i < DN_EVAL_BUCKETS; i++)
        cell(b, l->is_eval ? l->bucket[i] : NAN);
    dn_buf_puts(b, "\n");
}

/* ---- places ---------------------------------------------------------------------------------------------------- */

void dn_told_write(char id[DN_TOLD_LEN], const dn_told *at)
{
    int n = snprintf(id, DN_TOLD_LEN, "%d.%lld%s", at->attempt, (long long)at->step, at->evaluated ? ".e" : "");
    if (at->previews)
        snprintf(id + n, DN_TOLD_LEN - (size_t)n, ".p%d", at->previews);
}

/* Digits, and no more of them than a number has; NULL: there are none. */
static const char *read_number(const char *text, int64_t *v, int64_t max)
{
    size_t n = strspn(text, "0123456789");
    *v = n && n < 19 ? strtoll(text, NULL, 10) : -1;
    return *v >= 0 && *v <= max ? text + n : NULL;
}

bool dn_told_read(dn_told *at, const char *id)
{
    int64_t attempt, step = 0, previews = 0;
    const char *s = read_number(id, &attempt, INT_MAX);
    s = s && *s == '.' ? read_number(s + 1, &step, INT64_MAX) : NULL;
    bool evaluated = s && s[0] == '.' && s[1] == 'e';
    s = evaluated ? s + 2 : s;
    if (s && s[0] == '.' && s[1] == 'p')
        s = read_number(s + 2, &previews, INT_MAX);
    if (!s || *s)
        return false;
    *at = (dn_told){ (int)attempt, step, evaluated, (int)previews };
    return true;
}

/* Does a stand behind b? A later attempt does, although it was cut back to an earlier step. */
static bool is_behind(const dn_told *a, const dn_told *b)
{
    if (a->attempt != b->attempt)
        return a->attempt > b->attempt;
    if (a->step != b->step)
        return a->step > b->step;
    return a->evaluated != b->evaluated ? a->evaluated : a->previews > b->previews;
}

static dn_told place_of(const dn_job_line *l) { return (dn_told){ l->attempt, l->step, l->is_eval, 0 }; }

static bool was_evaluated(const dn_job *j, int64_t step)
{
    const dn_job_line *last = j->n_lines ? &j->line[(j->n_lines - 1) % DN_JOB_LOG_MAX] : NULL;
    return last && last->is_eval && last->step == step;
}

/* Behind all that has been told. */
static dn_told place_now(const dn_job *j)
{
    dn_told line = { j->attempt, j->step, was_evaluated(j, j->step), 0 };
    const dn_told *shown = j->n_shown ? &j->shown[j->n_shown - 1].told : &line;
    return is_behind(shown, &line) ? *shown : line;
}

dn_told dn_job_told_next(const dn_job *j)
{
    dn_told at = place_now(j);
    at.previews++;
    return at;
}

/* ---- lines as events ------------------------------------------------------------------------------------------- */

static void write_line_event(const dn_job *j, const dn_job_line *l, dn_buf *b)
{
    char id[DN_TOLD_LEN];
    const dn_told at = place_of(l);
    dn_told_write(id, &at);
    if (l->is_eval) {
        dn_event_eval e = { DN_HAS_ALL, .step = l->step, .loss = l->loss, .buckets = { l->bucket, DN_EVAL_BUCKETS } };
        dn_event_write_id(b, id, "eval", &dn_event_eval_fields, &e);
        return;
    }
    uint64_t has = DN_HAS_ALL & ~((isfinite(l->loss) ? 0 : DN_BIT(2)) | (isfinite(l->grad_norm) ? 0 : DN_BIT(4)));
    dn_event_step e = { has, .step = l->step, .steps = j->in.steps, .loss = l->loss, .lr = l->lr, .grad_norm = l->grad_norm,
                        .images_per_s = l->images_per_s, .eta_s = l->eta_s, .skipped = l->skipped };
    dn_event_write_id(b, id, "step", &dn_event_step_fields, &e);
}

/* A step that replaces one that is not sent yet takes its place in the queue: only one behind the same kept event, or their ids would
 * be out of order. */
static void push_all(dn_job *j, const dn_buf *b, bool kept)
{
    j->n_kept += kept;
    DN_LINK_EACH(l, &j->watchers)
    {
        if (!b->failed)
            dn_stream_push(DN_LINK_OF(l, watcher, link)->stream, b->data, b->len, kept ? KEPT : (int)(j->n_kept % KEYS));
    }
}

void dn_job_line_add(dn_job *j, const dn_job_line *line, bool fresh)
{
    if (!j->line)
        j->line = malloc(DN_JOB_LOG_MAX * sizeof *j->line);
    if (j->line)
        j->line[j->n_lines++ % DN_JOB_LOG_MAX] = *line;
    if (!fresh)
        return;
    write_csv(j, line);
    if (dn_link_empty(&j->watchers))
        return;
    dn_buf b;
    dn_buf_init(&b, EVENT_MAX);
    write_line_event(j, line, &b);
    push_all(j, &b, line->is_eval);
    dn_buf_fini(&b);
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

/* To one stream; NULL: to everyone who listens. */
static void tell_at(dn_job *j, dn_stream *stream, const dn_told *at, const char *event, const dn_fields *t, const void *data)
{
    char id[DN_TOLD_LEN];
    dn_buf b;
    if (!stream && dn_link_empty(&j->watchers))
        return;
    dn_told_write(id, at);
    dn_buf_init(&b, EVENT_MAX);
    dn_event_write_id(&b, id, event, t, data);
    if (!stream)
        push_all(j, &b, true);
    else if (!b.failed)
        dn_stream_push(stream, b.data, b.len, KEPT);
    dn_buf_fini(&b);
}

/* To everyone, now. */
static void tell(dn_job *j, const char *event, const dn_fields *t, const void *data)
{
    const dn_told now = place_now(j);
    tell_at(j, NULL, &now, event, t, data);
}

static bool is_over(const dn_job *j) { return j->state >= DN_JOB_SUCCEEDED; }

/* What GET /jobs/{id} says, but for the request. */
static void state_of(dn_job *j, dn_job_info *info)
{
    dn_job_info_of(j, info);
    info->has &= ~DN_BIT(DN_JOBINFO_REQUEST);
}

void dn_job_event_state(dn_job *j)
{
    dn_job_info info;
    state_of(j, &info);
    tell(j, "state", &dn_job_info_fields, &info);
    if (is_over(j))
        dn_job_unwatch_all(j);
}

void dn_job_event_saved(dn_job *j, const dn_saved *s)
{
    dn_job_checkpoint c = { DN_HAS_ALL & ~(s->has_eval ? 0 : DN_BIT(3)), .step = s->step, .bytes = s->bytes,
                            .created_at = s->created_at, .eval_loss = s->eval_loss };
    tell(j, "checkpoint", &dn_job_checkpoint_fields, &c);
}

void dn_job_sample_of(const dn_job *j, const dn_previewed *s, dn_job_sample *out, char url[128], char label[16])
{
    snprintf(url, 128, "/jobs/%s/samples/%lld-%lld-%d", j->id, (long long)s->step, (long long)s->seed, s->label);
    const char *name = j->stored && j->stored->classes && s->label >= 0 && s->label < j->stored->n_classes
                           ? j->stored->classes[s->label] : label;
    snprintf(label, 16, "%d", s->label);
    *out = (dn_job_sample){ DN_HAS_ALL, .step = s->step, .seed = s->seed, .label = s->label < 0 ? NULL : name,
                            .sha256 = s->sha256, .url = url };
}

static void tell_shown(dn_job *j, dn_stream *stream, const dn_previewed *s)
{
    char url[128], label[16];
    dn_job_sample sample;
    dn_job_sample_of(j, s, &sample, url, label);
    tell_at(j, stream, &s->told, "preview", &dn_job_sample_fields, &sample);
}

void dn_job_event_shown(dn_job *j, const dn_previewed *s) { tell_shown(j, NULL, s); }

void dn_job_event_resumed(dn_job *j)
{
    dn_event_resumed e = { DN_HAS_ALL, j->step };
    tell(j, "resumed", &dn_event_resumed_fields, &e);
}

/* ---- who listens ----------------------------------------------------------------------------------------------- */

static void watcher_gone(void *arg)
{
    watcher *w = arg;
    dn_link_pop(&w->link);
    free(w);
}

void dn_job_unwatch_all(dn_job *j)
{
    while (!dn_link_empty(&j->watchers)) {
        watcher *w = DN_LINK_OF(j->watchers.next, watcher, link);
        dn_stream_close(w->stream);
        watcher_gone(w);
    }
}

/* Of an attempt that was cut back, what is left of it counts. */
static bool is_new(const dn_job_line *l, const dn_told *seen)
{
    return l->step > seen->step || (l->step == seen->step && (l->attempt > seen->attempt || (l->is_eval && !seen->evaluated)));
}

/* Previews from the k-th on that stand before `end` (NULL: all); those that the client has not seen are told. Returns the next one. */
static int replay_shown(dn_job *j, dn_stream *stream, int k, const dn_told *end, const dn_told *seen)
{
    for (; k < j->n_shown && !(end && is_behind(&j->shown[k].told, end)); k++) {
        if (is_behind(&j->shown[k].told, seen))
            tell_shown(j, stream, &j->shown[k]);
    }
    return k;
}

static void replay(dn_job *j, dn_stream *stream, const dn_told *seen)
{
    int64_t first = j->n_lines > DN_JOB_LOG_MAX ? j->n_lines - DN_JOB_LOG_MAX : 0;
    int k = j->n_shown > DN_JOB_LOG_MAX ? j->n_shown - DN_JOB_LOG_MAX : 0;
    for (int64_t i = first; i < j->n_lines; i++) {
        const dn_job_line *l = &j->line[i % DN_JOB_LOG_MAX];
        const dn_told at = place_of(l);
        dn_buf b;
        k = replay_shown(j, stream, k, &at, seen);
        if (!is_new(l, seen))
            continue;
        dn_buf_init(&b, EVENT_MAX);
        write_line_event(j, l, &b);
        if (!b.failed)
            dn_stream_push(stream, b.data, b.len, KEPT);
        dn_buf_fini(&b);
    }
    replay_shown(j, stream, k, NULL, seen);
}

void dn_job_watch(dn_job *j, dn_call *call, const char *last_id)
{
    dn_told seen = { .step = -1 };
    if (last_id && !dn_told_read(&seen, last_id)) {
        dn_reply_refuse(call, DN_H_BAD_HEADER, "Last-Event-ID",
                        "Last-Event-ID must be attempt.step, attempt.step.e, or one of them with .pN, got %.40s", last_id);
        return;
    }
    watcher *w = calloc(1, sizeof *w);
    if (!w) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for a stream");
        return;
    }
    dn_link_init(&w->link);
    w->stream = dn_stream_open(call);
    if (!w->stream) { /* the call has been refused */
        free(w);
        return;
    }
    dn_call_on_gone(call, watcher_gone, w);
    if (last_id && seen.attempt < j->attempt && seen.step > j->step) { /* it saw steps that were lost */
        dn_event_resumed e = { DN_HAS_ALL, j->step };
        tell_at(j, w->stream, &seen, "resumed", &dn_event_resumed_fields, &e); /* the id says that the rest is still to come */
    }
    replay(j, w->stream, &seen);
    dn_job_info info;
    const dn_told now = place_now(j);
    state_of(j, &info);
    tell_at(j, w->stream, &now, "state", &dn_job_info_fields, &info); /* where it stands */
    dn_link_push(&j->watchers, &w->link);
    if (is_over(j))
        dn_job_unwatch_all(j);
}

/* ---- its card -------------------------------------------------------------------------------------------------- */

static int64_t position_of(const dn_job *j)
{
    int64_t n = 0;
    DN_LINK_EACH(l, &j->app->jobs->jobs)
    {
        const dn_job *k = DN_LINK_OF(l, dn_job, link);
        bool before = k->phase != DN_PHASE_IDLE ||
                      (k->state == DN_JOB_QUEUED &&
                       (k->priority > j->priority || (k->priority == j->priority && k->created_at < j->created_at)));
        n += k != j && k->place == j->place && before;
    }
    return n;
}

void dn_job_info_of(dn_job *j, dn_job_info *info)
{
    double ms = dn_clock_ms() - j->began_ms;
    bool on = j->phase == DN_PHASE_ON_DEVICE && j->step > j->began_step, failed = j->state == DN_JOB_FAILED && j->failure.id;
    const struct {
        int field;
        bool has;
    } optional[] = { { DN_JOBINFO_REASON, *j->reason },         { DN_JOBINFO_FROM, *j->from },
                     { DN_JOBINFO_LOSS, j->has_loss },          { DN_JOBINFO_LR, j->step > 0 },
                     { DN_JOBINFO_GRAD_NORM, j->step > 0 && isfinite(j->grad_norm) },
                     { DN_JOBINFO_EVAL_LOSS, j->has_eval && isfinite(j->eval_loss) },
                     { DN_JOBINFO_IMAGES_PER_S, j->images_per_s > 0 }, { DN_JOBINFO_ETA_S, on },
                     { DN_JOBINFO_DATA_WAIT, on },              { DN_JOBINFO_POSITION, j->state == DN_JOB_QUEUED },
                     { DN_JOBINFO_STARTED_AT, j->started_at > 0 }, { DN_JOBINFO_FINISHED_AT, j->finished_at > 0 },
                     { DN_JOBINFO_PUBLISHED, *j->published },   { DN_JOBINFO_ERROR, failed } };
    *info = (dn_job_info){ .has = DN_HAS_ALL,
                           .id = j->id,
                           .name = j->in.name,
                           .state = j->state,
                           .reason = j->reason,
                           .dataset = j->in.dataset,
                           .from = j->in.from,
                           .device = j->in.device,
                           .step = j->step,
                           .steps = j->in.steps,
                           .attempt = j->attempt,
                           .loss = j->loss,
                           .lr = j->lr,
                           .grad_norm = j->grad_norm,
                           .eval_loss = j->eval_loss,
                           .images_per_s = j->images_per_s,
                           .eta_s = j->eta_s,
                           .data_wait = on && ms > 0 ? j->wait_ms / ms : 0,
                           .train_share = j->share,
                           .priority = j->priority,
                           .position = position_of(j),
                           .created_at = j->created_at,
                           .started_at = j->started_at,
                           .finished_at = j->finished_at,
                           .request = j->json,
                           .published = j->published };
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
        info->has &= optional[i].has ? DN_HAS_ALL : ~DN_BIT(optional[i].field);
    dn_job_plan_of(j, &info->plan);
    if (failed)
        info->error = (dn_error_body){ DN_HAS_ALL, j->failure.type, j->failure.code, NULL, j->failure.message };
}
