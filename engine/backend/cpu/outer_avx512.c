/* outer_avx512.c - sums of outer products on tiles of 8x32 and 8x16: each the same chain as in outer_avx2.c. */
#include "gradients.h"
#include "tile_avx2.h"

/* Sixteen columns: a line of a panel, or the lines of two planes. */
always_inline __m512 columns(const bool packed, const float *low, const float *high)
{
    if (packed)
        return _mm512_loadu_ps(low);
    const __m512d both = _mm512_castps_pd(_mm512_castps256_ps512(_mm256_loadu_ps(low)));
    return _mm512_castpd_ps(_mm512_insertf64x4(both, _mm256_castps_pd(_mm256_loadu_ps(high)), 1));
}

/* b: the columns of each panel in two halves. */
always_inline void tile(const int panels, const bool packed, int n, const float *a, const float *const b[4], float *c,
                        ptrdiff_t pitch, bool more)
{
    __m512 sum[2][LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++)
        sum[0][i] = sum[1][i] = _mm512_setzero_ps();
    for (int i = 0; i < LANES && more; i++)
        for (int p = 0; p < panels; p++)
            _mm_prefetch(c + p * PANEL + i * pitch, _MM_HINT_T0);
    for (ptrdiff_t t = 0, at = 0; t < n; t++, a += LANES, at += packed ? PANEL : LANES) {
        const __m512 b0 = columns(packed, b[0] + at, b[1] + at);
        const __m512 b1 = panels > 1 ? columns(packed, b[2] + at, b[3] + at) : b0;
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
    const float *const halves[] = { b, b + LANES, b + b_panel, b + b_panel + LANES };
    if (panels > 1)
        tile(2, true, n, a, halves, c, pitch, more);
    else
        tile(1, true, n, a, halves, c, pitch, more);
}

void dn_cpu_outer_planes_avx512(int n, const float *a, const float *b, ptrdiff_t plane, int planes, float *c,
                                ptrdiff_t pitch, bool more)
{
    const float *const halves[] = { b, planes > 1 ? b + plane : b, b + 2 * plane,
                                    planes > 3 ? b + 3 * plane : b + 2 * plane };
    if (planes > 2)
        tile(2, false, n, a, halves, c, pitch, more);
    else
        tile(1, false, n, a, halves, c, pitch, more);
}
