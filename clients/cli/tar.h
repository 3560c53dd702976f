/* tar.h - files and folders as a tar that is made while it is read.
 *
 * Folders are walked first, so that what cannot be sent is found before anything is asked: links, devices, pipes are
 * refused by name; what is hidden (.git, .DS_Store) stays here. Names are sorted, owners and times left out: the same
 * files give the same bytes. A file that changes its size meanwhile ends it. */
#ifndef DN_CLI_TAR_H
#define DN_CLI_TAR_H

#include "buf.h"
#include <stdint.h>
#include <sys/types.h>

struct archive;
typedef struct dn_tar_file {
    char *path, *name; /* where it is; what it is called in the tar */
    int64_t size;
} dn_tar_file;

typedef struct dn_tar {
    dn_tar_file *file;
    int n, cap;
    int64_t bytes, read; /* of all files; of those so far */
    int at, fd;          /* the file that is open, or comes next; -1: none is */
    int64_t left;        /* of it */
    struct archive *writer;
    bool closed;
    dn_buf out; /* what the writer made and nobody has read */
    size_t out_at;
    const char *at_fault; /* the file for which reading ended, and */
    char why[160];
} dn_tar;

/* A folder (its files are named from it), or files (named by their last part). Returns 0, or a dn_exit after a
 * complaint. Call dn_tar_fini in every case. */
int dn_tar_init(dn_tar *t, const char *const *path, int n);
void dn_tar_fini(dn_tar *t);
/* The next bytes of the tar: their number, 0 at the end, -1 with at_fault and why. */
ssize_t dn_tar_read(void *tar, char *out, size_t n);

#endif
