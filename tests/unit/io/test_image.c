/* test_image.c - 8 bits, grids, PNG (decoded again), npy (the bytes numpy writes), SHA-256 (FIPS 180-4's examples). */
#include "util.h"

#include <denoised/image.h>
#include <denoised/sha256.h>
#include <limits.h>
#include <math.h>
#include <spng.h>
#include <stdlib.h>
#include <string.h>

static void to_u8(void **state)
{
    (void)state;
    /* 2 * (n + 0.5) / 255 - 1 is not exact: halves are tried where they are, in [0, 255]. */
    static const float v[] = { -2, -1, -0.5f, 0, 0.5f, 1, 2, NAN, INFINITY, -INFINITY };
    static const uint8_t want[] = { 0, 0, 64, 128, 191, 255, 255, 0, 255, 0 };
    uint8_t got[10];
    dn_image_to_u8(got, v, 10, -1, 1);
    assert_memory_equal(got, want, 10);
    static const float halves[] = { 0.5f, 1.5f, 2.5f, 253.5f, 254.5f, 254.49998f };
    static const uint8_t even[] = { 0, 2, 2, 254, 254, 254 };
    dn_image_to_u8(got, halves, 6, 0, 255);
    assert_memory_equal(got, even, 6);
    dn_image_to_u8(got, (float[]){ 0, 0.25f, 1 }, 3, 0, 1);
    assert_memory_equal(got, ((uint8_t[]){ 0, 64, 255 }), 3);
}

static void png(void **state)
{
    (void)state;
    static const int sizes[][2] = { { 1, 1 }, { 28, 28 }, { 3, 17 }, { 64, 5 } };
    static const int color[] = { 0, SPNG_COLOR_TYPE_GRAYSCALE, SPNG_COLOR_TYPE_GRAYSCALE_ALPHA,
                                 SPNG_COLOR_TYPE_TRUECOLOR, SPNG_COLOR_TYPE_TRUECOLOR_ALPHA };
    for (int s = 0; s < 4; s++)
        for (int channels = 1; channels <= 4; channels++) {
            int h = sizes[s][0], w = sizes[s][1];
            size_t bytes = (size_t)(h * w * channels), len, again_len, decoded_len;
            uint8_t *pixels = malloc(bytes), *file, *again;
            for (size_t i = 0; i < bytes; i++)
                pixels[i] = (uint8_t)(i * 2654435761u >> 13);
            dn_error err = { 0 };
            assert_int_equal(dn_png_encode(&file, &len, pixels, h, w, channels, &err), 0);
            assert_int_equal(dn_png_encode(&again, &again_len, pixels, h, w, channels, &err), 0);
            assert_int_equal(len, again_len);
            assert_memory_equal(file, again, len);
            spng_ctx *ctx = spng_ctx_new(0);
            struct spng_ihdr ihdr;
            assert_int_equal(spng_set_png_buffer(ctx, file, len), 0);
            assert_int_equal(spng_get_ihdr(ctx, &ihdr), 0);
            assert_int_equal(ihdr.width, w);
            assert_int_equal(ihdr.height, h);
            assert_int_equal(ihdr.bit_depth, 8);
            assert_int_equal(ihdr.color_type, color[channels]);
            assert_int_equal(spng_decoded_image_size(ctx, SPNG_FMT_PNG, &decoded_len), 0);
            assert_int_equal(decoded_len, bytes);
            uint8_t *decoded = malloc(bytes);
            assert_int_equal(spng_decode_image(ctx, decoded, bytes, SPNG_FMT_PNG, 0), 0);
            assert_memory_equal(decoded, pixels, bytes);
            spng_ctx_free(ctx);
            free(decoded);
            free(pixels);
            free(file);
            free(again);
        }
    uint8_t *out = (uint8_t *)png;
    size_t len = 7;
    dn_error err = { 0 };
    assert_error(&err, dn_png_encode(&out, &len, out, 1, 1, 5, &err), DN_E_IMPOSSIBLE, "", "1 to 4 channels, not 5");
    assert_error(&err, dn_png_encode(&out, &len, out, 1, 1, 0, &err), DN_E_IMPOSSIBLE, "", "not 0");
    assert_error(&err, dn_png_encode(&out, &len, out, 0, 1, 3, &err), DN_E_LIMIT, "", "1 by 0");
    assert_error(&err, dn_png_encode(&out, &len, out, INT_MAX, INT_MAX, 4, &err), DN_E_LIMIT, "", "limit");
    assert_ptr_equal(out, png);
    assert_int_equal(len, 7);
}

static void grid(void **state)
{
    (void)state;
    /* Five pictures of 1 x 2 pixels, two channels: the picture's number, then the byte's. */
    uint8_t pixels[5 * 4];
    for (int i = 0; i < 20; i++)
        pixels[i] = (uint8_t)((i / 4 + 1) * 16 + i % 4);
    static const struct {
        int n, columns, gh, gw;
        uint8_t want[40];
    } cases[] = {
        { 5, 0, 2, 6, { 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33,
                        0x40, 0x41, 0x42, 0x43, 0x50, 0x51, 0x52, 0x53, 0,    0,    0,    0 } },
        { 4,
          0,
          2,
          4,
          { 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x40, 0x41, 0x42, 0x43 } },
        { 3, 1, 3, 2, { 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33 } },
        { 2, 3, 1, 6, { 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0, 0, 0, 0 } },
        { 1, 0, 1, 2, { 0x10, 0x11, 0x12, 0x13 } },
    };
    dn_error err = { 0 };
    uint8_t *out;
    int gh, gw;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(dn_image_grid(&out, &gh, &gw, pixels, cases[i].n, 1, 2, 2, cases[i].columns, &err), 0);
        assert_int_equal(gh, cases[i].gh);
        assert_int_equal(gw, cases[i].gw);
        assert_memory_equal(out, cases[i].want, (size_t)(gh * gw * 2));
        free(out);
    }
    gh = gw = 7;
    assert_error(&err, dn_image_grid(&out, &gh, &gw, pixels, 0, 1, 2, 2, 0, &err), DN_E_INVALID, "", "0 pictures");
    assert_error(&err, dn_image_grid(&out, &gh, &gw, pixels, 2, 1, 2, 2, -1, &err), DN_E_INVALID, "", "-1 columns");
    assert_error(&err, dn_image_grid(&out, &gh, &gw, pixels, 2, 1, 2, 2, INT_MAX, &err), DN_E_LIMIT, "", "limit");
    assert_error(&err, dn_image_grid(&out, &gh, &gw, pixels, 2, INT_MAX, 1, 1, 1, &err), DN_E_LIMIT, "", "limit");
    assert_true(gh == 7 && gw == 7);
}

/* numpy.save of arrays of these shapes starts with these bytes. */
static void npy(void **state)
{
    (void)state;
    static const struct {
        int rank;
        int64_t dims[8];
        size_t header;
        const char *text;
    } cases[] = {
        { 4, { 2, 28, 28, 1 }, 128, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 28, 28, 1), }" },
        { 1, { 3 }, 128, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }" },
        { 0, { 0 }, 128, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }" },
        { 2, { 0, 5 }, 128, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 5), }" },
        { 8,
          { 1, 1, 1, 1, 1, 1, 1, 1 },
          128,
          "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1), }" },
    };
    float data[2 * 28 * 28];
    for (int i = 0; i < 2 * 28 * 28; i++)
        data[i] = sqrtf((float)i);
    dn_error err = { 0 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *out, head[128];
        size_t len, bytes = 4;
        for (int d = 0; d < cases[i].rank; d++)
            bytes *= (size_t)cases[i].dims[d];
        memset(head, ' ', sizeof head);
        memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
        memcpy(head + 10, cases[i].text, strlen(cases[i].text));
        head[127] = '\n';
        assert_int_equal(dn_npy_encode(&out, &len, data, cases[i].dims, cases[i].rank, &err), 0);
        assert_int_equal(len, 128 + bytes);
        assert_memory_equal(out, head, 128);
        if (bytes > 0)
            assert_memory_equal(out + 128, data, bytes);
        free(out);
    }
    uint8_t *out = NULL;
    size_t len = 7;
    assert_error(&err, dn_npy_encode(&out, &len, data, (int64_t[9]){ 1 }, 9, &err), DN_E_IMPOSSIBLE, "",
                 "9 dimensions");
    assert_error(&err, dn_npy_encode(&out, &len, data, (int64_t[]){ 1LL << 40, 1LL << 40 }, 2, &err), DN_E_RANGE, "",
                 "overflows");
    assert_error(&err, dn_npy_encode(&out, &len, data, (int64_t[]){ -1 }, 1, &err), DN_E_RANGE, "", "overflows");
    assert_null(out);
    assert_int_equal(len, 7);
}

static void sha256(void **state)
{
    (void)state;
    char hex[DN_SHA256_HEX_SIZE];
    assert_int_equal(dn_sha256_hex(hex, "abc", 3), 0);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(dn_sha256_hex(hex, NULL, 0), 0);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    dn_sha256 h;
    char block[1000];
    memset(block, 'a', sizeof block);
    assert_int_equal(dn_sha256_init(&h), 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(dn_sha256_update(&h, block, sizeof block), 0);
    dn_sha256_fini(&h, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    dn_sha256_fini(&h, hex);
    assert_int_equal(dn_sha256_init(&h), 0);
    dn_sha256_fini(&h, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(to_u8), cmocka_unit_test(png), cmocka_unit_test(grid),
                                        cmocka_unit_test(npy), cmocka_unit_test(sha256) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
