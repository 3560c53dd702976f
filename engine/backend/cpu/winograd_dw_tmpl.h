/* winograd_dw_tmpl.h - the gradient by the weights of 3x3 convolutions, stride 1, padding 1: the adjoint of F(4x4,3x3)
 * and F(2x2,3x3). Included once per instruction set, with NAME(x) the exported name and ISA its text.
 *
 * Tiles of all rows of the batch are counted through and taken in chunks of CHUNK. For a chunk: (1) every tile of a x a
 * inputs becomes one element of a*a planes V [a*a][C/8][tiles][8], every tile of m x m output gradients one of D
 * [a*a][K/16][tiles][16]; (2) in each plane, V^T D is added to U [a*a][C padded to 8][K padded to 16]. In the end each U
 * of one pair of channels becomes 9 taps. Where one chunk is all, U exists for 8x32 channels at a time only, and planes
 * are the inner dimension of V and D. */
#include "gradients.h"
#include "winograd_tile.h"

enum { CHUNK = 128, PARTS = 4, BLOCKS_PER_TASK = 16 };

typedef struct winograd_dw {
    const dn_conv_dw_call *call;
    int m;              /* a tile has m x m outputs */
    int tiles_x, tiles; /* in a line, in a row of the batch */
    int c_blocks, panels;
    float *v, *d, *u;
    ptrdiff_t v_plane, d_plane, u_plane, v_block, d_panel, v_floats, d_floats; /* distances, and sizes */
    bool whole;                          /* one chunk is all */
    int64_t first;                       /* the chunk: tiles first .. first+count-1 */
    int count;
} winograd_dw;

/* A tile's place: row of the batch, top left output. */
typedef struct spot {
    int64_t row;
    int y, x;
} spot;

static inline spot spot_of(const winograd_dw *w, int64_t tile)
{
    int in_row = (int)(tile % w->tiles);
    return (spot){ tile / w->tiles, in_row / w->tiles_x * w->m, in_row % w->tiles_x * w->m };
}

/* Tiles t0 .. t1-1 of the chunk, one block of 8 input channels. */
always_inline void input_tiles(const int m, const winograd_dw *w, int block, int t0, int t1)
{
    const int a = m + 2;
    const dn_conv_shape *s = &w->call->shape;
    _Alignas(64) float edge[PLANES_MAX * LANES];
    for (int t = t0; t < t1; t++) {
        const spot p = spot_of(w, w->first + t);
        const float *src = (const float *)rows_at(&w->call->x, p.row, block * LANES);
        float *v = w->v + block * w->v_block + t * LANES;
        const int y = p.y - 1, x = p.x - 1;
        if (y >= 0 && x >= 0 && y + a <= s->H && x + a <= s->W) {
            input_tile(m, src + ((ptrdiff_t)y * s->W + x) * LANES, (ptrdiff_t)s->W * LANES, v, w->v_plane);
        } else {
            copy_edge(a, edge, src, s, y, x);
            input_tile(m, edge, a * LANES, v, w->v_plane);
        }
    }
}

/* A tile of output gradients, of which only so many lines and columns exist. */
always_inline void load_tile(const int m, __m256 *dy, const float *src, const dn_conv_shape *s, spot p, int lines, int columns)
{
    src += ((ptrdiff_t)p.y * s->Wo + p.x) * LANES;
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int j = 0; j < m; j++)
            dy[i * m + j] = i < lines && j < columns ? _mm256_loadu_ps(src + ((ptrdiff_t)i * s->Wo + j) * LANES)
                                                     : _mm256_setzero_ps();
}

/* The same of one block of 8 output channels; one beyond K is zero. */
always_inline void gradient_tiles(const int m, const winograd_dw *w, int block, int t0, int t1)
{
    const dn_conv_shape *s = &w->call->shape;
    for (int t = t0; t < t1; t++) {
        const spot p = spot_of(w, w->first + t);
        const float *src = (const float *)rows_at(&w->call->dy, p.row, block * LANES);
        __m256 dy[16];
        if (block * LANES < s->K && p.y + m <= s->Ho && p.x + m <= s->Wo)
            load_tile(m, dy, src, s, p, m, m);
        else
            load_tile(m, dy, src, s, p, block * LANES < s->K ? s->Ho - p.y : 0, s->Wo - p.x);
        float *d = w->d + block / 2 * w->d_panel + t * PANEL + block % 2 * LANES;
        gradient_tile(m, dy, d, w->d_plane);
    }
}

always_inline void tiles_run(const int m, const winograd_dw *w, int block, int part)
{
    const int t0 = w->count * part / PARTS, t1 = w->count * (part + 1) / PARTS;
    if (block < w->c_blocks)
        input_tiles(m, w, block, t0, t1);
    else
        gradient_tiles(m, w, block - w->c_blocks, t0, t1);
}

static void tiles_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    for (int64_t i = from; i < to; i++) {
        if (w->m == 4)
            tiles_run(4, w, (int)(i / PARTS), (int)(i % PARTS));
        else
            tiles_run(2, w, (int)(i / PARTS), (int)(i % PARTS));
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
        const float *d = w->d + p * w->d_panel + plane * w->d_plane;
        for (int b = group * BLOCKS_PER_TASK; b < end; b++)
            dn_cpu_outer(w->count, w->v + b * w->v_block + plane * w->v_plane, d, w->d_panel, panels,
                         w->u + plane * w->u_plane + b * LANES * pitch + p * PANEL, pitch, w->first > 0);
    }
}

/* dw of input channel c and output channels k0 .. k1-1, from u[plane], the first of them at u. */
always_inline void taps_run(const int m, const winograd_dw *w, int c, int k0, int k1, const float *u, ptrdiff_t u_plane)
{
    const dn_conv_shape *s = &w->call->shape;
    __m256 g[TAPS];
    for (int k = k0; k < k1; k += LANES) {
        taps_tile(m, u + k - k0, u_plane, g);
        const __m256i mask = lanes(s->K - k);
        for (int i = 0; i < TAPS; i++)
            _mm256_maskstore_ps(w->call->dw + ((ptrdiff_t)i * s->C + c) * s->K + k, mask, g[i]);
    }
}

static void taps_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    const int K = w->call->shape.K;
    for (int64_t c = from; c < to; c++) {
        const float *u = w->u + c * w->panels * PANEL;
        if (w->m == 4)
            taps_run(4, w, (int)c, 0, K, u, w->u_plane);
        else
            taps_run(2, w, (int)c, 0, K, u, w->u_plane);
    }
}

/* Products and taps of one block of input channels and two panels, from the only chunk. */
always_inline void whole_run(const int m, const winograd_dw *w, int block, int p)
{
    enum { PITCH = 2 * PANEL, PLANE = LANES * PITCH };
    _Alignas(64) float u[PLANES_MAX * PLANE];
    const dn_conv_shape *s = &w->call->shape;
    const int k0 = p * PANEL, k1 = (int)min64(k0 + 2 * PANEL, s->K);
    for (int i = 0; i < (m + 2) * (m + 2); i++)
        dn_cpu_outer(w->count, w->v + block * w->v_block + i * w->v_plane, w->d + p * w->d_panel + i * w->d_plane,
                     w->d_panel, p + 1 < w->panels ? 2 : 1, u + i * PLANE, PITCH, false);
    for (int c = 0; c < LANES && block * LANES + c < s->C; c++)
        taps_run(m, w, block * LANES + c, k0, k1, u + c * PITCH, PLANE);
}

static void whole_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const winograd_dw *w = arg;
    for (int64_t i = from; i < to; i++) {
        const int block = (int)(i % w->c_blocks), p = (int)(i / w->c_blocks) * 2;
        if (w->m == 4)
            whole_run(4, w, block, p);
        else
            whole_run(2, w, block, p);
    }
}

/* What lies where, for a shape and `rows` of the batch: V and D in the order in which products read them. */
static winograd_dw layout_of(const dn_conv_shape *s, int m, int rows)
{
    const int planes = (m + 2) * (m + 2);
    winograd_dw w = { .m = m, .tiles_x = ceil_div(s->Wo, m), .c_blocks = ceil_div(s->C, LANES) };
    w.tiles = w.tiles_x * ceil_div(s->Ho, m);
    w.panels = ceil_div(s->K, PANEL);
    w.whole = (int64_t)w.tiles * rows <= CHUNK;
    const ptrdiff_t tiles = w.whole ? (ptrdiff_t)w.tiles * rows : CHUNK;
    w.v_plane = (w.whole ? 1 : w.c_blocks) * tiles * LANES + PAD;
    w.d_plane = (w.whole ? 1 : w.panels) * tiles * PANEL + PAD;
    w.v_block = w.whole ? planes * w.v_plane : tiles * LANES;
    w.d_panel = w.whole ? planes * w.d_plane : tiles * PANEL;
    w.u_plane = w.whole ? 0 : (ptrdiff_t)w.c_blocks * LANES * w.panels * PANEL + PAD;
    w.v_floats = w.whole ? w.c_blocks * w.v_block : planes * w.v_plane;
    w.d_floats = w.whole ? w.panels * w.d_panel : planes * w.d_plane;
    return w;
}

static void run(const dn_conv_dw_call *call, int m)
{
    winograd_dw w = layout_of(&call->shape, m, call->n);
    const int64_t all = (int64_t)w.tiles * call->n, planes = (m + 2) * (m + 2);
    const int64_t products = planes * pairs_of(&w) * ceil_div(w.c_blocks, BLOCKS_PER_TASK);
    w.call = call;
    w.v = call->workspace;
    w.d = w.v + w.v_floats;
    w.u = w.d + w.d_floats;
    const int64_t chunks = (all + CHUNK - 1) / CHUNK, end = chunks * (call->part + 1) / call->parts * CHUNK;
    for (w.first = chunks * call->part / call->parts * CHUNK; w.first < end; w.first += CHUNK) {
        w.count = (int)min64(CHUNK, all - w.first);
        dn_pool_run(call->pool, tiles_task, &w, (int64_t)(w.c_blocks + 2 * w.panels) * PARTS, 1);
        if (w.whole)
            dn_pool_run(call->pool, whole_task, &w, (int64_t)w.c_blocks * pairs_of(&w), 4);
        else
            dn_pool_run(call->pool, products_task, &w, products, 1);
    }
    if (call->part + 1 == call->parts && !w.whole)
        dn_pool_run(call->pool, taps_task, &w, call->shape.C, 1);
}

/* Fewer rows than the most may be one chunk where those are not, and then take more in V and D but have no U. */
static size_t workspace(const dn_conv_shape *s, int m, int rows_max)
{
    const winograd_dw w = layout_of(s, m, rows_max), one = layout_of(s, m, 1);
    const int64_t planes = (m + 2) * (m + 2), most_whole = CHUNK / one.tiles;
    int64_t floats = w.v_floats + w.d_floats + planes * w.u_plane;
    if (!w.whole && most_whole > 0) {
        const winograd_dw few = layout_of(s, m, (int)most_whole);
        floats = floats > few.v_floats + few.d_floats ? floats : few.v_floats + few.d_floats;
    }
    return (size_t)floats * sizeof(float);
}

#define FORM(m)                                                            \
    static size_t workspace_##m(const dn_conv_shape *s, int rows_max)      \
    {                                                                      \
        return workspace(s, m, rows_max);                                  \
    }                                                                      \
    static void run_##m(const dn_conv_dw_call *call) { run(call, m); }
FORM(4)
FORM(2)

const dn_conv_dw_kernel NAME(dn_cpu_winograd4_dw) = { "winograd43-dw-" ISA, workspace_4, run_4, false, false };
const dn_conv_dw_kernel NAME(dn_cpu_winograd2_dw) = { "winograd23-dw-" ISA, workspace_2, run_2, false, false };
