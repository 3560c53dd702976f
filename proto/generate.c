/* generate.c - POST /generate: its table, the rules that one field alone cannot decide, and a model's defaults. */
#include "json.h"
#include "proto.h"

#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define LIST(...) ((const char *const[]){ __VA_ARGS__, NULL })

const char *const dn_sampler_names[] = { "ddpm",        "ddim",  "dpm++1",          "dpm++2m", "dpm++3m",
                                         "dpm++2m_sde", "euler", "euler_ancestral", "heun",    "unipc",
                                         "pndm",        "lcm",   "flow_euler",      NULL };

/* clang-format off */
#define AT(member) .offset = offsetof(dn_cfg, member)
static const dn_field cfg_v[DN_CFG_FIELDS] = {
    [DN_CFG_SCALE] = { "scale", DN_T_NUM, AT(scale), .flags = DN_F_REQUIRED, .min = 0, .max = 100, .flag = "guidance", .short_flag = 'g',
        .help = "How far to go from the unconditional prediction towards the conditional one; 1 is no guidance." },
    [DN_CFG_INTERVAL] = { "interval", DN_T_PAIR, AT(interval), .min = 0, .max = 1, .count_max = 2, .def = "0,1", .flag = "guidance-interval",
        .help = "[a,b) in fractions of the run, 0 the noisiest entry; outside of it the scale is 1." },
    [DN_CFG_RESCALE] = { "rescale", DN_T_NUM, AT(rescale), .min = 0, .max = 1, .def = "0", .flag = "guidance-rescale",
        .help = "How much of the conditional prediction's standard deviation is restored." },
    [DN_CFG_SCHEDULE] = { "schedule", DN_T_ENUM, AT(schedule), .choices = LIST("constant", "linear", "cosine"), .def = "constant",
        .flag = "guidance-schedule", .help = "How the scale goes from 1 to its value over the run." },
};
#undef AT
static const dn_fields cfg_fields = { "Cfg", "Classifier-free guidance.", cfg_v, DN_CFG_FIELDS, sizeof(dn_cfg), LIST("channels") };

#define AT(member) .offset = offsetof(dn_guidance_in, member)
static const dn_field guidance_v[DN_GUIDANCE_FIELDS] = {
    [DN_GUIDANCE_CFG] = { "cfg", DN_T_OBJECT, AT(cfg), .sub = &cfg_fields, .help = "Classifier-free guidance." },
};
#undef AT
static const dn_fields guidance_fields = { "Guidance", "What steers the samples.", guidance_v, DN_GUIDANCE_FIELDS,
    sizeof(dn_guidance_in), LIST("classifier", "auto") };

#define AT(member) .offset = offsetof(dn_output, member)
static const dn_field output_v[DN_OUTPUT_FIELDS] = {
    [DN_OUTPUT_FORMAT] = { "format", DN_T_ENUM, AT(format), .choices = LIST("png", "npy", "safetensors"), .later = LIST("apng", "wav"),
        .def = "png", .flag = "format", .help = "PNG is clamped and scaled to 8 bits; the others are float32 [n,H,W,C] in the model's own range." },
    [DN_OUTPUT_LAYOUT] = { "layout", DN_T_ENUM, AT(layout), .choices = LIST("list", "grid"), .later = LIST("strip"), .def = "list",
        .flag = "layout", .help = "One image per sample, or all in one picture (png only)." },
    [DN_OUTPUT_TRAJECTORY_EVERY] = { "trajectory_every", DN_T_INT, AT(trajectory_every), .flags = DN_F_ONLY, .def = "0", .flag = "",
        .help = "Intermediate states; none in this version." },
};
#undef AT
static const dn_fields output_fields = { "Output", "How the result is encoded.", output_v, DN_OUTPUT_FIELDS, sizeof(dn_output) };

#define AT(member) .offset = offsetof(dn_generate_request, member)
static const dn_field generate_v[DN_GENERATE_FIELDS] = {
    [DN_GENERATE_MODEL] = { "model", DN_T_STR, AT(model), .min = 1, .max = DN_NAME_LEN_MAX + 12, .short_flag = 'm',
        .help = "A name, or name@version. May be left out when one model is loaded." },
    [DN_GENERATE_TASK] = { "task", DN_T_ENUM, AT(task), .choices = LIST("sample"),
        .later = LIST("img2img", "inpaint", "invert", "interpolate", "upscale", "cascade", "likelihood"), .def = "sample",
        .help = "What to do." },
    [DN_GENERATE_N] = { "n", DN_T_INT, AT(n), .min = 1, .max = DN_N_MAX, .def = "1", .short_flag = 'n',
        .help = "How many samples." },
    [DN_GENERATE_SEED] = { "seed", DN_T_INT, AT(seed), .min = 0, .max = 0x1p53 - 1, .short_flag = 's',
        .help = "Sample k has the seed seed + k. Drawn below 2^32 and returned when left out." },
    [DN_GENERATE_CLASS_LABEL] = { "class_label", DN_T_LABELS, AT(class_label), .min = 0, .max = 1 << 20, .count_max = DN_N_MAX,
        .flag = "label", .short_flag = 'l', .help = "A number, a name, or a list of n of those. Left out: the null label." },
    [DN_GENERATE_SAMPLER] = { "sampler", DN_T_NAME, AT(sampler), .choices = dn_sampler_names,
        .later = LIST("ddim_inverse", "sde_ve", "sde_vp", "sde_subvp", "ode"),
        .help = "Left out: the checkpoint's own scheduler." },
    [DN_GENERATE_SCHEDULER] = { "scheduler", DN_T_JSON, AT(scheduler),
        .help = "diffusers' configuration keys, laid over the checkpoint's." },
    [DN_GENERATE_STEPS] = { "steps", DN_T_INT, AT(steps), .min = 1, .max = DN_STEPS_LIMIT, .def = "50",
        .help = "Sampler steps; with timesteps it is their number." },
    [DN_GENERATE_TIMESTEPS] = { "timesteps", DN_T_NUMS, AT(timesteps), .min = 0, .max = 1e6, .count_max = DN_STEPS_LIMIT,
        .help = "An explicit list, strictly descending." },
    [DN_GENERATE_ETA] = { "eta", DN_T_NUM, AT(eta), .min = 0, .max = 1, .def = "0",
        .help = "DDIM's noise: 0 is deterministic, 1 is DDPM's variance." },
    [DN_GENERATE_TEMPERATURE] = { "temperature", DN_T_NUM, AT(temperature), .min = 0, .max = 2, .def = "1",
        .help = "A factor on the noise drawn in steps, not on the first latent." },
    [DN_GENERATE_GUIDANCE] = { "guidance", DN_T_OBJECT, AT(guidance), .sub = &guidance_fields, .help = "What steers the samples." },
    [DN_GENERATE_HEIGHT] = { "height", DN_T_INT, AT(height), .min = 1, .max = DN_SIDE_MAX, .unit = "px",
        .help = "Default the model's; others only if its sizes allow them." },
    [DN_GENERATE_WIDTH] = { "width", DN_T_INT, AT(width), .min = 1, .max = DN_SIDE_MAX, .unit = "px",
        .help = "Default the model's; others only if its sizes allow them." },
    [DN_GENERATE_OUTPUT] = { "output", DN_T_OBJECT, AT(output), .sub = &output_fields, .help = "How the result is encoded." },
    [DN_GENERATE_STREAM] = { "stream", DN_T_BOOL, AT(stream), .def = "false", .flag = "",
        .help = "Answer with server-sent events: progress, previews, images." },
    [DN_GENERATE_PREVIEW_EVERY] = { "preview_every", DN_T_INT, AT(preview_every), .min = 0, .max = DN_STEPS_LIMIT, .def = "0", .unit = "steps",
        .help = "Send the predicted x0 as a small PNG every so many steps; 0 sends none." },
    [DN_GENERATE_ON_DISCONNECT] = { "on_disconnect", DN_T_ENUM, AT(on_disconnect), .choices = LIST("cancel", "continue"), .def = "cancel",
        .help = "What happens when the client leaves before the answer." },
    [DN_GENERATE_RNG] = { "rng", DN_T_ENUM, AT(rng), .choices = LIST("philox", "torch"), .def = "philox",
        .help = "torch draws what diffusers draws with one CPU generator per sample." },
    [DN_GENERATE_PRIORITY] = { "priority", DN_T_ENUM, AT(priority), .choices = LIST("low", "normal", "high"), .def = "normal",
        .help = "A weight of 1/4, 1 or 4; never strict." },
    [DN_GENERATE_DEADLINE_MS] = { "deadline_ms", DN_T_INT, AT(deadline_ms), .min = 1, .max = 86400000, .unit = "ms",
        .help = "Refuse at once, or give up, when it cannot be met." },
};
#undef AT
const dn_fields dn_generate_fields = { "GenerateRequest", "Every field is optional.", generate_v, DN_GENERATE_FIELDS,
    sizeof(dn_generate_request),
    LIST("image", "mask", "images", "strength", "frames", "repaint", "cascade", "ode", "decode_tile", "latent", "seeds", "labels") };
/* clang-format on */

static bool has(const dn_generate_request *r, int field) { return r->has >> field & 1; }

/* Rules over several fields. */
static int check(dn_generate_request *r, dn_http_error *err)
{
    if (r->class_label.list && r->class_label.n != r->n)
        return dn_http_fail(err, DN_H_CONTRADICTION, "class_label", "class_label has %d elements, but n is %d",
                            r->class_label.n, (int)r->n);
    if (r->seed + r->n - 1 > (1ll << 53) - 1)
        return dn_http_fail(err, DN_H_RANGE, "seed", "seed + n - 1 must be at most 9007199254740991");
    if (r->timesteps.n && has(r, DN_GENERATE_STEPS) && r->timesteps.n != r->steps)
        return dn_http_fail(err, DN_H_CONTRADICTION, "steps", "steps is %d, but timesteps has %d elements",
                            (int)r->steps, r->timesteps.n);
    if (r->timesteps.n)
        r->steps = r->timesteps.n;
    if (r->output.layout == DN_LAYOUT_GRID && r->output.format != DN_FORMAT_PNG)
        return dn_http_fail(err, DN_H_CONTRADICTION, "output.layout", "output.layout grid needs output.format png");
    return 0;
}

static void drop_json(void *json) { json_decref(json); }

int dn_generate_parse(dn_generate_request *out, dn_arena *a, json_t *json, dn_http_error *err)
{
    dn_generate_request r = { 0 };
    int code = dn_fields_parse(&dn_generate_fields, &r, a, json, err);
    if (!code)
        code = check(&r, err);
    if (code)
        return code;
    if (dn_arena_cleanup(a, drop_json, json_incref(json)))
        return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    *out = r;
    return 0;
}

/* Does the request contradict the default `key` with a field of its own? */
static bool is_contradicted(const char *key, const json_t *value, const json_t *request)
{
    if (!strcmp(key, "steps"))
        return json_object_get(request, "timesteps");
    if (!strcmp(key, "timesteps"))
        return json_object_get(request, "steps");
    const json_t *n = json_object_get(request, "n");
    return !strcmp(key, "class_label") && json_is_array(value) && n &&
           (double)json_array_size(value) != json_number_value(n);
}

static json_t *merge(const json_t *under, const json_t *over, bool top)
{
    const char *key;
    json_t *value, *out = json_object();
    json_object_foreach((json_t *)over, key, value)
    {
        const json_t *below = json_object_get(under, key);
        bool both = json_is_object(value) && json_is_object(below);
        if (json_object_set_new_nocheck(out, key, both ? merge(below, value, false) : json_incref(value)))
            goto fail;
    }
    json_object_foreach((json_t *)under, key, value)
    {
        if (json_object_get(over, key) || (top && is_contradicted(key, value, over)))
            continue;
        if (json_object_set_nocheck(out, key, value))
            goto fail;
    }
    return out;
fail:
    json_decref(out);
    return NULL;
}

json_t *dn_generate_merge(const json_t *defaults, json_t *request)
{
    return defaults ? merge(defaults, request, true) : json_incref(request);
}

static bool needs_something(const dn_fields *t)
{
    for (int i = 0; i < t->n; i++) {
        if (t->v[i].flags & DN_F_REQUIRED)
            return true;
    }
    return false;
}

/* What is left out gets the table's default. Returns 0, or -1 when out of memory. */
static int complete(const dn_fields *t, json_t *object)
{
    for (int i = 0; i < t->n; i++) {
        const dn_field *f = &t->v[i];
        json_t *value = json_object_get(object, f->name);
        if (f->type == DN_T_OBJECT && !value && !needs_something(f->sub)) {
            value = json_object();
            if (!value || complete(f->sub, value)) {
                json_decref(value);
                return -1;
            }
            if (json_object_size(value) ? json_object_set_new(object, f->name, value) : (json_decref(value), 0))
                return -1;
        } else if (f->type == DN_T_OBJECT && value) {
            if (complete(f->sub, value))
                return -1;
        } else if (!value && f->def) {
            if (json_object_set_new(object, f->name, dn_field_from_text(f, f->def, NULL)))
                return -1;
        }
    }
    return 0;
}

json_t *dn_generate_complete(const json_t *request)
{
    json_t *out = json_deep_copy(request);
    bool listed = json_object_get(request, "timesteps");
    if (!out || complete(&dn_generate_fields, out)) {
        json_decref(out);
        return NULL;
    }
    if (listed && !json_object_get(request, "steps"))
        json_object_del(out, "steps");
    return out;
}
