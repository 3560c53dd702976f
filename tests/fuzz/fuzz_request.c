/* fuzz_request.c - any bytes as the body of POST /generate: a refusal can be written as JSON; what is accepted keeps
 * its limits, and is accepted again over a model's defaults. */
#include "proto.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool fact)
{
    if (!fact)
        abort();
}

static void check_refusal(const dn_http_error *e)
{
    dn_buf b;
    dn_buf_init(&b, 1 << 16);
    must(e->id > 0 && e->id < DN_H_COUNT && e->status >= 400 && e->message[0]);
    dn_http_error_write(e, &b);
    must(!b.failed);
    json_t *json = json_loadb(b.data, b.len, 0, NULL);
    must(json_is_object(json_object_get(json, "error")));
    json_decref(json);
    dn_buf_fini(&b);
}

static void check_request(const dn_generate_request *r)
{
    must(r->n >= 1 && r->n <= DN_N_MAX);
    must(r->seed >= 0 && r->seed + r->n - 1 < 1ll << 53);
    must(r->steps >= 1 && r->steps <= DN_STEPS_LIMIT);
    must(!r->timesteps.n || r->timesteps.n == r->steps);
    for (int i = 1; i < r->timesteps.n; i++)
        must(r->timesteps.v[i] < r->timesteps.v[i - 1]);
    must(!r->class_label.list || r->class_label.n == r->n);
    for (int i = 0; i < r->class_label.n; i++)
        must(r->class_label.v[i].name ? strlen(r->class_label.v[i].name) - 1 < 64 : r->class_label.v[i].number >= 0);
    must(r->eta >= 0 && r->eta <= 1 && r->temperature >= 0 && r->temperature <= 2);
    must(r->guidance.cfg.interval[0] < r->guidance.cfg.interval[1]);
    must(!r->model || strlen(r->model) > 0);
}

static void check_over_defaults(json_t *request)
{
    json_t *defaults = json_pack("{s:i,s:{s:{s:i,s:f}},s:{s:s}}", "steps", 20, "guidance", "cfg", "scale", 3, "rescale",
                                 0.5, "scheduler", "beta_schedule", "linear");
    dn_arena *a = dn_arena_new(DN_REQUEST_BYTES_MAX);
    dn_generate_request r;
    dn_http_error e = { 0 };
    json_t *merged = dn_generate_merge(defaults, request);
    must(defaults && a && merged);
    must(!dn_generate_parse(&r, a, merged, &e));
    check_request(&r);
    must(json_object_get(r.scheduler, "beta_schedule"));
    json_decref(merged);
    json_decref(defaults);
    dn_arena_free(a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dn_http_error e = { 0 };
    dn_generate_request r;
    dn_arena *a = dn_arena_new(DN_REQUEST_BYTES_MAX);
    json_t *json = dn_json_parse((const char *)data, size, &e);
    must(a != NULL);
    if (!json || dn_generate_parse(&r, a, json, &e)) {
        check_refusal(&e);
    } else {
        check_request(&r);
        check_over_defaults(json);
    }
    json_decref(json);
    dn_arena_free(a);
    return 0;
}
