/* few_out_avx2.c - convolutions to 1..7 channels, as the last of a network: blocked in, dense out.
 *
 * Lanes are input channels. Each output is 8 chains of fused multiply-adds over (block of 8 channels, ky, kx), the
 * taps inside the image only, added up at the end in one fixed tree. Weights are packed [C/8][kh][kw][K][8], zero
 * beyond C. */
#include "choose.h"
#include "tile_avx2.h"

enum { K_MAX = 7, POSITIONS_MAX = 8, LINES_PER_CLAIM = 2 };

/* One line of outputs. */
typedef struct line {
    const dn_conv_call *call;
    int64_t row;
    int y;
    int ky0, ky1; /* the taps inside the image */
} line;

static inline float add_lanes(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static void put(const line *l, int x, int k, float v)
{
    const dn_conv_call *call = l->call;
    const dn_epilogue *e = &call->epilogue;
    const int64_t at = (int64_t)l->y * call->shape.Wo + x;
    v += e->bias ? e->bias[k] : 0;
    v += e->row_bias ? ((const float *)((const char *)e->row_bias + l->row * e->row_bias_bytes))[k] : 0;
    if (e->residual.base)
        v += ((const float *)(rows_at(&e->residual, l->row, 0) + at * e->residual.pitch))[k];
    v *= e->scale;
    ((float *)(rows_at(&call->y, l->row, 0) + at * call->y.pitch))[k] = e->silu ? dn_f_silu(v) : v;
}

/* The outputs x .. x+n-1 of a line, K channels each, under the taps kx0 .. kx1-1. */
always_inline void positions(const int K, const int n, const line *l, int x, int kx0, int kx1)
{
    const dn_conv_shape *s = &l->call->shape;
    const ptrdiff_t plane = l->call->x.plane / (ptrdiff_t)sizeof(float), step = (ptrdiff_t)s->stride * LANES;
    const float *in = (const float *)rows_at(&l->call->x, l->row, 0), *w = l->call->weights;
    const ptrdiff_t x0 = (ptrdiff_t)x * s->stride - s->pad_left, y0 = (ptrdiff_t)l->y * s->stride - s->pad_top;
    __m256 sum[POSITIONS_MAX][K_MAX];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < K; k++)
            sum[i][k] = _mm256_setzero_ps();
    for (int b = 0; b < ceil_div(s->C, LANES); b++, in += plane, w += (ptrdiff_t)s->kh * s->kw * K * LANES)
        for (int ky = l->ky0; ky < l->ky1; ky++) {
            const float *src = in + (y0 + ky) * s->W * LANES, *tap = w + (ptrdiff_t)ky * s->kw * K * LANES;
            for (int kx = kx0; kx < kx1; kx++) {
#pragma GCC unroll 8
                for (int i = 0; i < n; i++) {
                    __m256 v = _mm256_loadu_ps(src + (x0 + kx) * LANES + i * step);
#pragma GCC unroll 7
                    for (int k = 0; k < K; k++)
                        sum[i][k] = _mm256_fmadd_ps(v, _mm256_loadu_ps(tap + (kx * K + k) * LANES), sum[i][k]);
                }
            }
        }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < K; k++)
            put(l, x + i, k, add_lanes(sum[i][k]));
}

always_inline void line_run(const int K, const int n, const line *l)
{
    const dn_conv_shape *s = &l->call->shape;
    for (int x = 0; x < s->Wo;) {
        int left = x * s->stride - s->pad_left, last = left + (n - 1) * s->stride;
        if (x + n <= s->Wo && left >= 0 && last + s->kw <= s->W) {
            positions(K, n, l, x, 0, s->kw);
            x += n;
        } else {
            int kx0 = left < 0 ? -left : 0, kx1 = s->W - left < s->kw ? s->W - left : s->kw;
            positions(K, 1, l, x, kx0, kx1);
            x++;
        }
    }
}

/* K channels of n positions at a time fill the registers. */
/* clang-format off */
#define LINE(K, n) static void line_##K(const line *l) { line_run(K, n, l); }
LINE(1, 8) LINE(2, 6) LINE(3, 4) LINE(4, 3) LINE(5, 2) LINE(6, 2) LINE(7, 1)

static void (*const lines[K_MAX + 1])(const line *l) = { NULL, line_1, line_2, line_3, line_4, line_5, line_6, line_7 };
/* clang-format on */

static void lines_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dn_conv_call *call = arg;
    const dn_conv_shape *s = &call->shape;
    for (int64_t i = from; i < to; i++) {
        line l = { .call = call, .row = i / s->Ho, .y = (int)(i % s->Ho) };
        int top = l.y * s->stride - s->pad_top;
        l.ky0 = top < 0 ? -top : 0;
        l.ky1 = s->H - top < s->kh ? s->H - top : s->kh;
        lines[s->K](&l);
    }
}

static void run(const dn_conv_call *call)
{
    dn_pool_run(call->pool, lines_task, (void *)call, (int64_t)call->n * call->shape.Ho, LINES_PER_CLAIM);
}

static size_t form_bytes(const dn_shape *w)
{
    return (size_t)(w->dim[0] * w->dim[1] * w->dim[3]) * ceil_div((int)w->dim[2], LANES) * LANES * sizeof(float);
}

static void pack(void *dst, const float *src, const dn_shape *shape)
{
    const int taps = (int)(shape->dim[0] * shape->dim[1]), C = (int)shape->dim[2], K = (int)shape->dim[3];
    float *d = dst;
    for (int c0 = 0; c0 < C; c0 += LANES)
        for (int t = 0; t < taps; t++)
            for (int k = 0; k < K; k++)
                for (int c = c0; c < c0 + LANES; c++)
                    *d++ = c < C ? src[((ptrdiff_t)t * C + c) * K + k] : 0;
}

static size_t workspace(const dn_conv_shape *s, int rows_max)
{
    (void)s;
    (void)rows_max;
    return 0;
}

const dn_conv_kernel dn_cpu_few_out = { "few-out", "few-out", false, true, form_bytes, pack, workspace, run, NULL, NULL, NULL, NULL };
