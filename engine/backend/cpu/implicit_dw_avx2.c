/* implicit_dw_avx2.c - gradients by the weights of convolutions of any kernel and stride, and of matrices.
 *
 * Positions of all rows of the batch are counted through and taken in chunks of CHUNK. For a chunk: (1) inputs under
 * each tap are gathered into A [kh*kw][C/8][CHUNK][8] and gradients into B [K/16][CHUNK][16]; (2) A^T B of each tap is
 * added to dw. A matrix [C,N] is a kernel of 1x1 over an image of one column. */
#include "gradients.h"
#include "tile_avx2.h"

enum { CHUNK = 128, BLOCKS_PER_TASK = 8 };

typedef struct implicit_dw {
    const dn_conv_dw_call *call;
    int taps, c_blocks, panels;
    float *a, *b;
    int64_t first; /* the chunk: positions first .. first+count-1 */
    int count;
} implicit_dw;

/* Eight channels of a row as they lie from position to position. */
typedef struct stream {
    const char *base;
    ptrdiff_t step;
    __m256i mask;
} stream;

static stream stream_of(const dn_rows *t, int64_t row, int channel, int channels)
{
    return (stream){ rows_at(t, row, channel), t->plane ? LANES * (ptrdiff_t)sizeof(float) : t->pitch,
                     lanes(channels - channel) };
}

always_inline __m256 stream_at(const stream *s, int64_t at)
{
    return _mm256_maskload_ps((const float *)(s->base + at * s->step), s->mask);
}

static int clamp(int x, int most) { return x < 0 ? 0 : x < most ? x : most; }

/* n outputs of one line from ox on, whose tap reads line y (maybe outside) from column x0 + ox * stride; the columns of
 * outputs first .. end-1 exist. */
always_inline void gather_line(float *a, const stream *x, const dn_conv_shape *s, int y, int x0, int ox, int n)
{
    int first = clamp(ceil_div(-x0 > 0 ? -x0 : 0, s->stride) - ox, n);
    int end = clamp(s->W - x0 > 0 ? ceil_div(s->W - x0, s->stride) - ox : 0, n), t = 0;
    if (y < 0 || y >= s->H || end < first)
        first = end = n;
    for (; t < first; t++)
        _mm256_store_ps(a + t * LANES, _mm256_setzero_ps());
    const int64_t at = (int64_t)y * s->W + x0 + (int64_t)ox * s->stride;
    for (; t < end; t++)
        _mm256_store_ps(a + t * LANES, stream_at(x, at + (int64_t)t * s->stride));
    for (; t < n; t++)
        _mm256_store_ps(a + t * LANES, _mm256_setzero_ps());
}

/* The chunk's inputs under one tap, one block of channels. */
static void gather_inputs(const implicit_dw *g, int tap, int block)
{
    const dn_conv_shape *s = &g->call->shape;
    const int ky = tap / s->kw - s->pad_top, kx = tap % s->kw - s->pad_left;
    const int64_t per_row = (int64_t)s->Ho * s->Wo;
    float *a = g->a + ((ptrdiff_t)tap * g->c_blocks + block) * CHUNK * LANES;
    for (int t = 0, n; t < g->count; t += n) {
        const int64_t row = (g->first + t) / per_row, at = (g->first + t) % per_row;
        const int oy = (int)(at / s->Wo), ox = (int)(at % s->Wo);
        const stream x = stream_of(&g->call->x, row, block * LANES, s->C);
        n = (int)min64(g->count - t, s->Wo - ox);
        gather_line(a + t * LANES, &x, s, oy * s->stride + ky, kx, ox, n);
    }
}

/* The chunk's gradients of one block of channels; one beyond K is zero. */
static void gather_gradients(const implicit_dw *g, int block)
{
    const dn_conv_shape *s = &g->call->shape;
    const int64_t per_row = (int64_t)s->Ho * s->Wo;
    float *b = g->b + (ptrdiff_t)(block / 2) * CHUNK * PANEL + block % 2 * LANES;
    for (int64_t t = 0, n; t < g->count; t += n) {
        const int64_t row = (g->first + t) / per_row, at = (g->first + t) % per_row;
        const stream dy = stream_of(&g->call->dy, row, block * LANES, s->K);
        n = min64(g->count - t, per_row - at);
        for (int64_t i = 0; i < n; i++, b += PANEL)
            _mm256_store_ps(b, block * LANES < s->K ? stream_at(&dy, at + i) : _mm256_setzero_ps());
    }
}

static void gather_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const implicit_dw *g = arg;
    const int64_t inputs = (int64_t)g->taps * g->c_blocks;
    for (int64_t i = from; i < to; i++) {
        if (i < inputs)
            gather_inputs(g, (int)(i / g->c_blocks), (int)(i % g->c_blocks));
        else
            gather_gradients(g, (int)(i - inputs));
    }
}

/* A^T B of one tap, one block of inputs and two panels, at the matrix' edge by way of a whole tile. */
static void product(const implicit_dw *g, int tap, int block, int panel)
{
    const dn_conv_shape *s = &g->call->shape;
    const float *a = g->a + ((ptrdiff_t)tap * g->c_blocks + block) * CHUNK * LANES;
    const float *b = g->b + (ptrdiff_t)panel * CHUNK * PANEL;
    const int panels = panel + 1 < g->panels ? 2 : 1, rows = (int)min64(LANES, s->C - block * LANES);
    const int columns = (int)min64(panels * PANEL, s->K - panel * PANEL);
    float *dw = g->call->dw + ((ptrdiff_t)tap * s->C + block * LANES) * s->K + panel * PANEL;
    if (rows == LANES && columns == panels * PANEL) {
        dn_cpu_outer(g->count, a, b, CHUNK * PANEL, panels, dw, s->K, g->first > 0);
        return;
    }
    _Alignas(64) float whole[LANES * 2 * PANEL];
    dn_cpu_outer(g->count, a, b, CHUNK * PANEL, panels, whole, 2 * PANEL, false);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            dw[i * (ptrdiff_t)s->K + j] = whole[i * 2 * PANEL + j] + (g->first > 0 ? dw[i * (ptrdiff_t)s->K + j] : 0);
}

static void products_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const implicit_dw *g = arg;
    const int groups = ceil_div(g->c_blocks, BLOCKS_PER_TASK);
    for (int64_t i = from; i < to; i++) {
        const int tap = (int)(i % g->taps), group = (int)(i / g->taps % groups), pair = (int)(i / g->taps / groups);
        const int end = (int)min64(g->c_blocks, (group + 1) * BLOCKS_PER_TASK);
        for (int block = group * BLOCKS_PER_TASK; block < end; block++)
            product(g, tap, block, pair * 2);
    }
}

static implicit_dw sizes_of(const dn_conv_shape *s)
{
    return (implicit_dw){ .taps = s->kh * s->kw, .c_blocks = ceil_div(s->C, LANES), .panels = ceil_div(s->K, PANEL) };
}

static void run(const dn_conv_dw_call *call)
{
    const dn_conv_shape *s = &call->shape;
    implicit_dw g = sizes_of(s);
    const int64_t all = (int64_t)s->Ho * s->Wo * call->n, inputs = (int64_t)g.taps * g.c_blocks;
    const int64_t products = (int64_t)g.taps * ceil_div(g.c_blocks, BLOCKS_PER_TASK) * ceil_div(g.panels, 2);
    g.call = call;
    g.a = call->workspace;
    g.b = g.a + inputs * CHUNK * LANES;
    const int64_t chunks = (all + CHUNK - 1) / CHUNK, end = chunks * (call->part + 1) / call->parts * CHUNK;
    for (g.first = chunks * call->part / call->parts * CHUNK; g.first < end; g.first += CHUNK) {
        g.count = (int)min64(CHUNK, all - g.first);
        dn_pool_run(call->pool, gather_task, &g, inputs + 2 * g.panels, 4);
        dn_pool_run(call->pool, products_task, &g, products, 1);
    }
}

static size_t workspace(const dn_conv_shape *s, int rows_max)
{
    const implicit_dw g = sizes_of(s);
    (void)rows_max;
    return ((size_t)g.taps * g.c_blocks * LANES + (size_t)g.panels * PANEL) * CHUNK * sizeof(float);
}

const dn_conv_dw_kernel dn_cpu_implicit_dw = { "implicit-dw", workspace, run, true, true };
