/* schedule.c - betas and alphas_cumprod (fp32, in diffusers' order of operations). */
#include "schedule.h"
#include <stdlib.h>
#include <string.h>

/* torch.linspace: from both ends to the middle, in fp32. */
static float linspace(float first, float last, int n, int i)
{
    if (n == 1)
        return first;
    float step = (last - first) / (float)(n - 1);
    return i < n / 2 ? first + step * (float)i : last - step * (float)(n - 1 - i);
}

static double abar_cosine(double u)
{
    double c = cos((u + 0.008) / 1.008 * M_PI / 2);
    return c * c;
}
static double abar_exp(double u) { return exp(u * -12.0); }
static double abar_laplace(double u)
{
    double snr = exp(-0.5 * copysign(1, 0.5 - u) * log(1 - 2 * fabs(0.5 - u) + 1e-6));
    return sqrt(snr / (1 + snr));
}
/* betas_for_alpha_bar: beta_i = 1 - abar(u') / abar(u), at most 0.999. */
static float beta_of(double (*abar)(double), int n, int i)
{
    double b = 1 - abar((i + 1) / (double)n) / abar(i / (double)n);
    return (float)(b < 0.999 ? b : 0.999);
}

static float beta_at(const dn_settings *c, int n, int i)
{
    double first = dn_num(c, beta_start), last = dn_num(c, beta_end);
    switch ((enum dn_beta_schedule)dn_int(c, beta_schedule)) {
    case DN_BETA_LINEAR:
        return linspace((float)first, (float)last, n, i);
    case DN_BETA_SCALED_LINEAR: {
        float root = linspace((float)sqrt(first), (float)sqrt(last), n, i);
        return root * root;
    }
    case DN_BETA_SIGMOID: {
        float s = 1.0f / (1.0f + expf(-linspace(-6, 6, n, i)));
        return s * (float)(last - first) + (float)first;
    }
    case DN_BETA_SQRT:
        return (float)(first + (last - first) * sqrt(n > 1 ? i / (double)(n - 1) : 0));
    case DN_BETA_COSINE:
        return beta_of(abar_cosine, n, i);
    case DN_BETA_LAPLACE:
        return beta_of(abar_laplace, n, i);
    case DN_BETA_EXP:
        return beta_of(abar_exp, n, i);
    }
    return 0;
}

/* Lin et al. 2023, algorithm 1: shift and scale sqrt(abar) so that the last one is 0; back to betas. */
static void rescale_zero_snr(float *beta, float *abar, int n)
{
    float first = sqrtf(abar[0]), last = sqrtf(abar[n - 1]), scale = first / (first - last), before = 1;
    for (int i = 0; i < n; i++) {
        float root = (sqrtf(abar[i]) - last) * scale, now = root * root;
        beta[i] = 1.0f - now / before;
        before = now;
    }
}

static void accumulate(dn_schedule *s)
{
    double product = 1;
    for (int i = 0; i < s->n_train; i++) {
        product *= 1.0f - s->beta[i];
        s->abar[i] = (float)product;
    }
}

int dn_schedule_init(dn_schedule *s, const dn_settings *c, dn_error *err)
{
    int n = dn_int(c, num_train_timesteps);
    const dn_setting *trained = &c->v[K_trained_betas];
    *s = (dn_schedule){ .n_train = n };
    if (c->cls == DN_CLASS_FLOW)
        return 0;
    if (trained->list && trained->n != n)
        return dn_key_fail(err, DN_E_INVALID, K_trained_betas, "must have num_train_timesteps elements");
    if (!(s->beta = calloc(3 * (size_t)n, sizeof *s->beta)))
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    s->abar = s->beta + n;
    s->sigma = s->abar + n;
    for (int i = 0; i < n; i++)
        s->beta[i] = trained->list ? (float)trained->list[i] : beta_at(c, n, i);
    accumulate(s);
    if (dn_is(c, rescale_betas_zero_snr) && n > 1) {
        rescale_zero_snr(s->beta, s->abar, n);
        accumulate(s);
        if (c->cls != DN_CLASS_DDPM && c->cls != DN_CLASS_DDIM && c->cls != DN_CLASS_LCM)
            s->abar[n - 1] = 0x1p-24f; /* these divide by it */
    }
    for (int i = 0; i < n; i++)
        s->sigma[i] = sqrtf((1.0f - s->abar[i]) / s->abar[i]);
    return 0;
}

void dn_schedule_fini(dn_schedule *s)
{
    free(s->beta);
    free(s->timestep);
    free(s->level);
    *s = (dn_schedule){ 0 };
}
