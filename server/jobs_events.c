/* jobs_events.c - what is told of a job: lines of metrics, events, its card.
 *
 * An event's id is "attempt.step", and "attempt.step.e" once that step's evaluation has been told. The last DN_JOB_LOG_MAX
 * lines are kept in memory for those who come later or come back; all are in metrics.csv. A slow reader loses steps, never
 * anything else. */
#include "jobs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EVENT_MAX = 1 << 20, KEY_STEP = 0, KEPT = -1 };

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

enum { ID_MAX = 48 };

static void write_id(char id[ID_MAX], int attempt, int64_t step, bool evaluated)
{
    snprintf(id, ID_MAX, "%d.%lld%s", attempt, (long long)step, evaluated ? ".e" : "");
}

static void write_line_event(const dn_job *j, const dn_job_line *l, dn_buf *b)
{
    char id[ID_MAX];
    write_id(id, l->attempt, l->step, l->is_eval);
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

static void push_all(dn_job *j, const dn_buf *b, int key)
{
    DN_LINK_EACH(l, &j->watchers)
    {
        if (!b->failed)
            dn_stream_push(DN_LINK_OF(l, watcher, link)->stream, b->data, b->len, key);
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
    push_all(j, &b, line->is_eval ? KEPT : KEY_STEP);
    dn_buf_fini(&b);
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

static bool was_evaluated(const dn_job *j, int64_t step)
{
    const dn_job_line *last = j->n_lines ? &j->line[(j->n_lines - 1) % DN_JOB_LOG_MAX] : NULL;
    return last && last->is_eval && last->step == step;
}

/* To one stream; NULL: to everyone who listens. */
static void tell_one(dn_job *j, dn_stream *stream, int64_t step, const char *event, const dn_fields *t, const void *data)
{
    char id[ID_MAX];
    dn_buf b;
    if (!stream && dn_link_empty(&j->watchers))
        return;
    write_id(id, j->attempt, step, was_evaluated(j, step));
    dn_buf_init(&b, EVENT_MAX);
    dn_event_write_id(&b, id, event, t, data);
    if (!stream)
        push_all(j, &b, KEPT);
    else if (!b.failed)
        dn_stream_push(stream, b.data, b.len, KEPT);
    dn_buf_fini(&b);
}

static void tell(dn_job *j, int64_t step, const char *event, const dn_fields *t, const void *data)
{
    tell_one(j, NULL, step, event, t, data);
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
    tell(j, j->step, "state", &dn_job_info_fields, &info);
    if (is_over(j))
        dn_job_unwatch_all(j);
}

void dn_job_event_saved(dn_job *j, const dn_saved *s)
{
    dn_job_checkpoint c = { DN_HAS_ALL & ~(s->has_eval ? 0 : DN_BIT(3)), .step = s->step, .bytes = s->bytes,
                            .created_at = s->created_at, .eval_loss = s->eval_loss };
    tell(j, s->step, "checkpoint", &dn_job_checkpoint_fields, &c);
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

void dn_job_event_shown(dn_job *j, const dn_previewed *s)
{
    char url[128], label[16];
    dn_job_sample sample;
    dn_job_sample_of(j, s, &sample, url, label);
    tell(j, s->step, "preview", &dn_job_sample_fields, &sample);
}

void dn_job_event_resumed(dn_job *j)
{
    dn_event_resumed e = { DN_HAS_ALL, j->step };
    tell(j, j->step, "resumed", &dn_event_resumed_fields, &e);
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

/* What a client has seen. */
typedef struct seen {
    int attempt;
    int64_t step;
    bool evaluated;
} seen;

/* Of an attempt that was cut back, what is left of it counts. */
static bool is_new(const dn_job_line *l, const seen *s)
{
    return l->step > s->step || (l->step == s->step && (l->attempt > s->attempt || (l->is_eval && !s->evaluated)));
}

static void replay(dn_job *j, dn_stream *stream, const seen *s)
{
    int64_t first = j->n_lines > DN_JOB_LOG_MAX ? j->n_lines - DN_JOB_LOG_MAX : 0;
    for (int64_t i = first; i < j->n_lines; i++) {
        const dn_job_line *l = &j->line[i % DN_JOB_LOG_MAX];
        dn_buf b;
        if (!is_new(l, s))
            continue;
        dn_buf_init(&b, EVENT_MAX);
        write_line_event(j, l, &b);
        if (!b.failed)
            dn_stream_push(stream, b.data, b.len, KEPT);
        dn_buf_fini(&b);
    }
}

static bool read_id(const char *text, seen *s)
{
    char *end;
    s->attempt = (int)strtol(text, &end, 10);
    if (end == text || *end != '.')
        return false;
    text = end + 1;
    s->step = strtoll(text, &end, 10);
    s->evaluated = !strcmp(end, ".e");
    return end != text && (!*end || s->evaluated) && s->attempt >= 0 && s->step >= 0;
}

void dn_job_watch(dn_job *j, dn_call *call, const char *last_id)
{
    seen s = { .step = -1 };
    if (last_id && !read_id(last_id, &s)) {
        dn_reply_refuse(call, DN_H_BAD_HEADER, "Last-Event-ID", "Last-Event-ID must be attempt.step or attempt.step.e, got %.40s",
                        last_id);
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
    if (last_id && s.attempt < j->attempt && s.step > j->step) { /* it saw steps that were lost */
        dn_event_resumed e = { DN_HAS_ALL, j->step };
        tell_one(j, w->stream, j->step, "resumed", &dn_event_resumed_fields, &e);
    }
    replay(j, w->stream, &s);
    dn_job_info info;
    state_of(j, &info);
    tell_one(j, w->stream, j->step, "state", &dn_job_info_fields, &info); /* where it stands */
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
