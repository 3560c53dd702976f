/* plan.h - gives every place of a lowered program its offset in the arena.
 *
 * A place lives from the first step that writes it to the last that reads it; places that lie inside another extend
 * the outer one's life. Greedy by size, first fit. Peak bytes are known here, before anything runs. */
#ifndef DN_CORE_PLAN_H
#define DN_CORE_PLAN_H
#include "backend.h"
int dn_plan(dn_lowered *l, dn_error *err);
#endif
