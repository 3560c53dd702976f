/* lower_linear.c - convolutions and linear layers with what follows them: bias, time embedding, residual, scale, SiLU
 * in one step. */
#include "lower.h"

/* What a chain of ops adds to a linear op; see dn_epilogue. */
typedef struct tail {
    dn_val y;        /* what the step writes */
    dn_val row_bias; /* DN_NONE: none */
    dn_val residual;
    float scale;
    bool silu;
    int last; /* the last op swallowed */
} tail;

enum { IN_X, IN_WEIGHTS, IN_BIAS, IN_ROW_BIAS, IN_RESIDUAL, N_IN };

static bool same_extent(const dn_program *p, dn_val a, dn_val b)
{
    return dn_value_channels(p, a) == dn_value_channels(p, b) && dn_value_positions(p, a) == dn_value_positions(p, b) &&
           p->value[a].kind == p->value[b].kind && p->value[a].dtype == p->value[b].dtype;
}

/* h + other: a vector over the channels or a whole residual that is computed already. */
static bool take_add(dn_lower_state *s, tail *t, const dn_op *op)
{
    dn_val other = op->in[0] == t->y ? op->in[1] : op->in[0];
    if (op->attr.binary.kind != DN_ADD || t->scale != 1 || other == t->y || !same_extent(s->p, t->y, op->out[0]))
        return false;
    if (same_extent(s->p, other, t->y)) {
        if (t->residual != DN_NONE || !s->made[other])
            return false;
        t->residual = other;
        return true;
    }
    if (t->row_bias != DN_NONE || !dn_value_is_channels(s->p, other, t->y) || !dn_lower_make(s, other))
        return false;
    t->row_bias = other;
    return true;
}

static bool take(dn_lower_state *s, tail *t, const dn_op *op)
{
    switch (op->kind) {
    case DN_OP_COPY:
        return s->root[op->out[0]] == s->root[t->y];
    case DN_OP_BINARY:
        return take_add(s, t, op);
    case DN_OP_UNARY:
        if (op->attr.unary.kind == DN_SILU) {
            t->silu = true;
            return true;
        }
        if (op->attr.unary.kind != DN_AFFINE || op->attr.unary.b != 0 || t->scale != 1)
            return false;
        t->scale = (float)op->attr.unary.a;
        return true;
    default:
        return false;
    }
}

static tail find_tail(dn_lower_state *s, int i)
{
    tail t = { .y = s->p->op[i].out[0], .row_bias = DN_NONE, .residual = DN_NONE, .scale = 1, .last = i };
    for (int next; !t.silu && (next = dn_lower_only_reader(s, t.y)) >= 0; t.last = next) {
        const dn_op *op = &s->p->op[next];
        if (s->op_state[next] != DN_OP_WAITING)
            break;
        s->op_state[next] = DN_OP_BUSY;
        if (!take(s, &t, op)) {
            s->op_state[next] = DN_OP_WAITING;
            break;
        }
        dn_lower_swallow(s, next);
        t.y = op->out[0];
    }
    return t;
}

static bool is_param(const dn_program *p, dn_val v) { return p->value[v].kind == DN_PARAM && p->value[v].op < 0; }

static int dense_or_none(dn_lower_state *s, dn_val v) { return v == DN_NONE ? -1 : dn_lower_dense(s, v); }

/* The step but for its function, attributes and weights. */
static dn_step linear_step(dn_lower_state *s, const dn_op *op, const tail *t, bool dense_in, bool dense_out)
{
    dn_step step = { .n_in = N_IN, .n_out = 1, .workspace = -1 };
    step.in[IN_X] = dense_in ? dn_lower_dense(s, op->in[0]) : dn_lower_blocked(s, op->in[0]);
    step.in[IN_BIAS] = dense_or_none(s, op->in[2]);
    step.in[IN_ROW_BIAS] = dense_or_none(s, t->row_bias);
    step.in[IN_RESIDUAL] = t->residual == DN_NONE ? -1
                           : dense_out            ? dn_lower_dense(s, t->residual)
                                                  : dn_lower_blocked(s, t->residual);
    step.out[0] = dense_out ? dn_lower_new_dense(s, t->y) : dn_lower_new_blocked(s, t->y);
    return step;
}

static dn_epilogue epilogue_of(const dn_run *run, const dn_step *step, int channels, float scale, bool silu)
{
    dn_epilogue e = { .scale = scale, .silu = silu };
    if (step->in[IN_BIAS] >= 0)
        e.bias = dn_place_at(run, step->in[IN_BIAS], 0);
    if (step->in[IN_ROW_BIAS] >= 0) {
        e.row_bias = dn_place_at(run, step->in[IN_ROW_BIAS], 0);
        e.row_bias_bytes = run->lowered->place[step->in[IN_ROW_BIAS]].row_bytes;
    }
    e.residual = dn_view(run, step->in[IN_RESIDUAL], channels);
    return e;
}

/* ---- parts: some of the rows for each step of an op ---- */

static void skip_rows(dn_rows *t, int64_t n)
{
    if (t->base)
        t->base = (char *)t->base + n * t->row_bytes;
}

/* Move everything to the part's first row; returns how many it has. */
static int take_part(int n, int part, int parts, dn_rows *x, dn_rows *y, dn_epilogue *e)
{
    const int64_t first = (int64_t)n * part / parts;
    skip_rows(x, first);
    skip_rows(y, first);
    skip_rows(&e->residual, first);
    if (e->row_bias)
        e->row_bias += first * e->row_bias_bytes / (int64_t)sizeof(float);
    return (int)((int64_t)n * (part + 1) / parts - first);
}

/* ---- linear layers ---- */

typedef struct gemm_attr {
    int64_t positions;
    int C, N;
    float scale;
    bool silu;
    int part, parts;
} gemm_attr;

static int run_gemm(const dn_run *run, const dn_step *step)
{
    const gemm_attr *a = step->attr;
    dn_gemm_call call = { .M = a->positions, .C = a->C, .N = a->N, .pool = run->pool };
    call.x = dn_view(run, step->in[IN_X], a->C);
    call.y = dn_view(run, step->out[0], a->N);
    call.epilogue = epilogue_of(run, step, a->N, a->scale, a->silu);
    call.weights = dn_place_at(run, step->in[IN_WEIGHTS], 0);
    call.n = take_part(run->n, a->part, a->parts, &call.x, &call.y, &call.epilogue);
    if (call.n)
        dn_cpu_gemm(&call);
    return 0;
}

bool dn_lower_matmul(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_val x = op->in[0];
    bool transposed = op->attr.matmul.transposed, have_bias = op->in[2] != DN_NONE;
    if (!is_param(s->p, op->in[1]) || (have_bias && !is_param(s->p, op->in[2])) || s->p->value[x].kind != DN_ROW)
        return false;
    gemm_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x), dn_value_channels(s->p, op->out[0]) };
    tail t = find_tail(s, i);
    a.scale = t.scale;
    a.silu = t.silu;
    /* A result that only the caller reads is written where he reads it. */
    bool last = s->p->value[t.y].output && !s->readers[t.y];
    dn_step step = linear_step(s, op, &t, a.positions == 1 || s->blocked[s->root[x]] < 0, a.positions == 1 || last);
    dn_form form = { .key = transposed ? dn_cpu_gemm_key_transposed : dn_cpu_gemm_key,
                     .bytes = dn_cpu_gemm_form_bytes(a.C, a.N),
                     .pack = transposed ? dn_cpu_gemm_pack_transposed : dn_cpu_gemm_pack,
                     .pack_part = transposed ? dn_cpu_gemm_pack_transposed_part : dn_cpu_gemm_pack_part };
    step.in[IN_WEIGHTS] = dn_lower_form(s, op->in[1], form);
    step.fn = run_gemm;
    a.parts = dn_lower_parts(s, (double)a.positions * a.C * a.N);
    for (; a.part < a.parts; a.part++) {
        step.attr = dn_lower_attr(s, &a, sizeof a);
        dn_lower_step(s, step, i, t.last);
    }
    return true;
}

/* ---- convolutions ---- */

typedef struct conv_attr {
    dn_conv_shape shape;
    const dn_conv_kernel *kernel;
    float scale;
    bool silu;
    int part, parts;
} conv_attr;

static int run_conv(const dn_run *run, const dn_step *step)
{
    const conv_attr *a = step->attr;
    dn_conv_call call = { .shape = a->shape, .pool = run->pool };
    call.x = dn_view(run, step->in[IN_X], a->shape.C);
    call.y = dn_view(run, step->out[0], a->shape.K);
    call.epilogue = epilogue_of(run, step, a->shape.K, a->scale, a->silu);
    call.weights = dn_place_at(run, step->in[IN_WEIGHTS], 0);
    call.workspace = step->workspace < 0 ? NULL : dn_place_at(run, step->workspace, 0);
    call.n = take_part(run->n, a->part, a->parts, &call.x, &call.y, &call.epilogue);
    if (call.n)
        a->kernel->run(&call);
    return 0;
}

static dn_conv_shape shape_of(const dn_program *p, const dn_op *op)
{
    const int64_t *x = p->value[op->in[0]].shape.dim, *w = p->value[op->in[1]].shape.dim;
    const int64_t *y = p->value[op->out[0]].shape.dim;
    return (dn_conv_shape){ .C = (int)x[2],
                            .K = (int)y[2],
                            .H = (int)x[0],
                            .W = (int)x[1],
                            .Ho = (int)y[0],
                            .Wo = (int)y[1],
                            .kh = (int)w[0],
                            .kw = (int)w[1],
                            .stride = op->attr.conv.stride,
                            .pad_top = op->attr.conv.pad[DN_TOP],
                            .pad_left = op->attr.conv.pad[DN_LEFT] };
}

static int weights_of(dn_lower_state *s, dn_val w, const dn_conv_kernel *kernel)
{
    if (!kernel->form_key)
        return dn_lower_dense(s, w);
    dn_form form = { .key = kernel->form_key,
                     .bytes = kernel->form_bytes(&s->p->value[w].shape),
                     .pack = kernel->pack,
                     .pack_part = kernel->pack_part };
    return dn_lower_form(s, w, form);
}

void dn_lower_conv_emit(dn_lower_state *s, int i, const dn_conv_shape *shape, const dn_conv_kernel *kernel, int weights)
{
    tail t = find_tail(s, i);
    conv_attr a = { *shape, kernel, t.scale, t.silu, 0, dn_lower_parts(s, dn_lower_conv_work(shape)) };
    dn_step step = linear_step(s, &s->p->op[i], &t, kernel->dense_in, kernel->dense_out);
    step.in[IN_WEIGHTS] = weights;
    step.workspace = dn_lower_workspace(s, (int64_t)kernel->workspace_bytes(shape, s->l->rows_max), false);
    step.fn = run_conv;
    for (; a.part < a.parts; a.part++) {
        step.attr = dn_lower_attr(s, &a, sizeof a);
        dn_lower_step(s, step, i, t.last);
    }
}

bool dn_lower_conv(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_conv_shape shape = shape_of(s->p, op);
    if (!is_param(s->p, op->in[1]) || (op->in[2] != DN_NONE && !is_param(s->p, op->in[2])))
        return false;
    enum dn_form_use use = dn_lower_trains(s, op->in[1]) ? DN_FORM_EACH_RUN : s->live ? DN_FORM_NONE : DN_FORM_KEPT;
    const dn_conv_kernel *kernel = dn_cpu_conv_choose(&shape, use);
    dn_lower_conv_emit(s, i, &shape, kernel, weights_of(s, op->in[1], kernel));
    return true;
}

int64_t dn_lower_conv_forms(const dn_program *p)
{
    int64_t bytes = 0;
    for (int i = 0; i < p->n_ops; i++) {
        const dn_op *op = &p->op[i];
        if (op->kind != DN_OP_CONV2D || !is_param(p, op->in[1]) || p->block[p->value[op->in[1]].block].trains)
            continue;
        dn_conv_shape shape = shape_of(p, op);
        const dn_conv_kernel *kernel = dn_cpu_conv_choose(&shape, DN_FORM_KEPT);
        bytes += kernel->form_key ? (int64_t)kernel->form_bytes(&p->value[op->in[1]].shape) : 0;
    }
    return bytes;
}
