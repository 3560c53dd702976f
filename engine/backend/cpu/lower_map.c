/* lower_map.c - everything that is not linear: normalisation, attention, elementwise operations, copies. */
#include "lower.h"
#include "attention.h"
#include "attention_bwd.h"
#include "elementwise.h"
#include "norm.h"

static dn_extent extent(const dn_run *run, int64_t positions, int channels)
{
    return (dn_extent){ run->n, positions, channels };
}

/* ---- normalisation ---- */

enum { NORM_X, NORM_GAMMA, NORM_BETA, NORM_SCALE, NORM_SHIFT, NORM_N };

typedef struct norm_attr {
    int64_t positions;
    int channels, groups;
    float eps;
    bool silu;
} norm_attr;

static dn_row_vector vector(const dn_run *run, int place)
{
    if (place < 0)
        return (dn_row_vector){ 0 };
    return (dn_row_vector){ dn_place_at(run, place, 0), run->lowered->place[place].row_bytes };
}

static int run_group_norm(const dn_run *run, const dn_step *step)
{
    const norm_attr *a = step->attr;
    dn_group_norm_args args = {
        .x = dn_view(run, step->in[NORM_X], a->channels),
        .y = dn_view(run, step->out[0], a->channels),
        .e = extent(run, a->positions, a->channels),
        .groups = a->groups,
        .eps = a->eps,
        .silu = a->silu,
        .gamma = vector(run, step->in[NORM_GAMMA]),
        .beta = vector(run, step->in[NORM_BETA]),
        .scale = vector(run, step->in[NORM_SCALE]),
        .shift = vector(run, step->in[NORM_SHIFT]),
        .stats = dn_view(run, step->out[1], 2),
    };
    dn_group_norm_blocked(run->pool, &args);
    return 0;
}

static int run_layer_norm(const dn_run *run, const dn_step *step)
{
    const norm_attr *a = step->attr;
    dn_layer_norm_args args = {
        .x = dn_view(run, step->in[NORM_X], a->channels),
        .y = dn_view(run, step->out[0], a->channels),
        .e = extent(run, a->positions, a->channels),
        .eps = a->eps,
        .gamma = vector(run, step->in[NORM_GAMMA]),
        .beta = vector(run, step->in[NORM_BETA]),
        .stats = dn_view(run, step->out[1], 2),
    };
    dn_layer_norm_dense(run->pool, &args);
    return 0;
}

typedef struct norm_tail {
    dn_val y, scale, shift;
    bool silu;
    int last;
} norm_tail;

/* y * scale, + shift: vectors over the channels, in this order, before SiLU. */
static bool take_modulation(dn_lower_state *s, norm_tail *t, const dn_op *op)
{
    dn_val other = op->in[0] == t->y ? op->in[1] : op->in[0], *slot;
    if (op->attr.binary.kind == DN_MUL && t->scale == DN_NONE && t->shift == DN_NONE)
        slot = &t->scale;
    else if (op->attr.binary.kind == DN_ADD && t->shift == DN_NONE)
        slot = &t->shift;
    else
        return false;
    if (other == t->y || !dn_value_is_channels(s->p, other, t->y) || !dn_lower_make(s, other))
        return false;
    *slot = other;
    return true;
}

static bool norm_take(dn_lower_state *s, norm_tail *t, const dn_op *op)
{
    if (op->kind == DN_OP_COPY)
        return s->root[op->out[0]] == s->root[t->y];
    if (op->kind == DN_OP_BINARY)
        return take_modulation(s, t, op);
    return op->kind == DN_OP_UNARY && op->attr.unary.kind == DN_SILU && (t->silu = true);
}

static norm_tail find_norm_tail(dn_lower_state *s, int i)
{
    norm_tail t = { .y = s->p->op[i].out[0], .scale = DN_NONE, .shift = DN_NONE, .last = i };
    for (int next; !t.silu && (next = dn_lower_only_reader(s, t.y)) >= 0; t.last = next) {
        const dn_op *op = &s->p->op[next];
        if (s->op_state[next] != DN_OP_WAITING)
            break;
        s->op_state[next] = DN_OP_BUSY;
        if (!norm_take(s, &t, op)) {
            s->op_state[next] = DN_OP_WAITING;
            break;
        }
        dn_lower_swallow(s, next);
        t.y = op->out[0];
    }
    return t;
}

static int dense_or_none(dn_lower_state *s, dn_val v) { return v == DN_NONE ? -1 : dn_lower_dense(s, v); }

bool dn_lower_norm(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_val x = op->in[0];
    norm_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x), op->attr.norm.groups,
                    (float)op->attr.norm.eps };
    if (a.channels > DN_NORM_CHANNELS_MAX || op->out[0] == DN_NONE || s->p->value[x].kind != DN_ROW)
        return false;
    dn_step step = { .n_in = NORM_N, .n_out = 2, .workspace = -1 };
    norm_tail t = { .y = op->out[0], .scale = DN_NONE, .shift = DN_NONE, .last = i };
    bool chained = false;
    if (op->attr.norm.per_position) {
        step.fn = run_layer_norm;
        step.in[NORM_X] = dn_lower_dense(s, x);
        step.out[0] = dn_lower_new_dense(s, t.y);
    } else {
        dn_norm_chain c;
        if ((chained = dn_norm_chain_take(s, i, &c)))
            t = (norm_tail){ c.silu < 0 ? DN_NONE : s->p->op[c.silu].out[0], c.scale, c.shift, true,
                             c.silu >= 0 ? c.silu : c.add >= 0 ? c.add : i };
        else
            t = find_norm_tail(s, i);
        a.silu = t.silu;
        step.fn = run_group_norm;
        step.in[NORM_X] = dn_lower_blocked(s, x);
        step.out[0] = t.y == DN_NONE ? -1 : dn_lower_new_blocked(s, t.y);
    }
    step.in[NORM_GAMMA] = dense_or_none(s, op->in[1]);
    step.in[NORM_BETA] = dense_or_none(s, op->in[2]);
    step.in[NORM_SCALE] = dense_or_none(s, t.scale);
    step.in[NORM_SHIFT] = dense_or_none(s, t.shift);
    step.out[1] = op->out[1] == DN_NONE ? -1 : dn_lower_new_dense(s, op->out[1]);
    if (chained) {
        if (step.out[1] < 0) /* recomputed: the program has the statistics already */
            step.out[1] = dn_lower_workspace(s, 2 * (int64_t)sizeof(float) * a.groups, true);
        s->stats[i] = step.out[1];
    }
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, i, t.last);
    return true;
}

/* ---- attention ---- */

typedef struct attention_attr {
    int64_t queries, keys;
    int channels, heads;
    float scale;
} attention_attr;

static attention_attr attention_attr_of(const dn_program *p, const dn_op *op)
{
    return (attention_attr){ p->value[op->in[0]].shape.dim[0], p->value[op->in[1]].shape.dim[0],
                             dn_value_channels(p, op->in[0]), op->attr.attention.heads,
                             (float)op->attr.attention.scale };
}

static int run_attention(const dn_run *run, const dn_step *step)
{
    const attention_attr *a = step->attr;
    dn_attention_args args = { .n = run->n,
                               .queries = a->queries,
                               .keys = a->keys,
                               .channels = a->channels,
                               .heads = a->heads,
                               .scale = a->scale };
    args.q = dn_view(run, step->in[0], a->channels);
    args.k = dn_view(run, step->in[1], a->channels);
    args.v = dn_view(run, step->in[2], a->channels);
    args.y = dn_view(run, step->out[0], a->channels);
    args.work = dn_view(run, step->workspace, 0);
    dn_attention_blocked(run->pool, &args);
    return 0;
}

bool dn_lower_attention(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    attention_attr a = attention_attr_of(s->p, op);
    if (a.keys > DN_ATTENTION_KEYS_MAX)
        return false;
    dn_step step = { .fn = run_attention, .n_in = 3, .n_out = 1 };
    for (int j = 0; j < 3; j++) {
        if (s->p->value[op->in[j]].kind != DN_ROW)
            return false;
        step.in[j] = dn_lower_blocked(s, op->in[j]);
    }
    step.out[0] = dn_lower_new_blocked(s, op->out[0]);
    step.workspace = dn_lower_workspace(s, dn_attention_work(a.queries, a.keys, a.channels, a.heads), true);
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, i, i);
    return true;
}

static int run_attention_bwd(const dn_run *run, const dn_step *step)
{
    const attention_attr *a = step->attr;
    dn_attention_bwd_args args = { .n = run->n,
                                   .queries = a->queries,
                                   .keys = a->keys,
                                   .channels = a->channels,
                                   .heads = a->heads,
                                   .scale = a->scale };
    args.q = dn_view(run, step->in[0], a->channels);
    args.k = dn_view(run, step->in[1], a->channels);
    args.v = dn_view(run, step->in[2], a->channels);
    args.dy = dn_view(run, step->in[3], a->channels);
    args.dq = dn_view(run, step->out[0], a->channels);
    args.dk = dn_view(run, step->out[1], a->channels);
    args.dv = dn_view(run, step->out[2], a->channels);
    args.work = dn_view(run, step->workspace, 0);
    dn_attention_bwd_blocked(run->pool, &args);
    return 0;
}

bool dn_lower_attention_bwd(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    attention_attr a = attention_attr_of(s->p, op);
    if (a.keys > DN_ATTENTION_BWD_KEYS_MAX)
        return false;
    dn_step step = { .fn = run_attention_bwd, .n_in = 4, .n_out = 3 };
    for (int j = 0; j < 4; j++) {
        if (s->p->value[op->in[j]].kind != DN_ROW)
            return false;
        step.in[j] = dn_lower_blocked(s, op->in[j]);
    }
    for (int j = 0; j < 3; j++)
        step.out[j] = op->out[j] == DN_NONE ? -1 : dn_lower_new_blocked(s, op->out[j]);
    step.workspace = dn_lower_workspace(s, dn_attention_bwd_work(a.queries, a.keys, a.channels, a.heads), true);
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, i, i);
    return true;
}

/* ---- elementwise ---- */

typedef struct elementwise_attr {
    int64_t positions;
    int channels, kind;
    enum dn_operand operand;
    bool swapped;
    float p, q;
} elementwise_attr;

static dn_elementwise_args elementwise_args(const dn_run *run, const dn_step *step)
{
    const elementwise_attr *a = step->attr;
    return (dn_elementwise_args){ .x = dn_view(run, step->in[0], a->channels),
                                  .b = dn_view(run, step->in[1], a->channels),
                                  .y = dn_view(run, step->out[0], a->channels),
                                  .e = extent(run, a->positions, a->channels),
                                  .operand = a->operand,
                                  .swapped = a->swapped,
                                  .p = a->p,
                                  .q = a->q };
}

static int run_unary(const dn_run *run, const dn_step *step)
{
    dn_elementwise_args args = elementwise_args(run, step);
    dn_unary_run(run->pool, ((const elementwise_attr *)step->attr)->kind, &args);
    return 0;
}

static int run_unary_bwd(const dn_run *run, const dn_step *step)
{
    dn_elementwise_args args = elementwise_args(run, step);
    dn_unary_bwd_run(run->pool, ((const elementwise_attr *)step->attr)->kind, &args);
    return 0;
}

static int run_binary(const dn_run *run, const dn_step *step)
{
    dn_elementwise_args args = elementwise_args(run, step);
    dn_binary_run(run->pool, ((const elementwise_attr *)step->attr)->kind, &args);
    return 0;
}

/* Places of x, the same layout for y; b follows x if it has its shape, else it is dense. */
static void emit_elementwise(dn_lower_state *s, int i, elementwise_attr *a, dn_step_fn fn, dn_val x, dn_val b)
{
    dn_val y = s->p->op[i].out[0];
    bool blocked = s->blocked[s->root[x]] >= 0;
    if (b != DN_NONE && a->operand == DN_OPERAND_SAME && s->blocked[s->root[b]] >= 0)
        blocked = true;
    if (a->operand == DN_OPERAND_CHANNELS)
        blocked = true;
    if (b != DN_NONE && a->operand == DN_OPERAND_SAME && s->p->value[b].kind != DN_ROW)
        blocked = false; /* a parameter is dense */
    dn_step step = { .fn = fn, .n_in = 2, .n_out = 1, .workspace = -1 };
    step.in[0] = blocked ? dn_lower_blocked(s, x) : dn_lower_dense(s, x);
    step.in[1] = b == DN_NONE                               ? -1
                 : blocked && a->operand == DN_OPERAND_SAME ? dn_lower_blocked(s, b)
                                                            : dn_lower_dense(s, b);
    step.out[0] = blocked ? dn_lower_new_blocked(s, y) : dn_lower_new_dense(s, y);
    a->positions = dn_value_positions(s->p, x);
    a->channels = dn_value_channels(s->p, x);
    step.attr = dn_lower_attr(s, a, sizeof *a);
    dn_lower_step(s, step, i, i);
}

bool dn_lower_unary(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    elementwise_attr a = { .kind = op->attr.unary.kind, .p = (float)op->attr.unary.a, .q = (float)op->attr.unary.b };
    if (!dn_unary_has_kernel(op->attr.unary.kind) || s->p->value[op->out[0]].kind != DN_ROW)
        return false;
    emit_elementwise(s, i, &a, run_unary, op->in[0], DN_NONE);
    return true;
}

bool dn_lower_unary_bwd(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    elementwise_attr a = { .kind = op->attr.unary.kind, .p = (float)op->attr.unary.a, .q = (float)op->attr.unary.b };
    if (dn_lower_norm_chain_bwd(s, i))
        return true;
    if (!dn_unary_bwd_has_kernel(op->attr.unary.kind) || s->p->value[op->in[0]].kind != DN_ROW ||
        s->p->value[op->in[1]].kind != DN_ROW)
        return false;
    emit_elementwise(s, i, &a, run_unary_bwd, op->in[0], op->in[1]);
    return true;
}

/* How b meets x, if x has the result's shape. */
static bool find_operand(const dn_program *p, dn_val y, dn_val x, dn_val b, enum dn_operand *operand)
{
    if (!dn_shape_equal(&p->value[x].shape, &p->value[y].shape) || p->value[x].kind != DN_ROW)
        return false;
    if (dn_shape_equal(&p->value[b].shape, &p->value[y].shape))
        *operand = DN_OPERAND_SAME;
    else if (dn_shape_count(&p->value[b].shape) == 1)
        *operand = DN_OPERAND_SCALAR;
    else if (dn_value_is_channels(p, b, y))
        *operand = DN_OPERAND_CHANNELS;
    else
        return false;
    return true;
}

bool dn_lower_binary(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    elementwise_attr a = { .kind = op->attr.binary.kind };
    dn_val x = op->in[0], b = op->in[1];
    if (!find_operand(s->p, op->out[0], x, b, &a.operand)) {
        if (!find_operand(s->p, op->out[0], b, x, &a.operand))
            return false;
        a.swapped = true;
        x = op->in[1];
        b = op->in[0];
    }
    emit_elementwise(s, i, &a, run_binary, x, b);
    return true;
}

/* ---- copies ---- */

typedef struct copy_attr {
    int64_t positions;
    int channels, of, dst_first, src_first; /* of: channels of the whole that a part belongs to */
    dn_resample_size size;
    float scale;
} copy_attr;

static int run_channels(const dn_run *run, const dn_step *step)
{
    const copy_attr *a = step->attr;
    dn_copy_channels(run->pool, dn_view(run, step->out[0], a->channels), a->dst_first,
                     dn_view(run, step->in[0], a->channels), a->src_first, extent(run, a->positions, a->channels));
    return 0;
}

static int run_upsample2(const dn_run *run, const dn_step *step)
{
    const copy_attr *a = step->attr;
    dn_copy_upsample2(run->pool, dn_view(run, step->out[0], a->channels), dn_view(run, step->in[0], a->channels),
                      extent(run, a->positions, a->channels), &a->size, a->scale);
    return 0;
}

static int run_pool2(const dn_run *run, const dn_step *step)
{
    const copy_attr *a = step->attr;
    dn_copy_pool2(run->pool, dn_view(run, step->out[0], a->channels), dn_view(run, step->in[0], a->channels),
                  extent(run, a->positions, a->channels), a->size.height, a->size.width, a->scale);
    return 0;
}

static void emit_copy(dn_lower_state *s, int i, dn_step_fn fn, const copy_attr *a, int from, int to)
{
    dn_step step = { .fn = fn,
                     .attr = dn_lower_attr(s, a, sizeof *a),
                     .in = { from },
                     .n_in = 1,
                     .out = { to },
                     .n_out = 1,
                     .workspace = -1 };
    dn_lower_step(s, step, i, i);
}

/* Pieces that lie inside the result already need nothing. */
static void emit_concat(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    int to = dn_lower_new_blocked(s, op->out[0]);
    copy_attr a = { .positions = dn_value_positions(s->p, op->out[0]) };
    for (int j = 0; j < op->n_in; a.dst_first += a.channels, j++) {
        dn_val root = s->root[op->in[j]];
        int from = dn_lower_blocked(s, op->in[j]);
        a.channels = dn_value_channels(s->p, op->in[j]);
        if (s->home[root] != i || s->home_at[root] != a.dst_first)
            emit_copy(s, i, run_channels, &a, from, to);
    }
}

static bool emit_slice(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    copy_attr a = { .positions = dn_value_positions(s->p, op->in[0]), .channels = dn_value_channels(s->p, op->out[0]) };
    if (a.positions != dn_value_positions(s->p, op->out[0]))
        return false;
    a.src_first = (int)op->attr.copy.part[0].src_off;
    int from = dn_lower_blocked(s, op->in[0]);
    if (!dn_lower_within(s, op->out[0], from, a.src_first, dn_value_channels(s->p, op->in[0])))
        emit_copy(s, i, run_channels, &a, from, dn_lower_new_blocked(s, op->out[0]));
    return true;
}

/* Is the one part all of x, put into channels `first` .. of y's zeros? */
static bool is_placement(const dn_program *p, const dn_op *op, int *first)
{
    const dn_copy_part *part = op->attr.copy.part;
    int64_t c = dn_value_channels(p, op->in[0]), channels = dn_value_channels(p, op->out[0]);
    int64_t src = 1, dst = c == 1 ? channels : 1;
    if (op->n_in != 1 || op->attr.copy.scale != 1 || part->src_off ||
        dn_value_positions(p, op->in[0]) != dn_value_positions(p, op->out[0]) || part->dst_off + c > channels)
        return false;
    for (int k = DN_RANK_MAX - 1; k >= 0; k--) {
        if (part->n[k] == 1)
            continue;
        if (part->src_stride[k] != src || part->dst_stride[k] != dst)
            return false;
        src *= part->n[k];
        dst *= part->n[k];
        if (src == c) /* the end of a position */
            dst = channels;
    }
    *first = (int)part->dst_off;
    return src == c * dn_value_positions(p, op->in[0]);
}

static int run_placement(const dn_run *run, const dn_step *step)
{
    const copy_attr *a = step->attr;
    dn_rows y = dn_view(run, step->out[0], a->of);
    dn_copy_clear(run->pool, y, extent(run, a->positions, a->of));
    dn_copy_channels(run->pool, y, a->dst_first, dn_view(run, step->in[0], a->channels), 0,
                     extent(run, a->positions, a->channels));
    return 0;
}

static bool emit_placement(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    copy_attr a = { .positions = dn_value_positions(s->p, op->in[0]), .channels = dn_value_channels(s->p, op->in[0]),
                    .of = dn_value_channels(s->p, op->out[0]) };
    if (!is_placement(s->p, op, &a.dst_first))
        return false;
    int from = dn_lower_blocked(s, op->in[0]);
    emit_copy(s, i, run_placement, &a, from, dn_lower_new_blocked(s, op->out[0]));
    return true;
}

static void emit_resample(dn_lower_state *s, int i, dn_step_fn fn)
{
    const dn_op *op = &s->p->op[i];
    const int64_t *d = s->p->value[op->in[0]].shape.dim, *o = s->p->value[op->out[0]].shape.dim;
    copy_attr a = { d[0] * d[1], (int)d[2], .size = { (int)d[0], (int)d[1], (int)o[0], (int)o[1] },
                    .scale = (float)op->attr.copy.scale };
    int from = dn_lower_blocked(s, op->in[0]);
    emit_copy(s, i, fn, &a, from, dn_lower_new_blocked(s, op->out[0]));
}

bool dn_lower_copy(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    const dn_value *x = &s->p->value[op->in[0]];
    if (s->root[op->out[0]] == s->root[op->in[0]])
        return true;
    if (!dn_value_is_map(s->p, op->in[0]))
        return false;
    switch (op->attr.copy.hint) {
    case DN_COPY_CONCAT:
        if (!dn_value_is_map(s->p, op->out[0]) || op->attr.copy.scale != 1)
            return false;
        emit_concat(s, i);
        return true;
    case DN_COPY_SLICE:
        return op->attr.copy.scale == 1 && emit_slice(s, i);
    case DN_COPY_UPSAMPLE2:
    case DN_COPY_POOL2:
        if (x->shape.rank != 3)
            return false;
        if (op->attr.copy.hint == DN_COPY_UPSAMPLE2 && dn_lower_skip_upsample(s, i))
            return true;
        emit_resample(s, i, op->attr.copy.hint == DN_COPY_POOL2 ? run_pool2 : run_upsample2);
        return true;
    case DN_COPY_GENERAL:
        return emit_placement(s, i);
    default:
        return false;
    }
}

/* ---- accumulation into a state block ---- */

/* In rows of so many floats, so that threads may divide them; what is left over is a row of its own. */
enum { PIECE = 8192 };

static int run_accumulate(const dn_run *run, const dn_step *step)
{
    int64_t n = *(const int64_t *)step->attr;
    float *sum = dn_place_at(run, step->in[0], 0), *x = dn_place_at(run, step->in[1], 0);
    for (int64_t at = 0; at < n;) {
        int64_t pieces = n - at < PIECE ? 1 : (n - at) / PIECE, piece = n - at < PIECE ? n - at : PIECE;
        dn_rows to = { (char *)(sum + at), piece * (int64_t)sizeof(float), 0, piece * (int64_t)sizeof(float) }, from = to;
        from.base = (char *)(x + at);
        dn_elementwise_args args = { .x = to, .b = from, .y = to, .e = { (int)pieces, 1, (int)piece }, .operand = DN_OPERAND_SAME };
        dn_binary_run(run->pool, DN_ADD, &args);
        at += pieces * piece;
    }
    return 0;
}

/* The place is the caller's: written though it is an operand. */
bool dn_lower_accumulate(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    int64_t n = dn_shape_count(&s->p->value[op->in[1]].shape);
    dn_step step = { .fn = run_accumulate, .n_in = 2, .workspace = -1 };
    step.in[0] = dn_lower_dense(s, op->in[0]);
    step.in[1] = dn_lower_dense(s, op->in[1]);
    step.attr = dn_lower_attr(s, &n, sizeof n);
    dn_lower_step(s, step, i, i);
    return true;
}
