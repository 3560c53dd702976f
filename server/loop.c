/* loop.c - libuv's loop and the queue of messages for it. */
#include "loop.h"
#include <stdlib.h>
#include <time.h>

struct dn_loop {
    uv_loop_t uv;
    uv_async_t wake;
    dn_queue queue;
};

static void on_wake(uv_async_t *wake) { dn_loop_messages(wake->data); }

int dn_loop_new(dn_loop **out, dn_error *err)
{
    dn_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for the event loop");
    int rc = uv_loop_init(&loop->uv);
    if (rc == 0 && (rc = uv_async_init(&loop->uv, &loop->wake, on_wake)) != 0)
        uv_loop_close(&loop->uv);
    if (rc) {
        free(loop);
        return dn_fail(err, DN_E_IO, NULL, "the event loop cannot start: %s", uv_strerror(rc));
    }
    loop->wake.data = loop;
    *out = loop;
    return 0;
}

void dn_loop_free(dn_loop *loop)
{
    if (!loop)
        return;
    uv_close((uv_handle_t *)&loop->wake, NULL);
    dn_loop_settle(loop);
    if (uv_loop_close(&loop->uv) != 0)
        abort(); /* a handle of ours was left open */
    free(loop);
}

uv_loop_t *dn_loop_uv(dn_loop *loop) { return &loop->uv; }

void dn_loop_post(dn_loop *loop, dn_msg *msg)
{
    if (dn_queue_push(&loop->queue, msg))
        uv_async_send(&loop->wake);
}

int dn_loop_messages(dn_loop *loop) { return dn_queue_run(&loop->queue); }

void dn_loop_run(dn_loop *loop) { uv_run(&loop->uv, UV_RUN_DEFAULT); }

void dn_loop_quit(dn_loop *loop) { uv_stop(&loop->uv); }

void dn_loop_settle(dn_loop *loop)
{
    /* Each round calls the close callbacks of the handles closed before it; those may close others. */
    for (int i = 0; i < 8; i++)
        uv_run(&loop->uv, UV_RUN_NOWAIT);
}

int64_t dn_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
