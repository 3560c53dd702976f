/* ops.c - every row of rows.c in three modes: the gradient in double against central differences, ref against ref64,
 * every backend against ref (with what it promises: a row alone gives the bits that it gives in a batch, with any
 * number of threads, in a planned arena as in one where nothing shares a byte). `ops --bench [words]` times the rows
 * whose name has the words in it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "agree.h"
#include "pool.h"
#include "rows.h"

enum { BATCH = 5, PROBES = 40 };

/* A row's program: y, what the builder keeps, and for a random dy the gradient by all that can be differentiated. */
typedef struct lab {
    subject s;
    const row *r;
    dn_val dy, wrt[TENSORS_MAX], grad[TENSORS_MAX];
    int n_wrt, n_forward; /* ops before dn_grad */
} lab;

static void lab_init(lab *l, const row *r, int n)
{
    *l = (lab){ .r = r };
    subject_init(&l->s, n);
    dn_val y = r->build(&l->s, r);
    if (y == DN_NONE)
        fail_msg("%s: %s", r->name, l->s.p->error.message);
    l->n_forward = l->s.p->n_ops;
    for (int i = 0; i < l->s.n_tensors; i++)
        if (l->s.tensor[i].differentiate)
            l->wrt[l->n_wrt++] = l->s.tensor[i].val;
    l->dy = feed_fixed(&l->s, "the gradient of y", *dn_shape_of(l->s.p, y), -1, 1);
    keep(&l->s, y);
    dn_grad(l->s.p, y, l->dy, l->wrt, l->n_wrt, l->grad);
    for (int i = 0; i < l->n_wrt; i++)
        keep(&l->s, l->grad[i]);
    if (l->s.p->error.code)
        fail_msg("%s: %s", r->name, l->s.p->error.message);
    dn_program_prune(l->s.p);
}

static output *output_of(lab *l, dn_val v)
{
    for (int i = 0; i < l->s.n_outputs; i++)
        if (l->s.output[i].val == v)
            return &l->s.output[i];
    return NULL;
}

/* The output y: the one that dy belongs to is kept just before the gradients. */
static output *y_of(lab *l)
{
    int n_grads = 0;
    for (int i = 0; i < l->n_wrt; i++)
        n_grads += l->grad[i] != DN_NONE;
    return &l->s.output[l->s.n_outputs - n_grads - 1];
}

/* ---- 1: finite differences ---- */

static tensor *tensor_of(subject *s, dn_val v)
{
    for (int i = 0; i < s->n_tensors; i++)
        if (s->tensor[i].val == v)
            return &s->tensor[i];
    return NULL;
}

/* sum of y * dy over all rows, with element i of t moved by h */
static double objective(lab *l, tensor *t, int64_t i, double h)
{
    double old = t->data[i], sum = 0;
    t->data[i] = old + h;
    assert_int_equal(subject_run(&l->s, &dn_backend_ref64, 0, l->s.rows, NULL, RUN_PLANNED), 0);
    t->data[i] = old;
    const output *y = y_of(l);
    const tensor *dy = tensor_of(&l->s, l->dy);
    for (int64_t k = 0; k < y->count * l->s.rows; k++)
        sum += y->data[k] * dy->data[k];
    return sum;
}

/* The largest error of the gradient by one tensor, relative to the element or, for small ones, to the largest. */
static double worst_by(lab *l, int which)
{
    tensor *t = tensor_of(&l->s, l->wrt[which]);
    bool param = l->s.p->value[t->val].kind == DN_PARAM;
    int64_t n = t->count * (param ? 1 : l->s.rows), stride = n / PROBES + 1;
    double *grad = calloc((size_t)n, sizeof *grad), top = 0, worst = 0;
    assert_non_null(grad);
    assert_int_equal(subject_run(&l->s, &dn_backend_ref64, 0, l->s.rows, NULL, RUN_PLANNED), 0);
    if (l->grad[which] != DN_NONE)
        memcpy(grad, output_of(l, l->grad[which])->data, (size_t)n * sizeof *grad);
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(grad[i]));
    for (int64_t i = 0; i < n; i += stride) {
        double h = 1e-5 * fmax(1, fabs(t->data[i]));
        double slope = (objective(l, t, i, h) - objective(l, t, i, -h)) / (2 * h);
        double error = fabs(slope - grad[i]) / (fabs(grad[i]) + 0.01 * top + 1e-6);
        worst = error <= worst ? worst : error; /* NaN is the worst */
    }
    free(grad);
    return worst;
}

/* The worst of all rows, for the report at the end. */
static struct {
    double error;
    const char *name;
    char by[DN_NAME_MAX];
} worst_of_all;

static void note(double error, const char *name, const char *by)
{
    if (error <= worst_of_all.error)
        return;
    worst_of_all.error = error;
    worst_of_all.name = name;
    snprintf(worst_of_all.by, sizeof worst_of_all.by, "%s", by);
}

static int report(void **state)
{
    (void)state;
    print_message("worst gradient: %.2g in \"%s\", by %s\n", worst_of_all.error, worst_of_all.name, worst_of_all.by);
    return 0;
}

static void test_gradient(void **state)
{
    const row *r = *state;
    if (r->no_fd) {
        print_message("not differentiated: %s: %s\n", r->name, r->no_fd);
        return;
    }
    lab l;
    lab_init(&l, r, 2);
    for (int i = 0; i < l.n_wrt; i++) {
        const char *by = l.s.p->value[l.wrt[i]].name;
        double worst = worst_by(&l, i);
        note(worst, r->name, by);
        if (!(worst <= 1e-4))
            fail_msg("%s: gradient by %s: relative error %g", r->name, by, worst);
    }
    subject_fini(&l.s);
}

/* ---- 2 and 3: agreement ---- */

static void test_precision(void **state)
{
    const row *r = *state;
    lab l;
    lab_init(&l, r, BATCH);
    agree_precision(&l.s, r->name, r->tol ? r->tol : 2e-6);
    subject_fini(&l.s);
}

static void test_backends(void **state)
{
    const row *r = *state;
    lab l;
    lab_init(&l, r, BATCH);
    agree_backends(&l.s, r->name, r->backend_tol ? r->backend_tol : 2e-5, r->mixes);
    subject_fini(&l.s);
}

/* Sizes of a real network, forward only and one row: what small shapes never reach. */
static void test_large(void **state)
{
    const row *r = *state;
    subject s;
    subject_init(&s, 1);
    keep(&s, r->build(&s, r));
    dn_program_prune(s.p);
    agree_close(&s, r->name, r->backend_tol ? r->backend_tol : 2e-5);
    subject_fini(&s);
}

/* ---- the table itself ---- */

static const bool has_gradient[DN_OP_COUNT] = {
#define X(code, name, in_min, in_max, outs, grad) [DN_OP_##code] = grad,
    DN_OPS(X)
#undef X
};

/* Every op is in some row's program; one with a gradient is what some row differentiates. */
static void test_coverage(void **state)
{
    (void)state;
    bool seen[DN_OP_COUNT] = { 0 }, differentiated[DN_OP_COUNT] = { 0 };
    for (int i = 0; i < n_rows; i++) {
        lab l;
        lab_init(&l, &rows[i], 1);
        bool present = false;
        for (int k = 0; k < l.s.p->n_ops; k++) {
            seen[l.s.p->op[k].kind] = true;
            present |= l.s.p->op[k].kind == rows[i].op;
        }
        if (!present)
            fail_msg("%s: no %s in its program", rows[i].name, dn_op_name(rows[i].op));
        for (int k = 0; k < l.n_wrt && !rows[i].no_fd && !rows[i].timed; k++)
            differentiated[rows[i].op] |= l.grad[k] != DN_NONE;
        subject_fini(&l.s);
    }
    for (int k = 0; k < DN_OP_COUNT; k++) {
        if (!seen[k])
            fail_msg("no row has a %s", dn_op_name((enum dn_op_kind)k));
        if (has_gradient[k] && !differentiated[k])
            fail_msg("no row checks the gradient of %s", dn_op_name((enum dn_op_kind)k));
    }
}

/* ---- --bench ---- */

/* Forward alone, or with every gradient. */
static void bench_row(const row *r, bool backward, dn_pool *pool)
{
    lab l = { 0 };
    if (backward) {
        lab_init(&l, r, 1);
    } else {
        subject_init(&l.s, 1);
        keep(&l.s, r->build(&l.s, r));
        dn_program_prune(l.s.p);
    }
    for (int b = 0; b < n_backends; b++)
        if (backends[b]->available())
            print_message("%-22s %-9s %-10s %10.3f %10.3f\n", r->name, backward ? "gradient" : "forward",
                          backends[b]->name, subject_time(&l.s, backends[b], NULL, 200),
                          subject_time(&l.s, backends[b], pool, 200));
    subject_fini(&l.s);
}

static int bench(const char *words)
{
    dn_pool *pool = dn_pool_new(2, NULL);
    print_message("%-22s %-9s %-10s %10s %10s\n", "best ms of one row", "", "backend", "1 thread", "2 threads");
    for (int i = 0; i < 2 * n_rows; i++)
        if (rows[i / 2].timed && (!words || strstr(rows[i / 2].name, words)))
            bench_row(&rows[i / 2], i % 2, pool);
    dn_pool_free(pool);
    return 0;
}

static struct CMUnitTest *add_test(struct CMUnitTest *at, const char *mode, const row *r, CMUnitTestFunction fn)
{
    static char names[1024][80];
    static int n_names;
    char *name = names[n_names++];
    snprintf(name, sizeof *names, "%s: %s", mode, r->name);
    *at = (struct CMUnitTest){ .name = name, .test_func = fn, .initial_state = (void *)r };
    return at + 1;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench"))
        return bench(argc > 2 ? argv[2] : NULL);
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("backends: *"); /* the others have one thread */
#endif
    static struct CMUnitTest tests[1024] = { { .name = "coverage", .test_func = test_coverage } };
    struct CMUnitTest *end = tests + 1;
    for (int i = 0; i < n_rows; i++)
        if (rows[i].timed) {
            end = add_test(end, "large", &rows[i], test_large);
        } else {
            end = add_test(end, "gradient", &rows[i], test_gradient);
            end = add_test(end, "precision", &rows[i], test_precision);
            end = add_test(end, "backends", &rows[i], test_backends);
        }
    return _cmocka_run_group_tests("ops", tests, (size_t)(end - tests), NULL, report);
}
