/* facts.c - see facts.h. */
#include "facts.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

void expect(subject *s, int which, double tol, const double *want, int64_t n)
{
    assert_int_equal(s->output[which].count, n);
    for (int b = 0; b < n_backends; b++) {
        if (!backends[b]->available())
            continue;
        assert_int_equal(subject_run(s, backends[b], 0, 1, NULL, RUN_PLANNED), 0);
        for (int64_t i = 0; i < n; i++) {
            double got = s->output[which].data[i];
            if (!(fabs(got - want[i]) <= tol * (1 + fabs(want[i])) || (isnan(got) && isnan(want[i])) || got == want[i]))
                fail_msg("%s: element %lld is %.9g, not %.9g", backends[b]->name, (long long)i, got, want[i]);
        }
    }
}

void finish(subject *s, dn_val y)
{
    if (y == DN_NONE)
        fail_msg("%s", s->p->error.message);
    keep(s, y);
    dn_program_prune(s->p);
}
