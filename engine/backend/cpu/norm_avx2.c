/* norm_avx2.c - see norm.h.
 *
 * A unit of work is the smallest run of whole blocks that holds whole groups: one block for groups of 1, 2, 4 or 8
 * channels, several for larger ones, three for groups of 12, all that is left at the ragged end of a row. A unit stays
 * in cache over its three passes: sums per channel, squares about the group's mean per channel, output. */
#include "norm.h"
#include "elementwise_fours.h"
#include "elementwise_lanes.h"
#include "norm_unit.h"
#include <math.h>

enum { CHUNK = 256 /* positions summed in float before the sum goes on in double */ };

typedef struct unit {
    const dn_group_norm_args *a;
    int64_t row;
    int channel, channels; /* the first one, a multiple of 8, and how many (the last block may be ragged) */
} unit;

static const float *block_in(const unit *u, int c)
{
    return dn_block_at(&u->a->x, u->row, (u->channel + c) / DN_LANES);
}

/* sum[lane] = sum over positions of x, or of (x - centre)^2. */
static inline __attribute__((always_inline)) void block_sums(double sum[DN_LANES], const float *x, int64_t n,
                                                             const __m256 centre, bool squares)
{
    for (int i = 0; i < DN_LANES; i++)
        sum[i] = 0;
    for (int64_t from = 0; from < n; from += CHUNK) {
        int64_t to = from + CHUNK < n ? from + CHUNK : n, p = from;
        __m256 s[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
        for (; p + 4 <= to; p += 4)
            for (int i = 0; i < 4; i++) {
                __m256 v = _mm256_loadu_ps(x + (p + i) * DN_LANES);
                __m256 d = _mm256_sub_ps(v, centre);
                s[i] = squares ? _mm256_fmadd_ps(d, d, s[i]) : _mm256_add_ps(s[i], v);
            }
        for (; p < to; p++) {
            __m256 v = _mm256_loadu_ps(x + p * DN_LANES);
            __m256 d = _mm256_sub_ps(v, centre);
            s[0] = squares ? _mm256_fmadd_ps(d, d, s[0]) : _mm256_add_ps(s[0], v);
        }
        dn_add_double(sum, _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    }
}

/* centre[c] = mean of c's group. Zero in padded lanes. */
static void find_centres(const unit *u, float *centre)
{
    const dn_group_norm_args *a = u->a;
    int group = a->e.channels / a->groups;
    double sum[DN_NORM_CHANNELS_MAX + DN_LANES];
    for (int c = 0; c < u->channels; c += DN_LANES)
        block_sums(sum + c, block_in(u, c), a->e.positions, _mm256_setzero_ps(), false);
    for (int g = 0; g * group < u->channels; g++) {
        double total = 0;
        for (int c = g * group; c < (g + 1) * group; c++)
            total += sum[c];
        for (int c = g * group; c < (g + 1) * group; c++)
            centre[c] = (float)(total / ((double)a->e.positions * group));
    }
    for (int c = u->channels; c % DN_LANES; c++)
        centre[c] = 0;
}

/* rstd[c] of c's group; anything in padded lanes. */
static void find_deviations(const unit *u, const float *centre, float *rstd)
{
    const dn_group_norm_args *a = u->a;
    int group = a->e.channels / a->groups;
    double sum[DN_NORM_CHANNELS_MAX + DN_LANES];
    for (int c = 0; c < u->channels; c += DN_LANES)
        block_sums(sum + c, block_in(u, c), a->e.positions, _mm256_loadu_ps(centre + c), true);
    for (int g = 0; g * group < u->channels; g++) {
        double total = 0;
        for (int c = g * group; c < (g + 1) * group; c++)
            total += sum[c];
        double deviation = sqrt(total / ((double)a->e.positions * group) + (double)a->eps);
        for (int c = g * group; c < (g + 1) * group; c++)
            rstd[c] = (float)(1 / deviation);
        if (a->stats.base) {
            float *s = dn_block_at(&a->stats, u->row, 0) + ((int64_t)u->channel / group + g) * 2;
            s[0] = centre[g * group];
            s[1] = rstd[g * group];
        }
    }
}

/* n positions of one block. */
typedef void (*write_fn)(float *y, const float *x, int64_t n, const dn_norm_lanes *k);

#define WRITE(name, how)                                                                                         \
    static void write_##name(float *y, const float *x, int64_t n, const dn_norm_lanes *k)                        \
    {                                                                                                            \
        for (int64_t i = 0; i < n * DN_LANES; i += DN_LANES)                                                     \
            _mm256_storeu_ps(y + i, dn_norm_apply(_mm256_loadu_ps(x + i), k, how));                              \
    }                                                                                                            \
    static void write_##name##_silu(float *y, const float *x, int64_t n, const dn_norm_lanes *k)                 \
    {                                                                                                            \
        int64_t i = 0;                                                                                           \
        for (; i + 4 * DN_LANES <= n * DN_LANES; i += 4 * DN_LANES)                                              \
            fours_store(y + i, dn_w_silu(fours_norm(fours_load(x + i), k, how)));                                \
        for (; i < n * DN_LANES; i += DN_LANES)                                                                  \
            _mm256_storeu_ps(y + i, dn_v_silu(dn_norm_apply(_mm256_loadu_ps(x + i), k, how)));                   \
    }
WRITE(bare, DN_NORM_BARE)
WRITE(scaled, DN_NORM_SCALED)
WRITE(shifted, DN_NORM_SHIFTED)
WRITE(both, DN_NORM_SCALED_SHIFTED)

static const write_fn writes[][2] = {
    [DN_NORM_BARE] = { write_bare, write_bare_silu },
    [DN_NORM_SCALED] = { write_scaled, write_scaled_silu },
    [DN_NORM_SHIFTED] = { write_shifted, write_shifted_silu },
    [DN_NORM_SCALED_SHIFTED] = { write_both, write_both_silu },
};

static void norm_unit(const unit *u)
{
    const dn_group_norm_args *a = u->a;
    float centre[DN_NORM_CHANNELS_MAX + DN_LANES], rstd[DN_NORM_CHANNELS_MAX + DN_LANES];
    find_centres(u, centre);
    find_deviations(u, centre, rstd);
    write_fn write = writes[dn_norm_modulation_of(&a->scale, &a->shift)][a->silu];
    for (int c = 0; a->y.base && c < u->channels; c += DN_LANES) {
        int channel = u->channel + c;
        const dn_norm_vectors v = { &a->gamma, &a->beta, &a->scale, &a->shift };
        dn_norm_lanes k = dn_norm_lanes_of(&v, u->row, channel, a->e.channels, centre + c, rstd + c);
        write(dn_block_at(&a->y, u->row, channel / DN_LANES), block_in(u, c), a->e.positions, &k);
    }
}

static void norm_units(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_group_norm_args *a = arg;
    (void)thread;
    int size = dn_norm_unit_channels(a->e.channels, a->groups), units = (a->e.channels + size - 1) / size;
    for (int64_t item = first; item < last; item++) {
        int channel = (int)(item % units) * size, left = a->e.channels - channel;
        norm_unit(&(unit){ a, item / units, channel, left < size ? left : size });
    }
}

void dn_group_norm_blocked(dn_pool *pool, const dn_group_norm_args *a)
{
    int size = dn_norm_unit_channels(a->e.channels, a->groups), units = (a->e.channels + size - 1) / size;
    int64_t elements = a->e.positions * size;
    dn_pool_run(pool, norm_units, (void *)a, (int64_t)a->e.n * units, 1 + 4096 / (elements + 1));
}

/* Sum over one position's channels of x, or of (x - centre)^2. */
static float position_sum(const float *x, int channels, float centre, bool squares)
{
    __m256 s = _mm256_setzero_ps(), m = _mm256_set1_ps(centre);
    for (int c = 0; c < channels; c += DN_LANES) {
        __m256i mask = lanes_mask(channels - c);
        __m256 v = _mm256_maskload_ps(x + c, mask);
        __m256 d = _mm256_and_ps(_mm256_sub_ps(v, m), _mm256_castsi256_ps(mask));
        s = squares ? _mm256_fmadd_ps(d, d, s) : _mm256_add_ps(s, v);
    }
    return lanes_sum(s);
}

static void layer_norm(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_layer_norm_args *a = arg;
    int channels = a->e.channels;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        int64_t row = item / a->e.positions, p = item % a->e.positions;
        const float *x = dn_block_at(&a->x, row, 0) + p * channels;
        float *y = dn_block_at(&a->y, row, 0) + p * channels;
        float mean = position_sum(x, channels, 0, false) / (float)channels;
        float rstd = 1 / sqrtf(position_sum(x, channels, mean, true) / (float)channels + a->eps);
        if (a->stats.base) {
            float *s = dn_block_at(&a->stats, row, 0) + p * 2;
            s[0] = mean;
            s[1] = rstd;
        }
        for (int c = 0; c < channels; c += DN_LANES) {
            __m256i mask = lanes_mask(channels - c);
            __m256 d = _mm256_sub_ps(_mm256_maskload_ps(x + c, mask), _mm256_set1_ps(mean));
            __m256 v = _mm256_mul_ps(d, _mm256_set1_ps(rstd));
            if (a->gamma.data)
                v = _mm256_mul_ps(v, _mm256_maskload_ps(a->gamma.data + c, mask));
            if (a->beta.data)
                v = _mm256_add_ps(v, _mm256_maskload_ps(a->beta.data + c, mask));
            _mm256_maskstore_ps(y + c, mask, v);
        }
    }
}

void dn_layer_norm_dense(dn_pool *pool, const dn_layer_norm_args *a)
{
    dn_pool_run(pool, layer_norm, (void *)a, a->e.n * a->e.positions, 1 + 4096 / (a->e.channels + 1));
}
