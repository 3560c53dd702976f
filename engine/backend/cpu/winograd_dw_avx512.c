/* winograd_dw_avx512.c - winograd_dw_tmpl.h for AVX-512VL: the same vectors, 32 registers for the transforms. */
#define NAME(x) x##_avx512
#define ISA "avx512"
#include "winograd_dw_tmpl.h"
