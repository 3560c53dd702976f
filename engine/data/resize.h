/* resize.h - antialiased resampling of a box of an image: the triangle filter, as PIL's BILINEAR. */
#ifndef DN_DATA_RESIZE_H
#define DN_DATA_RESIZE_H

#include <stdbool.h>
#include <stddef.h>

/* The weights of one axis: output i is the sum over t < count[i] of weight[i * stride + t] * input[first[i] + t]. */
typedef struct dn_taps {
    int in, out, stride;
    int *first, *count;
    float *weight;
} dn_taps;

typedef struct dn_resizer {
    dn_taps y, x;
    float *rows; /* [H, box width, C] after the first pass */
} dn_resizer;

typedef struct dn_box {
    int y, x, height, width;
} dn_box;

/* Bytes of memory of a resizer to `height` by `width` from boxes of at most height_max by width_max with `channels`
 * channels. */
size_t dn_resizer_bytes(int height, int width, int height_max, int width_max, int channels);
/* `memory` is of that size, aligned for floats, and the caller's. */
void dn_resizer_init(dn_resizer *r, void *memory, int height, int width, int height_max, int width_max);
/* dst [height,width,C] from the box of src, uint8 or float32 [.., src_width, C]. The box has the source's own numbers
 * when its size is the target's. */
void dn_resize(dn_resizer *r, float *dst, int height, int width, const void *src, bool floats, int src_width,
               int channels, const dn_box *box);

#endif
