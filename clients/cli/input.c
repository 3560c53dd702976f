/* input.c - what the user named: JSON files, ids, names. */
#include "cli.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

static int read_all(dn_buf *b, const char *path, const char *label)
{
    char block[4096];
    bool in_stdin = !strcmp(path, "-");
    FILE *f = in_stdin ? stdin : fopen(path, "re");
    if (!f) {
        dn_complain("%s%s: %s", label, path, strerror(errno));
        return DN_EXIT_USAGE;
    }
    for (size_t n; !b->failed && (n = fread(block, 1, sizeof block, f)) > 0;)
        dn_buf_add(b, block, n);
    int rc = 0;
    if (ferror(f) || b->failed) {
        dn_complain("%s%s: %s", label, path, b->failed ? "larger than a request may be" : strerror(errno));
        rc = DN_EXIT_USAGE;
    }
    if (!in_stdin)
        fclose(f);
    return rc;
}

int dn_json_read(json_t **out, const char *path, const char *label, size_t max)
{
    dn_buf b;
    dn_http_error err = { 0 };
    dn_buf_init(&b, max);
    int rc = read_all(&b, path, label);
    if (!rc && !(*out = dn_json_parse(b.data ? b.data : "", b.len, &err))) {
        dn_complain("%s%s: %s%s%s", label, path, err.message, *err.param ? ", at " : "", err.param);
        rc = DN_EXIT_USAGE;
    }
    dn_buf_fini(&b);
    return rc;
}

bool dn_id_is_plain(const char *id)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    return *id && strlen(id) <= DN_ID_MAX && !id[strspn(id, plain)];
}

int dn_id_check(const char *id)
{
    if (dn_id_is_plain(id))
        return 0;
    dn_complain("\"%.100s\" cannot be the id of a request or a job", id);
    return DN_EXIT_USAGE;
}

int dn_name_check(const char *name, enum dn_name_kind kind)
{
    static const char *const wanted[] = { "NAME", "NAME or NAME@VERSION", "NAME@VERSION" };
    char base[DN_NAME_LEN_MAX + 2];
    size_t n = strcspn(name, "@");
    const char *version = name[n] ? name + n + 1 : NULL;
    snprintf(base, sizeof base, "%.*s", n < sizeof base ? (int)n : (int)sizeof base - 1, name);
    bool ok = dn_name_ok(base) && (kind == DN_NAME ? !version : kind == DN_NAME_OR_VERSION || version);
    if (ok && (!version || dn_id_is_plain(version)))
        return 0;
    dn_complain("\"%.100s\" must be %s, and a name matches [a-z0-9][a-z0-9._-]{0,63}", name, wanted[kind]);
    return DN_EXIT_USAGE;
}
