/* models.c - the registry: scanning, finding, waiting, holding, evicting. */
#include "models.h"

#include "log.h"
#include "requests.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MODELS_MAX = 1024, FOLDER_DEPTH_MAX = 3 };

/* ---- scanning (once, before the loop serves) ---------------------------------------------------------------- */

static bool is_weights(const char *name)
{
    size_t n = strlen(name);
    return (n > 12 && !strcmp(name + n - 12, ".safetensors")) || (n > 4 && !strcmp(name + n - 4, ".bin"));
}

/* Bytes of the weight files below `dir`; *is_model when it holds a configuration. */
static int64_t scan_folder(const char *dir, int depth, bool *is_model)
{
    DIR *d = opendir(dir);
    int64_t bytes = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *path = NULL;
        struct stat st;
        if (e->d_name[0] == '.' || asprintf(&path, "%s/%s", dir, e->d_name) < 0)
            continue;
        if (!stat(path, &st)) {
            if (S_ISDIR(st.st_mode) && depth > 1)
                bytes += scan_folder(path, depth - 1, is_model);
            if (S_ISREG(st.st_mode) && is_weights(e->d_name))
                bytes += st.st_size;
            if (!strcmp(e->d_name, "model_index.json") || !strcmp(e->d_name, "config.json"))
                *is_model = true;
        }
        free(path);
    }
    if (d)
        closedir(d);
    return bytes;
}

/* By name; of one name by version. */
static int by_name(dn_known *const *a, dn_known *const *b)
{
    int order = strcmp((*a)->name, (*b)->name);
    return order ? order : ((*a)->version > (*b)->version) - ((*a)->version < (*b)->version);
}

dn_known *dn_models_add(dn_models *m, const char *name, int64_t version, char *dir, int64_t bytes)
{
    dn_known **grown = realloc(m->known, (m->n + 1) * sizeof *grown);
    dn_known *k = calloc(1, sizeof *k);
    if (grown)
        m->known = grown;
    if (!grown || !k || !dir) {
        free(k);
        free(dir);
        return NULL;
    }
    *k = (dn_known){ .version = version, .dir = dir, .file_bytes = bytes, .state = DN_MODEL_AVAILABLE };
    snprintf(k->name, sizeof k->name, "%s", name);
    snprintf(k->id, sizeof k->id, "%s@%lld", name, (long long)version);
    dn_link_init(&k->nets);
    dn_link_init(&k->waiters);
    dn_link_init(&k->calls);
    dn_link_init(&k->freed_nets);
    int i = m->n++;
    for (; i && by_name(&k, &m->known[i - 1]) < 0; i--)
        m->known[i] = m->known[i - 1];
    m->known[i] = k;
    return k;
}

int64_t dn_model_file_bytes(const char *dir)
{
    bool is_model = false;
    return scan_folder(dir, FOLDER_DEPTH_MAX, &is_model);
}

static int add_known(dn_models *m, const char *root, const char *name, dn_error *err)
{
    char *dir = NULL;
    bool is_model = false;
    if (asprintf(&dir, "%s/%s", root, name) < 0)
        return dn_fail(err, DN_E_MEMORY, "models", "no memory for the list of models");
    int64_t bytes = scan_folder(dir, FOLDER_DEPTH_MAX, &is_model);
    if (!is_model || !dn_name_ok(name) || m->n == MODELS_MAX) {
        if (is_model)
            dn_log(DN_LOG_WARN, "model_ignored", "%s: %s", name,
                   m->n == MODELS_MAX ? "too many models" : "a model's name matches [a-z0-9][a-z0-9._-]{0,63}");
        free(dir);
        return 0;
    }
    return dn_models_add(m, name, 1, dir, bytes) ? 0 : dn_fail(err, DN_E_MEMORY, "models", "no memory for the list of models");
}

static int scan(dn_models *m, const char *root, dn_error *err)
{
    DIR *d = opendir(root);
    if (!d)
        return dn_fail(err, DN_E_IO, "models", "--models %s: %s", root, strerror(errno));
    int rc = 0;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        if (e->d_name[0] != '.')
            rc = add_known(m, root, e->d_name, err);
    }
    closedir(d);
    return rc;
}

/* Read one model, as a load would. */
static int check_model(const dn_known *k, dn_error *err)
{
    dn_error why = { 0 };
    dn_model *model = NULL;
    int rc = dn_model_load(&model, k->dir, &why);
    dn_model_free(model);
    return rc ? dn_fail(err, rc, "models", "model %s: %s", k->name, why.message) : 0;
}

int dn_models_check(const char *root, dn_error *err)
{
    dn_models m = { 0 };
    int rc = scan(&m, root, err);
    for (int i = 0; i < m.n && !rc; i++)
        rc = check_model(m.known[i], err);
    for (int i = 0; i < m.n; i++) {
        free(m.known[i]->dir);
        free(m.known[i]);
    }
    free(m.known);
    return rc;
}

/* "name": the live version; "name@version". NULL: none. */
static dn_known *known_by_name(const dn_models *m, const char *name)
{
    size_t n = strcspn(name, "@");
    for (int i = 0; i < m->n; i++) {
        dn_known *k = m->known[i];
        if (!k->doomed && (name[n] ? !strcmp(k->id, name) : k->live && !strcmp(k->name, name)))
            return k;
    }
    return NULL;
}

/* --load: the named ones, or all, each as long as it fits. */
static int load_start_set(dn_app *app, dn_error *err)
{
    const dn_config *c = app->server.config;
    dn_models *m = app->models;
    bool named = c->has & DN_BIT(DN_CONFIG_LOAD);
    if (named && c->load.n == 1 && !strcmp(c->load.v[0], "none"))
        return 0;
    for (int i = 0; i < (named ? c->load.n : m->n); i++) {
        dn_known *k = named ? known_by_name(m, c->load.v[i]) : m->known[i];
        if (!k)
            return dn_fail(err, DN_E_NOT_FOUND, "load", "--load: no model %s in %s", c->load.v[i], c->models);
        if (k->state != DN_MODEL_AVAILABLE || (!named && !k->live))
            continue; /* named twice; all that are live */
        k->start = true;
        k->stay = !named;
        m->n_start++;
        dn_known_enqueue(app, k);
    }
    return 0;
}

int dn_models_open(dn_app *app, dn_error *err)
{
    dn_models *m = app->models = calloc(1, sizeof *m);
    if (!m)
        return dn_fail(err, DN_E_MEMORY, "models", "no memory for the list of models");
    dn_link_init(&m->loads);
    dn_link_init(&m->attempts);
    dn_link_init(&m->makings);
    int rc = app->server.config->models ? scan(m, app->server.config->models, err) : 0;
    if (!rc)
        rc = dn_versions_open(app, err);
    for (int i = 0; i < m->n; i++) {
        m->known[i]->app = app;
        m->known[i]->label = dn_metrics_label(app->server.metrics, DN_L_MODEL, m->known[i]->name);
    }
    return rc ? rc : load_start_set(app, err);
}

void dn_models_close(dn_app *app)
{
    dn_models *m = app->models;
    for (int i = 0; m && i < m->n; i++) {
        dn_known *k = m->known[i];
        DN_LINK_EACH(l, &k->nets)
        {
            dn_net_use_free(DN_LINK_OF(l, dn_net_use, link));
        }
        dn_model_free(k->model);
        free(k->dir);
        free(k);
    }
    if (m) {
        dn_versions_close(m);
        free(m->known);
    }
    free(m);
    app->models = NULL;
}

bool dn_models_started(const dn_models *m) { return m->n_start == 0; }
int dn_models_count(const dn_models *m) { return m->n; }
dn_known *dn_models_at(dn_models *m, int i) { return m->known[i]; }

dn_known *dn_models_live(dn_models *m, const char *name) { return strchr(name, '@') ? NULL : known_by_name(m, name); }

/* ---- finding ------------------------------------------------------------------------------------------------ */

static int find_only(dn_known **out, dn_models *m, dn_http_error *err)
{
    dn_known *loaded = NULL, *only = NULL;
    int n_loaded = 0, n_live = 0;
    for (int i = 0; i < m->n; i++) {
        dn_known *k = m->known[i];
        if (!k->live || k->doomed)
            continue;
        n_live++;
        only = k;
        if (k->state == DN_MODEL_LOADED) {
            loaded = k;
            n_loaded++;
        }
    }
    if (n_loaded != 1 && n_live == 1)
        loaded = only, n_loaded = 1;
    if (n_loaded != 1)
        return dn_http_fail(err, DN_H_MISSING, "model", "name a model: %d are known, %d loaded", n_live, n_loaded);
    *out = loaded;
    return 0;
}

int dn_models_find(dn_known **out, dn_models *m, const char *name, dn_http_error *err)
{
    if (!name)
        return find_only(out, m, err);
    dn_known *k = known_by_name(m, name);
    if (!k && strchr(name, '@')) {
        char bare[DN_NAME_LEN_MAX + 1];
        snprintf(bare, sizeof bare, "%.*s", (int)strcspn(name, "@"), name);
        if (known_by_name(m, bare))
            return dn_http_fail(err, DN_H_MODEL_NOT_FOUND, "model", "%s has no version %.20s; GET /models/%s lists them", bare,
                                strchr(name, '@') + 1, bare);
    }
    if (!k)
        return dn_http_fail(err, DN_H_MODEL_NOT_FOUND, "model", "no model %s", name);
    *out = k;
    return 0;
}

dn_net_use *dn_models_net(dn_models *m, uint64_t id)
{
    for (int i = 0; i < m->n; i++) {
        DN_LINK_EACH(l, &m->known[i]->nets)
        {
            if (DN_LINK_OF(l, dn_net_use, link)->id == id)
                return DN_LINK_OF(l, dn_net_use, link);
        }
    }
    return NULL;
}

/* ---- waiting and holding ------------------------------------------------------------------------------------ */

static dn_net_use *net_of_size(dn_known *k, int height, int width)
{
    DN_LINK_EACH(l, &k->nets)
    {
        dn_net_use *u = DN_LINK_OF(l, dn_net_use, link);
        if (u->height == height && u->width == width)
            return u;
    }
    return NULL;
}

static int want_size(dn_app *app, dn_known *k, dn_waiter *w, dn_net_use **out, dn_http_error *err)
{
    int height = w->height ? w->height : k->info->height, width = w->width ? w->width : k->info->width;
    if (!dn_model_size_ok(k->model, height, width))
        return dn_http_fail(err, DN_H_IMPOSSIBLE, height != k->info->height ? "height" : "width",
                            "%s is made for %dx%d; its denoised.json allows no %dx%d", k->name, k->info->height,
                            k->info->width, height, width);
    dn_net_use *u = net_of_size(k, height, width);
    if (!u)
        u = dn_known_make_net(app, k, height, width);
    if (!u)
        return dn_http_fail(err, DN_H_MEMORY, NULL, "no memory for a network of %dx%d", height, width);
    if (u->ready)
        *out = u;
    else
        dn_link_push(&u->waiters, &w->link);
    return 0;
}

int dn_known_failed(const dn_known *k, dn_http_error *err)
{
    return dn_http_fail(err, k->error.code == DN_E_MEMORY ? DN_H_MEMORY : DN_H_MODEL_FAILED, "model", "%s: %s", k->name,
                        k->error.message);
}

int dn_models_want(dn_app *app, dn_known *k, dn_waiter *w, dn_net_use **out, dn_http_error *err)
{
    *out = NULL;
    k->used = ++app->models->order;
    switch (k->state) {
    case DN_MODEL_LOADED:
        return want_size(app, k, w, out, err);
    case DN_MODEL_UNLOADING:
        return dn_http_fail(err, DN_H_CONFLICT, "model", "%s is being unloaded", k->name);
    case DN_MODEL_FAILED:
        if (k->error.code != DN_E_MEMORY)
            return dn_known_failed(k, err);
        /* there may be room for it by now */
        __attribute__((fallthrough));
    case DN_MODEL_AVAILABLE:
        if (app->closing)
            return dn_http_fail(err, DN_H_DRAINING, NULL, NULL);
        dn_known_enqueue(app, k);
        if (k->state == DN_MODEL_FAILED) /* there is no room for it */
            return dn_known_failed(k, err);
        break;
    case DN_MODEL_LOADING:
        k->stay = false; /* somebody needs it: worth an eviction */
        break;
    }
    dn_link_push(&k->waiters, &w->link);
    return 0;
}

void dn_waiter_leave(dn_waiter *w) { dn_link_pop(&w->link); }

void dn_known_hold(dn_app *app, dn_known *k)
{
    k->holders++;
    k->used = ++app->models->order;
}

void dn_known_release(dn_app *app, dn_known *k)
{
    k->holders--;
    dn_known_settle(app, k);
}

/* ---- room --------------------------------------------------------------------------------------------------- */

static int64_t bytes_of(const dn_known *k) { return k->weights + k->forms; }

static bool is_idle(const dn_known *k) { return k->state == DN_MODEL_LOADED && !k->holders && !k->busy; }

/* The idle one that was used longest ago. */
static dn_known *eldest_idle(dn_models *m, const dn_known *keep)
{
    dn_known *best = NULL;
    for (int i = 0; i < m->n; i++) {
        dn_known *k = m->known[i];
        if (k != keep && is_idle(k) && (!best || k->used < best->used))
            best = k;
    }
    return best;
}

/* Bytes that come free when what is being unloaded is gone, and, if asked, everything idle with it. The arenas shrink
 * to the largest that is left. */
static int64_t coming_free(const dn_app *app, bool idle_too, const dn_known *keep)
{
    int64_t bytes = 0, arena = 0;
    for (int i = 0; i < app->models->n; i++) {
        const dn_known *k = app->models->known[i];
        if (k->state == DN_MODEL_UNLOADING || (idle_too && k != keep && is_idle(k)))
            bytes += bytes_of(k);
        else
            arena = k->arena > arena ? k->arena : arena;
    }
    return bytes + app->budget.held[DN_HOLD_ARENAS] - arena * app->n_places;
}

int dn_models_make_room(dn_app *app, int64_t bytes, const dn_known *keep)
{
    if (dn_budget_fits(&app->budget, bytes))
        return 0;
    int64_t lacking = bytes + dn_budget_held(&app->budget) - app->budget.limit;
    if (lacking > coming_free(app, true, keep))
        return -1;
    for (dn_known *k; lacking > coming_free(app, false, keep) && (k = eldest_idle(app->models, keep));)
        (void)dn_models_unload(app, k, NULL);
    return 1;
}

/* ---- calls and cards ---------------------------------------------------------------------------------------- */

/* All of the model's, oldest first. */
static int list_versions(const dn_known *k, dn_model_version out[DN_VERSIONS_MAX])
{
    const dn_models *m = k->app->models;
    int n = 0;
    for (int i = 0; i < m->n && n < DN_VERSIONS_MAX; i++) {
        const dn_known *v = m->known[i];
        if (!v->doomed && !strcmp(v->name, k->name))
            out[n++] = (dn_model_version){ DN_HAS_ALL, v->version, v->live, *v->hash ? v->hash : v->info ? v->info->hash : NULL };
    }
    return n;
}

void dn_known_card(const dn_known *k, dn_model_card *card, dn_card_scratch *scratch)
{
    dn_items versions = { scratch->version, list_versions(k, scratch->version) };
    *card = (dn_model_card){ .has = DN_BIT(DN_CARD_NAME) | DN_BIT(DN_CARD_STATE) | DN_BIT(DN_CARD_VERSIONS),
                             .name = k->name,
                             .state = k->state,
                             .versions = versions };
    if (k->state == DN_MODEL_FAILED) {
        card->has |= DN_BIT(DN_CARD_ERROR);
        card->error = k->error.message;
    }
    const dn_model_info *i = k->info;
    if (!i || k->state != DN_MODEL_LOADED)
        return;
    int sampler = dn_scheduler_config_sampler(i->scheduler, NULL);
    const dn_net_use *own = net_of_size((dn_known *)k, i->height, i->width);
    for (int s = 0; s < i->n_sizes; s++)
        scratch->size[s] = (dn_size){ DN_HAS_ALL, i->sizes[s][0], i->sizes[s][1] };
    *card = (dn_model_card){ .has = DN_HAS_ALL & ~DN_BIT(DN_CARD_ERROR),
                             .name = k->name,
                             .state = k->state,
                             .description = i->description,
                             .architecture = i->architecture,
                             .pipeline = i->pipeline,
                             .parameters = i->parameters,
                             .bytes = bytes_of(k),
                             .height = i->height,
                             .width = i->width,
                             .channels = i->channels,
                             .sizes = { scratch->size, i->n_sizes },
                             .n_classes = i->n_classes,
                             .labels = { i->labels, i->n_labels },
                             .sampler = sampler < 0 ? NULL : dn_sampler_name(sampler),
                             .ms_per_row = own ? own->price_ms[0] : 0,
                             .versions = versions,
                             .numerics = own ? dn_net_numerics(own->net) : NULL,
                             .defaults = i->defaults };
    if (!i->defaults)
        card->has &= ~DN_BIT(DN_CARD_DEFAULTS);
}
