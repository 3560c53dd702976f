/* download.h - a file that is made of an answer: written beside its place under another name, and renamed when it is
 * whole. What is no regular file (/dev/null, a pipe) and standard output are written in place. */
#ifndef DN_CLI_DOWNLOAD_H
#define DN_CLI_DOWNLOAD_H

#include "http.h"
#include "progress.h"

typedef struct dn_download {
    dn_taker taker; /* for a transfer */
    const char *path;
    char *place; /* where it goes, links followed; NULL: written in place */
    char *beside;
    int fd;
    int64_t bytes;
    const dn_transfer *transfer; /* that it is for, which says how long it is; NULL: there is no bar */
    dn_progress progress;
} dn_download;

/* `path` NULL or "-": standard output. Returns 0, or a dn_exit after a complaint. */
int dn_download_begin(dn_download *d, const char *path);
/* The transfer's end: `rc` is what it became. With 0 the file appears, else nothing of it stays. Returns rc, or a
 * dn_exit after a complaint. */
int dn_download_end(dn_download *d, int rc);

/* A whole command: what is at `path` (with % for `name`) goes to -o. Returns a dn_exit. */
int dn_fetch(const dn_args *args, const char *path, const char *name);

#endif
