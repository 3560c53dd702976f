/* norm_unit.h - what the norms' two directions share: units of work, row vectors, sums that go on in double. */
#ifndef DN_CPU_NORM_UNIT_H
#define DN_CPU_NORM_UNIT_H

#include "elementwise_fours.h"
#include "norm.h"
#include <immintrin.h>

/* Of eight channels: y = ((x - mean) * factor + beta) * scale + shift, each step rounded as the ops by themselves
 * round, so that it does not matter whether they are one step. Zero in padded lanes. */
typedef struct dn_norm_lanes {
    __m256 mean, factor, beta, scale, shift;
} dn_norm_lanes;

enum dn_norm_modulation { DN_NORM_BARE, DN_NORM_SCALED, DN_NORM_SHIFTED, DN_NORM_SCALED_SHIFTED };

static inline enum dn_norm_modulation dn_norm_modulation_of(const dn_row_vector *scale, const dn_row_vector *shift)
{
    return (scale->data ? DN_NORM_SCALED : 0) | (shift->data ? DN_NORM_SHIFTED : 0);
}

static inline __attribute__((always_inline)) __m256 dn_norm_apply(__m256 x, const dn_norm_lanes *k,
                                                                  const enum dn_norm_modulation how)
{
    __m256 v = _mm256_fmadd_ps(_mm256_sub_ps(x, k->mean), k->factor, k->beta);
    if (how & DN_NORM_SCALED)
        v = _mm256_mul_ps(v, k->scale);
    return how & DN_NORM_SHIFTED ? _mm256_add_ps(v, k->shift) : v;
}

/* The smallest run of whole blocks that holds whole groups, at most all channels: one block for groups of 1, 2, 4 or 8
 * channels, several for larger ones, three for groups of 12. */
static inline int dn_norm_unit_channels(int channels, int groups)
{
    int group = channels / groups, a = group, b = DN_LANES;
    while (b) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    int64_t lcm = (int64_t)group / a * DN_LANES;
    return lcm < channels ? (int)lcm : channels;
}

/* Element c of row's vector. */
static inline float dn_vector_at(const dn_row_vector *v, int64_t row, int c, float missing)
{
    return v->data ? ((const float *)((const char *)v->data + row * v->row_bytes))[c] : missing;
}

typedef struct dn_norm_vectors {
    const dn_row_vector *gamma, *beta, *scale, *shift;
} dn_norm_vectors;

/* Of the eight channels from `channel` on, of `channels`; mean and rstd of each of them. */
static inline dn_norm_lanes dn_norm_lanes_of(const dn_norm_vectors *v, int64_t row, int channel, int channels,
                                             const float *mean, const float *rstd)
{
    float k[5][DN_LANES] = { { 0 } };
    for (int i = 0; i < DN_LANES && channel + i < channels; i++) {
        k[0][i] = mean[i];
        k[1][i] = rstd[i] * dn_vector_at(v->gamma, 0, channel + i, 1);
        k[2][i] = dn_vector_at(v->beta, 0, channel + i, 0);
        k[3][i] = dn_vector_at(v->scale, row, channel + i, 1);
        k[4][i] = dn_vector_at(v->shift, row, channel + i, 0);
    }
    return (dn_norm_lanes){ _mm256_loadu_ps(k[0]), _mm256_loadu_ps(k[1]), _mm256_loadu_ps(k[2]), _mm256_loadu_ps(k[3]),
                            _mm256_loadu_ps(k[4]) };
}

static inline fours fours_load(const float *x)
{
    return (fours){ _mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24) };
}

static inline void fours_store(float *y, fours v)
{
    _mm256_storeu_ps(y, v.a);
    _mm256_storeu_ps(y + 8, v.b);
    _mm256_storeu_ps(y + 16, v.c);
    _mm256_storeu_ps(y + 24, v.d);
}

static inline __attribute__((always_inline)) fours fours_norm(fours x, const dn_norm_lanes *k,
                                                              const enum dn_norm_modulation how)
{
    return (fours){ dn_norm_apply(x.a, k, how), dn_norm_apply(x.b, k, how), dn_norm_apply(x.c, k, how),
                    dn_norm_apply(x.d, k, how) };
}

static inline void dn_add_double(double sum[DN_LANES], __m256 v)
{
    _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtps_pd(_mm256_castps256_ps128(v))));
    _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))));
}

#endif
