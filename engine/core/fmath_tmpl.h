/* fmath_tmpl.h - our own exp, log, sin and cos as one fixed sequence of operations, for any vector type.
 *
 * Included once per type with these macros set: F (the name of a function), V (float type), VI (int32 type), SET, SETI,
 * ADD, SUB, MUL, DIV, FMA (fused), FNMA (c - a*b, fused), SQRT, ROUND (to nearest even), TOINT (of a rounded value),
 * TOFLOAT, BITS (V -> VI), FLOATS (VI -> V), ADDI, SUBI, ANDI, SHL, SHR (arithmetic), MIN, MAX, SELECT (mask VI all ones
 * or zeros, a where ones, else b), EQI (mask). Every backend includes this file, so the bits agree. Polynomials: Cephes
 * (S. Moshier), relative error below 2e-7. No contraction: the build sets -ffp-contract=off. */

/* e^x for x in [-87.3, 88.3]; clamped outside. NaN stays NaN: MIN and MAX give their second operand then. */
static inline V F(exp)(V x)
{
    x = MIN(SET(88.3f), MAX(SET(-87.3f), x));
    V n = ROUND(MUL(x, SET(1.44269504f)));
    V r = FNMA(n, SET(0.693359375f), x);
    r = FMA(n, SET(2.12194440e-4f), r);
    V p = SET(1.9875691500e-4f);
    p = FMA(p, r, SET(1.3981999507e-3f));
    p = FMA(p, r, SET(8.3334519073e-3f));
    p = FMA(p, r, SET(4.1665795894e-2f));
    p = FMA(p, r, SET(1.6666665459e-1f));
    p = FMA(p, r, SET(5.0000001201e-1f));
    p = FMA(MUL(p, r), r, ADD(r, SET(1.0f)));
    return FLOATS(ADDI(BITS(p), SHL(TOINT(n), 23)));
}

static inline V F(sigmoid)(V x) { return DIV(SET(1.0f), ADD(SET(1.0f), F(exp)(SUB(SET(0.0f), x)))); }

static inline V F(silu)(V x) { return DIV(x, ADD(SET(1.0f), F(exp)(SUB(SET(0.0f), x)))); }

/* ln x for normal positive x. */
static inline V F(log)(V x)
{
    VI bits = BITS(x);
    VI e = SHR(SUBI(bits, SETI(0x3f3504f3)), 23); /* so that the mantissa lies in [sqrt(1/2), sqrt(2)) */
    V m = SUB(FLOATS(SUBI(bits, SHL(e, 23))), SET(1.0f));
    V ef = TOFLOAT(e), z = MUL(m, m);
    V p = SET(7.0376836292e-2f);
    p = FMA(p, m, SET(-1.1514610310e-1f));
    p = FMA(p, m, SET(1.1676998740e-1f));
    p = FMA(p, m, SET(-1.2420140846e-1f));
    p = FMA(p, m, SET(1.4249322787e-1f));
    p = FMA(p, m, SET(-1.6668057665e-1f));
    p = FMA(p, m, SET(2.0000714765e-1f));
    p = FMA(p, m, SET(-2.4999993993e-1f));
    p = FMA(p, m, SET(3.3333331174e-1f));
    p = MUL(MUL(p, m), z);
    p = FMA(ef, SET(-2.12194440e-4f), p);
    p = FNMA(z, SET(0.5f), p);
    return FMA(ef, SET(0.693359375f), ADD(m, p));
}

/* sin and cos of 2*pi*u for u in [0, 1]. */
static inline void F(sincos_turn)(V u, V *s, V *c)
{
    V t = MUL(u, SET(4.0f)), q = ROUND(t);
    V x = MUL(SUB(t, q), SET(1.5707963267948966f)), z = MUL(x, x);
    V ps = SET(-1.9515295891e-4f);
    ps = FMA(ps, z, SET(8.3321608736e-3f));
    ps = FMA(ps, z, SET(-1.6666654611e-1f));
    ps = FMA(MUL(ps, z), x, x);
    V pc = SET(2.443315711809948e-5f);
    pc = FMA(pc, z, SET(-1.388731625493765e-3f));
    pc = FMA(pc, z, SET(4.166664568298827e-2f));
    pc = FMA(MUL(pc, z), z, FNMA(z, SET(0.5f), SET(1.0f)));
    VI k = ANDI(TOINT(q), SETI(3)), odd = EQI(ANDI(k, SETI(1)), SETI(1));
    V a = SELECT(odd, pc, ps), b = SELECT(odd, ps, pc);
    VI flip_s = EQI(ANDI(k, SETI(2)), SETI(2)), flip_c = EQI(ANDI(ADDI(k, SETI(1)), SETI(2)), SETI(2));
    *s = SELECT(flip_s, SUB(SET(0.0f), a), a);
    *c = SELECT(flip_c, SUB(SET(0.0f), b), b);
}

/* Two independent N(0,1) from two uniforms in (0,1). */
static inline void F(box_muller)(V u1, V u2, V *n1, V *n2)
{
    V r = SQRT(MUL(SET(-2.0f), F(log)(u1))), s, c;
    F(sincos_turn)(u2, &s, &c);
    *n1 = MUL(r, c);
    *n2 = MUL(r, s);
}
