/* loop.h - the thread that owns all sockets: libuv's loop plus the queue by which other threads reach it.
 *
 * Everything of http.h, timers and requests' state live on this thread. */
#ifndef DN_SERVER_LOOP_H
#define DN_SERVER_LOOP_H

#include <denoised/error.h>
#include <stdint.h>
#include <uv.h>
#include "msg.h"

typedef struct dn_loop dn_loop;

int dn_loop_new(dn_loop **out, dn_error *err);
void dn_loop_free(dn_loop *loop); /* every handle must be closed */
uv_loop_t *dn_loop_uv(dn_loop *loop);

/* Any thread: have msg->run called on the loop's thread. */
void dn_loop_post(dn_loop *loop, dn_msg *msg);
/* The loop's thread: run the messages that have arrived, now. */
int dn_loop_messages(dn_loop *loop);

void dn_loop_run(dn_loop *loop); /* until dn_loop_quit */
void dn_loop_quit(dn_loop *loop);
/* Close handles to the end: to be called after the owners have uv_close'd theirs. */
void dn_loop_settle(dn_loop *loop);

/* Milliseconds of CLOCK_MONOTONIC: any thread. */
int64_t dn_now_ms(void);

#endif
