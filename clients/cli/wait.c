/* wait.c - `denoise wait ID`: follow an asynchronous request, fetch what it made. */
#include "array.h"
#include "follow.h"

#include <jansson.h>
#include <string.h>

enum { RECONNECTS_MAX = 5 };

/* Its events until they end. A stream that was cut is resumed behind the last event. */
static int follow(dn_follow *f, const char *id)
{
    char path[DN_ID_MAX + 24], resume[DN_SSE_NAME_MAX + 24];
    snprintf(path, sizeof path, "/requests/%s/events", id);
    for (int tries = 0;; tries++) {
        dn_transfer t = { .method = "GET", .path = path };
        if (*f->last_event && dn_id_is_plain(f->last_event)) {
            snprintf(resume, sizeof resume, "Last-Event-ID: %s", f->last_event);
            t.header = resume;
        }
        int rc = dn_follow_run(f, &t);
        bool again = rc == DN_EXIT_UNREACHABLE && *f->last_event && tries < RECONNECTS_MAX;
        if (f->done)
            rc = f->exit;
        else if (!again)
            rc = dn_client_complain(f->client, &t, rc);
        dn_transfer_fini(&t);
        if (f->done || !again)
            return rc;
        dn_pause_again(tries + 1);
    }
}

static int fetch(dn_client *c, dn_output_to *o, const char *id, int k)
{
    char path[DN_ID_MAX + 32];
    dn_transfer t = { .method = "GET", .path = path, .max = DN_RESULT_MAX };
    snprintf(path, sizeof path, "/requests/%s/images/%d", id, k);
    int rc = dn_client_ask(c, &t);
    if (!rc)
        rc = dn_output_result(o, k, t.content_type, t.answer.data ? t.answer.data : "", t.answer.len);
    dn_transfer_fini(&t);
    return rc;
}

static int fetch_all(dn_client *c, dn_output_to *o, const char *id, const json_t *info)
{
    const json_t *images = json_object_get(info, "images");
    size_t n = json_array_size(images);
    int rc = 0;
    if (n < 1 || n > DN_N_MAX) {
        dn_complain("the daemon says that it has %zu results", n);
        return DN_EXIT_SERVER;
    }
    o->several = n > 1 && !dn_array_is(dn_json_text(json_array_get(images, 0), "content_type"));
    if (o->several && o->path && !strcmp(o->path, "-")) {
        dn_complain("-o - has room for one result only, this request has %zu", n);
        return DN_EXIT_USAGE;
    }
    for (int k = 0; !rc && k < (int)n; k++)
        rc = fetch(c, o, id, k);
    return rc ? rc : dn_output_finish(o);
}

/* What became of it. */
static int take(dn_follow *f, const char *id)
{
    char path[DN_ID_MAX + 16];
    dn_transfer t = { .method = "GET", .path = path };
    json_t *info = NULL;
    snprintf(path, sizeof path, "/requests/%s", id);
    int rc = dn_client_json(f->client, &t, &info);
    const char *state = dn_json_text(info, "state");
    if (!rc && !strcmp(state, "succeeded")) {
        if (!f->done)
            dn_follow_summary(f, info);
        rc = fetch_all(f->client, f->output, id, info);
    } else if (!rc && json_is_object(json_object_get(info, "error"))) {
        rc = dn_error_complain(json_object_get(info, "error"), 0);
    } else if (!rc) {
        dn_complain("the request is %s", *state ? state : "in no state");
        rc = strcmp(state, "cancelled") ? DN_EXIT_SERVER : DN_EXIT_REFUSED;
    }
    json_decref(info);
    dn_transfer_fini(&t);
    return rc;
}

int dn_run_wait(dn_args *args)
{
    dn_client client;
    dn_output_to output;
    dn_follow f;
    const char *id = args->operand[0];
    int rc = dn_id_check(id);
    if (!rc)
        rc = dn_output_init(&output, args);
    if (!rc)
        rc = dn_client_init(&client, args);
    if (rc)
        return rc;
    dn_interrupt_catch();
    dn_follow_init(&f, &client, &output, args->value[DN_OPT_QUIET]);
    rc = follow(&f, id);
    if (!rc)
        rc = take(&f, id);
    if (rc == DN_EXIT_INTERRUPTED)
        dn_complain("it goes on without you: `denoise wait %s`, `denoise cancel %s`", id, id);
    dn_follow_fini(&f);
    dn_client_fini(&client);
    dn_output_fini(&output);
    return rc;
}
