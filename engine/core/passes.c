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

/* ---- running forward ops again ---- */

/* Forward ops belong to groups. A group runs again, as far as it must, right before the first backward op that reads
 * one of its values; what a group reads of others is kept. */
typedef struct {
    dn_program *p;
    dn_rewrite r;
    int *group;        /* [n_ops], -1: none */
    int *first, *last; /* [n_ops] of a group's number: its ops */
    char *fixed;       /* [n_values] is kept whoever reads it */
    char *late;        /* [n_values] the backward part reads it, in the end */
    char *again;       /* [n_ops] runs again */
    dn_val *copy;      /* [n_values] what a backward op reads instead, or DN_NONE */
} rerun;

static int group_of(const rerun *c, dn_val v) { return is_forward(c->p, v) ? c->group[c->p->value[v].op] : -1; }

/* Can it be forgotten and made again? No op runs again for its second output alone: a norm's statistics and indices of
 * codes are small. */
static bool is_inner(const rerun *c, dn_val v)
{
    return group_of(c, v) >= 0 && !c->fixed[v] && v == c->p->op[c->p->value[v].op].out[0];
}

/* What other forward ops read of a group is kept, else one group would need another. */
static void fix_outputs(rerun *c)
{
    for (int i = 0; i < c->p->first_backward; i++)
        for (int j = 0; j < c->p->op[i].n_in; j++) {
            dn_val v = c->p->op[i].in[j];
            if (is_forward(c->p, v) && c->group[i] != group_of(c, v))
                c->fixed[v] = 1;
        }
}

static void find_late(rerun *c)
{
    const dn_program *p = c->p;
    for (int v = 0; v < p->n_values; v++)
        c->fixed[v] |= p->value[v].output;
    for (int i = p->first_backward; i < p->n_ops; i++)
        for (int j = 0; j < p->op[i].n_in; j++)
            if (is_forward(p, p->op[i].in[j]))
                c->late[p->op[i].in[j]] = 1;
}

/* The ops to run again, and each group's first and last. */
static void find_again(rerun *c)
{
    const dn_program *p = c->p;
    for (int i = p->first_backward - 1; i >= 0; i--) {
        const dn_op *op = &p->op[i];
        dn_val made = op->out[0];
        if (made == DN_NONE || !c->late[made] || !is_inner(c, made))
            continue;
        int g = c->group[i];
        c->again[i] = 1;
        c->first[g] = i;
        c->last[g] = c->last[g] > i ? c->last[g] : i;
        for (int j = 0; j < op->n_in; j++)
            if (op->in[j] != DN_NONE)
                c->late[op->in[j]] = 1;
    }
}

static void emit_group(rerun *c, int group)
{
    dn_program *p = c->p;
    for (int i = c->first[group]; i <= c->last[group] && !p->error.code; i++) {
        if (!c->again[i] || c->group[i] != group)
            continue;
        dn_op op = p->op[i];
        op.mark = -1;
        for (int j = 0; j < op.n_in; j++)
            if (op.in[j] != DN_NONE && c->copy[op.in[j]] != DN_NONE)
                op.in[j] = c->copy[op.in[j]];
        for (int j = 0; j < op.n_out; j++) {
            if (op.out[j] == DN_NONE)
                continue;
            dn_value made = p->value[op.out[j]];
            dn_val copy = dn_value_add(p, made.shape, made.kind, made.dtype, -1);
            if (copy == DN_NONE)
                return;
            c->copy[op.out[j]] = copy;
            op.out[j] = copy;
        }
        dn_rewrite_add(&c->r, &op);
    }
}

static void rewire(rerun *c, dn_op op)
{
    for (int j = 0; j < op.n_in && !c->p->error.code; j++) {
        dn_val v = op.in[j];
        if (!is_forward(c->p, v) || !c->again[c->p->value[v].op] || c->fixed[v])
            continue;
        if (c->copy[v] == DN_NONE)
            emit_group(c, c->group[c->p->value[v].op]);
        op.in[j] = c->copy[v];
    }
    dn_rewrite_add(&c->r, &op);
}

static void write_rerun(rerun *c)
{
    dn_program *p = c->p;
    int n_ops = p->n_ops, first_backward = p->first_backward;
    for (int i = 0; i < n_ops; i++)
        if (i < first_backward)
            dn_rewrite_add(&c->r, &p->op[i]);
        else
            rewire(c, p->op[i]);
    dn_rewrite_finish(&c->r, first_backward);
}

static rerun rerun_new(dn_program *p)
{
    rerun c = { .p = p, .r = { .p = p } };
    c.group = table(p, p->n_ops, sizeof *c.group);
    c.first = table(p, p->n_ops, sizeof *c.first);
    c.last = table(p, p->n_ops, sizeof *c.last);
    c.fixed = table(p, p->n_values, 1);
    c.late = table(p, p->n_values, 1);
    c.again = table(p, p->n_ops, 1);
    c.copy = table(p, p->n_values, sizeof *c.copy);
    for (int i = 0; i < p->n_ops && !p->error.code; i++)
        c.group[i] = -1;
    for (int v = 0; v < p->n_values && !p->error.code; v++)
        c.copy[v] = DN_NONE;
    return c;
}

static void rerun_free(rerun *c)
{
    free(c->group);
    free(c->first);
    free(c->last);
    free(c->fixed);
    free(c->late);
    free(c->again);
    free(c->copy);
}

/* ---- marked blocks ---- */

/* Each chosen block is a group: its number is that of its first op. */
static void group_blocks(rerun *c, const dn_marks *chosen)
{
    int leader[DN_MARKS_MAX];
    for (int i = 0; i < DN_MARKS_MAX; i++)
        leader[i] = -1;
    for (int i = 0; i < c->p->first_backward; i++) {
        int mark = c->p->op[i].mark;
        if (mark < 0 || !dn_marks_has(chosen, mark))
            continue;
        leader[mark] = leader[mark] < 0 ? i : leader[mark];
        c->group[i] = leader[mark];
    }
    fix_outputs(c);
}

void dn_program_recompute(dn_program *p, const dn_marks *chosen)
{
    rerun c = rerun_new(p);
    if (!p->error.code && p->first_backward) {
        group_blocks(&c, chosen);
        find_late(&c);
        find_again(&c);
        write_rerun(&c);
    }
    rerun_free(&c);
}

int dn_program_mark_costs(dn_program *p, dn_mark_cost *cost)
{
    static const dn_marks all = { { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX } };
    rerun c = rerun_new(p);
    memset(cost, 0, sizeof *cost * (size_t)p->n_marks);
    if (!p->error.code) {
        group_blocks(&c, &all);
        find_late(&c);
        for (int v = 0; v < p->n_values; v++)
            if (c.late[v] && is_inner(&c, v))
                cost[p->op[p->value[v].op].mark].bytes +=
                    dn_shape_count(&p->value[v].shape) * (int64_t)dn_dtype_size(p->value[v].dtype);
        find_again(&c);
        for (int i = 0; i < p->first_backward; i++)
            if (c.again[i])
                cost[p->op[i].mark].flop += dn_op_flop(p, &p->op[i]);
    }
    rerun_free(&c);
    return p->error.code;
}

/* ---- what a norm or a function makes of one map ---- */

enum { MAP_MIN = 256 }; /* elements of one row that are worth two casts */

static bool is_map(const dn_program *p, dn_val v)
{
    if (v == DN_NONE)
        return false;
    const dn_value *value = &p->value[v];
    int64_t n = dn_shape_count(&value->shape),
            channels = value->shape.rank ? value->shape.dim[value->shape.rank - 1] : 1;
    return value->kind == DN_ROW && value->dtype == DN_F32 && n >= MAP_MIN && n > channels;
}

/* Does the op begin a chain of cheap ops whose only map, its first input, is worth keeping instead of what they make?
 * The backward part reads that of a norm and of a function anyway; that of an upsampling is smaller. */
static bool begins_chain(const dn_op *op)
{
    return op->kind == DN_OP_NORM || (op->kind == DN_OP_UNARY && op->attr.unary.kind != DN_AFFINE) ||
           (op->kind == DN_OP_COPY && op->attr.copy.hint == DN_COPY_UPSAMPLE2);
}

static bool continues_chain(const dn_op *op)
{
    return begins_chain(op) || op->kind == DN_OP_UNARY || op->kind == DN_OP_BINARY || op->kind == DN_OP_DROPOUT ||
           (op->kind == DN_OP_COPY && op->attr.copy.hint == DN_COPY_RESHAPE);
}

/* Norm, modulation, activation, dropout, reshape: a chain is a group. */
static void group_chains(rerun *c)
{
    const dn_program *p = c->p;
    for (int i = 0; i < p->first_backward; i++) {
        const dn_op *op = &p->op[i];
        dn_val map = DN_NONE;
        int maps = 0;
        for (int j = 0; j < op->n_in; j++)
            if (is_map(p, op->in[j])) {
                map = op->in[j];
                maps++;
            }
        if (maps != 1 || !is_map(p, op->out[0]))
            continue;
        int before = continues_chain(op) ? group_of(c, map) : -1;
        c->group[i] = before >= 0 ? before : begins_chain(op) ? i : -1;
    }
}

static void rerun_chains(dn_program *p)
{
    rerun c = rerun_new(p);
    if (!p->error.code) {
        group_chains(&c);
        find_late(&c);
        find_again(&c);
        write_rerun(&c);
    }
    rerun_free(&c);
}

/* ---- 16-bit storage ---- */

/* Backward ops so near to each other read one widened copy. */
enum { NEAR = 4 };

typedef struct {
    dn_program *p;
    dn_rewrite r;
    enum dn_dtype dtype;
    int *last;             /* [n_values] of those that are stored: the last forward op that touches it, else -1 */
    int *seen;             /* [n_values] the last backward op that reads it */
    dn_val *narrow, *wide; /* [n_values] */
} store16;

static bool may_store(const dn_program *p, dn_val v)
{
    return is_forward(p, v) && is_map(p, v) && !p->value[v].output && p->op[p->value[v].op].kind != DN_OP_CAST &&
           v == p->op[p->value[v].op].out[0];
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
            s->narrow[v] = cast(s, v, s->dtype, &op, s->p->op[s->p->value[v].op].mark);
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
    if (t != DN_F16 && t != DN_BF16)
        dn_program_fail(p, DN_E_INTERNAL, "16-bit storage in a type that is none");
    if (p->error.code || !p->first_backward)
        return;
    rerun_chains(p);
    int n = p->n_values;
    store16 s = { .p = p, .r = { .p = p }, .dtype = t };
    s.last = table(p, n, sizeof *s.last);
    s.seen = table(p, n, sizeof *s.seen);
    s.narrow = table(p, n, sizeof *s.narrow);
    s.wide = table(p, n, sizeof *s.wide);
    if (!p->error.code)
        rewrite16(&s);
    free(s.last);
    free(s.seen);
    free(s.narrow);
    free(s.wide);
}
