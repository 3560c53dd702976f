/* facts.h - what the facts (facts_*.c) are written with. Their programs have one row and run on every backend. */
#ifndef TESTS_OPS_FACTS_H
#define TESTS_OPS_FACTS_H

#include "subject.h"

#define COUNT(...) (sizeof((double[]){ __VA_ARGS__ }) / sizeof(double))
#define SET(s, name, ...) subject_set(s, name, (double[]){ __VA_ARGS__ }, COUNT(__VA_ARGS__))
#define EXPECT(s, tol, ...) expect(s, 0, tol, (double[]){ __VA_ARGS__ }, COUNT(__VA_ARGS__))

/* Run on every backend; output `which` is these n numbers. */
void expect(subject *s, int which, double tol, const double *want, int64_t n);
/* The program is made, and `y` its output. */
void finish(subject *s, dn_val y);

#endif
