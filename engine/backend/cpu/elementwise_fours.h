/* elementwise_fours.h - fmath_tmpl.h on four vectors in step: dn_w_exp, dn_w_silu and the others.
 *
 * One vector at a time, a long chain of dependent operations fills the CPU's queue and waits there; four chains side by
 * side are ready as they arrive. The operations on each lane, and so the bits, are those of dn_v_*. */
#ifndef DN_CPU_ELEMENTWISE_FOURS_H
#define DN_CPU_ELEMENTWISE_FOURS_H

#include <immintrin.h>
#include <stdint.h>

typedef struct fours {
    __m256 a, b, c, d;
} fours;

typedef struct ifours {
    __m256i a, b, c, d;
} ifours;

/* clang-format off */
/* fours_name of up to three operands: `expression` of their vectors x, y, z, four times. */
#define AT(m, vectors, expression) { vectors(m); r.m = expression; }
#define EACH(name, result, parameters, vectors, expression)                         \
    static inline __attribute__((always_inline)) result fours_##name parameters     \
    {                                                                               \
        result r;                                                                   \
        AT(a, vectors, expression)                                                  \
        AT(b, vectors, expression)                                                  \
        AT(c, vectors, expression)                                                  \
        AT(d, vectors, expression)                                                  \
        return r;                                                                   \
    }
#define X(m) __typeof__(p.m) x = p.m
#define XY(m) __typeof__(p.m) x = p.m, y = q.m
#define XYZ(m) __typeof__(p.m) x = p.m; __m256 y = q.m, z = s.m
EACH(sqrt, fours, (fours p), X, _mm256_sqrt_ps(x))
EACH(round, fours, (fours p), X, _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
EACH(toint, ifours, (fours p), X, _mm256_cvtps_epi32(x))
EACH(tofloat, fours, (ifours p), X, _mm256_cvtepi32_ps(x))
EACH(bits, ifours, (fours p), X, _mm256_castps_si256(x))
EACH(floats, fours, (ifours p), X, _mm256_castsi256_ps(x))
EACH(add, fours, (fours p, fours q), XY, _mm256_add_ps(x, y))
EACH(sub, fours, (fours p, fours q), XY, _mm256_sub_ps(x, y))
EACH(mul, fours, (fours p, fours q), XY, _mm256_mul_ps(x, y))
EACH(div, fours, (fours p, fours q), XY, _mm256_div_ps(x, y))
EACH(min, fours, (fours p, fours q), XY, _mm256_min_ps(x, y))
EACH(max, fours, (fours p, fours q), XY, _mm256_max_ps(x, y))
EACH(addi, ifours, (ifours p, ifours q), XY, _mm256_add_epi32(x, y))
EACH(subi, ifours, (ifours p, ifours q), XY, _mm256_sub_epi32(x, y))
EACH(andi, ifours, (ifours p, ifours q), XY, _mm256_and_si256(x, y))
EACH(eqi, ifours, (ifours p, ifours q), XY, _mm256_cmpeq_epi32(x, y))
EACH(fma, fours, (fours p, fours q, fours s), XYZ, _mm256_fmadd_ps(x, y, z))
EACH(fnma, fours, (fours p, fours q, fours s), XYZ, _mm256_fnmadd_ps(x, y, z))
EACH(select, fours, (ifours p, fours q, fours s), XYZ, _mm256_blendv_ps(z, y, _mm256_castsi256_ps(x)))
EACH(shl, ifours, (ifours p, int n), X, _mm256_slli_epi32(x, n))
EACH(shr, ifours, (ifours p, int n), X, _mm256_srai_epi32(x, n))
#undef AT
#undef EACH
#undef X
#undef XY
#undef XYZ

static inline fours fours_set(float x)
{
    __m256 v = _mm256_set1_ps(x);
    return (fours){ v, v, v, v };
}

static inline ifours fours_seti(int32_t x)
{
    __m256i v = _mm256_set1_epi32(x);
    return (ifours){ v, v, v, v };
}

#define F(name) dn_w_##name
#define V fours
#define VI ifours
#define SET(a) fours_set(a)
#define SETI(a) fours_seti(a)
#define ADD(a, b) fours_add(a, b)
#define SUB(a, b) fours_sub(a, b)
#define MUL(a, b) fours_mul(a, b)
#define DIV(a, b) fours_div(a, b)
#define FMA(a, b, c) fours_fma(a, b, c)
#define FNMA(a, b, c) fours_fnma(a, b, c)
#define SQRT(a) fours_sqrt(a)
#define ROUND(a) fours_round(a)
#define TOINT(a) fours_toint(a)
#define TOFLOAT(a) fours_tofloat(a)
#define BITS(a) fours_bits(a)
#define FLOATS(a) fours_floats(a)
#define ADDI(a, b) fours_addi(a, b)
#define SUBI(a, b) fours_subi(a, b)
#define ANDI(a, b) fours_andi(a, b)
#define SHL(a, n) fours_shl(a, n)
#define SHR(a, n) fours_shr(a, n)
#define MIN(a, b) fours_min(a, b)
#define MAX(a, b) fours_max(a, b)
#define EQI(a, b) fours_eqi(a, b)
#define SELECT(m, a, b) fours_select(m, a, b)
/* clang-format on */
#include "fmath_tmpl.h"
#include "fmath_undef.h"

#endif
