/* jobs.c - `denoise jobs`: list, show, follow, pause, resume, cancel, save, set, checkpoints, samples, publish,
 * metrics. */
#include "card.h"
#include "columns.h"
#include "download.h"
#include "job_follow.h"
#include "samples.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { CELL = 48 };

/* Of a loss, which may be null. */
static const char *loss_text(char out[24], const json_t *loss)
{
    out[0] = 0;
    if (json_is_number(loss))
        snprintf(out, 24, "%.4g", json_number_value(loss));
    return out;
}

static void print_list(const json_t *list)
{
    static const char *const names[] = { "ID", "STATE", "NAME", "DATASET", "STEP", "LOSS", "LEFT", "CREATED", NULL };
    dn_columns t;
    size_t i;
    json_t *j;
    char step[CELL], loss[24], left[24], created[24];
    dn_columns_init(&t, names);
    json_array_foreach(list, i, j)
    {
        const json_t *eta = json_object_get(j, "eta_s");
        const char *dataset = dn_json_text(j, "dataset");
        char data[CELL];
        snprintf(data, sizeof data, "%.*s", (int)strcspn(dataset, "@"), dataset);
        snprintf(step, sizeof step, "%ld/%ld", dn_json_count(j, "step"), dn_json_count(j, "steps"));
        if (json_is_number(eta))
            dn_text_time(left, json_number_value(eta));
        else
            left[0] = 0;
        dn_columns_add(&t, (const char *const[]){ dn_json_text(j, "id"), dn_json_text(j, "state"),
                                                  dn_json_text(j, "name"), data, step,
                                                  loss_text(loss, json_object_get(j, "loss")), left,
                                                  dn_text_date(created, dn_json_number(j, "created_at")) });
    }
    dn_columns_print(&t, 0, stdout);
    dn_columns_fini(&t);
}

int dn_run_jobs(dn_args *args)
{
    json_t *answer = NULL;
    int rc = dn_ask(args, "GET", "/jobs", NULL, &answer);
    if (!rc && !args->value[DN_OPT_RAW]) {
        const char *next = dn_json_text(answer, "next");
        print_list(json_object_get(answer, "jobs"));
        if (*next)
            dn_text_printf(stdout, "more: --after %s\n", next);
    }
    json_decref(answer);
    return rc;
}

/* Ask about the job that the first operand names. */
static int ask(const dn_args *args, const char *method, const char *path, const json_t *body, json_t **out)
{
    int rc = dn_id_check(args->operand[0]);
    return rc ? rc : dn_ask_about(args, method, path, args->operand[0], body, out);
}

int dn_run_job(dn_args *args)
{
    json_t *j = NULL;
    int rc = ask(args, "GET", "/jobs/%", NULL, &j);
    if (!rc && !args->value[DN_OPT_RAW])
        dn_card_print(j, stdout);
    json_decref(j);
    return rc;
}

static void print_checkpoints(const json_t *list)
{
    static const char *const names[] = { "STEP", "BYTES", "EVAL LOSS", "BEST", "CREATED", NULL };
    dn_columns t;
    size_t i;
    json_t *c;
    char step[CELL], bytes[24], loss[24], created[24];
    dn_columns_init(&t, names);
    json_array_foreach(list, i, c)
    {
        snprintf(step, sizeof step, "%ld", dn_json_count(c, "step"));
        dn_columns_add(&t, (const char *const[]){ step, dn_text_bytes(bytes, dn_json_number(c, "bytes")),
                                                  loss_text(loss, json_object_get(c, "eval_loss")),
                                                  dn_json_true(c, "best") ? "best" : "",
                                                  dn_text_date(created, dn_json_number(c, "created_at")) });
    }
    dn_columns_print(&t, 0, stdout);
    dn_columns_fini(&t);
}

int dn_run_job_checkpoints(dn_args *args)
{
    json_t *answer = NULL;
    int rc = ask(args, "GET", "/jobs/%/checkpoints", NULL, &answer);
    if (!rc && !args->value[DN_OPT_RAW])
        print_checkpoints(json_object_get(answer, "checkpoints"));
    json_decref(answer);
    return rc;
}

/* All of them into the folder. */
static int save_samples(dn_client *c, const dn_args *args, const char *folder)
{
    dn_samples s;
    int rc = dn_samples_init(&s, c, args->operand[0], folder);
    if (!rc)
        rc = dn_samples_save(&s, false, false);
    if (rc == DN_EXIT_INTERRUPTED)
        dn_complain("interrupted after %ld previews", s.saved);
    else if (!rc && !args->value[DN_OPT_QUIET])
        fprintf(stderr, "saved %ld preview%s in %s\n", s.saved, s.saved == 1 ? "" : "s", folder);
    dn_samples_fini(&s);
    return rc;
}

int dn_run_job_samples(dn_args *args)
{
    dn_client client;
    const char *folder = args->value[DN_OPT_FOLDER];
    int rc = dn_id_check(args->operand[0]);
    if (!rc && folder && args->value[DN_OPT_RAW]) {
        dn_complain("--raw is for the list, -o for the pictures");
        rc = DN_EXIT_USAGE;
    }
    if (!rc && folder)
        rc = dn_samples_folder(folder);
    if (!rc)
        rc = dn_client_init(&client, args);
    if (rc)
        return rc;
    dn_interrupt_catch();
    rc = folder ? save_samples(&client, args, folder)
                : dn_samples_print(&client, args->operand[0], args->value[DN_OPT_RAW]);
    dn_client_fini(&client);
    return rc;
}

int dn_run_job_follow(dn_args *args)
{
    dn_client client;
    dn_output_to output;
    const char *folder = args->value[DN_OPT_FOLDER];
    int rc = dn_id_check(args->operand[0]);
    if (!rc && folder)
        rc = dn_samples_folder(folder);
    if (rc)
        return rc;
    rc = dn_output_init_shown(&output, args);
    if (!rc)
        rc = dn_client_init(&client, args);
    if (!rc) {
        dn_interrupt_catch();
        rc = dn_job_follow(&client, &output, args->operand[0], folder, false);
        dn_client_fini(&client);
    }
    dn_output_fini(&output);
    return rc;
}

/* ---- what changes it -------------------------------------------------------------------------------------------- */

/* `later`: what is still to come when the job is running yet; NULL: nothing is. */
static int change(const dn_args *args, const char *method, const char *path, const json_t *body, const char *later)
{
    json_t *j = NULL;
    int rc = ask(args, method, path, body, &j);
    if (!rc && later && !strcmp(dn_json_text(j, "state"), "running"))
        dn_text_printf(stdout, "%s %s at the end of its step, after step %ld of %ld\n", args->operand[0], later,
                       dn_json_count(j, "step"), dn_json_count(j, "steps"));
    else if (!rc)
        dn_text_printf(stdout, "%s is %s at step %ld of %ld, share %.3g, priority %s\n", args->operand[0],
                       dn_json_text(j, "state"), dn_json_count(j, "step"), dn_json_count(j, "steps"),
                       dn_json_number(j, "train_share"), dn_json_text(j, "priority"));
    json_decref(j);
    return rc;
}

int dn_run_job_pause(dn_args *args) { return change(args, "POST", "/jobs/%/pause", NULL, "pauses"); }
int dn_run_job_resume(dn_args *args) { return change(args, "POST", "/jobs/%/resume", NULL, NULL); }
int dn_run_job_cancel(dn_args *args) { return change(args, "POST", "/jobs/%/cancel", NULL, "is cancelled"); }
int dn_run_job_save(dn_args *args) { return change(args, "POST", "/jobs/%/checkpoints", NULL, "is saved"); }

int dn_run_job_set(dn_args *args)
{
    if (json_object_size(args->request))
        return change(args, "PATCH", "/jobs/%", args->request, NULL);
    dn_complain("what is to be set? --train-share, --priority, or both");
    return DN_EXIT_USAGE;
}

int dn_run_job_publish(dn_args *args)
{
    json_t *j = NULL, *body = NULL;
    int rc = dn_name_check(args->operand[1], DN_NAME);
    if (!rc && !(body = json_pack("{s:s}", "as", args->operand[1])))
        rc = DN_EXIT_FAILED;
    if (!rc)
        rc = ask(args, "POST", "/jobs/%/publish", body, &j);
    if (!rc)
        dn_text_printf(stdout, "%s\n", dn_json_text(j, "published"));
    json_decref(body);
    json_decref(j);
    return rc;
}

int dn_run_job_metrics(dn_args *args)
{
    int rc = dn_id_check(args->operand[0]);
    return rc ? rc : dn_fetch(args, "/jobs/%/metrics.csv", args->operand[0]);
}
