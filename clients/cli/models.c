/* models.c - `denoise models`, `load`, `unload`. */
#include "card.h"
#include "columns.h"
#include "http.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>

enum { CELL = 48 };

/* "1.66 M" */
static void count_text(char out[CELL], double n)
{
    if (n <= 0)
        out[0] = 0;
    else if (n < 1e6)
        snprintf(out, CELL, "%.0f k", n / 1e3);
    else
        snprintf(out, CELL, "%.2f M", n / 1e6);
}

static void size_text(char out[CELL], const json_t *m)
{
    double h = dn_json_number(m, "height"), w = dn_json_number(m, "width");
    out[0] = 0;
    if (h > 0 && w > 0)
        snprintf(out, CELL, "%.0fx%.0fx%.0f", h, w, dn_json_number(m, "channels"));
}

static void ms_text(char out[CELL], const json_t *m)
{
    double ms = dn_json_number(m, "ms_per_row");
    out[0] = 0;
    if (ms > 0)
        snprintf(out, CELL, "%.3g ms", ms);
}

static void print_list(const json_t *list)
{
    static const char *const names[] = {
        "NAME", "STATE", "SIZE", "PARAMETERS", "A ROW", "SAMPLER", "DESCRIPTION", NULL
    };
    dn_columns t;
    size_t i;
    json_t *m;
    char size[CELL], parameters[CELL], ms[CELL];
    dn_columns_init(&t, names);
    json_array_foreach(list, i, m)
    {
        size_text(size, m);
        count_text(parameters, dn_json_number(m, "parameters"));
        ms_text(ms, m);
        dn_columns_add(&t, (const char *const[]){ dn_json_text(m, "name"), dn_json_text(m, "state"), size, parameters,
                                                  ms, dn_json_text(m, "sampler"), dn_json_text(m, "description") });
    }
    dn_columns_print(&t, 0, stdout);
    dn_columns_fini(&t);
}

int dn_run_models(dn_args *args)
{
    json_t *answer = NULL;
    bool one = args->n_operands;
    int rc = dn_ask_about(args, "GET", one ? "/models/%" : "/models", one ? args->operand[0] : "", NULL, &answer);
    if (!rc && !args->value[DN_OPT_RAW]) {
        if (one)
            dn_card_print(answer, stdout);
        else
            print_list(json_object_get(answer, "models"));
    }
    json_decref(answer);
    return rc;
}

static int change(const dn_args *args, const char *format)
{
    json_t *m = NULL;
    int rc = dn_ask_about(args, "POST", format, args->operand[0], NULL, &m);
    if (!rc)
        dn_text_printf(stdout, "%s is %s\n", dn_json_text(m, "name"), dn_json_text(m, "state"));
    json_decref(m);
    return rc;
}

int dn_run_load(dn_args *args) { return change(args, "/models/%/load"); }
int dn_run_unload(dn_args *args) { return change(args, "/models/%/unload"); }
