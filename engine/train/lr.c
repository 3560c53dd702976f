/* lr.c - learning rate by optimizer step: diffusers' formulas, step k from 0. */
#include "train_internal.h"
#include <math.h>

static double linear(const dn_lr_schedule *s, double x) { return s->lr_end + (1 - s->lr_end) * (1 - x); }
static double cosine(const dn_lr_schedule *s, double x)
{
    return fmax(0, 0.5 * (1 + cos(M_PI * x)));
    (void)s;
}
static double restarts(const dn_lr_schedule *s, double x)
{
    return x >= 1 ? 0 : fmax(0, 0.5 * (1 + cos(M_PI * fmod(s->cycles * x, 1))));
}
static double polynomial(const dn_lr_schedule *s, double x)
{
    return s->lr_end + (1 - s->lr_end) * pow(1 - x, s->power);
}
static double constant(const dn_lr_schedule *s, double x)
{
    return 1;
    (void)s, (void)x;
}

/* The factor at the fraction x of the steps after the warm-up. */
static double (*const factor[])(const dn_lr_schedule *s, double x) = {
    [DN_LR_CONSTANT] = constant,        [DN_LR_LINEAR] = linear,         [DN_LR_COSINE] = cosine,
    [DN_LR_COSINE_RESTARTS] = restarts, [DN_LR_POLYNOMIAL] = polynomial,
};

/* Smith and Topin 2019, as PyTorch's OneCycleLR: half a cosine up from lr/25 to the last step of the warm-up, then half
 * a cosine down to the last step of all. */
static double one_cycle(const dn_lr_schedule *s, int64_t k, int64_t steps)
{
    double share = 0.3 * (double)steps; /* PyTorch's pct_start */
    double top = (s->warmup_steps ? (double)s->warmup_steps : share) - 1, last = (double)(steps - 1);
    if ((double)k <= top)
        return top > 0 ? 0.04 + 0.96 * 0.5 * (1 - cos(M_PI * (double)k / top)) : 1;
    return s->lr_end + (1 - s->lr_end) * 0.5 * (1 + cos(M_PI * ((double)k - top) / (last - top)));
}

double dn_lr_at(const dn_lr_schedule *s, double lr, int64_t k, int64_t steps)
{
    int64_t warm = s->warmup_steps;
    if (s->kind == DN_LR_ONE_CYCLE)
        return lr * one_cycle(s, k, steps);
    if (k < warm)
        return lr * ((double)k / (double)warm);
    double left = (double)(steps - warm > 1 ? steps - warm : 1), x = (double)(k - warm) / left;
    return lr * factor[s->kind](s, x > 1 ? 1 : x);
}
