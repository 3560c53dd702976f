/* POST /jobs on the wire: defaults, what is refused and why, and the resolved form that parses to itself. */
#include "job.h"
#include "json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define BASE "\"name\":\"shoes\",\"dataset\":\"fashion\",\"from\":\"m@1\",\"steps\":100,\"batch_size\":64"

typedef struct parsed {
    dn_job_request r;
    dn_http_error err;
    int code;
    dn_arena *arena;
} parsed;

static parsed parse(const char *text)
{
    parsed p = { 0 };
    json_t *json = dn_json_parse(text, strlen(text), &p.err);
    assert_non_null(json);
    p.arena = dn_arena_new(DN_REQUEST_BYTES_MAX);
    p.code = dn_job_parse(&p.r, p.arena, json, &p.err);
    json_decref(json);
    return p;
}

static void done(parsed *p) { dn_arena_free(p->arena); }

static void refused(const char *text, const char *code, const char *param)
{
    parsed p = parse(text);
    assert_int_not_equal(p.code, 0);
    assert_string_equal(p.err.code, code);
    assert_string_equal(p.err.param, param);
    done(&p);
}

static void the_smallest_job_has_every_default(void **state)
{
    (void)state;
    parsed p = parse("{" BASE "}");
    assert_int_equal(p.code, 0);
    assert_true(p.r.train_share == 0.2 && p.r.micro_batch == 0 && p.r.precision == 0);
    assert_true(p.r.optimizer.lr == 1e-4 && p.r.optimizer.betas[0] == 0.9 && p.r.optimizer.betas[1] == 0.999);
    assert_true(p.r.ema.decay == 0.9999 && p.r.ema.warmup && p.r.ema.every == 1);
    assert_true(p.r.objective.timesteps_scale == 1 && p.r.objective.snr_gamma == 5);
    assert_int_equal(p.r.preview.seeds.n, 1);
    assert_int_equal(p.r.checkpoint.every_steps, 500);
    done(&p);
}

static void mode_has_a_scale_of_its_own(void **state)
{
    (void)state;
    parsed p = parse("{" BASE ",\"objective\":{\"timesteps\":\"mode\"}}");
    assert_int_equal(p.code, 0);
    assert_true(p.r.objective.timesteps_scale == 1.29);
    done(&p);
    p = parse("{" BASE ",\"augment\":[],\"schedule\":{\"prediction_type\":\"sample\"},\"objective\":{\"prediction\":\"sample\"}}");
    assert_int_equal(p.code, 0);
    assert_int_equal(p.r.augment.n, 0);
    done(&p);
    p = parse("{" BASE ",\"schedule\":{\"prediction_type\":\"v_prediction\"}}");
    assert_int_equal(p.code, 0);
    assert_int_equal(p.r.objective.prediction, 1);
    done(&p);
    p = parse("{" BASE ",\"lr_schedule\":{\"kind\":\"one_cycle\"}}");
    assert_int_equal(p.code, 0);
    assert_true(p.r.lr_schedule.lr_end == 4e-6);
    done(&p);
}

static void lists_of_objects_are_read(void **state)
{
    (void)state;
    parsed p = parse("{" BASE ",\"augment\":[{\"kind\":\"flip\",\"p\":0.5},{\"kind\":\"rotate\"}],\"micro_batch\":\"auto\","
                     "\"preview\":{\"seeds\":[1,2],\"labels\":\"all\",\"every_steps\":10},\"optimizer\":{\"betas\":[0.95,0.5]}}");
    assert_int_equal(p.code, 0);
    const dn_augment_in *a = p.r.augment.v;
    assert_int_equal(p.r.augment.n, 2);
    assert_true(a[0].kind == 0 && a[0].p == 0.5 && a[1].kind == 2 && a[1].p == 1 && a[1].amount == 10);
    assert_true(p.r.preview.seeds.v[0] == 1 && p.r.preview.seeds.v[1] == 2);
    assert_string_equal(p.r.preview.labels.v[0].name, "all");
    assert_true(p.r.optimizer.betas[1] == 0.5);
    done(&p);
}

static void what_has_no_effect_or_contradicts_is_refused_by_name(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct { const char *text, *code, *param; } bad[] = {
        { "{\"name\":\"a\",\"dataset\":\"d\",\"steps\":1,\"batch_size\":1}", "missing_field", "from" },
        { "{" BASE ",\"model\":{}}", "contradiction", "from" },
        { "{" BASE ",\"micro_batch\":48}", "contradiction", "micro_batch" },
        { "{" BASE ",\"micro_batch\":\"all\"}", "wrong_type", "micro_batch" },
        { "{" BASE ",\"kind\":\"distill\"}", "not_supported", "kind" },
        { "{" BASE ",\"train_share\":1.5}", "out_of_range", "train_share" },
        { "{" BASE ",\"objective\":{\"snr_gamma\":5}}", "contradiction", "objective.snr_gamma" },
        { "{" BASE ",\"objective\":{\"timesteps_loc\":1}}", "contradiction", "objective.timesteps_loc" },
        { "{" BASE ",\"objective\":{\"timesteps\":\"logit_normal\",\"timesteps_scale\":0}}", "out_of_range", "objective.timesteps_scale" },
        { "{" BASE ",\"objective\":{\"huber_delta\":1}}", "contradiction", "objective.huber_delta" },
        { "{" BASE ",\"objective\":{\"p2_k\":1}}", "contradiction", "objective.p2_k" },
        { "{" BASE ",\"objective\":{\"sigma_data\":1}}", "contradiction", "objective.sigma_data" },
        { "{" BASE ",\"objective\":{\"prediction\":\"x\"}}", "unknown_value", "objective.prediction" },
        { "{" BASE ",\"optimizer\":{\"kind\":\"sgd\",\"betas\":[0.1,0.2]}}", "contradiction", "optimizer.betas" },
        { "{" BASE ",\"optimizer\":{\"momentum\":0.5}}", "contradiction", "optimizer.momentum" },
        { "{" BASE ",\"lr_schedule\":{\"cycles\":2}}", "contradiction", "lr_schedule.cycles" },
        { "{" BASE ",\"lr_schedule\":{\"kind\":\"cosine\",\"lr_end\":0.1}}", "contradiction", "lr_schedule.lr_end" },
        { "{" BASE ",\"lr_schedule\":{\"warmup_steps\":101}}", "contradiction", "lr_schedule.warmup_steps" },
        { "{" BASE ",\"augment\":[{\"p\":1}]}", "missing_field", "augment[0].kind" },
        { "{" BASE ",\"augment\":[{\"kind\":\"flip\",\"amount\":1}]}", "contradiction", "augment[0].amount" },
        { "{" BASE ",\"augment\":[{\"kind\":\"flip\"},{\"kind\":\"cutout\",\"amount\":2}]}", "out_of_range", "augment[1].amount" },
        { "{" BASE ",\"schedule\":{\"prediction_type\":\"v_prediction\"},\"objective\":{\"prediction\":\"sample\"}}", "contradiction",
          "schedule.prediction_type" },
        { "{" BASE ",\"learning_rate\":1}", "unknown_field", "learning_rate" },
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(bad[i].text, bad[i].code, bad[i].param);
}

static char *written(const dn_job_request *r)
{
    dn_buf b;
    size_t n;
    dn_buf_init(&b, 64 << 10);
    dn_job_write(r, &b);
    char *text = dn_buf_take(&b, &n);
    assert_non_null(text);
    return text;
}

static void the_resolved_form_parses_to_itself(void **state)
{
    (void)state;
    static const char *const jobs[] = {
        "{" BASE "}",
        "{" BASE ",\"objective\":{\"timesteps\":\"logit_normal\",\"timesteps_loc\":-0.5,\"weighting\":\"p2\",\"loss\":\"huber\"},"
        "\"optimizer\":{\"kind\":\"sgd\"},\"lr_schedule\":{\"kind\":\"polynomial\",\"power\":2},\"height\":32,"
        "\"augment\":[{\"kind\":\"flip\",\"p\":0.5},{\"kind\":\"crop\"}],\"preview\":{\"labels\":[1,\"b\"]},"
        "\"schedule\":{\"beta_schedule\":\"linear\"},\"micro_batch\":16}",
        "{\"name\":\"a\",\"dataset\":\"d@00\",\"steps\":1,\"batch_size\":1,\"model\":{\"_class_name\":\"UNet2DModel\"}}",
    };
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        parsed p = parse(jobs[i]);
        assert_int_equal(p.code, 0);
        char *once = written(&p.r);
        parsed again = parse(once);
        assert_int_equal(again.code, 0);
        char *twice = written(&again.r);
        assert_string_equal(once, twice);
        assert_non_null(strstr(once, "\"lr\":0.0001"));
        free(once);
        free(twice);
        done(&p);
        done(&again);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_smallest_job_has_every_default),
        cmocka_unit_test(mode_has_a_scale_of_its_own),
        cmocka_unit_test(lists_of_objects_are_read),
        cmocka_unit_test(what_has_no_effect_or_contradicts_is_refused_by_name),
        cmocka_unit_test(the_resolved_form_parses_to_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
