/* passes.c - rewrites of a differentiated program that make its backward part keep less: recomputing, 16-bit storage.
 *
 * Both insert ops and turn the inputs of backward ops to new values; forward ops are never touched, so nothing that the
 * forward part computes changes. */
#include "program_internal.h"
#include <stdlib.h>
#include <string.h>

static void *table(dn_program *p, int n, size_t size)
{
    void *t = p->error.code ? NULL : calloc((size_t)n + 1, size);
    if (!t)
        dn_program_fail(p, DN_E_MEMORY, "out of memory");
    return t;
}

/* Is it made by the forward part? */
static bool is_forward(const dn_program *p, dn_val v)
{
    return v != DN_NONE && p->value[v].op >= 0 && p->value[v].op < p->first_backward;
}

static int mark_of(const dn_program *p, dn_val v) { return is_forward(p, v) ? p->op[p->value[v].op].mark : -1; }

/* ---- which values ---- */

enum { READ_OUTSIDE = 1, READ_LATE = 2 };

/* How each value is read: by forward ops outside the marked block that makes it, by backward ops. use has n_values bytes. */
static void find_uses(const dn_program *p, char *use)
{
    for (int v = 0; v < p->n_values; v++)
        use[v] = p->value[v].output ? READ_OUTSIDE : 0;
    for (int i = 0; i < p->n_ops; i++) {
        const dn_op *op = &p->op[i];
        for (int j = 0; j < op->n_in; j++)
            if (is_forward(p, op->in[j]) && i >= p->first_backward)
                use[op->in[j]] |= READ_LATE;
            else if (is_forward(p, op->in[j]) && op->mark != mark_of(p, op->in[j]))
                use[op->in[j]] |= READ_OUTSIDE;
    }
}

/* Can it be forgotten and made again within the block that makes it? No op runs again for its second output alone: a norm's
 * statistics and indices of codes are small. */
static bool is_inner(const dn_program *p, const char *use, dn_val v, const dn_marks *chosen)
{
    int mark = v == DN_NONE ? -1 : mark_of(p, v);
    return mark >= 0 && dn_marks_has(chosen, mark) && !(use[v] & READ_OUTSIDE) && v == p->op[p->value[v].op].out[0];
}

/* The ops to run again: again[n_ops]. Inner values that those read become READ_LATE too. */
static void find_again(const dn_program *p, const dn_marks *chosen, char *use, char *again)
{
    for (int i = p->first_backward - 1; i >= 0; i--) {
        const dn_op *op = &p->op[i];
        for (int j = 0; j < op->n_out; j++)
            again[i] |= op->out[j] != DN_NONE && (use[op->out[j]] & READ_LATE) && is_inner(p, use, op->out[j], chosen);
        for (int j = 0; j < op->n_in && again[i]; j++)
            if (is_inner(p, use, op->in[j], chosen))
                use[op->in[j]] |= READ_LATE;
    }
}

int dn_program_mark_costs(const dn_program *p, dn_mark_cost *cost)
{
    static const dn_marks all = { { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX } };
    char *use = calloc((size_t)p->n_values + 1, 1), *again = calloc((size_t)p->n_ops + 1, 1);
    int rc = use && again ? 0 : DN_E_MEMORY;
    memset(cost, 0, sizeof *cost * (size_t)p->n_marks);
    if (!rc) {
        find_uses(p, use);
        for (int v = 0; v < p->n_values; v++)
            if ((use[v] & READ_LATE) && is_inner(p, use, v, &all))
                cost[mark_of(p, v)].bytes +=
                    dn_shape_count(&p->value[v].shape) * (int64_t)dn_dtype_size(p->value[v].dtype);
        find_again(p, &all, use, again);
        for (int i = 0; i < p->first_backward; i++)
            if (again[i])
                cost[p->op[i].mark].flop += dn_op_flop(p, &p->op[i]);
    }
    free(use);
    free(again);
    return rc;
}

/* ---- recomputing ---- */

typedef struct {
    dn_program *p;
    dn_rewrite r;
    char *use, *again;
    dn_val *copy; /* [n_values] what a backward op reads instead, or DN_NONE */
} recompute;

/* Append the ops of a marked block that run again. */
static void emit_block(recompute *c, int mark)
{
    dn_program *p = c->p;
    for (int i = 0; i < p->first_backward && !p->error.code; i++) {
        if (!c->again[i] || p->op[i].mark != mark)
            continue;
        dn_op op = p->op[i];
        op.mark = -1;
        for (int j = 0; j < op.n_in; j++)
            if (op.in[j] != DN_NONE && c->copy[op.in[j]] != DN_NONE)
                op.in[j] = c->copy[op.in[j]];
        for (int j = 0; j < op.n_out; j++)
            if (op.out[j] != DN_NONE) {
                dn_value made = p->value[op.out[j]];
                if ((op.out[j] = dn_value_add(p, made.shape, made.kind, made.dtype, -1)) != DN_NONE)
                    p->value[op.out[j]].shared = made.shared;
            }
        for (int j = 0; j < op.n_out; j++)
            if (p->op[i].out[j] != DN_NONE)
                c->copy[p->op[i].out[j]] = op.out[j];
        dn_rewrite_add(&c->r, &op);
    }
}

static void rewire(recompute *c, dn_op op)
{
    for (int j = 0; j < op.n_in && !c->p->error.code; j++) {
        dn_val v = op.in[j];
        if (!is_forward(c->p, v) || !c->again[c->p->value[v].op] || (c->use[v] & READ_OUTSIDE))
            continue;
        if (c->copy[v] == DN_NONE)
            emit_block(c, mark_of(c->p, v));
        op.in[j] = c->copy[v];
    }
    dn_rewrite_add(&c->r, &op);
}

void dn_program_recompute(dn_program *p, const dn_marks *chosen)
{
    int n_values = p->n_values, first_backward = p->first_backward;
    recompute c = { p, { .p = p }, table(p, n_values, 1), table(p, p->n_ops, 1), table(p, n_values, sizeof(dn_val)) };
    if (!p->error.code && first_backward) {
        for (int v = 0; v < n_values; v++)
            c.copy[v] = DN_NONE;
        find_uses(p, c.use);
        find_again(p, chosen, c.use, c.again);
        for (int i = 0; i < p->n_ops; i++)
            if (i < first_backward)
                dn_rewrite_add(&c.r, &p->op[i]);
            else
                rewire(&c, p->op[i]);
        dn_rewrite_finish(&c.r, first_backward);
    }
    free(c.use);
    free(c.again);
    free(c.copy);
}

/* ---- 16-bit storage ---- */

/* Elements of one row that are worth two casts. Backward ops so near to each other read one widened copy. */
enum { STORE16_MIN = 256, NEAR = 4 };

typedef struct {
    dn_program *p;
    dn_rewrite r;
    enum dn_dtype dtype;
    int *last;  /* [n_values] of those that are stored: the last forward op that touches it, else -1 */
    int *seen;  /* [n_values] the last backward op that reads it */
    dn_val *narrow, *wide; /* [n_values] */
} store16;

static bool may_store(const dn_program *p, dn_val v)
{
    const dn_value *value = &p->value[v];
    int64_t n = dn_shape_count(&value->shape), channels = value->shape.rank ? value->shape.dim[value->shape.rank - 1] : 1;
    return is_forward(p, v) && value->kind == DN_ROW && value->dtype == DN_F32 && !value->output && n >= STORE16_MIN &&
           n > channels && p->op[value->op].kind != DN_OP_CAST && v != p->op[value->op].out[1];
}

/* The gradient of a loss starts from a difference: its operands stay exact. */
static bool is_loss(enum dn_op_kind kind) { return kind == DN_OP_LOSS_BWD || kind == DN_OP_CROSS_ENTROPY_BWD; }

static void choose_stored(store16 *s)
{
    const dn_program *p = s->p;
    for (int v = 0; v < p->n_values; v++)
        s->last[v] = s->seen[v] = s->narrow[v] = s->wide[v] = -1;
    for (int i = p->first_backward; i < p->n_ops; i++)
        for (int j = 0; j < p->op[i].n_in; j++)
            if (p->op[i].in[j] != DN_NONE && may_store(p, p->op[i].in[j]))
                s->last[p->op[i].in[j]] = p->value[p->op[i].in[j]].op;
    for (int i = 0; i < p->n_ops; i++)
        for (int j = 0; j < p->op[i].n_in; j++) {
            dn_val v = p->op[i].in[j];
            if (v != DN_NONE && s->last[v] >= 0)
                s->last[v] = is_loss(p->op[i].kind) ? -1 : i < p->first_backward ? i : s->last[v];
        }
}

static dn_val cast(store16 *s, dn_val v, enum dn_dtype t, const dn_op *near, int mark)
{
    dn_value from = s->p->value[v];
    dn_op op = { .kind = DN_OP_CAST, .n_in = 1, .n_out = 1, .scope = near->scope, .mark = mark };
    for (int j = 0; j < DN_IN_MAX; j++)
        op.in[j] = j ? DN_NONE : v;
    for (int j = 0; j < DN_OUT_MAX; j++)
        op.out[j] = j ? DN_NONE : dn_value_add(s->p, from.shape, from.kind, t, -1);
    dn_rewrite_add(&s->r, &op);
    return op.out[0];
}

/* After forward op i: narrow what no forward op touches any more. */
static void narrow_after(store16 *s, int i)
{
    const dn_op op = s->p->op[i];
    for (int j = 0; j < op.n_in + op.n_out; j++) {
        dn_val v = j < op.n_in ? op.in[j] : op.out[j - op.n_in];
        if (v != DN_NONE && s->last[v] == i && s->narrow[v] == DN_NONE)
            s->narrow[v] = cast(s, v, s->dtype, &op, mark_of(s->p, v));
    }
}

static void widen_before(store16 *s, int i)
{
    dn_op op = s->p->op[i];
    for (int j = 0; j < op.n_in; j++) {
        dn_val v = op.in[j];
        if (v == DN_NONE || s->last[v] < 0)
            continue;
        if (s->wide[v] == DN_NONE || i - s->seen[v] > NEAR)
            s->wide[v] = cast(s, s->narrow[v], DN_F32, &op, -1);
        s->seen[v] = i;
        op.in[j] = s->wide[v];
    }
    dn_rewrite_add(&s->r, &op);
}

static void rewrite16(store16 *s)
{
    dn_program *p = s->p;
    int first_backward = 0;
    choose_stored(s);
    for (int i = 0; i < p->n_ops && !p->error.code; i++)
        if (i < p->first_backward) {
            const dn_op op = p->op[i];
            dn_rewrite_add(&s->r, &op);
            narrow_after(s, i);
            first_backward = s->r.n;
        } else {
            widen_before(s, i);
        }
    dn_rewrite_finish(&s->r, first_backward);
}

void dn_program_store16(dn_program *p, enum dn_dtype t)
{
    int n = p->n_values;
    if (t != DN_F16 && t != DN_BF16)
        dn_program_fail(p, DN_E_INTERNAL, "16-bit storage in a type that is none");
    store16 s = { .p = p, .r = { .p = p }, .dtype = t };
    s.last = table(p, n, sizeof *s.last);
    s.seen = table(p, n, sizeof *s.seen);
    s.narrow = table(p, n, sizeof *s.narrow);
    s.wide = table(p, n, sizeof *s.wide);
    if (!p->error.code && p->first_backward)
        rewrite16(&s);
    free(s.last);
    free(s.seen);
    free(s.narrow);
    free(s.wide);
}
