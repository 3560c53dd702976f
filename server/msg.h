/* msg.h - how threads talk: intrusive messages, never shared structures.
 *
 * Whoever pushes a message gives up the structure it is embedded in; the receiver's thread calls `run`, which owns it
 * from then on (and frees it, or sends it back). Queues keep the order of one sender. Pushing never blocks, never
 * allocates and takes no lock, so a thread that is descheduled cannot hold up the loop. */
#ifndef DN_SERVER_MSG_H
#define DN_SERVER_MSG_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stddef.h>

typedef struct dn_msg dn_msg;
struct dn_msg {
    dn_msg *next;             /* the queue's */
    void (*run)(dn_msg *msg); /* called on the receiving thread */
};

/* The structure that `ptr`, its member, is embedded in. */
#define dn_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* Any number of senders, one receiver. Zeroed memory is an empty queue. */
typedef struct dn_queue {
    _Atomic(dn_msg *) newest;
} dn_queue;

/* Any thread. 1: the queue was empty, so the receiver may be asleep. */
int dn_queue_push(dn_queue *q, dn_msg *msg);
/* The receiver: everything queued, oldest first, linked by `next`; NULL if nothing. */
dn_msg *dn_queue_take(dn_queue *q);
/* The receiver: take everything and run it; how many messages that were. */
int dn_queue_run(dn_queue *q);

/* A queue whose receiver is a thread that may sleep: a device worker's. */
typedef struct dn_mailbox {
    dn_queue queue;
    sem_t wake;
} dn_mailbox;

void dn_mailbox_init(dn_mailbox *box);
void dn_mailbox_fini(dn_mailbox *box);
void dn_mailbox_post(dn_mailbox *box, dn_msg *msg); /* any thread */
/* The receiver: run all messages there are; with none, sleep first until one comes or timeout_ms have passed (< 0: no
 * limit, 0: do not sleep). How many were run. */
int dn_mailbox_run(dn_mailbox *box, int timeout_ms);

#endif
