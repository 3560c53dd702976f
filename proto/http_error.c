/* http_error.c - the table of http_error.h in action. */
#include "http_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *type, *text;
    int status;
} codes[DN_H_COUNT] = {
#define X(code, name, status, type, text) [DN_H_##code] = { name, type, text, status },
    DN_HTTP_ERRORS(X)
#undef X
};

int dn_http_fail(dn_http_error *err, int id, const char *param, const char *fmt, ...)
{
    if (!err)
        return id;
    dn_http_error e = { .id = id, .status = codes[id].status, .type = codes[id].type, .code = codes[id].name };
    snprintf(e.param, sizeof e.param, "%s", param ? param : "");
    if (fmt) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e.message, sizeof e.message, fmt, ap);
        va_end(ap);
    } else {
        snprintf(e.message, sizeof e.message, "%s", codes[id].text);
    }
    *err = e;
    return id;
}

int dn_http_fail_engine(dn_http_error *err, const char *code, const char *param, const char *message)
{
    int id = dn_http_code_find(code);
    if (!id)
        return dn_http_fail(err, DN_H_INTERNAL, param, "the engine reported \"%s\": %s", code, message);
    return dn_http_fail(err, id, param, "%s", message);
}

int dn_http_code_find(const char *name)
{
    for (int i = 1; i < DN_H_COUNT; i++)
        if (!strcmp(codes[i].name, name))
            return i;
    return 0;
}

int dn_http_code_status(int id) { return codes[id].status; }
const char *dn_http_code_name(int id) { return codes[id].name; }

void dn_http_error_write(const dn_http_error *e, dn_buf *b)
{
    dn_buf_puts(b, "{\"error\":{\"type\":");
    dn_buf_json_string(b, e->type);
    dn_buf_puts(b, ",\"code\":");
    dn_buf_json_string(b, e->code);
    dn_buf_puts(b, ",\"param\":");
    if (e->param[0])
        dn_buf_json_string(b, e->param);
    else
        dn_buf_puts(b, "null");
    dn_buf_puts(b, ",\"message\":");
    dn_buf_json_string(b, e->message);
    dn_buf_puts(b, "}}");
}

void dn_http_errors_markdown(dn_buf *b)
{
    dn_buf_puts(b, "| code | status | type | meaning |\n|---|---|---|---|\n");
    for (int i = 1; i < DN_H_COUNT; i++)
        dn_buf_printf(b, "| `%s` | %d | `%s` | %s |\n", codes[i].name, codes[i].status, codes[i].type, codes[i].text);
}
