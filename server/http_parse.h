/* http_parse.h - the texts inside a request's head: pure functions over strings of a stranger. */
#ifndef DN_SERVER_HTTP_PARSE_H
#define DN_SERVER_HTTP_PARSE_H

#include <stdbool.h>
#include <stddef.h>

/* RFC 9110's token: a header's name. */
bool dn_is_token(const char *s);
/* [A-Za-z0-9._-]{1,64} */
bool dn_is_request_id(const char *s);
/* Every byte is visible ASCII. */
bool dn_is_visible(const char *s);
bool dn_is_length(const char *s); /* a Content-Length: 1 to 18 digits */
/* Undo %XX (and + in a query) in place. false: a bad escape, or a control character comes of it. */
bool dn_percent_decode(char *s, bool plus);
/* "name[:port]" or "[v6][:port]": the name in lower case without brackets, port -1 if absent. false: malformed. */
bool dn_host_split(const char *host, char *name, size_t name_size, int *port);
bool dn_host_is_loopback(const char *name); /* localhost, 127.0.0.0/8, ::1 */
/* Is `origin` (a browser's Origin) the site that this Host names? */
bool dn_origin_is_host(const char *origin, const char *host);
/* "type/subtype" of a Content-Type in lower case; parameters are dropped, but a charset other than UTF-8 is refused. */
bool dn_media_type(const char *header, char *out, size_t out_size);
/* Is `type` one of the blank-separated `list`? */
bool dn_media_listed(const char *list, const char *type);
/* Of the blank-separated `gives` (at most 8, each under 64 bytes), what Accept likes best; ties go to the earlier.
 * Copies it to `out`. false: none is acceptable. `accept` NULL likes the first. */
bool dn_accept_best(const char *accept, const char *gives, char *out, size_t out_size);
/* Does Accept name any type, beyond saying that everything goes? */
bool dn_accept_is_specific(const char *accept);

#endif
