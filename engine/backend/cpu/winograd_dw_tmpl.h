/* winograd_dw_tmpl.h - the gradient by the weights of 3x3 convolutions, stride 1, padding 1: the adjoint of F(4x4,3x3)
 * and F(2x2,3x3), and of DOUBLED (winograd_tmpl.h). Included once per instruction set, with NAME(x) the exported name
 * and ISA its text.
 *
 * Tiles of all rows of the batch are counted through and taken in chunks. For a chunk: (1) every tile of
 * inputs becomes one element of planes V [a*a][C/8][tiles][8], every tile of output gradients one of D
 * [a*a][K/16][tiles][16]; (2) in each plane, V^T D is added to U [a*a][C padded to 8][K padded to 16]. In the end each
 * U of one pair of channels becomes 9 taps. Small U are two, for half of the chunks each, whatever the threads; they are
 * added in the end. Where one chunk is all, U exists for 8x32 channels at a time only, and
 * planes are the inner dimension of V and D. */
#include "gradients.h"
#include "winograd_tile.h"

enum {
    CHUNK = 48,                  /* tiles: V, D and U stay in L2 */
    CHUNK_LARGE = TILES_AT_WORK, /* ... where U alone does not: it is read and written once for each chunk */
    SMALL = 192 * 64,            /* weights of one tap whose U does */
    SUMS = 2, /* ... and there are so many U, each of a part of the chunks: so many threads work by themselves */
    PARTS = 4,
    BLOCKS_PER_TASK = 16
};

typedef struct winograd_dw {
    const dn_conv_dw_call *call;
    int f;
    grid g; /* at work: the chunk */
    int c_blocks, panels;
    float *v, *d, *u;
    ptrdiff_t v_plane, d_plane, u_plane, v_block, d_panel, v_floats, d_floats; /* distances, and sizes */
    bool whole;                          /* one chunk is all */
    bool more;                           /* U has sums already */
    int chunk;                           /* tiles, at most */
    int sums;                            /* U */
    int64_t chunks, c0, c1;              /* how many; those of this part */
} winograd_dw;

/* Tiles t0 .. t1-1 of the chunk, one block of 8 input channels. */
always_inline void input_tiles(const int f, const winograd_dw *w, int block, int t0, int t1)
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

/* The tile at (y, x) of output gradients, of which only so many lines and columns exist. */
always_inline void load_tile(const int m, __m256 *dy, const float *src, const dn_conv_shape *s, int y, int x, int lines,
                             int columns)
{
    src += ((ptrdiff_t)y * s->Wo + x) * LANES;
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < m; j++)
            dy[i * m + j] = i < lines && j < columns ? _mm256_loadu_ps(src + ((ptrdiff_t)i * s->Wo + j) * LANES)
                                                     : _mm256_setzero_ps();
}

/* The same of one block of 8 output channels; one beyond K is zero. */
always_inline void gradient_block(const int f, const winograd_dw *w, int block, const spot *p, const spot *q, float *d)
{
    const dn_conv_shape *s = &w->call->shape;
    const int m = outputs_of(f), y = p->y * m, x = p->x * m;
    const float *src = (const float *)rows_at(&w->call->dy, p->row, block * LANES);
    __m256 dy[16];
    if (block * LANES < s->K)
        fetch_tile(m, 0, (const float *)rows_at(&w->call->dy, q->row, block * LANES), s->Ho, s->Wo, q->y * m, q->x * m);
    if (block * LANES < s->K && y + m <= s->Ho && x + m <= s->Wo)
        load_tile(m, dy, src, s, y, x, m, m);
    else
        load_tile(m, dy, src, s, y, x, block * LANES < s->K ? s->Ho - y : 0, s->Wo - x);
    gradient_tile(f, dy, d, w->d_plane);
}

/* Both blocks of a panel, tile by tile: they share the lines of D. */
always_inline void gradient_tiles(const int f, const winograd_dw *w, int panel, int t0, int t1)
{
    for (int t = t0; t < t1; t++)
        for (int h = 0; h < 2; h++)
            gradient_block(f, w, 2 * panel + h, &w->g.at[t], &w->g.at[t + TILES_FETCHED],
                           w->d + panel * w->d_panel + t * PANEL + h * LANES);
}

always_inline void tiles_run(const int f, const winograd_dw *w, int item, int part)
{
    const int t0 = w->g.count * part / PARTS, t1 = w->g.count * (part + 1) / PARTS;
    if (item < w->c_blocks)
        input_tiles(f, w, item, t0, t1);
    else
        gradient_tiles(f, w, item - w->c_blocks, t0, t1);
}

static void tiles_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    for (int64_t i = from; i < to; i++) {
        const int item = (int)(i / PARTS), part = (int)(i % PARTS);
        if (w->f == F43)
            tiles_run(F43, w, item, part);
        else if (w->f == F23)
            tiles_run(F23, w, item, part);
        else
            tiles_run(DOUBLED, w, item, part);
    }
}

static int pairs_of(const winograd_dw *w) { return ceil_div(w->panels, 2); }

/* A task is two panels of one plane and BLOCKS_PER_TASK blocks of input channels. */
static void products_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    const int groups = ceil_div(w->c_blocks, BLOCKS_PER_TASK);
    const ptrdiff_t pitch = (ptrdiff_t)w->panels * PANEL;
    for (int64_t i = from; i < to; i++) {
        const int group = (int)(i % groups), p = (int)(i / groups % pairs_of(w)) * 2;
        const int64_t plane = i / groups / pairs_of(w);
        const int panels = p + 1 < w->panels ? 2 : 1, end = (int)min64(w->c_blocks, (group + 1) * BLOCKS_PER_TASK);
        int t0 = 0, t1 = w->g.count;
        tiles_of_product(&w->g, w->f, (int)plane, &t0, &t1);
        const float *d = w->d + p * w->d_panel + plane * w->d_plane + t0 * PANEL;
        const float *v = w->v + input_plane(w->f, (int)plane) * w->v_plane + t0 * LANES;
        for (int b = group * BLOCKS_PER_TASK; b < end; b++)
            dn_cpu_outer(t1 - t0, v + b * w->v_block, d, w->d_panel, panels,
                         w->u + plane * w->u_plane + b * LANES * pitch + p * PANEL, pitch, w->more);
    }
}

/* dw of input channel c and output channels k0 .. k1-1, from u[plane], the first of them at u. */
always_inline void taps_run(const int f, const winograd_dw *w, int c, int k0, int k1, const float *u, ptrdiff_t u_plane)
{
    const dn_conv_shape *s = &w->call->shape;
    __m256 g[TAPS];
    for (int k = k0; k < k1; k += LANES) {
        taps_tile(f, u + k - k0, u_plane, g);
        const __m256i mask = lanes(s->K - k);
        for (int i = 0; i < TAPS; i++)
            _mm256_maskstore_ps(w->call->dw + ((ptrdiff_t)i * s->C + c) * s->K + k, mask, g[i]);
    }
}

/* The U of input channel c together. */
static void add_sums(const winograd_dw *w, int64_t c)
{
    const int planes = products_of(w->f) * products_of(w->f), n = w->panels * PANEL;
    for (int j = 1; j < w->sums; j++)
        for (int i = 0; i < planes; i++) {
            float *u = w->u + i * w->u_plane + c * n, *other = u + j * planes * w->u_plane;
            for (int k = 0; k < n; k += LANES)
                _mm256_storeu_ps(u + k, _mm256_add_ps(_mm256_loadu_ps(u + k), _mm256_loadu_ps(other + k)));
        }
}

static void taps_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    const int K = w->call->shape.K;
    for (int64_t c = from; c < to; c++) {
        const float *u = w->u + c * w->panels * PANEL;
        add_sums(w, c);
        if (w->f == F43)
            taps_run(F43, w, (int)c, 0, K, u, w->u_plane);
        else if (w->f == F23)
            taps_run(F23, w, (int)c, 0, K, u, w->u_plane);
        else
            taps_run(DOUBLED, w, (int)c, 0, K, u, w->u_plane);
    }
}

/* Products and taps of one block of input channels and two panels, from the only chunk. */
always_inline void whole_run(const int f, const winograd_dw *w, int block, int p)
{
    enum { PITCH = 2 * PANEL, PLANE = LANES * PITCH };
    _Alignas(64) float u[PLANES_MAX * PLANE];
    const dn_conv_shape *s = &w->call->shape;
    const int k0 = p * PANEL, k1 = (int)min64(k0 + 2 * PANEL, s->K);
    for (int i = 0; i < products_of(f) * products_of(f); i++) {
        int t0 = 0, t1 = w->g.count;
        tiles_of_product(&w->g, f, i, &t0, &t1);
        dn_cpu_outer(t1 - t0, w->v + block * w->v_block + input_plane(f, i) * w->v_plane + t0 * LANES,
                     w->d + p * w->d_panel + i * w->d_plane + t0 * PANEL, w->d_panel, p + 1 < w->panels ? 2 : 1,
                     u + i * PLANE, PITCH, false);
    }
    for (int c = 0; c < LANES && block * LANES + c < s->C; c++)
        taps_run(f, w, block * LANES + c, k0, k1, u + c * PITCH, PLANE);
}

static void whole_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    for (int64_t i = from; i < to; i++) {
        const int block = (int)(i % w->c_blocks), p = (int)(i / w->c_blocks) * 2;
        if (w->f == F43)
            whole_run(F43, w, block, p);
        else if (w->f == F23)
            whole_run(F23, w, block, p);
        else
            whole_run(DOUBLED, w, block, p);
    }
}

/* What lies where, for a shape and `rows` of the batch: V and D in the order in which products read them. */
static winograd_dw layout_of(const dn_conv_shape *s, int f, int rows)
{
    const int v_planes = planes_of(f) * planes_of(f), d_planes = products_of(f) * products_of(f);
    const int most = (int64_t)s->C * s->K <= SMALL ? CHUNK : CHUNK_LARGE;
    winograd_dw w = { .f = f, .g = grid_of(s, f, most), .c_blocks = ceil_div(s->C, LANES) };
    w.panels = ceil_div(s->K, PANEL);
    w.whole = (int64_t)grid_tiles(&w.g) * rows <= CHUNK_LARGE;
    w.chunk = w.whole ? grid_tiles(&w.g) * rows : grid_most(&w.g, most);
    w.sums = w.whole || most == CHUNK_LARGE ? 1 : SUMS;
    const ptrdiff_t tiles = w.chunk;
    w.v_plane = (w.whole ? 1 : w.c_blocks) * tiles * LANES + PAD;
    w.d_plane = (w.whole ? 1 : w.panels) * tiles * PANEL + PAD;
    w.v_block = w.whole ? v_planes * w.v_plane : tiles * LANES;
    w.d_panel = w.whole ? d_planes * w.d_plane : tiles * PANEL;
    w.u_plane = w.whole ? 0 : (ptrdiff_t)w.c_blocks * LANES * w.panels * PANEL + PAD;
    w.v_floats = w.whole ? w.c_blocks * w.v_block : v_planes * w.v_plane;
    w.d_floats = w.whole ? w.panels * w.d_panel : d_planes * w.d_plane;
    return w;
}

static int sum_of(const winograd_dw *w, int64_t c) { return (int)(c * w->sums / w->chunks); }

/* Take chunk c in the planes V and D of `slot`. */
static winograd_dw chunk_of(const winograd_dw *all, int64_t c, int slot)
{
    winograd_dw w = *all;
    grid_take(&w.g, c * w.chunk, w.chunk, (int64_t)grid_tiles(&w.g) * w.call->n);
    w.more = c > 0 && sum_of(all, c - 1) == sum_of(all, c);
    w.v += slot * w.v_floats;
    w.d += slot * w.d_floats;
    w.u += sum_of(all, c) * products_of(w.f) * products_of(w.f) * w.u_plane;
    return w;
}

static int64_t tiles_tasks(const winograd_dw *w) { return (int64_t)(w->c_blocks + w->panels) * PARTS; }

static int64_t products_tasks(const winograd_dw *w)
{
    return (int64_t)products_of(w->f) * products_of(w->f) * pairs_of(w) * ceil_div(w->c_blocks, BLOCKS_PER_TASK);
}

/* All chunks of a sum. */
static void sum_task(void *arg, int64_t from, int64_t to, int thread)
{
    const winograd_dw *all = arg;
    for (int64_t sum = from; sum < to; sum++)
        for (int64_t c = all->c0; c < all->c1; c++)
            if (sum_of(all, c) == sum) {
                winograd_dw w = chunk_of(all, c, thread);
                tiles_task(&w, 0, tiles_tasks(&w), thread);
                products_task(&w, 0, products_tasks(&w), thread);
            }
}

/* Threads share each chunk. */
static void run_together(const winograd_dw *all)
{
    for (int64_t c = all->c0; c < all->c1; c++) {
        winograd_dw w = chunk_of(all, c, 0);
        dn_pool_run(w.call->pool, tiles_task, &w, tiles_tasks(&w), 1);
        if (w.whole)
            dn_pool_run(w.call->pool, whole_task, &w, (int64_t)w.c_blocks * pairs_of(&w), 4);
        else
            dn_pool_run(w.call->pool, products_task, &w, products_tasks(&w), 1);
    }
}

static void run(const dn_conv_dw_call *call, int f)
{
    winograd_dw w = layout_of(&call->shape, f, call->n);
    w.chunks = ((int64_t)grid_tiles(&w.g) * call->n + w.chunk - 1) / w.chunk;
    w.call = call;
    w.v = call->workspace;
    w.d = w.v + w.sums * w.v_floats;
    w.u = w.d + w.sums * w.d_floats;
    w.c0 = w.chunks * call->part / call->parts;
    w.c1 = w.chunks * (call->part + 1) / call->parts;
    if (!w.whole && dn_pool_threads(call->pool) <= w.sums)
        dn_pool_run(call->pool, sum_task, &w, w.sums, 1);
    else
        run_together(&w);
    if (call->part + 1 == call->parts && !w.whole)
        dn_pool_run(call->pool, taps_task, &w, call->shape.C, 1);
}

/* Fewer rows than the most may be one chunk where those are not, and then take more in V and D but have no U. */
static size_t workspace(const dn_conv_shape *s, int f, int rows_max)
{
    const winograd_dw w = layout_of(s, f, rows_max), one = layout_of(s, f, 1);
    const int64_t planes = products_of(f) * products_of(f), most_whole = CHUNK_LARGE / grid_tiles(&one.g);
    int64_t floats = w.sums * (w.v_floats + w.d_floats + planes * w.u_plane);
    if (!w.whole && most_whole > 0) {
        const winograd_dw few = layout_of(s, f, (int)most_whole);
        floats = floats > few.v_floats + few.d_floats ? floats : few.v_floats + few.d_floats;
    }
    return (size_t)floats * sizeof(float);
}

#define FORM(f)                                                                                             \
    static size_t workspace_##f(const dn_conv_shape *s, int rows_max) { return workspace(s, f, rows_max); } \
    static void run_##f(const dn_conv_dw_call *call) { run(call, f); }
FORM(F43)
FORM(F23)
FORM(DOUBLED)

const dn_conv_dw_kernel NAME(dn_cpu_winograd4_dw) = { "winograd43-dw-" ISA, workspace_F43, run_F43, false, false };
const dn_conv_dw_kernel NAME(dn_cpu_winograd2_dw) = { "winograd23-dw-" ISA, workspace_F23, run_F23, false, false };
const dn_conv_dw_kernel NAME(dn_cpu_doubled_dw) = { "doubled-dw-" ISA, workspace_DOUBLED, run_DOUBLED, false, false };
