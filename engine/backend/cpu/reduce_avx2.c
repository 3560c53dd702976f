/* reduce_avx2.c - see reduce.h. */
#include "reduce.h"
#include "elementwise_lanes.h"
#include "norm_unit.h"
#include <math.h>
#include <string.h>

enum { CHUNK = 256 /* vectors summed in float before the sum goes on in double */ };

/* ---- sums ---- */

/* sum[lane] += x at n positions `step` floats apart, of the lanes in the mask. */
static void sum_strided(double sum[DN_LANES], const float *x, int64_t n, int64_t step, __m256i mask)
{
    for (int64_t from = 0; from < n; from += CHUNK) {
        int64_t to = from + CHUNK < n ? from + CHUNK : n, p = from;
        __m256 s[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
        for (; p + 4 <= to; p += 4)
            for (int i = 0; i < 4; i++)
                s[i] = _mm256_add_ps(s[i], _mm256_maskload_ps(x + (p + i) * step, mask));
        for (; p < to; p++)
            s[0] = _mm256_add_ps(s[0], _mm256_maskload_ps(x + p * step, mask));
        dn_add_double(sum, _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    }
}

static void sum_blocks(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_sum_args *a = arg;
    int blocks = dn_blocks_of(a->e.channels);
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row = a->over_rows ? 0 : item / blocks, end = a->over_rows ? a->e.n : row + 1;
        int c = (int)(item % blocks) * DN_LANES;
        __m256i mask = lanes_mask(a->e.channels - c);
        double sum[DN_LANES] = { 0 };
        float *out = dn_block_at(&a->out, row, 0) + c;
        for (int64_t r = row; r < end; r++) {
            const float *x = a->x.plane ? dn_block_at(&a->x, r, c / DN_LANES) : dn_block_at(&a->x, r, 0) + c;
            double of_row[DN_LANES] = { 0 };
            sum_strided(of_row, x, a->e.positions, a->x.plane ? DN_LANES : a->e.channels, mask);
            for (int i = 0; i < DN_LANES; i++)
                sum[i] += of_row[i];
        }
        for (int i = 0; i < DN_LANES && c + i < a->e.channels; i++)
            out[i] = (float)sum[i];
    }
}

void dn_sum_positions(dn_pool *pool, const dn_sum_args *a)
{
    int64_t rows = a->over_rows ? a->e.n : 1, each = rows * a->e.positions * DN_LANES;
    dn_pool_run(pool, sum_blocks, (void *)a, (int64_t)dn_blocks_of(a->e.channels) * (a->over_rows ? 1 : a->e.n),
                1 + 16384 / (each + 1));
}

/* ---- losses ---- */

static inline __m256 magnitude(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

/* Huber: d^2/2 within delta, delta (|d| - delta/2) beyond. */
static inline __m256 loss_of(enum dn_loss kind, __m256 d, __m256 delta)
{
    __m256 half = _mm256_set1_ps(0.5f), size = magnitude(d);
    if (kind == DN_MSE)
        return _mm256_mul_ps(d, d);
    if (kind == DN_L1)
        return size;
    __m256 beyond = _mm256_mul_ps(delta, _mm256_fnmadd_ps(half, delta, size));
    __m256 inside = _mm256_cmp_ps(size, delta, _CMP_LE_OQ);
    return _mm256_blendv_ps(beyond, _mm256_mul_ps(half, _mm256_mul_ps(d, d)), inside);
}

static inline __m256 slope_of(enum dn_loss kind, __m256 d, __m256 delta)
{
    __m256 sign = _mm256_and_ps(d, _mm256_set1_ps(-0.0f));
    if (kind == DN_MSE)
        return _mm256_add_ps(d, d);
    if (kind == DN_L1)
        return _mm256_and_ps(_mm256_or_ps(sign, _mm256_set1_ps(1)), _mm256_cmp_ps(d, _mm256_setzero_ps(), _CMP_NEQ_OQ));
    return _mm256_blendv_ps(_mm256_or_ps(sign, delta), d, _mm256_cmp_ps(magnitude(d), delta, _CMP_LE_OQ));
}

static inline __m256 difference_at(const dn_loss_args *a, int64_t row, int64_t i, __m256i mask)
{
    const float *x = dn_block_at(&a->prediction, row, 0) + i, *y = dn_block_at(&a->target, row, 0) + i;
    return _mm256_sub_ps(_mm256_maskload_ps(x, mask), _mm256_maskload_ps(y, mask));
}

static void losses(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_loss_args *a = arg;
    __m256 delta = _mm256_set1_ps(a->delta);
    (void)thread;
    for (int64_t row = first; row < last; row++) {
        double sum[DN_LANES] = { 0 }, total = 0;
        for (int64_t from = 0; from < a->count; from += CHUNK * DN_LANES) {
            int64_t to = from + CHUNK * DN_LANES < a->count ? from + CHUNK * DN_LANES : a->count;
            __m256 s = _mm256_setzero_ps();
            for (int64_t i = from; i < to; i += DN_LANES)
                s = _mm256_add_ps(s, loss_of(a->kind, difference_at(a, row, i, lanes_mask(a->count - i)), delta));
            dn_add_double(sum, s);
        }
        for (int i = 0; i < DN_LANES; i++)
            total += sum[i];
        *dn_block_at(&a->out, row, 0) = (float)(total / (double)a->count);
    }
}

void dn_loss_run(dn_pool *pool, const dn_loss_args *a) { dn_pool_run(pool, losses, (void *)a, a->n, 1); }

static void loss_slopes(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_loss_args *a = arg;
    __m256 delta = _mm256_set1_ps(a->delta);
    (void)thread;
    for (int64_t row = first; row < last; row++) {
        float *dx = dn_block_at(&a->out, row, 0);
        __m256 by = _mm256_set1_ps((float)((double)*dn_block_at(&a->dloss, row, 0) / (double)a->count));
        for (int64_t i = 0; i < a->count; i += DN_LANES) {
            __m256i mask = lanes_mask(a->count - i);
            __m256 slope = slope_of(a->kind, difference_at(a, row, i, mask), delta);
            _mm256_maskstore_ps(dx + i, mask, _mm256_mul_ps(by, slope));
        }
    }
}

void dn_loss_bwd_run(dn_pool *pool, const dn_loss_args *a) { dn_pool_run(pool, loss_slopes, (void *)a, a->n, 1); }

/* ---- softmax ---- */

typedef struct softmax_job {
    dn_rows y, x, dy;
    dn_extent e;
} softmax_job;

static const float *line_of(const dn_rows *x, const softmax_job *j, int64_t item)
{
    return dn_block_at(x, item / j->e.positions, 0) + item % j->e.positions * j->e.channels;
}

static void softmax(void *arg, int64_t first, int64_t last, int thread)
{
    const softmax_job *j = arg;
    int channels = j->e.channels;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        const float *x = line_of(&j->x, j, item);
        float *y = (float *)line_of(&j->y, j, item);
        __m256 top = _mm256_set1_ps(-INFINITY), sum = _mm256_setzero_ps();
        for (int c = 0; c < channels; c += DN_LANES) {
            __m256i mask = lanes_mask(channels - c);
            top = _mm256_max_ps(top, _mm256_blendv_ps(top, _mm256_maskload_ps(x + c, mask), _mm256_castsi256_ps(mask)));
        }
        __m256 highest = _mm256_set1_ps(lanes_max(top));
        for (int c = 0; c < channels; c += DN_LANES) {
            __m256i mask = lanes_mask(channels - c);
            __m256 e = dn_v_exp(_mm256_sub_ps(_mm256_maskload_ps(x + c, mask), highest));
            sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(mask)));
            _mm256_maskstore_ps(y + c, mask, e);
        }
        __m256 by = _mm256_set1_ps(1 / lanes_sum(sum));
        for (int c = 0; c < channels; c += DN_LANES) {
            __m256i mask = lanes_mask(channels - c);
            _mm256_maskstore_ps(y + c, mask, _mm256_mul_ps(by, _mm256_maskload_ps(y + c, mask)));
        }
    }
}

static void softmax_bwd(void *arg, int64_t first, int64_t last, int thread)
{
    const softmax_job *j = arg;
    int channels = j->e.channels;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        const float *y = line_of(&j->x, j, item), *dy = line_of(&j->dy, j, item);
        float *dx = (float *)line_of(&j->y, j, item);
        __m256 sum = _mm256_setzero_ps();
        for (int c = 0; c < channels; c += DN_LANES) {
            __m256i mask = lanes_mask(channels - c);
            sum = _mm256_fmadd_ps(_mm256_maskload_ps(y + c, mask), _mm256_maskload_ps(dy + c, mask), sum);
        }
        __m256 mean = _mm256_set1_ps(lanes_sum(sum));
        for (int c = 0; c < channels; c += DN_LANES) {
            __m256i mask = lanes_mask(channels - c);
            __m256 d = _mm256_sub_ps(_mm256_maskload_ps(dy + c, mask), mean);
            _mm256_maskstore_ps(dx + c, mask, _mm256_mul_ps(_mm256_maskload_ps(y + c, mask), d));
        }
    }
}

static void run_lines(dn_pool *pool, dn_task task, softmax_job *j)
{
    dn_pool_run(pool, task, j, j->e.n * j->e.positions, 1 + 4096 / (j->e.channels + 1));
}

void dn_softmax_run(dn_pool *pool, dn_rows y, dn_rows x, dn_extent e)
{
    run_lines(pool, softmax, &(softmax_job){ .y = y, .x = x, .e = e });
}

void dn_softmax_bwd_run(dn_pool *pool, dn_rows dx, dn_rows y, dn_rows dy, dn_extent e)
{
    run_lines(pool, softmax_bwd, &(softmax_job){ .y = dx, .x = y, .dy = dy, .e = e });
}

/* ---- embeddings ---- */

static const int32_t *ids_of(const dn_embed_dw_args *a, int64_t row)
{
    return (const int32_t *)((const char *)a->ids.base + row * a->ids.row_bytes);
}

/* Eight columns of the table: rows are added in their order. */
static void embed_columns(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_embed_dw_args *a = arg;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int c = (int)item * DN_LANES;
        __m256i mask = lanes_mask(a->channels - c);
        for (int64_t i = 0; i < a->entries; i++)
            _mm256_maskstore_ps(a->out + i * a->channels + c, mask, _mm256_setzero_ps());
        for (int64_t row = 0; row < a->n; row++) {
            float w = *dn_block_at(&a->w, row, 0), factor[2] = { 1 - w, w };
            __m256 dy = _mm256_maskload_ps(dn_block_at(&a->dy, row, 0) + c, mask);
            for (int k = 0; k < (w == 0 ? 1 : 2); k++) {
                float *out = a->out + (int64_t)ids_of(a, row)[k] * a->channels + c;
                __m256 sum = _mm256_fmadd_ps(_mm256_set1_ps(factor[k]), dy, _mm256_maskload_ps(out, mask));
                _mm256_maskstore_ps(out, mask, sum);
            }
        }
    }
}

bool dn_embed_dw_run(dn_pool *pool, const dn_embed_dw_args *a)
{
    for (int64_t row = 0; row < a->n; row++) {
        const int32_t *id = ids_of(a, row);
        float w = *dn_block_at(&a->w, row, 0);
        if (id[0] < 0 || id[0] >= a->entries || (w != 0 && (id[1] < 0 || id[1] >= a->entries)))
            return false;
    }
    dn_pool_run(pool, embed_columns, (void *)a, dn_blocks_of(a->channels), 1 + 4096 / (a->entries * DN_LANES + 1));
    return true;
}
