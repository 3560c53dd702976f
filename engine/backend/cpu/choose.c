/* choose.c - which kernel a convolution runs on: a rule over the shape of one row, never the batch. */
#include "choose.h"

enum { FEW_IN = 4, FEW_OUT = 7 };

bool dn_cpu_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static bool is_winograd(const dn_conv_shape *s)
{
    return s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad_top == 1 && s->pad_left == 1 && s->Ho == s->H && s->Wo == s->W;
}

const dn_conv_kernel *dn_cpu_conv_choose(const dn_conv_shape *s, bool live)
{
    if (s->C <= FEW_IN)
        return &dn_cpu_few_in;
    if (s->K <= FEW_OUT)
        return &dn_cpu_few_out;
    if (is_winograd(s))
        return live ? &dn_cpu_winograd4_live : &dn_cpu_winograd4;
    if (s->kh == 1 && s->kw == 1 && s->stride == 1 && s->Ho == s->H && s->Wo == s->W)
        return &dn_cpu_pointwise;
    return &dn_cpu_implicit;
}
