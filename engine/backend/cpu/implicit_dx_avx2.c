/* implicit_dx_avx2.c - the gradient by the input of convolutions with a stride.
 *
 * Inputs fall into stride x stride classes by their coordinates modulo the stride; those of one class lie under the
 * same taps, and their gradient is a product of the output gradients there with those taps of the rotated weights, so
 * that nothing is multiplied by zeros but at the image's edge. Positions of a class are counted through the rows and
 * taken in chunks: (1) output gradients are gathered into A [taps][K/8][positions][8]; (2) each panel of 16 input
 * channels is one chain over (tap, k). */
#include "gradients.h"
#include "choose.h"
#include "tile_avx2.h"

enum { CHUNK = 96, TASKS_PER_THREAD = 2 };

/* One dimension of a class: inputs first, first + stride .. (n of them), under the taps tap, tap + stride .. (n_taps);
 * input number j lies under output j + out - i by its tap number i. */
typedef struct axis {
    int first, n, tap, n_taps, out;
} axis;

typedef struct implicit_dx {
    const dn_conv_call *call;
    axis y, x;
    int k_blocks, panels;
    float *a;
    int64_t first; /* the chunk: positions first .. first+count-1 of the class */
    int count, parts;
} implicit_dx;

static axis axis_of(int remainder, int stride, int pad, int kernel, int size)
{
    axis a = { .first = remainder, .tap = (remainder + pad) % stride, .out = (remainder + pad) / stride };
    a.n = remainder < size ? (size - remainder - 1) / stride + 1 : 0;
    a.n_taps = a.tap < kernel ? (kernel - a.tap - 1) / stride + 1 : 0;
    return a;
}

static int class_taps(const implicit_dx *g) { return g->y.n_taps * g->x.n_taps; }

/* The output gradients of one position under all taps of its class. */
static void gather(const implicit_dx *g, int64_t row, int jy, int jx, float *a)
{
    const dn_conv_shape *s = &g->call->shape;
    const ptrdiff_t plane = g->call->y.plane / (ptrdiff_t)sizeof(float);
    const float *dy = (const float *)rows_at(&g->call->y, row, 0);
    for (int iy = 0; iy < g->y.n_taps; iy++)
        for (int ix = 0; ix < g->x.n_taps; ix++) {
            const int oy = jy + g->y.out - iy, ox = jx + g->x.out - ix;
            const bool inside = oy >= 0 && oy < s->Ho && ox >= 0 && ox < s->Wo;
            const float *from = dy + (inside ? (ptrdiff_t)oy * s->Wo + ox : 0) * LANES;
            for (int b = 0; b < g->k_blocks; b++, a += CHUNK * LANES)
                _mm256_store_ps(a, inside ? _mm256_loadu_ps(from + b * plane) : _mm256_setzero_ps());
        }
}

static void gather_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const implicit_dx *g = arg;
    const int64_t per_row = (int64_t)g->y.n * g->x.n;
    for (int64_t i = from; i < to; i++) {
        const int at = (int)((g->first + i) % per_row);
        gather(g, (g->first + i) / per_row, at / g->x.n, at % g->x.n, g->a + i * LANES);
    }
}

/* The place of tap (iy, ix) of the class in the rotated weights. */
static int rotated_tap(const implicit_dx *g, int iy, int ix)
{
    const dn_conv_shape *s = &g->call->shape;
    return (s->kh - 1 - g->y.tap - iy * s->stride) * s->kw + s->kw - 1 - g->x.tap - ix * s->stride;
}

static void put(const implicit_dx *g, int panel, int t0, int t1, const float *sums)
{
    const dn_conv_shape *s = &g->call->shape;
    const int64_t per_row = (int64_t)g->y.n * g->x.n;
    for (int t = t0; t < t1; t++, sums += PANEL) {
        const int64_t row = (g->first + t) / per_row, at = (g->first + t) % per_row;
        const int64_t y = at / g->x.n * s->stride + g->y.first, x = at % g->x.n * s->stride + g->x.first;
        for (int h = 0; h < PANEL && panel * PANEL + h < s->C; h += LANES)
            _mm256_storeu_ps((float *)rows_at(&g->call->x, row, panel * PANEL + h) + (y * s->W + x) * LANES,
                             _mm256_loadu_ps(sums + h));
    }
}

static void panel(const implicit_dx *g, int p, int t0, int t1)
{
    _Alignas(64) float sums[CHUNK * PANEL] = { 0 };
    const dn_conv_shape *s = &g->call->shape;
    const ptrdiff_t tap_floats = (ptrdiff_t)g->k_blocks * LANES * PANEL;
    const float *w = (const float *)g->call->weights + p * s->kh * s->kw * tap_floats, *a = g->a + t0 * LANES;
    for (int i = 0; i < class_taps(g); i++, a += (ptrdiff_t)g->k_blocks * CHUNK * LANES)
        dn_cpu_strip(t1 - t0, g->k_blocks, a, CHUNK * LANES,
                     w + rotated_tap(g, i / g->x.n_taps, i % g->x.n_taps) * tap_floats, sums, i > 0);
    put(g, p, t0, t1, sums);
}

static void panel_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const implicit_dx *g = arg;
    for (int64_t i = from; i < to; i++) {
        const int part = (int)(i % g->parts);
        panel(g, (int)(i / g->parts), g->count * part / g->parts, g->count * (part + 1) / g->parts);
    }
}

static void class_run(implicit_dx *g)
{
    const int threads = dn_pool_threads(g->call->pool), wanted = threads > 1 ? threads * TASKS_PER_THREAD : 1;
    const int64_t all = (int64_t)g->y.n * g->x.n * g->call->n;
    for (g->first = 0; g->first < all; g->first += g->count) {
        g->count = (int)min64(CHUNK, all - g->first);
        g->parts = (int)min64(ceil_div(wanted, g->panels), ceil_div(g->count, TILE_ROWS));
        dn_pool_run(g->call->pool, gather_task, g, g->count, ceil_div(g->count, wanted));
        dn_pool_run(g->call->pool, panel_task, g, (int64_t)g->panels * g->parts, 1);
    }
}

void dn_cpu_implicit_dx(const dn_conv_call *call)
{
    const dn_conv_shape *s = &call->shape;
    implicit_dx g = { .call = call, .a = call->workspace };
    g.k_blocks = ceil_div(s->K, LANES);
    g.panels = ceil_div(s->C, PANEL);
    for (int y = 0; y < s->stride; y++)
        for (int x = 0; x < s->stride; x++) {
            g.y = axis_of(y, s->stride, s->pad_top, s->kh, s->H);
            g.x = axis_of(x, s->stride, s->pad_left, s->kw, s->W);
            class_run(&g);
        }
}

size_t dn_cpu_implicit_dx_workspace(const dn_conv_shape *s, int rows_max)
{
    const size_t taps = (size_t)ceil_div(s->kh, s->stride) * ceil_div(s->kw, s->stride);
    (void)rows_max;
    return taps * ceil_div(s->K, LANES) * LANES * CHUNK * sizeof(float);
}
