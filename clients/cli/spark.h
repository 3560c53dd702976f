/* spark.h - a curve in one line: the means of equal stretches of steps, as high as they are on a logarithmic scale.
 *
 * It always spans everything that was added: when all bins are full, two become one. */
#ifndef DN_CLI_SPARK_H
#define DN_CLI_SPARK_H

#include <stdbool.h>

enum { DN_SPARK_BINS = 12, DN_SPARK_BYTES = 3 * DN_SPARK_BINS + 1 };

typedef struct dn_spark {
    double sum[DN_SPARK_BINS];
    long count[DN_SPARK_BINS];
    long first, per; /* the first step; steps of a bin (0: nothing was added) */
} dn_spark;

/* Steps before the first one, and values that are not above 0, are left out. */
void dn_spark_add(dn_spark *s, long step, double value);
/* What was added for later steps is void. */
void dn_spark_cut(dn_spark *s, long step);
/* One character for each bin in use. */
void dn_spark_text(const dn_spark *s, char out[DN_SPARK_BYTES], bool utf8);

#endif
