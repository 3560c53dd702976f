/* tree.c - folders of the state folder. */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DESCRIPTORS = 16, COPY_BYTES = 1 << 20, COPY_DEPTH_MAX = 3 };

int dn_tree_make(const char *path, dn_error *err)
{
    return mkdir(path, 0700) && errno != EEXIST ? dn_fail(err, DN_E_IO, "state", "%s: %s", path, strerror(errno)) : 0;
}

int dn_tree_sync(const char *path, dn_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) ? dn_fail(err, DN_E_IO, "state", "%s: %s", path, strerror(errno)) : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    (void)remove(path);
    return 0;
}

void dn_tree_remove(const char *path) { (void)nftw(path, remove_one, DESCRIPTORS, FTW_DEPTH | FTW_PHYS); }

void dn_tree_clear(const char *path, bool (*keep)(void *arg, const char *name), void *arg)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char *below = NULL;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || (keep && keep(arg, e->d_name)))
            continue;
        if (asprintf(&below, "%s/%s", path, e->d_name) >= 0)
            dn_tree_remove(below);
        free(below);
    }
    if (d)
        closedir(d);
}

int64_t dn_tree_bytes(const char *path)
{
    DIR *d = opendir(path);
    int64_t bytes = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *below = NULL;
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || asprintf(&below, "%s/%s", path, e->d_name) < 0)
            continue;
        if (!lstat(below, &st))
            bytes += S_ISDIR(st.st_mode) ? dn_tree_bytes(below) : st.st_size;
        free(below);
    }
    if (d)
        closedir(d);
    return bytes;
}

static int copy_file(const char *from, const char *to, dn_error *err)
{
    int in = open(from, O_RDONLY | O_CLOEXEC), out = in < 0 ? -1 : open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t n = out < 0 ? -1 : 1;
    while (n > 0)
        n = sendfile(out, in, NULL, COPY_BYTES);
    if (!n)
        n = fsync(out);
    int rc = n ? dn_fail(err, DN_E_IO, "state", "%s: %s", out < 0 && in < 0 ? from : to, strerror(errno)) : 0;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return rc;
}

static int copy_tree(const char *from, const char *to, bool (*skip)(const char *name), int depth, dn_error *err)
{
    DIR *d = opendir(from);
    int rc = d ? dn_tree_make(to, err) : dn_fail(err, DN_E_IO, "model", "%s: %s", from, strerror(errno));
    for (struct dirent *e; !rc && d && (e = readdir(d));) {
        char *a = NULL, *b = NULL;
        struct stat st;
        if (*e->d_name == '.' || (skip && skip(e->d_name)))
            continue;
        if (asprintf(&a, "%s/%s", from, e->d_name) < 0 || asprintf(&b, "%s/%s", to, e->d_name) < 0)
            rc = dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
        else if (stat(a, &st))
            rc = dn_fail(err, DN_E_IO, "model", "%s: %s", a, strerror(errno));
        else if (S_ISREG(st.st_mode))
            rc = copy_file(a, b, err);
        else if (S_ISDIR(st.st_mode) && depth > 1)
            rc = copy_tree(a, b, skip, depth - 1, err);
        free(a);
        free(b);
    }
    if (d)
        closedir(d);
    return rc ? rc : dn_tree_sync(to, err);
}

int dn_tree_copy(const char *from, const char *to, bool (*skip)(const char *name), dn_error *err)
{
    return copy_tree(from, to, skip, COPY_DEPTH_MAX, err);
}
