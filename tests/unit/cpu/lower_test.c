/* Whole programs on the CPU backend against ref; and the same bits whatever the batch, the threads and the plan. */
#include "lower_run.h"
#include "nn.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Records a program with one block; its output is called "out". `c` holds the case's numbers. */
typedef struct spec {
    const char *name;
    void (*build)(dn_nn *m, const int *c);
    int c[8];
} spec;

static dn_val picture(dn_nn *m, int h, int w, int c) { return dn_input(m->p, "x", DN_F32, dn_shape(h, w, c)); }

/* c: height, width, in, out, groups, scale_shift, resample, activation */
static void resblock(dn_nn *m, const int *c)
{
    dn_val x = dn_nn_conv(m, "first", picture(m, c[0], c[1], 3), c[2], 3, 1, 1);
    dn_val emb = dn_unary(m->p, DN_SILU, dn_input(m->p, "emb", DN_F32, dn_shape(24)));
    dn_resnet r = { .channels = c[3],
                    .groups = c[4],
                    .eps = 1e-5,
                    .act = c[7],
                    .scale_shift = c[5],
                    .output_scale_factor = c[5] ? 1.5 : 1,
                    .resample = c[6] };
    dn_output(m->p, "out", dn_nn_resnet(m, "block", &r, x, emb));
}

/* c: height, width, channels, head dim, groups */
static void attention(dn_nn *m, const int *c)
{
    dn_val x = dn_nn_conv(m, "first", picture(m, c[0], c[1], 4), c[2], 3, 1, 1);
    dn_output(m->p, "out", dn_nn_attention(m, "attention", x, c[3], c[4], 1e-6, 1.25));
}

/* Down, up, skips: c: height, width, channels of two levels, groups, head dim, time: 0 positional, 1 Fourier */
static void small_unet(dn_nn *m, const int *c)
{
    dn_program *p = m->p;
    dn_val x = picture(m, c[0], c[1], 3), t = dn_input(p, "t", DN_F32, dn_shape(1));
    t = dn_affine(p, dn_unary(p, DN_ABS, t), 1, 0.5);
    dn_val features = c[6] ? dn_fourier(p, t, dn_param_add(p, m->block, "W", dn_shape(8), DN_PARAM_PLAIN, false))
                           : dn_timestep(p, dn_affine(p, t, 300, 0), 16, false, 1);
    dn_val ids = dn_input(p, "ids", DN_I32, dn_shape(2)), w = dn_input(p, "w", DN_F32, dn_shape(1));
    dn_val emb = dn_nn_time_mlp(m, "time", features, 32);
    emb = dn_unary(p, DN_SILU, dn_binary(p, DN_ADD, emb, dn_nn_embedding(m, "label", 5, 32, ids, w)));
    dn_resnet small = { .channels = c[2], .groups = c[4], .eps = 1e-6, .act = DN_SILU, .output_scale_factor = 1 };
    dn_resnet large = small;
    large.channels = c[3];
    dn_val a = dn_nn_conv(m, "in", dn_affine(p, x, 2, -1), c[2], 3, 1, 1);
    dn_val b = dn_nn_resnet(m, "down.0", &small, a, emb);
    dn_val d = dn_nn_conv_pads(m, "down.conv", b, c[2], 3, 2, (int[4]){ 0, 0, 1, 1 });
    dn_val e = dn_nn_attention(m, "down.attn", dn_nn_resnet(m, "down.1", &large, d, emb), c[5], c[4], 1e-6, 1);
    dn_val h = dn_nn_resnet(m, "mid", &large, e, emb);
    h = dn_nn_resnet(m, "up.0", &large, dn_concat(p, (dn_val[]){ h, e }, 2), emb);
    h = dn_nn_resnet(m, "up.1", &small, dn_concat(p, (dn_val[]){ h, d }, 2), emb);
    h = dn_nn_conv(m, "up.conv", dn_upsample2(p, h), c[2], 3, 1, 1);
    h = dn_nn_resnet(m, "up.2", &small, dn_concat(p, (dn_val[]){ h, b, a }, 3), emb);
    h = dn_unary(p, DN_SILU, dn_nn_group_norm(m, "norm_out", h, c[4], 1e-6));
    h = dn_nn_conv(m, "out", h, 3, 3, 1, 1);
    dn_output(p, "out", c[6] ? dn_binary(p, DN_DIV, h, t) : h);
}

/* The gradient of a small network by its input: operations that only ref knows, between blocked ones. */
static void input_gradient(dn_nn *m, const int *c)
{
    dn_val x = picture(m, c[0], c[1], c[2]);
    dn_resnet r = {
        .channels = c[2], .groups = c[3], .eps = 1e-5, .act = DN_SILU, .output_scale_factor = 1, .resample = c[4]
    };
    dn_val emb = dn_input(m->p, "emb", DN_F32, dn_shape(6)), grad;
    dn_val h = dn_nn_attention(m, "attention", dn_nn_resnet(m, "block", &r, x, emb), c[2], c[3], 1e-5, 1);
    h = dn_concat(m->p, (dn_val[]){ h, h }, 2);
    dn_grad(m->p, dn_nn_conv(m, "last", h, 2, 3, 1, 1), DN_NONE, &x, 1, &grad);
    dn_output(m->p, "out", grad);
}

/* Odds and ends: outputs that are read, aliased or plain inputs; every operand; slices; pooling. */
static void oddments(dn_nn *m, const int *c)
{
    dn_program *p = m->p;
    dn_val x = picture(m, c[0], c[1], c[2]), one = dn_input(p, "one", DN_F32, dn_shape(1));
    dn_val vec = dn_input(p, "vec", DN_F32, dn_shape(c[2]));
    dn_val par = dn_param_add(p, m->block, "par", dn_shape(c[2]), DN_PARAM_PLAIN, false);
    dn_val h = dn_nn_conv(m, "a", x, c[2], 3, 1, 1);
    dn_output(p, "kept", h);
    dn_val y = dn_binary(p, DN_SUB, vec, dn_unary(p, DN_SIGMOID, h));
    y = dn_binary(p, DN_ADD, dn_binary(p, DN_MUL, y, par), x);
    y = dn_binary(p, DN_DIV, y, dn_affine(p, dn_unary(p, DN_SQUARE, one), 1, 1));
    y = dn_clamp(p, dn_binary(p, DN_SUB, one, y), -1.5, 2);
    y = dn_binary(p, DN_MUL, dn_unary(p, DN_TANH, y), dn_unary(p, DN_RELU, h));
    dn_val left = dn_slice(p, y, 2, 0, c[3]), right = dn_slice(p, y, 2, c[3], c[2] - c[3]);
    y = dn_concat(p, (dn_val[]){ right, left, right, x }, 4);
    dn_val pooled = dn_upsample2(p, dn_avg_pool2(p, y));
    dn_val flat = dn_reshape(p, pooled, dn_shape(dn_shape_count(dn_shape_of(p, pooled))));
    dn_output(p, "alias", dn_reshape(p, h, dn_shape(c[0] * c[1], c[2])));
    dn_val lines = dn_layer_norm(p, dn_slice(p, pooled, 0, 1, 1), DN_NONE, DN_NONE, 1e-5);
    dn_val ends = dn_slice(p, flat, 0, 0, dn_shape_count(dn_shape_of(p, lines)));
    ends = dn_binary(p, DN_ADD, ends, dn_reshape(p, lines, *dn_shape_of(p, ends)));
    dn_output(p, "out", dn_nn_linear(m, "end", dn_unary(p, DN_SILU, ends), 5));
}

/* clang-format off */
static const spec specs[] = {
    { "resblock",            resblock, { 8, 8, 16, 32, 8, 0, DN_SAME, DN_SILU } },
    { "resblock, same",      resblock, { 16, 12, 32, 32, 32, 0, DN_SAME, DN_SILU } },
    { "resblock, groups 4",  resblock, { 10, 9, 64, 64, 16, 0, DN_SAME, DN_SILU } },
    { "resblock, 12 to 20",  resblock, { 7, 5, 12, 20, 2, 0, DN_SAME, DN_SILU } },
    { "resblock, 24 to 40",  resblock, { 9, 11, 24, 40, 8, 1, DN_SAME, DN_SILU } },
    { "resblock, up",        resblock, { 6, 4, 20, 20, 4, 1, DN_UP, DN_SILU } },
    { "resblock, down",      resblock, { 8, 6, 16, 16, 4, 0, DN_DOWN, DN_SILU } },
    { "resblock, mish",      resblock, { 4, 4, 8, 12, 4, 0, DN_SAME, DN_MISH } },
    { "resblock, relu",      resblock, { 4, 4, 8, 12, 4, 1, DN_SAME, DN_RELU } },
    { "resblock, 1x1",       resblock, { 1, 1, 8, 12, 4, 0, DN_SAME, DN_SILU } },
    { "attention",           attention, { 8, 8, 32, 8, 8 } },
    { "attention, one head", attention, { 6, 9, 40, 40, 8 } },
    { "attention, odd head", attention, { 5, 7, 20, 5, 4 } },
    { "attention, head 12",  attention, { 7, 7, 24, 12, 2 } },
    { "attention, no norm",  attention, { 3, 3, 16, 16, -1 } },
    { "attention, folded",   attention, { 10, 10, 48, 48, 8 } },
    { "unet",                small_unet, { 16, 16, 16, 32, 8, 8, 0 } },
    { "unet, 12 and 20",     small_unet, { 12, 8, 12, 20, 4, 10, 0 } },
    { "unet, 24 and 40",     small_unet, { 8, 10, 24, 40, 4, 8, 1 } },
    { "unet, 7 and 9",       small_unet, { 6, 6, 7, 9, 1, 3, 1 } },
    { "gradient",            input_gradient, { 6, 5, 16, 4, DN_SAME } },
    { "gradient, resampled", input_gradient, { 4, 6, 12, 3, DN_UP } },
    { "gradient, pooled",    input_gradient, { 4, 6, 12, 3, DN_DOWN } },
    { "oddments",            oddments, { 6, 4, 16, 8 } },
    { "oddments, 13",        oddments, { 4, 8, 13, 5 } },
};
/* clang-format on */
enum { SPECS = sizeof specs / sizeof *specs, ROWS = 3 };

static dn_program *record(const spec *s)
{
    dn_program *p = dn_program_new();
    assert_non_null(p);
    dn_nn m = { p, dn_block_add(p, "net") };
    s->build(&m, s->c);
    if (p->error.code)
        fail_msg("%s: %s", s->name, p->error.message);
    dn_program_prune(p);
    return p;
}

static void each_output(const spec *s, void (*check)(const spec *, const dn_program *, const float *, const char *))
{
    dn_program *p = record(s);
    float *block = parameters(p, 0, 11);
    static const char *const names[] = { "out", "kept", "alias" };
    for (int i = 0; i < 3; i++)
        if (dn_find(p, names[i]) != DN_NONE)
            check(s, p, block, names[i]);
    free(block);
    dn_program_free(p);
}

static void check_ref(const spec *s, const dn_program *p, const float *block, const char *name)
{
    int64_t n;
    float *a = run_program(&dn_backend_cpu, p, block, name, (batch){ .n = ROWS, .threads = 2 }, &n);
    float *b = run_program(&dn_backend_ref, p, block, name, (batch){ .n = ROWS }, &n);
    double d = difference(a, b, n * ROWS);
    printf("%-22s %-6s %.2e of the largest\n", s->name, name, d);
    assert_true(d <= 3e-5);
    free(a);
    free(b);
}

static void agrees_with_ref(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++)
        each_output(&specs[i], check_ref);
}

/* Row by row in runs of one, in any position, with another rows_max, thread count or plan: the same bits. */
static void check_bits(const spec *s, const dn_program *p, const float *block, const char *name)
{
    const batch others[] = {
        { .n = ROWS, .threads = 1 },          { .n = ROWS, .threads = 3 }, { .n = ROWS, .threads = 2, .apart = true },
        { .n = ROWS, .rows_max = 7 },         { .n = 1, .first = 2 },      { .n = 1, .first = 1, .rows_max = 4 },
        { .n = 2, .first = 1, .threads = 2 },
    };
    int64_t n, m;
    float *all = run_program(&dn_backend_cpu, p, block, name, (batch){ .n = ROWS, .threads = 2 }, &n);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        float *part = run_program(&dn_backend_cpu, p, block, name, others[i], &m);
        if (memcmp(part, all + others[i].first * n, (size_t)(others[i].n * n) * sizeof *part))
            fail_msg("%s, %s: other bits in variant %zu", s->name, name, i);
        free(part);
    }
    free(all);
}

static void bits_stay(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++)
        each_output(&specs[i], check_bits);
}

static dn_lowered *lower(const dn_program *p, int rows_max)
{
    dn_lowered *l = NULL;
    dn_error err = { 0 };
    if (dn_lower(&l, &dn_backend_cpu, p, rows_max, &err))
        fail_msg("%s: %s", err.param, err.message);
    return l;
}

/* Steps that convert a layout, or (with `kind`) that begin with such an op. */
static int count(const dn_lowered *l, bool conversions, enum dn_op_kind kind)
{
    int n = 0;
    for (int i = 0; i < l->n_steps; i++) {
        const dn_step *s = &l->step[i];
        bool converts = s->op_first > s->op_last;
        n += conversions ? converts : !converts && l->program->op[s->op_first].kind == kind;
    }
    return n;
}

/* Each op that needs no arithmetic of its own vanishes: into the step before it, or because its operands are written
 * where it would copy them. */
static void fuses(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        if (specs[i].build != small_unet || specs[i].c[2] % 8 || specs[i].c[3] % 8)
            continue;
        dn_program *p = record(&specs[i]);
        dn_lowered *l = lower(p, 2);
        assert_int_equal(count(l, true, 0), 0);
        assert_int_equal(count(l, false, DN_OP_COPY), 0);    /* the upsampling is the next convolution's */
        assert_int_equal(count(l, false, DN_OP_CONV2D), 20); /* 4, and 6 resnets with 4 shortcuts */
        assert_int_equal(count(l, false, DN_OP_NORM), 14);
        dn_lowered_free(l);
        dn_program_free(p);
    }
}

/* Scale and shift from time, and an output scale: still one step for each norm and convolution. */
static void fuses_modulation(void **state)
{
    (void)state;
    static const spec s = { "resblock", resblock, { 8, 8, 16, 16, 4, 1, DN_SAME, DN_SILU } };
    dn_program *p = record(&s);
    dn_lowered *l = lower(p, 2);
    assert_int_equal(count(l, false, DN_OP_BINARY), 0);
    assert_int_equal(count(l, false, DN_OP_UNARY), 2); /* silu(emb), 1 + scale */
    assert_int_equal(count(l, false, DN_OP_NORM) + count(l, false, DN_OP_CONV2D), 5);
    dn_lowered_free(l);
    dn_program_free(p);
}

/* One head between square layers of whole panels: a single step, and no layer by itself (fold.h). */
static void folds_attention(void **state)
{
    (void)state;
    static const struct {
        spec s;
        int layers;
    } cases[] = {
        { { "one head", attention, { 4, 4, 32, 32, 8 } }, 0 },
        { { "two heads", attention, { 4, 4, 32, 16, 8 } }, 4 },
        { { "half a panel", attention, { 4, 4, 24, 24, 8 } }, 4 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_program *p = record(&cases[i].s);
        dn_lowered *l = lower(p, 2);
        assert_int_equal(count(l, false, DN_OP_MATMUL), cases[i].layers);
        assert_int_equal(count(l, false, DN_OP_ATTENTION), 1);
        dn_lowered_free(l);
        dn_program_free(p);
    }
}

/* Networks whose packed weights would take gigabytes read the plain ones. Nothing of this size is run here. */
static void large_networks_keep_plain_weights(void **state)
{
    (void)state;
    dn_program *p = dn_program_new();
    dn_nn m = { p, dn_block_add(p, "net") };
    dn_val x = dn_nn_conv(&m, "in", dn_input(p, "x", DN_F32, dn_shape(16, 16, 3)), 4096, 3, 1, 1);
    dn_output(p, "half", x = dn_nn_conv(&m, "0", x, 4096, 3, 1, 1));
    x = dn_nn_conv(&m, "1", x, 4096, 3, 1, 1);
    dn_output(p, "out", dn_nn_conv(&m, "2", x, 4096, 3, 1, 1));
    dn_program_prune(p);
    dn_lowered *l = lower(p, 1);
    for (int i = 0; i < l->n_forms; i++) /* only that of the first, small one */
        assert_true(l->form[i].bytes < 1 << 20);
    dn_lowered_free(l);
    dn_program_free(p);
}

/* Beyond the kernels' limits ref computes: as right, only slower. */
static void wide_norm(void **state)
{
    (void)state;
    dn_program *p = dn_program_new();
    dn_nn m = { p, dn_block_add(p, "net") };
    dn_val x = dn_nn_conv(&m, "in", dn_input(p, "x", DN_F32, dn_shape(2, 3, 2)), 4104, 1, 1, 0);
    dn_output(p, "out", dn_nn_conv(&m, "out", dn_nn_group_norm(&m, "norm", x, 4, 1e-5), 2, 1, 1, 0));
    dn_program_prune(p);
    static const spec s = { "wide norm", NULL, { 0 } };
    float *block = parameters(p, 0, 3);
    check_ref(&s, p, block, "out");
    free(block);
    dn_program_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_ref), cmocka_unit_test(bits_stay),
        cmocka_unit_test(fuses),           cmocka_unit_test(fuses_modulation),
        cmocka_unit_test(folds_attention), cmocka_unit_test(large_networks_keep_plain_weights),
        cmocka_unit_test(wide_norm),
    };
    if (!dn_backend_cpu.available()) {
        printf("SKIPPED: this machine has no AVX2\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
