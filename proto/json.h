/* json.h - what the files of proto share about JSON values. */
#ifndef DN_PROTO_JSON_H
#define DN_PROTO_JSON_H

#include <jansson.h>
#include <stddef.h>

/* "a string", "an integer", ... for error texts. */
const char *dn_json_kind(const json_t *v);
/* A short text of a value: the number, the quoted and cut string, else its kind. */
void dn_json_brief(const json_t *v, char *out, size_t size);

#endif
