/* winograd_tmpl.h - 3x3 convolutions, stride 1, padding 1, as F(4x4,3x3) and F(2x2,3x3), and of a map that is doubled
 * first. Included once per instruction set, with NAME(x) the exported name and ISA its text; the arithmetic, and so the
 * bits, are the same.
 *
 * Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). F(4,3) interpolates at 0, +-sqrt(1/2),
 * +-sqrt(2) and infinity: factors near 1 make the largest error a quarter of that of 0, +-1, +-2, at the same cost.
 *
 * DOUBLED: nearest upsampling and the convolution in one, reading the small map. Along one dimension even outputs are
 * w0 x[i-1] + (w1+w2) x[i], odd ones (w0+w1) x[i] + w2 x[i+1]. F(2,2) at 0, 1, -1 for the even and at 1, -1, infinity
 * for the odd ones meets in the product at 1 (both filters have the same sum there) and in the input at -1: 4 inputs
 * become the 4 of F(2,3), 5 products and 4 outputs; 25 products for 4x4 outputs, where F(4,3) has 36.
 * HALVED: its gradient by the small map, from the rotated weights w2, w1, w0 as any gradient by an input. Along one
 * dimension (w1+w2) dy[2i] + w0 dy[2i+2] + w2 dy[2i-1] + (w0+w1) dy[2i+1]: two F(2,2), of the even and of the odd ones,
 * which meet in the product with w0+w1+w2; 6 inputs, 5 products, 2 outputs, and additions only.
 *
 * Tiles of all rows of the batch are counted through and taken in chunks. For a chunk: (1) every tile of a x a inputs
 * becomes one element of a*a planes V [a*a][C/8][tiles][8]; (2) for each panel of 16 output channels, a*a products
 * V U into sums [a*a][tiles][16], which stay in L2, and then the inverse transform and the epilogue. Threads divide
 * only outputs: whole chunks where there are enough of them, else blocks and panels of one chunk. Weights are
 * transformed ahead (U [panel][a*a][C padded to 8][16]) or on the way, STEP input channels at a time, from a form of
 * plain taps ([panel][C padded to 8][9][16], a quarter of the bytes) or from the parameter itself. Sums continue from
 * step to step, so all three give the same bits. */
#include "choose.h"
#include "gradients.h"
#include "winograd_tile.h"

enum {
    TILES_AHEAD = 48, /* a chunk */
    TILES_MAX = 64,   /* ... where each transforms the weights again */
    STEP = 64,        /* input channels whose weights are transformed at a time */
    AHEAD = 12,       /* input channels whose taps are fetched ahead: they come from L3 or memory */
    SUMS_PLANE = TILES_MAX * PANEL + PAD,
    TASKS_PER_THREAD = 2,
    SLOTS_MAX = 8 /* planes V in the workspace: as many threads can each have a chunk of their own */
};

/* u [a*a][..][16] of n input channels, from taps [n][9][16]. */
always_inline void weight_tiles(const int f, const float *taps, int n, float *u, ptrdiff_t plane)
{
    for (int c = 0; c < n; c++, taps += TAPS * PANEL) {
        for (int i = 0; i < TAPS; i++)
            _mm_prefetch(taps + (AHEAD * TAPS + i) * PANEL, _MM_HINT_T0);
        for (int h = 0; h < PANEL; h += LANES)
            weight_tile(f, taps + h, u + c * PANEL + h, plane);
    }
}

/* taps [c1-c0][9][16]: a panel's part of w [3,3,C,K], zero beyond C and K. Tap by tap, because the taps of one channel
 * may lie whole powers of two apart. */
static void gather_taps(float *taps, const float *w, int C, int K, int panel, int c0, int c1)
{
    const __m256i mask[2] = { lanes(K - panel * PANEL), lanes(K - panel * PANEL - LANES) };
    for (int i = 0; i < TAPS; i++)
        for (int c = c0; c < c1; c++)
            for (int h = 0; h < 2; h++) {
                bool exists = c < C && panel * PANEL + h * LANES < K;
                const float *src = exists ? w + ((ptrdiff_t)i * C + c) * K + panel * PANEL + h * LANES : w;
                __m256 v = exists ? _mm256_maskload_ps(src, mask[h]) : _mm256_setzero_ps();
                _mm256_storeu_ps(taps + ((c - c0) * TAPS + i) * PANEL + h * LANES, v);
            }
}

/* How the call's weights come: transformed; a form of plain taps; the parameter itself. */
enum weights { TRANSFORMED, PLAIN, LOGICAL };

typedef struct winograd {
    const dn_conv_call *call;
    int f;
    enum weights weights;
    grid g; /* at work: the chunk */
    int c_blocks, panels, chunk;
    float *v;
    ptrdiff_t v_block, v_plane; /* floats */
    int parts;                  /* a task is one block or panel for one of `parts` pieces of the chunk */
} winograd;

static inline int part_begin(const winograd *w, int part) { return (int)((int64_t)w->g.count * part / w->parts); }

/* Tiles t0 .. t1-1 of the chunk, channels of one block of 8. */
always_inline void input_tiles(const int f, const winograd *w, int block, int t0, int t1)
{
    const int step = step_of(f);
    const dn_conv_shape *s = &w->call->shape;
    for (int t = t0; t < t1; t++) {
        const spot p = w->g.at[t], q = w->g.at[t + TILES_FETCHED];
        const float *src = (const float *)rows_at(&w->call->x, p.row, block * LANES);
        const float *next = (const float *)rows_at(&w->call->x, q.row, block * LANES);
        fetch_tile(inputs_of(f), 3, next, s->H, s->W, q.y * step - 1, q.x * step - 1);
        input_tile(f, src, s, p.y * step - 1, p.x * step - 1, w->v + block * w->v_block + t * LANES, w->v_plane);
    }
}

static void input_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd *w = arg;
    for (int64_t i = from; i < to; i++) {
        int block = (int)(i / w->parts), part = (int)(i % w->parts);
        const int t0 = part_begin(w, part), t1 = part_begin(w, part + 1);
        if (w->f == F43)
            input_tiles(F43, w, block, t0, t1);
        else if (w->f == F23)
            input_tiles(F23, w, block, t0, t1);
        else if (w->f == DOUBLED)
            input_tiles(DOUBLED, w, block, t0, t1);
        else
            input_tiles(HALVED, w, block, t0, t1);
    }
}

/* sums[a*a][TILES_MAX][16] of one panel for the tiles t0 .. t1-1 of the chunk, input blocks b0 .. b1-1. */
static void products(const winograd *w, int t0, int t1, int b0, int b1, const float *u, ptrdiff_t u_plane, float *sums)
{
    const int planes = products_of(w->f) * products_of(w->f);
    for (int i = 0; i < planes; i++) {
        int from = t0, to = t1;
        tiles_of_product(&w->g, w->f, i, &from, &to);
        const float *v = w->v + input_plane(w->f, i) * w->v_plane + b0 * w->v_block + from * LANES;
        if (from < to)
            dn_cpu_strip(to - from, b1 - b0, v, w->v_block, u + i * u_plane,
                         sums + i * SUMS_PLANE + (from - t0) * PANEL, b0 > 0);
    }
}

/* The same over all input blocks, the weights being transformed STEP channels at a time. */
always_inline void products_live(const int f, const winograd *w, int panel, int t0, int t1, float *sums)
{
    _Alignas(64) float u[PLANES_MAX * (STEP * PANEL + PAD)], gathered[STEP * TAPS * PANEL];
    const dn_conv_shape *s = &w->call->shape;
    for (int b0 = 0; b0 < w->c_blocks; b0 += STEP / LANES) {
        const int b1 = (int)min64(b0 + STEP / LANES, w->c_blocks), n = (b1 - b0) * LANES;
        const float *taps =
            (const float *)w->call->weights + ((ptrdiff_t)panel * w->c_blocks + b0) * LANES * TAPS * PANEL;
        if (w->weights == LOGICAL) {
            gather_taps(gathered, w->call->weights, s->C, s->K, panel, b0 * LANES, b1 * LANES);
            taps = gathered;
        }
        weight_tiles(f, taps, n, u, STEP * PANEL + PAD);
        products(w, t0, t1, b0, b1, u, STEP * PANEL + PAD, sums);
    }
}

/* All outputs of a tile, from position `at` on; by value, for the compiler to know what does not happen. */
always_inline void put_whole(const int m, const sink to, int64_t at, int width, const __m256 *o)
{
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < m; j++)
            sink_put(&to, at + (int64_t)i * width + j, o[i * m + j]);
}

/* The outputs of a tile that exist. */
always_inline void put_tile(const int m, const sink *to, const dn_conv_shape *s, int y, int x, const __m256 *o)
{
    const int width = s->Wo;
    const int64_t at = (int64_t)y * width + x;
    sink plain = *to;
    plain.silu = plain.masked = false;
    if (to->silu || to->masked || y + m > s->Ho || x + m > width) {
        for (int i = 0; i < m && y + i < s->Ho; i++)
            for (int j = 0; j < m && x + j < width; j++)
                sink_put(to, at + (int64_t)i * width + j, o[i * m + j]);
    } else if (to->residual) {
        put_whole(m, plain, at, width, o);
    } else {
        plain.residual = NULL;
        put_whole(m, plain, at, width, o);
    }
}

/* Fetch where a tile's outputs go, and the residual. */
always_inline void fetch_outputs(const int m, const dn_conv_call *call, int channel, const spot *p)
{
    const dn_conv_shape *s = &call->shape;
    const dn_rows *const maps[] = { &call->y, &call->epilogue.residual };
    for (int i = 0; i < 2; i++)
        if (maps[i]->base && maps[i]->plane)
            fetch_tile(m, 0, (const float *)rows_at(maps[i], p->row, channel), s->Ho, s->Wo, p->y * m, p->x * m);
}

/* Inverse transform and epilogue of a panel. */
always_inline void output_tiles(const int f, const winograd *w, int panel, int t0, int t1, const float *sums)
{
    const dn_conv_call *call = w->call;
    const int K = call->shape.K, m = outputs_of(f), halves = K - panel * PANEL > LANES ? 2 : 1;
    sink to[2] = { 0 };
    for (int t = t0; t < t1; t++) {
        const spot p = w->g.at[t];
        for (int h = 0; h < halves; h++) {
            __m256 o[16];
            fetch_outputs(m, call, panel * PANEL + h * LANES, &w->g.at[t + TILES_FETCHED]);
            if (t == t0 || p.row != w->g.at[t - 1].row)
                to[h] = sink_open(&call->epilogue, &call->y, K, p.row, panel * PANEL + h * LANES);
            output_tile(f, sums + (t - t0) * PANEL + h * LANES, SUMS_PLANE, o);
            put_tile(m, &to[h], &call->shape, p.y * m, p.x * m, o);
        }
    }
}

always_inline void panel(const int f, const winograd *w, int p, int t0, int t1)
{
    _Alignas(64) float sums[PLANES_MAX * SUMS_PLANE];
    const int planes = products_of(f) * products_of(f);
    if (w->weights == TRANSFORMED) {
        const ptrdiff_t u_plane = (ptrdiff_t)w->c_blocks * LANES * PANEL;
        products(w, t0, t1, 0, w->c_blocks, (const float *)w->call->weights + p * planes * u_plane, u_plane, sums);
    } else {
        products_live(f, w, p, t0, t1, sums);
    }
    output_tiles(f, w, p, t0, t1, sums);
}

static void panel_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd *w = arg;
    for (int64_t i = from; i < to; i++) {
        int p = (int)(i / w->parts), part = (int)(i % w->parts);
        const int t0 = part_begin(w, part), t1 = part_begin(w, part + 1);
        if (w->f == F43)
            panel(F43, w, p, t0, t1);
        else if (w->f == F23)
            panel(F23, w, p, t0, t1);
        else if (w->f == DOUBLED)
            panel(DOUBLED, w, p, t0, t1);
        else
            panel(HALVED, w, p, t0, t1);
    }
}

/* Run `n` items, split into pieces of the chunk where n alone is less than `wanted`. */
static void run_parts(winograd *w, dn_task task, int n, int wanted)
{
    w->parts = (int)min64(ceil_div(wanted, n), ceil_div(w->g.count, TILE_ROWS));
    dn_pool_run(w->call->pool, task, w, (int64_t)n * w->parts, 1);
}

static int tiles_max(enum weights weights) { return weights == TRANSFORMED ? TILES_AHEAD : TILES_MAX; }

/* The fewest chunks of n rows. */
static int64_t chunks_of(const grid *g, enum weights weights, int64_t n)
{
    const int most = grid_most(g, tiles_max(weights));
    return (grid_tiles(g) * n + most - 1) / most;
}

static ptrdiff_t slot_floats(const winograd *w) { return planes_of(w->f) * planes_of(w->f) * w->v_plane; }

/* Whole chunks, each in its thread's own planes V, which then stay in its own L2. */
static void chunk_task(void *arg, int64_t from, int64_t to, int thread)
{
    winograd w = *(const winograd *)arg;
    const int64_t all = (int64_t)grid_tiles(&w.g) * w.call->n;
    w.v += thread * slot_floats(&w);
    w.parts = 1;
    for (int64_t i = from; i < to; i++) {
        grid_take(&w.g, i * w.chunk, w.chunk, all);
        input_task(&w, 0, w.c_blocks, thread);
        panel_task(&w, 0, w.panels, thread);
    }
}

/* Threads share each chunk: they divide its input blocks, then its panels. */
static void run_together(winograd *w, int threads)
{
    const int64_t all = (int64_t)grid_tiles(&w->g) * w->call->n;
    /* Several tasks per thread even out their speeds; but each piece of a panel transforms its weights again. */
    const int spread = threads > 1 ? threads * TASKS_PER_THREAD : 1;
    for (int64_t first = 0; first < all; first += w->chunk) {
        grid_take(&w->g, first, w->chunk, all);
        run_parts(w, input_task, w->c_blocks, spread);
        run_parts(w, panel_task, w->panels, w->weights == TRANSFORMED ? spread : threads);
    }
}

static void run(const dn_conv_call *call, int f, enum weights weights)
{
    const dn_conv_shape *s = &call->shape;
    winograd w = { .call = call, .f = f, .weights = weights, .g = grid_of(s, f, tiles_max(weights)) };
    const int threads = dn_pool_threads(call->pool), unit = grid_sorted(&w.g) ? grid_tiles(&w.g) : 1;
    const int64_t all = (int64_t)grid_tiles(&w.g) * call->n;
    int64_t chunks = chunks_of(&w.g, weights, call->n);
    const bool apart = threads > 1 && threads <= SLOTS_MAX && chunks >= threads;
    if (apart)
        chunks = (chunks + threads - 1) / threads * threads;
    w.c_blocks = ceil_div(s->C, LANES);
    w.panels = ceil_div(s->K, PANEL);
    w.chunk = (int)((all / unit + chunks - 1) / chunks) * unit; /* of about the same size */
    w.v = call->workspace;
    w.v_block = w.chunk * LANES;
    w.v_plane = w.c_blocks * w.v_block + PAD;
    if (apart)
        dn_pool_run(call->pool, chunk_task, &w, (all + w.chunk - 1) / w.chunk, 1);
    else
        run_together(&w, threads);
}

static size_t workspace(const dn_conv_shape *s, int rows_max, int f, enum weights weights)
{
    const grid g = grid_of(s, f, tiles_max(weights));
    const int64_t all = (int64_t)grid_tiles(&g) * rows_max;
    const size_t plane = (size_t)ceil_div(s->C, LANES) * min64(tiles_max(weights), all) * LANES + PAD;
    const int64_t slots = min64(SLOTS_MAX, chunks_of(&g, weights, rows_max));
    return (size_t)(planes_of(f) * planes_of(f)) * plane * sizeof(float) * slots;
}

static size_t form_bytes(const dn_shape *w, int per_channel)
{
    int c_blocks = ceil_div((int)w->dim[2], LANES), panels = ceil_div((int)w->dim[3], PANEL);
    return (size_t)per_channel * c_blocks * LANES * panels * PANEL * sizeof(float);
}

static int first_panel(const dn_shape *weights, int part, int parts)
{
    return (int)((int64_t)ceil_div((int)weights->dim[3], PANEL) * part / parts);
}

static void pack_plain_part(void *dst, const float *src, const dn_shape *shape, int part, int parts)
{
    const int C = (int)shape->dim[2], K = (int)shape->dim[3], padded = ceil_div(C, LANES) * LANES;
    for (int p = first_panel(shape, part, parts); p < first_panel(shape, part + 1, parts); p++)
        gather_taps((float *)dst + (ptrdiff_t)p * padded * TAPS * PANEL, src, C, K, p, 0, padded);
}

static void pack_plain(void *dst, const float *src, const dn_shape *shape) { pack_plain_part(dst, src, shape, 0, 1); }

always_inline void pack(const int f, float *dst, const float *src, const dn_shape *shape, int part, int parts)
{
    const int C = (int)shape->dim[2], K = (int)shape->dim[3], padded = ceil_div(C, LANES) * LANES;
    const ptrdiff_t planes = products_of(f) * products_of(f);
    float taps[LANES * TAPS * PANEL];
    for (int p = first_panel(shape, part, parts); p < first_panel(shape, part + 1, parts); p++)
        for (int c = 0; c < padded; c += LANES) {
            float *u = dst + (p * planes * padded + c) * PANEL;
            gather_taps(taps, src, C, K, p, c, c + LANES);
            weight_tiles(f, taps, LANES, u, (ptrdiff_t)padded * PANEL);
        }
}

static size_t form_bytes_plain(const dn_shape *w) { return form_bytes(w, TAPS); }

#define KERNEL(f, weights)                                                        \
    static size_t workspace_##f##_##weights(const dn_conv_shape *s, int rows_max) \
    {                                                                             \
        return workspace(s, rows_max, f, weights);                                \
    }                                                                             \
    static void run_##f##_##weights(const dn_conv_call *call) { run(call, f, weights); }
#define FORM(f)                                                                                                  \
    static size_t form_bytes_##f(const dn_shape *w) { return form_bytes(w, products_of(f) * products_of(f)); }   \
    static void pack_part_##f(void *dst, const float *src, const dn_shape *shape, int part, int parts)           \
    {                                                                                                            \
        pack(f, dst, src, shape, part, parts);                                                                   \
    }                                                                                                            \
    static void pack_##f(void *dst, const float *src, const dn_shape *shape) { pack(f, dst, src, shape, 0, 1); } \
    KERNEL(f, TRANSFORMED)                                                                                       \
    KERNEL(f, LOGICAL)
FORM(F43)
FORM(F23)
FORM(DOUBLED)
KERNEL(F43, PLAIN)
KERNEL(DOUBLED, PLAIN)
KERNEL(HALVED, PLAIN)

/* clang-format off */
const dn_conv_kernel NAME(dn_cpu_winograd4) =
    { "winograd43-" ISA, "winograd43", false, false, form_bytes_F43, pack_F43, workspace_F43_TRANSFORMED, run_F43_TRANSFORMED, pack_part_F43,
      NULL, NULL, NULL };
const dn_conv_kernel NAME(dn_cpu_winograd4_plain) =
    { "winograd43-plain-" ISA, "taps16", false, false, form_bytes_plain, pack_plain, workspace_F43_PLAIN, run_F43_PLAIN, pack_plain_part,
      "taps16-rotated", dn_cpu_rotate_taps, dn_cpu_rotate_taps_part };
const dn_conv_kernel NAME(dn_cpu_winograd4_live) =
    { "winograd43-live-" ISA, NULL, false, false, NULL, NULL, workspace_F43_LOGICAL, run_F43_LOGICAL, NULL, NULL, NULL, NULL };
const dn_conv_kernel NAME(dn_cpu_winograd2) =
    { "winograd23-" ISA, "winograd23", false, false, form_bytes_F23, pack_F23, workspace_F23_TRANSFORMED, run_F23_TRANSFORMED, pack_part_F23,
      NULL, NULL, NULL };
const dn_conv_kernel NAME(dn_cpu_winograd2_live) =
    { "winograd23-live-" ISA, NULL, false, false, NULL, NULL, workspace_F23_LOGICAL, run_F23_LOGICAL, NULL, NULL, NULL, NULL };
const dn_conv_kernel NAME(dn_cpu_doubled) =
    { "doubled-" ISA, "doubled", false, false, form_bytes_DOUBLED, pack_DOUBLED, workspace_DOUBLED_TRANSFORMED, run_DOUBLED_TRANSFORMED, pack_part_DOUBLED,
      NULL, NULL, NULL };
const dn_conv_kernel NAME(dn_cpu_doubled_plain) =
    { "doubled-plain-" ISA, "taps16", false, false, form_bytes_plain, pack_plain, workspace_DOUBLED_PLAIN, run_DOUBLED_PLAIN, pack_plain_part,
      "taps16-rotated", dn_cpu_rotate_taps, dn_cpu_rotate_taps_part };
const dn_conv_kernel NAME(dn_cpu_halved) =
    { "halved-" ISA, "taps16", false, false, form_bytes_plain, pack_plain, workspace_HALVED_PLAIN, run_HALVED_PLAIN, pack_plain_part,
      "taps16-rotated", dn_cpu_rotate_taps, dn_cpu_rotate_taps_part };
const dn_conv_kernel NAME(dn_cpu_doubled_live) =
    { "doubled-live-" ISA, NULL, false, false, NULL, NULL, workspace_DOUBLED_LOGICAL, run_DOUBLED_LOGICAL, NULL, NULL, NULL, NULL };
/* clang-format on */
