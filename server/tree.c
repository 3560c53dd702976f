/* tree.c - folders of the state folder. */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DESCRIPTORS = 16 };

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
