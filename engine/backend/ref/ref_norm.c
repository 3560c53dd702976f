/* ref_norm.c - GroupNorm and LayerNorm: biased variance, y = (x - mean) * rstd * gamma + beta.
 *
 * A unit is what shares a mean: a group of channels over all positions, or (per_position) a position's channels. */
#include "ref_impl.h"

typedef struct unit {
    int64_t C, positions, first, width; /* the unit's channels, first .. first+width-1 of C, at each of its positions */
    int64_t origin;                     /* its first position */
} unit;

static int64_t units(const call *c)
{
    const dn_ref_operand *x = &c->op->in[0];
    return c->op->attr.norm.per_position ? x->count / last_dim(&x->shape) : c->op->attr.norm.groups;
}

static unit unit_of(const call *c, int64_t i)
{
    const dn_ref_operand *x = &c->op->in[0];
    int64_t C = last_dim(&x->shape);
    if (c->op->attr.norm.per_position)
        return (unit){ C, 1, 0, C, i };
    int64_t width = C / c->op->attr.norm.groups;
    return (unit){ C, x->count / C, i * width, width, 0 };
}

static int64_t unit_size(const unit *u) { return u->positions * u->width; }

/* Where element i of the unit lies in the row. */
static int64_t unit_at(const unit *u, int64_t i) { return (u->origin + i / u->width) * u->C + u->first + i % u->width; }

static void moments(const real *x, const unit *u, double eps, double *mean, double *rstd)
{
    int64_t n = unit_size(u);
    double sum = 0, square = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[unit_at(u, i)];
    *mean = sum / n;
    for (int64_t i = 0; i < n; i++) {
        double d = x[unit_at(u, i)] - *mean;
        square += d * d;
    }
    *rstd = 1 / sqrt(square / n + eps);
}

int R(norm)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row) /* [...,C] */, *gamma = in(c, 1, row) /* [C] */, *beta = in(c, 2, row) /* [C] */;
    real *y = out(c, 0, row), *stats = out(c, 1, row); /* [units,2] */
    for (int64_t i = 0; i < units(c); i++) {
        unit u = unit_of(c, i);
        double mean, rstd;
        moments(x, &u, c->op->attr.norm.eps, &mean, &rstd);
        if (stats)
            stats[2 * i] = (real)mean, stats[2 * i + 1] = (real)rstd;
        for (int64_t j = 0; y && j < unit_size(&u); j++) {
            int64_t at = unit_at(&u, j), ch = at % u.C;
            y[at] = (real)((x[at] - mean) * rstd * (gamma ? gamma[ch] : 1) + (beta ? beta[ch] : 0));
        }
    }
    return 0;
}

/* dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * gamma, means over the unit */
int R(norm_dx)(const call *c, int64_t row)
{
    const real *x = in(c, 0, row), *stats = in(c, 1, row), *dy = in(c, 2, row), *gamma = in(c, 3, row);
    real *dx = out(c, 0, row);
    for (int64_t i = 0; i < units(c); i++) {
        unit u = unit_of(c, i);
        double mean = stats[2 * i], rstd = stats[2 * i + 1], sum = 0, sum_x = 0;
        int64_t n = unit_size(&u);
        for (int64_t j = 0; j < n; j++) {
            int64_t at = unit_at(&u, j);
            double g = dy[at] * (double)(gamma ? gamma[at % u.C] : 1);
            sum += g;
            sum_x += g * (x[at] - mean) * rstd;
        }
        for (int64_t j = 0; j < n; j++) {
            int64_t at = unit_at(&u, j);
            double g = dy[at] * (double)(gamma ? gamma[at % u.C] : 1);
            dx[at] = (real)(rstd * (g - sum / n - (x[at] - mean) * rstd * sum_x / n));
        }
    }
    return 0;
}

int R(norm_dw)(const call *c, int64_t row)
{
    real *dgamma = out(c, 0, row) /* [C] */, *dbeta = out(c, 1, row) /* [C] */;
    int64_t C = last_dim(&c->op->in[0].shape);
    double *sum_g = workspace(c, row), *sum_b = sum_g + C;
    clear(sum_g, 2 * C);
    for (int64_t r = row; r < rows_end(c, row); r++) {
        const real *x = in(c, 0, r), *stats = in(c, 1, r), *dy = in(c, 2, r);
        for (int64_t i = 0; i < units(c); i++) {
            unit u = unit_of(c, i);
            for (int64_t j = 0; j < unit_size(&u); j++) {
                int64_t at = unit_at(&u, j);
                sum_g[at % C] += dy[at] * ((x[at] - (double)stats[2 * i]) * stats[2 * i + 1]);
                sum_b[at % C] += dy[at];
            }
        }
    }
    if (dgamma)
        round_all(dgamma, sum_g, C);
    if (dbeta)
        round_all(dbeta, sum_b, C);
    return 0;
}
