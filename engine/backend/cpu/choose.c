/* choose.c - which kernel a convolution runs on: a rule over the shape of one row, never the batch. */
#include "choose.h"
#include "gradients.h"

enum { FEW_IN = 4, FEW_OUT = 7, FEW_DW = 4 };

bool dn_cpu_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool dn_cpu_has_avx512(void)
{
    return dn_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
}

static bool is_winograd(const dn_conv_shape *s)
{
    return s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad_top == 1 && s->pad_left == 1 && s->Ho == s->H &&
           s->Wo == s->W;
}

static bool is_doubled(const dn_conv_shape *s)
{
    return s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad_top == 1 && s->pad_left == 1 && s->Ho == 2 * s->H &&
           s->Wo == 2 * s->W && s->C > FEW_IN && s->K > FEW_OUT;
}

static int64_t tiles(const dn_conv_shape *s, int m) { return (int64_t)((s->H + m - 1) / m) * ((s->W + m - 1) / m); }

/* The tiles of F(4,3) cover so much outside the image that F(2,3) multiplies as little. */
static bool two_is_enough(const dn_conv_shape *s) { return 16 * tiles(s, 2) * 9 <= 36 * tiles(s, 4) * 10; }

enum variant { AHEAD4, PLAIN4, LIVE4, AHEAD2, LIVE2, VARIANTS };

/* Made from times with weights out of cache (docs/SPEED.md). F(4,3), unless its tiles cover so much outside the image
 * that F(2,3) multiplies as little, or a row is one tile: too little work for its weights. Transformed weights are four
 * times the bytes of plain ones, which pays only where they are few or serve many tiles. */
static enum variant variant_of(const dn_conv_shape *s, enum dn_form_use use)
{
    if (tiles(s, 4) == 1 || two_is_enough(s))
        return use == DN_FORM_NONE ? LIVE2 : AHEAD2;
    if (use == DN_FORM_NONE)
        return LIVE4;
    bool ahead = use == DN_FORM_KEPT && tiles(s, 4) >= 16 && (int64_t)s->C * s->K < 256 * 256;
    return ahead ? AHEAD4 : PLAIN4;
}

static const dn_conv_kernel *winograd(const dn_conv_shape *s, enum dn_form_use use)
{
#define X(name) &dn_cpu_##name##_avx2,
    static const dn_conv_kernel *const avx2[VARIANTS] = { DN_WINOGRADS(X) };
#undef X
#define X(name) &dn_cpu_##name##_avx512,
    static const dn_conv_kernel *const avx512[VARIANTS] = { DN_WINOGRADS(X) };
#undef X
    return (dn_cpu_has_avx512() ? avx512 : avx2)[variant_of(s, use)];
}

const dn_conv_kernel *dn_cpu_conv_choose(const dn_conv_shape *s, enum dn_form_use use)
{
    if (s->C <= FEW_IN)
        return &dn_cpu_few_in;
    if (s->K <= FEW_OUT)
        return &dn_cpu_few_out;
    if (is_winograd(s))
        return winograd(s, use);
    if (s->kh == 1 && s->kw == 1 && s->stride == 1 && s->Ho == s->H && s->Wo == s->W)
        return &dn_cpu_pointwise;
    return &dn_cpu_implicit;
}

/* The products are 25/36 of F(4,3)'s on the same tiles; weights come as theirs do. */
const dn_conv_kernel *dn_cpu_doubled_choose(const dn_conv_shape *s, enum dn_form_use use)
{
    enum { AHEAD, PLAIN, LIVE, FORMS };
#define X(name) &dn_cpu_##name##_avx2,
    static const dn_conv_kernel *const avx2[FORMS] = { DN_DOUBLEDS(X) };
#undef X
#define X(name) &dn_cpu_##name##_avx512,
    static const dn_conv_kernel *const avx512[FORMS] = { DN_DOUBLEDS(X) };
#undef X
    const bool ahead = use == DN_FORM_KEPT && tiles(s, 2) >= 16 && (int64_t)s->C * s->K < 256 * 256;
    const int form = use == DN_FORM_NONE ? LIVE : ahead ? AHEAD : PLAIN;
    return is_doubled(s) ? (dn_cpu_has_avx512() ? avx512 : avx2)[form] : NULL;
}

const dn_conv_kernel *dn_cpu_halved_choose(const dn_conv_shape *s)
{
    const dn_conv_shape doubled = { s->K,  s->C,  s->Ho,     s->Wo,      s->H,       s->W,
                                    s->kh, s->kw, s->stride, s->pad_top, s->pad_left };
    return !is_doubled(&doubled) ? NULL : dn_cpu_has_avx512() ? &dn_cpu_halved_avx512 : &dn_cpu_halved_avx2;
}

const dn_conv_dw_kernel *dn_cpu_doubled_dw_choose(const dn_conv_shape *s)
{
    return !is_doubled(s) ? NULL : dn_cpu_has_avx512() ? &dn_cpu_doubled_dw_avx512 : &dn_cpu_doubled_dw_avx2;
}

const dn_conv_dw_kernel *dn_cpu_conv_dw_choose(const dn_conv_shape *s)
{
    if (!is_winograd(s))
        return &dn_cpu_implicit_dw;
    if (s->C <= FEW_DW || s->K <= FEW_DW)
        return s->C <= FEW_DW ? &dn_cpu_few_in_dw : &dn_cpu_few_out_dw;
    if (two_is_enough(s))
        return dn_cpu_has_avx512() ? &dn_cpu_winograd2_dw_avx512 : &dn_cpu_winograd2_dw_avx2;
    return dn_cpu_has_avx512() ? &dn_cpu_winograd4_dw_avx512 : &dn_cpu_winograd4_dw_avx2;
}
