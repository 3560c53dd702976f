/* json.h - the one door through which JSON of a model folder comes in. */
#ifndef DN_IO_JSON_H
#define DN_IO_JSON_H

#include <denoised/error.h>
#include <stddef.h>

struct json_t;

/* jansson takes about a hundred bytes per value, so their number is bounded before it sees the text. */
enum { DN_JSON_DEPTH_MAX = 32, DN_JSON_VALUES_MAX = 1 << 19 };

/* Parse `len` bytes, one object and nothing after it; duplicate keys and numbers beyond int64 or double are refused.
 * `file` is for messages. *out is the caller's (json_decref). */
int dn_json_text(struct json_t **out, const char *text, size_t len, const char *file, dn_error *err);
/* The same for a file of at most `limit` bytes in the directory `dirfd`. */
int dn_json_load_at(struct json_t **out, int dirfd, const char *file, size_t limit, dn_error *err);

#endif
