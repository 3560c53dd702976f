/* source.h - bytes at offsets: a file, or a buffer that holds what a file would.
 *
 * Files are read with pread into our own memory and never mapped, so that one that is cut short under us is an error
 * and not a SIGBUS. The size is taken once, when the source is opened; nothing past it is ever read. */
#ifndef DN_IO_SOURCE_H
#define DN_IO_SOURCE_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the formats read here are little-endian, as is this code");

enum { DN_FILE_NAME_MAX = 256 };

typedef struct dn_source {
    int fd;             /* -1: a buffer */
    const uint8_t *mem; /* the buffer, the caller's */
    uint64_t size;
    char name[DN_FILE_NAME_MAX]; /* base name, for openat and for messages */
} dn_source;

/* A name without a directory: letters, digits, '.', '_', '-', not starting with '.'; so it can be printed, too. */
bool dn_name_is_plain(const char *name);

/* Open the regular file `name` in the directory `dirfd`. A git-lfs pointer is refused as such. */
int dn_source_open(dn_source *s, int dirfd, const char *name, dn_error *err);
dn_source dn_source_memory(const void *buf, size_t len, const char *name);
void dn_source_close(dn_source *s);

/* Read exactly `len` bytes at `offset`. */
int dn_source_read(const dn_source *s, uint64_t offset, void *dst, size_t len, dn_error *err);
/* The same into a new block, the caller's, of len + 1 bytes, the last one 0. The caller has checked `len` against a
 * limit of its own; here it is checked against the size. */
int dn_source_load(uint8_t **out, const dn_source *s, uint64_t offset, size_t len, dn_error *err);

/* Untrusted text for a message: printable ASCII, cut with "..." if long. Use as dn_show(p, n).text in a call. */
typedef struct dn_shown {
    char text[100];
} dn_shown;
dn_shown dn_show(const char *p, size_t len);

#endif
