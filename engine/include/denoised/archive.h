/* archive.h - archives of strangers: tar, tar.zst, tar.gz, zip, read in one pass, and folders written as tar.zst.
 *
 * Every byte is untrusted. Names are relative UTF-8 without "..", backslash, drive or control characters, each once; links, devices and anything that is no
 * regular file or folder is refused by name; the number of entries, the bytes of one entry, their sum, and their ratio to the
 * archive's own size are bounded by named limits
 * (16 MB may come out of any archive, whatever the ratio). libarchive does the formats. */
#ifndef DENOISED_ARCHIVE_H
#define DENOISED_ARCHIVE_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dn_archive dn_archive;

enum { DN_ARCHIVE_ENTRIES_MAX = 4 << 20, DN_ARCHIVE_NAME_MAX = 1024, DN_ARCHIVE_RATIO_MAX = 200 };

typedef struct dn_archive_limits {
    uint64_t entry_bytes; /* of one file */
    uint64_t total_bytes; /* of all */
    const _Atomic(bool) *stop; /* true: reading ends with DN_E_CANCELLED. NULL: never */
} dn_archive_limits;

typedef struct dn_archive_entry {
    const char *name; /* "class/0001.png", valid until the next entry */
    uint64_t size;    /* bytes, as the archive says; reading more is an error */
} dn_archive_entry;

/* `path`: a file. A file that is none of these formats: DN_E_FORMAT. */
int dn_archive_open(dn_archive **out, const char *path, const dn_archive_limits *limits, dn_error *err);
void dn_archive_close(dn_archive *a); /* NULL is fine */
/* The next regular file. 0, or 1 at the end, or a negated DN_E code (err->param is the entry's name). */
int dn_archive_next(dn_archive *a, dn_archive_entry *entry, dn_error *err);
/* The whole current entry; *data is malloc'ed and the caller's. At most `max` bytes, else DN_E_LIMIT. */
int dn_archive_read(dn_archive *a, uint8_t **data, size_t *len, size_t max, dn_error *err);
/* Its first bytes, 64 or all of them if it has fewer, before any of it is read; they stay to be read. */
int dn_archive_peek(dn_archive *a, const uint8_t **head, size_t *len, dn_error *err);
/* Write the whole current entry to the file `fd`. */
int dn_archive_copy(dn_archive *a, int fd, dn_error *err);
/* Unpack all of it under the folder `dir`, which exists and is empty; on failure what was written stays (the caller removes
 * `dir`). Files are fsynced. */
int dn_archive_unpack(const char *path, const char *dir, const dn_archive_limits *limits, dn_error *err);
/* Write the regular files of `dir` (two levels of folders at most, sorted by name, no owner, no times: the same folder gives the
 * same bytes) as tar.zst to `path`. */
int dn_archive_pack(const char *dir, const char *path, dn_error *err);

#endif
