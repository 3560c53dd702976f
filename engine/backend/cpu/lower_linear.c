/* lower_linear.c - convolutions and linear layers with what follows them: bias, time embedding, residual, scale, SiLU
 * in one step. */
#include "lower.h"
#include "attention.h"
#include "fold.h"
#include "gradients.h"

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

/* What follows y, which op i (or one that it swallowed) makes. */
static tail find_tail(dn_lower_state *s, int i, dn_val y)
{
    tail t = { .y = y, .row_bias = DN_NONE, .residual = DN_NONE, .scale = 1, .last = i };
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

/* ---- attention of one head with its linear layers: fold.h ---- */

enum { IN_BIAS_IN = N_IN, N_IN_FOLD };

typedef struct fold {
    int q, k, v, attention, out; /* ops */
} fold;

typedef struct fold_attr {
    int64_t positions, room; /* room: bytes of the two products of a row */
    int C;
    float scores, scale;
    bool silu;
} fold_attr;

static int block_of(const dn_lower_state *s, dn_val param) { return s->p->value[param].block; }

/* Is op i a layer [C,C] with a bias, x -> y, of that parameter block, that waits (or is being lowered)? */
static bool is_square(const dn_lower_state *s, int i, dn_val x, int block)
{
    const dn_op *op = i < 0 ? NULL : &s->p->op[i];
    return op && op->kind == DN_OP_MATMUL && op->in[0] == x && !op->attr.matmul.transposed && op->in[2] != DN_NONE &&
           is_param(s->p, op->in[1]) && is_param(s->p, op->in[2]) && block_of(s, op->in[1]) == block &&
           block_of(s, op->in[2]) == block && (s->op_state[i] == DN_OP_WAITING || i == s->now) &&
           dn_value_channels(s->p, x) == dn_value_channels(s->p, op->out[0]);
}

/* Is op i the layer of the queries of such an attention, whose values between nobody else reads? */
static bool find_fold(const dn_lower_state *s, int i, fold *f)
{
    const dn_op *q = &s->p->op[i];
    const dn_val x = q->in[0];
    const int C = dn_value_channels(s->p, x);
    const int a = dn_lower_only_reader(s, q->out[0]);
    if (a < 0 || C % DN_FOLD_CHANNELS || C > DN_FOLD_CHANNELS_MAX || s->p->value[x].kind != DN_ROW || s->gradients ||
        !is_param(s->p, q->in[1]) || dn_lower_trains(s, q->in[1]))
        return false;
    const dn_op *op = &s->p->op[a];
    if (op->kind != DN_OP_ATTENTION || op->attr.attention.heads != 1 || op->in[0] != q->out[0] ||
        s->op_state[a] != DN_OP_WAITING || dn_value_positions(s->p, x) > DN_ATTENTION_KEYS_MAX)
        return false;
    *f = (fold){ i, s->p->value[op->in[1]].op, s->p->value[op->in[2]].op, a, dn_lower_only_reader(s, op->out[0]) };
    const int block = block_of(s, q->in[1]);
    return is_square(s, i, x, block) && is_square(s, f->k, x, block) && is_square(s, f->v, x, block) &&
           is_square(s, f->out, op->out[0], block) && dn_lower_only_reader(s, op->in[1]) == a &&
           dn_lower_only_reader(s, op->in[2]) == a;
}

static int run_fold(const dn_run *run, const dn_step *step)
{
    const fold_attr *a = step->attr;
    const dn_rows room = dn_view(run, step->workspace, 0), x = dn_view(run, step->in[IN_X], a->C);
    dn_rows products = { room.base, room.row_bytes, a->positions * 32 + 64, 0 }, values = products, work = room;
    values.base = (char *)room.base + a->C / DN_LANES * products.plane;
    work.base = (char *)room.base + a->room;
    dn_cpu_gemm(&(dn_gemm_call){ .n = run->n,
                                 .M = a->positions,
                                 .C = a->C,
                                 .N = 2 * a->C,
                                 .x = x,
                                 .y = products,
                                 .epilogue = { .bias = dn_place_at(run, step->in[IN_BIAS_IN], 0), .scale = 1 },
                                 .weights = dn_place_at(run, step->in[IN_WEIGHTS], 0),
                                 .pool = run->pool });
    const dn_epilogue finish = epilogue_of(run, step, a->C, a->scale, a->silu);
    dn_attention_blocked(run->pool, &(dn_attention_args){ .n = run->n,
                                                          .queries = a->positions,
                                                          .keys = a->positions,
                                                          .channels = a->C,
                                                          .heads = 1,
                                                          .scale = a->scores,
                                                          .q = products,
                                                          .k = x,
                                                          .v = values,
                                                          .y = dn_view(run, step->out[0], a->C),
                                                          .work = work,
                                                          .finish = &finish });
    return 0;
}

/* The place of a form of parameter `first` and of further ones, up to DN_NONE. */
static int fold_form(dn_lower_state *s, dn_val first, dn_form form, dn_val b, dn_val c, dn_val d)
{
    const dn_val more[] = { b, c, d };
    for (int i = 0; i < DN_FORM_MORE && more[i] != DN_NONE; i++)
        form.more[form.n_more++] = s->p->value[more[i]].param;
    return dn_lower_form(s, first, form);
}

static bool lower_fold(dn_lower_state *s, int i)
{
    fold f;
    if (!find_fold(s, i, &f))
        return false;
    const dn_op *q = &s->p->op[f.q], *k = &s->p->op[f.k], *v = &s->p->op[f.v], *out = &s->p->op[f.out];
    const dn_val x = q->in[0];
    const int swallowed[] = { f.k, f.v, f.attention, f.out };
    for (size_t j = 0; j < sizeof swallowed / sizeof *swallowed; j++)
        dn_lower_swallow(s, swallowed[j]);
    const tail t = find_tail(s, f.out, s->p->op[f.out].out[0]);
    fold_attr a = { .positions = dn_value_positions(s->p, x), .C = dn_value_channels(s->p, x) };
    a.scores = (float)s->p->op[f.attention].attr.attention.scale;
    a.scale = t.scale;
    a.silu = t.silu;
    a.room = (2 * a.C / DN_LANES * (a.positions * 32 + 64) + 63) / 64 * 64;
    dn_step step = linear_step(s, &(dn_op){ .in = { x, DN_NONE, DN_NONE } }, &t, false, false);
    const size_t bytes = dn_cpu_gemm_form_bytes(a.C, 2 * a.C), vector = (size_t)a.C * sizeof(float);
    step.n_in = N_IN_FOLD;
    step.in[IN_WEIGHTS] =
        fold_form(s, q->in[1], (dn_form){ .key = "fold", .bytes = bytes, .pack_all = dn_fold_weights }, k->in[1],
                  v->in[1], out->in[1]);
    step.in[IN_BIAS_IN] =
        fold_form(s, q->in[2], (dn_form){ .key = "fold-in", .bytes = 2 * vector, .pack_all = dn_fold_bias_in },
                  k->in[1], DN_NONE, DN_NONE);
    step.in[IN_BIAS] =
        fold_form(s, out->in[2], (dn_form){ .key = "fold-out", .bytes = vector, .pack_all = dn_fold_bias_out },
                  v->in[2], out->in[1], DN_NONE);
    step.workspace = dn_lower_workspace(s, a.room + dn_attention_work(a.positions, a.positions, a.C, 1), true);
    step.fn = run_fold;
    step.attr = dn_lower_attr(s, &a, sizeof a);
    dn_lower_step(s, step, f.attention, t.last);
    return true;
}

bool dn_lower_matmul(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    dn_val x = op->in[0];
    if (lower_fold(s, i))
        return true;
    bool transposed = op->attr.matmul.transposed, have_bias = op->in[2] != DN_NONE;
    if (!is_param(s->p, op->in[1]) || (have_bias && !is_param(s->p, op->in[2])) || s->p->value[x].kind != DN_ROW)
        return false;
    gemm_attr a = { dn_value_positions(s->p, x), dn_value_channels(s->p, x), dn_value_channels(s->p, op->out[0]) };
    tail t = find_tail(s, i, op->out[0]);
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

dn_conv_shape dn_lower_conv_shape(const dn_program *p, dn_val x, dn_val w, dn_val y, const dn_attr *attr)
{
    const int64_t *in = p->value[x].shape.dim, *taps = p->value[w].shape.dim, *out = p->value[y].shape.dim;
    return (dn_conv_shape){ .C = (int)in[2],
                            .K = (int)out[2],
                            .H = (int)in[0],
                            .W = (int)in[1],
                            .Ho = (int)out[0],
                            .Wo = (int)out[1],
                            .kh = (int)taps[0],
                            .kw = (int)taps[1],
                            .stride = attr->conv.stride,
                            .pad_top = attr->conv.pad[DN_TOP],
                            .pad_left = attr->conv.pad[DN_LEFT] };
}

/* Of op, a convolution, as one of x. */
static dn_conv_shape shape_of(const dn_program *p, const dn_op *op, dn_val x)
{
    return dn_lower_conv_shape(p, x, op->in[1], op->out[0], &op->attr);
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

static bool has_own_weights(const dn_program *p, const dn_op *op)
{
    return is_param(p, op->in[1]) && (op->in[2] == DN_NONE || is_param(p, op->in[2]));
}

static enum dn_form_use use_of(const dn_lower_state *s, dn_val weights)
{
    return dn_lower_trains(s, weights) ? DN_FORM_EACH_RUN : s->live ? DN_FORM_NONE : DN_FORM_KEPT;
}

void dn_lower_conv_emit(dn_lower_state *s, int i, dn_val x, dn_val y, const dn_conv_shape *shape,
                        const dn_conv_kernel *kernel, int weights)
{
    dn_op op = s->p->op[i];
    op.in[0] = x;
    tail t = find_tail(s, i, y);
    conv_attr a = { *shape, kernel, t.scale, t.silu, 0, dn_lower_parts(s, dn_lower_conv_work(shape)) };
    dn_step step = linear_step(s, &op, &t, kernel->dense_in, kernel->dense_out);
    step.in[IN_WEIGHTS] = weights;
    step.workspace = dn_lower_workspace(s, (int64_t)kernel->workspace_bytes(shape, s->l->rows_max), false);
    step.fn = run_conv;
    for (; a.part < a.parts; a.part++) {
        step.attr = dn_lower_attr(s, &a, sizeof a);
        dn_lower_step(s, step, i, t.last);
    }
}

/* Without gradients only where nobody else reads the large map: that is what bits of samples are promised with. With
 * them from the pair alone, so that it is the same when it is recomputed. */
dn_val dn_lower_doubled(const dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    const dn_val large = op->in[0];
    const int up = s->p->value[large].op;
    const dn_op *copy = up < 0 ? NULL : &s->p->op[up];
    if (!copy || copy->kind != DN_OP_COPY || copy->attr.copy.hint != DN_COPY_UPSAMPLE2 || copy->attr.copy.scale != 1 ||
        s->p->value[large].shape.rank != 3 || s->p->value[large].dtype != DN_F32 ||
        !dn_value_is_map(s->p, copy->in[0]) || (!s->gradients && dn_lower_only_reader(s, large) != i))
        return DN_NONE;
    if (op->kind == DN_OP_CONV2D) {
        const dn_conv_shape shape = shape_of(s->p, op, copy->in[0]);
        return has_own_weights(s->p, op) && dn_cpu_doubled_choose(&shape, use_of(s, op->in[1])) ? copy->in[0] : DN_NONE;
    }
    const dn_conv_shape shape = dn_lower_conv_shape(s->p, copy->in[0], op->out[0], op->in[1], &op->attr);
    return dn_cpu_doubled_dw_choose(&shape) ? copy->in[0] : DN_NONE;
}

bool dn_lower_skip_upsample(dn_lower_state *s, int i)
{
    const dn_val large = s->p->op[i].out[0];
    int left = s->p->value[large].output ? 1 : s->readers[large];
    for (int r = i + 1; left > 0 && r <= s->reader[large]; r++)
        for (int j = 0; j < s->p->op[r].n_in; j++)
            if (s->p->op[r].in[j] == large) {
                const enum dn_op_kind kind = s->p->op[r].kind;
                if (j > 0 || (kind != DN_OP_CONV2D && kind != DN_OP_CONV2D_DW) || dn_lower_doubled(s, r) == DN_NONE)
                    return false;
                left--;
            }
    return !left;
}

bool dn_lower_conv(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    if (!has_own_weights(s->p, op))
        return false;
    const dn_val small = dn_lower_doubled(s, i), x = small == DN_NONE ? op->in[0] : small;
    const dn_conv_shape shape = shape_of(s->p, op, x);
    const enum dn_form_use use = use_of(s, op->in[1]);
    const dn_conv_kernel *kernel =
        small == DN_NONE ? dn_cpu_conv_choose(&shape, use) : dn_cpu_doubled_choose(&shape, use);
    dn_lower_conv_emit(s, i, x, op->out[0], &shape, kernel, weights_of(s, op->in[1], kernel));
    return true;
}

int64_t dn_lower_conv_forms(const dn_program *p)
{
    int64_t bytes = 0;
    for (int i = 0; i < p->n_ops; i++) {
        const dn_op *op = &p->op[i];
        if (op->kind != DN_OP_CONV2D || !is_param(p, op->in[1]) || p->block[p->value[op->in[1]].block].trains)
            continue;
        dn_conv_shape shape = shape_of(p, op, op->in[0]);
        const dn_conv_kernel *kernel = dn_cpu_conv_choose(&shape, DN_FORM_KEPT);
        bytes += kernel->form_key ? (int64_t)kernel->form_bytes(&p->value[op->in[1]].shape) : 0;
    }
    return bytes;
}
