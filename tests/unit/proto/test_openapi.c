/* test_openapi.c - the document is whole: references resolve, every route and every field is there with its limits. */
#include "proto.h"

#include <ctype.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static json_t *doc;

static int setup(void **state)
{
    (void)state;
    dn_buf b;
    json_error_t e;
    dn_buf_init(&b, 1 << 20);
    dn_openapi_write(&b, "1.2.3");
    assert_false(b.failed);
    doc = json_loadb(b.data, b.len, JSON_REJECT_DUPLICATES, &e);
    if (!doc)
        fail_msg("%s at %d in %s", e.text, e.position, b.data);
    dn_buf_fini(&b);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    json_decref(doc);
    return 0;
}

/* "#/components/schemas/Timing" -> the value, or NULL. Our names need no escapes. */
static json_t *resolve(const char *ref)
{
    assert_int_equal(strncmp(ref, "#/", 2), 0);
    json_t *at = doc;
    char *copy = strdup(ref + 2), *save;
    for (char *s = strtok_r(copy, "/", &save); s && at; s = strtok_r(NULL, "/", &save))
        at = json_object_get(at, s);
    free(copy);
    return at;
}

static int check_refs(json_t *v)
{
    int n = 0;
    const char *key;
    json_t *value;
    size_t i;
    json_object_foreach(v, key, value)
    {
        if (!strcmp(key, "$ref") && json_is_string(value)) {
            if (!resolve(json_string_value(value)))
                fail_msg("%s leads nowhere", json_string_value(value));
            n++;
        }
        n += check_refs(value);
    }
    json_array_foreach(v, i, value) n += check_refs(value);
    return n;
}

static void test_refs(void **state)
{
    (void)state;
    assert_true(check_refs(doc) > 50);
}

static void test_head(void **state)
{
    (void)state;
    assert_string_equal(json_string_value(json_object_get(doc, "openapi")), "3.1.0");
    assert_string_equal(json_string_value(json_object_get(json_object_get(doc, "info"), "version")), "1.2.3");
}

static void test_deterministic(void **state)
{
    (void)state;
    dn_buf a, b;
    dn_buf_init(&a, 1 << 20);
    dn_buf_init(&b, 1 << 20);
    dn_openapi_write(&a, "1");
    dn_openapi_write(&b, "1");
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    dn_buf_fini(&a);
    dn_buf_fini(&b);
    dn_buf_init(&a, 1000); /* over the cap: failed, not cut */
    dn_openapi_write(&a, "1");
    assert_true(a.failed);
    dn_buf_fini(&a);
}

static void lower(char *out, const char *in)
{
    for (; *in; in++)
        *out++ = (char)tolower((unsigned char)*in);
    *out = 0;
}

static bool has_param(json_t *params, const char *name, const char *in)
{
    size_t i;
    json_t *p;
    json_array_foreach(params, i, p) if (!strcmp(json_string_value(json_object_get(p, "name")), name) &&
                                         !strcmp(json_string_value(json_object_get(p, "in")), in)) return true;
    return false;
}

static void test_routes(void **state)
{
    (void)state;
    json_t *paths = json_object_get(doc, "paths");
    size_t n = 0;
    const char *path;
    json_t *item;
    for (int i = 0; i < DN_ROUTE_COUNT; i++) {
        char method[16];
        lower(method, dn_routes[i].method);
        json_t *op = json_object_get(json_object_get(paths, dn_routes[i].path), method);
        if (!op)
            fail_msg("no %s %s", dn_routes[i].method, dn_routes[i].path);
        json_t *answers = json_object_get(op, "responses");
        json_t *content = json_object_get(json_object_get(answers, "200"), "content");
        assert_non_null(json_object_get(content, dn_routes[i].gives));
        assert_non_null(json_object_get(answers, "400"));
        assert_non_null(json_object_get(answers, "401"));
        assert_int_equal(!json_object_get(op, "requestBody"), !dn_routes[i].takes);
        if (strstr(dn_routes[i].path, "{id}"))
            assert_true(has_param(json_object_get(op, "parameters"), "id", "path"));
        if (strstr(dn_routes[i].path, "{k}"))
            assert_true(has_param(json_object_get(op, "parameters"), "k", "path"));
    }
    json_object_foreach(paths, path, item) n += json_object_size(item);
    assert_int_equal(n, DN_ROUTE_COUNT);
    json_t *op = json_object_get(json_object_get(paths, "/requests"), "get");
    assert_true(has_param(json_object_get(op, "parameters"), "state", "query"));
    assert_true(has_param(json_object_get(op, "parameters"), "limit", "query"));
    assert_true(has_param(json_object_get(op, "parameters"), "after", "query"));
    op = json_object_get(json_object_get(paths, "/generate"), "post");
    assert_true(has_param(json_object_get(op, "parameters"), "Prefer", "header"));
}

static json_t *operation(const char *path, const char *method)
{
    return json_object_get(json_object_get(json_object_get(doc, "paths"), path), method);
}

static void test_bodies(void **state)
{
    (void)state;
    json_t *generate = json_object_get(operation("/generate", "post"), "requestBody");
    json_t *denoise = json_object_get(operation("/denoise", "post"), "requestBody");
    assert_true(json_is_false(json_object_get(generate, "required"))); /* an empty one is {} */
    assert_true(json_is_true(json_object_get(denoise, "required")));
}

/* Where there is a stream, the schema of every event's data is named. */
static void test_events(void **state)
{
    (void)state;
    static const struct {
        const char *path, *method, *event, *schema;
    } events[] = {
        { "/generate", "post", "queued", "EventQueued" },
        { "/generate", "post", "progress", "EventProgress" },
        { "/generate", "post", "preview", "EventPreview" },
        { "/generate", "post", "image", "Image" },
        { "/generate", "post", "done", "EventDone" },
        { "/generate", "post", "error", "ErrorBody" },
        { "/requests/{id}/events", "get", "error", "ErrorBody" },
        { "/requests/{id}/events", "get", "queued", "EventQueued" },
        { "/status", "get", "status", "Status" },
    };
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        json_t *answers = json_object_get(operation(events[i].path, events[i].method), "responses");
        json_t *content = json_object_get(json_object_get(answers, "200"), "content");
        json_t *named = json_object_get(json_object_get(content, "text/event-stream"), "x-events");
        const char *ref = json_string_value(json_object_get(json_object_get(named, events[i].event), "$ref"));
        assert_non_null(ref);
        assert_string_equal(strrchr(ref, '/') + 1, events[i].schema);
    }
}

static bool lists(const json_t *array, const char *word)
{
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)array, i, v) if (!strcmp(json_string_value(v), word)) return true;
    return false;
}

static void check_field(const dn_field *f, json_t *s, const char *table)
{
    if (!s)
        fail_msg("%s.%s is missing", table, f->name);
    json_t *min = json_object_get(s, "minimum"), *max = json_object_get(s, "maximum");
    if (f->type == DN_T_INT || f->type == DN_T_NUM) {
        bool ranged = f->min != f->max || f->flags & DN_F_ONLY;
        assert_int_equal(ranged, min != NULL);
        if (ranged)
            assert_true(json_number_value(min) == f->min && json_number_value(max) == f->max);
    }
    if (f->choices) {
        json_t *words = json_object_get(s, "enum");
        int n = 0;
        for (; f->choices[n]; n++)
            assert_true(lists(words, f->choices[n]));
        assert_int_equal(json_array_size(words), n);
    }
    if (f->type == DN_T_OBJECT)
        assert_non_null(json_object_get(s, "$ref"));
    assert_int_equal(f->def != NULL, json_object_get(s, "default") != NULL);
    assert_int_equal(f->help != NULL, json_object_get(s, "description") != NULL);
}

static int check_table(const dn_fields *t)
{
    json_t *schema = json_object_get(json_object_get(json_object_get(doc, "components"), "schemas"), t->name);
    if (!schema)
        fail_msg("no schema %s", t->name);
    json_t *properties = json_object_get(schema, "properties");
    int n = t->n;
    assert_int_equal(json_object_size(properties), t->n);
    for (int i = 0; i < t->n; i++) {
        check_field(&t->v[i], json_object_get(properties, t->v[i].name), t->name);
        assert_int_equal((t->v[i].flags & DN_F_REQUIRED) != 0,
                         lists(json_object_get(schema, "required"), t->v[i].name));
        if (t->v[i].sub)
            n += check_table(t->v[i].sub);
    }
    return n;
}

static void test_tables(void **state)
{
    (void)state;
    static const dn_fields *const tables[] = {
        &dn_generate_fields,     &dn_result_fields,         &dn_request_info_fields,  &dn_request_list_fields,
        &dn_model_card_fields,   &dn_model_list_fields,     &dn_status_fields,        &dn_health_fields,
        &dn_event_queued_fields, &dn_event_progress_fields, &dn_event_preview_fields, &dn_event_done_fields,
        &dn_error_fields
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        assert_true(check_table(tables[i]) > 0);
}

static void expect_json(const json_t *v, const char *text)
{
    json_t *expected = json_loads(text, 0, NULL);
    assert_true(json_equal(v, expected));
    json_decref(expected);
}

/* Some facts by hand, so that the walk above is not the only witness. */
static void test_facts(void **state)
{
    (void)state;
    json_t *p = json_object_get(resolve("#/components/schemas/GenerateRequest"), "properties");
    json_t *steps = json_object_get(p, "steps"), *seed = json_object_get(p, "seed");
    assert_string_equal(json_string_value(json_object_get(steps, "type")), "integer");
    assert_int_equal(json_integer_value(json_object_get(steps, "minimum")), 1);
    assert_int_equal(json_integer_value(json_object_get(steps, "maximum")), 1000);
    assert_int_equal(json_integer_value(json_object_get(steps, "default")), 50);
    assert_int_equal(json_integer_value(json_object_get(seed, "maximum")), 9007199254740991);
    json_t *cfg = json_object_get(resolve("#/components/schemas/Cfg"), "properties");
    json_t *interval = json_object_get(cfg, "interval");
    expect_json(json_object_get(interval, "default"), "[0,1]");
    assert_int_equal(json_integer_value(json_object_get(interval, "minItems")), 2);
    json_t *next = json_object_get(json_object_get(resolve("#/components/schemas/RequestList"), "properties"), "next");
    expect_json(json_object_get(next, "type"), "[\"string\",\"null\"]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refs),   cmocka_unit_test(test_head),   cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_routes), cmocka_unit_test(test_tables), cmocka_unit_test(test_facts),
        cmocka_unit_test(test_bodies), cmocka_unit_test(test_events),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
