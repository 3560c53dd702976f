/* The texts inside a request's head, and the token file. */
#include <auth.h>
#include <http_parse.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static void test_percent(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out; /* NULL: refused */
        bool plus;
    } cases[] = {
        { "", "", false },        { "abc", "abc", false },   { "a%20b", "a b", false }, { "a+b", "a+b", false },
        { "a+b", "a b", true },   { "%2f%2F", "//", false }, { "%25", "%", false },     { "%C3%A9", "\xc3\xa9", false },
        { "%", NULL, false },     { "%1", NULL, false },     { "%g1", NULL, false },    { "%00", NULL, false },
        { "a%0Ab", NULL, false }, { "%7f", NULL, false },    { "%%20", NULL, false },   { "%2525", "%25", false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        strcpy(text, cases[i].in);
        bool good = dn_percent_decode(text, cases[i].plus);
        assert_int_equal(good, cases[i].out != NULL);
        if (good)
            assert_string_equal(text, cases[i].out);
    }
}

static void test_host(void **state)
{
    (void)state;
    static const struct {
        const char *in, *name;
        int port;
        bool loopback;
    } cases[] = {
        { "localhost", "localhost", -1, true },
        { "LocalHost:80", "localhost", 80, true },
        { "127.0.0.1:1", "127.0.0.1", 1, true },
        { "127.255.255.254", "127.255.255.254", -1, true },
        { "[::1]:65535", "::1", 65535, true },
        { "[::2]", "::2", -1, false },
        { "a.b-c_d", "a.b-c_d", -1, false },
        { "127.0.0.1.evil", "127.0.0.1.evil", -1, false },
        { "[::ffff:127.0.0.1]", "::ffff:127.0.0.1", -1, false },
        { "", NULL, 0, false },
        { ":80", NULL, 0, false },
        { "a:", NULL, 0, false },
        { "a:65536", NULL, 0, false },
        { "a:1x", NULL, 0, false },
        { "a:000001", NULL, 0, false },
        { "[::1", NULL, 0, false },
        { "[]", NULL, 0, false },
        { "[::1]80", NULL, 0, false },
        { "a b", NULL, 0, false },
        { "a@b", NULL, 0, false },
        { "::1", NULL, 0, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64];
        int port = 0;
        bool good = dn_host_split(cases[i].in, name, sizeof name, &port);
        assert_int_equal(good, cases[i].name != NULL);
        if (!good)
            continue;
        assert_string_equal(name, cases[i].name);
        assert_int_equal(port, cases[i].port);
        assert_int_equal(dn_host_is_loopback(name), cases[i].loopback);
    }
    char small[4];
    int port;
    assert_false(dn_host_split("abcd", small, sizeof small, &port));
    assert_true(dn_host_split("abc", small, sizeof small, &port));
}

static void test_origin(void **state)
{
    (void)state;
    assert_true(dn_origin_is_host("http://localhost:8760", "localhost:8760"));
    assert_true(dn_origin_is_host("http://LOCALHOST", "localhost:80"));
    assert_true(dn_origin_is_host("https://a.example", "a.example:443"));
    assert_false(dn_origin_is_host("http://localhost:8761", "localhost:8760"));
    assert_false(dn_origin_is_host("http://localhost.evil", "localhost"));
    assert_false(dn_origin_is_host("file://localhost", "localhost"));
    assert_false(dn_origin_is_host("null", "null"));
    assert_false(dn_origin_is_host("http://localhost/path", "localhost"));
}

static void test_media_type(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        { "application/json", "application/json" },
        { " Application/JSON ; charset=UTF-8", "application/json" },
        { "application/json;charset=\"utf-8\"", "application/json" },
        { "multipart/form-data; boundary=abc", "multipart/form-data" },
        { "application/json; charset=latin1", NULL },
        { "application", NULL },
        { "application/", NULL },
        { "/json", NULL },
        { "a/b/c", NULL },
        { "a b/c", NULL },
        { "", NULL },
        { ";", NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        bool good = dn_media_type(cases[i].in, out, sizeof out);
        assert_int_equal(good, cases[i].out != NULL);
        if (good)
            assert_string_equal(out, cases[i].out);
    }
    char small[8];
    assert_false(dn_media_type("text/pla", small, sizeof small));
    assert_true(dn_media_listed("a/b c/d", "c/d"));
    assert_false(dn_media_listed("a/b c/de", "c/d"));
    assert_false(dn_media_listed("", "c/d"));
}

static void test_accept(void **state)
{
    (void)state;
    static const char gives[] = "application/json text/event-stream image/png";
    static const struct {
        const char *accept, *best;
    } cases[] = {
        { NULL, "application/json" },
        { "*/*", "application/json" },
        { "image/*", "image/png" },
        { "IMAGE/PNG", "image/png" },
        { "image/png;q=0.1,text/event-stream;q=0.2", "text/event-stream" },
        { "application/json;q=0.3, image/png;q=0.3", "application/json" },
        { "*/*, application/json;q=0", "text/event-stream" },
        { "image/png;q=2", "image/png" },
        { "text/*;q=0.5, text/event-stream;q=0.1, image/png;q=0.2", "image/png" },
        { "image/png;q=nan", NULL },
        { "image/png;q=0", NULL },
        { "image/png;q=-1", NULL },
        { "image/gif", NULL },
        { "", NULL },
        { ",,;", NULL },
        { "application/*json", NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char best[64];
        bool good = dn_accept_best(cases[i].accept, gives, best, sizeof best);
        assert_int_equal(good, cases[i].best != NULL);
        if (good)
            assert_string_equal(best, cases[i].best);
    }
    assert_false(dn_accept_is_specific("*/*;q=0.8"));
    assert_true(dn_accept_is_specific("*/*, image/png"));
    assert_false(dn_accept_is_specific(""));
}

static void test_names(void **state)
{
    (void)state;
    assert_true(dn_is_token("X-Request-Id"));
    assert_false(dn_is_token(""));
    assert_false(dn_is_token("a b"));
    assert_false(dn_is_token("a:"));
    assert_true(dn_is_request_id("aZ09._-"));
    assert_false(dn_is_request_id(""));
    assert_false(dn_is_request_id("a/b"));
    assert_true(dn_is_length("0"));
    assert_true(dn_is_length("123456789012345678"));
    assert_false(dn_is_length("1234567890123456789"));
    assert_false(dn_is_length(""));
    assert_false(dn_is_length("+1"));
    assert_false(dn_is_length("1 "));
}

static void test_tokens(void **state)
{
    (void)state;
    char path[] = "/tmp/dn-tokens-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char text[] = "# the team\n"
                               "aaaaaaaaaaaaaaaa ann\n"
                               "   bbbbbbbbbbbbbbbb\tbea   use,admin\r\n"
                               "\n"
                               "cccccccccccccccc";
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    dn_auth *auth = NULL;
    dn_error err = { 0 };
    assert_int_equal(dn_auth_load(&auth, path, &err), 0);
    unlink(path);
    assert_int_equal(dn_auth_count(auth), 3);
    assert_string_equal(dn_auth_find(auth, "aaaaaaaaaaaaaaaa")->name, "ann");
    assert_false(dn_auth_find(auth, "aaaaaaaaaaaaaaaa")->admin);
    assert_true(dn_auth_find(auth, "bbbbbbbbbbbbbbbb")->admin);
    assert_string_equal(dn_auth_find(auth, "cccccccccccccccc")->name, "token5");
    assert_null(dn_auth_find(auth, ""));
    assert_null(dn_auth_find(auth, "aaaaaaaaaaaaaaa"));
    assert_null(dn_auth_find(auth, "aaaaaaaaaaaaaaaaa"));
    dn_auth_free(auth);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percent),    cmocka_unit_test(test_host),   cmocka_unit_test(test_origin),
        cmocka_unit_test(test_media_type), cmocka_unit_test(test_accept), cmocka_unit_test(test_names),
        cmocka_unit_test(test_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
