/* agree.c - runs a program twice and compares: with ref within a tolerance, with itself to the bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "agree.h"
#include "pool.h"

/* The thread sanitizer learns nothing from a run on one thread; only what two threads are compared with is left of them. */
#ifdef __SANITIZE_THREAD__
enum { THREADS_ONLY = 1 };
#else
enum { THREADS_ONLY = 0 };
#endif

typedef struct trial {
    subject *s;
    const char *name;
} trial;

typedef struct copies {
    double *data[OUTPUTS_MAX];
} copies;

static int64_t total(const output *o, int rows) { return o->count * (o->batch ? 1 : rows); }

/* Run rows and take the results. */
static void take(copies *c, trial *t, const dn_backend *b, int first, int n, dn_pool *pool, enum run_mode mode)
{
    int rc = subject_run(t->s, b, first, n, pool, mode);
    if (rc)
        fail_msg("%s: %s: %s", t->name, b->name, dn_error_text(-rc));
    for (int i = 0; i < t->s->n_outputs; i++) {
        size_t bytes = (size_t)total(&t->s->output[i], n) * sizeof(double);
        c->data[i] = malloc(bytes);
        assert_non_null(c->data[i]);
        memcpy(c->data[i], t->s->output[i].data, bytes);
    }
}

static void drop(copies *c)
{
    for (int i = 0; i < OUTPUTS_MAX; i++)
        free(c->data[i]);
    *c = (copies){ 0 };
}

static const char *name_of(const trial *t, int i) { return t->s->p->value[t->s->output[i].val].name; }

static void assert_close(trial *t, const copies *a, const copies *b, double tol, const char *what)
{
    for (int i = 0; i < t->s->n_outputs; i++) {
        int64_t n = total(&t->s->output[i], t->s->rows);
        bool exact = t->s->p->value[t->s->output[i].val].dtype == DN_I32;
        double top = 0;
        for (int64_t k = 0; k < n; k++)
            top = fmax(top, fabs(b->data[i][k]));
        for (int64_t k = 0; k < n; k++) {
            double error = fabs(a->data[i][k] - b->data[i][k]);
            if (!(error <= (exact ? 0 : tol * (fabs(b->data[i][k]) + 0.5 * top + 0.01))))
                fail_msg("%s: %s: %s[%lld] is %.9g, not %.9g", t->name, what, name_of(t, i), (long long)k,
                         a->data[i][k], b->data[i][k]);
        }
    }
}

/* Bits. Of `a`, rows first .. first+n-1; of b rows 0 .. n-1; outputs that have one copy only when all rows were run. */
static void assert_same(trial *t, const copies *a, int first, const copies *b, int n, const char *what)
{
    for (int i = 0; i < t->s->n_outputs; i++) {
        const output *o = &t->s->output[i];
        if (o->batch && n != t->s->rows)
            continue;
        int64_t count = total(o, n), from = o->batch ? 0 : first * o->count;
        if (memcmp(a->data[i] + from, b->data[i], (size_t)count * sizeof(double)))
            fail_msg("%s: %s: other bits in %s (rows %d..%d)", t->name, what, name_of(t, i), first, first + n - 1);
    }
}

static void check_rows_alone(trial *t, const dn_backend *b, const copies *all)
{
    copies one = { 0 };
    for (int i = 0; i < t->s->rows; i++) {
        take(&one, t, b, i, 1, NULL, RUN_PLANNED);
        assert_same(t, all, i, &one, 1, "a row alone");
        drop(&one);
    }
    for (int i = 0; i < 2; i++) { /* a batch of two, at another position */
        take(&one, t, b, 2 * i + 1, 2, NULL, RUN_PLANNED);
        assert_same(t, all, 2 * i + 1, &one, 2, "two rows");
        drop(&one);
    }
}

static void check_modes(trial *t, const dn_backend *b, const copies *all)
{
    static const struct {
        enum run_mode mode;
        int threads;
        const char *what;
    } other[] = { { RUN_PLANNED, 2, "two threads" },
                  { RUN_ROOMY, 1, "planned for more rows" },
                  { RUN_APART, 1, "every place apart" },
                  { RUN_POISONED, 1, "dead places poisoned" } };
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        if (THREADS_ONLY && other[i].threads == 1)
            continue;
        copies c = { 0 };
        dn_pool *pool = other[i].threads > 1 ? dn_pool_new(other[i].threads, NULL) : NULL;
        take(&c, t, b, 0, t->s->rows, pool, other[i].mode);
        dn_pool_free(pool);
        assert_same(t, all, 0, &c, t->s->rows, other[i].what);
        drop(&c);
    }
}

void agree_precision(subject *s, const char *name, double tol)
{
    copies a = { 0 }, b = { 0 };
    trial t = { s, name };
    take(&a, &t, &dn_backend_ref, 0, s->rows, NULL, RUN_PLANNED);
    take(&b, &t, &dn_backend_ref64, 0, s->rows, NULL, RUN_PLANNED);
    assert_close(&t, &a, &b, tol, "ref against ref64");
    drop(&a);
    drop(&b);
}

void agree_close(subject *s, const char *name, double tol)
{
    copies truth = { 0 }, all = { 0 };
    trial t = { s, name };
    take(&truth, &t, &dn_backend_ref, 0, s->rows, NULL, RUN_PLANNED);
    for (int i = 0; i < n_backends; i++) {
        if (!backends[i]->available())
            continue;
        take(&all, &t, backends[i], 0, s->rows, NULL, RUN_PLANNED);
        assert_close(&t, &all, &truth, tol, backends[i]->name);
        drop(&all);
    }
    drop(&truth);
}

void agree_backends(subject *s, const char *name, double tol, bool mixes)
{
    copies all = { 0 };
    trial t = { s, name };
    if (!THREADS_ONLY)
        agree_close(s, name, tol);
    for (int i = 0; i < n_backends; i++) {
        if (!backends[i]->available())
            continue;
        take(&all, &t, backends[i], 0, s->rows, NULL, RUN_PLANNED);
        if (!mixes && !THREADS_ONLY)
            check_rows_alone(&t, backends[i], &all);
        check_modes(&t, backends[i], &all);
        drop(&all);
    }
}
