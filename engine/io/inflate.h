/* inflate.h - one compressed file, no archive: the .gz of an IDX file. */
#ifndef DN_IO_INFLATE_H
#define DN_IO_INFLATE_H

#include <denoised/archive.h>

/* Write what the gzip or zstd file `path` holds to `fd`; limits->entry_bytes at most, and DN_ARCHIVE_RATIO_MAX holds. A
 * file that is neither: DN_E_FORMAT. `name` is for messages. */
int dn_inflate(int fd, const char *path, const char *name, const dn_archive_limits *limits, dn_error *err);

#endif
