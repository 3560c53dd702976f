/* requests.c - `denoise requests`, `cancel`. */
#include "requests.h"
#include "columns.h"
#include "follow.h"

#include <jansson.h>
#include <string.h>

enum { CELL = 48 };

static void step_text(char out[CELL], const json_t *r)
{
    double steps = dn_json_number(r, "steps");
    out[0] = 0;
    if (steps > 0)
        snprintf(out, CELL, "%.0f/%.0f", dn_json_number(r, "step"), steps);
}

static void left_text(char out[CELL], const json_t *r)
{
    char time[24];
    const json_t *eta = json_object_get(r, "eta_ms");
    snprintf(out, CELL, "%s", eta ? dn_text_time(time, json_number_value(eta) / 1e3) : "");
}

void dn_requests_print(const json_t *list, int indent, FILE *out)
{
    static const char *const names[] = { "ID", "STATE", "MODEL", "N", "STEP", "LEFT", "CREATED", NULL };
    dn_columns t;
    size_t i;
    json_t *r;
    char n[CELL], step[CELL], left[CELL], created[24];
    dn_columns_init(&t, names);
    json_array_foreach(list, i, r)
    {
        snprintf(n, sizeof n, "%.0f", dn_json_number(r, "n"));
        step_text(step, r);
        left_text(left, r);
        dn_columns_add(&t,
                       (const char *const[]){ dn_json_text(r, "id"), dn_json_text(r, "state"), dn_json_text(r, "model"),
                                              n, step, left, dn_text_date(created, dn_json_number(r, "created_at")) });
    }
    dn_columns_print(&t, indent, out);
    dn_columns_fini(&t);
}

int dn_run_requests(dn_args *args)
{
    json_t *answer = NULL;
    int rc = dn_ask(args, "GET", "/requests", NULL, &answer);
    if (!rc && !args->value[DN_OPT_RAW]) {
        const char *next = dn_json_text(answer, "next");
        dn_requests_print(json_object_get(answer, "requests"), 0, stdout);
        if (*next)
            dn_text_printf(stdout, "more: --after %s\n", next);
    }
    json_decref(answer);
    return rc;
}

int dn_run_cancel(dn_args *args)
{
    json_t *answer = NULL;
    int rc = dn_id_check(args->operand[0]);
    if (!rc)
        rc = dn_ask_about(args, "DELETE", "/requests/%", args->operand[0], NULL, &answer);
    if (!rc) {
        const char *state = dn_json_text(answer, "state");
        dn_text_printf(stdout, "%s is %s\n", args->operand[0], state);
        if (strcmp(state, "cancelled")) /* it had ended before */
            rc = DN_EXIT_REFUSED;
    }
    json_decref(answer);
    return rc;
}
