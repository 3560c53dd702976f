/* route_versions.c - /models/{name}: uploads, copies, the live version, configs, checkpoints, and what is deleted. */
#include "datasets.h"
#include "disk.h"
#include "job.h"
#include "json.h"
#include "models.h"
#include "routes_app.h"
#include "tree.h"
#include "version_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a call asked for, on its way. */
typedef struct errand {
    dn_work work;
    dn_app *app;
    dn_call *call; /* NULL: answered, or the client left */
    dn_known *known; /* whose folder `dir` is: it stays while it is read; NULL: none */
    char *dir;
    char *src;     /* an upload; a checkpoint's archive */
    bool upload;   /* src is ours to remove */
    char boundary[DN_BOUNDARY_MAX + 1]; /* of a multipart body; "": it is none */
    uint64_t room;
    int status; /* of the answer to what is done */
    int fd;
    uint64_t size;
    dn_recipe recipe;
    dn_error err;
} errand;

static void call_gone(void *arg) { ((errand *)arg)->call = NULL; }

/* NULL: the call has been refused. */
static errand *errand_new(dn_call *call, int status)
{
    errand *e = calloc(1, sizeof *e);
    if (!e) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
        return NULL;
    }
    *e = (errand){ .app = dn_call_app(call), .call = call, .status = status, .fd = -1 };
    dn_call_on_gone(call, call_gone, e);
    return e;
}

static void errand_free(errand *e)
{
    if (e->known)
        e->known->readers--;
    if (e->upload && e->src)
        dn_app_remove(e->app, e->src);
    free(e->src);
    free(e->dir);
    free(e);
}

/* Its folder is read; DN_E_MEMORY. */
static int read_from(errand *e, dn_known *k)
{
    e->dir = strdup(k->dir);
    if (!e->dir)
        return DN_E_MEMORY;
    e->known = k;
    k->readers++;
    return 0;
}

static void refuse(errand *e, const dn_http_error *err)
{
    dn_call *call = e->call;
    dn_call_on_gone(call, NULL, NULL);
    errand_free(e);
    dn_reply_error(call, err);
}

static void reply_card(dn_call *call, int status, const dn_known *k)
{
    dn_model_card card;
    dn_card_scratch *scratch = malloc(sizeof *scratch);
    if (!scratch) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
        return;
    }
    dn_known_card(k, &card, scratch);
    dn_route_reply(call, status, &dn_model_card_fields, &card);
    free(scratch);
}

static void done(void *arg, dn_known *k, const dn_error *err)
{
    errand *e = arg;
    if (e->call && err->code) {
        dn_reply_engine_error(e->call, err);
    } else if (e->call) {
        if (e->status == 201)
            dn_reply_header(e->call, "Location", "/models/%s", k->id);
        reply_card(e->call, e->status, k);
    }
    errand_free(e);
}

static dn_known *asked_for(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    dn_known *k = NULL;
    dn_http_error err = { 0 };
    if (dn_models_find(&k, app->models, dn_call_arg(call, 0), &err))
        dn_reply_error(call, &err);
    return k;
}

/* Who may change a model: the owner of its versions in the state; those of --models anybody who may use it. */
static dn_known *ours(dn_call *call)
{
    dn_known *k = asked_for(call);
    if (!k || dn_call_admin(call) || dn_versions_mine(dn_call_app(call), k->name, dn_call_tenant(call)))
        return k;
    dn_reply_refuse(call, DN_H_FORBIDDEN, "name", "the model %s is another's", k->name);
    return NULL;
}

/* The body by its table; false: the call has been refused. */
static bool body_of(dn_call *call, const dn_fields *t, void *out)
{
    dn_http_error err = { 0 };
    size_t n;
    const char *text = dn_call_body(call, &n);
    json_t *json = dn_json_parse(n ? text : "{}", n ? n : 2, &err);
    int rc = json ? dn_fields_parse(t, out, dn_call_arena(call), json, &err) : err.id;
    json_decref(json);
    if (rc)
        dn_reply_error(call, &err);
    return !rc;
}

/* ?wait=true waits for it; else it goes on, and 202 says where it will be. */
static void reply_later(errand *e, const char *name, bool wait)
{
    dn_call *call = e->call;
    dn_model_card card = { .has = DN_BIT(DN_CARD_NAME) | DN_BIT(DN_CARD_STATE), .name = name, .state = DN_MODEL_LOADING };
    if (wait || !call)
        return;
    e->call = NULL;
    dn_call_on_gone(call, NULL, NULL);
    dn_reply_header(call, "Location", "/models/%s", name);
    dn_route_reply(call, 202, &dn_model_card_fields, &card);
}

/* ---- PUT /models/{name}, POST /models/{name}/save --------------------------------------------------------------- */

static int unpack(void *arg, const char *dir, dn_error *err)
{
    const errand *e = arg;
    int rc = *e->boundary ? dn_multipart_unwrap(e->src, e->boundary, e->room, err) : 0;
    return rc ? rc : dn_version_unpack(e->src, e->dir, dir, &(dn_archive_limits){ e->room, e->room }, err);
}

static int copy(void *arg, const char *dir, dn_error *err) { return dn_tree_copy(((const errand *)arg)->dir, dir, NULL, err); }

void dn_route_model_put(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_model_query q;
    if (dn_route_query(call, &dn_load_query_fields, &q))
        return;
    char boundary[DN_BOUNDARY_MAX + 1];
    errand *e = dn_route_upload(call, boundary) ? NULL : errand_new(call, 201);
    if (!e)
        return;
    strcpy(e->boundary, boundary);
    dn_known *live = dn_models_live(e->app->models, dn_call_arg(call, 0)); /* bare weights are for its config */
    e->src = dn_call_take_file(call);
    e->upload = true;
    e->room = (uint64_t)dn_disk_room(e->app);
    if (!e->src || (live && read_from(e, live)))
        dn_http_fail(&err, DN_H_MEMORY, NULL, NULL);
    else if (!dn_versions_make(e->app, dn_call_arg(call, 0), dn_call_tenant(call), "upload", false, unpack, done, e, &err)) {
        reply_later(e, dn_call_arg(call, 0), q.wait);
        return;
    }
    refuse(e, &err);
}

void dn_route_model_save(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_publish_in in = { 0 };
    dn_model_query q;
    dn_known *k = dn_route_query(call, &dn_load_query_fields, &q) ? NULL : asked_for(call);
    errand *e = k && body_of(call, &dn_publish_fields, &in) ? errand_new(call, 201) : NULL;
    if (!e)
        return;
    if (read_from(e, k))
        dn_http_fail(&err, DN_H_MEMORY, NULL, NULL);
    else if (!dn_versions_make(e->app, in.as, dn_call_tenant(call), "save", false, copy, done, e, &err)) {
        reply_later(e, in.as, q.wait);
        return;
    }
    refuse(e, &err);
}

/* ---- POST /models/{name}/alias, DELETE /models/{name}@v --------------------------------------------------------- */

void dn_route_model_alias(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_alias_in in = { 0 };
    char id[DN_NAME_LEN_MAX + 32];
    dn_known *k = ours(call), *to = NULL;
    if (!k || !body_of(call, &dn_alias_fields, &in))
        return;
    snprintf(id, sizeof id, "%s@%lld", k->name, (long long)in.version);
    if (dn_models_find(&to, ((dn_app *)dn_call_app(call))->models, id, &err)) {
        snprintf(err.param, sizeof err.param, "version");
        dn_reply_error(call, &err);
        return;
    }
    errand *e = errand_new(call, 200);
    if (e && dn_versions_alias(e->app, to, done, e, &err))
        refuse(e, &err);
}

void dn_route_model_delete(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_known *k = ours(call);
    if (!k)
        return;
    if (!strchr(dn_call_arg(call, 0), '@')) {
        dn_reply_refuse(call, DN_H_INVALID, "name", "name a version: %s", k->id);
        return;
    }
    errand *e = errand_new(call, 200);
    if (e && dn_versions_delete(e->app, k, done, e, &err))
        refuse(e, &err);
}

/* ---- GET /models/{name}/config ---------------------------------------------------------------------------------- */

static void recipe_work(dn_work *work)
{
    errand *e = dn_container_of(work, errand, work);
    int rc = dn_recipe_read(&e->recipe, e->dir, &e->err);
    if (rc && !e->err.code)
        dn_fail(&e->err, rc, NULL, "%s", dn_error_text(rc));
}

static void recipe_done(dn_work *work)
{
    errand *e = dn_container_of(work, errand, work);
    dn_job_recipe recipe = { DN_HAS_ALL, e->recipe.network, e->recipe.schedule,
                             { .has = DN_BIT(DN_OBJ_PREDICTION), .prediction = e->recipe.prediction } };
    if (e->call && e->err.code)
        dn_reply_engine_error(e->call, &e->err);
    else if (e->call)
        dn_route_reply(e->call, e->status, &dn_job_recipe_fields, &recipe);
    dn_recipe_fini(&e->recipe);
    errand_free(e);
}

void dn_route_model_config(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_known *k = asked_for(call);
    errand *e = k ? errand_new(call, 200) : NULL;
    if (!e)
        return;
    if (read_from(e, k)) {
        dn_http_fail(&err, DN_H_MEMORY, NULL, NULL);
        refuse(e, &err);
        return;
    }
    e->work = (dn_work){ .work = recipe_work, .done = recipe_done };
    dn_lane_submit(e->app->server.slow, &e->work);
}

/* ---- GET /models/{name}/checkpoint ------------------------------------------------------------------------------ */

static void pack_work(dn_work *work)
{
    errand *e = dn_container_of(work, errand, work);
    struct stat st;
    int rc = dn_archive_pack(e->dir, e->src, &e->err);
    if (!rc && ((e->fd = open(e->src, O_RDONLY | O_CLOEXEC)) < 0 || fstat(e->fd, &st)))
        rc = dn_fail(&e->err, DN_E_IO, "state", "%s: %m", e->src);
    if (!rc)
        e->size = (uint64_t)st.st_size;
    if (rc && !e->err.code)
        dn_fail(&e->err, rc, NULL, "%s", dn_error_text(rc));
    unlink(e->src); /* it lives as long as the descriptor */
}

static void pack_done(dn_work *work)
{
    errand *e = dn_container_of(work, errand, work);
    if (e->call && e->err.code) {
        dn_reply_engine_error(e->call, &e->err);
    } else if (e->call) {
        dn_reply_header(e->call, "X-Model", "%s", e->known->id);
        dn_reply_fd(e->call, 200, "application/zstd", e->fd, e->size, e->app->server.fast);
        e->fd = -1;
    }
    if (e->fd >= 0)
        close(e->fd);
    errand_free(e);
}

void dn_route_model_checkpoint(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    dn_http_error err = { 0 };
    dn_known *k = asked_for(call);
    if (!k)
        return;
    if (!dn_store_folder(app->server.store)) {
        dn_reply_refuse(call, DN_H_IMPOSSIBLE, NULL, "packing needs a folder to do it in: start denoised with --state");
        return;
    }
    errand *e = errand_new(call, 200);
    if (!e)
        return;
    e->src = dn_state_fresh(app);
    if (!e->src || read_from(e, k) || dn_disk_check(app, k->file_bytes, &err)) {
        if (!err.id)
            dn_http_fail(&err, DN_H_MEMORY, NULL, NULL);
        refuse(e, &err);
        return;
    }
    e->work = (dn_work){ .work = pack_work, .done = pack_done };
    dn_lane_submit(app->server.files, &e->work);
}
