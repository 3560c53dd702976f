/* pack.c - a folder as a tar.zst, the same bytes for the same files. See archive.h.
 *
 * Entries are sorted by name, owned by nobody, without times; zstd runs on one thread at a fixed level. The archive is
 * written under a temporary name, fsynced and renamed. */
#include <denoised/archive.h>

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

enum { FOLDERS_MAX = 2, BLOCK_BYTES = 1 << 16, PATH_BYTES = 4096 };
static const char level[] = "3";

struct list {
    char **name;
    int len, cap;
    struct dn_heap_chunk *text;
};

static int failed(dn_error *err, const char *name, const char *why)
{
    return dn_fail(err, DN_E_IO, name, "%s: %s", name, why);
}

static int scan(struct list *l, int dirfd, const char *prefix, int depth, dn_error *err);

static int scan_entry(struct list *l, int dirfd, const char *base, const char *prefix, int depth, dn_error *err)
{
    char name[DN_ARCHIVE_NAME_MAX + 1];
    struct stat st;
    if ((size_t)snprintf(name, sizeof name, "%s%s%s", prefix, prefix[0] ? "/" : "", base) >= sizeof name)
        return dn_fail(err, DN_E_LIMIT, base, "%s: a name of more than %d bytes", base, DN_ARCHIVE_NAME_MAX);
    if (fstatat(dirfd, base, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return failed(err, name, strerror(errno));
    if (S_ISDIR(st.st_mode)) {
        if (depth == FOLDERS_MAX)
            return dn_fail(err, DN_E_LIMIT, name, "%s: folders more than %d deep", name, FOLDERS_MAX);
        int sub = openat(dirfd, base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        return sub < 0 ? failed(err, name, strerror(errno)) : scan(l, sub, name, depth + 1, err);
    }
    if (!S_ISREG(st.st_mode))
        return dn_fail(err, DN_E_FORMAT, name, "%s: neither a file nor a folder", name);
    if (dn_grow(&l->name, l->len, &l->cap, sizeof *l->name) != 0 || !(l->name[l->len] = dn_heap_string(&l->text, name)))
        return dn_fail(err, DN_E_MEMORY, name, "no memory for the names of the folder");
    l->len++;
    return 0;
}

/* All files below dirfd, which becomes the scan's. */
static int scan(struct list *l, int dirfd, const char *prefix, int depth, dn_error *err)
{
    DIR *dir = fdopendir(dirfd);
    int rc = 0;
    if (!dir) {
        close(dirfd);
        return failed(err, prefix, strerror(errno));
    }
    for (struct dirent *e; rc == 0 && (e = readdir(dir));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            rc = scan_entry(l, dirfd, e->d_name, prefix, depth, err);
    closedir(dir);
    return rc;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int write_header(struct archive *a, const char *name, int64_t size)
{
    struct archive_entry *e = archive_entry_new();
    if (!e)
        return -1;
    archive_entry_set_pathname(e, name);
    archive_entry_set_size(e, size);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_mtime(e, 0, 0);
    int rc = archive_write_header(a, e) == ARCHIVE_OK ? 0 : -1;
    archive_entry_free(e);
    return rc;
}

static int write_data(struct archive *a, int fd, int64_t size, uint8_t *buf)
{
    while (size > 0) {
        ssize_t n = read(fd, buf, size < BLOCK_BYTES ? (size_t)size : BLOCK_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            archive_set_error(a, EIO, n < 0 ? "cannot read it" : "it became shorter while it was read");
            return -1;
        }
        if (archive_write_data(a, buf, (size_t)n) != n)
            return -1;
        size -= n;
    }
    return 0;
}

static int write_file(struct archive *a, int dirfd, const char *name, uint8_t *buf, dn_error *err)
{
    struct stat st;
    int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0) {
        int rc = failed(err, name, strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
    int rc = write_header(a, name, st.st_size);
    if (rc == 0)
        rc = write_data(a, fd, st.st_size, buf);
    close(fd);
    const char *why = archive_error_string(a);
    return rc == 0 ? 0 : failed(err, name, why ? why : "cannot write it");
}

static int write_archive(int fd, int dirfd, const struct list *l, dn_error *err)
{
    struct archive *a = archive_write_new();
    uint8_t *buf = malloc(BLOCK_BYTES);
    int rc = 0;
    if (!a || !buf || archive_write_set_format_pax_restricted(a) != ARCHIVE_OK ||
        archive_write_add_filter_zstd(a) != ARCHIVE_OK ||
        archive_write_set_filter_option(a, "zstd", "compression-level", level) != ARCHIVE_OK ||
        archive_write_open_fd(a, fd) != ARCHIVE_OK)
        rc = dn_fail(err, DN_E_MEMORY, NULL, "cannot begin a tar.zst archive");
    for (int i = 0; rc == 0 && i < l->len; i++)
        rc = write_file(a, dirfd, l->name[i], buf, err);
    if (rc == 0 && archive_write_close(a) != ARCHIVE_OK)
        rc = dn_fail(err, DN_E_IO, NULL, "cannot write the archive: %s", archive_error_string(a));
    if (a)
        archive_write_free(a); /* of a failed one too, which it ends: libarchive leaks if told that it failed */
    free(buf);
    return rc;
}

/* libarchive takes names in the thread's locale. */
static int write_in_utf8(int fd, int dirfd, const struct list *l, dn_error *err)
{
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0), before = utf8 ? uselocale(utf8) : (locale_t)0;
    int rc = write_archive(fd, dirfd, l, err);
    if (utf8) {
        uselocale(before);
        freelocale(utf8);
    }
    return rc;
}

static int write_temporary(int dirfd, const struct list *l, const char *path, dn_error *err)
{
    char tmp[PATH_BYTES];
    if ((size_t)snprintf(tmp, sizeof tmp, "%s.XXXXXX", path) >= sizeof tmp)
        return dn_fail(err, DN_E_LIMIT, NULL, "the path of the archive is too long");
    int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0)
        return dn_fail(err, DN_E_IO, NULL, "cannot make the archive: %s", strerror(errno));
    int rc = write_in_utf8(fd, dirfd, l, err);
    if (rc == 0 && (fsync(fd) != 0 || rename(tmp, path) != 0))
        rc = dn_fail(err, DN_E_IO, NULL, "cannot write the archive: %s", strerror(errno));
    if (rc != 0)
        unlink(tmp);
    close(fd);
    return rc;
}

int dn_archive_pack(const char *dir, const char *path, dn_error *err)
{
    struct list l = { 0 };
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), again = dirfd >= 0 ? dup(dirfd) : -1;
    int rc = again >= 0 ? scan(&l, again, "", 0, err)
                        : dn_fail(err, DN_E_IO, NULL, "cannot open the folder: %s", strerror(errno));
    if (rc == 0 && l.len > 0)
        qsort(l.name, (size_t)l.len, sizeof *l.name, by_name);
    if (rc == 0)
        rc = write_temporary(dirfd, &l, path, err);
    if (dirfd >= 0)
        close(dirfd);
    free(l.name);
    dn_heap_free(l.text);
    return rc;
}
