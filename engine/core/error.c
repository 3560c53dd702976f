#include <denoised/error.h>
#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name, *text;
} errors[DN_E_COUNT] = { [DN_OK] = { "ok", "no error" },
#define X(code, name, text) [DN_E_##code] = { name, text },
                         DN_ERRORS(X)
#undef X
};

const char *dn_error_name(int code) { return code >= 0 && code < DN_E_COUNT ? errors[code].name : "unknown"; }
const char *dn_error_text(int code) { return code >= 0 && code < DN_E_COUNT ? errors[code].text : "unknown error"; }

int dn_fail(dn_error *err, int code, const char *param, const char *fmt, ...)
{
    if (!err)
        return code;
    err->code = code;
    snprintf(err->param, sizeof err->param, "%s", param ? param : "");
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    return code;
}
