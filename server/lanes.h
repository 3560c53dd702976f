/* lanes.h - threads for work that the loop must not do: PNG and bodies (fast), archives, models (slow).
 *
 * A lane is a FIFO of work with a few threads. Work is intrusive: the submitter embeds a dn_work, gives it up, and has
 * it back when `done` runs on the loop's thread. Everything submitted is done. */
#ifndef DN_SERVER_LANES_H
#define DN_SERVER_LANES_H

#include "loop.h"
#include <stdbool.h>

typedef struct dn_lane dn_lane;
typedef struct dn_work dn_work;
struct dn_work {
    dn_msg msg;                  /* the lane's */
    void (*work)(dn_work *work); /* on a thread of the lane */
    void (*done)(dn_work *work); /* then on the loop's thread; owns the work */
};

/* `nice` is added to the threads' niceness. */
int dn_lane_new(dn_lane **out, dn_loop *loop, const char *name, int n_threads, int nice, dn_error *err);
void dn_lane_submit(dn_lane *lane, dn_work *work); /* any thread */
/* Take it back, if it has not begun: true, and neither `work` nor `done` will be called. */
bool dn_lane_withdraw(dn_lane *lane, dn_work *work);
size_t dn_lane_waiting(dn_lane *lane);             /* submitted and not begun */
/* Finish what is queued and join the threads; `done` of all of it is then among the loop's messages. What is submitted
 * later is worked on by the submitter. */
void dn_lane_stop(dn_lane *lane);
void dn_lane_free(dn_lane *lane); /* stops it. NULL is fine */

#endif
