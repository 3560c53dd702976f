/* norm_bwd.h - the gradients of what norm.h computes.
 *
 * By x, by the parameters, and by what stands between the norm and its activation, from x and the forward pass's
 * statistics: the normalised value is computed again, not kept. Sums over positions go on in double over fixed chunks,
 * sums over rows in the order of the rows, so that nothing depends on the number of threads. */
#ifndef DN_CPU_NORM_BWD_H
#define DN_CPU_NORM_BWD_H

#include "norm.h"

/* dy is the gradient by silu?(((x - mean) * rstd * gamma + beta) * scale + shift). */
typedef struct dn_group_norm_bwd_args {
    dn_rows x, dy;
    dn_rows dx;  /* base NULL: not wanted */
    dn_rows add; /* dx = this + the gradient by x; base NULL: nothing to add */
    dn_extent e;
    int groups;
    bool silu;
    dn_row_vector gamma, beta, scale, shift;
    dn_rows stats;          /* [groups][2], of x */
    dn_rows forward_stats;  /* the same as silu's argument was made with; only with silu */
    dn_rows dscale, dshift; /* [C] for each row, dense; base NULL: not wanted */
    float *dgamma, *dbeta;  /* [C], sums over the rows; NULL: not wanted */
    dn_rows dx_sums; /* [C] for each row: sums of what dx holds over the positions, as dn_sum_positions has them */
    float *dx_sum;   /* [C], the same over all rows */
    dn_rows work;    /* dn_group_norm_bwd_work bytes for each row, 64-byte aligned */
} dn_group_norm_bwd_args;

int64_t dn_group_norm_bwd_work(int channels);
void dn_group_norm_bwd_blocked(dn_pool *pool, const dn_group_norm_bwd_args *a);

/* LayerNorm, dense. */
typedef struct dn_layer_norm_bwd_args {
    dn_rows x, dy;
    dn_rows dx; /* base NULL: not wanted */
    dn_extent e;
    dn_row_vector gamma;
    dn_rows stats;         /* [positions][2] */
    float *dgamma, *dbeta; /* as above */
} dn_layer_norm_bwd_args;

void dn_layer_norm_bwd_dense(dn_pool *pool, const dn_layer_norm_bwd_args *a);

#endif
