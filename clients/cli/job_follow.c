/* job_follow.c - see job_follow.h.
 *
 * Previews come as events that name a picture, which is fetched between two pieces of the stream. Those for the folder
 * are looked for in the job's list whenever one comes, and all of it whenever a connection begins or ends: none that
 * was made meanwhile is lost. A connection that ends before the job does is made again behind the last event, after a
 * pause that grows. */
#include "job_follow.h"
#include "progress.h"
#include "samples.h"
#include "spark.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

enum {
    TRIES_MAX = 10, /* in a row that bring nothing */
    PREVIEW_MAX = 64 << 20,
    TAIL_COLUMNS = 68,
    STEADY_S = 10 /* a connection that lasts so long was none that was refused */
};
static const char events_type[] = "text/event-stream";

typedef struct follower {
    dn_client *client;
    dn_output_to *output;
    dn_progress progress;
    dn_sse sse;
    dn_spark losses;
    const char *id;
    char path[DN_ID_MAX + 24], resume[DN_SSE_NAME_MAX + 24];
    char last_event[DN_SSE_NAME_MAX + 1];
    char state[16]; /* the last that was told */
    bool heard, done;
    int exit;     /* when done */
    json_t *last; /* the job as it ended; NULL: it goes on, or it was not understood */
    long skipped;
    double loss;         /* NAN: none yet */
    char preview[128];   /* the path of a picture to be fetched; "": none */
    char seed_label[64]; /* of the one that is shown at every step; "": not chosen yet */
    long preview_step;
    dn_samples samples; /* for the folder; NULL in it: there is none */
    bool stale, gap;    /* there are new ones; among those before the newest, too */
    int save_exit;      /* why nothing is saved any more; 0: it is */
} follower;

static int broken(follower *f, const char *event)
{
    dn_progress_clear(&f->progress);
    dn_complain("the daemon sent an event `%s` that cannot be understood", event);
    f->done = true;
    return f->exit = DN_EXIT_SERVER;
}

/* A line between the bars. */
static void __attribute__((format(printf, 2, 3))) say(follower *f, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    if (f->progress.silent)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    dn_progress_clear(&f->progress);
    dn_text_put(stderr, line);
    f->output->preview_lines = 0; /* the picture above stays */
}

/* "0.0312"; "-" of what is no number. */
static const char *loss_text(char out[24], double loss)
{
    snprintf(out, 24, isfinite(loss) ? "%.4g" : "-", loss);
    return out;
}

/* A member that may be missing or null. */
static double number_or_nan(const json_t *data, const char *key)
{
    const json_t *v = json_object_get(data, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

static void draw(follower *f, long step, long steps, double eta_s)
{
    char tail[200], line[200], spark[DN_SPARK_BYTES], loss[24], time[24], rate[40] = "";
    if (step < steps && !dn_progress_due(&f->progress))
        return;
    dn_spark_text(&f->losses, spark, f->progress.utf8);
    dn_text_time(time, eta_s);
    loss_text(loss, f->loss);
    if (eta_s > 0) /* the daemon's own measure, whatever is replayed here */
        snprintf(rate, sizeof rate, "%.3g step/s, ", (double)(steps - step) / eta_s);
    snprintf(tail, sizeof tail, " %ld/%ld  loss %s %s  %s%s left", step, steps, loss, spark, rate, time);
    snprintf(line, sizeof line, "step %ld of %ld, loss %s, %s%s left", step, steps, loss, rate, time);
    dn_progress_show(&f->progress, (double)step / (double)steps, tail, line);
}

static int on_step(follower *f, const json_t *data)
{
    long step = dn_json_count(data, "step"), steps = dn_json_count(data, "steps");
    if (!steps || step > steps)
        return broken(f, "step");
    f->skipped += dn_json_true(data, "skipped");
    f->loss = number_or_nan(data, "loss");
    dn_spark_add(&f->losses, step, f->loss);
    draw(f, step, steps, dn_json_number(data, "eta_s"));
    return 0;
}

/* Eight buckets of timesteps, low to high; some may be null. */
static int on_eval(follower *f, const json_t *data)
{
    char loss[24], bucket[24], all[200] = "";
    size_t i, n = 0;
    json_t *v;
    json_array_foreach(json_object_get(data, "buckets"), i, v)
    {
        if (n < sizeof all - 24)
            n += (size_t)snprintf(all + n, sizeof all - n, " %s",
                                  loss_text(bucket, json_is_number(v) ? json_number_value(v) : NAN));
    }
    say(f, "evaluation after step %ld: loss %s; by timestep%s\n", dn_json_count(data, "step"),
        loss_text(loss, number_or_nan(data, "loss")), n ? all : " -");
    return 0;
}

/* One picture has one place, so that it is seen to change: of every step the seed and label that came first. */
static int on_preview(follower *f, const json_t *data)
{
    char seed_label[sizeof f->seed_label];
    const char *url = dn_json_text(data, "url"), *label = dn_json_text(data, "label");
    long step = dn_json_count(data, "step");
    if (!dn_sample_name(f->id, url) || strlen(url) >= sizeof f->preview)
        return broken(f, "preview");
    f->stale = true;
    snprintf(seed_label, sizeof seed_label, "%.0f %.40s", dn_json_number(data, "seed"), label);
    if (!*f->seed_label)
        snprintf(f->seed_label, sizeof f->seed_label, "%s", seed_label);
    if (strcmp(f->seed_label, seed_label))
        return 0;
    f->preview_step = step;
    if (f->output->how != DN_SHOW_NEVER)
        snprintf(f->preview, sizeof f->preview, "%s", url);
    else if (!f->samples.folder)
        say(f, "previews after step %ld\n", step);
    return 0;
}

static int on_resumed(follower *f, const json_t *data)
{
    long step = dn_json_count(data, "step");
    dn_spark_cut(&f->losses, step);
    f->progress.said = -1;
    say(f, "the job goes on from step %ld\n", step);
    return 0;
}

static void succeeded(follower *f, const json_t *job)
{
    char loss[24], number[24], time[24], skipped[48] = "", eval[48] = "";
    double s = dn_json_number(job, "finished_at") - dn_json_number(job, "started_at");
    double eval_loss = number_or_nan(job, "eval_loss");
    if (f->skipped)
        snprintf(skipped, sizeof skipped, ", %ld skipped as not finite", f->skipped);
    if (isfinite(eval_loss))
        snprintf(eval, sizeof eval, ", evaluation %s", loss_text(number, eval_loss));
    say(f, "trained: %ld steps%s in %s, loss %s%s; `denoise jobs publish %s NAME` makes a model of it\n",
        dn_json_count(job, "steps"), skipped, dn_text_time(time, s), loss_text(loss, number_or_nan(job, "loss")), eval,
        f->id);
}

/* After the last preview. */
static void say_end(follower *f)
{
    const json_t *job = f->last;
    const json_t *error = json_object_get(job, "error");
    const char *reason = dn_json_text(job, "reason");
    bool good = !strcmp(f->state, "succeeded"), cancelled = !strcmp(f->state, "cancelled");
    f->exit = good ? DN_EXIT_OK : cancelled ? DN_EXIT_REFUSED : DN_EXIT_SERVER;
    dn_progress_clear(&f->progress);
    if (good)
        succeeded(f, job);
    else if (!cancelled && json_is_object(error))
        dn_error_complain(error, 0);
    else
        dn_complain("the job is %s%s%s", f->state, *reason ? ": " : "", reason);
}

static int on_state(follower *f, const json_t *job)
{
    static const char *const over[] = { "succeeded", "failed", "cancelled" };
    const char *state = dn_json_text(job, "state"), *reason = dn_json_text(job, "reason");
    if (!*state || strlen(state) >= sizeof f->state)
        return broken(f, "state");
    bool news = strcmp(f->state, state);
    long ahead = dn_json_count(job, "position");
    snprintf(f->state, sizeof f->state, "%s", state);
    for (int i = 0; i < 3; i++)
        if (!strcmp(state, over[i])) {
            f->last = json_incref((json_t *)job);
            f->done = true;
            return 1;
        }
    if (news && !strcmp(state, "queued") && ahead)
        say(f, "queued behind %ld\n", ahead);
    else if (news && !strcmp(state, "paused"))
        say(f, "paused%s%s; `denoise jobs resume %s` goes on\n", *reason ? ": " : "", reason, f->id);
    return 0;
}

static const struct {
    const char *name;
    int (*fn)(follower *f, const json_t *data); /* not 0: stop */
} handlers[] = { { "step", on_step },
                 { "eval", on_eval },
                 { "preview", on_preview },
                 { "resumed", on_resumed },
                 { "state", on_state } };

static int on_event(void *arg, const char *name, const char *id, const char *text, size_t len)
{
    follower *f = arg;
    size_t i = 0, n = sizeof handlers / sizeof *handlers;
    while (i < n && strcmp(handlers[i].name, name))
        i++;
    f->heard = true;
    if (*id && !id[strspn(id, "0123456789.ep")])
        snprintf(f->last_event, sizeof f->last_event, "%s", id);
    if (i == n) /* `checkpoint`, or of a later version */
        return 0;
    dn_http_error err;
    json_t *data = dn_json_parse(text, len, &err);
    int rc = data ? handlers[i].fn(f, data) : broken(f, name);
    json_decref(data);
    return rc;
}

/* ---- previews --------------------------------------------------------------------------------------------------- */

static void fetch_preview(follower *f)
{
    char path[sizeof f->preview];
    if (!*f->preview)
        return;
    snprintf(path, sizeof path, "%s", f->preview);
    f->preview[0] = 0;
    dn_transfer t = { .method = "GET", .path = path, .max = PREVIEW_MAX };
    int rc = dn_client_run(f->client, &t, NULL);
    dn_progress_clear(&f->progress);
    bool came = !rc && t.status == 200 && t.answer.data; /* else it was cut back, or the connection is gone */
    if (came && !dn_output_preview(f->output, 0, t.answer.data, t.answer.len))
        say(f, "the preview after step %ld cannot be shown\n", f->preview_step);
    dn_transfer_fini(&t);
}

/* After a failure on this side nothing more is saved; the job is followed on. */
static void save_previews(follower *f, bool patient)
{
    dn_samples *s = &f->samples;
    long before = s->saved;
    if (!s->folder || !f->stale || f->save_exit)
        return;
    f->stale = false;
    dn_progress_clear(&f->progress);
    int rc = dn_samples_save(s, !f->gap, patient);
    f->gap = rc != 0;
    if (rc > 0 && rc != DN_EXIT_INTERRUPTED)
        f->save_exit = rc;
    if (s->saved > before)
        say(f, "saved %ld preview%s in %s, the last of step %ld\n", s->saved - before,
            s->saved - before == 1 ? "" : "s", s->folder, s->newest);
}

static void beside(void *arg)
{
    fetch_preview(arg);
    save_previews(arg, true);
}

/* ---- the stream ------------------------------------------------------------------------------------------------- */

/* Once; what dn_client_run returns. */
static int hear(follower *f, dn_transfer *t)
{
    snprintf(f->path, sizeof f->path, "/jobs/%s/events", f->id);
    snprintf(f->resume, sizeof f->resume, "Last-Event-ID: %s", f->last_event);
    dn_sse_fini(&f->sse); /* a stream that was cut off may have left half an event */
    dn_sse_init(&f->sse, DN_STATUS_EVENT_MAX, on_event, f);
    *t = (dn_transfer){ .method = "GET",
                        .path = f->path,
                        .accept = events_type,
                        .sse = &f->sse,
                        .header = *f->last_event ? f->resume : NULL,
                        .between = beside,
                        .between_arg = f };
    f->stale = f->gap = true;
    int rc = dn_client_run(f->client, t, NULL);
    if (!rc)
        fetch_preview(f);
    f->stale = f->gap = rc != DN_EXIT_INTERRUPTED;
    save_previews(f, !f->last);
    dn_progress_clear(&f->progress);
    if (f->last)
        say_end(f);
    return rc;
}

/* The job goes on, the connection does not. */
static bool is_cut(const follower *f, const dn_transfer *t, int rc)
{
    bool ended = !rc && t->status == 200 && !strcmp(t->content_type, events_type);
    return !f->done && f->heard && (rc == DN_EXIT_UNREACHABLE || ended || (!rc && t->status == 503));
}

static int follow(follower *f)
{
    char before[sizeof f->last_event];
    for (int tries = 1;; tries++) {
        dn_transfer t;
        time_t begun = time(NULL);
        snprintf(before, sizeof before, "%s", f->last_event);
        int rc = hear(f, &t);
        if (strcmp(before, f->last_event) || time(NULL) - begun > STEADY_S)
            tries = 1;
        bool again = is_cut(f, &t, rc) && tries < TRIES_MAX;
        if (f->done)
            rc = f->exit ? f->exit : f->save_exit;
        else if (!again)
            rc = dn_client_complain(f->client, &t, rc);
        dn_transfer_fini(&t);
        if (!again && !rc && !f->done) {
            dn_complain("the daemon ends the events before the job ends");
            rc = DN_EXIT_SERVER;
        }
        if (!again)
            return rc;
        if (tries == 1)
            say(f, "the connection is lost; it is tried again\n");
        dn_pause_again(tries);
        if (dn_interrupted())
            return DN_EXIT_INTERRUPTED;
    }
}

int dn_job_follow(dn_client *c, dn_output_to *output, const char *id, const char *folder, bool heard)
{
    follower f = { .client = c, .output = output, .id = id, .heard = heard, .loss = NAN };
    dn_progress_init(&f.progress, stderr, output->silent);
    dn_progress_reserve(&f.progress, TAIL_COLUMNS);
    int rc = dn_samples_init(&f.samples, c, id, folder);
    if (!rc)
        rc = follow(&f);
    if (rc == DN_EXIT_INTERRUPTED)
        dn_complain("it goes on without you: `denoise jobs follow %s`, `denoise jobs cancel %s`", id, id);
    json_decref(f.last);
    dn_samples_fini(&f.samples);
    dn_sse_fini(&f.sse);
    return rc;
}
