/* tree.h - folders of the state folder: made, emptied, removed. Any thread but the loop's, once it serves. */
#ifndef DN_SERVER_TREE_H
#define DN_SERVER_TREE_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stdint.h>

int dn_tree_make(const char *path, dn_error *err); /* with 0700; one that is there is fine */
int dn_tree_sync(const char *path, dn_error *err); /* what was made or renamed in it is on the disk */
void dn_tree_remove(const char *path);             /* a file, or a folder and all that is in it; what is not there is fine */
/* Remove what is in the folder but what `keep` says yes to. */
void dn_tree_clear(const char *path, bool (*keep)(void *arg, const char *name), void *arg);
int64_t dn_tree_bytes(const char *path); /* of the files below it */
/* The files and folders of a model but those that `skip` (NULL: none) says yes to, three levels at most, into the new folder `to`;
 * synced. Links are followed. */
int dn_tree_copy(const char *from, const char *to, bool (*skip)(const char *name), dn_error *err);

#endif
