/* datasets.c - `denoise datasets`: list, show, push, delete. */
#include "datasets.h"
#include "card.h"
#include "columns.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { CELL = 48, HASH_SHOWN = 12, CLASSES_SHOWN = 8 };

/* "28x28x1", "24..32x32x3" */
static void size_text(char out[CELL], const json_t *d)
{
    double h = dn_json_number(d, "height_min"), h2 = dn_json_number(d, "height_max");
    double w = dn_json_number(d, "width_min"), w2 = dn_json_number(d, "width_max");
    int n = snprintf(out, CELL, "%.4g", h);
    if (h2 > h)
        n += snprintf(out + n, (size_t)(CELL - n), "..%.4g", h2);
    n += snprintf(out + n, (size_t)(CELL - n), "x%.4g", w);
    if (w2 > w)
        n += snprintf(out + n, (size_t)(CELL - n), "..%.4g", w2);
    snprintf(out + n, (size_t)(CELL - n), "x%.4g", dn_json_number(d, "channels"));
}

static void print_list(const json_t *list)
{
    static const char *const names[] = {
        "NAME", "HASH", "IMAGES", "SIZE", "CLASSES", "BYTES", "JOBS", "CREATED", NULL
    };
    dn_columns t;
    size_t i;
    json_t *d;
    char hash[HASH_SHOWN + 1], images[CELL], size[CELL], classes[CELL], bytes[24], jobs[CELL], created[24];
    dn_columns_init(&t, names);
    json_array_foreach(list, i, d)
    {
        snprintf(hash, sizeof hash, "%s", dn_json_text(d, "hash"));
        snprintf(images, sizeof images, "%ld", dn_json_count(d, "images"));
        size_text(size, d);
        snprintf(classes, sizeof classes, "%ld", dn_json_count(d, "n_classes"));
        snprintf(jobs, sizeof jobs, "%ld", dn_json_count(d, "pinned_by"));
        dn_columns_add(&t, (const char *const[]){ dn_json_text(d, "name"), hash, images, size, classes,
                                                  dn_text_bytes(bytes, dn_json_number(d, "bytes")), jobs,
                                                  dn_text_date(created, dn_json_number(d, "created_at")) });
    }
    dn_columns_print(&t, 0, stdout);
    dn_columns_fini(&t);
}

int dn_run_datasets(dn_args *args)
{
    json_t *answer = NULL;
    int rc = dn_ask(args, "GET", "/datasets", NULL, &answer);
    if (!rc && !args->value[DN_OPT_RAW])
        print_list(json_object_get(answer, "datasets"));
    json_decref(answer);
    return rc;
}

int dn_run_dataset(dn_args *args)
{
    json_t *answer = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME_OR_VERSION);
    if (!rc)
        rc = dn_ask_about(args, "GET", "/datasets/%", args->operand[0], NULL, &answer);
    if (!rc && !args->value[DN_OPT_RAW])
        dn_card_print(answer, stdout);
    json_decref(answer);
    return rc;
}

int dn_run_dataset_delete(dn_args *args)
{
    json_t *answer = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME_OR_VERSION);
    if (!rc)
        rc = dn_ask_about(args, "DELETE", "/datasets/%", args->operand[0], NULL, &answer);
    if (!rc)
        dn_text_printf(stdout, "%s@%s is gone\n", dn_json_text(answer, "name"), dn_json_text(answer, "hash"));
    json_decref(answer);
    return rc;
}

/* ---- push ------------------------------------------------------------------------------------------------------- */

static void report_classes(const json_t *d)
{
    const json_t *classes = json_object_get(d, "classes");
    long n = dn_json_count(d, "n_classes");
    fprintf(stderr, ", %ld class%s", n, n == 1 ? "" : "es");
    for (size_t i = 0; i < json_array_size(classes) && i < CLASSES_SHOWN; i++) {
        const char *name = json_string_value(json_array_get(classes, i));
        dn_text_printf(stderr, "%s%.60s", i ? ", " : " (", name ? name : "?");
    }
    if (json_array_size(classes))
        fputs(n > CLASSES_SHOWN ? ", ...)" : ")", stderr);
}

static void report(const json_t *d)
{
    char size[CELL], bytes[24];
    size_t i;
    json_t *file;
    const json_t *broken = json_object_get(d, "broken");
    long n_broken = dn_json_count(d, "n_broken"), listed = (long)json_array_size(broken);
    size_text(size, d);
    dn_text_printf(stderr, "%s: %ld images of %s", dn_json_text(d, "name"), dn_json_count(d, "images"), size);
    report_classes(d);
    fprintf(stderr, ", %s\n", dn_text_bytes(bytes, dn_json_number(d, "bytes")));
    if (n_broken)
        fprintf(stderr, "left out %ld file%s:\n", n_broken, n_broken == 1 ? "" : "s");
    json_array_foreach(broken, i, file)
    {
        dn_text_printf(stderr, "  %s: %s\n", dn_json_text(file, "file"), dn_json_text(file, "why"));
    }
    if (n_broken > listed && listed)
        fprintf(stderr, "  and %ld more\n", n_broken - listed);
}

int dn_dataset_send(char out[DN_DATASET_ID_MAX], dn_client *c, const dn_args *args, const char *name, dn_upload *u)
{
    char path[sizeof "/datasets/?" + DN_NAME_LEN_MAX + DN_QUERY_MAX];
    char undo[sizeof "/datasets/?importing=true" + DN_NAME_LEN_MAX];
    json_t *d = NULL;
    snprintf(undo, sizeof undo, "/datasets/%s?importing=true", name);
    u->undo = undo;
    snprintf(path, sizeof path, "/datasets/%s%s%s", name, args->query.len ? "?" : "",
             args->query.len ? args->query.data : "");
    int rc = dn_upload_put(u, c, path, &d);
    u->undo = NULL;
    const char *hash = dn_json_text(d, "hash");
    if (!rc && (!dn_id_is_plain(hash) || strcmp(dn_json_text(d, "name"), name))) {
        dn_complain("the daemon's answer has no name and hash of the dataset");
        rc = DN_EXIT_SERVER;
    } else if (!rc) {
        snprintf(out, DN_DATASET_ID_MAX, "%s@%s", name, hash);
        if (!args->value[DN_OPT_QUIET])
            report(d);
    }
    json_decref(d);
    return rc;
}

/* The name with the hash goes to standard output: it is what jobs take. */
int dn_run_dataset_push(dn_args *args)
{
    char id[DN_DATASET_ID_MAX];
    dn_client client;
    dn_upload u;
    int rc = dn_name_check(args->operand[0], DN_NAME);
    if (rc)
        return rc;
    rc = dn_upload_init(&u, args->operand + 1, args->n_operands - 1, args->value[DN_OPT_QUIET]);
    if (!rc)
        rc = dn_client_init(&client, args);
    if (!rc) {
        dn_interrupt_catch();
        rc = dn_dataset_send(id, &client, args, args->operand[0], &u);
        dn_client_fini(&client);
    }
    if (!rc)
        printf("%s\n", id);
    dn_upload_fini(&u);
    return rc;
}
