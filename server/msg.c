/* msg.c - a stack that senders push on by compare-and-swap; the receiver swaps the whole of it out and turns it round.
 *
 * Taking everything at once is what keeps it free of the ABA problem. */
#include "msg.h"
#include <errno.h>
#include <stdint.h>
#include <time.h>

int dn_queue_push(dn_queue *q, dn_msg *msg)
{
    dn_msg *newest = atomic_load_explicit(&q->newest, memory_order_relaxed);
    do
        msg->next = newest;
    while (
        !atomic_compare_exchange_weak_explicit(&q->newest, &newest, msg, memory_order_acq_rel, memory_order_relaxed));
    return newest == NULL; /* not msg->next: the message may be gone already */
}

dn_msg *dn_queue_take(dn_queue *q)
{
    dn_msg *msg = atomic_exchange_explicit(&q->newest, NULL, memory_order_acq_rel);
    dn_msg *oldest = NULL;
    while (msg) {
        dn_msg *next = msg->next;
        msg->next = oldest;
        oldest = msg;
        msg = next;
    }
    return oldest;
}

int dn_queue_run(dn_queue *q)
{
    int n = 0;
    for (dn_msg *msg = dn_queue_take(q), *next; msg; msg = next, n++) {
        next = msg->next;
        msg->run(msg);
    }
    return n;
}

void dn_mailbox_init(dn_mailbox *box)
{
    atomic_init(&box->queue.newest, NULL);
    sem_init(&box->wake, 0, 0);
}

void dn_mailbox_fini(dn_mailbox *box) { sem_destroy(&box->wake); }

void dn_mailbox_post(dn_mailbox *box, dn_msg *msg)
{
    if (dn_queue_push(&box->queue, msg))
        sem_post(&box->wake);
}

static struct timespec deadline_after(int timeout_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = t.tv_nsec + (int64_t)timeout_ms % 1000 * 1000000;
    t.tv_sec += timeout_ms / 1000 + ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    return t;
}

int dn_mailbox_run(dn_mailbox *box, int timeout_ms)
{
    int n = dn_queue_run(&box->queue);
    if (n || timeout_ms == 0)
        return n;
    /* The semaphore may hold posts for messages that were taken without sleeping: wake up, look, sleep again. */
    struct timespec until = deadline_after(timeout_ms < 0 ? 0 : timeout_ms);
    for (;;) {
        int rc = timeout_ms < 0 ? sem_wait(&box->wake) : sem_clockwait(&box->wake, CLOCK_MONOTONIC, &until);
        int timed_out = rc != 0 && errno == ETIMEDOUT;
        n = dn_queue_run(&box->queue);
        if (n || timed_out)
            return n;
    }
}
