/* ref_move.c - strided copies and the FIR resampling of NCSN++. */
#include "ref_impl.h"

/* One part: y += scale * x over its index space. */
static void copy_part(real *y, const real *x, const dn_copy_part *p, real scale)
{
    int64_t i[DN_RANK_MAX] = { 0 }, src = p->src_off, dst = p->dst_off;
    for (int k = 0; k < DN_RANK_MAX; k++)
        if (p->n[k] < 1)
            return;
    for (int k = DN_RANK_MAX; k >= 0;) {
        y[dst] += scale * x[src];
        for (k = DN_RANK_MAX - 1; k >= 0; k--) { /* the next index, last dim first; k < 0: there is none */
            src += p->src_stride[k], dst += p->dst_stride[k];
            if (++i[k] < p->n[k])
                break;
            src -= p->n[k] * p->src_stride[k], dst -= p->n[k] * p->dst_stride[k];
            i[k] = 0;
        }
    }
}

int R(copy)(const call *c, int64_t row)
{
    real *y = out(c, 0, row);
    memset(y, 0, c->op->out[0].count * sizeof *y);
    for (int i = 0; i < c->step->n_in; i++)
        copy_part(y, in(c, i, row), &c->op->attr.copy.part[i], (real)c->op->attr.copy.scale);
    return 0;
}

/* One axis of the filter at output o: up to 4 inputs (zero outside) and their weights. Down, stride 2:
 * (x[2o-1] + 3x[2o] + 3x[2o+1] + x[2o+2]) / 8. Up: y[2i] = x[i-1]/4 + 3x[i]/4, y[2i+1] = 3x[i]/4 + x[i+1]/4. */
static int taps(bool up, int64_t o, int64_t at[4], double weight[4])
{
    static const double down_weight[4] = { 0.125, 0.375, 0.375, 0.125 };
    static const double up_weight[2][2] = { { 0.25, 0.75 }, { 0.75, 0.25 } };
    for (int k = 0; k < (up ? 2 : 4); k++) {
        at[k] = up ? o / 2 + o % 2 - 1 + k : 2 * o - 1 + k;
        weight[k] = up ? up_weight[o % 2][k] : down_weight[k];
    }
    return up ? 2 : 4;
}

int R(fir)(const call *c, int64_t row)
{
    const dn_shape *s = &c->op->in[0].shape, *t = &c->op->out[0].shape;
    int64_t H = s->dim[0], W = s->dim[1], C = s->dim[2], Wo = t->dim[1], h[4], w[4];
    const real *x = in(c, 0, row); /* [H,W,C] */
    real *y = out(c, 0, row);      /* [Ho,Wo,C] */
    double weight_h[4], weight_w[4];
    for (int64_t i = 0; i < c->op->out[0].count; i++) {
        int n_h = taps(c->op->attr.fir.up, i / C / Wo, h, weight_h);
        int n_w = taps(c->op->attr.fir.up, i / C % Wo, w, weight_w);
        double sum = 0;
        for (int a = 0; a < n_h; a++)
            for (int b = 0; b < n_w; b++)
                if (h[a] >= 0 && h[a] < H && w[b] >= 0 && w[b] < W)
                    sum += weight_h[a] * weight_w[b] * x[(h[a] * W + w[b]) * C + i % C];
        y[i] = (real)(c->op->attr.fir.scale * sum);
    }
    return 0;
}
