/* resize.c - two passes, rows first: they are long, dense and most of the work. See resize.h.
 *
 * Sums are in float, in the order of the input, so that the bits depend on nothing but the pixels. */
#include "resize.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The largest number of inputs that one output of `out` from at most `in_max` has. */
static int taps_max(int in_max, int out)
{
    int support = in_max > out ? (in_max + out - 1) / out : 1;
    return 2 * support + 1;
}

static size_t taps_bytes(int in_max, int out) { return (size_t)out * (2 + (size_t)taps_max(in_max, out)) * 4; }

size_t dn_resizer_bytes(int height, int width, int height_max, int width_max, int channels)
{
    return taps_bytes(height_max, height) + taps_bytes(width_max, width) +
           (size_t)height * (size_t)width_max * (size_t)channels * sizeof(float);
}

static char *taps_init(dn_taps *t, char *at, int in_max, int out)
{
    size_t bytes = taps_bytes(in_max, out);
    *t = (dn_taps){ .first = (int *)at, .count = (int *)at + out, .weight = (float *)at + 2 * out };
    return at + bytes;
}

void dn_resizer_init(dn_resizer *r, void *memory, int height, int width, int height_max, int width_max)
{
    char *at = taps_init(&r->y, memory, height_max, height);
    at = taps_init(&r->x, at, width_max, width);
    r->rows = (float *)at;
}

/* As PIL's precompute_coeffs. Kept while the sizes stay. */
static void taps_set(dn_taps *t, int in, int out)
{
    if (t->in == in && t->out == out)
        return;
    double scale = (double)in / out, support = scale > 1 ? scale : 1;
    *t = (dn_taps){ in, out, taps_max(in, out), t->first, t->count, t->weight };
    for (int i = 0; i < out; i++) {
        double centre = (i + 0.5) * scale, sum = 0;
        int from = (int)(centre - support + 0.5), to = (int)(centre + support + 0.5);
        from = from < 0 ? 0 : from;
        to = to > in ? in : to;
        float *w = t->weight + (size_t)i * (size_t)t->stride;
        for (int pass = 0; pass < 2; pass++) /* sum, then divide by it */
            for (int j = from; j < to; j++) {
                double d = fabs((j + 0.5 - centre) / support), v = d < 1 ? 1 - d : 0;
                sum += pass == 0 ? v : 0;
                w[j - from] = (float)(v / (sum > 0 ? sum : 1));
            }
        t->first[i] = from;
        t->count[i] = to - from;
    }
}

#define ROW_FUNCTIONS(type)                                                                            \
    static void row_copy_##type(float *restrict dst, const type *restrict src, size_t n)               \
    {                                                                                                  \
        for (size_t i = 0; i < n; i++)                                                                 \
            dst[i] = (float)src[i];                                                                    \
    }                                                                                                  \
    static void row_first_##type(float *restrict dst, const type *restrict src, float w, size_t n)     \
    {                                                                                                  \
        for (size_t i = 0; i < n; i++)                                                                 \
            dst[i] = w * (float)src[i];                                                                \
    }                                                                                                  \
    static void row_more_##type(float *restrict dst, const type *restrict src, float w, size_t n)      \
    {                                                                                                  \
        for (size_t i = 0; i < n; i++)                                                                 \
            dst[i] += w * (float)src[i];                                                               \
    }                                                                                                  \
    /* [box height, n] -> [height, n] */                                                               \
    static void columns_##type(float *dst, const type *src, size_t stride, size_t n, const dn_taps *t) \
    {                                                                                                  \
        for (int y = 0; y < t->out; y++, dst += n) {                                                   \
            const float *w = t->weight + (size_t)y * (size_t)t->stride;                                \
            const type *in = src + (size_t)t->first[y] * stride;                                       \
            row_first_##type(dst, in, w[0], n);                                                        \
            for (int k = 1; k < t->count[y]; k++)                                                      \
                row_more_##type(dst, in + (size_t)k * stride, w[k], n);                                \
        }                                                                                              \
    }                                                                                                  \
    static void box_copy_##type(float *dst, const type *src, size_t stride, size_t n, int height)      \
    {                                                                                                  \
        for (int y = 0; y < height; y++)                                                               \
            row_copy_##type(dst + (size_t)y * n, src + (size_t)y * stride, n);                         \
    }
ROW_FUNCTIONS(uint8_t)
ROW_FUNCTIONS(float)

/* [box width, C] -> [width, C] */
static void resize_row(float *dst, const float *src, int channels, const dn_taps *t)
{
    for (int x = 0; x < t->out; x++) {
        const float *w = t->weight + (size_t)x * (size_t)t->stride, *in = src + (size_t)t->first[x] * (size_t)channels;
        for (int c = 0; c < channels; c++) {
            float sum = 0;
            for (int k = 0; k < t->count[x]; k++)
                sum += w[k] * in[k * channels + c];
            *dst++ = sum;
        }
    }
}

void dn_resize(dn_resizer *r, float *dst, int height, int width, const void *src, bool floats, int src_width,
               int channels, const dn_box *box)
{
    size_t stride = (size_t)src_width * (size_t)channels, n = (size_t)box->width * (size_t)channels;
    size_t at = (size_t)box->y * stride + (size_t)box->x * (size_t)channels;
    const uint8_t *bytes = (const uint8_t *)src + (floats ? 0 : at);
    const float *numbers = (const float *)src + (floats ? at : 0);
    bool tall = box->height != height, wide = box->width != width;
    float *rows = wide ? r->rows : dst;
    if (tall)
        taps_set(&r->y, box->height, height);
    if (tall && floats)
        columns_float(rows, numbers, stride, n, &r->y);
    else if (tall)
        columns_uint8_t(rows, bytes, stride, n, &r->y);
    else if (floats)
        box_copy_float(rows, numbers, stride, n, height);
    else
        box_copy_uint8_t(rows, bytes, stride, n, height);
    if (!wide)
        return;
    taps_set(&r->x, box->width, width);
    for (int y = 0; y < height; y++)
        resize_row(dst + (size_t)y * (size_t)width * (size_t)channels, rows + (size_t)y * n, channels, &r->x);
}
