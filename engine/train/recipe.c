/* recipe.c - a model folder's configuration as a job for another network like it. */
#include "model_internal.h"
#include "settings.h"

#include <denoised/trainer.h>
#include <jansson.h>

/* A new network's scheduler is DDPM's, or that of a flow: of the file's keys those that it has, but for what is learned, which the
 * objective says. */
static json_t *schedule_of(const json_t *file, enum dn_train_prediction prediction)
{
    unsigned scheduler = prediction == DN_PREDICT_FLOW ? C_(FLOW) : C_(DDPM);
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
        if (!v || json_is_null(v) || !(keys[k].classes & scheduler) || k == K_prediction_type)
            continue;
        if (json_object_set(out, keys[k].name, v)) {
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

int dn_recipe_read(dn_recipe *out, const char *dir, dn_error *err)
{
    dn_model *m = NULL;
    const char *component;
    dn_recipe r = { 0 };
    int rc = dn_model_open(&m, dir, &component, err);
    if (rc)
        return rc;
    rc = dn_train_prediction_of(&r.prediction, m, err);
    r.network = json_deep_copy(m->config_json);
    r.schedule = schedule_of(m->scheduler_json, r.prediction);
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
