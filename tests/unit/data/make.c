/* make.c - see make.h. */
#include "make.h"

#include <archive.h>
#include <archive_entry.h>
#include <denoised/image.h>
#include <dirent.h>
#include <spng.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <webp/encode.h>

static void write_item(struct archive *a, const item *it)
{
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, it->name);
    archive_entry_set_filetype(e, it->type ? it->type : AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_size(e, (int64_t)it->len + it->hole);
    if (it->link)
        archive_entry_set_symlink(e, it->link);
    if (it->hard)
        archive_entry_set_hardlink(e, it->hard);
    if (it->hole > 0)
        archive_entry_sparse_add_entry(e, it->hole, (int64_t)it->len);
    assert_true(archive_write_header(a, e) >= ARCHIVE_WARN);
    if (it->hole > 0) {
        static uint8_t zeros[1 << 16];
        for (int64_t left = it->hole; left > 0; left -= (int64_t)sizeof zeros)
            archive_write_data(a, zeros, left < (int64_t)sizeof zeros ? (size_t)left : sizeof zeros);
    }
    if (it->len > 0)
        assert_int_equal(archive_write_data(a, it->data, it->len), it->len);
    archive_entry_free(e);
}

void archive_make(const char *dir, const char *name, enum packing packing, const item *items, int n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    struct archive *a = archive_write_new();
    if (packing == ZIP)
        archive_write_set_format_zip(a);
    else
        archive_write_set_format_pax_restricted(a);
    if (packing == TAR_GZ)
        archive_write_add_filter_gzip(a);
    if (packing == TAR_ZST)
        archive_write_add_filter_zstd(a);
    archive_write_set_bytes_in_last_block(a, 1); /* no padding to 10 KiB */
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    for (int i = 0; i < n; i++)
        write_item(a, &items[i]);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
}

blob png_make(const uint8_t *pixels, int height, int width, int channels)
{
    uint8_t *out;
    size_t len;
    blob b = { 0 };
    assert_int_equal(dn_png_encode(&out, &len, pixels, height, width, channels, NULL), 0);
    blob_add(&b, out, len);
    free(out);
    return b;
}

blob png_make_as(const void *rows, size_t len, int height, int width, int depth, int color_type, const uint8_t *trns,
                 int n_trns)
{
    spng_ctx *png = spng_ctx_new(SPNG_CTX_ENCODER);
    struct spng_ihdr ihdr = { .width = (uint32_t)width,
                              .height = (uint32_t)height,
                              .bit_depth = (uint8_t)depth,
                              .color_type = (uint8_t)color_type };
    spng_set_option(png, SPNG_ENCODE_TO_BUFFER, 1);
    assert_int_equal(spng_set_ihdr(png, &ihdr), 0);
    if (color_type == SPNG_COLOR_TYPE_INDEXED) {
        struct spng_plte plte = { .n_entries = 4 };
        for (int i = 0; i < 4; i++)
            plte.entries[i] =
                (struct spng_plte_entry){ .red = (uint8_t)(60 * i), .green = 10, .blue = (uint8_t)(200 - 50 * i) };
        assert_int_equal(spng_set_plte(png, &plte), 0);
    }
    if (trns) {
        struct spng_trns t = { .n_type3_entries = (uint32_t)n_trns };
        memcpy(t.type3_alpha, trns, (size_t)n_trns);
        assert_int_equal(spng_set_trns(png, &t), 0);
    }
    assert_int_equal(spng_encode_image(png, rows, len, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE), 0);
    int rc;
    size_t out_len;
    void *out = spng_get_png_buffer(png, &out_len, &rc);
    blob b = { 0 };
    blob_add(&b, out, out_len);
    free(out);
    spng_ctx_free(png);
    return b;
}

blob jpeg_make(const uint8_t *pixels, int height, int width, int channels, int quality)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr e;
    unsigned char *out = NULL;
    unsigned long len = 0;
    c.err = jpeg_std_error(&e);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &out, &len);
    c.image_width = (JDIMENSION)width;
    c.image_height = (JDIMENSION)height;
    c.input_components = channels;
    c.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    for (int i = 0; i < c.num_components; i++)
        c.comp_info[i].h_samp_factor = c.comp_info[i].v_samp_factor = 1;
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < height; y++) {
        JSAMPROW row = (JSAMPROW)(pixels + (size_t)y * (size_t)width * (size_t)channels);
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    blob b = { 0 };
    blob_add(&b, out, len);
    free(out);
    return b;
}

blob webp_make(const uint8_t *pixels, int height, int width, int channels)
{
    uint8_t *out = NULL;
    size_t len = channels == 4 ? WebPEncodeLosslessRGBA(pixels, width, height, width * 4, &out)
                               : WebPEncodeLosslessRGB(pixels, width, height, width * 3, &out);
    assert_true(len > 0);
    blob b = { 0 };
    blob_add(&b, out, len);
    WebPFree(out);
    return b;
}

static la_ssize_t blob_writer(struct archive *a, void *arg, const void *p, size_t len)
{
    (void)a;
    blob_add(arg, p, len);
    return (la_ssize_t)len;
}

blob gzip_make(const void *p, size_t len)
{
    blob b = { 0 };
    struct archive *a = archive_write_new();
    struct archive_entry *e = archive_entry_new();
    archive_write_set_format_raw(a);
    archive_write_add_filter_gzip(a);
    archive_write_set_bytes_in_last_block(a, 1);
    assert_int_equal(archive_write_open(a, &b, NULL, blob_writer, NULL), ARCHIVE_OK);
    archive_entry_set_filetype(e, AE_IFREG);
    assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
    assert_int_equal(archive_write_data(a, p, len), len);
    archive_entry_free(e);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    return b;
}

blob idx_make(const uint8_t *data, int rank, const uint32_t *dim)
{
    blob b = { 0 };
    size_t n = 1;
    blob_add(&b, (uint8_t[]){ 0, 0, 8, (uint8_t)rank }, 4);
    for (int i = 0; i < rank; i++) {
        blob_add(
            &b,
            (uint8_t[]){ (uint8_t)(dim[i] >> 24), (uint8_t)(dim[i] >> 16), (uint8_t)(dim[i] >> 8), (uint8_t)dim[i] },
            4);
        n *= dim[i];
    }
    blob_add(&b, data, n);
    return b;
}

blob npy_make(const char *descr, const char *shape, const void *data, size_t len)
{
    char text[256];
    int n = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", descr, shape);
    size_t total = ((size_t)n + 10 + 1 + 63) / 64 * 64;
    blob b = { 0 };
    blob_add(&b, "\x93NUMPY\x01\x00", 8);
    blob_le(&b, total - 10, 2);
    blob_add(&b, text, (size_t)n);
    while (b.len < total - 1)
        blob_add(&b, " ", 1);
    blob_add(&b, "\n", 1);
    blob_add(&b, data, len);
    return b;
}

void noise(uint8_t *p, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        p[i] = (uint8_t)(seed >> 24);
    }
}

void assert_folder(const char *dir, const char *const *names, int n)
{
    DIR *d = opendir(dir);
    int found = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        int known = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        for (int i = 0; i < n && !known; i++)
            if (strcmp(e->d_name, names[i]) == 0) {
                known = 1;
                found++;
            }
        if (!known)
            fail_msg("%s/%s is left behind", dir, e->d_name);
    }
    closedir(d);
    assert_int_equal(found, n);
}
