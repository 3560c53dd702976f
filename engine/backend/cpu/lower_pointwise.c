/* lower_pointwise.c - dropout and casts, which leave a value in the layout that it has. */
#include "lower.h"
#include "pointwise.h"

typedef struct dropout_attr {
    int64_t positions;
    int channels;
    double p;
    uint32_t purpose;
} dropout_attr;

static int run_dropout(const dn_run *run, const dn_step *step)
{
    const dropout_attr *a = step->attr;
    dn_dropout_args args = { .x = dn_view(run, step->in[0], a->channels),
                             .y = dn_view(run, step->out[0], a->channels),
                             .rng = dn_view(run, step->in[1], 4),
                             .e = { run->n, a->positions, a->channels },
                             .p = a->p,
                             .purpose = a->purpose };
    dn_dropout_run(run->pool, &args);
    return 0;
}

bool dn_lower_dropout(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_val x = op->in[0];
    dropout_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x), op->attr.random.p,
                       (uint32_t)op->attr.random.purpose << 24 | (uint32_t)op->attr.random.op_id };
    if (s->p->value[x].kind != DN_ROW || s->p->value[op->in[1]].kind != DN_ROW)
        return false;
    bool blocked = s->blocked[s->root[x]] >= 0 && a.channels % 4 == 0;
    dn_step step = { .fn = run_dropout, .n_in = 2, .n_out = 1, .workspace = -1 };
    step.in[0] = blocked ? dn_lower_blocked(s, x) : dn_lower_dense(s, x);
    step.in[1] = dn_lower_dense(s, op->in[1]);
    step.out[0] = blocked ? dn_lower_new_blocked(s, op->out[0]) : dn_lower_new_dense(s, op->out[0]);
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, i, i);
    return true;
}

typedef struct cast_attr {
    int64_t count;
    int runs;
    enum dn_dtype from, to;
    bool one_copy;
} cast_attr;

static int run_cast(const dn_run *run, const dn_step *step)
{
    const cast_attr *a = step->attr;
    dn_cast_args args = { .x = dn_view(run, step->in[0], 1),
                          .y = dn_view(run, step->out[0], 1),
                          .from = a->from,
                          .to = a->to,
                          .n = a->one_copy ? 1 : run->n,
                          .runs = a->runs,
                          .count = a->count };
    dn_cast_run(run->pool, &args);
    return 0;
}

static bool is_narrow(enum dn_dtype t) { return t == DN_BF16 || (t == DN_F16 && dn_cpu_has_f16c()); }

/* Nothing but a cast can read a blocked value of 16 bits. */
static bool for_casts_alone(const dn_lower_state *s, dn_val v)
{
    bool alone = !s->p->value[v].output;
    for (int i = s->p->value[v].op + 1; alone && i < s->p->n_ops; i++)
        for (int j = 0; j < s->p->op[i].n_in; j++)
            alone &= s->p->op[i].in[j] != v || s->p->op[i].kind == DN_OP_CAST;
    return alone;
}

/* A blocked value stays blocked: padded lanes are zero in either type. */
bool dn_lower_cast(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_val x = op->in[0], y = op->out[0];
    enum dn_dtype from = s->p->value[x].dtype, to = s->p->value[y].dtype;
    if (!((from == DN_F32 && is_narrow(to)) || (to == DN_F32 && is_narrow(from))))
        return false;
    bool blocked = s->blocked[s->root[x]] >= 0 && (to == DN_F32 || for_casts_alone(s, y));
    cast_attr a = { dn_shape_count(&s->p->value[x].shape), 1, from, to, s->p->value[x].kind != DN_ROW };
    if (blocked) {
        a.count = dn_value_positions(s->p, x) * DN_LANES;
        a.runs = dn_blocks_of(dn_value_channels(s->p, x));
    }
    dn_step step = { .fn = run_cast, .n_in = 1, .n_out = 1, .workspace = -1 };
    step.in[0] = blocked ? dn_lower_blocked(s, x) : dn_lower_dense(s, x);
    step.out[0] = blocked ? dn_lower_new_blocked(s, y) : dn_lower_new_dense(s, y);
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, i, i);
    return true;
}
