/* test_bad_requests.c - every way to get POST /generate wrong: the code and the field that the answer names.
 *
 * Single quotes stand for double ones. */
#include "proto.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const struct {
    const char *body, *code, *param;
} cases[] = {
    /* not JSON */
    { "", "invalid_json", "" },
    { " ", "invalid_json", "" },
    { "{", "invalid_json", "" },
    { "}", "invalid_json", "" },
    { "{}{}", "invalid_json", "" },
    { "{} x", "invalid_json", "" },
    { "{'n'}", "invalid_json", "" },
    { "{'n':}", "invalid_json", "n" },
    { "{'n':1,}", "invalid_json", "n" },
    { "{,'n':1}", "invalid_json", "" },
    { "{n:1}", "invalid_json", "" },
    { "{'n':1 'seed':2}", "invalid_json", "n" },
    { "{'n':01}", "invalid_json", "n" },
    { "{'n':+1}", "invalid_json", "n" },
    { "{'n':1.}", "invalid_json", "n" },
    { "{'n':.5}", "invalid_json", "n" },
    { "{'n':0x10}", "invalid_json", "n" },
    { "{'steps':NaN}", "invalid_json", "steps" },
    { "{'steps':nan}", "invalid_json", "steps" },
    { "{'eta':Infinity}", "invalid_json", "eta" },
    { "{'eta':-Infinity}", "invalid_json", "eta" },
    { "{'guidance':{'cfg':{'scale':NaN}}}", "invalid_json", "guidance.cfg.scale" },
    { "{'timesteps':[3,NaN]}", "invalid_json", "timesteps[1]" },
    { "{'stream':True}", "invalid_json", "stream" },
    { "{'model':'a", "invalid_json", "model" },
    { "{'model':'\\x'}", "invalid_json", "model" },
    { "{'model':'\\u0000'}", "invalid_json", "model" },
    { "{'model':'\\ud800'}", "invalid_json", "model" },
    { "{'model':'\xff'}", "invalid_json", "model" },
    { "{'model':'a\nb'}", "invalid_json", "model" },
    { "{'n':1}/* c */", "invalid_json", "" },
    { "\xef\xbb\xbf{}", "invalid_json", "" },
    /* JSON, but no object */
    { "[]", "wrong_type", "" },
    { "[{}]", "wrong_type", "" },
    { "null", "invalid_json", "" },
    { "3", "invalid_json", "" },
    { "'x'", "invalid_json", "" },
    /* doubled */
    { "{'n':1,'n':2}", "duplicate_field", "n" },
    { "{'steps':1,'seed':3,'steps':1}", "duplicate_field", "steps" },
    { "{'output':{'format':'png','format':'png'}}", "duplicate_field", "output.format" },
    { "{'guidance':{'cfg':{'scale':1,'scale':2}}}", "duplicate_field", "guidance.cfg.scale" },
    { "{'scheduler':{'a':1,'a':2}}", "duplicate_field", "scheduler.a" },
    /* too large for any number */
    { "{'seed':99999999999999999999}", "out_of_range", "seed" },
    { "{'steps':-99999999999999999999}", "out_of_range", "steps" },
    { "{'eta':1e999}", "out_of_range", "eta" },
    { "{'guidance':{'cfg':{'scale':1e400}}}", "out_of_range", "guidance.cfg.scale" },
    { "{'timesteps':[5,4,1e999]}", "out_of_range", "timesteps[2]" },
    { "{'scheduler':{'beta_start':1e999}}", "out_of_range", "scheduler.beta_start" },
    /* unknown */
    { "{'foo':1}", "unknown_field", "foo" },
    { "{'':1}", "unknown_field", "" },
    { "{'Steps':1}", "unknown_field", "Steps" },
    { "{'stepz':1}", "unknown_field", "stepz" },
    { "{'num_inference_steps':1}", "unknown_field", "num_inference_steps" },
    { "{'guidance_scale':3}", "unknown_field", "guidance_scale" },
    { "{'guidance':{'foo':1}}", "unknown_field", "guidance.foo" },
    { "{'guidance':{'cfg':{'scale':1,'w':1}}}", "unknown_field", "guidance.cfg.w" },
    { "{'output':{'quality':1}}", "unknown_field", "output.quality" },
    { "{'n ':1}", "unknown_field", "n " },
    /* later versions, by name */
    { "{'image':'blob_1'}", "not_supported", "image" },
    { "{'mask':'blob_1'}", "not_supported", "mask" },
    { "{'images':[]}", "not_supported", "images" },
    { "{'strength':0.5}", "not_supported", "strength" },
    { "{'frames':8}", "not_supported", "frames" },
    { "{'repaint':{}}", "not_supported", "repaint" },
    { "{'cascade':[]}", "not_supported", "cascade" },
    { "{'ode':{}}", "not_supported", "ode" },
    { "{'decode_tile':64}", "not_supported", "decode_tile" },
    { "{'latent':'blob_1'}", "not_supported", "latent" },
    { "{'seeds':[1,2]}", "not_supported", "seeds" },
    { "{'labels':[1,2]}", "not_supported", "labels" },
    { "{'task':'img2img'}", "not_supported", "task" },
    { "{'task':'inpaint'}", "not_supported", "task" },
    { "{'task':'invert'}", "not_supported", "task" },
    { "{'task':'interpolate'}", "not_supported", "task" },
    { "{'task':'upscale'}", "not_supported", "task" },
    { "{'task':'cascade'}", "not_supported", "task" },
    { "{'task':'likelihood'}", "not_supported", "task" },
    { "{'sampler':'ddim_inverse'}", "not_supported", "sampler" },
    { "{'sampler':'sde_ve'}", "not_supported", "sampler" },
    { "{'sampler':'sde_vp'}", "not_supported", "sampler" },
    { "{'sampler':'sde_subvp'}", "not_supported", "sampler" },
    { "{'sampler':'ode'}", "not_supported", "sampler" },
    { "{'guidance':{'classifier':{'model':'c','scale':1}}}", "not_supported", "guidance.classifier" },
    { "{'guidance':{'auto':{'model':'c','scale':1}}}", "not_supported", "guidance.auto" },
    { "{'guidance':{'cfg':{'scale':1,'channels':3}}}", "not_supported", "guidance.cfg.channels" },
    { "{'output':{'format':'apng'}}", "not_supported", "output.format" },
    { "{'output':{'format':'wav'}}", "not_supported", "output.format" },
    { "{'output':{'layout':'strip'}}", "not_supported", "output.layout" },
    { "{'output':{'trajectory_every':1}}", "not_supported", "output.trajectory_every" },
    { "{'output':{'trajectory_every':-1}}", "not_supported", "output.trajectory_every" },
    /* wrong types */
    { "{'model':1}", "wrong_type", "model" },
    { "{'model':null}", "wrong_type", "model" },
    { "{'model':['a']}", "wrong_type", "model" },
    { "{'task':1}", "wrong_type", "task" },
    { "{'task':true}", "wrong_type", "task" },
    { "{'n':'1'}", "wrong_type", "n" },
    { "{'n':1.5}", "wrong_type", "n" },
    { "{'n':true}", "wrong_type", "n" },
    { "{'n':null}", "wrong_type", "n" },
    { "{'n':[1]}", "wrong_type", "n" },
    { "{'n':{}}", "wrong_type", "n" },
    { "{'seed':'7'}", "wrong_type", "seed" },
    { "{'seed':0.1}", "wrong_type", "seed" },
    { "{'class_label':null}", "wrong_type", "class_label" },
    { "{'class_label':true}", "wrong_type", "class_label" },
    { "{'class_label':{}}", "wrong_type", "class_label" },
    { "{'class_label':1.5}", "wrong_type", "class_label" },
    { "{'class_label':[[1]]}", "wrong_type", "class_label[0]" },
    { "{'n':2,'class_label':[1,null]}", "wrong_type", "class_label[1]" },
    { "{'n':2,'class_label':[1,2.5]}", "wrong_type", "class_label[1]" },
    { "{'sampler':3}", "wrong_type", "sampler" },
    { "{'sampler':null}", "wrong_type", "sampler" },
    { "{'scheduler':'ddim'}", "wrong_type", "scheduler" },
    { "{'scheduler':[]}", "wrong_type", "scheduler" },
    { "{'scheduler':null}", "wrong_type", "scheduler" },
    { "{'steps':'20'}", "wrong_type", "steps" },
    { "{'steps':20.5}", "wrong_type", "steps" },
    { "{'timesteps':5}", "wrong_type", "timesteps" },
    { "{'timesteps':{}}", "wrong_type", "timesteps" },
    { "{'timesteps':['5']}", "wrong_type", "timesteps[0]" },
    { "{'timesteps':[5,null]}", "wrong_type", "timesteps[1]" },
    { "{'timesteps':[5,[4]]}", "wrong_type", "timesteps[1]" },
    { "{'eta':'0'}", "wrong_type", "eta" },
    { "{'eta':false}", "wrong_type", "eta" },
    { "{'temperature':'hot'}", "wrong_type", "temperature" },
    { "{'temperature':[]}", "wrong_type", "temperature" },
    { "{'guidance':3}", "wrong_type", "guidance" },
    { "{'guidance':[]}", "wrong_type", "guidance" },
    { "{'guidance':{'cfg':3}}", "wrong_type", "guidance.cfg" },
    { "{'guidance':{'cfg':null}}", "wrong_type", "guidance.cfg" },
    { "{'guidance':{'cfg':{'scale':'3'}}}", "wrong_type", "guidance.cfg.scale" },
    { "{'guidance':{'cfg':{'scale':3,'interval':0.5}}}", "wrong_type", "guidance.cfg.interval" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[0]}}}", "wrong_type", "guidance.cfg.interval" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[0,1,1]}}}", "wrong_type", "guidance.cfg.interval" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[0,'1']}}}", "wrong_type", "guidance.cfg.interval[1]" },
    { "{'guidance':{'cfg':{'scale':3,'rescale':true}}}", "wrong_type", "guidance.cfg.rescale" },
    { "{'guidance':{'cfg':{'scale':3,'schedule':1}}}", "wrong_type", "guidance.cfg.schedule" },
    { "{'height':'28'}", "wrong_type", "height" },
    { "{'width':28.5}", "wrong_type", "width" },
    { "{'output':'png'}", "wrong_type", "output" },
    { "{'output':{'format':1}}", "wrong_type", "output.format" },
    { "{'output':{'layout':null}}", "wrong_type", "output.layout" },
    { "{'output':{'trajectory_every':'0'}}", "wrong_type", "output.trajectory_every" },
    { "{'stream':1}", "wrong_type", "stream" },
    { "{'stream':'true'}", "wrong_type", "stream" },
    { "{'preview_every':'5'}", "wrong_type", "preview_every" },
    { "{'on_disconnect':false}", "wrong_type", "on_disconnect" },
    { "{'rng':1}", "wrong_type", "rng" },
    { "{'priority':1}", "wrong_type", "priority" },
    { "{'deadline_ms':'soon'}", "wrong_type", "deadline_ms" },
    /* out of range */
    { "{'model':''}", "out_of_range", "model" },
    { "{'model':'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'}", "out_of_range",
      "model" },
    { "{'n':0}", "out_of_range", "n" },
    { "{'n':-1}", "out_of_range", "n" },
    { "{'n':65}", "out_of_range", "n" },
    { "{'n':9223372036854775807}", "out_of_range", "n" },
    { "{'n':1e18}", "out_of_range", "n" },
    { "{'seed':-1}", "out_of_range", "seed" },
    { "{'seed':9007199254740992}", "out_of_range", "seed" },
    { "{'seed':9007199254740991,'n':2}", "out_of_range", "seed" },
    { "{'class_label':-1}", "out_of_range", "class_label" },
    { "{'class_label':1048577}", "out_of_range", "class_label" },
    { "{'class_label':''}", "out_of_range", "class_label" },
    { "{'class_label':[]}", "out_of_range", "class_label" },
    { "{'n':2,'class_label':[1,-2]}", "out_of_range", "class_label[1]" },
    { "{'steps':0}", "out_of_range", "steps" },
    { "{'steps':-5}", "out_of_range", "steps" },
    { "{'steps':1001}", "out_of_range", "steps" },
    { "{'timesteps':[]}", "out_of_range", "timesteps" },
    { "{'timesteps':[-1]}", "out_of_range", "timesteps[0]" },
    { "{'timesteps':[1000001]}", "out_of_range", "timesteps[0]" },
    { "{'timesteps':[1,2]}", "out_of_range", "timesteps[1]" },
    { "{'timesteps':[9,5,5,1]}", "out_of_range", "timesteps[2]" },
    { "{'eta':-0.1}", "out_of_range", "eta" },
    { "{'eta':1.0001}", "out_of_range", "eta" },
    { "{'temperature':-1e-9}", "out_of_range", "temperature" },
    { "{'temperature':2.5}", "out_of_range", "temperature" },
    { "{'guidance':{'cfg':{'scale':-1}}}", "out_of_range", "guidance.cfg.scale" },
    { "{'guidance':{'cfg':{'scale':101}}}", "out_of_range", "guidance.cfg.scale" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[-0.1,1]}}}", "out_of_range", "guidance.cfg.interval[0]" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[0,1.1]}}}", "out_of_range", "guidance.cfg.interval[1]" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[0.5,0.5]}}}", "out_of_range", "guidance.cfg.interval" },
    { "{'guidance':{'cfg':{'scale':3,'interval':[1,0]}}}", "out_of_range", "guidance.cfg.interval" },
    { "{'guidance':{'cfg':{'scale':3,'rescale':1.5}}}", "out_of_range", "guidance.cfg.rescale" },
    { "{'height':0}", "out_of_range", "height" },
    { "{'height':4097}", "out_of_range", "height" },
    { "{'width':-28}", "out_of_range", "width" },
    { "{'width':1000000}", "out_of_range", "width" },
    { "{'preview_every':-1}", "out_of_range", "preview_every" },
    { "{'preview_every':1001}", "out_of_range", "preview_every" },
    { "{'deadline_ms':0}", "out_of_range", "deadline_ms" },
    { "{'deadline_ms':86400001}", "out_of_range", "deadline_ms" },
    /* none of the choices */
    { "{'task':'samples'}", "unknown_value", "task" },
    { "{'sampler':''}", "unknown_value", "sampler" },
    { "{'sampler':'DDIM'}", "unknown_value", "sampler" },
    { "{'sampler':'dpm++2m '}", "unknown_value", "sampler" },
    { "{'guidance':{'cfg':{'scale':3,'schedule':'cubic'}}}", "unknown_value", "guidance.cfg.schedule" },
    { "{'output':{'format':'jpeg'}}", "unknown_value", "output.format" },
    { "{'output':{'layout':'row'}}", "unknown_value", "output.layout" },
    { "{'on_disconnect':'ignore'}", "unknown_value", "on_disconnect" },
    { "{'rng':'mt19937'}", "unknown_value", "rng" },
    { "{'priority':'urgent'}", "unknown_value", "priority" },
    /* missing, contradictory */
    { "{'guidance':{'cfg':{}}}", "missing_field", "guidance.cfg.scale" },
    { "{'guidance':{'cfg':{'rescale':0.5}}}", "missing_field", "guidance.cfg.scale" },
    { "{'steps':3,'timesteps':[5,4]}", "contradiction", "steps" },
    { "{'n':3,'class_label':[1,2]}", "contradiction", "class_label" },
    { "{'class_label':[1,2]}", "contradiction", "class_label" },
    { "{'output':{'format':'npy','layout':'grid'}}", "contradiction", "output.layout" },
    { "{'output':{'format':'safetensors','layout':'grid'}}", "contradiction", "output.layout" },
};

/* Parse `len` bytes as the daemon does; returns the DN_H code. */
static int parse(const char *body, size_t len, dn_http_error *err)
{
    *err = (dn_http_error){ 0 };
    dn_generate_request r, before;
    memset(&r, 0x5a, sizeof r);
    before = r;
    dn_arena *a = dn_arena_new(DN_REQUEST_BYTES_MAX);
    json_t *json = dn_json_parse(body, len, err);
    int code = json ? dn_generate_parse(&r, a, json, err) : err->id;
    if (code)
        assert_memory_equal(&r, &before, sizeof r); /* outputs are never clobbered on failure */
    json_decref(json);
    dn_arena_free(a);
    return code;
}

static char *double_quotes(const char *text)
{
    char *s = strdup(text);
    for (char *c = s; *c; c++)
        if (*c == '\'')
            *c = '"';
    return s;
}

static void test_cases(void **state)
{
    (void)state;
    int bad = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *body = double_quotes(cases[i].body);
        dn_http_error e;
        int code = parse(body, strlen(body), &e);
        if (!code || strcmp(e.code, cases[i].code) || strcmp(e.param, cases[i].param) || !e.message[0] ||
            e.status != 400) {
            print_error("%s\n  expected %s %s\n  got      %s %s: %s\n", body, cases[i].code, cases[i].param,
                        code ? e.code : "nothing", code ? e.param : "", code ? e.message : "");
            bad++;
        }
        free(body);
    }
    assert_int_equal(bad, 0);
    assert_true(sizeof cases / sizeof *cases > 150);
}

static void expect_message(const char *text, const char *message)
{
    char *body = double_quotes(text);
    dn_http_error e;
    assert_int_not_equal(parse(body, strlen(body), &e), 0);
    assert_string_equal(e.message, message);
    free(body);
}

static void test_messages(void **state)
{
    (void)state;
    expect_message("{'steps':0}", "steps must be 1..1000, got 0");
    expect_message("{'eta':1.5}", "eta must be 0..1, got 1.5");
    expect_message("{'seed':9007199254740992}", "seed must be 0..9007199254740991, got 9007199254740992");
    expect_message("{'steps':'x'}", "steps must be an integer, got a string");
    expect_message("{'stepz':3}", "stepz is no field of GenerateRequest (did you mean \"steps\"?)");
    expect_message("{'smapler':'ddim'}", "smapler is no field of GenerateRequest (did you mean \"sampler\"?)");
    expect_message("{'zzz':3}", "zzz is no field of GenerateRequest");
    expect_message("{'rng':'torhc'}", "rng must be one of philox, torch, got \"torhc\" (did you mean \"torch\"?)");
    expect_message("{'mask':'x'}", "mask belongs to a later version");
    expect_message("{'guidance':{'cfg':{}}}", "guidance.cfg.scale must be given");
    expect_message("[]", "the body must be a JSON object, got a list");
}

/* A body of `n` times `unit` between `head` and `tail`. */
static char *repeat(const char *head, const char *unit, int n, const char *tail, size_t *len)
{
    dn_buf b;
    dn_buf_init(&b, 1 << 20);
    dn_buf_puts(&b, head);
    for (int i = 0; i < n; i++)
        dn_buf_puts(&b, unit);
    dn_buf_puts(&b, tail);
    return dn_buf_take(&b, len);
}

static void test_bombs(void **state)
{
    (void)state;
    static const struct {
        const char *head, *unit, *tail, *code;
        int n;
    } bombs[] = {
        { "{\"scheduler\":", "[", "", "too_complex", 60000 },
        { "{\"scheduler\":", "{\"a\":", "", "too_complex", 12000 },
        { "{\"scheduler\":[", "{},", "{}]}", "too_complex", 20000 },
        { "{\"class_label\":[", "[],", "[]]}", "too_complex", 20000 },
        { "{\"timesteps\":[", "1,", "0]}", "too_complex", 30000 },
        { "{\"timesteps\":[", "1,", "0]}", "out_of_range", 1000 },
        { "{\"model\":\"", "a", "\"}", "out_of_range", 60000 },
        { "{\"", "a", "\":1}", "unknown_field", 60000 },
        { "{\"model\":", "\"\"", "", "invalid_json", 20000 },
        { "", "{", "", "too_complex", 17 },
        { "", "{\"a\":", "", "invalid_json", 16 },
    };
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        size_t len;
        char *body = repeat(bombs[i].head, bombs[i].unit, bombs[i].n, bombs[i].tail, &len);
        dn_http_error e;
        assert_int_not_equal(parse(body, len, &e), 0);
        assert_string_equal(e.code, bombs[i].code);
        free(body);
    }
}

/* A NUL byte ends nothing: bodies are counted bytes. */
static void test_nul_byte(void **state)
{
    (void)state;
    dn_http_error e;
    assert_int_equal(parse("{\"n\":1\0}", 8, &e), DN_H_BAD_JSON);
    assert_int_equal(parse("{}\0", 3, &e), DN_H_BAD_JSON);
}

/* Every prefix of a good body is refused, and none crashes. */
static void test_prefixes(void **state)
{
    (void)state;
    const char *good =
        "{\"n\":2,\"class_label\":[\"a\\\"b\",3],\"guidance\":{\"cfg\":{\"scale\":3,\"interval\":[0,0.5]}}}";
    dn_http_error e;
    for (size_t len = 0; len < strlen(good); len++) {
        char *exact = malloc(len ? len : 1); /* so that ASan sees an over-read */
        memcpy(exact, good, len);
        assert_int_equal(parse(exact, len, &e), DN_H_BAD_JSON);
        free(exact);
    }
    assert_int_equal(parse(good, strlen(good), &e), 0);
}

static void test_arena_budget(void **state)
{
    (void)state;
    dn_http_error e = { 0 };
    dn_generate_request r;
    const char *body = "{\"timesteps\":[9,8,7,6,5,4,3,2,1,0]}";
    json_t *json = dn_json_parse(body, strlen(body), &e);
    assert_non_null(json);
    bool done = false;
    for (size_t budget = 0; !done; budget += 16) { /* every allocation in turn is the one that fails */
        assert_true(budget < 4096);
        dn_arena *a = dn_arena_new(budget);
        int code = dn_generate_parse(&r, a, json, &e);
        done = !code;
        if (code)
            assert_int_equal(code, DN_H_MEMORY);
        dn_arena_free(a);
        assert_int_equal(json->refcount, 1);
    }
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),    cmocka_unit_test(test_messages), cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_nul_byte), cmocka_unit_test(test_prefixes), cmocka_unit_test(test_arena_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
