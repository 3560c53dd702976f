/* array.h - npy and safetensors of single samples [1,H,W,C], as events bring them, into one of all [n,H,W,C]. */
#ifndef DN_CLI_ARRAY_H
#define DN_CLI_ARRAY_H

#include "field.h"

/* Is it the content type of an array? */
bool dn_array_is(const char *content_type);
/* Write the joined file. False when the parts are not what they should be, or differ in more than their numbers. */
bool dn_array_join(dn_buf *out, const char *content_type, const dn_bytes *part, int n);

#endif
