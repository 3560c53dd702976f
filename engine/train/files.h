/* files.h - files and folders that appear whole or not at all: a temporary name beside, fsync, rename, fsync of the
 * folder. */
#ifndef DN_TRAIN_FILES_H
#define DN_TRAIN_FILES_H

#include <denoised/error.h>
#include <stddef.h>

enum { DN_PATH_SIZE = 4096 };

typedef struct dn_file {
    int fd;
    char path[DN_PATH_SIZE], temporary[DN_PATH_SIZE];
} dn_file;

int dn_file_begin(dn_file *f, const char *path, dn_error *err);
int dn_file_write(dn_file *f, const void *data, size_t n, dn_error *err);
/* `rc` of what was done so far: 0 makes the file appear, else it is removed and rc comes back. */
int dn_file_end(dn_file *f, int rc, dn_error *err);

/* A folder under a temporary name. Files are written into it with dn_folder_file; dn_folder_end as dn_file_end. The
 * folder must not exist. */
typedef struct dn_folder {
    char path[DN_PATH_SIZE], temporary[DN_PATH_SIZE];
} dn_folder;
int dn_folder_begin(dn_folder *f, const char *path, dn_error *err);
int dn_folder_make(const dn_folder *f, const char *name, dn_error *err); /* a folder within */
int dn_folder_file(const dn_folder *f, const char *name, const void *data, size_t n, dn_error *err);
int dn_folder_end(dn_folder *f, int rc, dn_error *err);

#endif
