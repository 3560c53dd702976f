/* field.c - from JSON to structs by table: types, ranges, choices, unknown and missing names, and the error texts. */
#include "field.h"
#include "json.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct path {
    const struct path *up;
    const char *name; /* NULL: element `index` of the list `up` */
    int index;
};

struct parse {
    dn_arena *arena;
    dn_http_error *err;
};

typedef int parse_fn(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst);
static parse_fn parse_value;
static int parse_object(struct parse *c, const dn_fields *t, const struct path *p, const json_t *v, void *out);

static size_t path_text(const struct path *p, char *out, size_t size)
{
    size_t n = p->up ? path_text(p->up, out, size) : 0;
    if (n >= size)
        return n;
    int w = p->name ? snprintf(out + n, size - n, "%s%s", n ? "." : "", p->name)
                    : snprintf(out + n, size - n, "[%d]", p->index);
    return n + (w > 0 ? (size_t)w : 0);
}

__attribute__((format(printf, 4, 5))) static int fail(struct parse *c, int code, const struct path *p, const char *fmt,
                                                      ...)
{
    char param[96] = "", text[480];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (p)
        path_text(p, param, sizeof param);
    return dn_http_fail(c->err, code, param, "%s %s", p ? param : "the body", text);
}

static int fail_memory(struct parse *c, const struct path *p)
{
    return fail(c, DN_H_MEMORY, p, "does not fit into the memory of one request");
}

static int fail_type(struct parse *c, const struct path *p, const json_t *v, const char *wanted)
{
    return fail(c, DN_H_TYPE, p, "must be %s, got %s", wanted, dn_json_kind(v));
}

static int fail_range(struct parse *c, const dn_field *f, const struct path *p, const json_t *v)
{
    dn_buf range;
    char got[64];
    dn_buf_init(&range, 128);
    dn_buf_json_number(&range, f->min);
    dn_buf_puts(&range, "..");
    dn_buf_json_number(&range, f->max);
    dn_json_brief(v, got, sizeof got);
    int code = fail(c, DN_H_RANGE, p, "must be %s, got %s", range.data ? range.data : "in its range", got);
    dn_buf_fini(&range);
    return code;
}

static int parse_bool(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    (void)f;
    if (!json_is_boolean(v))
        return fail_type(c, p, v, "true or false");
    *(bool *)dst = json_is_true(v);
    return 0;
}

/* 4 and 4.0 are the same number in JSON. */
static int parse_int(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    double d = json_number_value(v);
    if (f->flags & DN_F_AUTO && json_is_string(v) && !strcmp(json_string_value(v), "auto")) {
        *(int64_t *)dst = 0;
        return 0;
    }
    if (!json_is_number(v) || d != floor(d))
        return fail_type(c, p, v, f->flags & DN_F_AUTO ? "an integer or \"auto\"" : "an integer");
    if (!(d >= f->min && d <= f->max))
        return fail_range(c, f, p, v);
    *(int64_t *)dst = json_is_integer(v) ? json_integer_value(v) : (int64_t)d;
    return 0;
}

static int parse_num(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    double d = json_number_value(v);
    if (!json_is_number(v))
        return fail_type(c, p, v, "a number");
    if (!(d >= f->min && d <= f->max))
        return fail_range(c, f, p, v);
    *(double *)dst = d;
    return 0;
}

static int parse_str(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    if (!json_is_string(v))
        return fail_type(c, p, v, "a string");
    size_t len = json_string_length(v);
    if ((double)len < f->min || (double)len > f->max)
        return fail(c, DN_H_RANGE, p, "must have %.0f..%.0f characters, got %zu", f->min, f->max, len);
    char *s = dn_arena_strndup(c->arena, json_string_value(v), len);
    if (!s)
        return fail_memory(c, p);
    *(const char **)dst = s;
    return 0;
}

static int index_of(const char *const *names, const char *s)
{
    for (int i = 0; names && names[i]; i++)
        if (!strcmp(names[i], s))
            return i;
    return -1;
}

/* The index of a choice, or -1 with *err. */
static int parse_choice(struct parse *c, const dn_field *f, const struct path *p, const json_t *v)
{
    if (!json_is_string(v)) {
        fail_type(c, p, v, "a string");
        return -1;
    }
    const char *s = json_string_value(v);
    int i = index_of(f->choices, s);
    if (i >= 0)
        return i;
    if (index_of(f->later, s) >= 0) {
        fail(c, DN_H_UNSUPPORTED, p, "\"%s\" belongs to a later version", s);
        return -1;
    }
    dn_buf list;
    dn_buf_init(&list, 4096);
    for (i = 0; f->choices[i]; i++)
        dn_buf_printf(&list, "%s%s", i ? ", " : "", f->choices[i]);
    const char *near = dn_near_miss(s, f->choices);
    char got[64], hint[80] = "";
    dn_json_brief(v, got, sizeof got);
    if (near)
        snprintf(hint, sizeof hint, " (did you mean \"%s\"?)", near);
    fail(c, DN_H_CHOICE, p, "must be one of %s, got %s%s", list.data ? list.data : "its choices", got, hint);
    dn_buf_fini(&list);
    return -1;
}

static int parse_enum(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    int i = parse_choice(c, f, p, v);
    if (i < 0)
        return c->err->id;
    *(int *)dst = i;
    return 0;
}

static int parse_name(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    int i = parse_choice(c, f, p, v);
    if (i < 0)
        return c->err->id;
    *(const char **)dst = f->choices[i];
    return 0;
}

static int parse_pair(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    double d[2];
    if (!json_is_array(v) || json_array_size(v) != 2)
        return fail_type(c, p, v, "a list of two numbers");
    for (int i = 0; i < 2; i++) {
        int code = parse_num(c, f, &(struct path){ .up = p, .index = i }, json_array_get(v, i), &d[i]);
        if (code)
            return code;
    }
    if (!(d[0] < d[1]) && !(f->flags & DN_F_ANY_ORDER))
        return fail(c, DN_H_RANGE, p, "must be [a,b] with a < b");
    memcpy(dst, d, sizeof d);
    return 0;
}

/* The length of a list within 1..count_max, or 0 with *err. */
static size_t list_len(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, const char *wanted)
{
    if (!json_is_array(v)) {
        fail_type(c, p, v, wanted);
        return 0;
    }
    size_t n = json_array_size(v);
    if (n >= 1 && n <= (size_t)f->count_max)
        return n;
    fail(c, DN_H_RANGE, p, "must have 1..%d elements, got %zu", f->count_max, n);
    return 0;
}

static int parse_nums(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    size_t n = list_len(c, f, p, v, "a list of numbers");
    if (!n)
        return c->err->id;
    double *d = dn_arena_alloc(c->arena, n * sizeof *d);
    if (!d)
        return fail_memory(c, p);
    for (size_t i = 0; i < n; i++) {
        struct path at = { .up = p, .index = (int)i };
        int code = parse_num(c, f, &at, json_array_get(v, i), &d[i]);
        if (code)
            return code;
        if (i && !(d[i] < d[i - 1]) && !(f->flags & DN_F_ANY_ORDER))
            return fail(c, DN_H_RANGE, &at, "must be less than the element before it: the list descends");
    }
    *(dn_nums *)dst = (dn_nums){ d, (int)n };
    return 0;
}

static int parse_label(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, dn_label *dst)
{
    const dn_field name = { .min = 1, .max = 64 };
    if (json_is_string(v))
        return parse_str(c, &name, p, v, &dst->name);
    if (json_is_number(v))
        return parse_int(c, f, p, v, &dst->number);
    return fail_type(c, p, v, "a number or a name");
}

static int parse_labels(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    bool list = json_is_array(v);
    size_t n = list ? list_len(c, f, p, v, "") : 1;
    if (!n)
        return c->err->id;
    if (!list && !json_is_string(v) && !json_is_number(v))
        return fail_type(c, p, v, "a number, a name or a list of those");
    dn_label *l = dn_arena_alloc(c->arena, n * sizeof *l);
    if (!l)
        return fail_memory(c, p);
    for (size_t i = 0; i < n; i++) {
        struct path at = { .up = p, .index = (int)i };
        int code = parse_label(c, f, list ? &at : p, list ? json_array_get(v, i) : v, &l[i]);
        if (code)
            return code;
    }
    *(dn_labels *)dst = (dn_labels){ l, (int)n, list };
    return 0;
}

static int parse_strs(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    size_t n = list_len(c, f, p, v, "a list of strings");
    if (!n)
        return c->err->id;
    const char **s = dn_arena_alloc(c->arena, n * sizeof *s);
    if (!s)
        return fail_memory(c, p);
    for (size_t i = 0; i < n; i++) {
        int code = parse_str(c, f, &(struct path){ .up = p, .index = (int)i }, json_array_get(v, i), &s[i]);
        if (code)
            return code;
    }
    *(dn_strs *)dst = (dn_strs){ s, (int)n };
    return 0;
}

static int parse_list(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    if (json_is_array(v) && !json_array_size(v)) { /* as if it were left out */
        *(dn_items *)dst = (dn_items){ 0 };
        return 0;
    }
    size_t n = list_len(c, f, p, v, "a list of objects");
    if (!n)
        return c->err->id;
    char *item = dn_arena_alloc(c->arena, n * f->sub->size);
    if (!item)
        return fail_memory(c, p);
    memset(item, 0, n * f->sub->size);
    for (size_t i = 0; i < n; i++) {
        struct path at = { .up = p, .index = (int)i };
        int code = parse_object(c, f->sub, &at, json_array_get(v, i), item + i * f->sub->size);
        if (code)
            return code;
    }
    *(dn_items *)dst = (dn_items){ item, (int)n };
    return 0;
}

static int parse_json(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    (void)f;
    if (!json_is_object(v))
        return fail_type(c, p, v, "an object");
    *(const json_t **)dst = v;
    return 0;
}

static int parse_sub(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    return parse_object(c, f->sub, p, v, dst);
}

/* DN_T_BYTES is of responses only. */
static parse_fn *const parsers[DN_T_COUNT] = {
    [DN_T_BOOL] = parse_bool, [DN_T_INT] = parse_int,    [DN_T_NUM] = parse_num,       [DN_T_STR] = parse_str,
    [DN_T_ENUM] = parse_enum, [DN_T_NAME] = parse_name,  [DN_T_PAIR] = parse_pair,     [DN_T_NUMS] = parse_nums,
    [DN_T_JSON] = parse_json, [DN_T_OBJECT] = parse_sub, [DN_T_LABELS] = parse_labels, [DN_T_STRS] = parse_strs,
    [DN_T_SIZE] = parse_int,  [DN_T_TIME] = parse_int,
    [DN_T_LIST] = parse_list,
};

static int parse_value(struct parse *c, const dn_field *f, const struct path *p, const json_t *v, void *dst)
{
    assert(parsers[f->type]);
    if (f->flags & DN_F_ONLY) {
        json_t *only = dn_field_from_text(f, f->def, NULL);
        bool same = only && json_is_number(v) && json_number_value(only) == json_number_value(v);
        json_decref(only);
        if (json_is_number(v) && !same)
            return fail(c, DN_H_UNSUPPORTED, p, "other than %s belongs to a later version", f->def);
    }
    return parsers[f->type](c, f, p, v, dst);
}

static int fail_unknown(struct parse *c, const dn_fields *t, const struct path *p)
{
    const char *names[65] = { NULL };
    if (index_of(t->later, p->name) >= 0)
        return fail(c, DN_H_UNSUPPORTED, p, "belongs to a later version");
    for (int i = 0; i < t->n; i++)
        names[i] = t->v[i].name;
    const char *near = dn_near_miss(p->name, names);
    char hint[80] = "";
    if (near)
        snprintf(hint, sizeof hint, " (did you mean \"%s\"?)", near);
    return fail(c, DN_H_UNKNOWN, p, "is no field of %s%s", t->name, hint);
}

static int fill_defaults(struct parse *c, const dn_fields *t, const struct path *p, void *out)
{
    uint64_t has = *(uint64_t *)out;
    for (int i = 0; i < t->n; i++) {
        const dn_field *f = &t->v[i];
        void *dst = (char *)out + f->offset;
        struct path at = { .up = p, .name = f->name };
        int code = 0;
        if (has >> i & 1)
            continue;
        if (f->type == DN_T_OBJECT) {
            code = fill_defaults(c, f->sub, &at, dst);
        } else if (f->def) {
            json_t *v = dn_field_from_text(f, f->def, c->err);
            code = v ? parse_value(c, f, &at, v, dst) : c->err->id;
            json_decref(v);
        }
        if (code)
            return code;
    }
    return 0;
}

static int parse_object(struct parse *c, const dn_fields *t, const struct path *p, const json_t *v, void *out)
{
    if (!json_is_object(v))
        return fail_type(c, p, v, "an object");
    const char *key;
    json_t *value;
    uint64_t *has = out;
    json_object_foreach((json_t *)v, key, value)
    {
        struct path at = { .up = p, .name = key };
        int i = dn_fields_find(t, key);
        if (i < 0)
            return fail_unknown(c, t, &at);
        int code = parse_value(c, &t->v[i], &at, value, (char *)out + t->v[i].offset);
        if (code)
            return code;
        *has |= 1ull << i;
    }
    for (int i = 0; i < t->n; i++)
        if (t->v[i].flags & DN_F_REQUIRED && !(*has >> i & 1))
            return fail(c, DN_H_MISSING, &(struct path){ .up = p, .name = t->v[i].name }, "must be given");
    return fill_defaults(c, t, p, out);
}

int dn_fields_parse(const dn_fields *t, void *out, dn_arena *a, const json_t *json, dn_http_error *err)
{
    dn_http_error mine;
    struct parse c = { a, err ? err : &mine };
    return parse_object(&c, t, NULL, json, out);
}

int dn_field_set(const dn_fields *t, int field, void *out, dn_arena *a, const json_t *json, dn_http_error *err)
{
    dn_http_error mine;
    struct parse c = { a, err ? err : &mine };
    const dn_field *f = &t->v[field];
    int code = parse_value(&c, f, &(struct path){ .name = f->name }, json, (char *)out + f->offset);
    if (!code)
        *(uint64_t *)out |= 1ull << field;
    return code;
}

int dn_fields_defaults(const dn_fields *t, void *out, dn_arena *a, dn_http_error *err)
{
    dn_http_error mine;
    struct parse c = { a, err ? err : &mine };
    return fill_defaults(&c, t, NULL, out);
}

int dn_fields_find(const dn_fields *t, const char *name)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->v[i].name, name))
            return i;
    return -1;
}

/* Edits (insert, delete, replace, swap neighbours) between two short words; words past the table's width are far. */
static int edit_distance(const char *a, const char *b)
{
    enum { WIDTH = 40 };
    int d[WIDTH + 1][WIDTH + 1];
    int n = (int)strnlen(a, WIDTH + 1), m = (int)strnlen(b, WIDTH + 1);
    if (n > WIDTH || m > WIDTH)
        return WIDTH;
    for (int i = 0; i <= n; i++)
        for (int j = 0; j <= m; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
            best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

const char *dn_near_miss(const char *word, const char *const *names)
{
    const char *best = NULL;
    int best_distance = 3;
    for (int i = 0; names[i]; i++) {
        int distance = edit_distance(word, names[i]);
        if (distance < best_distance && distance * 2 <= (int)strlen(names[i])) {
            best = names[i];
            best_distance = distance;
        }
    }
    return best;
}
