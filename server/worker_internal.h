/* worker_internal.h - between the two halves of a worker: worker.c has the samples and decides whose turn it is,
 * worker_train.c has the job. Worker's thread, all of it. */
#ifndef DN_SERVER_WORKER_INTERNAL_H
#define DN_SERVER_WORKER_INTERNAL_H

#include "worker.h"

#include <pthread.h>

struct dn_worker {
    dn_worker_options o;
    pthread_t thread;
    dn_mailbox box;
    bool stopping;
    bool stopped; /* the loop's: the thread is gone */
    dn_sched sched;
    dn_link queues, runs;
    dn_link over; /* runs that leave at the end of this boundary: samples of theirs may still be in its batch */
    dn_sched_sample **pick; /* of one tick: samples, the rows of each one's entry, the rows */
    int *entry_rows;
    dn_row *rows;
    int n_pick;
    int n_deadlines;
    double ms_per_gflop; /* 0: not known yet */

    /* worker_train.c's */
    dn_training *training; /* NULL: none */
    dn_sched_share share;
    double preempted_ms; /* device time of samples while it could have run, not told yet */
};

/* worker.c: a message to the loop, and one to the worker's thread (any thread); `run` is called there. */
void dn_worker_post(dn_worker *w, dn_msg *msg, void (*run)(dn_msg *));
void dn_worker_deliver(dn_worker *w, dn_msg *msg, void (*run)(dn_msg *));

/* worker_train.c */
bool dn_worker_train_ready(const dn_worker *w);             /* is there a job that could go on? */
bool dn_worker_train_turn(dn_worker *w, bool samples_wait); /* is this tick the job's? */
void dn_worker_train_some(dn_worker *w);                    /* a segment of the job, which is there */
void dn_worker_train_beside(dn_worker *w, double ms);       /* so long samples have had the device */
void dn_worker_train_stop(dn_worker *w);                    /* the worker ends: so does the job, if there is one */

#endif
