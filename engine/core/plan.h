/* plan.h - gives every place of a lowered program its offset in the arena.
 *
 * A place lives from the first step that writes it to the last that reads it; one that no step writes (an input) from the
 * start, one marked `keep` (an output) to the end; a place inside another lengthens the outer one's life. Greedy by
 * size, first fit (fit.h). Peak bytes are known here, before anything runs. */
#ifndef DN_CORE_PLAN_H
#define DN_CORE_PLAN_H

#include "backend.h"

/* First and last step of a place's life; first > last: it is never used. */
typedef struct dn_life {
    int first, last;
} dn_life;

/* lives has n_places entries. */
void dn_plan_lives(const dn_lowered *l, dn_life *lives);
int dn_plan(dn_lowered *l, dn_error *err);
/* Every place apart from every other: what a planned program must agree with, bit for bit. */
int dn_plan_apart(dn_lowered *l, dn_error *err);

/* The arena that a run of a pruned program would need; nothing of that size is allocated. */
int dn_plan_bytes(const dn_program *p, const dn_backend *b, int rows_max, size_t *bytes, dn_error *err);

/* A program that may be built for any choice of marked blocks to recompute. */
typedef struct dn_search {
    dn_program *(*build)(void *arg, const dn_marks *recompute); /* pruned; NULL: out of memory. The search frees it */
    void *arg;
    const dn_backend *backend;
    int rows_max;
    size_t budget; /* bytes of arena */
} dn_search;

/* The blocks to recompute so that the program fits: chosen one by one, most bytes for each operation first, and left out
 * again, dearest first, where it fits without. *bytes is the arena. DN_E_MEMORY if nothing fits: *chosen and *bytes are then
 * the smallest plan found. Builds and plans at most 2 + 2 n_marks programs. */
int dn_plan_search(const dn_search *s, dn_marks *chosen, size_t *bytes, dn_error *err);

#endif
