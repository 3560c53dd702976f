/* test_config.c - precedence, refusals by source and key, and --print-config read back. */
#include "daemon_config.h"
#include "proto.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { ARGS_MAX = 16 };

struct read {
    dn_config c;
    enum dn_config_action action;
    dn_http_error e;
    dn_arena *a;
    int code;
};

/* A temporary file with the text; the caller's buffer gets its name. */
static void write_file(char *path, const char *text)
{
    strcpy(path, "denoised-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

/* Read flags and variables, each a list separated by newlines, and an INI file if there is one. */
static struct read read_config(const char *flags, const char *vars, const char *ini)
{
    struct read r = { .a = dn_arena_new(1 << 20) };
    char path[32] = "", *argv[ARGS_MAX + 3] = { "denoised" }, *env[ARGS_MAX + 1] = { NULL };
    char *f = strdup(flags), *v = strdup(vars), *save;
    int argc = 1, n = 0;
    if (ini) {
        write_file(path, ini);
        argv[argc++] = "--config";
        argv[argc++] = path;
    }
    for (char *s = strtok_r(f, "\n", &save); s; s = strtok_r(NULL, "\n", &save))
        argv[argc++] = s;
    for (char *s = strtok_r(v, "\n", &save); s; s = strtok_r(NULL, "\n", &save))
        env[n++] = s;
    memset(&r.c, 0x5a, sizeof r.c);
    dn_config before = r.c;
    r.code = dn_config_load(&r.c, &r.action, r.a, argc, argv, env, &r.e);
    if (r.code)
        assert_memory_equal(&before, &r.c, sizeof before);
    if (ini)
        unlink(path);
    free(f);
    free(v);
    return r;
}

static struct read good(const char *flags, const char *vars, const char *ini)
{
    struct read r = read_config(flags, vars, ini);
    if (r.code)
        fail_msg("%s", r.e.message);
    return r;
}

static void test_defaults(void **state)
{
    (void)state;
    struct read r = good("", "PATH=/bin\nHOME=/", NULL);
    assert_int_equal(r.action, DN_ACTION_RUN);
    assert_int_equal(r.c.has, 0);
    assert_int_equal(r.c.listen.n, 1);
    assert_string_equal(r.c.listen.v[0], "127.0.0.1:8760");
    assert_string_equal(r.c.models, "models");
    assert_null(r.c.state);
    assert_null(r.c.token_file);
    assert_int_equal(r.c.load.n, 0);
    assert_string_equal(r.c.devices.v[0], "cpu");
    assert_int_equal(r.c.memory, 0);
    assert_int_equal(r.c.max_rows, 64);
    assert_true(r.c.step_ms == 100);
    assert_int_equal(r.c.drain_ms, 30000);
    assert_int_equal(r.c.log_format, DN_LOG_LOGFMT);
    assert_int_equal(r.c.result_bytes, 1ll << 30);
    assert_int_equal(r.c.result_ttl_ms, 3600000);
    assert_int_equal(r.c.disk_reserve, 1ll << 30);
    dn_arena_free(r.a);
}

/* A value for each key, as text and as it is printed; a key without one fails the test. */
static const struct {
    const char *key, *low, *mid, *high;
} values[] = {
    { "insecure", "true", "false", "true" },
    { "listen", "unix:/a", "[::1]:1,127.0.0.1:0", "localhost:3" },
    { "models", "/a", "b c", "d" },
    { "load", "a", "a,b", "none" },
    { "state", "/a", "/b", "/c" },
    { "devices", "ref", "cpu:0,2,cpu:1", "cpu:0-3" },
    { "memory", "1GiB", "512MiB", "1000001" },
    { "max-rows", "1", "2", "3" },
    { "step-ms", "1.5", "20", "30" },
    { "yield-ms", "5", "20.5", "100" },
    { "upload-bytes", "1MiB", "2GiB", "3TiB" },
    { "max-queue-ms", "1", "2", "3" },
    { "token-file", "/a", "/b", "/c" },
    { "host-names", "a", "b.example,10.0.0.1", "c" },
    { "cors-origin", "https://a", "https://b,http://c:80", "null" },
    { "drain-ms", "0", "1", "2" },
    { "log-format", "json", "logfmt", "json" },
    { "result-bytes", "0", "1KiB", "3TiB" },
    { "result-ttl", "1500ms", "2h", "7d" },
    { "disk-reserve", "0", "3GiB", "100MiB" },
};
enum { N_VALUES = sizeof values / sizeof *values };

static void expect_printed(const struct read *r, const char *key, const char *value)
{
    dn_buf b;
    char line[256];
    dn_buf_init(&b, 1 << 16);
    dn_config_print(&r->c, &b);
    snprintf(line, sizeof line, "\n%s = %s\n", key, value);
    if (!strstr(b.data, line))
        fail_msg("no \"%s = %s\" in\n%s", key, value, b.data);
    dn_buf_fini(&b);
}

static void test_precedence(void **state)
{
    (void)state;
    for (int i = 0; i < N_VALUES; i++) {
        char flag[128], var[128], ini[128], upper[64] = "";
        for (int k = 0; values[i].key[k]; k++)
            upper[k] = values[i].key[k] == '-' ? '_' : values[i].key[k] - 'a' + 'A';
        snprintf(ini, sizeof ini, "%s = %s\n", values[i].key, values[i].low);
        snprintf(var, sizeof var, "DENOISED_%s=%s", upper, values[i].mid);
        snprintf(flag, sizeof flag, "--%s=%s", values[i].key, values[i].high);
        struct read low = good("", "", ini), mid = good("", var, ini), high = good(flag, var, ini);
        expect_printed(&low, values[i].key, values[i].low);
        expect_printed(&mid, values[i].key, values[i].mid);
        expect_printed(&high, values[i].key, values[i].high);
        dn_arena_free(low.a);
        dn_arena_free(mid.a);
        dn_arena_free(high.a);
    }
}

static void test_each_key_is_tested(void **state)
{
    (void)state;
    for (int i = 0; i < dn_config_fields.n; i++) {
        int k = 0;
        while (k < N_VALUES && strcmp(values[k].key, dn_config_fields.v[i].name))
            k++;
        if (k == N_VALUES && i != DN_CONFIG_CONFIG)
            fail_msg("no test for the key %s", dn_config_fields.v[i].name);
    }
}

static void test_separate_value(void **state)
{
    (void)state;
    struct read r = good("--max-rows\n7\n--insecure\n--step-ms\n50", "", NULL);
    assert_int_equal(r.c.max_rows, 7);
    assert_true(r.c.insecure);
    assert_true(r.c.step_ms == 50);
    assert_int_equal(r.c.has, DN_BIT(DN_CONFIG_MAX_ROWS) | DN_BIT(DN_CONFIG_INSECURE) | DN_BIT(DN_CONFIG_STEP_MS));
    dn_arena_free(r.a);
}

static void test_config_from_variable(void **state)
{
    (void)state;
    char path[32], var[64];
    write_file(path, "; comment\n# another\n\n[denoised]\n  max-rows = 9 ; nine\nstep-ms: 12\n");
    snprintf(var, sizeof var, "DENOISED_CONFIG=%s", path);
    struct read r = good("", var, NULL);
    unlink(path);
    assert_int_equal(r.c.max_rows, 9);
    assert_true(r.c.step_ms == 12);
    dn_arena_free(r.a);
}

static void test_lists(void **state)
{
    (void)state;
    struct read r = good("--devices=cpu:0,2,cpu:1-3,ref\n--host-names=a, 10.0.0.1", "", NULL);
    assert_int_equal(r.c.devices.n, 3);
    assert_string_equal(r.c.devices.v[0], "cpu:0,2");
    assert_string_equal(r.c.devices.v[1], "cpu:1-3");
    assert_string_equal(r.c.devices.v[2], "ref");
    assert_int_equal(r.c.host_names.n, 2);
    assert_string_equal(r.c.host_names.v[1], "10.0.0.1");
    dn_arena_free(r.a);
}

static void test_units(void **state)
{
    (void)state;
    static const struct {
        const char *flag;
        int64_t bytes, ms;
    } cases[] = {
        { "--result-bytes=512M", 512ll << 20, 0 },
        { "--result-bytes=1GiB", 1ll << 30, 0 },
        { "--result-bytes=2GB", 2000000000, 0 },
        { "--result-bytes=1.5k", 1536, 0 },
        { "--result-bytes=77", 77, 0 },
        { "--result-bytes=0", 0, 0 },
        { "--result-ttl=90", 0, 90000 },
        { "--result-ttl=90s", 0, 90000 },
        { "--result-ttl=1500ms", 0, 1500 },
        { "--result-ttl=2m", 0, 120000 },
        { "--result-ttl=1.5h", 0, 5400000 },
        { "--result-ttl=1d", 0, 86400000 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct read r = good(cases[i].flag, "", NULL);
        assert_int_equal(cases[i].ms ? r.c.result_ttl_ms : r.c.result_bytes,
                         cases[i].ms ? cases[i].ms : cases[i].bytes);
        dn_arena_free(r.a);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *flags, *vars, *ini, *code, *param, *text;
    } cases[] = {
        { "--foo=1", "", NULL, "unknown_field", "foo", "--foo: there is no flag" },
        { "--max-row=1", "", NULL, "unknown_field", "max-row", "did you mean \"max-rows\"" },
        { "--max_rows=1", "", NULL, "unknown_field", "max_rows", "did you mean \"max-rows\"" },
        { "stray", "", NULL, "unknown_field", "stray", "is no flag" },
        { "-v", "", NULL, "unknown_field", "-v", "is no flag" },
        { "", "DENOISED_FOO=1", NULL, "unknown_field", "foo", "DENOISED_FOO: there is no key" },
        { "", "DENOISED_MAXROWS=1", NULL, "unknown_field", "maxrows", "did you mean \"max-rows\"" },
        { "", "", "foo = 1\n", "unknown_field", "foo", ":1: there is no key \"foo\"" },
        { "", "", "\n\nstep_ms = 1\n", "unknown_field", "step_ms", ":3: there is no key" },
        { "", "", "config = x\n", "unknown_field", "config", "there is no key" },
        { "", "", "[server]\nstep-ms = 1\n", "unknown_field", "server", ":2: there is no section" },
        { "", "", "step-ms = 1\nnonsense\n", "invalid", "config", ":2: expected key = value" },
        { "", "", "step-ms = 1\nstep-ms = 2\n", "duplicate_field", "step-ms", ":2: step-ms is given twice" },
        { "--step-ms=1\n--step-ms=2", "", NULL, "duplicate_field", "step-ms", "--step-ms: step-ms is given twice" },
        { "--step-ms=0", "", NULL, "out_of_range", "step-ms", "--step-ms: step-ms must be 1..60000, got 0" },
        { "--step-ms=fast", "", NULL, "wrong_type", "step-ms", "must be a number, got \"fast\"" },
        { "--step-ms=nan", "", NULL, "wrong_type", "step-ms", "must be a number" },
        { "--step-ms=0x10", "", NULL, "wrong_type", "step-ms", "must be a number" },
        { "--step-ms=", "", NULL, "wrong_type", "step-ms", "must be a number" },
        { "--step-ms", "", NULL, "missing_field", "step-ms", "--step-ms needs a value" },
        { "--max-rows=1.5", "", NULL, "wrong_type", "max-rows", "must be an integer" },
        { "", "DENOISED_MAX_ROWS=0", NULL, "out_of_range", "max-rows", "DENOISED_MAX_ROWS: max-rows must be 1..1024" },
        { "", "", "max-rows = 99999999999999999999\n", "out_of_range", "max-rows", ":1: max-rows" },
        { "--max-rows=5", "DENOISED_MAX_ROWS=x", NULL, "wrong_type", "max-rows", "DENOISED_MAX_ROWS" },
        { "--insecure=maybe", "", NULL, "wrong_type", "insecure", "true or false" },
        { "--log-format=xml", "", NULL, "unknown_value", "log-format", "logfmt, json" },
        { "--memory=lots", "", NULL, "wrong_type", "memory", "a size like" },
        { "--memory=1XB", "", NULL, "wrong_type", "memory", "a size like" },
        { "--memory=-1", "", NULL, "out_of_range", "memory", "must be 0.." },
        { "--memory=1e300G", "", NULL, "wrong_type", "memory", "a size like" },
        { "--result-ttl=1 fortnight", "", NULL, "wrong_type", "result-ttl", "a time like" },
        { "--result-ttl=0", "", NULL, "out_of_range", "result-ttl", "must be 1000.." },
        { "--models=", "", NULL, "out_of_range", "models", "characters" },
        { "--models=a ;b", "", NULL, "invalid", "models", "a file cannot hold" },
        { "--models= a", "", NULL, "invalid", "models", "a file cannot hold" },
        { "--models=a\tb", "", NULL, "invalid", "models", "a file cannot hold" },
        { "--load=a,,b", "", NULL, "out_of_range", "load[1]", "1..64 characters" },
        { "--config=/nonexistent/x.ini", "", NULL, "io", "config", "/nonexistent/x.ini: No such file" },
        { "--listen=8760", "", NULL, "invalid", "listen", "\"8760\" is not" },
        { "--listen=127.0.0.1", "", NULL, "invalid", "listen", "is not" },
        { "--listen=127.0.0.1:99999", "", NULL, "invalid", "listen", "is not" },
        { "--listen=127.0.0.1:1x", "", NULL, "invalid", "listen", "is not" },
        { "--listen=[::1:80", "", NULL, "invalid", "listen", "is not" },
        { "--listen=:80", "", NULL, "invalid", "listen", "is not" },
        { "--listen=0.0.0.0:8760", "", NULL, "forbidden", "listen", "reachable from elsewhere" },
        { "--listen=[::]:8760", "", NULL, "forbidden", "listen", "reachable from elsewhere" },
        { "--listen=127.0.0.1:1,192.168.0.1:2", "", NULL, "forbidden", "listen", "192.168.0.1:2" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct read r = read_config(cases[i].flags, cases[i].vars, cases[i].ini);
        if (!r.code || strcmp(r.e.code, cases[i].code) || strcmp(r.e.param, cases[i].param) ||
            !strstr(r.e.message, cases[i].text))
            fail_msg("case %zu (%s %s): %s %s: %s", i, cases[i].flags, cases[i].vars, r.code ? r.e.code : "accepted",
                     r.code ? r.e.param : "", r.code ? r.e.message : "");
        dn_arena_free(r.a);
    }
}

static void test_listening_elsewhere(void **state)
{
    (void)state;
    struct read r = good("--listen=0.0.0.0:1\n--insecure", "", NULL);
    dn_arena_free(r.a);
    r = good("--listen=0.0.0.0:1\n--token-file=/t", "", NULL);
    dn_arena_free(r.a);
    r = good("--listen=127.9.9.9:1,[::1]:65535,unix:/run/x", "", NULL);
    dn_arena_free(r.a);
}

static void test_foreign_variables(void **state)
{
    (void)state;
    struct read r = good("",
                         "DENOISED_TRACE=1\nDENOISED_CHECK=ref\nDENOISED_SERVICE_HOST=10.0.0.1\nDENOISED_PORT=tcp://x\n"
                         "DENOISED_PORT_8760_TCP=x\nDENOISED_STATE=\nDENOISED",
                         NULL);
    assert_int_equal(r.c.has, 0);
    dn_arena_free(r.a);
}

static void test_long_lines(void **state)
{
    (void)state;
    char ini[12000] = "models = ";
    memset(ini + 9, 'x', 3000);
    strcpy(ini + 3009, "\nstep-ms = 3\n");
    struct read r = good("", "", ini);
    assert_int_equal(strlen(r.c.models), 3000);
    assert_true(r.c.step_ms == 3);
    dn_arena_free(r.a);
    memset(ini + 9, 'x', 9000);
    strcpy(ini + 9009, "\n");
    r = read_config("", "", ini);
    assert_int_not_equal(r.code, 0);
    dn_arena_free(r.a);
}

static void test_actions(void **state)
{
    (void)state;
    static const struct {
        const char *flag;
        enum dn_config_action action;
    } cases[] = { { "--print-config", DN_ACTION_PRINT_CONFIG },
                  { "--check", DN_ACTION_CHECK },
                  { "--help", DN_ACTION_HELP },
                  { "-h", DN_ACTION_HELP },
                  { "--version", DN_ACTION_VERSION },
                  { "--max-rows=3", DN_ACTION_RUN } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct read r = good(cases[i].flag, "", NULL);
        assert_int_equal(r.action, cases[i].action);
        dn_arena_free(r.a);
    }
}

static void test_an_action_with_a_value(void **state)
{
    (void)state;
    static const char *const good_ones[] = { "--backup\n/to", "--backup=/to" };
    for (int i = 0; i < 2; i++) {
        struct read r = good(good_ones[i], "", NULL);
        assert_int_equal(r.action, DN_ACTION_BACKUP);
        assert_string_equal(r.c.backup, "/to");
        dn_arena_free(r.a);
    }
    static const struct {
        const char *flags, *vars, *ini;
        int code;
    } bad[] = { { "--backup", "", NULL, DN_H_MISSING },
                { "--backup=", "", NULL, DN_H_MISSING },
                { "--check=1", "", NULL, DN_H_UNKNOWN },
                { "", "DENOISED_BACKUP=/to", NULL, DN_H_UNKNOWN }, /* a daemon that only copies would surprise */
                { "", "", "backup = /to\n", DN_H_UNKNOWN } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct read r = read_config(bad[i].flags, bad[i].vars, bad[i].ini);
        assert_int_equal(r.code, bad[i].code);
        dn_arena_free(r.a);
    }
}

/* What --print-config says, read back, prints the same. */
static void round_trip(const char *flags)
{
    struct read one = good(flags, "", NULL);
    dn_buf first, second;
    dn_buf_init(&first, 1 << 16);
    dn_buf_init(&second, 1 << 16);
    dn_config_print(&one.c, &first);
    assert_false(first.failed);
    struct read two = good("", "", first.data);
    dn_config_print(&two.c, &second);
    assert_string_equal(first.data, second.data);
    dn_buf_fini(&first);
    dn_buf_fini(&second);
    dn_arena_free(one.a);
    dn_arena_free(two.a);
}

static void test_round_trip(void **state)
{
    (void)state;
    round_trip("");
    round_trip("--devices=cpu:0,2,cpu:1\n--memory=3G\n--result-ttl=90001ms\n--listen=unix:/"
               "a=b:c#d\n--step-ms=0.1e2\n--load=a,b\n"
               "--models=x;y \"z\"\n--cors-origin=https://a:1,null");
    for (int i = 0; i < N_VALUES; i++) {
        char flags[128];
        snprintf(flags, sizeof flags, "--%s=%s", values[i].key, values[i].mid);
        round_trip(flags);
    }
}

/* Help and documentation name every key. */
static void test_help(void **state)
{
    (void)state;
    dn_buf help, page;
    dn_buf_init(&help, 1 << 16);
    dn_buf_init(&page, 1 << 16);
    dn_config_help(&help);
    dn_config_markdown(&page);
    for (int i = 0; i < dn_config_fields.n; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "--%s", dn_config_fields.v[i].name);
        assert_non_null(strstr(help.data, flag));
        assert_non_null(strstr(page.data, flag));
    }
    assert_non_null(strstr(help.data, "--print-config"));
    assert_non_null(strstr(page.data, "`DENOISED_MAX_QUEUE_MS`"));
    dn_buf_fini(&help);
    dn_buf_fini(&page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_each_key_is_tested),
        cmocka_unit_test(test_separate_value),
        cmocka_unit_test(test_config_from_variable),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_listening_elsewhere),
        cmocka_unit_test(test_foreign_variables),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_actions),
        cmocka_unit_test(test_an_action_with_a_value),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
