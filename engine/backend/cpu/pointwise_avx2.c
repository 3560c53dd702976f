/* pointwise_avx2.c - see pointwise.h. */
#include "pointwise.h"
#include "elementwise_lanes.h"
#include "rng_lanes.h"
#include <cpuid.h>

/* ---- dropout ---- */

/* Numbers 32 * i .. of the stream, dense. */
static inline void uniform32(float *u, __m256i draw, const dn_rng_key *key)
{
    __m256i c[4];
    draw8(c, draw, key);
    store_draws(u, (__m256[4]){ uniform8(c[0]), uniform8(c[1]), uniform8(c[2]), uniform8(c[3]) });
}

static inline __m256 dropped(__m256 x, const float *u, __m256 p, __m256 scale)
{
    return _mm256_and_ps(_mm256_cmp_ps(_mm256_loadu_ps(u), p, _CMP_GE_OQ), _mm256_mul_ps(x, scale));
}

static dn_rng_key key_of(const dn_dropout_args *a, int64_t row)
{
    const int32_t *rng = (const int32_t *)((const char *)a->rng.base + row * a->rng.row_bytes);
    return (dn_rng_key){ .seed = (uint64_t)(uint32_t)rng[1] << 32 | (uint32_t)rng[0],
                         .step = (uint32_t)rng[2],
                         .purpose = a->purpose,
                         .sample = (uint32_t)rng[3] };
}

static __m256i ramp(void) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

static void drop_dense(const dn_dropout_args *a, int64_t row, const dn_rng_key *key, __m256 p, __m256 scale)
{
    const float *x = dn_block_at(&a->x, row, 0);
    float *y = dn_block_at(&a->y, row, 0), u[32];
    int64_t count = a->e.positions * a->e.channels;
    for (int64_t i = 0; i < count; i += 32) {
        uniform32(u, _mm256_add_epi32(_mm256_set1_epi32((int)(i / 4)), ramp()), key);
        for (int k = 0; k < 32 && i + k < count; k += DN_LANES) {
            __m256i mask = lanes_mask(count - i - k);
            _mm256_maskstore_ps(y + i + k, mask, dropped(_mm256_maskload_ps(x + i + k, mask), u + k, p, scale));
        }
    }
}

/* One block: a position's eight channels are two draws; four positions at a time. Draws beyond the last channel belong
 * to the next position; they meet lanes that are zero. */
static void drop_block(const dn_dropout_args *a, int64_t row, int block, const dn_rng_key *key, __m256 p, __m256 scale)
{
    const float *x = dn_block_at(&a->x, row, block);
    float *y = dn_block_at(&a->y, row, block), u[32];
    int per_position = a->e.channels / 4;
    __m256i spread = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(ramp(), 1), _mm256_set1_epi32(per_position)),
                                      _mm256_and_si256(ramp(), _mm256_set1_epi32(1)));
    for (int64_t at = 0; at < a->e.positions; at += 4) {
        int first = (int)(at * per_position + block * 2);
        uniform32(u, _mm256_add_epi32(_mm256_set1_epi32(first), spread), key);
        for (int k = 0; k < 4 && at + k < a->e.positions; k++) {
            int64_t i = (at + k) * DN_LANES;
            _mm256_storeu_ps(y + i, dropped(_mm256_loadu_ps(x + i), u + k * DN_LANES, p, scale));
        }
    }
}

static int dropout_blocks(const dn_dropout_args *a) { return a->x.plane ? dn_blocks_of(a->e.channels) : 1; }

static void drop(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_dropout_args *a = arg;
    int blocks = dropout_blocks(a);
    __m256 p = _mm256_set1_ps((float)a->p), scale = _mm256_set1_ps((float)(1 / (1 - a->p)));
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        dn_rng_key key = key_of(a, item / blocks);
        if (a->x.plane)
            drop_block(a, item / blocks, (int)(item % blocks), &key, p, scale);
        else
            drop_dense(a, item, &key, p, scale);
    }
}

void dn_dropout_run(dn_pool *pool, const dn_dropout_args *a)
{
    dn_pool_run(pool, drop, (void *)a, (int64_t)a->e.n * dropout_blocks(a), 1 + 4096 / (a->e.positions * DN_LANES + 1));
}

/* ---- 16 bits ---- */

/* clang 14 has no name for it in __builtin_cpu_supports. */
bool dn_cpu_has_f16c(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

/* n <= 8 numbers at a time. */
static inline __m128i load16(const void *x, int n)
{
    uint16_t part[8] = { 0 };
    if (n == DN_LANES)
        return _mm_loadu_si128(x);
    for (int i = 0; i < n; i++)
        part[i] = ((const uint16_t *)x)[i];
    return _mm_loadu_si128((const __m128i *)part);
}

static inline void store16(void *y, __m128i v, int n)
{
    uint16_t part[8];
    if (n == DN_LANES) {
        _mm_storeu_si128(y, v);
        return;
    }
    _mm_storeu_si128((__m128i *)part, v);
    for (int i = 0; i < n; i++)
        ((uint16_t *)y)[i] = part[i];
}

static inline __m256i load32(const void *x, int n) { return _mm256_maskload_epi32(x, lanes_mask(n)); }
static inline void store32(void *y, __m256i v, int n) { _mm256_maskstore_epi32(y, lanes_mask(n), v); }

/* All ones where the bits of a float are those of NaN. */
static inline __m256i is_nan(__m256i bits)
{
    return _mm256_cmpgt_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)), _mm256_set1_epi32(0x7f800000));
}

/* The sign and `rest` where the bits are NaN's, else v. */
static inline __m256i quiet(__m256i v, __m256i bits, int rest)
{
    __m256i sign = _mm256_and_si256(bits, _mm256_set1_epi32((int)0x80000000));
    return _mm256_blendv_epi8(v, _mm256_or_si256(sign, _mm256_set1_epi32(rest)), is_nan(bits));
}

/* The low halves of eight numbers below 2^16. */
static inline __m128i narrow(__m256i v)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

static inline __attribute__((always_inline)) void to_bf16(void *y, const void *x, int n)
{
    __m256i bits = load32(x, n), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    store16(y, narrow(_mm256_srli_epi32(quiet(rounded, bits, 0x7fc00000), 16)), n);
}

static inline __attribute__((always_inline)) void from_bf16(void *y, const void *x, int n)
{
    __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(x, n)), 16);
    store32(y, quiet(bits, bits, 0x7fc00000), n);
}

#define F16C __attribute__((target("avx2,fma,f16c")))

F16C static void to_f16(void *y, const void *x, int n)
{
    __m256i bits = load32(x, n);
    __m256 clean = _mm256_castsi256_ps(quiet(bits, bits, 0x7fc00000)); /* becomes the quiet NaN 7e00 */
    store16(y, _mm256_cvtps_ph(clean, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
}

F16C static void from_f16(void *y, const void *x, int n)
{
    __m256i bits = _mm256_castps_si256(_mm256_cvtph_ps(load16(x, n)));
    store32(y, quiet(bits, bits, 0x7fc00000), n);
}

typedef void (*cast_run_fn)(void *y, const void *x, int64_t n);

#define CAST_RUN(attribute, name, size_y, size_x)                                     \
    attribute static void run_##name(void *y, const void *x, int64_t n)               \
    {                                                                                 \
        int64_t i = 0;                                                                \
        for (; i + DN_LANES <= n; i += DN_LANES)                                      \
            name((char *)y + i * size_y, (const char *)x + i * size_x, DN_LANES);     \
        if (i < n)                                                                    \
            name((char *)y + i * size_y, (const char *)x + i * size_x, (int)(n - i)); \
    }
CAST_RUN(F16C, to_f16, 2, 4)
CAST_RUN(F16C, from_f16, 4, 2)
CAST_RUN(, to_bf16, 2, 4)
CAST_RUN(, from_bf16, 4, 2)

static void cast(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_cast_args *a = arg;
    bool narrows = a->from == DN_F32, half = (narrows ? a->to : a->from) == DN_F16;
    cast_run_fn run = narrows ? (half ? run_to_f16 : run_to_bf16) : half ? run_from_f16 : run_from_bf16;
    (void)thread;
    for (int64_t item = first; item < last; item++)
        run(dn_block_at(&a->y, item / a->runs, item % a->runs), dn_block_at(&a->x, item / a->runs, item % a->runs),
            a->count);
}

void dn_cast_run(dn_pool *pool, const dn_cast_args *a)
{
    dn_pool_run(pool, cast, (void *)a, (int64_t)a->n * a->runs, 1 + 16384 / (a->count + 1));
}
