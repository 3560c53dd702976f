/* reply_file.c - an answer that is a file of the state folder, read on the slow lane. */
#include "routes_app.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FILE_BYTES_MAX = 256 << 20 };

typedef struct reading {
    dn_work work;
    dn_call *call; /* NULL: the client has left */
    char *path;
    const char *type, *missing;
    char *data;
    size_t n;
    int error; /* errno */
} reading;

static void read_work(dn_work *work)
{
    reading *r = dn_container_of(work, reading, work);
    struct stat st;
    FILE *f = fopen(r->path, "re");
    errno = f ? 0 : errno;
    if (f && !fstat(fileno(f), &st)) {
        r->n = (size_t)st.st_size;
        r->data = r->n <= FILE_BYTES_MAX ? malloc(r->n + 1) : NULL;
        errno = r->n > FILE_BYTES_MAX ? EFBIG : r->data ? 0 : ENOMEM;
        if (r->data)
            r->n = fread(r->data, 1, r->n, f);
    }
    r->error = errno;
    if (f)
        fclose(f);
}

static void read_done(dn_work *work)
{
    reading *r = dn_container_of(work, reading, work);
    if (r->call && r->data && !r->error) {
        dn_reply_take(r->call, 200, r->type, r->data, r->n, free);
        r->data = NULL;
    } else if (r->call && r->error == ENOENT && !r->missing) {
        dn_reply(r->call, 200, r->type, "", 0);
    } else if (r->call && r->error == ENOENT) {
        dn_reply_refuse(r->call, DN_H_NOT_FOUND, NULL, "%s", r->missing);
    } else if (r->call) {
        dn_reply_refuse(r->call, DN_H_IO, NULL, "the file could not be read: %s", strerror(r->error));
    }
    free(r->data);
    free(r->path);
    free(r);
}

static void call_gone(void *arg) { ((reading *)arg)->call = NULL; }

void dn_reply_file(dn_call *call, char *path, const char *type, const char *missing)
{
    dn_app *app = dn_call_app(call);
    reading *r = path ? calloc(1, sizeof *r) : NULL;
    if (!r) {
        free(path);
        dn_reply_refuse(call, DN_H_MEMORY, NULL, "out of memory");
        return;
    }
    *r = (reading){ .work = { .work = read_work, .done = read_done }, .call = call, .path = path, .type = type, .missing = missing };
    dn_call_on_gone(call, call_gone, r);
    dn_lane_submit(app->server.slow, &r->work);
}
