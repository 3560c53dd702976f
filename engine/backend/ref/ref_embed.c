/* ref_embed.c - embeddings: learned tables, sinusoids of the timestep, Fourier features, and the VQ codebook.
 *
 * timestep and fourier follow diffusers' order of fp32 operations in the float build; the same formulas in double give
 * values up to 5e-5 away at t = 999. */
#include <tgmath.h>
#include "ref_impl.h"

static const double pi = 3.14159265358979323846;

static bool inside(int32_t id, int64_t n) { return id >= 0 && id < n; }

/* w = 0 reads E[a] alone: b need not be an id. */
int R(embed)(const call *c, int64_t row)
{
    int64_t V = c->op->in[0].shape.dim[0], C = c->op->in[0].shape.dim[1];
    const real *table = in(c, 0, row) /* [V,C] */, *w = in(c, 2, row) /* [1] */;
    const int32_t *id = in(c, 1, row); /* [2] */
    real *y = out(c, 0, row);          /* [C] */
    if (!inside(id[0], V) || (*w != 0 && !inside(id[1], V)))
        return DN_E_RANGE;
    for (int64_t i = 0; i < C; i++)
        y[i] = *w == 0 ? table[id[0] * C + i] : (1 - *w) * table[id[0] * C + i] + *w * table[id[1] * C + i];
    return 0;
}

int R(embed_dw)(const call *c, int64_t row)
{
    int64_t V = c->op->out[0].shape.dim[0], C = c->op->out[0].shape.dim[1];
    double *sum = workspace(c, row); /* [V,C] */
    clear(sum, V * C);
    for (int64_t r = row; r < rows_end(c, row); r++) {
        const int32_t *id = in(c, 0, r);
        const real *w = in(c, 1, r), *dy = in(c, 2, r);
        if (!inside(id[0], V) || (*w != 0 && !inside(id[1], V)))
            return DN_E_RANGE;
        for (int64_t i = 0; i < C; i++) {
            sum[id[0] * C + i] += (1 - (double)*w) * dy[i];
            if (*w != 0)
                sum[id[1] * C + i] += (double)*w * dy[i];
        }
    }
    round_all(out(c, 0, row), sum, V * C);
    return 0;
}

int R(timestep)(const call *c, int64_t row)
{
    const dn_attr *a = &c->op->attr;
    const real *t = in(c, 0, row); /* [1] */
    real *y = out(c, 0, row);      /* [dim] */
    int64_t dim = c->op->out[0].count, half = dim / 2;
    real log_period = (real)-log(a->timestep.max_period), span = (real)(half - a->timestep.freq_shift);
    int64_t sin_at = a->timestep.flip_sin_to_cos ? half : 0;
    for (int64_t i = 0; i < half; i++) {
        real angle = *t * exp(log_period * (real)i / span);
        y[sin_at + i] = sin(angle);
        y[half - sin_at + i] = cos(angle);
    }
    if (dim % 2)
        y[dim - 1] = 0;
    return 0;
}

int R(fourier)(const call *c, int64_t row)
{
    const real *t = in(c, 0, row) /* [1] */, *w = in(c, 1, row) /* [C] */;
    real *y = out(c, 0, row); /* [2C]: sines, cosines */
    int64_t C = c->op->in[1].count;
    real x = log(*t);
    for (int64_t i = 0; i < C; i++) {
        real angle = x * w[i] * 2 * (real)pi;
        y[i] = sin(angle);
        y[C + i] = cos(angle);
    }
    return 0;
}

/* The number of the code nearest to x; of equals the first. */
static int32_t nearest(const real *x, const real *codebook, int64_t n, int64_t D)
{
    int32_t best = 0;
    double least = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < D; j++) {
            double d = (double)x[j] - codebook[i * D + j];
            sum += d * d;
        }
        if (sum < least)
            least = sum, best = (int32_t)i;
    }
    return best;
}

int R(vq)(const call *c, int64_t row)
{
    int64_t n = c->op->in[1].shape.dim[0], D = c->op->in[1].shape.dim[1];
    const real *x = in(c, 0, row) /* [...,D] */, *codebook = in(c, 1, row) /* [n,D] */;
    real *y = out(c, 0, row);        /* [...,D] */
    int32_t *index = out(c, 1, row); /* [...] */
    for (int64_t i = 0; i < c->op->in[0].count / D; i++) {
        int32_t code = nearest(x + i * D, codebook, n, D);
        if (y)
            memcpy(y + i * D, codebook + code * D, D * sizeof *y);
        if (index)
            index[i] = code;
    }
    return 0;
}

int R(vq_dw)(const call *c, int64_t row)
{
    int64_t n = c->op->out[0].shape.dim[0], D = c->op->out[0].shape.dim[1];
    double *sum = workspace(c, row); /* [n,D] */
    clear(sum, n * D);
    for (int64_t r = row; r < rows_end(c, row); r++) {
        const int32_t *index = in(c, 0, r);
        const real *dy = in(c, 1, r);
        for (int64_t i = 0; i < c->op->in[0].count; i++) {
            if (!inside(index[i], n))
                return DN_E_RANGE;
            for (int64_t j = 0; j < D; j++)
                sum[index[i] * D + j] += dy[i * D + j];
        }
    }
    round_all(out(c, 0, row), sum, n * D);
    return 0;
}
