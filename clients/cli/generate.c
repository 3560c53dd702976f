/* generate.c - `denoise generate`: a request from flags and JSON, followed to its results. */
#include "follow.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- the request ------------------------------------------------------------------------------------------------ */

/* The flags laid over the file. */
static int make_request(json_t **out, const dn_args *args, bool stream)
{
    json_t *under = NULL;
    const char *path = args->value[DN_OPT_JSON];
    int rc = path ? dn_json_read(&under, path, "--json: ", DN_GENERATE_BODY_MAX) : 0;
    if (rc)
        return rc;
    json_t *request = dn_generate_merge(under, args->request);
    json_decref(under);
    if (!request || json_object_set_new(request, "stream", json_boolean(stream))) {
        json_decref(request);
        dn_complain("no memory for the request");
        return DN_EXIT_FAILED;
    }
    *out = request;
    return 0;
}

/* One PNG for each sample? */
static bool is_list(const json_t *request)
{
    const json_t *output = json_object_get(request, "output");
    const char *format = dn_json_text(output, "format"), *layout = dn_json_text(output, "layout");
    return (!*format || !strcmp(format, "png")) && strcmp(layout, "grid");
}

static int check_output(dn_output_to *o, const json_t *request)
{
    double n = dn_json_number(request, "n");
    o->several = is_list(request) && n > 1;
    if (!o->several || !o->path || strcmp(o->path, "-"))
        return 0;
    dn_complain("-o - has room for one result only; --grid or --format npy give one");
    return DN_EXIT_USAGE;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* True when the queue is full and the user wants to come back: the time that the daemon named is over then. */
static bool comes_back(const dn_args *args, const dn_transfer *t, int rc)
{
    if (rc || t->status != 429 || !args->value[DN_OPT_WAIT] || t->retry_after_s < 0)
        return false;
    long s = t->retry_after_s > 0 ? t->retry_after_s : 1;
    if (!args->value[DN_OPT_QUIET])
        fprintf(stderr, "the queue is full: trying again in %ld s\n", s);
    dn_pause((double)s);
    return true;
}

/* POST as often as it takes; with `f` as a stream. Returns what dn_client_run does. */
static int post(dn_client *c, const dn_args *args, dn_follow *f, dn_transfer *t, const char *body)
{
    for (;;) {
        *t = (dn_transfer){
            .method = "POST", .path = "/generate", .body = body, .header = f ? NULL : "Prefer: respond-async"
        };
        int rc = f ? dn_follow_run(f, t) : dn_client_run(c, t, NULL);
        if (!comes_back(args, t, rc))
            return rc;
        dn_transfer_fini(t);
        if (dn_interrupted())
            return DN_EXIT_INTERRUPTED;
    }
}

/* The closed connection does it too, but not with on_disconnect "continue", and it says nothing. */
static int cancel(dn_follow *f)
{
    char path[DN_ID_MAX + 16];
    dn_transfer t = { .method = "DELETE", .path = path };
    if (!*f->id) {
        dn_complain("interrupted");
        return DN_EXIT_INTERRUPTED;
    }
    dn_interrupt_forget();
    snprintf(path, sizeof path, "/requests/%s", f->id);
    bool ok = !dn_client_run(f->client, &t, NULL) && t.status / 100 == 2;
    dn_complain(ok ? "cancelled %s" : "interrupted; the daemon did not confirm that it cancelled %s", f->id);
    dn_transfer_fini(&t);
    return DN_EXIT_INTERRUPTED;
}

static int finish(dn_follow *f, const dn_transfer *t, int rc)
{
    if (f->done)
        return f->exit;
    if (rc == DN_EXIT_INTERRUPTED)
        return cancel(f);
    if (rc || t->status / 100 != 2)
        return dn_client_complain(f->client, t, rc);
    dn_complain("the daemon's answer ended before the result");
    return DN_EXIT_SERVER;
}

static int run_stream(dn_client *client, const dn_args *args, dn_output_to *output, const char *body)
{
    dn_follow f;
    dn_transfer t;
    dn_follow_init(&f, client, output, args->value[DN_OPT_QUIET]);
    int rc = finish(&f, &t, post(client, args, &f, &t, body));
    dn_transfer_fini(&t);
    dn_follow_fini(&f);
    return rc;
}

/* The id alone goes to standard output. */
static int run_async(dn_client *client, const dn_args *args, const char *body)
{
    dn_transfer t;
    json_t *info = NULL;
    int rc = dn_client_complain(client, &t, post(client, args, NULL, &t, body));
    if (!rc)
        rc = dn_client_parse(&t, &info);
    const char *id = dn_json_text(info, "id");
    if (!rc && !dn_id_is_plain(id)) {
        dn_complain("the daemon's answer has no id");
        rc = DN_EXIT_SERVER;
    } else if (!rc) {
        printf("%s\n", id);
        if (!args->value[DN_OPT_QUIET])
            fprintf(stderr, "seed %" JSON_INTEGER_FORMAT "; `denoise wait %s -o FILE` fetches the result\n",
                    json_integer_value(json_object_get(info, "seed")), id);
    }
    json_decref(info);
    dn_transfer_fini(&t);
    return rc;
}

static int ask(const dn_args *args, dn_output_to *output, const json_t *request)
{
    dn_client client;
    char *body = json_dumps(request, JSON_COMPACT);
    int rc = body ? dn_client_init(&client, args) : DN_EXIT_FAILED;
    if (!rc) {
        dn_interrupt_catch();
        rc = output ? run_stream(&client, args, output, body) : run_async(&client, args, body);
        dn_client_fini(&client);
    }
    free(body);
    return rc;
}

int dn_run_generate(dn_args *args)
{
    dn_output_to output;
    json_t *request = NULL;
    bool later = args->value[DN_OPT_ASYNC];
    int rc = 0;
    if (later && (args->value[DN_OPT_OUTPUT] || args->value[DN_OPT_SHOW])) {
        dn_complain("--async has no result yet; -o and --show are for `denoise wait`");
        return DN_EXIT_USAGE;
    }
    if (!later)
        rc = dn_output_init(&output, args);
    if (!rc)
        rc = make_request(&request, args, !later);
    if (!rc && !later)
        rc = check_output(&output, request);
    if (!rc)
        rc = ask(args, later ? NULL : &output, request);
    if (!later)
        dn_output_fini(&output);
    json_decref(request);
    return rc;
}
