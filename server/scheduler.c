/* scheduler.c - the policy of scheduler.h. A few flows, up to thousands of requests: plain scans, each request looked
 * at once per pick. */
#include "scheduler.h"

#include <denoised/error.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Never strict: the lowest priority still advances. */
static const double priority_factor[] = { [DN_PRIORITY_LOW] = 0.25, [DN_PRIORITY_NORMAL] = 1, [DN_PRIORITY_HIGH] = 4 };

void dn_link_init(dn_link *head) { head->prev = head->next = head; }

void dn_link_push(dn_link *head, dn_link *l)
{
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}

void dn_link_pop(dn_link *l)
{
    if (!l->next)
        return;
    l->prev->next = l->next;
    l->next->prev = l->prev;
    l->prev = l->next = NULL;
}

static dn_sched_flow *flow_of(dn_link *l) { return DN_LINK_OF(l, dn_sched_flow, link); }
static dn_sched_request *request_of(dn_link *l) { return DN_LINK_OF(l, dn_sched_request, link); }
static dn_sched_sample *sample_of(dn_link *l) { return DN_LINK_OF(l, dn_sched_sample, link); }

void dn_sched_init(dn_sched *s)
{
    *s = (dn_sched){ 0 };
    dn_link_init(&s->flows);
}

void dn_sched_fini(dn_sched *s)
{
    DN_LINK_EACH(l, &s->flows)
    {
        assert(dn_link_empty(&flow_of(l)->requests));
        free(flow_of(l));
    }
    dn_link_init(&s->flows);
}

static dn_sched_flow *flow_find(dn_sched *s, const char *tenant, enum dn_priority priority)
{
    DN_LINK_EACH(l, &s->flows)
    {
        if (flow_of(l)->priority == priority && !strcmp(flow_of(l)->tenant, tenant))
            return flow_of(l);
    }
    dn_sched_flow *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    strncpy(f->tenant, tenant, DN_TENANT_MAX - 1);
    f->priority = priority;
    dn_link_init(&f->requests);
    dn_link_push(&s->flows, &f->link);
    return f;
}

/* The smallest virtual time of the flows that have requests; the clock when none has. */
static double floor_of(const dn_sched *s)
{
    double floor = s->clock;
    bool any = false;
    DN_LINK_EACH(l, &s->flows)
    {
        const dn_sched_flow *f = flow_of(l);
        if (!dn_link_empty(&f->requests) && (!any || f->vtime < floor)) {
            floor = f->vtime;
            any = true;
        }
    }
    return floor;
}

int dn_sched_join(dn_sched *s, dn_sched_request *r, const char *tenant, double weight, enum dn_priority priority,
                  double price_ms)
{
    dn_sched_flow *f = flow_find(s, tenant, priority);
    if (!f)
        return DN_E_MEMORY;
    if (dn_link_empty(&f->requests)) {
        double floor = floor_of(s);
        f->vtime = f->vtime > floor ? f->vtime : floor;
    }
    f->weight = weight * priority_factor[priority];
    *r = (dn_sched_request){ .flow = f, .price_ms = price_ms };
    dn_link_init(&r->samples);
    dn_link_push(&f->requests, &r->link);
    return 0;
}

void dn_sched_leave(dn_sched_request *r)
{
    assert(dn_link_empty(&r->samples));
    dn_link_pop(&r->link);
}

void dn_sched_wait(dn_sched *s, dn_sched_sample *x)
{
    assert(x->rows > 0 && !x->link.next);
    x->since = ++s->order;
    dn_link_push(&x->request->samples, &x->link);
}

void dn_sched_unwait(dn_sched_sample *x) { dn_link_pop(&x->link); }

/* Of the flow that is furthest behind, the sample that has waited longest. */
static dn_sched_sample *head(const dn_sched *s)
{
    dn_sched_sample *best = NULL;
    DN_LINK_EACH(l, &s->flows)
    {
        dn_sched_flow *f = flow_of(l);
        if (best && best->request->flow->vtime <= f->vtime)
            continue;
        dn_sched_sample *oldest = NULL;
        DN_LINK_EACH(m, &f->requests)
        {
            dn_link *first = request_of(m)->samples.next;
            if (first != &request_of(m)->samples && (!oldest || sample_of(first)->since < oldest->since))
                oldest = sample_of(first);
        }
        best = oldest ? oldest : best;
    }
    return best;
}

/* Out of its list, charged; its request goes to the end of its flow's round. */
static void serve(dn_sched_sample *x)
{
    dn_sched_request *r = x->request;
    dn_link_pop(&x->link);
    r->flow->vtime += x->rows * r->price_ms / r->flow->weight;
    dn_link_pop(&r->link);
    dn_link_push(&r->flow->requests, &r->link);
}

static dn_sched_sample *fitting(dn_sched_request *r, const dn_sched_queue *queue, int room)
{
    DN_LINK_EACH(l, &r->samples)
    {
        if (sample_of(l)->queue == queue && sample_of(l)->rows <= room)
            return sample_of(l);
    }
    return NULL;
}

/* The next sample of the flow's round that fits. A request passed over is not looked at again in this pick: the room
 * only shrinks. */
static dn_sched_sample *next_in_flow(dn_sched_flow *f, const dn_sched_queue *queue, int room)
{
    for (; f->cursor != &f->requests; f->cursor = f->cursor->next) {
        dn_sched_sample *x = fitting(request_of(f->cursor), queue, room);
        if (x)
            return x;
    }
    return NULL;
}

static dn_sched_sample *next_of_all(dn_sched *s, const dn_sched_queue *queue, int room)
{
    dn_sched_sample *best = NULL;
    DN_LINK_EACH(l, &s->flows)
    {
        dn_sched_flow *f = flow_of(l);
        if (best && best->request->flow->vtime <= f->vtime)
            continue;
        dn_sched_sample *x = next_in_flow(f, queue, room);
        best = x ? x : best;
    }
    return best;
}

/* Rows that a batch of this queue may have. */
static int room_of(const dn_sched_limits *limits, const dn_sched_queue *queue)
{
    double by_time = queue->price_ms > 0 ? limits->step_ms / queue->price_ms : limits->rows_max;
    return by_time < limits->rows_max ? (int)by_time : limits->rows_max;
}

int dn_sched_pick(dn_sched *s, const dn_sched_limits *limits, dn_sched_sample **out, int max)
{
    dn_sched_sample *x = head(s);
    if (!x || max < 1)
        return 0;
    const dn_sched_queue *queue = x->queue;
    int room = room_of(limits, queue), n = 0;
    s->clock = x->request->flow->vtime > s->clock ? x->request->flow->vtime : s->clock;
    DN_LINK_EACH(l, &s->flows) { flow_of(l)->cursor = flow_of(l)->requests.next; }
    while (x) {
        dn_sched_flow *f = x->request->flow;
        dn_link *at = &x->request->link, *after = at->next;
        serve(x);
        /* Served requests come round again after the others. */
        if (f->cursor == at)
            f->cursor = after == &f->requests ? at : after;
        room -= x->rows;
        out[n++] = x;
        x = room > 0 && n < max ? next_of_all(s, queue, room) : NULL;
    }
    return n;
}

/* ---- training's share --------------------------------------------------------------------------------------- */

bool dn_share_owed(dn_sched_share *s, double now_ms, bool samples_wait, bool job_runs)
{
    bool contended = samples_wait && job_runs;
    double share = s->awaited && s->share < DN_SHARE_AWAITED ? DN_SHARE_AWAITED : s->share;
    bool goes_on = contended && s->contended && share == s->applied;
    /* asked before the period ends: a batch may be as long as one */
    bool owed = goes_on && s->train_ms < share * (s->train_ms + s->infer_ms);
    if (!goes_on || now_ms - s->since_ms >= DN_SHARE_PERIOD_MS) {
        s->since_ms = now_ms;
        s->train_ms = s->infer_ms = 0;
    }
    s->contended = contended;
    s->applied = share;
    return owed;
}

void dn_share_charge(dn_sched_share *s, bool training, double ms)
{
    if (s->contended)
        *(training ? &s->train_ms : &s->infer_ms) += ms;
}
