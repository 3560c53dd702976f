/* test_buf.c - the buffer and its encodings, the arena, the table of errors. */
#include "proto.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_cap(void **state)
{
    (void)state;
    dn_buf b;
    dn_buf_init(&b, 10);
    dn_buf_puts(&b, "0123456789");
    assert_false(b.failed);
    assert_string_equal(b.data, "0123456789");
    dn_buf_puts(&b, "x");
    assert_true(b.failed);
    dn_buf_puts(&b, "");
    assert_true(b.failed); /* sticky */
    assert_int_equal(b.len, 10);
    size_t len;
    assert_null(dn_buf_take(&b, &len));
    dn_buf_fini(&b);
    assert_false(b.failed);
    dn_buf_printf(&b, "%d-%s", 42, "abc");
    char *taken = dn_buf_take(&b, &len);
    assert_string_equal(taken, "42-abc");
    assert_int_equal(len, 6);
    assert_null(b.data);
    free(taken);
    dn_buf_printf(&b, "%s", "12345678901");
    assert_true(b.failed);
    dn_buf_fini(&b);
    dn_buf_init(&b, 3);
    dn_buf_base64(&b, "a", 1);
    assert_true(b.failed);
    dn_buf_fini(&b);
}

static void test_growth(void **state)
{
    (void)state;
    dn_buf b;
    dn_buf_init(&b, 1 << 20);
    for (int i = 0; i < 100000; i++)
        dn_buf_add(&b, (char[]){ (char)('a' + i % 26) }, 1);
    assert_int_equal(b.len, 100000);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(b.data[i], 'a' + i % 26);
    dn_buf_fini(&b);
}

static void test_base64(void **state)
{
    (void)state;
    static const char *const rfc4648[][2] = { { "", "" },
                                              { "f", "Zg==" },
                                              { "fo", "Zm8=" },
                                              { "foo", "Zm9v" },
                                              { "foob", "Zm9vYg==" },
                                              { "fooba", "Zm9vYmE=" },
                                              { "foobar", "Zm9vYmFy" },
                                              { "\xff\xfe\xfd\xfb\xef\xbe", "//79++++" } };
    for (size_t i = 0; i < sizeof rfc4648 / sizeof *rfc4648; i++) {
        dn_buf b;
        dn_buf_init(&b, 100);
        dn_buf_base64(&b, rfc4648[i][0], strlen(rfc4648[i][0]));
        assert_string_equal(b.data, rfc4648[i][1]);
        dn_buf_fini(&b);
    }
}

static void expect_json_string(const char *in, size_t len, const char *out)
{
    dn_buf b;
    dn_buf_init(&b, 1000);
    dn_buf_json_string_n(&b, in, len);
    assert_string_equal(b.data, out);
    json_t *back = json_loads(b.data, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    assert_non_null(back); /* whatever the bytes were, it is JSON */
    json_decref(back);
    dn_buf_fini(&b);
}

static void test_json_string(void **state)
{
    (void)state;
    expect_json_string("", 0, "\"\"");
    expect_json_string("a\"b\\c/", 6, "\"a\\\"b\\\\c/\"");
    expect_json_string("\n\r\t\b\f\x01\x1f\x7f", 8, "\"\\n\\r\\t\\b\\f\\u0001\\u001f\\u007f\"");
    expect_json_string("a\0b", 3, "\"a\\u0000b\"");
    expect_json_string("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
    expect_json_string("\xff", 1, "\"\xef\xbf\xbd\"");
    expect_json_string("\xc0\x80", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* overlong */
    expect_json_string("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
    expect_json_string("\xe0\x80\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* overlong */
    expect_json_string("\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* cut */
    expect_json_string("\xf4\x90\x80\x80", 4,
                       "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* past U+10FFFF */
}

/* All two-byte strings come out as JSON. */
static void test_json_string_all(void **state)
{
    (void)state;
    for (int v = 0; v < 65536; v++) {
        char in[2] = { (char)(v >> 8), (char)v };
        dn_buf b;
        dn_buf_init(&b, 100);
        dn_buf_json_string_n(&b, in, 2);
        json_t *back = json_loads(b.data, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(back);
        json_decref(back);
        dn_buf_fini(&b);
    }
}

static void test_json_number(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } cases[] = { { 0, "0" },
                  { 1, "1" },
                  { -3, "-3" },
                  { 0.1, "0.1" },
                  { 1.0 / 3, "0.3333333333333333" },
                  { 1e300, "1e+300" },
                  { NAN, "null" },
                  { INFINITY, "null" },
                  { 9007199254740991, "9007199254740991" },
                  { 5e-324, "4.94065645841247e-324" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_buf b;
        dn_buf_init(&b, 100);
        dn_buf_json_number(&b, cases[i].v);
        assert_string_equal(b.data, cases[i].text);
        if (isfinite(cases[i].v))
            assert_true(strtod(b.data, NULL) == cases[i].v);
        dn_buf_fini(&b);
    }
}

/* What rounding up adds counts too. */
static void test_arena_edge(void **state)
{
    (void)state;
    dn_arena *a = dn_arena_new(40);
    assert_non_null(dn_arena_alloc(a, 20));
    assert_null(dn_arena_alloc(a, 5));
    assert_null(dn_arena_alloc(a, 1000));
    assert_true(dn_arena_bytes(a) <= 40);
    dn_arena_free(a);
}

static int order[4], n_order;
static void note(void *arg) { order[n_order++] = *(int *)arg; }

static void test_arena(void **state)
{
    (void)state;
    dn_arena *a = dn_arena_new(10000);
    for (size_t n = 1; n < 100; n++) {
        unsigned char *p = dn_arena_alloc(a, n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xff, n);
    }
    size_t used = dn_arena_bytes(a);
    assert_null(dn_arena_alloc(a, 10001 - used));
    assert_null(dn_arena_alloc(a, SIZE_MAX));
    assert_null(dn_arena_alloc(a, SIZE_MAX - 3));
    assert_null(dn_arena_strndup(a, "x", SIZE_MAX));
    assert_int_equal(dn_arena_bytes(a), used);
    assert_string_equal(dn_arena_strndup(a, "abcdef", 3), "abc");
    dn_arena_free(a);
    dn_arena_free(NULL);
}

static void test_arena_hooks(void **state)
{
    (void)state;
    int one = 1, two = 2, three = 3;
    dn_arena *a = dn_arena_new(64);
    n_order = 0;
    assert_int_equal(dn_arena_cleanup(a, note, &one), 0);
    assert_int_equal(dn_arena_cleanup(a, note, &two), 0);
    assert_int_equal(n_order, 0);
    assert_int_equal(dn_arena_cleanup(a, note, &three), -1); /* no room: runs at once */
    assert_int_equal(order[0], 3);
    dn_arena_free(a);
    assert_int_equal(n_order, 3);
    assert_int_equal(order[1], 2); /* newest first */
    assert_int_equal(order[2], 1);
}

static void test_errors(void **state)
{
    (void)state;
    dn_http_error e;
    assert_int_equal(dn_http_fail(&e, DN_H_RANGE, "steps", "steps must be %d..%d, got %d", 1, 1000, 0), DN_H_RANGE);
    dn_buf b;
    dn_buf_init(&b, 1000);
    dn_http_error_write(&e, &b);
    assert_string_equal(b.data,
                        "{\"error\":{\"type\":\"invalid_request_error\",\"code\":\"out_of_range\",\"param\":\"steps\","
                        "\"message\":\"steps must be 1..1000, got 0\"}}");
    dn_buf_fini(&b);
    dn_http_fail(&e, DN_H_DRAINING, NULL, NULL);
    assert_int_equal(e.status, 503);
    assert_string_equal(e.type, "server_error");
    dn_http_error_write(&e, &b);
    assert_string_equal(b.data, "{\"error\":{\"type\":\"server_error\",\"code\":\"draining\",\"param\":null,"
                                "\"message\":\"the daemon is stopping\"}}");
    dn_buf_fini(&b);
    assert_int_equal(dn_http_fail(NULL, DN_H_METHOD, NULL, NULL), DN_H_METHOD);
}

/* Names and statuses of http.md, each code once; the engine's codes by name. */
static void test_error_table(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int status;
    } engine[] = { { "invalid", 400 },    { "out_of_range", 400 }, { "unknown_field", 400 },
                   { "not_found", 404 },  { "bad_format", 400 },   { "not_supported", 400 },
                   { "impossible", 422 }, { "limit", 400 },        { "memory", 503 },
                   { "io", 500 },         { "non_finite", 500 },   { "backend", 500 },
                   { "internal", 500 } };
    dn_http_error e;
    for (size_t i = 0; i < sizeof engine / sizeof *engine; i++) {
        dn_http_fail_engine(&e, engine[i].name, "p", "text");
        assert_string_equal(e.code, engine[i].name);
        assert_int_equal(e.status, engine[i].status);
        assert_string_equal(e.message, "text");
    }
    assert_int_equal(dn_http_fail_engine(&e, "no such code", "p", "text"), DN_H_INTERNAL);
    assert_non_null(strstr(e.message, "no such code"));
    static const int statuses[] = { 400, 401, 403, 404, 405, 406, 408, 409, 410,
                                    411, 413, 415, 422, 429, 500, 501, 503, 507 };
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        int n = 0;
        for (int id = 1; id < DN_H_COUNT; id++)
            n += dn_http_code_status(id) == statuses[i];
        if (!n)
            fail_msg("no code for status %d", statuses[i]);
    }
    for (int id = 1; id < DN_H_COUNT; id++)
        assert_int_equal(dn_http_code_find(dn_http_code_name(id)), id);
    assert_int_equal(dn_http_code_find("nonsense"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cap),         cmocka_unit_test(test_growth),          cmocka_unit_test(test_base64),
        cmocka_unit_test(test_json_string), cmocka_unit_test(test_json_string_all), cmocka_unit_test(test_json_number),
        cmocka_unit_test(test_arena),       cmocka_unit_test(test_arena_edge),      cmocka_unit_test(test_arena_hooks),
        cmocka_unit_test(test_errors),      cmocka_unit_test(test_error_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
