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

/* Of eight channels: y = (x - mean) * factor + offset, xhat = (x - mean) * rstd. */
typedef struct lane_factors {
    __m256 mean, rstd, factor, offset;
} lane_factors;

int64_t dn_group_norm_bwd_work(int channels) { return dn_blocks_of(channels) * DN_LANES * 2 * (int64_t)sizeof(double); }

/* The sums of a row: a of every channel, then b. */
static double *sums_of(const dn_group_norm_bwd_args *a, int64_t row) { return (double *)dn_block_at(&a->work, row, 0); }

static const float *stats_of(const dn_group_norm_bwd_args *a, int64_t row, int channel)
{
    return dn_block_at(&a->stats, row, 0) + (int64_t)channel / (a->e.channels / a->groups) * 2;
}

static float weight_of(const dn_group_norm_bwd_args *a, int64_t row, int channel)
{
    return dn_vector_at(&a->gamma, 0, channel, 1) * dn_vector_at(&a->scale, row, channel, 1);
}

static lane_factors factors_of(const dn_group_norm_bwd_args *a, int64_t row, int channel)
{
    float mean[DN_LANES] = { 0 }, rstd[DN_LANES] = { 0 }, factor[DN_LANES] = { 0 }, offset[DN_LANES] = { 0 };
    for (int i = 0; i < DN_LANES && channel + i < a->e.channels; i++) {
        int c = channel + i;
        const float *s = stats_of(a, row, c);
        float scale = dn_vector_at(&a->scale, row, c, 1), shift = dn_vector_at(&a->shift, row, c, 0);
        mean[i] = s[0];
        rstd[i] = s[1];
        factor[i] = s[1] * dn_vector_at(&a->gamma, 0, c, 1) * scale;
        offset[i] = fmaf(dn_vector_at(&a->beta, 0, c, 0), scale, shift);
    }
    return (lane_factors){ _mm256_loadu_ps(mean), _mm256_loadu_ps(rstd), _mm256_loadu_ps(factor),
                           _mm256_loadu_ps(offset) };
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

static inline fours load4(const float *x)
{
    return (fours){ _mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24) };
}

static inline void store4(float *y, fours v)
{
    _mm256_storeu_ps(y, v.a);
    _mm256_storeu_ps(y + 8, v.b);
    _mm256_storeu_ps(y + 16, v.c);
    _mm256_storeu_ps(y + 24, v.d);
}

static inline fours same4(__m256 v) { return (fours){ v, v, v, v }; }

static inline __m256 sum4(fours v) { return _mm256_add_ps(_mm256_add_ps(v.a, v.b), _mm256_add_ps(v.c, v.d)); }

/* sum_a, sum_b += those of positions [from, to); g goes where `g` points, if that is anywhere. */
static inline __attribute__((always_inline)) void chunk_sums(const lane_factors *f, const float *x, const float *dy,
                                                             float *g_out, int64_t n, bool silu, double *sum_a,
                                                             double *sum_b)
{
    fours a = fours_set(0), b = fours_set(0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        fours d = fours_sub(load4(x + i * DN_LANES), same4(f->mean)), g = load4(dy + i * DN_LANES);
        if (silu)
            g = through_silu(fours_fma(d, same4(f->factor), same4(f->offset)), g);
        if (g_out)
            store4(g_out + i * DN_LANES, g);
        a = fours_add(a, g);
        b = fours_fma(g, fours_mul(d, same4(f->rstd)), b);
    }
    for (; i < n; i++) {
        __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i * DN_LANES), f->mean), g = _mm256_loadu_ps(dy + i * DN_LANES);
        if (silu)
            g = through_silu_one(_mm256_fmadd_ps(d, f->factor, f->offset), g);
        if (g_out)
            _mm256_storeu_ps(g_out + i * DN_LANES, g);
        a.a = _mm256_add_ps(a.a, g);
        b.a = _mm256_fmadd_ps(g, _mm256_mul_ps(d, f->rstd), b.a);
    }
    dn_add_double(sum_a, sum4(a));
    dn_add_double(sum_b, sum4(b));
}

static void block_sums(const dn_group_norm_bwd_args *a, int64_t row, int block)
{
    double *sum_a = sums_of(a, row) + block * DN_LANES, *sum_b = sum_a + dn_blocks_of(a->e.channels) * DN_LANES;
    lane_factors f = factors_of(a, row, block * DN_LANES);
    for (int i = 0; i < DN_LANES; i++)
        sum_a[i] = sum_b[i] = 0;
    for (int64_t from = 0; from < a->e.positions; from += CHUNK) {
        int64_t n = a->e.positions - from < CHUNK ? a->e.positions - from : CHUNK, at = from * DN_LANES;
        const float *x = dn_block_at(&a->x, row, block) + at, *dy = dn_block_at(&a->dy, row, block) + at;
        if (!a->silu)
            chunk_sums(&f, x, dy, NULL, n, false, sum_a, sum_b);
        else if (!a->dx.base)
            chunk_sums(&f, x, dy, NULL, n, true, sum_a, sum_b);
        else
            chunk_sums(&f, x, dy, dn_block_at(&a->dx, row, block) + at, n, true, sum_a, sum_b);
    }
}

/* dx = g * by_g + (x - mean) * by_x + constant (+ add) */
static void write_block(const dn_group_norm_bwd_args *a, int64_t row, int block, const float *by_g, const float *by_x,
                        const float *constant)
{
    lane_factors f = factors_of(a, row, block * DN_LANES);
    __m256 kg = _mm256_loadu_ps(by_g), kx = _mm256_loadu_ps(by_x), k = _mm256_loadu_ps(constant);
    const float *x = dn_block_at(&a->x, row, block), *add = a->add.base ? dn_block_at(&a->add, row, block) : NULL;
    const float *g = dn_block_at(a->silu ? &a->dx : &a->dy, row, block);
    float *dx = dn_block_at(&a->dx, row, block);
    for (int64_t i = 0; i < a->e.positions * DN_LANES; i += DN_LANES) {
        __m256 v = _mm256_fmadd_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), f.mean), kx, k);
        v = _mm256_fmadd_ps(_mm256_loadu_ps(g + i), kg, v);
        if (add)
            v = _mm256_add_ps(_mm256_loadu_ps(add + i), v);
        _mm256_storeu_ps(dx + i, v);
    }
}

static void write_unit(const unit *u)
{
    const dn_group_norm_bwd_args *a = u->a;
    float by_g[DN_NORM_CHANNELS_MAX + DN_LANES], by_x[DN_NORM_CHANNELS_MAX + DN_LANES];
    float constant[DN_NORM_CHANNELS_MAX + DN_LANES];
    int group = a->e.channels / a->groups;
    double n = (double)a->e.positions * group;
    const double *sum_a = sums_of(a, u->row), *sum_b = sum_a + dn_blocks_of(a->e.channels) * DN_LANES;
    for (int from = 0; from < u->channels; from += group) {
        double mean_a = 0, mean_b = 0, rstd = stats_of(a, u->row, u->channel + from)[1];
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

/* The gradients by a row's scale and shift. */
static void write_modulation(const unit *u)
{
    const dn_group_norm_bwd_args *a = u->a;
    const double *sum_a = sums_of(a, u->row), *sum_b = sum_a + dn_blocks_of(a->e.channels) * DN_LANES;
    float *dscale = a->dscale.base ? dn_block_at(&a->dscale, u->row, 0) : NULL;
    float *dshift = a->dshift.base ? dn_block_at(&a->dshift, u->row, 0) : NULL;
    for (int c = u->channel; c < u->channel + u->channels; c++) {
        if (dscale)
            dscale[c] = (float)(dn_vector_at(&a->gamma, 0, c, 1) * sum_b[c] + dn_vector_at(&a->beta, 0, c, 0) * sum_a[c]);
        if (dshift)
            dshift[c] = (float)sum_a[c];
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
        write_modulation(&u);
    }
}

static void sum_rows(const dn_group_norm_bwd_args *a)
{
    for (int c = 0; c < a->e.channels; c++) {
        double dgamma = 0, dbeta = 0;
        for (int64_t row = 0; row < a->e.n; row++) {
            const double *sum = sums_of(a, row) + c;
            double scale = dn_vector_at(&a->scale, row, c, 1);
            dbeta += scale * sum[0];
            dgamma += scale * sum[dn_blocks_of(a->e.channels) * DN_LANES];
        }
        if (a->dgamma)
            a->dgamma[c] = (float)dgamma;
        if (a->dbeta)
            a->dbeta[c] = (float)dbeta;
    }
}

void dn_group_norm_bwd_blocked(dn_pool *pool, const dn_group_norm_bwd_args *a)
{
    int size = dn_norm_unit_channels(a->e.channels, a->groups), units = (a->e.channels + size - 1) / size;
    int64_t elements = a->e.positions * size;
    dn_pool_run(pool, do_units, (void *)a, (int64_t)a->e.n * units, 1 + 4096 / (elements + 1));
    if (a->dgamma || a->dbeta)
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
