/* tar.c - see tar.h. libarchive writes the headers. */
#include "tar.h"
#include "cli.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 32, FILES_MAX = 4 << 20, BLOCK = 64 << 10, OUT_MAX = 1 << 20 };

static int complain(const char *path, const char *why)
{
    dn_complain("%s: %s", path, why);
    return DN_EXIT_USAGE;
}

static int no_memory(void)
{
    dn_complain("no memory for the list of files");
    return DN_EXIT_FAILED;
}

/* ---- what is to be sent ----------------------------------------------------------------------------------------- */

/* Takes `path` over. */
static int add(dn_tar *t, char *path, const char *name, int64_t size)
{
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 256;
        dn_tar_file *grown = t->n < FILES_MAX ? reallocarray(t->file, (size_t)cap, sizeof *grown) : NULL;
        if (!grown) {
            free(path);
            return no_memory();
        }
        t->file = grown;
        t->cap = cap;
    }
    dn_tar_file *f = &t->file[t->n++];
    *f = (dn_tar_file){ path, strdup(name), size };
    t->bytes += size;
    return f->name ? 0 : no_memory();
}

static int walk(dn_tar *t, const char *folder, size_t base, int depth);

/* Takes `path` over; its name in the tar begins at `base`. */
static int visit(dn_tar *t, char *path, size_t base, int depth)
{
    struct stat st;
    int rc = 0;
    if (lstat(path, &st))
        rc = complain(path, strerror(errno));
    else if (S_ISREG(st.st_mode))
        return add(t, path, path + base, st.st_size);
    else if (S_ISDIR(st.st_mode))
        rc = walk(t, path, base, depth + 1);
    else if (S_ISLNK(st.st_mode))
        rc = complain(path, "a symbolic link; `tar chC FOLDER .` follows them, and - takes its output");
    else
        rc = complain(path, "neither a file nor a folder");
    free(path);
    return rc;
}

static int walk(dn_tar *t, const char *folder, size_t base, int depth)
{
    DIR *dir = depth < DEPTH_MAX ? opendir(folder) : NULL;
    char *path;
    int rc = 0;
    if (!dir)
        return complain(folder, depth < DEPTH_MAX ? strerror(errno) : "too deep a folder");
    for (struct dirent *e; !rc && (errno = 0, e = readdir(dir));) {
        if (e->d_name[0] == '.') /* hidden, and . and .. */
            continue;
        rc = asprintf(&path, "%s/%s", folder, e->d_name) < 0 ? no_memory() : visit(t, path, base, depth);
    }
    if (!rc && errno)
        rc = complain(folder, strerror(errno));
    closedir(dir);
    return rc;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const dn_tar_file *)a)->name, ((const dn_tar_file *)b)->name);
}

/* A file or folder that the user named, be it by a link. */
static int add_named(dn_tar *t, const char *path, bool alone)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    if (stat(path, &st))
        return complain(path, strerror(errno));
    if (S_ISDIR(st.st_mode) && alone)
        return walk(t, path, strlen(path) + 1, 0);
    if (!S_ISREG(st.st_mode))
        return complain(path, S_ISDIR(st.st_mode) ? "a folder must be the only one" : "neither a file nor a folder");
    char *copy = realpath(path, NULL);
    return copy ? add(t, copy, slash ? slash + 1 : path, st.st_size) : no_memory();
}

static la_ssize_t keep(struct archive *a, void *arg, const void *bytes, size_t n)
{
    (void)a;
    dn_tar *t = arg;
    dn_buf_add(&t->out, bytes, n);
    return t->out.failed ? -1 : (la_ssize_t)n;
}

int dn_tar_init(dn_tar *t, const char *const *path, int n)
{
    *t = (dn_tar){ .fd = -1 };
    dn_buf_init(&t->out, OUT_MAX);
    int rc = 0;
    for (int i = 0; !rc && i < n; i++)
        rc = add_named(t, path[i], n == 1);
    if (!rc && !t->n)
        rc = complain(path[0], "there is no file in it");
    if (rc)
        return rc;
    qsort(t->file, (size_t)t->n, sizeof *t->file, by_name);
    for (int i = 1; i < t->n; i++)
        if (!by_name(&t->file[i - 1], &t->file[i]))
            return complain(t->file[i].path, "two files have this name");
    t->writer = archive_write_new();
    if (!t->writer || archive_write_set_format_gnutar(t->writer) || /* names are bytes, whatever the locale */
        archive_write_set_bytes_per_block(t->writer, 0) || archive_write_open(t->writer, t, NULL, keep, NULL))
        return no_memory();
    return 0;
}

void dn_tar_fini(dn_tar *t)
{
    for (int i = 0; i < t->n; i++) {
        free(t->file[i].path);
        free(t->file[i].name);
    }
    free(t->file);
    if (t->fd >= 0)
        close(t->fd);
    archive_write_free(t->writer); /* NULL is fine */
    dn_buf_fini(&t->out);
}

/* ---- the tar ---------------------------------------------------------------------------------------------------- */

static int failed(dn_tar *t, const char *why)
{
    t->at_fault = t->file[t->at < t->n ? t->at : t->n - 1].path;
    snprintf(t->why, sizeof t->why, "%s", why ? why : "no memory");
    return -1;
}

static int write_header(dn_tar *t)
{
    const dn_tar_file *f = &t->file[t->at];
    struct archive_entry *e = archive_entry_new();
    if (!e)
        return failed(t, "no memory");
    archive_entry_copy_pathname(e, f->name);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_size(e, f->size);
    int rc = archive_write_header(t->writer, e) < ARCHIVE_WARN;
    archive_entry_free(e);
    return rc ? failed(t, archive_error_string(t->writer)) : 0;
}

static int open_next(dn_tar *t)
{
    struct stat st;
    const dn_tar_file *f = &t->file[t->at];
    t->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (t->fd < 0 || fstat(t->fd, &st))
        return failed(t, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size != f->size)
        return failed(t, "it has changed since the folder was read");
    t->left = f->size;
    return write_header(t);
}

static int copy_block(dn_tar *t)
{
    char block[BLOCK];
    size_t wanted = t->left < BLOCK ? (size_t)t->left : BLOCK;
    ssize_t n = wanted ? read(t->fd, block, wanted) : 0;
    if (n < 0 || (!n && wanted))
        return failed(t, n < 0 ? strerror(errno) : "it has become shorter");
    t->left -= n;
    t->read += n;
    if (n && archive_write_data(t->writer, block, (size_t)n) != n)
        return failed(t, archive_error_string(t->writer));
    if (t->left)
        return 0;
    close(t->fd);
    t->fd = -1;
    t->at++;
    return 0;
}

/* Make some bytes more. */
static int step(dn_tar *t)
{
    t->closed = t->at == t->n;
    if (t->closed)
        return archive_write_close(t->writer) ? failed(t, archive_error_string(t->writer)) : 0;
    return t->fd < 0 ? open_next(t) : copy_block(t);
}

ssize_t dn_tar_read(void *tar, char *out, size_t n)
{
    dn_tar *t = tar;
    while (t->out_at == t->out.len && !t->closed) {
        t->out.len = t->out_at = 0;
        if (step(t))
            return -1;
    }
    size_t left = t->out.len - t->out_at, used = n < left ? n : left;
    if (used)
        memcpy(out, t->out.data + t->out_at, used);
    t->out_at += used;
    return (ssize_t)used;
}
