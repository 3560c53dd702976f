/* copy.h - the blocked layout, and moving values into, out of and within it.
 *
 * The layout is kernels.h's. Tokens [L,C] are an image of L positions. Every function here divides outputs among the
 * pool's threads and computes a row the same way wherever it stands in the batch. */
#ifndef DN_CPU_COPY_H
#define DN_CPU_COPY_H

#include "kernels.h"

enum { DN_LANES = 8 };

typedef struct dn_extent {
    int n;             /* rows */
    int64_t positions; /* H*W, or L */
    int channels;
} dn_extent;

static inline int dn_blocks_of(int channels) { return (channels + DN_LANES - 1) / DN_LANES; }

/* Block b (of 8 channels) of row r; of a dense value the row itself, b = 0. */
static inline float *dn_block_at(const dn_rows *x, int64_t r, int64_t b)
{
    return (float *)((char *)x->base + r * x->row_bytes + b * x->plane);
}

void dn_copy_to_blocked(dn_pool *pool, dn_rows dst, dn_rows dense, dn_extent e);
void dn_copy_to_dense(dn_pool *pool, dn_rows dense, dn_rows src, dn_extent e);
/* e.channels channels of src from src_first to dst from dst_first on, blocked both. What is left of the last block is
 * cleared: the pieces of a concatenation are copied in order. */
void dn_copy_channels(dn_pool *pool, dn_rows dst, int dst_first, dn_rows src, int src_first, dn_extent e);
/* Zeros, blocked. */
void dn_copy_clear(dn_pool *pool, dn_rows dst, dn_extent e);
/* Nearest, times `scale`: [h,w] -> [2h,2w], or one more line or column, which is zero; e describes the source. */
typedef struct dn_resample_size {
    int height, width, out_height, out_width;
} dn_resample_size;
void dn_copy_upsample2(dn_pool *pool, dn_rows dst, dn_rows src, dn_extent e, const dn_resample_size *size, float scale);
/* Sums of 2x2 times `scale`, [h,w] -> [h/2,w/2]; e and the size describe the source. */
void dn_copy_pool2(dn_pool *pool, dn_rows dst, dn_rows src, dn_extent e, int height, int width, float scale);

#endif
