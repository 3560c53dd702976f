/* norm.h - GroupNorm on blocked values with what usually stands around it, and LayerNorm on dense ones.
 *
 * Mean, then centred variance, both summed in double over fixed chunks; a row's bits depend on nothing else. */
#ifndef DN_CPU_NORM_H
#define DN_CPU_NORM_H

#include "copy.h"
#include <stdbool.h>

enum { DN_NORM_CHANNELS_MAX = 4096 };

/* A vector [C] for each row; row_bytes 0: one for all rows. NULL: not given. */
typedef struct dn_row_vector {
    const float *data; /* row 0 */
    int64_t row_bytes;
} dn_row_vector;

/* y = silu?(((x - mean) * rstd * gamma + beta) * scale + shift), where every unit of C/groups channels has a mean
 * and deviation of its own; scale and shift are vectors over the channels. */
typedef struct dn_group_norm_args {
    dn_rows x;
    dn_rows y; /* base NULL: only the statistics are wanted */
    dn_extent e;
    int groups;
    float eps;
    bool silu;
    dn_row_vector gamma, beta, scale, shift;
    dn_rows stats; /* [groups][2] mean and 1/deviation, dense; base NULL: not wanted */
} dn_group_norm_args;

void dn_group_norm_blocked(dn_pool *pool, const dn_group_norm_args *a);

/* The same over the channels of each position, dense. */
typedef struct dn_layer_norm_args {
    dn_rows x, y;
    dn_extent e;
    float eps;
    dn_row_vector gamma, beta;
    dn_rows stats; /* [positions][2] */
} dn_layer_norm_args;

void dn_layer_norm_dense(dn_pool *pool, const dn_layer_norm_args *a);

#endif
