/* augment.c - flip, crop, rotate, brightness, contrast, cutout. See augment.h.
 *
 * Cutout: DeVries and Taylor 2017. Brightness and contrast as torchvision's ColorJitter. */
#include "augment.h"
#include "fmath.h"
#include "rng.h"

#include <string.h>

/* One picture under work. */
struct frame {
    float *x, *other; /* [H,W,C] */
    int height, width, channels;
    size_t count;
};

/* u[4] of the augmentation's own draw. */
static void draw(float u[4], const dn_draws *d, int op)
{
    dn_rng_key key = { d->seed, (uint32_t)d->step, (uint32_t)DN_RNG_AUGMENT << 24 | (uint32_t)op, (uint32_t)d->sample };
    dn_rng_uniform(u, 0, 4, &key);
}

static float clamp01(float v) { return v > 0 ? v < 1 ? v : 1 : 0; }

static void flip(struct frame *f, double amount, const float *u)
{
    (void)amount, (void)u;
    for (int y = 0; y < f->height; y++) {
        float *row = f->x + (size_t)y * (size_t)f->width * (size_t)f->channels;
        for (int a = 0, b = f->width - 1; a < b; a++, b--)
            for (int c = 0; c < f->channels; c++) {
                float v = row[a * f->channels + c];
                row[a * f->channels + c] = row[b * f->channels + c];
                row[b * f->channels + c] = v;
            }
    }
}

/* The value at (y, x), 0 outside. */
static float at(const struct frame *f, int y, int x, int c)
{
    if (y < 0 || x < 0 || y >= f->height || x >= f->width)
        return 0;
    return f->x[((size_t)y * (size_t)f->width + (size_t)x) * (size_t)f->channels + (size_t)c];
}

static void rotate(struct frame *f, double amount, const float *u)
{
    float s, c, cy = (float)(f->height - 1) / 2, cx = (float)(f->width - 1) / 2, *out = f->other;
    dn_f_sincos_turn((float)amount * (2 * u[1] - 1) / 360, &s, &c);
    for (int y = 0; y < f->height; y++)
        for (int x = 0; x < f->width; x++) {
            float dy = (float)y - cy, dx = (float)x - cx, sy = cy + c * dy - s * dx, sx = cx + c * dx + s * dy;
            float fy = floorf(sy), fx = floorf(sx), ty = sy - fy, tx = sx - fx;
            int y0 = (int)fy, x0 = (int)fx;
            for (int k = 0; k < f->channels; k++)
                *out++ = (at(f, y0, x0, k) * (1 - tx) + at(f, y0, x0 + 1, k) * tx) * (1 - ty) +
                         (at(f, y0 + 1, x0, k) * (1 - tx) + at(f, y0 + 1, x0 + 1, k) * tx) * ty;
        }
    memcpy(f->x, f->other, f->count * sizeof *f->x);
}

static void brightness(struct frame *f, double amount, const float *u)
{
    float factor = 1 + (float)amount * (2 * u[1] - 1);
    for (size_t i = 0; i < f->count; i++)
        f->x[i] = clamp01(f->x[i] * factor);
}

/* The mean over the picture of its grey value. */
static float mean_grey(const struct frame *f)
{
    double sum = 0;
    if (f->channels == 3)
        for (size_t i = 0; i < f->count; i += 3)
            sum += 0.299 * f->x[i] + 0.587 * f->x[i + 1] + 0.114 * f->x[i + 2];
    else
        for (size_t i = 0; i < f->count; i++)
            sum += f->x[i];
    return (float)(sum / ((double)f->count / (f->channels == 3 ? 3 : 1)));
}

static void contrast(struct frame *f, double amount, const float *u)
{
    float factor = 1 + (float)amount * (2 * u[1] - 1), mean = mean_grey(f);
    for (size_t i = 0; i < f->count; i++)
        f->x[i] = clamp01(mean + factor * (f->x[i] - mean));
}

/* The centre is any point of the picture, so that the square may reach out of it. */
static void cutout(struct frame *f, double amount, const float *u)
{
    int shorter = f->height < f->width ? f->height : f->width, side = (int)(amount * shorter + 0.5);
    int y0 = (int)floorf(u[1] * (float)f->height - (float)side / 2 + 0.5f);
    int x0 = (int)floorf(u[2] * (float)f->width - (float)side / 2 + 0.5f);
    for (int y = y0 < 0 ? 0 : y0; y < y0 + side && y < f->height; y++)
        for (int x = x0 < 0 ? 0 : x0; x < x0 + side && x < f->width; x++)
            for (int c = 0; c < f->channels; c++)
                f->x[((size_t)y * (size_t)f->width + (size_t)x) * (size_t)f->channels + (size_t)c] = 0.5f;
}

const char *const dn_augment_names[] = {
    [DN_AUG_FLIP] = "flip",         [DN_AUG_CROP] = "crop",
    [DN_AUG_ROTATE] = "rotate",     [DN_AUG_BRIGHTNESS] = "brightness",
    [DN_AUG_CONTRAST] = "contrast", [DN_AUG_CUTOUT] = "cutout",
};

/* What each does, and the range of its amount. A crop is dn_augment_box's. */
static const struct {
    void (*apply)(struct frame *f, double amount, const float *u);
    double lo, hi;
} kinds[DN_AUG_COUNT] = {
    [DN_AUG_FLIP] = { flip, 0, 0 },         [DN_AUG_CROP] = { NULL, 0.01, 1 },
    [DN_AUG_ROTATE] = { rotate, 0, 180 },   [DN_AUG_BRIGHTNESS] = { brightness, 0, 1 },
    [DN_AUG_CONTRAST] = { contrast, 0, 1 }, [DN_AUG_CUTOUT] = { cutout, 0, 1 },
};

int dn_augment_check(const dn_augment *augment, int n, dn_error *err)
{
    int crops = 0;
    if (n < 0 || n > DN_AUGMENT_MAX)
        return dn_fail(err, DN_E_RANGE, "augment", "augment: %d entries; the limit is %d", n, DN_AUGMENT_MAX);
    for (int i = 0; i < n; i++) {
        const dn_augment *a = &augment[i];
        if ((unsigned)a->kind >= DN_AUG_COUNT)
            return dn_fail(err, DN_E_UNKNOWN, "augment", "augment: entry %d is of no known kind", i);
        if (!(a->p >= 0 && a->p <= 1))
            return dn_fail(err, DN_E_RANGE, "augment", "augment: p of \"%s\" must be 0..1", dn_augment_names[a->kind]);
        if (a->kind != DN_AUG_FLIP && !(a->amount >= kinds[a->kind].lo && a->amount <= kinds[a->kind].hi))
            return dn_fail(err, DN_E_RANGE, "augment", "augment: amount of \"%s\" must be %g..%g",
                           dn_augment_names[a->kind], kinds[a->kind].lo, kinds[a->kind].hi);
        crops += a->kind == DN_AUG_CROP;
    }
    return crops > 1 ? dn_fail(err, DN_E_INVALID, "augment", "augment: \"crop\" can be given once") : 0;
}

static int at_least_one(double v) { return v < 1 ? 1 : (int)v; }

/* The largest box of the target's shape in an image, times `fraction`. */
static dn_box largest_box(int height, int width, int to_height, int to_width, double fraction)
{
    int64_t across = (int64_t)width * to_height, down = (int64_t)height * to_width;
    dn_box b = { 0, 0, height, width };
    if (across > down)
        b.width = (int)((down + to_height / 2) / to_height);
    else if (down > across)
        b.height = (int)((across + to_width / 2) / to_width);
    b.width = at_least_one(b.width * fraction + 0.5);
    b.height = at_least_one(b.height * fraction + 0.5);
    return b;
}

dn_box dn_augment_box(const dn_augment *augment, int n, const dn_draws *d, int height, int width, int to_height,
                      int to_width)
{
    float u[4] = { 1 };
    int i = 0;
    while (i < n && augment[i].kind != DN_AUG_CROP)
        i++;
    if (i < n)
        draw(u, d, i);
    bool random = i < n && u[0] < augment[i].p;
    double fraction = random ? 1 - (1 - augment[i].amount) * u[1] : 1;
    dn_box b = largest_box(height, width, to_height, to_width, fraction);
    int free_y = height - b.height, free_x = width - b.width;
    b.y = random ? (int)(u[2] * (float)(free_y + 1)) : free_y / 2;
    b.x = random ? (int)(u[3] * (float)(free_x + 1)) : free_x / 2;
    b.y = b.y > free_y ? free_y : b.y; /* the product may round up */
    b.x = b.x > free_x ? free_x : b.x;
    return b;
}

void dn_augment_apply(const dn_augment *augment, int n, const dn_draws *d, float *x, float *other, int height,
                      int width, int channels)
{
    struct frame f = { x, other, height, width, channels, (size_t)height * (size_t)width * (size_t)channels };
    for (int i = 0; i < n; i++) {
        float u[4];
        if (!kinds[augment[i].kind].apply)
            continue;
        draw(u, d, i);
        if (u[0] < augment[i].p)
            kinds[augment[i].kind].apply(&f, augment[i].amount, u);
    }
}
