/* ref_loss.c - losses of one row: means over its elements, and the cross entropy of a label. */
#include "ref_impl.h"

/* Huber: d^2/2 within delta, delta (|d| - delta/2) beyond, as PyTorch's huber_loss. */
/* clang-format off */
static double loss_of(const dn_attr *a, double d)
{
    switch (a->loss.kind) {
    case DN_MSE: return d * d;
    case DN_L1: return fabs(d);
    case DN_HUBER: return fabs(d) <= a->loss.delta ? 0.5 * d * d : a->loss.delta * (fabs(d) - 0.5 * a->loss.delta);
    }
    return NAN;
}
/* clang-format on */

/* clang-format off */
static double loss_slope(const dn_attr *a, double d)
{
    switch (a->loss.kind) {
    case DN_MSE: return 2 * d;
    case DN_L1: return (d > 0) - (d < 0);
    case DN_HUBER: return fabs(d) <= a->loss.delta ? d : copysign(a->loss.delta, d);
    }
    return NAN;
}
/* clang-format on */

int R(loss)(const call *c, int64_t row)
{
    const real *prediction = in(c, 0, row), *target = in(c, 1, row);
    int64_t n = c->op->in[0].count;
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += loss_of(&c->op->attr, (double)prediction[i] - target[i]);
    *(real *)out(c, 0, row) = (real)(sum / n);
    return 0;
}

int R(loss_bwd)(const call *c, int64_t row)
{
    const real *prediction = in(c, 0, row), *target = in(c, 1, row), *dloss = in(c, 2, row);
    real *dx = out(c, 0, row);
    int64_t n = c->op->in[0].count;
    for (int64_t i = 0; i < n; i++)
        dx[i] = (real)(*dloss * loss_slope(&c->op->attr, (double)prediction[i] - target[i]) / n);
    return 0;
}

/* log(sum of exp(x)), without overflow */
static double log_sum(const real *x, int64_t n)
{
    double top = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

int R(cross_entropy)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row); /* [V] */
    const int32_t *label = in(c, 1, row);
    int64_t V = c->op->in[0].count;
    if (*label < 0 || *label >= V)
        return DN_E_RANGE;
    *(real *)out(c, 0, row) = (real)(log_sum(x, V) - x[*label]);
    return 0;
}

int R(cross_entropy_bwd)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row) /* [V] */, *dloss = in(c, 2, row);
    const int32_t *label = in(c, 1, row);
    real *dx = out(c, 0, row);
    int64_t V = c->op->in[0].count;
    if (*label < 0 || *label >= V)
        return DN_E_RANGE;
    double total = log_sum(x, V);
    for (int64_t i = 0; i < V; i++)
        dx[i] = (real)(*dloss * (exp(x[i] - total) - (i == *label)));
    return 0;
}
