/* pointwise.h - dropout, and conversion between 32 and 16 bits: operations whose operands are not all f32. */
#ifndef DN_CPU_POINTWISE_H
#define DN_CPU_POINTWISE_H

#include "copy.h"

/* y = x * keep / (1 - p). Number i of a row, channels last, meets number i of the row's random stream whatever the
 * layout; blocked values need channels that are a multiple of 4. */
typedef struct dn_dropout_args {
    dn_rows x, y; /* both blocked or both dense */
    dn_rows rng;  /* I32 [4]: seed lo, seed hi, step, sample */
    dn_extent e;
    double p;
    uint32_t purpose; /* of dn_rng_key */
} dn_dropout_args;

void dn_dropout_run(dn_pool *pool, const dn_dropout_args *a);

/* Runs of n numbers: `runs` of them in a row, a plane apart. */
typedef struct dn_cast_args {
    dn_rows x, y;
    enum dn_dtype from, to; /* one of them f32, the other f16 or bf16 */
    int n, runs;
    int64_t count;
} dn_cast_args;

/* To nearest even; subnormal numbers and NaN (as the quiet one of its sign) are kept. */
void dn_cast_run(dn_pool *pool, const dn_cast_args *a);
bool dn_cpu_has_f16c(void); /* f16 needs it */

#endif
