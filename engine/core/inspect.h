/* inspect.h - looking into a run, for people who search for a wrong number.
 *
 * With an inspector a run tells, after each step, what the step made: shape, mean, deviation, values that are not finite
 * (trace); or whether it is what a second run of the same program, on the ref backend with every value kept apart, has
 * (check). Slow, and only for debugging. */
#ifndef DN_CORE_INSPECT_H
#define DN_CORE_INSPECT_H

#include "backend.h"
#include <stdio.h>

typedef struct dn_inspector {
    FILE *file;         /* where to tell */
    bool trace;
    const dn_run *ref;  /* done already, planned apart, for the same rows; NULL: no check */
    double tolerance;   /* of the largest value that ref has */
    double least;       /* a smaller difference is none: of what is zero but for rounding */
    int differences;    /* steps that differed so far; only the first is told */
} dn_inspector;

void dn_inspect_step(dn_inspector *i, const dn_run *run, const dn_step *step);

#endif
