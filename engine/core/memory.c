#include "memory.h"
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 16 << 10 };

struct dn_heap_chunk {
    struct dn_heap_chunk *next;
    size_t used, size;
    _Alignas(max_align_t) char data[];
};

void *dn_heap_alloc(struct dn_heap_chunk **a, size_t bytes)
{
    size_t need = (bytes + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (need < bytes)
        return NULL;
    if (!*a || (*a)->size - (*a)->used < need) {
        size_t size = need > CHUNK_BYTES ? need : CHUNK_BYTES;
        struct dn_heap_chunk *c = calloc(1, sizeof *c + size);
        if (!c)
            return NULL;
        c->size = size;
        c->next = *a;
        *a = c;
    }
    void *p = (*a)->data + (*a)->used;
    (*a)->used += need;
    return p;
}

char *dn_heap_string(struct dn_heap_chunk **a, const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = dn_heap_alloc(a, n);
    return copy ? memcpy(copy, s, n) : NULL;
}

size_t dn_heap_bytes(const struct dn_heap_chunk *a)
{
    size_t n = 0;
    for (; a; a = a->next)
        n += sizeof *a + a->size;
    return n;
}

void dn_heap_free(struct dn_heap_chunk *a)
{
    while (a) {
        struct dn_heap_chunk *next = a->next;
        free(a);
        a = next;
    }
}

int dn_grow(void *array, int count, int *cap, size_t size)
{
    if (count < *cap)
        return 0;
    int more = *cap ? *cap * 2 : 16;
    void *p = realloc(*(void **)array, (size_t)more * size);
    if (!p)
        return -1;
    *(void **)array = p;
    *cap = more;
    return 0;
}
