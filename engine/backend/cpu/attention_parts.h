/* attention_parts.h - what attention's two directions share: one head's channels packed for dn_cpu_strip, and a strip
 * of weights. For files that are compiled with -mavx2 -mfma. */
#ifndef DN_CPU_ATTENTION_PARTS_H
#define DN_CPU_ATTENTION_PARTS_H

#include "copy.h"
#include "elementwise_fours.h"
#include "elementwise_lanes.h"
#include "tile_avx2.h"

enum { STRIP_ROWS = 48, SCORES_MAX = 32768 /* floats of a strip, on the stack */ };

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Heads that begin at whole blocks are read and written where they are. */
static inline bool in_place(int d) { return d % LANES == 0; }

/* Channels first .. first+d-1 of the n positions of a row. */
typedef struct head_of_rows {
    const dn_rows *x;
    int64_t row;
    int first, d;
    int64_t n;
} head_of_rows;

/* Channel c of the head at position 0; positions are LANES floats apart. */
static inline float *channel_at(const head_of_rows *h, int c)
{
    return dn_block_at(h->x, h->row, (h->first + c) / LANES) + (h->first + c) % LANES;
}

/* Blocks [d/8][n][8], zero past d. */
static inline void pack_blocks(float *dst, const head_of_rows *h)
{
    for (int c = 0; c < round_up(h->d, LANES); c++) {
        const float *src = c < h->d ? channel_at(h, c) : NULL;
        float *to = dst + c / LANES * h->n * LANES + c % LANES;
        for (int64_t i = 0; i < h->n; i++)
            to[i * LANES] = src ? src[i * LANES] : 0;
    }
}

/* Eight whole channels of up to eight keys: dst[c*16 + m], zero past `keys`. */
static inline void pack_key_block(float *dst, const float *src, int keys, float scale)
{
    __m256 r[LANES];
    for (int m = 0; m < LANES; m++)
        r[m] = m < keys ? _mm256_loadu_ps(src + m * LANES) : _mm256_setzero_ps();
    lanes_transpose(r);
    for (int c = 0; c < LANES; c++)
        _mm256_store_ps(dst + c * PANEL, _mm256_mul_ps(r[c], _mm256_set1_ps(scale)));
}

/* As keys: panels [n/16][d][16] of the channels times scale, zero past d and past n. */
static inline void pack_keys(float *panels, const head_of_rows *h, float scale)
{
    int64_t depth = round_up(h->d, LANES);
    for (int c = 0; c < depth;) {
        bool whole = in_place(h->d);
        const float *src = c < h->d ? channel_at(h, c) : NULL;
        for (int64_t m = 0; m < round_up(h->n, PANEL); m += LANES) {
            float *dst = panels + (m / PANEL * depth + c) * PANEL + m % PANEL;
            int n = m < h->n ? (int)min64(LANES, h->n - m) : 0;
            if (whole)
                pack_key_block(dst, src + m * LANES, n, scale);
            else
                for (int i = 0; i < LANES; i++)
                    dst[i] = src && i < n ? src[(m + i) * LANES] * scale : 0;
        }
        c += whole ? LANES : 1;
    }
}

/* As values: panels [d/16][n][16], n rounded up to 8, zero past d and past n. */
static inline void pack_values(float *panels, const head_of_rows *h)
{
    int64_t depth = round_up(h->n, LANES);
    for (int c = 0; c < round_up(h->d, PANEL);) {
        bool whole = (h->first + c) % LANES == 0 && c % LANES == 0 && c + LANES <= h->d;
        const float *src = c < h->d ? channel_at(h, c) : NULL;
        float *dst = panels + c / PANEL * depth * PANEL + c % PANEL;
        for (int64_t m = 0; m < depth; m++)
            if (whole)
                _mm256_store_ps(dst + m * PANEL, m < h->n ? _mm256_loadu_ps(src + m * LANES) : _mm256_setzero_ps());
            else
                dst[m * PANEL] = src && m < h->n ? src[m * LANES] : 0;
        c += whole ? LANES : 1;
    }
}

/* Queries (blocks) by packed keys: scores [keys/16][rows][16]; top[i] the lanewise maximum of row i. */
static inline void find_scores(int rows, const float *q, ptrdiff_t q_block, const float *k, int64_t keys, int depth,
                               float *scores, __m256 *top)
{
    for (int i = 0; i < rows; i++)
        top[i] = _mm256_set1_ps(-INFINITY);
    for (int64_t m = 0; m < keys; m += PANEL, scores += rows * PANEL) {
        __m256 left = _mm256_castsi256_ps(lanes_mask(keys - m));
        __m256 right = _mm256_castsi256_ps(lanes_mask(keys - m - LANES));
        dn_cpu_strip(rows, depth / LANES, q, q_block, k + m * depth, scores, false);
        for (int i = 0; i < rows; i++) {
            __m256 a = _mm256_blendv_ps(top[i], _mm256_load_ps(scores + i * PANEL), left);
            __m256 b = _mm256_blendv_ps(top[i], _mm256_load_ps(scores + i * PANEL + LANES), right);
            top[i] = _mm256_max_ps(_mm256_max_ps(top[i], a), b);
        }
    }
}

/* Eight scores of a row less its maximum. */
static inline __m256 below(const float *scores, float highest)
{
    return _mm256_sub_ps(_mm256_load_ps(scores), _mm256_set1_ps(highest));
}

static inline void weigh(float *weight, __m256 *sum, __m256 exponential, __m256 inside)
{
    __m256 e = _mm256_and_ps(exponential, inside);
    _mm256_store_ps(weight, e);
    *sum = _mm256_add_ps(*sum, e);
}

/* The weights of eight keys, for all rows. */
static inline void weigh_keys(int rows, const float *scores, const float *highest, __m256 inside, float *weight,
                              __m256 *sum)
{
    int i = 0;
    for (; i + 4 <= rows; i += 4, scores += 4 * PANEL, weight += 4 * LANES) {
        fours e = { below(scores, highest[i]), below(scores + PANEL, highest[i + 1]),
                    below(scores + 2 * PANEL, highest[i + 2]), below(scores + 3 * PANEL, highest[i + 3]) };
        e = dn_w_exp(e);
        weigh(weight, sum + i, e.a, inside);
        weigh(weight + LANES, sum + i + 1, e.b, inside);
        weigh(weight + 2 * LANES, sum + i + 2, e.c, inside);
        weigh(weight + 3 * LANES, sum + i + 3, e.d, inside);
    }
    for (; i < rows; i++, scores += PANEL, weight += LANES)
        weigh(weight, sum + i, dn_v_exp(below(scores, highest[i])), inside);
}

/* weights [keys/8][rows][8] = exp(score - maximum), zero past the keys; factor[i] = 1 / their sum. */
static inline void find_weights(int rows, int64_t keys, const float *scores, const __m256 *top, float *weights,
                                float *factor)
{
    float highest[STRIP_ROWS];
    __m256 sum[STRIP_ROWS];
    for (int i = 0; i < rows; i++) {
        highest[i] = lanes_max(top[i]);
        sum[i] = _mm256_setzero_ps();
    }
    for (int64_t m = 0; m < keys; m += LANES, weights += rows * LANES) {
        __m256 inside = _mm256_castsi256_ps(lanes_mask(keys - m));
        weigh_keys(rows, scores + m / PANEL * rows * PANEL + m % PANEL, highest, inside, weights, sum);
    }
    for (int i = 0; i < rows; i++)
        factor[i] = 1 / lanes_sum(sum[i]);
}

#endif
