/* Prices, forecasts and the memory budget, as data. */
#include "price.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void near(double got, double want) { assert_true(fabs(got - want) <= 1e-9 * (1 + fabs(want))); }

static void speed_follows_the_steps(void **state)
{
    (void)state;
    dn_figures f = { 0 };
    dn_figures_step(&f, 10, 20);
    near(f.speed, 0.5);
    dn_figures_step(&f, 0, 20); /* no information */
    near(f.speed, 0.5);
    for (int i = 0; i < 200; i++)
        dn_figures_step(&f, 30, 20);
    assert_true(fabs(f.speed - 1.5) < 1e-6);
}

/* Three others with 5, 100 and 40 ms left beside an own 30: processor sharing finishes it after 30 + 5 + 30 + 30. */
static void a_forecast_is_processor_sharing(void **state)
{
    (void)state;
    dn_figures f = { .speed = 0.5 };
    dn_forecast c = { .own_ms = 30 };
    dn_forecast_add(&c, 5);
    dn_forecast_add(&c, 100);
    dn_forecast_add(&c, 40);
    near(dn_forecast_finish_ms(&c, &f), 190);
    f.speed = 0; /* nothing ran yet: as listed */
    near(dn_forecast_finish_ms(&c, &f), 95);
}

static void the_queue_is_bounded_and_says_when_it_has_room(void **state)
{
    (void)state;
    dn_figures f = { .speed = 2, .backlog_ms = 1000 };
    near(dn_backlog_ms(&f), 500);
    near(dn_queue_excess_ms(&f, 200, 600), 0); /* 500 + 100 */
    near(dn_queue_excess_ms(&f, 202, 600), 1);
    /* and after that millisecond (2 list ms) it is so */
    f.backlog_ms -= 2;
    near(dn_queue_excess_ms(&f, 202, 600), 0);
    /* larger than the bound: alone it may run, so it is asked to wait for an empty queue */
    near(dn_queue_excess_ms(&f, 1e6, 600), 499);
    f.backlog_ms = 0;
    near(dn_queue_excess_ms(&f, 1e6, 600), 0);
}

static void retry_after_is_whole_seconds_rounded_up(void **state)
{
    (void)state;
    assert_int_equal(dn_retry_after_s(0), 1);
    assert_int_equal(dn_retry_after_s(1), 1);
    assert_int_equal(dn_retry_after_s(1000), 1);
    assert_int_equal(dn_retry_after_s(1001), 2);
    assert_int_equal(dn_retry_after_s(1e300), 86400);
}

static void a_budget_is_a_sum(void **state)
{
    (void)state;
    dn_budget b = { .limit = 100 };
    b.held[DN_HOLD_WEIGHTS] = 50;
    b.held[DN_HOLD_RESULTS] = 20;
    assert_int_equal(dn_budget_held(&b), 70);
    assert_true(dn_budget_fits(&b, 30));
    assert_false(dn_budget_fits(&b, 31));
    assert_false(dn_budget_fits(&b, INT64_MAX));
    b.held[DN_HOLD_SLOTS] = 80; /* over it already */
    assert_false(dn_budget_fits(&b, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(speed_follows_the_steps),
        cmocka_unit_test(a_forecast_is_processor_sharing),
        cmocka_unit_test(the_queue_is_bounded_and_says_when_it_has_room),
        cmocka_unit_test(retry_after_is_whole_seconds_rounded_up),
        cmocka_unit_test(a_budget_is_a_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
