/* show_blocks.c - half blocks in 24-bit colour: one cell is two pixels, the upper in the foreground's colour. */
#include "show.h"

#include <string.h>

static void set_colour(dn_buf *out, int ground, const uint8_t *rgb)
{
    dn_buf_printf(out, "\033[%d;2;%d;%d;%dm", ground, rgb[0], rgb[1], rgb[2]);
}

static bool changed(const uint8_t *now, const uint8_t *before) { return !before || memcmp(now, before, 3); }

void dn_blocks_write(dn_buf *out, const dn_pixels *p)
{
    for (int y = 0; y < p->height; y += 2) {
        const uint8_t *top = p->rgb + (size_t)y * p->width * 3, *fore = NULL, *back = NULL;
        const uint8_t *bottom = y + 1 < p->height ? top + (size_t)p->width * 3 : NULL;
        for (int x = 0; x < p->width; x++) {
            if (changed(top + 3 * x, fore))
                set_colour(out, 38, fore = top + 3 * x);
            if (bottom && changed(bottom + 3 * x, back))
                set_colour(out, 48, back = bottom + 3 * x);
            dn_buf_puts(out, "\u2580");
        }
        dn_buf_puts(out, "\033[0m\r\n");
    }
}
