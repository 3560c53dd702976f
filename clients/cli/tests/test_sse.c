/* The parser of server-sent events: the same events come out however the bytes are cut. */
#include "sse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define LENGTH(a) (sizeof(a) / sizeof *(a))

/* "name|id|data;" of each event */
typedef struct record {
    dn_buf text;
    int events, stop_at; /* stop_at: the number of the event at which to stop */
} record;

static int note(void *arg, const char *name, const char *id, const char *data, size_t len)
{
    record *r = arg;
    assert_int_equal(strlen(data), len); /* no test has a NUL */
    dn_buf_printf(&r->text, "%s|%s|%s;", name, id, data);
    return ++r->events == r->stop_at ? 7 : 0;
}

static int feed_cut(record *r, const char *bytes, size_t len, size_t piece, size_t max)
{
    dn_sse s;
    int rc = 0;
    dn_buf_init(&r->text, 1 << 20);
    dn_sse_init(&s, max, note, r);
    for (size_t at = 0; at < len; at += piece) {
        size_t n = len - at < piece ? len - at : piece;
        char *exact = malloc(n); /* an over-read is seen */
        memcpy(exact, bytes + at, n);
        rc = dn_sse_feed(&s, exact, n);
        free(exact);
    }
    dn_sse_fini(&s);
    return rc;
}

/* clang-format off */
static const struct {
    const char *bytes, *events;
} streams[] = {
    { "data: a\n\n", "message||a;" },
    { "data:a\n\ndata:  b\n\n", "message||a;message|| b;" },
    { "event: progress\nid: 7\ndata: {}\n\n", "progress|7|{};" },
    { "id: 3\ndata: a\n\ndata: b\n\n", "message|3|a;message|3|b;" },         /* the id stays */
    { "event: x\ndata: a\n\ndata: b\n\n", "x||a;message||b;" },              /* the name does not */
    { "data: a\ndata: b\ndata\ndata:\n\n", "message||a\nb\n\n;" },
    { "data\n\n", "message||;" },
    { "event: x\n\ndata: a\n\n", "message||a;" },                            /* nothing without data */
    { ": ping\n\n: ping\n\ndata: a\n\n", "message||a;" },
    { "data: a\r\n\r\ndata: b\r\rdata: c\n\n", "message||a;message||b;message||c;" },
    { "\r\ndata: a\r\n\n", "message||a;" },
    { "\xef\xbb\xbf" "data: a\n\n", "message||a;" },
    { "data: a\n\n\xef\xbb\xbf" "data: b\n\n", "message||a;" },             /* only at the start */
    { "retry: 5\nnonsense\ndat: x\ndataa: x\nDATA: x\ndata: a\n\n", "message||a;" },
    { "data: a:b: c\n\n", "message||a:b: c;" },
    { "data: unfinished\n", "" },
    { "data: unfinished", "" },
    { "\n\n\n", "" },
};
/* clang-format on */

static void every_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(streams); i++) {
        size_t len = strlen(streams[i].bytes);
        for (size_t piece = 1; piece <= len; piece++) {
            record r = { 0 };
            assert_int_equal(feed_cut(&r, streams[i].bytes, len, piece, 1024), 0);
            assert_string_equal(r.text.data ? r.text.data : "", streams[i].events);
            dn_buf_fini(&r.text);
        }
    }
}

static void names_that_do_not_fit(void **state)
{
    (void)state;
    char bytes[400], long_name[DN_SSE_NAME_MAX + 2];
    memset(long_name, 'n', sizeof long_name);
    long_name[DN_SSE_NAME_MAX + 1] = 0;
    snprintf(bytes, sizeof bytes, "event: %s\nid: %s\ndata: a\n\nevent: %s\ndata: b\n\n", long_name, long_name,
             long_name + 1);
    record r = { 0 };
    assert_int_equal(feed_cut(&r, bytes, strlen(bytes), 9, 1024), 0);
    assert_int_equal(strncmp(r.text.data, "message||a;nnn", 14), 0);
    dn_buf_fini(&r.text);
    r = (record){ 0 };
    assert_int_equal(feed_cut(&r, "id: a\0b\ndata: x\n\n", 17, 4, 1024), 0);
    assert_string_equal(r.text.data, "message||x;");
    dn_buf_fini(&r.text);
}

/* A line, and an event of many lines: `max` bytes pass, one more does not. */
static void too_long(void **state)
{
    (void)state;
    enum { MAX = 64 };
    char line[MAX + 10];
    for (int extra = 0; extra < 2; extra++)
        for (size_t piece = 1; piece < sizeof line; piece += 5) {
            record r = { 0 };
            int n = MAX + extra;
            memset(line, 'x', sizeof line);
            memcpy(line, "data: ", 6);
            memcpy(line + n, "\n\n", 2);
            assert_int_equal(feed_cut(&r, line, n + 2, piece, MAX), extra ? DN_SSE_OVERFLOW : 0);
            assert_int_equal(r.events, extra ? 0 : 1);
            dn_buf_fini(&r.text);
        }
    record r = { 0 };
    char many[16 * 12 + 1] = "";
    for (int i = 0; i < 16; i++)
        strcat(many, "data: xxxxx\n");
    assert_int_equal(feed_cut(&r, many, strlen(many), 50, MAX), DN_SSE_OVERFLOW);
    dn_buf_fini(&r.text);
}

static void stops_where_it_is_told(void **state)
{
    (void)state;
    record r = { .stop_at = 2 };
    assert_int_equal(feed_cut(&r, "data: a\n\ndata: b\n\ndata: c\n\n", 27, 10, 100), 7);
    assert_string_equal(r.text.data, "message||a;message||b;");
    dn_buf_fini(&r.text);
}

/* Bytes of all kinds, the same bytes each time. */
static void noise(void **state)
{
    (void)state;
    static const char alphabet[] = "data:id event\n\r\n\r:\xef\xbb\xbf\xff ";
    uint32_t x = 1;
    for (int round = 0; round < 300; round++) {
        char bytes[200];
        record whole = { 0 }, cut = { 0 };
        for (size_t i = 0; i < sizeof bytes; i++) {
            x = x * 1664525u + 1013904223u;
            bytes[i] = alphabet[(x >> 16) % (sizeof alphabet - 1)];
        }
        assert_int_equal(feed_cut(&whole, bytes, sizeof bytes, sizeof bytes, 64),
                         feed_cut(&cut, bytes, sizeof bytes, 1, 64));
        assert_int_equal(whole.events, cut.events);
        assert_string_equal(whole.text.data ? whole.text.data : "", cut.text.data ? cut.text.data : "");
        dn_buf_fini(&whole.text);
        dn_buf_fini(&cut.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut), cmocka_unit_test(names_that_do_not_fit),
        cmocka_unit_test(too_long),  cmocka_unit_test(stops_where_it_is_told),
        cmocka_unit_test(noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
