/* implicit_dw_avx2.c - gradients by the weights of convolutions of any kernel and stride, and of matrices.
 *
 * Positions of all rows of the batch are counted through and taken in chunks of CHUNK. For a chunk: (1) inputs under
 * each tap are gathered into A [kh*kw][C/8][CHUNK][8] and gradients into B [K/16][CHUNK][16]; (2) A^T B of each tap is
 * added to dw. A matrix [C,N] is a kernel of 1x1 over an image of one column: there a chunk is a piece of one row, and
 * blocked values are multiplied where they are. */
#include "gradients.h"
#include "tile_avx2.h"

enum {
    CHUNK = 128,
    BLOCKS_PER_TASK = 8,
    PIECE_MIN = 32,      /* rows of fewer positions share chunks */
    SUMS_MAX = 64 << 10, /* floats of dw that stay in L2 from chunk to chunk */
    TASKS_PER_THREAD = 2
};

typedef struct implicit_dw {
    const dn_conv_dw_call *call;
    int taps, c_blocks, panels;
    float *a, *b;
    int64_t first; /* the chunk: positions first .. first+count-1 */
    int count;
    int pieces;         /* chunks of a row; 0: rows share them */
    int64_t chunk, end; /* of this part */
    int group;          /* blocks of input channels that a task multiplies in place */
} implicit_dw;

static implicit_dw sizes_of(const dn_conv_shape *s)
{
    const int per_row = s->Ho * s->Wo;
    const bool matrix = s->kh == 1 && s->kw == 1 && s->stride == 1 && s->Ho == s->H && s->Wo == s->W;
    return (implicit_dw){ .taps = s->kh * s->kw,
                          .c_blocks = ceil_div(s->C, LANES),
                          .panels = ceil_div(s->K, PANEL),
                          .pieces = matrix && per_row >= PIECE_MIN ? ceil_div(per_row, CHUNK) : 0 };
}

static void take_chunk(implicit_dw *g, int64_t chunk)
{
    const int64_t per_row = (int64_t)g->call->shape.Ho * g->call->shape.Wo;
    int64_t end = min64((chunk + 1) * CHUNK, per_row * g->call->n);
    g->first = chunk * CHUNK;
    if (g->pieces) {
        const int64_t row = chunk / g->pieces, piece = chunk % g->pieces;
        g->first = row * per_row + per_row * piece / g->pieces;
        end = row * per_row + per_row * (piece + 1) / g->pieces;
    }
    g->count = (int)(end - g->first);
}

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

/* The edges of a sum of 8 rows of whole panels. */
static void put_edge(const implicit_dw *g, const float *whole, float *dw, int rows, int columns)
{
    const ptrdiff_t K = g->call->shape.K;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            dw[i * K + j] = whole[i * 2 * PANEL + j] + (g->first > 0 ? dw[i * K + j] : 0);
}

/* A^T B of one tap, one block of inputs and two panels, at the matrix' edge by way of a whole tile. `b`: where they are
 * in place; NULL: gathered. */
static void product(const implicit_dw *g, int tap, int block, int panel, const float *a, const float *b,
                    ptrdiff_t plane)
{
    const dn_conv_shape *s = &g->call->shape;
    const int panels = panel + 1 < g->panels ? 2 : 1, rows = (int)min64(LANES, s->C - block * LANES);
    const int columns = (int)min64(panels * PANEL, s->K - panel * PANEL);
    float *dw = g->call->dw + ((ptrdiff_t)tap * s->C + block * LANES) * s->K + panel * PANEL;
    const bool inside = rows == LANES && columns == panels * PANEL, more = inside && g->first > 0;
    const ptrdiff_t pitch = inside ? s->K : 2 * PANEL;
    _Alignas(64) float whole[LANES * 2 * PANEL];
    float *sums = inside ? dw : whole;
    if (plane)
        dn_cpu_outer_planes(g->count, a, b, plane, ceil_div(columns, LANES), sums, pitch, more);
    else
        dn_cpu_outer(g->count, a, b, CHUNK * PANEL, panels, sums, pitch, more);
    if (!inside)
        put_edge(g, whole, dw, rows, columns);
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
            product(g, tap, block, pair * 2, g->a + ((ptrdiff_t)tap * g->c_blocks + block) * CHUNK * LANES,
                    g->b + (ptrdiff_t)pair * 2 * CHUNK * PANEL, 0);
    }
}

/* One group of blocks of input channels over all chunks. */
static void in_place(implicit_dw g, int64_t item)
{
    const dn_rows *x = &g.call->x, *dy = &g.call->dy;
    const int64_t per_row = (int64_t)g.call->shape.Ho * g.call->shape.Wo;
    const int end = (int)min64((item + 1) * g.group, g.c_blocks);
    for (int64_t chunk = g.chunk; chunk < g.end; chunk++) {
        take_chunk(&g, chunk);
        const int64_t row = g.first / per_row, at = g.first % per_row * LANES;
        for (int block = (int)item * g.group; block < end; block++)
            for (int panel = 0; panel < g.panels; panel += 2)
                product(&g, 0, block, panel, (const float *)rows_at(x, row, block * LANES) + at,
                        (const float *)rows_at(dy, row, panel * PANEL) + at, dy->plane / (ptrdiff_t)sizeof(float));
    }
}

static void in_place_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    for (int64_t item = from; item < to; item++)
        in_place(*(const implicit_dw *)arg, item);
}

static void run_gathered(implicit_dw *g)
{
    const int64_t inputs = (int64_t)g->taps * g->c_blocks;
    const int64_t products = (int64_t)g->taps * ceil_div(g->c_blocks, BLOCKS_PER_TASK) * ceil_div(g->panels, 2);
    for (int64_t chunk = g->chunk; chunk < g->end; chunk++) {
        take_chunk(g, chunk);
        dn_pool_run(g->call->pool, gather_task, g, inputs + 2 * g->panels, 4);
        dn_pool_run(g->call->pool, products_task, g, products, 1);
    }
}

static void run_in_place(implicit_dw *g)
{
    const int threads = dn_pool_threads(g->call->pool), most = SUMS_MAX / (g->panels * PANEL * LANES) + 1;
    g->group = (int)min64(most, threads > 1 ? ceil_div(g->c_blocks, threads * TASKS_PER_THREAD) : g->c_blocks);
    dn_pool_run(g->call->pool, in_place_task, g, ceil_div(g->c_blocks, g->group), 1);
}

static void run(const dn_conv_dw_call *call)
{
    const dn_conv_shape *s = &call->shape;
    const int64_t per_row = (int64_t)s->Ho * s->Wo;
    implicit_dw g = sizes_of(s);
    const int64_t chunks = g.pieces ? (int64_t)g.pieces * call->n : (per_row * call->n + CHUNK - 1) / CHUNK;
    g.call = call;
    g.a = call->workspace;
    g.b = g.a + (ptrdiff_t)g.taps * g.c_blocks * CHUNK * LANES;
    g.chunk = chunks * call->part / call->parts;
    g.end = chunks * (call->part + 1) / call->parts;
    if (g.pieces && call->x.plane && call->dy.plane)
        run_in_place(&g);
    else
        run_gathered(&g);
}

static size_t workspace(const dn_conv_shape *s, int rows_max)
{
    const implicit_dw g = sizes_of(s);
    (void)rows_max;
    return ((size_t)g.taps * g.c_blocks * LANES + (size_t)g.panels * PANEL) * CHUNK * sizeof(float);
}

const dn_conv_dw_kernel dn_cpu_implicit_dw = { "implicit-dw", workspace, run, true, true };
