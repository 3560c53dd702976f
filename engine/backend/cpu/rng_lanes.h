/* rng_lanes.h - Philox4x32-10 on eight counters at a time. For files that are compiled with -mavx2 -mfma. */
#ifndef DN_CPU_RNG_LANES_H
#define DN_CPU_RNG_LANES_H

#include "rng.h"
#include <immintrin.h>

/* The high and the low halves of a * b, eight 32-bit products. */
static inline void mul_wide(__m256i a, __m256i b, __m256i *hi, __m256i *lo)
{
    __m256i even = _mm256_mul_epu32(a, b), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    *lo = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    *hi = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}

static inline void philox8(__m256i c[4], uint64_t seed)
{
    __m256i m0 = _mm256_set1_epi32((int)0xD2511F53u), m1 = _mm256_set1_epi32((int)0xCD9E8D57u);
    __m256i k0 = _mm256_set1_epi32((int)(uint32_t)seed), k1 = _mm256_set1_epi32((int)(uint32_t)(seed >> 32));
    __m256i w0 = _mm256_set1_epi32((int)0x9E3779B9u), w1 = _mm256_set1_epi32((int)0xBB67AE85u);
    for (int round = 0; round < 10; round++) {
        __m256i hi0, lo0, hi1, lo1;
        mul_wide(c[0], m0, &hi0, &lo0);
        mul_wide(c[2], m1, &hi1, &lo1);
        c[0] = _mm256_xor_si256(_mm256_xor_si256(hi1, c[1]), k0);
        c[2] = _mm256_xor_si256(_mm256_xor_si256(hi0, c[3]), k1);
        c[1] = lo1;
        c[3] = lo0;
        k0 = _mm256_add_epi32(k0, w0);
        k1 = _mm256_add_epi32(k1, w1);
    }
}

static inline __m256 uniform8(__m256i bits)
{
    __m256 whole = _mm256_cvtepi32_ps(_mm256_srli_epi32(bits, 8));
    return _mm256_mul_ps(_mm256_add_ps(whole, _mm256_set1_ps(0.5f)), _mm256_set1_ps(0x1p-24f));
}

/* v[i] holds number i of eight draws: write them draw after draw, 32 floats. */
static inline void store_draws(float *out, const __m256 v[4])
{
    __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
    __m256 c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
    __m256 r0 = _mm256_shuffle_ps(a, c, 0x44), r1 = _mm256_shuffle_ps(a, c, 0xee); /* draws 0,4 and 1,5 */
    __m256 r2 = _mm256_shuffle_ps(b, d, 0x44), r3 = _mm256_shuffle_ps(b, d, 0xee); /* draws 2,6 and 3,7 */
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(r0, r1, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(r2, r3, 0x20));
    _mm256_storeu_ps(out + 16, _mm256_permute2f128_ps(r0, r1, 0x31));
    _mm256_storeu_ps(out + 24, _mm256_permute2f128_ps(r2, r3, 0x31));
}

/* The bits of the eight draws `draw`: c[i] holds number i of each. */
static inline void draw8(__m256i c[4], __m256i draw, const dn_rng_key *key)
{
    c[0] = draw;
    c[1] = _mm256_set1_epi32((int)key->step);
    c[2] = _mm256_set1_epi32((int)key->purpose);
    c[3] = _mm256_set1_epi32((int)key->sample);
    philox8(c, key->seed);
}

#endif
