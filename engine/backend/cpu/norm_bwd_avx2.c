/* norm_bwd_avx2.c - see norm_bwd.h.
 *
 * With g = dL/d(silu's argument), a = sum of g and b = sum of g * xhat over the positions of a channel are all that any
 * gradient needs: dshift = a, dscale = gamma*b + beta*a, dbeta and dgamma their sums over the rows (times scale), and
 *     dx = rstd * (w*g - mean(w*a) - xhat * mean(w*b)), w = gamma * scale, means over the group.
 * First sweep: a and b of every channel, g into dx if silu makes it dear. Second: dx. Units as in norm_avx2.c. */
#include "norm_bwd.h"
#include "elementwise_fours.h"
#include "elementwise_lanes.h"
#include "norm_unit.h"
#include <math.h>

enum { CHUNK = 256 /* positions summed in float before the sum goes on in double */ };

typedef struct unit {
    const dn_group_norm_bwd_args *a;
    int64_t row;
    int channel, channels;
} unit;

int64_t dn_group_norm_bwd_work(int channels) { return dn_blocks_of(channels) * DN_LANES * 3 * (int64_t)sizeof(double); }

enum sum { SUM_A, SUM_B, SUM_DX };

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

static float weight_of(const dn_group_norm_bwd_args *a, int64_t row, int channel)
{
    return dn_vector_at(&a->gamma, 0, channel, 1) * dn_vector_at(&a->scale, row, channel, 1);
}

/* Eight channels: mean and deviation, and the forward pass's way to silu's argument. */
typedef struct block_lanes {
    __m256 mean, rstd;
    dn_norm_lanes forward;
} block_lanes;

static block_lanes lanes_of(const dn_group_norm_bwd_args *a, int64_t row, int channel)
{
    float mean[DN_LANES] = { 0 }, rstd[DN_LANES] = { 0 }, forward_mean[DN_LANES] = { 0 }, forward_rstd[DN_LANES] = { 0 };
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

/* sum_a, sum_b += those of n positions; g goes where g_out points, if that is anywhere. */
typedef void (*sums_fn)(const block_lanes *k, const float *x, const float *dy, float *g_out, int64_t n, double *sum_a,
                        double *sum_b);

static inline __attribute__((always_inline)) void chunk_sums(const block_lanes *k, const float *x, const float *dy,
                                                             float *g_out, int64_t n, const bool silu,
                                                             const enum dn_norm_modulation how, double *sum_a,
                                                             double *sum_b)
{
    fours a = fours_set(0), b = fours_set(0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        fours v = fours_load(x + i * DN_LANES), g = fours_load(dy + i * DN_LANES);
        if (silu)
            g = through_silu(fours_norm(v, &k->forward, how), g);
        if (silu && g_out)
            fours_store(g_out + i * DN_LANES, g);
        a = fours_add(a, g);
        b = fours_fma(g, fours_mul(fours_sub(v, same4(k->mean)), same4(k->rstd)), b);
    }
    for (; i < n; i++) {
        __m256 v = _mm256_loadu_ps(x + i * DN_LANES), g = _mm256_loadu_ps(dy + i * DN_LANES);
        if (silu)
            g = through_silu_one(dn_norm_apply(v, &k->forward, how), g);
        if (silu && g_out)
            _mm256_storeu_ps(g_out + i * DN_LANES, g);
        a.a = _mm256_add_ps(a.a, g);
        b.a = _mm256_fmadd_ps(g, _mm256_mul_ps(_mm256_sub_ps(v, k->mean), k->rstd), b.a);
    }
    dn_add_double(sum_a, sum4(a));
    dn_add_double(sum_b, sum4(b));
}

#define SUMS(name, silu, how)                                                                                 \
    static void sums_##name(const block_lanes *k, const float *x, const float *dy, float *g_out, int64_t n,   \
                            double *sum_a, double *sum_b)                                                     \
    {                                                                                                         \
        chunk_sums(k, x, dy, g_out, n, silu, how, sum_a, sum_b);                                              \
    }
SUMS(plain, false, DN_NORM_BARE)
SUMS(bare, true, DN_NORM_BARE)
SUMS(scaled, true, DN_NORM_SCALED)
SUMS(shifted, true, DN_NORM_SHIFTED)
SUMS(both, true, DN_NORM_SCALED_SHIFTED)

static const sums_fn silu_sums[] = { [DN_NORM_BARE] = sums_bare, [DN_NORM_SCALED] = sums_scaled,
                                     [DN_NORM_SHIFTED] = sums_shifted, [DN_NORM_SCALED_SHIFTED] = sums_both };

static void block_sums(const dn_group_norm_bwd_args *a, int64_t row, int block)
{
    double *sum_a = sums_of(a, row, SUM_A) + block * DN_LANES, *sum_b = sums_of(a, row, SUM_B) + block * DN_LANES;
    block_lanes k = lanes_of(a, row, block * DN_LANES);
    sums_fn sums = a->silu ? silu_sums[dn_norm_modulation_of(&a->scale, &a->shift)] : sums_plain;
    for (int i = 0; i < DN_LANES; i++)
        sum_a[i] = sum_b[i] = 0;
    for (int64_t from = 0; from < a->e.positions; from += CHUNK) {
        int64_t n = a->e.positions - from < CHUNK ? a->e.positions - from : CHUNK, at = from * DN_LANES;
        float *g = a->dx.base ? dn_block_at(&a->dx, row, block) + at : NULL;
        sums(&k, dn_block_at(&a->x, row, block) + at, dn_block_at(&a->dy, row, block) + at, g, n, sum_a, sum_b);
    }
}

/* dx = g * by_g + (x - mean) * by_x + constant (+ add) of eight channels */
typedef struct writer {
    float *dx;
    const float *x, *g, *add; /* add NULL: nothing to add */
    __m256 mean, by_g, by_x, constant;
} writer;

static inline __attribute__((always_inline)) __m256 write_one(const writer *w, int64_t i, const bool add)
{
    __m256 v = _mm256_fmadd_ps(_mm256_sub_ps(_mm256_loadu_ps(w->x + i), w->mean), w->by_x, w->constant);
    v = _mm256_fmadd_ps(_mm256_loadu_ps(w->g + i), w->by_g, v);
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

static void write_block(const dn_group_norm_bwd_args *a, int64_t row, int block, const float *by_g, const float *by_x,
                        const float *constant)
{
    double *sum = sums_of(a, row, SUM_DX) + block * DN_LANES;
    writer w = { .dx = dn_block_at(&a->dx, row, block),
                 .x = dn_block_at(&a->x, row, block),
                 .g = dn_block_at(a->silu ? &a->dx : &a->dy, row, block),
                 .add = a->add.base ? dn_block_at(&a->add, row, block) : NULL,
                 .mean = lanes_of(a, row, block * DN_LANES).mean,
                 .by_g = _mm256_loadu_ps(by_g),
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
    float by_g[DN_NORM_CHANNELS_MAX + DN_LANES], by_x[DN_NORM_CHANNELS_MAX + DN_LANES];
    float constant[DN_NORM_CHANNELS_MAX + DN_LANES];
    int group = a->e.channels / a->groups;
    double n = (double)a->e.positions * group;
    const double *sum_a = sums_of(a, u->row, SUM_A), *sum_b = sums_of(a, u->row, SUM_B);
    for (int from = 0; from < u->channels; from += group) {
        double mean_a = 0, mean_b = 0, rstd = stats_of(a, &a->stats, u->row, u->channel + from)[1];
        for (int c = u->channel + from; c < u->channel + from + group; c++) {
            mean_a += weight_of(a, u->row, c) * sum_a[c] / n;
            mean_b += weight_of(a, u->row, c) * sum_b[c] / n;
        }
        for (int c = from; c < from + group; c++) {
            by_g[c] = (float)(rstd * weight_of(a, u->row, u->channel + c));
            by_x[c] = (float)(-rstd * rstd * mean_b);
            constant[c] = (float)(-rstd * mean_a);
        }
    }
    for (int c = u->channels; c % DN_LANES; c++)
        by_g[c] = by_x[c] = constant[c] = 0;
    for (int c = 0; c < u->channels; c += DN_LANES)
        write_block(a, u->row, (u->channel + c) / DN_LANES, by_g + c, by_x + c, constant + c);
}

/* The gradients by a row's scale and shift, and by what was broadcast over the positions of x. */
static void write_vectors(const unit *u)
{
    const dn_group_norm_bwd_args *a = u->a;
    const double *sum_a = sums_of(a, u->row, SUM_A), *sum_b = sums_of(a, u->row, SUM_B);
    float *dscale = a->dscale.base ? dn_block_at(&a->dscale, u->row, 0) : NULL;
    float *dshift = a->dshift.base ? dn_block_at(&a->dshift, u->row, 0) : NULL;
    for (int c = u->channel; c < u->channel + u->channels; c++) {
        if (dscale)
            dscale[c] = (float)(dn_vector_at(&a->gamma, 0, c, 1) * sum_b[c] + dn_vector_at(&a->beta, 0, c, 0) * sum_a[c]);
        if (dshift)
            dshift[c] = (float)sum_a[c];
        if (a->dx_sums.base)
            dn_block_at(&a->dx_sums, u->row, 0)[c] = (float)sums_of(a, u->row, SUM_DX)[c];
    }
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

static void sum_rows(const dn_group_norm_bwd_args *a)
{
    for (int c = 0; c < a->e.channels; c++) {
        double dgamma = 0, dbeta = 0, dx = 0;
        for (int64_t row = 0; row < a->e.n; row++) {
            double scale = dn_vector_at(&a->scale, row, c, 1);
            dbeta += scale * sums_of(a, row, SUM_A)[c];
            dgamma += scale * sums_of(a, row, SUM_B)[c];
            dx += a->dx_sum ? sums_of(a, row, SUM_DX)[c] : 0;
        }
        if (a->dgamma)
            a->dgamma[c] = (float)dgamma;
        if (a->dbeta)
            a->dbeta[c] = (float)dbeta;
        if (a->dx_sum)
            a->dx_sum[c] = (float)dx;
    }
}

void dn_group_norm_bwd_blocked(dn_pool *pool, const dn_group_norm_bwd_args *a)
{
    int size = dn_norm_unit_channels(a->e.channels, a->groups), units = (a->e.channels + size - 1) / size;
    int64_t elements = a->e.positions * size;
    dn_pool_run(pool, do_units, (void *)a, (int64_t)a->e.n * units, 1 + 4096 / (elements + 1));
    if (a->dgamma || a->dbeta || a->dx_sum)
        sum_rows(a);
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
