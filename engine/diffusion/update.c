/* update.c - executes one entry of a table on one sample.
 *
 * Two passes. The first makes `out` (guidance, rescale) and x0 (clipped), whole-sample reductions included; the second
 * makes x' and the history block by block, each block computed on the side before anything of it is stored. Sums over a
 * sample run in a fixed order of lanes in double, so the bits depend on nothing but the sample. */
#include "update.h"
#include "fmath.h"
#include <string.h>

enum { BLOCK = 1024, LANES = 8 };

/* How many elements of a row's output lie together before a second half of channels is skipped. */
static int64_t run_length(const dn_slot *s) { return s->out_channels == s->channels ? s->n : s->channels; }

/* out_u + w * (out_c - out_u) + g * grad, first half of the channels only, into scratch; the row itself if that is it.
 */
static const float *combine(const dn_slot *s, const dn_entry *e)
{
    const float *c = s->out[DN_ROW_COND], *u = s->out[DN_ROW_UNCOND], *grad = s->out[DN_ROW_GRAD];
    bool guided = e->rows & 1 << DN_ROW_UNCOND, pushed = e->rows & 1 << DN_ROW_GRAD;
    if (!guided && !pushed && s->out_channels == s->channels)
        return c;
    int64_t run = run_length(s), stride = run == s->n ? run : s->out_channels;
    for (int64_t p = 0, i = 0; i < s->n; p += stride, i += run)
        for (int64_t k = 0; k < run; k++)
            s->scratch[i + k] = guided ? u[p + k] + e->w * (c[p + k] - u[p + k]) : c[p + k];
    for (int64_t i = 0; pushed && i < s->n; i++)
        s->scratch[i] += e->g * grad[i];
    return s->scratch;
}

static double sum_lanes(const double *lane)
{
    double total = 0;
    for (int k = 0; k < LANES; k++)
        total += lane[k];
    return total;
}

/* The deviation of n numbers as torch.std gives it (n - 1 below); element i is at v[i / run * stride + i % run]. */
static double deviation(const float *v, int64_t n, int64_t run, int64_t stride)
{
    double sum[LANES] = { 0 }, square[LANES] = { 0 };
    for (int64_t p = 0, i = 0; i < n; p += stride)
        for (int64_t k = 0; k < run; k++, i++)
            sum[i % LANES] += v[p + k];
    double mean = sum_lanes(sum) / (double)n;
    for (int64_t p = 0, i = 0; i < n; p += stride)
        for (int64_t k = 0; k < run; k++, i++)
            square[i % LANES] += (v[p + k] - mean) * (v[p + k] - mean);
    return sqrt(sum_lanes(square) / (double)(n - 1));
}

/* Of a guided entry only. Lin et al. 2023, section 3.4: bring out's deviation back to the conditional row's, by the
 * part e->rescale. */
static void rescale(const dn_slot *s, const dn_entry *e)
{
    double from = deviation(s->scratch, s->n, s->n, s->n);
    double to = deviation(s->out[DN_ROW_COND], s->n, s->channels, s->out_channels);
    if (!(from > 0))
        return;
    float k = (float)(e->rescale * (to / from) + (1 - e->rescale));
    for (int64_t i = 0; i < s->n; i++)
        s->scratch[i] *= k;
}

/* Bits of |v|: ordered as |v| is, NaN last. */
static uint32_t magnitude(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits & 0x7fffffff;
}

/* The k-th smallest |v|, 0 <= k < n, by three passes over digits of 11, 11 and 9 bits. */
static float select_magnitude(const float *v, int64_t n, int64_t k)
{
    static const int shift[3] = { 20, 9, 0 }, width[3] = { 11, 11, 9 };
    uint32_t prefix = 0, known = 0;
    for (int pass = 0; pass < 3; pass++) {
        int64_t count[1 << 11] = { 0 };
        uint32_t mask = (1u << width[pass]) - 1, digit = 0;
        for (int64_t i = 0; i < n; i++) {
            uint32_t m = magnitude(v[i]);
            if ((m & known) == prefix)
                count[m >> shift[pass] & mask]++;
        }
        while (k >= count[digit])
            k -= count[digit++];
        prefix |= digit << shift[pass];
        known |= mask << shift[pass];
    }
    float result;
    memcpy(&result, &prefix, 4);
    return result;
}

/* torch.quantile of |v|: linear between ranks, the rank itself in fp32. */
static float quantile_magnitude(const float *v, int64_t n, float q)
{
    float rank = q * (float)(n - 1), w = rank - floorf(rank);
    int64_t low = (int64_t)rank, high = low + (w > 0 && low < n - 1);
    float a = select_magnitude(v, n, low), b = high > low ? select_magnitude(v, n, high) : a;
    return w < 0.5f ? a + w * (b - a) : b - (b - a) * (1 - w);
}

static void clamp(float *v, int64_t n, float limit)
{
    for (int64_t i = 0; i < n; i++)
        v[i] = v[i] < -limit ? -limit : v[i] > limit ? limit : v[i];
}

static void predict(const dn_slot *s, const dn_entry *e, const float *out)
{
    for (int64_t i = 0; i < s->n; i++)
        s->x0[i] = e->c_s * (e->c_x * s->x[i] + e->c_o * out[i]);
    if (e->flags & DN_CLIP)
        clamp(s->x0, s->n, e->clip);
    if (e->flags & DN_THRESHOLD) {
        float q = quantile_magnitude(s->x0, s->n, e->ratio), limit = q < 1 ? 1 : q;
        if (limit > e->clip)
            limit = e->clip;
        clamp(s->x0, s->n, limit);
        for (int64_t i = 0; i < s->n; i++)
            s->x0[i] /= limit;
    }
}

/* dst = sum of the terms whose coefficient is not 0, in the order of the basis. */
static void mix(float *restrict dst, const dn_linear *l, const float *const basis[DN_BASIS], int64_t from, int n)
{
    bool first = true;
    for (int b = 0; b < DN_BASIS; b++) {
        float k = l->a[b];
        if (k == 0)
            continue;
        const float *restrict v = basis[b] + from;
        if (first)
            for (int i = 0; i < n; i++)
                dst[i] = k * v[i];
        else
            for (int i = 0; i < n; i++)
                dst[i] += k * v[i];
        first = false;
    }
    if (first)
        memset(dst, 0, (size_t)n * sizeof *dst);
}

/* The noise whose deviation the network's second half of channels predicts. */
static void add_learned_noise(float *dst, const dn_slot *s, const dn_entry *e, int64_t from, int n)
{
    for (int j = 0; j < n; j++) {
        int64_t i = from + j, pixel = i / s->channels, channel = i % s->channels;
        float v = s->out[DN_ROW_COND][pixel * s->out_channels + s->channels + channel], deviate;
        if (e->flags & DN_SIGMA_RAW)
            deviate = sqrtf(v);
        else
            deviate = dn_f_exp(0.5f * (e->lv_min + (e->lv_max - e->lv_min) * ((v + 1) * 0.5f)));
        dst[j] += e->z_scale * deviate * s->z[i];
    }
}

static int64_t count_non_finite(const float *v, int64_t n)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad += (dn_f_bits(v[i]) & 0x7f800000) == 0x7f800000;
    return bad;
}

static int64_t count_non_finite_outputs(const dn_slot *s, const dn_entry *e)
{
    int64_t bad = 0;
    for (int k = 0; k < DN_ROWS_MAX; k++)
        if (e->rows & 1 << k)
            bad += count_non_finite(s->out[k], k == DN_ROW_GRAD ? s->n : s->n / s->channels * s->out_channels);
    return bad;
}

int64_t dn_update(const dn_slot *s, const dn_entry *e)
{
    const float *basis[DN_BASIS] = { [DN_B_X] = s->x, [DN_B_X0] = s->x0, [DN_B_Z] = s->z, [DN_B_Z2] = s->z2 };
    for (int k = 0; k < DN_HISTORY_MAX; k++)
        basis[DN_B_H0 + k] = s->h[k];
    int64_t bad = 0;
    if (!(e->flags & DN_NO_FORWARD)) {
        bad = count_non_finite_outputs(s, e);
        basis[DN_B_OUT] = combine(s, e);
        if (e->flags & DN_RESCALE)
            rescale(s, e);
        predict(s, e, basis[DN_B_OUT]);
    }
    bool learned = e->flags & (DN_SIGMA_LEARNED | DN_SIGMA_RAW) && e->z_scale != 0;
    for (int64_t from = 0; from < s->n; from += BLOCK) {
        float y[BLOCK], h[DN_WRITES_MAX][BLOCK];
        int n = s->n - from < BLOCK ? (int)(s->n - from) : BLOCK;
        mix(y, &e->x, basis, from, n);
        if (learned)
            add_learned_noise(y, s, e, from, n);
        for (int k = 0; k < e->n_writes; k++)
            mix(h[k], &e->writes[k], basis, from, n);
        for (int k = 0; k < e->n_writes; k++)
            memcpy(s->h[e->write[k]] + from, h[k], (size_t)n * sizeof(float));
        memcpy(s->x + from, y, (size_t)n * sizeof(float));
        bad += count_non_finite(y, n);
    }
    return bad;
}
