/* lower_blocks.h - blocked tensors for the tests of single kernels: NaN wherever nothing may be read. */
#ifndef LOWER_BLOCKS_H
#define LOWER_BLOCKS_H

#include "copy.h"

/* n rows, blocked, some bytes between them; all of it NaN. */
dn_rows blocks_new(int n, int64_t positions, int channels);
/* The same with padded lanes zero and numbers of -1 .. 1, times scale, plus offset. Row r's numbers depend on (seed,
 * first + r) alone. */
dn_rows blocks_random(int n, int first, int64_t positions, int channels, int seed, float scale, float offset);
void blocks_free(dn_rows x);
float *block_at(const dn_rows *x, int64_t row, int64_t position, int channel);
/* Fails the test unless the lanes beyond the last channel are zero in every row. */
void check_padding(const dn_rows *x, int n, int64_t positions, int channels);
/* Fails unless row `row` of a and row 0 of b are the same bits. */
void check_row_bits(const dn_rows *a, int64_t row, const dn_rows *b, int64_t positions, int channels);

#endif
