/* arena.h - the memory of one request: a bump allocator with a byte budget and cleanup hooks.
 *
 * Everything that parsing a request produces lives here and dies at once with dn_arena_free. Not thread-safe: the
 * thread that owns the request owns its arena. */
#ifndef DN_PROTO_ARENA_H
#define DN_PROTO_ARENA_H

#include <stddef.h>

typedef struct dn_arena dn_arena;

/* NULL when out of memory. `bytes_max` bounds what dn_arena_alloc hands out in total. */
dn_arena *dn_arena_new(size_t bytes_max);
/* Runs the hooks, newest first, then frees everything. NULL is fine. */
void dn_arena_free(dn_arena *a);
/* Zeroed, aligned to 16. NULL over the budget or out of memory; the arena stays usable. */
void *dn_arena_alloc(dn_arena *a, size_t bytes);
char *dn_arena_strndup(dn_arena *a, const char *s, size_t len);
/* Run fn(arg) when the arena dies. When that cannot be promised fn(arg) runs now and -1 is returned: `arg` never leaks.
 */
int dn_arena_cleanup(dn_arena *a, void (*fn)(void *), void *arg);
size_t dn_arena_bytes(const dn_arena *a); /* handed out so far, hooks included */

#endif
