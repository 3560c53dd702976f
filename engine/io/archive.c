/* archive.c - libarchive behind names, kinds and sizes that are checked here. See archive.h and inflate.h.
 *
 * Every byte that leaves libarchive passes through take(), which counts it against the limits: what a header claims is
 * never believed, and an entry that nobody reads is drained through it too. Folders of an archive are skipped; those
 * that files need are made. */
#include "inflate.h"
#include "source.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BLOCK_BYTES = 1 << 16,
    HEAD_BYTES = 64,
    RATIO_FLOOR = 16 << 20 /* bytes that may come out of any archive, however small */
};

struct dn_archive {
    struct archive *lib;
    struct archive_entry *ahead; /* opening reads the first header; dn_archive_next gives it */
    bool ended;
    int fd;
    locale_t utf8; /* libarchive converts names to the thread's locale; 0: there is none */
    dn_archive_limits limits;
    uint64_t file_bytes;               /* of the archive itself */
    uint64_t entry_bytes, total_bytes; /* that came out */
    int64_t entry_size;                /* as its header says; -1: it does not */
    int entries;
    bool open_entry;          /* has bytes that were not asked for yet */
    uint8_t head[HEAD_BYTES]; /* of the current entry: peeked at, to be read from head_at */
    size_t head_at, head_len;
    uint64_t *seen; /* hashes of the names of files, open addressing; 0: free */
    size_t seen_len, seen_cap;
    char name[DN_ARCHIVE_NAME_MAX + 1];
};

static int refuse(const dn_archive *a, int code, dn_error *err, const char *why)
{
    return dn_fail(err, code, a->name, "%s: %s", dn_show(a->name, strlen(a->name)).text, why);
}

/* What libarchive says, about the current entry or all of it. */
static int broken(const dn_archive *a, dn_error *err)
{
    const char *why = archive_error_string(a->lib);
    int code = archive_errno(a->lib) == ENOMEM ? DN_E_MEMORY : DN_E_FORMAT;
    return dn_fail(err, code, a->name, "%s%s%s", dn_show(a->name, strlen(a->name)).text, a->name[0] ? ": " : "",
                   why ? dn_show(why, strlen(why)).text : "the archive is damaged");
}

/* --- names --- */

/* The length of the UTF-8 sequence at s (no surrogates, no overlong forms, no control characters), or 0. */
static int utf8_len(const uint8_t *s)
{
    if (s[0] < 0x80)
        return s[0] >= 0x20 && s[0] != 0x7f;
    int n = s[0] >= 0xc2 && s[0] <= 0xdf ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

static bool is_text(const char *s)
{
    for (int n; *s; s += n)
        if ((n = utf8_len((const uint8_t *)s)) == 0)
            return false;
    return true;
}

/* "./a//b" -> "a/b" into a->name. */
static int set_name(dn_archive *a, const char *path, dn_error *err)
{
    size_t len = path ? strlen(path) : 0, at = 0;
    a->name[0] = 0;
    if (len == 0)
        return dn_fail(err, DN_E_FORMAT, NULL, "an entry of the archive has no name that could be read");
    strncpy(a->name, path, sizeof a->name - 1); /* for messages, until it is known to be good */
    a->name[sizeof a->name - 1] = 0;
    if (len > DN_ARCHIVE_NAME_MAX)
        return refuse(a, DN_E_LIMIT, err, "a name of more than 1024 bytes");
    if (!is_text(path))
        return refuse(a, DN_E_FORMAT, err, "a name that is not UTF-8, or with control characters");
    if (path[0] == '/' || strchr(path, '\\') || (len > 1 && path[1] == ':'))
        return refuse(a, DN_E_FORMAT, err, "a name that is absolute, or has a backslash or a drive");
    char clean[DN_ARCHIVE_NAME_MAX + 1];
    for (const char *p = path; *p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && memcmp(p, "..", 2) == 0)
            return refuse(a, DN_E_FORMAT, err, "a name with \"..\"");
        if (n > 0 && !(n == 1 && *p == '.')) {
            if (at > 0)
                clean[at++] = '/';
            memcpy(clean + at, p, n);
            at += n;
        }
        p += n + (p[n] == '/');
    }
    clean[at] = 0;
    strcpy(a->name, clean);
    return 0;
}

static uint64_t hash_name(const char *s)
{
    uint64_t h = 0xcbf29ce484222325; /* FNV-1a */
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 0x100000001b3;
    return h ? h : 1;
}

static void put_seen(uint64_t *table, size_t cap, uint64_t h)
{
    size_t i = h & (cap - 1);
    while (table[i])
        i = (i + 1) & (cap - 1);
    table[i] = h;
}

static int grow_seen(dn_archive *a)
{
    size_t cap = a->seen_cap ? a->seen_cap * 2 : 256;
    uint64_t *table = calloc(cap, sizeof *table);
    if (!table)
        return -1;
    for (size_t i = 0; i < a->seen_cap; i++)
        if (a->seen[i])
            put_seen(table, cap, a->seen[i]);
    free(a->seen);
    a->seen = table;
    a->seen_cap = cap;
    return 0;
}

static int check_new(dn_archive *a, dn_error *err)
{
    uint64_t h = hash_name(a->name);
    if (2 * a->seen_len >= a->seen_cap && grow_seen(a) != 0)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the names of the archive");
    for (size_t i = h & (a->seen_cap - 1); a->seen[i]; i = (i + 1) & (a->seen_cap - 1))
        if (a->seen[i] == h)
            return refuse(a, DN_E_FORMAT, err, "this name is in the archive twice");
    put_seen(a->seen, a->seen_cap, h);
    a->seen_len++;
    return 0;
}

/* --- sizes --- */

static int check_totals(const dn_archive *a, uint64_t entry, uint64_t total, dn_error *err)
{
    if (entry > a->limits.entry_bytes)
        return dn_fail(err, DN_E_LIMIT, a->name, "%s: more than %llu bytes, the limit of one file",
                       dn_show(a->name, strlen(a->name)).text, (unsigned long long)a->limits.entry_bytes);
    if (total > a->limits.total_bytes)
        return dn_fail(err, DN_E_LIMIT, a->name, "%s: with it the archive holds more than %llu bytes, the limit",
                       dn_show(a->name, strlen(a->name)).text, (unsigned long long)a->limits.total_bytes);
    if (total > RATIO_FLOOR && total / DN_ARCHIVE_RATIO_MAX > a->file_bytes)
        return dn_fail(err, DN_E_LIMIT, a->name, "%s: the archive unpacks to more than %d times its own size",
                       dn_show(a->name, strlen(a->name)).text, DN_ARCHIVE_RATIO_MAX);
    return 0;
}

/* The next bytes of the current entry, at most `room`: their number, 0 at its end, or a negated DN_E code. */
static int64_t take(dn_archive *a, void *dst, size_t room, dn_error *err)
{
    if (a->head_at < a->head_len) {
        size_t left = a->head_len - a->head_at, some = left < room ? left : room;
        memcpy(dst, a->head + a->head_at, some);
        a->head_at += some;
        return (int64_t)some;
    }
    if (!a->open_entry)
        return 0;
    if (a->limits.stop && atomic_load_explicit(a->limits.stop, memory_order_relaxed))
        return -dn_fail(err, DN_E_CANCELLED, NULL, "it was cancelled");
    ssize_t n = archive_read_data(a->lib, dst, room);
    if (n < 0)
        return -broken(a, err);
    a->entry_bytes += (uint64_t)n;
    a->total_bytes += (uint64_t)n;
    a->open_entry = n > 0;
    if (a->entry_size >= 0 &&
        (n == 0 ? a->entry_bytes < (uint64_t)a->entry_size : a->entry_bytes > (uint64_t)a->entry_size))
        return -refuse(a, DN_E_FORMAT, err, "its size is not the one that the archive says");
    int rc = check_totals(a, a->entry_bytes, a->total_bytes, err);
    return rc != 0 ? -rc : n;
}

static int drain(dn_archive *a, dn_error *err)
{
    static const size_t room = BLOCK_BYTES;
    uint8_t *scratch = a->open_entry ? malloc(room) : NULL;
    if (a->open_entry && !scratch)
        return dn_fail(err, DN_E_MEMORY, a->name, "no memory to read the archive");
    int64_t n = 0;
    while (a->open_entry && (n = take(a, scratch, room, err)) > 0)
        ;
    free(scratch);
    return n < 0 ? (int)-n : 0;
}

/* --- entries --- */

/* A tar that was cut between two entries looks well but for its last blocks of zeros. */
static int check_end(const dn_archive *a, dn_error *err)
{
    bool tar = (archive_format(a->lib) & ARCHIVE_FORMAT_BASE_MASK) == ARCHIVE_FORMAT_TAR;
    if (tar && archive_filter_bytes(a->lib, 0) <= archive_read_header_position(a->lib))
        return dn_fail(err, DN_E_FORMAT, NULL, "the archive has no end: it was cut short");
    return 0;
}

/* The next header of any kind: 0 with *e, 1 at the end, or a negated code. */
static int read_header(dn_archive *a, struct archive_entry **e, dn_error *err)
{
    struct archive_entry *found;
    a->name[0] = 0;
    int rc = archive_read_next_header(a->lib, &found);
    if (rc == ARCHIVE_EOF) {
        a->ended = true;
        rc = check_end(a, err);
        return rc != 0 ? -rc : 1;
    }
    if (rc != ARCHIVE_OK && rc != ARCHIVE_WARN)
        return -broken(a, err);
    if (++a->entries > DN_ARCHIVE_ENTRIES_MAX)
        return -dn_fail(err, DN_E_LIMIT, NULL, "more than %d entries in the archive", DN_ARCHIVE_ENTRIES_MAX);
    *e = found;
    return 0;
}

/* Name, kind and size of a header. 0: a file; 1: a folder; or a negated code. */
static int check_header(dn_archive *a, struct archive_entry *e, dn_error *err)
{
    int rc = set_name(a, archive_entry_pathname(e), err);
    if (rc != 0)
        return -rc;
    if (archive_entry_hardlink(e) || archive_entry_symlink(e))
        return -refuse(a, DN_E_FORMAT, err, "a link; only files and folders are accepted");
    if (archive_entry_filetype(e) == AE_IFDIR)
        return 1;
    if (archive_entry_filetype(e) != AE_IFREG)
        return -refuse(a, DN_E_FORMAT, err, "neither a file nor a folder");
    if (archive_entry_is_encrypted(e))
        return -refuse(a, DN_E_UNSUPPORTED, err, "it is encrypted");
    if (!a->name[0])
        return -dn_fail(err, DN_E_FORMAT, NULL, "a file of the archive has no name");
    a->entry_size = archive_entry_size_is_set(e) ? archive_entry_size(e) : -1;
    a->entry_bytes = 0;
    a->head_at = a->head_len = 0;
    a->open_entry = true;
    uint64_t size = a->entry_size > 0 ? (uint64_t)a->entry_size : 0;
    rc = check_totals(a, size, size > UINT64_MAX - a->total_bytes ? UINT64_MAX : a->total_bytes + size, err);
    return rc != 0 ? -rc : -check_new(a, err);
}

static int next_file(dn_archive *a, dn_archive_entry *entry, dn_error *err)
{
    int rc = -drain(a, err);
    for (int kind = 1; rc == 0 && kind == 1;) {
        struct archive_entry *e = a->ahead;
        a->ahead = NULL;
        rc = e ? 0 : a->ended ? 1 : read_header(a, &e, err);
        kind = rc == 0 ? check_header(a, e, err) : 0;
        rc = kind < 0 ? kind : rc;
    }
    if (rc == 0)
        *entry = (dn_archive_entry){ a->name, a->entry_size > 0 ? (uint64_t)a->entry_size : 0 };
    return rc;
}

int dn_archive_next(dn_archive *a, dn_archive_entry *entry, dn_error *err)
{
    locale_t before = a->utf8 ? uselocale(a->utf8) : (locale_t)0;
    int rc = next_file(a, entry, err);
    if (a->utf8)
        uselocale(before);
    return rc;
}

int dn_archive_peek(dn_archive *a, const uint8_t **head, size_t *len, dn_error *err)
{
    uint8_t bytes[HEAD_BYTES];
    size_t at = 0;
    int64_t n = 1;
    while (at < sizeof bytes && (n = take(a, bytes + at, sizeof bytes - at, err)) > 0)
        at += (size_t)n;
    if (n < 0)
        return (int)-n;
    memcpy(a->head, bytes, at);
    a->head_at = 0;
    a->head_len = at;
    *head = a->head;
    *len = at;
    return 0;
}

int dn_archive_read(dn_archive *a, uint8_t **data, size_t *len, size_t max, dn_error *err)
{
    size_t at = 0, room = a->entry_size >= 0 && a->entry_size < BLOCK_BYTES ? (size_t)a->entry_size + 1 : BLOCK_BYTES;
    uint8_t *buf = malloc(room);
    int64_t n = 1;
    while (buf && (n = take(a, buf + at, room - at, err)) > 0) {
        at += (size_t)n;
        if (at > max) {
            n = -dn_fail(err, DN_E_LIMIT, a->name, "%s: more than %zu bytes", dn_show(a->name, strlen(a->name)).text,
                         max);
            break;
        }
        if (at < room)
            continue;
        room *= 2;
        uint8_t *more = realloc(buf, room);
        if (!more)
            free(buf);
        buf = more;
    }
    if (!buf)
        return dn_fail(err, DN_E_MEMORY, a->name, "%s: no memory to read it", dn_show(a->name, strlen(a->name)).text);
    if (n < 0) {
        free(buf);
        return (int)-n;
    }
    *data = buf;
    *len = at;
    return 0;
}

/* --- opening --- */

/* Give libarchive the file; `raw`: no archive, one compressed file. */
static int attach(dn_archive *a, const char *path, bool raw, dn_error *err)
{
    struct stat st;
    a->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (a->fd < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, NULL, "cannot open the archive: %m");
    if (fstat(a->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return dn_fail(err, DN_E_FORMAT, NULL, "the archive is not a regular file");
    a->file_bytes = (uint64_t)st.st_size;
    a->utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    a->lib = archive_read_new();
    if (!a->lib)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory to read the archive");
    archive_read_support_filter_gzip(a->lib);
    archive_read_support_filter_zstd(a->lib);
    if (raw) {
        archive_read_support_format_raw(a->lib);
    } else {
        archive_read_support_format_tar(a->lib);
        archive_read_support_format_zip_seekable(a->lib); /* by the central directory: a cut zip has none */
    }
    if (archive_read_open_fd(a->lib, a->fd, BLOCK_BYTES) != ARCHIVE_OK)
        return dn_fail(err, DN_E_FORMAT, NULL, "neither a tar, a tar.gz, a tar.zst nor a zip archive");
    return 0;
}

/* The first header: a damaged archive may show only there. */
static int look_ahead(dn_archive *a, dn_error *err)
{
    locale_t before = a->utf8 ? uselocale(a->utf8) : (locale_t)0;
    int rc = read_header(a, &a->ahead, err);
    if (a->utf8)
        uselocale(before);
    if (rc >= 0 && archive_filter_count(a->lib) > 2)
        return dn_fail(err, DN_E_FORMAT, NULL, "the archive is compressed more than once");
    return rc < 0 ? -rc : 0;
}

static int open_file(dn_archive **out, const char *path, bool raw, const dn_archive_limits *limits, dn_error *err)
{
    dn_archive *a = calloc(1, sizeof *a);
    if (!a)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory to read the archive");
    a->limits = *limits;
    a->entry_size = -1;
    int rc = attach(a, path, raw, err);
    if (rc == 0)
        rc = look_ahead(a, err);
    if (rc == 0)
        *out = a;
    else
        dn_archive_close(a);
    return rc;
}

int dn_archive_open(dn_archive **out, const char *path, const dn_archive_limits *limits, dn_error *err)
{
    return open_file(out, path, false, limits, err);
}

void dn_archive_close(dn_archive *a)
{
    if (!a)
        return;
    if (a->lib)
        archive_read_free(a->lib);
    if (a->fd >= 0)
        close(a->fd);
    if (a->utf8)
        freelocale(a->utf8);
    free(a->seen);
    free(a);
}

/* --- writing out --- */

static int write_all(int fd, const uint8_t *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int dn_archive_copy(dn_archive *a, int fd, dn_error *err)
{
    uint8_t *buf = malloc(BLOCK_BYTES);
    int64_t n = buf ? 1 : -dn_fail(err, DN_E_MEMORY, a->name, "no memory to unpack the archive");
    while (n > 0 && (n = take(a, buf, BLOCK_BYTES, err)) > 0)
        if (write_all(fd, buf, (size_t)n) != 0)
            n = -dn_fail(err, DN_E_IO, a->name, "%s: cannot write it: %m", dn_show(a->name, strlen(a->name)).text);
    free(buf);
    return (int)-n;
}

int dn_inflate(int fd, const char *path, const char *name, const dn_archive_limits *limits, dn_error *err)
{
    dn_archive *a = NULL;
    int rc = open_file(&a, path, true, limits, err);
    if (rc != 0)
        return dn_fail(err, rc, name, "%s: neither gzip nor zstd, or damaged", dn_show(name, strlen(name)).text);
    strncpy(a->name, name, sizeof a->name - 1);
    a->open_entry = true;
    if (archive_filter_count(a->lib) != 2)
        rc = refuse(a, DN_E_FORMAT, err, "not one gzip or zstd file");
    if (rc == 0)
        rc = dn_archive_copy(a, fd, err);
    dn_archive_close(a);
    return rc;
}

/* Open, and make where it is missing, the folder of `path` below dirfd; *base becomes the last component. No link is
 * followed. */
static int open_parent(int dirfd, const char *path, const char **base)
{
    int fd = dup(dirfd);
    for (const char *slash; fd >= 0 && (slash = strchr(path, '/')); path = slash + 1) {
        char part[DN_ARCHIVE_NAME_MAX + 1];
        memcpy(part, path, (size_t)(slash - path));
        part[slash - path] = 0;
        int made = mkdirat(fd, part, 0700) == 0, sub = -1;
        if (!made || fsync(fd) == 0)
            sub = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int saved = errno;
        close(fd);
        errno = saved;
        fd = sub;
    }
    *base = path;
    return fd;
}

static int unpack_entry(dn_archive *a, int dirfd, dn_error *err)
{
    const char *base;
    int parent = open_parent(dirfd, a->name, &base);
    int fd = parent >= 0 ? openat(parent, base, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;
    int rc = fd >= 0 ? dn_archive_copy(a, fd, err) : DN_E_IO;
    if (fd >= 0 && rc == 0 && (fsync(fd) != 0 || fsync(parent) != 0))
        rc = dn_fail(err, DN_E_IO, a->name, "%s: cannot write it: %m", dn_show(a->name, strlen(a->name)).text);
    else if (fd < 0)
        dn_fail(err, rc, a->name, "%s: cannot make it: %m", dn_show(a->name, strlen(a->name)).text);
    if (fd >= 0)
        close(fd);
    if (parent >= 0)
        close(parent);
    return rc;
}

int dn_archive_unpack(const char *path, const char *dir, const dn_archive_limits *limits, dn_error *err)
{
    dn_archive *a = NULL;
    int rc = dn_archive_open(&a, path, limits, err);
    if (rc != 0)
        return rc;
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        rc = -dn_fail(err, DN_E_IO, NULL, "cannot open the folder to unpack to: %m");
    for (dn_archive_entry e; rc == 0 && (rc = dn_archive_next(a, &e, err)) == 0;)
        rc = -unpack_entry(a, dirfd, err);
    if (dirfd >= 0)
        close(dirfd);
    dn_archive_close(a);
    return rc == 1 ? 0 : -rc;
}
