/* elementwise_lanes.h - eight floats at a time: masks, sums and the polynomials of fmath_tmpl.h as dn_v_*. For files
 * that are compiled with -mavx2 -mfma. */
#ifndef DN_CPU_ELEMENTWISE_LANES_H
#define DN_CPU_ELEMENTWISE_LANES_H

#include <immintrin.h>
#include <stdint.h>

#define F(name) dn_v_##name
#define V __m256
#define VI __m256i
#define SET(a) _mm256_set1_ps(a)
#define SETI(a) _mm256_set1_epi32(a)
#define ADD(a, b) _mm256_add_ps(a, b)
#define SUB(a, b) _mm256_sub_ps(a, b)
#define MUL(a, b) _mm256_mul_ps(a, b)
#define DIV(a, b) _mm256_div_ps(a, b)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define FNMA(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define SQRT(a) _mm256_sqrt_ps(a)
#define ROUND(a) _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define TOINT(a) _mm256_cvtps_epi32(a)
#define TOFLOAT(a) _mm256_cvtepi32_ps(a)
#define BITS(a) _mm256_castps_si256(a)
#define FLOATS(a) _mm256_castsi256_ps(a)
#define ADDI(a, b) _mm256_add_epi32(a, b)
#define SUBI(a, b) _mm256_sub_epi32(a, b)
#define ANDI(a, b) _mm256_and_si256(a, b)
#define SHL(a, n) _mm256_slli_epi32(a, n)
#define SHR(a, n) _mm256_srai_epi32(a, n)
#define MIN(a, b) _mm256_min_ps(a, b)
#define MAX(a, b) _mm256_max_ps(a, b)
#define EQI(a, b) _mm256_cmpeq_epi32(a, b)
#define SELECT(m, a, b) _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m))
#include "fmath_tmpl.h"
#include "fmath_undef.h"

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
