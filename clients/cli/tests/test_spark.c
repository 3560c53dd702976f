/* The curve of losses: what a bin holds, how bins join, what a cut leaves. */
#include "spark.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static void expect(const dn_spark *s, const char *text, const char *utf8)
{
    char out[DN_SPARK_BYTES];
    dn_spark_text(s, out, false);
    assert_string_equal(out, text);
    dn_spark_text(s, out, true);
    assert_string_equal(out, utf8);
}

static void levels(void **state)
{
    (void)state;
    dn_spark s = { 0 };
    expect(&s, "", "");
    for (int i = 0; i < 8; i++) /* each twice the one before: equal steps of a logarithm */
        dn_spark_add(&s, 100 + i, ldexp(1, i));
    expect(&s, "_.-:=+*#", "▁▂▃▄▅▆▇█");
    dn_spark_add(&s, 99, 1000); /* before the first */
    dn_spark_add(&s, 108, -1);
    dn_spark_add(&s, 108, NAN);
    dn_spark_add(&s, 108, INFINITY);
    expect(&s, "_.-:=+*#", "▁▂▃▄▅▆▇█");
    dn_spark_add(&s, 110, 1); /* a gap */
    expect(&s, "_.-:=+*#  _", "▁▂▃▄▅▆▇█  ▁");
}

/* 24 steps in 12 bins: two in each. */
static void bins_join(void **state)
{
    (void)state;
    dn_spark s = { 0 };
    for (int i = 0; i < 24; i++)
        dn_spark_add(&s, 1 + i, i % 2 ? 3 : 1);
    assert_int_equal(s.per, 2);
    for (int i = 0; i < DN_SPARK_BINS; i++)
        assert_true(s.count[i] == 2 && s.sum[i] == 4);
    expect(&s, "____________", "▁▁▁▁▁▁▁▁▁▁▁▁");
    dn_spark_add(&s, 1000000000, 4);
    assert_true(s.first + s.per * DN_SPARK_BINS > 1000000000);
    long n = 0;
    double sum = 0;
    for (int i = 0; i < DN_SPARK_BINS; i++) {
        n += s.count[i];
        sum += s.sum[i];
    }
    assert_true(n == 25 && sum == 52);
}

static void cut(void **state)
{
    (void)state;
    dn_spark s = { 0 };
    dn_spark_cut(&s, 5);
    for (int i = 0; i < 8; i++)
        dn_spark_add(&s, 1 + i, ldexp(1, i));
    dn_spark_cut(&s, 3);
    expect(&s, "_=#", "▁▅█");
    dn_spark_add(&s, 4, 1);
    expect(&s, "_=#_", "▁▅█▁");
    dn_spark_cut(&s, 0);
    expect(&s, "", "");
    dn_spark_add(&s, 1, 2);
    expect(&s, "_", "▁");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(levels), cmocka_unit_test(bins_join), cmocka_unit_test(cut) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
