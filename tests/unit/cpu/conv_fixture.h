/* conv_fixture.h - random tensors in blocks of exactly their size, and a plain convolution in double. */
#ifndef CONV_FIXTURE_H
#define CONV_FIXTURE_H

#include "choose.h"

/* One tensor of n rows, blocked or dense, in heap memory that ends where it ends. */
typedef struct tensor {
    dn_rows rows;
    int n, positions, channels;
    size_t bytes;
} tensor;

typedef struct fixture {
    dn_conv_shape shape;
    int n;
    bool doubled; /* x is made twice as large first */
    bool halved;  /* the result is summed by 2x2 before anything is added */
    tensor x, residual;
    float *weights, *bias, *row_bias; /* [kh,kw,C,K]; [K up to a multiple of 16]; [n,K] */
    float scale;
    bool silu;
} fixture;

float fixture_random(uint64_t *state); /* in [-1, 1) */
tensor tensor_new(int n, int positions, int channels, bool dense, int gap);
void tensor_free(tensor *t);
float *tensor_at(const tensor *t, int row, int position, int channel);
void tensor_fill(tensor *t, uint64_t seed); /* logical elements random, padded lanes zero, gaps a pattern */
void tensor_spoil(tensor *t);               /* every byte a pattern */
tensor tensor_copy(const tensor *t, bool dense, int gap);
bool tensor_padding_is_zero(const tensor *t);
bool tensor_gaps_are_spoiled(const tensor *t);
bool tensor_row_equal(const tensor *a, int row_a, const tensor *b, int row_b);

/* y [n][positions][K] */
double *reference_conv(const fixture *f);
double reference_error(const tensor *y, const double *reference); /* largest difference over largest output */

#endif
