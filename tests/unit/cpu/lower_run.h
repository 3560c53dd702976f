/* lower_run.h - runs small programs on a backend: random parameters and inputs, arenas full of NaN. */
#ifndef LOWER_RUN_H
#define LOWER_RUN_H

#include "backend.h"
#include "pool.h"
#include <stdint.h>

/* -1 .. 1, the same numbers everywhere */
float noise(uint64_t *state);
void noise_fill(float *x, int64_t n, uint64_t *state);

/* A program's parameters: weights of deviation near 1/sqrt(fan in), gammas near 1, biases small. */
float *parameters(const dn_program *p, int block, uint64_t seed);

/* The inputs of n rows: input v of row r is a function of (v, first + r) alone. I32 inputs are 0 .. 3. */
typedef struct batch {
    int n, first, threads;
    int rows_max; /* 0: n */
    bool apart;   /* every place on its own in the arena */
} batch;

/* Run and return the value `name` of all rows (malloc'ed); *count: elements of one row. Fails the test on errors. */
float *run_program(const dn_backend *b, const dn_program *p, const float *block, const char *name, batch how,
                   int64_t *count);

/* Largest |a - b| / largest |b|; NaN gives infinity. */
double difference(const float *a, const float *b, int64_t n);

#endif
