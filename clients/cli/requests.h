/* requests.h - requests as lines of a list. */
#ifndef DN_CLI_REQUESTS_H
#define DN_CLI_REQUESTS_H

#include <stdio.h>

struct json_t;

/* A list of request objects, under a line of names. */
void dn_requests_print(const struct json_t *list, int indent, FILE *out);

#endif
