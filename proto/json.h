/* json.h - what the files of proto share about JSON values. */
#ifndef DN_PROTO_JSON_H
#define DN_PROTO_JSON_H

#include "buf.h"

#include <jansson.h>
#include <stddef.h>

/* "a string", "an integer", ... for error texts. */
const char *dn_json_kind(const json_t *v);
/* A short text of a value: the number, the quoted and cut string, else its kind. */
void dn_json_brief(const json_t *v, char *out, size_t size);

/* As compact text; a number has the fewest digits that read back as it (jansson knows a fixed number of them only). */
void dn_json_write(const json_t *v, dn_buf *b);
char *dn_json_dump(const json_t *v); /* the same, malloc'ed; NULL: out of memory */

#endif
