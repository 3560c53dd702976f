/* samples.c - samples and batches through the public interface: bytes do not depend on company, order, cuts or suspension;
 * labels, guidance rows, starts and non-finite values do what device.h says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/device.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 16 * 16 * 3 };

static dn_model *model;
static dn_device *device;
static dn_net *net;

static int set_up(void **state)
{
    (void)state;
    dn_error err = { 0 };
    if (dn_model_load(&model, GOLDEN_DIR "/unet_adm", &err) || dn_device_open(&device, "cpu", &err) ||
        dn_net_new(&net, device, model, 16, 16, 0, &err))
        fail_msg("%s", err.message);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    dn_net_free(net);
    dn_device_close(device);
    dn_model_free(model);
    return 0;
}

typedef struct {
    int sampler, steps, label;
    double scale;
    uint64_t seed;
} request;

static const request requests[] = {
    { DN_SAMPLER_DDIM, 4, 1, 1, 11 },    { DN_SAMPLER_DDPM, 5, 2, 1, 12 }, { DN_SAMPLER_DPMPP2M, 3, 3, 2, 13 },
    { DN_SAMPLER_HEUN, 3, 4, 1, 14 },    { DN_SAMPLER_UNIPC, 4, 5, 3, 15 }, { DN_SAMPLER_PNDM, 4, 6, 1, 16 },
    { DN_SAMPLER_EULER, 4, 7, 1.5, 17 },
};
enum { N = sizeof requests / sizeof *requests };

static dn_sample *make(const request *r)
{
    dn_plan_params plan = { .sampler = r->sampler, .steps = r->steps, .temperature = 1, .elements = SIZE,
                            .guidance = { .scale = r->scale, .interval = { 0, 1 } } };
    dn_table table = { 0 };
    dn_error err = { 0 };
    dn_sample *s = NULL;
    if (dn_table_plan(&table, dn_model_info_of(model)->scheduler, &plan, &err))
        fail_msg("%s", err.message);
    dn_sample_params p = { .table = &table, .height = 16, .width = 16, .channels = 3, .out_channels = 3, .seed = r->seed,
                           .label = r->label, .null_label = 0, .temperature = 1 };
    assert_int_equal(dn_sample_new(&s, device, &p, &err), 0);
    assert_null(table.entry);
    return s;
}

/* Run every row that the samples wait for as one batch, a little at a time if `ms` > 0. */
static void step(dn_sample **s, int n, double ms)
{
    dn_row row[3 * N];
    int rows = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < DN_ROWS_MAX; k++)
            if (dn_sample_rows(s[i]) & 1u << k)
                row[rows++] = (dn_row){ s[i], (enum dn_row_kind)k };
    dn_batch *b = NULL;
    int rc, calls = 0;
    assert_int_equal(dn_batch_begin(&b, device, net, row, rows, NULL), 0);
    while ((rc = dn_batch_some(b, ms)) == 1)
        calls++;
    assert_int_equal(rc, 0);
    assert_true(ms <= 0 || calls > 0);
    dn_batch_free(b);
    for (int i = 0; i < n; i++)
        if (!dn_sample_done(s[i])) {
            assert_int_equal(dn_sample_rows(s[i]), 0);
            assert_int_equal(dn_sample_update(s[i]), 0);
        }
}

static void run(dn_sample **s, int n, double ms)
{
    for (bool more = true; more;) {
        step(s, n, ms);
        more = false;
        for (int i = 0; i < n; i++)
            more |= !dn_sample_done(s[i]);
    }
}

static float *alone(const request *r)
{
    dn_sample *s = make(r);
    float *x = malloc(sizeof *x * SIZE);
    run(&s, 1, 0);
    dn_sample_read(s, DN_READ_X, x);
    assert_int_equal(dn_sample_step(s), r->steps);
    dn_sample_free(s);
    return x;
}

static void test_company(void **state)
{
    (void)state;
    float *want[N], got[SIZE];
    for (int i = 0; i < N; i++)
        want[i] = alone(&requests[i]);
    for (int turn = 0; turn < N; turn++) {
        dn_sample *s[N];
        for (int i = 0; i < N; i++)
            s[i] = make(&requests[(i + turn) % N]);
        run(s, N, turn == 1 ? 1e-6 : 0); /* once suspended after every step of the program */
        for (int i = 0; i < N; i++) {
            dn_sample_read(s[i], DN_READ_X, got);
            assert_memory_equal(got, want[(i + turn) % N], sizeof got);
            dn_sample_free(s[i]);
        }
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(want[i], want[j], sizeof got);
    for (int i = 0; i < N; i++)
        free(want[i]);
}

static float *evaluate(const dn_sample_params *base, double scale)
{
    dn_table table = { 0 };
    dn_sample *s;
    float *y = malloc(sizeof *y * SIZE);
    assert_int_equal(dn_table_plan_denoise(&table, 321, scale, NULL), 0);
    dn_sample_params p = *base;
    p.table = &table;
    assert_int_equal(dn_sample_new(&s, device, &p, NULL), 0);
    run(&s, 1, 0);
    dn_sample_read(s, DN_READ_OUT, y);
    dn_sample_free(s);
    return y;
}

/* out = u + w (c - u), and w between two labels moves from one to the other. */
static void test_guidance_and_labels(void **state)
{
    (void)state;
    dn_sample_params p = { .height = 16, .width = 16, .channels = 3, .out_channels = 3, .seed = 5, .label = 3, .null_label = 9, .temperature = 1 };
    float *c = evaluate(&p, 1), *guided = evaluate(&p, 2.5);
    p.label = 9;
    float *u = evaluate(&p, 1);
    p.label = 3;
    p.label_b = 9;
    p.label_w = 1;
    float *other = evaluate(&p, 1);
    p.label_w = 0.5f;
    float *middle = evaluate(&p, 1);
    assert_memory_not_equal(c, u, sizeof *c * SIZE);
    assert_memory_not_equal(middle, u, sizeof *c * SIZE);
    assert_memory_not_equal(middle, c, sizeof *c * SIZE);
    for (int i = 0; i < SIZE; i++) {
        assert_true(fabsf(guided[i] - (u[i] + 2.5f * (c[i] - u[i]))) < 1e-5f);
        assert_true(fabsf(other[i] - u[i]) < 1e-5f);
    }
    free(c);
    free(u);
    free(guided);
    free(other);
    free(middle);
}

static void test_non_finite(void **state)
{
    (void)state;
    float x[SIZE] = { 0 }, good[SIZE];
    x[100] = NAN;
    float *want = alone(&requests[0]);
    dn_table table = { 0 };
    dn_sample *s[2] = { make(&requests[0]) };
    assert_int_equal(dn_table_plan_denoise(&table, 1, 1, NULL), 0);
    dn_sample_params p = { .table = &table, .height = 16, .width = 16, .channels = 3, .out_channels = 3, .x = x, .temperature = 1 };
    assert_int_equal(dn_sample_new(&s[1], device, &p, NULL), 0);
    dn_row row[] = { { s[1], DN_ROW_COND }, { s[0], DN_ROW_COND } };
    dn_batch *b = NULL;
    assert_int_equal(dn_batch_begin(&b, device, net, row, 2, NULL), 0);
    assert_int_equal(dn_batch_some(b, 0), 0);
    dn_batch_free(b);
    assert_int_equal(dn_sample_update(s[1]), DN_E_NON_FINITE);
    dn_sample_free(s[1]);
    assert_int_equal(dn_sample_update(s[0]), 0);
    run(s, 1, 0);
    dn_sample_read(s[0], DN_READ_X, good);
    assert_memory_equal(good, want, sizeof good);
    dn_sample_free(s[0]);
    free(want);
}

/* Slots are counted when they come and go; one batch at a time. */
static void test_accounts(void **state)
{
    (void)state;
    size_t before = dn_device_bytes(device);
    dn_sample *s = make(&requests[4]);
    assert_true(dn_device_bytes(device) > before);
    dn_row row = { s, DN_ROW_COND };
    dn_batch *b = NULL, *second = NULL;
    dn_error err = { 0 };
    assert_int_equal(dn_batch_begin(&b, device, net, &row, 1, NULL), 0);
    assert_int_equal(dn_batch_begin(&second, device, net, &row, 1, &err), DN_E_INTERNAL);
    dn_batch_free(b);
    dn_sample_free(s);
    assert_true(dn_device_bytes(device) == before);
}

/* From the configuration alone: to the byte what the model, its forms and its arena then take. */
static void test_foreseen(void **state)
{
    (void)state;
    static const char *const dirs[] = { GOLDEN_DIR "/unet_adm", GOLDEN_DIR "/unet_ddpm", GOLDEN_DIR "/unet_misc",
                                        GOLDEN_DIR "/unet_ldm", GOLDEN_DIR "/pipe_ddpm" };
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        dn_footprint need = { 0 };
        dn_model *m = NULL;
        dn_net *n = NULL;
        dn_error err = { 0 };
        if (dn_net_foresee(&need, device, dirs[i], &err) || dn_model_load(&m, dirs[i], &err))
            fail_msg("%s: %s", dirs[i], err.message);
        const dn_model_info *info = dn_model_info_of(m);
        assert_int_equal(dn_net_new(&n, device, m, info->height, info->width, 0, &err), 0);
        assert_int_equal(need.weights, info->bytes);
        assert_int_equal(need.forms, dn_net_form_bytes(n));
        assert_int_equal(need.arena, dn_net_arena_bytes(n));
        assert_true(need.weights > 0 && need.arena > 0);
        dn_net_free(n);
        dn_model_free(m);
    }
    dn_footprint untouched = { 1, 2, 3 };
    assert_int_equal(dn_net_foresee(&untouched, device, GOLDEN_DIR "/nothing", NULL), DN_E_NOT_FOUND);
    assert_true(untouched.weights == 1 && untouched.forms == 2 && untouched.arena == 3);
}

/* A trimmed device has no arena; the next batch gives it one, and the same bytes. */
static void test_trim(void **state)
{
    (void)state;
    float *want = alone(&requests[2]);
    size_t arena = dn_net_arena_bytes(net), full = dn_device_bytes(device);
    dn_device_trim(device, arena);
    assert_int_equal(dn_device_bytes(device), full);
    dn_device_trim(device, arena - 1);
    assert_int_equal(dn_device_bytes(device), full - arena);
    float *got = alone(&requests[2]);
    assert_memory_equal(got, want, sizeof *got * SIZE);
    assert_int_equal(dn_device_bytes(device), full);
    free(got);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_company),    cmocka_unit_test(test_guidance_and_labels),
        cmocka_unit_test(test_non_finite), cmocka_unit_test(test_accounts),
        cmocka_unit_test(test_foreseen),   cmocka_unit_test(test_trim),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
