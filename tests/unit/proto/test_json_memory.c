/* test_json_memory.c - what the worst bodies cost: jansson's memory stays within a bound, and nothing leaks at any
 * failure of an allocation. */
#include "proto.h"

#include <jansson.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static size_t held, peak;
static long allowed = -1; /* allocations until the next one fails; -1: all succeed */

static void *count_malloc(size_t size)
{
    if (allowed == 0)
        return NULL;
    allowed -= allowed > 0;
    void *p = malloc(size);
    held += malloc_usable_size(p);
    peak = held > peak ? held : peak;
    return p;
}

static void count_free(void *p)
{
    held -= malloc_usable_size(p);
    free(p);
}

enum { PEAK_MAX = 1 << 20 };

static void test_peak(void **state)
{
    (void)state;
    static const struct {
        const char *head, *unit, *tail;
    } shapes[] = {
        { "{\"a\":[", "{},", "0]}" },         { "{\"a\":[", "[],", "0]}" },           { "{\"a\":[", "\"\",", "0]}" },
        { "{\"a\":[", "1,", "0]}" },          { "{\"a\":[", "1.5,", "0]}" },          { "{\"a\":[", "[[],[]],", "0]}" },
        { "{\"a\":[", "{\"b\":{}},", "0]}" }, { "{\"a\":[", "{\"b\":[{}]},", "0]}" },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int n = 256; n <= 65536; n += n / 4) { /* below the limit of values, at it, and beyond */
            dn_buf b;
            dn_http_error e;
            dn_buf_init(&b, 1 << 20);
            dn_buf_puts(&b, shapes[i].head);
            for (int k = 0; k < n && b.len < DN_GENERATE_BODY_MAX - 16; k++)
                dn_buf_puts(&b, shapes[i].unit);
            dn_buf_puts(&b, shapes[i].tail);
            peak = held = 0;
            json_t *json = dn_json_parse(b.data, b.len, &e);
            assert_true(n > 256 || json); /* the bound is on real parses too */
            json_decref(json);
            assert_int_equal(held, 0);
            if (peak > PEAK_MAX)
                fail_msg("%zu bytes for a body of %zu", peak, b.len);
            dn_buf_fini(&b);
        }
    }
}

static const char body[] =
    "{\"model\":\"m\",\"n\":2,\"class_label\":[1,\"bag\"],\"timesteps\":[9,5,1],\"scheduler\":{\"a\":{\"b\":1}},"
    "\"guidance\":{\"cfg\":{\"scale\":3}}}";

/* Parse, merge under defaults, parse the request; true when all went well. */
static bool whole_way(dn_http_error *e)
{
    json_t *defaults = NULL, *merged = NULL, *json = dn_json_parse(body, strlen(body), e);
    dn_generate_request r;
    dn_arena *a = dn_arena_new(DN_REQUEST_BYTES_MAX);
    bool ok = false;
    if (json && (defaults = json_pack("{s:i,s:{s:i}}", "eta", 1, "scheduler", "c", 2)) &&
        (merged = dn_generate_merge(defaults, json)))
        ok = !dn_generate_parse(&r, a, merged, e);
    json_decref(json);
    json_decref(defaults);
    json_decref(merged);
    dn_arena_free(a);
    return ok;
}

/* The Nth allocation fails, for every N. */
static void test_nth_allocation(void **state)
{
    (void)state;
    dn_http_error e;
    held = 0;
    for (long n = 0;; n++) {
        allowed = n;
        bool ok = whole_way(&e);
        assert_int_equal(held, 0);
        if (ok) {
            assert_true(n > 40);
            break;
        }
        assert_true(n < 1000);
    }
    allowed = -1;
}

int main(void)
{
    json_object_seed(1);
    json_set_alloc_funcs(count_malloc, count_free);
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_peak), cmocka_unit_test(test_nth_allocation) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
