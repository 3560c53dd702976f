/* attention_bwd_avx2.c - attention_bwd_tmpl.h with two vectors of eight. */
enum { ROWS = 2 /* side by side: their sums fit into the registers */ };
#define NAME(x) x##_avx2
#include "attention_bwd_tmpl.h"

int64_t dn_attention_bwd_work(int64_t queries, int64_t keys, int channels, int heads)
{
    dn_attention_bwd_args a = { .queries = queries, .keys = keys };
    head h = { .a = &a, .d = channels / heads };
    return lay_out(&h, NULL) * heads * (int64_t)sizeof(float);
}

void dn_attention_bwd_blocked(dn_pool *pool, const dn_attention_bwd_args *a)
{
    (dn_cpu_has_avx512() ? dn_attention_bwd_blocked_avx512 : dn_attention_bwd_blocked_avx2)(pool, a);
}
