/* rotated_avx2.c - weights for gradients by the input: the image rotated by half a turn, channels exchanged. By 8x8
 * transpositions, in pieces of 16 along a line of memory. */
#include "elementwise_lanes.h"
#include "gradients.h"
#include "tile_avx2.h"

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

/* ---- taps [ceil(C/16)][K padded to 8][kh*kw][16]: the plain form of Winograd kernels, of rotated weights ---- */

/* 16 x 8 of one tap: rows c, columns k; zero where the matrix ends. */
static void taps_block(float *dst, ptrdiff_t step, const float *src, ptrdiff_t pitch, int rows, int columns)
{
    for (int h = 0; h < PANEL; h += LANES) {
        __m256 r[LANES];
        for (int i = 0; i < LANES; i++)
            r[i] = h + i < rows ? _mm256_maskload_ps(src + (h + i) * pitch, lanes(columns)) : _mm256_setzero_ps();
        lanes_transpose(r);
        for (int i = 0; i < LANES; i++)
            _mm256_storeu_ps(dst + i * step + h, r[i]);
    }
}

void dn_cpu_rotate_taps_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts)
{
    const int64_t taps = shape->dim[0] * shape->dim[1], C = shape->dim[2], K = shape->dim[3];
    const int64_t panels = (C + PANEL - 1) / PANEL, padded = (K + LANES - 1) / LANES * LANES;
    for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; p++)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t k = 0; k < K; k += LANES) {
                float *to = (float *)dst + ((p * padded + k) * taps + taps - 1 - tap) * PANEL;
                taps_block(to, taps * PANEL, weights + (tap * C + p * PANEL) * K + k, K,
                           (int)min64(C - p * PANEL, PANEL), (int)min64(K - k, LANES));
            }
}

void dn_cpu_rotate_taps(void *dst, const float *weights, const dn_shape *shape)
{
    dn_cpu_rotate_taps_part(dst, weights, shape, 0, 1);
}
