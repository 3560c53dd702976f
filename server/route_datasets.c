/* route_datasets.c - /datasets: put, list, look, delete. A token with the scope admin sees and deletes everybody's. */
#include "datasets.h"
#include "job.h"
#include "jobs.h"
#include "routes_app.h"

#include <stdlib.h>
#include <string.h>

enum { CLASSES_SHOWN = 1000 };

/* Of a card, what only some answers have; and with it what is said of stored datasets alone. */
#define SOMETIMES                                                                                                           \
    (DN_BIT(DN_DATASET_CARD_N_BROKEN) | DN_BIT(DN_DATASET_CARD_BROKEN) | DN_BIT(DN_DATASET_CARD_CANCELLED) |                \
     DN_BIT(DN_DATASET_CARD_IMPORT))
#define ABSENT (SOMETIMES | DN_BIT(DN_DATASET_CARD_CLASSES) | DN_BIT(DN_DATASET_CARD_PINNED_BY))

static bool may_see(const dn_call *call, const char *owner) { return dn_call_admin(call) || !strcmp(owner, dn_call_tenant(call)); }

static void card_of(const dn_stored *s, dn_dataset_card *card)
{
    int n = s->n_classes < CLASSES_SHOWN ? s->n_classes : CLASSES_SHOWN;
    uint64_t absent = SOMETIMES;
    if (!s->classes)
        absent |= DN_BIT(DN_DATASET_CARD_CLASSES);
    *card = (dn_dataset_card){ .has = DN_HAS_ALL & ~absent,
                               .name = s->name,
                               .hash = s->hash,
                               .images = s->images,
                               .bytes = s->bytes,
                               .channels = s->channels,
                               .height_min = s->height_min,
                               .height_max = s->height_max,
                               .width_min = s->width_min,
                               .width_max = s->width_max,
                               .classes = { (const char *const *)s->classes, n },
                               .n_classes = s->n_classes,
                               .created_at = s->created_at,
                               .pinned_by = s->pins };
}

static void reply_card(dn_call *call, int status, const dn_stored *s)
{
    dn_dataset_card card;
    card_of(s, &card);
    dn_route_reply(call, status, &dn_dataset_card_fields, &card);
}

/* The dataset that the path names; NULL: the call has been refused. */
static dn_stored *asked_for(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_stored *s = NULL;
    if (dn_datasets_find(&s, dn_call_app(call), dn_call_arg(call, 0), &err)) {
        dn_reply_error(call, &err);
        return NULL;
    }
    if (may_see(call, s->owner))
        return s;
    dn_reply_refuse(call, DN_H_FORBIDDEN, "name", "the dataset %s is another's", s->name);
    return NULL;
}

/* ---- what is on its way ----------------------------------------------------------------------------------------- */

static void body_card(const dn_call *upload, dn_import_card *card)
{
    dn_body_progress body;
    dn_call_body_progress(upload, &body);
    *card = (dn_import_card){ .has = DN_HAS_ALL & ~(body.announced ? 0 : DN_BIT(DN_IMPORT_TOTAL)),
                              .name = dn_call_arg(upload, 0),
                              .state = DN_IMPORT_RECEIVING,
                              .bytes = body.received,
                              .total = body.announced,
                              .started_at = dn_unix_now() - body.age_s };
}

/* What the caller may see of it, `name` not NULL: of that name alone. malloc'ed, *n of them; NULL: out of memory. */
static dn_import_card *imports_of(dn_call *call, const char *name, int *n)
{
    dn_app *app = dn_call_app(call);
    int room = 1;
    for (dn_arrival *a = NULL; (a = dn_datasets_importing(app, a));)
        room++;
    for (const dn_call *c = NULL; (c = dn_call_uploading(call, c, DN_ROUTE_DATASET_PUT));)
        room++;
    dn_import_card *card = calloc((size_t)room, sizeof *card);
    *n = 0;
    if (!card)
        return NULL;
    for (dn_arrival *a = NULL; (a = dn_datasets_importing(app, a));) {
        dn_arrival_card(a, &card[*n]);
        *n += may_see(call, dn_arrival_owner(a)) && (!name || !strcmp(name, card[*n].name));
    }
    for (const dn_call *c = NULL; (c = dn_call_uploading(call, c, DN_ROUTE_DATASET_PUT));) {
        body_card(c, &card[*n]);
        *n += may_see(call, dn_call_tenant(c)) && (!name || !strcmp(name, card[*n].name));
    }
    return card;
}

/* The bare name means what is stored, and says what is on its way beside it. */
void dn_route_dataset(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_stored *s = NULL;
    int n = 0;
    dn_import_card *imports = imports_of(call, dn_call_arg(call, 0), &n);
    dn_dataset_card card = { .has = DN_HAS_ALL & ~ABSENT, .name = dn_call_arg(call, 0), .hash = "", .state = DN_DATASET_IMPORTING };
    bool found = !dn_datasets_find(&s, dn_call_app(call), dn_call_arg(call, 0), &err) || !n;
    if (found && !(s = asked_for(call))) {
        free(imports);
        return;
    }
    if (s)
        card_of(s, &card);
    if (n) {
        card.has |= DN_BIT(DN_DATASET_CARD_IMPORT);
        card.import = imports[n - 1];
    }
    dn_route_reply(call, 200, &dn_dataset_card_fields, &card);
    free(imports);
}

void dn_route_datasets(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    int n = 0;
    for (dn_stored *s = NULL; (s = dn_datasets_next(app, s));)
        n++;
    dn_dataset_card *card = calloc(n + 1, sizeof *card);
    dn_dataset_list list = { DN_HAS_ALL, { card, 0 }, { 0 } };
    dn_import_card *imports = imports_of(call, NULL, &list.imports.n);
    list.imports.v = imports;
    for (dn_stored *s = NULL; card && (s = dn_datasets_next(app, s));) {
        if (may_see(call, s->owner))
            card_of(s, &card[list.datasets.n++]);
    }
    if (card && imports)
        dn_route_reply(call, 200, &dn_dataset_list_fields, &list);
    else
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory for the list");
    free(imports);
    free(card);
}

/* ---- a call that waits ------------------------------------------------------------------------------------------ */

typedef struct waiting {
    dn_call *call; /* NULL: the client left; what it asked for is done all the same */
} waiting;

static void call_gone(void *arg) { ((waiting *)arg)->call = NULL; }

/* NULL: the call has been refused. */
static waiting *wait_for(dn_call *call)
{
    waiting *w = calloc(1, sizeof *w);
    if (!w) {
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "no memory");
        return NULL;
    }
    w->call = call;
    dn_call_on_gone(call, call_gone, w);
    return w;
}

static void reply_arrival(dn_call *call, const dn_arrival *a)
{
    const dn_import_report *report = dn_arrival_report(a);
    dn_broken_file broken[DN_DATASET_REPORT_MAX];
    dn_dataset_card card;
    if (dn_arrival_error(a)->code) {
        dn_reply_engine_error(call, dn_arrival_error(a));
        return;
    }
    for (int i = 0; i < report->n_listed; i++)
        broken[i] = (dn_broken_file){ DN_HAS_ALL, report->broken[i].file, report->broken[i].why };
    card_of(dn_arrival_stored(a), &card);
    card.has |= DN_BIT(DN_DATASET_CARD_N_BROKEN) | DN_BIT(DN_DATASET_CARD_BROKEN);
    card.n_broken = report->n_broken;
    card.broken = (dn_items){ broken, report->n_listed };
    dn_reply_header(call, "Location", "/datasets/%s@%s", card.name, card.hash);
    dn_route_reply(call, dn_arrival_fresh(a) ? 201 : 200, &dn_dataset_card_fields, &card);
}

static void imported(void *arg, const dn_arrival *a)
{
    waiting *w = arg;
    if (w->call)
        reply_arrival(w->call, a);
    free(w);
}

void dn_route_dataset_put(dn_call *call)
{
    dn_app *app = dn_call_app(call);
    const char *name = dn_call_arg(call, 0);
    dn_dataset_query q;
    char boundary[DN_BOUNDARY_MAX + 1];
    dn_http_error err = { 0 };
    if (dn_route_query(call, &dn_dataset_query_fields, &q))
        return;
    if (!dn_name_ok(name)) {
        dn_reply_refuse(call, DN_H_INVALID, "name", "the name of a dataset matches [a-z0-9][a-z0-9._-]{0,63}");
        return;
    }
    if (dn_route_upload(call, boundary))
        return;
    waiting *w = wait_for(call);
    if (!w)
        return;
    dn_body_progress body;
    dn_call_body_progress(call, &body);
    if (dn_datasets_import(app, name, dn_call_tenant(call), dn_call_take_file(call), boundary, q.skip_broken, &body, imported, w, &err)) {
        free(w);
        dn_call_on_gone(call, NULL, NULL);
        dn_reply_error(call, &err);
    }
}

static void stopped(void *arg)
{
    waiting *w = arg;
    dn_dataset_card card = { .has = (DN_HAS_ALL & ~ABSENT & ~DN_BIT(DN_DATASET_CARD_STATE)) | DN_BIT(DN_DATASET_CARD_CANCELLED),
                             .name = w->call ? dn_call_arg(w->call, 0) : NULL,
                             .hash = "",
                             .cancelled = true };
    if (w->call)
        dn_route_reply(w->call, 200, &dn_dataset_card_fields, &card);
    free(w);
}

/* The bare name means the newest: that is the import under way, if there is one. */
static void stop_import(dn_call *call, dn_arrival *a)
{
    dn_http_error err = { 0 };
    waiting *w = wait_for(call);
    if (w && dn_arrival_stop(a, stopped, w, &err)) {
        free(w);
        dn_call_on_gone(call, NULL, NULL);
        dn_reply_error(call, &err);
    }
}

static void deleted(void *arg, const dn_stored *s, const dn_error *err)
{
    waiting *w = arg;
    if (w->call && err->code)
        dn_reply_engine_error(w->call, err);
    else if (w->call)
        reply_card(w->call, 200, s);
    free(w);
}

void dn_route_dataset_delete(dn_call *call)
{
    dn_http_error err = { 0 };
    dn_dataset_delete_query q;
    if (dn_route_query(call, &dn_dataset_delete_query_fields, &q))
        return;
    dn_arrival *a = dn_datasets_arriving(dn_call_app(call), dn_call_arg(call, 0), dn_call_admin(call) ? NULL : dn_call_tenant(call));
    if (a) {
        stop_import(call, a);
        return;
    }
    if (q.importing) {
        dn_reply_refuse(call, DN_H_NOT_FOUND, "name", "no import of %.64s is under way", dn_call_arg(call, 0));
        return;
    }
    dn_stored *s = asked_for(call);
    waiting *w = s ? wait_for(call) : NULL;
    if (w && dn_datasets_delete(dn_call_app(call), s, deleted, w, &err)) {
        free(w);
        dn_call_on_gone(call, NULL, NULL);
        dn_reply_error(call, &err);
    }
}
