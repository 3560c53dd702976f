/* plan_multistep.c - DPM-Solver++ (1 to 3 steps, SDE, and the older DPM-Solver) and UniPC: exponential integrators over
 * lambda = log(alpha / sigma), with a ring of earlier model predictions in history. */
#include "draft.h"

/* One noise level of the list. */
typedef struct level {
    double alpha, sigma, lambda;
} level;

static level level_at(const dn_plan *p, int i)
{
    double s = p->s->level[i];
    level l = { .alpha = 1 / sqrt(s * s + 1), .sigma = s / sqrt(s * s + 1) };
    if (dn_is_flow(p->c))
        l = (level){ .alpha = 1 - s, .sigma = s };
    l.lambda = log(l.alpha) - log(l.sigma);
    return l;
}

static dn_draft draft_at(const dn_plan *p, int i, level l)
{
    return dn_draft_vp(p, p->s->timestep[i], l.alpha, l.sigma);
}

/* What the solver integrates: x0, or the noise. */
static dn_combo model_term(const dn_draft *d, bool predicts_x0)
{
    if (predicts_x0)
        return dn_term(DN_B_X0, 1);
    return d->e.flags & DN_THRESHOLD ? dn_draft_clipped_eps(d) : d->eps;
}

/* x' = x * X + D0 * m_0 + D1 * (its first difference) + D2 * (its second) + z * Z. */
typedef struct dpm_step {
    double x, d0, d1, d2, z;
} dpm_step;

/* Lu et al. 2022, DPM-Solver++ (and DPM-Solver, and their SDE forms), from level s to level t, as diffusers names them.
 */
static dpm_step dpm_coefficients(enum dn_algorithm algorithm, bool midpoint, int order, level s, level t)
{
    double h = t.lambda - s.lambda, e;
    dpm_step c = { 0 };
    switch (algorithm) {
    case DN_DPMPP:
        e = expm1(-h);
        c = (dpm_step){ .x = t.sigma / s.sigma, .d0 = -t.alpha * e };
        if (order > 1)
            c.d1 = midpoint ? -0.5 * t.alpha * e : t.alpha * (e / h + 1);
        if (order > 2)
            c.d2 = -t.alpha * ((e + h) / (h * h) - 0.5);
        break;
    case DN_SDE_DPMPP:
        e = -expm1(-2 * h);
        c = (dpm_step){ .x = t.sigma / s.sigma * exp(-h), .d0 = t.alpha * e, .z = t.sigma * sqrt(e) };
        if (order > 1)
            c.d1 = midpoint ? 0.5 * t.alpha * e : t.alpha * (e / (-2 * h) + 1);
        if (order > 2)
            c.d2 = t.alpha * ((e - 2 * h) / (4 * h * h) - 0.5);
        break;
    case DN_DPM:
        e = expm1(h);
        c = (dpm_step){ .x = t.alpha / s.alpha, .d0 = -t.sigma * e };
        if (order > 1)
            c.d1 = midpoint ? -0.5 * t.sigma * e : -t.sigma * (e / h - 1);
        if (order > 2)
            c.d2 = -t.sigma * ((e - h) / (h * h) - 0.5);
        break;
    case DN_SDE_DPM:
        e = expm1(h);
        c = (dpm_step){ .x = t.alpha / s.alpha, .d0 = -2 * t.sigma * e, .z = t.sigma * sqrt(expm1(2 * h)) };
        if (order > 1)
            c.d1 = midpoint ? -t.sigma * e : -2 * t.sigma * (e / h - 1);
        break;
    }
    return c;
}

/* The order at step i of n: it starts and ends low. */
static int dpm_order(const dn_settings *c, int i, int n)
{
    int order = dn_int(c, solver_order);
    bool final = dn_is(c, lower_order_final) && n < 15;
    if (i == n - 1 && (dn_is(c, euler_at_final) || final || dn_int(c, final_sigmas_type) == DN_FINAL_ZERO))
        return 1;
    if (i == n - 2 && final && order > 2)
        order = 2;
    return order < i + 1 ? order : i + 1;
}

static void dpm_differences(dn_combo *x, const dpm_step *c, int order, const dn_combo *m, const level *l)
{
    double h = l[0].lambda - l[1].lambda; /* l: target, then the levels of m_0, m_1, m_2 */
    dn_combo_add(x, c->d0, &m[0]);
    if (order < 2)
        return;
    double r0 = (l[1].lambda - l[2].lambda) / h;
    dn_combo a = { 0 }, b = { 0 };
    dn_combo_add(&a, 1 / r0, &m[0]);
    dn_combo_add(&a, -1 / r0, &m[1]);
    dn_combo_add(x, c->d1, &a);
    if (order < 3)
        return;
    double r1 = (l[2].lambda - l[3].lambda) / h;
    dn_combo_add(&b, 1 / r1, &m[1]);
    dn_combo_add(&b, -1 / r1, &m[2]);
    double k = (c->d1 * r0 + c->d2) / (r0 + r1);
    dn_combo_add(x, k, &a);
    dn_combo_add(x, -k, &b);
}

static int dpm_check(dn_plan *p)
{
    enum dn_algorithm algorithm = dn_int(p->c, algorithm_type);
    bool noise = algorithm == DN_DPM || algorithm == DN_SDE_DPM;
    if (noise && dn_int(p->c, final_sigmas_type) == DN_FINAL_ZERO)
        return dn_plan_fail(p, K_final_sigmas_type, "must be sigma_min with dpmsolver and sde-dpmsolver");
    if (noise && dn_is_flow(p->c))
        return dn_plan_fail(p, K_algorithm_type, "must be dpmsolver++ or sde-dpmsolver++ with use_flow_sigmas");
    if (algorithm == DN_SDE_DPM && dn_int(p->c, solver_order) > 2)
        return dn_plan_fail(p, K_solver_order, "must be 1 or 2 with sde-dpmsolver");
    return 0;
}

void dn_plan_dpm(dn_plan *p)
{
    enum dn_algorithm algorithm = dn_int(p->c, algorithm_type);
    int n = p->s->n, ring = dn_int(p->c, solver_order) - 1;
    if (dpm_check(p))
        return;
    for (int i = 0; i < n; i++) {
        int order = dpm_order(p->c, i, n);
        bool midpoint = order == 2 && dn_int(p->c, solver_type) == DN_SOLVER_MIDPOINT;
        level l[4] = { level_at(p, i + 1) };
        for (int k = 0; k < order; k++)
            l[k + 1] = level_at(p, i - k);
        dn_draft d = draft_at(p, i, l[1]);
        dn_combo m[3] = { model_term(&d, algorithm == DN_DPMPP || algorithm == DN_SDE_DPMPP) };
        for (int k = 1; k < order; k++)
            m[k] = dn_term(DN_B_H0 + (i - k) % ring, 1);
        dpm_step c = dpm_coefficients(algorithm, midpoint, order, l[1], l[0]);
        d.x = dn_term(DN_B_X, c.x);
        d.x.a[DN_B_Z] = c.z;
        dpm_differences(&d.x, &c, order, m, l);
        if (ring && i < n - 1)
            dn_draft_write(&d, i % ring, &m[0]);
        dn_plan_add(p, &d);
    }
}

/* Solve the n x n system R rho = b (n <= 3) by elimination with pivoting. */
static void solve(double *rho, double r[3][3], double *b, int n)
{
    for (int k = 0; k < n; k++) {
        int pivot = k;
        for (int i = k + 1; i < n; i++)
            if (fabs(r[i][k]) > fabs(r[pivot][k]))
                pivot = i;
        for (int j = 0; j < n; j++) {
            double swap = r[k][j];
            r[k][j] = r[pivot][j];
            r[pivot][j] = swap;
        }
        double swap = b[k];
        b[k] = b[pivot];
        b[pivot] = swap;
        for (int i = k + 1; i < n; i++) {
            double f = r[i][k] / r[k][k];
            for (int j = k; j < n; j++)
                r[i][j] -= f * r[k][j];
            b[i] -= f * b[k];
        }
    }
    for (int k = n - 1; k >= 0; k--) {
        rho[k] = b[k];
        for (int j = k + 1; j < n; j++)
            rho[k] -= r[k][j] * rho[j];
        rho[k] /= r[k][k];
    }
}

/* Zhao et al. 2023: one UniP (m_t NULL) or UniC update from level l[1], where x was, to l[0]. m[k] was predicted at
 * l[k+1]; m_t at l[0]. */
static dn_combo unipc_update(const dn_settings *c, int order, const level *l, const dn_combo *x, const dn_combo *m,
                             const dn_combo *m_t)
{
    bool x0 = dn_is(c, predict_x0);
    double h = l[0].lambda - l[1].lambda, hh = x0 ? -h : h, phi1 = expm1(hh);
    double b_h = dn_int(c, solver_type) == DN_SOLVER_BH1 ? hh : phi1;
    double r[3][3], b[3], rk[3], rho[3] = { 0.5, 0.5, 0.5 }, phi = phi1 / hh - 1, factorial = 1;
    for (int k = 0; k < order; k++)
        rk[k] = k < order - 1 ? (l[k + 2].lambda - l[1].lambda) / h : 1;
    for (int k = 0; k < order; k++) {
        for (int j = 0; j < order; j++)
            r[k][j] = pow(rk[j], k);
        b[k] = phi * factorial / b_h;
        factorial *= k + 2;
        phi = phi / hh - 1 / factorial;
    }
    if (m_t ? order > 1 : order > 2)
        solve(rho, r, b, m_t ? order : order - 1);
    double outer = x0 ? l[0].alpha : l[0].sigma;
    dn_combo y = { 0 };
    dn_combo_add(&y, x0 ? l[0].sigma / l[1].sigma : l[0].alpha / l[1].alpha, x);
    dn_combo_add(&y, -outer * phi1, &m[0]);
    for (int k = 0; k < order - 1; k++) {
        dn_combo_add(&y, -outer * b_h * rho[k] / rk[k], &m[k + 1]);
        dn_combo_add(&y, outer * b_h * rho[k] / rk[k], &m[0]);
    }
    if (m_t) {
        dn_combo_add(&y, -outer * b_h * rho[order - 1], m_t);
        dn_combo_add(&y, outer * b_h * rho[order - 1], &m[0]);
    }
    return y;
}

static int unipc_order(const dn_settings *c, int i, int n)
{
    int order = dn_int(c, solver_order);
    if (dn_is(c, lower_order_final) && n - i < order)
        order = n - i;
    return order < i + 1 ? order : i + 1;
}

static bool corrects(const dn_settings *c, int i)
{
    const dn_setting *off = &c->v[K_disable_corrector];
    for (int k = 0; k < off->n; k++)
        if (off->list[k] == i - 1)
            return false;
    return i > 0;
}

static int unipc_check(dn_plan *p)
{
    bool zero = dn_int(p->c, final_sigmas_type) == DN_FINAL_ZERO, x0 = dn_is(p->c, predict_x0);
    if (zero && dn_int(p->c, solver_type) == DN_SOLVER_BH1)
        return dn_plan_fail(p, K_solver_type, "bh1 cannot step to a final sigma of zero: infinity times zero");
    if (zero && !x0)
        return dn_plan_fail(p, K_final_sigmas_type, "must be sigma_min when predict_x0 is false");
    if (!x0 && (dn_is(p->c, thresholding) || dn_is_flow(p->c)))
        return dn_plan_fail(p, K_predict_x0, "must be true with thresholding and with use_flow_sigmas");
    return 0;
}

/* Entry i corrects x, which the predictor of entry i-1 made, by the new prediction, then predicts on. History: a ring
 * of predictions, then the corrected x of the last entry. */
void dn_plan_unipc(dn_plan *p)
{
    int n = p->s->n, ring = dn_int(p->c, solver_order), last = ring;
    if (unipc_check(p))
        return;
    for (int i = 0; i < n; i++) {
        level l[5] = { 0 }; /* of steps i+1, i, i-1, ... */
        for (int k = 0; k <= ring + 1 && i + 1 - k >= 0; k++)
            l[k] = level_at(p, i + 1 - k);
        dn_draft d = draft_at(p, i, l[1]);
        dn_combo m[4] = { model_term(&d, dn_is(p->c, predict_x0)) }, x = dn_term(DN_B_X, 1);
        for (int k = 1; k <= ring && i - k >= 0; k++)
            m[k] = dn_term(DN_B_H0 + (i - k) % ring, 1);
        if (corrects(p->c, i)) {
            dn_combo before = dn_term(DN_B_H0 + last, 1);
            x = unipc_update(p->c, unipc_order(p->c, i - 1, n), l + 1, &before, m + 1, &m[0]);
        }
        d.x = unipc_update(p->c, unipc_order(p->c, i, n), l, &x, m, NULL);
        if (i < n - 1) {
            dn_draft_write(&d, i % ring, &m[0]);
            dn_draft_write(&d, last, &x);
        }
        dn_plan_add(p, &d);
    }
}
