/* winograd_tile.h - the transforms of F(4x4,3x3), F(2x2,3x3), DOUBLED and HALVED (winograd_tmpl.h) on one tile, 8
 * channels at a time. f is the algorithm.
 *
 * Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). y = A^T [(G g) (B^T d)], and its
 * adjoint by g: dg = G^T [(A dy) (B^T d)]. F(4,3) interpolates at 0, +-sqrt(1/2), +-sqrt(2) and infinity. */
#ifndef DN_CPU_WINOGRAD_TILE_H
#define DN_CPU_WINOGRAD_TILE_H

#include "tile_avx2.h"

enum {
    A_MAX = 6, /* inputs or products along an edge */
    PLANES_MAX = A_MAX * A_MAX,
    TAPS = 9,
    PAD = 16, /* floats after a plane, against 4 KiB aliasing */
    TILES_AT_WORK = 128,
    TILES_FETCHED = 2 /* tiles that are fetched ahead */
};

#define P1 0.70710678118654752f
#define P2 1.41421356237309505f
#define ADD _mm256_add_ps
#define SUB _mm256_sub_ps
#define MUL _mm256_mul_ps
#define FMA _mm256_fmadd_ps
#define SET _mm256_set1_ps

enum algorithm { F23, F43, DOUBLED, HALVED };

/* Along one edge of a tile: outputs, inputs, what inputs become, products, and inputs from one tile to the next. */
always_inline int outputs_of(int f) { return f == F23 || f == HALVED ? 2 : 4; }
always_inline int inputs_of(int f) { return f == F43 || f == HALVED ? 6 : 4; }
always_inline int planes_of(int f) { return f == F43 ? 6 : f == HALVED ? 5 : 4; }
always_inline int products_of(int f) { return f == F23 ? 4 : f == F43 ? 6 : 5; }
/* Products, the last ones, that only the last output has. */
always_inline int last_of(int f) { return f == HALVED ? 2 : 1; }
always_inline int step_of(int f) { return f == F43 || f == HALVED ? 4 : 2; }

/* The plane of V in product i. */
always_inline int input_plane(int f, int i)
{
    static const char doubled[] = { 0, 1, 2, 2, 3 };
    return f == DOUBLED ? doubled[i / 5] * 4 + doubled[i % 5] : i;
}

/* A tile's place: row of the batch, line and column among its tiles. */
typedef struct spot {
    int64_t row;
    int y, x;
} spot;

/* The tiles of a batch, of which some are at work: count of them from the first on. They are counted through the rows;
 * but where an edge has tiles whose last outputs do not exist, `first` begins a row, and the rows at work are sorted
 * into tiles that lack a column, that lack nothing, that lack a line, and both. Only the last output needs the last
 * products: so these have work in a range of tiles only. */
typedef struct grid {
    int tiles_x, tiles_y, full_x, full_y; /* full: those before it lack nothing */
    int64_t first;
    int count;
    spot at[TILES_AT_WORK + TILES_FETCHED];
} grid;

/* Sorted, if so many tiles hold a row. */
static inline grid grid_of(const dn_conv_shape *s, int f, int most)
{
    const int m = outputs_of(f);
    grid g = { .tiles_x = ceil_div(s->Wo, m), .tiles_y = ceil_div(s->Ho, m) };
    const bool sorted = g.tiles_x * g.tiles_y <= most;
    g.full_x = sorted ? s->Wo / m : g.tiles_x;
    g.full_y = sorted ? s->Ho / m : g.tiles_y;
    return g;
}

static inline int grid_tiles(const grid *g) { return g->tiles_x * g->tiles_y; }
static inline bool grid_sorted(const grid *g) { return g->full_x < g->tiles_x || g->full_y < g->tiles_y; }

/* The most tiles, up to so many, that can be at work at once. */
static inline int grid_most(const grid *g, int most)
{
    return grid_sorted(g) ? most / grid_tiles(g) * grid_tiles(g) : most;
}

/* Put to work at most `count` tiles of `all`. */
static inline void grid_take(grid *g, int64_t first, int count, int64_t all)
{
    const int64_t tiles = grid_tiles(g);
    g->first = first;
    g->count = (int)min64(count, all - first);
    spot *to = g->at;
    for (int kind = 0; kind < 4 && grid_sorted(g); kind++) {
        const bool right = kind == 0 || kind == 3, below = kind >= 2;
        for (int64_t row = first / tiles; row < (first + g->count) / tiles; row++)
            for (int y = below ? g->full_y : 0; y < (below ? g->tiles_y : g->full_y); y++)
                for (int x = right ? g->full_x : 0; x < (right ? g->tiles_x : g->full_x); x++)
                    *to++ = (spot){ row, y, x };
    }
    for (int64_t t = first; t < first + g->count && !grid_sorted(g); t++)
        *to++ = (spot){ t / tiles, (int)(t % tiles) / g->tiles_x, (int)(t % tiles) % g->tiles_x };
    for (int i = 0; i < TILES_FETCHED; i++, to++)
        *to = to[-1];
}

/* Those of the tiles t0 .. t1-1 that product i has work for. */
static inline void tiles_of_product(const grid *g, int f, int i, int *t0, int *t1)
{
    const int n = products_of(f), rows = g->count / grid_tiles(g), beside = g->tiles_x - g->full_x;
    if (!grid_sorted(g))
        return;
    if (i % n >= n - last_of(f)) {
        *t0 = (int)max64(*t0, (int64_t)rows * g->full_y * beside);
        *t1 = (int)min64(*t1, (int64_t)g->count - (int64_t)rows * (g->tiles_y - g->full_y) * beside);
    }
    if (i / n >= n - last_of(f))
        *t1 = (int)min64(*t1, (int64_t)rows * g->full_y * g->tiles_x);
}

/* B^T d: one column or row of an input tile. */
always_inline void input_1d(const int f, const __m256 *d, __m256 *o)
{
    if (f == HALVED) {
        o[0] = SUB(d[1], d[3]);
        o[1] = SUB(d[0], d[2]);
        o[2] = ADD(d[3], d[2]);
        o[3] = SUB(d[3], d[5]);
        o[4] = SUB(d[2], d[4]);
        return;
    }
    if (f != F43) {
        o[0] = SUB(d[0], d[2]);
        o[1] = ADD(d[1], d[2]);
        o[2] = SUB(d[2], d[1]);
        o[3] = SUB(d[1], d[3]);
        return;
    }
    __m256 even1 = FMA(SET(-2), d[2], d[4]), odd1 = FMA(SET(-2), d[1], d[3]);
    __m256 even2 = FMA(SET(-0.5f), d[2], d[4]), odd2 = FMA(SET(-0.5f), d[1], d[3]);
    o[0] = ADD(d[0], FMA(SET(-2.5f), d[2], d[4]));
    o[1] = FMA(SET(P1), odd1, even1);
    o[2] = FMA(SET(-P1), odd1, even1);
    o[3] = FMA(SET(P2), odd2, even2);
    o[4] = FMA(SET(-P2), odd2, even2);
    o[5] = ADD(d[1], FMA(SET(-2.5f), d[3], d[5]));
}

/* A^T s: one column or row of sums. */
always_inline void output_1d(const int f, const __m256 *s, __m256 *o)
{
    if (f == HALVED) {
        o[0] = ADD(ADD(s[0], s[1]), s[2]);
        o[1] = SUB(s[2], ADD(s[3], s[4]));
        return;
    }
    __m256 a = ADD(s[1], s[2]), b = SUB(s[1], s[2]);
    if (f == F23) {
        o[0] = ADD(s[0], a);
        o[1] = SUB(b, s[3]);
        return;
    }
    if (f == DOUBLED) {
        o[0] = ADD(s[0], a);
        o[1] = ADD(s[1], s[3]);
        o[2] = b;
        o[3] = SUB(SUB(s[1], s[3]), s[4]);
        return;
    }
    __m256 c = ADD(s[3], s[4]), d = SUB(s[3], s[4]);
    o[0] = ADD(ADD(s[0], a), c);
    o[1] = FMA(SET(P2), d, MUL(SET(P1), b));
    o[2] = FMA(SET(2), c, MUL(SET(0.5f), a));
    o[3] = FMA(SET(2 * P2), d, FMA(SET(0.5f * P1), b, s[5]));
}

/* G g: one column or row of a 3x3 kernel. */
always_inline void weight_1d(const int f, const __m256 *g, __m256 *o)
{
    if (f == HALVED) {
        o[0] = ADD(g[0], g[1]);
        o[1] = g[0];
        o[2] = ADD(o[0], g[2]);
        o[3] = g[2];
        o[4] = ADD(g[1], g[2]);
        return;
    }
    if (f == DOUBLED) {
        __m256 a = MUL(SET(0.5f), g[0]), b = MUL(SET(0.5f), g[1]), c = MUL(SET(0.5f), g[2]);
        o[0] = g[0];
        o[1] = ADD(ADD(a, c), b);
        o[2] = SUB(a, ADD(b, c));
        o[3] = SUB(c, ADD(a, b));
        o[4] = g[2];
        return;
    }
    if (f == F23) {
        __m256 a = MUL(SET(0.5f), ADD(g[0], g[2])), b = MUL(SET(0.5f), g[1]);
        o[0] = g[0];
        o[1] = ADD(a, b);
        o[2] = SUB(a, b);
        o[3] = g[2];
        return;
    }
    __m256 a = FMA(SET(-2 / 3.f), g[0], MUL(SET(-1 / 3.f), g[2])), b = MUL(SET(-2 / 3.f * P1), g[1]);
    __m256 c = FMA(SET(1 / 6.f), g[0], MUL(SET(1 / 3.f), g[2])), d = MUL(SET(1 / 6.f * P2), g[1]);
    o[0] = g[0];
    o[1] = ADD(a, b);
    o[2] = SUB(a, b);
    o[3] = ADD(c, d);
    o[4] = SUB(c, d);
    o[5] = g[2];
}

/* v[plane] = B^T d B for a tile of these lines, of which columns j0 .. j1-1 exist; the others are zero. */
always_inline void input_lines(const int f, const float *const line[A_MAX], int j0, int j1, float *v, ptrdiff_t plane)
{
    const int a = inputs_of(f), b = planes_of(f);
    __m256 t[PLANES_MAX], d[A_MAX], o[A_MAX];
#pragma GCC unroll 6
    for (int j = 0; j < a; j++) {
        const bool exists = j >= j0 && j < j1;
        if (exists) {
#pragma GCC unroll 6
            for (int i = 0; i < a; i++)
                d[i] = _mm256_loadu_ps(line[i] + j * LANES);
            input_1d(f, d, o);
        }
#pragma GCC unroll 6
        for (int i = 0; i < b; i++)
            t[i * a + j] = exists ? o[i] : _mm256_setzero_ps();
    }
#pragma GCC unroll 6
    for (int i = 0; i < b; i++) {
        input_1d(f, t + i * a, o);
#pragma GCC unroll 6
        for (int j = 0; j < b; j++)
            _mm256_store_ps(v + (i * b + j) * plane, o[j]);
    }
}

/* The tile whose top left input is (y, x) of one block of channels at `src`, zero where it lies outside the image. */
always_inline void input_tile(const int f, const float *src, const dn_conv_shape *s, int y, int x, float *v,
                              ptrdiff_t plane)
{
    static const float zeros[A_MAX * LANES];
    const int a = inputs_of(f);
    const float *line[A_MAX];
    const bool inside = y >= 0 && y + a <= s->H;
#pragma GCC unroll 6
    for (int i = 0; i < a; i++)
        line[i] = inside || (y + i >= 0 && y + i < s->H) ? src + ((ptrdiff_t)(y + i) * s->W + x) * LANES : zeros;
    if (x >= 0 && x + a <= s->W)
        input_lines(f, line, 0, a, v, plane);
    else
        input_lines(f, line, -x, s->W - x, v, plane);
}

/* Fetch n lines of a tile ahead, a cache line of two columns each time, from column `first` on: those before it are the
 * last tile's too. Maps come from L3 or memory, in pieces too short for the CPU to see where they go on. */
always_inline void fetch_tile(const int n, const int first, const float *src, int height, int width, int y, int x)
{
#pragma GCC unroll 6
    for (int i = 0; i < n; i++)
        for (int j = first; j < n && y + i >= 0 && y + i < height; j += 2)
            _mm_prefetch((const char *)(src + ((ptrdiff_t)(y + i) * width + x + j) * LANES), _MM_HINT_T0);
}

/* o[outputs*outputs] = A^T s A */
always_inline void output_tile(const int f, const float *sums, ptrdiff_t plane, __m256 *o)
{
    const int a = products_of(f), m = outputs_of(f);
    __m256 t[4 * A_MAX], s[A_MAX], r[4];
#pragma GCC unroll 6
    for (int j = 0; j < a; j++) {
#pragma GCC unroll 6
        for (int i = 0; i < a; i++)
            s[i] = _mm256_load_ps(sums + (i * a + j) * plane);
        output_1d(f, s, r);
#pragma GCC unroll 4
        for (int i = 0; i < m; i++)
            t[i * a + j] = r[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
        output_1d(f, t + i * a, o + i * m);
}

/* u[plane] = G g G^T for 8 output channels of one input channel; the 9 taps are PANEL floats apart. */
always_inline void weight_tile(const int f, const float *taps, float *u, ptrdiff_t plane)
{
    const int a = products_of(f);
    __m256 t[3 * A_MAX], g[3], o[A_MAX];
#pragma GCC unroll 3
    for (int j = 0; j < 3; j++) {
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++)
            g[i] = _mm256_loadu_ps(taps + (i * 3 + j) * PANEL);
        weight_1d(f, g, o);
#pragma GCC unroll 6
        for (int i = 0; i < a; i++)
            t[i * 3 + j] = o[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < a; i++) {
        weight_1d(f, t + i * 3, o);
#pragma GCC unroll 6
        for (int j = 0; j < a; j++)
            _mm256_store_ps(u + (i * a + j) * plane, o[j]);
    }
}

/* A y: one column or row of output gradients, the transpose of output_1d. */
always_inline void gradient_1d(const int f, const __m256 *y, __m256 *o)
{
    o[0] = y[0];
    if (f == F23) {
        o[1] = ADD(y[0], y[1]);
        o[2] = SUB(y[0], y[1]);
        o[3] = SUB(_mm256_setzero_ps(), y[1]);
        return;
    }
    if (f == DOUBLED) {
        o[1] = ADD(ADD(y[0], y[2]), ADD(y[1], y[3]));
        o[2] = SUB(y[0], y[2]);
        o[3] = SUB(y[1], y[3]);
        o[4] = SUB(_mm256_setzero_ps(), y[3]);
        return;
    }
    __m256 even1 = FMA(SET(0.5f), y[2], y[0]), odd1 = FMA(SET(0.5f), y[3], y[1]);
    __m256 even2 = FMA(SET(2), y[2], y[0]), odd2 = FMA(SET(2), y[3], y[1]);
    o[1] = FMA(SET(P1), odd1, even1);
    o[2] = FMA(SET(-P1), odd1, even1);
    o[3] = FMA(SET(P2), odd2, even2);
    o[4] = FMA(SET(-P2), odd2, even2);
    o[5] = y[3];
}

/* G^T u: one column or row of sums of products, the transpose of weight_1d. */
always_inline void taps_1d(const int f, const __m256 *u, __m256 *o)
{
    if (f == DOUBLED) {
        const __m256 d = SUB(u[1], u[2]);
        o[0] = FMA(SET(0.5f), SUB(ADD(u[1], u[2]), u[3]), u[0]);
        o[1] = MUL(SET(0.5f), SUB(d, u[3]));
        o[2] = FMA(SET(0.5f), ADD(d, u[3]), u[4]);
        return;
    }
    __m256 p = ADD(u[1], u[2]), q = SUB(u[1], u[2]);
    if (f == F23) {
        o[0] = FMA(SET(0.5f), p, u[0]);
        o[1] = MUL(SET(0.5f), q);
        o[2] = FMA(SET(0.5f), p, u[3]);
        return;
    }
    __m256 r = ADD(u[3], u[4]), t = SUB(u[3], u[4]);
    o[0] = FMA(SET(1 / 6.f), r, FMA(SET(-2 / 3.f), p, u[0]));
    o[1] = FMA(SET(1 / 6.f * P2), t, MUL(SET(-2 / 3.f * P1), q));
    o[2] = FMA(SET(1 / 3.f), r, FMA(SET(-1 / 3.f), p, u[5]));
}

/* d[plane] = A dy A^T for a tile of output gradients. */
always_inline void gradient_tile(const int f, const __m256 *dy, float *d, ptrdiff_t plane)
{
    const int a = products_of(f), m = outputs_of(f);
    __m256 t[A_MAX * 4], y[4], o[A_MAX];
#pragma GCC unroll 4
    for (int j = 0; j < m; j++) {
#pragma GCC unroll 4
        for (int i = 0; i < m; i++)
            y[i] = dy[i * m + j];
        gradient_1d(f, y, o);
#pragma GCC unroll 6
        for (int i = 0; i < a; i++)
            t[i * m + j] = o[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < a; i++) {
        gradient_1d(f, t + i * m, o);
#pragma GCC unroll 6
        for (int j = 0; j < a; j++)
            _mm256_store_ps(d + (i * a + j) * plane, o[j]);
    }
}

/* g[9] = G^T u G */
always_inline void taps_tile(const int f, const float *u, ptrdiff_t plane, __m256 *g)
{
    const int a = products_of(f);
    __m256 t[3 * A_MAX], s[A_MAX], o[3];
#pragma GCC unroll 6
    for (int j = 0; j < a; j++) {
#pragma GCC unroll 6
        for (int i = 0; i < a; i++)
            s[i] = _mm256_loadu_ps(u + (i * a + j) * plane);
        taps_1d(f, s, o);
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++)
            t[i * a + j] = o[i];
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++)
        taps_1d(f, t + i * a, g + i * 3);
}

#endif
