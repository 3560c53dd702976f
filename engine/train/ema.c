/* ema.c - the decay of the exponential moving average, as diffusers' EMAModel. */
#include "train_internal.h"
#include <math.h>

static double decay_of_step(const dn_ema *e, int64_t u)
{
    double s = (double)(u - 1);
    if (s <= 0)
        return 0; /* the first step is copied */
    double d = e->warmup ? 1 - pow(1 + s / e->inv_gamma, -e->power) : (1 + s) / (10 + s);
    return fmax(fmin(d, e->decay), e->min_decay);
}

double dn_ema_decay(const dn_ema *e, int64_t u)
{
    double product = 1;
    for (int64_t i = u > e->every ? u - e->every + 1 : 1; i <= u; i++)
        product *= decay_of_step(e, i);
    return product;
}
