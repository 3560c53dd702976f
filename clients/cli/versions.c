/* versions.c - `denoise models push`, `pull`, `config`, `alias`, `save`, `delete`: versions of models. */
#include "download.h"
#include "upload.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "m@3 is there; m@1 is live": `as` is the newest. */
static void say_versions(const json_t *model, const char *name)
{
    json_t *v;
    size_t i;
    json_int_t newest = 0, live = 0;
    json_array_foreach(json_object_get(model, "versions"), i, v)
    {
        json_int_t n = json_integer_value(json_object_get(v, "version"));
        newest = n > newest ? n : newest;
        live = dn_json_true(v, "live") ? n : live;
    }
    printf("%s@%" JSON_INTEGER_FORMAT "\n", name, newest);
    if (live && newest != live)
        fprintf(stderr,
                "%s@%" JSON_INTEGER_FORMAT " stays live; `denoise models alias %s@%" JSON_INTEGER_FORMAT
                "` changes it\n",
                name, live, name, newest);
}

int dn_run_model_push(dn_args *args)
{
    char path[DN_NAME_LEN_MAX + 32];
    dn_client client;
    dn_upload u;
    json_t *m = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "/models/%s?wait=true", args->operand[0]); /* else nobody learns that a check failed */
    rc = dn_upload_init(&u, args->operand + 1, args->n_operands - 1, args->value[DN_OPT_QUIET]);
    if (!rc)
        rc = dn_client_init(&client, args);
    if (!rc) {
        dn_interrupt_catch();
        rc = dn_upload_put(&u, &client, path, &m);
        dn_client_fini(&client);
    }
    if (!rc)
        say_versions(m, args->operand[0]);
    dn_upload_fini(&u);
    json_decref(m);
    return rc;
}

int dn_run_model_pull(dn_args *args)
{
    const char *to = args->value[DN_OPT_FILE];
    int rc = dn_name_check(args->operand[0], DN_NAME_OR_VERSION);
    if (!rc && (!to || !strcmp(to, "-")) && isatty(STDOUT_FILENO)) {
        dn_complain("-o FILE is needed: a tar.zst is nothing for a terminal");
        rc = DN_EXIT_USAGE;
    }
    return rc ? rc : dn_fetch(args, "/models/%/checkpoint", args->operand[0]);
}

/* To be changed by hand, so a member a line. */
int dn_run_model_config(dn_args *args)
{
    json_t *job = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME_OR_VERSION);
    if (!rc)
        rc = dn_ask_about(args, "GET", "/models/%/config", args->operand[0], NULL, &job);
    if (!rc && !args->value[DN_OPT_RAW]) {
        json_dumpf(job, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(17));
        putchar('\n');
    }
    json_decref(job);
    return rc;
}

int dn_run_model_save(dn_args *args)
{
    json_t *m = NULL, *body = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME_OR_VERSION);
    if (!rc)
        rc = dn_name_check(args->operand[1], DN_NAME);
    if (!rc && !(body = json_pack("{s:s}", "as", args->operand[1])))
        rc = DN_EXIT_FAILED;
    if (!rc)
        rc = dn_ask_about(args, "POST", "/models/%/save?wait=true", args->operand[0], body, &m);
    if (!rc)
        say_versions(m, args->operand[1]);
    json_decref(body);
    json_decref(m);
    return rc;
}

int dn_run_model_alias(dn_args *args)
{
    json_t *m = NULL, *body = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME_VERSION);
    if (rc)
        return rc;
    char *name = strdup(args->operand[0]), *end = NULL;
    char *version = name ? strchr(name, '@') : NULL;
    if (version) {
        *version++ = 0;
        body = json_pack("{s:I}", "version", (json_int_t)strtoll(version, &end, 10));
    }
    if (body && *end) {
        dn_complain("a version is a number, got \"%.40s\"", version);
        rc = DN_EXIT_USAGE;
    } else {
        rc = body ? dn_ask_about(args, "POST", "/models/%/alias", name, body, &m) : DN_EXIT_FAILED;
    }
    if (!rc)
        printf("%s is live\n", args->operand[0]);
    json_decref(body);
    json_decref(m);
    free(name);
    return rc;
}

int dn_run_model_delete(dn_args *args)
{
    json_t *m = NULL;
    int rc = dn_name_check(args->operand[0], DN_NAME_VERSION);
    if (!rc)
        rc = dn_ask_about(args, "DELETE", "/models/%", args->operand[0], NULL, &m);
    if (!rc)
        printf("%s is gone\n", args->operand[0]);
    json_decref(m);
    return rc;
}
