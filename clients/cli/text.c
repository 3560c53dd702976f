/* text.c - text for people: what is printed, and how numbers are spelled. */
#include "cli.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

enum { LINE_MAX_BYTES = 4096 };

/* Length of the control character at `s` (C0 but newline, DEL, C1 in UTF-8), or 0. */
static int control_len(const unsigned char *s)
{
    if ((s[0] < 0x20 && s[0] != '\n') || s[0] == 0x7f)
        return 1;
    return s[0] == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0 ? 2 : 0;
}

void dn_text_put(FILE *out, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        int n = control_len(s);
        if (n)
            fputs("\xef\xbf\xbd", out);
        else
            fputc(*s, out);
        s += n ? n : 1;
    }
}

static void put_formatted(FILE *out, const char *fmt, va_list ap)
{
    char line[LINE_MAX_BYTES];
    vsnprintf(line, sizeof line, fmt, ap);
    dn_text_put(out, line);
}

void dn_text_printf(FILE *out, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    put_formatted(out, fmt, ap);
    va_end(ap);
}

void dn_complain(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("denoise: ", stderr);
    put_formatted(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

const char *dn_text_bytes(char out[24], double bytes)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    int u = 0;
    while (bytes >= 999.5 && u < 4) {
        bytes /= 1000;
        u++;
    }
    snprintf(out, 24, u && bytes < 9.95 ? "%.1f %s" : "%.0f %s", bytes, units[u]);
    return out;
}

const char *dn_text_time(char out[24], double seconds)
{
    if (!(seconds > 0)) /* NaN too */
        seconds = 0;
    if (seconds > 1e9)
        snprintf(out, 24, "years");
    else if (seconds < 9.995)
        snprintf(out, 24, "%.2f s", seconds);
    else if (seconds < 99.95)
        snprintf(out, 24, "%.1f s", seconds);
    else if (seconds < 3600)
        snprintf(out, 24, "%.0f min %.0f s", floor(seconds / 60), fmod(floor(seconds), 60));
    else
        snprintf(out, 24, "%.0f h %.0f min", floor(seconds / 3600), fmod(floor(seconds / 60), 60));
    return out;
}

const char *dn_text_date(char out[24], double unix_s)
{
    time_t t = unix_s > 0 && unix_s < 1e11 ? (time_t)unix_s : 0;
    struct tm tm;
    out[0] = 0;
    if (t && localtime_r(&t, &tm))
        strftime(out, 24, "%F %T", &tm);
    return out;
}

int dn_text_columns(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

const char *dn_json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

double dn_json_number(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

long dn_json_count(const json_t *object, const char *key)
{
    double v = dn_json_number(object, key);
    return v >= 1e9 ? 1000000000 : v > 0 ? (long)v : 0;
}

bool dn_json_true(const json_t *object, const char *key) { return json_is_true(json_object_get(object, key)); }
