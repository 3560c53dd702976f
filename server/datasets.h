/* datasets.h - what has been uploaded to train on: names, hashes, folders, and which jobs need them.
 *
 * A dataset is immutable; a PUT to a taken name adds another hash, and the bare name means the newest. The list lives on the loop's
 * thread; the files in the state folder, datasets/<hash>; the rows in the store. */
#ifndef DN_SERVER_DATASETS_H
#define DN_SERVER_DATASETS_H

#include <denoised/dataset.h>
#include "app_parts.h"
#include "job.h"

typedef struct dn_stored {
    dn_link link;    /* newest first */
    int64_t seq;     /* the store's */
    char name[DN_NAME_LEN_MAX + 1], hash[65];
    char owner[DN_TENANT_MAX];
    char *dir;
    int64_t images, bytes;
    int channels, height_min, height_max, width_min, width_max;
    int n_classes;
    char **classes;  /* n_classes names, or NULL */
    double created_at;
    int pins;        /* jobs that are not over */
} dn_stored;


typedef struct dn_datasets dn_datasets;

/* Read the list from the store, before its thread starts. */
int dn_datasets_open(dn_app *app, dn_error *err);
void dn_datasets_close(dn_app *app);
dn_link *dn_datasets_arrivals(dn_app *app); /* oldest first */
/* "name": its newest; "name@hash" or at least 8 digits of it. Returns 0 or a DN_H code. */
int dn_datasets_find(dn_stored **out, dn_app *app, const char *ref, dn_http_error *err);

/* The next older one; NULL: the newest, the end. */
dn_stored *dn_datasets_next(dn_app *app, dn_stored *s);
void dn_datasets_add(dn_app *app, dn_stored *s); /* takes it */
/* `path` below the state `folder`; `info` as dn_stored_info makes it. NULL: out of memory. */
dn_stored *dn_stored_new(const char *folder, const char *name, const char *hash, const char *owner, const char *path, const char *info);
void dn_stored_free(dn_stored *s);
/* ---- datasets_upload.c ---- */

/* An upload on its way; what `done` may ask about it. */
typedef struct dn_arrival dn_arrival;
const dn_error *dn_arrival_error(const dn_arrival *a);
const dn_stored *dn_arrival_stored(const dn_arrival *a); /* without an error */
bool dn_arrival_fresh(const dn_arrival *a);              /* false: it had been there */
const dn_import_report *dn_arrival_report(const dn_arrival *a);

/* Make a dataset of the file `src` (malloc'ed path; taken, and the file removed; NULL: out of memory), a multipart body with this
 * boundary unless that is "". Returns 0, and `done` is told
 * once, or a DN_H code. */
int dn_datasets_import(dn_app *app, const char *name, const char *owner, char *src, const char *boundary, bool skip_broken,
                       const dn_body_progress *body, void (*done)(void *arg, const dn_arrival *a), void *arg, dn_http_error *err);
/* The next newer import that has not ended or been stopped, and what is told of it; NULL: the oldest, the end. */
dn_arrival *dn_datasets_importing(dn_app *app, dn_arrival *a);
const char *dn_arrival_owner(const dn_arrival *a);
void dn_arrival_card(const dn_arrival *a, dn_import_card *card);
/* The newest import of the name that has not ended; `tenant` not NULL: of those that are its own. NULL: none. */
dn_arrival *dn_datasets_arriving(dn_app *app, const char *name, const char *tenant);
/* Stop it: nothing stays of it, its `done` is told DN_E_CANCELLED, then `stopped` once. DN_H_CONFLICT when it is too late. */
int dn_arrival_stop(dn_arrival *a, void (*stopped)(void *arg), void *arg, dn_http_error *err);
void dn_datasets_abort(dn_app *app); /* stop all of them: the daemon ends */
/* The end of a stored one: row, folder. DN_H_CONFLICT while a job needs it. */
int dn_datasets_delete(dn_app *app, dn_stored *s, void (*done)(void *arg, const dn_stored *s, const dn_error *err), void *arg,
                       dn_http_error *err);
/* Before the store's thread starts: remove the folders that no row names. */
int dn_datasets_sweep(dn_app *app, dn_error *err);
/* Remove a file or folder of the state, later. */
void dn_app_remove(dn_app *app, const char *path);

char *dn_stored_info(const dn_dataset_info *d); /* JSON, malloc'ed */

#endif
