/* ref_attention.c - softmax(scale * q k^T) v for each head, softmax alone, and their gradients. */
#include "ref_impl.h"

typedef struct heads {
    int64_t L, M, C, d; /* queries, keys, channels, channels of a head */
    double scale;
} heads;

static heads heads_of(const call *c)
{
    int64_t C = c->op->in[0].shape.dim[1];
    return (heads){ c->op->in[0].shape.dim[0], c->op->in[1].shape.dim[0], C, C / c->op->attr.attention.heads,
                    c->op->attr.attention.scale };
}

static double dot(const real *a, const real *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* p = softmax(p) */
static void normalise(double *p, int64_t n)
{
    double top = p[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        top = p[i] > top ? p[i] : top;
    for (int64_t i = 0; i < n; i++)
        sum += p[i] = exp(p[i] - top);
    for (int64_t i = 0; i < n; i++)
        p[i] /= sum;
}

/* p[m] = the weight of key m for the query at q; q and k point at the head's first channel. */
static void weights(double *p, const heads *h, const real *q, const real *k)
{
    for (int64_t m = 0; m < h->M; m++)
        p[m] = h->scale * dot(q, k + m * h->C, h->d);
    normalise(p, h->M);
}

int R(attention)(const call *c, int64_t row)
{
    heads h = heads_of(c);
    const real *q = in(c, 0, row) /* [L,C] */, *k = in(c, 1, row) /* [M,C] */, *v = in(c, 2, row) /* [M,C] */;
    real *y = out(c, 0, row);      /* [L,C] */
    double *p = workspace(c, row); /* [M] */
    for (int64_t i = 0; i < h.L * h.C; i += h.d) {
        int64_t head = i % h.C;
        weights(p, &h, q + i, k + head);
        for (int64_t j = 0; j < h.d; j++) {
            double sum = 0;
            for (int64_t m = 0; m < h.M; m++)
                sum += p[m] * v[m * h.C + head + j];
            y[i + j] = (real)sum;
        }
    }
    return 0;
}

/* One query of one head: ds = d(scores) from dp = dy v^T, where scores = scale * q k^T. */
static void score_gradient(double *ds, const double *p, const heads *h, const real *dy, const real *v)
{
    double mean = 0;
    for (int64_t m = 0; m < h->M; m++) {
        ds[m] = dot(dy, v + m * h->C, h->d);
        mean += p[m] * ds[m];
    }
    for (int64_t m = 0; m < h->M; m++)
        ds[m] = h->scale * p[m] * (ds[m] - mean);
}

int R(attention_bwd)(const call *c, int64_t row)
{
    heads h = heads_of(c);
    const real *q = in(c, 0, row), *k = in(c, 1, row), *v = in(c, 2, row), *dy = in(c, 3, row) /* [L,C] */;
    real *dq = out(c, 0, row) /* [L,C] */, *dk = out(c, 1, row) /* [M,C] */, *dv = out(c, 2, row) /* [M,C] */;
    double *p = workspace(c, row) /* [M] */, *ds = p + h.M /* [M] */, *sum_k = ds + h.M /* [M,C] */;
    double *sum_v = sum_k + h.M * h.C; /* [M,C] */
    clear(sum_k, 2 * h.M * h.C);
    for (int64_t i = 0; i < h.L * h.C; i += h.d) {
        int64_t head = i % h.C;
        weights(p, &h, q + i, k + head);
        score_gradient(ds, p, &h, dy + i, v + head);
        for (int64_t j = 0; j < h.d; j++) {
            double sum = 0;
            for (int64_t m = 0; m < h.M; m++) {
                int64_t at = m * h.C + head + j;
                sum += ds[m] * k[at];
                sum_k[at] += ds[m] * q[i + j];
                sum_v[at] += p[m] * dy[i + j];
            }
            if (dq)
                dq[i + j] = (real)sum;
        }
    }
    if (dk)
        round_all(dk, sum_k, h.M * h.C);
    if (dv)
        round_all(dv, sum_v, h.M * h.C);
    return 0;
}

int R(softmax)(const call *c, int64_t row)
{
    int64_t n = last_dim(&c->op->in[0].shape), count = c->op->in[0].count;
    const real *x = in(c, 0, row); /* [...,n] */
    real *y = out(c, 0, row);
    for (int64_t i = 0; i < count; i += n) {
        double top = x[i], sum = 0;
        for (int64_t j = 1; j < n; j++)
            top = x[i + j] > top ? x[i + j] : top;
        for (int64_t j = 0; j < n; j++)
            sum += exp(x[i + j] - top);
        for (int64_t j = 0; j < n; j++)
            y[i + j] = (real)(exp(x[i + j] - top) / sum);
    }
    return 0;
}

int R(softmax_bwd)(const call *c, int64_t row)
{
    int64_t n = last_dim(&c->op->in[0].shape), count = c->op->in[0].count;
    const real *y = in(c, 0, row) /* [...,n] */, *dy = in(c, 1, row);
    real *dx = out(c, 0, row);
    for (int64_t i = 0; i < count; i += n) {
        double mean = dot(y + i, dy + i, n);
        for (int64_t j = 0; j < n; j++)
            dx[i + j] = (real)(y[i + j] * (dy[i + j] - mean));
    }
    return 0;
}
