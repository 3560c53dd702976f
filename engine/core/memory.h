/* memory.h - a bump arena: many small zeroed blocks, freed together. */
#ifndef DN_CORE_MEMORY_H
#define DN_CORE_MEMORY_H

#include <stddef.h>

struct dn_heap_chunk;
/* Zeroed, aligned for anything; NULL when memory is out. *a starts as NULL. */
void *dn_heap_alloc(struct dn_heap_chunk **a, size_t bytes);
char *dn_heap_string(struct dn_heap_chunk **a, const char *s);
size_t dn_heap_bytes(const struct dn_heap_chunk *a); /* taken from the system */
void dn_heap_free(struct dn_heap_chunk *a); /* NULL is fine */

/* Room for one more element of `size` in *array, doubling *cap. Returns 0, or -1 when memory is out. */
int dn_grow(void *array, int count, int *cap, size_t size);

#endif
