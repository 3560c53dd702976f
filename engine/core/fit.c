/* fit.c - see fit.h. */
#include "fit.h"

#include <denoised/error.h>
#include <stdbool.h>
#include <stdlib.h>

enum { DEPTH_MAX = 32, NONE = -1 };

/* A range of bytes that is taken. */
typedef struct piece {
    int64_t from, to;
    int next; /* in the list, or among the unused */
} piece;

struct dn_fit {
    int leaves;         /* a power of two; node 1 is the root, leaf t is leaves + t */
    int *cover, *below; /* [2 leaves], the first piece: of what lives all through the node; of what lives at some time in it */
    piece *pool;
    int n, cap, unused;
};

dn_fit *dn_fit_new(int n_steps)
{
    dn_fit *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->unused = NONE;
    for (f->leaves = 1; f->leaves < n_steps; f->leaves *= 2)
        ;
    f->cover = malloc((size_t)f->leaves * 4 * sizeof *f->cover);
    if (!f->cover) {
        free(f);
        return NULL;
    }
    f->below = f->cover + 2 * f->leaves;
    for (int i = 0; i < 4 * f->leaves; i++)
        f->cover[i] = NONE;
    return f;
}

void dn_fit_free(dn_fit *f)
{
    if (!f)
        return;
    free(f->pool);
    free(f->cover);
    free(f);
}

static int piece_new(dn_fit *f)
{
    int i = f->unused;
    if (i != NONE) {
        f->unused = f->pool[i].next;
        return i;
    }
    if (f->n == f->cap) {
        int cap = f->cap ? 2 * f->cap : 256;
        piece *pool = realloc(f->pool, (size_t)cap * sizeof *pool);
        if (!pool)
            return NONE;
        f->pool = pool;
        f->cap = cap;
    }
    return f->n++;
}

/* Take from..to in a list; what touches it becomes one with it. */
static int take(dn_fit *f, int *head, int64_t from, int64_t to)
{
    int prev = NONE, at = *head;
    for (; at != NONE && f->pool[at].to < from; at = f->pool[at].next)
        prev = at;
    if (at == NONE || f->pool[at].from > to) {
        int i = piece_new(f);
        if (i == NONE)
            return DN_E_MEMORY;
        f->pool[i] = (piece){ from, to, at };
        *(prev == NONE ? head : &f->pool[prev].next) = i;
        return 0;
    }
    piece *p = &f->pool[at];
    p->from = from < p->from ? from : p->from;
    p->to = to > p->to ? to : p->to;
    for (int next = p->next; next != NONE && f->pool[next].from <= p->to; next = p->next) {
        p->to = f->pool[next].to > p->to ? f->pool[next].to : p->to;
        p->next = f->pool[next].next;
        f->pool[next].next = f->unused;
        f->unused = next;
    }
    return 0;
}

/* The nodes that make up first..last, each whole. Returns how many. */
static int whole(const dn_fit *f, int first, int last, int node[2 * DEPTH_MAX])
{
    int n = 0;
    for (int l = f->leaves + first, r = f->leaves + last + 1; l < r; l /= 2, r /= 2) {
        if (l & 1)
            node[n++] = l++;
        if (r & 1)
            node[n++] = --r;
    }
    return n;
}

/* Everything that meets first..last: what covers a node above its two ends (what is above a whole node is above an end too), and
 * what lives below one of its whole nodes. Returns how many lists. */
static int meeting(const dn_fit *f, int first, int last, int list[4 * DEPTH_MAX])
{
    int n = whole(f, first, last, list);
    for (int i = 0; i < n; i++)
        list[i] = f->below[list[i]];
    for (int l = f->leaves + first, r = f->leaves + last; l; l /= 2, r /= 2) {
        list[n++] = f->cover[l];
        if (r != l)
            list[n++] = f->cover[r];
    }
    return n;
}

/* The lowest offset at which `bytes` meet nothing of the lists: whatever is in the way moves it past its end. */
static int64_t lowest(const dn_fit *f, int *list, int n, int64_t bytes)
{
    int64_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < n; i++) {
            while (list[i] != NONE && f->pool[list[i]].to <= at)
                list[i] = f->pool[list[i]].next;
            if (list[i] != NONE && f->pool[list[i]].from - at < bytes) {
                at = f->pool[list[i]].to;
                moved = true;
            }
        }
    }
    return at;
}

int dn_fit_place(dn_fit *f, int first, int last, int64_t bytes, int64_t *offset)
{
    int list[4 * DEPTH_MAX], node[2 * DEPTH_MAX], rc = 0;
    int64_t from = lowest(f, list, meeting(f, first, last, list), bytes), to = from + bytes;
    int n = bytes ? whole(f, first, last, node) : 0;
    for (int i = 0; i < n && !rc; i++) {
        rc = take(f, &f->cover[node[i]], from, to);
        rc = rc ? rc : take(f, &f->below[node[i]], from, to);
    }
    for (int l = f->leaves + first, r = f->leaves + last; n && l && !rc; l /= 2, r /= 2) {
        rc = take(f, &f->below[l], from, to);
        if (!rc && r != l)
            rc = take(f, &f->below[r], from, to);
    }
    *offset = from;
    return rc;
}
