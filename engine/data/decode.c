/* decode.c - pictures by libspng, libjpeg-turbo and libwebp. See decode.h. */
#include "decode.h"

#include <setjmp.h>
#include <spng.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>
#include <webp/decode.h>

enum {
    JPEG_SCANS_MAX = 100,
    CHUNK_MAX = 16 << 20,
    WORKING_BYTES = 8 /* per pixel: RGBA, and what the library holds */
};

enum dn_picture_kind dn_picture_kind_of(const uint8_t *data, size_t len)
{
    if (len >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0)
        return DN_PNG;
    if (len >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0)
        return DN_JPEG;
    if (len >= 12 && memcmp(data, "RIFF", 4) == 0 && memcmp(data + 8, "WEBP", 4) == 0)
        return DN_WEBP;
    return DN_NO_PICTURE;
}

static int check_size(uint64_t height, uint64_t width, dn_error *err)
{
    if (height == 0 || width == 0)
        return dn_fail(err, DN_E_FORMAT, NULL, "a picture without pixels");
    if (height > DN_DATASET_SIDE_MAX || width > DN_DATASET_SIDE_MAX)
        return dn_fail(err, DN_E_LIMIT, NULL, "%llu by %llu pixels; the limit is %d a side", (unsigned long long)width,
                       (unsigned long long)height, DN_DATASET_SIDE_MAX);
    if (height * width > DN_PIXELS_MAX)
        return dn_fail(err, DN_E_LIMIT, NULL, "%llu by %llu pixels; the limit is %d in all", (unsigned long long)width,
                       (unsigned long long)height, DN_PIXELS_MAX);
    return 0;
}

/* Room for the pixels, of a size that was checked. */
static int new_picture(dn_picture *p, uint32_t height, uint32_t width, int channels, dn_error *err)
{
    int rc = check_size(height, width, err);
    if (rc != 0)
        return rc;
    *p = (dn_picture){ malloc((size_t)height * width * (size_t)channels), (int)height, (int)width, channels };
    return p->pixels ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "no memory for %u by %u pixels", width, height);
}

/* --- PNG --- */

static int open_png(spng_ctx **out, struct spng_ihdr *ihdr, const uint8_t *data, size_t len, dn_error *err)
{
    spng_ctx *png = spng_ctx_new(0);
    if (!png)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a PNG decoder");
    spng_set_image_limits(png, DN_DATASET_SIDE_MAX, DN_DATASET_SIDE_MAX);
    spng_set_chunk_limits(png, CHUNK_MAX, CHUNK_MAX);
    int rc = spng_set_png_buffer(png, data, len);
    if (rc == 0)
        rc = spng_get_ihdr(png, ihdr);
    if (rc != 0) {
        spng_ctx_free(png);
        int code = rc == SPNG_EMEM                                     ? DN_E_MEMORY
                   : rc == SPNG_EUSER_WIDTH || rc == SPNG_EUSER_HEIGHT ? DN_E_LIMIT
                                                                       : DN_E_FORMAT;
        return dn_fail(err, code, NULL, "PNG: %s", spng_strerror(rc));
    }
    *out = png;
    return 0;
}

static int size_png(uint64_t *height, uint64_t *width, const uint8_t *data, size_t len, dn_error *err)
{
    spng_ctx *png = NULL;
    struct spng_ihdr ihdr;
    int rc = open_png(&png, &ihdr, data, len, err);
    if (rc != 0)
        return rc;
    spng_ctx_free(png);
    *height = ihdr.height;
    *width = ihdr.width;
    return 0;
}

static int decode_png(dn_picture *p, const uint8_t *data, size_t len, dn_error *err)
{
    spng_ctx *png = NULL;
    struct spng_ihdr ihdr;
    int rc = open_png(&png, &ihdr, data, len, err);
    if (rc != 0)
        return rc;
    struct spng_trns trns;
    bool alpha = (ihdr.color_type & 4) || spng_get_trns(png, &trns) == 0;
    bool grey = !alpha && ihdr.color_type == SPNG_COLOR_TYPE_GRAYSCALE && ihdr.bit_depth <= 8;
    int fmt = grey ? SPNG_FMT_G8 : alpha || ihdr.bit_depth == 16 ? SPNG_FMT_RGBA8 : SPNG_FMT_RGB8;
    rc = new_picture(p, ihdr.height, ihdr.width, grey ? 1 : fmt == SPNG_FMT_RGBA8 ? 4 : 3, err);
    if (rc == 0) {
        size_t bytes = (size_t)ihdr.height * ihdr.width * (size_t)p->channels;
        int e = spng_decode_image(png, p->pixels, bytes, fmt, alpha ? SPNG_DECODE_TRNS : 0);
        /* what follows the pixels is not needed, but a file that is cut there was cut */
        if (e == 0)
            e = spng_decode_chunks(png);
        if (e != 0)
            rc = dn_fail(err, e == SPNG_EMEM ? DN_E_MEMORY : DN_E_FORMAT, NULL, "PNG: %s", spng_strerror(e));
    }
    spng_ctx_free(png);
    return rc;
}

/* --- JPEG --- */

/* libjpeg's error_exit must not return; it jumps to where decoding began. */
struct jpeg_state {
    struct jpeg_error_mgr mgr;
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    char text[JMSG_LENGTH_MAX];
};

static void jpeg_give_up(j_common_ptr c)
{
    struct jpeg_state *s = (struct jpeg_state *)c->err;
    c->err->format_message(c, s->text);
    longjmp(s->back, 1);
}

/* Warnings mean damaged data, but for stray bytes between markers. */
static void jpeg_warn(j_common_ptr c, int level)
{
    if (level < 0 && c->err->msg_code != JWRN_EXTRANEOUS_DATA)
        jpeg_give_up(c);
}

/* A small progressive file can ask for a million passes over a large picture. */
static void jpeg_progress(j_common_ptr c)
{
    struct jpeg_state *s = (struct jpeg_state *)c->err;
    if (c->is_decompressor && ((j_decompress_ptr)c)->input_scan_number > JPEG_SCANS_MAX) {
        snprintf(s->text, sizeof s->text, "more than %d scans", JPEG_SCANS_MAX);
        longjmp(s->back, 1);
    }
}

static void jpeg_begin(struct jpeg_decompress_struct *c, struct jpeg_state *s, const uint8_t *data, size_t len)
{
    jpeg_create_decompress(c);
    s->progress.progress_monitor = jpeg_progress;
    c->progress = &s->progress;
    jpeg_save_markers(c, JPEG_APP0 + 1, 4096); /* EXIF: what is sought stands at its beginning */
    jpeg_mem_src(c, data, (unsigned long)len);
    jpeg_read_header(c, TRUE);
}

static void jpeg_setup(struct jpeg_decompress_struct *c, struct jpeg_state *s)
{
    memset(c, 0, sizeof *c);
    c->err = jpeg_std_error(&s->mgr);
    s->mgr.error_exit = jpeg_give_up;
    s->mgr.emit_message = jpeg_warn;
    s->text[0] = 0;
}

static int size_jpeg(uint64_t *height, uint64_t *width, const uint8_t *data, size_t len, dn_error *err)
{
    struct jpeg_decompress_struct c;
    struct jpeg_state s = { 0 };
    volatile int rc = 0;
    jpeg_setup(&c, &s);
    if (setjmp(s.back) != 0) {
        rc = dn_fail(err, DN_E_FORMAT, NULL, "JPEG: %s", s.text);
    } else {
        jpeg_begin(&c, &s, data, len);
        *height = c.image_height;
        *width = c.image_width;
    }
    jpeg_destroy_decompress(&c);
    return rc;
}

/* [H,W,4] of inks -> [H,W,3], in place. As PIL: files hold them inverted, as Adobe's programs write them. */
static void mix_inks(dn_picture *p)
{
    size_t n = (size_t)p->height * (size_t)p->width;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *in = p->pixels + 4 * i;
        unsigned key = in[3];
        for (int c = 0; c < 3; c++)
            p->pixels[3 * i + (size_t)c] = (uint8_t)((in[c] * key + 127) / 255);
    }
    p->channels = 3;
}

static unsigned exif_number(const uint8_t *p, int bytes, bool big)
{
    unsigned v = 0;
    for (int i = 0; i < bytes; i++)
        v = v << 8 | p[big ? i : bytes - 1 - i];
    return v;
}

/* The orientation, 1..8, that an APP1 segment says; 1 if it says none that can be read. */
static int exif_orientation(const uint8_t *p, size_t len)
{
    enum { HEAD = 6, TIFF = 8, ENTRY = 12, ORIENTATION = 0x112 };
    if (len < HEAD + TIFF + 2 || memcmp(p, "Exif\0", HEAD) != 0)
        return 1;
    p += HEAD, len -= HEAD;
    bool big = p[0] == 'M';
    size_t at = exif_number(p + 4, 4, big);
    if (at > len - 2)
        return 1;
    for (unsigned n = exif_number(p + at, 2, big), i = 0; i < n; i++) {
        size_t entry = at + 2 + (size_t)ENTRY * i;
        if (entry + ENTRY > len)
            return 1;
        unsigned value = exif_number(p + entry + 8, 2, big);
        if (exif_number(p + entry, 2, big) == ORIENTATION)
            return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

/* Upright, from how the camera was held. */
static int turn(dn_picture *p, int orientation, dn_error *err)
{
    bool across = orientation > 4; /* rows become columns */
    int height = across ? p->width : p->height, width = across ? p->height : p->width;
    bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7,
         mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    size_t c = (size_t)p->channels;
    uint8_t *out = malloc((size_t)height * (size_t)width * c), *to = out;
    if (!out)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for %d by %d pixels", width, height);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, to += c) {
            int sy = across ? x : y, sx = across ? y : x;
            sy = mirror_y ? p->height - 1 - sy : sy;
            sx = mirror_x ? p->width - 1 - sx : sx;
            memcpy(to, p->pixels + ((size_t)sy * (size_t)p->width + (size_t)sx) * c, c);
        }
    free(p->pixels);
    *p = (dn_picture){ out, height, width, p->channels };
    return 0;
}

static int jpeg_orientation(const struct jpeg_decompress_struct *c)
{
    int orientation = 1;
    for (jpeg_saved_marker_ptr m = c->marker_list; m && orientation == 1; m = m->next)
        orientation = exif_orientation(m->data, m->data_length);
    return orientation;
}

static int jpeg_rows(struct jpeg_decompress_struct *c, dn_picture *p, dn_error *err)
{
    bool grey = c->jpeg_color_space == JCS_GRAYSCALE;
    bool inks = c->jpeg_color_space == JCS_CMYK || c->jpeg_color_space == JCS_YCCK;
    int rc = new_picture(p, c->image_height, c->image_width, grey ? 1 : inks ? 4 : 3, err);
    if (rc != 0)
        return rc;
    c->out_color_space = grey ? JCS_GRAYSCALE : inks ? JCS_CMYK : JCS_RGB;
    c->dct_method = JDCT_ISLOW; /* the same bits with and without SIMD */
    jpeg_start_decompress(c);
    while (c->output_scanline < c->output_height) {
        JSAMPROW row = p->pixels + (size_t)c->output_scanline * (size_t)p->width * (size_t)p->channels;
        jpeg_read_scanlines(c, &row, 1);
    }
    jpeg_finish_decompress(c);
    if (inks)
        mix_inks(p);
    return 0;
}

static int decode_jpeg(dn_picture *p, const uint8_t *data, size_t len, dn_error *err)
{
    struct jpeg_decompress_struct c;
    struct jpeg_state s = { 0 };
    volatile int rc = 0;
    jpeg_setup(&c, &s);
    if (setjmp(s.back) != 0) {
        rc = dn_fail(err, s.mgr.msg_code == JERR_OUT_OF_MEMORY ? DN_E_MEMORY : DN_E_FORMAT, NULL, "JPEG: %s", s.text);
    } else {
        jpeg_begin(&c, &s, data, len);
        int orientation = jpeg_orientation(&c);
        rc = jpeg_rows(&c, p, err);
        if (rc == 0 && orientation > 1)
            rc = turn(p, orientation, err);
    }
    jpeg_destroy_decompress(&c);
    return rc;
}

/* --- WebP --- */

static int webp_features(WebPBitstreamFeatures *f, const uint8_t *data, size_t len, dn_error *err)
{
    VP8StatusCode status = WebPGetFeatures(data, len, f);
    if (status != VP8_STATUS_OK)
        return dn_fail(err, DN_E_FORMAT, NULL, "WebP: %s",
                       status == VP8_STATUS_NOT_ENOUGH_DATA ? "cut short" : "a damaged header");
    return f->has_animation ? dn_fail(err, DN_E_UNSUPPORTED, NULL, "WebP: an animation") : 0;
}

static int size_webp(uint64_t *height, uint64_t *width, const uint8_t *data, size_t len, dn_error *err)
{
    WebPBitstreamFeatures f;
    int rc = webp_features(&f, data, len, err);
    if (rc != 0)
        return rc;
    *height = (uint64_t)f.height;
    *width = (uint64_t)f.width;
    return 0;
}

static int decode_webp(dn_picture *p, const uint8_t *data, size_t len, dn_error *err)
{
    WebPBitstreamFeatures f;
    int rc = webp_features(&f, data, len, err);
    if (rc == 0)
        rc = new_picture(p, (uint32_t)f.height, (uint32_t)f.width, f.has_alpha ? 4 : 3, err);
    if (rc != 0)
        return rc;
    int stride = p->width * p->channels;
    size_t bytes = (size_t)stride * (size_t)p->height;
    uint8_t *done = f.has_alpha ? WebPDecodeRGBAInto(data, len, p->pixels, bytes, stride)
                                : WebPDecodeRGBInto(data, len, p->pixels, bytes, stride);
    return done ? 0 : dn_fail(err, DN_E_FORMAT, NULL, "WebP: damaged, or cut short");
}

/* --- all --- */

static const struct {
    int (*size)(uint64_t *height, uint64_t *width, const uint8_t *data, size_t len, dn_error *err);
    int (*decode)(dn_picture *p, const uint8_t *data, size_t len, dn_error *err);
} codecs[] = {
    [DN_PNG] = { size_png, decode_png },
    [DN_JPEG] = { size_jpeg, decode_jpeg },
    [DN_WEBP] = { size_webp, decode_webp },
};

/* [H,W,4] -> [H,W,3] over white, in place. */
static void drop_alpha(dn_picture *p)
{
    size_t n = (size_t)p->height * (size_t)p->width;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *in = p->pixels + 4 * i;
        unsigned a = in[3];
        for (int c = 0; c < 3; c++)
            p->pixels[3 * i + (size_t)c] = (uint8_t)((in[c] * a + 255 * (255 - a) + 127) / 255);
    }
    p->channels = 3;
}

/* [H,W,3] -> [H,W,1] in place if all three are equal everywhere. */
static void drop_colour(dn_picture *p)
{
    size_t n = (size_t)p->height * (size_t)p->width;
    for (size_t i = 0; i < n; i++)
        if (p->pixels[3 * i] != p->pixels[3 * i + 1] || p->pixels[3 * i] != p->pixels[3 * i + 2])
            return;
    for (size_t i = 0; i < n; i++)
        p->pixels[i] = p->pixels[3 * i];
    p->channels = 1;
}

int dn_picture_cost(size_t *cost, const uint8_t *data, size_t len, dn_error *err)
{
    uint64_t height, width;
    enum dn_picture_kind kind = dn_picture_kind_of(data, len);
    if (kind == DN_NO_PICTURE)
        return dn_fail(err, DN_E_FORMAT, NULL, "neither a PNG, a JPEG nor a WebP picture");
    int rc = codecs[kind].size(&height, &width, data, len, err);
    if (rc == 0)
        rc = check_size(height, width, err);
    if (rc == 0)
        *cost = (size_t)(height * width) * WORKING_BYTES;
    return rc;
}

int dn_picture_decode(dn_picture *out, const uint8_t *data, size_t len, dn_error *err)
{
    dn_picture p = { 0 };
    size_t cost;
    int rc = dn_picture_cost(&cost, data, len, err);
    if (rc == 0)
        rc = codecs[dn_picture_kind_of(data, len)].decode(&p, data, len, err);
    if (rc != 0) {
        free(p.pixels);
        return rc;
    }
    if (p.channels == 4)
        drop_alpha(&p);
    if (p.channels == 3)
        drop_colour(&p);
    *out = p;
    return 0;
}
