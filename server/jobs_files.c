/* jobs_files.c - a job's folder: checkpoints, metrics.csv. All of it on the slow lane.
 *
 *     jobs/<id>/checkpoints/<step>    snapshots (trainer.h)
 *     jobs/<id>/metrics.csv           a line for each step and each evaluation
 *     jobs/<id>/samples/<step>-<seed>-<label>.png */
#include "jobs.h"
#include "log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char csv_head[] = "step,attempt,kind,loss,lr,grad_norm,images_per_s,skipped,b0,b1,b2,b3,b4,b5,b6,b7\n";

char *dn_job_path(const dn_job *j, const char *fmt, ...)
{
    char name[128], *path = NULL;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return asprintf(&path, "%s/%s", j->dir, name) < 0 ? NULL : path;
}

static int make_folder(const char *path, dn_error *err)
{
    return mkdir(path, 0700) && errno != EEXIST ? dn_fail(err, DN_E_IO, "state", "%s: %s", path, strerror(errno)) : 0;
}

int dn_job_make_folder(const char *dir, const char *name, dn_error *err)
{
    char above[4096], below[4400];
    snprintf(above, sizeof above, "%.*s", (int)(strrchr(dir, '/') - dir), dir);
    snprintf(below, sizeof below, "%s/%s", dir, name);
    int rc = make_folder(above, err);
    rc = rc ? rc : make_folder(dir, err);
    return rc ? rc : make_folder(below, err);
}

/* ---- metrics.csv: lines, in order -------------------------------------------------------------------------------- */

/* What a write that failed has left of its lines is cut off before the next one: *size is where, -1 after one that did not. 0, or
 * -1 and errno says why. */
static int append(const char *path, int64_t *size, const char *text, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct stat st;
    if (fd < 0)
        return -1;
    int rc = (*size >= 0 && ftruncate(fd, *size)) || fstat(fd, &st);
    if (!rc)
        *size = st.st_size;
    rc = rc || (st.st_size == 0 && write(fd, csv_head, sizeof csv_head - 1) != (ssize_t)sizeof csv_head - 1);
    for (ssize_t k = 0; !rc && n; text += k, n -= (size_t)k) {
        k = write(fd, text, n);
        rc = k < 0;
    }
    if (!rc)
        *size = -1;
    close(fd);
    return rc ? -1 : 0;
}

static void forget_behind(dn_job *j)
{
    dn_buf_fini(&j->behind);
    dn_buf_init(&j->behind, DN_JOB_CSV_BYTES_MAX);
}

/* Lane thread. What cannot be written stays, and goes before what comes after it. */
static int append_metrics(dn_job *j, const char *text, size_t n, dn_error *err)
{
    dn_buf_add(&j->behind, text, n);
    if (j->behind.failed) {
        forget_behind(j);
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for lines of metrics that wait to be written: they are lost");
    }
    if (!j->behind.len)
        return 0;
    char *path = dn_job_path(j, "metrics.csv");
    int rc = path ? dn_job_make_folder(j->dir, "samples", err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc && append(path, &j->csv_size, j->behind.data, j->behind.len))
        rc = dn_fail(err, DN_E_IO, "state", "%s: %s", path, strerror(errno));
    free(path);
    if (!rc)
        forget_behind(j);
    return rc;
}

/* What is not written yet. The lane has one thread: lines reach the file in the order they are taken in. */
static char *take_csv(dn_job *j, size_t *n)
{
    char *text = dn_buf_take(&j->csv, n);
    dn_buf_init(&j->csv, 64 << 20);
    return text;
}

/* ---- checkpoints ----------------------------------------------------------------------------------------------- */

typedef struct saving {
    dn_work work;
    dn_job *job;
    dn_train_news *news; /* of it, with the snapshot */
    dn_saved as;
    bool again;    /* there is one of this step already */
    char *csv;     /* lines up to it: a checkpoint never stands before its metrics */
    size_t n_csv;
    int64_t *drop; /* steps that are no longer kept */
    int n_drop;
    int rc;
    dn_error err;
} saving;

static int write_checkpoint(saving *s)
{
    char name[40], path[4096];
    struct stat st;
    snprintf(name, sizeof name, "%lld", (long long)s->as.step);
    int rc = append_metrics(s->job, s->csv, s->n_csv, &s->err);
    rc = rc ? rc : dn_job_make_folder(s->job->dir, "checkpoints", &s->err);
    snprintf(path, sizeof path, "%s/checkpoints/%s", s->job->dir, name);
    if (!rc)
        rc = dn_snapshot_write(s->news->snapshot, path, &s->err);
    if (!rc && stat(path, &st))
        rc = dn_fail(&s->err, DN_E_IO, "state", "%s: %s", path, strerror(errno));
    if (!rc)
        s->as.bytes = st.st_size;
    else if (!s->again)
        unlink(path); /* it may be whole, but nobody would ever drop it */
    return rc;
}

static void save_work(dn_work *work)
{
    saving *s = dn_container_of(work, saving, work);
    s->rc = write_checkpoint(s);
    dn_snapshot_free(s->news->snapshot);
    for (int i = 0; i < s->n_drop && !s->rc; i++) {
        char *path = dn_job_path(s->job, "checkpoints/%lld", (long long)s->drop[i]);
        if (path)
            unlink(path);
        free(path);
    }
}

static int by_eval(const void *a, const void *b)
{
    const dn_saved *x = a, *y = b;
    if (x->has_eval != y->has_eval)
        return x->has_eval ? -1 : 1;
    return x->eval_loss < y->eval_loss ? -1 : x->eval_loss > y->eval_loss ? 1 : x->step > y->step ? -1 : 1;
}

/* Is it one of the `best` with the least held-out loss? `sorted` by it. */
static bool is_best(const dn_saved *sorted, int n, int64_t step, int best)
{
    for (int i = 0; i < n && i < best && sorted[i].has_eval; i++) {
        if (sorted[i].step == step)
            return true;
    }
    return false;
}

/* What is not kept once `as` is written: neither of the keep_last newest nor of the keep_best best. */
static int to_drop(const dn_job *j, const dn_saved *as, int64_t **out)
{
    int n = j->n_saved + 1, n_drop = 0, last = (int)j->in.checkpoint.keep_last;
    dn_saved *sorted = malloc(n * sizeof *sorted);
    *out = malloc(n * sizeof **out);
    if (sorted && *out) {
        for (int i = 0; i < j->n_saved; i++)
            sorted[i] = j->saved[i];
        sorted[j->n_saved] = *as;
        qsort(sorted, n, sizeof *sorted, by_eval);
        for (int i = 0; i < n - last; i++) {
            if (!is_best(sorted, n, j->saved[i].step, (int)j->in.checkpoint.keep_best) && j->saved[i].step != j->reading)
                (*out)[n_drop++] = j->saved[i].step;
        }
    }
    free(sorted);
    return n_drop;
}

static void forget_saved(dn_job *j, int64_t step)
{
    int to = 0;
    for (int i = 0; i < j->n_saved; i++) {
        if (j->saved[i].step != step)
            j->saved[to++] = j->saved[i];
    }
    j->n_saved = to;
    dn_job_store_unsaved(j, step);
}

void dn_job_remember_saved(dn_job *j, const dn_saved *as)
{
    if (j->n_saved && j->saved[j->n_saved - 1].step == as->step)
        j->n_saved--; /* saved again, on demand */
    dn_saved *grown = realloc(j->saved, (j->n_saved + 1) * sizeof *grown);
    if (grown) {
        j->saved = grown;
        j->saved[j->n_saved++] = *as;
    }
    j->starts = 0; /* this start has made progress that lasts */
    dn_job_store_saved(j, as);
    dn_job_store(j);
    dn_job_event_saved(j, as);
}

/* What could not be written is no loss as long as the job stops here: it goes on from the checkpoint before. */
static void stop_unsaved(dn_job *j, const dn_error *err)
{
    dn_log(DN_LOG_ERROR, "job_unsaved", "job %s: %s", j->id, err->message);
    if (j->goal == DN_GOAL_CANCEL)
        return;
    j->goal = DN_GOAL_PAUSE;
    snprintf(j->reason, sizeof j->reason, "a checkpoint could not be written: %.140s", err->message);
    dn_job_ask(j, DN_DUTY_STOP);
}

static void save_done(dn_work *work)
{
    saving *s = dn_container_of(work, saving, work);
    dn_job *j = s->job;
    dn_worker_train_returned(s->news);
    j->csv_late |= s->rc != 0;
    if (s->rc)
        stop_unsaved(j, &s->err);
    for (int i = 0; i < s->n_drop && !s->rc; i++)
        forget_saved(j, s->drop[i]);
    if (!s->rc)
        dn_job_remember_saved(j, &s->as);
    free(s->csv);
    free(s->drop);
    free(s);
    dn_job_work_done(j, DN_WORK_SAVE);
}

void dn_job_save(dn_job *j, dn_train_news *n)
{
    const dn_saved as = { .step = n->step, .created_at = dn_unix_now(), .has_eval = j->has_eval, .eval_loss = j->eval_loss };
    saving *s = calloc(1, sizeof *s);
    if (!s) {
        dn_snapshot_free(n->snapshot);
        dn_worker_train_returned(n);
        stop_unsaved(j, &(dn_error){ .code = DN_E_MEMORY, .message = "out of memory" });
        return;
    }
    *s = (saving){ .work = { .work = save_work, .done = save_done }, .job = j, .news = n, .as = as };
    if (j->csv.len)
        s->csv = take_csv(j, &s->n_csv);
    s->n_drop = to_drop(j, &as, &s->drop);
    s->again = j->n_saved && j->saved[j->n_saved - 1].step == as.step;
    j->working |= DN_WORK_SAVE;
    dn_lane_submit(j->app->server.slow, &s->work);
}

/* ---- metrics between checkpoints ----------------------------------------------------------------------------------- */

typedef struct metrics_write {
    dn_work work;
    dn_job *job;
    char *text; /* NULL: what is behind alone */
    size_t n;
    int rc;
} metrics_write;

static void metrics_work(dn_work *work)
{
    metrics_write *m = dn_container_of(work, metrics_write, work);
    dn_error err = { 0 };
    m->rc = append_metrics(m->job, m->text, m->n, &err);
    if (m->rc)
        dn_log(DN_LOG_WARN, "job_metrics", "job %s: %s", m->job->id, err.message);
}

static void metrics_done(dn_work *work)
{
    metrics_write *m = dn_container_of(work, metrics_write, work);
    dn_job *j = m->job;
    j->csv_late = m->rc != 0;
    free(m->text);
    free(m);
    dn_job_work_done(j, DN_WORK_METRICS);
}

void dn_job_write_metrics(dn_job *j)
{
    if ((!j->csv.len && !j->csv_late) || j->working & DN_WORK_METRICS || j->dead)
        return;
    metrics_write *m = calloc(1, sizeof *m);
    if (!m)
        return;
    *m = (metrics_write){ .work = { .work = metrics_work, .done = metrics_done }, .job = j };
    if (j->csv.len && !(m->text = take_csv(j, &m->n))) {
        free(m);
        return;
    }
    j->working |= DN_WORK_METRICS;
    dn_lane_submit(j->app->server.slow, &m->work);
}

/* ---- going on -------------------------------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x > y ? -1 : x < y;
}

/* The steps that have a checkpoint, newest first; what a crash left half-written under another name is removed. */
static int list_checkpoints(const char *folder, int64_t **out)
{
    DIR *d = opendir(folder);
    int n = 0;
    *out = NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *end, path[4400];
        long long step = strtoll(e->d_name, &end, 10);
        if (e->d_name[0] == '.' && (!e->d_name[1] || !strcmp(e->d_name, "..")))
            continue;
        if (*end || step <= 0) {
            snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
            unlink(path);
            continue;
        }
        int64_t *grown = realloc(*out, (n + 1) * sizeof *grown);
        if (!grown)
            break;
        *out = grown;
        (*out)[n++] = step;
    }
    if (d)
        closedir(d);
    if (n)
        qsort(*out, n, sizeof **out, newest_first);
    return n;
}

/* The number of a cell, which begins with its comma; an empty one stands for what was not finite. NULL in, or no number: NULL. */
static const char *read_cell(const char *s, double *v)
{
    char *end;
    if (!s || *s++ != ',')
        return NULL;
    if (*s == ',' || *s == '\n') {
        *v = NAN;
        return s;
    }
    *v = strtod(s, &end);
    return end == s ? NULL : end;
}

/* One line of metrics.csv; false: it is none of ours, or it was cut. */
static bool read_line(dn_job_line *l, const char *text)
{
    char kind[8];
    long long step;
    int at = 0;
    double skipped;
    *l = (dn_job_line){ 0 };
    if (sscanf(text, "%lld,%d,%7[a-z]%n", &step, &l->attempt, kind, &at) < 3)
        return false;
    double *const cells[] = { &l->loss, &l->lr, &l->grad_norm, &l->images_per_s, &skipped };
    const char *s = text + at;
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++)
        s = read_cell(s, cells[i]);
    l->step = step;
    l->skipped = s && skipped > 0;
    l->is_eval = !strcmp(kind, "eval");
    for (int i = 0; l->is_eval && i < DN_EVAL_BUCKETS; i++)
        s = read_cell(s, &l->bucket[i]);
    return s && strchr(text, '\n');
}

/* Keep the lines up to `step`; the last DN_JOB_LOG_MAX of them go to *lines. */
static int cut_metrics(const char *dir, int64_t step, dn_job_line **lines, int *n_lines, dn_error *err)
{
    char path[4096], text[512];
    snprintf(path, sizeof path, "%s/metrics.csv", dir);
    FILE *f = fopen(path, "r+");
    if (!f)
        return errno == ENOENT ? 0 : dn_fail(err, DN_E_IO, "state", "%s: %s", path, strerror(errno));
    dn_job_line *ring = calloc(DN_JOB_LOG_MAX, sizeof *ring), l;
    long good = 0;
    int64_t n = 0;
    while (ring && fgets(text, sizeof text, f)) {
        bool is_line = read_line(&l, text);
        if (!is_line && good)
            break; /* the head is the only line that is none */
        if (is_line && l.step > step)
            break;
        if (is_line)
            ring[n++ % DN_JOB_LOG_MAX] = l;
        good = ftell(f);
    }
    int rc = ring && !ftruncate(fileno(f), good) ? 0 : dn_fail(err, DN_E_IO, "state", "%s: %s", path, strerror(errno));
    fclose(f);
    *n_lines = (int)(n < DN_JOB_LOG_MAX ? n : DN_JOB_LOG_MAX);
    if (!rc && n > DN_JOB_LOG_MAX) { /* oldest first */
        dn_job_line *whole = malloc(DN_JOB_LOG_MAX * sizeof *whole);
        int first = (int)(n % DN_JOB_LOG_MAX);
        if (whole) {
            memcpy(whole, ring + first, (DN_JOB_LOG_MAX - first) * sizeof *whole);
            memcpy(whole + DN_JOB_LOG_MAX - first, ring, first * sizeof *whole);
        }
        free(ring);
        ring = whole;
        *n_lines = whole ? *n_lines : 0;
    }
    *lines = ring;
    return rc;
}

int dn_job_files_restore(dn_job *j, dn_trainer *t, dn_saved *from, dn_job_line **lines, int *n_lines, dn_error *err)
{
    char folder[4096], path[4200];
    int64_t *steps;
    snprintf(folder, sizeof folder, "%s/checkpoints", j->dir);
    int n = list_checkpoints(folder, &steps), rc = 0;
    *from = (dn_saved){ 0 };
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%lld", folder, (long long)steps[i]);
        rc = dn_trainer_restore(t, path, err);
        if (!rc) {
            struct stat st;
            *from = (dn_saved){ .step = steps[i] };
            if (!stat(path, &st)) {
                from->bytes = st.st_size;
                from->created_at = (double)st.st_mtim.tv_sec + 1e-9 * (double)st.st_mtim.tv_nsec;
            }
            break;
        }
        dn_log(DN_LOG_WARN, "job_checkpoint", "%s: %s", path, err ? err->message : "");
    }
    free(steps);
    if (rc)
        return rc; /* there are checkpoints, but none is good: beginning anew would quietly lose work */
    forget_behind(j); /* of steps after it: a checkpoint never stands before its metrics */
    rc = cut_metrics(j->dir, from->step, lines, n_lines, err);
    if (!rc)
        j->csv_size = -1;
    return rc;
}
