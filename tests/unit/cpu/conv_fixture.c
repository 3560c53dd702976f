/* conv_fixture.c - see conv_fixture.h. */
#include "conv_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERN = 0xb7 };

float fixture_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

static int blocks(const tensor *t) { return t->rows.plane ? (t->channels + 7) / 8 : 1; }

/* `gap`: bytes after a plane, or floats after a dense position. */
tensor tensor_new(int n, int positions, int channels, bool dense, int gap)
{
    tensor t = { .n = n, .positions = positions, .channels = channels };
    t.rows.pitch = dense ? (channels + gap) * 4 : 32;
    t.rows.plane = dense ? 0 : positions * 32 + gap;
    t.rows.row_bytes = dense ? positions * t.rows.pitch : blocks(&t) * t.rows.plane;
    int64_t last =
        dense ? (positions - 1) * t.rows.pitch + channels * 4 : (blocks(&t) - 1) * t.rows.plane + positions * 32;
    t.bytes = (size_t)((n - 1) * t.rows.row_bytes + last);
    t.rows.base = malloc(t.bytes);
    tensor_spoil(&t);
    return t;
}

void tensor_free(tensor *t) { free(t->rows.base); }

float *tensor_at(const tensor *t, int row, int position, int channel)
{
    char *base = (char *)t->rows.base + row * t->rows.row_bytes + position * t->rows.pitch;
    return (float *)(base + (t->rows.plane ? channel / 8 * t->rows.plane + channel % 8 * 4 : channel * 4));
}

void tensor_spoil(tensor *t) { memset(t->rows.base, PATTERN, t->bytes); }

static int lanes_of(const tensor *t) { return t->rows.plane ? blocks(t) * 8 : t->channels; }

void tensor_fill(tensor *t, uint64_t seed)
{
    for (int r = 0; r < t->n; r++)
        for (int p = 0; p < t->positions; p++)
            for (int c = 0; c < lanes_of(t); c++)
                *tensor_at(t, r, p, c) = c < t->channels ? fixture_random(&seed) : 0;
}

tensor tensor_copy(const tensor *t, bool dense, int gap)
{
    tensor o = tensor_new(t->n, t->positions, t->channels, dense, gap);
    for (int r = 0; r < t->n; r++)
        for (int p = 0; p < t->positions; p++)
            for (int c = 0; c < lanes_of(&o); c++)
                *tensor_at(&o, r, p, c) = c < t->channels ? *tensor_at(t, r, p, c) : 0;
    return o;
}

bool tensor_padding_is_zero(const tensor *t)
{
    for (int r = 0; r < t->n; r++)
        for (int p = 0; p < t->positions; p++)
            for (int c = t->channels; c < lanes_of(t); c++)
                if (*tensor_at(t, r, p, c) != 0)
                    return false;
    return true;
}

/* Count the pattern's bytes: all that the logical elements and the padded lanes leave. */
bool tensor_gaps_are_spoiled(const tensor *t)
{
    char *mark = calloc(1, t->bytes);
    for (int r = 0; r < t->n; r++)
        for (int p = 0; p < t->positions; p++)
            for (int c = 0; c < lanes_of(t); c++)
                memset(mark + ((char *)tensor_at(t, r, p, c) - (char *)t->rows.base), 1, 4);
    bool good = true;
    for (size_t i = 0; i < t->bytes; i++)
        good = good && (mark[i] || ((unsigned char *)t->rows.base)[i] == PATTERN);
    free(mark);
    return good;
}

bool tensor_row_equal(const tensor *a, int row_a, const tensor *b, int row_b)
{
    for (int p = 0; p < a->positions; p++)
        for (int c = 0; c < a->channels; c++)
            if (memcmp(tensor_at(a, row_a, p, c), tensor_at(b, row_b, p, c), 4))
                return false;
    return true;
}

static double conv_at(const fixture *f, int row, int oy, int ox, int k)
{
    const dn_conv_shape *s = &f->shape;
    const int large = f->doubled ? 2 : 1;
    double sum = 0;
    for (int ky = 0; ky < s->kh; ky++)
        for (int kx = 0; kx < s->kw; kx++) {
            int y = oy * s->stride - s->pad_top + ky, x = ox * s->stride - s->pad_left + kx;
            if (y < 0 || y >= s->H * large || x < 0 || x >= s->W * large)
                continue;
            for (int c = 0; c < s->C; c++)
                sum += (double)*tensor_at(&f->x, row, y / large * s->W + x / large, c) *
                       f->weights[((ky * s->kw + kx) * (int64_t)s->C + c) * s->K + k];
        }
    return sum;
}

static double sum_at(const fixture *f, int row, int oy, int ox, int k)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += conv_at(f, row, 2 * oy + i / 2, 2 * ox + i % 2, k);
    return sum;
}

double *reference_conv(const fixture *f)
{
    const dn_conv_shape *s = &f->shape;
    const int positions = s->Ho * s->Wo;
    double *y = malloc((size_t)f->n * positions * s->K * sizeof *y);
    for (int r = 0; r < f->n; r++)
        for (int p = 0; p < positions; p++)
            for (int k = 0; k < s->K; k++) {
                double v = (f->halved ? sum_at : conv_at)(f, r, p / s->Wo, p % s->Wo, k);
                v += f->bias ? f->bias[k] : 0;
                v += f->row_bias ? f->row_bias[r * s->K + k] : 0;
                v += f->residual.rows.base ? *tensor_at(&f->residual, r, p, k) : 0;
                v *= f->scale;
                y[((int64_t)r * positions + p) * s->K + k] = f->silu ? v / (1 + exp(-v)) : v;
            }
    return y;
}

double reference_error(const tensor *y, const double *reference)
{
    double worst = 0, largest = 0;
    for (int r = 0; r < y->n; r++)
        for (int p = 0; p < y->positions; p++)
            for (int k = 0; k < y->channels; k++, reference++) {
                double d = fabs(*tensor_at(y, r, p, k) - *reference);
                worst = d <= worst ? worst : d; /* NaN is kept */
                largest = fmax(largest, fabs(*reference));
            }
    return worst / largest;
}
