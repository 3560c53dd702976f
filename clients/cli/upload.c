/* upload.c - see upload.h. */
#include "upload.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { UNDO_TRIES = 10 };
static const double UNDO_S = 0.2; /* between two of them */

static void show(dn_upload *u)
{
    char tail[80], line[80], sent[24], all[24];
    if (!u->over && !dn_progress_due(&u->progress))
        return;
    dn_text_bytes(sent, (double)u->sent);
    dn_text_bytes(all, (double)u->bytes);
    if (u->over)
        snprintf(tail, sizeof tail, " %s sent, the daemon reads it", sent);
    else if (u->bytes)
        snprintf(tail, sizeof tail, " %s of %s", sent, all);
    else
        snprintf(tail, sizeof tail, " %s", sent);
    snprintf(line, sizeof line, "sent %s", sent);
    dn_progress_show(&u->progress, u->over ? 1 : u->bytes ? (double)u->sent / (double)u->bytes : 0, tail, line);
}

static ssize_t failed(dn_upload *u, const char *path, const char *why)
{
    dn_progress_clear(&u->progress);
    dn_complain("%s: %s", path, why);
    return -1;
}

static ssize_t give_tar(dn_upload *u, char *out, size_t n)
{
    ssize_t given = dn_tar_read(&u->tar, out, n);
    u->sent = u->tar.read;
    return given < 0 ? failed(u, u->tar.at_fault, u->tar.why) : given;
}

/* What a file grows meanwhile stays here: its length has been promised. */
static ssize_t give_file(dn_upload *u, char *out, size_t n)
{
    int64_t left = u->giver.size >= 0 ? u->giver.size - u->sent : INT64_MAX;
    ssize_t given;
    do
        given = read(u->fd, out, left < (int64_t)n ? (size_t)left : n);
    while (given < 0 && errno == EINTR && !dn_interrupted());
    if (given < 0)
        return dn_interrupted() ? -1 : failed(u, u->path, strerror(errno));
    if (!given && u->sent < u->giver.size)
        return failed(u, u->path, "it has become shorter");
    u->sent += given;
    return given;
}

static ssize_t give(void *arg, char *out, size_t n)
{
    dn_upload *u = arg;
    ssize_t given = u->is_tar ? give_tar(u, out, n) : give_file(u, out, n);
    u->over = !given || (given > 0 && u->sent == u->giver.size);
    if (given >= 0)
        show(u);
    return given;
}

/* One file is sent as it is: the daemon finds out what it is. */
static int open_file(dn_upload *u)
{
    struct stat st;
    bool in_stdin = !strcmp(u->path, "-");
    u->fd = in_stdin ? dup(STDIN_FILENO) : open(u->path, O_RDONLY | O_CLOEXEC);
    if (u->fd < 0 || fstat(u->fd, &st)) {
        dn_complain("%s: %s", u->path, strerror(errno));
        return DN_EXIT_USAGE;
    }
    if (S_ISREG(st.st_mode) && !in_stdin)
        u->giver.size = u->bytes = st.st_size;
    if (u->giver.size)
        return 0;
    dn_complain("%s: it is empty", u->path);
    return DN_EXIT_USAGE;
}

int dn_upload_init(dn_upload *u, const char *const *path, int n, bool silent)
{
    struct stat st;
    *u = (dn_upload){ .path = path[0], .fd = -1, .giver = { give, u, -1, "application/octet-stream" } };
    dn_progress_init(&u->progress, stderr, silent);
    u->progress.said = 0; /* "sent 0 B" is no news */
    if (n == 1 && (!strcmp(path[0], "-") || stat(path[0], &st) || !S_ISDIR(st.st_mode)))
        return open_file(u);
    u->is_tar = true;
    u->giver.type = "application/x-tar";
    int rc = dn_tar_init(&u->tar, path, n);
    u->bytes = u->tar.bytes;
    return rc;
}

void dn_upload_fini(dn_upload *u)
{
    dn_progress_clear(&u->progress);
    if (u->is_tar)
        dn_tar_fini(&u->tar);
    if (u->fd >= 0)
        close(u->fd);
}

/* Whether the daemon stops what it makes of it. It knows of that a moment after it has all. */
static bool undo(const dn_upload *u, dn_client *c)
{
    long status = 404;
    dn_interrupt_forget();
    for (int i = 0; u->undo && status == 404 && i < UNDO_TRIES && !dn_interrupted(); i++) {
        dn_transfer t = { .method = "DELETE", .path = u->undo };
        if (i)
            dn_pause(UNDO_S);
        status = dn_client_run(c, &t, NULL) ? 0 : t.status;
        dn_transfer_fini(&t);
    }
    return status == 200;
}

int dn_upload_put(dn_upload *u, dn_client *c, const char *path, struct json_t **out)
{
    dn_transfer t = { .method = "PUT", .path = path, .giver = &u->giver };
    int rc = dn_client_run(c, &t, NULL);
    dn_progress_clear(&u->progress);
    rc = dn_client_complain(c, &t, rc);
    if (rc == DN_EXIT_INTERRUPTED)
        dn_complain(!u->over || undo(u, c) ? "interrupted; nothing is stored"
                                           : "interrupted; the daemon has all of it and goes on");
    if (!rc)
        rc = dn_client_parse(&t, out);
    dn_transfer_fini(&t);
    return rc;
}
