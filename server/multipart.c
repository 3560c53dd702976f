/* multipart.c - an upload that came as multipart/form-data.
 *
 * The body is mapped, so a part is found by searching, wherever it lies; what it carries is written to a second file,
 * which then takes the first one's name. libarchive writes the tar of several. */
#include "multipart.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PARTS_MAX = 100000, HEADERS_MAX = 8 << 10, FILE_NAME_MAX = 100 };

typedef struct part {
    char field[64], file[FILE_NAME_MAX + 1];
    const char *data;
    size_t n;
} part;

typedef struct body {
    const char *at, *end;
    char delimiter[DN_BOUNDARY_MAX + 5]; /* with the line break before it */
    size_t n_delimiter;
    int n_parts;
} body;

static int bad(dn_error *err, const char *param, const char *why)
{
    return dn_fail(err, DN_E_FORMAT, param, "multipart body: %s%s%s", param ? param : "", param ? ": " : "", why);
}

int dn_multipart_boundary(char out[DN_BOUNDARY_MAX + 1], const char *content_type, dn_error *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'()+_,-./:=? ";
    const char *p = content_type ? strchr(content_type, ';') : NULL;
    while (p && strncasecmp(p + 1 + strspn(p + 1, " \t"), "boundary=", 9))
        p = strchr(p + 1, ';');
    p = p ? strchr(p, '=') + 1 : "";
    bool quoted = *p == '"';
    size_t n = strcspn(p + quoted, quoted ? "\"" : "; \t");
    if (n < 1 || n > DN_BOUNDARY_MAX || strspn(p + quoted, allowed) < n || p[quoted + n - 1] == ' ' ||
        (quoted && p[quoted + n] != '"'))
        return dn_fail(err, DN_E_FORMAT, "Content-Type", "multipart/form-data needs a boundary of 1 to %d characters",
                       DN_BOUNDARY_MAX);
    memcpy(out, p + quoted, n);
    out[n] = 0;
    return 0;
}

/* ---- headers of a part ------------------------------------------------------------------------------------------ */

/* The parameter of a header's line, unquoted; false: it is not there. Too long a one is cut to the size. */
static bool parameter(char *out, size_t size, const char *line, const char *end, const char *name)
{
    size_t n = strlen(name), at = 0;
    bool quoted = false;
    const char *p = line;
    for (; p < end; p++) { /* at a ';' outside of quotes */
        if (*p == '\\' && quoted && p + 1 < end)
            p++;
        else if (*p == '"')
            quoted = !quoted;
        else if (*p == ';' && !quoted) {
            const char *q = p + 1;
            while (q < end && (*q == ' ' || *q == '\t'))
                q++;
            if ((size_t)(end - q) > n && !strncasecmp(q, name, n) && q[n] == '=') {
                p = q + n + 1;
                break;
            }
        }
    }
    if (p >= end)
        return false;
    quoted = *p == '"';
    for (p += quoted; p < end && *p != (quoted ? '"' : ';'); p++) {
        if (quoted && *p == '\\' && p + 1 < end)
            p++;
        if (at + 1 < size)
            out[at++] = *p;
    }
    out[at] = 0;
    return true;
}

static bool is_header(const char *line, const char *end, const char *name)
{
    size_t n = strlen(name);
    return (size_t)(end - line) > n && !strncasecmp(line, name, n) && line[n] == ':';
}

static int check_encoding(const char *line, const char *end, dn_error *err)
{
    static const char *const plain[] = { "binary", "8bit", "7bit" };
    const char *value = line + strlen("Content-Transfer-Encoding:");
    while (value < end && *value == ' ')
        value++;
    for (int i = 0; i < 3; i++) {
        if ((size_t)(end - value) == strlen(plain[i]) && !strncasecmp(value, plain[i], strlen(plain[i])))
            return 0;
    }
    return bad(err, "Content-Transfer-Encoding", "only binary is supported");
}

static int read_headers(part *p, const char *at, const char *end, dn_error *err)
{
    bool disposed = false, filed = false;
    int rc = 0;
    while (at < end && !rc) {
        const char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
        line_end = line_end ? line_end : end;
        if (is_header(at, line_end, "Content-Disposition")) {
            char name[FILE_NAME_MAX + 2];
            disposed = parameter(p->field, sizeof p->field, at, line_end, "name");
            filed = parameter(name, sizeof name, at, line_end, "filename");
            if (filed && (!*name || strlen(name) > FILE_NAME_MAX))
                rc = bad(err, p->field, "a file name has 1 to 100 bytes");
            else if (filed)
                strcpy(p->file, name);
        } else if (is_header(at, line_end, "Content-Transfer-Encoding")) {
            rc = check_encoding(at, line_end, err);
        }
        at = line_end + 2 < end ? line_end + 2 : end;
    }
    if (!rc && !disposed)
        rc = bad(err, NULL, "a part without Content-Disposition and name");
    if (!rc && !filed)
        rc = bad(err, p->field, "a field without a file; an upload has files alone");
    return rc;
}

/* ---- parts ------------------------------------------------------------------------------------------------------ */

/* The next delimiter at or after `at`: where it begins, and *after it; NULL: there is none. *last: the closing one. */
static const char *find_delimiter(const body *b, const char *at, const char **after, bool *last)
{
    const char *found;
    for (; (found = memmem(at, (size_t)(b->end - at), b->delimiter, b->n_delimiter)); at = found + 1) {
        const char *p = found + b->n_delimiter;
        *last = b->end - p >= 2 && !memcmp(p, "--", 2);
        while (!*last && p < b->end && (*p == ' ' || *p == '\t'))
            p++;
        *after = p + 2;
        if (*last || (b->end - p >= 2 && !memcmp(p, "\r\n", 2)))
            return found;
    }
    return NULL;
}

/* Up to the first part. */
static int begin(body *b, const char *boundary, dn_error *err)
{
    const char *after = NULL;
    bool last = false;
    b->n_delimiter = (size_t)snprintf(b->delimiter, sizeof b->delimiter, "\r\n--%s", boundary);
    size_t n = b->n_delimiter - 2;
    bool at_once =
        (size_t)(b->end - b->at) >= n + 2 && !memcmp(b->at, b->delimiter + 2, n) && !memcmp(b->at + n, "\r\n", 2);
    if (at_once)
        after = b->at + n + 2;
    else if (!find_delimiter(b, b->at, &after, &last) || last)
        return bad(err, NULL, "its boundary is not there");
    b->at = after;
    return 0;
}

/* The part at b->at. *more: another one follows. */
static int next_part(body *b, part *p, bool *more, dn_error *err)
{
    bool last;
    const char *after, *limit = b->end - b->at > HEADERS_MAX ? b->at + HEADERS_MAX : b->end;
    const char *head_end = memmem(b->at, (size_t)(limit - b->at), "\r\n\r\n", 4);
    *p = (part){ .field = "" };
    if (!head_end)
        return bad(err, NULL, "a part without an end of its headers");
    int rc = read_headers(p, b->at, head_end, err);
    if (rc)
        return rc;
    /* an empty part's delimiter begins with the line break that ends its headers */
    const char *end = find_delimiter(b, head_end + 2, &after, &last);
    if (!end)
        return bad(err, p->field, "it was cut short");
    p->data = head_end + 4;
    p->n = end > p->data ? (size_t)(end - p->data) : 0;
    b->at = after;
    *more = !last;
    return ++b->n_parts > PARTS_MAX ? dn_fail(err, DN_E_LIMIT, NULL, "multipart body: more than %d parts", PARTS_MAX)
                                    : 0;
}

/* ---- what comes of it ------------------------------------------------------------------------------------------- */

static int cannot(dn_error *err, const char *why)
{
    return dn_fail(err, DN_E_IO, "state", "the upload cannot be unwrapped: %s", why);
}

static int put(int fd, const char *data, size_t n, dn_error *err)
{
    while (n) {
        ssize_t k = write(fd, data, n);
        if (k < 0 && errno != EINTR)
            return cannot(err, strerror(errno));
        data += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
    return 0;
}

static int put_entry(struct archive *tar, const part *p)
{
    struct archive_entry *e = archive_entry_new();
    if (!e)
        return -1;
    archive_entry_copy_pathname(e, p->file);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0600);
    archive_entry_set_size(e, (la_int64_t)p->n);
    bool whole =
        archive_write_header(tar, e) >= ARCHIVE_WARN && archive_write_data(tar, p->data, p->n) == (la_ssize_t)p->n;
    archive_entry_free(e);
    return whole ? 0 : -1;
}

static int write_tar(int fd, body b, dn_error *err)
{
    struct archive *tar = archive_write_new();
    part p;
    bool more = true;
    int rc = 0;
    if (!tar || archive_write_set_format_gnutar(tar) || /* names are bytes, whatever the locale */
        archive_write_open_fd(tar, fd))
        rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    while (!rc && more) {
        rc = next_part(&b, &p, &more, err);
        if (!rc && put_entry(tar, &p))
            rc = cannot(err, archive_error_string(tar) ? archive_error_string(tar) : "out of memory");
    }
    if (!rc && archive_write_close(tar))
        rc = cannot(err, archive_error_string(tar));
    archive_write_free(tar); /* NULL is fine */
    return rc;
}

static int write_parts(int fd, const body *first, dn_error *err)
{
    body b = *first;
    part p;
    bool more;
    int rc = next_part(&b, &p, &more, err);
    if (rc)
        return rc;
    return more ? write_tar(fd, *first, err) : put(fd, p.data, p.n, err);
}

static int unwrap_to(const char *to, const char *data, size_t n, const char *boundary, dn_error *err)
{
    body b = { .at = data, .end = data + n };
    int rc = begin(&b, boundary, err);
    if (rc)
        return rc;
    int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return cannot(err, strerror(errno));
    rc = write_parts(fd, &b, err);
    if (close(fd) && !rc)
        rc = cannot(err, strerror(errno));
    if (rc)
        unlink(to);
    return rc;
}

int dn_multipart_unwrap(const char *path, const char *boundary, uint64_t room, dn_error *err)
{
    struct stat st;
    char *to = NULL;
    if (asprintf(&to, "%s.part", path) < 0)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t n = fd >= 0 && !fstat(fd, &st) ? (size_t)st.st_size : 0;
    char *data = n ? mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    int rc = data == MAP_FAILED ? bad(err, NULL, "it cannot be read") : 0;
    if (!rc && n > room)
        rc = dn_fail(err, DN_E_LIMIT, NULL, "multipart body: no room to take it apart, it has %zu bytes", n);
    rc = rc ? rc : unwrap_to(to, data, n, boundary, err);
    if (!rc && rename(to, path))
        rc = cannot(err, strerror(errno));
    if (data != MAP_FAILED)
        munmap(data, n);
    if (fd >= 0)
        close(fd);
    free(to);
    return rc;
}
