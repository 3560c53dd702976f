/* show_sixel.c - DEC sixels: bands of six lines, each drawn once per colour that it has.
 *
 * Greys have 64 levels, colours 6 x 7 x 6 with an ordered dither (Bayer 4x4). */
#include "show.h"

#include <stdlib.h>

enum { GREYS = 64, REDS = 6, GREENS = 7, BLUES = 6, COLOURS = REDS * GREENS * BLUES, BAND = 6 };

static bool is_grey(const dn_pixels *p)
{
    for (size_t i = 0; i < (size_t)p->width * p->height * 3; i += 3)
        if (p->rgb[i] != p->rgb[i + 1] || p->rgb[i] != p->rgb[i + 2])
            return false;
    return true;
}

/* 0..levels-1, with a dither of -8..7 sixteenths of a level. */
static int level(int value, int levels, int dither)
{
    int v = (value * (levels - 1) * 16 + 255 * (8 + dither)) / (255 * 16);
    return v < 0 ? 0 : v < levels ? v : levels - 1;
}

static int index_of(const uint8_t *rgb, bool grey, int x, int y)
{
    static const int bayer[4][4] = { { 0, 8, 2, 10 }, { 12, 4, 14, 6 }, { 3, 11, 1, 9 }, { 15, 7, 13, 5 } };
    if (grey)
        return level(rgb[0], GREYS, 0);
    int d = bayer[y & 3][x & 3] - 8;
    return (level(rgb[0], REDS, d) * GREENS + level(rgb[1], GREENS, d)) * BLUES + level(rgb[2], BLUES, d);
}

/* Registers take percents. */
static void define_colours(dn_buf *out, bool grey)
{
    for (int i = 0; i < (grey ? GREYS : COLOURS); i++) {
        int r = i / (GREENS * BLUES) * 100 / (REDS - 1), g = i / BLUES % GREENS * 100 / (GREENS - 1);
        int b = i % BLUES * 100 / (BLUES - 1), l = i * 100 / (GREYS - 1);
        dn_buf_printf(out, "#%d;2;%d;%d;%d", i, grey ? l : r, grey ? l : g, grey ? l : b);
    }
}

static void write_run(dn_buf *out, int bits, int n)
{
    if (n > 3)
        dn_buf_printf(out, "!%d%c", n, 63 + bits);
    for (; n <= 3 && n > 0; n--)
        dn_buf_printf(out, "%c", 63 + bits);
}

/* The registers of the picture [height, width]; NULL: no memory. */
static uint8_t *to_registers(const dn_pixels *p, bool grey)
{
    uint8_t *reg = malloc((size_t)p->width * p->height);
    for (int y = 0; reg && y < p->height; y++)
        for (int x = 0; x < p->width; x++) {
            size_t i = (size_t)y * p->width + x;
            reg[i] = (uint8_t)index_of(p->rgb + 3 * i, grey, x, y);
        }
    return reg;
}

/* One colour of a band of `lines` lines. */
static void write_colour(dn_buf *out, const uint8_t *band, int width, int lines, int colour)
{
    int run = 0, before = -1;
    dn_buf_printf(out, "#%d", colour);
    for (int x = 0; x < width; x++) {
        int bits = 0;
        for (int k = 0; k < lines; k++)
            bits |= (band[(size_t)k * width + x] == colour) << k;
        if (bits != before) {
            write_run(out, before, run);
            run = 0;
        }
        before = bits;
        run++;
    }
    write_run(out, before, run);
}

static void write_band(dn_buf *out, const uint8_t *band, int width, int lines)
{
    bool used[COLOURS] = { 0 };
    const char *again = "";
    for (size_t i = 0; i < (size_t)width * lines; i++)
        used[band[i]] = true;
    for (int colour = 0; colour < COLOURS; colour++)
        if (used[colour]) {
            dn_buf_puts(out, again);
            write_colour(out, band, width, lines, colour);
            again = "$";
        }
}

void dn_sixel_write(dn_buf *out, const dn_pixels *p)
{
    bool grey = is_grey(p);
    uint8_t *reg = to_registers(p, grey);
    if (!reg) {
        out->failed = true;
        return;
    }
    dn_buf_printf(out, "\033P0;1q\"1;1;%d;%d", p->width, p->height);
    define_colours(out, grey);
    for (int y = 0; y < p->height; y += BAND) {
        int lines = p->height - y < BAND ? p->height - y : BAND;
        if (y)
            dn_buf_puts(out, "-");
        write_band(out, reg + (size_t)y * p->width, p->width, lines);
    }
    dn_buf_puts(out, "\033\\\r\n");
    free(reg);
}
