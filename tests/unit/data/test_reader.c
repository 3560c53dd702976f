/* test_reader.c - what a reader gives is a function of the sample's number: every image once an epoch, parts that are
 * disjoint, the same bits for any threads, micro-batches and order; resizing agrees with PIL; augmentations do what
 * they say as often as they should. */
#include "make.h"

#include "augment.h"
#include "resize.h"
#include "store.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pil_resize.h"

/* What a reader allocates is counted by the linker's --wrap. */
static size_t handed_out;
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void *__wrap_calloc(size_t n, size_t size) { return handed_out += n * size, __real_calloc(n, size); }
void *__wrap_aligned_alloc(size_t align, size_t size) { return handed_out += size, __real_aligned_alloc(align, size); }

static char dir[64];

/* A dataset of n images of noise, bytes or floats, of sizes h..h+spread-1 by w; label i % 7. */
static dn_dataset *dataset_make(int n, int h, int w, int c, int spread, bool floats)
{
    char path[128];
    dn_store *s;
    dn_dataset *d = NULL;
    dn_error err = { 0 };
    static int number;
    size_t most = (size_t)(h + spread) * (size_t)w * (size_t)c;
    uint8_t *p = malloc(most), digest[32];
    float *f = malloc(most * sizeof *f);
    snprintf(path, sizeof path, "%s/d%d", dir, number++);
    assert_int_equal(dn_store_begin(&s, path, 0, &err), 0);
    dn_store_set_floats(s, floats);
    for (int i = 0; i < n; i++) {
        int height = h + i % spread;
        noise(p, most, (uint32_t)i + 1);
        for (size_t k = 0; k < most; k++)
            f[k] = (float)p[k] / 16 - 8;
        size_t bytes = (size_t)(height * w * c) * (floats ? 4 : 1);
        assert_int_equal(dn_store_digest(digest, floats ? (void *)f : p, bytes), 0);
        assert_int_equal(dn_store_add(s, NULL, floats ? (void *)f : p, height, w, c, i % 7, digest, &err), 0);
    }
    assert_int_equal(dn_store_commit(s, 7, NULL, &err), 0);
    if (dn_dataset_open(&d, path, &err) != 0)
        fail_msg("%s", err.message);
    free(p);
    free(f);
    return d;
}

static dn_reader_params params(const dn_dataset *d, int h, int w)
{
    const dn_dataset_info *info = dn_dataset_info_of(d);
    return (dn_reader_params){ .data = d,
                               .height = h,
                               .width = w,
                               .channels = info->channels,
                               .range = { -1, 1 },
                               .seed = 5,
                               .batch_size = 6,
                               .n = info->n,
                               .shuffle = true };
}

static dn_reader *reader_make(const dn_reader_params *p, int64_t step)
{
    dn_reader *r = NULL;
    dn_error err = { 0 };
    if (dn_reader_new(&r, p, step, &err) != 0)
        fail_msg("%s", err.message);
    return r;
}

/* --- which image --- */

static void epochs(void **state)
{
    (void)state;
    dn_dataset *d = dataset_make(101, 2, 2, 1, 1, false);
    for (int n = 1; n <= 101; n += n < 9 ? 1 : 23)
        for (int shuffle = 0; shuffle < 2; shuffle++) {
            dn_reader_params p = params(d, 2, 2);
            int order[2][101] = { 0 };
            p.first = (101 - n) / 2, p.n = n, p.shuffle = shuffle, p.batch_size = 4;
            for (int epoch = 0; epoch < 3; epoch++) {
                int seen[101] = { 0 };
                for (int i = 0; i < n; i++) {
                    int64_t g = (int64_t)epoch * n + i, index = dn_reader_index(&p, g / 4, (int)(g % 4));
                    assert_in_range(index, 0, 100);
                    seen[index]++;
                    order[epoch % 2][i] = (int)index;
                }
                for (int i = 0; i < 101; i++)
                    assert_true(seen[i] <= 1);
                if (epoch > 0 && n > 20)
                    assert_int_equal(memcmp(order[0], order[1], sizeof order[0]) != 0, shuffle);
            }
        }
    dn_dataset_close(d);
}

static void parts_are_disjoint(void **state)
{
    (void)state;
    dn_dataset *d = dataset_make(200, 2, 2, 1, 1, false);
    int seen[200] = { 0 }, moved = 0, in_first_half = 0;
    dn_reader_params train = params(d, 2, 2), held = train;
    train.n = 150, held.first = 150, held.n = 50, held.shuffle = false;
    train.batch_size = held.batch_size = 10;
    for (int i = 0; i < 150; i++)
        seen[dn_reader_index(&train, i / 10, i % 10)]++;
    for (int i = 0; i < 50; i++) {
        int64_t index = dn_reader_index(&held, i / 10, i % 10);
        seen[index]++;
        moved += index != 150 + i;
        in_first_half += index < 100;
    }
    for (int i = 0; i < 200; i++)
        assert_int_equal(seen[i], 1);
    assert_true(moved > 40);                /* a random part, not the end */
    assert_in_range(in_first_half, 12, 38); /* 25 +- 4 sigma */
    held.seed++;
    int same = 0;
    for (int i = 0; i < 50; i++)
        same += seen[dn_reader_index(&held, i / 10, i % 10)] && dn_reader_index(&held, i / 10, i % 10) == 150 + i;
    assert_true(same < 10); /* of another job another part */
    dn_dataset_close(d);
}

/* Over many epochs every image comes at every place about equally often: chi-square of 10 places times 10 images. */
static void shuffling_is_even(void **state)
{
    (void)state;
    enum { N = 10, EPOCHS = 2000 };
    dn_dataset *d = dataset_make(N, 2, 2, 1, 1, false);
    dn_reader_params p = params(d, 2, 2);
    double count[N][N] = { 0 }, chi = 0;
    p.batch_size = N;
    for (int e = 0; e < EPOCHS; e++)
        for (int i = 0; i < N; i++)
            count[i][dn_reader_index(&p, e, i)]++;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            chi += pow(count[i][j] - EPOCHS / N, 2) / (EPOCHS / N);
    if (chi < 40 || chi > 135) /* 81 degrees of freedom, deviation 12.7 */
        fail_msg("chi-square %f", chi);
    dn_dataset_close(d);
}

/* --- the same bits --- */

enum { STEPS = 12, BATCH = 6 };

/* Reads all steps, `micro` samples at a time. */
static void read_steps(float *x, int32_t *labels, const dn_reader_params *p, int micro)
{
    size_t one = (size_t)(p->height * p->width * p->channels);
    dn_reader *r = reader_make(p, 0);
    for (int step = 0; step < STEPS; step++)
        for (int k = 0; k < BATCH; k += micro) {
            size_t at = (size_t)(step * BATCH + k);
            double wait_ms = -1;
            dn_reader_get(r, step, k, micro, x + at * one, labels + at, &wait_ms);
            assert_true(wait_ms >= 0);
        }
    dn_reader_free(r);
}

static void same_bits(void **state)
{
    (void)state;
    dn_dataset *d = dataset_make(31, 20, 24, 3, 5, false);
    dn_reader_params p = params(d, 16, 12);
    dn_augment all[] = { { DN_AUG_FLIP, 0.5, 0 },       { DN_AUG_CROP, 0.8, 0.5 },   { DN_AUG_ROTATE, 0.5, 30 },
                         { DN_AUG_BRIGHTNESS, 1, 0.3 }, { DN_AUG_CONTRAST, 1, 0.3 }, { DN_AUG_CUTOUT, 0.5, 0.4 } };
    memcpy(p.augment, all, sizeof all);
    p.n_augment = 6;
    size_t one = 16 * 12 * 3, bytes = STEPS * BATCH * one * sizeof(float);
    float *want = malloc(bytes), *x = malloc(bytes);
    int32_t labels[STEPS * BATCH], again[STEPS * BATCH];
    read_steps(want, labels, &p, BATCH);
    for (int i = 0; i < STEPS * BATCH; i++)
        assert_int_equal(labels[i], dn_dataset_label(d, dn_reader_index(&p, i / BATCH, i % BATCH)));
    for (int threads = 0; threads <= 5; threads++)
        for (int micro = 1; micro <= BATCH; micro = micro == 3 ? 6 : micro + 1) {
            p.threads = threads;
            memset(x, 0, bytes);
            read_steps(x, again, &p, micro);
            assert_memory_equal(x, want, bytes);
            assert_memory_equal(again, labels, sizeof labels);
        }
    /* any order: jumps ahead, back, again */
    static const int order[] = { 7, 7, 8, 2, 3, 11, 0, 1, 2, 10, 9, 8, 5 };
    for (int threads = 0; threads <= 3; threads++) {
        p.threads = threads;
        dn_reader *r = reader_make(&p, 4);
        for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
            dn_reader_get(r, order[i], 2, 3, x, again, NULL);
            assert_memory_equal(x, want + (size_t)(order[i] * BATCH + 2) * one, 3 * one * sizeof(float));
        }
        dn_reader_free(r);
    }
    p.seed++;
    p.threads = 0;
    read_steps(x, again, &p, BATCH);
    assert_memory_not_equal(x, want, bytes);
    free(want);
    free(x);
    dn_dataset_close(d);
}

/* --- values --- */

static void values(void **state)
{
    (void)state;
    float x[3 * 8 * 8];
    int32_t label;
    /* uint8 as they are: 0 is the low end, 255 the high one */
    dn_dataset *d = dataset_make(1, 8, 8, 1, 1, false);
    dn_reader_params p = params(d, 8, 8);
    const uint8_t *u = dn_dataset_pixels(d, 0);
    p.batch_size = 1;
    p.channels = 3;
    dn_reader *r = reader_make(&p, 0);
    dn_reader_get(r, 0, 0, 1, x, &label, NULL);
    for (int i = 0; i < 64; i++)
        for (int c = 0; c < 3; c++)
            assert_float_equal(x[3 * i + c], u[i] / 127.5f - 1, 2e-7);
    dn_reader_free(r);
    dn_dataset_close(d);
    /* three channels read as one */
    d = dataset_make(1, 8, 8, 3, 1, false);
    u = dn_dataset_pixels(d, 0);
    p = params(d, 8, 8);
    p.batch_size = p.channels = 1;
    p.range[0] = 0;
    r = reader_make(&p, 0);
    dn_reader_get(r, 0, 0, 1, x, &label, NULL);
    for (int i = 0; i < 64; i++)
        assert_float_equal(x[i], (0.299 * u[3 * i] + 0.587 * u[3 * i + 1] + 0.114 * u[3 * i + 2]) / 255, 1e-6);
    dn_reader_free(r);
    dn_dataset_close(d);
    /* floats: their own range onto the model's */
    d = dataset_make(3, 8, 8, 2, 1, true);
    const dn_dataset_info *info = dn_dataset_info_of(d);
    p = params(d, 8, 8);
    p.batch_size = 3, p.range[0] = -2, p.range[1] = 3;
    float y[3 * 128], lo = 1e9f, hi = -1e9f;
    int32_t labels[3];
    r = reader_make(&p, 0);
    dn_reader_get(r, 0, 0, 3, y, labels, NULL);
    for (int k = 0; k < 3; k++) {
        const float *f = dn_dataset_pixels(d, dn_reader_index(&p, 0, k));
        for (int i = 0; i < 128; i++) {
            lo = fminf(lo, y[128 * k + i]), hi = fmaxf(hi, y[128 * k + i]);
            assert_float_equal(y[128 * k + i], -2 + 5 * (f[i] - info->range[0]) / (info->range[1] - info->range[0]),
                               1e-5);
        }
    }
    assert_float_equal(lo, -2, 1e-6);
    assert_float_equal(hi, 3, 1e-6);
    dn_reader_free(r);
    dn_dataset_close(d);
}

/* Grey pictures among coloured ones are copied into three channels. */
static void mixed_channels(void **state)
{
    (void)state;
    char path[128];
    dn_store *s;
    dn_dataset *d;
    dn_error err = { 0 };
    uint8_t p[12], digest[32] = { 0 };
    snprintf(path, sizeof path, "%s/mixed", dir);
    noise(p, sizeof p, 1);
    assert_int_equal(dn_store_begin(&s, path, 0, &err), 0);
    assert_int_equal(dn_store_add(s, NULL, p, 2, 2, 1, -1, digest, &err), 0);
    assert_int_equal(dn_store_add(s, NULL, p, 2, 2, 3, -1, digest, &err), 0);
    assert_int_equal(dn_store_commit(s, 0, NULL, &err), 0);
    assert_int_equal(dn_dataset_open(&d, path, &err), 0);
    assert_int_equal(dn_dataset_info_of(d)->channels, 3);
    dn_reader_params rp = params(d, 2, 2);
    rp.range[0] = 0, rp.range[1] = 255, rp.batch_size = 2;
    dn_reader *r = reader_make(&rp, 0);
    float x[24];
    int32_t labels[2];
    dn_reader_get(r, 0, 0, 2, x, labels, NULL);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 12; i++)
            assert_float_equal(x[12 * k + i], dn_reader_index(&rp, 0, k) == 0 ? p[i / 3] : p[i], 1e-4);
    assert_int_equal(labels[0], -1);
    dn_reader_free(r);
    dn_dataset_close(d);
}

static void resizes_as_pil(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof pil_cases / sizeof *pil_cases; k++) {
        const struct pil_case *c = &pil_cases[k];
        dn_resizer r;
        void *memory = calloc(dn_resizer_bytes(c->to_h, c->to_w, 32, 32, 3), 1);
        uint8_t u[256], three[3 * 256];
        float f[256], out[3 * 108];
        dn_box box = { 0, 0, c->h, c->w };
        noise(u, (size_t)(c->h * c->w), (uint32_t)k + 1);
        dn_resizer_init(&r, memory, c->to_h, c->to_w, 32, 32);
        for (int i = 0; i < c->h * c->w; i++) {
            f[i] = u[i];
            three[3 * i] = three[3 * i + 2] = u[i];
            three[3 * i + 1] = 255 - u[i];
        }
        int n = c->to_h * c->to_w;
        dn_resize(&r, out, c->to_h, c->to_w, f, true, c->w, 1, &box);
        for (int i = 0; i < n; i++)
            if (fabsf(out[i] - c->f[i]) > 2e-4f)
                fail_msg("case %zu, value %d: %.6f, PIL has %.6f", k, i, out[i], c->f[i]);
        dn_resize(&r, out, c->to_h, c->to_w, u, false, c->w, 1, &box);
        for (int i = 0; i < n; i++)
            assert_true(fabsf(out[i] - c->f[i]) < 2e-4f &&
                        fabsf(out[i] - c->l[i]) < 1.01f); /* PIL rounds bytes twice */
        dn_resize(&r, out, c->to_h, c->to_w, three, false, c->w, 3, &box);
        for (int i = 0; i < n; i++)
            assert_true(fabsf(out[3 * i] - c->f[i]) < 2e-4f && fabsf(out[3 * i + 1] - (255 - c->f[i])) < 2e-4f);
        free(memory);
    }
}

/* A box of a picture is that picture cut out first. */
static void resizes_boxes(void **state)
{
    (void)state;
    enum { H = 20, W = 17 };
    uint8_t u[H * W * 2], cut[9 * 11 * 2];
    float a[5 * 4 * 2], b[5 * 4 * 2];
    dn_resizer r;
    void *memory = calloc(dn_resizer_bytes(5, 4, H, W, 2), 1);
    noise(u, sizeof u, 77);
    dn_resizer_init(&r, memory, 5, 4, H, W);
    dn_box box = { 8, 3, 9, 11 }, whole = { 0, 0, 9, 11 };
    for (int y = 0; y < 9; y++)
        memcpy(cut + y * 22, u + ((8 + y) * W + 3) * 2, 22);
    dn_resize(&r, a, 5, 4, u, false, W, 2, &box);
    dn_resize(&r, b, 5, 4, cut, false, 11, 2, &whole);
    assert_memory_equal(a, b, sizeof a);
    free(memory);
}

/* --- augmentation --- */

static void centre_boxes(void **state)
{
    (void)state;
    dn_draws d = { 1, 2, 3 };
    static const struct {
        int h, w, to_h, to_w;
        dn_box want;
    } cases[] = {
        { 10, 10, 5, 5, { 0, 0, 10, 10 } },   { 20, 10, 5, 5, { 5, 0, 10, 10 } }, { 10, 21, 5, 5, { 0, 5, 10, 10 } },
        { 10, 40, 5, 10, { 0, 10, 10, 20 } }, { 1, 1, 8, 3, { 0, 0, 1, 1 } },     { 1, 1000, 64, 64, { 0, 499, 1, 1 } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_box b = dn_augment_box(NULL, 0, &d, cases[i].h, cases[i].w, cases[i].to_h, cases[i].to_w);
        if (memcmp(&b, &cases[i].want, sizeof b) != 0)
            fail_msg("case %zu: %d %d %d %d", i, b.y, b.x, b.height, b.width);
    }
}

static void random_boxes(void **state)
{
    (void)state;
    enum { N = 20000 };
    dn_augment crop[] = { { DN_AUG_FLIP, 1, 0 }, { DN_AUG_CROP, 0.75, 0.5 } };
    double side = 0, centred = 0, left = 0, moved = 0;
    for (int i = 0; i < N; i++) {
        dn_draws d = { 9, i / 64, i % 64 };
        dn_box b = dn_augment_box(crop, 2, &d, 100, 140, 32, 32), same = dn_augment_box(crop, 2, &d, 100, 140, 32, 32);
        assert_memory_equal(&b, &same, sizeof b);
        assert_true(b.height == b.width && b.height >= 50 && b.height <= 100);
        assert_true(b.y >= 0 && b.x >= 0 && b.y + b.height <= 100 && b.x + b.width <= 140);
        bool whole = b.height == 100 && b.x == 20;
        centred += whole;
        if (!whole) {
            side += b.height;
            left += (double)b.x / (140 - b.width);
            moved++;
        }
    }
    assert_float_equal(centred / N, 0.25, 0.015);
    assert_float_equal(side / moved, 75, 0.6);
    assert_float_equal(left / moved, 0.5, 0.01);
}

/* Apply one augmentation with u drawn for sample i. */
static void apply(dn_augment a, int i, float *x, int h, int w, int c)
{
    float other[4096];
    dn_draws d = { 3, i / 64, i % 64 };
    dn_augment_apply(&a, 1, &d, x, other, h, w, c);
}

static void flips(void **state)
{
    (void)state;
    float x[2 * 3 * 2], y[12];
    int n = 0;
    for (int i = 0; i < 12; i++)
        x[i] = (float)i / 12;
    for (int k = 0; k < 10000; k++) {
        memcpy(y, x, sizeof x);
        apply((dn_augment){ DN_AUG_FLIP, 0.3, 0 }, k, y, 2, 3, 2);
        if (memcmp(x, y, sizeof x) == 0)
            continue;
        n++;
        for (int i = 0; i < 12; i++)
            assert_true(y[i] == x[i / 6 * 6 + (2 - i / 2 % 3) * 2 + i % 2]);
    }
    assert_in_range(n, 2800, 3200);
    for (int k = 0; k < 1000; k++) {
        memcpy(y, x, sizeof x);
        apply((dn_augment){ DN_AUG_FLIP, 0, 0 }, k, y, 2, 3, 2);
        assert_memory_equal(x, y, sizeof x);
        apply((dn_augment){ DN_AUG_FLIP, 1, 0 }, k, y, 2, 3, 2);
        assert_memory_not_equal(x, y, sizeof x);
    }
}

/* A line through the centre stays one: its angle is even in [-amount, amount], its mass is kept. */
static void rotations(void **state)
{
    (void)state;
    enum { S = 33 };
    float x[S * S];
    double sum = 0, squares = 0;
    int n = 2000;
    for (int k = 0; k < n; k++) {
        memset(x, 0, sizeof x);
        for (int i = 0; i < S; i++)
            x[S / 2 * S + i] = 1;
        apply((dn_augment){ DN_AUG_ROTATE, 1, 40 }, k, x, S, S, 1);
        double xx = 0, xy = 0, yy = 0, mass = 0;
        for (int i = 0; i < S * S; i++) {
            double dy = i / S - S / 2, dx = i % S - S / 2;
            assert_true(x[i] >= 0 && x[i] <= 1);
            xx += x[i] * dx * dx, xy += x[i] * dx * dy, yy += x[i] * dy * dy, mass += x[i];
        }
        assert_true(mass > 26 && mass < 36);
        double angle = atan2(2 * xy, xx - yy) / 2 * 180 / M_PI;
        assert_true(fabs(angle) < 40.5);
        sum += angle, squares += angle * angle;
    }
    assert_float_equal(sum / n, 0, 2.5);
    assert_float_equal(sqrt(squares / n), 40 / sqrt(3), 1.2);
    float square[9] = { 1, 2, 3, 4, 5, 6, 7, 8, 9 }, same[9];
    memcpy(same, square, sizeof same);
    apply((dn_augment){ DN_AUG_ROTATE, 1, 0 }, 1, same, 3, 3, 1);
    assert_memory_equal(same, square, sizeof same);
}

static void brightness_and_contrast(void **state)
{
    (void)state;
    double sum = 0, lo = 9, hi = 0;
    for (int k = 0; k < 5000; k++) {
        float x[6] = { 0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 1 }, y[6] = { 0.45f, 0.5f, 0.55f, 0.35f, 0.5f, 0.65f };
        apply((dn_augment){ DN_AUG_BRIGHTNESS, 1, 0.4 }, k, x, 1, 2, 3);
        double factor = x[0] / 0.1;
        for (int i = 0; i < 6; i++)
            assert_float_equal(x[i], fmin(1, factor * (i < 5 ? 0.1 * (i + 1) : 1)), 1e-5);
        sum += factor, lo = fmin(lo, factor), hi = fmax(hi, factor);
        apply((dn_augment){ DN_AUG_CONTRAST, 1, 0.4 }, k, y, 1, 6, 1);
        double mean = 0;
        for (int i = 0; i < 6; i++)
            mean += y[i] / 6;
        assert_float_equal(mean, 0.5, 1e-6); /* stays */
        factor = (y[2] - y[0]) / 0.1;
        assert_true(factor > 0.59 && factor < 1.41);
        assert_float_equal((y[5] - y[3]) / 0.3, factor, 1e-4);
    }
    assert_float_equal(sum / 5000, 1, 0.015);
    assert_true(lo > 0.599 && lo < 0.61 && hi < 1.401 && hi > 1.39);
    float colour[6] = { 1, 0, 0, 0, 1, 0 };
    apply((dn_augment){ DN_AUG_CONTRAST, 1, 1 }, 3, colour, 1, 2, 3);
    double grey = (0.299 + 0.587) / 2; /* what a factor of 0 would leave; the blacks lie on one side */
    assert_true(colour[1] == colour[2] && fabs(colour[1] - grey) <= grey + 1e-6);
}

static void cutouts(void **state)
{
    (void)state;
    double rows = 0;
    int n = 3000, full = 0;
    for (int k = 0; k < n; k++) {
        float x[16 * 20 * 2] = { 0 };
        int y0 = 99, y1 = -1, x0 = 99, x1 = -1, count = 0;
        apply((dn_augment){ DN_AUG_CUTOUT, 1, 0.5 }, k, x, 16, 20, 2);
        for (int i = 0; i < 16 * 20; i++)
            if (x[2 * i] > 0) {
                int y = i / 20, c = i % 20;
                y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1, x0 = c < x0 ? c : x0, x1 = c > x1 ? c : x1;
                assert_true(x[2 * i] == 0.5f && x[2 * i + 1] == 0.5f);
                count++;
            }
        assert_int_equal(count, (y1 - y0 + 1) * (x1 - x0 + 1));
        assert_true(count > 0 && y1 - y0 < 8 && x1 - x0 < 8);
        full += count == 64;
        rows += (y0 + y1) / 2.0;
    }
    assert_float_equal(rows / n, 7.5, 0.35);
    assert_float_equal((double)full / n, 9.0 / 16 * 13 / 20, 0.04); /* places where the square is whole */
}

/* Order matters, and is kept. */
static void in_the_order_given(void **state)
{
    (void)state;
    float x[8], y[8], other[8];
    dn_draws d = { 1, 1, 1 };
    for (int i = 0; i < 8; i++)
        x[i] = y[i] = (float)(i + 1) / 8;
    dn_augment first[] = { { DN_AUG_CUTOUT, 1, 1 }, { DN_AUG_BRIGHTNESS, 1, 0.9 } }, second[] = { first[1], first[0] };
    dn_augment_apply(first, 2, &d, x, other, 2, 4, 1);
    dn_augment_apply(second, 2, &d, y, other, 2, 4, 1);
    assert_memory_not_equal(x, y, sizeof x);
}

/* --- limits --- */

static void refusals(void **state)
{
    (void)state;
    dn_dataset *d = dataset_make(5, 4, 4, 3, 1, false);
    dn_reader_params good = params(d, 4, 4);
    const struct {
        dn_reader_params p;
        int code;
        const char *param;
    } cases[] = {
#define BAD(code, param, field, ...) \
    { ({                             \
          dn_reader_params q = good; \
          q.field = __VA_ARGS__;     \
          q;                         \
      }),                            \
      code, param }
        BAD(DN_E_RANGE, "height", height, 0),
        BAD(DN_E_RANGE, "height", width, 8193),
        BAD(DN_E_IMPOSSIBLE, "channels", channels, 4),
        BAD(DN_E_IMPOSSIBLE, "channels", channels, 0),
        BAD(DN_E_RANGE, "batch_size", batch_size, 0),
        BAD(DN_E_RANGE, "dataset", n, 6),
        BAD(DN_E_RANGE, "dataset", n, 0),
        BAD(DN_E_RANGE, "dataset", first, 1),
        BAD(DN_E_RANGE, "dataset", first, INT64_MAX),
        BAD(DN_E_RANGE, "range", range[0], 1),
        BAD(DN_E_RANGE, "range", range[1], NAN),
        BAD(DN_E_RANGE, "augment", n_augment, 9),
#undef BAD
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dn_reader *r = NULL;
        dn_error err = { 0 };
        int rc = dn_reader_new(&r, &cases[i].p, 0, &err);
        if (rc != cases[i].code || strcmp(err.param, cases[i].param) != 0 || r)
            fail_msg("case %zu: %d %s: %s", i, rc, err.param, err.message);
    }
    static const dn_augment bad[] = { { DN_AUG_FLIP, 1.1, 0 },      { DN_AUG_FLIP, NAN, 0 },
                                      { DN_AUG_CROP, 1, 0 },        { DN_AUG_ROTATE, 1, 181 },
                                      { DN_AUG_CONTRAST, 1, -0.1 }, { DN_AUG_CUTOUT, 1, 1.5 },
                                      { DN_AUG_COUNT, 1, 0.5 },     { DN_AUG_BRIGHTNESS, 1, NAN } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dn_error err = { 0 };
        assert_true(dn_augment_check(&bad[i], 1, &err) != 0);
        assert_string_equal(err.param, "augment");
        assert_true(bad[i].kind == DN_AUG_COUNT || strstr(err.message, dn_augment_names[bad[i].kind]));
    }
    dn_error err = { 0 };
    dn_augment twice[] = { { DN_AUG_CROP, 1, 0.5 }, { DN_AUG_CROP, 1, 0.5 } };
    assert_error(&err, dn_augment_check(twice, 2, &err), DN_E_INVALID, "augment", "once");
    dn_dataset_close(d);
}

static void bytes_as_promised(void **state)
{
    (void)state;
    dn_dataset *d = dataset_make(5, 30, 20, 3, 9, false);
    for (int threads = 0; threads < 4; threads++)
        for (int side = 1; side < 3000; side = side * 3 + 1) {
            dn_reader_params p = params(d, side, side);
            p.threads = threads;
            p.batch_size = 500;
            handed_out = 0;
            dn_reader *r = reader_make(&p, 0);
            size_t got = handed_out, promised = dn_reader_bytes(&p);
            dn_reader_free(r);
            assert_in_range(got, promised, promised + 4096); /* and what the threads take to start */
            assert_true(promised <
                        ((size_t)64 << 20) + (size_t)(3 * threads + 2) * (size_t)(side * side * 12) + (1 << 20));
        }
    dn_dataset_close(d);
}

static int setup(void **state)
{
    (void)state;
    scratch_make(dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epochs),
        cmocka_unit_test(parts_are_disjoint),
        cmocka_unit_test(shuffling_is_even),
        cmocka_unit_test(same_bits),
        cmocka_unit_test(values),
        cmocka_unit_test(mixed_channels),
        cmocka_unit_test(resizes_as_pil),
        cmocka_unit_test(resizes_boxes),
        cmocka_unit_test(centre_boxes),
        cmocka_unit_test(random_boxes),
        cmocka_unit_test(flips),
        cmocka_unit_test(rotations),
        cmocka_unit_test(brightness_and_contrast),
        cmocka_unit_test(cutouts),
        cmocka_unit_test(in_the_order_given),
        cmocka_unit_test(refusals),
        cmocka_unit_test(bytes_as_promised),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
