#include "files.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failed(const char *path, dn_error *err)
{
    return dn_fail(err, DN_E_IO, NULL, "%s: %s", path, strerror(errno));
}

/* The names beside the final one. */
static int set_names(char *path, char *temporary, const char *final, dn_error *err)
{
    if (snprintf(path, DN_PATH_SIZE, "%s", final) >= DN_PATH_SIZE - 16)
        return dn_fail(err, DN_E_LIMIT, NULL, "the path %.80s... is too long", final);
    snprintf(temporary, DN_PATH_SIZE, "%.*s.XXXXXX", DN_PATH_SIZE - 16, final);
    return 0;
}

static int sync_folder_of(const char *path, dn_error *err)
{
    char parent[DN_PATH_SIZE];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = 0;
    int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) ? failed(slash ? parent : ".", err) : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

int dn_file_begin(dn_file *f, const char *path, dn_error *err)
{
    int rc = set_names(f->path, f->temporary, path, err);
    if (rc)
        return rc;
    f->fd = mkostemp(f->temporary, O_CLOEXEC);
    return f->fd < 0 ? failed(f->temporary, err) : 0;
}

static int write_all(int fd, const char *path, const char *data, size_t n, dn_error *err)
{
    while (n) {
        ssize_t done = write(fd, data, n < (1 << 30) ? n : 1 << 30);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return failed(path, err);
        data += done;
        n -= (size_t)done;
    }
    return 0;
}

int dn_file_write(dn_file *f, const void *data, size_t n, dn_error *err)
{
    return write_all(f->fd, f->temporary, data, n, err);
}

int dn_file_end(dn_file *f, int rc, dn_error *err)
{
    if (!rc && fsync(f->fd))
        rc = failed(f->temporary, err);
    if (close(f->fd) && !rc)
        rc = failed(f->temporary, err);
    if (!rc && rename(f->temporary, f->path))
        rc = failed(f->path, err);
    if (rc)
        unlink(f->temporary);
    return rc ? rc : sync_folder_of(f->path, err);
}

int dn_folder_begin(dn_folder *f, const char *path, dn_error *err)
{
    struct stat st;
    int rc = set_names(f->path, f->temporary, path, err);
    if (rc)
        return rc;
    if (!lstat(path, &st))
        return dn_fail(err, DN_E_INVALID, NULL, "%s exists already", path);
    if (!mkdtemp(f->temporary))
        return failed(f->temporary, err);
    return 0;
}

/* The path of a file within. */
static int within(char *out, const dn_folder *f, const char *name, dn_error *err)
{
    if (snprintf(out, DN_PATH_SIZE, "%s/%s", f->temporary, name) >= DN_PATH_SIZE)
        return dn_fail(err, DN_E_LIMIT, NULL, "the path of %s is too long", name);
    return 0;
}

int dn_folder_make(const dn_folder *f, const char *name, dn_error *err)
{
    char path[DN_PATH_SIZE];
    int rc = within(path, f, name, err);
    return rc ? rc : mkdir(path, 0777) ? failed(path, err) : 0;
}

int dn_folder_file(const dn_folder *f, const char *name, const void *data, size_t n, dn_error *err)
{
    char path[DN_PATH_SIZE];
    int rc = within(path, f, name, err);
    if (rc)
        return rc;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return failed(path, err);
    rc = write_all(fd, path, data, n, err);
    if (!rc && fsync(fd))
        rc = failed(path, err);
    if (close(fd) && !rc)
        rc = failed(path, err);
    return rc ? rc : sync_folder_of(path, err);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st, (void)kind, (void)where;
    remove(path);
    return 0;
}

int dn_folder_end(dn_folder *f, int rc, dn_error *err)
{
    if (!rc && chmod(f->temporary, 0755))
        rc = failed(f->temporary, err);
    if (!rc)
        rc = sync_folder_of(f->temporary, err);
    if (!rc && rename(f->temporary, f->path))
        rc = failed(f->path, err);
    if (rc)
        nftw(f->temporary, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return rc ? rc : sync_folder_of(f->path, err);
}
