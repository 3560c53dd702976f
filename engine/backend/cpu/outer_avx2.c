/* outer_avx2.c - sums of outer products on tiles of 4x16. See gradients.h. */
#include "choose.h"
#include "gradients.h"
#include "tile_avx2.h"

enum { ROWS = 4 };

/* Sixteen columns in two halves, whose lines are `step` floats apart. */
static void tile(int n, const float *a, const float *low, const float *high, ptrdiff_t step, float *c, ptrdiff_t pitch,
                 bool more)
{
    __m256 c0[ROWS], c1[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
        c0[i] = c1[i] = _mm256_setzero_ps();
    for (int t = 0; t < n; t++, a += LANES, low += step, high += step) {
        const __m256 b0 = _mm256_loadu_ps(low), b1 = _mm256_loadu_ps(high);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) {
            const __m256 x = _mm256_broadcast_ss(a + i);
            c0[i] = _mm256_fmadd_ps(x, b0, c0[i]);
            c1[i] = _mm256_fmadd_ps(x, b1, c1[i]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++, c += pitch) {
        _mm256_storeu_ps(c, more ? _mm256_add_ps(_mm256_loadu_ps(c), c0[i]) : c0[i]);
        _mm256_storeu_ps(c + LANES, more ? _mm256_add_ps(_mm256_loadu_ps(c + LANES), c1[i]) : c1[i]);
    }
}

void dn_cpu_outer_avx2(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c, ptrdiff_t pitch,
                       bool more)
{
    for (int p = 0; p < panels; p++, b += b_panel)
        for (int i = 0; i < LANES; i += ROWS)
            tile(n, a + i, b, b + LANES, PANEL, c + p * PANEL + i * pitch, pitch, more);
}

void dn_cpu_outer_planes_avx2(int n, const float *a, const float *b, ptrdiff_t plane, int planes, float *c,
                              ptrdiff_t pitch, bool more)
{
    for (int p = 0; p < planes; p += 2, b += 2 * plane)
        for (int i = 0; i < LANES; i += ROWS)
            tile(n, a + i, b, p + 1 < planes ? b + plane : b, LANES, c + p * LANES + i * pitch, pitch, more);
}

void dn_cpu_outer(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c, ptrdiff_t pitch,
                  bool more)
{
    (dn_cpu_has_avx512() ? dn_cpu_outer_avx512 : dn_cpu_outer_avx2)(n, a, b, b_panel, panels, c, pitch, more);
}

void dn_cpu_outer_planes(int n, const float *a, const float *b, ptrdiff_t plane, int planes, float *c, ptrdiff_t pitch,
                         bool more)
{
    (dn_cpu_has_avx512() ? dn_cpu_outer_planes_avx512 : dn_cpu_outer_planes_avx2)(n, a, b, plane, planes, c, pitch,
                                                                                  more);
}
