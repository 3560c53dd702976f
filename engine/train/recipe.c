/* recipe.c - a model folder's configuration as a job for another network like it. */
#include "model_internal.h"
#include "settings.h"

#include <denoised/trainer.h>
#include <jansson.h>

/* A new network's scheduler is DDPM's: of the file's keys those that it has, but for what is learned, which the
 * objective says. */
static json_t *schedule_of(const json_t *file)
{
    static const struct {
        const char *name;
        unsigned classes;
    } keys[] = {
#define X(name, type, least, largest, dflt, classes) { #name, classes },
        DN_KEYS(X)
#undef X
    };
    json_t *out = json_object();
    for (int k = 0; out && k < K_COUNT; k++) {
        json_t *v = json_object_get(file, keys[k].name);
        if (!v || json_is_null(v) || !(keys[k].classes & C_(DDPM)) || k == K_prediction_type)
            continue;
        if (json_object_set(out, keys[k].name, v)) {
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

static int prediction_of(const dn_scheduler_config *c, int *out, dn_error *err)
{
    static const enum dn_train_prediction as[] = { [DN_PREDICTION_EPSILON] = DN_PREDICT_EPSILON,
                                                   [DN_PREDICTION_V] = DN_PREDICT_V,
                                                   [DN_PREDICTION_SAMPLE] = DN_PREDICT_SAMPLE,
                                                   [DN_PREDICTION_FLOW] = DN_PREDICT_FLOW };
    dn_settings s;
    enum dn_sampler_kind kind;
    int rc = dn_settings_resolve(&s, &kind, c, -1, err);
    if (!rc)
        *out = as[(int)s.v[K_prediction_type].num];
    return rc;
}

int dn_recipe_read(dn_recipe *out, const char *dir, dn_error *err)
{
    dn_model *m = NULL;
    const char *component;
    dn_recipe r = { 0 };
    int rc = dn_model_open(&m, dir, &component, err);
    if (rc)
        return rc;
    r.network = json_deep_copy(m->config_json);
    r.schedule = schedule_of(m->scheduler_json);
    rc = prediction_of(m->info.scheduler, &r.prediction, err);
    if (!rc && (!r.network || !r.schedule))
        rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    dn_model_free(m);
    if (rc)
        dn_recipe_fini(&r);
    else
        *out = r;
    return rc;
}

void dn_recipe_fini(dn_recipe *r)
{
    json_decref(r->network);
    json_decref(r->schedule);
    *r = (dn_recipe){ 0 };
}
