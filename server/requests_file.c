/* requests_file.c - results on the disk: written by a lane, read by a lane for whoever asks. */
#include "requests.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- writing ------------------------------------------------------------------------------------------------ */

static int write_all(int fd, const dn_encoded *v, int n)
{
    for (int k = 0; k < n; k++) {
        const char *at = v[k].data;
        for (size_t left = v[k].n; left;) {
            ssize_t w = write(fd, at, left);
            if (w < 0)
                return -1;
            at += w;
            left -= w;
        }
    }
    return fsync(fd);
}

static int sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 ? -1 : fsync(fd);
    if (fd >= 0)
        close(fd);
    return rc;
}

int dn_results_write(const dn_encoded *v, int n, const char *folder, const char *part, const char *path)
{
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int bad = fd < 0 || write_all(fd, v, n);
    int why = errno;
    if (fd >= 0)
        bad |= close(fd);
    if (!bad) {
        bad = rename(part, path) || sync_folder(folder);
        why = errno;
    }
    if (bad)
        (void)unlink(part);
    errno = why;
    return bad;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

typedef struct send_work {
    dn_work work;
    dn_call *call; /* NULL: the client has left */
    const char *type;
    char *path, *data;
    int64_t at;
    size_t n;
} send_work;

static void work_send(dn_work *work)
{
    send_work *w = dn_container_of(work, send_work, work);
    int fd = open(w->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool good = fd >= 0 && (w->data = malloc(w->n ? w->n : 1));
    for (size_t at = 0; good && at < w->n;) {
        ssize_t k = pread(fd, w->data + at, w->n - at, w->at + (int64_t)at);
        good = k > 0;
        at += good ? k : 0;
    }
    if (fd >= 0)
        close(fd);
    if (!good) {
        free(w->data);
        w->data = NULL;
    }
}

static void sent(dn_work *work)
{
    send_work *w = dn_container_of(work, send_work, work);
    if (w->call && w->data)
        dn_reply_take(w->call, 200, w->type, w->data, w->n, free);
    else if (w->call)
        dn_reply_refuse(w->call, DN_H_IO, NULL, "the result cannot be read");
    else
        free(w->data);
    free(w->path);
    free(w);
}

static void send_gone(void *arg) { ((send_work *)arg)->call = NULL; }

int dn_request_send_file(dn_request *r, int k, dn_call *call, const char *type)
{
    send_work *w = calloc(1, sizeof *w);
    if (w && asprintf(&w->path, "%s/results/%s", dn_store_folder(r->app->server.store), r->id) < 0)
        w->path = NULL;
    if (!w || !w->path) {
        free(w);
        return DN_E_MEMORY;
    }
    w->work = (dn_work){ .work = work_send, .done = sent };
    w->call = call;
    w->type = type;
    w->n = r->encoded[k].n;
    for (int i = 0; i < k; i++)
        w->at += (int64_t)r->encoded[i].n;
    dn_call_on_gone(call, send_gone, w);
    dn_lane_submit(r->app->server.fast, &w->work);
    return 0;
}
