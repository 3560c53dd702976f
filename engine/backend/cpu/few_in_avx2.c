/* few_in_avx2.c - convolutions of 1..4 channels, as the first of a network: dense in, blocked out.
 *
 * Some rows of the batch at a time are copied with their padding into the workspace, [lines][columns][C]. Under one
 * output and one ky, the kw*C inputs of the kernel then lie side by side, and those of its neighbour stride*C further,
 * so that the product runs on the image itself. The order of sums is (ky, kx, c). Weights are panels
 * [ceil(K/16)][kh*kw*C][16]. */
#include "choose.h"
#include "tile_avx2.h"

#include <string.h>

enum { GROUP_BYTES = 1 << 20, LINES_PER_CLAIM = 4 };

typedef struct few_in {
    const dn_conv_call *call;
    int lines, width; /* of a padded image; width in floats */
    int step, run;    /* floats from output to output; inputs of one ky */
    float *padded;    /* the images of the rows first .. first+count-1 of the batch */
    int64_t first;
    int count;
} few_in;

static int padded_lines(const dn_conv_shape *s) { return (s->Ho - 1) * s->stride + s->kh; }
static int padded_width(const dn_conv_shape *s) { return ((s->Wo - 1) * s->stride + s->kw) * s->C; }

/* Lines of the padded images, counted through the group. */
static void pad_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const few_in *g = arg;
    const dn_conv_shape *s = &g->call->shape;
    const dn_rows *x = &g->call->x;
    const int width = g->width / s->C;
    const int x0 = s->pad_left < width ? s->pad_left : width, x1 = width - x0 < s->W ? width : x0 + s->W;
    for (int64_t i = from; i < to; i++) {
        float *line = g->padded + i * g->width;
        const int y = (int)(i % g->lines) - s->pad_top;
        memset(line, 0, (size_t)g->width * sizeof *line);
        const char *src = (const char *)x->base + (g->first + i / g->lines) * x->row_bytes;
        for (int j = x0; j < x1 && y >= 0 && y < s->H; j++)
            for (int c = 0; c < s->C; c++)
                line[j * s->C + c] = ((const float *)(src + ((int64_t)y * s->W + j - x0) * x->pitch))[c];
    }
}

/* n neighbouring outputs, 16 channels. */
always_inline void outputs(const int n, const few_in *g, const float *a, const float *w, const sink to[2], int64_t at)
{
    __m256 c0[TILE_ROWS], c1[TILE_ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < n; i++)
        c0[i] = c1[i] = _mm256_setzero_ps();
    for (int ky = 0; ky < g->call->shape.kh; ky++, a += g->width)
        for (int k = 0; k < g->run; k++, w += PANEL) {
            __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + LANES);
#pragma GCC unroll 6
            for (int i = 0; i < n; i++) {
                __m256 x = _mm256_broadcast_ss(a + i * g->step + k);
                c0[i] = _mm256_fmadd_ps(x, w0, c0[i]);
                c1[i] = _mm256_fmadd_ps(x, w1, c1[i]);
            }
        }
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) {
        sink_put(&to[0], at + i, c0[i]);
        if (to[1].y)
            sink_put(&to[1], at + i, c1[i]);
    }
}

/* One line of outputs of one panel. */
static void line_run(const few_in *g, const float *a, const float *w, const sink to[2], int64_t at)
{
    const int Wo = g->call->shape.Wo;
    for (int x = 0, n; x < Wo; x += n, a += n * g->step, at += n) {
        n = rows_of_tile(Wo - x, TILE_ROWS);
        /* clang-format off */
        switch (n) {
        case 1: outputs(1, g, a, w, to, at); break;
        case 2: outputs(2, g, a, w, to, at); break;
        case 3: outputs(3, g, a, w, to, at); break;
        case 4: outputs(4, g, a, w, to, at); break;
        case 5: outputs(5, g, a, w, to, at); break;
        default: outputs(6, g, a, w, to, at); break;
        }
        /* clang-format on */
    }
}

/* Lines of outputs, counted through the group. */
static void line_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const few_in *g = arg;
    const dn_conv_call *call = g->call;
    const dn_conv_shape *s = &call->shape;
    for (int64_t i = from; i < to; i++) {
        const int64_t image = i / s->Ho, y = i % s->Ho;
        const float *a = g->padded + (image * g->lines + y * s->stride) * g->width;
        for (int k = 0; k < s->K; k += PANEL) {
            sink out[2] = { sink_open(&call->epilogue, &call->y, s->K, g->first + image, k) };
            if (k + LANES < s->K)
                out[1] = sink_open(&call->epilogue, &call->y, s->K, g->first + image, k + LANES);
            line_run(g, a, (const float *)call->weights + (ptrdiff_t)k * s->kh * g->run, out, y * s->Wo);
        }
    }
}

static int64_t image_bytes(const dn_conv_shape *s)
{
    return (int64_t)padded_lines(s) * padded_width(s) * (int64_t)sizeof(float);
}

static int group_of(const dn_conv_shape *s, int rows)
{
    int64_t fits = GROUP_BYTES / image_bytes(s);
    return (int)min64(rows, fits < 1 ? 1 : fits);
}

static void run(const dn_conv_call *call)
{
    const dn_conv_shape *s = &call->shape;
    few_in g = { .call = call, .lines = padded_lines(s), .width = padded_width(s), .padded = call->workspace };
    g.step = s->stride * s->C;
    g.run = s->kw * s->C;
    for (g.first = 0; g.first < call->n; g.first += g.count) {
        g.count = (int)min64(group_of(s, call->n), call->n - g.first);
        dn_pool_run(call->pool, pad_task, &g, (int64_t)g.count * g.lines, 2 * LINES_PER_CLAIM);
        dn_pool_run(call->pool, line_task, &g, (int64_t)g.count * s->Ho, LINES_PER_CLAIM);
    }
}

static size_t workspace(const dn_conv_shape *s, int rows_max)
{
    return (size_t)(group_of(s, rows_max) * image_bytes(s));
}

static size_t form_bytes(const dn_shape *w)
{
    return (size_t)(w->dim[0] * w->dim[1] * w->dim[2]) * ceil_div((int)w->dim[3], PANEL) * PANEL * sizeof(float);
}

static void pack(void *dst, const float *src, const dn_shape *shape)
{
    const int64_t all = shape->dim[0] * shape->dim[1] * shape->dim[2], K = shape->dim[3];
    float *d = dst;
    for (int64_t p = 0; p < K; p += PANEL)
        for (int64_t k = 0; k < all; k++)
            for (int64_t n = p; n < p + PANEL; n++)
                *d++ = n < K ? src[k * K + n] : 0;
}

const dn_conv_kernel dn_cpu_few_in = { "few-in", "few-in", true, false, form_bytes, pack, workspace, run, NULL, NULL, NULL, NULL };
