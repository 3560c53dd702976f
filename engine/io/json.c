/* json.c - JSON of bounded depth and number of values. See json.h and dn_json_load in checkpoint.h. */
#include "json.h"
#include "checkpoint.h"
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The byte after the string that starts at text[i]. */
static size_t skip_string(const char *text, size_t i, size_t len)
{
    for (i++; i < len && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i + 1;
}

/* Every value but the first follows a comma or an opening bracket. */
static int check_limits(const char *text, size_t len, const char *file, dn_error *err)
{
    int depth = 0, values = 0, line = 1;
    for (size_t i = 0; i < len;) {
        char c = text[i];
        line += c == '\n';
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        values += c == '{' || c == '[' || c == ',';
        if (depth > DN_JSON_DEPTH_MAX)
            return dn_fail(err, DN_E_LIMIT, file, "%s, line %d: nested more than %d deep", file, line,
                           DN_JSON_DEPTH_MAX);
        if (values > DN_JSON_VALUES_MAX)
            return dn_fail(err, DN_E_LIMIT, file, "%s, line %d: more than %d values", file, line, DN_JSON_VALUES_MAX);
        i = c == '"' ? skip_string(text, i, len) : i + 1;
    }
    return 0;
}

int dn_json_text(json_t **out, const char *text, size_t len, const char *file, dn_error *err)
{
    int rc = check_limits(text, len, file, err);
    if (rc != 0)
        return rc;
    json_error_t e;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (!root && !e.text[0]) /* every syntax error has a text */
        return dn_fail(err, DN_E_MEMORY, file, "%s: no memory to parse it", file);
    if (!root)
        return dn_fail(err, DN_E_FORMAT, file, "%s, line %d: %s", file, e.line, dn_show(e.text, strlen(e.text)).text);
    if (!json_is_object(root)) {
        json_decref(root);
        return dn_fail(err, DN_E_FORMAT, file, "%s, line 1: not a JSON object", file);
    }
    *out = root;
    return 0;
}

/* Python writes infinities as bare words (diffusers' lambda_min_clipped): they become null, "not given". */
static void blank_infinities(char *text, size_t len)
{
    static const char word[] = "Infinity";
    for (size_t i = 0; i < len;) {
        size_t minus = text[i] == '-', n = sizeof word - 1 + minus;
        if (i + n <= len && !memcmp(text + i + minus, word, sizeof word - 1)) {
            memset(text + i, ' ', n);
            memcpy(text + i, "null", 4);
        }
        i = text[i] == '"' ? skip_string(text, i, len) : i + 1;
    }
}

int dn_json_load_at(json_t **out, int dirfd, const char *file, size_t limit, dn_error *err)
{
    dn_source src;
    int rc = dn_source_open(&src, dirfd, file, err);
    if (rc != 0)
        return rc;
    uint8_t *text = NULL;
    if (src.size > limit)
        rc = dn_fail(err, DN_E_LIMIT, file, "%s is %llu bytes long; the limit is %zu", file,
                     (unsigned long long)src.size, limit);
    else
        rc = dn_source_load(&text, &src, 0, (size_t)src.size, err);
    if (rc == 0)
        blank_infinities((char *)text, (size_t)src.size);
    if (rc == 0)
        rc = dn_json_text(out, (const char *)text, (size_t)src.size, file, err);
    free(text);
    dn_source_close(&src);
    return rc;
}

int dn_json_load(json_t **out, const char *dir, const char *file, size_t limit, dn_error *err)
{
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, file, "%s: cannot open its folder: %m", file);
    int rc = dn_json_load_at(out, dirfd, file, limit, err);
    close(dirfd);
    return rc;
}
