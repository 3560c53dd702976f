/* tile_avx2.c - the 6x16 register tile, its edges of 1 to 5 rows, and the epilogue of a panel. */
#include "choose.h"
#include "tile_avx2.h"

enum { AHEAD = 1024 /* floats of B to fetch ahead: its panels come from L3 or memory */ };

always_inline void tile(const int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c,
                        const bool more)
{
    __m256 c0[TILE_ROWS], c1[TILE_ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        c0[i] = more ? _mm256_loadu_ps(c + i * PANEL) : _mm256_setzero_ps();
        c1[i] = more ? _mm256_loadu_ps(c + i * PANEL + LANES) : _mm256_setzero_ps();
    }
    for (int kb = 0; kb < k_blocks; kb++, a += block, b += LANES * PANEL) {
#pragma GCC unroll 8
        for (int k = 0; k < LANES; k++) {
            _mm_prefetch(b + k * PANEL + AHEAD, _MM_HINT_T0);
            __m256 b0 = _mm256_loadu_ps(b + k * PANEL), b1 = _mm256_loadu_ps(b + k * PANEL + LANES);
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++) {
                __m256 x = _mm256_broadcast_ss(a + i * LANES + k);
                c0[i] = _mm256_fmadd_ps(x, b0, c0[i]);
                c1[i] = _mm256_fmadd_ps(x, b1, c1[i]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        _mm256_storeu_ps(c + i * PANEL, c0[i]);
        _mm256_storeu_ps(c + i * PANEL + LANES, c1[i]);
    }
}

/* clang-format off */
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)

static const tile_fn tiles[2][TILE_ROWS + 1] = {
    { NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6 },
    { NULL, tile_more_1, tile_more_2, tile_more_3, tile_more_4, tile_more_5, tile_more_6 },
};
/* clang-format on */

void dn_cpu_strip_avx2(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more)
{
    for (int i = 0, n; i < rows; i += n) {
        n = rows_of_tile(rows - i, TILE_ROWS);
        tiles[more][n](k_blocks, a + i * LANES, block, b, c + i * PANEL);
    }
}

void dn_cpu_strip(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more)
{
    (dn_cpu_has_avx512() ? dn_cpu_strip_avx512 : dn_cpu_strip_avx2)(rows, k_blocks, a, block, b, c, more);
}

void dn_cpu_panel_put(const float *c, int64_t at, int64_t n, int64_t per_row, const dn_epilogue *e, const dn_rows *y,
                      int K, int panel)
{
    for (int64_t done = 0, m; done < n; done += m) {
        int64_t row = (at + done) / per_row, pos = (at + done) % per_row;
        m = min64(n - done, per_row - pos);
        for (int h = 0; h < PANEL && panel * PANEL + h < K; h += LANES) {
            const sink s = sink_open(e, y, K, row, panel * PANEL + h);
            for (int64_t i = 0; i < m; i++)
                sink_put(&s, pos + i, _mm256_loadu_ps(c + (done + i) * PANEL + h));
        }
    }
}
