/* choose.h - the kernels that dn_cpu_conv_choose chooses from; tests and benchmarks run them one by one. */
#ifndef DN_CPU_CHOOSE_H
#define DN_CPU_CHOOSE_H

#include "kernels.h"

/* F(4,3) and F(2,3): weights transformed ahead, from a plain form, from the parameter. The three have the same bits. */
extern const dn_conv_kernel dn_cpu_winograd4, dn_cpu_winograd4_plain, dn_cpu_winograd4_live;
extern const dn_conv_kernel dn_cpu_winograd2, dn_cpu_winograd2_plain, dn_cpu_winograd2_live;
extern const dn_conv_kernel dn_cpu_implicit, dn_cpu_few_in, dn_cpu_few_out;
extern const dn_conv_kernel dn_cpu_pointwise; /* 1x1, stride 1, no padding: dn_cpu_gemm */

#endif
