/* reduce.h - sums over positions and rows, losses, softmax over channels, the gradient of an embedding table.
 *
 * Sums run in float over fixed chunks, from chunk to chunk and from row to row in double, in order. */
#ifndef DN_CPU_REDUCE_H
#define DN_CPU_REDUCE_H

#include "copy.h"

/* out[c] = the sum of x over the positions of a row, or (over_rows) of all rows, into the one copy of out. x is blocked
 * or dense, out dense. */
typedef struct dn_sum_args {
    dn_rows x, out;
    dn_extent e;
    bool over_rows;
} dn_sum_args;

void dn_sum_positions(dn_pool *pool, const dn_sum_args *a);

/* `count` floats of a row. */
typedef struct dn_loss_args {
    dn_rows prediction, target;
    dn_rows out;   /* the loss [1], or the gradient by the prediction */
    dn_rows dloss; /* [1], for the gradient */
    enum dn_loss kind;
    float delta;
    int n;
    int64_t count;
} dn_loss_args;

void dn_loss_run(dn_pool *pool, const dn_loss_args *a);
void dn_loss_bwd_run(dn_pool *pool, const dn_loss_args *a);

/* Dense [positions, channels]: y = softmax(x), and dx = y * (dy - sum of y * dy). */
void dn_softmax_run(dn_pool *pool, dn_rows y, dn_rows x, dn_extent e);
void dn_softmax_bwd_run(dn_pool *pool, dn_rows dx, dn_rows y, dn_rows dy, dn_extent e);

/* out [entries, channels] = the sum over rows of (1 - w) * dy in line ids[0] and w * dy in line ids[1]; an id whose
 * factor is 0 is not looked at. False: an id is out of range. */
typedef struct dn_embed_dw_args {
    dn_rows ids, w, dy; /* I32 [2], [1], [channels] */
    float *out;
    int n, channels;
    int64_t entries;
} dn_embed_dw_args;

bool dn_embed_dw_run(dn_pool *pool, const dn_embed_dw_args *a);

#endif
