/* draft.c - entries from double drafts, guidance, and dn_table_plan itself. */
#include "draft.h"
#include "table_internal.h"
#include <stdlib.h>
#include <string.h>

static dn_draft draft(const dn_plan *p, double timestep, double alpha, double sigma)
{
    dn_draft d = { .alpha = alpha, .sigma = sigma, .c_s = 1 };
    d.e.timestep = (float)timestep;
    d.e.rows = 1 << DN_ROW_COND;
    d.e.c_in = 1;
    d.e.w = 1;
    d.e.flags = DN_STEP_END;
    if (dn_is(p->c, thresholding)) {
        d.e.flags |= DN_THRESHOLD;
        d.e.clip = (float)dn_num(p->c, sample_max_value);
        d.e.ratio = (float)dn_num(p->c, dynamic_thresholding_ratio);
    } else if (dn_is(p->c, clip_sample)) {
        d.e.flags |= DN_CLIP;
        d.e.clip = (float)dn_num(p->c, clip_sample_range);
    }
    return d;
}

dn_draft dn_draft_vp(const dn_plan *p, double timestep, double alpha, double sigma)
{
    dn_draft d = draft(p, timestep, alpha, sigma);
    switch ((enum dn_prediction)dn_int(p->c, prediction_type)) {
    case DN_PREDICTION_EPSILON:
        d.c_s = 1 / alpha;
        d.c_x = 1;
        d.c_o = -sigma;
        d.eps.a[DN_B_OUT] = 1;
        break;
    case DN_PREDICTION_V:
        d.c_x = alpha;
        d.c_o = -sigma;
        d.eps.a[DN_B_X] = sigma;
        d.eps.a[DN_B_OUT] = alpha;
        break;
    case DN_PREDICTION_SAMPLE:
        d.c_o = 1;
        d.eps.a[DN_B_X] = 1 / sigma;
        d.eps.a[DN_B_OUT] = -alpha / sigma;
        break;
    case DN_PREDICTION_FLOW: /* alpha = 1 - sigma, out = noise - x0 */
        d.c_x = 1;
        d.c_o = -sigma;
        d.eps.a[DN_B_X] = 1;
        d.eps.a[DN_B_OUT] = alpha;
        break;
    }
    return d;
}

dn_draft dn_draft_ve(const dn_plan *p, double timestep, double sigma)
{
    double scale = 1 / sqrt(sigma * sigma + 1);
    dn_draft d = dn_draft_vp(p, timestep, scale, sigma * scale);
    d.e.c_in = (float)scale;
    d.c_x *= d.c_s * scale; /* dn_draft_vp speaks of c_in * x */
    d.c_o *= d.c_s;
    d.c_s = 1;
    d.eps.a[DN_B_X] *= scale;
    d.alpha = 1;
    d.sigma = sigma;
    return d;
}

dn_combo dn_draft_clipped_eps(const dn_draft *d)
{
    dn_combo c = dn_term(DN_B_X, 1 / d->sigma);
    c.a[DN_B_X0] = -d->alpha / d->sigma;
    return c;
}

void dn_draft_write(dn_draft *d, int slot, const dn_combo *c)
{
    d->e.write[d->e.n_writes] = (int8_t)slot;
    d->write[d->e.n_writes++] = *c;
}

int dn_plan_fail(dn_plan *p, enum dn_key k, const char *message)
{
    if (!p->status)
        p->status = dn_key_fail(p->err, DN_E_IMPOSSIBLE, k, message);
    return p->status;
}

/* To float; false if a coefficient is not finite. */
static bool round_combo(dn_linear *out, const dn_combo *c)
{
    bool finite = true;
    for (int b = 0; b < DN_BASIS; b++) {
        out->a[b] = (float)c->a[b];
        finite = finite && isfinite(out->a[b]);
    }
    return finite;
}

void dn_plan_add(dn_plan *p, const dn_draft *d)
{
    if (p->status)
        return;
    if (p->n == DN_STEPS_MAX) {
        p->status =
            dn_fail(p->err, DN_E_LIMIT, "steps", "this sampler would need more than %d evaluations", DN_STEPS_MAX);
        return;
    }
    if (p->n == p->room) {
        int room = p->room ? 2 * p->room : 64;
        dn_entry *more = realloc(p->entry, (size_t)room * sizeof *more);
        if (!more) {
            p->status = dn_fail(p->err, DN_E_MEMORY, NULL, "out of memory");
            return;
        }
        p->entry = more;
        p->room = room;
    }
    dn_entry e = d->e;
    e.c_s = (float)d->c_s;
    e.c_x = (float)d->c_x;
    e.c_o = (float)d->c_o;
    bool finite = isfinite(e.c_s) && isfinite(e.c_x) && isfinite(e.c_o) && isfinite(e.lv_min) && isfinite(e.lv_max) &&
                  isfinite(e.timestep);
    finite = round_combo(&e.x, &d->x) && finite;
    for (int i = 0; i < e.n_writes; i++)
        finite = round_combo(&e.writes[i], &d->write[i]) && finite;
    if (!finite) {
        p->status =
            dn_fail(p->err, DN_E_IMPOSSIBLE, "scheduler",
                    "this schedule gives the sampler a coefficient that is not finite, at timestep %g", e.timestep);
        return;
    }
    p->entry[p->n++] = e;
}

/* w of entry i of n: 1 outside the interval. */
static double guidance_scale(const dn_guidance *g, int i, int n)
{
    double at = (double)i / n, along = n > 1 ? (double)i / (n - 1) : 1;
    if (at < g->interval[0] || at >= g->interval[1])
        return 1;
    if (g->schedule == DN_GUIDANCE_LINEAR)
        return 1 + (g->scale - 1) * along;
    if (g->schedule == DN_GUIDANCE_COSINE)
        return 1 + (g->scale - 1) * (1 - cos(M_PI * along)) / 2;
    return g->scale;
}

static void guide(dn_plan *p)
{
    for (int i = 0; i < p->n; i++) {
        dn_entry *e = &p->entry[i];
        e->w = (float)guidance_scale(&p->p->guidance, i, p->n);
        if (e->w == 1)
            continue;
        e->rows |= 1 << DN_ROW_UNCOND;
        e->rescale = (float)p->p->guidance.rescale;
        if (e->rescale != 0)
            e->flags |= DN_RESCALE;
    }
}

static int check_range(dn_error *err, const char *param, double v, double least, double largest)
{
    if (v >= least && v <= largest)
        return 0;
    return dn_fail(err, DN_E_RANGE, param, "%s must be %g..%g, got %g", param, least, largest, v);
}

static int check_params(const dn_plan_params *p, dn_error *err)
{
    const dn_guidance *g = &p->guidance;
    const struct {
        const char *param;
        double v, least, largest;
    } checks[] = { { "eta", p->eta, 0, 1 },
                   { "temperature", p->temperature, 0, 2 },
                   { "guidance.cfg.scale", g->scale, -1000, 1000 },
                   { "guidance.cfg.interval", g->interval[0], 0, 1 },
                   { "guidance.cfg.interval", g->interval[1], g->interval[0], 1 },
                   { "guidance.cfg.rescale", g->rescale, 0, 1 },
                   { "guidance.cfg.schedule", g->schedule, DN_GUIDANCE_CONSTANT, DN_GUIDANCE_COSINE } };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        int status = check_range(err, checks[i].param, checks[i].v, checks[i].least, checks[i].largest);
        if (status)
            return status;
    }
    return 0;
}

/* What the settings and the request cannot both want. */
static int check_settings(dn_plan *p, enum dn_sampler_kind kind)
{
    const dn_settings *c = p->c;
    bool flow = dn_is_flow(c), flow_prediction = dn_int(c, prediction_type) == DN_PREDICTION_FLOW;
    if (p->p->eta != 0 && kind != DN_SAMPLER_DDIM)
        return p->status =
                   dn_fail(p->err, DN_E_IMPOSSIBLE, "eta", "only ddim takes an eta, not %s", dn_sampler_name(kind));
    if (flow != flow_prediction)
        return dn_plan_fail(p, K_prediction_type, "must be flow_prediction exactly when use_flow_sigmas is true");
    if (!isnan(dn_num(c, mu)) && !dn_is(c, use_dynamic_shifting))
        return dn_plan_fail(p, K_mu, "needs use_dynamic_shifting");
    if (dn_int(c, timestep_type) == DN_TIMESTEP_CONTINUOUS && dn_int(c, prediction_type) != DN_PREDICTION_V)
        return dn_plan_fail(p, K_timestep_type, "continuous is for v_prediction only");
    if (dn_is(c, use_dynamic_shifting) && !flow)
        return dn_plan_fail(p, K_use_dynamic_shifting, "needs use_flow_sigmas");
    if (!isnan(dn_num(c, shift_terminal)) && !flow)
        return dn_plan_fail(p, K_shift_terminal, "needs use_flow_sigmas");
    if (dn_is(c, thresholding) && p->p->elements > 1 << 24) /* torch.quantile's own limit */
        return dn_plan_fail(p, K_thresholding, "is limited to samples of 16777216 numbers");
    return 0;
}

static void (*const plans[DN_CLASS_COUNT])(dn_plan *) = {
    [DN_CLASS_DDPM] = dn_plan_ddpm,   [DN_CLASS_DDIM] = dn_plan_ddim, [DN_CLASS_DPM] = dn_plan_dpm,
    [DN_CLASS_EULER] = dn_plan_euler, [DN_CLASS_HEUN] = dn_plan_heun, [DN_CLASS_EULER_A] = dn_plan_euler_ancestral,
    [DN_CLASS_UNIPC] = dn_plan_unipc, [DN_CLASS_PNDM] = dn_plan_pndm, [DN_CLASS_LCM] = dn_plan_lcm,
    [DN_CLASS_FLOW] = dn_plan_flow,
};

static int make(dn_plan *p, dn_schedule *s)
{
    int status = dn_schedule_init(s, p->c, p->err);
    if (!status)
        status = dn_schedule_steps(s, p->c, p->p, p->err);
    if (status)
        return status;
    p->s = s;
    plans[p->c->cls](p);
    guide(p);
    return p->status;
}

int dn_table_plan(dn_table *out, const dn_scheduler_config *config, const dn_plan_params *params, dn_error *err)
{
    dn_settings settings;
    enum dn_sampler_kind kind;
    dn_plan p = { .c = &settings, .p = params, .init_scale = 1, .err = err };
    dn_schedule s = { 0 };
    int status = check_params(params, err);
    if (!status)
        status = dn_settings_resolve(&settings, &kind, config, params->sampler, err);
    if (!status)
        status = check_settings(&p, kind);
    if (!status)
        status = make(&p, &s);
    dn_schedule_fini(&s);
    dn_table table = dn_table_of(p.entry, p.n, p.init_scale);
    if (!status && params->temperature != 1 && !table.draws_noise)
        status = dn_fail(err, DN_E_IMPOSSIBLE, "temperature", "this run of %s draws no noise", dn_sampler_name(kind));
    if (status) {
        dn_table_fini(&table);
        return status;
    }
    *out = table;
    return 0;
}

int dn_table_plan_denoise(dn_table *out, double timestep, double scale, dn_error *err)
{
    int status = check_range(err, "timestep", timestep, -1e6, 1e6);
    if (!status)
        status = check_range(err, "guidance_scale", scale, -1000, 1000);
    dn_entry *e = status ? NULL : calloc(1, sizeof *e);
    if (!e)
        return status ? status : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    *e = (dn_entry){
        .flags = DN_STEP_END, .rows = 1 << DN_ROW_COND, .timestep = (float)timestep, .c_in = 1, .c_s = 1, .c_o = 1
    };
    e->w = (float)scale;
    if (e->w != 1)
        e->rows |= 1 << DN_ROW_UNCOND;
    e->x.a[DN_B_OUT] = 1;
    *out = dn_table_of(e, 1, 1);
    return 0;
}
