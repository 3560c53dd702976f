/* elementwise_avx2.c - see elementwise.h. A value is a set of runs of contiguous floats: a plane of eight channels, or
 * a whole dense row. Each operation is one loop over a run, made from a table of expressions. */
#include "elementwise.h"
#include "elementwise_lanes.h"

/* n floats; `keep` clears padded lanes (all ones in a dense run); b advances by b_step vectors of 8. */
typedef struct run {
    const float *x, *b;
    float *y;
    int64_t n;
    int b_step;
    __m256i keep;
    __m256 p, q;
} run;

typedef void (*run_fn)(const run *r);

static inline __m256 load(const float *x, __m256i inside, bool whole)
{
    return whole ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, inside);
}

/* Loads of a ragged end never touch what is beyond it. */
#define RUN(name, expression)                                                                                 \
    static inline __attribute__((always_inline)) __m256 name##_at(const run *r, int64_t i, __m256i inside,    \
                                                                  const bool whole)                           \
    {                                                                                                         \
        const __m256 p = r->p, q = r->q, x = load(r->x + i, inside, whole);                                   \
        (void)p, (void)q;                                                                                     \
        return _mm256_and_ps(_mm256_castsi256_ps(r->keep), expression);                                       \
    }                                                                                                         \
    static void name(const run *a)                                                                            \
    {                                                                                                         \
        const run r = *a; /* stores cannot change it */                                                       \
        int64_t i = 0;                                                                                        \
        for (; i + DN_LANES <= r.n; i += DN_LANES)                                                            \
            _mm256_storeu_ps(r.y + i, name##_at(&r, i, r.keep, true));                                        \
        __m256i inside = lanes_mask(r.n - i);                                                                 \
        if (i < r.n)                                                                                          \
            _mm256_maskstore_ps(r.y + i, inside, name##_at(&r, i, inside, false));                            \
    }

/* clang-format off */
#define SET(v) _mm256_set1_ps(v)
#define MUL(v, w) _mm256_mul_ps(v, w)
#define SUB(v, w) _mm256_sub_ps(v, w)
#define FMA(u, v, w) _mm256_fmadd_ps(u, v, w)
/* clang-format on */

#define ABS(v) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v)

/* P(x) of the normal distribution, and exp(-x^2/2) by the way; erf as in Abramowitz and Stegun 7.1.26, 1.5e-7 */
static inline __m256 normal_below(__m256 x, __m256 *bell)
{
    __m256 z = MUL(ABS(x), SET(0.70710678f)), e = dn_v_exp(MUL(SUB(SET(0), z), z));
    __m256 t = _mm256_div_ps(SET(1), FMA(SET(0.3275911f), z, SET(1))), p = SET(1.061405429f);
    p = FMA(p, t, SET(-1.453152027f));
    p = FMA(p, t, SET(1.421413741f));
    p = FMA(p, t, SET(-0.284496736f));
    p = FMA(p, t, SET(0.254829592f));
    __m256 tail = MUL(MUL(MUL(p, t), e), SET(0.5f)); /* P(-|x|) */
    *bell = e;
    return _mm256_blendv_ps(SUB(SET(1), tail), tail, x);
}

static inline __m256 gelu(__m256 x)
{
    __m256 bell;
    return MUL(x, normal_below(x, &bell));
}

/* x (1 + tanh(u)) / 2 = x sigmoid(2u), u = k (x + 0.044715 x^3) */
static inline __m256 gelu_tanh(__m256 x)
{
    __m256 u = MUL(MUL(SET(0.79788456f), x), FMA(SET(0.044715f), MUL(x, x), SET(1)));
    return MUL(x, dn_v_sigmoid(_mm256_add_ps(u, u)));
}

/* x tanh(ln(1 + e^x)) = x n / (n + 2), n = e^x (e^x + 2); from 20 on the quotient is 1. */
static inline __m256 mish(__m256 x)
{
    __m256 two = _mm256_set1_ps(2), e = dn_v_exp(_mm256_min_ps(_mm256_set1_ps(20), x));
    __m256 n = _mm256_mul_ps(e, _mm256_add_ps(e, two));
    return _mm256_div_ps(_mm256_mul_ps(x, n), _mm256_add_ps(n, two));
}

RUN(run_silu, dn_v_silu(x))
RUN(run_gelu, gelu(x))
RUN(run_gelu_tanh, gelu_tanh(x))
RUN(run_sigmoid, dn_v_sigmoid(x))
RUN(run_relu, _mm256_max_ps(_mm256_setzero_ps(), x))
RUN(run_square, _mm256_mul_ps(x, x))
RUN(run_abs, ABS(x))
RUN(run_sqrt, _mm256_sqrt_ps(x))
RUN(run_reciprocal, _mm256_div_ps(_mm256_set1_ps(1), x))
RUN(run_mish, mish(x))
RUN(run_affine, _mm256_fmadd_ps(p, x, q))
RUN(run_clamp, _mm256_min_ps(q, _mm256_max_ps(p, x)))

/* clang-format off */
static const run_fn unary_runs[DN_UNARY_COUNT] = {
    [DN_SILU] = run_silu,     [DN_SIGMOID] = run_sigmoid, [DN_RELU] = run_relu, [DN_SQUARE] = run_square,
    [DN_ABS] = run_abs,       [DN_AFFINE] = run_affine,   [DN_CLAMP] = run_clamp, [DN_MISH] = run_mish,
    [DN_SQRT] = run_sqrt,     [DN_RECIPROCAL] = run_reciprocal, [DN_GELU] = run_gelu, [DN_GELU_TANH] = run_gelu_tanh,
};
/* clang-format on */

/* b: eight at a time, or a constant vector. */
#define B_AT load(r->b + i * r->b_step, inside, whole)
RUN(run_add, _mm256_add_ps(x, B_AT))
RUN(run_sub, _mm256_sub_ps(x, B_AT))
RUN(run_rsub, _mm256_sub_ps(B_AT, x))
RUN(run_mul, _mm256_mul_ps(x, B_AT))
RUN(run_div, _mm256_div_ps(x, B_AT))
RUN(run_rdiv, _mm256_div_ps(B_AT, x))

static const run_fn binary_runs[][2] = {
    [DN_ADD] = { run_add, run_add },
    [DN_SUB] = { run_sub, run_rsub },
    [DN_MUL] = { run_mul, run_mul },
    [DN_DIV] = { run_div, run_rdiv },
};

/* ---- derivatives ---- */

static inline __m256 where(__m256 mask, __m256 v) { return _mm256_and_ps(mask, v); }

/* s + x s (1 - s), s = sigmoid(x) */
static inline __m256 silu_slope(__m256 x)
{
    __m256 s = dn_v_sigmoid(x);
    return FMA(MUL(x, s), SUB(SET(1), s), s);
}

static inline __m256 sigmoid_slope(__m256 x)
{
    __m256 s = dn_v_sigmoid(x);
    return MUL(s, SUB(SET(1), s));
}

/* 1 - tanh(x)^2 = 4 s (1 - s), s = sigmoid(2x) */
static inline __m256 tanh_slope(__m256 x) { return MUL(SET(4), sigmoid_slope(_mm256_add_ps(x, x))); }

/* As the square of e^(x/2), which overflows and vanishes where e^x does. */
static inline __m256 whole_exp(__m256 x)
{
    __m256 e = dn_v_exp(MUL(SET(0.5f), x));
    return MUL(e, e);
}

/* t + x (1 - t^2) sigmoid(x), t = n / (n + 2) as in mish */
static inline __m256 mish_slope(__m256 x)
{
    __m256 two = SET(2), e = dn_v_exp(_mm256_min_ps(SET(20), x));
    __m256 n = MUL(e, _mm256_add_ps(e, two)), k = _mm256_div_ps(SET(1), _mm256_add_ps(n, two));
    __m256 rest = MUL(MUL(MUL(two, k), k), FMA(two, n, two)); /* 1 - t^2 */
    return FMA(MUL(x, rest), dn_v_sigmoid(x), MUL(n, k));
}

/* P(x) + x p(x) of the normal distribution */
static inline __m256 gelu_slope(__m256 x)
{
    __m256 bell, below = normal_below(x, &bell);
    return FMA(MUL(x, bell), SET(0.39894228f), below);
}

/* s + 2 x s (1 - s) u', s = sigmoid(2u), u = k (x + 0.044715 x^3) */
static inline __m256 gelu_tanh_slope(__m256 x)
{
    __m256 k = SET(0.79788456f), xx = MUL(x, x);
    __m256 u = MUL(MUL(k, x), FMA(SET(0.044715f), xx, SET(1))), du = MUL(k, FMA(SET(0.134145f), xx, SET(1)));
    __m256 s = dn_v_sigmoid(_mm256_add_ps(u, u));
    return FMA(MUL(_mm256_add_ps(x, x), MUL(s, SUB(SET(1), s))), du, s);
}

static inline __m256 sign(__m256 x)
{
    __m256 up = where(_mm256_cmp_ps(x, SET(0), _CMP_GT_OQ), SET(1));
    return _mm256_or_ps(up, where(_mm256_cmp_ps(x, SET(0), _CMP_LT_OQ), SET(-1)));
}

static inline __m256 within(__m256 x, __m256 lo, __m256 hi)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, lo, _CMP_GE_OQ), _mm256_cmp_ps(x, hi, _CMP_LE_OQ));
}

RUN(run_silu_bwd, MUL(B_AT, silu_slope(x)))
RUN(run_gelu_bwd, MUL(B_AT, gelu_slope(x)))
RUN(run_gelu_tanh_bwd, MUL(B_AT, gelu_tanh_slope(x)))
RUN(run_relu_bwd, where(_mm256_cmp_ps(x, SET(0), _CMP_GT_OQ), B_AT))
RUN(run_mish_bwd, MUL(B_AT, mish_slope(x)))
RUN(run_sigmoid_bwd, MUL(B_AT, sigmoid_slope(x)))
RUN(run_tanh_bwd, MUL(B_AT, tanh_slope(x)))
RUN(run_exp_bwd, MUL(B_AT, whole_exp(x)))
RUN(run_log_bwd, _mm256_div_ps(B_AT, x))
RUN(run_sqrt_bwd, _mm256_div_ps(MUL(B_AT, SET(0.5f)), _mm256_sqrt_ps(x)))
RUN(run_square_bwd, MUL(B_AT, _mm256_add_ps(x, x)))
RUN(run_reciprocal_bwd, _mm256_div_ps(SUB(SET(0), B_AT), MUL(x, x)))
RUN(run_abs_bwd, MUL(B_AT, sign(x)))
RUN(run_clamp_bwd, where(within(x, p, q), B_AT))

/* clang-format off */
static const run_fn unary_bwd_runs[DN_UNARY_COUNT] = {
    [DN_SILU] = run_silu_bwd,       [DN_GELU] = run_gelu_bwd,     [DN_GELU_TANH] = run_gelu_tanh_bwd,
    [DN_RELU] = run_relu_bwd,       [DN_MISH] = run_mish_bwd,     [DN_SIGMOID] = run_sigmoid_bwd,
    [DN_TANH] = run_tanh_bwd,       [DN_EXP] = run_exp_bwd,       [DN_LOG] = run_log_bwd,
    [DN_SQRT] = run_sqrt_bwd,       [DN_SQUARE] = run_square_bwd, [DN_RECIPROCAL] = run_reciprocal_bwd,
    [DN_ABS] = run_abs_bwd,         [DN_CLAMP] = run_clamp_bwd,
};
/* clang-format on */
#undef SET
#undef MUL
#undef SUB
#undef FMA

/* ---- all runs of a value ---- */

typedef struct job {
    const dn_elementwise_args *a;
    run_fn fn;
    int runs; /* of a row */
} job;

static int runs_of(const dn_elementwise_args *a) { return a->x.plane ? dn_blocks_of(a->e.channels) : 1; }

/* The eight floats that every vector of a run meets. */
static void constant_operand(float lanes[DN_LANES], const dn_elementwise_args *a, int64_t row, int block)
{
    const float *b = dn_block_at(&a->b, row, 0);
    for (int i = 0; i < DN_LANES; i++) {
        int c = block * DN_LANES + i;
        lanes[i] = a->operand == DN_OPERAND_SCALAR ? b[0] : c < a->e.channels ? b[c] : 0;
    }
}

static void do_runs(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    const dn_elementwise_args *a = j->a;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row = item / j->runs;
        int block = (int)(item % j->runs);
        float lanes[DN_LANES];
        run r = { .x = dn_block_at(&a->x, row, block), .y = dn_block_at(&a->y, row, block), .keep = lanes_mask(8) };
        r.n = a->x.plane ? a->e.positions * DN_LANES : a->e.positions * a->e.channels;
        if (a->x.plane)
            r.keep = lanes_mask(a->e.channels - block * DN_LANES);
        r.p = _mm256_set1_ps(a->p);
        r.q = _mm256_set1_ps(a->q);
        if (a->b.base && a->operand == DN_OPERAND_SAME) {
            r.b = dn_block_at(&a->b, row, block);
            r.b_step = 1;
        } else if (a->b.base) {
            constant_operand(lanes, a, row, block);
            r.b = lanes;
        }
        j->fn(&r);
    }
}

static void run_all(dn_pool *pool, run_fn fn, const dn_elementwise_args *a)
{
    job j = { a, fn, runs_of(a) };
    int64_t per_run = a->e.positions * a->e.channels / j.runs;
    dn_pool_run(pool, do_runs, &j, (int64_t)a->e.n * j.runs, 1 + 8192 / (per_run + 1));
}

bool dn_unary_has_kernel(enum dn_unary kind) { return unary_runs[kind] != NULL; }

void dn_unary_run(dn_pool *pool, enum dn_unary kind, const dn_elementwise_args *a)
{
    run_all(pool, unary_runs[kind], a);
}

bool dn_unary_bwd_has_kernel(enum dn_unary kind) { return unary_bwd_runs[kind] != NULL; }

void dn_unary_bwd_run(dn_pool *pool, enum dn_unary kind, const dn_elementwise_args *a)
{
    run_all(pool, unary_bwd_runs[kind], a);
}

void dn_binary_run(dn_pool *pool, enum dn_binary kind, const dn_elementwise_args *a)
{
    run_all(pool, binary_runs[kind][a->swapped], a);
}
