/* test_json.c - dn_json_load: what it takes, and that every refusal names file and line. */
#include "util.h"

#include "checkpoint.h"
#include "json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static void takes_objects(void **state)
{
    (void)state;
    char dir[64];
    scratch_make(dir);
    json_t *root;
    dn_error err = { 0 };
    static const char text[] = " {\"a\": [1, 2.5, null, \"\\u00e9{[\\\"\"],\n \"b\": {\"c\": -9223372036854775808}} \n";
    file_write(dir, "config.json", text, sizeof text - 1);
    assert_int_equal(dn_json_load(&root, dir, "config.json", sizeof text - 1, &err), 0);
    assert_true(json_integer_value(json_object_get(json_object_get(root, "b"), "c")) == INT64_MIN);
    json_decref(root);
    static const char python[] = "{\"a\": -Infinity, \"b\": [Infinity], \"c\": \"-Infinity \\\"Infinity\"}";
    file_write(dir, "config.json", python, sizeof python - 1);
    assert_int_equal(dn_json_load(&root, dir, "config.json", 1000, &err), 0);
    assert_true(json_is_null(json_object_get(root, "a")));
    assert_true(json_is_null(json_array_get(json_object_get(root, "b"), 0)));
    assert_string_equal(json_string_value(json_object_get(root, "c")), "-Infinity \"Infinity");
    json_decref(root);
    file_write(dir, "config.json", text, sizeof text - 1);
    json_t *untouched = (json_t *)dir;
    root = untouched;
    int rc = dn_json_load(&root, dir, "config.json", sizeof text - 2, &err);
    assert_error(&err, rc, DN_E_LIMIT, "config.json", "the limit is");
    assert_ptr_equal(root, untouched);
    rc = dn_json_load(&root, dir, "none.json", 100, &err);
    assert_error(&err, rc, DN_E_NOT_FOUND, "none.json", "none.json");
    rc = dn_json_load(&root, "no-such-folder", "config.json", 100, &err);
    assert_error(&err, rc, DN_E_NOT_FOUND, "config.json", "folder");
    scratch_remove(dir);
}

static void refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *message;
    } bad[] = {
        { "{\n\"a\": 1,\n\"a\": 2}", "config.json, line 3: duplicate" },
        { "{\n\"a\": 1,\n\"\\u0061\": 2}", "config.json, line 3: duplicate" },
        { "{\"a\": 9223372036854775808}", "config.json, line 1: too big integer" },
        { "{\"a\":\n1e400}", "config.json, line 2: real number overflow" },
        { "{\"a\": NaN}", "config.json, line 1: invalid token" },
        { "{\"a\": 1} x", "config.json, line 1: end of file expected" },
        { "{\"a\": \"\xff\"}", "config.json, line 1: " },
        { "{\"a\": \"\\u0000\"}", "config.json, line 1: " },
        { "{\"a\": \"", "config.json, line 1: " },
        { "{\"a\": \"\\", "config.json, line 1: " },
        { "[1]", "config.json, line 1: not a JSON object" },
        { "7", "config.json, line 1: " },
        { "", "config.json, line 1: " },
        { "\xef\xbb\xbf{}", "config.json, line 1: " },
    };
    char dir[64];
    scratch_make(dir);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        file_write(dir, "config.json", bad[i].text, strlen(bad[i].text));
        json_t *root = NULL;
        dn_error err = { 0 };
        int rc = dn_json_load(&root, dir, "config.json", 1000, &err);
        assert_error(&err, rc, DN_E_FORMAT, "config.json", bad[i].message);
        assert_null(root);
    }
    scratch_remove(dir);
}

/* At the limit: taken. One over it: refused. Brackets inside strings do not count. */
static void depth(void **state)
{
    (void)state;
    for (int over = 0; over < 2; over++) {
        blob b = { 0 };
        int arrays = DN_JSON_DEPTH_MAX - 1 + over;
        blob_str(&b, "{\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\":\n");
        for (int i = 0; i < arrays; i++)
            blob_str(&b, "[");
        for (int i = 0; i < arrays; i++)
            blob_str(&b, "]");
        blob_str(&b, "}");
        json_t *root = NULL;
        dn_error err = { 0 };
        int rc = dn_json_text(&root, (char *)b.p, b.len, "x.json", &err);
        if (over)
            assert_error(&err, rc, DN_E_LIMIT, "x.json", "x.json, line 2: nested");
        else
            assert_int_equal(rc, 0);
        json_decref(root);
        blob_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(takes_objects), cmocka_unit_test(refuses),
                                        cmocka_unit_test(depth) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
