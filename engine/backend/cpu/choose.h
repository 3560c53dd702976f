/* choose.h - the kernels that dn_cpu_conv_choose chooses from; tests and benchmarks run them one by one. */
#ifndef DN_CPU_CHOOSE_H
#define DN_CPU_CHOOSE_H

#include "kernels.h"

/* F(4,3) and F(2,3), the weights transformed ahead, from a plain form or from the parameter, once for each instruction
 * set. For one m, all have the same bits. The same of a map that is doubled first, and of its gradient. */
#define DN_WINOGRADS(X) X(winograd4) X(winograd4_plain) X(winograd4_live) X(winograd2) X(winograd2_live)
#define DN_DOUBLEDS(X) X(doubled) X(doubled_plain) X(doubled_live)
#define DN_HALVEDS(X) X(halved)
#define X(name) extern const dn_conv_kernel dn_cpu_##name##_avx2, dn_cpu_##name##_avx512;
DN_WINOGRADS(X)
DN_DOUBLEDS(X)
DN_HALVEDS(X)
#undef X
bool dn_cpu_has_avx512(void); /* F and VL: for the kernels of that name */

extern const dn_conv_kernel dn_cpu_implicit, dn_cpu_few_in, dn_cpu_few_out;
extern const dn_conv_kernel dn_cpu_pointwise; /* 1x1, stride 1, no padding: dn_cpu_gemm */

/* dn_cpu_strip (tile_avx2.h) with sums of 256 and of 512 bits: the same bits. */
void dn_cpu_strip_avx2(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more);
void dn_cpu_strip_avx512(int rows, int k_blocks, const float *a, ptrdiff_t block, const float *b, float *c, bool more);

#endif
