/* base64.h - RFC 4648 section 4, back to bytes. */
#ifndef DN_CLI_BASE64_H
#define DN_CLI_BASE64_H

#include <stddef.h>

/* Returns malloc'ed bytes and their number; NULL when the text is not padded base64 to the letter, or no memory. */
unsigned char *dn_base64_decode(size_t *out_len, const char *text, size_t len);

#endif
