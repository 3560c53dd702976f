/* search.c - which marked blocks of layers to recompute, so that a training program fits into memory. */
#include "plan.h"
#include <stdlib.h>

int dn_plan_bytes(const dn_program *p, const dn_backend *b, int rows_max, size_t *bytes, dn_error *err)
{
    dn_lowered *l = NULL;
    int rc = dn_lower(&l, b, p, rows_max, err);
    if (!rc)
        *bytes = l->arena_bytes;
    dn_lowered_free(l);
    return rc;
}

/* A marked block and what it would save. */
typedef struct {
    int mark;
    dn_mark_cost cost;
} candidate;

/* Most bytes for each operation first. */
static int by_gain(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    double gx = (double)x->cost.bytes * (y->cost.flop + 1), gy = (double)y->cost.bytes * (x->cost.flop + 1);
    return gx != gy ? (gx < gy ? 1 : -1) : x->mark - y->mark;
}

/* Most operations first. */
static int by_flop(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return x->cost.flop != y->cost.flop ? (x->cost.flop < y->cost.flop ? 1 : -1) : x->mark - y->mark;
}

static int measure(const dn_search *s, const dn_marks *m, size_t *bytes, dn_error *err)
{
    dn_program *p = s->build(s->arg, m);
    int rc = p ? dn_plan_bytes(p, s->backend, s->rows_max, bytes, err)
               : dn_fail(err, DN_E_MEMORY, NULL, "out of memory while planning a program");
    dn_program_free(p);
    return rc;
}

/* The blocks that would save something, best first: *list is malloc'ed. */
static int list_candidates(const dn_search *s, candidate **list, int *n, dn_error *err)
{
    static const dn_marks none;
    dn_mark_cost cost[DN_MARKS_MAX];
    dn_program *p = s->build(s->arg, &none);
    *list = malloc(sizeof **list * DN_MARKS_MAX);
    int rc = !p || !*list || dn_program_mark_costs(p, cost) ? DN_E_MEMORY : 0;
    if (rc)
        dn_fail(err, rc, NULL, "out of memory while planning a program");
    for (int i = 0; !rc && i < p->n_marks; i++)
        if (cost[i].bytes)
            (*list)[(*n)++] = (candidate){ i, cost[i] };
    qsort(*list, (size_t)*n, sizeof **list, by_gain);
    dn_program_free(p);
    return rc;
}

/* Choose one more until it fits. Without a fit *bytes is the smallest that was met. */
static int grow(const dn_search *s, const candidate *list, int n, dn_marks *m, size_t *bytes, dn_error *err)
{
    dn_marks smallest = *m;
    for (int i = 0; i<n && * bytes> s->budget; i++) {
        size_t now = 0;
        dn_marks_set(m, list[i].mark, true);
        int rc = measure(s, m, &now, err);
        if (rc)
            return rc;
        if (now < *bytes) {
            *bytes = now;
            smallest = *m;
        }
    }
    *m = smallest;
    return 0;
}

/* Leave out, dearest first, whatever is not needed to fit. */
static int shrink(const dn_search *s, const candidate *list, int n, dn_marks *m, size_t *bytes, dn_error *err)
{
    for (int i = 0; i < n; i++) {
        size_t now = 0;
        dn_marks less = *m;
        if (!dn_marks_has(m, list[i].mark))
            continue;
        dn_marks_set(&less, list[i].mark, false);
        int rc = measure(s, &less, &now, err);
        if (rc)
            return rc;
        if (now <= s->budget) {
            *m = less;
            *bytes = now;
        }
    }
    return 0;
}

int dn_plan_search(const dn_search *s, dn_marks *chosen, size_t *bytes, dn_error *err)
{
    dn_marks m = { { 0 } };
    candidate *list = NULL;
    size_t size = 0;
    int n = 0, rc = measure(s, &m, &size, err);
    if (!rc && size > s->budget) {
        rc = list_candidates(s, &list, &n, err);
        rc = rc ? rc : grow(s, list, n, &m, &size, err);
        if (!rc && size <= s->budget) {
            qsort(list, (size_t)n, sizeof *list, by_flop);
            rc = shrink(s, list, n, &m, &size, err);
        }
    }
    free(list);
    if (rc)
        return rc;
    *chosen = m;
    *bytes = size;
    if (size > s->budget)
        return dn_fail(err, DN_E_MEMORY, NULL, "%d rows of this program need at least %zu bytes, there are %zu",
                       s->rows_max, size, s->budget);
    return 0;
}
