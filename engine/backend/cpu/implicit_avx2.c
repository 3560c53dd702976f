/* implicit_avx2.c - convolutions of any kernel size and stride as a product with gathered patches.
 *
 * Positions of all rows of the batch are counted through and taken in chunks. For a chunk: (1) patches are gathered
 * into A [k/8][positions][8]; (2) each panel of 16 output channels is one product A W over all of k, K_STEP at a time,
 * and the epilogue. The order of k is (ky, kx, c), c padded to blocks of 8. */
#include "choose.h"
#include "tile_avx2.h"

#include <string.h>

enum {
    CHUNK_MAX = 96, /* positions */
    CHUNK_MIN = 24,
    PATCH_BYTES = 512 << 10, /* of a chunk, about: it should stay in L2 */
    K_STEP = 384,
    TASKS_PER_THREAD = 2
};

typedef struct implicit {
    const dn_conv_call *call;
    int c_blocks, k_blocks, panels, chunk;
    float *a;
    int64_t first; /* the chunk: positions first .. first+count-1 */
    int count, parts;
} implicit;

static int k_blocks_of(const dn_conv_shape *s) { return s->kh * s->kw * ceil_div(s->C, LANES); }

static int part_begin(const implicit *g, int part) { return (int)((int64_t)g->count * part / g->parts); }

/* The input position under tap (ky, kx) of output position `at`, or -1: outside. */
static inline int64_t input_at(const dn_conv_shape *s, int64_t at, int ky, int kx)
{
    int64_t y = at / s->Wo * s->stride - s->pad_top + ky, x = at % s->Wo * s->stride - s->pad_left + kx;
    return y >= 0 && y < s->H && x >= 0 && x < s->W ? y * s->W + x : -1;
}

/* One position's patch: the 8 channels of each block under each tap. */
static void gather(const implicit *g, int64_t row, int64_t at, float *a)
{
    const dn_conv_shape *s = &g->call->shape;
    const ptrdiff_t plane = g->call->x.plane / (ptrdiff_t)sizeof(float), step = (ptrdiff_t)g->chunk * LANES;
    const float *x = (const float *)rows_at(&g->call->x, row, 0);
    for (int ky = 0; ky < s->kh; ky++)
        for (int kx = 0; kx < s->kw; kx++) {
            int64_t from = input_at(s, at, ky, kx);
            for (int b = 0; b < g->c_blocks; b++, a += step)
                _mm256_store_ps(a, from < 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(x + b * plane + from * LANES));
        }
}

static void gather_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const implicit *g = arg;
    const int64_t per_row = (int64_t)g->call->shape.Ho * g->call->shape.Wo;
    for (int64_t i = from; i < to; i++) {
        int64_t row = (g->first + i) / per_row, at = (g->first + i) % per_row;
        gather(g, row, at, g->a + i * LANES);
    }
}

static void panel(const implicit *g, int p, int t0, int t1)
{
    _Alignas(64) float sums[CHUNK_MAX * PANEL];
    const dn_conv_call *call = g->call;
    const ptrdiff_t step = (ptrdiff_t)g->chunk * LANES;
    for (int b = 0; b < g->k_blocks; b += K_STEP / LANES) {
        const float *w = (const float *)call->weights + ((ptrdiff_t)p * g->k_blocks + b) * LANES * PANEL;
        int blocks = (int)min64(K_STEP / LANES, g->k_blocks - b);
        dn_cpu_strip(t1 - t0, blocks, g->a + b * step + t0 * LANES, step, w, sums, b > 0);
    }
    dn_cpu_panel_put(sums, g->first + t0, t1 - t0, (int64_t)call->shape.Ho * call->shape.Wo, &call->epilogue, &call->y,
                     call->shape.K, p);
}

static void panel_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const implicit *g = arg;
    for (int64_t i = from; i < to; i++) {
        int part = (int)(i % g->parts);
        panel(g, (int)(i / g->parts), part_begin(g, part), part_begin(g, part + 1));
    }
}

static int chunk_of(const dn_conv_shape *s, int64_t rows)
{
    int fits = PATCH_BYTES / (k_blocks_of(s) * LANES * (int)sizeof(float)) / TILE_ROWS * TILE_ROWS;
    int most = fits > CHUNK_MAX ? CHUNK_MAX : fits < CHUNK_MIN ? CHUNK_MIN : fits;
    return (int)min64(most, (int64_t)s->Ho * s->Wo * rows);
}

static void run(const dn_conv_call *call)
{
    const dn_conv_shape *s = &call->shape;
    implicit g = { .call = call, .a = call->workspace };
    g.c_blocks = ceil_div(s->C, LANES);
    g.k_blocks = k_blocks_of(s);
    g.panels = ceil_div(s->K, PANEL);
    g.chunk = chunk_of(s, call->n);
    const int threads = dn_pool_threads(call->pool), wanted = threads > 1 ? threads * TASKS_PER_THREAD : 1;
    const int64_t all = (int64_t)s->Ho * s->Wo * call->n;
    for (g.first = 0; g.first < all; g.first += g.count) {
        g.count = (int)min64(g.chunk, all - g.first);
        g.parts = (int)min64(ceil_div(wanted, g.panels), ceil_div(g.count, TILE_ROWS));
        dn_pool_run(call->pool, gather_task, &g, g.count, ceil_div(g.count, wanted));
        dn_pool_run(call->pool, panel_task, &g, (int64_t)g.panels * g.parts, 1);
    }
}

static size_t workspace(const dn_conv_shape *s, int rows_max)
{
    return (size_t)chunk_of(s, rows_max) * k_blocks_of(s) * LANES * sizeof(float);
}

static size_t form_bytes(const dn_shape *w)
{
    dn_conv_shape s = { .kh = (int)w->dim[0], .kw = (int)w->dim[1], .C = (int)w->dim[2] };
    return (size_t)k_blocks_of(&s) * LANES * ceil_div((int)w->dim[3], PANEL) * PANEL * sizeof(float);
}

/* dst panels [k][16], a part of them */
static void pack_part(void *dst, const float *src, const dn_shape *shape, int part, int parts)
{
    const int taps = (int)(shape->dim[0] * shape->dim[1]), C = (int)shape->dim[2], K = (int)shape->dim[3];
    const int64_t per_tap = ceil_div(C, LANES) * LANES, floats = taps * per_tap * PANEL, panels = ceil_div(K, PANEL);
    for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; p++) {
        float *panel_of = (float *)dst + p * floats;
        memset(panel_of, 0, (size_t)floats * sizeof(float));
        for (int t = 0; t < taps; t++)
            for (int c = 0; c < C; c++)
                memcpy(panel_of + (t * per_tap + c) * PANEL, src + ((ptrdiff_t)t * C + c) * K + p * PANEL,
                       (size_t)min64(PANEL, K - p * PANEL) * sizeof(float));
    }
}

static void pack(void *dst, const float *src, const dn_shape *shape) { pack_part(dst, src, shape, 0, 1); }

const dn_conv_kernel dn_cpu_implicit = { "implicit", "implicit", false, false, form_bytes, pack, workspace, run, pack_part,
                                         NULL, NULL, NULL };
