/* norm_unit.h - what the norms' two directions share: units of work, row vectors, sums that go on in double. */
#ifndef DN_CPU_NORM_UNIT_H
#define DN_CPU_NORM_UNIT_H

#include "norm.h"
#include <immintrin.h>

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

static inline void dn_add_double(double sum[DN_LANES], __m256 v)
{
    _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtps_pd(_mm256_castps256_ps128(v))));
    _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))));
}

#endif
