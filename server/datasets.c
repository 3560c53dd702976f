/* datasets.c - the list of datasets: what the store knows, found by name and hash. */
#include "datasets.h"
#include "json.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

enum { HASH_PREFIX_MIN = 8 };

struct dn_datasets {
    dn_link stored;   /* newest first */
    dn_link arrivals; /* datasets_upload.c's */
};

void dn_stored_free(dn_stored *s)
{
    if (!s)
        return;
    for (int i = 0; s->classes && i < s->n_classes; i++)
        free(s->classes[i]);
    free(s->classes);
    free(s->dir);
    free(s);
}

static int64_t number(const json_t *info, const char *key) { return json_integer_value(json_object_get(info, key)); }

static int read_classes(dn_stored *s, const json_t *names)
{
    s->n_classes = (int)json_array_size(names) > s->n_classes ? (int)json_array_size(names) : s->n_classes;
    if (!json_array_size(names))
        return 0;
    s->classes = calloc(s->n_classes, sizeof *s->classes);
    for (int i = 0; s->classes && i < s->n_classes; i++) {
        const char *name = json_string_value(json_array_get(names, i));
        s->classes[i] = strdup(name ? name : "");
        if (!s->classes[i])
            return DN_E_MEMORY;
    }
    return s->classes ? 0 : DN_E_MEMORY;
}

/* What dn_stored_info wrote. */
static int read_info(dn_stored *s, const char *text)
{
    json_t *info = json_loads(text, 0, NULL);
    s->images = number(info, "images");
    s->bytes = number(info, "bytes");
    s->channels = (int)number(info, "channels");
    s->height_min = (int)number(info, "height_min");
    s->height_max = (int)number(info, "height_max");
    s->width_min = (int)number(info, "width_min");
    s->width_max = (int)number(info, "width_max");
    s->n_classes = (int)number(info, "n_classes");
    int rc = read_classes(s, json_object_get(info, "classes"));
    json_decref(info);
    return rc;
}

char *dn_stored_info(const dn_dataset_info *d)
{
    json_t *info = json_pack("{s:I,s:I,s:i,s:i,s:i,s:i,s:i,s:i}", "images", (json_int_t)d->n, "bytes", (json_int_t)d->bytes,
                             "channels", d->channels, "height_min", d->height_min, "height_max", d->height_max, "width_min",
                             d->width_min, "width_max", d->width_max, "n_classes", d->n_classes);
    json_t *names = d->classes ? json_array() : NULL;
    for (int i = 0; names && i < d->n_classes; i++)
        json_array_append_new(names, json_string(d->classes[i]));
    if (names)
        json_object_set_new(info, "classes", names);
    char *text = info ? json_dumps(info, JSON_COMPACT) : NULL;
    json_decref(info);
    return text;
}

dn_stored *dn_stored_new(const char *folder, const char *name, const char *hash, const char *owner, const char *path, const char *info)
{
    dn_stored *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    dn_link_init(&s->link);
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(s->hash, sizeof s->hash, "%s", hash);
    snprintf(s->owner, sizeof s->owner, "%s", owner);
    if (asprintf(&s->dir, "%s/%s", folder, path) < 0)
        s->dir = NULL;
    if (!s->dir || read_info(s, info)) {
        dn_stored_free(s);
        return NULL;
    }
    return s;
}

void dn_datasets_add(dn_app *app, dn_stored *s)
{
    dn_link *first = app->datasets->stored.next;
    s->link.next = first;
    s->link.prev = first->prev;
    first->prev->next = &s->link;
    first->prev = &s->link;
}

static const char *text_at(sqlite3_stmt *q, int i)
{
    const char *t = (const char *)sqlite3_column_text(q, i);
    return t ? t : "";
}

int dn_datasets_open(dn_app *app, dn_error *err)
{
    app->datasets = calloc(1, sizeof *app->datasets);
    if (!app->datasets)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the list of datasets");
    dn_link_init(&app->datasets->stored);
    dn_link_init(&app->datasets->arrivals);
    const char *folder = dn_store_folder(app->server.store);
    sqlite3_stmt *q = NULL;
    int rc = dn_sql_query(&q, dn_store_db(app->server.store), err,
                          "SELECT seq, name, hash, owner, path, info, created FROM datasets ORDER BY created, seq", "");
    while (!rc && dn_sql_next(q, &rc, err)) {
        dn_stored *s = dn_stored_new(folder, text_at(q, 1), text_at(q, 2), text_at(q, 3), text_at(q, 4), text_at(q, 5));
        if (!s) {
            rc = dn_fail(err, DN_E_MEMORY, NULL, "no memory for the list of datasets");
            break;
        }
        s->seq = sqlite3_column_int64(q, 0);
        s->created_at = sqlite3_column_double(q, 6);
        dn_datasets_add(app, s);
    }
    dn_sql_end(q);
    return rc ? rc : dn_datasets_sweep(app, err);
}

void dn_datasets_close(dn_app *app)
{
    if (!app->datasets)
        return; /* the start failed before */
    DN_LINK_EACH(l, &app->datasets->stored) { dn_stored_free(DN_LINK_OF(l, dn_stored, link)); }
    free(app->datasets);
    app->datasets = NULL;
}

dn_link *dn_datasets_arrivals(dn_app *app) { return &app->datasets->arrivals; }

dn_stored *dn_datasets_next(dn_app *app, dn_stored *s)
{
    dn_link *l = s ? s->link.next : app->datasets->stored.next;
    return l == &app->datasets->stored ? NULL : DN_LINK_OF(l, dn_stored, link);
}

int dn_datasets_find(dn_stored **out, dn_app *app, const char *ref, dn_http_error *err)
{
    const char *at = strchr(ref, '@');
    size_t n = at ? (size_t)(at - ref) : strlen(ref), n_hash = at ? strlen(at + 1) : 0;
    if (at && n_hash < HASH_PREFIX_MIN)
        return dn_http_fail(err, DN_H_INVALID, "dataset", "give at least %d digits of the hash", HASH_PREFIX_MIN);
    dn_stored *found = NULL;
    DN_LINK_EACH(l, &app->datasets->stored)
    {
        dn_stored *s = DN_LINK_OF(l, dn_stored, link);
        if (strlen(s->name) != n || memcmp(s->name, ref, n) || (at && strncmp(s->hash, at + 1, n_hash)))
            continue;
        if (found && at && strcmp(found->hash, s->hash))
            return dn_http_fail(err, DN_H_INVALID, "dataset", "%s is more than one dataset: give more of the hash", ref);
        found = found ? found : s;
    }
    if (!found)
        return dn_http_fail(err, DN_H_NOT_FOUND, "dataset", "no dataset %s%s", ref,
                            !at && dn_datasets_arriving(app, ref, NULL) ? " yet: it is being imported" : "");
    *out = found;
    return 0;
}
