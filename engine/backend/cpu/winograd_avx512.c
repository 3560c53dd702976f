/* winograd_avx512.c - winograd_tmpl.h for AVX-512VL: the same vectors of 8 lanes, but 32 registers for the transforms. */
#define NAME(x) x##_avx512
#define ISA "avx512"
#include "winograd_tmpl.h"
