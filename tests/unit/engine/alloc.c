/* alloc.c - loading a model and sampling from it, and planning a training program, with the Nth allocation failing, for
 * every N at first and every 17th after: an error each time, never a crash, and (under a sanitizer) never a leak.
 *
 * The engine's own allocations are caught by the linker (--wrap). jansson's are left alone: its parser does not survive
 * one that fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/device.h>
#include <denoised/image.h>
#include "model_internal.h"
#include "plan.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_long countdown = -1; /* allocations until one fails; below 0: none does */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static int fails(void) { return countdown >= 0 && countdown-- == 0; }
void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t size) { return fails() ? NULL : __real_realloc(p, size); }
void *__wrap_aligned_alloc(size_t alignment, size_t size) { return fails() ? NULL : __real_aligned_alloc(alignment, size); }

typedef struct {
    dn_model *model;
    dn_device *device;
    dn_net *net;
    dn_sample *sample;
    float *pixels;
    uint8_t *png;
} world;

static int run_sample(world *w, const dn_model_info *info, dn_error *err)
{
    while (!dn_sample_done(w->sample)) {
        dn_row row = { w->sample, DN_ROW_COND };
        dn_batch *b = NULL;
        int rc = dn_batch_begin(&b, w->device, w->net, &row, 1, err);
        rc = rc ? rc : -dn_batch_some(b, 0);
        dn_batch_free(b);
        rc = rc ? rc : dn_sample_update(w->sample);
        if (rc)
            return rc;
    }
    size_t n = (size_t)(info->height * info->width * info->channels), len;
    w->pixels = malloc(sizeof *w->pixels * n + n);
    if (!w->pixels)
        return DN_E_MEMORY;
    dn_sample_read(w->sample, DN_READ_X, w->pixels);
    uint8_t *bytes = (uint8_t *)(w->pixels + n);
    dn_image_to_u8(bytes, w->pixels, (int64_t)n, -1, 1);
    return dn_png_encode(&w->png, &len, bytes, info->height, info->width, info->channels, err);
}

static int plan_and_sample(world *w, dn_error *err)
{
    const dn_model_info *info = dn_model_info_of(w->model);
    dn_plan_params plan = { .sampler = DN_SAMPLER_UNIPC, .steps = 3, .temperature = 1, .guidance = { .scale = 1, .interval = { 0, 1 } },
                            .elements = info->height * info->width * info->channels };
    dn_table table = { 0 };
    int rc = dn_table_plan(&table, info->scheduler, &plan, err);
    dn_sample_params p = { .table = &table, .height = info->height, .width = info->width, .channels = info->channels,
                           .out_channels = info->out_channels, .label = -1, .temperature = 1, .keep_x0 = true, .torch_rng = true };
    rc = rc ? rc : dn_sample_new(&w->sample, w->device, &p, err);
    dn_table_fini(&table);
    return rc ? rc : run_sample(w, info, err);
}

/* All of it. Returns the error code. */
static int everything(dn_error *err)
{
    world w = { 0 };
    int rc = dn_model_load(&w.model, GOLDEN_DIR "/unet_misc", err);
    rc = rc ? rc : dn_device_open(&w.device, "cpu", err);
    rc = rc ? rc : dn_net_new(&w.net, w.device, w.model, 8, 16, 0, err);
    if (!rc && dn_model_info_of(w.model)->out_channels == 2 * dn_model_info_of(w.model)->channels)
        rc = plan_and_sample(&w, err);
    free(w.png);
    free(w.pixels);
    dn_sample_free(w.sample);
    dn_net_free(w.net);
    dn_device_close(w.device);
    dn_model_free(w.model);
    return rc;
}

/* The program of a training step with every pass. */
static dn_program *build_training(void *arg, const dn_marks *recompute)
{
    const dn_model *m = arg;
    enum { PARAMS_MAX = 512 };
    dn_val wrt[PARAMS_MAX], grad[PARAMS_MAX];
    dn_program *p = dn_program_new();
    if (!p)
        return NULL;
    dn_block_add(p, "unet");
    m->arch->build(m->config, p, 0, 8, 8);
    int n = p->error.code ? 0 : p->block[0].n_params;
    assert_true(n <= PARAMS_MAX);
    for (int i = 0; i < n; i++)
        wrt[i] = p->block[0].param[i].val;
    dn_val out = dn_find(p, "out");
    dn_grad(p, dn_loss(p, DN_MSE, out, dn_input(p, "target", DN_F32, *dn_shape_of(p, out)), 0), DN_NONE, wrt, n, grad);
    int mirror = dn_block_mirror(p, 0, "gradient");
    for (int i = 0; i < n; i++)
        dn_accumulate(p, mirror, i, grad[i]);
    dn_program_recompute(p, recompute);
    dn_program_store16(p, DN_BF16);
    dn_program_prune(p);
    return p;
}

static dn_model *training_model;
static size_t training_budget;

static int plan_training(dn_error *err)
{
    const dn_backend *b = dn_backend_cpu.available() ? &dn_backend_cpu : &dn_backend_ref;
    dn_search s = { build_training, training_model, b, 1, training_budget };
    dn_marks chosen;
    size_t bytes = 0;
    int rc = dn_plan_search(&s, &chosen, &bytes, err);
    if (!rc && training_budget == SIZE_MAX)
        training_budget = bytes / 10 * 9;
    return rc;
}

/* Each of the first `dense`, then every 17th. */
static void fail_each(int (*work)(dn_error *err), long dense)
{
    dn_error err = { 0 };
    countdown = 1L << 40;
    assert_int_equal(work(&err), 0);
    long total = (1L << 40) - countdown;
    assert_true(total > 100);
    for (long n = 0; n < total; n += n < dense ? 1 : 17) {
        err = (dn_error){ 0 };
        countdown = n;
        int rc = work(&err);
        if (countdown < 0 && rc == 0)
            continue; /* only a hint was lost */
        assert_int_equal(rc, DN_E_MEMORY);
    }
    countdown = -1;
    print_message("%ld allocations, failed in turn\n", total);
    assert_int_equal(work(&err), 0);
}

static void test_every_allocation(void **state)
{
    (void)state;
    fail_each(everything, 2000);
}

static void test_planning_a_training(void **state)
{
    (void)state;
    dn_error err = { 0 };
    assert_int_equal(dn_model_load(&training_model, GOLDEN_DIR "/unet_ddpm", &err), 0);
    training_budget = SIZE_MAX;
    assert_int_equal(plan_training(&err), 0);
    fail_each(plan_training, 120); /* within less: some blocks must be recomputed */
    dn_model_free(training_model);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_allocation), cmocka_unit_test(test_planning_a_training) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
