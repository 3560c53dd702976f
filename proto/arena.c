/* arena.c - blocks of memory in a list, the newest first; allocation moves an offset within the newest. */
#include "arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16, BLOCK_BYTES = 4096 };

struct block {
    struct block *next;
    size_t used, size;
    alignas(ALIGN) unsigned char data[];
};

struct hook {
    struct hook *next;
    void (*fn)(void *);
    void *arg;
};

struct dn_arena {
    struct block *blocks;
    struct hook *hooks;
    size_t bytes, bytes_max;
};

dn_arena *dn_arena_new(size_t bytes_max)
{
    dn_arena *a = calloc(1, sizeof *a);
    if (a)
        a->bytes_max = bytes_max;
    return a;
}

void dn_arena_free(dn_arena *a)
{
    if (!a)
        return;
    for (struct hook *h = a->hooks; h; h = h->next)
        h->fn(h->arg);
    for (struct block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(a);
}

static struct block *block_new(dn_arena *a, size_t bytes)
{
    size_t size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
    struct block *b = malloc(sizeof *b + size);
    if (!b)
        return NULL;
    *b = (struct block){ .next = a->blocks, .size = size };
    return a->blocks = b;
}

void *dn_arena_alloc(dn_arena *a, size_t bytes)
{
    if (bytes > a->bytes_max - a->bytes)
        return NULL;
    size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (rounded > a->bytes_max - a->bytes)
        return NULL;
    struct block *b = a->blocks;
    if ((!b || rounded > b->size - b->used) && !(b = block_new(a, rounded)))
        return NULL;
    void *p = b->data + b->used;
    b->used += rounded;
    a->bytes += rounded;
    return memset(p, 0, rounded);
}

char *dn_arena_strndup(dn_arena *a, const char *s, size_t len)
{
    char *p = len < SIZE_MAX ? dn_arena_alloc(a, len + 1) : NULL;
    return p ? memcpy(p, s, len) : NULL;
}

int dn_arena_cleanup(dn_arena *a, void (*fn)(void *), void *arg)
{
    struct hook *h = dn_arena_alloc(a, sizeof *h);
    if (!h) {
        fn(arg);
        return -1;
    }
    *h = (struct hook){ .next = a->hooks, .fn = fn, .arg = arg };
    a->hooks = h;
    return 0;
}

size_t dn_arena_bytes(const dn_arena *a) { return a->bytes; }
