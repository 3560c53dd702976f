/* forward.c - golden U-Nets through the public interface: forwards, and whole pipelines with torch's generator. */
#include "vectors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/device.h>
#include "update.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *folder, *output;
    double tolerance_ref, tolerance_cpu; /* of the largest output */
} golden;

static const golden goldens[] = {
    { "unet_ddpm", "output", 1e-5, 3e-5 },
    { "unet_ldm", "output", 1e-5, 3e-5 },
    { "unet_adm", "output", 1e-5, 3e-5 },
    { "unet_misc", "output", 1e-5, 3e-5 },
    { "unet_ddpm_fp16", "output_fp32_compute", 1e-5, 3e-5 },
    { "unet_ddpm_bf16", "output_fp32_compute", 1e-5, 3e-5 },
};

/* The same weights in other storage forms, which must give unet_ddpm's bits. */
static const char *const same_as_ddpm[] = { "unet_ddpm_bin", "unet_ddpm_sharded", "unet_ddpm_legacy_attn" };

static dn_model *load(const char *folder)
{
    char path[1024];
    dn_error err = { 0 };
    dn_model *m = NULL;
    snprintf(path, sizeof path, "%s/%s", GOLDEN_DIR, folder);
    if (dn_model_load(&m, path, &err))
        fail_msg("%s: %s", folder, err.message);
    return m;
}

static dn_device *device(const char *spec)
{
    dn_error err = { 0 };
    dn_device *d = NULL;
    if (dn_device_open(&d, spec, &err))
        fail_msg("%s: %s", spec, err.message);
    return d;
}

static dn_net *net(const dn_device *d, dn_model *m)
{
    const dn_model_info *info = dn_model_info_of(m);
    dn_error err = { 0 };
    dn_net *n = NULL;
    if (dn_net_new(&n, d, m, info->height, info->width, 0, &err))
        fail_msg("%s", err.message);
    return n;
}

static dn_sample_params params(const dn_model_info *info, const dn_table *table)
{
    return (dn_sample_params){ .table = table, .height = info->height, .width = info->width, .channels = info->channels,
                               .out_channels = info->out_channels, .label = -1, .null_label = info->null_label, .temperature = 1 };
}

static void run_rows(dn_device *d, const dn_net *n, dn_sample *const *s, int count)
{
    dn_row row[16];
    dn_batch *b = NULL;
    for (int i = 0; i < count; i++)
        row[i] = (dn_row){ s[i], DN_ROW_COND };
    assert_int_equal(dn_batch_begin(&b, d, n, row, count, NULL), 0);
    assert_int_equal(dn_batch_some(b, 0), 0);
    dn_batch_free(b);
    for (int i = 0; i < count; i++)
        assert_int_equal(dn_sample_update(s[i]), 0);
}

/* The outputs of the golden's three rows, run as one batch: [3,H,W,out]. malloc'ed. */
static float *forward(const char *folder, const char *vectors_of, const char *spec)
{
    vectors *v = vectors_open(vectors_of, "io.safetensors");
    float *x = vectors_nhwc(v, "sample"), *t = vectors_floats(v, "timestep");
    float *label = vectors_find(v, "class_labels") ? vectors_floats(v, "class_labels") : NULL;
    dn_model *m = load(folder);
    const dn_model_info *info = dn_model_info_of(m);
    dn_device *d = device(spec);
    dn_net *n = net(d, m);
    dn_sample *s[3];
    int64_t in = (int64_t)info->height * info->width * info->channels, out = in / info->channels * info->out_channels;
    float *y = malloc(sizeof *y * 3 * (size_t)out);
    for (int i = 0; i < 3; i++) {
        dn_table table;
        assert_int_equal(dn_table_plan_denoise(&table, t[i], 1, NULL), 0);
        dn_sample_params p = params(info, &table);
        p.x = x + i * in;
        p.label = label ? (int)label[i] : -1;
        assert_int_equal(dn_sample_new(&s[i], d, &p, NULL), 0);
    }
    run_rows(d, n, s, 3);
    for (int i = 0; i < 3; i++) {
        dn_sample_read(s[i], DN_READ_OUT, y + i * out);
        dn_sample_free(s[i]);
    }
    dn_net_free(n);
    dn_device_close(d);
    dn_model_free(m);
    free(label);
    free(t);
    free(x);
    vectors_close(v);
    return y;
}

static void check_forward(const golden *g, const char *spec, double tolerance)
{
    vectors *v = vectors_open(g->folder, "io.safetensors");
    float *want = vectors_nhwc(v, g->output), *got = forward(g->folder, g->folder, spec);
    double worst = worst_error(got, want, vectors_count(vectors_find(v, g->output)));
    print_message("%-16s on %-3s: %.2e of the largest output (at most %.0e)\n", g->folder, spec, worst, tolerance);
    assert_true(worst <= tolerance);
    free(got);
    free(want);
    vectors_close(v);
}

static void test_forward(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof goldens / sizeof *goldens; i++) {
        check_forward(&goldens[i], "ref", goldens[i].tolerance_ref);
        check_forward(&goldens[i], "cpu", goldens[i].tolerance_cpu);
    }
}

static void test_storage_forms(void **state)
{
    (void)state;
    float *want = forward("unet_ddpm", "unet_ddpm", "cpu");
    for (size_t i = 0; i < sizeof same_as_ddpm / sizeof *same_as_ddpm; i++) {
        float *got = forward(same_as_ddpm[i], "unet_ddpm", "cpu");
        assert_memory_equal(got, want, sizeof *got * 3 * 16 * 16 * 3);
        free(got);
    }
    free(want);
}

/* Both samples from one generator of seed 1234, as diffusers draws them (of pictures of a multiple of 16 values): all of the
 * first latent, then all of each step's noise. The test plays the part of dn_sample's own generator. */
typedef struct {
    dn_torch_rng rng;
    float *drawn;
    int64_t size, channels;
} one_generator;

static void draw_both(one_generator *g, float *dst)
{
    dn_torch_randn(&g->rng, g->drawn, 2 * g->size);
    int64_t pixels = g->size / g->channels;
    for (int64_t b = 0; b < 2; b++)
        for (int64_t i = 0; i < pixels; i++)
            for (int64_t c = 0; c < g->channels; c++)
                dst[(b * pixels + i) * g->channels + c] = g->drawn[(b * g->channels + c) * pixels + i];
}

/* Run a pipeline folder with the seeds 1 and 2, each with a torch generator of its own; compare every step and the end. */
static void check_pipeline(const char *folder, double eta, const char *spec)
{
    vectors *v = vectors_open(folder, "trace.safetensors");
    dn_model *m = load(folder);
    const dn_model_info *info = dn_model_info_of(m);
    dn_device *d = device(spec);
    dn_net *n = net(d, m);
    dn_sample *s[2];
    int64_t size = (int64_t)info->height * info->width * info->channels;
    float *got = malloc(sizeof *got * 2 * (size_t)size);
    for (int i = 0; i < 2; i++) {
        dn_plan_params plan = { .sampler = -1, .steps = 6, .eta = eta, .temperature = 1, .elements = size,
                                .guidance = { .scale = 1, .interval = { 0, 1 } } };
        dn_table table;
        assert_int_equal(dn_table_plan(&table, info->scheduler, &plan, NULL), 0);
        dn_sample_params p = params(info, &table);
        p.seed = (uint64_t)(1 + i);
        p.torch_rng = true;
        assert_int_equal(dn_sample_new(&s[i], d, &p, NULL), 0);
    }
    for (int step = 0; step < 6; step++) {
        char name[64];
        run_rows(d, n, s, 2);
        for (int i = 0; i < 2; i++)
            dn_sample_read(s[i], DN_READ_X, got + i * size);
        snprintf(name, sizeof name, "step%03d.step.prev_sample", step);
        float *want = vectors_nhwc(v, name);
        double worst = worst_error(got, want, 2 * size);
        if (worst > 1e-4)
            fail_msg("%s on %s: step %d differs by %.2e", folder, spec, step, worst);
        free(want);
    }
    float *images = vectors_floats(v, "images"); /* [2,H,W,C] in [0,1] */
    for (int64_t i = 0; i < 2 * size; i++)
        got[i] = got[i] / 2 + 0.5f < 0 ? 0 : got[i] / 2 + 0.5f > 1 ? 1 : got[i] / 2 + 0.5f;
    double worst = worst_error(got, images, 2 * size);
    print_message("%s on %s: pictures within %.2e\n", folder, spec, worst);
    assert_true(worst <= 1e-4);
    for (int i = 0; i < 2; i++)
        dn_sample_free(s[i]);
    free(images);
    free(got);
    dn_net_free(n);
    dn_device_close(d);
    dn_model_free(m);
    vectors_close(v);
}

/* The network's output for x at timestep t: [H,W,C]. */
static void evaluate(dn_device *d, const dn_net *n, const dn_model_info *info, const float *x, float t, float *out)
{
    dn_table table;
    dn_sample *s;
    assert_int_equal(dn_table_plan_denoise(&table, t, 1, NULL), 0);
    dn_sample_params p = params(info, &table);
    p.x = x;
    assert_int_equal(dn_sample_new(&s, d, &p, NULL), 0);
    run_rows(d, n, &s, 1);
    dn_sample_read(s, DN_READ_OUT, out);
    dn_sample_free(s);
}

static void check_one_generator(const char *folder, const char *spec)
{
    vectors *v = vectors_open(folder, "trace.safetensors");
    dn_model *m = load(folder);
    const dn_model_info *info = dn_model_info_of(m);
    dn_device *d = device(spec);
    dn_net *n = net(d, m);
    one_generator g = { .size = (int64_t)info->height * info->width * info->channels, .channels = info->channels };
    dn_plan_params plan = { .sampler = -1, .steps = 6, .temperature = 1, .elements = g.size, .guidance = { .scale = 1, .interval = { 0, 1 } } };
    dn_table table;
    assert_int_equal(dn_table_plan(&table, info->scheduler, &plan, NULL), 0);
    assert_int_equal(table.n_entries, 6);
    float *memory = malloc(sizeof *memory * 8 * (size_t)g.size), *x = memory, *z = x + 2 * g.size, *out = z + 2 * g.size;
    g.drawn = out + g.size; /* [2] */
    float *scratch = malloc(sizeof *scratch * 2 * (size_t)g.size);
    dn_torch_seed(&g.rng, 1234);
    draw_both(&g, x);
    for (int step = 0; step < 6; step++) {
        const dn_entry *e = &table.entry[step];
        char name[64];
        if (dn_entry_uses(e, DN_B_Z))
            draw_both(&g, z);
        for (int b = 0; b < 2; b++) {
            evaluate(d, n, info, x + b * g.size, e->timestep, out);
            dn_slot slot = { .n = g.size, .channels = info->channels, .out_channels = info->channels, .x = x + b * g.size,
                             .out = { out }, .z = z + b * g.size, .x0 = scratch, .scratch = scratch + g.size };
            assert_int_equal(dn_update(&slot, e), 0);
        }
        snprintf(name, sizeof name, "step%03d.step.prev_sample", step);
        float *want = vectors_nhwc(v, name);
        double worst = worst_error(x, want, 2 * g.size);
        if (worst > 1e-4)
            fail_msg("%s on %s: step %d differs by %.2e", folder, spec, step, worst);
        if (step == 5)
            print_message("%s on %s: within %.2e after 6 steps\n", folder, spec, worst);
        free(want);
    }
    free(scratch);
    free(memory);
    dn_table_fini(&table);
    dn_net_free(n);
    dn_device_close(d);
    dn_model_free(m);
    vectors_close(v);
}

static void test_pipelines(void **state)
{
    (void)state;
    check_one_generator("pipe_ddpm", "ref");
    check_one_generator("pipe_ddpm", "cpu");
    check_one_generator("pipe_ddim_eta0", "ref");
    check_one_generator("pipe_ddim_eta0", "cpu");
    check_pipeline("pipe_ddim_eta07_listgen", 0.7, "ref");
    check_pipeline("pipe_ddim_eta07_listgen", 0.7, "cpu");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_storage_forms),
        cmocka_unit_test(test_pipelines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
