/* test_metrics.c - the Prometheus text, line by line; label sets are bounded; recording from many threads loses
 * nothing. */
#include "metric_set.h"
#include "proto.h"

#include <pthread.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static char *text_of(const dn_metrics *m)
{
    dn_buf b;
    size_t len;
    dn_buf_init(&b, 4 << 20);
    dn_metrics_write(m, &b);
    char *text = dn_buf_take(&b, &len);
    assert_non_null(text);
    return text;
}

static void expect_line(const char *text, const char *line)
{
    size_t len = strlen(line);
    for (const char *s = text; s && *s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL)
        if (!strncmp(s, line, len) && s[len] == '\n')
            return;
    fail_msg("no line \"%s\" in\n%s", line, text);
}

static void fill(dn_metrics *m)
{
    int model = dn_metrics_label(m, DN_L_MODEL, "fashion-mnist"), code = dn_metrics_label(m, DN_L_CODE, "200");
    dn_metrics_add(m, DN_M_REQUESTS, model, dn_metrics_label(m, DN_L_ROUTE, "/generate"), code, 1);
    dn_metrics_add(m, DN_M_REQUESTS, model, dn_metrics_label(m, DN_L_ROUTE, "/generate"), code, 1);
    dn_metrics_add(m, DN_M_REQUESTS, 0, dn_metrics_label(m, DN_L_ROUTE, "/healthz"), code, 1);
    dn_metrics_add(m, DN_M_REQUESTS, 0, dn_metrics_label(m, DN_L_ROUTE, "other"), dn_metrics_label(m, DN_L_CODE, "404"),
                   1);
    dn_metrics_add(m, DN_M_REQUESTS_FAILED, model, DN_REASON_NON_FINITE, 0, 1);
    dn_metrics_add(m, DN_M_REQUESTS_RUNNING, 0, 0, 0, 3);
    dn_metrics_add(m, DN_M_REQUESTS_RUNNING, 0, 0, 0, -1);
    dn_metrics_add(m, DN_M_DEVICE_SECONDS, DN_KIND_INFER, 0, 0, 0.125);
    dn_metrics_set(m, DN_M_MEMORY_BYTES, DN_MEMORY_WEIGHTS, 0, 2e10);
    dn_metrics_set(m, DN_M_MODEL_LOADED, model, dn_metrics_label(m, DN_L_VERSION, "1"), 1);
    dn_metrics_observe(m, DN_M_BATCH_ROWS, 0, 1);
    dn_metrics_observe(m, DN_M_BATCH_ROWS, 0, 3);
    dn_metrics_observe(m, DN_M_BATCH_ROWS, 0, 64);
    dn_metrics_observe(m, DN_M_BATCH_ROWS, 0, 65);
    dn_metrics_observe(m, DN_M_STEP_SECONDS, dn_metrics_rows(3), 0.0625);
}

static void test_values(void **state)
{
    (void)state;
    dn_metrics *m = dn_metrics_new();
    fill(m);
    char *text = text_of(m);
    static const char *const lines[] = {
        "# TYPE denoised_requests_total counter",
        "denoised_requests_total{model=\"fashion-mnist\",route=\"/generate\",code=\"200\"} 2",
        "denoised_requests_total{model=\"\",route=\"/healthz\",code=\"200\"} 1",
        "denoised_requests_total{model=\"\",route=\"other\",code=\"404\"} 1",
        "denoised_requests_failed_total{model=\"fashion-mnist\",reason=\"non_finite\"} 1",
        "denoised_requests_running 2",
        "denoised_requests_waiting 0",
        "denoised_steps_total 0",
        "denoised_device_seconds_total{kind=\"infer\"} 0.125",
        "denoised_memory_bytes{kind=\"weights\"} 20000000000",
        "denoised_model_loaded{model=\"fashion-mnist\",version=\"1\"} 1",
        "# TYPE denoised_batch_rows histogram",
        "denoised_batch_rows_bucket{le=\"1\"} 1",
        "denoised_batch_rows_bucket{le=\"2\"} 1",
        "denoised_batch_rows_bucket{le=\"4\"} 2",
        "denoised_batch_rows_bucket{le=\"64\"} 3",
        "denoised_batch_rows_bucket{le=\"+Inf\"} 4",
        "denoised_batch_rows_sum 133",
        "denoised_batch_rows_count 4",
        "denoised_step_seconds_bucket{rows=\"4\",le=\"0.05\"} 0",
        "denoised_step_seconds_bucket{rows=\"4\",le=\"0.1\"} 1",
        "denoised_step_seconds_bucket{rows=\"4\",le=\"+Inf\"} 1",
        "denoised_step_seconds_sum{rows=\"4\"} 0.0625",
        "denoised_step_seconds_count{rows=\"4\"} 1",
        "denoised_request_queue_seconds_count 0",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        expect_line(text, lines[i]);
    assert_null(strstr(text, "kind=\"train\"")); /* untouched series with labels are not there */
    free(text);
    dn_metrics_free(m);
}

/* Each line is a comment or a sample of the format; each sample belongs to the family announced last; families are
 * those of http.md. */
static void test_format(void **state)
{
    (void)state;
    static const char *const families[] = { "denoised_requests_total",
                                            "denoised_requests_failed_total",
                                            "denoised_requests_running",
                                            "denoised_requests_waiting",
                                            "denoised_request_queue_seconds",
                                            "denoised_request_duration_seconds",
                                            "denoised_time_to_first_preview_seconds",
                                            "denoised_steps_total",
                                            "denoised_row_steps_total",
                                            "denoised_batch_rows",
                                            "denoised_step_seconds",
                                            "denoised_decode_seconds",
                                            "denoised_encode_seconds",
                                            "denoised_images_total",
                                            "denoised_device_seconds_total",
                                            "denoised_memory_bytes",
                                            "denoised_train_steps_total",
    "denoised_train_loss",
    "denoised_train_preempted_seconds_total",
    "denoised_model_loaded",
    "denoised_store_commit_seconds",
    "denoised_store_operations_total",
    "denoised_store_failed_total",
    "denoised_store_waiting",
    "denoised_disk_free_bytes",
    "denoised_disk_reserve_bytes" };
    dn_metrics *m = dn_metrics_new();
    regex_t comment, sample;
    fill(m);
    assert_int_equal(regcomp(&comment, "^# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge|histogram))$", REG_EXTENDED),
                     0);
    assert_int_equal(
        regcomp(&sample,
                "^[a-z_]+(\\{[a-z]+=\"([^\"\\\\]|\\\\[\\\\\"n])*\"(,[a-z]+=\"([^\"\\\\]|\\\\[\\\\\"n])*\")*\\})? "
                "[-+0-9.e]+$",
                REG_EXTENDED),
        0);
    char *text = text_of(m), *save, family[64] = "", type[16] = "";
    size_t n_types = 0;
    assert_int_equal(text[strlen(text) - 1], '\n');
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (line[0] == '#') {
            assert_int_equal(regexec(&comment, line, 0, NULL, 0), 0);
            if (sscanf(line, "# TYPE %63s %15s", family, type) == 2) {
                assert_string_equal(family, families[n_types++]);
                assert_int_equal(!strcmp(type, "counter"), !strcmp(family + strlen(family) - 6, "_total"));
            }
            continue;
        }
        if (regexec(&sample, line, 0, NULL, 0))
            fail_msg("not a sample: %s", line);
        size_t len = strlen(family);
        assert_int_equal(strncmp(line, family, len), 0);
        const char *rest = line + len;
        if (!strcmp(type, "histogram"))
            assert_true(!strncmp(rest, "_bucket{", 8) || !strncmp(rest, "_sum", 4) || !strncmp(rest, "_count", 6));
        else
            assert_true(*rest == '{' || *rest == ' ');
    }
    assert_int_equal(n_types, sizeof families / sizeof *families);
    free(text);
    regfree(&comment);
    regfree(&sample);
    dn_metrics_free(m);
}

static void test_labels_are_bounded(void **state)
{
    (void)state;
    dn_metrics *m = dn_metrics_new();
    int first = dn_metrics_label(m, DN_L_MODEL, "m0"), last = 0;
    for (int i = 0; i < 1000; i++) {
        char name[32];
        snprintf(name, sizeof name, "m%d", i);
        last = dn_metrics_label(m, DN_L_MODEL, name);
        dn_metrics_add(m, DN_M_REQUESTS_FAILED, last, DN_REASON_OTHER, 0, 1);
    }
    assert_int_equal(dn_metrics_label(m, DN_L_MODEL, "m0"), first);
    assert_int_equal(dn_metrics_label(m, DN_L_MODEL, "other"), last);
    char longest[100];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(dn_metrics_label(m, DN_L_MODEL, longest), last);
    char *text = text_of(m);
    expect_line(text,
                "denoised_requests_failed_total{model=\"other\",reason=\"other\"} 938"); /* 64 - "" - "other" kept */
    free(text);
    dn_metrics_free(m);
}

/* Every route has a place of its own. */
static void test_route_labels(void **state)
{
    (void)state;
    dn_metrics *m = dn_metrics_new();
    int other = dn_metrics_label(m, DN_L_ROUTE, "other");
    for (int i = 0; i < DN_ROUTE_COUNT; i++)
        assert_true(dn_metrics_label(m, DN_L_ROUTE, dn_routes[i].path) < other);
    dn_metrics_free(m);
}

static void test_escapes(void **state)
{
    (void)state;
    dn_metrics *m = dn_metrics_new();
    dn_metrics_add(m, DN_M_REQUESTS_FAILED, dn_metrics_label(m, DN_L_MODEL, "a\"b\\c\nd"), DN_REASON_REJECTED, 0, 1);
    char *text = text_of(m);
    expect_line(text, "denoised_requests_failed_total{model=\"a\\\"b\\\\c\\nd\",reason=\"rejected\"} 1");
    free(text);
    dn_metrics_free(m);
}

static void test_row_buckets(void **state)
{
    (void)state;
    static const int cases[][2] = { { 1, 0 },  { 2, 1 },  { 3, 2 },  { 4, 2 },   { 5, 3 },
                                    { 33, 6 }, { 64, 6 }, { 65, 7 }, { 1024, 7 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(dn_metrics_rows(cases[i][0]), cases[i][1]);
}

enum { THREADS = 4, ROUNDS = 20000 };

static void *record(void *arg)
{
    dn_metrics *m = arg;
    for (int i = 0; i < ROUNDS; i++) {
        char name[16];
        snprintf(name, sizeof name, "m%d", i % 50);
        dn_metrics_add(m, DN_M_STEPS, 0, 0, 0, 1);
        dn_metrics_observe(m, DN_M_BATCH_ROWS, 0, 2);
        dn_metrics_add(m, DN_M_REQUESTS_FAILED, dn_metrics_label(m, DN_L_MODEL, name), 0, 0, 1);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    dn_metrics *m = dn_metrics_new();
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, record, m), 0);
    free(text_of(m)); /* reading beside them is safe */
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    char *text = text_of(m);
    expect_line(text, "denoised_steps_total 80000");
    expect_line(text, "denoised_batch_rows_sum 160000");
    expect_line(text, "denoised_batch_rows_count 80000");
    expect_line(text, "denoised_requests_failed_total{model=\"m49\",reason=\"rejected\"} 1600");
    free(text);
    dn_metrics_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),  cmocka_unit_test(test_format),       cmocka_unit_test(test_labels_are_bounded),
        cmocka_unit_test(test_escapes), cmocka_unit_test(test_route_labels), cmocka_unit_test(test_row_buckets),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
