#include "rows.h"
#include "rng.h"

static dn_val from(subject *s, const row *r, const char *name, dn_shape shape)
{
    return r->lo == 0 && r->hi == 0 ? feed(s, name, shape, -1, 1) : feed(s, name, shape, r->lo, r->hi);
}

static const dn_val none = DN_NONE;

/* a: H, W, C, K, kernel, stride, padding (0: none, 1: same, 2: only right and bottom), bias */
static dn_val conv_parts(subject *s, const row *r, dn_val x)
{
    int same = (int)r->a[4] / 2;
    int pads[3][4] = { { 0 }, { same, same, same, same }, { 0, 0, 1, 1 } };
    dn_val w = weight(s, "w", dn_shape(r->a[4], r->a[4], r->a[2], r->a[3]), -0.5, 0.5);
    dn_val bias = r->a[7] ? weight(s, "b", dn_shape(r->a[3]), -1, 1) : none;
    return dn_conv2d(s->p, x, w, bias, (int)r->a[5], pads[r->a[6]]);
}

static dn_val conv(subject *s, const row *r)
{
    return conv_parts(s, r, from(s, r, "x", dn_shape(r->a[0], r->a[1], r->a[2])));
}

/* The gradient by x, itself differentiated by what comes into it. */
static dn_val conv_dx(subject *s, const row *r)
{
    dn_val x = feed_fixed(s, "x", dn_shape(r->a[0], r->a[1], r->a[2]), -1, 1), y = conv_parts(s, r, x), dx;
    dn_grad(s->p, y, from(s, r, "dy", *dn_shape_of(s->p, y)), &x, 1, &dx);
    return dx;
}

/* a: rank 1 or 2, L, C, N, bias, transposed */
static dn_val matmul(subject *s, const row *r)
{
    dn_val x = from(s, r, "x", r->a[0] == 1 ? dn_shape(r->a[2]) : dn_shape(r->a[1], r->a[2]));
    dn_val w = weight(s, "w", r->a[5] ? dn_shape(r->a[3], r->a[2]) : dn_shape(r->a[2], r->a[3]), -0.5, 0.5);
    return dn_matmul(s->p, x, w, r->a[4] ? weight(s, "b", dn_shape(r->a[3]), -1, 1) : none, r->a[5]);
}

/* a: L, M, C, heads */
static dn_val attention(subject *s, const row *r)
{
    dn_val q = from(s, r, "q", dn_shape(r->a[0], r->a[2])), k = from(s, r, "k", dn_shape(r->a[1], r->a[2]));
    return dn_attention(s->p, q, k, from(s, r, "v", dn_shape(r->a[1], r->a[2])), (int)r->a[3], 0.7);
}

/* a: H, W (0: tokens [H,C]), C, groups (0: LayerNorm), affine (0: none, 1: both, 2: gamma alone, 3: beta alone) */
static dn_val norm(subject *s, const row *r)
{
    dn_val x = from(s, r, "x", r->a[1] ? dn_shape(r->a[0], r->a[1], r->a[2]) : dn_shape(r->a[0], r->a[2]));
    dn_val gamma = r->a[4] == 1 || r->a[4] == 2 ? weight(s, "gamma", dn_shape(r->a[2]), 0.5, 1.5) : none;
    dn_val beta = r->a[4] == 1 || r->a[4] == 3 ? weight(s, "beta", dn_shape(r->a[2]), -1, 1) : none;
    dn_val y =
        r->a[3] ? dn_group_norm(s->p, x, gamma, beta, (int)r->a[3], 1e-5) : dn_layer_norm(s->p, x, gamma, beta, 1e-5);
    keep(s, s->p->op[s->p->n_ops - 1].out[1]);
    return y;
}

/* a: kind */
static dn_val unary(subject *s, const row *r)
{
    dn_val x = from(s, r, "x", dn_shape(3, 5, 7));
    if (r->a[0] == DN_AFFINE)
        return dn_affine(s->p, x, 1.5, -0.25);
    return r->a[0] == DN_CLAMP ? dn_clamp(s->p, x, -0.5, 0.75) : dn_unary(s->p, (enum dn_unary)r->a[0], x);
}

/* a: kind, shape of a (3 dims), shape of b (3 dims, leading zeros left out), b is a parameter */
static dn_val binary(subject *s, const row *r)
{
    const int64_t *d = r->a + 4;
    dn_shape shape = d[0] ? dn_shape(d[0], d[1], d[2]) : d[1] ? dn_shape(d[1], d[2]) : dn_shape(d[2]);
    dn_val a = from(s, r, "a", dn_shape(r->a[1], r->a[2], r->a[3]));
    dn_val b = r->a[7] ? weight(s, "b", shape, 0.5, 2) : feed(s, "b", shape, 0.5, 2);
    return dn_binary(s->p, (enum dn_binary)r->a[0], a, b);
}

static dn_val binary_params(subject *s, const row *r)
{
    dn_val ab = dn_binary(s->p, (enum dn_binary)r->a[0], weight(s, "a", dn_shape(4, 3), -1, 1),
                          weight(s, "b", dn_shape(3), 0.5, 2));
    return dn_binary(s->p, DN_MUL, ab, from(s, r, "x", dn_shape(2, 4, 3)));
}

/* a: rank of the result, its dims */
static dn_val sum_to(subject *s, const row *r)
{
    dn_shape to = { .rank = (int)r->a[0], .dim = { r->a[1], r->a[2], r->a[3] } };
    return dn_sum_to(s->p, from(s, r, "x", dn_shape(3, 4, 5)), to, DN_ROW);
}

static dn_val sum_rows(subject *s, const row *r)
{
    dn_val sum = dn_sum_to(s->p, from(s, r, "x", dn_shape(3, 4, 5)), dn_shape(5), DN_BATCH);
    keep(s, sum);
    return dn_binary(s->p, DN_MUL, sum, from(s, r, "scale", dn_shape(2, 5)));
}

static dn_val softmax(subject *s, const row *r)
{
    return dn_softmax(s->p, from(s, r, "x", dn_shape(r->a[0], r->a[1])));
}

static dn_val reshape(subject *s, const row *r)
{
    return dn_reshape(s->p, from(s, r, "x", dn_shape(3, 4, 5)), dn_shape(6, 10));
}

/* a: channels of each part */
static dn_val concat(subject *s, const row *r)
{
    static const char *const name[] = { "a", "b", "c", "d", "e", "f", "g", "h" };
    dn_val in[8];
    int n = 0;
    for (; n < 8 && r->a[n]; n++)
        in[n] = from(s, r, name[n], dn_shape(3, 4, r->a[n]));
    return dn_concat(s->p, in, n);
}

/* a: dim, first, how many */
static dn_val slice(subject *s, const row *r)
{
    return dn_slice(s->p, from(s, r, "x", dn_shape(4, 5, 6)), (int)r->a[0], r->a[1], r->a[2]);
}

/* a: the order of four dims */
static dn_val permute(subject *s, const row *r)
{
    int order[4] = { (int)r->a[0], (int)r->a[1], (int)r->a[2], (int)r->a[3] };
    return dn_permute(s->p, from(s, r, "x", dn_shape(2, 3, 4, 5)), order);
}

static dn_val upsample(subject *s, const row *r)
{
    return dn_upsample2(s->p, from(s, r, "x", dn_shape(r->a[0], r->a[1], r->a[2])));
}
static dn_val pool(subject *s, const row *r)
{
    return dn_avg_pool2(s->p, from(s, r, "x", dn_shape(r->a[0], r->a[1], r->a[2])));
}

/* Two parts that overlap in the result, one of them read backwards, both scaled; two elements are never written. */
static dn_val overlap(subject *s, const row *r)
{
    dn_val in[] = { from(s, r, "a", dn_shape(6)), from(s, r, "b", dn_shape(3, 2)) };
    dn_copy_part part[] = { { .n = { 6 }, .src_stride = { -1 }, .dst_stride = { 1 }, .src_off = 5, .dst_off = 1 },
                            { .n = { 2, 3 }, .src_stride = { 1, 2 }, .dst_stride = { 3, 1 }, .dst_off = 2 } };
    return dn_copy(s->p, in, part, 2, dn_shape(3, 3), -0.5, DN_COPY_GENERAL);
}

/* a: 1: every w is 0, and the second id no id at all */
static dn_val embed(subject *s, const row *r)
{
    dn_val table = weight(s, "table", dn_shape(5, 8), -1, 1);
    dn_val ids = feed_int(s, "ids", dn_shape(2), 0, 4), w = feed_fixed(s, "w", dn_shape(1), 0, r->a[0] ? 0 : 1);
    tensor *t = subject_tensor(s, "ids");
    for (int i = 0; r->a[0] && i < s->rows; i++)
        t->data[2 * i + 1] = -1;
    return dn_embed(s->p, table, ids, w);
}

/* a: dim, flip_sin_to_cos, freq_shift */
static dn_val timestep(subject *s, const row *r)
{
    return dn_timestep(s->p, feed_fixed(s, "t", dn_shape(1), r->lo, r->hi), (int)r->a[0], r->a[1], (double)r->a[2]);
}

static dn_val fourier(subject *s, const row *r)
{
    dn_val w = weight(s, "w", dn_shape(6), -16, 16);
    subject_tensor(s, "w")->differentiate = false;
    return dn_fourier(s->p, feed_fixed(s, "t", dn_shape(1), r->lo, r->hi), w);
}

/* a: up, H, W, C */
static dn_val fir(subject *s, const row *r)
{
    return dn_fir(s->p, from(s, r, "x", dn_shape(r->a[1], r->a[2], r->a[3])), r->a[0]);
}

static dn_val dropout(subject *s, const row *r)
{
    dn_val rng = feed_int(s, "rng", dn_shape(4), 0, 1 << 20);
    return dn_dropout(s->p, from(s, r, "x", dn_shape(r->a[0])), rng, 0.3, 5);
}

static dn_val normal(subject *s, const row *r)
{
    return dn_normal(s->p, feed_int(s, "rng", dn_shape(4), 0, 1 << 20), dn_shape(r->a[0]), DN_RNG_NOISE, 9);
}

/* a: kind */
static dn_val loss(subject *s, const row *r)
{
    dn_val a = from(s, r, "prediction", dn_shape(4, 3, 2));
    return dn_loss(s->p, (enum dn_loss)r->a[0], a, from(s, r, "target", dn_shape(4, 3, 2)), 0.4);
}

static dn_val cross_entropy(subject *s, const row *r)
{
    return dn_cross_entropy(s->p, from(s, r, "logits", dn_shape(10)), feed_int(s, "label", dn_shape(1), 0, 9));
}

static dn_val vq(subject *s, const row *r)
{
    dn_val x = from(s, r, "x", dn_shape(4, 3, 2)), index;
    dn_val y = dn_vq(s->p, x, weight(s, "codes", dn_shape(6, 2), -1, 1), &index);
    keep(s, index);
    return y;
}

/* x + detach(vq(x) - x): straight through */
static dn_val detach(subject *s, const row *r)
{
    dn_val x = from(s, r, "x", dn_shape(4, 6));
    return dn_binary(s->p, DN_MUL, x, dn_detach(s->p, dn_unary(s->p, DN_SQUARE, x)));
}

/* a: the type in between */
static dn_val cast(subject *s, const row *r)
{
    dn_val narrow = dn_cast(s->p, from(s, r, "x", dn_shape(5, 7)), (enum dn_dtype)r->a[0]);
    return dn_cast(s->p, narrow, DN_F32);
}

/* a: n. What training does with a gradient: a sum over rows goes into a place beside the parameter's. */
static dn_val accumulate(subject *s, const row *r)
{
    dn_val x = from(s, r, "x", dn_shape(r->a[0])), other = weight(s, "other", dn_shape(3), -1, 1);
    dn_val y = dn_binary(s->p, DN_MUL, x, weight(s, "w", dn_shape(r->a[0]), -1, 1));
    dn_val z = dn_sum_to(s->p, y, dn_shape(1), DN_ROW);
    keep_sum(s, 1, dn_sum_to(s->p, y, dn_shape(r->a[0]), DN_BATCH));
    return dn_binary(s->p, DN_MUL, other, z);
}

/* A residual block with attention, as a U-Net has it: many values with overlapping lives. a: H, C */
static dn_val block(subject *s, const row *r)
{
    int64_t H = r->a[0], C = r->a[1];
    dn_program *p = s->p;
    dn_val x = from(s, r, "x", dn_shape(H, H, C)), temb = from(s, r, "temb", dn_shape(C));
    dn_val gamma = weight(s, "g1", dn_shape(C), 0.5, 1.5), beta = weight(s, "b1", dn_shape(C), -1, 1);
    dn_val h = dn_group_norm(p, x, gamma, beta, 4, 1e-5);
    h = dn_conv2d(p, dn_unary(p, DN_SILU, h), weight(s, "w1", dn_shape(3, 3, C, C), -0.2, 0.2), none, 1,
                  (int[4]){ 1, 1, 1, 1 });
    h = dn_binary(p, DN_ADD, h, dn_matmul(p, temb, weight(s, "wt", dn_shape(C, C), -0.3, 0.3), none, false));
    dn_val cat[] = { h, x };
    h = dn_matmul(p, dn_concat(p, cat, 2), weight(s, "w2", dn_shape(2 * C, C), -0.3, 0.3), none, false);
    dn_val t = dn_reshape(p, h, dn_shape(H * H, C));
    t = dn_binary(p, DN_ADD, t, dn_attention(p, t, t, t, 2, 0.5));
    return dn_reshape(p, t, dn_shape(H, H, C));
}

#define STEP_FUNCTION "a step function; facts_values.c checks its gradient"

/* clang-format off */
const row rows[] = {
    { "conv2d 3x3 same",            DN_OP_CONV2D, conv, { 6, 5, 3, 4, 3, 1, 1, 1 } },
    { "conv2d 3x3 8 to 16",         DN_OP_CONV2D, conv, { 8, 8, 8, 16, 3, 1, 1, 1 } },
    { "conv2d 3x3 odd size",        DN_OP_CONV2D, conv, { 7, 9, 16, 8, 3, 1, 1, 0 } },
    { "conv2d 3x3 stride 2",        DN_OP_CONV2D, conv, { 6, 7, 4, 5, 3, 2, 1, 1 } },
    { "conv2d 3x3 asymmetric",      DN_OP_CONV2D, conv, { 6, 8, 4, 8, 3, 2, 2, 1 } },
    { "conv2d 1x1",                 DN_OP_CONV2D, conv, { 4, 5, 6, 7, 1, 1, 0, 1 } },
    { "conv2d 1x1 to 3",            DN_OP_CONV2D, conv, { 4, 4, 16, 3, 1, 1, 0, 1 } },
    { "conv2d 5x5",                 DN_OP_CONV2D, conv, { 7, 6, 3, 2, 5, 1, 1, 0 } },
    { "conv2d 4x4 stride 4",        DN_OP_CONV2D, conv, { 8, 8, 3, 8, 4, 4, 0, 1 } },
    { "conv2d one position",        DN_OP_CONV2D, conv, { 3, 3, 5, 9, 3, 1, 0, 1 } },
    { "conv2d 1 pixel same",        DN_OP_CONV2D, conv, { 1, 1, 8, 8, 3, 1, 1, 1 } },
    { "conv2d 32x32x128",           DN_OP_CONV2D, conv, { 32, 32, 128, 128, 3, 1, 1, 1 }, .timed = true },
    { "conv2d_dx 3x3 same",         DN_OP_CONV2D_DX, conv_dx, { 5, 6, 3, 4, 3, 1, 1, 0 } },
    { "conv2d_dx 3x3 8 to 16",      DN_OP_CONV2D_DX, conv_dx, { 8, 8, 8, 16, 3, 1, 1, 0 } },
    { "conv2d_dx stride 2",         DN_OP_CONV2D_DX, conv_dx, { 7, 6, 4, 3, 3, 2, 1, 0 } },
    { "conv2d_dx asymmetric",       DN_OP_CONV2D_DX, conv_dx, { 6, 6, 3, 5, 3, 2, 2, 0 } },
    { "conv2d_dx 1x1",              DN_OP_CONV2D_DX, conv_dx, { 4, 3, 5, 6, 1, 1, 0, 0 } },
    { "matmul",                     DN_OP_MATMUL, matmul, { 2, 6, 7, 9, 1, 0 } },
    { "matmul transposed",          DN_OP_MATMUL, matmul, { 2, 6, 7, 9, 1, 1 } },
    { "matmul no bias",             DN_OP_MATMUL, matmul, { 2, 13, 16, 32, 0, 0 } },
    { "matmul vector",              DN_OP_MATMUL, matmul, { 1, 1, 12, 20, 1, 0 } },
    { "matmul to 1",                DN_OP_MATMUL, matmul, { 2, 3, 8, 1, 1, 0 } },
    { "matmul 1024x128x512",        DN_OP_MATMUL, matmul, { 2, 1024, 128, 512, 1, 0 }, .timed = true },
    { "attention",                  DN_OP_ATTENTION, attention, { 7, 5, 8, 2 } },
    { "attention 1 head",           DN_OP_ATTENTION, attention, { 16, 16, 12, 1 } },
    { "attention heads of 1",       DN_OP_ATTENTION, attention, { 4, 6, 3, 3 } },
    { "attention 1 key",            DN_OP_ATTENTION, attention, { 3, 1, 8, 2 } },
    { "attention sharp",            DN_OP_ATTENTION, attention, { 5, 9, 16, 2 }, -3, 3, 1e-5, 1e-4 },
    { "attention 256x128",          DN_OP_ATTENTION, attention, { 256, 256, 128, 4 }, .timed = true },
    { "group_norm",                 DN_OP_NORM, norm, { 3, 4, 8, 2, 1 } },
    { "group_norm no affine",       DN_OP_NORM, norm, { 4, 3, 6, 3, 0 } },
    { "group_norm gamma",           DN_OP_NORM, norm, { 4, 3, 6, 2, 2 } },
    { "group_norm beta",            DN_OP_NORM, norm, { 4, 3, 6, 2, 3 } },
    { "group_norm per channel",     DN_OP_NORM, norm, { 3, 3, 4, 4, 1 } },
    { "group_norm one group",       DN_OP_NORM, norm, { 3, 3, 5, 1, 1 } },
    { "group_norm tokens",          DN_OP_NORM, norm, { 9, 0, 16, 4, 1 } },
    { "group_norm far mean",        DN_OP_NORM, norm, { 4, 4, 8, 2, 1 }, 20, 21, .tol = 2e-5, .backend_tol = 2e-4 },
    { "group_norm 32x32x128",       DN_OP_NORM, norm, { 32, 32, 128, 32, 1 }, .timed = true },
    { "layer_norm",                 DN_OP_NORM, norm, { 5, 0, 12, 0, 1 } },
    { "layer_norm no affine",       DN_OP_NORM, norm, { 5, 0, 9, 0, 0 } },
    { "layer_norm pictures",        DN_OP_NORM, norm, { 3, 2, 8, 0, 1 } },
    { "silu",                       DN_OP_UNARY, unary, { DN_SILU }, -4, 4 },
    { "gelu",                       DN_OP_UNARY, unary, { DN_GELU }, -4, 4 },
    { "gelu_tanh",                  DN_OP_UNARY, unary, { DN_GELU_TANH }, -4, 4 },
    { "relu",                       DN_OP_UNARY, unary, { DN_RELU } },
    { "mish",                       DN_OP_UNARY, unary, { DN_MISH }, -4, 4 },
    { "sigmoid",                    DN_OP_UNARY, unary, { DN_SIGMOID }, -4, 4 },
    { "tanh",                       DN_OP_UNARY, unary, { DN_TANH }, -3, 3 },
    { "exp",                        DN_OP_UNARY, unary, { DN_EXP }, -4, 4 },
    { "log",                        DN_OP_UNARY, unary, { DN_LOG }, 0.2, 4 },
    { "sqrt",                       DN_OP_UNARY, unary, { DN_SQRT }, 0.2, 4 },
    { "square",                     DN_OP_UNARY, unary, { DN_SQUARE } },
    { "reciprocal",                 DN_OP_UNARY, unary, { DN_RECIPROCAL }, 0.3, 2 },
    { "abs",                        DN_OP_UNARY, unary, { DN_ABS } },
    { "affine",                     DN_OP_UNARY, unary, { DN_AFFINE } },
    { "clamp",                      DN_OP_UNARY, unary, { DN_CLAMP } },
    { "add",                        DN_OP_BINARY, binary, { DN_ADD, 3, 4, 5, 3, 4, 5 } },
    { "sub",                        DN_OP_BINARY, binary, { DN_SUB, 3, 4, 5, 3, 4, 5 } },
    { "mul",                        DN_OP_BINARY, binary, { DN_MUL, 3, 4, 5, 3, 4, 5 } },
    { "div",                        DN_OP_BINARY, binary, { DN_DIV, 3, 4, 5, 3, 4, 5 } },
    { "add channels",               DN_OP_BINARY, binary, { DN_ADD, 3, 4, 5, 0, 0, 5 } },
    { "mul channels of a parameter", DN_OP_BINARY, binary, { DN_MUL, 3, 4, 5, 0, 0, 5, 1 } },
    { "sub parameter",              DN_OP_BINARY, binary, { DN_SUB, 3, 4, 5, 0, 4, 5, 1 } },
    { "div number",                 DN_OP_BINARY, binary, { DN_DIV, 3, 4, 5, 0, 0, 1 } },
    { "mul positions",              DN_OP_BINARY, binary, { DN_MUL, 3, 4, 5, 3, 4, 1 } },
    { "mul both ways",              DN_OP_BINARY, binary, { DN_MUL, 3, 1, 5, 1, 4, 1 } },
    { "sub small from large rank",  DN_OP_BINARY, binary, { DN_SUB, 1, 1, 5, 3, 4, 5 } },
    { "add of parameters",          DN_OP_BINARY, binary_params, { DN_ADD } },
    { "div of parameters",          DN_OP_BINARY, binary_params, { DN_DIV } },
    { "sum_to channels",            DN_OP_SUM_TO, sum_to, { 1, 5 } },
    { "sum_to one",                 DN_OP_SUM_TO, sum_to, { 1, 1 } },
    { "sum_to number",              DN_OP_SUM_TO, sum_to, { 0 } },
    { "sum_to columns",             DN_OP_SUM_TO, sum_to, { 3, 3, 1, 5 } },
    { "sum_to positions",           DN_OP_SUM_TO, sum_to, { 2, 4, 1 } },
    { "sum_to over rows",           DN_OP_SUM_TO, sum_rows, .mixes = true },
    { "softmax",                    DN_OP_SOFTMAX, softmax, { 5, 7 }, -3, 3 },
    { "softmax of one",             DN_OP_SOFTMAX, softmax, { 3, 1 } },
    { "reshape",                    DN_OP_COPY, reshape },
    { "concat 2",                   DN_OP_COPY, concat, { 8, 8 } },
    { "concat 3 uneven",            DN_OP_COPY, concat, { 1, 5, 2 } },
    { "concat 8",                   DN_OP_COPY, concat, { 1, 2, 3, 4, 5, 6, 7, 8 } },
    { "slice rows",                 DN_OP_COPY, slice, { 0, 1, 2 } },
    { "slice columns",              DN_OP_COPY, slice, { 1, 0, 3 } },
    { "slice channels",             DN_OP_COPY, slice, { 2, 3, 3 } },
    { "permute 0213",               DN_OP_COPY, permute, { 0, 2, 1, 3 } },
    { "permute 3210",               DN_OP_COPY, permute, { 3, 2, 1, 0 } },
    { "upsample2",                  DN_OP_COPY, upsample, { 3, 4, 8 } },
    { "upsample2 one channel",      DN_OP_COPY, upsample, { 2, 3, 1 } },
    { "avg_pool2",                  DN_OP_COPY, pool, { 4, 6, 8 } },
    { "avg_pool2 odd",              DN_OP_COPY, pool, { 5, 7, 3 } },
    { "copy overlapping",           DN_OP_COPY, overlap },
    { "embed",                      DN_OP_EMBED, embed },
    { "embed one id",               DN_OP_EMBED, embed, { 1 } },
    { "timestep",                   DN_OP_TIMESTEP, timestep, { 32, 0, 1 }, 0, 999, .tol = 1e-4, .backend_tol = 1e-4 },
    { "timestep flipped",           DN_OP_TIMESTEP, timestep, { 32, 1, 0 }, 0, 999, .tol = 1e-4, .backend_tol = 1e-4 },
    { "timestep odd",               DN_OP_TIMESTEP, timestep, { 9, 1, 0 }, 0, 999, .tol = 1e-4, .backend_tol = 1e-4 },
    { "fourier",                    DN_OP_FOURIER, fourier, .lo = 0.01, .hi = 50, .tol = 1e-4, .backend_tol = 1e-4 },
    { "fir up",                     DN_OP_FIR, fir, { 1, 3, 4, 2 } },
    { "fir down",                   DN_OP_FIR, fir, { 0, 6, 4, 3 } },
    { "fir down 2x2",               DN_OP_FIR, fir, { 0, 2, 2, 8 } },
    { "dropout",                    DN_OP_DROPOUT, dropout, { 61 } },
    { "dropout long",               DN_OP_DROPOUT, dropout, { 1030 } },
    { "normal",                     DN_OP_NORMAL, normal, { 1023 } },
    { "mse",                        DN_OP_LOSS, loss, { DN_MSE } },
    { "l1",                         DN_OP_LOSS, loss, { DN_L1 } },
    { "huber",                      DN_OP_LOSS, loss, { DN_HUBER } },
    { "cross_entropy",              DN_OP_CROSS_ENTROPY, cross_entropy, .lo = -4, .hi = 4 },
    { "vq",                         DN_OP_VQ, vq },
    { "cast to itself",             DN_OP_CAST, cast, { DN_F32 } },
    { "cast half",                  DN_OP_CAST, cast, { DN_F16 }, .tol = 2e-3, .no_fd = STEP_FUNCTION },
    { "cast bfloat",                DN_OP_CAST, cast, { DN_BF16 }, .tol = 2e-2, .no_fd = STEP_FUNCTION },
    { "detach",                     DN_OP_DETACH, detach, .no_fd = "not a derivative by design; facts_values.c checks it" },
    { "accumulate",                 DN_OP_ACCUMULATE, accumulate, { 61 } },
    { "accumulate in pieces",       DN_OP_ACCUMULATE, accumulate, { 20001 }, .tol = 1e-5 },
    { "block",                      DN_OP_CONV2D, block, { 4, 8 }, .tol = 5e-6, .backend_tol = 5e-5 },
    { "block 16x64",                DN_OP_CONV2D, block, { 16, 64 }, .timed = true },
};
/* clang-format on */
const int n_rows = sizeof rows / sizeof *rows;
