/* fmath.h - fmath_tmpl.h for plain floats: dn_f_exp, dn_f_log, dn_f_sigmoid, dn_f_silu, dn_f_sincos_turn, dn_f_box_muller. */
#ifndef DN_CORE_FMATH_H
#define DN_CORE_FMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline int32_t dn_f_bits(float x)
{
    int32_t i;
    memcpy(&i, &x, 4);
    return i;
}
static inline float dn_f_floats(int32_t i)
{
    float x;
    memcpy(&x, &i, 4);
    return x;
}

#define F(name) dn_f_##name
#define V float
#define VI int32_t
#define SET(a) (a)
#define SETI(a) (a)
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define MUL(a, b) ((a) * (b))
#define DIV(a, b) ((a) / (b))
#define FMA(a, b, c) fmaf(a, b, c)
#define FNMA(a, b, c) fmaf(-(a), b, c)
#define SQRT(a) sqrtf(a)
#define ROUND(a) rintf(a)
#define TOINT(a) ((a) == (a) ? (int32_t)(a) : 0) /* NaN has no integer */
#define TOFLOAT(a) ((float)(a))
#define BITS(a) dn_f_bits(a)
#define FLOATS(a) dn_f_floats(a)
#define ADDI(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define SUBI(a, b) ((int32_t)((uint32_t)(a) - (uint32_t)(b)))
#define ANDI(a, b) ((a) & (b))
#define SHL(a, n) ((int32_t)((uint32_t)(a) << (n)))
#define SHR(a, n) ((a) >> (n))
#define MIN(a, b) ((a) < (b) ? (a) : (b)) /* as vminps: b if either is NaN */
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define EQI(a, b) (-(int32_t)((a) == (b)))
#define SELECT(m, a, b) ((m) ? (a) : (b))
#include "fmath_tmpl.h"
#include "fmath_undef.h"

#endif
