/* show.c - which protocol, which size; kitty's and iTerm2's, which take the PNG as it is. */
#include "show.h"

#include <limits.h>
#include <spng.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

enum {
    SIDE_MAX = 1 << 15,
    PIXELS_MAX = 64 << 20,
    CHUNK_MAX = 64 << 20,
    LINES_ZOOMED = 24, /* a small picture is enlarged up to so many lines */
    KITTY_CHUNK = 3072 /* bytes, 4096 in base64: the protocol's limit */
};

static const char *const names[DN_SHOW_COUNT] = {
#define X(id, name) name,
    DN_SHOWS(X)
#undef X
};

int dn_show_find(const char *name)
{
    for (int i = 0; i < DN_SHOW_COUNT; i++)
        if (!strcmp(names[i], name))
            return i;
    return -1;
}

/* clang-format off */
/* The first row that matches decides. `value` NULL: any; it matches as a prefix. */
static const struct {
    const char *variable, *value;
    enum dn_show how;
} signs[] = {
    { "TERM", "dumb", DN_SHOW_NEVER },
    { "TMUX", NULL, DN_SHOW_BLOCKS }, /* multiplexers do not pass pictures on */
    { "STY", NULL, DN_SHOW_BLOCKS },
    { "TERM", "tmux", DN_SHOW_BLOCKS },
    { "TERM", "screen", DN_SHOW_BLOCKS },
    { "TERM", "xterm-kitty", DN_SHOW_KITTY },
    { "KITTY_WINDOW_ID", NULL, DN_SHOW_KITTY },
    { "TERM", "xterm-ghostty", DN_SHOW_KITTY },
    { "TERM_PROGRAM", "ghostty", DN_SHOW_KITTY },
    { "TERM_PROGRAM", "iTerm.app", DN_SHOW_ITERM },
    { "LC_TERMINAL", "iTerm2", DN_SHOW_ITERM },
    { "TERM_PROGRAM", "WezTerm", DN_SHOW_ITERM },
    { "TERM_PROGRAM", "mintty", DN_SHOW_ITERM },
    { "TERM", "foot", DN_SHOW_SIXEL },
    { "TERM", "mlterm", DN_SHOW_SIXEL },
    { "TERM", "contour", DN_SHOW_SIXEL },
    { "TERM", "xterm-sixel", DN_SHOW_SIXEL },
    { "COLORTERM", NULL, DN_SHOW_BLOCKS },
};
/* clang-format on */

static bool has_true_colour(char *(*get)(const char *))
{
    const char *c = get("COLORTERM");
    return c && (!strcmp(c, "truecolor") || !strcmp(c, "24bit"));
}

enum dn_show dn_show_detect(char *(*get)(const char *name))
{
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        const char *v = get(signs[i].variable);
        if (!v || !*v || (signs[i].value && strncmp(v, signs[i].value, strlen(signs[i].value))))
            continue;
        return signs[i].how == DN_SHOW_BLOCKS && !has_true_colour(get) ? DN_SHOW_NEVER : signs[i].how;
    }
    return DN_SHOW_NEVER;
}

dn_screen dn_screen_of(int fd)
{
    struct winsize w = { 0 };
    dn_screen s = { 80, 24, 8, 16 };
    if (ioctl(fd, TIOCGWINSZ, &w))
        return s;
    if (w.ws_col >= 2 && w.ws_row >= 2) {
        s.columns = w.ws_col;
        s.rows = w.ws_row;
        if (w.ws_xpixel / w.ws_col >= 2 && w.ws_ypixel / w.ws_row >= 2) {
            s.cell_w = w.ws_xpixel / w.ws_col;
            s.cell_h = w.ws_ypixel / w.ws_row;
        }
    }
    return s;
}

/* ---- PNG ------------------------------------------------------------------------------------------------------- */

bool dn_png_size(const uint8_t *png, size_t n, int *width, int *height)
{
    static const uint8_t head[16] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0, 0, 0, 13, 'I', 'H', 'D', 'R' };
    if (n < 24 || memcmp(png, head, sizeof head))
        return false;
    uint32_t w = (uint32_t)png[16] << 24 | png[17] << 16 | png[18] << 8 | png[19];
    uint32_t h = (uint32_t)png[20] << 24 | png[21] << 16 | png[22] << 8 | png[23];
    if (!w || !h || w > SIDE_MAX || h > SIDE_MAX)
        return false;
    *width = (int)w;
    *height = (int)h;
    return true;
}

static bool decode(spng_ctx *ctx, dn_pixels *out, const uint8_t *png, size_t n)
{
    size_t size = 0;
    if (spng_set_image_limits(ctx, SIDE_MAX, SIDE_MAX) || spng_set_chunk_limits(ctx, CHUNK_MAX, CHUNK_MAX) ||
        spng_set_png_buffer(ctx, png, n) || spng_decoded_image_size(ctx, SPNG_FMT_RGB8, &size))
        return false;
    if (size != (size_t)out->width * out->height * 3)
        return false;
    out->rgb = malloc(size);
    return out->rgb && !spng_decode_image(ctx, out->rgb, size, SPNG_FMT_RGB8, 0);
}

bool dn_png_decode(dn_pixels *out, const uint8_t *png, size_t n)
{
    dn_pixels p = { 0 };
    if (!dn_png_size(png, n, &p.width, &p.height) || (int64_t)p.width * p.height > PIXELS_MAX)
        return false;
    spng_ctx *ctx = spng_ctx_new(0);
    bool ok = ctx && decode(ctx, &p, png, n);
    spng_ctx_free(ctx);
    if (ok)
        *out = p;
    else
        free(p.rgb);
    return ok;
}

/* ---- size ------------------------------------------------------------------------------------------------------ */

/* The picture in units of w_unit x h_unit pixels: enlarged by a whole factor while it stays within the lines and the
 * columns, or shrunk, its shape kept, until it does. */
typedef struct extent {
    int width, height; /* pixels on the screen */
} extent;

static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }

static extent fit(int width, int height, int width_max, int height_max, int height_zoomed)
{
    int zoom = min(width_max / width, height_zoomed / height);
    if (zoom >= 1)
        return (extent){ width * zoom, height * zoom };
    double scale = (double)width_max / width, other = (double)height_max / height;
    scale = scale < other ? scale : other;
    scale = scale < 1 ? scale : 1;
    return (extent){ max(1, (int)(width * scale)), max(1, (int)(height * scale)) };
}

/* Means over the source when shrinking, whole pixels when enlarging. */
static bool resize(dn_pixels *p, extent to)
{
    uint8_t *rgb = malloc((size_t)to.width * to.height * 3);
    for (int y = 0; rgb && y < to.height; y++)
        for (int x = 0; x < to.width; x++) {
            int y0 = (int)((int64_t)y * p->height / to.height), y1 = (int)((int64_t)(y + 1) * p->height / to.height);
            int x0 = (int)((int64_t)x * p->width / to.width), x1 = (int)((int64_t)(x + 1) * p->width / to.width);
            y1 = max(y1, y0 + 1);
            x1 = max(x1, x0 + 1);
            int64_t sum[3] = { 0 }, n = (int64_t)(y1 - y0) * (x1 - x0);
            for (int v = y0; v < y1; v++)
                for (int u = x0; u < x1; u++)
                    for (int c = 0; c < 3; c++)
                        sum[c] += p->rgb[((size_t)v * p->width + u) * 3 + c];
            for (int c = 0; c < 3; c++)
                rgb[((size_t)y * to.width + x) * 3 + c] = (uint8_t)((sum[c] + n / 2) / n);
        }
    if (!rgb)
        return false;
    free(p->rgb);
    *p = (dn_pixels){ to.width, to.height, rgb };
    return true;
}

/* ---- protocols ------------------------------------------------------------------------------------------------- */

/* https://sw.kovidgoyal.net/kitty/graphics-protocol: PNG (f=100), transmit and show (a=T), no answer (q=2). */
static void write_kitty(dn_buf *out, int columns, int rows, const uint8_t *png, size_t n)
{
    for (size_t at = 0; at < n; at += KITTY_CHUNK) {
        size_t len = n - at < KITTY_CHUNK ? n - at : KITTY_CHUNK;
        if (at)
            dn_buf_puts(out, "\033_G");
        else
            dn_buf_printf(out, "\033_Ga=T,f=100,q=2,c=%d,r=%d,", columns, rows);
        dn_buf_printf(out, "m=%d;", at + len < n);
        dn_buf_base64(out, png + at, len);
        dn_buf_puts(out, "\033\\");
    }
    dn_buf_puts(out, "\r\n");
}

/* https://iterm2.com/documentation-images.html */
static void write_iterm(dn_buf *out, int columns, int rows, const uint8_t *png, size_t n)
{
    dn_buf_printf(out, "\033]1337;File=inline=1;size=%zu;width=%d;height=%d;preserveAspectRatio=1:", n, columns, rows);
    dn_buf_base64(out, png, n);
    dn_buf_puts(out, "\a\r\n");
}

bool dn_show_picture(dn_buf *out, int *rows, enum dn_show how, const dn_screen *screen, const uint8_t *png, size_t n)
{
    int width, height;
    if (!dn_png_size(png, n, &width, &height))
        return false;
    bool blocks = how == DN_SHOW_BLOCKS; /* a cell is one pixel wide and two high */
    int cell_w = blocks ? 1 : screen->cell_w, cell_h = blocks ? 2 : screen->cell_h;
    int lines = max(1, screen->rows - 2);
    extent e = fit(width, height, screen->columns * cell_w, (blocks ? INT_MAX / 4 : lines) * cell_h,
                   min(lines, LINES_ZOOMED) * cell_h);
    int columns = (e.width + cell_w - 1) / cell_w, high = (e.height + cell_h - 1) / cell_h;
    if (how == DN_SHOW_KITTY) {
        write_kitty(out, columns, high, png, n);
    } else if (how == DN_SHOW_ITERM) {
        write_iterm(out, columns, high, png, n);
    } else {
        dn_pixels p;
        if (!dn_png_decode(&p, png, n))
            return false;
        bool ok = resize(&p, e);
        if (ok)
            (blocks ? dn_blocks_write : dn_sixel_write)(out, &p);
        free(p.rgb);
        if (!ok)
            return false;
    }
    *rows = high;
    return !out->failed;
}
