/* card.c - see card.h. */
#include "card.h"
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_COLUMNS = 13, LINE = 90 };

/* What is too long for a line is a member a line. */
static void print_json(const json_t *v, FILE *out)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    if (text && strlen(text) > LINE) {
        free(text);
        text = json_dumps(v, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    }
    char *line = text, *rest;
    for (; line; line = rest) {
        rest = strchr(line, '\n');
        if (rest)
            *rest++ = 0;
        if (line > text)
            fprintf(out, "\n%*s", KEY_COLUMNS + 1, "");
        dn_text_put(out, line);
    }
    free(text);
}

/* One value as a person reads it: no quotes around texts, lists with commas. */
static void print_value(const json_t *v, FILE *out)
{
    size_t i;
    json_t *item;
    if (json_is_string(v)) {
        dn_text_put(out, json_string_value(v));
    } else if (json_is_array(v) && json_is_string(json_array_get(v, 0))) {
        json_array_foreach(v, i, item)
        {
            const char *text = json_string_value(item);
            dn_text_printf(out, "%s%s", i ? ", " : "", text ? text : "?");
        }
    } else {
        print_json(v, out);
    }
}

static bool is_time(const char *key)
{
    size_t n = strlen(key);
    return n > 3 && !strcmp(key + n - 3, "_at");
}

void dn_card_print(const json_t *card, FILE *out)
{
    const char *key;
    json_t *v;
    char date[24];
    json_object_foreach((json_t *)card, key, v)
    {
        dn_text_printf(out, "%-*.40s ", KEY_COLUMNS, key);
        if (is_time(key))
            fputs(dn_text_date(date, json_number_value(v)), out);
        else
            print_value(v, out);
        fputc('\n', out);
    }
}
