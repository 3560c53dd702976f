/* grad.c - reverse-mode differentiation of a program: one rule per op, in a table.
 *
 * A rule appends the ops that turn the gradient of an op's outputs into contributions to its inputs. An op that no
 * wanted value reaches is skipped, so weight gradients are never emitted for guidance, nor input gradients for the
 * first layer of a training step. */
#include "program_internal.h"
#include <stdlib.h>

typedef struct {
    dn_program *p;
    dn_val *grad; /* per value at the start: its gradient so far, or DN_NONE */
    char *wanted; /* per value: does a value in `wrt` reach it */
} tape;

typedef void (*rule)(tape *t, const dn_op *op, dn_val g);

static bool wants(const tape *t, const dn_op *op, int i) { return op->in[i] != DN_NONE && t->wanted[op->in[i]]; }

/* Sum a gradient down to the shape and kind of the value that it belongs to. */
static dn_val reduce_to(tape *t, dn_val v, dn_val g)
{
    if (g == DN_NONE || t->p->error.code)
        return DN_NONE;
    dn_shape shape = *dn_shape_of(t->p, v);
    enum dn_kind kind = t->p->value[v].kind == DN_ROW ? DN_ROW : DN_BATCH;
    if (t->p->value[g].kind == kind && dn_shape_equal(&shape, dn_shape_of(t->p, g)))
        return g;
    return dn_sum_to(t->p, g, shape, kind);
}

static void give(tape *t, const dn_op *op, int i, dn_val g)
{
    dn_val v = op->in[i];
    g = reduce_to(t, v, g);
    t->grad[v] = t->grad[v] == DN_NONE ? g : dn_binary(t->p, DN_ADD, t->grad[v], g);
}

/* An op with one output of the shape and kind given. */
static dn_val emit(tape *t, enum dn_op_kind kind, const dn_val *in, int n, const dn_attr *attr, dn_shape shape,
                   enum dn_kind k)
{
    dn_out out = { shape, k, DN_F32 };
    return dn_op_add(t->p, kind, in, n, attr, &out);
}

static dn_shape shape_of(const tape *t, dn_val v) { return *dn_shape_of(t->p, v); }

static void grad_bias(tape *t, const dn_op *op, int i, dn_val g)
{
    if (op->n_in > i && wants(t, op, i))
        give(t, op, i, g);
}

static void grad_conv2d(tape *t, const dn_op *op, dn_val g)
{
    dn_val x = op->in[0], w = op->in[1];
    if (wants(t, op, 0))
        give(t, op, 0, emit(t, DN_OP_CONV2D_DX, (dn_val[]){ g, w }, 2, &op->attr, shape_of(t, x), DN_ROW));
    if (wants(t, op, 1))
        give(t, op, 1, emit(t, DN_OP_CONV2D_DW, (dn_val[]){ x, g }, 2, &op->attr, shape_of(t, w), DN_BATCH));
    grad_bias(t, op, 2, g);
}

/* y = dx(dy, w): linear in both, with the convolution as its adjoint. */
static void grad_conv2d_dx(tape *t, const dn_op *op, dn_val g)
{
    dn_val dy = op->in[0], w = op->in[1];
    if (wants(t, op, 0))
        give(t, op, 0, emit(t, DN_OP_CONV2D, (dn_val[]){ g, w }, 2, &op->attr, shape_of(t, dy), DN_ROW));
    if (wants(t, op, 1))
        give(t, op, 1, emit(t, DN_OP_CONV2D_DW, (dn_val[]){ g, dy }, 2, &op->attr, shape_of(t, w), DN_BATCH));
}

static void grad_matmul(tape *t, const dn_op *op, dn_val g)
{
    dn_val x = op->in[0], w = op->in[1];
    bool transposed = op->attr.matmul.transposed;
    if (wants(t, op, 0))
        give(t, op, 0, dn_matmul(t->p, g, w, DN_NONE, !transposed));
    if (wants(t, op, 1)) {
        dn_val in[] = { transposed ? g : x, transposed ? x : g };
        give(t, op, 1, emit(t, DN_OP_MATMUL_DW, in, 2, NULL, shape_of(t, w), DN_BATCH));
    }
    grad_bias(t, op, 2, g);
}

static void grad_attention(tape *t, const dn_op *op, dn_val g)
{
    dn_out out[3];
    for (int i = 0; i < 3; i++)
        out[i] = (dn_out){ shape_of(t, op->in[i]), DN_ROW, DN_F32 };
    if (dn_op_add(t->p, DN_OP_ATTENTION_BWD, (dn_val[]){ op->in[0], op->in[1], op->in[2], g }, 4, &op->attr, out) ==
        DN_NONE)
        return;
    const dn_op bwd = t->p->op[t->p->n_ops - 1];
    for (int i = 0; i < 3; i++)
        if (wants(t, op, i))
            give(t, op, i, bwd.out[i]);
}

static void grad_norm(tape *t, const dn_op *op, dn_val g)
{
    dn_val x = op->in[0], gamma = op->in[1], stats = op->out[1];
    if (wants(t, op, 0))
        give(t, op, 0, emit(t, DN_OP_NORM_DX, (dn_val[]){ x, stats, g, gamma }, 4, &op->attr, shape_of(t, x), DN_ROW));
    if (!wants(t, op, 1) && !wants(t, op, 2))
        return;
    dn_shape c = dn_shape(shape_of(t, x).dim[shape_of(t, x).rank - 1]);
    dn_out out[] = { { c, DN_BATCH, DN_F32 }, { c, DN_BATCH, DN_F32 } };
    if (dn_op_add(t->p, DN_OP_NORM_DW, (dn_val[]){ x, stats, g }, 3, &op->attr, out) == DN_NONE)
        return;
    const dn_op dw = t->p->op[t->p->n_ops - 1];
    for (int i = 0; i < 2; i++)
        if (wants(t, op, 1 + i))
            give(t, op, 1 + i, dw.out[i]);
}

static void grad_unary(tape *t, const dn_op *op, dn_val g)
{
    dn_val x = op->in[0];
    if (op->attr.unary.kind == DN_AFFINE)
        give(t, op, 0, dn_affine(t->p, g, op->attr.unary.a, 0));
    else
        give(t, op, 0, emit(t, DN_OP_UNARY_BWD, (dn_val[]){ x, g }, 2, &op->attr, shape_of(t, x), t->p->value[g].kind));
}

static void grad_binary(tape *t, const dn_op *op, dn_val g)
{
    dn_val a = op->in[0], b = op->in[1];
    enum dn_binary kind = op->attr.binary.kind;
    if (wants(t, op, 0))
        give(t, op, 0, kind == DN_MUL || kind == DN_DIV ? dn_binary(t->p, kind, g, b) : g);
    if (!wants(t, op, 1))
        return;
    dn_val gb = g;
    if (kind == DN_SUB)
        gb = dn_affine(t->p, g, -1, 0);
    if (kind == DN_MUL)
        gb = dn_binary(t->p, DN_MUL, g, a);
    if (kind == DN_DIV) /* -g * (a/b) / b */
        gb = dn_affine(t->p, dn_binary(t->p, DN_DIV, dn_binary(t->p, DN_MUL, g, op->out[0]), b), -1, 0);
    give(t, op, 1, gb);
}

/* Broadcast back: zeros of the input's shape plus the gradient. */
static void grad_sum_to(tape *t, const dn_op *op, dn_val g)
{
    give(t, op, 0, dn_binary(t->p, DN_ADD, dn_affine(t->p, op->in[0], 0, 0), g));
}

static void grad_softmax(tape *t, const dn_op *op, dn_val g)
{
    dn_val y = op->out[0];
    give(t, op, 0, emit(t, DN_OP_SOFTMAX_BWD, (dn_val[]){ y, g }, 2, NULL, shape_of(t, y), DN_ROW));
}

static void grad_copy(tape *t, const dn_op *op, dn_val g)
{
    for (int i = 0; i < op->n_in; i++)
        if (wants(t, op, i))
            give(t, op, i, dn_copy_adjoint(t->p, op, i, g));
}

static void grad_embed(tape *t, const dn_op *op, dn_val g)
{
    if (wants(t, op, 0))
        give(t, op, 0,
             emit(t, DN_OP_EMBED_DW, (dn_val[]){ op->in[1], op->in[2], g }, 3, NULL, shape_of(t, op->in[0]), DN_BATCH));
}

/* Up (taps sum to 2 per axis) and down (to 1) are each other's adjoint but for a factor of 4. */
static void grad_fir(tape *t, const dn_op *op, dn_val g)
{
    bool up = op->attr.fir.up;
    dn_attr attr = { .fir = { !up, op->attr.fir.scale * (up ? 4 : 0.25) } };
    give(t, op, 0, emit(t, DN_OP_FIR, &g, 1, &attr, shape_of(t, op->in[0]), DN_ROW));
}

static void grad_dropout(tape *t, const dn_op *op, dn_val g)
{
    if (wants(t, op, 0))
        give(t, op, 0, dn_dropout(t->p, g, op->in[1], op->attr.random.p, op->attr.random.op_id));
}

static void grad_loss(tape *t, const dn_op *op, dn_val g)
{
    dn_val a = op->in[0], b = op->in[1];
    dn_val d = emit(t, DN_OP_LOSS_BWD, (dn_val[]){ a, b, g }, 3, &op->attr, shape_of(t, a), DN_ROW);
    if (wants(t, op, 0))
        give(t, op, 0, d);
    if (wants(t, op, 1))
        give(t, op, 1, dn_affine(t->p, d, -1, 0));
}

static void grad_cross_entropy(tape *t, const dn_op *op, dn_val g)
{
    dn_val in[] = { op->in[0], op->in[1], g };
    if (wants(t, op, 0))
        give(t, op, 0, emit(t, DN_OP_CROSS_ENTROPY_BWD, in, 3, NULL, shape_of(t, op->in[0]), DN_ROW));
}

/* Piecewise constant in x: only the codes move (the straight-through estimator is the model's: x + detach(vq(x) - x)).
 */
static void grad_vq(tape *t, const dn_op *op, dn_val g)
{
    dn_val in[] = { op->out[1], g, op->in[1] };
    if (wants(t, op, 1))
        give(t, op, 1, emit(t, DN_OP_VQ_DW, in, 3, NULL, shape_of(t, op->in[1]), DN_BATCH));
}

static void grad_cast(tape *t, const dn_op *op, dn_val g)
{
    give(t, op, 0, dn_cast(t->p, g, t->p->value[op->in[0]].dtype));
}

static const rule rules[DN_OP_COUNT] = {
    [DN_OP_CONV2D] = grad_conv2d,
    [DN_OP_CONV2D_DX] = grad_conv2d_dx,
    [DN_OP_MATMUL] = grad_matmul,
    [DN_OP_ATTENTION] = grad_attention,
    [DN_OP_NORM] = grad_norm,
    [DN_OP_UNARY] = grad_unary,
    [DN_OP_BINARY] = grad_binary,
    [DN_OP_SUM_TO] = grad_sum_to,
    [DN_OP_SOFTMAX] = grad_softmax,
    [DN_OP_COPY] = grad_copy,
    [DN_OP_EMBED] = grad_embed,
    [DN_OP_FIR] = grad_fir,
    [DN_OP_DROPOUT] = grad_dropout,
    [DN_OP_LOSS] = grad_loss,
    [DN_OP_CROSS_ENTROPY] = grad_cross_entropy,
    [DN_OP_VQ] = grad_vq,
    [DN_OP_CAST] = grad_cast,
};

/* Ops that stop the gradient: constants, random numbers, features of the timestep. */
static const bool stops[DN_OP_COUNT] = {
    [DN_OP_TIMESTEP] = true,
    [DN_OP_FOURIER] = true,
    [DN_OP_NORMAL] = true,
    [DN_OP_DETACH] = true,
};

static void mark_wanted(tape *t, const dn_val *wrt, int n)
{
    for (int i = 0; i < n; i++)
        if (wrt[i] != DN_NONE)
            t->wanted[wrt[i]] = 1;
    for (int i = 0; i < t->p->n_ops; i++) {
        const dn_op *op = &t->p->op[i];
        bool any = false;
        for (int j = 0; j < op->n_in && !stops[op->kind]; j++)
            any |= wants(t, op, j);
        if (any && op->out[0] != DN_NONE)
            t->wanted[op->out[0]] = 1;
    }
}

static void walk_back(tape *t, int n_ops)
{
    for (int i = n_ops - 1; i >= 0 && !t->p->error.code; i--) {
        const dn_op op = t->p->op[i]; /* a copy: rules append ops, which may move the array */
        dn_val g = op.out[0] == DN_NONE ? DN_NONE : t->grad[op.out[0]];
        if (g == DN_NONE || !t->wanted[op.out[0]] || stops[op.kind])
            continue;
        if (rules[op.kind])
            rules[op.kind](t, &op, g);
        else
            dn_program_fail(t->p, DN_E_UNSUPPORTED, "%s has no gradient", dn_op_name(op.kind));
    }
}

void dn_grad(dn_program *p, dn_val y, dn_val dy, const dn_val *wrt, int n, dn_val *grad)
{
    int n_values = p->n_values, n_ops = p->n_ops;
    p->first_backward = p->first_backward ? p->first_backward : n_ops;
    tape t = { p, malloc(sizeof(dn_val) * (size_t)(n_values + 1)), calloc((size_t)n_values + 1, 1) };
    for (int i = 0; i < n; i++)
        grad[i] = DN_NONE;
    if (!t.grad || !t.wanted) {
        dn_program_fail(p, DN_E_MEMORY, "out of memory");
    } else if (!p->error.code && y != DN_NONE) {
        for (int v = 0; v < n_values; v++)
            t.grad[v] = DN_NONE;
        mark_wanted(&t, wrt, n);
        t.grad[y] = dy == DN_NONE ? dn_affine(p, y, 0, 1) : dy;
        walk_back(&t, n_ops);
        for (int i = 0; i < n && !p->error.code; i++)
            grad[i] = wrt[i] == DN_NONE ? DN_NONE : t.grad[wrt[i]];
    }
    free(t.grad);
    free(t.wanted);
}
