/* cli.c - the command line's flags for a request, from its table.
 *
 * A field is spelled by its dotted name with dashes (--deadline-ms, --output-layout) or by its `flag`. */
#include "json.h"
#include "proto.h"

#include <stdio.h>
#include <string.h>

enum { SPELLING_MAX = 64, HELP_LEFT = 32 };

/* Flags that say a whole value, each of one table. */
static const struct {
    const dn_fields *of;
    const char *flag, *object, *key, *value, *help;
} shorthands[] = {
    { &dn_generate_fields, "grid", "output", "layout", "grid", "the same as --layout grid" },
};

struct hit {
    const dn_field *field;
    const char *object[2]; /* the objects that lead to it */
    int depth;
};

static void spelling(const dn_field *f, const char *prefix, char *out, size_t size)
{
    snprintf(out, size, "%s%s", f->flag ? "" : prefix, f->flag ? f->flag : f->name);
    for (char *c = out; *c; c++)
        if (*c == '_')
            *c = '-';
}

/* Calls fn for each flag, depth first, until it returns true. */
typedef bool visit_fn(void *arg, const struct hit *h, const char *flag);
static bool visit(const dn_fields *t, struct hit h, const char *prefix, visit_fn *fn, void *arg)
{
    for (int i = 0; i < t->n; i++) {
        const dn_field *f = &t->v[i];
        char flag[SPELLING_MAX];
        h.field = f;
        spelling(f, prefix, flag, sizeof flag);
        if (f->type == DN_T_OBJECT) {
            struct hit below = h;
            char deeper[SPELLING_MAX + 1];
            below.object[below.depth++] = f->name;
            snprintf(deeper, sizeof deeper, "%s-", flag);
            if (visit(f->sub, below, deeper, fn, arg))
                return true;
        } else if (*flag && fn(arg, &h, flag)) {
            return true;
        }
    }
    return false;
}

struct search {
    const char *name; /* without dashes */
    size_t len;
    bool is_short;
    struct hit found;
};

static bool is_wanted(void *arg, const struct hit *h, const char *flag)
{
    struct search *s = arg;
    bool same =
        s->is_short ? h->field->short_flag == s->name[0] : strlen(flag) == s->len && !strncmp(flag, s->name, s->len);
    if (same)
        s->found = *h;
    return same;
}

/* Set a value (whose reference is taken over) below the objects of the path, which are made where they are missing. */
static int set_value(json_t *request, const char *const *object, int depth, const char *key, json_t *value,
                     dn_http_error *err)
{
    for (int i = 0; i < depth && request; i++) {
        if (!json_object_get(request, object[i]))
            json_object_set_new(request, object[i], json_object());
        request = json_object_get(request, object[i]);
    }
    if (json_object_get(request, key)) {
        json_decref(value);
        return dn_http_fail(err, DN_H_DUPLICATE, key, "%s is given twice", key);
    }
    return json_object_set_new(request, key, value) ? dn_http_fail(err, DN_H_MEMORY, key, NULL) : 0;
}

static int set_shorthand(const dn_fields *t, json_t *request, const char *name, dn_http_error *err)
{
    for (size_t i = 0; i < sizeof shorthands / sizeof *shorthands; i++)
        if (shorthands[i].of == t && !strcmp(name, shorthands[i].flag)) {
            const char *object[] = { shorthands[i].object };
            return set_value(request, object, 1, shorthands[i].key, json_string(shorthands[i].value), err) ? -1 : 1;
        }
    return 0;
}

int dn_cli_flag(const dn_fields *t, json_t *request, int argc, char *const *argv, dn_http_error *err)
{
    const char *arg = argc > 0 ? argv[0] : "";
    if (arg[0] != '-' || !arg[1])
        return 0;
    bool is_long = arg[1] == '-';
    if (is_long ? !arg[2] : arg[2] != 0)
        return 0;
    struct search s = { .name = arg + 1 + is_long, .is_short = !is_long };
    s.len = strcspn(s.name, "=");
    if (is_long && !s.name[s.len]) {
        int used = set_shorthand(t, request, s.name, err);
        if (used)
            return used;
    }
    if (!visit(t, (struct hit){ 0 }, "", is_wanted, &s))
        return 0;
    const dn_field *f = s.found.field;
    const char *text = is_long && s.name[s.len] ? s.name + s.len + 1 : NULL;
    int used = 1;
    if (!text && f->type == DN_T_BOOL)
        text = "true";
    else if (!text) {
        if (argc < 2) {
            dn_http_fail(err, DN_H_MISSING, f->name, "%s needs a value", arg);
            return -1;
        }
        text = argv[1];
        used = 2;
    }
    json_t *value = dn_field_from_text(f, text, err);
    return !value || set_value(request, s.found.object, s.found.depth, f->name, value, err) ? -1 : used;
}

static bool add_help(void *arg, const struct hit *h, const char *flag)
{
    dn_buf *b = arg;
    const dn_field *f = h->field;
    char left[SPELLING_MAX + 32], brief[8] = "    ";
    if (f->short_flag)
        snprintf(brief, sizeof brief, "-%c, ", f->short_flag);
    const char *value = f->type == DN_T_BOOL ? "" : f->type == DN_T_INT ? " N" : " VALUE";
    snprintf(left, sizeof left, "%s--%s%s", brief, flag, value);
    dn_buf_printf(b, "  %-*s ", HELP_LEFT, left);
    if (strlen(left) > HELP_LEFT)
        dn_buf_printf(b, "\n%*s", HELP_LEFT + 3, "");
    dn_buf_puts(b, f->help);
    if (f->choices) {
        dn_buf_printf(b, "\n%*s", HELP_LEFT + 5, "");
        for (int i = 0; f->choices[i]; i++)
            dn_buf_printf(b, "%s%s", i ? " | " : "", f->choices[i]);
    }
    if (f->def)
        dn_buf_printf(b, " (%s)", f->def);
    dn_buf_puts(b, "\n");
    return false;
}

void dn_cli_help(const dn_fields *t, dn_buf *b)
{
    visit(t, (struct hit){ 0 }, "", add_help, b);
    for (size_t i = 0; i < sizeof shorthands / sizeof *shorthands; i++) {
        char left[SPELLING_MAX];
        if (shorthands[i].of != t)
            continue;
        snprintf(left, sizeof left, "    --%s", shorthands[i].flag);
        dn_buf_printf(b, "  %-*s %s\n", HELP_LEFT, left, shorthands[i].help);
    }
}
