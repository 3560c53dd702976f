/* route_models.c - /models: what is known and loaded; load and unload. */
#include "models.h"
#include "requests.h"
#include "routes_app.h"

#include <stdlib.h>

static dn_known *asked_for(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    dn_known *k = NULL;
    dn_http_error err = { 0 };
    if (dn_models_find(&k, app->models, dn_call_arg(call, 0), &err)) {
        dn_reply_error(call, &err);
        return NULL;
    }
    return k;
}

/* `error` is scratch that the card points into. */
static void add_attempt(dn_model_card *card, const dn_attempt *a, dn_http_error *error)
{
    card->has |= DN_BIT(DN_CARD_ATTEMPT);
    card->attempt = (dn_attempt_card){ .has = DN_HAS_ALL & ~DN_BIT(DN_ATTEMPT_ERROR),
                                       .state = a->error.code ? DN_MODEL_FAILED : DN_MODEL_LOADING,
                                       .source = a->source,
                                       .created_at = a->created_at };
    if (!a->error.code)
        return;
    dn_http_fail_engine(error, dn_error_name(a->error.code), a->error.param, a->error.message);
    card->attempt.has |= DN_BIT(DN_ATTEMPT_ERROR);
    card->attempt.error = (dn_error_body){ DN_HAS_ALL, error->type, error->code, *error->param ? error->param : NULL, error->message };
}

static void reply_card(dn_call *call, int status, const dn_known *k)
{
    dn_model_card card;
    dn_card_scratch scratch;
    dn_known_card(k, &card, &scratch);
    dn_route_reply(call, status, &dn_model_card_fields, &card);
}

/* A name that has no version is known to who tried to make one. */
void dn_route_model(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    const char *name = dn_call_arg(call, 0);
    const dn_attempt *a = dn_versions_attempt(app, name, dn_call_admin(call) ? NULL : dn_call_tenant(call));
    dn_known *k = NULL;
    dn_card_scratch scratch;
    dn_http_error err = { 0 }, why;
    dn_model_card card = { .has = DN_BIT(DN_CARD_NAME) | DN_BIT(DN_CARD_STATE) | DN_BIT(DN_CARD_VERSIONS), .name = name };
    if (dn_models_find(&k, app->models, name, &err) && !a) {
        dn_reply_error(call, &err);
        return;
    }
    if (k)
        dn_known_card(k, &card, &scratch);
    if (a)
        add_attempt(&card, a, &why);
    if (!k)
        card.state = card.attempt.state;
    if (!k && a->error.code) {
        card.has |= DN_BIT(DN_CARD_ERROR);
        card.error = why.message;
    }
    dn_route_reply(call, 200, &dn_model_card_fields, &card);
}

void dn_route_models(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    int n = dn_models_count(app->models);
    dn_model_card *card = calloc(n + 1, sizeof *card);
    dn_card_scratch *scratch = calloc(n + 1, sizeof *scratch);
    dn_model_list list = { DN_HAS_ALL, { card, n } };
    list.models.n = 0;
    for (int i = 0; card && scratch && i < n; i++) {
        if (dn_models_at(app->models, i)->live)
            dn_known_card(dn_models_at(app->models, i), &card[list.models.n++], &scratch[i]);
    }
    if (card && scratch)
        dn_route_reply(call, 200, &dn_model_list_fields, &list);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the list");
    free(card);
    free(scratch);
}

/* What was asked for is under way, or done already: 202, or the answer when it is settled. */
static void reply_settled(dn_call *call, dn_known *k, bool wait)
{
    bool moving = k->state == DN_MODEL_LOADING || k->state == DN_MODEL_UNLOADING;
    if (moving && wait) {
        if (dn_models_await(k, call))
            dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
        return;
    }
    if (moving)
        dn_reply_header(call, "Location", "/models/%s", k->name);
    dn_http_error err = { 0 };
    if (k->state != DN_MODEL_FAILED) {
        reply_card(call, moving ? 202 : 200, k);
        return;
    }
    dn_known_failed(k, &err);
    dn_reply_error(call, &err);
}

void dn_route_model_load(dn_call *call)
{
    dn_model_query q;
    dn_http_error err = { 0 };
    dn_known *k = dn_route_query(call, &dn_load_query_fields, &q) ? NULL : asked_for(call);
    if (!k)
        return;
    if (dn_models_load(dn_call_app(call), k, &err))
        dn_reply_error(call, &err);
    else
        reply_settled(call, k, q.wait);
}

void dn_route_model_unload(dn_call *call)
{
    dn_model_query q;
    dn_http_error err = { 0 };
    dn_known *k = dn_route_query(call, &dn_unload_query_fields, &q) ? NULL : asked_for(call);
    if (!k)
        return;
    if (dn_models_unload(dn_call_app(call), k, &err)) {
        dn_reply_error(call, &err);
        return;
    }
    if (q.force)
        dn_requests_cancel_all(dn_call_app(call), k);
    reply_settled(call, k, q.wait);
}
