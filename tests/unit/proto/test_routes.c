/* test_routes.c - paths and methods, query strings, the CLI's flags. */
#include "job.h"
#include "proto.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_found(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path;
        int route;
        const char *arg0, *arg1;
    } cases[] = {
        { "POST", "/generate", DN_ROUTE_GENERATE, NULL, NULL },
        { "POST", "/denoise", DN_ROUTE_DENOISE, NULL, NULL },
        { "GET", "/requests", DN_ROUTE_REQUESTS, NULL, NULL },
        { "GET", "/requests/ab", DN_ROUTE_REQUEST, "ab", NULL },
        { "HEAD", "/requests/ab", DN_ROUTE_REQUEST, "ab", NULL },
        { "DELETE", "/requests/ab", DN_ROUTE_REQUEST_CANCEL, "ab", NULL },
        { "GET", "/requests/ab/images/3", DN_ROUTE_REQUEST_IMAGE, "ab", "3" },
        { "GET", "/requests/ab/events", DN_ROUTE_REQUEST_EVENTS, "ab", NULL },
        { "GET", "/models", DN_ROUTE_MODELS, NULL, NULL },
        { "GET", "/models/m@1", DN_ROUTE_MODEL, "m@1", NULL },
        { "POST", "/models/m/load", DN_ROUTE_MODEL_LOAD, "m", NULL },
        { "POST", "/models/load/unload", DN_ROUTE_MODEL_UNLOAD, "load", NULL },
        { "GET", "/", DN_ROUTE_PAGE, NULL, NULL },
        { "GET", "/healthz", DN_ROUTE_HEALTHZ, NULL, NULL },
        { "POST", "/admin/drain", DN_ROUTE_DRAIN, NULL, NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_route_hit hit;
        dn_http_error e;
        if (dn_route_find(&hit, cases[i].method, cases[i].path, &e))
            fail_msg("%s %s: %s", cases[i].method, cases[i].path, e.message);
        assert_int_equal(hit.route, cases[i].route);
        assert_int_equal(hit.n_args, (cases[i].arg0 != NULL) + (cases[i].arg1 != NULL));
        if (cases[i].arg0)
            assert_string_equal(hit.arg[0], cases[i].arg0);
        if (cases[i].arg1)
            assert_string_equal(hit.arg[1], cases[i].arg1);
    }
}

static void test_not_found(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path;
        int code;
        const char *allow;
    } cases[] = {
        { "GET", "/generate", DN_H_METHOD, "POST" },
        { "PUT", "/requests/x", DN_H_METHOD, "GET, HEAD, DELETE" },
        { "POST", "/", DN_H_METHOD, "GET, HEAD" },
        { "BREW", "/models", DN_H_METHOD, "GET, HEAD" },
        { "POST", "/models/m", DN_H_METHOD, "GET, HEAD, PUT, DELETE" },
        { "GET", "/models/m/alias", DN_H_METHOD, "POST" },
        { "PUT", "/models/m/checkpoint", DN_H_METHOD, "GET, HEAD" },
        { "PUT", "/jobs", DN_H_METHOD, "GET, HEAD, POST" },
        { "POST", "/jobs/1", DN_H_METHOD, "GET, HEAD, PATCH" },
        { "GET", "/jobs/1/pause", DN_H_METHOD, "POST" },
        { "POST", "/datasets/d", DN_H_METHOD, "GET, HEAD, PUT, DELETE" },
        { "POST", "/blobs", DN_H_NOT_IMPLEMENTED, NULL },
        { "GET", "/blobs/x", DN_H_NOT_IMPLEMENTED, NULL },
        { "GET", "/usage", DN_H_NOT_IMPLEMENTED, NULL },
        { "POST", "/v1/images/generations", DN_H_NOT_IMPLEMENTED, NULL },
        { "GET", "/v2/health/live", DN_H_NOT_IMPLEMENTED, NULL },
        { "GET", "/nope", DN_H_NOT_FOUND, NULL },
        { "GET", "", DN_H_NOT_FOUND, NULL },
        { "GET", "*", DN_H_NOT_FOUND, NULL },
        { "GET", "//", DN_H_NOT_FOUND, NULL },
        { "POST", "/generate/", DN_H_NOT_FOUND, NULL },
        { "POST", "/generatex", DN_H_NOT_FOUND, NULL },
        { "GET", "/requests/", DN_H_NOT_FOUND, NULL },
        { "GET", "/requests/a/images", DN_H_NOT_FOUND, NULL },
        { "GET", "/requests/a/images/1/x", DN_H_NOT_FOUND, NULL },
        { "GET", "/models//load", DN_H_NOT_FOUND, NULL },
        { "GET",
          "/requests/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
          "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
          DN_H_NOT_FOUND, NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_route_hit hit;
        dn_http_error e;
        int code = dn_route_find(&hit, cases[i].method, cases[i].path, &e);
        if (code != cases[i].code)
            fail_msg("%s %s: code %d, expected %d", cases[i].method, cases[i].path, code, cases[i].code);
        assert_int_equal(hit.route, -1);
        if (cases[i].allow)
            assert_string_equal(hit.allow, cases[i].allow);
    }
}

static void test_query(void **state)
{
    (void)state;
    dn_arena *a = dn_arena_new(4096);
    dn_http_error e;
    dn_requests_query q;
    assert_int_equal(dn_query_init(&dn_requests_query_fields, &q, a, &e), 0);
    assert_int_equal(q.limit, 100);
    assert_int_equal(q.has, 0);
    assert_int_equal(dn_query_set(&dn_requests_query_fields, &q, a, "state", "failed", &e), 0);
    assert_int_equal(dn_query_set(&dn_requests_query_fields, &q, a, "after", "0123", &e), 0); /* digits stay text */
    assert_int_equal(q.state, DN_STATE_FAILED);
    assert_string_equal(q.after, "0123");
    assert_int_equal(q.has, DN_BIT(DN_REQUESTS_STATE) | DN_BIT(DN_REQUESTS_AFTER));
    static const struct {
        const char *name, *value;
        int code;
    } bad[] = { { "state", "queued", DN_H_DUPLICATE }, { "limit", "0", DN_H_RANGE },
                { "limit", "1001", DN_H_RANGE },       { "limit", "x", DN_H_TYPE },
                { "limit", NULL, DN_H_TYPE },          { "limit", "", DN_H_TYPE },
                { "limit", " 5", DN_H_TYPE },          { "limit", "5 ", DN_H_TYPE },
                { "foo", "1", DN_H_UNKNOWN },          { "limit", "\xff", DN_H_TYPE },
                { "after", "\xff", DN_H_DUPLICATE } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(dn_query_set(&dn_requests_query_fields, &q, a, bad[i].name, bad[i].value, &e), bad[i].code);
        assert_string_equal(e.param, bad[i].name);
    }
    dn_model_query m;
    assert_int_equal(dn_query_init(&dn_unload_query_fields, &m, a, &e), 0);
    assert_int_equal(dn_query_set(&dn_unload_query_fields, &m, a, "force", "true", &e), 0);
    assert_true(m.force && !m.wait);
    assert_int_equal(dn_query_init(&dn_load_query_fields, &m, a, &e), 0);
    assert_int_equal(dn_query_set(&dn_load_query_fields, &m, a, "force", "true", &e), DN_H_UNKNOWN);
    assert_int_equal(dn_query_set(&dn_load_query_fields, &m, a, "wait", "1", &e), 0);
    assert_true(m.wait);
    dn_denoise_query d;
    assert_int_equal(dn_query_init(&dn_denoise_query_fields, &d, a, &e), 0);
    assert_int_equal(dn_query_set(&dn_denoise_query_fields, &d, a, "model", "m@3", &e), 0);
    assert_string_equal(d.model, "m@3");
    dn_arena_free(a);
}

/* Run all flags of a command line, one per line. */
static json_t *flags(const char *text, int expected_code, const char **rest)
{
    static char copy[1024];
    char *argv[32], *save;
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *s = strtok_r(copy, "\n", &save); s; s = strtok_r(NULL, "\n", &save))
        argv[argc++] = s;
    json_t *request = json_object();
    dn_http_error e = { 0 };
    int i = 0, used = 0;
    for (; i < argc && (used = dn_cli_flag(&dn_generate_fields, request, argc - i, argv + i, &e)) > 0;)
        i += used;
    if (e.id != expected_code)
        fail_msg("%s: code %d: %s", text, e.id, e.message);
    if (rest)
        *rest = i < argc ? argv[i] : NULL;
    return request;
}

static void expect_flags(const char *text, const char *json)
{
    char *s = strdup(json);
    for (char *c = s; *c; c++)
        if (*c == '\'')
            *c = '"';
    const char *rest;
    json_t *got = flags(text, 0, &rest), *expected = json_loads(s, 0, NULL);
    assert_null(rest);
    assert_non_null(expected);
    if (!json_equal(got, expected))
        fail_msg("%s gave %s", text, json_dumps(got, JSON_COMPACT));
    /* and what a flag makes is a good request */
    dn_arena *a = dn_arena_new(DN_REQUEST_BYTES_MAX);
    dn_generate_request r;
    dn_http_error e;
    if (dn_generate_parse(&r, a, got, &e))
        fail_msg("%s: %s", text, e.message);
    dn_arena_free(a);
    json_decref(got);
    json_decref(expected);
    free(s);
}

static void test_cli(void **state)
{
    (void)state;
    expect_flags("--steps\n20\n--label\nsandal\n-n\n4", "{'steps':20,'class_label':'sandal','n':4}");
    expect_flags("-m\nfashion-mnist\n--grid", "{'model':'fashion-mnist','output':{'layout':'grid'}}");
    expect_flags("--label=7", "{'class_label':7}");
    expect_flags("-n\n3\n-l\n7,bag,0", "{'n':3,'class_label':[7,'bag',0]}");
    expect_flags("--label=ankle boot", "{'class_label':'ankle boot'}");
    expect_flags("--timesteps=999,500,0", "{'timesteps':[999,500,0]}");
    expect_flags("-g\n3.5\n--guidance-interval=0,0.5", "{'guidance':{'cfg':{'scale':3.5,'interval':[0,0.5]}}}");
    expect_flags("--guidance=2\n--guidance-schedule=cosine\n--guidance-rescale=0.7",
                 "{'guidance':{'cfg':{'scale':2,'schedule':'cosine','rescale':0.7}}}");
    expect_flags("--scheduler={\"use_karras_sigmas\":true}", "{'scheduler':{'use_karras_sigmas':true}}");
    expect_flags("--format=npy\n--layout=list", "{'output':{'format':'npy','layout':'list'}}");
    expect_flags("--deadline-ms=500\n--preview-every\n5\n--on-disconnect=continue",
                 "{'deadline_ms':500,'preview_every':5,'on_disconnect':'continue'}");
    expect_flags(
        "--sampler=dpm++2m\n-s\n9007199254740991\n--eta=0.5\n--temperature=0.9\n--rng=torch\n--priority=low\n--height="
        "28\n"
        "--width=28\n--task=sample\n--model=m",
        "{'sampler':'dpm++2m','seed':9007199254740991,'eta':0.5,'temperature':0.9,'rng':'torch','priority':'low',"
        "'height':28,'width':28,'task':'sample','model':'m'}");
}

static void test_cli_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *flags;
        int code;
    } cases[] = {
        { "--steps=x", DN_H_TYPE },       { "--steps", DN_H_MISSING },    { "--steps=1\n--steps=2", DN_H_DUPLICATE },
        { "--scheduler=[]", DN_H_TYPE },  { "--scheduler={", DN_H_TYPE }, { "--grid\n--layout=list", DN_H_DUPLICATE },
        { "--timesteps=3,x", DN_H_TYPE }, { "--guidance=inf", DN_H_TYPE }
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        json_decref(flags(cases[i].flags, cases[i].code, NULL));
    static const char *const others[] = {
        "-o", "--output=x", "file", "--", "-", "", "--grid=1", "-nn", "--stream", "-"
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        json_t *request = json_object();
        char *argv[] = { (char *)others[i], "value" };
        assert_int_equal(dn_cli_flag(&dn_generate_fields, request, 2, argv, NULL), 0);
        assert_int_equal(json_object_size(request), 0);
        json_decref(request);
    }
}

/* Another table: a job's. */
static void test_cli_jobs(void **state)
{
    (void)state;
    static const struct {
        const char *flags, *json;
    } cases[] = {
        { "--steps=5", "{'steps':5}" },
        { "--optimizer-betas=0.9,0.99", "{'optimizer':{'betas':[0.9,0.99]}}" },
        { "--micro-batch=auto", "{'micro_batch':'auto'}" },
        { "--ema-warmup=off", "{'ema':{'warmup':false}}" },
        { "--preview-labels=all", "{'preview':{'labels':'all'}}" },
        { "--augment=flip, crop", "{'augment':[{'kind':'flip'},{'kind':'crop'}]}" },
        { "--augment=[{\"kind\":\"crop\",\"p\":0.5}]", "{'augment':[{'kind':'crop','p':0.5}]}" },
        { "--model={\"sample_size\":8}", "{'model':{'sample_size':8}}" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_http_error e = { 0 };
        char *argv[] = { (char *)cases[i].flags }, *text = strdup(cases[i].json);
        for (char *c = text; *c; c++)
            *c = *c == '\'' ? '"' : *c;
        json_t *request = json_object(), *expected = json_loads(text, 0, NULL);
        if (dn_cli_flag(&dn_job_fields, request, 1, argv, &e) != 1 || !json_equal(request, expected))
            fail_msg("%s: %s", cases[i].flags, e.message);
        json_decref(request);
        json_decref(expected);
        free(text);
    }
    static const char *const others[] = { "--grid", "--sampler=ddpm", "-n", "--augment=[", "--augment=[1}" };
    for (int i = 0; i < 5; i++) {
        dn_http_error e = { 0 };
        char *argv[] = { (char *)others[i], "1" };
        json_t *request = json_object();
        assert_int_equal(dn_cli_flag(&dn_job_fields, request, 2, argv, &e), i < 3 ? 0 : -1);
        assert_int_equal(json_object_size(request), 0);
        json_decref(request);
    }
}

/* The help has a line for every field that has a flag. */
static void check_help(const dn_fields *t, const char *help)
{
    for (int i = 0; i < t->n; i++) {
        const dn_field *f = &t->v[i];
        if (f->type == DN_T_OBJECT)
            check_help(f->sub, help);
        else if (!f->flag || *f->flag)
            assert_non_null(strstr(help, f->help));
    }
}

static void test_cli_help(void **state)
{
    (void)state;
    dn_buf b;
    dn_buf_init(&b, 1 << 16);
    dn_cli_help(&dn_generate_fields, &b);
    assert_false(b.failed);
    check_help(&dn_generate_fields, b.data);
    assert_non_null(strstr(b.data, "-n, --n N"));
    assert_non_null(strstr(b.data, "--label"));
    assert_non_null(strstr(b.data, "dpm++2m"));
    assert_non_null(strstr(b.data, "--grid"));
    dn_buf_fini(&b);
    dn_buf_init(&b, 1 << 16);
    dn_cli_help(&dn_job_fields, &b);
    check_help(&dn_job_fields, b.data);
    assert_null(strstr(b.data, "--grid"));
    dn_buf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_found), cmocka_unit_test(test_not_found),    cmocka_unit_test(test_query),
        cmocka_unit_test(test_cli),   cmocka_unit_test(test_cli_refusals), cmocka_unit_test(test_cli_help),
        cmocka_unit_test(test_cli_jobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
