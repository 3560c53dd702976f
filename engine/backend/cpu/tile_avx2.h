/* tile_avx2.h - what all matrix products of the CPU backend share: the strip, and the epilogue.
 *
 * A strip is up to some dozens of rows by 16 columns. Its A operand is blocked like an activation: element (i, k) is
 * a[(k/8)*block + i*8 + k%8], so that planes of nChw8c, Winograd planes and gathered patches are all read in place. B
 * is a panel [k][16]. Each of the 16 sums of a row is one chain of fused multiply-adds in the order of k, whatever the
 * number of rows; to continue a chain from memory gives the same bits as not to interrupt it. */
#ifndef DN_CPU_TILE_AVX2_H
#define DN_CPU_TILE_AVX2_H

#include "kernels.h"

#include "fmath.h"
#include "fmath_avx2.h"

#define always_inline static inline __attribute__((always_inline))

enum { LANES = 8, PANEL = 16, TILE_ROWS = 6 };

static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* How many of the rows left the next tile of at most `most` takes: two of 3 to 6 rather than 6 and 1, as short ones wait
 * for their chains. */
static inline int rows_of_tile(int left, int most) { return left >= 2 * most ? most : left > most ? (left + 1) / 2 : left; }

/* c[rows][16] = (or +=, with `more`) A [rows, 8*k_blocks] B; `block` in floats. */
void dn_cpu_strip(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more);

/* A tile of a number of rows that the compiler knows, made from a file's own `tile`: begun, or continued. */
typedef void (*tile_fn)(int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c);

#define TILE(rows)                                                                                        \
    static void tile_##rows(int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c)      \
    {                                                                                                     \
        tile(rows, k_blocks, a, block, b, c, false);                                                      \
    }                                                                                                     \
    static void tile_more_##rows(int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c) \
    {                                                                                                     \
        tile(rows, k_blocks, a, block, b, c, true);                                                       \
    }

/* The first n lanes. */
static inline __m256i lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Where the 8 channels from `channel` of one row go, and what happens to them on the way. */
typedef struct sink {
    char *y;
    const char *residual; /* or NULL */
    ptrdiff_t step;       /* bytes from position to position, of y and of the residual */
    ptrdiff_t residual_step;
    __m256 bias, scale;
    __m256i mask; /* the lanes that exist in memory */
    bool masked, silu;
} sink;

static inline char *rows_at(const dn_rows *t, int64_t row, int channel)
{
    return (char *)t->base + row * t->row_bytes +
           channel / LANES * (t->plane ? t->plane : LANES * (int64_t)sizeof(float));
}

static inline sink sink_open(const dn_epilogue *e, const dn_rows *y, int K, int64_t row, int channel)
{
    sink s = { .y = rows_at(y, row, channel), .silu = e->silu, .scale = _mm256_set1_ps(e->scale) };
    s.mask = lanes(K - channel);
    s.masked = !y->plane && K - channel < LANES;
    s.step = y->plane ? LANES * (ptrdiff_t)sizeof(float) : y->pitch;
    s.bias = e->bias ? _mm256_maskload_ps(e->bias + channel, s.mask) : _mm256_setzero_ps();
    if (e->row_bias) {
        const float *b = (const float *)((const char *)e->row_bias + row * e->row_bias_bytes);
        s.bias = _mm256_add_ps(s.bias, _mm256_maskload_ps(b + channel, s.mask));
    }
    if (e->residual.base) {
        s.residual = rows_at(&e->residual, row, channel);
        s.residual_step = e->residual.plane ? LANES * (ptrdiff_t)sizeof(float) : e->residual.pitch;
    }
    return s;
}

/* Finish v, the sums of position `at`, and store it. */
always_inline void sink_put(const sink *s, int64_t at, __m256 v)
{
    float *y = (float *)(s->y + at * s->step);
    v = _mm256_add_ps(v, s->bias);
    if (s->residual) {
        const float *r = (const float *)(s->residual + at * s->residual_step);
        v = _mm256_add_ps(v, s->masked ? _mm256_maskload_ps(r, s->mask) : _mm256_loadu_ps(r));
    }
    v = _mm256_mul_ps(v, s->scale);
    if (s->silu)
        v = dn_v_silu(v);
    if (s->masked)
        _mm256_maskstore_ps(y, s->mask, v);
    else
        _mm256_storeu_ps(y, v);
}

/* Finish c[n][16]: the panel's channels of the positions at .. at+n-1, counted through the rows (`per_row` in each). */
void dn_cpu_panel_put(const float *c, int64_t at, int64_t n, int64_t per_row, const dn_epilogue *e, const dn_rows *y,
                      int K, int panel);

#endif
