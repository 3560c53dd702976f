/* http_upload.c - bodies that go to a file of the state folder, under incoming/.
 *
 * Two buffers: MHD fills one while the lane writes the other; while neither is free the connection is suspended. The lane has the
 * file and its hash as long as a write is under way (`writing`), the loop has the rest. The file goes with the call, whatever becomes
 * of it, unless its handler takes it; what a crash leaves is removed at the next start (dn_tree_clear). */
#include "http_internal.h"

#include <denoised/sha256.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <unistd.h>

enum { BLOCK_BYTES = 256 << 10 };

struct dn_upload {
    dn_work work;
    dn_call *call; /* NULL: it is over */
    dn_lane *lane;
    char *path;
    int fd; /* -1: not made yet */
    dn_sha256 hash;
    char sha256[DN_SHA256_HEX_SIZE]; /* "" until it is complete */
    char *block[2];
    size_t filled[2];
    int front;          /* the one that MHD fills */
    int back;           /* the one that the lane writes */
    bool writing;       /* the lane has it */
    bool last;          /* nothing more will come */
    bool final;         /* what the lane writes, or has written, is the end */
    bool complete;      /* all of it is in the file */
    bool taken;         /* the file is somebody's */
    int result;         /* of the write under way: errno; the lane's */
    int error;          /* of the last one that is done */
};

static void upload_free(dn_upload *u)
{
    free(u->block[0]);
    free(u->block[1]);
    free(u->path);
    free(u);
}

dn_upload *dn_upload_new(dn_call *call)
{
    dn_http *http = call->http;
    unsigned char id[16];
    char name[33];
    if (http->body_bytes + 2 * BLOCK_BYTES > http->o.bodies_max || getrandom(id, sizeof id, 0) != sizeof id)
        return NULL;
    for (int i = 0; i < 16; i++)
        snprintf(name + 2 * i, 3, "%02x", id[i]);
    dn_upload *u = calloc(1, sizeof *u);
    if (!u)
        return NULL;
    *u = (dn_upload){ .call = call, .lane = http->o.uploads, .fd = -1 };
    u->block[0] = malloc(BLOCK_BYTES);
    u->block[1] = malloc(BLOCK_BYTES);
    if (asprintf(&u->path, "%s/%s", http->o.incoming, name) < 0)
        u->path = NULL;
    if (!u->block[0] || !u->block[1] || !u->path || dn_sha256_init(&u->hash)) {
        upload_free(u);
        return NULL;
    }
    http->body_bytes += 2 * BLOCK_BYTES;
    return u;
}

/* ---- on the lane ------------------------------------------------------------------------------------------ */

static int write_all(int fd, const char *data, size_t n)
{
    while (n) {
        ssize_t k = write(fd, data, n);
        if (k < 0 && errno != EINTR)
            return errno;
        data += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
    return 0;
}

static void write_work(dn_work *work)
{
    dn_upload *u = dn_container_of(work, dn_upload, work);
    if (u->fd < 0)
        u->fd = open(u->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    u->result = u->fd < 0 ? errno : write_all(u->fd, u->block[u->back], u->filled[u->back]);
    if (!u->result && dn_sha256_update(&u->hash, u->block[u->back], u->filled[u->back]))
        u->result = ENOMEM;
    if (!u->result && u->final) {
        dn_sha256_fini(&u->hash, u->sha256);
        u->result = close(u->fd) ? errno : 0;
        u->fd = -1;
    }
}

static void drop_work(dn_work *work)
{
    dn_upload *u = dn_container_of(work, dn_upload, work);
    dn_sha256_fini(&u->hash, NULL);
    if (u->fd >= 0)
        close(u->fd);
    if (!u->taken)
        unlink(u->path);
}

static void drop_done(dn_work *work) { upload_free(dn_container_of(work, dn_upload, work)); }

/* ---- on the loop ------------------------------------------------------------------------------------------ */

static void drop(dn_upload *u)
{
    u->work = (dn_work){ .work = drop_work, .done = drop_done };
    dn_lane_submit(u->lane, &u->work);
}

static void write_done(dn_work *work);

/* Give the front block to the lane. */
static void submit(dn_upload *u)
{
    u->back = u->front;
    u->front = !u->front;
    u->filled[u->front] = 0;
    u->writing = true;
    u->final = u->last;
    u->work = (dn_work){ .work = write_work, .done = write_done };
    dn_lane_submit(u->lane, &u->work);
}

static int no_room(dn_call *call, int64_t bytes, dn_http_error *err)
{
    const dn_http_options *o = &call->http->o;
    return o->room ? o->room(o->room_arg, bytes, err) : 0;
}

static void failed(dn_upload *u)
{
    bool full = u->error == ENOSPC || u->error == EDQUOT || u->error == EFBIG;
    dn_conn_refuse(u->call->conn, full ? DN_H_DISK : DN_H_IO, "the body could not be written: %s", strerror(u->error));
    dn_call_resume(u->call);
}

static void write_done(dn_work *work)
{
    dn_upload *u = dn_container_of(work, dn_upload, work);
    u->writing = false;
    u->error = u->result;
    u->complete = u->final && !u->error;
    if (!u->call) {
        drop(u);
        return;
    }
    if (u->error) {
        if (!u->call->dead && u->call->conn->state != DN_CONN_LINGERING)
            failed(u);
        return;
    }
    if (!u->complete && (u->last || u->filled[u->front] == BLOCK_BYTES))
        submit(u);
    if (u->call->conn->state == DN_CONN_BODY)
        dn_upload_expect(u->call);
    if (u->complete || !u->last)
        dn_call_resume(u->call);
}

/* Nothing can go on before a write is done. */
static void suspend(dn_call *call)
{
    call->conn->deadline_ms = 0; /* it is ours to move */
    MHD_suspend_connection(call->conn->mhd);
    call->suspended = true;
}

void dn_upload_expect(dn_call *call)
{
    dn_conn_set(call->conn, DN_CONN_BODY, call->http->o.body_ms + BLOCK_BYTES / (DN_BODY_BYTES_PER_S / 1000));
}

/* Fill the front block, and give it to the lane when it is full. How much was used. */
static size_t fill(dn_call *call, const char *data, size_t n)
{
    dn_upload *u = call->upload;
    dn_http_error err = { 0 };
    size_t fits = BLOCK_BYTES - u->filled[u->front], used = n < fits ? n : fits;
    memcpy(u->block[u->front] + u->filled[u->front], data, used);
    u->filled[u->front] += used;
    call->body_len += used;
    if (u->filled[u->front] < BLOCK_BYTES)
        return used;
    if (no_room(call, BLOCK_BYTES, &err)) {
        dn_conn_refuse(call->conn, err.id, "%s", err.message);
    } else if (u->writing) {
        suspend(call);
    } else {
        submit(u);
        dn_upload_expect(call);
    }
    return used;
}

/* All of it, or as much as fits before the connection is suspended: MHD would wait for more before it came again with the rest. */
size_t dn_upload_take(dn_call *call, const char *data, size_t n)
{
    size_t used = 0;
    if (call->suspended) /* MHD goes on with the chunks that it has read */
        return 0;
    if (n > call->body_max - call->body_len) {
        dn_conn_refuse(call->conn, DN_H_TOO_LARGE, "the body is larger than %zu bytes (--upload-bytes)", call->body_max);
        return n;
    }
    while (used < n && !call->suspended && !call->upload->error && call->conn->state == DN_CONN_BODY)
        used += fill(call, data + used, n - used);
    return call->suspended ? used : n;
}

bool dn_upload_finish(dn_call *call)
{
    dn_upload *u = call->upload;
    if (!u->complete && !u->last) {
        u->last = true;
        if (!u->writing)
            submit(u);
    }
    if (!u->complete) {
        suspend(call);
        return false;
    }
    const char *claimed = dn_call_header(call, "X-Content-SHA256");
    if (claimed && strcasecmp(claimed, u->sha256))
        dn_http_fail(&call->refusal, DN_H_FORMAT, "X-Content-SHA256", "the body's SHA-256 is %s", u->sha256);
    return true;
}

void dn_upload_end(dn_call *call)
{
    dn_upload *u = call->upload;
    if (!u)
        return;
    call->upload = NULL;
    call->http->body_bytes -= 2 * BLOCK_BYTES;
    u->call = NULL;
    if (!u->writing)
        drop(u);
}

int dn_upload_check(dn_call *call)
{
    const dn_http_options *o = &call->http->o;
    const char *claimed = dn_call_header(call, "X-Content-SHA256");
    if (!o->incoming)
        return dn_http_fail(&call->refusal, DN_H_IMPOSSIBLE, NULL,
                            "uploads need a folder to be kept in: start denoised with --state");
    if (claimed && (strlen(claimed) != 64 || strspn(claimed, "0123456789abcdefABCDEF") != 64))
        return dn_http_fail(&call->refusal, DN_H_BAD_HEADER, "X-Content-SHA256", "X-Content-SHA256 is 64 hexadecimal digits");
    return no_room(call, (int64_t)call->body_announced, &call->refusal);
}

const char *dn_call_file(const dn_call *call) { return call->upload && call->upload->complete ? call->upload->path : NULL; }

char *dn_call_take_file(dn_call *call)
{
    char *path = dn_call_file(call) ? strdup(call->upload->path) : NULL;
    if (path)
        call->upload->taken = true;
    return path;
}

void dn_call_body_progress(const dn_call *call, dn_body_progress *out)
{
    *out = (dn_body_progress){ (int64_t)call->body_len, (int64_t)call->body_announced, (double)(uv_hrtime() - call->start_ns) / 1e9 };
}

const dn_call *dn_call_uploading(const dn_call *call, const dn_call *after, int route)
{
    for (const dn_conn *c = after ? after->conn->next : call->http->conns; c; c = c->next) {
        if (c->call && c->call->upload && c->call->route == route && c->state == DN_CONN_BODY && !c->call->dead)
            return c->call;
    }
    return NULL;
}
