/* image.c - float samples to 8 bits, grids, PNG and npy. See image.h. */
#include <denoised/image.h>

#include <limits.h>
#include <math.h>
#include <spng.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What one picture or grid may take in memory. */
static const size_t image_bytes_max = (size_t)1 << 30;
/* Fixed, so that the same pixels give the same file. */
enum { COMPRESSION_LEVEL = 6 };

void dn_image_to_u8(uint8_t *dst, const float *src, int64_t n, double lo, double hi)
{
    float from = (float)lo, range = (float)(hi - lo);
    for (int64_t i = 0; i < n; i++) {
        float v = (src[i] - from) / range; /* in float, as diffusers rounds */
        v = v > 0 ? v < 1 ? v : 1 : 0;     /* NaN: 0 */
        dst[i] = (uint8_t)rintf(v * 255);
    }
}

/* height * width * channels, or 0: not a picture, or over the limit. */
static size_t image_bytes(int64_t height, int64_t width, int64_t channels)
{
    size_t bytes;
    if (height <= 0 || width <= 0 || channels <= 0 || height > INT_MAX || width > INT_MAX ||
        __builtin_mul_overflow((size_t)height, (size_t)width, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)channels, &bytes) || bytes > image_bytes_max)
        return 0;
    return bytes;
}

static int bad_size(int64_t height, int64_t width, int64_t channels, dn_error *err)
{
    return dn_fail(err, DN_E_LIMIT, NULL, "a picture of %lld by %lld pixels with %lld channels; the limit is %zu bytes",
                   (long long)width, (long long)height, (long long)channels, image_bytes_max);
}

static int encode(spng_ctx *png, uint8_t **out, size_t *out_len, const void *pixels, size_t bytes,
                  const struct spng_ihdr *ihdr)
{
    int rc = 0;
    struct spng_ihdr header = *ihdr;
    if ((rc = spng_set_option(png, SPNG_ENCODE_TO_BUFFER, 1)) != 0 ||
        (rc = spng_set_option(png, SPNG_IMG_COMPRESSION_LEVEL, COMPRESSION_LEVEL)) != 0 ||
        (rc = spng_set_option(png, SPNG_FILTER_CHOICE, SPNG_FILTER_CHOICE_ALL)) != 0 ||
        (rc = spng_set_ihdr(png, &header)) != 0 ||
        (rc = spng_encode_image(png, pixels, bytes, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE)) != 0)
        return rc;
    size_t len;
    void *buf = spng_get_png_buffer(png, &len, &rc);
    if (buf) {
        *out = buf;
        *out_len = len;
    }
    return rc;
}

int dn_png_encode(uint8_t **out, size_t *out_len, const uint8_t *pixels, int height, int width, int channels,
                  dn_error *err)
{
    static const uint8_t color_types[] = { [1] = SPNG_COLOR_TYPE_GRAYSCALE,
                                           [2] = SPNG_COLOR_TYPE_GRAYSCALE_ALPHA,
                                           [3] = SPNG_COLOR_TYPE_TRUECOLOR,
                                           [4] = SPNG_COLOR_TYPE_TRUECOLOR_ALPHA };
    if (channels < 1 || channels > 4)
        return dn_fail(err, DN_E_IMPOSSIBLE, NULL, "a PNG has 1 to 4 channels, not %d", channels);
    size_t bytes = image_bytes(height, width, channels);
    if (bytes == 0)
        return bad_size(height, width, channels, err);
    spng_ctx *png = spng_ctx_new(SPNG_CTX_ENCODER);
    if (!png)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a PNG encoder");
    struct spng_ihdr ihdr = {
        .width = (uint32_t)width, .height = (uint32_t)height, .bit_depth = 8, .color_type = color_types[channels]
    };
    int rc = encode(png, out, out_len, pixels, bytes, &ihdr);
    spng_ctx_free(png);
    if (rc != 0)
        return dn_fail(err, rc == SPNG_EMEM ? DN_E_MEMORY : DN_E_INTERNAL, NULL, "PNG: %s", spng_strerror(rc));
    return 0;
}

int dn_image_grid(uint8_t **dst, int *gh, int *gw, const uint8_t *pixels, int n, int height, int width, int channels,
                  int columns, dn_error *err)
{
    if (n <= 0 || columns < 0)
        return dn_fail(err, DN_E_INVALID, NULL, "a grid of %d pictures in %d columns", n, columns);
    if (columns == 0)
        for (columns = 1; (int64_t)columns * columns < n;)
            columns++;
    int64_t rows = n / columns + (n % columns != 0);
    size_t tile = image_bytes(height, width, channels);
    size_t bytes = tile > 0 ? image_bytes(rows * height, (int64_t)columns * width, channels) : 0;
    if (bytes == 0)
        return bad_size(rows * height, (int64_t)columns * width, channels, err);
    uint8_t *grid = calloc(bytes, 1); /* [rows * H, columns * W, C] */
    if (!grid)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a grid of %zu bytes", bytes);
    size_t line = (size_t)width * (size_t)channels, stride = line * (size_t)columns;
    for (int i = 0; i < n; i++)
        for (int y = 0; y < height; y++)
            memcpy(grid + ((size_t)(i / columns) * (size_t)height + (size_t)y) * stride + (size_t)(i % columns) * line,
                   pixels + (size_t)i * tile + (size_t)y * line, line);
    *dst = grid;
    *gh = (int)rows * height;
    *gw = columns * width;
    return 0;
}

/* "(3, 4)", "(3,)", "()" */
static void write_shape(char *text, size_t room, const int64_t *dims, int rank)
{
    size_t at = 1;
    text[0] = '(';
    for (int d = 0; d < rank; d++)
        at += (size_t)snprintf(text + at, room - at, d > 0 ? ", %lld" : "%lld", (long long)dims[d]);
    snprintf(text + at, room - at, rank == 1 ? ",)" : ")");
}

int dn_npy_encode(uint8_t **out, size_t *out_len, const float *data, const int64_t *dims, int rank, dn_error *err)
{
    enum { RANK_MAX = 8, ALIGN = 64 };
    static const char magic[8] = "\x93NUMPY\x01"; /* version 1, 0 */
    if (rank < 0 || rank > RANK_MAX)
        return dn_fail(err, DN_E_IMPOSSIBLE, NULL, "an array of %d dimensions; the limit is %d", rank, RANK_MAX);
    size_t bytes = sizeof *data;
    for (int d = 0; d < rank; d++)
        if (dims[d] < 0 || __builtin_mul_overflow(bytes, (size_t)dims[d], &bytes))
            return dn_fail(err, DN_E_RANGE, NULL, "the shape of the array overflows");
    char shape[RANK_MAX * 22 + 4], text[sizeof shape + 80];
    write_shape(shape, sizeof shape, dims, rank);
    int text_len = snprintf(text, sizeof text, "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }", shape);
    size_t header = (sizeof magic + 2 + (size_t)text_len + 1 + ALIGN - 1) / ALIGN * ALIGN;
    uint8_t *buf = bytes <= SIZE_MAX - header ? malloc(header + bytes) : NULL;
    if (!buf)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for an array of %zu bytes", bytes);
    uint16_t rest = (uint16_t)(header - sizeof magic - 2);
    memset(buf, ' ', header);
    memcpy(buf, magic, sizeof magic);
    memcpy(buf + sizeof magic, &rest, sizeof rest);
    memcpy(buf + sizeof magic + 2, text, (size_t)text_len);
    buf[header - 1] = '\n';
    if (bytes > 0)
        memcpy(buf + header, data, bytes);
    *out = buf;
    *out_len = header + bytes;
    return 0;
}
