/* ref_pointwise.c - functions of one number, broadcast arithmetic, its transpose (sum_to), casts, dropout, normals. */
#include "ref_impl.h"
#include "rng.h"

/* d/dx softplus(x) is the sigmoid; both are written so that no exponential overflows. */
static double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }
static double softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }

static const double sqrt_half = 0.70710678118654752440, sqrt_2_over_pi = 0.79788456080286535588;
static const double inv_sqrt_2pi = 0.39894228040143267794, gelu_cubic = 0.044715;

static double gelu_argument(double x) { return sqrt_2_over_pi * (x + gelu_cubic * x * x * x); }

/* clang-format off */
static double value(const dn_attr *a, double x)
{
    switch (a->unary.kind) {
    case DN_SILU: return x * sigmoid(x);
    case DN_GELU: return 0.5 * x * erfc(-x * sqrt_half);
    case DN_GELU_TANH: return 0.5 * x * (1 + tanh(gelu_argument(x)));
    case DN_RELU: return x < 0 ? 0 : x;
    case DN_MISH: return x * tanh(softplus(x));
    case DN_SIGMOID: return sigmoid(x);
    case DN_TANH: return tanh(x);
    case DN_EXP: return exp(x);
    case DN_LOG: return log(x);
    case DN_SQRT: return sqrt(x);
    case DN_SQUARE: return x * x;
    case DN_RECIPROCAL: return 1 / x;
    case DN_ABS: return fabs(x);
    case DN_AFFINE: return a->unary.a * x + a->unary.b;
    case DN_CLAMP: return x < a->unary.a ? a->unary.a : x > a->unary.b ? a->unary.b : x;
    case DN_UNARY_COUNT: break;
    }
    return NAN;
}
/* clang-format on */

static double gelu_tanh_slope(double x)
{
    double t = tanh(gelu_argument(x)), du = sqrt_2_over_pi * (1 + 3 * gelu_cubic * x * x);
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du;
}

static double mish_slope(double x)
{
    double t = tanh(softplus(x));
    return t + x * (1 - t * t) * sigmoid(x);
}

/* clang-format off */
static double slope(const dn_attr *a, double x)
{
    double v;
    switch (a->unary.kind) {
    case DN_SILU: return sigmoid(x) * (1 + x * sigmoid(-x));
    case DN_GELU: return 0.5 * erfc(-x * sqrt_half) + x * inv_sqrt_2pi * exp(-0.5 * x * x);
    case DN_GELU_TANH: return gelu_tanh_slope(x);
    case DN_RELU: return x > 0;
    case DN_MISH: return mish_slope(x);
    case DN_SIGMOID: return sigmoid(x) * sigmoid(-x);
    case DN_TANH: return v = tanh(x), 1 - v * v;
    case DN_EXP: return exp(x);
    case DN_LOG: return 1 / x;
    case DN_SQRT: return 0.5 / sqrt(x);
    case DN_SQUARE: return 2 * x;
    case DN_RECIPROCAL: return -1 / (x * x);
    case DN_ABS: return (x > 0) - (x < 0);
    case DN_AFFINE: return a->unary.a;
    case DN_CLAMP: return x >= a->unary.a && x <= a->unary.b;
    case DN_UNARY_COUNT: break;
    }
    return NAN;
}
/* clang-format on */

int R(unary)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row);
    real *y = out(c, 0, row);
    for (int64_t i = 0; i < c->op->out[0].count; i++)
        y[i] = (real)value(&c->op->attr, x[i]);
    return 0;
}

int R(unary_bwd)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row), *dy = in(c, 1, row);
    real *dx = out(c, 0, row);
    for (int64_t i = 0; i < c->op->out[0].count; i++)
        dx[i] = (real)(dy[i] * slope(&c->op->attr, x[i]));
    return 0;
}

/* The strides with which `s` is read over `full`, right-aligned: 0 where it is broadcast. */
static void broadcast(int64_t stride[DN_RANK_MAX], const dn_shape *full, const dn_shape *s)
{
    int64_t step = 1;
    for (int i = full->rank - 1, j = s->rank - 1; i >= 0; i--, j--) {
        stride[i] = j >= 0 && s->dim[j] != 1 ? step : 0;
        step *= j >= 0 ? s->dim[j] : 1;
    }
}

/* The offset of element i of `full` by these strides. */
static int64_t offset(const dn_shape *full, const int64_t *stride, int64_t i)
{
    int64_t at = 0;
    for (int k = full->rank - 1; k >= 0; i /= full->dim[k--])
        at += i % full->dim[k] * stride[k];
    return at;
}

/* clang-format off */
static real combine(enum dn_binary kind, real a, real b)
{
    switch (kind) {
    case DN_ADD: return a + b;
    case DN_SUB: return a - b;
    case DN_MUL: return a * b;
    case DN_DIV: return a / b;
    }
    return (real)NAN;
}
/* clang-format on */

int R(binary)(const call *c, int64_t row)
{
    const dn_shape *full = &c->op->out[0].shape;
    const real *a = in(c, 0, row), *b = in(c, 1, row);
    real *y = out(c, 0, row);
    int64_t step_a[DN_RANK_MAX], step_b[DN_RANK_MAX];
    broadcast(step_a, full, &c->op->in[0].shape);
    broadcast(step_b, full, &c->op->in[1].shape);
    for (int64_t i = 0; i < c->op->out[0].count; i++)
        y[i] = combine(c->op->attr.binary.kind, a[offset(full, step_a, i)], b[offset(full, step_b, i)]);
    return 0;
}

int R(sum_to)(const call *c, int64_t row)
{
    const dn_shape *full = &c->op->in[0].shape;
    double *sum = workspace(c, row);
    int64_t step[DN_RANK_MAX];
    broadcast(step, full, &c->op->out[0].shape);
    clear(sum, c->op->out[0].count);
    for (int64_t r = row; r < rows_end(c, row); r++) {
        const real *x = in(c, 0, r);
        for (int64_t i = 0; i < c->op->in[0].count; i++)
            sum[offset(full, step, i)] += x[i];
    }
    round_all(out(c, 0, row), sum, c->op->out[0].count);
    return 0;
}

/* A 16-bit float: sign, exponent, mantissa. Rounds to nearest even; subnormals are kept; overflow is infinity. */
typedef struct narrow {
    int mantissa, bias;
} narrow;
static const narrow half = { 10, 15 }, bfloat = { 7, 127 };

static uint16_t narrow_from(const narrow *f, double x)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    int32_t infinity = 0x7fff >> f->mantissa << f->mantissa;
    if (isnan(x))
        return (uint16_t)(sign | infinity | 1 << (f->mantissa - 1));
    if (isinf(x))
        return (uint16_t)(sign | infinity);
    int e;
    frexp(x, &e); /* |x| lies in [2^(e-1), 2^e) */
    int exponent = x == 0 || e - 1 < 1 - f->bias ? 1 - f->bias : e - 1;
    if (exponent > f->bias)
        return (uint16_t)(sign | infinity);
    /* The implicit bit, or a carry from rounding, adds one to the exponent field. */
    int32_t bits = (int32_t)rint(ldexp(fabs(x), f->mantissa - exponent)) + ((exponent + f->bias - 1) << f->mantissa);
    return (uint16_t)(sign | (bits > infinity ? infinity : bits));
}

static double narrow_to(const narrow *f, uint16_t h)
{
    int field = (h & 0x7fff) >> f->mantissa, fraction = h & ((1 << f->mantissa) - 1), top = 0x7fff >> f->mantissa;
    double x = field == top ? (fraction ? NAN : INFINITY)
               : field      ? ldexp(fraction + (1 << f->mantissa), field - f->bias - f->mantissa)
                            : ldexp(fraction, 1 - f->bias - f->mantissa);
    return h & 0x8000 ? -x : x;
}

/* clang-format off */
static double load(const void *x, enum dn_dtype t, int64_t i)
{
    switch (t) {
    case DN_F32: return ((const real *)x)[i];
    case DN_F16: return narrow_to(&half, ((const uint16_t *)x)[i]);
    case DN_BF16: return narrow_to(&bfloat, ((const uint16_t *)x)[i]);
    case DN_I32: return ((const int32_t *)x)[i];
    case DN_U8: return ((const uint8_t *)x)[i];
    }
    return NAN;
}
/* clang-format on */

/* To nearest even, cut to the range; NaN gives lo. */
static double integer(double x, double lo, double hi) { return x > lo ? fmin(rint(x), hi) : lo; }

/* clang-format off */
static void store(void *y, enum dn_dtype t, int64_t i, double x)
{
    switch (t) {
    case DN_F32: ((real *)y)[i] = (real)x; break;
    case DN_F16: ((uint16_t *)y)[i] = narrow_from(&half, x); break;
    case DN_BF16: ((uint16_t *)y)[i] = narrow_from(&bfloat, x); break;
    case DN_I32: ((int32_t *)y)[i] = (int32_t)integer(x, INT32_MIN, INT32_MAX); break;
    case DN_U8: ((uint8_t *)y)[i] = (uint8_t)integer(x, 0, UINT8_MAX); break;
    }
}
/* clang-format on */

int R(cast)(const call *c, int64_t row)
{
    const void *x = in(c, 0, row);
    void *y = out(c, 0, row);
    for (int64_t i = 0; i < c->op->out[0].count; i++)
        store(y, c->op->out[0].dtype, i, load(x, c->op->in[0].dtype, i));
    return 0;
}

int R(detach)(const call *c, int64_t row)
{
    size_t size = c->op->out[0].dtype == DN_F32 ? sizeof(real) : dn_dtype_size(c->op->out[0].dtype);
    memcpy(out(c, 0, row), in(c, 0, row), c->op->out[0].count * size);
    return 0;
}

/* The first operand is written: state, the caller's own memory. */
int R(accumulate)(const call *c, int64_t row)
{
    real *sum = dn_place_at(c->run, c->step->in[0], row);
    const real *x = in(c, 1, row);
    for (int64_t i = 0; i < c->op->in[1].count; i++)
        sum[i] += x[i];
    return 0;
}

/* rng is {seed lo, seed hi, step, sample} */
static dn_rng_key key_of(const dn_attr *a, const int32_t *rng)
{
    return (dn_rng_key){ .seed = (uint64_t)(uint32_t)rng[1] << 32 | (uint32_t)rng[0],
                         .step = (uint32_t)rng[2],
                         .purpose = (uint32_t)a->random.purpose << 24 | (uint32_t)a->random.op_id,
                         .sample = (uint32_t)rng[3] };
}

enum { CHUNK = 256 }; /* random numbers at a time; a multiple of 4 */

static int64_t chunk_at(int64_t i, int64_t count) { return count - i < CHUNK ? count - i : CHUNK; }

int R(dropout)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row);
    real *y = out(c, 0, row), scale = (real)(1 / (1 - c->op->attr.random.p));
    float p = (float)c->op->attr.random.p, u[CHUNK];
    dn_rng_key key = key_of(&c->op->attr, in(c, 1, row));
    for (int64_t i = 0; i < c->op->out[0].count; i += CHUNK) {
        int64_t n = chunk_at(i, c->op->out[0].count);
        dn_rng_uniform(u, i, n, &key);
        for (int64_t k = 0; k < n; k++)
            y[i + k] = u[k] >= p ? x[i + k] * scale : 0;
    }
    return 0;
}

/* The bits are part of the contract: the same floats in both builds. */
int R(normal)(const call *c, int64_t row)
{
    real *y = out(c, 0, row);
    float z[CHUNK];
    dn_rng_key key = key_of(&c->op->attr, in(c, 0, row));
    for (int64_t i = 0; i < c->op->out[0].count; i += CHUNK) {
        int64_t n = chunk_at(i, c->op->out[0].count);
        dn_rng_normal(z, i, n, &key);
        for (int64_t k = 0; k < n; k++)
            y[i + k] = z[k];
    }
    return 0;
}
