/* status.c - `denoise status`: the daemon at this moment, or as it goes on. */
#include "http.h"
#include "requests.h"

#include <jansson.h>
#include <string.h>
#include <unistd.h>

static void print_head(const json_t *s)
{
    char up[24], queue[24];
    dn_text_printf(stdout, "denoised %s, up %s%s: %.0f running, %.0f waiting, %s of work queued\n",
                   dn_json_text(s, "version"), dn_text_time(up, dn_json_number(s, "uptime_s")),
                   dn_json_true(s, "draining") ? ", draining" : "", dn_json_number(s, "running"),
                   dn_json_number(s, "waiting"), dn_text_time(queue, dn_json_number(s, "queue_ms") / 1e3));
}

static void print_memory(const json_t *m)
{
    static const char *const kinds[] = { "weights", "forms", "arenas", "slots", "results" };
    char text[24];
    double sum = 0;
    for (int i = 0; i < 5; i++)
        sum += dn_json_number(m, kinds[i]);
    printf("memory: %s", dn_text_bytes(text, sum));
    printf(" of %s", dn_text_bytes(text, dn_json_number(m, "limit")));
    for (int i = 0; i < 5; i++)
        printf("%s %s %s", i ? "," : ":", kinds[i], dn_text_bytes(text, dn_json_number(m, kinds[i])));
    fputc('\n', stdout);
}

static void print_device(const json_t *d)
{
    const json_t *shares = json_object_get(d, "shares");
    json_t *share;
    size_t i;
    dn_text_printf(stdout, "device %s (%s, %.0f threads): %.0f steps, %.0f rows", dn_json_text(d, "name"),
                   dn_json_text(d, "backend"), dn_json_number(d, "threads"), dn_json_number(d, "steps"),
                   dn_json_number(d, "row_steps"));
    if (*dn_json_text(d, "model"))
        dn_text_printf(stdout, "; the last: %.0f of %s in %.1f ms", dn_json_number(d, "rows"), dn_json_text(d, "model"),
                       dn_json_number(d, "step_ms"));
    fputc('\n', stdout);
    json_array_foreach(shares, i, share)
    {
        dn_text_printf(stdout, "  %.0f rows for %s\n", dn_json_number(share, "rows"), dn_json_text(share, "id"));
    }
}

static void print_model(const json_t *m)
{
    char bytes[24];
    dn_text_printf(stdout, "model %s: %s", dn_json_text(m, "name"), dn_json_text(m, "state"));
    if (dn_json_number(m, "bytes") > 0)
        printf(", %s", dn_text_bytes(bytes, dn_json_number(m, "bytes")));
    if (dn_json_number(m, "ms_per_row") > 0)
        printf(", %.3g ms a row", dn_json_number(m, "ms_per_row"));
    if (*dn_json_text(m, "error"))
        dn_text_printf(stdout, ", %s", dn_json_text(m, "error"));
    fputc('\n', stdout);
}

static void print_status(const json_t *s)
{
    size_t i;
    json_t *v;
    const json_t *requests = json_object_get(s, "requests");
    print_head(s);
    print_memory(json_object_get(s, "memory"));
    json_array_foreach(json_object_get(s, "devices"), i, v) { print_device(v); }
    json_array_foreach(json_object_get(s, "models"), i, v) { print_model(v); }
    if (json_array_size(requests))
        dn_requests_print(requests, 0, stdout);
}

typedef struct watch {
    bool raw, tty;
    int exit;
} watch;

static int on_event(void *arg, const char *name, const char *id, const char *text, size_t len)
{
    (void)id;
    watch *w = arg;
    json_error_t e;
    if (strcmp(name, "status"))
        return 0;
    json_t *status = json_loadb(text, len, 0, &e);
    if (!json_is_object(status)) {
        json_decref(status);
        dn_complain("the daemon sent a status that cannot be understood");
        return w->exit = DN_EXIT_SERVER;
    }
    if (w->raw) {
        fwrite(text, 1, len, stdout);
        fputc('\n', stdout);
    } else {
        fputs(w->tty ? "\033[H\033[J" : "", stdout);
        print_status(status);
        fputs(w->tty ? "" : "\n", stdout);
    }
    json_decref(status);
    fflush(stdout);
    return ferror(stdout) ? w->exit = DN_EXIT_FAILED : 0;
}

static int follow(dn_args *args)
{
    dn_client client;
    dn_sse sse;
    watch w = { .raw = args->value[DN_OPT_RAW], .tty = isatty(STDOUT_FILENO) };
    int rc = dn_client_init(&client, args);
    if (rc)
        return rc;
    dn_interrupt_catch();
    dn_sse_init(&sse, DN_STATUS_EVENT_MAX, on_event, &w);
    dn_transfer t = { .method = "GET", .path = "/status", .accept = "text/event-stream", .sse = &sse };
    rc = dn_client_ask(&client, &t);
    dn_transfer_fini(&t);
    dn_sse_fini(&sse);
    dn_client_fini(&client);
    return w.exit ? w.exit : rc;
}

int dn_run_status(dn_args *args)
{
    json_t *status = NULL;
    if (args->value[DN_OPT_WATCH])
        return follow(args);
    int rc = dn_ask(args, "GET", "/status", NULL, &status);
    if (!rc && !args->value[DN_OPT_RAW])
        print_status(status);
    json_decref(status);
    return rc;
}
