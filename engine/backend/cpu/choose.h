/* choose.h - the kernels that dn_cpu_conv_choose chooses from; tests and benchmarks run them one by one. */
#ifndef DN_CPU_CHOOSE_H
#define DN_CPU_CHOOSE_H

#include "kernels.h"

/* F(4,3) and F(2,3), the weights transformed ahead, from a plain form or from the parameter, once for each instruction
 * set. For one m, all have the same bits. */
#define DN_WINOGRADS(X) X(winograd4) X(winograd4_plain) X(winograd4_live) X(winograd2) X(winograd2_live)
#define X(name) extern const dn_conv_kernel dn_cpu_##name##_avx2, dn_cpu_##name##_avx512;
DN_WINOGRADS(X)
#undef X
bool dn_cpu_has_avx512(void); /* F and VL: for the kernels of that name */

extern const dn_conv_kernel dn_cpu_implicit, dn_cpu_few_in, dn_cpu_few_out;
extern const dn_conv_kernel dn_cpu_pointwise; /* 1x1, stride 1, no padding: dn_cpu_gemm */

#endif
