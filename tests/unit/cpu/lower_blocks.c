#include "lower_blocks.h"
#include "lower_run.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

dn_rows blocks_new(int n, int64_t positions, int channels)
{
    dn_rows x = { .plane = positions * 32 + 64 };
    x.row_bytes = dn_blocks_of(channels) * x.plane + 32;
    float *data = aligned_alloc(64, (size_t)(x.row_bytes * n + 63) / 64 * 64);
    assert_non_null(data);
    for (int64_t i = 0; i < x.row_bytes * n / 4; i++)
        data[i] = NAN;
    x.base = data;
    return x;
}

dn_rows blocks_random(int n, int first, int64_t positions, int channels, int seed, float scale, float offset)
{
    dn_rows x = blocks_new(n, positions, channels);
    for (int r = 0; r < n; r++) {
        uint64_t state = (uint64_t)(seed * 100 + first + r) * 7919;
        for (int64_t p = 0; p < positions; p++)
            for (int c = 0; c < channels; c++)
                *block_at(&x, r, p, c) = noise(&state) * scale + offset;
    }
    for (int r = 0; r < n; r++)
        for (int c = channels; c % DN_LANES; c++)
            for (int64_t p = 0; p < positions; p++)
                *block_at(&x, r, p, c) = 0;
    return x;
}

void blocks_free(dn_rows x) { free(x.base); }

float *block_at(const dn_rows *x, int64_t row, int64_t position, int channel)
{
    return dn_block_at(x, row, channel / DN_LANES) + position * DN_LANES + channel % DN_LANES;
}

void check_padding(const dn_rows *x, int n, int64_t positions, int channels)
{
    for (int r = 0; r < n; r++)
        for (int c = channels; c % DN_LANES; c++)
            for (int64_t p = 0; p < positions; p++)
                if (*block_at(x, r, p, c) != 0)
                    fail_msg("lane %d of position %d holds %g", c, (int)p, (double)*block_at(x, r, p, c));
}

void check_row_bits(const dn_rows *a, int64_t row, const dn_rows *b, int64_t positions, int channels)
{
    for (int c = 0; c < dn_blocks_of(channels) * DN_LANES; c++)
        for (int64_t p = 0; p < positions; p++)
            if (memcmp(block_at(a, row, p, c), block_at(b, 0, p, c), sizeof(float)))
                fail_msg("channel %d, position %d: %a in the batch, %a alone", c, (int)p,
                         (double)*block_at(a, row, p, c), (double)*block_at(b, 0, p, c));
}
