/* test_pictures.c - PNG, JPEG and WebP of every kind become the right pixels; those that lie, or are cut, are refused
 * before memory is asked for. */
#include "make.h"

#include "decode.h"

#include <spng.h>
#include <stdlib.h>
#include <string.h>

enum { H = 9, W = 7, N = H * W };

static void expect_pixels(blob b, const uint8_t *want, int height, int width, int channels, int tolerance)
{
    dn_picture p = { 0 };
    dn_error err = { 0 };
    size_t cost;
    assert_int_equal(dn_picture_cost(&cost, b.p, b.len, &err), 0);
    assert_true(cost >= (size_t)(height * width * 4));
    if (dn_picture_decode(&p, b.p, b.len, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(p.height, height);
    assert_int_equal(p.width, width);
    assert_int_equal(p.channels, channels);
    for (int i = 0; i < height * width * channels; i++)
        if (abs(p.pixels[i] - want[i]) > tolerance)
            fail_msg("value %d is %d, not %d", i, p.pixels[i], want[i]);
    free(p.pixels);
    blob_free(&b);
}

static void expect_refused(blob b, int code, const char *text)
{
    dn_picture p = { 0 };
    dn_error err = { 0 };
    assert_error(&err, dn_picture_decode(&p, b.p, b.len, &err), code, "", text);
    assert_null(p.pixels);
    blob_free(&b);
}

/* [n,4] over white, worked out in real numbers. */
static void over_white(uint8_t *out, const uint8_t *rgba, int n)
{
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 3; c++) {
            double a = rgba[4 * i + 3] / 255.0;
            out[3 * i + c] = (uint8_t)(rgba[4 * i + c] * a + 255 * (1 - a) + 0.5);
        }
}

static void png_kinds(void **state)
{
    (void)state;
    uint8_t rgba[4 * N], rgb[3 * N], grey[N], want[3 * N];
    noise(rgba, sizeof rgba, 1), noise(rgb, sizeof rgb, 2), noise(grey, sizeof grey, 3);
    expect_pixels(png_make(grey, H, W, 1), grey, H, W, 1, 0);
    expect_pixels(png_make(rgb, H, W, 3), rgb, H, W, 3, 0);
    over_white(want, rgba, N);
    expect_pixels(png_make(rgba, H, W, 4), want, H, W, 3, 1);
    /* equal channels are grey, alpha or not */
    uint8_t equal[4 * N];
    for (int i = 0; i < N; i++)
        memset(equal + 3 * i, grey[i], 3);
    expect_pixels(png_make(equal, H, W, 3), grey, H, W, 1, 0);
    for (int i = 0; i < N; i++)
        memcpy(equal + 4 * i, (uint8_t[]){ grey[i], grey[i], grey[i], 0 }, 4);
    memset(want, 255, N);
    expect_pixels(png_make(equal, H, W, 4), want, H, W, 1, 0);
}

static void png_depths(void **state)
{
    (void)state;
    uint8_t wide[6 * N], high[3 * N], bits[H] = { 0 }, want[3 * N], index[2 * H];
    noise(wide, sizeof wide, 4);
    for (int i = 0; i < 3 * N; i++)
        high[i] = wide[2 * i + 1]; /* the encoder takes the machine's order */
    expect_pixels(png_make_as(wide, sizeof wide, H, W, 16, SPNG_COLOR_TYPE_TRUECOLOR, NULL, 0), high, H, W, 3, 0);
    expect_pixels(png_make_as(wide, 2 * N, H, W, 16, SPNG_COLOR_TYPE_GRAYSCALE, NULL, 0), high, H, W, 1, 0);
    noise(bits, sizeof bits, 5);
    for (int i = 0; i < N; i++)
        want[i] = bits[i / W] >> (7 - i % W) & 1 ? 255 : 0;
    expect_pixels(png_make_as(bits, sizeof bits, H, W, 1, SPNG_COLOR_TYPE_GRAYSCALE, NULL, 0), want, H, W, 1, 0);
    /* two bits a pixel into a palette of four, the first of which may be half transparent */
    uint8_t rgba[4 * N];
    noise(index, sizeof index, 6);
    for (int i = 0; i < N; i++) {
        int k = index[i / W * 2 + i % W / 4] >> (6 - 2 * (i % W % 4)) & 3;
        memcpy(rgba + 4 * i, (uint8_t[]){ (uint8_t)(60 * k), 10, (uint8_t)(200 - 50 * k), k == 0 ? 128 : 255 }, 4);
        memcpy(want + 3 * i, rgba + 4 * i, 3);
    }
    expect_pixels(png_make_as(index, sizeof index, H, W, 2, SPNG_COLOR_TYPE_INDEXED, NULL, 0), want, H, W, 3, 0);
    over_white(want, rgba, N);
    expect_pixels(png_make_as(index, sizeof index, H, W, 2, SPNG_COLOR_TYPE_INDEXED, (uint8_t[]){ 128 }, 1), want, H, W,
                  3, 1);
}

/* Smooth, so that a lossy picture is close. */
static void ramp(uint8_t *p, int height, int width, int channels)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < channels; c++)
                *p++ = (uint8_t)(20 + 4 * y + 3 * x + 20 * c);
}

static void jpeg_kinds(void **state)
{
    (void)state;
    uint8_t p[24 * 20 * 4];
    ramp(p, 24, 20, 1);
    expect_pixels(jpeg_make(p, 24, 20, 1, 98), p, 24, 20, 1, 3);
    ramp(p, 24, 20, 3);
    expect_pixels(jpeg_make(p, 24, 20, 3, 98), p, 24, 20, 3, 5);
}

/* Inks c and k, inverted as Adobe's programs write them, show as c k / 255. */
static void jpeg_of_inks(void **state)
{
    (void)state;
    uint8_t inks[24 * 20 * 4], want[24 * 20 * 3];
    ramp(inks, 24, 20, 4);
    for (int i = 0; i < 24 * 20; i++)
        for (int c = 0; c < 3; c++)
            want[3 * i + c] = (uint8_t)(inks[4 * i + c] * inks[4 * i + 3] / 255.0 + 0.5);
    expect_pixels(jpeg_make(inks, 24, 20, 4, 98), want, 24, 20, 3, 5);
}

/* A JPEG with an EXIF segment after its first marker: `entries` of the first directory. */
static blob with_exif(blob jpeg, bool big, const uint8_t *entry, int entries, size_t cut)
{
    uint8_t segment[128] = "\xff\xe1\0\0Exif\0\0";
    uint8_t *tiff = segment + 10;
    memcpy(tiff, big ? "MM\0\x2a\0\0\0\x08" : "II\x2a\0\x08\0\0\0", 8);
    tiff[8] = big ? 0 : (uint8_t)entries, tiff[9] = big ? (uint8_t)entries : 0;
    memcpy(tiff + 10, entry, 12);
    size_t len = 10 + 10 + 12 - cut;
    segment[3] = (uint8_t)(len - 2);
    blob b = { 0 };
    blob_add(&b, jpeg.p, 2);
    blob_add(&b, segment, len);
    blob_add(&b, jpeg.p + 2, jpeg.len - 2);
    blob_free(&jpeg);
    return b;
}

/* Where the pixel at the top left of what is stored is seen, and the one right of it: TIFF 6.0, tag 274. */
static void jpeg_turned(void **state)
{
    (void)state;
    enum { SH = 16, SW = 24 };
    uint8_t p[SH * SW], want[SH * SW];
    ramp(p, SH, SW, 1);
    for (int o = 1; o <= 8; o++) {
        int height = o > 4 ? SW : SH, width = o > 4 ? SH : SW;
        for (int y = 0; y < SH; y++)
            for (int x = 0; x < SW; x++) {
                int to_y = o <= 4 ? (o >= 3 ? SH - 1 - y : y) : o == 5 || o == 6 ? x : SW - 1 - x;
                int to_x = o <= 4 ? (o == 2 || o == 3 ? SW - 1 - x : x) : o == 5 || o == 8 ? y : SH - 1 - y;
                want[to_y * width + to_x] = p[y * SW + x];
            }
        uint8_t little[12] = { 0x12, 1, 3, 0, 1, 0, 0, 0, (uint8_t)o },
                big[12] = { 1, 0x12, 0, 3, 0, 0, 0, 1, 0, (uint8_t)o };
        expect_pixels(with_exif(jpeg_make(p, SH, SW, 1, 98), false, little, 1, 0), want, height, width, 1, 3);
        expect_pixels(with_exif(jpeg_make(p, SH, SW, 1, 98), true, big, 1, 0), want, height, width, 1, 3);
    }
    /* what cannot be read turns nothing */
    uint8_t six[12] = { 0x12, 1, 3, 0, 1, 0, 0, 0, 6 }, nine[12] = { 0x12, 1, 3, 0, 1, 0, 0, 0, 9 };
    expect_pixels(with_exif(jpeg_make(p, SH, SW, 1, 98), false, nine, 1, 0), p, SH, SW, 1, 3);
    expect_pixels(with_exif(jpeg_make(p, SH, SW, 1, 98), false, six, 0, 0), p, SH, SW, 1, 3);
    for (size_t cut = 1; cut < 24; cut++)
        expect_pixels(with_exif(jpeg_make(p, SH, SW, 1, 98), false, six, 1, cut), p, SH, SW, 1, 3);
}

static void webp_kinds(void **state)
{
    (void)state;
    uint8_t rgba[4 * N], rgb[3 * N], want[3 * N];
    noise(rgba, sizeof rgba, 7), noise(rgb, sizeof rgb, 8);
    expect_pixels(webp_make(rgb, H, W, 3), rgb, H, W, 3, 0);
    for (int i = 0; i < N; i++)
        rgba[4 * i + 3] |= 1; /* what is under a zero is not kept */
    over_white(want, rgba, N);
    expect_pixels(webp_make(rgba, H, W, 4), want, H, W, 3, 1);
    blob b = { 0 };
    blob_str(&b, "RIFF\x2a\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x08\0\0\x08\0\0"
                 "ANIM\x06\0\0\0\0\0\0\0\0\0ANMF\x00\0\0\0");
    expect_refused(b, DN_E_UNSUPPORTED, "animation");
}

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (0xedb88320u & -(c & 1));
    }
    return ~c;
}

/* A PNG whose header, with a good checksum, claims another size. */
static blob png_claiming(uint32_t height, uint32_t width)
{
    uint8_t grey[N] = { 0 };
    blob b = png_make(grey, H, W, 1);
    put_be32(b.p + 16, width);
    put_be32(b.p + 20, height);
    put_be32(b.p + 29, crc32_of(b.p + 12, 17));
    return b;
}

static void png_lies(void **state)
{
    (void)state;
    expect_refused(png_claiming(100000, 100000), DN_E_LIMIT, "PNG");
    expect_refused(png_claiming(8193, 1), DN_E_LIMIT, "PNG");
    expect_refused(png_claiming(8192, 8192), DN_E_LIMIT, "in all");
    expect_refused(png_claiming(0, 7), DN_E_FORMAT, "PNG");
    expect_refused(png_claiming(0xffffffff, 7), DN_E_FORMAT, "PNG");
    expect_refused(png_claiming(H + 1, W), DN_E_FORMAT, "PNG"); /* more rows than there are */
    expect_refused(png_claiming(4000, 4000), DN_E_FORMAT, "PNG");
}

static void jpeg_lies(void **state)
{
    (void)state;
    uint8_t p[16 * 16] = { 0 };
    static const struct {
        uint16_t height, width;
        int code;
        const char *text;
    } cases[] = { { 65500, 65500, DN_E_LIMIT, "a side" },
                  { 8192, 8192, DN_E_LIMIT, "in all" },
                  { 0, 16, DN_E_FORMAT, "" },
                  { 64, 64, DN_E_FORMAT, "JPEG" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        noise(p, sizeof p, 9);
        blob b = jpeg_make(p, 16, 16, 1, 90);
        uint8_t *sof = memmem(b.p, b.len, "\xff\xc0", 2);
        assert_non_null(sof);
        sof[5] = (uint8_t)(cases[i].height >> 8), sof[6] = (uint8_t)cases[i].height;
        sof[7] = (uint8_t)(cases[i].width >> 8), sof[8] = (uint8_t)cases[i].width;
        expect_refused(b, cases[i].code, cases[i].text);
    }
}

static void webp_lies(void **state)
{
    (void)state;
    uint8_t rgb[3 * N];
    noise(rgb, sizeof rgb, 10);
    blob b = webp_make(rgb, H, W, 3); /* RIFF, VP8L: signature 2f, then 14 bits of width - 1 and of height - 1 */
    assert_memory_equal(b.p + 12, "VP8L", 4);
    uint32_t bits = 16382u | 16382u << 14;
    memcpy(b.p + 21, &bits, 4);
    expect_refused(b, DN_E_LIMIT, "a side");
    b = webp_make(rgb, H, W, 3);
    bits = 4000u | 4000u << 14;
    memcpy(b.p + 21, &bits, 4);
    expect_refused(b, DN_E_FORMAT, "WebP");
}

/* Cut anywhere a picture is an error (but for the last checksum of a PNG, which says nothing of the pixels); with a
 * byte changed it is one too or has its size. */
static void damaged(blob b)
{
    dn_picture whole;
    assert_int_equal(dn_picture_decode(&whole, b.p, b.len, NULL), 0);
    for (size_t len = 0; len < b.len; len++) {
        uint8_t *exact = malloc(len + 1); /* a sanitizer sees a read past it */
        dn_picture p = { 0 };
        dn_error err = { 0 };
        memcpy(exact, b.p, len);
        exact = realloc(exact, len ? len : 1);
        int rc = dn_picture_decode(&p, exact, len, &err);
        if (rc == 0 && (dn_picture_kind_of(b.p, b.len) != DN_PNG || len + 4 < b.len ||
                        memcmp(p.pixels, whole.pixels, (size_t)(p.height * p.width * p.channels)) != 0))
            fail_msg("cut to %zu of %zu bytes, and fine", len, b.len);
        assert_true(rc == 0 || (err.message[0] && !p.pixels));
        free(p.pixels);
        free(exact);
    }
    for (size_t i = 0; i < b.len; i++) {
        dn_picture p = { 0 };
        dn_error err = { 0 };
        b.p[i] ^= 0x55;
        int rc = dn_picture_decode(&p, b.p, b.len, &err);
        b.p[i] ^= 0x55;
        assert_true(rc == 0 ? p.pixels != NULL : !p.pixels && err.message[0]);
        free(p.pixels);
    }
    free(whole.pixels);
    blob_free(&b);
}

static void damaged_pictures(void **state)
{
    (void)state;
    uint8_t p[4 * 16 * 16];
    noise(p, sizeof p, 11);
    damaged(png_make(p, H, W, 1));
    damaged(png_make(p, H, W, 4));
    damaged(jpeg_make(p, 16, 16, 3, 80));
    damaged(webp_make(p, H, W, 3));
    damaged(webp_make(p, H, W, 4));
    blob b = { 0 };
    blob_str(&b, "GIF89a and more of it");
    expect_refused(b, DN_E_FORMAT, "neither");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(png_kinds),   cmocka_unit_test(png_depths),       cmocka_unit_test(jpeg_kinds),
        cmocka_unit_test(webp_kinds),  cmocka_unit_test(png_lies),         cmocka_unit_test(jpeg_lies),
        cmocka_unit_test(webp_lies),   cmocka_unit_test(damaged_pictures), cmocka_unit_test(jpeg_of_inks),
        cmocka_unit_test(jpeg_turned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
