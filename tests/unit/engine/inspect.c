/* inspect.c - DENOISED_CHECK=ref names the first op that differs and no other, DENOISED_TRACE=1 tells of every step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/device.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "inspect.h"
#include "plan.h"

typedef struct {
    dn_lowered *lowered;
    dn_run run;
} made;

/* y = sigmoid(x^2) of one row of two numbers, on ref with every value apart. */
static made start(const dn_program *p, float a, float b)
{
    made m = { 0 };
    assert_int_equal(dn_lower(&m.lowered, &dn_backend_ref, p, 1, NULL), 0);
    assert_int_equal(dn_plan_apart(m.lowered, NULL), 0);
    m.run = (dn_run){ .lowered = m.lowered, .arena = aligned_alloc(64, m.lowered->arena_bytes + 64), .n = 1 };
    assert_non_null(m.run.arena);
    memcpy(dn_place_at(&m.run, m.lowered->value_place[dn_find(p, "x")], 0), (float[]){ a, b }, 2 * sizeof(float));
    return m;
}

static void finish(made *m)
{
    free(m->run.arena);
    dn_lowered_free(m->lowered);
}

/* How many steps of a run over (0.5, a) differ from those over (0.5, b). What was said goes to text. */
static int differences(const dn_program *p, float a, float b, char *text, size_t size)
{
    FILE *f = fmemopen(text, size, "w");
    assert_non_null(f);
    made want = start(p, 0.5f, b), got = start(p, 0.5f, a);
    assert_int_equal(dn_run_some(&want.run, 0), 0);
    dn_inspector in = { .file = f, .ref = &want.run, .tolerance = 1e-3 };
    got.run.inspector = &in;
    assert_int_equal(dn_run_some(&got.run, 0), 0);
    fclose(f);
    finish(&got);
    finish(&want);
    return in.differences;
}

static void test_differences(void **state)
{
    (void)state;
    dn_program *p = dn_program_new();
    dn_output(p, "y", dn_unary(p, DN_SIGMOID, dn_unary(p, DN_SQUARE, dn_input(p, "x", DN_F32, dn_shape(2)))));
    dn_program_prune(p);
    char text[1024] = "";
    assert_int_equal(differences(p, 2, 2, text, sizeof text), 0);
    assert_int_equal(differences(p, 2, 2.0001f, text, sizeof text), 0);
    assert_string_equal(text, "");
    assert_int_equal(differences(p, 2, 1, text, sizeof text), 2);
    assert_non_null(strstr(text, "first difference from ref:    0..0 "));
    assert_null(strstr(strstr(text, "first") + 1, "first"));
    assert_int_equal(differences(p, 2, -2, text, sizeof text), 0); /* x itself is no step's */
    assert_int_equal(differences(p, NAN, NAN, text, sizeof text), 0);
    assert_int_equal(differences(p, INFINITY, INFINITY, text, sizeof text), 0);
    assert_int_equal(differences(p, NAN, 2, text, sizeof text), 2);
    assert_int_equal(differences(p, 4, INFINITY, text, sizeof text), 1); /* both have a sigmoid of 1 */
    dn_program_free(p);
}

/* One evaluation of a golden model with both variables set; what the engine writes to stderr. */
static void run_inspected(char *text, size_t size)
{
    dn_model *m = NULL;
    dn_device *d = NULL;
    dn_net *n = NULL;
    dn_sample *s = NULL;
    dn_batch *b = NULL;
    dn_table table = { 0 };
    dn_error err = { 0 };
    FILE *f = tmpfile();
    int before = dup(STDERR_FILENO);
    assert_true(f && before >= 0);
    if (dn_model_load(&m, GOLDEN_DIR "/unet_adm", &err) || dn_device_open(&d, "cpu", &err) ||
        dn_net_new(&n, d, m, 16, 16, 0, &err) || dn_table_plan_denoise(&table, 321, 1, &err))
        fail_msg("%s", err.message);
    dn_sample_params p = { .table = &table,
                           .height = 16,
                           .width = 16,
                           .channels = 3,
                           .out_channels = 3,
                           .seed = 7,
                           .label = 3,
                           .temperature = 1 };
    assert_int_equal(dn_sample_new(&s, d, &p, &err), 0);
    dn_row row = { s, DN_ROW_COND };
    assert_int_equal(dn_batch_begin(&b, d, n, &row, 1, &err), 0);
    dup2(fileno(f), STDERR_FILENO);
    int rc = dn_batch_some(b, 0);
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    close(before);
    assert_int_equal(rc, 0);
    rewind(f);
    text[fread(text, 1, size - 1, f)] = 0;
    fclose(f);
    dn_batch_free(b);
    dn_sample_free(s);
    dn_net_free(n);
    dn_device_close(d);
    dn_model_free(m);
}

static void test_environment(void **state)
{
    (void)state;
    static char text[1 << 18];
    setenv("DENOISED_TRACE", "1", 1);
    setenv("DENOISED_CHECK", "ref", 1);
    run_inspected(text, sizeof text);
    assert_non_null(strstr(text, "conv_in"));
    assert_non_null(strstr(text, "mid_block.attentions.0"));
    assert_non_null(strstr(text, "conv_out"));
    assert_non_null(strstr(text, "[16,16,3] rows 1 mean "));
    assert_null(strstr(text, "first difference"));
    unsetenv("DENOISED_TRACE");
    run_inspected(text, sizeof text);
    assert_string_equal(text, ""); /* checked, and nothing to tell */
    unsetenv("DENOISED_CHECK");
    run_inspected(text, sizeof text);
    assert_string_equal(text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_differences), cmocka_unit_test(test_environment) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
