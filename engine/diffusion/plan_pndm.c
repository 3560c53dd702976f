/* plan_pndm.c - PNDM (Liu et al. 2022): linear multistep, started by Runge-Kutta or, with skip_prk_steps, by evaluating
 * the second timestep twice.
 *
 * History: h_0..h_2 a ring of earlier outputs, h_3 the x a group of evaluations starts from, h_4 their weighted sum. */
#include "draft.h"

enum { SAVED = 3, SUM = 4 };

static double abar_at(const dn_plan *p, int t)
{
    return t >= 0 ? p->s->abar[t] : dn_is(p->c, set_alpha_to_one) ? 1 : p->s->abar[0];
}

/* Formula 9: from `x` at timestep t to timestep `to`, along `out`, a combination of network outputs. */
static dn_combo transfer(const dn_plan *p, int t, int to, const dn_combo *x, const dn_combo *out)
{
    double a = abar_at(p, t), b = abar_at(p, to);
    dn_draft d = dn_draft_vp(p, t, sqrt(a), sqrt(1 - a));
    dn_combo eps = { 0 }, y = { 0 };
    dn_combo_add(&eps, d.eps.a[DN_B_X], x);
    dn_combo_add(&eps, d.eps.a[DN_B_OUT], out);
    dn_combo_add(&y, sqrt(b / a), x);
    dn_combo_add(&y, -(b - a) / (a * sqrt(1 - b) + sqrt(a * (1 - a) * b)), &eps);
    return y;
}

static dn_draft draft_at(const dn_plan *p, int t)
{
    double a = abar_at(p, t);
    return dn_draft_vp(p, t, sqrt(a), sqrt(1 - a));
}

/* Four evaluations per step: at t, twice half way, at the next timestep; each restarts from the first one's x. */
static void runge_kutta_step(dn_plan *p, int step, int half)
{
    static const double weight[4] = { 1 / 6.0, 1 / 3.0, 1 / 3.0, 1 / 6.0 };
    int t = (int)p->s->timestep[step], next = (int)p->s->timestep[step + 1];
    const int at[4] = { t, next + half, next + half, next }, to[4] = { t - half, next + half, next, next };
    for (int k = 0; k < 4; k++) {
        dn_draft d = draft_at(p, at[k]);
        dn_combo x = dn_term(k ? DN_B_H0 + SAVED : DN_B_X, 1), out = dn_term(DN_B_OUT, 1),
                 sum = dn_term(DN_B_OUT, weight[k]);
        if (k)
            sum.a[DN_B_H0 + SUM] = 1;
        d.x = transfer(p, t, to[k], &x, k == 3 ? &sum : &out);
        if (k == 0) {
            dn_draft_write(&d, step % 3, &out);
            dn_draft_write(&d, SAVED, &x);
        }
        if (k < 3) {
            dn_draft_write(&d, SUM, &sum);
            d.e.flags &= ~DN_STEP_END;
        }
        dn_plan_add(p, &d);
    }
}

/* Adams-Bashforth over the newest output and up to three of the ring; `kept` outputs were kept before this one. */
static dn_combo adams(int kept)
{
    static const double weight[4][4] = { { 1 },
                                         { 3 / 2.0, -1 / 2.0 },
                                         { 23 / 12.0, -16 / 12.0, 5 / 12.0 },
                                         { 55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0 } };
    int order = kept < 3 ? kept : 3;
    dn_combo c = dn_term(DN_B_OUT, weight[order][0]);
    for (int k = 1; k <= order; k++)
        c.a[DN_B_H0 + (kept - k) % 3] = weight[order][k];
    return c;
}

static void multistep(dn_plan *p, int step, int kept, int stride)
{
    int t = (int)p->s->timestep[step];
    dn_draft d = draft_at(p, t);
    dn_combo x = dn_term(DN_B_X, 1), out = adams(kept), now = dn_term(DN_B_OUT, 1);
    d.x = transfer(p, t, t - stride, &x, &out);
    if (step < p->s->n - 1)
        dn_draft_write(&d, kept % 3, &now);
    dn_plan_add(p, &d);
}

/* The second timestep, reached by an Euler step, gives a second slope; the step is done again with their mean. */
static void double_start(dn_plan *p, int stride)
{
    int t = (int)p->s->timestep[0], again = (int)p->s->timestep[1];
    dn_draft d = draft_at(p, t);
    dn_combo x = dn_term(DN_B_X, 1), out = dn_term(DN_B_OUT, 1), saved = dn_term(DN_B_H0 + SAVED, 1);
    d.x = transfer(p, t, t - stride, &x, &out);
    dn_draft_write(&d, 0, &out);
    dn_draft_write(&d, SAVED, &x);
    d.e.flags &= ~DN_STEP_END;
    dn_plan_add(p, &d);
    dn_combo mean = dn_term(DN_B_OUT, 0.5);
    mean.a[DN_B_H0] = 0.5;
    d = draft_at(p, again);
    d.x = transfer(p, again + stride, again, &saved, &mean);
    dn_plan_add(p, &d);
}

void dn_plan_pndm(dn_plan *p)
{
    int n = p->s->n, stride, start, kept;
    if (p->p->timesteps) {
        p->status = dn_fail(p->err, DN_E_IMPOSSIBLE, "timesteps", "pndm takes evenly spaced timesteps only");
        return;
    }
    stride = p->s->n_train / p->p->steps;
    if (!dn_is(p->c, skip_prk_steps)) {
        if (n < 4) {
            p->status = dn_fail(p->err, DN_E_IMPOSSIBLE, "steps", "pndm needs 4 steps, or skip_prk_steps");
            return;
        }
        for (start = 0; start < 3; start++)
            runge_kutta_step(p, start, stride / 2);
        kept = 3;
    } else if (n > 1) {
        double_start(p, stride);
        start = kept = 1;
    } else
        start = kept = 0;
    for (int i = start; i < n; i++)
        multistep(p, i, kept + i - start, stride);
}
