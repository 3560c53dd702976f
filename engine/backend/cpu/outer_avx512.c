/* outer_avx512.c - sums of outer products on tiles of 8x32 and 8x16: each the same chain as in outer_avx2.c. */
#include "gradients.h"
#include "tile_avx2.h"

always_inline void tile(const int panels, int n, const float *a, const float *b, ptrdiff_t b_panel, float *c,
                        ptrdiff_t pitch, bool more)
{
    __m512 sum[2][LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++)
        sum[0][i] = sum[1][i] = _mm512_setzero_ps();
    for (int i = 0; i < LANES && more; i++)
        for (int p = 0; p < panels; p++)
            _mm_prefetch(c + p * PANEL + i * pitch, _MM_HINT_T0);
    for (int t = 0; t < n; t++, a += LANES, b += PANEL) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = panels > 1 ? _mm512_loadu_ps(b + b_panel) : b0;
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) {
            const __m512 x = _mm512_set1_ps(a[i]);
            sum[0][i] = _mm512_fmadd_ps(x, b0, sum[0][i]);
            if (panels > 1)
                sum[1][i] = _mm512_fmadd_ps(x, b1, sum[1][i]);
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) {
            float *to = c + p * PANEL + i * pitch;
            _mm512_storeu_ps(to, more ? _mm512_add_ps(_mm512_loadu_ps(to), sum[p][i]) : sum[p][i]);
        }
}

void dn_cpu_outer_avx512(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c,
                         ptrdiff_t pitch, bool more)
{
    if (panels > 1)
        tile(2, n, a, b, b_panel, c, pitch, more);
    else
        tile(1, n, a, b, b_panel, c, pitch, more);
}
