/* unet.c - diffusers' UNet2DModel: DDPM, ADM and LDM U-Nets (every block type but the Skip ones of NCSN++).
 *
 * Ho et al. 2020; Dhariwal and Nichol 2021 (scale_shift, resnet resampling). Names, order and quirks are diffusers':
 * attention_head_dim is channels per head; the mid block's attention has no group norm with scale_shift unless
 * attn_norm_num_groups says so. */
#include "arch.h"
#include <jansson.h>
#include <stdlib.h>

enum block_type { PLAIN, ATTENTION, RESNET, BLOCK_TYPES };
enum resample_type { BY_CONV, BY_RESNET };
enum time_type { POSITIONAL, FOURIER, LEARNED };
enum class_type { BY_TABLE = -1, BY_TIMESTEP, BY_VECTOR };

typedef struct {
    dn_config_list sample_size, channels, down, up;
    int in_channels, out_channels, layers, downsample_padding, head_dim, groups, attn_groups, num_classes, train_steps;
    int time_type, time_dim, mid, down_type, up_type, act, time_shift, class_type;
    bool center_input, flip, attention;
    double freq_shift, mid_scale, dropout, eps;
} config;

/* By enum block_type; then the first two again under their oldest names. */
static const char *const down_types[] = { "DownBlock2D",        "AttnDownBlock2D",        "ResnetDownsampleBlock2D",
                                          "UNetResDownBlock2D", "UNetResAttnDownBlock2D", NULL };
static const char *const up_types[] = { "UpBlock2D",        "AttnUpBlock2D",        "ResnetUpsampleBlock2D",
                                        "UNetResUpBlock2D", "UNetResAttnUpBlock2D", NULL };
static const char *const mid_types[] = { "UNetMidBlock2D", NULL };
static const char *const time_types[] = { "positional", "fourier", "learned", NULL };
static const char *const class_types[] = { "timestep", "identity", NULL };
static const char *const resample_types[] = { "conv", "resnet", NULL };
static const char *const shift_types[] = { "default", "scale_shift", NULL };
static const char *const acts[] = { "silu", "swish", "mish", "gelu", "relu", NULL };
static const enum dn_unary act_ops[] = { DN_SILU, DN_SILU, DN_MISH, DN_GELU, DN_RELU };

#define AT(field) offsetof(config, field)
/* clang-format off */
static const dn_config_key keys[] = {
    { "sample_size",             DN_CONFIG_INTS,    AT(sample_size),  1, 8192, .null_ok = true },
    { "in_channels",             DN_CONFIG_INT,     AT(in_channels),  1, 4096 },
    { "out_channels",            DN_CONFIG_INT,     AT(out_channels), 1, 4096 },
    { "center_input_sample",     DN_CONFIG_BOOL,    AT(center_input) },
    { "time_embedding_type",     DN_CONFIG_CHOICE,  AT(time_type), .choices = time_types },
    { "time_embedding_dim",      DN_CONFIG_INT,     AT(time_dim),     0, 65536, .null_ok = true, .null_value = 0 },
    { "freq_shift",              DN_CONFIG_DOUBLE,  AT(freq_shift),   0, 1e6 },
    { "flip_sin_to_cos",         DN_CONFIG_BOOL,    AT(flip) },
    { "down_block_types",        DN_CONFIG_CHOICES, AT(down), .choices = down_types },
    { "mid_block_type",          DN_CONFIG_CHOICE,  AT(mid), .choices = mid_types, .null_ok = true, .null_value = -1 },
    { "up_block_types",          DN_CONFIG_CHOICES, AT(up), .choices = up_types },
    { "block_out_channels",      DN_CONFIG_INTS,    AT(channels),     1, 65536 },
    { "layers_per_block",        DN_CONFIG_INT,     AT(layers),       1, 64 },
    { "mid_block_scale_factor",  DN_CONFIG_DOUBLE,  AT(mid_scale),    1e-6, 1e6 },
    { "downsample_padding",      DN_CONFIG_INT,     AT(downsample_padding), 0, 1 },
    { "downsample_type",         DN_CONFIG_CHOICE,  AT(down_type), .choices = resample_types },
    { "upsample_type",           DN_CONFIG_CHOICE,  AT(up_type), .choices = resample_types },
    { "dropout",                 DN_CONFIG_DOUBLE,  AT(dropout),      0, 1 },
    { "act_fn",                  DN_CONFIG_CHOICE,  AT(act), .choices = acts },
    { "attention_head_dim",      DN_CONFIG_INT,     AT(head_dim),     1, 65536, .null_ok = true, .null_value = 0 },
    { "norm_num_groups",         DN_CONFIG_INT,     AT(groups),       1, 65536 },
    { "attn_norm_num_groups",    DN_CONFIG_INT,     AT(attn_groups),  1, 65536, .null_ok = true, .null_value = 0 },
    { "norm_eps",                DN_CONFIG_DOUBLE,  AT(eps),          0, 1 },
    { "resnet_time_scale_shift", DN_CONFIG_CHOICE,  AT(time_shift), .choices = shift_types },
    { "add_attention",           DN_CONFIG_BOOL,    AT(attention) },
    { "class_embed_type",        DN_CONFIG_CHOICE,  AT(class_type), .choices = class_types, .null_ok = true, .null_value = BY_TABLE },
    { "num_class_embeds",        DN_CONFIG_INT,     AT(num_classes),  1, 1 << 24, .null_ok = true, .null_value = 0 },
    { "num_train_timesteps",     DN_CONFIG_INT,     AT(train_steps),  1, 1 << 24, .null_ok = true, .null_value = 0 },
};

static const config defaults = {
    .in_channels = 3, .out_channels = 3, .flip = true, .layers = 2, .mid_scale = 1, .downsample_padding = 1, .head_dim = 8,
    .groups = 32, .eps = 1e-5, .attention = true, .class_type = BY_TABLE, .channels = { 4, { 224, 448, 672, 896 } },
    .down = { 4, { PLAIN, ATTENTION, ATTENTION, ATTENTION } }, .up = { 4, { ATTENTION, ATTENTION, ATTENTION, PLAIN } },
};
/* clang-format on */

static int check(const config *c, dn_error *err)
{
    if (c->down.n != c->channels.n || c->up.n != c->channels.n)
        return dn_fail(err, DN_E_INVALID, "block_out_channels",
                       "config.json: %d down_block_types, %d up_block_types and %d block_out_channels must be as many", c->down.n,
                       c->up.n, c->channels.n);
    if (c->time_type == LEARNED && !c->train_steps)
        return dn_fail(err, DN_E_INVALID, "num_train_timesteps",
                       "config.json: a learned time embedding needs num_train_timesteps");
    if (c->sample_size.n > 2)
        return dn_fail(err, DN_E_INVALID, "sample_size", "config.json: sample_size must be a number or [height, width]");
    return 0;
}

static int parse(void **out, const json_t *json, dn_error *err)
{
    config *c = malloc(sizeof *c);
    json_t *copy = json_copy((json_t *)json), *size = json_object_get(json, "sample_size");
    if (json_is_number(size)) /* one number stands for a square */
        json_object_set_new(copy, "sample_size", json_pack("[O]", size));
    int rc = DN_E_MEMORY;
    if (c && copy) {
        *c = defaults;
        rc = dn_arch_read(c, keys, sizeof keys / sizeof *keys, copy, err);
        rc = rc ? rc : check(c, err);
    }
    json_decref(copy);
    if (rc)
        free(c);
    else
        *out = c;
    return rc;
}

static int64_t time_width(const config *c) { return c->time_dim ? c->time_dim : 4 * (int64_t)c->channels.value[0]; }

static void describe(const void *config_, dn_arch_info *info)
{
    const config *c = config_;
    *info = (dn_arch_info){ .in_channels = c->in_channels, .out_channels = c->out_channels, .size_multiple = 1 << (c->channels.n - 1) };
    if (c->sample_size.n) {
        info->height = c->sample_size.value[0];
        info->width = c->sample_size.value[c->sample_size.n - 1];
    }
    info->label_rows = c->class_type == BY_TIMESTEP && c->time_type == LEARNED ? c->train_steps : c->num_classes;
    if (c->class_type == BY_VECTOR) {
        info->label_kind = DN_LABEL_VECTOR; /* no classes, whatever num_class_embeds says */
        info->label_rows = 0;
    } else if (c->class_type == BY_TIMESTEP && c->time_type != LEARNED)
        info->label_kind = DN_LABEL_NUMBER;
    else if (info->label_rows)
        info->label_kind = DN_LABEL_EMBED;
    info->label_dim = time_width(c);
    info->time_rows = c->time_type == LEARNED ? c->train_steps : 0;
    info->dropout = c->dropout;
}

/* ---- the network ---- */

typedef struct {
    const config *c;
    dn_nn nn;
    dn_val t;        /* [1] */
    dn_val act_emb;  /* act(emb) [time_width] */
    dn_val skip[DN_CONFIG_LIST_MAX * 66];
    int n_skips;
} net;

/* The features of a number, as time_proj makes them: [C0], or [2*C0] for Fourier. */
static dn_val features(net *n, dn_val number)
{
    const config *c = n->c;
    if (c->time_type == FOURIER) {
        dn_val w = dn_param_add(n->nn.p, n->nn.block, "time_proj.weight", dn_shape(c->channels.value[0]), DN_PARAM_PLAIN, false);
        return dn_fourier(n->nn.p, number, w);
    }
    return dn_timestep(n->nn.p, number, c->channels.value[0], c->flip, c->freq_shift);
}

static dn_val time_features(net *n)
{
    dn_program *p = n->nn.p;
    if (n->c->time_type != LEARNED)
        return features(n, n->t);
    dn_val ids = dn_input(p, "time", DN_I32, dn_shape(2)), w = dn_input(p, "time_w", DN_F32, dn_shape(1));
    return dn_nn_embedding(&n->nn, "time_proj", n->c->train_steps, n->c->channels.value[0], ids, w);
}

/* The embedding of the class label [time_width], or DN_NONE. */
static dn_val label_embedding(net *n, const dn_arch_info *info)
{
    dn_program *p = n->nn.p;
    if (info->label_kind == DN_LABEL_VECTOR)
        return dn_input(p, "label_vector", DN_F32, dn_shape(info->label_dim));
    if (info->label_kind == DN_LABEL_NUMBER) {
        dn_val number = dn_input(p, "label_value", DN_F32, dn_shape(1));
        return dn_nn_time_mlp(&n->nn, "class_embedding", features(n, number), info->label_dim);
    }
    if (info->label_kind == DN_LABEL_EMBED) {
        dn_val ids = dn_input(p, "label", DN_I32, dn_shape(2)), w = dn_input(p, "label_w", DN_F32, dn_shape(1));
        if (n->c->class_type == BY_TABLE)
            return dn_nn_embedding(&n->nn, "class_embedding", info->label_rows, info->label_dim, ids, w);
        dn_val number = dn_nn_embedding(&n->nn, "time_proj", info->label_rows, n->c->channels.value[0], ids, w);
        return dn_nn_time_mlp(&n->nn, "class_embedding", number, info->label_dim);
    }
    return DN_NONE;
}

static void embed(net *n)
{
    dn_arch_info info;
    describe(n->c, &info);
    dn_val emb = dn_nn_time_mlp(&n->nn, "time_embedding", time_features(n), time_width(n->c));
    dn_val label = label_embedding(n, &info);
    if (label != DN_NONE)
        emb = dn_binary(n->nn.p, DN_ADD, emb, label);
    n->act_emb = dn_unary(n->nn.p, act_ops[n->c->act], emb);
}

static dn_val resnet(net *n, int i, const char *list, dn_val x, int64_t channels, double scale, enum dn_resample resample)
{
    const config *c = n->c;
    char name[32];
    snprintf(name, sizeof name, "%s.%d", list, i);
    dn_resnet r = { .channels = channels, .groups = c->groups, .eps = c->eps, .act = act_ops[c->act],
                    .scale_shift = c->time_shift, .output_scale_factor = scale, .resample = resample, .dropout = c->dropout };
    return dn_nn_resnet(&n->nn, name, &r, x, n->act_emb);
}

static dn_val attention(net *n, int i, dn_val x, int64_t channels, int groups, double scale)
{
    char name[32];
    snprintf(name, sizeof name, "attentions.%d", i);
    int head_dim = n->c->head_dim ? n->c->head_dim : (int)channels;
    return dn_nn_attention(&n->nn, name, x, head_dim, groups, n->c->eps, scale);
}

static void push_skip(net *n, dn_val x) { n->skip[n->n_skips++] = x; }

/* Only Attn blocks look at downsample_type and upsample_type; the Resnet ones always resample by resnet. */
static bool by_resnet(enum block_type type, int resample) { return type == RESNET || (type == ATTENTION && resample == BY_RESNET); }

static dn_val downsample(net *n, enum block_type type, dn_val x, int64_t channels)
{
    if (by_resnet(type, n->c->down_type))
        return resnet(n, 0, "downsamplers", x, channels, 1, DN_DOWN);
    int pad = n->c->downsample_padding; /* 0: one more row and column of zeros at the bottom and the right */
    return dn_nn_conv_pads(&n->nn, "downsamplers.0.conv", x, channels, 3, 2, (int[4]){ pad, pad, 1, 1 });
}

static dn_val down_block(net *n, int i, dn_val x)
{
    const config *c = n->c;
    enum block_type type = c->down.value[i] % BLOCK_TYPES;
    int64_t channels = c->channels.value[i];
    int mark = dn_scope_push(n->nn.p, "down_blocks.%d", i);
    for (int j = 0; j < c->layers; j++) {
        dn_mark_begin(n->nn.p);
        x = resnet(n, j, "resnets", x, channels, 1, DN_SAME);
        if (type == ATTENTION)
            x = attention(n, j, x, channels, c->groups, 1);
        dn_mark_end(n->nn.p);
        push_skip(n, x);
    }
    if (i < c->channels.n - 1) {
        dn_mark_begin(n->nn.p);
        x = downsample(n, type, x, channels);
        dn_mark_end(n->nn.p);
        push_skip(n, x);
    }
    dn_scope_pop(n->nn.p, mark);
    return x;
}

static dn_val mid_block(net *n, dn_val x)
{
    const config *c = n->c;
    if (c->mid < 0)
        return x;
    int64_t channels = c->channels.value[c->channels.n - 1];
    int groups = c->attn_groups ? c->attn_groups : c->time_shift ? -1 : c->groups;
    int mark = dn_scope_push(n->nn.p, "mid_block");
    dn_mark_begin(n->nn.p);
    x = resnet(n, 0, "resnets", x, channels, c->mid_scale, DN_SAME);
    if (c->attention)
        x = attention(n, 0, x, channels, groups, c->mid_scale);
    dn_mark_end(n->nn.p);
    dn_mark_begin(n->nn.p);
    x = resnet(n, 1, "resnets", x, channels, c->mid_scale, DN_SAME);
    dn_mark_end(n->nn.p);
    dn_scope_pop(n->nn.p, mark);
    return x;
}

static dn_val upsample(net *n, enum block_type type, dn_val x, int64_t channels)
{
    if (by_resnet(type, n->c->up_type))
        return resnet(n, 0, "upsamplers", x, channels, 1, DN_UP);
    return dn_nn_conv(&n->nn, "upsamplers.0.conv", dn_upsample2(n->nn.p, x), channels, 3, 1, 1);
}

static dn_val up_block(net *n, int i, dn_val x)
{
    const config *c = n->c;
    enum block_type type = c->up.value[i] % BLOCK_TYPES;
    int64_t channels = c->channels.value[c->channels.n - 1 - i];
    int mark = dn_scope_push(n->nn.p, "up_blocks.%d", i);
    for (int j = 0; j < c->layers + 1; j++) {
        dn_mark_begin(n->nn.p);
        x = dn_concat(n->nn.p, (dn_val[]){ x, n->skip[--n->n_skips] }, 2);
        x = resnet(n, j, "resnets", x, channels, 1, DN_SAME);
        if (type == ATTENTION)
            x = attention(n, j, x, channels, c->groups, 1);
        dn_mark_end(n->nn.p);
    }
    if (i < c->channels.n - 1) {
        dn_mark_begin(n->nn.p);
        x = upsample(n, type, x, channels);
        dn_mark_end(n->nn.p);
    }
    dn_scope_pop(n->nn.p, mark);
    return x;
}

static void build(const void *config_, dn_program *p, int block, int height, int width)
{
    const config *c = config_;
    net n = { .c = c, .nn = { p, block, dn_find(p, "rng") }, .t = DN_NONE };
    int multiple = 1 << (c->channels.n - 1);
    if (height % multiple || width % multiple) {
        dn_program_fail(p, DN_E_IMPOSSIBLE, "height and width must be multiples of %d, got %d x %d", multiple, height, width);
        return;
    }
    dn_val x = dn_input(p, "x", DN_F32, dn_shape(height, width, c->in_channels));
    if (c->time_type != LEARNED)
        n.t = dn_input(p, "t", DN_F32, dn_shape(1));
    embed(&n);
    if (c->center_input)
        x = dn_affine(p, x, 2, -1);
    x = dn_nn_conv(&n.nn, "conv_in", x, c->channels.value[0], 3, 1, 1);
    push_skip(&n, x);
    for (int i = 0; i < c->channels.n; i++)
        x = down_block(&n, i, x);
    x = mid_block(&n, x);
    for (int i = 0; i < c->channels.n; i++)
        x = up_block(&n, i, x);
    dn_mark_begin(p);
    x = dn_unary(p, DN_SILU, dn_nn_group_norm(&n.nn, "conv_norm_out", x, c->groups, c->eps));
    x = dn_nn_conv(&n.nn, "conv_out", x, c->out_channels, 3, 1, 1);
    dn_mark_end(p);
    if (c->time_type == FOURIER)
        x = dn_binary(p, DN_DIV, x, n.t);
    dn_output(p, "out", x);
}

const dn_arch dn_arch_unet2d = { "UNet2DModel", parse, describe, build, keys, sizeof keys / sizeof *keys };
