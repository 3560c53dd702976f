/* tile_avx512.c - the strip with sums of 16 lanes: tiles of up to 12 rows by one vector. Each sum is the same chain as
 * in tile_avx2.c, so the bits are the same. */
#include "choose.h"
#include "tile_avx2.h"

enum { ROWS_MAX = 12, AHEAD = 1024 /* floats of B to fetch ahead */ };

always_inline void tile(const int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c,
                        const bool more)
{
    __m512 sum[ROWS_MAX];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        sum[i] = more ? _mm512_loadu_ps(c + i * PANEL) : _mm512_setzero_ps();
    for (int kb = 0; kb < k_blocks; kb++, a += block, b += LANES * PANEL) {
#pragma GCC unroll 8
        for (int k = 0; k < LANES; k++) {
            _mm_prefetch(b + k * PANEL + AHEAD, _MM_HINT_T0);
            const __m512 bk = _mm512_loadu_ps(b + k * PANEL);
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++)
                sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(a[i * LANES + k]), bk, sum[i]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        _mm512_storeu_ps(c + i * PANEL, sum[i]);
}

/* clang-format off */
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)

static const tile_fn tiles[2][ROWS_MAX + 1] = {
    { NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11, tile_12 },
    { NULL, tile_more_1, tile_more_2, tile_more_3, tile_more_4, tile_more_5, tile_more_6, tile_more_7, tile_more_8, tile_more_9,
      tile_more_10, tile_more_11, tile_more_12 },
};
/* clang-format on */

void dn_cpu_strip_avx512(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more)
{
    for (int i = 0, n; i < rows; i += n) {
        n = rows_of_tile(rows - i, ROWS_MAX);
        tiles[more][n](k_blocks, a + i * LANES, block, b, c + i * PANEL);
    }
}
