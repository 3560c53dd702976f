/* init.c - a model that nobody has trained: PyTorch's default initialisation, drawn from a seed.
 *
 * Linear and conv: weight and bias uniform within 1/sqrt(fan in) (kaiming_uniform_ with a = sqrt(5)). Norms: 1 and 0.
 * Embedding tables: N(0,1). Fourier features of diffusers' GaussianFourierProjection: 16 N(0,1). */
#include "model_internal.h"
#include "rng.h"
#include "source.h"
#include <denoised/sha256.h>
#include <denoised/trainer.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

static const float fourier_scale = 16;

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

static dn_rng_key key_of(uint64_t seed, int param)
{
    return (dn_rng_key){ seed, 0, (uint32_t)DN_RNG_WEIGHTS << 24, (uint32_t)param };
}

static void fill_uniform(float *dst, int64_t n, double bound, const dn_rng_key *key)
{
    dn_rng_uniform(dst, 0, n, key);
    for (int64_t i = 0; i < n; i++)
        dst[i] = (float)bound * (2 * dst[i] - 1);
}

static void fill(float *dst, int64_t n, float value)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = value;
}

/* What one output of the weight sums over: all but the last of our dimensions; 0 of a parameter that is no weight
 * matrix. */
static double fan_in(const dn_param *q)
{
    bool matrix = q->form == DN_PARAM_LINEAR || q->form == DN_PARAM_CONV;
    return matrix ? (double)(dn_shape_count(&q->shape) / q->shape.dim[q->shape.rank - 1]) : 0;
}

/* The layer's weight comes right before its bias. */
static void init_param(float *dst, const dn_block *b, int i, uint64_t seed)
{
    const dn_param *q = &b->param[i];
    bool bias = ends_with(q->name, "bias");
    double fan = bias && i ? fan_in(&b->param[i - 1]) : fan_in(q);
    int64_t n = dn_shape_count(&q->shape);
    dn_rng_key key = key_of(seed, i);
    if (fan > 0) {
        fill_uniform(dst, n, 1 / sqrt(fan), &key);
    } else if (q->shape.rank == 2 || !strcmp(q->name, "time_proj.weight")) {
        dn_rng_normal(dst, 0, n, &key);
        for (int64_t k = 0; k < n && q->shape.rank == 1; k++)
            dst[k] *= fourier_scale;
    } else {
        fill(dst, n, bias ? 0 : 1);
    }
}

/* A file may have keys of later versions; a config that someone writes for a new network has typing errors. What begins
 * with _ is diffusers' own, and the EMA's settings are in the config.json of every EMA that it saves. */
static int check_keys(const dn_arch *arch, const json_t *config, dn_error *err)
{
    static const char *const others[] = { "decay", "inv_gamma",         "min_decay",      "optimization_step",
                                          "power", "update_after_step", "use_ema_warmup", NULL };
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)config, name, value)
    {
        bool known = name[0] == '_';
        for (int i = 0; !known && i < arch->n_keys; i++)
            known = !strcmp(arch->keys[i].name, name);
        for (int i = 0; !known && others[i]; i++)
            known = !strcmp(others[i], name);
        if (!known) {
            dn_shown shown = dn_show(name, strlen(name));
            return dn_fail(err, DN_E_UNKNOWN, shown.text, "config.json: %s has no key %s", arch->class_name,
                           shown.text);
        }
    }
    return 0;
}

int dn_model_init(dn_model **out, const struct json_t *config, const struct json_t *scheduler,
                  const struct json_t *extra, uint64_t seed, dn_error *err)
{
    dn_model *m = NULL;
    dn_program *p = NULL;
    int rc = dn_model_describe(&m, NULL, config, scheduler, extra, err);
    rc = rc ? rc : check_keys(m->arch, config, err);
    if (!rc && !(p = dn_model_program(m, m->info.height, m->info.width)))
        rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc && p->error.code)
        rc = dn_fail(err, p->error.code, "config", "config.json: %s", p->error.message);
    if (!rc && p->block[0].count > DN_INIT_MAX)
        rc = dn_fail(err, DN_E_LIMIT, "config", "config.json asks for %lld parameters, at most %lld are allowed",
                     (long long)p->block[0].count, (long long)DN_INIT_MAX);
    rc = rc ? rc : dn_model_weights_new(m, &p->block[0], err);
    for (int i = 0; !rc && i < p->block[0].n_params; i++)
        init_param(m->weights + p->block[0].param[i].offset, &p->block[0], i, seed);
    if (!rc)
        rc = dn_sha256_hex(m->info.hash, m->weights, m->info.bytes);
    if (rc)
        dn_model_free(m);
    else
        *out = m;
    dn_program_free(p);
    return rc;
}
