/* plan.h - gives every place of a lowered program its offset in the arena.
 *
 * A place lives from the first step that writes it to the last that reads it; one that no step writes (an input) from the
 * start, one marked `keep` (an output) to the end; a place inside another lengthens the outer one's life. Greedy by
 * size, first fit. Peak bytes are known here, before anything runs. */
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

#endif
