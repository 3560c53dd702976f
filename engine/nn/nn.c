#include "nn.h"
#include <math.h>

static int64_t channels_of(const dn_nn *m, dn_val x)
{
    const dn_shape *s = dn_shape_of(m->p, x);
    return s->rank ? s->dim[s->rank - 1] : 0;
}

static dn_val bias(dn_nn *m, int64_t n) { return dn_param_add(m->p, m->block, "bias", dn_shape(n), DN_PARAM_PLAIN, false); }

dn_val dn_nn_linear(dn_nn *m, const char *name, dn_val x, int64_t n)
{
    int mark = dn_scope_push(m->p, "%s", name);
    dn_val w = dn_param_add(m->p, m->block, "weight", dn_shape(channels_of(m, x), n), DN_PARAM_LINEAR, true);
    dn_val y = dn_matmul(m->p, x, w, bias(m, n), false);
    dn_scope_pop(m->p, mark);
    return y;
}

dn_val dn_nn_conv_pads(dn_nn *m, const char *name, dn_val x, int64_t n, int k, int stride, const int pad[4])
{
    int mark = dn_scope_push(m->p, "%s", name);
    dn_val w = dn_param_add(m->p, m->block, "weight", dn_shape(k, k, channels_of(m, x), n), DN_PARAM_CONV, true);
    dn_val y = dn_conv2d(m->p, x, w, bias(m, n), stride, pad);
    dn_scope_pop(m->p, mark);
    return y;
}

dn_val dn_nn_conv(dn_nn *m, const char *name, dn_val x, int64_t n, int k, int stride, int pad)
{
    return dn_nn_conv_pads(m, name, x, n, k, stride, (int[4]){ pad, pad, pad, pad });
}

dn_val dn_nn_group_norm(dn_nn *m, const char *name, dn_val x, int groups, double eps)
{
    if (groups < 0)
        return x;
    int mark = dn_scope_push(m->p, "%s", name);
    dn_val gamma = dn_param_add(m->p, m->block, "weight", dn_shape(channels_of(m, x)), DN_PARAM_PLAIN, false);
    dn_val y = dn_group_norm(m->p, x, gamma, bias(m, channels_of(m, x)), groups, eps);
    dn_scope_pop(m->p, mark);
    return y;
}

dn_val dn_nn_embedding(dn_nn *m, const char *name, int64_t rows, int64_t n, dn_val ids, dn_val w)
{
    int mark = dn_scope_push(m->p, "%s", name);
    dn_val table = dn_param_add(m->p, m->block, "weight", dn_shape(rows, n), DN_PARAM_PLAIN, true);
    dn_val y = dn_embed(m->p, table, ids, w);
    dn_scope_pop(m->p, mark);
    return y;
}

dn_val dn_nn_time_mlp(dn_nn *m, const char *name, dn_val x, int64_t n)
{
    int mark = dn_scope_push(m->p, "%s", name);
    dn_val y = dn_nn_linear(m, "linear_1", x, n);
    y = dn_nn_linear(m, "linear_2", dn_unary(m->p, DN_SILU, y), n);
    dn_scope_pop(m->p, mark);
    return y;
}

static dn_val resample(dn_nn *m, enum dn_resample how, dn_val x)
{
    return how == DN_UP ? dn_upsample2(m->p, x) : how == DN_DOWN ? dn_avg_pool2(m->p, x) : x;
}

static dn_val dropout(dn_nn *m, dn_val x, double rate)
{
    return rate > 0 && m->rng != DN_NONE ? dn_dropout(m->p, x, m->rng, rate, m->n_dropouts++) : x;
}

static dn_val divide(dn_nn *m, dn_val x, double by) { return by == 1 ? x : dn_affine(m->p, x, 1 / by, 0); }

/* norm2 with the time embedding: norm(h + e), or norm(h) * (1 + scale) + shift, [scale, shift] = e. */
static dn_val norm_with_time(dn_nn *m, const dn_resnet *c, dn_val h, dn_val act_emb)
{
    if (act_emb == DN_NONE)
        return dn_nn_group_norm(m, "norm2", h, c->groups, c->eps);
    dn_val e = dn_nn_linear(m, "time_emb_proj", act_emb, c->scale_shift ? 2 * c->channels : c->channels);
    if (!c->scale_shift)
        return dn_nn_group_norm(m, "norm2", dn_binary(m->p, DN_ADD, h, e), c->groups, c->eps);
    dn_val scale = dn_affine(m->p, dn_slice(m->p, e, 0, 0, c->channels), 1, 1);
    dn_val shift = dn_slice(m->p, e, 0, c->channels, c->channels);
    h = dn_nn_group_norm(m, "norm2", h, c->groups, c->eps);
    return dn_binary(m->p, DN_ADD, dn_binary(m->p, DN_MUL, h, scale), shift);
}

dn_val dn_nn_resnet(dn_nn *m, const char *name, const dn_resnet *c, dn_val x, dn_val act_emb)
{
    int mark = dn_scope_push(m->p, "%s", name);
    dn_val h = dn_unary(m->p, c->act, dn_nn_group_norm(m, "norm1", x, c->groups, c->eps));
    h = resample(m, c->resample, h);
    x = resample(m, c->resample, x);
    h = dn_nn_conv(m, "conv1", h, c->channels, 3, 1, 1);
    h = norm_with_time(m, c, h, act_emb);
    h = dropout(m, dn_unary(m->p, c->act, h), c->dropout);
    h = dn_nn_conv(m, "conv2", h, c->channels, 3, 1, 1);
    if (channels_of(m, x) != c->channels)
        x = dn_nn_conv(m, "conv_shortcut", x, c->channels, 1, 1, 0);
    x = divide(m, dn_binary(m->p, DN_ADD, x, h), c->output_scale_factor);
    dn_scope_pop(m->p, mark);
    return x;
}

dn_val dn_nn_attention(dn_nn *m, const char *name, dn_val x, int head_dim, int groups, double eps, double rescale)
{
    int mark = dn_scope_push(m->p, "%s", name);
    dn_shape shape = *dn_shape_of(m->p, x);
    int64_t c = channels_of(m, x);
    int heads = head_dim > 0 ? (int)(c / head_dim) : 0;
    if (heads < 1)
        return dn_program_fail(m->p, DN_E_INVALID, "attention_head_dim %d does not go into %lld channels", head_dim, (long long)c);
    dn_val y = dn_nn_group_norm(m, "group_norm", x, groups, eps);
    y = dn_reshape(m->p, y, dn_shape(shape.dim[0] * shape.dim[1], c)); /* [L,C] */
    int64_t inner = (int64_t)heads * head_dim;
    dn_val q = dn_nn_linear(m, "to_q", y, inner), k = dn_nn_linear(m, "to_k", y, inner), v = dn_nn_linear(m, "to_v", y, inner);
    y = dn_attention(m->p, q, k, v, heads, 1 / sqrt(head_dim));
    y = dn_reshape(m->p, dn_nn_linear(m, "to_out.0", y, c), shape);
    y = divide(m, dn_binary(m->p, DN_ADD, y, x), rescale);
    dn_scope_pop(m->p, mark);
    return y;
}
