/* image.h - float samples to bytes that people and programs read: PNG, npy, safetensors.
 *
 * Everything returned is malloc'ed and the caller's. */
#ifndef DENOISED_IMAGE_H
#define DENOISED_IMAGE_H

#include <denoised/error.h>
#include <stddef.h>
#include <stdint.h>

/* [H,W,C] floats in [lo,hi] -> 8 bits: rint(255 * clamp((v-lo)/(hi-lo), 0, 1)), half to even, as diffusers. */
void dn_image_to_u8(uint8_t *dst, const float *src, int64_t n, double lo, double hi);
/* PNG of 8-bit pixels [H,W,C], C = 1 (grey), 2 (grey, alpha), 3 or 4. Other channel counts: DN_E_IMPOSSIBLE. */
int dn_png_encode(uint8_t **out, size_t *out_len, const uint8_t *pixels, int height, int width, int channels, dn_error *err);
/* Tile n pictures [H,W,C] into one: `columns` a row (0: the squarest grid), rest black. dst is malloc'ed, *gh x *gw. */
int dn_image_grid(uint8_t **dst, int *gh, int *gw, const uint8_t *pixels, int n, int height, int width, int channels,
                  int columns, dn_error *err);
/* NumPy 1.0 format, '<f4', C order. */
int dn_npy_encode(uint8_t **out, size_t *out_len, const float *data, const int64_t *dims, int rank, dn_error *err);

/* safetensors, in memory: writing, and reading what a client sent (same rules as checkpoint files). */
typedef struct dn_st_tensor {
    char name[128];
    char dtype[8];      /* "F32", "I64" */
    int rank;
    int64_t dim[8];
    const void *data;   /* into the buffer given to dn_st_parse, possibly unaligned */
    size_t bytes;
} dn_st_tensor;
int dn_st_encode(uint8_t **out, size_t *out_len, const dn_st_tensor *t, int n, dn_error *err);
int dn_st_parse(dn_st_tensor *t, int *n /* in: room, out: found */, const void *buf, size_t len, dn_error *err);

#endif
