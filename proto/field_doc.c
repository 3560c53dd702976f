/* field_doc.c - what the tables say to people and tools: JSON schema, Markdown. */
#include "field.h"
#include "json.h"

#include <string.h>

static const struct {
    const char *schema; /* the value of "type" */
    const char *words;
} types[DN_T_COUNT] = {
    [DN_T_BOOL] = { "boolean", "true or false" },
    [DN_T_INT] = { "integer", "integer" },
    [DN_T_NUM] = { "number", "number" },
    [DN_T_STR] = { "string", "string" },
    [DN_T_ENUM] = { "string", "one of" },
    [DN_T_NAME] = { "string", "one of" },
    [DN_T_PAIR] = { "array", "two numbers" },
    [DN_T_NUMS] = { "array", "list of numbers" },
    [DN_T_LABELS] = { NULL, "number, name, or a list of those" },
    [DN_T_JSON] = { "object", "object" },
    [DN_T_OBJECT] = { NULL, "object" },
    [DN_T_LIST] = { "array", "list" },
    [DN_T_STRS] = { "array", "list of strings" },
    [DN_T_BYTES] = { "string", "base64" },
    [DN_T_SIZE] = { "integer", "size" },
    [DN_T_TIME] = { "integer", "time" },
};

static void key_string(dn_buf *b, const char *key, const char *value)
{
    dn_buf_printf(b, ",\"%s\":", key);
    dn_buf_json_string(b, value);
}

static void key_number(dn_buf *b, const char *key, double value)
{
    dn_buf_printf(b, ",\"%s\":", key);
    dn_buf_json_number(b, value);
}

static void range_schema(const dn_field *f, dn_buf *b, const char *min, const char *max)
{
    if (f->min == f->max && !(f->flags & DN_F_ONLY))
        return;
    key_number(b, min, f->min);
    key_number(b, max, f->max);
}

static void choices_schema(const dn_field *f, dn_buf *b)
{
    dn_buf_puts(b, ",\"enum\":[");
    for (int i = 0; f->choices[i]; i++) {
        dn_buf_puts(b, i ? "," : "");
        dn_buf_json_string(b, f->choices[i]);
    }
    dn_buf_puts(b, "]");
}

static void ref_schema(const dn_fields *t, dn_buf *b)
{
    dn_buf_printf(b, "\"$ref\":\"#/components/schemas/%s\"", t->name);
}

static void list_schema(const dn_field *f, dn_buf *b, int count_min)
{
    dn_buf_puts(b, ",\"items\":{");
    if (f->type == DN_T_LIST) {
        ref_schema(f->sub, b);
    } else if (f->type == DN_T_STRS) {
        dn_buf_puts(b, "\"type\":\"string\"");
    } else {
        dn_buf_puts(b, "\"type\":\"number\"");
        range_schema(f, b, "minimum", "maximum");
    }
    dn_buf_puts(b, "}");
    if (f->count_max)
        dn_buf_printf(b, ",\"minItems\":%d,\"maxItems\":%d", count_min, f->count_max);
}

/* A label is an integer or a string; the field is one label or a list of them. */
static void labels_schema(const dn_field *f, dn_buf *b)
{
    dn_buf_puts(b, "\"oneOf\":[");
    for (int list = 0; list < 2; list++) {
        dn_buf_puts(b, list ? ",{\"type\":\"array\",\"items\":{\"oneOf\":[" : "");
        dn_buf_puts(b, "{\"type\":\"integer\"");
        range_schema(f, b, "minimum", "maximum");
        dn_buf_puts(b, "},{\"type\":\"string\",\"minLength\":1,\"maxLength\":64}");
    }
    dn_buf_printf(b, "]},\"minItems\":1,\"maxItems\":%d}]", f->count_max);
}

static void type_schema(const dn_field *f, dn_buf *b)
{
    if (f->type == DN_T_LABELS) {
        labels_schema(f, b);
    } else if (f->flags & DN_F_AUTO) {
        dn_buf_puts(b, "\"oneOf\":[{\"type\":\"integer\"");
        range_schema(f, b, "minimum", "maximum");
        dn_buf_puts(b, "},{\"const\":\"auto\"}]");
        return;
    } else if (f->type == DN_T_OBJECT) {
        ref_schema(f->sub, b);
    } else if (f->flags & DN_F_NULL) {
        dn_buf_printf(b, "\"type\":[\"%s\",\"null\"]", types[f->type].schema);
    } else {
        dn_buf_printf(b, "\"type\":\"%s\"", types[f->type].schema);
    }
    switch (f->type) {
    case DN_T_INT:
    case DN_T_NUM:
        range_schema(f, b, "minimum", "maximum");
        break;
    case DN_T_STR:
        range_schema(f, b, "minLength", "maxLength");
        break;
    case DN_T_ENUM:
    case DN_T_NAME:
        choices_schema(f, b);
        break;
    case DN_T_PAIR:
        list_schema(f, b, 2);
        break;
    case DN_T_NUMS:
    case DN_T_LIST:
    case DN_T_STRS:
        list_schema(f, b, f->type == DN_T_NUMS);
        break;
    case DN_T_BYTES:
        dn_buf_puts(b, ",\"contentEncoding\":\"base64\"");
        break;
    default:
        break;
    }
}

static void default_schema(const dn_field *f, dn_buf *b)
{
    json_t *v = f->def ? dn_field_from_text(f, f->def, NULL) : NULL;
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    if (text)
        dn_buf_printf(b, ",\"default\":%s", text);
    if (f->def && !text)
        b->failed = true; /* out of memory */
    free(text);
    json_decref(v);
}

void dn_field_schema(const dn_field *f, dn_buf *b)
{
    dn_buf_puts(b, "{");
    type_schema(f, b);
    default_schema(f, b);
    if (f->unit)
        key_string(b, "x-unit", f->unit);
    if (f->help)
        key_string(b, "description", f->help);
    dn_buf_puts(b, "}");
}

void dn_fields_schema(const dn_fields *t, dn_buf *b)
{
    int n_required = 0;
    dn_buf_puts(b, "{\"type\":\"object\"");
    if (t->help)
        key_string(b, "description", t->help);
    dn_buf_puts(b, ",\"properties\":{");
    for (int i = 0; i < t->n; i++) {
        dn_buf_puts(b, i ? "," : "");
        dn_buf_json_string(b, t->v[i].name);
        dn_buf_puts(b, ":");
        dn_field_schema(&t->v[i], b);
    }
    dn_buf_puts(b, "},\"required\":[");
    for (int i = 0; i < t->n; i++) {
        if (!(t->v[i].flags & DN_F_REQUIRED))
            continue;
        dn_buf_puts(b, n_required++ ? "," : "");
        dn_buf_json_string(b, t->v[i].name);
    }
    dn_buf_puts(b, "],\"additionalProperties\":false}");
}

static void range_words(const dn_field *f, dn_buf *b)
{
    if (f->choices) {
        for (int i = 0; f->choices[i]; i++)
            dn_buf_printf(b, " `%s`", f->choices[i]);
    } else if (f->min != f->max && f->type != DN_T_STR && f->type != DN_T_STRS) {
        dn_buf_puts(b, " ");
        dn_buf_json_number(b, f->min);
        dn_buf_puts(b, "..");
        dn_buf_json_number(b, f->max);
    }
    if (f->type == DN_T_NUMS && !(f->flags & DN_F_ANY_ORDER))
        dn_buf_puts(b, ", descending");
    if (f->count_max)
        dn_buf_printf(b, ", at most %d", f->count_max);
    if (f->unit)
        dn_buf_printf(b, " (%s)", f->unit);
}

static void markdown_rows(const dn_fields *t, const char *prefix, dn_buf *b)
{
    for (int i = 0; i < t->n; i++) {
        const dn_field *f = &t->v[i];
        if (f->type == DN_T_OBJECT) {
            char name[128];
            snprintf(name, sizeof name, "%s%s.", prefix, f->name);
            markdown_rows(f->sub, name, b);
            continue;
        }
        dn_buf_printf(b, "| `%s%s` | %s", prefix, f->name, types[f->type].words);
        range_words(f, b);
        if (f->def)
            dn_buf_printf(b, " | `%s`", f->def);
        else
            dn_buf_puts(b, f->flags & DN_F_REQUIRED ? " | required" : " |");
        dn_buf_printf(b, " | %s |\n", f->help ? f->help : "");
    }
}

void dn_fields_markdown(const dn_fields *t, dn_buf *b)
{
    dn_buf_puts(b, "| field | type | default | meaning |\n|---|---|---|---|\n");
    markdown_rows(t, "", b);
}
