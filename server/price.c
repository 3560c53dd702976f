/* price.c - the arithmetic of price.h. */
#include "price.h"

void dn_figures_step(dn_figures *f, double list_ms, double ms)
{
    if (list_ms <= 0 || ms <= 0)
        return;
    double speed = list_ms / ms;
    f->speed = f->speed > 0 ? 0.9 * f->speed + 0.1 * speed : speed;
}

static double wall_ms(const dn_figures *f, double list_ms) { return f->speed > 0 ? list_ms / f->speed : list_ms; }

void dn_forecast_add(dn_forecast *f, double left_ms) { f->before_ms += left_ms < f->own_ms ? left_ms : f->own_ms; }

double dn_forecast_finish_ms(const dn_forecast *f, const dn_figures *figures)
{
    return wall_ms(figures, f->own_ms + f->before_ms);
}

double dn_backlog_ms(const dn_figures *f) { return wall_ms(f, f->backlog_ms); }

double dn_queue_excess_ms(const dn_figures *f, double own_ms, double queue_max_ms)
{
    double backlog = dn_backlog_ms(f), excess = backlog + wall_ms(f, own_ms) - queue_max_ms;
    if (backlog <= 0 || excess <= 0)
        return 0;
    return excess < backlog ? excess : backlog; /* a request larger than the whole queue waits until it is empty */
}

int dn_retry_after_s(double ms)
{
    double s = ms / 1000;
    if (s > 86400)
        return 86400;
    int whole = (int)s;
    return whole < s || whole < 1 ? whole + 1 : whole;
}

int64_t dn_budget_held(const dn_budget *b)
{
    int64_t sum = 0;
    for (int i = 0; i < DN_HOLD_COUNT; i++)
        sum += b->held[i];
    return sum;
}

bool dn_budget_fits(const dn_budget *b, int64_t bytes) { return bytes <= b->limit - dn_budget_held(b); }
