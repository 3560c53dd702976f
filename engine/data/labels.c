/* labels.c - labels files and class folders. See labels.h. */
#include "labels.h"
#include "json.h"
#include "memory.h"
#include "source.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LINE_FIELDS = 64 };

/* A piece of a string. */
struct span {
    const char *p;
    size_t len;
};

void dn_labels_fini(dn_labels *l)
{
    free(l->at);
    dn_heap_free(l->text);
    *l = (dn_labels){ 0 };
}

void dn_classes_fini(dn_classes *c)
{
    free(c->name);
    dn_heap_free(c->text);
    *c = (dn_classes){ 0 };
}

static int no_memory(dn_error *err) { return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the labels"); }

static int bad_line(const char *name, int line, const char *why, dn_error *err)
{
    return dn_fail(err, DN_E_FORMAT, name, "%s, line %d: %s", dn_show(name, strlen(name)).text, line, why);
}

/* --- labels files --- */

/* "a/./b" is not searched for: names of archives are clean, so only a leading "./" is dropped. */
static int add_line(dn_labels *l, const char *name, const char *file, const char *label, dn_error *err)
{
    const char *slash = strrchr(name, '/');
    int folder = slash ? (int)(slash - name) + 1 : 0;
    file += strncmp(file, "./", 2) == 0 ? 2 : 0;
    size_t room = (size_t)folder + strlen(file) + 1;
    char *path = dn_heap_alloc(&l->text, room), *text = dn_heap_string(&l->text, label);
    if (!path || !text || dn_grow(&l->at, l->len, &l->cap, sizeof *l->at) != 0)
        return no_memory(err);
    snprintf(path, room, "%.*s%s", folder, name, file);
    l->at[l->len++] = (struct dn_label_line){ path, text };
    return 0;
}

/* Split one line of CSV in place; a field may be in double quotes, doubled inside, and spaces around it are not part of
 * it. Returns where the next line starts. */
static char *split_csv(char *p, char *field[LINE_FIELDS], int *n)
{
    *n = 0;
    for (;;) {
        p += strspn(p, " \t");
        bool quoted = *p == '"';
        char *out = p += quoted, *begin = p;
        while (*p && (quoted || (*p != ',' && *p != '\n'))) {
            if (quoted && *p == '"' && p[1] != '"')
                break;
            p += quoted && *p == '"';
            *out++ = *p++;
        }
        p += quoted && *p == '"';
        while (*p && *p != ',' && *p != '\n') /* between a closing quote and the comma */
            p++;
        char end = *p;
        while (!quoted && out > begin && strchr(" \t\r", out[-1]))
            out--;
        *out = 0;
        if (*n < LINE_FIELDS)
            field[(*n)++] = begin;
        if (end != ',')
            return end ? p + 1 : p;
        p++;
    }
}

/* The column with one of these names, or -1. */
static int find_column(char *const *field, int n, const char *const *names)
{
    for (int i = 0; i < n; i++)
        for (int k = 0; names[k]; k++)
            if (strcasecmp(field[i], names[k]) == 0)
                return i;
    return -1;
}

/* What columns and JSON's members are called. */
static const char *const file_names[] = { "file_name", "file", "filename", "image", "path", NULL };
static const char *const label_names[] = { "label", "class", "target", NULL };

static int parse_csv(dn_labels *l, const char *name, char *p, dn_error *err)
{
    int file = 0, label = 1, rc = 0;
    p += strncmp(p, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    for (int line = 1, n; rc == 0 && *p; line++) {
        char *field[LINE_FIELDS];
        p = split_csv(p, field, &n);
        int column = line == 1 ? find_column(field, n, file_names) : -1;
        if (n == 1 && !field[0][0])
            continue;
        if (column >= 0) {
            file = column;
            label = find_column(field, n, label_names);
            if (label < 0)
                rc = bad_line(name, line, "its header has no column \"label\"", err);
        } else if (n <= file || n <= label || !field[file][0] || !field[label][0]) {
            rc = bad_line(name, line, "a file or its label is missing", err);
        } else {
            rc = add_line(l, name, field[file], field[label], err);
        }
    }
    return rc;
}

/* A label in JSON: text or a whole number. */
static const char *label_text(const json_t *v, char number[32])
{
    if (json_is_integer(v)) {
        snprintf(number, 32, "%lld", (long long)json_integer_value(v));
        return number;
    }
    const char *text = json_string_value(v);
    return text && text[0] ? text : NULL;
}

static int add_json(dn_labels *l, const char *name, const json_t *file, const json_t *label, int line, dn_error *err)
{
    char number[32];
    const char *f = json_string_value(file), *text = label_text(label, number);
    if (!f || !f[0] || !text)
        return bad_line(name, line, "not a file name with a label that is a name or a whole number", err);
    return add_line(l, name, f, text, err);
}

static const json_t *member(const json_t *object, const char *const *names)
{
    const json_t *v = NULL;
    for (int i = 0; !v && names[i]; i++)
        v = json_object_get(object, names[i]);
    return v;
}

/* {"file_name":"a.png","label":1} */
static int add_object(dn_labels *l, const char *name, const json_t *object, int line, dn_error *err)
{
    return add_json(l, name, member(object, file_names), member(object, label_names), line, err);
}

static int parse_entries(dn_labels *l, const char *name, const json_t *list, dn_error *err)
{
    int rc = json_is_array(list) ? 0 : bad_line(name, 1, "\"labels\" is not a list of [\"file\", label]", err);
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        if (json_is_object(entry))
            rc = add_object(l, name, entry, 1, err);
        else
            rc = json_array_size(entry) == 2
                     ? add_json(l, name, json_array_get(entry, 0), json_array_get(entry, 1), 1, err)
                     : bad_line(name, 1, "an entry that is not [\"file\", label]", err);
    }
    return rc;
}

/* A list at the top becomes the value of "labels", because the reader of JSON takes objects only. */
static int parse_json(dn_labels *l, const char *name, char *text, dn_error *err)
{
    static const char before[] = "{\"labels\":", after[] = "}";
    size_t len = strlen(text);
    bool list = text[strspn(text, " \t\r\n")] == '[';
    char *whole = list ? malloc(sizeof before + len + sizeof after) : text;
    if (!whole)
        return no_memory(err);
    if (list)
        sprintf(whole, "%s%s%s", before, text, after);
    json_t *root, *label;
    const char *file;
    int rc = dn_json_text(&root, whole, strlen(whole), name, err);
    if (list)
        free(whole);
    if (rc != 0)
        return rc;
    if (json_is_array(json_object_get(root, "labels")))
        rc = parse_entries(l, name, json_object_get(root, "labels"), err);
    else
        json_object_foreach(root, file, label)
        {
            json_t *f = rc == 0 ? json_string(file) : NULL;
            rc = rc != 0 ? rc : f ? add_json(l, name, f, label, 1, err) : no_memory(err);
            json_decref(f);
        }
    json_decref(root);
    return rc;
}

static int parse_jsonl(dn_labels *l, const char *name, char *text, dn_error *err)
{
    int rc = 0;
    for (int line = 1; rc == 0 && *text; line++) {
        size_t len = strcspn(text, "\n");
        json_t *root = NULL;
        if (len > strspn(text, " \t\r")) {
            rc = dn_json_text(&root, text, len, name, err);
            if (rc != 0)
                rc = bad_line(name, line, "not a JSON object", err);
            else
                rc = add_object(l, name, root, line, err);
            json_decref(root);
        }
        text += len + (text[len] == '\n');
    }
    return rc;
}

static const struct {
    const char *base;
    int (*parse)(dn_labels *l, const char *name, char *text, dn_error *err);
} files[] = { { "labels.csv", parse_csv },
              { "metadata.csv", parse_csv },
              { "labels.json", parse_json },
              { "dataset.json", parse_json }, /* StyleGAN's */
              { "metadata.jsonl", parse_jsonl } };
enum { FILES = sizeof files / sizeof *files };

static int find_file(const char *name)
{
    const char *slash = strrchr(name, '/'), *base = slash ? slash + 1 : name;
    for (int i = 0; i < FILES; i++)
        if (strcmp(base, files[i].base) == 0)
            return i;
    return -1;
}

bool dn_labels_is_file(const char *name) { return find_file(name) >= 0; }

int dn_labels_parse(dn_labels *l, const char *name, const char *text, size_t len, dn_error *err)
{
    if (memchr(text, 0, len))
        return bad_line(name, 1, "a zero byte", err);
    char *copy = malloc(len + 1); /* the parsers cut it up, and want a zero at its end */
    if (!copy)
        return no_memory(err);
    memcpy(copy, text, len);
    copy[len] = 0;
    int rc = files[find_file(name)].parse(l, name, copy, err);
    free(copy);
    return rc;
}

/* --- classes --- */

/* "0", "17", with minus if `negative`: no leading zeros, at most nine digits. */
static bool is_number(struct span s, bool negative, long *value)
{
    size_t sign = negative && s.len > 1 && s.p[0] == '-', digits = s.len - sign;
    if (digits < 1 || digits > 9 || (digits > 1 && s.p[sign] == '0'))
        return false;
    *value = 0;
    for (size_t i = sign; i < s.len; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return false;
        *value = *value * 10 + (s.p[i] - '0');
    }
    *value = sign ? -*value : *value;
    return true;
}

static int by_text(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    int c = memcmp(x->p, y->p, x->len < y->len ? x->len : y->len);
    return c != 0 ? c : (x->len > y->len) - (x->len < y->len);
}

static int by_number(const void *a, const void *b)
{
    long x = 0, y = 0;
    is_number(*(const struct span *)a, false, &x);
    is_number(*(const struct span *)b, false, &y);
    return (x > y) - (x < y);
}

static bool all_numbers(const struct span *s, int64_t n, bool negative)
{
    long v;
    for (int64_t i = 0; i < n; i++)
        if (!is_number(s[i], negative, &v))
            return false;
    return true;
}

/* Sorted, each once: their number. */
static int64_t unique(struct span *s, int64_t n, int (*order)(const void *, const void *))
{
    int64_t m = 0;
    qsort(s, (size_t)n, sizeof *s, order);
    for (int64_t i = 0; i < n; i++)
        if (m == 0 || order(&s[m - 1], &s[i]) != 0)
            s[m++] = s[i];
    return m;
}

static int name_classes(dn_classes *out, const struct span *s, dn_error *err)
{
    out->name = calloc((size_t)out->n, sizeof *out->name);
    for (int i = 0; out->name && i < out->n; i++) {
        out->name[i] = dn_heap_alloc(&out->text, s[i].len + 1);
        if (!out->name[i])
            return no_memory(err);
        memcpy(out->name[i], s[i].p, s[i].len);
    }
    return out->name ? 0 : no_memory(err);
}

/* Each item's label from its text: the position among the sorted texts. */
static int label_by_name(dn_classes *out, dn_item *item, const struct span *text, int64_t n, dn_error *err)
{
    struct span *sorted = malloc((size_t)n * sizeof *sorted);
    if (!sorted)
        return no_memory(err);
    memcpy(sorted, text, (size_t)n * sizeof *sorted);
    bool numbers = all_numbers(text, n, false);
    int (*order)(const void *, const void *) = numbers ? by_number : by_text;
    int64_t m = unique(sorted, n, order);
    long last = -1;
    int rc = 0;
    out->n = (int)m;
    if (m > DN_DATASET_CLASSES_MAX)
        rc = dn_fail(err, DN_E_LIMIT, NULL, "%lld classes; the limit is %d", (long long)m, DN_DATASET_CLASSES_MAX);
    else if (!numbers || !is_number(sorted[m - 1], false, &last) || last != m - 1)
        rc = name_classes(out, sorted, err);
    for (int64_t i = 0; rc == 0 && i < n; i++) {
        const struct span *at = bsearch(&text[i], sorted, (size_t)m, sizeof *sorted, order);
        item[i].record.label = (int32_t)(at - sorted);
    }
    free(sorted);
    return rc;
}

static int label_by_number(dn_classes *out, dn_item *item, const struct span *text, int64_t n, dn_error *err)
{
    for (int64_t i = 0; i < n; i++) {
        long v = 0;
        is_number(text[i], true, &v);
        if (v < 0 || v >= DN_DATASET_CLASSES_MAX)
            return dn_fail(err, DN_E_RANGE, item[i].name, "label %ld of %s is not 0..%d", v,
                           dn_show(item[i].name, strlen(item[i].name)).text, DN_DATASET_CLASSES_MAX - 1);
        item[i].record.label = (int32_t)v;
        out->n = v >= out->n ? (int)v + 1 : out->n;
    }
    return 0;
}

/* --- by labels files --- */

static int by_file(const void *a, const void *b)
{
    const struct dn_label_line *x = a, *y = b;
    return strcmp(x->file, y->file);
}

static int item_by_name(const void *a, const void *b)
{
    return strcmp(((const dn_item *)a)->name, ((const dn_item *)b)->name);
}

static int check_lines(const dn_labels *l, dn_error *err)
{
    for (int i = 1; i < l->len; i++)
        if (strcmp(l->at[i].file, l->at[i - 1].file) == 0)
            return dn_fail(err, DN_E_FORMAT, l->at[i].file, "%s: labelled twice",
                           dn_show(l->at[i].file, strlen(l->at[i].file)).text);
    return 0;
}

/* Walk both sorted lists. Items without a line get no text and no height. */
static int match(struct span *text, dn_labels *l, dn_item *item, int64_t n, dn_label_missing missing, void *arg,
                 dn_error *err)
{
    int64_t i = 0;
    int k = 0, rc = 0;
    while (rc == 0 && (i < n || k < l->len)) {
        int c = i == n ? 1 : k == l->len ? -1 : strcmp(item[i].name, l->at[k].file);
        if (c < 0) {
            rc = missing(arg, item[i].name, "no labels file names it", err);
            item[i].record.height = 0;
            text[i++] = (struct span){ 0 };
        } else if (c > 0) {
            rc = missing(arg, l->at[k++].file, "a labels file names it, but it is not there or broken", err);
        } else {
            text[i++] = (struct span){ l->at[k].label, strlen(l->at[k].label) };
            k++;
        }
    }
    return rc;
}

/* The items that have a text, together at the front; the others keep height 0. Returns their number. */
static int64_t gather(struct span *text, dn_item *item, int64_t n)
{
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++)
        if (text[i].p) {
            dn_item it = item[m];
            item[m] = item[i];
            item[i] = it;
            text[m++] = text[i];
        }
    return m;
}

static int apply_files(dn_classes *out, struct span *text, dn_labels *l, dn_item *item, int64_t n,
                       dn_label_missing missing, void *arg, dn_error *err)
{
    qsort(l->at, (size_t)l->len, sizeof *l->at, by_file);
    qsort(item, (size_t)n, sizeof *item, item_by_name);
    int rc = check_lines(l, err);
    if (rc == 0)
        rc = match(text, l, item, n, missing, arg, err);
    if (rc != 0)
        return rc;
    int64_t m = gather(text, item, n);
    if (m == 0)
        return 0;
    return all_numbers(text, m, true) ? label_by_number(out, item, text, m, err)
                                      : label_by_name(out, item, text, m, err);
}

/* --- by folders --- */

/* Bytes of the folders that all names begin with. */
static size_t common_folders(const dn_item *item, int64_t n)
{
    const char *first = item[0].name, *slash = strrchr(first, '/');
    size_t len = slash ? (size_t)(slash - first) + 1 : 0;
    for (int64_t i = 1; i < n && len > 0; i++) {
        size_t same = 0;
        while (same < len && item[i].name[same] == first[same])
            same++;
        while (same > 0 && first[same - 1] != '/')
            same--;
        len = same;
    }
    return len;
}

static int apply_folders(dn_classes *out, struct span *text, dn_item *item, int64_t n, dn_error *err)
{
    size_t skip = common_folders(item, n);
    int64_t in_folders = 0, loose = 0;
    for (int64_t i = 0; i < n; i++) {
        const char *p = item[i].name + skip, *slash = strchr(p, '/');
        text[i] = (struct span){ p, slash ? (size_t)(slash - p) : 0 };
        in_folders += slash != NULL;
        loose = slash ? loose : i;
    }
    if (in_folders == 0)
        return 0;
    if (in_folders < n)
        return dn_fail(err, DN_E_INVALID, item[loose].name, "%s: in no class folder, as others are",
                       dn_show(item[loose].name, strlen(item[loose].name)).text);
    return label_by_name(out, item, text, n, err);
}

int dn_labels_apply(dn_classes *out, dn_labels *l, dn_item *item, int64_t n, dn_label_missing missing, void *arg,
                    dn_error *err)
{
    if (n == 0)
        return 0;
    struct span *text = malloc((size_t)n * sizeof *text);
    if (!text)
        return no_memory(err);
    int rc =
        l->len > 0 ? apply_files(out, text, l, item, n, missing, arg, err) : apply_folders(out, text, item, n, err);
    free(text);
    return rc;
}
