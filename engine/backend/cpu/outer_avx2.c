/* outer_avx2.c - sums of outer products on tiles of 4x16, and the rotated weights. See gradients.h. */
#include "choose.h"
#include "elementwise_lanes.h"
#include "gradients.h"
#include "tile_avx2.h"

enum { ROWS = 4 };

static void tile(int n, const float *a, const float *b, float *c, ptrdiff_t pitch, bool more)
{
    __m256 c0[ROWS], c1[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
        c0[i] = c1[i] = _mm256_setzero_ps();
    for (int t = 0; t < n; t++, a += LANES, b += PANEL) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + LANES);
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
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < LANES; i += ROWS)
            tile(n, a + i, b + p * b_panel, c + p * PANEL + i * pitch, pitch, more);
}

void dn_cpu_outer(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c, ptrdiff_t pitch,
                  bool more)
{
    (dn_cpu_has_avx512() ? dn_cpu_outer_avx512 : dn_cpu_outer_avx2)(n, a, b, b_panel, panels, c, pitch, more);
}

/* ---- rotated weights ---- */

const char dn_cpu_rotated_key[] = "rotated";

size_t dn_cpu_rotated_bytes(const dn_shape *weights) { return (size_t)dn_shape_count(weights) * sizeof(float); }

/* dst[k][c] = src[c][k] for 8 x 8 of them, or `rows` c and `columns` k where the matrix ends */
static void transpose(float *dst, ptrdiff_t dst_pitch, const float *src, ptrdiff_t src_pitch, int rows, int columns)
{
    __m256 r[LANES];
    for (int i = 0; i < LANES; i++)
        r[i] = i < rows ? _mm256_maskload_ps(src + i * src_pitch, lanes(columns)) : _mm256_setzero_ps();
    lanes_transpose(r);
    for (int i = 0; i < LANES && i < columns; i++)
        _mm256_maskstore_ps(dst + i * dst_pitch, lanes(rows), r[i]);
}

void dn_cpu_rotate_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts)
{
    const int64_t taps = shape->dim[0] * shape->dim[1], C = shape->dim[2], K = shape->dim[3];
    const int64_t blocks = (K + PANEL - 1) / PANEL, all = taps * blocks; /* PANEL: whole cache lines */
    for (int64_t i = all * part / parts; i < all * (part + 1) / parts; i++) {
        const int64_t tap = i / blocks, k = i % blocks * PANEL;
        const float *src = weights + tap * C * K + k;
        float *to = (float *)dst + ((taps - 1 - tap) * K + k) * C;
        for (int64_t c = 0; c < C; c += LANES)
            for (int64_t h = 0; h < PANEL && k + h < K; h += LANES)
                transpose(to + h * C + c, C, src + c * K + h, K, (int)min64(C - c, LANES), (int)min64(K - k - h, LANES));
    }
}

void dn_cpu_rotate(void *dst, const float *weights, const dn_shape *shape)
{
    dn_cpu_rotate_part(dst, weights, shape, 0, 1);
}
