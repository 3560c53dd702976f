/* http_download.c - an answer that is a file of any size: a lane reads it, block by block, while the connection is suspended. */
#include "http_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK_BYTES = 256 << 10 };

typedef struct download {
    dn_work work;
    dn_conn *conn; /* outlives the response */
    dn_lane *lane;
    int fd;
    uint64_t next;       /* what is read next */
    size_t have, used;     /* of the block */
    bool reading, over;    /* over: the response is gone */
    int error;
    char block[BLOCK_BYTES];
} download;

static void close_work(dn_work *work) { close(dn_container_of(work, download, work)->fd); }
static void close_done(dn_work *work) { free(dn_container_of(work, download, work)); }

/* Away from the loop: the last descriptor of a file that has no name frees all of it. */
static void drop(download *d)
{
    d->work = (dn_work){ .work = close_work, .done = close_done };
    dn_lane_submit(d->lane, &d->work);
}

static void read_work(dn_work *work)
{
    download *d = dn_container_of(work, download, work);
    ssize_t n = pread(d->fd, d->block, BLOCK_BYTES, (off_t)d->next);
    d->error = n > 0 ? 0 : n < 0 ? errno : EIO; /* it is shorter than it was */
    d->have = n > 0 ? (size_t)n : 0;
}

static void read_done(dn_work *work)
{
    download *d = dn_container_of(work, download, work);
    d->reading = false;
    d->used = 0;
    d->next += d->have;
    if (d->over)
        drop(d);
    else if (d->conn->call)
        dn_call_resume(d->conn->call);
}

static ssize_t read_some(void *cls, uint64_t at, char *buf, size_t max)
{
    download *d = cls;
    (void)at;
    d->conn->listener->progress++;
    if (d->error) {
        dn_conn_cut(d->conn);
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    if (!d->reading && d->used < d->have) {
        size_t n = d->have - d->used < max ? d->have - d->used : max;
        memcpy(buf, d->block + d->used, n);
        d->used += n;
        d->conn->moved_ms = dn_now_ms();
        return (ssize_t)n;
    }
    if (!d->reading) {
        d->reading = true;
        d->work = (dn_work){ .work = read_work, .done = read_done };
        dn_lane_submit(d->lane, &d->work);
    }
    if (!d->conn->call->suspended) {
        d->conn->call->suspended = true;
        MHD_suspend_connection(d->conn->mhd);
    }
    return 0;
}

static void download_free(void *cls)
{
    download *d = cls;
    d->over = true;
    if (!d->reading)
        drop(d);
}

void dn_reply_fd(dn_call *call, int status, const char *content_type, int fd, uint64_t size, dn_lane *lane)
{
    download *d = calloc(1, sizeof *d);
    struct MHD_Response *r = NULL;
    if (d) {
        *d = (download){ .conn = call->conn, .lane = lane, .fd = fd };
        r = MHD_create_response_from_callback(size, BLOCK_BYTES, read_some, d, download_free);
    }
    if (!r) {
        free(d);
        close(fd);
    }
    call->finished = true;
    dn_call_tell_end(call, &(dn_ending){ .status = status });
    if (r)
        MHD_add_response_header(r, "Content-Type", content_type);
    dn_reply_send(call, status, r);
}
