/* sha256.h - SHA-256 of bytes that come piece by piece. */
#ifndef DENOISED_SHA256_H
#define DENOISED_SHA256_H

#include <stddef.h>

enum { DN_SHA256_HEX_SIZE = 65 }; /* 64 lower-case hex digits and a zero */

typedef struct dn_sha256 {
    void *state; /* NULL: not initialised, or over */
} dn_sha256;

/* Returns 0, or DN_E_MEMORY or DN_E_BACKEND (the library refuses); so does update. */
int dn_sha256_init(dn_sha256 *h);
int dn_sha256_update(dn_sha256 *h, const void *data, size_t len);
/* Ends the hash and frees its state; hex NULL: only that. */
void dn_sha256_fini(dn_sha256 *h, char hex[DN_SHA256_HEX_SIZE]);
/* The same for bytes that are all there. */
int dn_sha256_hex(char hex[DN_SHA256_HEX_SIZE], const void *data, size_t len);

#endif
