/* settings.c - scheduler configurations: parsing, checking, laying one over another, resolving for a class.
 *
 * Everything about a key is its row of DN_KEYS. A configuration remembers where each value came from, because diffusers
 * drops a key of the file that the chosen class does not know, while a request that names one is refused. */
#include "settings.h"
#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum origin { NOT_GIVEN, FROM_FILE, FROM_REQUEST };

struct dn_scheduler_config {
    char class_name[64]; /* "" when the file names none */
    dn_setting v[K_COUNT];
    unsigned char given[K_COUNT]; /* enum origin */
};

/* The names of an enumeration. Several names may mean one value; the first is diffusers'. */
typedef struct names {
    const char *name;
    int value;
} names;

/* clang-format off */
static const names beta_schedules[] = {
    { "linear", DN_BETA_LINEAR }, { "scaled_linear", DN_BETA_SCALED_LINEAR }, { "squaredcos_cap_v2", DN_BETA_COSINE },
    { "sigmoid", DN_BETA_SIGMOID }, { "laplace", DN_BETA_LAPLACE }, { "exp", DN_BETA_EXP }, { "sqrt", DN_BETA_SQRT },
    { "quadratic", DN_BETA_SCALED_LINEAR }, { "cosine", DN_BETA_COSINE }, { NULL } };
static const names predictions[] = {
    { "epsilon", DN_PREDICTION_EPSILON }, { "v_prediction", DN_PREDICTION_V }, { "sample", DN_PREDICTION_SAMPLE },
    { "original_sample", DN_PREDICTION_SAMPLE }, { "flow_prediction", DN_PREDICTION_FLOW }, { NULL } };
static const names spacings[] = {
    { "leading", DN_SPACING_LEADING }, { "trailing", DN_SPACING_TRAILING }, { "linspace", DN_SPACING_LINSPACE }, { NULL } };
static const names variances[] = {
    { "fixed_small", DN_VAR_FIXED_SMALL }, { "fixed_small_log", DN_VAR_FIXED_SMALL_LOG },
    { "fixed_large", DN_VAR_FIXED_LARGE }, { "fixed_large_log", DN_VAR_FIXED_LARGE_LOG },
    { "learned", DN_VAR_LEARNED }, { "learned_range", DN_VAR_LEARNED_RANGE }, { NULL } };
static const names algorithms[] = {
    { "dpmsolver++", DN_DPMPP }, { "sde-dpmsolver++", DN_SDE_DPMPP }, { "dpmsolver", DN_DPM },
    { "sde-dpmsolver", DN_SDE_DPM }, { "deis", DN_DPMPP }, { NULL } };
static const names solvers[] = {
    { "midpoint", DN_SOLVER_MIDPOINT }, { "heun", DN_SOLVER_HEUN }, { "bh1", DN_SOLVER_BH1 }, { "bh2", DN_SOLVER_BH2 },
    { "logrho", DN_SOLVER_LOGRHO }, { NULL } };
static const names finals[] = { { "zero", DN_FINAL_ZERO }, { "sigma_min", DN_FINAL_SIGMA_MIN }, { NULL } };
static const names shift_types[] = { { "exponential", DN_SHIFT_EXPONENTIAL }, { "linear", DN_SHIFT_LINEAR }, { NULL } };
static const names interpolations[] = {
    { "linear", DN_INTERPOLATE_LINEAR }, { "log_linear", DN_INTERPOLATE_LOG_LINEAR }, { NULL } };
static const names timestep_types[] = {
    { "discrete", DN_TIMESTEP_DISCRETE }, { "continuous", DN_TIMESTEP_CONTINUOUS }, { NULL } };

enum type {
    INT, REAL, BOOL, NULLABLE, LIST, INT_LIST,
    BETA_SCHEDULE, PREDICTION, SPACING, VARIANCE, ALGORITHM, SOLVER, FINAL, SHIFT_TYPE, INTERPOLATION, TIMESTEP_TYPE
};
static const names *const enumerations[] = {
    [BETA_SCHEDULE] = beta_schedules, [PREDICTION] = predictions, [SPACING] = spacings, [VARIANCE] = variances,
    [ALGORITHM] = algorithms, [SOLVER] = solvers, [FINAL] = finals, [SHIFT_TYPE] = shift_types,
    [INTERPOLATION] = interpolations, [TIMESTEP_TYPE] = timestep_types,
};
/* clang-format on */

static const struct key {
    const char *name;
    enum type type;
    double least, largest, dflt;
    unsigned classes;
} keys[K_COUNT] = {
#define X(name, type, least, largest, dflt, classes) { #name, type, least, largest, dflt, classes },
    DN_KEYS(X)
#undef X
};

/* Defaults of single classes that differ from DN_KEYS. */
static const struct {
    enum dn_class cls;
    enum dn_key key;
    double value;
} class_defaults[] = {
    { DN_CLASS_DPM, K_timestep_spacing, DN_SPACING_LINSPACE },
    { DN_CLASS_UNIPC, K_timestep_spacing, DN_SPACING_LINSPACE },
    { DN_CLASS_EULER, K_timestep_spacing, DN_SPACING_LINSPACE },
    { DN_CLASS_EULER_A, K_timestep_spacing, DN_SPACING_LINSPACE },
    { DN_CLASS_HEUN, K_timestep_spacing, DN_SPACING_LINSPACE },
    { DN_CLASS_HEUN, K_beta_start, 0.00085 },
    { DN_CLASS_HEUN, K_beta_end, 0.012 },
    { DN_CLASS_HEUN, K_clip_sample, 0 },
    { DN_CLASS_LCM, K_beta_start, 0.00085 },
    { DN_CLASS_LCM, K_beta_end, 0.012 },
    { DN_CLASS_LCM, K_beta_schedule, DN_BETA_SCALED_LINEAR },
    { DN_CLASS_LCM, K_clip_sample, 0 },
    { DN_CLASS_UNIPC, K_solver_type, DN_SOLVER_BH2 },
    { DN_CLASS_PNDM, K_set_alpha_to_one, 0 },
    { DN_CLASS_FLOW, K_prediction_type, DN_PREDICTION_FLOW }, /* its only one */
};

/* What a sampler's name says beyond its class; K_COUNT: nothing more. */
static const struct {
    enum dn_class cls;
    struct {
        enum dn_key key;
        double value;
    } implied[2];
} samplers[DN_SAMPLER_COUNT] = {
/* clang-format off */
#define NONE { { K_COUNT }, { K_COUNT } }
#define DPM(order, algorithm) { { K_solver_order, order }, { K_algorithm_type, algorithm } }
    /* clang-format on */
    [DN_SAMPLER_DDPM] = { DN_CLASS_DDPM, NONE },
    [DN_SAMPLER_DDIM] = { DN_CLASS_DDIM, NONE },
    [DN_SAMPLER_DPMPP1] = { DN_CLASS_DPM, DPM(1, DN_DPMPP) },
    [DN_SAMPLER_DPMPP2M] = { DN_CLASS_DPM, DPM(2, DN_DPMPP) },
    [DN_SAMPLER_DPMPP3M] = { DN_CLASS_DPM, DPM(3, DN_DPMPP) },
    [DN_SAMPLER_DPMPP2M_SDE] = { DN_CLASS_DPM, DPM(2, DN_SDE_DPMPP) },
    [DN_SAMPLER_EULER] = { DN_CLASS_EULER, NONE },
    [DN_SAMPLER_EULER_ANCESTRAL] = { DN_CLASS_EULER_A, NONE },
    [DN_SAMPLER_HEUN] = { DN_CLASS_HEUN, NONE },
    [DN_SAMPLER_UNIPC] = { DN_CLASS_UNIPC, NONE },
    [DN_SAMPLER_PNDM] = { DN_CLASS_PNDM, NONE },
    [DN_SAMPLER_LCM] = { DN_CLASS_LCM, NONE },
    [DN_SAMPLER_FLOW_EULER] = { DN_CLASS_FLOW, NONE },
#undef NONE
#undef DPM
};
static const char *const sampler_names[] = {
#define X(code, name, cls) name,
    DN_SAMPLERS(X)
#undef X
};
static const char *const sampler_classes[] = {
#define X(code, name, cls) cls,
    DN_SAMPLERS(X)
#undef X
};

/* Classes of diffusers that sample by something a later version brings. */
static const char *const later_classes[] = { "DDIMInverseScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler",
                                             "KarrasVeScheduler" };

const char *dn_sampler_name(enum dn_sampler_kind k) { return sampler_names[k]; }

int dn_sampler_find(const char *name)
{
    for (int k = 0; k < DN_SAMPLER_COUNT; k++)
        if (!strcmp(name, sampler_names[k]))
            return k;
    return -1;
}

const char *dn_key_name(enum dn_key k) { return keys[k].name; }

int dn_key_fail(dn_error *err, int code, enum dn_key k, const char *message)
{
    char param[64];
    snprintf(param, sizeof param, "scheduler.%s", keys[k].name);
    return dn_fail(err, code, param, "%s %s", keys[k].name, message);
}

/* Parsing one value. `who` is "" for a file, "scheduler." for a request: the prefix of err->param. */
static int refuse(dn_error *err, int code, const char *who, enum dn_key k, const char *what)
{
    char param[64];
    snprintf(param, sizeof param, "%s%s", who, keys[k].name);
    return dn_fail(err, code, param, "%s%s %s", *who ? "" : "scheduler_config.json: ", keys[k].name, what);
}

static int parse_number(dn_setting *out, const json_t *j, const char *who, enum dn_key k, dn_error *err)
{
    const struct key *key = &keys[k];
    if (key->type == INT ? !json_is_integer(j) : !json_is_number(j))
        return refuse(err, DN_E_INVALID, who, k, key->type == INT ? "must be an integer" : "must be a number");
    double v = json_number_value(j);
    if (!(v >= key->least && v <= key->largest)) {
        char text[96];
        snprintf(text, sizeof text, "must be %g..%g, got %g", key->least, key->largest, v);
        return refuse(err, DN_E_RANGE, who, k, text);
    }
    out->num = v;
    return 0;
}

static int parse_list(dn_setting *out, const json_t *j, const char *who, enum dn_key k, dn_error *err)
{
    const struct key *key = &keys[k];
    size_t n = json_array_size(j);
    if (!json_is_array(j) || n > (size_t)keys[K_num_train_timesteps].largest)
        return refuse(err, DN_E_INVALID, who, k, "must be a list of at most 10000 numbers");
    double *list = malloc((n + 1) * sizeof *list);
    if (!list)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(j, i);
        list[i] = json_number_value(e);
        bool number = key->type == INT_LIST ? json_is_integer(e) : json_is_number(e);
        if (!number || !(list[i] >= key->least && list[i] <= key->largest)) {
            free(list);
            return refuse(err, DN_E_RANGE, who, k, "has an element that is no number or out of range");
        }
    }
    free(out->list);
    out->list = list;
    out->n = (int)n;
    return 0;
}

static int parse_name(dn_setting *out, const json_t *j, const char *who, enum dn_key k, dn_error *err)
{
    const names *list = enumerations[keys[k].type];
    if (!json_is_string(j))
        return refuse(err, DN_E_INVALID, who, k, "must be a string");
    for (const names *e = list; e->name; e++)
        if (!strcmp(e->name, json_string_value(j))) {
            out->num = e->value;
            return 0;
        }
    char text[320] = "must be one of";
    for (const names *e = list; e->name; e++)
        snprintf(text + strlen(text), sizeof text - strlen(text), " %s", e->name);
    return refuse(err, DN_E_RANGE, who, k, text);
}

static int parse_value(dn_setting *out, const json_t *j, const char *who, enum dn_key k, dn_error *err)
{
    switch (keys[k].type) {
    case BOOL:
        if (!json_is_boolean(j))
            return refuse(err, DN_E_INVALID, who, k, "must be true or false");
        out->num = json_is_true(j);
        return 0;
    case INT:
    case REAL:
    case NULLABLE:
        return parse_number(out, j, who, k, err);
    case LIST:
    case INT_LIST:
        return parse_list(out, j, who, k, err);
    default:
        return parse_name(out, j, who, k, err);
    }
}

/* null means "not set" to a key that may be unset; in a file it is the same as leaving the key out. */
static int parse_null(dn_scheduler_config *c, enum dn_key k, enum origin from, dn_error *err)
{
    if (from == FROM_FILE) {
        c->given[k] = NOT_GIVEN;
        return 0;
    }
    if (keys[k].type != NULLABLE && keys[k].type != LIST && keys[k].type != INT_LIST)
        return dn_key_fail(err, DN_E_INVALID, k, "must not be null");
    free(c->v[k].list);
    c->v[k] = (dn_setting){ .num = keys[k].dflt };
    c->given[k] = from;
    return 0;
}

static int find_key(const char *name)
{
    for (int k = 0; k < K_COUNT; k++)
        if (!strcmp(name, keys[k].name))
            return k;
    return -1;
}

/* The name is a client's: cut it between characters of UTF-8. */
static int refuse_unknown(dn_error *err, const char *name)
{
    char param[64];
    size_t n = strnlen(name, 48);
    while (n && ((unsigned char)name[n] & 0xc0) == 0x80)
        n--;
    snprintf(param, sizeof param, "scheduler.%.*s", (int)n, name);
    return dn_fail(err, DN_E_UNKNOWN, param, "no scheduler of this build has a key of this name");
}

static int parse_object(dn_scheduler_config *c, const json_t *json, enum origin from, dn_error *err)
{
    const char *name, *who = from == FROM_REQUEST ? "scheduler." : "";
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        int k = find_key(name), status;
        if (k < 0 && from == FROM_FILE)
            continue;
        if (k < 0)
            return refuse_unknown(err, name);
        if (json_is_null(value))
            status = parse_null(c, k, from, err);
        else if (!(status = parse_value(&c->v[k], value, who, k, err)))
            c->given[k] = from;
        if (status)
            return status;
    }
    return 0;
}

void dn_scheduler_config_free(dn_scheduler_config *c)
{
    for (int k = 0; c && k < K_COUNT; k++)
        free(c->v[k].list);
    free(c);
}

dn_scheduler_config *dn_scheduler_config_copy(const dn_scheduler_config *c)
{
    dn_scheduler_config *copy = malloc(sizeof *copy);
    if (!copy)
        return NULL;
    *copy = *c;
    for (int k = 0; k < K_COUNT; k++)
        copy->v[k].list = NULL;
    for (int k = 0; k < K_COUNT; k++) {
        if (!c->v[k].list)
            continue;
        size_t bytes = (size_t)(c->v[k].n + 1) * sizeof(double);
        if (!(copy->v[k].list = malloc(bytes))) {
            dn_scheduler_config_free(copy);
            return NULL;
        }
        memcpy(copy->v[k].list, c->v[k].list, (size_t)c->v[k].n * sizeof(double));
    }
    return copy;
}

int dn_scheduler_config_new(dn_scheduler_config **out, const json_t *json, dn_error *err)
{
    if (json && !json_is_object(json))
        return dn_fail(err, DN_E_FORMAT, NULL, "a scheduler configuration must be a JSON object");
    dn_scheduler_config *c = calloc(1, sizeof *c);
    if (!c)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    const json_t *cls = json_object_get(json, "_class_name");
    int status = 0;
    if (cls && (!json_is_string(cls) || json_string_length(cls) >= sizeof c->class_name))
        status = dn_fail(err, DN_E_FORMAT, "_class_name", "_class_name must be the name of a scheduler class");
    else if (cls)
        snprintf(c->class_name, sizeof c->class_name, "%s", json_string_value(cls));
    if (!status)
        status = parse_object(c, json, FROM_FILE, err);
    if (status) {
        dn_scheduler_config_free(c);
        return status;
    }
    *out = c;
    return 0;
}

int dn_scheduler_config_overlay(dn_scheduler_config *c, const json_t *json, dn_error *err)
{
    if (!json_is_object(json))
        return dn_fail(err, DN_E_INVALID, "scheduler", "scheduler must be an object");
    dn_scheduler_config *copy = dn_scheduler_config_copy(c), before = *c;
    if (!copy)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    int status = parse_object(copy, json, FROM_REQUEST, err);
    if (!status) {
        *c = *copy;
        *copy = before;
    }
    dn_scheduler_config_free(copy);
    return status;
}

int dn_scheduler_config_sampler(const dn_scheduler_config *c, dn_error *err)
{
    if (!c->class_name[0])
        return DN_SAMPLER_DDPM;
    for (int k = 0; k < DN_SAMPLER_COUNT; k++) {
        if (strcmp(c->class_name, sampler_classes[k]))
            continue;
        if (samplers[k].cls != DN_CLASS_DPM)
            return k;
        int algorithm = c->given[K_algorithm_type] ? (int)c->v[K_algorithm_type].num : DN_DPMPP;
        int order = c->given[K_solver_order] ? (int)c->v[K_solver_order].num : 2;
        return algorithm == DN_SDE_DPMPP || algorithm == DN_SDE_DPM ? DN_SAMPLER_DPMPP2M_SDE
                                                                    : DN_SAMPLER_DPMPP1 + order - 1;
    }
    for (size_t i = 0; i < sizeof later_classes / sizeof *later_classes; i++)
        if (!strcmp(c->class_name, later_classes[i])) {
            dn_fail(err, DN_E_UNSUPPORTED, "sampler", "the checkpoint's own scheduler, %s, belongs to a later version",
                    c->class_name);
            return -1;
        }
    dn_fail(err, DN_E_UNSUPPORTED, "sampler", "the checkpoint's own scheduler, %s, is not known", c->class_name);
    return -1;
}

static void set_defaults(dn_settings *out)
{
    for (int k = 0; k < K_COUNT; k++) {
        bool known = keys[k].classes & 1u << out->cls;
        out->v[k] = (dn_setting){ .num = known ? keys[k].dflt : keys[k].type == NULLABLE ? NAN : 0 };
    }
    for (size_t i = 0; i < sizeof class_defaults / sizeof *class_defaults; i++)
        if (class_defaults[i].cls == out->cls)
            out->v[class_defaults[i].key].num = class_defaults[i].value;
}

/* A solver_type of the other multistep class means this class's default, as in diffusers. */
static int fit_solver_type(dn_settings *out, enum origin from, dn_error *err)
{
    enum dn_solver solver = dn_int(out, solver_type);
    bool bh = solver == DN_SOLVER_BH1 || solver == DN_SOLVER_BH2;
    bool dpm = solver == DN_SOLVER_MIDPOINT || solver == DN_SOLVER_HEUN;
    if (out->cls == DN_CLASS_DPM ? dpm : bh)
        return 0;
    if (from == FROM_REQUEST)
        return dn_key_fail(err, DN_E_IMPOSSIBLE, K_solver_type, "is of another sampler");
    out->v[K_solver_type].num = out->cls == DN_CLASS_DPM ? DN_SOLVER_MIDPOINT : DN_SOLVER_BH2;
    return 0;
}

int dn_settings_resolve(dn_settings *out, enum dn_sampler_kind *kind, const dn_scheduler_config *c, int sampler,
                        dn_error *err)
{
    assert(sampler < DN_SAMPLER_COUNT);
    int own = sampler >= 0 ? sampler : dn_scheduler_config_sampler(c, err);
    if (own < 0)
        return DN_E_UNSUPPORTED;
    dn_settings s = { .cls = samplers[own].cls };
    set_defaults(&s);
    for (int k = 0; k < K_COUNT; k++) {
        if (keys[k].classes & 1u << s.cls && c->given[k])
            s.v[k] = c->v[k];
        else if (c->given[k] == FROM_REQUEST)
            return dn_key_fail(err, DN_E_IMPOSSIBLE, k, "is not a key of this sampler's scheduler");
    }
    for (int i = 0; sampler >= 0 && i < 2; i++) {
        enum dn_key k = samplers[own].implied[i].key;
        if (k == K_COUNT)
            continue;
        if (c->given[k] == FROM_REQUEST && s.v[k].num != samplers[own].implied[i].value)
            return dn_key_fail(err, DN_E_IMPOSSIBLE, k, "contradicts the sampler's name");
        s.v[k].num = samplers[own].implied[i].value;
    }
    if (keys[K_solver_type].classes & 1u << s.cls) {
        int status = fit_solver_type(&s, c->given[K_solver_type], err);
        if (status)
            return status;
    }
    *out = s;
    *kind = own;
    return 0;
}
