/* spark.c - see spark.h. */
#include "spark.h"

#include <math.h>
#include <string.h>

static void halve(dn_spark *s)
{
    for (int i = 0; i < DN_SPARK_BINS; i++) {
        bool below = i < DN_SPARK_BINS / 2;
        s->sum[i] = below ? s->sum[2 * i] + s->sum[2 * i + 1] : 0;
        s->count[i] = below ? s->count[2 * i] + s->count[2 * i + 1] : 0;
    }
    s->per *= 2;
}

void dn_spark_add(dn_spark *s, long step, double value)
{
    if (!(value > 0) || !isfinite(value))
        return;
    if (!s->per) {
        s->first = step;
        s->per = 1;
    }
    if (step < s->first)
        return;
    while ((step - s->first) / s->per >= DN_SPARK_BINS)
        halve(s);
    long bin = (step - s->first) / s->per;
    s->sum[bin] += value;
    s->count[bin]++;
}

void dn_spark_cut(dn_spark *s, long step)
{
    for (int i = 0; s->per && i < DN_SPARK_BINS; i++)
        if (s->first + i * s->per > step) { /* a bin that it goes through keeps its mean */
            s->sum[i] = 0;
            s->count[i] = 0;
        }
}

void dn_spark_text(const dn_spark *s, char out[DN_SPARK_BYTES], bool utf8)
{
    static const char ascii[] = "_.-:=+*#";
    double v[DN_SPARK_BINS], low = INFINITY, high = -INFINITY;
    int last = -1;
    for (int i = 0; i < DN_SPARK_BINS; i++) {
        if (!s->count[i])
            continue;
        v[i] = log(s->sum[i] / (double)s->count[i]);
        low = fmin(low, v[i]);
        high = fmax(high, v[i]);
        last = i;
    }
    char *at = out;
    for (int i = 0; i <= last; i++) {
        int level = s->count[i] && high > low ? (int)lround(7 * (v[i] - low) / (high - low)) : 0;
        const char *text = !s->count[i] ? " "
                           : utf8       ? (const char[4]){ '\xe2', '\x96', (char)(0x81 + level), 0 }
                                        : NULL;
        if (text)
            at = stpcpy(at, text);
        else
            *at++ = ascii[level];
    }
    *at = 0;
}
