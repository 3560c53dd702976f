/* upload.h - what the user sends: one file, standard input, or a folder or several files as a tar made on the way. */
#ifndef DN_CLI_UPLOAD_H
#define DN_CLI_UPLOAD_H

#include "http.h"
#include "progress.h"
#include "tar.h"

typedef struct dn_upload {
    dn_giver giver;
    const char *path; /* for complaints */
    int fd;           /* a file, or standard input; -1: the tar */
    bool is_tar;
    dn_tar tar;
    bool over;           /* all of it has been given */
    const char *undo;    /* DELETE this when it is interrupted then; NULL: it goes on */
    int64_t bytes, sent; /* of the files, not of what is between them; bytes 0: not known */
    dn_progress progress;
} dn_upload;

/* `path` "-" is standard input. Returns 0, or a dn_exit after a complaint; nothing has been asked yet. Call
 * dn_upload_fini in every case. */
int dn_upload_init(dn_upload *u, const char *const *path, int n, bool silent);
void dn_upload_fini(dn_upload *u);
/* PUT it to `path`, with a bar. *out (the answer's object) is only set on success. Returns 0 or a dn_exit. */
int dn_upload_put(dn_upload *u, dn_client *c, const char *path, struct json_t **out);

#endif
