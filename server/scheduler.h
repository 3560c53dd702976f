/* scheduler.h - who runs next on one device: fair shares of device time.
 *
 * The policy alone, as data: no threads, no engine, no clock. The worker embeds these structs in its own, puts samples
 * that wait for a run in, and asks for the next batch. A flow is one tenant at one priority; its virtual time grows by
 * rows x list price / weight, so that flows of equal weight get equal device time whoever shares their batches.
 *
 * Invariants: a sample is in at most one waiting list; a request's waiting samples are in the order of their last
 * update; a flow's requests are in the order of their last service; virtual times never decrease. */
#ifndef DN_SERVER_SCHEDULER_H
#define DN_SERVER_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto.h" /* enum dn_priority */

enum { DN_TENANT_MAX = 64 };

/* Intrusive, circular; a list's head is a dn_link too. */
typedef struct dn_link {
    struct dn_link *prev, *next;
} dn_link;

void dn_link_init(dn_link *head);
void dn_link_push(dn_link *head, dn_link *l); /* at the tail */
void dn_link_pop(dn_link *l);                 /* out of its list; harmless when it is in none */
static inline bool dn_link_empty(const dn_link *head) { return head->next == head; }
#define DN_LINK_OF(ptr, type, member) ((type *)((char *)(ptr) - __builtin_offsetof(type, member)))
#define DN_LINK_EACH(l, head) \
    for (dn_link *l = (head)->next, *l##_next = l->next; l != (head); l = l##_next, l##_next = l->next)

/* What shares batches: the rows of one network. */
typedef struct dn_sched_queue {
    double price_ms; /* measured, per row: the batch limit counts with it */
} dn_sched_queue;

typedef struct dn_sched_flow {
    dn_link link;
    char tenant[DN_TENANT_MAX];
    enum dn_priority priority;
    double weight;    /* the tenant's times the priority's factor */
    double vtime;     /* milliseconds of device time per unit of weight */
    dn_link requests; /* least recently served first */
    dn_link *cursor;  /* used within one pick */
} dn_sched_flow;

typedef struct dn_sched_request {
    dn_link link;
    dn_sched_flow *flow;
    dn_link samples; /* waiting, longest first */
    double price_ms; /* list price per row at admission: what it is charged to its end */
} dn_sched_request;

typedef struct dn_sched_sample {
    dn_link link;
    dn_sched_request *request;
    const dn_sched_queue *queue;
    int rows;       /* of its current entry, all or none in a batch */
    uint64_t since; /* order of its last update */
} dn_sched_sample;

typedef struct dn_sched {
    dn_link flows;
    uint64_t order; /* counts dn_sched_wait */
    double clock;   /* virtual time of the flow that was served last: an idle device's floor */
} dn_sched;

typedef struct dn_sched_limits {
    int rows_max;   /* of a batch */
    double step_ms; /* of a batch, by the queue's price; one entry always runs */
} dn_sched_limits;

void dn_sched_init(dn_sched *s);
void dn_sched_fini(dn_sched *s); /* every request must have left */

/* A request comes: its flow is found or made; a flow that was idle is lifted to the smallest active virtual time, since
 * an absence earns nothing. Returns 0 or DN_E_MEMORY. */
int dn_sched_join(dn_sched *s, dn_sched_request *r, const char *tenant, double weight, enum dn_priority priority,
                  double price_ms);
void dn_sched_leave(dn_sched_request *r); /* none of its samples may be waiting */

/* x->request, queue and rows are set: it waits for a run from now. */
void dn_sched_wait(dn_sched *s, dn_sched_sample *x);
void dn_sched_unwait(dn_sched_sample *x); /* cancelled; harmless when it is not waiting */

/* The next batch: at most `max` samples of one queue, taken out of their lists and charged. 0 when none waits. */
int dn_sched_pick(dn_sched *s, const dn_sched_limits *limits, dn_sched_sample **out, int max);

/* Training's share of a device: while samples wait, at least `share` of the contention period's device time is training's; while
 * somebody waits for the end of its optimizer step, at least DN_SHARE_AWAITED, so that the wait has a bound: ten times the
 * device time that is left of the step. The period begins when both have work, ends when one has none, and starts anew after
 * DN_SHARE_PERIOD_MS and when the share changes, so that nothing is saved up or owed for long. */
enum { DN_SHARE_PERIOD_MS = 10000 };
#define DN_SHARE_AWAITED 0.1
typedef struct dn_sched_share {
    double share;   /* 0..1 */
    bool awaited;   /* somebody waits for the end of the job's step */
    double applied; /* the share of this period */
    bool contended;
    double since_ms, train_ms, infer_ms; /* of this period */
} dn_sched_share;

/* Whose turn is it at a boundary: is training owed a segment before the next batch? */
bool dn_share_owed(dn_sched_share *s, double now_ms, bool samples_wait, bool job_runs);
/* `ms` of the device went to training, or to samples. */
void dn_share_charge(dn_sched_share *s, bool training, double ms);

#endif
