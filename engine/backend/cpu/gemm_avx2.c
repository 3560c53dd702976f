/* gemm_avx2.c - linear layers and 1x1 convolutions: a packed product, blocked over k, rows and panels of columns.
 *
 * Packed weights are panels [ceil(N/16)][C up to a multiple of 8][16], zero where the matrix ends. A block of
 * nChw8c is read where it stands; dense rows are copied into that form, ROWS_MAX by K_STEP at a time. K_STEP is fixed
 * and sums continue in one chain from step to step. */
#include "choose.h"
#include "elementwise_lanes.h"
#include "tile_avx2.h"

#include <stdlib.h>

enum {
    K_STEP = 384,   /* a panel's part (24 KiB) stays in L1 while the rows pass */
    ROWS_MAX = 96,  /* a block of rows: its part of A stays in L2 while the panels pass */
    PANELS_MAX = 8, /* panels per task: their sums stay in L2 between steps over k */
    TASKS_PER_THREAD = 3
};

const char dn_cpu_gemm_key[] = "panels16";
const char dn_cpu_gemm_key_transposed[] = "panels16-transposed";

static int64_t k_padded(int64_t C) { return (C + LANES - 1) / LANES * LANES; }

size_t dn_cpu_gemm_form_bytes(int64_t C, int64_t N)
{
    return (size_t)((N + PANEL - 1) / PANEL * k_padded(C) * PANEL) * sizeof(float);
}

/* A part of the panels of src [C,N]: tails are filled with zeros. */
void dn_cpu_gemm_pack_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts)
{
    const int64_t N = shape->dim[shape->rank - 1], C = shape->dim[shape->rank - 2], all = (N + PANEL - 1) / PANEL;
    for (int64_t p = all * part / parts; p < all * (part + 1) / parts; p++) {
        float *d = (float *)dst + p * k_padded(C) * PANEL;
        const __m256i mask[2] = { lanes((int)min64(N - p * PANEL, LANES)), lanes((int)min64(N - p * PANEL, PANEL) - LANES) };
        for (int64_t c = 0; c < k_padded(C); c++, d += PANEL)
            for (int h = 0; h < 2; h++) {
                bool exists = c < C && p * PANEL + h * LANES < N;
                const float *src = exists ? weights + c * N + p * PANEL + h * LANES : weights;
                _mm256_storeu_ps(d + h * LANES, exists ? _mm256_maskload_ps(src, mask[h]) : _mm256_setzero_ps());
            }
    }
}

/* 16 columns and 8 rows of a panel, from src [N,C]. */
static void pack_transposed(float *dst, const float *src, int64_t C, int n, int c)
{
    for (int h = 0; h < PANEL; h += LANES) {
        __m256 r[LANES];
        for (int i = 0; i < LANES; i++)
            r[i] = h + i < n ? _mm256_maskload_ps(src + (h + i) * C, lanes(c)) : _mm256_setzero_ps();
        lanes_transpose(r);
        for (int i = 0; i < LANES; i++)
            _mm256_storeu_ps(dst + i * PANEL + h, r[i]);
    }
}

/* The same of src [N,C]. */
void dn_cpu_gemm_pack_transposed_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts)
{
    const int64_t N = shape->dim[shape->rank - 2], C = shape->dim[shape->rank - 1], all = (N + PANEL - 1) / PANEL;
    for (int64_t p = all * part / parts; p < all * (part + 1) / parts; p++)
        for (int64_t c = 0; c < C; c += LANES)
            pack_transposed((float *)dst + (p * k_padded(C) + c) * PANEL, weights + p * PANEL * C + c, C,
                            (int)min64(N - p * PANEL, PANEL), (int)min64(C - c, LANES));
}

void dn_cpu_gemm_pack(void *dst, const float *weights, const dn_shape *shape)
{
    dn_cpu_gemm_pack_part(dst, weights, shape, 0, 1);
}

void dn_cpu_gemm_pack_transposed(void *dst, const float *weights, const dn_shape *shape)
{
    dn_cpu_gemm_pack_transposed_part(dst, weights, shape, 0, 1);
}

typedef struct gemm {
    const dn_gemm_call *call;
    dn_rows x; /* as the call's, but a dense [n, 1, C] counts as one row of n positions */
    int64_t M, row_blocks;
    int n, panels, groups, group; /* panels in groups of `group` */
} gemm;

typedef struct operand {
    const float *a;
    ptrdiff_t block;
} operand;

/* dst [k/8][rows][8] of dense rows; the last block of 8 is filled with zeros beyond k. */
static void copy_dense(float *dst, const char *src, int64_t pitch, int rows, int k)
{
    const __m256i tail = lanes(k % LANES);
    for (int i = 0; i < rows; i++) {
        const float *s = (const float *)(src + i * pitch);
        float *d = dst + i * LANES;
        int j = 0;
        for (; j + LANES <= k; j += LANES, d += rows * LANES)
            _mm256_store_ps(d, _mm256_loadu_ps(s + j));
        if (j < k)
            _mm256_store_ps(d, _mm256_maskload_ps(s + j, tail));
    }
}

/* A's rows m .. m+rows-1 of sample `row`, columns k0 .. k0+k-1. */
static operand operand_at(const gemm *g, int64_t row, int64_t m, int rows, int k0, int k, float *copy)
{
    const dn_rows *x = &g->x;
    if (x->plane) {
        const char *a = rows_at(x, row, k0) + m * LANES * (int64_t)sizeof(float);
        return (operand){ (const float *)a, x->plane / (ptrdiff_t)sizeof(float) };
    }
    const char *src = (const char *)x->base + row * x->row_bytes + m * x->pitch + k0 * (int64_t)sizeof(float);
    copy_dense(copy, src, x->pitch, rows, k);
    return (operand){ copy, rows * LANES };
}

/* One block of rows by one group of panels. */
static void block(const gemm *g, int64_t row, int64_t m, int p0, int p1)
{
    _Alignas(64) float copy[ROWS_MAX * K_STEP], sums[PANELS_MAX * ROWS_MAX * PANEL];
    const dn_gemm_call *call = g->call;
    const int rows = (int)min64(ROWS_MAX, g->M - m), C = call->C;
    for (int k0 = 0; k0 < C; k0 += K_STEP) {
        const int k = C - k0 < K_STEP ? C - k0 : K_STEP;
        const operand a = operand_at(g, row, m, rows, k0, k, copy);
        for (int p = p0; p < p1; p++) {
            const float *b = (const float *)call->weights + (p * k_padded(C) + k0) * PANEL;
            float *c = sums + (p - p0) * ROWS_MAX * PANEL;
            dn_cpu_strip(rows, ceil_div(k, LANES), a.a, a.block, b, c, k0 > 0);
            if (k0 + k == C)
                dn_cpu_panel_put(c, row * g->M + m, rows, call->M, &call->epilogue, &call->y, call->N, p);
        }
    }
}

static void blocks(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const gemm *g = arg;
    for (int64_t i = from; i < to; i++) {
        int64_t rows = i / g->groups;
        int p0 = (int)(i % g->groups) * g->group, p1 = (int)min64(p0 + g->group, g->panels);
        block(g, rows / g->row_blocks, rows % g->row_blocks * ROWS_MAX, p0, p1);
    }
}

void dn_cpu_gemm(const dn_gemm_call *call)
{
    gemm g = { .call = call, .x = call->x, .M = call->M, .n = call->n, .panels = ceil_div(call->N, PANEL) };
    if (g.M == 1 && !g.x.plane) {
        g.M = g.n;
        g.n = 1;
        g.x.pitch = g.x.row_bytes;
    }
    g.row_blocks = (g.M + ROWS_MAX - 1) / ROWS_MAX;
    /* Smaller groups where there would be too few tasks. */
    int64_t tasks_wanted = dn_pool_threads(call->pool) * TASKS_PER_THREAD;
    int groups = (int)min64(g.panels, (tasks_wanted - 1) / (g.n * g.row_blocks) + 1);
    g.group = (int)min64(PANELS_MAX, ceil_div(g.panels, groups));
    g.groups = ceil_div(g.panels, g.group);
    dn_pool_run(call->pool, blocks, &g, g.n * g.row_blocks * g.groups, 1);
}

static size_t pointwise_form_bytes(const dn_shape *w) { return dn_cpu_gemm_form_bytes(w->dim[2], w->dim[3]); }

static size_t pointwise_workspace(const dn_conv_shape *s, int rows_max)
{
    (void)s;
    (void)rows_max;
    return 0;
}

static void pointwise(const dn_conv_call *c)
{
    dn_cpu_gemm(&(dn_gemm_call){ .n = c->n,
                                 .M = (int64_t)c->shape.H * c->shape.W,
                                 .C = c->shape.C,
                                 .N = c->shape.K,
                                 .x = c->x,
                                 .y = c->y,
                                 .epilogue = c->epilogue,
                                 .weights = c->weights,
                                 .pool = c->pool });
}

/* clang-format off */
const dn_conv_kernel dn_cpu_pointwise = { "pointwise", dn_cpu_gemm_key, false, false, pointwise_form_bytes, dn_cpu_gemm_pack,
                                          pointwise_workspace, pointwise, dn_cpu_gemm_pack_part, dn_cpu_gemm_key_transposed,
                                          dn_cpu_gemm_pack_transposed, dn_cpu_gemm_pack_transposed_part };
/* clang-format on */
