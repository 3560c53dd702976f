/* metric_set.c - counters, gauges and histograms in fixed arrays.
 *
 * A cell is a double held as the bits of an atomic 64-bit word. A series is written once it has been touched; one
 * without labels always, so that a gauge never vanishes. Label sets only grow: the count of a set is published after
 * its value. */
#include "metric_set.h"
#include "proto.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LABELS_MAX = 3, LABEL_LEN_MAX = 64, SET_MAX = 64 };
enum { B_NONE, B_SECONDS, B_ROWS };

static const double seconds[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300 };
static const double rows[] = { 1, 2, 4, 8, 16, 32, 64 };
static const struct {
    const double *le;
    int n; /* without +Inf */
} buckets[] = {
    [B_SECONDS] = { seconds, sizeof seconds / sizeof *seconds },
    [B_ROWS] = { rows, sizeof rows / sizeof *rows },
};

static const struct {
    const char *label;
    int max;
} sets[DN_L_COUNT] = {
#define X(id, label, max) [DN_L_##id] = { label, max },
    DN_LABEL_SETS(X)
#undef X
};

struct metric {
    enum dn_metric_type type;
    const char *name;
    enum dn_label_set label[LABELS_MAX];
    int buckets;
    const char *unit, *help;
};

static const struct metric metrics[DN_M_COUNT] = {
#define X(id, type, name, l0, l1, l2, buckets, unit, help) \
    [DN_M_##id] = { DN_##type, name, { DN_L_##l0, DN_L_##l1, DN_L_##l2 }, B_##buckets, unit, help },
    DN_METRICS(X)
#undef X
};

struct cell {
    _Atomic uint64_t bits;
    _Atomic uint32_t touched;
};

struct set {
    _Atomic int n;
    char value[SET_MAX][LABEL_LEN_MAX + 1];
};

struct dn_metrics {
    pthread_mutex_t lock; /* writers of sets */
    struct set set[DN_L_COUNT];
    struct cell *cell[DN_M_COUNT]; /* [l0][l1][l2][values of a series] */
};

/* A histogram's series is its buckets (not cumulative), +Inf, and the sum. */
static size_t series_cells(const struct metric *m)
{
    return m->type == DN_HISTOGRAM ? (size_t)buckets[m->buckets].n + 2 : 1;
}

static size_t metric_cells(const struct metric *m)
{
    size_t n = series_cells(m);
    for (int i = 0; i < LABELS_MAX; i++)
        n *= (size_t)sets[m->label[i]].max;
    return n;
}

static struct cell *series(const dn_metrics *m, enum dn_metric id, const int *l)
{
    size_t at = 0;
    for (int i = 0; i < LABELS_MAX; i++) {
        const int max = sets[metrics[id].label[i]].max;
        assert(l[i] >= 0 && l[i] < max);
        at = at * (size_t)max + (size_t)l[i];
    }
    return m->cell[id] + at * series_cells(&metrics[id]);
}

static double cell_value(const struct cell *c)
{
    uint64_t bits = atomic_load_explicit(&((struct cell *)c)->bits, memory_order_relaxed);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static bool is_touched(const struct cell *c)
{
    return atomic_load_explicit(&((struct cell *)c)->touched, memory_order_relaxed);
}

static void cell_set(struct cell *c, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    atomic_store_explicit(&c->bits, bits, memory_order_relaxed);
    atomic_store_explicit(&c->touched, 1, memory_order_relaxed);
}

static void cell_add(struct cell *c, double v)
{
    uint64_t old = atomic_load_explicit(&c->bits, memory_order_relaxed), new;
    do {
        double sum;
        memcpy(&sum, &old, sizeof sum);
        sum += v;
        memcpy(&new, &sum, sizeof new);
    } while (!atomic_compare_exchange_weak_explicit(&c->bits, &old, new, memory_order_relaxed, memory_order_relaxed));
    atomic_store_explicit(&c->touched, 1, memory_order_relaxed);
}

static const char *label_value(const dn_metrics *m, enum dn_label_set set, int i) { return m->set[set].value[i]; }

static int set_count(const dn_metrics *m, enum dn_label_set set)
{
    return atomic_load_explicit(&((dn_metrics *)m)->set[set].n, memory_order_acquire);
}

static int find_label(const dn_metrics *m, enum dn_label_set set, const char *value)
{
    int n = set_count(m, set);
    for (int i = 0; i < n; i++)
        if (!strcmp(label_value(m, set, i), value))
            return i;
    return -1;
}

/* Under the lock. */
static int add_label(dn_metrics *m, enum dn_label_set set, const char *value)
{
    struct set *s = &m->set[set];
    int n = set_count(m, set), i = find_label(m, set, value);
    if (i < 0 && n >= sets[set].max - 1)
        i = find_label(m, set, value = "other");
    if (i >= 0)
        return i;
    snprintf(s->value[n], sizeof s->value[n], "%s", value);
    atomic_store_explicit(&s->n, n + 1, memory_order_release);
    return n;
}

int dn_metrics_label(dn_metrics *m, enum dn_label_set set, const char *value)
{
    if (strlen(value) > LABEL_LEN_MAX)
        value = "other";
    int i = find_label(m, set, value);
    if (i >= 0)
        return i;
    pthread_mutex_lock(&m->lock);
    i = add_label(m, set, value);
    pthread_mutex_unlock(&m->lock);
    return i;
}

/* All series of a metric that has label `k` at index i. */
static void forget(dn_metrics *m, enum dn_metric id, int k, int i)
{
    int n[LABELS_MAX], l[LABELS_MAX];
    for (int a = 0; a < LABELS_MAX; a++)
        n[a] = a == k ? 1 : set_count(m, metrics[id].label[a]);
    for (int a = 0; a < n[0] * n[1] * n[2]; a++) {
        l[0] = a % n[0];
        l[1] = a / n[0] % n[1];
        l[2] = a / n[0] / n[1];
        l[k] = i;
        struct cell *c = series(m, id, l);
        memset(c, 0, series_cells(&metrics[id]) * sizeof *c);
    }
}

void dn_metrics_reuse(dn_metrics *m, enum dn_label_set set, int i, const char *value)
{
    assert(i >= 0 && i < sets[set].max);
    pthread_mutex_lock(&m->lock);
    snprintf(m->set[set].value[i], sizeof m->set[set].value[i], "%s", value ? value : "");
    if (set_count(m, set) <= i)
        atomic_store_explicit(&m->set[set].n, i + 1, memory_order_release);
    pthread_mutex_unlock(&m->lock);
    for (int id = 0; id < DN_M_COUNT; id++) {
        for (int k = 0; k < LABELS_MAX; k++) {
            if (metrics[id].label[k] == set)
                forget(m, id, k, i);
        }
    }
}

static void register_fixed(dn_metrics *m)
{
    static const struct {
        enum dn_label_set set;
        const char *value[9];
    } fixed[] = {
        { DN_L_NONE, { "" } },
        { DN_L_MODEL, { "" } },
        { DN_L_REASON, { "rejected", "cancelled", "deadline", "memory", "non_finite", "backend", "other" } },
        { DN_L_ROWS, { "1", "2", "4", "8", "16", "32", "64", "+Inf" } },
        { DN_L_DEVICE_KIND, { "infer", "train" } },
        { DN_L_MEMORY_KIND, { "limit", "weights", "forms", "arenas", "slots", "results", "training" } },
    };
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        for (const char *const *v = fixed[i].value; *v; v++)
            dn_metrics_label(m, fixed[i].set, *v);
    for (int i = 0; i < DN_ROUTE_COUNT; i++)
        dn_metrics_label(m, DN_L_ROUTE, dn_routes[i].path);
}

dn_metrics *dn_metrics_new(void)
{
    dn_metrics *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    pthread_mutex_init(&m->lock, NULL);
    for (int i = 0; i < DN_M_COUNT; i++)
        if (!(m->cell[i] = calloc(metric_cells(&metrics[i]), sizeof(struct cell)))) {
            dn_metrics_free(m);
            return NULL;
        }
    register_fixed(m);
    return m;
}

void dn_metrics_free(dn_metrics *m)
{
    if (!m)
        return;
    for (int i = 0; i < DN_M_COUNT; i++)
        free(m->cell[i]);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static int bucket(const double *le, int n, double v)
{
    int i = 0;
    while (i < n && v > le[i])
        i++;
    return i;
}

int dn_metrics_rows(int n) { return bucket(rows, sizeof rows / sizeof *rows, n); }

void dn_metrics_add(dn_metrics *m, enum dn_metric id, int l0, int l1, int l2, double v)
{
    assert(metrics[id].type != DN_HISTOGRAM && (metrics[id].type == DN_GAUGE || v >= 0));
    cell_add(series(m, id, (int[]){ l0, l1, l2 }), v);
}

void dn_metrics_set(dn_metrics *m, enum dn_metric id, int l0, int l1, double v)
{
    assert(metrics[id].type == DN_GAUGE);
    cell_set(series(m, id, (int[]){ l0, l1, 0 }), v);
}

void dn_metrics_observe(dn_metrics *m, enum dn_metric id, int l0, double v)
{
    assert(metrics[id].type == DN_HISTOGRAM);
    struct cell *c = series(m, id, (int[]){ l0, 0, 0 });
    int n = buckets[metrics[id].buckets].n;
    cell_add(&c[bucket(buckets[metrics[id].buckets].le, n, v)], 1);
    cell_add(&c[n + 1], v);
}

static void write_number(dn_buf *b, double v)
{
    if (isfinite(v))
        dn_buf_json_number(b, v);
    else
        dn_buf_puts(b, isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
}

static void write_escaped(dn_buf *b, const char *s)
{
    for (; *s; s++)
        if (*s == '\\' || *s == '"')
            dn_buf_printf(b, "\\%c", *s);
        else if (*s == '\n')
            dn_buf_puts(b, "\\n");
        else
            dn_buf_add(b, s, 1);
}

/* name{label="value",...,le="..."} value; `le` NULL: not a bucket. */
static void write_sample(const dn_metrics *m, enum dn_metric id, const char *suffix, const int *l, const char *le,
                         double v, dn_buf *b)
{
    const char *open = "{";
    dn_buf_printf(b, "%s%s", metrics[id].name, suffix);
    for (int i = 0; i < LABELS_MAX; i++) {
        enum dn_label_set set = metrics[id].label[i];
        if (set == DN_L_NONE)
            continue;
        dn_buf_printf(b, "%s%s=\"", open, sets[set].label);
        write_escaped(b, label_value(m, set, l[i]));
        dn_buf_puts(b, "\"");
        open = ",";
    }
    if (le)
        dn_buf_printf(b, "%sle=\"%s\"", open, le);
    dn_buf_puts(b, le || *open == ',' ? "} " : " ");
    write_number(b, v);
    dn_buf_puts(b, "\n");
}

static void write_histogram(const dn_metrics *m, enum dn_metric id, const int *l, const struct cell *c, dn_buf *b)
{
    int n = buckets[metrics[id].buckets].n;
    double count = 0;
    for (int i = 0; i <= n; i++) {
        char le[32] = "+Inf";
        if (i < n)
            snprintf(le, sizeof le, "%.15g", buckets[metrics[id].buckets].le[i]);
        count += cell_value(&c[i]);
        write_sample(m, id, "_bucket", l, le, count, b);
    }
    write_sample(m, id, "_sum", l, NULL, cell_value(&c[n + 1]), b);
    write_sample(m, id, "_count", l, NULL, count, b);
}

/* A histogram is touched when its sum is. */
static void write_series(const dn_metrics *m, enum dn_metric id, const int *l, dn_buf *b)
{
    const struct cell *c = series(m, id, l);
    bool labelled = metrics[id].label[0] != DN_L_NONE;
    if (labelled && !is_touched(&c[series_cells(&metrics[id]) - 1]))
        return;
    if (metrics[id].type == DN_HISTOGRAM)
        write_histogram(m, id, l, c, b);
    else
        write_sample(m, id, "", l, NULL, cell_value(c), b);
}

static const char *const type_names[] = { "counter", "gauge", "histogram" };

static void write_metric(const dn_metrics *m, enum dn_metric id, dn_buf *b)
{
    const struct metric *t = &metrics[id];
    int n[LABELS_MAX];
    for (int i = 0; i < LABELS_MAX; i++)
        n[i] = set_count(m, t->label[i]);
    dn_buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", t->name, t->help, t->name, type_names[t->type]);
    for (int i = 0; i < n[0]; i++)
        for (int j = 0; j < n[1]; j++)
            for (int k = 0; k < n[2]; k++)
                write_series(m, id, (int[]){ i, j, k }, b);
}

void dn_metrics_write(const dn_metrics *m, dn_buf *b)
{
    for (int i = 0; i < DN_M_COUNT; i++)
        write_metric(m, i, b);
}

void dn_metrics_markdown(dn_buf *b)
{
    dn_buf_puts(b, "| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n");
    for (int i = 0; i < DN_M_COUNT; i++) {
        const struct metric *t = &metrics[i];
        dn_buf_printf(b, "| `%s` | %s |", t->name, type_names[t->type]);
        for (int k = 0; k < LABELS_MAX && t->label[k] != DN_L_NONE; k++)
            dn_buf_printf(b, "%s `%s`", k ? "," : "", sets[t->label[k]].label);
        dn_buf_printf(b, " | %s | %s |\n", t->unit, t->help);
    }
}
