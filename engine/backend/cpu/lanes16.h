/* lanes16.h - sixteen floats: one vector of AVX-512, or two of AVX2 that give the same bits. For files that are
 * included once per instruction set. */
#ifndef DN_CPU_LANES16_H
#define DN_CPU_LANES16_H

#include "elementwise_fours.h"
#include "elementwise_lanes.h"

#define V16 static inline __attribute__((__always_inline__))

#ifdef __AVX512F__

#define F(name) dn_z_##name
#define V __m512
#define VI __m512i
#define SET(a) _mm512_set1_ps(a)
#define SETI(a) _mm512_set1_epi32(a)
#define ADD(a, b) _mm512_add_ps(a, b)
#define SUB(a, b) _mm512_sub_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define DIV(a, b) _mm512_div_ps(a, b)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define FNMA(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define SQRT(a) _mm512_sqrt_ps(a)
#define ROUND(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define TOINT(a) _mm512_cvtps_epi32(a)
#define TOFLOAT(a) _mm512_cvtepi32_ps(a)
#define BITS(a) _mm512_castps_si512(a)
#define FLOATS(a) _mm512_castsi512_ps(a)
#define ADDI(a, b) _mm512_add_epi32(a, b)
#define SUBI(a, b) _mm512_sub_epi32(a, b)
#define ANDI(a, b) _mm512_and_si512(a, b)
#define SHL(a, n) _mm512_slli_epi32(a, n)
#define SHR(a, n) _mm512_srai_epi32(a, n)
#define MIN(a, b) _mm512_min_ps(a, b)
#define MAX(a, b) _mm512_max_ps(a, b)
#define EQI(a, b) _mm512_maskz_set1_epi32(_mm512_cmpeq_epi32_mask(a, b), -1)
#define SELECT(m, a, b) _mm512_mask_blend_ps(_mm512_test_epi32_mask(m, m), b, a)
#include "fmath_tmpl.h"
#include "fmath_undef.h"

typedef __m512 v16;

V16 v16 v16_set(float x) { return _mm512_set1_ps(x); }
V16 v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
V16 void v16_store(float *p, v16 x) { _mm512_storeu_ps(p, x); }
V16 v16 v16_add(v16 x, v16 y) { return _mm512_add_ps(x, y); }
V16 v16 v16_sub(v16 x, v16 y) { return _mm512_sub_ps(x, y); }
V16 v16 v16_mul(v16 x, v16 y) { return _mm512_mul_ps(x, y); }
V16 v16 v16_max(v16 x, v16 y) { return _mm512_max_ps(x, y); }
V16 v16 v16_fma(v16 x, v16 y, v16 z) { return _mm512_fmadd_ps(x, y, z); }
V16 v16 v16_exp(v16 x) { return dn_z_exp(x); }
V16 __m256 v16_low(v16 x) { return _mm512_castps512_ps256(x); }
V16 __m256 v16_high(v16 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
/* x in the first n lanes, y in the others. */
V16 v16 v16_first(int n, v16 x, v16 y) { return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1), y, x); }

#else

typedef struct v16 {
    __m256 low, high;
} v16;

V16 v16 v16_set(float x) { return (v16){ _mm256_set1_ps(x), _mm256_set1_ps(x) }; }
V16 v16 v16_load(const float *p) { return (v16){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) }; }
V16 void v16_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
V16 v16 v16_add(v16 x, v16 y) { return (v16){ _mm256_add_ps(x.low, y.low), _mm256_add_ps(x.high, y.high) }; }
V16 v16 v16_sub(v16 x, v16 y) { return (v16){ _mm256_sub_ps(x.low, y.low), _mm256_sub_ps(x.high, y.high) }; }
V16 v16 v16_mul(v16 x, v16 y) { return (v16){ _mm256_mul_ps(x.low, y.low), _mm256_mul_ps(x.high, y.high) }; }
V16 v16 v16_max(v16 x, v16 y) { return (v16){ _mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high) }; }
V16 v16 v16_fma(v16 x, v16 y, v16 z)
{
    return (v16){ _mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high) };
}
V16 v16 v16_exp(v16 x) { return (v16){ dn_v_exp(x.low), dn_v_exp(x.high) }; }
V16 __m256 v16_low(v16 x) { return x.low; }
V16 __m256 v16_high(v16 x) { return x.high; }
V16 v16 v16_first(int n, v16 x, v16 y)
{
    return (v16){ _mm256_blendv_ps(y.low, x.low, _mm256_castsi256_ps(lanes_mask(n))),
                  _mm256_blendv_ps(y.high, x.high, _mm256_castsi256_ps(lanes_mask(n - 8))) };
}

#endif

/* In one fixed order. */
V16 float v16_sum(v16 x) { return lanes_sum(_mm256_add_ps(v16_low(x), v16_high(x))); }
V16 float v16_highest(v16 x) { return lanes_max(_mm256_max_ps(v16_low(x), v16_high(x))); }

#undef V16
#endif
