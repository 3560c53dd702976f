/* field_text.c - values as people write them (flags, variables, INI keys, query strings) to JSON. */
#include "field.h"
#include "json.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { TEXT_ITEMS_MAX = 4096 };

struct unit {
    const char *name;
    double factor;
};

static json_t *fail(const dn_field *f, const char *text, const char *wanted, dn_http_error *err)
{
    dn_http_fail(err, DN_H_TYPE, f->name, "%s must be %s, got \"%.40s\"", f->name, wanted, text);
    return NULL;
}

static json_t *from_bool(const dn_field *f, const char *text, dn_http_error *err)
{
    static const char *const words[] = { "false", "true", "no", "yes", "0", "1", "off", "on" };
    for (int i = 0; i < 8; i++)
        if (!strcasecmp(text, words[i]))
            return json_boolean(i & 1);
    return fail(f, text, "true or false", err);
}

/* A whole decimal number and nothing else. strtod alone would take hexadecimal, "inf" and leading blanks. */
static bool read_number(const char *text, double *v, char **end)
{
    const char *digits = text + strspn(text, "+-.");
    if (!isdigit((unsigned char)*digits) || (digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X')))
        return false;
    *v = strtod(text, end);
    return *end != text && isfinite(*v);
}

static json_t *number(const char *text)
{
    char *end;
    double v;
    errno = 0;
    long long i = strtoll(text, &end, 10);
    if (*text && !isspace((unsigned char)*text) && !*end && !errno)
        return json_integer(i);
    if (!read_number(text, &v, &end) || *end)
        return NULL;
    return json_real(v);
}

static json_t *from_number(const dn_field *f, const char *text, dn_http_error *err)
{
    if (f->flags & DN_F_AUTO && !strcmp(text, "auto"))
        return json_string(text);
    json_t *v = number(text);
    return v ? v : fail(f, text, f->type == DN_T_INT ? "an integer" : "a number", err);
}

/* A number with a unit; `bare` is the factor when there is none. */
static json_t *from_units(const dn_field *f, const char *text, const struct unit *units, double bare,
                          const char *wanted, dn_http_error *err)
{
    char *end;
    double v;
    if (!read_number(text, &v, &end))
        return fail(f, text, wanted, err);
    double factor = *end ? 0 : bare;
    for (; units->name; units++)
        if (!strcasecmp(end, units->name))
            factor = units->factor;
    v = round(v * factor);
    if (factor == 0 || fabs(v) > 0x1p53)
        return fail(f, text, wanted, err);
    json_t *out = json_integer((json_int_t)v);
    if (!out)
        dn_http_fail(err, DN_H_MEMORY, f->name, NULL);
    return out;
}

static json_t *from_size(const dn_field *f, const char *text, dn_http_error *err)
{
    static const struct unit units[] = { { "B", 1 },        { "K", 0x1p10 }, { "KiB", 0x1p10 }, { "M", 0x1p20 },
                                         { "MiB", 0x1p20 }, { "G", 0x1p30 }, { "GiB", 0x1p30 }, { "T", 0x1p40 },
                                         { "TiB", 0x1p40 }, { "kB", 1e3 },   { "MB", 1e6 },     { "GB", 1e9 },
                                         { "TB", 1e12 },    { NULL, 0 } };
    return from_units(f, text, units, 1, "a size like 512M, 1GiB or 1000000", err);
}

static json_t *from_time(const dn_field *f, const char *text, dn_http_error *err)
{
    static const struct unit units[] = { { "ms", 1 },     { "s", 1e3 },     { "m", 60e3 }, { "min", 60e3 },
                                         { "h", 3600e3 }, { "d", 86400e3 }, { NULL, 0 } };
    return from_units(f, text, units, 1e3, "a time like 250ms, 90s, 5m or 1h", err);
}

static json_t *from_string(const dn_field *f, const char *text, dn_http_error *err)
{
    json_t *v = json_string(text);
    return v ? v : fail(f, text, "UTF-8", err);
}

/* A label: digits are a number, all else is a name. */
static json_t *from_label(const dn_field *f, const char *text, dn_http_error *err)
{
    return *text && text[strspn(text, "0123456789")] == 0 ? from_number(f, text, err) : from_string(f, text, err);
}

static json_t *from_object(const dn_field *f, const char *text, dn_http_error *err)
{
    json_t *v = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(v))
        return v;
    json_decref(v);
    return fail(f, text, "a JSON object", err);
}

typedef json_t *item_fn(const dn_field *f, const char *text, dn_http_error *err);

/* The length of the next item: up to a comma, where the field's rule does not join what follows. */
static size_t item_len(const dn_field *f, const char *text)
{
    size_t len = strcspn(text, ",");
    while (f->flags & DN_F_DEVICES && text[len] && isdigit((unsigned char)text[len + 1]))
        len += 1 + strcspn(text + len + 1, ",");
    return len;
}

static json_t *trimmed_item(const dn_field *f, const char *text, size_t len, item_fn *item, dn_http_error *err)
{
    while (len && isspace((unsigned char)*text))
        text++, len--;
    while (len && isspace((unsigned char)text[len - 1]))
        len--;
    char *copy = strndup(text, len);
    json_t *v = NULL;
    if (copy)
        v = item(f, copy, err);
    else
        dn_http_fail(err, DN_H_MEMORY, f->name, NULL);
    free(copy);
    return v;
}

static json_t *from_list(const dn_field *f, const char *text, item_fn *item, dn_http_error *err)
{
    json_t *list = json_array();
    for (const char *s = text; list; s++) {
        size_t len = item_len(f, s);
        json_t *v = trimmed_item(f, s, len, item, err);
        if (!v || json_array_append_new(list, v) || json_array_size(list) > TEXT_ITEMS_MAX) {
            if (v)
                fail(f, text, "a shorter list", err);
            json_decref(list);
            return NULL;
        }
        s += len;
        if (!*s)
            break;
    }
    if (!list)
        dn_http_fail(err, DN_H_MEMORY, f->name, NULL);
    return list;
}

static json_t *from_numbers(const dn_field *f, const char *text, dn_http_error *err)
{
    return from_list(f, text, from_number, err);
}

static json_t *from_strings(const dn_field *f, const char *text, dn_http_error *err)
{
    return from_list(f, text, from_string, err);
}

static json_t *from_labels(const dn_field *f, const char *text, dn_http_error *err)
{
    return strchr(text, ',') ? from_list(f, text, from_label, err) : from_label(f, text, err);
}

/* Words set the first member of each object: flip,crop is [{"kind":"flip"},{"kind":"crop"}]. */
static json_t *from_word(const dn_field *f, const char *text, dn_http_error *err)
{
    const dn_field *first = &f->sub->v[0];
    json_t *v = dn_field_from_text(first, text, err), *object = v ? json_pack("{s:o}", first->name, v) : NULL;
    if (v && !object)
        dn_http_fail(err, DN_H_MEMORY, f->name, NULL);
    return object;
}

static json_t *from_objects(const dn_field *f, const char *text, dn_http_error *err)
{
    if (*text != '[')
        return from_list(f, text, from_word, err);
    json_t *v = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    return v ? v : fail(f, text, "words, or a JSON list of objects", err);
}

json_t *dn_field_from_text(const dn_field *f, const char *text, dn_http_error *err)
{
    static item_fn *const readers[DN_T_COUNT] = {
        [DN_T_BOOL] = from_bool,     [DN_T_INT] = from_number,   [DN_T_NUM] = from_number,   [DN_T_STR] = from_string,
        [DN_T_ENUM] = from_string,   [DN_T_NAME] = from_string,  [DN_T_PAIR] = from_numbers, [DN_T_NUMS] = from_numbers,
        [DN_T_LABELS] = from_labels, [DN_T_STRS] = from_strings, [DN_T_JSON] = from_object,  [DN_T_SIZE] = from_size,
        [DN_T_TIME] = from_time,     [DN_T_LIST] = from_objects,
    };
    assert(readers[f->type]);
    return readers[f->type](f, text, err);
}
