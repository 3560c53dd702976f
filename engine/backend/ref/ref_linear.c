/* ref_linear.c - convolution and matrix product, with their gradients. Dot products are summed in double. */
#include "ref_impl.h"

typedef struct conv {
    int64_t H, W, C, Ho, Wo, K, kh, kw;
    int stride, top, left;
} conv;

static conv conv_of(const call *c, const dn_ref_operand *x, const dn_ref_operand *w, const dn_ref_operand *y)
{
    const dn_attr *a = &c->op->attr;
    const int64_t *in = x->shape.dim, *k = w->shape.dim, *out = y->shape.dim;
    return (conv){ .H = in[0],
                   .W = in[1],
                   .C = in[2],
                   .Ho = out[0],
                   .Wo = out[1],
                   .K = out[2],
                   .kh = k[0],
                   .kw = k[1],
                   .stride = a->conv.stride,
                   .top = a->conv.pad[DN_TOP],
                   .left = a->conv.pad[DN_LEFT] };
}

/* The input coordinate that tap k of output o reads, or -1 outside. */
static int64_t tap(int64_t o, int64_t k, int stride, int pad, int64_t size)
{
    int64_t i = o * stride + k - pad;
    return i >= 0 && i < size ? i : -1;
}

/* The output coordinate whose tap k reads input i, or -1 if there is none. */
static int64_t untap(int64_t i, int64_t k, int stride, int pad, int64_t size)
{
    int64_t o = i + pad - k;
    return o >= 0 && o % stride == 0 && o / stride < size ? o / stride : -1;
}

/* acc[n] += x[c] * w[c,n] */
static void row_times_matrix(double *acc, const real *x, const real *w, int64_t C, int64_t N)
{
    for (int64_t i = 0; i < C; i++)
        for (int64_t n = 0; n < N; n++)
            acc[n] += (double)x[i] * w[i * N + n];
}

/* acc[c] += w[c,n] * x[n] */
static void matrix_times_row(double *acc, const real *w, const real *x, int64_t C, int64_t N)
{
    for (int64_t i = 0; i < C; i++)
        for (int64_t n = 0; n < N; n++)
            acc[i] += (double)x[n] * w[i * N + n];
}

static void start(double *acc, const real *bias, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        acc[i] = bias ? bias[i] : 0;
}

int R(conv2d)(const call *c, int64_t row)
{
    conv d = conv_of(c, &c->op->in[0], &c->op->in[1], &c->op->out[0]);
    const real *x = in(c, 0, row) /* [H,W,C] */, *w = in(c, 1, row) /* [kh,kw,C,K] */, *bias = in(c, 2, row);
    real *y = out(c, 0, row); /* [Ho,Wo,K] */
    double *acc = workspace(c, row);
    for (int64_t o = 0; o < d.Ho * d.Wo; o++) {
        start(acc, bias, d.K);
        for (int64_t k = 0; k < d.kh * d.kw; k++) {
            int64_t h = tap(o / d.Wo, k / d.kw, d.stride, d.top, d.H);
            int64_t v = tap(o % d.Wo, k % d.kw, d.stride, d.left, d.W);
            if (h >= 0 && v >= 0)
                row_times_matrix(acc, x + (h * d.W + v) * d.C, w + k * d.C * d.K, d.C, d.K);
        }
        round_all(y + o * d.K, acc, d.K);
    }
    return 0;
}

int R(conv2d_dx)(const call *c, int64_t row)
{
    conv d = conv_of(c, &c->op->out[0], &c->op->in[1], &c->op->in[0]);
    const real *dy = in(c, 0, row) /* [Ho,Wo,K] */, *w = in(c, 1, row) /* [kh,kw,C,K] */;
    real *dx = out(c, 0, row); /* [H,W,C] */
    double *acc = workspace(c, row);
    for (int64_t i = 0; i < d.H * d.W; i++) {
        clear(acc, d.C);
        for (int64_t k = 0; k < d.kh * d.kw; k++) {
            int64_t h = untap(i / d.W, k / d.kw, d.stride, d.top, d.Ho);
            int64_t v = untap(i % d.W, k % d.kw, d.stride, d.left, d.Wo);
            if (h >= 0 && v >= 0)
                matrix_times_row(acc, w + k * d.C * d.K, dy + (h * d.Wo + v) * d.K, d.C, d.K);
        }
        round_all(dx + i * d.C, acc, d.C);
    }
    return 0;
}

/* acc[k] += sum over one row's positions of x[.., ch] * dy[.., k], for tap number k_tap */
static void tap_dw(double *acc, const conv *d, const real *x, const real *dy, int64_t k_tap, int64_t ch)
{
    for (int64_t o = 0; o < d->Ho * d->Wo; o++) {
        int64_t h = tap(o / d->Wo, k_tap / d->kw, d->stride, d->top, d->H);
        int64_t v = tap(o % d->Wo, k_tap % d->kw, d->stride, d->left, d->W);
        if (h < 0 || v < 0)
            continue;
        double value = x[(h * d->W + v) * d->C + ch];
        for (int64_t k = 0; k < d->K; k++)
            acc[k] += value * dy[o * d->K + k];
    }
}

int R(conv2d_dw)(const call *c, int64_t row)
{
    conv d = conv_of(c, &c->op->in[0], &c->op->out[0], &c->op->in[1]);
    real *dw = out(c, 0, row); /* [kh,kw,C,K] */
    double *acc = workspace(c, row);
    for (int64_t i = 0; i < d.kh * d.kw * d.C; i++) {
        clear(acc, d.K);
        for (int64_t r = row; r < rows_end(c, row); r++)
            tap_dw(acc, &d, in(c, 0, r), in(c, 1, r), i / d.C, i % d.C);
        round_all(dw + i * d.K, acc, d.K);
    }
    return 0;
}

int R(matmul)(const call *c, int64_t row)
{
    int64_t C = last_dim(&c->op->in[0].shape), N = last_dim(&c->op->out[0].shape), L = c->op->out[0].count / N;
    const real *x = in(c, 0, row) /* [L,C] */, *w = in(c, 1, row), *bias = in(c, 2, row);
    real *y = out(c, 0, row); /* [L,N] */
    double *acc = workspace(c, row);
    for (int64_t l = 0; l < L; l++) {
        start(acc, bias, N);
        if (c->op->attr.matmul.transposed)
            matrix_times_row(acc, w, x + l * C, N, C);
        else
            row_times_matrix(acc, x + l * C, w, C, N);
        round_all(y + l * N, acc, N);
    }
    return 0;
}

int R(matmul_dw)(const call *c, int64_t row)
{
    int64_t C = last_dim(&c->op->in[0].shape), N = last_dim(&c->op->in[1].shape), L = c->op->in[0].count / C;
    real *dw = out(c, 0, row); /* [C,N] */
    double *acc = workspace(c, row);
    for (int64_t i = 0; i < C; i++) {
        clear(acc, N);
        for (int64_t r = row; r < rows_end(c, row); r++) {
            const real *x = in(c, 0, r) /* [L,C] */, *dy = in(c, 1, r) /* [L,N] */;
            for (int64_t l = 0; l < L; l++)
                row_times_matrix(acc, x + l * C + i, dy + l * N, 1, N);
        }
        round_all(dw + i * N, acc, N);
    }
    return 0;
}
