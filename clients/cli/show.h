/* show.h - a PNG as a terminal takes it: kitty's and iTerm2's protocols, sixels, or half blocks in 24-bit colour.
 *
 * Encoders write into a buffer and touch no terminal. The picture may come from anywhere: it is decoded within limits,
 * and what goes through undecoded goes as base64. */
#ifndef DN_CLI_SHOW_H
#define DN_CLI_SHOW_H

#include "buf.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* clang-format off */
#define DN_SHOWS(X) X(NEVER, "never") X(KITTY, "kitty") X(ITERM, "iterm") X(SIXEL, "sixel") X(BLOCKS, "blocks")
/* clang-format on */
enum dn_show {
#define X(id, name) DN_SHOW_##id,
    DN_SHOWS(X)
#undef X
        DN_SHOW_COUNT
};

/* The terminal. */
typedef struct dn_screen {
    int columns, rows;  /* cells */
    int cell_w, cell_h; /* pixels of a cell */
} dn_screen;

/* RGB, 8 bits, [height, width, 3]. */
typedef struct dn_pixels {
    int width, height;
    uint8_t *rgb;
} dn_pixels;

/* enum dn_show of a name, -1 if there is none. */
int dn_show_find(const char *name);
/* What the terminal says of itself in the environment; `get` is getenv. */
enum dn_show dn_show_detect(char *(*get)(const char *name));
/* The terminal of a descriptor; a usual one if it does not say. */
dn_screen dn_screen_of(int fd);

/* Width and height of a PNG from its header. False if it is none. */
bool dn_png_size(const uint8_t *png, size_t n, int *width, int *height);
/* Decode; false when it is no PNG, a broken one, or beyond 64 million pixels. Free `rgb`. */
bool dn_png_decode(dn_pixels *out, const uint8_t *png, size_t n);

/* Write what draws the picture, from the first column on; afterwards the cursor is in the first column below it. Small
 * pictures are enlarged by whole factors, large ones shrunk to the screen. *rows: how many lines it took. False when
 * the picture cannot be read, or no memory. */
bool dn_show_picture(dn_buf *out, int *rows, enum dn_show how, const dn_screen *screen, const uint8_t *png, size_t n);

/* show_sixel.c, show_blocks.c: pixels that fit already. */
void dn_sixel_write(dn_buf *out, const dn_pixels *p);
void dn_blocks_write(dn_buf *out, const dn_pixels *p);

#endif
