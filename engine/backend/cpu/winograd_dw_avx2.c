/* winograd_dw_avx2.c - winograd_dw_tmpl.h for AVX2 and FMA. */
#define NAME(x) x##_avx2
#define ISA "avx2"
#include "winograd_dw_tmpl.h"
