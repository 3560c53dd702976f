/* few_dw_avx2.c - gradients by the weights of 3x3 convolutions, stride 1, padding 1, from or to 1..4 channels: the first
 * and the last of a network.
 *
 * Lanes are the channels of the other side, read where they stand; the few are copied into lines with a zero on both
 * ends, [row][channel][H][W + 2], and broadcast. With few inputs, tap (ky, kx) is the sum of dy(y, x) * input(y + ky - 1,
 * x + kx - 1); with few outputs, of input(y, x) * dy(y + 1 - ky, x + 1 - kx): the same with taps in reverse. A task is 8
 * lanes of one ky; each sum is one chain over a row of the batch, and rows are added in order. */
#include "gradients.h"
#include "tile_avx2.h"

enum { SIDE = 3, FEW_MAX = 4, LINES_PER_CLAIM = 8 };

typedef struct few_dw {
    const dn_conv_dw_call *call;
    const dn_rows *wide, *few;
    int lanes, channels; /* of the wide side and of the few */
    bool turned;         /* few outputs */
    float *padded;
} few_dw;

static int64_t line_floats(const few_dw *g) { return g->call->shape.W + SIDE - 1; }

static void pad_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const few_dw *g = arg;
    const int H = g->call->shape.H, W = g->call->shape.W;
    const int64_t step = g->few->plane ? LANES * (int64_t)sizeof(float) : g->few->pitch;
    for (int64_t i = from; i < to; i++) {
        const char *src = rows_at(g->few, i / H, 0) + i % H * W * step;
        for (int c = 0; c < g->channels; c++) {
            float *line = g->padded + ((i / H * g->channels + c) * H + i % H) * line_floats(g);
            line[0] = line[W + 1] = 0;
            for (int x = 0; x < W; x++)
                line[x + 1] = ((const float *)(src + x * step))[c];
        }
    }
}

/* sum[kx][channel] of 8 lanes and one row of the batch, added to total */
always_inline void row_run(const int channels, const few_dw *g, int64_t row, int block, int ky, __m256 *total)
{
    const int H = g->call->shape.H, W = g->call->shape.W;
    const float *wide = (const float *)rows_at(g->wide, row, block * LANES);
    const float *few = g->padded + row * g->channels * H * line_floats(g);
    __m256 sum[SIDE * FEW_MAX];
    for (int i = 0; i < SIDE * channels; i++)
        sum[i] = _mm256_setzero_ps();
    for (int y = ky ? 0 : 1; y < H && y + ky - 1 < H; y++) {
        const float *v = wide + (int64_t)y * W * LANES, *s = few + (y + ky - 1) * line_floats(g);
        for (int x = 0; x < W; x++) {
            const __m256 vx = _mm256_loadu_ps(v + x * LANES);
#pragma GCC unroll 3
            for (int kx = 0; kx < SIDE; kx++)
#pragma GCC unroll 4
                for (int c = 0; c < channels; c++)
                    sum[kx * channels + c] = _mm256_fmadd_ps(
                        vx, _mm256_broadcast_ss(s + c * H * line_floats(g) + x + kx), sum[kx * channels + c]);
        }
    }
    for (int i = 0; i < SIDE * channels; i++)
        total[i] = _mm256_add_ps(total[i], sum[i]);
}

/* Eight lanes of one tap and one of the few channels. */
static void put(const few_dw *g, int tap, int channel, int block, __m256 v)
{
    const dn_conv_shape *s = &g->call->shape;
    if (!g->turned) {
        float *dw = g->call->dw + ((ptrdiff_t)tap * s->C + channel) * s->K + block * LANES;
        _mm256_maskstore_ps(dw, lanes(s->K - block * LANES), v);
        return;
    }
    float lane[LANES];
    _mm256_storeu_ps(lane, v);
    for (int i = 0; i < LANES && block * LANES + i < s->C; i++)
        g->call->dw[((ptrdiff_t)(SIDE * SIDE - 1 - tap) * s->C + block * LANES + i) * s->K + channel] = lane[i];
}

always_inline void lanes_run(const int channels, const few_dw *g, int block, int ky)
{
    __m256 total[SIDE * FEW_MAX];
    for (int i = 0; i < SIDE * channels; i++)
        total[i] = _mm256_setzero_ps();
    for (int row = 0; row < g->call->n; row++)
        row_run(channels, g, row, block, ky, total);
    for (int i = 0; i < SIDE * channels; i++)
        put(g, ky * SIDE + i / channels, i % channels, block, total[i]);
}

static void lanes_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const few_dw *g = arg;
    for (int64_t i = from; i < to; i++) {
        const int block = (int)(i / SIDE), ky = (int)(i % SIDE);
        /* clang-format off */
        switch (g->channels) {
        case 1: lanes_run(1, g, block, ky); break;
        case 2: lanes_run(2, g, block, ky); break;
        case 3: lanes_run(3, g, block, ky); break;
        default: lanes_run(4, g, block, ky); break;
        }
        /* clang-format on */
    }
}

static void run(few_dw *g, const dn_conv_dw_call *call)
{
    if (call->part + 1 < call->parts) /* it is little work */
        return;
    g->call = call;
    g->padded = call->workspace;
    dn_pool_run(call->pool, pad_task, g, (int64_t)call->n * call->shape.H, LINES_PER_CLAIM);
    dn_pool_run(call->pool, lanes_task, g, (int64_t)ceil_div(g->lanes, LANES) * SIDE, 1);
}

static void run_in(const dn_conv_dw_call *call)
{
    few_dw g = { .wide = &call->dy, .few = &call->x, .lanes = call->shape.K, .channels = call->shape.C };
    run(&g, call);
}

static void run_out(const dn_conv_dw_call *call)
{
    few_dw g = { .wide = &call->x, .few = &call->dy, .lanes = call->shape.C, .channels = call->shape.K, .turned = true };
    run(&g, call);
}

static size_t workspace(const dn_conv_shape *s, int channels, int rows)
{
    return (size_t)rows * channels * s->H * (s->W + SIDE - 1) * sizeof(float);
}

static size_t workspace_in(const dn_conv_shape *s, int rows_max) { return workspace(s, s->C, rows_max); }
static size_t workspace_out(const dn_conv_shape *s, int rows_max) { return workspace(s, s->K, rows_max); }

const dn_conv_dw_kernel dn_cpu_few_in_dw = { "few-in-dw", workspace_in, run_in, true, false };
const dn_conv_dw_kernel dn_cpu_few_out_dw = { "few-out-dw", workspace_out, run_out, false, true };
