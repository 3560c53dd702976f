/* price.h - what work costs, and whether it can be taken: arithmetic of the loop, from figures that workers post.
 *
 * Work is counted in milliseconds of list price (rows x the network's ms per row at admission). How fast a device gets
 * through that work (its speed, 1 when it does just as listed) is smoothed over its steps. Memory is counted by what it
 * is held for; nothing is begun that does not fit. */
#ifndef DN_SERVER_PRICE_H
#define DN_SERVER_PRICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dn_figures {
    double speed;      /* list ms worked off per ms of wall clock; 0: nothing ran yet, counts as 1 */
    double backlog_ms; /* list ms admitted and not run */
} dn_figures;

/* A batch of `list_ms` took `ms`. */
void dn_figures_step(dn_figures *f, double list_ms, double ms);

/* What stands before a new request of `own_ms` on a device, when all share alike: of every other the part that runs
 * before the new one is done, min(what it has left, own). Feed it each of the others. */
typedef struct dn_forecast {
    double own_ms, before_ms;
} dn_forecast;
void dn_forecast_add(dn_forecast *f, double left_ms);
double dn_forecast_finish_ms(const dn_forecast *f, const dn_figures *figures); /* from now, wall clock */

double dn_backlog_ms(const dn_figures *f); /* the wall milliseconds that what was admitted will take */
/* 0: the queue has room for `own_ms`; else the wall milliseconds after which it will have. An idle device takes
 * anything. */
double dn_queue_excess_ms(const dn_figures *f, double own_ms, double queue_max_ms);
/* What a client is told to wait: whole seconds, at least 1. */
int dn_retry_after_s(double ms);

enum dn_holding { DN_HOLD_WEIGHTS, DN_HOLD_FORMS, DN_HOLD_ARENAS, DN_HOLD_SLOTS, DN_HOLD_RESULTS, DN_HOLD_TRAINING, DN_HOLD_COUNT };

typedef struct dn_budget {
    int64_t limit;
    int64_t held[DN_HOLD_COUNT];
} dn_budget;

int64_t dn_budget_held(const dn_budget *b);
bool dn_budget_fits(const dn_budget *b, int64_t bytes);

#endif
