/* elementwise_lanes.h - masks, sums and maxima of eight floats. For files that are compiled with -mavx2 -mfma. */
#ifndef DN_CPU_ELEMENTWISE_LANES_H
#define DN_CPU_ELEMENTWISE_LANES_H

#include "fmath_avx2.h"
#include <stdint.h>

/* All ones in the first `valid` lanes (all of them from 8 on). */
static inline __m256i lanes_mask(int64_t valid)
{
    int v = valid < 8 ? (int)valid : 8;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(v), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The sum of all lanes, in one fixed order. */
static inline float lanes_sum(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline float lanes_max(__m256 v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

#endif
