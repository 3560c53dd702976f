/* lower_norm_bwd.c - gradients of norms, alone and through the SiLU (and scale and shift) that follows them.
 *
 * In a training program y = silu(norm(x)) has the norm's result read twice: by SiLU and by SiLU's gradient. Where these
 * are the only readers, the forward step writes y and the statistics, the backward step starts from dy and x, and the
 * normalised value exists nowhere. (If the forward part is computed again for the gradients' sake, SiLU itself may be
 * missing: then the step only makes the statistics.) All is rounded as in single steps. The forward step decides
 * (dn_norm_chain_take); the backward step follows. */
#include "lower.h"
#include "norm_bwd.h"

enum { READERS_MAX = 8 };

/* The ops that read v; -1 if they are too many, or v is an output. */
static int readers_of(const dn_lower_state *s, dn_val v, int ops[READERS_MAX])
{
    int n = 0;
    if (v == DN_NONE || s->p->value[v].output || s->readers[v] > READERS_MAX)
        return -1;
    for (int i = s->p->value[v].op + 1; i < s->p->n_ops && n < s->readers[v]; i++)
        for (int j = 0; j < s->p->op[i].n_in; j++)
            if (s->p->op[i].in[j] == v) {
                ops[n++] = i;
                break;
            }
    return n == s->readers[v] ? n : -1;
}

static bool is_silu(const dn_op *op, enum dn_op_kind kind)
{
    return op->kind == kind && op->attr.unary.kind == DN_SILU;
}

static bool is_binary(const dn_op *op, enum dn_binary kind)
{
    return op->kind == DN_OP_BINARY && op->attr.binary.kind == kind;
}

static dn_val other_operand(const dn_op *op, dn_val v) { return op->in[0] == v ? op->in[1] : op->in[0]; }

/* v is read by SiLU's gradient, and by SiLU if that is wanted, alone. */
static bool find_silu(const dn_lower_state *s, dn_norm_chain *c, dn_val v)
{
    int ops[READERS_MAX], n = readers_of(s, v, ops);
    if (n != 1 && (n != 2 || !is_silu(&s->p->op[ops[0]], DN_OP_UNARY)))
        return false;
    c->silu = n == 2 ? ops[0] : -1;
    c->silu_bwd = ops[n - 1];
    return is_silu(&s->p->op[c->silu_bwd], DN_OP_UNARY_BWD) && s->p->op[c->silu_bwd].in[0] == v &&
           s->p->op[c->silu_bwd].in[1] != v;
}

static bool is_norm_bwd(const dn_op *op) { return op->kind == DN_OP_NORM_DX || op->kind == DN_OP_NORM_DW; }

/* Every reader of the norm's gradient dn is the norm's own gradient, by the same x. The statistics may be those of a
 * norm that has been recomputed. */
static bool find_norm_bwd(const dn_lower_state *s, dn_norm_chain *c, dn_val dn)
{
    int ops[READERS_MAX], n = readers_of(s, dn, ops);
    for (int i = 0; i < n; i++) {
        const dn_op *op = &s->p->op[ops[i]], *first = &s->p->op[ops[0]];
        if (!is_norm_bwd(op) || op->in[0] != s->p->op[c->norm].in[0] || op->in[1] != first->in[1] || op->in[2] != dn ||
            (op->kind == DN_OP_NORM_DX && op->in[3] != s->p->op[c->norm].in[1]))
            return false;
        *(op->kind == DN_OP_NORM_DX ? &c->dx : &c->dw) = ops[i];
    }
    return n > 0 && (n == 1 || (c->dx >= 0 && c->dw >= 0));
}

/* The one reader of v is a sum over the positions of each row. */
static bool find_row_sum(const dn_lower_state *s, dn_val v, int *sum)
{
    int ops[READERS_MAX];
    if (readers_of(s, v, ops) != 1)
        return false;
    *sum = ops[0];
    return true;
}

static bool is_row_sum(const dn_lower_state *s, int i, dn_val of)
{
    const dn_op *op = &s->p->op[i];
    return op->kind == DN_OP_SUM_TO && s->p->value[op->out[0]].kind == DN_ROW &&
           dn_value_is_channels(s->p, op->out[0], of);
}

/* y = norm * scale + shift; g, the gradient of y, is read by the sum that is shift's gradient, by the product with the
 * scale that goes on to the norm, and by the product with the norm's result whose sum is the scale's. */
static bool find_modulated_bwd(const dn_lower_state *s, dn_norm_chain *c, dn_val g)
{
    int ops[READERS_MAX], n = readers_of(s, g, ops);
    dn_val norm = s->p->op[c->norm].out[0];
    for (int i = 0; i < n; i++) {
        const dn_op *op = &s->p->op[ops[i]];
        if (is_row_sum(s, ops[i], norm) && c->shift_sum < 0)
            c->shift_sum = ops[i];
        else if (is_binary(op, DN_MUL) && op->in[0] == g && op->in[1] == c->scale && c->by_scale < 0)
            c->by_scale = ops[i];
        else if (is_binary(op, DN_MUL) && op->in[0] == g && op->in[1] == norm && c->by_norm < 0)
            c->by_norm = ops[i];
        else
            return false;
    }
    if (c->by_norm >= 0 &&
        (!find_row_sum(s, s->p->op[c->by_norm].out[0], &c->scale_sum) || !is_row_sum(s, c->scale_sum, norm)))
        return false;
    return c->by_scale >= 0 && find_norm_bwd(s, c, s->p->op[c->by_scale].out[0]);
}

static bool find_modulated(const dn_lower_state *s, dn_norm_chain *c)
{
    int ops[READERS_MAX], add[READERS_MAX];
    const dn_op *op = s->p->op;
    dn_val norm = op[c->norm].out[0];
    int n = readers_of(s, norm, ops);
    if (n < 1 || n > 2 || !is_binary(&op[ops[0]], DN_MUL))
        return false;
    dn_val scaled = op[ops[0]].out[0];
    c->scale = other_operand(&op[ops[0]], norm);
    if (readers_of(s, scaled, add) != 1 || !is_binary(&op[add[0]], DN_ADD))
        return false;
    c->mul = ops[0];
    c->add = add[0];
    c->shift = other_operand(&op[c->add], scaled);
    if (!dn_value_is_channels(s->p, c->scale, norm) || !dn_value_is_channels(s->p, c->shift, norm) ||
        !find_silu(s, c, op[c->add].out[0]) || !find_modulated_bwd(s, c, op[c->silu_bwd].out[0]))
        return false;
    return n == 1 ? c->by_norm < 0 : c->by_norm == ops[1];
}

static dn_norm_chain chain_new(int norm)
{
    return (dn_norm_chain){ .norm = norm,
                            .silu = -1,
                            .silu_bwd = -1,
                            .mul = -1,
                            .add = -1,
                            .scale = DN_NONE,
                            .shift = DN_NONE,
                            .dx = -1,
                            .dw = -1,
                            .by_scale = -1,
                            .by_norm = -1,
                            .shift_sum = -1,
                            .scale_sum = -1 };
}

/* From the program alone, so that both directions find the same. */
static bool find_chain(const dn_lower_state *s, int norm, dn_norm_chain *c)
{
    dn_val y = s->p->op[norm].out[0];
    if (s->p->op[norm].attr.norm.per_position)
        return false;
    *c = chain_new(norm);
    if (find_silu(s, c, y))
        return find_norm_bwd(s, c, s->p->op[c->silu_bwd].out[0]);
    return find_modulated(s, c);
}

bool dn_norm_chain_take(dn_lower_state *s, int norm, dn_norm_chain *c)
{
    if (!find_chain(s, norm, c) || (c->mul >= 0 && (!dn_lower_make(s, c->scale) || !dn_lower_make(s, c->shift))))
        return false;
    const int forward[] = { c->mul, c->add, c->silu };
    for (int i = 0; i < 3; i++)
        if (forward[i] >= 0)
            dn_lower_swallow(s, forward[i]);
    s->chained[c->silu_bwd] = norm + 1;
    return true;
}

/* ---- the backward step ---- */

enum { IN_X, IN_STATS, IN_DY, IN_GAMMA, IN_BETA, IN_SCALE, IN_SHIFT, IN_ADD, IN_FORWARD_STATS, N_IN };
enum { OUT_DX, OUT_DGAMMA, OUT_DBETA, OUT_DSCALE, OUT_DSHIFT, OUT_DX_SUMS, OUT_DX_SUM, N_OUT };

typedef struct norm_bwd_attr {
    int64_t positions;
    int channels, groups;
    bool silu;
} norm_bwd_attr;

static dn_row_vector vector(const dn_run *run, int place)
{
    if (place < 0)
        return (dn_row_vector){ 0 };
    return (dn_row_vector){ dn_place_at(run, place, 0), run->lowered->place[place].row_bytes };
}

static float *one_copy(const dn_run *run, int place) { return place < 0 ? NULL : dn_place_at(run, place, 0); }

static int run_group_norm_bwd(const dn_run *run, const dn_step *step)
{
    const norm_bwd_attr *a = step->attr;
    dn_group_norm_bwd_args args = {
        .x = dn_view(run, step->in[IN_X], a->channels),
        .dy = dn_view(run, step->in[IN_DY], a->channels),
        .dx = dn_view(run, step->out[OUT_DX], a->channels),
        .add = dn_view(run, step->in[IN_ADD], a->channels),
        .e = { run->n, a->positions, a->channels },
        .groups = a->groups,
        .silu = a->silu,
        .gamma = vector(run, step->in[IN_GAMMA]),
        .beta = vector(run, step->in[IN_BETA]),
        .scale = vector(run, step->in[IN_SCALE]),
        .shift = vector(run, step->in[IN_SHIFT]),
        .stats = dn_view(run, step->in[IN_STATS], 2),
        .forward_stats = dn_view(run, step->in[IN_FORWARD_STATS], 2),
        .dscale = dn_view(run, step->out[OUT_DSCALE], a->channels),
        .dshift = dn_view(run, step->out[OUT_DSHIFT], a->channels),
        .dgamma = one_copy(run, step->out[OUT_DGAMMA]),
        .dbeta = one_copy(run, step->out[OUT_DBETA]),
        .dx_sums = dn_view(run, step->out[OUT_DX_SUMS], a->channels),
        .dx_sum = one_copy(run, step->out[OUT_DX_SUM]),
        .work = dn_view(run, step->workspace, 0),
    };
    dn_group_norm_bwd_blocked(run->pool, &args);
    return 0;
}

static int run_layer_norm_bwd(const dn_run *run, const dn_step *step)
{
    const norm_bwd_attr *a = step->attr;
    dn_layer_norm_bwd_args args = {
        .x = dn_view(run, step->in[IN_X], a->channels),
        .dy = dn_view(run, step->in[IN_DY], a->channels),
        .dx = dn_view(run, step->out[OUT_DX], a->channels),
        .e = { run->n, a->positions, a->channels },
        .gamma = vector(run, step->in[IN_GAMMA]),
        .stats = dn_view(run, step->in[IN_STATS], 2),
        .dgamma = one_copy(run, step->out[OUT_DGAMMA]),
        .dbeta = one_copy(run, step->out[OUT_DBETA]),
    };
    dn_layer_norm_bwd_dense(run->pool, &args);
    return 0;
}

static int dense_or_none(dn_lower_state *s, dn_val v) { return v == DN_NONE ? -1 : dn_lower_dense(s, v); }
static int new_or_none(dn_lower_state *s, dn_val v) { return v == DN_NONE ? -1 : dn_lower_new_dense(s, v); }
static dn_val out_of(const dn_lower_state *s, int op, int i) { return op < 0 ? DN_NONE : s->p->op[op].out[i]; }

/* Is the gradient by x only added to another that is there already? Then the sum is what the step writes. */
static dn_val take_add(dn_lower_state *s, dn_val *dx, int *last)
{
    int next = *dx == DN_NONE ? -1 : dn_lower_only_reader(s, *dx);
    if (next < 0 || s->op_state[next] != DN_OP_WAITING || !is_binary(&s->p->op[next], DN_ADD))
        return DN_NONE;
    dn_val other = other_operand(&s->p->op[next], *dx), sum = s->p->op[next].out[0];
    if (other == *dx || !s->made[other] || s->p->value[other].kind != DN_ROW ||
        !dn_shape_equal(&s->p->value[other].shape, &s->p->value[*dx].shape) || s->p->value[other].dtype != DN_F32)
        return DN_NONE;
    dn_lower_swallow(s, next);
    *dx = sum;
    *last = next > *last ? next : *last;
    return other;
}

/* The sum over the positions of dx, for each row or over all, if some op wants it: a bias of the layer that made x, an
 * embedding added to it. Swallowed; DN_NONE: none. */
static dn_val take_sum(dn_lower_state *s, dn_val dx, enum dn_kind kind)
{
    int ops[READERS_MAX], n = readers_of(s, dx, ops);
    for (int i = 0; i < n; i++) {
        const dn_op *op = &s->p->op[ops[i]];
        if (op->kind != DN_OP_SUM_TO || s->op_state[ops[i]] != DN_OP_WAITING || s->p->value[op->out[0]].kind != kind ||
            !dn_value_is_channels(s->p, op->out[0], dx))
            continue;
        dn_lower_swallow(s, ops[i]);
        return op->out[0];
    }
    return DN_NONE;
}

/* The op that says what is differentiated by what. */
static const dn_op *either(const dn_lower_state *s, const dn_norm_chain *c)
{
    return &s->p->op[c->dx >= 0 ? c->dx : c->dw];
}

static dn_val gamma_of(const dn_lower_state *s, const dn_norm_chain *c)
{
    if (c->norm >= 0)
        return s->p->op[c->norm].in[1];
    return c->dx < 0 ? DN_NONE : s->p->op[c->dx].in[3];
}

/* c: the chain, or DX and DW of a norm whose gradient dy is a value of its own. */
static void emit_group_norm_bwd(dn_lower_state *s, const dn_norm_chain *c, dn_val dy, int first)
{
    dn_val x = either(s, c)->in[0], dx = out_of(s, c->dx, 0);
    norm_bwd_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x), either(s, c)->attr.norm.groups,
                        c->silu_bwd >= 0 };
    int last = c->dx > c->dw ? c->dx : c->dw;
    dn_val add = take_add(s, &dx, &last);
    dn_step step = { .fn = run_group_norm_bwd, .n_in = N_IN, .n_out = N_OUT };
    step.in[IN_X] = dn_lower_blocked(s, x);
    step.in[IN_STATS] = dn_lower_dense(s, either(s, c)->in[1]);
    step.in[IN_DY] = dn_lower_blocked(s, dy);
    step.in[IN_FORWARD_STATS] = c->silu_bwd < 0 ? -1 : s->stats[c->norm];
    step.in[IN_GAMMA] = dense_or_none(s, gamma_of(s, c));
    step.in[IN_BETA] = dense_or_none(s, c->norm < 0 ? DN_NONE : s->p->op[c->norm].in[2]);
    step.in[IN_SCALE] = dense_or_none(s, c->scale);
    step.in[IN_SHIFT] = dense_or_none(s, c->shift);
    step.in[IN_ADD] = add == DN_NONE ? -1 : dn_lower_blocked(s, add);
    step.out[OUT_DX] = dx == DN_NONE ? -1 : dn_lower_new_blocked(s, dx);
    step.out[OUT_DGAMMA] = new_or_none(s, out_of(s, c->dw, 0));
    step.out[OUT_DBETA] = new_or_none(s, out_of(s, c->dw, 1));
    step.out[OUT_DSCALE] = new_or_none(s, out_of(s, c->scale_sum, 0));
    step.out[OUT_DSHIFT] = new_or_none(s, out_of(s, c->shift_sum, 0));
    step.out[OUT_DX_SUMS] = dx == DN_NONE ? -1 : new_or_none(s, take_sum(s, dx, DN_ROW));
    step.out[OUT_DX_SUM] = dx == DN_NONE ? -1 : new_or_none(s, take_sum(s, dx, DN_BATCH));
    step.workspace = dn_lower_workspace(s, dn_group_norm_bwd_work(a.channels), true);
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, first, last);
    const int done[] = { c->dx, c->dw, c->by_scale, c->by_norm, c->shift_sum, c->scale_sum };
    for (int i = 0; i < 6; i++)
        if (done[i] >= 0)
            dn_lower_swallow(s, done[i]);
}

static void emit_layer_norm_bwd(dn_lower_state *s, const dn_norm_chain *c, dn_val dy, int first)
{
    dn_val x = either(s, c)->in[0];
    norm_bwd_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x) };
    dn_step step = { .fn = run_layer_norm_bwd, .n_in = IN_GAMMA + 1, .n_out = OUT_DBETA + 1, .workspace = -1 };
    step.in[IN_X] = dn_lower_dense(s, x);
    step.in[IN_STATS] = dn_lower_dense(s, either(s, c)->in[1]);
    step.in[IN_DY] = dn_lower_dense(s, dy);
    step.in[IN_GAMMA] = dense_or_none(s, gamma_of(s, c));
    step.out[OUT_DX] = new_or_none(s, out_of(s, c->dx, 0));
    step.out[OUT_DGAMMA] = new_or_none(s, out_of(s, c->dw, 0));
    step.out[OUT_DBETA] = new_or_none(s, out_of(s, c->dw, 1));
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, first, c->dx > c->dw ? c->dx : c->dw);
    if (c->dx >= 0)
        dn_lower_swallow(s, c->dx);
    if (c->dw >= 0)
        dn_lower_swallow(s, c->dw);
}

/* SiLU's gradient whose forward step is part of a norm's. */
bool dn_lower_norm_chain_bwd(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    int norm = s->chained[i] - 1;
    dn_norm_chain c;
    if (norm < 0 || !find_chain(s, norm, &c))
        return false;
    if (!dn_lower_make(s, either(s, &c)->in[1]))
        dn_lower_fail(s, DN_E_INTERNAL, "a norm's gradient comes before its statistics");
    emit_group_norm_bwd(s, &c, op->in[1], i);
    return true;
}

/* NORM_DX or NORM_DW, and the other of the two if it reads the same: op i comes first. */
bool dn_lower_norm_bwd(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    if (s->p->value[op->in[2]].kind != DN_ROW || s->p->value[op->in[0]].kind != DN_ROW ||
        dn_value_channels(s->p, op->in[0]) > DN_NORM_CHANNELS_MAX)
        return false;
    dn_norm_chain c = chain_new(-1);
    *(op->kind == DN_OP_NORM_DX ? &c.dx : &c.dw) = i;
    int ops[READERS_MAX], n = readers_of(s, op->in[2], ops);
    for (int k = 0; k < n; k++) {
        const dn_op *other = &s->p->op[ops[k]];
        if (other->kind != op->kind && is_norm_bwd(other) && other->in[0] == op->in[0] && other->in[1] == op->in[1] &&
            other->in[2] == op->in[2] && s->op_state[ops[k]] == DN_OP_WAITING)
            *(other->kind == DN_OP_NORM_DX ? &c.dx : &c.dw) = ops[k];
    }
    (op->attr.norm.per_position ? emit_layer_norm_bwd : emit_group_norm_bwd)(s, &c, op->in[2], i);
    return true;
}
