/* copy_avx2.c - see copy.h. Bandwidth is all there is to win here: whole vectors, one pass. */
#include "copy.h"
#include "elementwise_lanes.h"
#include <string.h>

typedef struct job {
    dn_rows dst, src;
    dn_extent e;
    int height, width, out_height, out_width, dst_first, src_first;
    float scale;
    int64_t strips; /* of positions, for copies that divide them */
} job;

enum { STRIP = 64 };

static void positions_of(const job *j, int64_t item, int64_t *row, int64_t *from, int64_t *to)
{
    *row = item / j->strips;
    *from = item % j->strips * STRIP;
    *to = *from + STRIP < j->e.positions ? *from + STRIP : j->e.positions;
}

static void to_blocked(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    int64_t pitch = j->src.pitch / (int64_t)sizeof(float);
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row, from, to;
        positions_of(j, item, &row, &from, &to);
        const float *src = dn_block_at(&j->src, row, 0);
        for (int c = 0; c < j->e.channels; c += DN_LANES) {
            __m256i mask = lanes_mask(j->e.channels - c);
            float *dst = dn_block_at(&j->dst, row, c / DN_LANES);
            for (int64_t p = from; p < to; p++)
                _mm256_storeu_ps(dst + p * DN_LANES, _mm256_maskload_ps(src + p * pitch + c, mask));
        }
    }
}

static void to_dense(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    int64_t pitch = j->dst.pitch / (int64_t)sizeof(float);
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row, from, to;
        positions_of(j, item, &row, &from, &to);
        float *dst = dn_block_at(&j->dst, row, 0);
        for (int c = 0; c < j->e.channels; c += DN_LANES) {
            __m256i mask = lanes_mask(j->e.channels - c);
            const float *src = dn_block_at(&j->src, row, c / DN_LANES);
            for (int64_t p = from; p < to; p++)
                _mm256_maskstore_ps(dst + p * pitch + c, mask, _mm256_loadu_ps(src + p * DN_LANES));
        }
    }
}

static float *plane_of(const dn_rows *x, const job *j, int64_t item)
{
    int blocks = dn_blocks_of(j->e.channels);
    return dn_block_at(x, item / blocks, item % blocks);
}

/* One block of the destination: whole planes where blocks meet blocks, else lane by lane. */
static void channels(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    int end = j->dst_first + j->e.channels, from_block = j->dst_first / DN_LANES;
    int blocks = dn_blocks_of(end) - from_block;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row = item / blocks, block = from_block + item % blocks;
        float *dst = dn_block_at(&j->dst, row, block);
        int c = (int)block * DN_LANES, stop = c + DN_LANES;
        if ((j->dst_first - j->src_first) % DN_LANES == 0 && c >= j->dst_first && stop <= end) {
            const float *src = dn_block_at(&j->src, row, (c - j->dst_first + j->src_first) / DN_LANES);
            memcpy(dst, src, (size_t)j->e.positions * DN_LANES * sizeof(float));
            continue;
        }
        for (c = c < j->dst_first ? j->dst_first : c; c < stop; c++) {
            int s = c - j->dst_first + j->src_first;
            const float *src = c < end ? dn_block_at(&j->src, row, s / DN_LANES) + s % DN_LANES : NULL;
            for (int64_t p = 0; p < j->e.positions; p++)
                dst[p * DN_LANES + c % DN_LANES] = src ? src[p * DN_LANES] : 0;
        }
    }
}

static void clear(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    (void)thread;
    for (int64_t item = first; item < last; item++)
        memset(plane_of(&j->dst, j, item), 0, (size_t)j->e.positions * DN_LANES * sizeof(float));
}

/* Line by line of the destination: each source line twice, then zeros where an odd size has more. */
static void upsample2(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    (void)thread;
    __m256 scale = _mm256_set1_ps(j->scale);
    for (int64_t item = first; item < last; item++) {
        const float *src = plane_of(&j->src, j, item);
        float *dst = plane_of(&j->dst, j, item);
        for (int y = 0; y < j->out_height; y++, dst += (int64_t)j->out_width * DN_LANES) {
            const float *line = src + (int64_t)(y / 2) * j->width * DN_LANES;
            for (int x = 0; x < j->width && y < 2 * j->height; x++) {
                __m256 v = _mm256_mul_ps(_mm256_loadu_ps(line + (int64_t)x * DN_LANES), scale);
                _mm256_storeu_ps(dst + (int64_t)x * 2 * DN_LANES, v);
                _mm256_storeu_ps(dst + (int64_t)x * 2 * DN_LANES + DN_LANES, v);
            }
            int written = y < 2 * j->height ? 2 * j->width : 0;
            memset(dst + (int64_t)written * DN_LANES, 0, (size_t)(j->out_width - written) * DN_LANES * sizeof *dst);
        }
    }
}

static void pool2(void *arg, int64_t first, int64_t last, int thread)
{
    const job *j = arg;
    (void)thread;
    int64_t line = (int64_t)j->width * DN_LANES;
    __m256 scale = _mm256_set1_ps(j->scale);
    for (int64_t item = first; item < last; item++) {
        const float *src = plane_of(&j->src, j, item);
        float *dst = plane_of(&j->dst, j, item);
        for (int y = 0; y < j->height / 2; y++, src += 2 * line)
            for (int x = 0; x < j->width / 2; x++, dst += DN_LANES) {
                const float *s = src + (int64_t)x * 2 * DN_LANES;
                __m256 top = _mm256_add_ps(_mm256_loadu_ps(s), _mm256_loadu_ps(s + DN_LANES));
                __m256 bottom = _mm256_add_ps(_mm256_loadu_ps(s + line), _mm256_loadu_ps(s + line + DN_LANES));
                _mm256_storeu_ps(dst, _mm256_mul_ps(_mm256_add_ps(top, bottom), scale));
            }
    }
}

static void run_strips(dn_pool *pool, dn_task task, job *j)
{
    j->strips = (j->e.positions + STRIP - 1) / STRIP;
    int64_t per_item = (int64_t)STRIP * j->e.channels;
    dn_pool_run(pool, task, j, j->e.n * j->strips, 1 + 16384 / (per_item + 1));
}

static void run_planes(dn_pool *pool, dn_task task, job *j)
{
    dn_pool_run(pool, task, j, (int64_t)j->e.n * dn_blocks_of(j->e.channels),
                1 + 16384 / (j->e.positions * DN_LANES + 1));
}

void dn_copy_to_blocked(dn_pool *pool, dn_rows dst, dn_rows dense, dn_extent e)
{
    run_strips(pool, to_blocked, &(job){ .dst = dst, .src = dense, .e = e });
}

void dn_copy_to_dense(dn_pool *pool, dn_rows dense, dn_rows src, dn_extent e)
{
    run_strips(pool, to_dense, &(job){ .dst = dense, .src = src, .e = e });
}

void dn_copy_channels(dn_pool *pool, dn_rows dst, int dst_first, dn_rows src, int src_first, dn_extent e)
{
    job j = { .dst = dst, .src = src, .e = e, .dst_first = dst_first, .src_first = src_first };
    int blocks = dn_blocks_of(dst_first + e.channels) - dst_first / DN_LANES;
    dn_pool_run(pool, channels, &j, (int64_t)e.n * blocks, 1 + 16384 / (e.positions * DN_LANES + 1));
}

void dn_copy_clear(dn_pool *pool, dn_rows dst, dn_extent e) { run_planes(pool, clear, &(job){ .dst = dst, .e = e }); }

void dn_copy_upsample2(dn_pool *pool, dn_rows dst, dn_rows src, dn_extent e, const dn_resample_size *size, float scale)
{
    job j = { .dst = dst, .src = src, .e = e, .scale = scale };
    j.height = size->height;
    j.width = size->width;
    j.out_height = size->out_height;
    j.out_width = size->out_width;
    run_planes(pool, upsample2, &j);
}

void dn_copy_pool2(dn_pool *pool, dn_rows dst, dn_rows src, dn_extent e, int height, int width, float scale)
{
    job j = { .dst = dst, .src = src, .e = e, .height = height, .width = width, .scale = scale };
    run_planes(pool, pool2, &j);
}
