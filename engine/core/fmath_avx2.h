/* fmath_avx2.h - fmath_tmpl.h on 8 lanes: dn_v_exp, dn_v_log, dn_v_sigmoid, dn_v_silu, dn_v_sincos_turn,
 * dn_v_box_muller. Lane by lane the same bits as fmath.h. For files compiled with -mavx2 -mfma. */
#ifndef DN_CORE_FMATH_AVX2_H
#define DN_CORE_FMATH_AVX2_H

#include <immintrin.h>

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

#endif
