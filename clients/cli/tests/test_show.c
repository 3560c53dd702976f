/* Pictures in terminals: what is written is decoded again, by readers of the test's own. */
#include "base64.h"
#include "show.h"

#include <setjmp.h>
#include <spng.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define LENGTH(a) (sizeof(a) / sizeof *(a))
static const dn_screen screen = { 80, 24, 8, 16 };

static uint8_t *png_of(size_t *n, const uint8_t *pixels, int width, int height, int type)
{
    spng_ctx *ctx = spng_ctx_new(SPNG_CTX_ENCODER);
    struct spng_ihdr ihdr = { .width = width, .height = height, .bit_depth = 8, .color_type = type };
    int channels = type == SPNG_COLOR_TYPE_GRAYSCALE ? 1 : 3, err;
    spng_set_option(ctx, SPNG_ENCODE_TO_BUFFER, 1);
    assert_int_equal(spng_set_ihdr(ctx, &ihdr), 0);
    assert_int_equal(
        spng_encode_image(ctx, pixels, (size_t)width * height * channels, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE), 0);
    uint8_t *out = spng_get_png_buffer(ctx, n, &err);
    spng_ctx_free(ctx);
    return out;
}

/* A picture of no symmetry. */
static uint8_t *picture(size_t *n, int width, int height, bool grey)
{
    int channels = grey ? 1 : 3;
    uint8_t *pixels = malloc((size_t)width * height * channels);
    for (int i = 0; i < width * height * channels; i++)
        pixels[i] = (uint8_t)(i * 37 + i / 11 * 5);
    uint8_t *png = png_of(n, pixels, width, height, grey ? SPNG_COLOR_TYPE_GRAYSCALE : SPNG_COLOR_TYPE_TRUECOLOR);
    free(pixels);
    return png;
}

static char *shown(int *rows, enum dn_show how, const dn_screen *on, const uint8_t *png, size_t n)
{
    dn_buf b;
    size_t len;
    dn_buf_init(&b, 64 << 20);
    assert_true(dn_show_picture(&b, rows, how, on, png, n));
    return dn_buf_take(&b, &len);
}

/* Kitty's chunks put together again are the PNG; each is of at most 4096 bytes, only the last says so. */
static void kitty(void **state)
{
    (void)state;
    static const int sides[] = { 1, 28, 90, 600 };
    for (size_t i = 0; i < LENGTH(sides); i++) {
        size_t n, len = 0, got;
        int rows, columns = 0, high = 0;
        uint8_t *png = picture(&n, sides[i], sides[i], i & 1);
        char *text = shown(&rows, DN_SHOW_KITTY, &screen, png, n), *s = text;
        uint8_t *all = malloc(n + 3);
        assert_int_equal(sscanf(text, "\033_Ga=T,f=100,q=2,c=%d,r=%d,", &columns, &high), 2);
        assert_true(columns >= 1 && columns <= 80 && high >= 1 && high <= 22 && rows == high);
        for (bool more = true; more;) {
            char *m = strstr(s, "m="), *end = strstr(s, "\033\\");
            assert_true(!strncmp(s, "\033_G", 3) && m && end && m < end && m[3] == ';' && end - m - 4 <= 4096);
            more = m[2] == '1';
            uint8_t *part = dn_base64_decode(&got, m + 4, (size_t)(end - m - 4));
            assert_true(part && len + got <= n);
            memcpy(all + len, part, got);
            free(part);
            len += got;
            s = end + 2;
        }
        assert_string_equal(s, "\r\n");
        assert_int_equal(len, n);
        assert_memory_equal(all, png, n);
        free(all);
        free(text);
        free(png);
    }
}

static void iterm(void **state)
{
    (void)state;
    size_t n, size, got;
    int rows, columns, high, at = 0;
    uint8_t *png = picture(&n, 28, 28, true);
    char *text = shown(&rows, DN_SHOW_ITERM, &screen, png, n);
    assert_int_equal(sscanf(text, "\033]1337;File=inline=1;size=%zu;width=%d;height=%d;preserveAspectRatio=1:%n", &size,
                            &columns, &high, &at),
                     3);
    assert_true(at > 0 && size == n);
    assert_true(columns == 42 && high == 21 && rows == 21); /* 28 px, 12 times, in cells of 8x16 */
    uint8_t *bytes = dn_base64_decode(&got, text + at, strcspn(text + at, "\a"));
    assert_non_null(bytes);
    assert_int_equal(got, n);
    assert_memory_equal(bytes, png, n);
    assert_string_equal(strchr(text, '\a'), "\a\r\n");
    free(bytes);
    free(text);
    free(png);
}

static void blocks_to_the_letter(void **state)
{
    (void)state;
    static const uint8_t rgb[] = { 255, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 7, 8, 9 }; /* [3, 2, 3] */
    size_t n;
    int rows;
    dn_screen small = { 2, 4, 8, 16 }; /* no room for twice the size */
    uint8_t *png = png_of(&n, rgb, 2, 3, SPNG_COLOR_TYPE_TRUECOLOR);
    char *text = shown(&rows, DN_SHOW_BLOCKS, &small, png, n);
    assert_int_equal(rows, 2);
    assert_string_equal(text, "\033[38;2;255;0;0m\033[48;2;0;255;0m\u2580\033[48;2;0;0;255m\u2580\033[0m\r\n"
                              "\033[38;2;9;9;9m\u2580\033[38;2;7;8;9m\u2580\033[0m\r\n");
    free(text);
    free(png);
}

/* Four pixels become their mean; two are doubled. */
static void resized(void **state)
{
    (void)state;
    static const uint8_t grey[] = { 0, 10, 100, 110, 20, 31, 120, 130 }; /* [2, 4] */
    size_t n;
    int rows;
    dn_screen two = { 2, 24, 8, 16 }, four = { 5, 24, 8, 16 };
    uint8_t *png = png_of(&n, grey, 4, 2, SPNG_COLOR_TYPE_GRAYSCALE);
    char *text = shown(&rows, DN_SHOW_BLOCKS, &two, png, n);
    assert_string_equal(text, "\033[38;2;15;15;15m\u2580\033[38;2;115;115;115m\u2580\033[0m\r\n");
    free(text);
    free(png);
    png = png_of(&n, grey, 2, 1, SPNG_COLOR_TYPE_GRAYSCALE);
    text = shown(&rows, DN_SHOW_BLOCKS, &four, png, n);
    assert_string_equal(
        text,
        "\033[38;2;0;0;0m\033[48;2;0;0;0m\u2580\u2580\033[38;2;10;10;10m\033[48;2;10;10;10m\u2580\u2580\033[0m\r\n");
    free(text);
    free(png);
}

/* ---- a reader of sixels: colour registers in percents, bands, runs ---- */

typedef struct raster {
    int width, height;
    int rgb[256][3];
    int *reg; /* [height, width], -1: not drawn */
} raster;

static raster read_sixel(const char *s)
{
    raster r = { 0 };
    int at = 0, x = 0, y = 0, colour = 0;
    assert_int_equal(sscanf(s, "\033P0;1q\"1;1;%d;%d%n", &r.width, &r.height, &at), 2);
    r.reg = malloc(sizeof(int) * r.width * r.height);
    for (int i = 0; i < r.width * r.height; i++)
        r.reg[i] = -1;
    for (s += at; *s && *s != '\033';) {
        int repeat = 1, used = 0, c[3];
        if (*s == '#') {
            assert_int_equal(sscanf(s, "#%d%n", &colour, &used), 1);
            assert_true(colour >= 0 && colour < 256);
            s += used;
            if (sscanf(s, ";2;%d;%d;%d%n", &c[0], &c[1], &c[2], &used) == 3) {
                memcpy(r.rgb[colour], c, sizeof c);
                s += used;
            }
            continue;
        }
        if (*s == '$' || *s == '-') {
            y += *s++ == '-' ? 6 : 0;
            x = 0;
            continue;
        }
        if (*s == '!') {
            assert_int_equal(sscanf(s, "!%d%n", &repeat, &used), 1);
            s += used;
        }
        int bits = *s++ - 63;
        assert_true(bits >= 0 && bits < 64);
        for (; repeat; repeat--, x++)
            for (int k = 0; k < 6; k++)
                if (bits >> k & 1) {
                    assert_true(x < r.width && y + k < r.height);
                    assert_int_equal(r.reg[(y + k) * r.width + x], -1); /* drawn once */
                    r.reg[(y + k) * r.width + x] = colour;
                }
    }
    assert_string_equal(s, "\033\\\r\n");
    return r;
}

/* Every pixel is drawn, none is further from its colour than a step of the palette (and, in colour, the dither). */
static void sixel(void **state)
{
    (void)state;
    static const int sizes[][2] = { { 1, 1 }, { 28, 28 }, { 13, 7 }, { 64, 36 } };
    for (int grey = 0; grey < 2; grey++)
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            size_t n;
            int rows;
            /* columns of one pixel: no room to enlarge */
            dn_screen exact = { sizes[i][0], 24, 1, sizes[i][1] / 20 + 1 };
            uint8_t *png = picture(&n, sizes[i][0], sizes[i][1], grey);
            char *text = shown(&rows, DN_SHOW_SIXEL, &exact, png, n);
            raster r = read_sixel(text);
            dn_pixels p;
            assert_true(dn_png_decode(&p, png, n));
            assert_true(r.width == p.width && r.height == p.height);
            for (int k = 0; k < r.width * r.height; k++)
                for (int c = 0; c < 3; c++) {
                    assert_true(r.reg[k] >= 0);
                    assert_true(abs(r.rgb[r.reg[k]][c] * 255 / 100 - p.rgb[3 * k + c]) <= (grey ? 6 : 54));
                }
            free(r.reg);
            free(p.rgb);
            free(text);
            free(png);
        }
}

/* A dithered grey stays in the middle of its neighbours. */
static void sixel_dither_keeps_the_mean(void **state)
{
    (void)state;
    enum { SIDE = 16 };
    for (int value = 0; value < 256; value += 5) {
        uint8_t rgb[SIDE * SIDE * 3];
        for (int i = 0; i < SIDE * SIDE * 3; i++)
            rgb[i] = (uint8_t)value;
        rgb[0] ^= 1; /* not grey */
        dn_buf b;
        dn_buf_init(&b, 1 << 20);
        dn_sixel_write(&b, &(dn_pixels){ SIDE, SIDE, rgb });
        raster r = read_sixel(b.data);
        double sum = 0;
        for (int i = 0; i < SIDE * SIDE; i++)
            sum += r.rgb[r.reg[i]][1] * 2.55;
        assert_true(sum / (SIDE * SIDE) > value - 5 && sum / (SIDE * SIDE) < value + 5);
        free(r.reg);
        dn_buf_fini(&b);
    }
}

static void refused(const uint8_t *bytes, size_t n)
{
    static const enum dn_show decoding[] = { DN_SHOW_BLOCKS, DN_SHOW_SIXEL };
    for (int i = 0; i < 2; i++) {
        dn_buf b;
        int rows;
        dn_buf_init(&b, 1 << 20);
        assert_false(dn_show_picture(&b, &rows, decoding[i], &screen, bytes, n));
        dn_buf_fini(&b);
    }
}

static void broken_pictures(void **state)
{
    (void)state;
    size_t n;
    uint8_t *png = picture(&n, 40, 30, false);
    for (size_t len = 0; len < n - 16; len += len < 60 ? 1 : 97) { /* without its IEND it is still whole */
        uint8_t *cut = malloc(len ? len : 1);
        memcpy(cut, png, len);
        refused(cut, len);
        free(cut);
    }
    uint8_t *lie = malloc(n);
    for (size_t i = 16; i < 24; i++) { /* another width or height */
        memcpy(lie, png, n);
        lie[i] ^= 0x7f;
        refused(lie, n);
    }
    free(lie);
    free(png);
    refused((const uint8_t *)"GIF89a..................................", 40);
}

/* A terminal, as a list of variables. */
static const char *const *variables;
static char *get(const char *name)
{
    for (const char *const *v = variables; *v; v += 2)
        if (!strcmp(v[0], name))
            return (char *)v[1];
    return NULL;
}

static void detection(void **state)
{
    (void)state;
    /* clang-format off */
    static const struct {
        enum dn_show how;
        const char *v[9];
    } cases[] = {
        { DN_SHOW_NEVER, { NULL } },
        { DN_SHOW_NEVER, { "TERM", "xterm-256color", NULL } },
        { DN_SHOW_BLOCKS, { "TERM", "xterm-256color", "COLORTERM", "truecolor", NULL } },
        { DN_SHOW_BLOCKS, { "COLORTERM", "24bit", NULL } },
        { DN_SHOW_NEVER, { "COLORTERM", "yes", NULL } },
        { DN_SHOW_KITTY, { "TERM", "xterm-kitty", "COLORTERM", "truecolor", NULL } },
        { DN_SHOW_KITTY, { "TERM", "xterm-256color", "KITTY_WINDOW_ID", "1", NULL } },
        { DN_SHOW_KITTY, { "TERM_PROGRAM", "ghostty", NULL } },
        { DN_SHOW_ITERM, { "TERM_PROGRAM", "iTerm.app", "COLORTERM", "truecolor", NULL } },
        { DN_SHOW_ITERM, { "LC_TERMINAL", "iTerm2", NULL } },
        { DN_SHOW_ITERM, { "TERM_PROGRAM", "WezTerm", NULL } },
        { DN_SHOW_SIXEL, { "TERM", "foot-extra", "COLORTERM", "truecolor", NULL } },
        { DN_SHOW_BLOCKS, { "TERM", "tmux-256color", "TMUX", "x", "KITTY_WINDOW_ID", "1", "COLORTERM", "truecolor", NULL } },
        { DN_SHOW_NEVER, { "TERM", "screen", "STY", "x", "TERM_PROGRAM", "iTerm.app", NULL } },
        { DN_SHOW_NEVER, { "TERM", "dumb", "COLORTERM", "truecolor", NULL } },
        { DN_SHOW_NEVER, { "KITTY_WINDOW_ID", "", NULL } },
    };
    /* clang-format on */
    for (size_t i = 0; i < LENGTH(cases); i++) {
        variables = cases[i].v;
        assert_int_equal(dn_show_detect(get), cases[i].how);
    }
    assert_int_equal(dn_show_find("sixel"), DN_SHOW_SIXEL);
    assert_int_equal(dn_show_find("Sixel"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kitty),           cmocka_unit_test(iterm),     cmocka_unit_test(blocks_to_the_letter),
        cmocka_unit_test(resized),         cmocka_unit_test(sixel),     cmocka_unit_test(sixel_dither_keeps_the_mean),
        cmocka_unit_test(broken_pictures), cmocka_unit_test(detection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
