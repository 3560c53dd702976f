/* ask.c - one question and its answer, for the commands that need no more. */
#include "http.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES_MAX = 4096 };

int dn_ask(const dn_args *args, const char *method, const char *path, const json_t *body, json_t **out)
{
    dn_client client;
    char *full, *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    if ((body && !text) ||
        asprintf(&full, "%s%s%s", path, args->query.len ? "?" : "", args->query.len ? args->query.data : "") < 0) {
        free(text);
        return DN_EXIT_FAILED;
    }
    int rc = dn_client_init(&client, args);
    if (!rc) {
        dn_transfer t = { .method = method, .path = full, .body = text };
        dn_interrupt_catch();
        rc = dn_client_json(&client, &t, out);
        if (!rc && args->value[DN_OPT_RAW]) {
            fwrite(t.answer.data, 1, t.answer.len, stdout);
            fputc('\n', stdout);
        }
        dn_transfer_fini(&t);
        dn_client_fini(&client);
    }
    free(full);
    free(text);
    return rc;
}

char *dn_path_about(const char *path, const char *name)
{
    char *escaped = curl_easy_escape(NULL, name, 0);
    dn_buf b;
    dn_buf_init(&b, PATH_BYTES_MAX);
    for (const char *s = path; escaped && *s; s++) {
        if (*s == '%')
            dn_buf_puts(&b, escaped);
        else
            dn_buf_add(&b, s, 1);
    }
    char *out = escaped ? dn_buf_take(&b, &(size_t){ 0 }) : NULL;
    if (!out)
        dn_complain("\"%.40s...\" is too long for a name", name);
    dn_buf_fini(&b);
    curl_free(escaped);
    return out;
}

int dn_ask_about(const dn_args *args, const char *method, const char *path, const char *name, const json_t *body,
                 json_t **out)
{
    char *full = dn_path_about(path, name);
    int rc = full ? dn_ask(args, method, full, body, out) : DN_EXIT_FAILED;
    free(full);
    return rc;
}
