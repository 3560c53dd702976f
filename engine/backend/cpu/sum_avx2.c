/* sum_avx2.c - sums over the positions of each row, or of all rows: gradients by biases and by what was broadcast.
 *
 * Eight channels at a time. Positions of a row go to STREAMS partial sums in turn, which are added up in a fixed tree;
 * rows are added in order. So the sum of a row is the same wherever it stands, and no thread count plays a part. */
#include "gradients.h"
#include "tile_avx2.h"

enum { STREAMS = 8 };

static __m256 row_sum(const dn_sum_call *call, int64_t row, int channel)
{
    const __m256i mask = lanes(call->channels - channel);
    const char *x = rows_at(&call->x, row, channel);
    const ptrdiff_t step = call->x.plane ? LANES * (ptrdiff_t)sizeof(float) : call->x.pitch;
    __m256 sum[STREAMS];
    for (int i = 0; i < STREAMS; i++)
        sum[i] = _mm256_setzero_ps();
    int64_t p = 0;
    for (; p + STREAMS <= call->positions; p += STREAMS, x += STREAMS * step)
#pragma GCC unroll 8
        for (int i = 0; i < STREAMS; i++)
            sum[i] = _mm256_add_ps(sum[i], _mm256_maskload_ps((const float *)(x + i * step), mask));
    for (int i = 0; p < call->positions; i++, p++, x += step)
        sum[i] = _mm256_add_ps(sum[i], _mm256_maskload_ps((const float *)x, mask));
    for (int n = STREAMS / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            sum[i] = _mm256_add_ps(sum[i], sum[i + n]);
    return sum[0];
}

static void rows_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dn_sum_call *call = arg;
    const int blocks = ceil_div(call->channels, LANES);
    for (int64_t i = from; i < to; i++) {
        const int channel = (int)(i % blocks) * LANES;
        float *y = (float *)((char *)call->y + i / blocks * call->row_bytes) + channel;
        _mm256_maskstore_ps(y, lanes(call->channels - channel), row_sum(call, i / blocks, channel));
    }
}

static void all_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dn_sum_call *call = arg;
    for (int64_t i = from; i < to; i++) {
        __m256 sum = _mm256_setzero_ps();
        for (int row = 0; row < call->n; row++)
            sum = _mm256_add_ps(sum, row_sum(call, row, (int)i * LANES));
        _mm256_maskstore_ps(call->y + i * LANES, lanes(call->channels - (int)i * LANES), sum);
    }
}

void dn_cpu_sum_positions(const dn_sum_call *call)
{
    const int blocks = ceil_div(call->channels, LANES);
    if (call->row_bytes)
        dn_pool_run(call->pool, rows_task, (void *)call, (int64_t)call->n * blocks, 1);
    else
        dn_pool_run(call->pool, all_task, (void *)call, blocks, 1);
}
