/* multipart.h - an upload that came as multipart/form-data (RFC 7578). */
#ifndef DN_SERVER_MULTIPART_H
#define DN_SERVER_MULTIPART_H

#include <denoised/error.h>
#include <stdint.h>

enum { DN_BOUNDARY_MAX = 70 };

/* The boundary that a Content-Type names. DN_E_FORMAT: none, or none that is allowed. */
int dn_multipart_boundary(char out[DN_BOUNDARY_MAX + 1], const char *content_type, dn_error *err);
/* The body in the file `path` becomes what it carries: the one file's bytes, or a tar of several under their file
 * names; for a moment both are on the disk, and a body of more than `room` bytes is DN_E_LIMIT. A lane's work; every
 * byte is untrusted. On failure the file is what it was. */
int dn_multipart_unwrap(const char *path, const char *boundary, uint64_t room, dn_error *err);

#endif
