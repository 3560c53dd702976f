/* download.c - see download.h. */
#include "download.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int complain(dn_download *d)
{
    dn_progress_clear(&d->progress);
    dn_complain("%s: %s", d->path ? d->path : "standard output", strerror(errno));
    return DN_EXIT_FAILED;
}

static void show(dn_download *d)
{
    char tail[80], done[24], all[24];
    int64_t length = d->transfer ? d->transfer->length : 0;
    if (!d->path || length <= 0 || !d->progress.tty || !dn_progress_due(&d->progress))
        return;
    snprintf(tail, sizeof tail, " %s of %s", dn_text_bytes(done, (double)d->bytes), dn_text_bytes(all, (double)length));
    dn_progress_show(&d->progress, (double)d->bytes / (double)length, tail, "");
}

static int take(void *arg, const char *bytes, size_t n)
{
    dn_download *d = arg;
    while (n) {
        ssize_t k = write(d->fd, bytes, n);
        if (k < 0 && errno == EINTR && !dn_interrupted())
            continue;
        if (k < 0) {
            if (!dn_interrupted())
                complain(d);
            return -1;
        }
        bytes += k;
        n -= (size_t)k;
        d->bytes += k;
    }
    show(d);
    return 0;
}

/* An unfinished file beside its place, hidden. */
static int open_beside(dn_download *d)
{
    char *real = realpath(d->path, NULL); /* a link stays, the file behind it is replaced */
    d->place = real ? real : strdup(d->path);
    const char *slash = d->place ? strrchr(d->place, '/') : NULL;
    int folder = slash ? (int)(slash + 1 - d->place) : 0;
    if (!d->place || asprintf(&d->beside, "%.*s.%s.XXXXXX", folder, d->place, d->place + folder) < 0) {
        d->beside = NULL;
        errno = ENOMEM;
        return complain(d);
    }
    d->fd = mkostemp(d->beside, O_CLOEXEC);
    mode_t mask = umask(0);
    umask(mask);
    if (d->fd >= 0 && !fchmod(d->fd, 0666 & ~mask))
        return 0;
    int rc = complain(d);
    if (d->fd < 0) {
        free(d->beside);
        d->beside = NULL;
    }
    return rc;
}

int dn_download_begin(dn_download *d, const char *path)
{
    struct stat st;
    *d = (dn_download){ .path = path && strcmp(path, "-") ? path : NULL, .fd = -1 };
    d->taker = (dn_taker){ take, d };
    dn_progress_init(&d->progress, stderr, false);
    if (!d->path) {
        d->fd = dup(STDOUT_FILENO);
        return d->fd < 0 ? complain(d) : 0;
    }
    int rc = 0; /* nothing has been asked yet: a bad -o is a bad command line */
    if (stat(d->path, &st) || S_ISREG(st.st_mode))
        rc = open_beside(d);
    else if ((d->fd = open(d->path, O_WRONLY | O_CLOEXEC)) < 0)
        rc = complain(d);
    return rc ? dn_download_end(d, DN_EXIT_USAGE) : 0;
}

int dn_download_end(dn_download *d, int rc)
{
    if (d->fd >= 0 && close(d->fd) && !rc)
        rc = complain(d);
    if (!rc && d->beside && rename(d->beside, d->place))
        rc = complain(d);
    if (rc && d->beside)
        unlink(d->beside);
    free(d->beside);
    free(d->place);
    *d = (dn_download){ .fd = -1 };
    return rc;
}

static int fetch(dn_download *d, const dn_args *args, const char *path)
{
    dn_client client;
    dn_transfer t = { .method = "GET", .path = path, .taker = &d->taker };
    int rc = dn_client_init(&client, args);
    if (rc)
        return rc;
    if (!args->value[DN_OPT_QUIET])
        d->transfer = &t;
    dn_interrupt_catch();
    rc = dn_client_run(&client, &t, NULL);
    dn_progress_clear(&d->progress);
    rc = dn_client_complain(&client, &t, rc);
    d->transfer = NULL;
    dn_transfer_fini(&t);
    dn_client_fini(&client);
    return rc;
}

int dn_fetch(const dn_args *args, const char *path, const char *name)
{
    dn_download d;
    char size[24];
    char *full = dn_path_about(path, name);
    int rc = full ? dn_download_begin(&d, args->value[DN_OPT_FILE]) : DN_EXIT_FAILED;
    if (!rc) {
        rc = fetch(&d, args, full);
        dn_text_bytes(size, (double)d.bytes);
        bool said = d.path && !args->value[DN_OPT_QUIET];
        rc = dn_download_end(&d, rc);
        if (!rc && said)
            fprintf(stderr, "wrote %s, %s\n", args->value[DN_OPT_FILE], size);
    }
    free(full);
    return rc;
}
