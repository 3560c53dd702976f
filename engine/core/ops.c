/* ops.c - the builders: each checks shapes, says what the op makes, appends it. */
#include "program_internal.h"
#include "rng.h"
#include <string.h>

static const struct {
    int in_min, in_max, outs;
} arity[DN_OP_COUNT] = {
#define X(code, name, in_min, in_max, outs, grad) [DN_OP_##code] = { in_min, in_max, outs },
    DN_OPS(X)
#undef X
};

static const char *keep_scope(dn_program *p)
{
    if (p->n_ops && p->op[p->n_ops - 1].scope && !strcmp(p->op[p->n_ops - 1].scope, p->scope))
        return p->op[p->n_ops - 1].scope;
    return dn_heap_string(&p->mem, p->scope);
}

dn_val dn_op_add(dn_program *p, enum dn_op_kind kind, const dn_val *in, int n_in, const dn_attr *attr,
                 const dn_out *out)
{
    if (p->error.code)
        return DN_NONE;
    for (int i = 0; i < arity[kind].in_min; i++)
        if (i >= n_in || in[i] == DN_NONE)
            return dn_program_fail(p, DN_E_INTERNAL, "%s: input %d is missing", dn_op_name(kind), i);
    if (n_in > arity[kind].in_max || dn_grow(&p->op, p->n_ops, &p->ops_cap, sizeof *p->op))
        return dn_program_fail(p, DN_E_MEMORY, "%s: too many inputs, or out of memory", dn_op_name(kind));
    dn_op op = { .kind = kind, .n_in = n_in, .n_out = arity[kind].outs, .scope = keep_scope(p), .mark = p->mark };
    for (int i = 0; i < DN_IN_MAX; i++)
        op.in[i] = i < n_in ? in[i] : DN_NONE;
    for (int i = 0; i < DN_OUT_MAX; i++)
        op.out[i] = i < op.n_out ? dn_value_add(p, out[i].shape, out[i].kind, out[i].dtype, p->n_ops) : DN_NONE;
    if (attr)
        op.attr = *attr;
    if (p->error.code)
        return DN_NONE;
    p->op[p->n_ops++] = op;
    return op.out[0];
}

/* True once a failure is recorded or an input is missing: the builder then returns DN_NONE. */
static bool bad(dn_program *p, const char *what, const dn_val *in, int n)
{
    for (int i = 0; i < n && !p->error.code; i++)
        if (in[i] == DN_NONE)
            dn_program_fail(p, DN_E_INTERNAL, "%s: input %d is missing", what, i);
    return p->error.code != 0;
}
#define BAD(p, what, ...) \
    bad(p, what, (dn_val[]){ __VA_ARGS__ }, (int)(sizeof((dn_val[]){ __VA_ARGS__ }) / sizeof(dn_val)))

static dn_val mismatch(dn_program *p, const char *what)
{
    return dn_program_fail(p, DN_E_INTERNAL, "%s: shapes do not fit", what);
}

/* A result has a copy per row as soon as one input has. */
static enum dn_kind joint_kind(const dn_program *p, const dn_val *in, int n)
{
    for (int i = 0; i < n; i++)
        if (in[i] != DN_NONE && p->value[in[i]].kind == DN_ROW)
            return DN_ROW;
    return DN_BATCH;
}

static int64_t last_dim(const dn_shape *s) { return s->rank ? s->dim[s->rank - 1] : 1; }

static dn_shape with_last(dn_shape s, int64_t last)
{
    s.dim[s.rank - 1] = last;
    return s;
}

/* ---- convolution, matmul ---- */

dn_val dn_conv2d(dn_program *p, dn_val x, dn_val w, dn_val bias, int stride, const int pad[4])
{
    if (BAD(p, "conv2d", x, w))
        return DN_NONE;
    const dn_shape *xs = dn_shape_of(p, x), *ws = dn_shape_of(p, w);
    if (xs->rank != 3 || ws->rank != 4 || xs->dim[2] != ws->dim[2] || stride < 1)
        return mismatch(p, "conv2d");
    int64_t h = xs->dim[0] + pad[DN_TOP] + pad[DN_BOTTOM] - ws->dim[0];
    int64_t v = xs->dim[1] + pad[DN_LEFT] + pad[DN_RIGHT] - ws->dim[1];
    if (h < 0 || v < 0)
        return dn_program_fail(p, DN_E_IMPOSSIBLE, "conv2d: the picture is smaller than the kernel");
    dn_out out = { dn_shape(h / stride + 1, v / stride + 1, ws->dim[3]), DN_ROW, DN_F32 };
    dn_attr attr = { .conv = { stride, { pad[0], pad[1], pad[2], pad[3] } } };
    return dn_op_add(p, DN_OP_CONV2D, (dn_val[]){ x, w, bias }, 3, &attr, &out);
}

dn_val dn_matmul(dn_program *p, dn_val x, dn_val w, dn_val bias, bool transposed)
{
    if (BAD(p, "matmul", x, w))
        return DN_NONE;
    const dn_shape *xs = dn_shape_of(p, x), *ws = dn_shape_of(p, w);
    if (xs->rank < 1 || ws->rank != 2 || last_dim(xs) != ws->dim[transposed])
        return mismatch(p, "matmul");
    dn_out out = { with_last(*xs, ws->dim[!transposed]), p->value[x].kind, DN_F32 };
    dn_attr attr = { .matmul = { transposed } };
    return dn_op_add(p, DN_OP_MATMUL, (dn_val[]){ x, w, bias }, 3, &attr, &out);
}

/* ---- attention, normalisation ---- */

dn_val dn_attention(dn_program *p, dn_val q, dn_val k, dn_val v, int heads, double scale)
{
    if (BAD(p, "attention", q, k, v))
        return DN_NONE;
    const dn_shape *qs = dn_shape_of(p, q), *ks = dn_shape_of(p, k);
    if (qs->rank != 2 || ks->rank != 2 || !dn_shape_equal(ks, dn_shape_of(p, v)) || qs->dim[1] != ks->dim[1] ||
        heads < 1 || qs->dim[1] % heads)
        return mismatch(p, "attention");
    dn_out out = { *qs, DN_ROW, DN_F32 };
    dn_attr attr = { .attention = { heads, scale } };
    return dn_op_add(p, DN_OP_ATTENTION, (dn_val[]){ q, k, v }, 3, &attr, &out);
}

static dn_val norm(dn_program *p, dn_val x, dn_val gamma, dn_val beta, int groups, bool per_position, double eps)
{
    if (BAD(p, "norm", x))
        return DN_NONE;
    const dn_shape *xs = dn_shape_of(p, x);
    int64_t c = last_dim(xs);
    if (xs->rank < 1 || groups < 1 || c % groups)
        return dn_program_fail(p, DN_E_INVALID, "norm: %lld channels do not divide into %d groups", (long long)c,
                               groups);
    for (int i = 0; i < 2; i++) {
        dn_val v = i ? beta : gamma;
        if (v != DN_NONE && (dn_shape_of(p, v)->rank != 1 || dn_shape_of(p, v)->dim[0] != c))
            return mismatch(p, "norm");
    }
    int64_t units = per_position ? dn_shape_count(xs) / c : groups;
    dn_out out[] = { { *xs, DN_ROW, DN_F32 }, { dn_shape(units, 2), DN_ROW, DN_F32 } };
    dn_attr attr = { .norm = { groups, per_position, eps } };
    return dn_op_add(p, DN_OP_NORM, (dn_val[]){ x, gamma, beta }, 3, &attr, out);
}

dn_val dn_group_norm(dn_program *p, dn_val x, dn_val gamma, dn_val beta, int groups, double eps)
{
    return norm(p, x, gamma, beta, groups, false, eps);
}

dn_val dn_layer_norm(dn_program *p, dn_val x, dn_val gamma, dn_val beta, double eps)
{
    return norm(p, x, gamma, beta, 1, true, eps);
}

/* ---- elementwise ---- */

static dn_val unary(dn_program *p, enum dn_unary kind, dn_val x, double a, double b)
{
    if (BAD(p, "unary", x))
        return DN_NONE;
    dn_out out = { *dn_shape_of(p, x), joint_kind(p, &x, 1), DN_F32 };
    dn_attr attr = { .unary = { kind, a, b } };
    return dn_op_add(p, DN_OP_UNARY, &x, 1, &attr, &out);
}

dn_val dn_unary(dn_program *p, enum dn_unary kind, dn_val x) { return unary(p, kind, x, 0, 0); }
dn_val dn_affine(dn_program *p, dn_val x, double a, double b) { return unary(p, DN_AFFINE, x, a, b); }
dn_val dn_clamp(dn_program *p, dn_val x, double lo, double hi) { return unary(p, DN_CLAMP, x, lo, hi); }

/* The shape of a right-aligned broadcast, or rank -1. */
static dn_shape broadcast(const dn_shape *a, const dn_shape *b)
{
    const dn_shape *big = a->rank >= b->rank ? a : b, *small = big == a ? b : a;
    dn_shape s = *big;
    for (int i = 0; i < small->rank; i++) {
        int64_t *d = &s.dim[s.rank - small->rank + i], e = small->dim[i];
        if (*d != e && *d != 1 && e != 1)
            return (dn_shape){ .rank = -1 };
        if (*d == 1)
            *d = e;
    }
    return s;
}

dn_val dn_binary(dn_program *p, enum dn_binary kind, dn_val a, dn_val b)
{
    if (BAD(p, "binary", a, b))
        return DN_NONE;
    dn_shape shape = broadcast(dn_shape_of(p, a), dn_shape_of(p, b));
    if (shape.rank < 0)
        return mismatch(p, "binary");
    dn_val in[] = { a, b };
    dn_out out = { shape, joint_kind(p, in, 2), DN_F32 };
    dn_attr attr = { .binary = { kind } };
    return dn_op_add(p, DN_OP_BINARY, in, 2, &attr, &out);
}

dn_val dn_sum_to(dn_program *p, dn_val x, dn_shape shape, enum dn_kind kind)
{
    if (BAD(p, "sum_to", x))
        return DN_NONE;
    dn_shape back = broadcast(dn_shape_of(p, x), &shape);
    if (!dn_shape_equal(&back, dn_shape_of(p, x)) || shape.rank > back.rank ||
        (kind == DN_ROW && p->value[x].kind != DN_ROW))
        return mismatch(p, "sum_to");
    dn_out out = { shape, kind, DN_F32 };
    return dn_op_add(p, DN_OP_SUM_TO, &x, 1, NULL, &out);
}

dn_val dn_softmax(dn_program *p, dn_val x)
{
    dn_out out = { *dn_shape_of(p, x), DN_ROW, DN_F32 };
    return dn_op_add(p, DN_OP_SOFTMAX, &x, 1, NULL, &out);
}

/* ---- movement: all of it is dn_copy ---- */

/* Is every index of the part inside [0, count)? */
static bool part_fits(const int64_t *n, const int64_t *stride, int64_t off, int64_t count)
{
    int64_t lo = off, hi = off;
    for (int i = 0; i < DN_RANK_MAX; i++)
        *(stride[i] < 0 ? &lo : &hi) += (n[i] - 1) * stride[i];
    return lo >= 0 && hi < count;
}

dn_val dn_copy(dn_program *p, const dn_val *in, const dn_copy_part *part, int n, dn_shape shape, double scale,
               enum dn_copy_hint hint)
{
    if (n < 1 || n > DN_IN_MAX || bad(p, "copy", in, n))
        return dn_program_fail(p, DN_E_INTERNAL, "copy: %d inputs", n);
    dn_copy_part *own = dn_heap_alloc(&p->mem, sizeof *own * (size_t)n);
    if (!own)
        return dn_program_fail(p, DN_E_MEMORY, "out of memory");
    for (int i = 0; i < n; i++) {
        own[i] = part[i];
        for (int d = 0; d < DN_RANK_MAX; d++)
            own[i].n[d] = own[i].n[d] ? own[i].n[d] : 1;
        if (!part_fits(own[i].n, own[i].src_stride, own[i].src_off, dn_shape_count(dn_shape_of(p, in[i]))) ||
            !part_fits(own[i].n, own[i].dst_stride, own[i].dst_off, dn_shape_count(&shape)))
            return mismatch(p, "copy");
    }
    dn_out out = { shape, joint_kind(p, in, n), p->value[in[0]].dtype };
    dn_attr attr = { .copy = { own, scale, hint } };
    return dn_op_add(p, DN_OP_COPY, in, n, &attr, &out);
}

/* Row-major strides of a shape. */
static void strides_of(const dn_shape *s, int64_t *stride)
{
    int64_t step = 1;
    for (int i = s->rank - 1; i >= 0; i--) {
        stride[i] = step;
        step *= s->dim[i];
    }
}

dn_val dn_reshape(dn_program *p, dn_val x, dn_shape shape)
{
    if (BAD(p, "reshape", x))
        return DN_NONE;
    int64_t n = dn_shape_count(&shape);
    if (n != dn_shape_count(dn_shape_of(p, x)))
        return mismatch(p, "reshape");
    dn_copy_part part = { .n = { n }, .src_stride = { 1 }, .dst_stride = { 1 } };
    return dn_copy(p, &x, &part, 1, shape, 1, DN_COPY_RESHAPE);
}

dn_val dn_concat(dn_program *p, const dn_val *in, int n)
{
    if (n < 1 || n > DN_IN_MAX || bad(p, "concat", in, n))
        return dn_program_fail(p, DN_E_INTERNAL, "concat: %d inputs", n);
    dn_copy_part part[DN_IN_MAX] = { 0 };
    int64_t total = 0, outer = dn_shape_count(dn_shape_of(p, in[0])) / last_dim(dn_shape_of(p, in[0]));
    for (int i = 0; i < n; i++) {
        const dn_shape *s = dn_shape_of(p, in[i]);
        dn_shape same = with_last(*s, last_dim(dn_shape_of(p, in[0])));
        if (!dn_shape_equal(&same, dn_shape_of(p, in[0])))
            return mismatch(p, "concat");
        part[i] = (dn_copy_part){ .n = { outer, last_dim(s) }, .src_stride = { last_dim(s), 1 }, .dst_off = total };
        total += last_dim(s);
    }
    for (int i = 0; i < n; i++) {
        part[i].dst_stride[0] = total;
        part[i].dst_stride[1] = 1;
    }
    return dn_copy(p, in, part, n, with_last(*dn_shape_of(p, in[0]), total), 1, DN_COPY_CONCAT);
}

dn_val dn_slice(dn_program *p, dn_val x, int dim, int64_t from, int64_t n)
{
    if (BAD(p, "slice", x))
        return DN_NONE;
    dn_shape s = *dn_shape_of(p, x);
    if (dim < 0 || dim >= s.rank || from < 0 || n < 1 || from + n > s.dim[dim])
        return mismatch(p, "slice");
    dn_copy_part part = { 0 };
    strides_of(&s, part.src_stride);
    part.src_off = from * part.src_stride[dim];
    s.dim[dim] = n;
    strides_of(&s, part.dst_stride);
    memcpy(part.n, s.dim, sizeof part.n);
    for (int i = s.rank; i < DN_RANK_MAX; i++)
        part.n[i] = 1;
    return dn_copy(p, &x, &part, 1, s, 1, DN_COPY_SLICE);
}

dn_val dn_permute(dn_program *p, dn_val x, const int *order)
{
    if (BAD(p, "permute", x))
        return DN_NONE;
    const dn_shape *s = dn_shape_of(p, x);
    dn_shape out = { .rank = s->rank };
    int64_t stride[DN_RANK_MAX];
    strides_of(s, stride);
    dn_copy_part part = { 0 };
    for (int i = 0; i < s->rank; i++) {
        out.dim[i] = part.n[i] = s->dim[order[i]];
        part.src_stride[i] = stride[order[i]];
    }
    strides_of(&out, part.dst_stride);
    return dn_copy(p, &x, &part, 1, out, 1, DN_COPY_GENERAL);
}

/* Indices (y, dy, x, dx, c) of a picture of h x w and of one of twice the size. */
static dn_copy_part by_two(int64_t h, int64_t w, int64_t c, int64_t big_w)
{
    return (dn_copy_part){ .n = { h, 2, w, 2, c },
                           .src_stride = { w * c, 0, c, 0, 1 },
                           .dst_stride = { 2 * big_w * c, big_w * c, 2 * c, c, 1 } };
}

dn_val dn_upsample2(dn_program *p, dn_val x)
{
    if (BAD(p, "upsample2", x) || dn_shape_of(p, x)->rank != 3)
        return mismatch(p, "upsample2");
    const int64_t *d = dn_shape_of(p, x)->dim;
    dn_copy_part part = by_two(d[0], d[1], d[2], 2 * d[1]);
    return dn_copy(p, &x, &part, 1, dn_shape(2 * d[0], 2 * d[1], d[2]), 1, DN_COPY_UPSAMPLE2);
}

/* Source and destination exchanged: the adjoint of a copy. */
static dn_copy_part reversed(const dn_copy_part *a)
{
    dn_copy_part b = { .src_off = a->dst_off, .dst_off = a->src_off };
    memcpy(b.n, a->n, sizeof b.n);
    memcpy(b.src_stride, a->dst_stride, sizeof b.src_stride);
    memcpy(b.dst_stride, a->src_stride, sizeof b.dst_stride);
    return b;
}

dn_val dn_avg_pool2(dn_program *p, dn_val x)
{
    if (BAD(p, "avg_pool2", x) || dn_shape_of(p, x)->rank != 3)
        return mismatch(p, "avg_pool2");
    const int64_t *d = dn_shape_of(p, x)->dim;
    dn_copy_part up = by_two(d[0] / 2, d[1] / 2, d[2], d[1]), part = reversed(&up);
    return dn_copy(p, &x, &part, 1, dn_shape(d[0] / 2, d[1] / 2, d[2]), 0.25, DN_COPY_POOL2);
}

dn_val dn_copy_adjoint(dn_program *p, const dn_op *op, int i, dn_val g)
{
    static const enum dn_copy_hint back[] = {
        [DN_COPY_RESHAPE] = DN_COPY_RESHAPE, [DN_COPY_CONCAT] = DN_COPY_SLICE,  [DN_COPY_SLICE] = DN_COPY_GENERAL,
        [DN_COPY_UPSAMPLE2] = DN_COPY_POOL2, [DN_COPY_POOL2] = DN_COPY_UPSAMPLE2,
    };
    dn_copy_part part = reversed(&op->attr.copy.part[i]);
    dn_shape shape = *dn_shape_of(p, op->in[i]);
    return dn_copy(p, &g, &part, 1, shape, op->attr.copy.scale, back[op->attr.copy.hint]);
}

dn_val dn_fir(dn_program *p, dn_val x, bool up)
{
    if (BAD(p, "fir", x))
        return DN_NONE;
    const dn_shape *s = dn_shape_of(p, x);
    if (s->rank != 3 || (!up && (s->dim[0] % 2 || s->dim[1] % 2)))
        return mismatch(p, "fir");
    const int64_t *d = s->dim;
    dn_out out = { up ? dn_shape(2 * d[0], 2 * d[1], d[2]) : dn_shape(d[0] / 2, d[1] / 2, d[2]), DN_ROW, DN_F32 };
    dn_attr attr = { .fir = { up, 1.0 } };
    return dn_op_add(p, DN_OP_FIR, &x, 1, &attr, &out);
}

/* ---- embeddings ---- */

dn_val dn_embed(dn_program *p, dn_val table, dn_val ids, dn_val w)
{
    if (BAD(p, "embed", table, ids, w))
        return DN_NONE;
    if (dn_shape_of(p, table)->rank != 2 || dn_shape_count(dn_shape_of(p, ids)) != 2 ||
        dn_shape_count(dn_shape_of(p, w)) != 1)
        return mismatch(p, "embed");
    dn_out out = { dn_shape(dn_shape_of(p, table)->dim[1]), DN_ROW, DN_F32 };
    return dn_op_add(p, DN_OP_EMBED, (dn_val[]){ table, ids, w }, 3, NULL, &out);
}

dn_val dn_timestep(dn_program *p, dn_val t, int dim, bool flip_sin_to_cos, double freq_shift)
{
    if (dim < 2 || dim / 2 - freq_shift == 0)
        return dn_program_fail(p, DN_E_INVALID, "timestep: a dimension of %d", dim);
    dn_out out = { dn_shape(dim), DN_ROW, DN_F32 };
    dn_attr attr = { .timestep = { flip_sin_to_cos, freq_shift, 10000 } };
    return dn_op_add(p, DN_OP_TIMESTEP, &t, 1, &attr, &out);
}

dn_val dn_fourier(dn_program *p, dn_val t, dn_val w)
{
    if (BAD(p, "fourier", t, w))
        return DN_NONE;
    dn_out out = { dn_shape(2 * dn_shape_count(dn_shape_of(p, w))), DN_ROW, DN_F32 };
    return dn_op_add(p, DN_OP_FOURIER, (dn_val[]){ t, w }, 2, NULL, &out);
}

/* ---- random numbers ---- */

dn_val dn_dropout(dn_program *p, dn_val x, dn_val rng, double rate, int op_id)
{
    if (BAD(p, "dropout", x, rng))
        return DN_NONE;
    if (rate < 0 || rate >= 1)
        return dn_program_fail(p, DN_E_RANGE, "dropout: a rate of %g", rate);
    dn_out out = { *dn_shape_of(p, x), DN_ROW, DN_F32 };
    dn_attr attr = { .random = { rate, DN_RNG_DROPOUT, op_id } };
    return dn_op_add(p, DN_OP_DROPOUT, (dn_val[]){ x, rng }, 2, &attr, &out);
}

dn_val dn_normal(dn_program *p, dn_val rng, dn_shape shape, int purpose, int op_id)
{
    dn_out out = { shape, DN_ROW, DN_F32 };
    dn_attr attr = { .random = { 0, purpose, op_id } };
    return dn_op_add(p, DN_OP_NORMAL, &rng, 1, &attr, &out);
}

/* ---- losses, quantisation, the rest ---- */

dn_val dn_loss(dn_program *p, enum dn_loss kind, dn_val prediction, dn_val target, double delta)
{
    if (BAD(p, "loss", prediction, target))
        return DN_NONE;
    if (!dn_shape_equal(dn_shape_of(p, prediction), dn_shape_of(p, target)))
        return mismatch(p, "loss");
    dn_out out = { dn_shape(1), DN_ROW, DN_F32 };
    dn_attr attr = { .loss = { kind, delta } };
    return dn_op_add(p, DN_OP_LOSS, (dn_val[]){ prediction, target }, 2, &attr, &out);
}

dn_val dn_cross_entropy(dn_program *p, dn_val logits, dn_val label)
{
    dn_out out = { dn_shape(1), DN_ROW, DN_F32 };
    return dn_op_add(p, DN_OP_CROSS_ENTROPY, (dn_val[]){ logits, label }, 2, NULL, &out);
}

dn_val dn_vq(dn_program *p, dn_val x, dn_val codebook, dn_val *index)
{
    if (BAD(p, "vq", x, codebook))
        return DN_NONE;
    const dn_shape *xs = dn_shape_of(p, x), *cs = dn_shape_of(p, codebook);
    if (xs->rank < 2 || cs->rank != 2 || last_dim(xs) != cs->dim[1])
        return mismatch(p, "vq");
    dn_shape positions = *xs;
    positions.rank--;
    dn_out out[] = { { *xs, DN_ROW, DN_F32 }, { positions, DN_ROW, DN_I32 } };
    dn_val y = dn_op_add(p, DN_OP_VQ, (dn_val[]){ x, codebook }, 2, NULL, out);
    if (index)
        *index = y == DN_NONE ? DN_NONE : p->op[p->n_ops - 1].out[1];
    return y;
}

dn_val dn_cast(dn_program *p, dn_val x, enum dn_dtype t)
{
    if (BAD(p, "cast", x))
        return DN_NONE;
    dn_out out = { *dn_shape_of(p, x), joint_kind(p, &x, 1), t };
    return dn_op_add(p, DN_OP_CAST, &x, 1, NULL, &out);
}

dn_val dn_detach(dn_program *p, dn_val x)
{
    if (BAD(p, "detach", x))
        return DN_NONE;
    dn_out out = { *dn_shape_of(p, x), joint_kind(p, &x, 1), p->value[x].dtype };
    return dn_op_add(p, DN_OP_DETACH, &x, 1, NULL, &out);
}

void dn_accumulate(dn_program *p, int block, int param, dn_val g)
{
    if (g == DN_NONE || p->error.code)
        return;
    if (block < 0 || block >= p->n_blocks || !p->block[block].state || param < 0 || param >= p->block[block].n_params) {
        dn_program_fail(p, DN_E_INTERNAL, "accumulate: no such place in a state block");
        return;
    }
    dn_val place = p->block[block].param[param].val;
    const dn_value *value = &p->value[g];
    if (value->kind != DN_BATCH || value->dtype != DN_F32 || !dn_shape_equal(&value->shape, dn_shape_of(p, place)))
        mismatch(p, "accumulate");
    dn_op_add(p, DN_OP_ACCUMULATE, (dn_val[]){ place, g }, 2, NULL, NULL);
}
