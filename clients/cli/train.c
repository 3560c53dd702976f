/* train.c - `denoise train`: a dataset is sent if one is here, a job is submitted, and followed if one wants to. */
#include "datasets.h"
#include "job.h"
#include "job_follow.h"
#include "samples.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { TRIES_MAX = 8, KEY_BYTES = 16 };

/* ---- the request ------------------------------------------------------------------------------------------------ */

/* A job begins from weights or from a config: a flag for one replaces the other. */
static void replace_start(json_t *under, const json_t *flags)
{
    if (json_object_get(flags, "from"))
        json_object_del(under, "model");
    if (json_object_get(flags, "model"))
        json_object_del(under, "from");
}

/* The flags laid over the file, objects member by member. */
static int make_request(json_t **out, const dn_args *args)
{
    json_t *request = NULL;
    int rc = args->n_operands ? dn_json_read(&request, args->operand[0], "", DN_JSON_BODY_MAX) : 0;
    if (rc)
        return rc;
    request = request ? request : json_object();
    replace_start(request, args->request);
    if (!request || json_object_update_recursive(request, args->request)) {
        json_decref(request);
        dn_complain("no memory for the request");
        return DN_EXIT_FAILED;
    }
    *out = request;
    return 0;
}

/* ---- the dataset ------------------------------------------------------------------------------------------------ */

/* What --dataset names here, if it is a path: a slash says so. */
static const char *path_of(const dn_args *args)
{
    const char *dataset = dn_json_text(args->request, "dataset");
    return strchr(dataset, '/') ? dataset : NULL;
}

/* A path's last part as a name: "My Shoes.tar.gz" is my-shoes. */
static void name_of(char out[DN_NAME_LEN_MAX + 1], const char *path)
{
    static const char *const endings[] = { ".gz", ".zst", ".tar", ".zip", ".npy", ".npz", ".safetensors", ".tgz" };
    size_t end = strlen(path), n = 0;
    while (end && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin && path[begin - 1] != '/')
        begin--;
    for (int i = 0; i < 8; i++) {
        size_t len = strlen(endings[i]);
        if (end - begin > len && !strncasecmp(path + end - len, endings[i], len))
            end -= len;
    }
    for (; begin < end && n < DN_NAME_LEN_MAX; begin++) {
        char c = (char)tolower((unsigned char)path[begin]);
        bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (plain || n) /* a name begins with a letter or a digit */
            out[n++] = plain || strchr("._-", c) ? c : '-';
    }
    out[n] = 0;
}

static int check_upload(char name[DN_NAME_LEN_MAX + 1], const dn_args *args, const char *path)
{
    const char *given = args->value[DN_OPT_DATASET_NAME];
    if (!path && (given || args->query.len)) {
        dn_complain("%s is for a --dataset that is sent: a path with a slash",
                    given ? "--dataset-name" : "--skip-broken");
        return DN_EXIT_USAGE;
    }
    if (!path)
        return 0;
    if (given) {
        snprintf(name, DN_NAME_LEN_MAX + 1, "%.*s", DN_NAME_LEN_MAX, given);
        return dn_name_check(given, DN_NAME);
    }
    name_of(name, path);
    if (dn_name_ok(name))
        return 0;
    dn_complain("--dataset-name is needed: \"%.100s\" gives no name", path);
    return DN_EXIT_USAGE;
}

/* What can be known here is said before anything large is sent. */
static int check_request(const json_t *request)
{
    dn_http_error err = { 0 };
    dn_job_request parsed;
    dn_arena *arena = dn_arena_new(DN_REQUEST_BYTES_MAX);
    json_t *copy = json_deep_copy(request);
    int rc = DN_EXIT_FAILED;
    if (!arena || !copy)
        dn_complain("no memory for the request");
    else if (!dn_job_parse(&parsed, arena, copy, &err))
        rc = 0;
    else
        dn_complain("%s%s%s%s", err.message, *err.param ? " (" : "", err.param, *err.param ? ")" : "");
    json_decref(copy);
    dn_arena_free(arena);
    return rc && err.id ? DN_EXIT_USAGE : rc;
}

static int send_dataset(dn_client *c, const dn_args *args, const char *name, dn_upload *u, json_t *request)
{
    char id[DN_DATASET_ID_MAX];
    int rc = dn_dataset_send(id, c, args, name, u);
    if (!rc && json_object_set_new(request, "dataset", json_string(id)))
        rc = DN_EXIT_FAILED;
    if (rc == DN_EXIT_INTERRUPTED)
        dn_complain("no job was submitted");
    return rc;
}

/* ---- the job ---------------------------------------------------------------------------------------------------- */

/* As often as it takes: with the same key the daemon makes one job of it. */
static int post(dn_client *c, const char *body, json_t **job)
{
    unsigned char random[KEY_BYTES];
    char header[sizeof "Idempotency-Key: " + 2 * KEY_BYTES];
    int n = snprintf(header, sizeof header, "Idempotency-Key: ");
    if (getrandom(random, sizeof random, 0) != sizeof random) {
        dn_complain("no random numbers: %s", strerror(errno));
        return DN_EXIT_FAILED;
    }
    for (int i = 0; i < KEY_BYTES; i++)
        n += snprintf(header + n, sizeof header - (size_t)n, "%02x", random[i]);
    bool sent = false;
    for (int tries = 1;; tries++) {
        dn_transfer t = { .method = "POST", .path = "/jobs", .body = body, .header = header };
        int rc = dn_client_run(c, &t, NULL);
        sent |= t.sent;
        bool again = rc == DN_EXIT_UNREACHABLE && sent && tries < TRIES_MAX;
        if (!again)
            rc = dn_client_complain(c, &t, rc);
        if (!again && !rc)
            rc = dn_client_parse(&t, job);
        dn_transfer_fini(&t);
        if (!again)
            return rc;
        dn_pause_again(tries);
        if (dn_interrupted())
            return DN_EXIT_INTERRUPTED;
    }
}

static void say_plan(const json_t *job)
{
    static const char *const parts[] = { "weights", "gradients", "moments", "ema", "arena", "data", "copies", "previews" };
    const json_t *plan = json_object_get(job, "plan");
    char bytes[24];
    if (!json_is_object(plan))
        return;
    fprintf(stderr, "memory: %s", dn_text_bytes(bytes, dn_json_number(plan, "total")));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        fprintf(stderr, "%s %s %s", i ? "," : ":", parts[i], dn_text_bytes(bytes, dn_json_number(plan, parts[i])));
    fprintf(stderr, "\n%ld rows a pass, %ld blocks computed twice, %.4g GFLOP a step\n",
            dn_json_count(plan, "micro_batch"), dn_json_count(plan, "recomputed_blocks"),
            dn_json_number(plan, "gflop_per_step"));
}

/* The id alone goes to standard output. */
static int say_job(const dn_args *args, const json_t *job)
{
    const char *id = dn_json_text(job, "id");
    if (!dn_id_is_plain(id)) {
        dn_complain("the daemon's answer has no id");
        return DN_EXIT_SERVER;
    }
    printf("%s\n", id);
    fflush(stdout);
    if (args->value[DN_OPT_QUIET])
        return 0;
    say_plan(job);
    if (!args->value[DN_OPT_FOLLOW])
        fprintf(stderr, "`denoise jobs follow %s` shows how it goes\n", id);
    return 0;
}

static int submit(dn_client *c, const dn_args *args, dn_output_to *output, const json_t *request)
{
    json_t *job = NULL;
    char *body = json_dumps(request, JSON_COMPACT);
    int rc = body ? post(c, body, &job) : DN_EXIT_FAILED;
    free(body);
    const char *dataset = dn_json_text(args->request, "dataset");
    if (rc == DN_EXIT_REFUSED && *dataset && !path_of(args) && !access(dataset, R_OK))
        dn_complain("(to send what is here: --dataset ./%s)", dataset);
    if (rc == DN_EXIT_INTERRUPTED)
        dn_complain("interrupted; `denoise jobs` says whether it was submitted");
    if (!rc)
        rc = say_job(args, job);
    if (!rc && args->value[DN_OPT_FOLLOW])
        rc = dn_job_follow(c, output, dn_json_text(job, "id"), args->value[DN_OPT_FOLDER], true);
    json_decref(job);
    return rc;
}

static int run(const dn_args *args, dn_output_to *output, json_t *request)
{
    char name[DN_NAME_LEN_MAX + 1];
    const char *path = path_of(args);
    dn_client client;
    dn_upload u;
    int rc = check_upload(name, args, path);
    if (rc)
        return rc;
    if (path && (rc = check_request(request)))
        return rc;
    if (path)
        rc = dn_upload_init(&u, &path, 1, args->value[DN_OPT_QUIET]);
    if (!rc)
        rc = dn_client_init(&client, args);
    if (!rc) {
        dn_interrupt_catch();
        if (path)
            rc = send_dataset(&client, args, name, &u, request);
        if (!rc)
            rc = submit(&client, args, output, request);
        dn_client_fini(&client);
    }
    if (path)
        dn_upload_fini(&u);
    return rc;
}

int dn_run_train(dn_args *args)
{
    dn_output_to output;
    json_t *request = NULL;
    const char *folder = args->value[DN_OPT_FOLDER];
    if ((args->value[DN_OPT_SHOW] || folder) && !args->value[DN_OPT_FOLLOW]) {
        dn_complain("%s is for --follow", folder ? "-o" : "--show");
        return DN_EXIT_USAGE;
    }
    int rc = folder ? dn_samples_folder(folder) : 0;
    if (rc)
        return rc;
    rc = dn_output_init_shown(&output, args);
    if (!rc)
        rc = make_request(&request, args);
    if (!rc)
        rc = run(args, &output, request);
    dn_output_fini(&output);
    json_decref(request);
    return rc;
}
