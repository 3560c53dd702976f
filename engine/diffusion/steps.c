/* steps.c - timesteps by spacing, and the sigmas at them (Karras, exponential, beta, lu, flow; interpolation).
 *
 * diffusers' quirks that are not copied: a trailing spacing whose floating-point length gives one timestep too many,
 * the last one -1 (it is dropped); a leading spacing whose offset leads past the last training timestep, and spacings
 * so fine that two timesteps coincide (both are refused). */
#include "schedule.h"
#include <stdlib.h>
#include <string.h>

/* How the sigmas are spread, when not by interpolation at the timesteps. */
enum spread { AT_TIMESTEPS, KARRAS, EXPONENTIAL, BETA, LU, FLOW };
static const enum dn_key spread_key[] = { K_COUNT,           K_use_karras_sigmas, K_use_exponential_sigmas,
                                          K_use_beta_sigmas, K_use_lu_lambdas,    K_use_flow_sigmas };

static bool is_ve(const dn_settings *c)
{
    return c->cls == DN_CLASS_EULER || c->cls == DN_CLASS_EULER_A || c->cls == DN_CLASS_HEUN;
}
static bool is_multistep(const dn_settings *c) { return c->cls == DN_CLASS_DPM || c->cls == DN_CLASS_UNIPC; }

static int find_spread(enum spread *out, const dn_settings *c, const dn_plan_params *p, dn_error *err)
{
    *out = AT_TIMESTEPS;
    for (int i = KARRAS; i <= FLOW; i++) {
        if (!c->v[spread_key[i]].num)
            continue;
        if (*out != AT_TIMESTEPS)
            return dn_key_fail(err, DN_E_INVALID, spread_key[i], "cannot be combined with another spread of sigmas");
        if (p->timesteps && c->cls != DN_CLASS_FLOW)
            return dn_key_fail(err, DN_E_IMPOSSIBLE, spread_key[i], "leaves no room for explicit timesteps");
        *out = i;
    }
    return 0;
}

/* numpy's linspace, in double. */
static double linspace(double first, double last, int n, int i)
{
    return i == n - 1 && n > 1 ? last : n > 1 ? first + (last - first) / (n - 1) * i : first;
}

/* numpy's arange(start, 0, -T/n), rounded, minus 1; without the negative one that its length sometimes adds. */
static int trailing(double *t, int start, int n_train, int n)
{
    double step = -((double)n_train / n), delta = (start + step) - start;
    int length = (int)ceil((0.0 - start) / step), kept = 0;
    for (int i = 0; i < length && kept < n; i++) {
        double v = rint(start + i * delta) - 1;
        if (v >= 0)
            t[kept++] = v;
    }
    return kept;
}

/* DPM-Solver's lambda_min_clipped drops the noisiest timesteps: how many are left. */
static int usable_timesteps(const dn_schedule *s, const dn_settings *c)
{
    int n = s->n_train;
    while (c->cls == DN_CLASS_DPM && n > 1 &&
           logf(sqrtf(s->abar[n - 1])) - logf(sqrtf(1.0f - s->abar[n - 1])) < dn_num(c, lambda_min_clipped))
        n--;
    return n;
}

/* The multistep classes make one timestep more and drop the last, which is 0. */
static void by_spacing(dn_schedule *s, const dn_settings *c, int n)
{
    bool extra = is_multistep(c);
    int last = extra ? usable_timesteps(s, c) : s->n_train, points = n + extra;
    s->n = n;
    switch ((enum dn_spacing)dn_int(c, timestep_spacing)) {
    case DN_SPACING_TRAILING:
        s->n = trailing(s->timestep, last, s->n_train, n);
        break;
    case DN_SPACING_LEADING:
        for (int i = 0; i < n; i++)
            s->timestep[i] = (double)(last / points) * (points - 1 - i) + dn_num(c, steps_offset);
        break;
    case DN_SPACING_LINSPACE:
        for (int i = 0; i < n; i++) {
            double t = linspace(0, last - 1, points, points - 1 - i);
            s->timestep[i] = is_ve(c) ? (float)t : rint(t);
        }
        break;
    }
}

static int lcm_steps(dn_schedule *s, const dn_settings *c, int n, dn_error *err)
{
    int original = dn_int(c, original_inference_steps);
    if (original > s->n_train)
        return dn_key_fail(err, DN_E_RANGE, K_original_inference_steps, "must not exceed num_train_timesteps");
    if (n > original)
        return dn_fail(err, DN_E_RANGE, "steps", "steps must be 1..%d (original_inference_steps) for lcm, got %d",
                       original, n);
    int ratio = s->n_train / original;
    for (int i = 0; i < n; i++) /* floor(linspace(0, original, n, endpoint=False)) into the descending list */
        s->timestep[i] = (double)(original - (int)floor(i * ((double)original / n))) * ratio - 1;
    s->n = n;
    return 0;
}

static int explicit_steps(dn_schedule *s, const dn_settings *c, const dn_plan_params *p, dn_error *err)
{
    bool fractional = is_ve(c) || c->cls == DN_CLASS_FLOW;
    double most = c->cls == DN_CLASS_FLOW ? s->n_train : s->n_train - 1;
    for (int i = 0; i < p->n_timesteps; i++) {
        double t = p->timesteps[i];
        if (!(t >= 0 && t <= most) || (c->cls == DN_CLASS_FLOW && t == 0))
            return dn_fail(err, DN_E_RANGE, "timesteps", "timesteps must be 0..%g, element %d is %g", most, i, t);
        if (!fractional && t != floor(t))
            return dn_fail(err, DN_E_RANGE, "timesteps", "this sampler takes whole timesteps, element %d is %g", i, t);
        if (i && t >= p->timesteps[i - 1])
            return dn_fail(err, DN_E_INVALID, "timesteps", "timesteps must be strictly descending, element %d is not",
                           i);
        s->timestep[i] = fractional ? (float)t : t;
    }
    s->n = p->n_timesteps;
    return 0;
}

/* numpy's interp of the training sigmas at a timestep. */
static double sigma_at(const dn_schedule *s, double t)
{
    int low = (int)t;
    if (low >= s->n_train - 1)
        return s->sigma[s->n_train - 1];
    return s->sigma[low] + ((double)s->sigma[low + 1] - s->sigma[low]) * (t - low);
}

/* diffusers' _sigma_to_t: linear in the (fp32) logarithm, between the last sigma that is not above and the next. */
static double timestep_at(const dn_schedule *s, double sigma)
{
    double l = (float)log(fmax(sigma, 1e-10));
    int low = 0, high = s->n_train - 1;
    if (high == 0)
        return 0;
    while (high - low > 1) {
        int mid = (low + high) / 2;
        *((float)log(s->sigma[mid]) <= l ? &low : &high) = mid;
    }
    double a = (float)log(s->sigma[low]), b = (float)log(s->sigma[low + 1]);
    double w = fmin(fmax((a - l) / (a - b), 0), 1);
    return (1 - w) * low + w * (low + 1);
}

/* Beta(S, S), the distribution that use_beta_sigmas spreads by. */
static const double S = 0.6;

/* The continued fraction of the regularized incomplete beta function (Numerical Recipes 6.4); quick for x <= 1/2. */
static double beta_fraction(double x)
{
    double c = 1, d = 1 / (1 - 2 * S * x / (S + 1)), h = d;
    for (int m = 1; m <= 200; m++) {
        double even = m * (S - m) * x / ((S + 2 * m - 1) * (S + 2 * m));
        d = 1 / (1 + even * d);
        c = 1 + even / c;
        h *= d * c;
        double odd = -(S + m) * (2 * S + m) * x / ((S + 2 * m) * (S + 2 * m + 1));
        d = 1 / (1 + odd * d);
        c = 1 + odd / c;
        h *= d * c;
        if (fabs(d * c - 1) < 1e-15)
            break;
    }
    return h;
}

/* The quantile of the lower half, 0 < p <= 1/2. As a function of y = x^S the distribution's slope is (1-x)^(S-1) / k,
 * k = S B(S, S): it rises gently from the line p = y / k, so Newton's method comes down from there in a few steps. */
static double lower_quantile(double p)
{
    static const double k = 1.449206524801483; /* S Gamma(S)^2 / Gamma(2 S) */
    double y = k * p, x = pow(y, 1 / S);
    for (int i = 0; i < 20; i++) {
        double rest = pow(1 - x, S), over = y / k * rest * beta_fraction(x) - p;
        double step = over * k * (1 - x) / rest;
        y -= step;
        x = pow(y, 1 / S);
        if (fabs(step) < 1e-9 * y) /* the error is the square of it */
            break;
    }
    return x;
}

static double beta_quantile(double p)
{
    if (p <= 0 || p >= 1)
        return p >= 1;
    return p <= 0.5 ? lower_quantile(p) : 1 - lower_quantile(1 - p);
}

/* The i-th of n sigmas from `most` down to `least`. lu with rho 1 is linear in log sigma, as the exponential spread is.
 */
static double spread_sigma(enum spread how, double most, double least, int n, int i)
{
    double u = linspace(0, 1, n, i);
    switch (how) {
    case KARRAS:
        return pow(pow(most, 1 / 7.0) + u * (pow(least, 1 / 7.0) - pow(most, 1 / 7.0)), 7.0);
    case BETA:
        return least + beta_quantile(1 - u) * (most - least);
    case LU:
        return exp((double)(float)log(most) + u * ((double)(float)log(least) - (double)(float)log(most)));
    default:
        return exp(linspace(log(most), log(least), n, i));
    }
}

/* A flow's shift, static or dynamic: both are f*s / (1 + (f-1)*s). */
static double shifted(double factor, double sigma) { return factor * sigma / (1 + (factor - 1) * sigma); }

static int shift_factor(double *out, const dn_settings *c, enum dn_key fixed, dn_error *err)
{
    double mu = dn_num(c, mu);
    *out = c->v[fixed].num;
    if (!dn_is(c, use_dynamic_shifting))
        return 0;
    if (isnan(mu))
        return dn_key_fail(err, DN_E_IMPOSSIBLE, K_mu, "must be given with use_dynamic_shifting");
    *out = dn_int(c, time_shift_type) == DN_SHIFT_LINEAR ? mu : exp(mu);
    return 0;
}

static void stretch_to_terminal(dn_schedule *s, double terminal)
{
    double scale = (1 - s->level[s->n - 1]) / (1 - terminal);
    for (int i = 0; terminal > 0 && i < s->n; i++)
        s->level[i] = 1 - (1 - s->level[i]) / scale;
}

static int flow_levels(dn_schedule *s, const dn_settings *c, dn_error *err)
{
    double factor, T = s->n_train;
    int status = shift_factor(&factor, c, K_flow_shift, err), n = s->n;
    if (status)
        return status;
    for (int i = 0; i < n; i++) {
        double sigma = c->cls == DN_CLASS_UNIPC ? linspace(1, 1 / T, n + 1, i) : 1 - linspace(1, 1 / T, n + 1, n - i);
        s->level[i] = shifted(factor, sigma);
    }
    if (c->cls == DN_CLASS_UNIPC) {
        stretch_to_terminal(s, dn_num(c, shift_terminal));
        if (fabs(s->level[0] - 1) < 1e-6)
            s->level[0] -= 1e-6; /* alpha must not be 0 */
    }
    for (int i = 0; i < n; i++)
        s->timestep[i] = s->level[i] * T;
    return 0;
}

/* Replace sigmas at timesteps by a spread between the noisiest and the cleanest. */
static void spread_levels(dn_schedule *s, const dn_settings *c, enum spread how)
{
    bool whole = is_multistep(c);
    double most = whole ? s->sigma[s->n_train - 1] : s->level[0], least = whole ? s->sigma[0] : s->level[s->n - 1];
    if (!isnan(dn_num(c, sigma_max)))
        most = dn_num(c, sigma_max);
    if (!isnan(dn_num(c, sigma_min)))
        least = dn_num(c, sigma_min);
    bool round = how == KARRAS || how == LU;
    if (!whole || (c->cls == DN_CLASS_DPM && dn_int(c, beta_schedule) == DN_BETA_COSINE))
        round = false;
    for (int i = 0; i < s->n; i++) {
        s->level[i] = spread_sigma(how, most, least, s->n, i);
        s->timestep[i] = timestep_at(s, s->level[i]);
        if (round)
            s->timestep[i] = rint(s->timestep[i]);
    }
}

static double final_level(const dn_schedule *s, const dn_settings *c, enum spread how)
{
    if (dn_int(c, final_sigmas_type) == DN_FINAL_ZERO)
        return 0;
    return c->cls == DN_CLASS_UNIPC && how != AT_TIMESTEPS ? s->level[s->n - 1] : s->sigma[0];
}

static int vp_levels(dn_schedule *s, const dn_settings *c, enum spread how, dn_error *err)
{
    int status = 0;
    bool log_linear = dn_int(c, interpolation_type) == DN_INTERPOLATE_LOG_LINEAR;
    double most = log(s->sigma[s->n_train - 1]), least = log(s->sigma[0]);
    for (int i = 0; i <= s->n; i++)
        s->level[i] = log_linear ? exp(linspace(most, least, s->n + 1, i)) : i < s->n ? sigma_at(s, s->timestep[i]) : 0;
    if (how == FLOW)
        status = flow_levels(s, c, err);
    else if (how != AT_TIMESTEPS)
        spread_levels(s, c, how);
    if (status)
        return status;
    if (!log_linear || how != AT_TIMESTEPS) /* else the level after the last timestep is sigma_min, in diffusers too */
        s->level[s->n] = final_level(s, c, how);
    for (int i = 0; i <= s->n; i++) {
        s->level[i] = (float)s->level[i];
        if (i && i < s->n && !(s->level[i] < s->level[i - 1]))
            return dn_fail(err, DN_E_IMPOSSIBLE, "scheduler", "the sigmas of this schedule do not descend at step %d",
                           i);
    }
    for (int i = 0; i < s->n; i++) {
        double t = s->timestep[i];
        if (dn_int(c, timestep_type) == DN_TIMESTEP_CONTINUOUS)
            t = 0.25 * log(s->level[i]);
        s->timestep[i] = is_multistep(c) ? trunc(t) : (float)t;
    }
    return 0;
}

/* FlowMatchEulerDiscrete: its constructor shifts sigma_min once, set_timesteps shifts the list again. */
static int flow_match(dn_schedule *s, const dn_settings *c, const dn_plan_params *p, enum spread how, dn_error *err)
{
    double factor, T = s->n_train;
    int status = shift_factor(&factor, c, K_shift, err), n = s->n;
    if (status)
        return status;
    double once = dn_is(c, use_dynamic_shifting) ? 1 : factor, least = (float)shifted(once, 1 / T);
    for (int i = 0; i < n; i++)
        s->level[i] = shifted(factor, (p->timesteps ? s->timestep[i] : linspace(T, least * T, n, i)) / T);
    stretch_to_terminal(s, dn_num(c, shift_terminal));
    double first = s->level[0], last = s->level[n - 1];
    for (int i = 0; i < n; i++) {
        double sigma = how == AT_TIMESTEPS ? s->level[i] : spread_sigma(how, first, last, n, i);
        if (dn_is(c, invert_sigmas))
            sigma = 1 - (float)sigma;
        s->level[i] = (float)sigma;
        if (!p->timesteps || dn_is(c, invert_sigmas))
            s->timestep[i] = (float)(s->level[i] * T);
    }
    s->level[n] = dn_is(c, invert_sigmas);
    return 0;
}

static int check_spacing(const dn_schedule *s, dn_error *err)
{
    for (int i = 0; i < s->n; i++) {
        if (s->timestep[i] > s->n_train - 1)
            return dn_fail(err, DN_E_IMPOSSIBLE, "steps", "%d steps start at timestep %g, past the last one, %d", s->n,
                           s->timestep[i], s->n_train - 1);
        if (i && !(s->timestep[i] < s->timestep[i - 1]))
            return dn_fail(err, DN_E_IMPOSSIBLE, "steps", "%d steps of this spacing would repeat timestep %g", s->n,
                           s->timestep[i]);
    }
    return 0;
}

static int choose_timesteps(dn_schedule *s, const dn_settings *c, const dn_plan_params *p, int n, dn_error *err)
{
    if (p->timesteps)
        return explicit_steps(s, c, p, err);
    s->n = n;
    if (c->cls == DN_CLASS_FLOW)
        return 0;
    if (c->cls == DN_CLASS_LCM)
        return lcm_steps(s, c, n, err);
    by_spacing(s, c, n);
    return check_spacing(s, err);
}

int dn_schedule_steps(dn_schedule *s, const dn_settings *c, const dn_plan_params *p, dn_error *err)
{
    enum spread how;
    int n = p->timesteps ? p->n_timesteps : p->steps, status = find_spread(&how, c, p, err);
    if (status)
        return status;
    if (n < 1 || n > s->n_train || n > DN_STEPS_MAX)
        return dn_fail(err, DN_E_RANGE, p->timesteps ? "timesteps" : "steps", "steps must be 1..%d, got %d",
                       s->n_train < DN_STEPS_MAX ? s->n_train : DN_STEPS_MAX, n);
    s->timestep = calloc((size_t)n, sizeof *s->timestep);
    s->level = calloc((size_t)n + 1, sizeof *s->level);
    if (!s->timestep || !s->level)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if ((status = choose_timesteps(s, c, p, n, err)))
        return status;
    if (c->cls == DN_CLASS_FLOW)
        return flow_match(s, c, p, how, err);
    return is_ve(c) || is_multistep(c) ? vp_levels(s, c, how, err) : 0;
}
