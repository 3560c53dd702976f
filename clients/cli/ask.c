/* ask.c - one question and its answer, for the commands that need no more. */
#include "http.h"

#include <jansson.h>
#include <stdlib.h>

enum { PATH_BYTES_MAX = 4096 };

int dn_ask(const dn_args *args, const char *method, const char *path, json_t **out)
{
    dn_client client;
    char *full;
    if (asprintf(&full, "%s%s%s", path, args->query.len ? "?" : "", args->query.len ? args->query.data : "") < 0)
        return DN_EXIT_FAILED;
    int rc = dn_client_init(&client, args);
    if (!rc) {
        dn_transfer t = { .method = method, .path = full };
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
    return rc;
}

int dn_ask_about(const dn_args *args, const char *method, const char *path, const char *name, json_t **out)
{
    char *escaped = curl_easy_escape(NULL, name, 0);
    int rc = DN_EXIT_FAILED;
    dn_buf b;
    dn_buf_init(&b, PATH_BYTES_MAX);
    for (const char *s = path; escaped && *s; s++) {
        if (*s == '%')
            dn_buf_puts(&b, escaped);
        else
            dn_buf_add(&b, s, 1);
    }
    if (escaped && !b.failed)
        rc = dn_ask(args, method, b.data, out);
    else
        dn_complain("\"%.40s...\" is too long for a name", name);
    dn_buf_fini(&b);
    curl_free(escaped);
    return rc;
}
