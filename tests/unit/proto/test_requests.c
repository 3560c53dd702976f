/* test_requests.c - good requests parse to what they say; each field of the table is tested; a model's defaults. */
#include "proto.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

struct parsed {
    dn_generate_request r;
    dn_arena *a;
};

static json_t *read_json(const char *text)
{
    char *s = strdup(text);
    for (char *c = s; *c; c++)
        if (*c == '\'')
            *c = '"';
    dn_http_error e;
    json_t *json = dn_json_parse(s, strlen(s), &e);
    if (!json)
        fail_msg("%s: %s", text, e.message);
    free(s);
    return json;
}

static void parse_json(struct parsed *p, json_t *json)
{
    dn_http_error e;
    p->a = dn_arena_new(DN_REQUEST_BYTES_MAX);
    if (dn_generate_parse(&p->r, p->a, json, &e))
        fail_msg("%s: %s", e.param, e.message);
    json_decref(json);
}

static void parse(struct parsed *p, const char *text) { parse_json(p, read_json(text)); }
static void drop(struct parsed *p) { dn_arena_free(p->a); }

static void test_smallest(void **state)
{
    (void)state;
    struct parsed p;
    parse(&p, "{}");
    const dn_generate_request *r = &p.r;
    assert_int_equal(r->has, 0);
    assert_null(r->model);
    assert_int_equal(r->n, 1);
    assert_int_equal(r->class_label.n, 0);
    assert_null(r->sampler);
    assert_null(r->scheduler);
    assert_int_equal(r->steps, 50);
    assert_int_equal(r->timesteps.n, 0);
    assert_true(r->eta == 0 && r->temperature == 1);
    assert_int_equal(r->guidance.cfg.has, 0);
    assert_true(r->guidance.cfg.interval[0] == 0 && r->guidance.cfg.interval[1] == 1);
    assert_int_equal(r->guidance.cfg.schedule, DN_CFG_CONSTANT);
    assert_int_equal(r->height, 0);
    assert_int_equal(r->output.format, DN_FORMAT_PNG);
    assert_int_equal(r->output.layout, DN_LAYOUT_LIST);
    assert_false(r->stream);
    assert_int_equal(r->preview_every, 0);
    assert_int_equal(r->on_disconnect, DN_ON_DISCONNECT_CANCEL);
    assert_int_equal(r->rng, DN_RNG_PHILOX);
    assert_int_equal(r->priority, DN_PRIORITY_NORMAL);
    assert_int_equal(r->deadline_ms, 0);
    drop(&p);
}

static void test_usual(void **state)
{
    (void)state;
    struct parsed p;
    parse(&p, "{'model':'fashion-mnist','n':4,'seed':7,'class_label':'sandal','steps':20,'sampler':'dpm++2m',"
              "'guidance':{'cfg':{'scale':3}}}");
    assert_int_equal(p.r.has, DN_BIT(DN_GENERATE_MODEL) | DN_BIT(DN_GENERATE_N) | DN_BIT(DN_GENERATE_SEED) |
                                  DN_BIT(DN_GENERATE_CLASS_LABEL) | DN_BIT(DN_GENERATE_STEPS) |
                                  DN_BIT(DN_GENERATE_SAMPLER) | DN_BIT(DN_GENERATE_GUIDANCE));
    assert_int_equal(p.r.guidance.has, DN_BIT(DN_GUIDANCE_CFG));
    assert_int_equal(p.r.guidance.cfg.has, DN_BIT(DN_CFG_SCALE));
    assert_string_equal(p.r.class_label.v[0].name, "sandal");
    assert_false(p.r.class_label.list);
    drop(&p);
}

/* One check per field of the table, by its dotted name. A field without one fails the test. */
#define IS(name, ...) \
    static bool is_##name(const dn_generate_request *r) { return __VA_ARGS__; }
IS(model, !strcmp(r->model, "m@2"))
IS(task, r->task == 0)
IS(n, r->n == 64)
IS(seed, r->seed == 9007199254740928)
IS(label_list, r->class_label.list && r->class_label.n == 2 && r->class_label.v[0].number == 3 &&
                   !r->class_label.v[0].name && !strcmp(r->class_label.v[1].name, "bag"))
IS(sampler, !strcmp(r->sampler, "euler_ancestral"))
IS(scheduler, json_is_true(json_object_get(r->scheduler, "use_karras_sigmas")))
IS(steps, r->steps == 1000)
IS(timesteps, r->timesteps.n == 3 && r->timesteps.v[0] == 999 && r->timesteps.v[1] == 500.5 && r->timesteps.v[2] == 0 &&
                  r->steps == 3)
IS(eta, r->eta == 0.25)
IS(temperature, r->temperature == 2)
IS(scale, r->guidance.cfg.scale == 7.5)
IS(interval, r->guidance.cfg.interval[0] == 0.25 && r->guidance.cfg.interval[1] == 0.75)
IS(rescale, r->guidance.cfg.rescale == 0.7)
IS(schedule, r->guidance.cfg.schedule == DN_CFG_COSINE)
IS(height, r->height == 32)
IS(width, r->width == 4096)
IS(format, r->output.format == DN_FORMAT_SAFETENSORS)
IS(layout, r->output.layout == DN_LAYOUT_GRID)
IS(trajectory, r->output.trajectory_every == 0)
IS(stream, r->stream)
IS(preview, r->preview_every == 5)
IS(disconnect, r->on_disconnect == DN_ON_DISCONNECT_CONTINUE)
IS(rng, r->rng == DN_RNG_TORCH)
IS(priority, r->priority == DN_PRIORITY_HIGH)
IS(deadline, r->deadline_ms == 1500)

static const struct {
    const char *field, *body;
    bool (*is)(const dn_generate_request *r);
} fields[] = {
    { "model", "{'model':'m@2'}", is_model },
    { "task", "{'task':'sample'}", is_task },
    { "n", "{'n':64.0}", is_n },
    { "seed", "{'seed':9007199254740928,'n':64}", is_seed },
    { "class_label", "{'n':2,'class_label':[3,'bag']}", is_label_list },
    { "sampler", "{'sampler':'euler_ancestral'}", is_sampler },
    { "scheduler", "{'scheduler':{'use_karras_sigmas':true}}", is_scheduler },
    { "steps", "{'steps':1000}", is_steps },
    { "timesteps", "{'timesteps':[999,500.5,0]}", is_timesteps },
    { "eta", "{'eta':0.25}", is_eta },
    { "temperature", "{'temperature':2}", is_temperature },
    { "guidance.cfg.scale", "{'guidance':{'cfg':{'scale':7.5}}}", is_scale },
    { "guidance.cfg.interval", "{'guidance':{'cfg':{'scale':1,'interval':[0.25,0.75]}}}", is_interval },
    { "guidance.cfg.rescale", "{'guidance':{'cfg':{'scale':1,'rescale':0.7}}}", is_rescale },
    { "guidance.cfg.schedule", "{'guidance':{'cfg':{'scale':1,'schedule':'cosine'}}}", is_schedule },
    { "height", "{'height':32}", is_height },
    { "width", "{'width':4096}", is_width },
    { "output.format", "{'output':{'format':'safetensors'}}", is_format },
    { "output.layout", "{'output':{'layout':'grid'}}", is_layout },
    { "output.trajectory_every", "{'output':{'trajectory_every':0}}", is_trajectory },
    { "stream", "{'stream':true}", is_stream },
    { "preview_every", "{'preview_every':5}", is_preview },
    { "on_disconnect", "{'on_disconnect':'continue'}", is_disconnect },
    { "rng", "{'rng':'torch'}", is_rng },
    { "priority", "{'priority':'high'}", is_priority },
    { "deadline_ms", "{'deadline_ms':1500}", is_deadline },
};
enum { N_FIELDS = sizeof fields / sizeof *fields };

/* Walk the table; each leaf must have its row above, parse to it, and set its presence bit. */
static int check_leaves(const dn_fields *t, const char *prefix, size_t offset)
{
    int n = 0;
    for (int i = 0; i < t->n; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, t->v[i].name);
        if (t->v[i].type == DN_T_OBJECT) {
            strcat(name, ".");
            n += check_leaves(t->v[i].sub, name, offset + t->v[i].offset);
            continue;
        }
        int k = 0;
        while (k < N_FIELDS && strcmp(fields[k].field, name))
            k++;
        if (k == N_FIELDS)
            fail_msg("no test for the field %s", name);
        struct parsed p;
        parse(&p, fields[k].body);
        if (!fields[k].is(&p.r))
            fail_msg("%s: not what %s says", name, fields[k].body);
        uint64_t has;
        memcpy(&has, (const char *)&p.r + offset, sizeof has);
        if (!(has >> i & 1))
            fail_msg("%s: no presence bit", name);
        drop(&p);
        n++;
    }
    return n;
}

static void test_each_field(void **state)
{
    (void)state;
    assert_int_equal(check_leaves(&dn_generate_fields, "", 0), N_FIELDS);
}

/* Every choice of every enum is accepted. */
static void test_samplers(void **state)
{
    (void)state;
    int n = 0;
    for (; dn_sampler_names[n]; n++) {
        struct parsed p;
        parse_json(&p, json_pack("{s:s}", "sampler", dn_sampler_names[n]));
        assert_ptr_equal(p.r.sampler, dn_sampler_names[n]);
        drop(&p);
    }
    assert_int_equal(n, 13);
}

static void test_edges(void **state)
{
    (void)state;
    struct parsed p;
    parse(&p, "{'steps':3,'timesteps':[5,4,3]}");
    assert_int_equal(p.r.steps, 3);
    drop(&p);
    parse(&p, "{'seed':9007199254740991}");
    assert_true(p.r.seed == 9007199254740991);
    drop(&p);
    parse(&p, "{'n':3,'class_label':0}");
    assert_int_equal(p.r.class_label.n, 1);
    assert_int_equal(p.r.class_label.v[0].number, 0);
    assert_null(p.r.class_label.v[0].name);
    drop(&p);
    parse(&p, " {\t'n' : 1e0 ,\n'eta':-0.0 }\r\n");
    assert_int_equal(p.r.n, 1);
    drop(&p);
}

/* The scheduler object outlives the caller's reference. */
static void test_scheduler_is_kept(void **state)
{
    (void)state;
    json_t *json = read_json("{'scheduler':{'solver_order':3,'lower_order_final':false}}");
    struct parsed p;
    parse_json(&p, json);
    assert_int_equal(json_integer_value(json_object_get(p.r.scheduler, "solver_order")), 3);
    assert_true(json_is_integer(json_object_get(p.r.scheduler, "solver_order")));
    drop(&p);
}

static void check_merge(const char *defaults, const char *request, const char *expected)
{
    json_t *d = read_json(defaults), *r = read_json(request), *e = read_json(expected);
    json_t *d_copy = json_deep_copy(d), *r_copy = json_deep_copy(r);
    json_t *m = dn_generate_merge(d, r);
    if (!json_equal(m, e))
        fail_msg("%s under %s gave %s", defaults, request, json_dumps(m, 0));
    assert_true(json_equal(d, d_copy) && json_equal(r, r_copy)); /* the inputs are left alone */
    json_t *all[] = { d, r, e, d_copy, r_copy, m };
    for (int i = 0; i < 6; i++)
        json_decref(all[i]);
}

static void test_merge(void **state)
{
    (void)state;
    check_merge("{}", "{}", "{}");
    check_merge("{'steps':20}", "{}", "{'steps':20}");
    check_merge("{'steps':20}", "{'steps':5}", "{'steps':5}");
    check_merge("{'guidance':{'cfg':{'scale':3,'rescale':0.5}}}", "{'guidance':{'cfg':{'scale':5}}}",
                "{'guidance':{'cfg':{'scale':5,'rescale':0.5}}}");
    check_merge("{'scheduler':{'a':1}}", "{'scheduler':{'b':2}}", "{'scheduler':{'a':1,'b':2}}");
    check_merge("{'steps':20,'eta':1}", "{'timesteps':[3,2]}", "{'timesteps':[3,2],'eta':1}");
    check_merge("{'timesteps':[3,2]}", "{'steps':7}", "{'steps':7}");
    check_merge("{'n':2,'class_label':[1,2]}", "{'n':3}", "{'n':3}");
    check_merge("{'n':2,'class_label':[1,2]}", "{'n':2}", "{'n':2,'class_label':[1,2]}");
    check_merge("{'class_label':4}", "{'n':3}", "{'n':3,'class_label':4}");
    check_merge("{'sampler':'ddim'}", "{'sampler':3}", "{'sampler':3}");
    json_t *r = json_object();
    json_t *same = dn_generate_merge(NULL, r);
    assert_ptr_equal(same, r);
    json_decref(same);
    json_decref(r);
}

/* Merged objects share values with the defaults; parsing and dropping many leaves them alive. */
static void test_merge_lifetime(void **state)
{
    (void)state;
    json_t *d = read_json("{'scheduler':{'beta_schedule':'linear'}}");
    for (int i = 0; i < 3; i++) {
        struct parsed p;
        json_t *r = read_json("{'n':2}");
        parse_json(&p, dn_generate_merge(d, r));
        json_decref(r);
        assert_string_equal(json_string_value(json_object_get(p.r.scheduler, "beta_schedule")), "linear");
        drop(&p);
    }
    assert_int_equal(d->refcount, 1);
    assert_int_equal(json_object_get(d, "scheduler")->refcount, 1);
    json_decref(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smallest),   cmocka_unit_test(test_usual),
        cmocka_unit_test(test_each_field), cmocka_unit_test(test_samplers),
        cmocka_unit_test(test_edges),      cmocka_unit_test(test_scheduler_is_kept),
        cmocka_unit_test(test_merge),      cmocka_unit_test(test_merge_lifetime),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
