/* lower_reduce.c - sums to smaller shapes, losses, softmax, gradients of embedding tables: where a program's end turns
 * round, and where its gradients end. */
#include "lower.h"
#include "reduce.h"

/* ---- sums ---- */

typedef struct sum_attr {
    int64_t positions;
    int channels;
    bool over_rows;
} sum_attr;

static int run_sum(const dn_run *run, const dn_step *step)
{
    const sum_attr *a = step->attr;
    dn_sum_args args = { .x = dn_view(run, step->in[0], a->channels),
                         .out = dn_view(run, step->out[0], a->channels),
                         .e = { run->n, a->positions, a->channels },
                         .over_rows = a->over_rows };
    dn_sum_positions(run->pool, &args);
    return 0;
}

/* Over the positions, over the rows, or both. */
bool dn_lower_sum_to(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_val x = op->in[0], y = op->out[0];
    int64_t count = dn_shape_count(&s->p->value[x].shape);
    bool same = count == dn_shape_count(&s->p->value[y].shape), over_rows = s->p->value[y].kind == DN_BATCH;
    sum_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x), over_rows };
    if (s->p->value[x].kind != DN_ROW || (!same && !dn_value_is_channels(s->p, y, x)) || count > INT32_MAX)
        return false;
    if (same) /* over the rows alone: one long vector */
        a = (sum_attr){ 1, (int)count, over_rows };
    bool blocked = !same && s->blocked[s->root[x]] >= 0;
    dn_step step = { .fn = run_sum, .n_in = 1, .n_out = 1, .workspace = -1 };
    step.in[0] = blocked ? dn_lower_blocked(s, x) : dn_lower_dense(s, x);
    step.out[0] = dn_lower_new_dense(s, y);
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, i, i);
    return true;
}

/* ---- losses ---- */

typedef struct loss_attr {
    int64_t count;
    enum dn_loss kind;
    float delta;
} loss_attr;

static dn_loss_args loss_args(const dn_run *run, const dn_step *step)
{
    const loss_attr *a = step->attr;
    return (dn_loss_args){ .prediction = dn_view(run, step->in[0], 1),
                           .target = dn_view(run, step->in[1], 1),
                           .out = dn_view(run, step->out[0], 1),
                           .dloss = dn_view(run, step->in[2], 1),
                           .kind = a->kind,
                           .delta = a->delta,
                           .n = run->n,
                           .count = a->count };
}

static int run_loss(const dn_run *run, const dn_step *step)
{
    dn_loss_args args = loss_args(run, step);
    dn_loss_run(run->pool, &args);
    return 0;
}

static int run_loss_bwd(const dn_run *run, const dn_step *step)
{
    dn_loss_args args = loss_args(run, step);
    dn_loss_bwd_run(run->pool, &args);
    return 0;
}

/* A step over dense places alone. */
static void emit_dense(dn_lower_state *s, int i, dn_step_fn fn, const void *attr, size_t bytes)
{
    const dn_op *op = &s->p->op[i];
    dn_step step = { .fn = fn, .n_in = op->n_in, .n_out = op->n_out, .workspace = -1 };
    for (int j = 0; j < DN_IN_MAX + 2; j++)
        step.in[j] = j < op->n_in && op->in[j] != DN_NONE ? dn_lower_dense(s, op->in[j]) : -1;
    for (int j = 0; j < op->n_out; j++)
        step.out[j] = op->out[j] == DN_NONE ? -1 : dn_lower_new_dense(s, op->out[j]);
    step.attr = dn_lower_attr(s, attr, bytes);
    dn_lower_step(s, step, i, i);
}

static bool all_rows(const dn_program *p, const dn_op *op)
{
    for (int j = 0; j < op->n_in; j++)
        if (op->in[j] == DN_NONE || p->value[op->in[j]].kind != DN_ROW)
            return false;
    return true;
}

static bool lower_loss(dn_lower_state *s, int i, dn_step_fn fn)
{
    const dn_op *op = &s->p->op[i];
    loss_attr a = { dn_shape_count(&s->p->value[op->in[0]].shape), op->attr.loss.kind, (float)op->attr.loss.delta };
    if (!all_rows(s->p, op))
        return false;
    emit_dense(s, i, fn, &a, sizeof a);
    return true;
}

bool dn_lower_loss(dn_lower_state *s, int i) { return lower_loss(s, i, run_loss); }
bool dn_lower_loss_bwd(dn_lower_state *s, int i) { return lower_loss(s, i, run_loss_bwd); }

/* ---- softmax ---- */

static int run_softmax(const dn_run *run, const dn_step *step)
{
    const sum_attr *a = step->attr;
    dn_softmax_run(run->pool, dn_view(run, step->out[0], a->channels), dn_view(run, step->in[0], a->channels),
                   (dn_extent){ run->n, a->positions, a->channels });
    return 0;
}

static int run_softmax_bwd(const dn_run *run, const dn_step *step)
{
    const sum_attr *a = step->attr;
    dn_softmax_bwd_run(run->pool, dn_view(run, step->out[0], a->channels), dn_view(run, step->in[0], a->channels),
                       dn_view(run, step->in[1], a->channels), (dn_extent){ run->n, a->positions, a->channels });
    return 0;
}

bool dn_lower_softmax(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    sum_attr a = { dn_value_positions(s->p, op->in[0]), dn_value_channels(s->p, op->in[0]), false };
    if (!all_rows(s->p, op))
        return false;
    emit_dense(s, i, op->kind == DN_OP_SOFTMAX ? run_softmax : run_softmax_bwd, &a, sizeof a);
    return true;
}

/* ---- embeddings ---- */

typedef struct embed_attr {
    int64_t entries;
    int channels;
} embed_attr;

static int run_embed_dw(const dn_run *run, const dn_step *step)
{
    const embed_attr *a = step->attr;
    dn_embed_dw_args args = { .ids = dn_view(run, step->in[0], 2),
                              .w = dn_view(run, step->in[1], 1),
                              .dy = dn_view(run, step->in[2], a->channels),
                              .out = dn_place_at(run, step->out[0], 0),
                              .n = run->n,
                              .channels = a->channels,
                              .entries = a->entries };
    return dn_embed_dw_run(run->pool, &args) ? 0 : DN_E_RANGE;
}

bool dn_lower_embed_dw(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    const dn_shape *table = &s->p->value[op->out[0]].shape;
    embed_attr a = { table->dim[0], (int)table->dim[1] };
    if (!all_rows(s->p, op))
        return false;
    emit_dense(s, i, run_embed_dw, &a, sizeof a);
    return true;
}
