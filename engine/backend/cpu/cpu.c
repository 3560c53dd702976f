/* cpu.c - the CPU backend: AVX2 and FMA, chosen at run time. */
#include "lower.h"

const dn_backend dn_backend_cpu = { "cpu-avx2", sizeof(float), dn_cpu_has_avx2, dn_cpu_rows_default, dn_cpu_lower };
