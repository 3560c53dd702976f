/* test_messages.c - responses and events as http.md spells them. */
#include "proto.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void expect(const dn_fields *t, const void *data, const char *text)
{
    dn_buf b;
    dn_buf_init(&b, 1 << 16);
    dn_fields_write(t, data, &b);
    assert_false(b.failed);
    assert_string_equal(b.data, text);
    json_t *json = json_loadb(b.data, b.len, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    json_decref(json);
    dn_buf_fini(&b);
}

static const dn_timing timing = { DN_HAS_ALL, 1.5, 20, 160, 7.25, 30, 0.5, 0.25 };
#define TIMING                                                                                                      \
    "{\"queue_ms\":1.5,\"steps\":20,\"row_steps\":160,\"batch_rows_mean\":7.25,\"device_ms\":30,\"decode_ms\":0.5," \
    "\"encode_ms\":0.25}"

static void test_result(void **state)
{
    (void)state;
    const dn_image images[] = {
        { DN_HAS_ALL, 0, 7, "image/png", "00ff", { "foobar", 6 }, NULL },
        { DN_HAS_ALL, 1, 8, "image/png", NULL, { NULL, 0 }, "/requests/ab/images/1" },
    };
    const dn_result r = { DN_HAS_ALL, "ab", "m@1", "cpu-avx2/k1", 7, { images, 2 }, timing };
    expect(&dn_result_fields, &r,
           "{\"id\":\"ab\",\"model\":\"m@1\",\"numerics\":\"cpu-avx2/k1\",\"seed\":7,\"images\":["
           "{\"index\":0,\"seed\":7,\"content_type\":\"image/png\",\"sha256\":\"00ff\",\"b64\":\"Zm9vYmFy\"},"
           "{\"index\":1,\"seed\":8,\"content_type\":\"image/png\",\"url\":\"/requests/ab/images/1\"}],"
           "\"timing\":" TIMING "}");
}

static void expect_event(const char *name, const dn_fields *t, const void *data, const char *text)
{
    dn_buf b;
    dn_buf_init(&b, 1 << 16);
    dn_event_write(&b, 7, name, t, data);
    assert_string_equal(b.data, text);
    dn_buf_fini(&b);
}

static void test_events(void **state)
{
    (void)state;
    const dn_event_queued queued = { DN_HAS_ALL, "ab", 7, 2, 1200 };
    expect_event("queued", &dn_event_queued_fields, &queued,
                 "id: 7\nevent: queued\ndata: {\"id\":\"ab\",\"seed\":7,\"position\":2,\"eta_ms\":1200}\n\n");
    const dn_event_progress progress = { DN_HAS_ALL, 3, 20, NAN };
    expect_event("progress", &dn_event_progress_fields, &progress,
                 "id: 7\nevent: progress\ndata: {\"step\":3,\"steps\":20,\"eta_ms\":null}\n\n");
    const dn_event_preview preview = { DN_HAS_ALL, 1, 5, { "foo", 3 } };
    expect_event("preview", &dn_event_preview_fields, &preview,
                 "id: 7\nevent: preview\ndata: {\"index\":1,\"step\":5,\"b64\":\"Zm9v\"}\n\n");
    const dn_event_done done = { DN_HAS_ALL, "m@1", "n", 7, timing };
    expect_event("done", &dn_event_done_fields, &done,
                 "id: 7\nevent: done\ndata: {\"model\":\"m@1\",\"numerics\":\"n\",\"seed\":7,\"timing\":" TIMING
                 "}\n\n");
}

/* Whatever a message holds, an event is one line of data. */
static void test_event_is_one_line(void **state)
{
    (void)state;
    dn_http_error e;
    dn_buf b;
    dn_http_fail(&e, DN_H_NON_FINITE, NULL, "a\nb\r\n\ndata: x");
    dn_buf_init(&b, 4096);
    dn_event_error_write(&b, 9, &e);
    assert_string_equal(b.data,
                        "id: 9\nevent: error\ndata: {\"error\":{\"type\":\"server_error\",\"code\":\"non_finite\","
                        "\"param\":null,\"message\":\"a\\nb\\r\\n\\ndata: x\"}}\n\n");
    dn_buf_fini(&b);
}

static void test_request_info(void **state)
{
    (void)state;
    dn_request_info r = { .has = DN_BIT(DN_REQUEST_ID) | DN_BIT(DN_REQUEST_STATE),
                          .id = "ab",
                          .state = DN_STATE_QUEUED };
    expect(&dn_request_info_fields, &r, "{\"id\":\"ab\",\"state\":\"queued\"}");
    r.has |= DN_BIT(DN_REQUEST_ERROR) | DN_BIT(DN_REQUEST_CREATED_AT) | DN_BIT(DN_REQUEST_TIMING);
    r.state = DN_STATE_FAILED;
    r.created_at = 1700000000.25;
    r.error = (dn_error_body){ DN_HAS_ALL, "server_error", "non_finite", NULL, "no" };
    expect(&dn_request_info_fields, &r,
           "{\"id\":\"ab\",\"state\":\"failed\",\"created_at\":1700000000.25,"
           "\"error\":{\"type\":\"server_error\",\"code\":\"non_finite\",\"param\":null,\"message\":\"no\"}}");
    dn_request_info bare = { .has = DN_BIT(DN_REQUEST_ID), .id = "z" };
    const dn_request_list page = { DN_HAS_ALL, { &bare, 1 }, "z" };
    const dn_request_list empty = { DN_HAS_ALL, { NULL, 0 }, NULL };
    expect(&dn_request_list_fields, &page, "{\"requests\":[{\"id\":\"z\"}],\"next\":\"z\"}");
    expect(&dn_request_list_fields, &empty, "{\"requests\":[],\"next\":null}");
    for (int i = 0; i < DN_STATE_COUNT; i++)
        assert_non_null(dn_request_states[i]);
    assert_null(dn_request_states[DN_STATE_COUNT]);
}

static void test_models(void **state)
{
    (void)state;
    const char *labels[] = { "t-shirt", "b\"g" };
    const dn_size sizes[] = { { DN_HAS_ALL, 32, 64 } };
    const dn_model_version versions[] = { { DN_HAS_ALL, 1, true, "aa" } };
    json_t *defaults = json_pack("{s:i}", "steps", 20);
    dn_model_card m = { .has = DN_HAS_ALL,
                        .name = "m",
                        .state = DN_MODEL_LOADED,
                        .description = "d",
                        .architecture = "UNet2DModel",
                        .pipeline = "DDPMPipeline",
                        .parameters = 5,
                        .bytes = 20,
                        .height = 28,
                        .width = 28,
                        .channels = 1,
                        .sizes = { sizes, 1 },
                        .n_classes = 11,
                        .labels = { labels, 2 },
                        .sampler = "ddpm",
                        .ms_per_row = 0.5,
                        .versions = { versions, 1 },
                        .numerics = "x",
                        .defaults = defaults };
    expect(
        &dn_model_card_fields, &m,
        "{\"name\":\"m\",\"state\":\"loaded\",\"description\":\"d\",\"architecture\":\"UNet2DModel\",\"pipeline\":"
        "\"DDPMPipeline\","
        "\"parameters\":5,\"bytes\":20,\"height\":28,\"width\":28,\"channels\":1,\"sizes\":[{\"height\":32,\"width\":"
        "64}],"
        "\"n_classes\":11,\"labels\":[\"t-shirt\",\"b\\\"g\"],\"sampler\":\"ddpm\",\"ms_per_row\":0.5,"
        "\"versions\":[{\"version\":1,\"live\":true,\"hash\":\"aa\"}],\"numerics\":\"x\",\"defaults\":{\"steps\":20}}");
    dn_model_card failed = { .has = DN_BIT(DN_CARD_NAME) | DN_BIT(DN_CARD_STATE) | DN_BIT(DN_CARD_ERROR),
                             .name = "f",
                             .state = DN_MODEL_FAILED,
                             .error = "no weights" };
    const dn_model_list list = { DN_HAS_ALL, { &failed, 1 } };
    expect(&dn_model_list_fields, &list,
           "{\"models\":[{\"name\":\"f\",\"state\":\"failed\",\"error\":\"no weights\"}]}");
    json_decref(defaults);
}

static void test_status(void **state)
{
    (void)state;
    const dn_status_share shares[] = { { DN_HAS_ALL, "ab", 3 } };
    const dn_status_device devices[] = { { .has = DN_HAS_ALL,
                                           .name = "cpu",
                                           .backend = "cpu-avx2",
                                           .threads = 2,
                                           .bytes = 10,
                                           .steps = 4,
                                           .row_steps = 12,
                                           .rows = 3,
                                           .step_ms = 2.5,
                                           .shares = { shares, 1 } } };
    const dn_status s = { .has = DN_HAS_ALL,
                          .version = "0.1.0",
                          .uptime_s = 2.5,
                          .draining = true,
                          .running = 1,
                          .waiting = 2,
                          .queue_ms = 10,
                          .devices = { devices, 1 },
                          .memory = { DN_HAS_ALL, 6, 5, 4, 3, 2, 1 } };
    expect(&dn_status_fields, &s,
           "{\"version\":\"0.1.0\",\"uptime_s\":2.5,\"draining\":true,\"running\":1,\"waiting\":2,\"queue_ms\":10,"
           "\"devices\":[{\"name\":\"cpu\",\"backend\":\"cpu-avx2\",\"threads\":2,\"bytes\":10,\"steps\":4,\"row_"
           "steps\":12,"
           "\"model\":null,\"rows\":3,\"step_ms\":2.5,\"shares\":[{\"id\":\"ab\",\"rows\":3}]}],\"requests\":[],"
           "\"models\":[],"
           "\"memory\":{\"limit\":6,\"weights\":5,\"forms\":4,\"arenas\":3,\"slots\":2,\"results\":1}}");
    const dn_health h = { DN_HAS_ALL, "ok" };
    expect(&dn_health_fields, &h, "{\"status\":\"ok\"}");
}

/* A body that does not fit its cap is not cut: it is failed. */
static void test_cap(void **state)
{
    (void)state;
    static const char picture[3000];
    const dn_image image = { DN_HAS_ALL, 0, 7, "image/png", NULL, { picture, sizeof picture }, NULL };
    dn_buf b;
    dn_buf_init(&b, 2000);
    dn_fields_write(&dn_image_fields, &image, &b);
    assert_true(b.failed);
    dn_buf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_result),       cmocka_unit_test(test_events), cmocka_unit_test(test_event_is_one_line),
        cmocka_unit_test(test_request_info), cmocka_unit_test(test_models), cmocka_unit_test(test_status),
        cmocka_unit_test(test_cap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
