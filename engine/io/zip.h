/* zip.h - the directory of a zip archive whose entries are all stored as they are, as torch.save writes it.
 *
 * Compressed, encrypted, doubled, overlapping entries and ones that reach out of the file are refused. */
#ifndef DN_IO_ZIP_H
#define DN_IO_ZIP_H

#include "source.h"

enum { DN_ZIP_ENTRIES_MAX = 32768, DN_ZIP_DIRECTORY_MAX = 16 << 20 };

typedef struct dn_zip_entry {
    const char *name; /* not terminated */
    size_t name_len;
    uint64_t header; /* of the local header, in the file */
    uint64_t offset; /* of the first byte, in the file */
    uint64_t size;
} dn_zip_entry;

typedef struct dn_zip {
    dn_zip_entry *entries; /* sorted by name */
    size_t len;
    uint8_t *directory; /* the bytes of the central directory: names point into it */
} dn_zip;

int dn_zip_open(dn_zip *z, const dn_source *src, dn_error *err);
void dn_zip_close(dn_zip *z);
const dn_zip_entry *dn_zip_find(const dn_zip *z, const char *name, size_t len); /* NULL: there is none */

#endif
