/* attention_bwd_avx512.c - attention_bwd_tmpl.h with vectors of sixteen. */
enum { ROWS = 4 /* side by side: their sums fit into the registers */ };
#define NAME(x) x##_avx512
#include "attention_bwd_tmpl.h"
