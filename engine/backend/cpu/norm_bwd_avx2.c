/* norm_bwd_avx2.c - see norm_bwd.h.
 *
 * With g = dL/d(silu's argument) and h = g * scale, of every channel and summed over its positions: dshift = sum of g,
 * dscale = sum of g * (xhat * gamma + beta); dbeta and dgamma are the sums over the rows of a = sum of h and b = sum of
 * h * xhat; and
 *     dx = rstd * (gamma * h - mean(gamma * a) - xhat * mean(gamma * b)), means over the group.
 * First sweep: the sums of every channel, h into dx if that is not dy. Second: dx. Units as in norm_avx2.c. Each number
 * is rounded as the ops by themselves round, so that it does not matter whether they are one step. */
#include "norm_bwd.h"
#include "elementwise_fours.h"
#include "elementwise_lanes.h"
#include "norm_unit.h"
#include <string.h>

enum { CHUNK = 256 /* positions summed in float before the sum goes on in double */ };

typedef struct unit {
    const dn_group_norm_bwd_args *a;
    int64_t row;
    int channel, channels;
} unit;

enum sum { SUM_A, SUM_B, SUM_G, SUM_SCALE, SUM_DX, SUMS_N };

int64_t dn_group_norm_bwd_work(int channels)
{
    return dn_blocks_of(channels) * DN_LANES * SUMS_N * (int64_t)sizeof(double);
}

/* One of the sums of a row, for every channel. */
static double *sums_of(const dn_group_norm_bwd_args *a, int64_t row, enum sum which)
{
    return (double *)dn_block_at(&a->work, row, 0) + which * dn_blocks_of(a->e.channels) * DN_LANES;
}

/* Mean and deviation of a channel's group. */
static const float *stats_of(const dn_group_norm_bwd_args *a, const dn_rows *stats, int64_t row, int channel)
{
    return dn_block_at(stats, row, 0) + (int64_t)channel / (a->e.channels / a->groups) * 2;
}

/* Eight channels: mean and deviation, and the forward pass's way to silu's argument. */
typedef struct block_lanes {
    __m256 mean, rstd;
    dn_norm_lanes forward;
} block_lanes;

static block_lanes lanes_of(const dn_group_norm_bwd_args *a, int64_t row, int channel)
{
    float mean[DN_LANES] = { 0 }, rstd[DN_LANES] = { 0 }, forward_mean[DN_LANES] = { 0 },
          forward_rstd[DN_LANES] = { 0 };
    for (int i = 0; i < DN_LANES && channel + i < a->e.channels; i++) {
        const float *s = stats_of(a, &a->stats, row, channel + i);
        const float *f = a->silu ? stats_of(a, &a->forward_stats, row, channel + i) : s;
        mean[i] = s[0];
        rstd[i] = s[1];
        forward_mean[i] = f[0];
        forward_rstd[i] = f[1];
    }
    const dn_norm_vectors v = { &a->gamma, &a->beta, &a->scale, &a->shift };
    return (block_lanes){ _mm256_loadu_ps(mean), _mm256_loadu_ps(rstd),
                          dn_norm_lanes_of(&v, row, channel, a->e.channels, forward_mean, forward_rstd) };
}

/* dy * silu'(y), silu'(y) = s + y*s*(1 - s), s = sigmoid(y) */
static inline fours through_silu(fours y, fours dy)
{
    fours s = dn_w_sigmoid(y), rest = fours_sub(fours_set(1), s);
    return fours_mul(dy, fours_fma(fours_mul(y, s), rest, s));
}

static inline __m256 through_silu_one(__m256 y, __m256 dy)
{
    __m256 s = dn_v_sigmoid(y), rest = _mm256_sub_ps(_mm256_set1_ps(1), s);
    return _mm256_mul_ps(dy, _mm256_fmadd_ps(_mm256_mul_ps(y, s), rest, s));
}

static inline fours same4(__m256 v) { return (fours){ v, v, v, v }; }

static inline __m256 sum4(fours v) { return _mm256_add_ps(_mm256_add_ps(v.a, v.b), _mm256_add_ps(v.c, v.d)); }

/* Four sums of eight channels: of the first SUM_DX kinds. */
typedef struct block_sum {
    double kind[SUM_DX][DN_LANES];
} block_sum;

/* One vector of each of four positions: the sums so far. */
typedef struct running {
    fours a, b, g, scale;
} running;

/* Add n <= CHUNK positions; h goes where h_out points, if that is anywhere. */
typedef void (*sums_fn)(const block_lanes *k, const float *x, const float *dy, float *h_out, int64_t n, block_sum *sum);

static inline __attribute__((always_inline)) void chunk_sums(const block_lanes *k, const float *x, const float *dy,
                                                             float *h_out, int64_t n, const bool silu,
                                                             const enum dn_norm_modulation how, block_sum *sum)
{
    running r = { fours_set(0), fours_set(0), fours_set(0), fours_set(0) };
    const bool scaled = how & DN_NORM_SCALED;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        fours v = fours_load(x + i * DN_LANES), g = fours_load(dy + i * DN_LANES);
        if (silu)
            g = through_silu(fours_norm(v, &k->forward, how), g);
        if (how)
            r.g = fours_add(r.g, g);
        if (scaled)
            r.scale = fours_add(r.scale, fours_mul(g, fours_norm(v, &k->forward, DN_NORM_BARE)));
        fours h = scaled ? fours_mul(g, same4(k->forward.scale)) : g;
        if (silu && h_out)
            fours_store(h_out + i * DN_LANES, h);
        r.a = fours_add(r.a, h);
        r.b = fours_fma(h, fours_mul(fours_sub(v, same4(k->mean)), same4(k->rstd)), r.b);
    }
    for (; i < n; i++) {
        __m256 v = _mm256_loadu_ps(x + i * DN_LANES), g = _mm256_loadu_ps(dy + i * DN_LANES);
        if (silu)
            g = through_silu_one(dn_norm_apply(v, &k->forward, how), g);
        if (how)
            r.g.a = _mm256_add_ps(r.g.a, g);
        if (scaled)
            r.scale.a = _mm256_add_ps(r.scale.a, _mm256_mul_ps(g, dn_norm_apply(v, &k->forward, DN_NORM_BARE)));
        __m256 h = scaled ? _mm256_mul_ps(g, k->forward.scale) : g;
        if (silu && h_out)
            _mm256_storeu_ps(h_out + i * DN_LANES, h);
        r.a.a = _mm256_add_ps(r.a.a, h);
        r.b.a = _mm256_fmadd_ps(h, _mm256_mul_ps(_mm256_sub_ps(v, k->mean), k->rstd), r.b.a);
    }
    dn_add_double(sum->kind[SUM_A], sum4(r.a));
    dn_add_double(sum->kind[SUM_B], sum4(r.b));
    dn_add_double(sum->kind[SUM_G], sum4(r.g));
    dn_add_double(sum->kind[SUM_SCALE], sum4(r.scale));
}

#define SUMS(name, silu, how)                                                                               \
    static void sums_##name(const block_lanes *k, const float *x, const float *dy, float *h_out, int64_t n, \
                            block_sum *sum)                                                                 \
    {                                                                                                       \
        chunk_sums(k, x, dy, h_out, n, silu, how, sum);                                                     \
    }
SUMS(plain, false, DN_NORM_BARE)
SUMS(bare, true, DN_NORM_BARE)
SUMS(scaled, true, DN_NORM_SCALED)
SUMS(shifted, true, DN_NORM_SHIFTED)
SUMS(both, true, DN_NORM_SCALED_SHIFTED)

static const sums_fn silu_sums[] = { [DN_NORM_BARE] = sums_bare,
                                     [DN_NORM_SCALED] = sums_scaled,
                                     [DN_NORM_SHIFTED] = sums_shifted,
                                     [DN_NORM_SCALED_SHIFTED] = sums_both };

static void block_sums(const dn_group_norm_bwd_args *a, int64_t row, int block)
{
    block_lanes k = lanes_of(a, row, block * DN_LANES);
    block_sum sum = { 0 };
    sums_fn sums = a->silu ? silu_sums[dn_norm_modulation_of(&a->scale, &a->shift)] : sums_plain;
    for (int64_t from = 0; from < a->e.positions; from += CHUNK) {
        int64_t n = a->e.positions - from < CHUNK ? a->e.positions - from : CHUNK, at = from * DN_LANES;
        float *h = a->dx.base ? dn_block_at(&a->dx, row, block) + at : NULL;
        sums(&k, dn_block_at(&a->x, row, block) + at, dn_block_at(&a->dy, row, block) + at, h, n, &sum);
    }
    for (enum sum i = SUM_A; i < SUM_DX; i++)
        memcpy(sums_of(a, row, i) + block * DN_LANES, sum.kind[i], sizeof sum.kind[i]);
}

/* dx = h * by_h + (x - mean) * by_x + constant (+ add) of eight channels */
typedef struct writer {
    float *dx;
    const float *x, *h, *add; /* add NULL: nothing to add */
    __m256 mean, by_h, by_x, constant;
} writer;

static inline __attribute__((always_inline)) __m256 write_one(const writer *w, int64_t i, const bool add)
{
    __m256 v = _mm256_fmadd_ps(_mm256_sub_ps(_mm256_loadu_ps(w->x + i), w->mean), w->by_x, w->constant);
    v = _mm256_fmadd_ps(_mm256_loadu_ps(w->h + i), w->by_h, v);
    if (add)
        v = _mm256_add_ps(_mm256_loadu_ps(w->add + i), v);
    _mm256_storeu_ps(w->dx + i, v);
    return v;
}

/* sum[lane] = the sum of what is written. */
static inline __attribute__((always_inline)) void write_all(const writer *w, int64_t n, double *sum, const bool add)
{
    for (int64_t from = 0; from < n; from += CHUNK) {
        int64_t to = from + CHUNK < n ? from + CHUNK : n, p = from;
        fours s = fours_set(0);
        for (; p + 4 <= to; p += 4) {
            int64_t i = p * DN_LANES;
            s = fours_add(s, (fours){ write_one(w, i, add), write_one(w, i + 8, add), write_one(w, i + 16, add),
                                      write_one(w, i + 24, add) });
        }
        for (; p < to; p++)
            s.a = _mm256_add_ps(s.a, write_one(w, p * DN_LANES, add));
        dn_add_double(sum, sum4(s));
    }
}

static void write_block(const dn_group_norm_bwd_args *a, int64_t row, int block, const float *by_h, const float *by_x,
                        const float *constant)
{
    double *sum = sums_of(a, row, SUM_DX) + block * DN_LANES;
    writer w = { .dx = dn_block_at(&a->dx, row, block),
                 .x = dn_block_at(&a->x, row, block),
                 .h = dn_block_at(a->silu ? &a->dx : &a->dy, row, block),
                 .add = a->add.base ? dn_block_at(&a->add, row, block) : NULL,
                 .mean = lanes_of(a, row, block * DN_LANES).mean,
                 .by_h = _mm256_loadu_ps(by_h),
                 .by_x = _mm256_loadu_ps(by_x),
                 .constant = _mm256_loadu_ps(constant) };
    for (int i = 0; i < DN_LANES; i++)
        sum[i] = 0;
    if (w.add)
        write_all(&w, a->e.positions, sum, true);
    else
        write_all(&w, a->e.positions, sum, false);
}

static void write_unit(const unit *u)
{
    const dn_group_norm_bwd_args *a = u->a;
    float by_h[DN_NORM_CHANNELS_MAX + DN_LANES], by_x[DN_NORM_CHANNELS_MAX + DN_LANES];
    float constant[DN_NORM_CHANNELS_MAX + DN_LANES];
    int group = a->e.channels / a->groups;
    double n = (double)a->e.positions * group;
    const double *sum_a = sums_of(a, u->row, SUM_A), *sum_b = sums_of(a, u->row, SUM_B);
    for (int from = 0; from < u->channels; from += group) {
        double mean_a = 0, mean_b = 0, rstd = stats_of(a, &a->stats, u->row, u->channel + from)[1];
        for (int c = u->channel + from; c < u->channel + from + group; c++) {
            mean_a += dn_vector_at(&a->gamma, 0, c, 1) * sum_a[c] / n;
            mean_b += dn_vector_at(&a->gamma, 0, c, 1) * sum_b[c] / n;
        }
        for (int c = from; c < from + group; c++) {
            by_h[c] = (float)(rstd * dn_vector_at(&a->gamma, 0, u->channel + c, 1));
            by_x[c] = (float)(-rstd * rstd * mean_b);
            constant[c] = (float)(-rstd * mean_a);
        }
    }
    for (int c = u->channels; c % DN_LANES; c++)
        by_h[c] = by_x[c] = constant[c] = 0;
    for (int c = 0; c < u->channels; c += DN_LANES)
        write_block(a, u->row, (u->channel + c) / DN_LANES, by_h + c, by_x + c, constant + c);
}

/* The gradients by a row's scale and shift, and by what was broadcast over the positions of x. */
static void write_vectors(const unit *u)
{
    const dn_group_norm_bwd_args *a = u->a;
    const struct {
        const dn_rows *to;
        enum sum sum;
    } vectors[] = { { &a->dscale, SUM_SCALE }, { &a->dshift, SUM_G }, { &a->dx_sums, SUM_DX } };
    for (int i = 0; i < 3; i++)
        for (int c = u->channel; vectors[i].to->base && c < u->channel + u->channels; c++)
            dn_block_at(vectors[i].to, u->row, 0)[c] = (float)sums_of(a, u->row, vectors[i].sum)[c];
}

static void do_units(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_group_norm_bwd_args *a = arg;
    int size = dn_norm_unit_channels(a->e.channels, a->groups), units = (a->e.channels + size - 1) / size;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int channel = (int)(item % units) * size, left = a->e.channels - channel;
        unit u = { a, item / units, channel, left < size ? left : size };
        for (int c = 0; c < u.channels; c += DN_LANES)
            block_sums(a, u.row, (u.channel + c) / DN_LANES);
        if (a->dx.base)
            write_unit(&u);
        write_vectors(&u);
    }
}

static void sum_rows(const dn_group_norm_bwd_args *a, float *to, enum sum which)
{
    for (int c = 0; to && c < a->e.channels; c++) {
        double sum = 0;
        for (int64_t row = 0; row < a->e.n; row++)
            sum += sums_of(a, row, which)[c];
        to[c] = (float)sum;
    }
}

void dn_group_norm_bwd_blocked(dn_pool *pool, const dn_group_norm_bwd_args *a)
{
    int size = dn_norm_unit_channels(a->e.channels, a->groups), units = (a->e.channels + size - 1) / size;
    int64_t elements = a->e.positions * size;
    dn_pool_run(pool, do_units, (void *)a, (int64_t)a->e.n * units, 1 + 4096 / (elements + 1));
    sum_rows(a, a->dgamma, SUM_B);
    sum_rows(a, a->dbeta, SUM_A);
    sum_rows(a, a->dx_sum, SUM_DX);
}

/* ---- LayerNorm ---- */

static void layer_dx(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_layer_norm_bwd_args *a = arg;
    int channels = a->e.channels;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row = item / a->e.positions, p = item % a->e.positions;
        const float *x = dn_block_at(&a->x, row, 0) + p * channels, *dy = dn_block_at(&a->dy, row, 0) + p * channels;
        const float *stats = dn_block_at(&a->stats, row, 0) + p * 2;
        float *dx = dn_block_at(&a->dx, row, 0) + p * channels;
        __m256 mean = _mm256_set1_ps(stats[0]), rstd = _mm256_set1_ps(stats[1]), one = _mm256_set1_ps(1);
        __m256 sum_a = _mm256_setzero_ps(), sum_b = sum_a;
        for (int pass = 0; pass < 2; pass++) {
            __m256 mean_a = _mm256_set1_ps(pass ? lanes_sum(sum_a) / (float)channels : 0);
            __m256 mean_b = _mm256_set1_ps(pass ? lanes_sum(sum_b) / (float)channels : 0);
            for (int c = 0; c < channels; c += DN_LANES) {
                __m256i mask = lanes_mask(channels - c);
                __m256 w = a->gamma.data ? _mm256_maskload_ps(a->gamma.data + c, mask) : one;
                __m256 g = _mm256_mul_ps(_mm256_maskload_ps(dy + c, mask), w);
                __m256 xhat = _mm256_mul_ps(_mm256_sub_ps(_mm256_maskload_ps(x + c, mask), mean), rstd);
                if (pass == 0) {
                    sum_a = _mm256_add_ps(sum_a, g);
                    sum_b = _mm256_fmadd_ps(g, xhat, sum_b);
                } else {
                    __m256 v = _mm256_fnmadd_ps(xhat, mean_b, _mm256_sub_ps(g, mean_a));
                    _mm256_maskstore_ps(dx + c, mask, _mm256_mul_ps(v, rstd));
                }
            }
        }
    }
}

/* Eight channels over all positions of all rows. */
static void layer_dw(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_layer_norm_bwd_args *a = arg;
    int channels = a->e.channels;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int c = (int)item * DN_LANES;
        __m256i mask = lanes_mask(channels - c);
        double sum_a[DN_LANES] = { 0 }, sum_b[DN_LANES] = { 0 };
        for (int64_t row = 0; row < a->e.n; row++) {
            const float *x = dn_block_at(&a->x, row, 0) + c, *dy = dn_block_at(&a->dy, row, 0) + c;
            const float *stats = dn_block_at(&a->stats, row, 0);
            for (int64_t from = 0; from < a->e.positions; from += CHUNK) {
                int64_t to = from + CHUNK < a->e.positions ? from + CHUNK : a->e.positions;
                __m256 s = _mm256_setzero_ps(), t = s;
                for (int64_t p = from; p < to; p++) {
                    __m256 g = _mm256_maskload_ps(dy + p * channels, mask);
                    __m256 d = _mm256_sub_ps(_mm256_maskload_ps(x + p * channels, mask), _mm256_set1_ps(stats[p * 2]));
                    s = _mm256_add_ps(s, g);
                    t = _mm256_fmadd_ps(g, _mm256_mul_ps(d, _mm256_set1_ps(stats[p * 2 + 1])), t);
                }
                dn_add_double(sum_a, s);
                dn_add_double(sum_b, t);
            }
        }
        for (int i = 0; i < DN_LANES && c + i < channels; i++) {
            if (a->dgamma)
                a->dgamma[c + i] = (float)sum_b[i];
            if (a->dbeta)
                a->dbeta[c + i] = (float)sum_a[i];
        }
    }
}

void dn_layer_norm_bwd_dense(dn_pool *pool, const dn_layer_norm_bwd_args *a)
{
    if (a->dx.base)
        dn_pool_run(pool, layer_dx, (void *)a, a->e.n * a->e.positions, 1 + 4096 / (a->e.channels + 1));
    if (a->dgamma || a->dbeta)
        dn_pool_run(pool, layer_dw, (void *)a, dn_blocks_of(a->e.channels), 1);
}
