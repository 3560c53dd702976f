/* disk.c - statvfs, away from the loop. */
#include "disk.h"

#include "log.h"
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

struct dn_disk {
    dn_store_op op;
    dn_app *app;
    bool measuring, low;
    int64_t free, measured; /* bytes; `measured` is the store's */
};

static int measure(const char *folder, int64_t *bytes, dn_error *err)
{
    struct statvfs st;
    if (statvfs(folder, &st))
        return dn_fail(err, DN_E_IO, "state", "--state %s: %m", folder);
    *bytes = (int64_t)st.f_bavail * (int64_t)st.f_frsize;
    return 0;
}

static int measure_work(dn_store_op *op, struct sqlite3 *db)
{
    (void)db;
    dn_disk *d = dn_container_of(op, dn_disk, op);
    return measure(dn_store_folder(op->store), &d->measured, &op->error);
}

static void tell(const dn_disk *d)
{
    dn_metrics_set(d->app->server.metrics, DN_M_DISK_FREE, 0, 0, (double)d->free);
    dn_metrics_set(d->app->server.metrics, DN_M_DISK_RESERVE, 0, 0, (double)d->app->server.config->disk_reserve);
}

static void measured(dn_store_op *op)
{
    dn_disk *d = dn_container_of(op, dn_disk, op);
    d->measuring = false;
    if (op->rc)
        return; /* the last figure stands */
    d->free = d->measured;
    tell(d);
    bool low = d->free < d->app->server.config->disk_reserve;
    if (low != d->low)
        dn_log(low ? DN_LOG_WARN : DN_LOG_INFO, low ? "disk_low" : "disk_well",
               "%lld bytes are free, disk-reserve is %lld", (long long)d->free,
               (long long)d->app->server.config->disk_reserve);
    d->low = low;
}

int dn_disk_open(dn_app *app, dn_error *err)
{
    const char *folder = dn_store_folder(app->server.store);
    if (!folder)
        return 0;
    dn_disk *d = app->disk = calloc(1, sizeof *d);
    if (!d)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory");
    d->app = app;
    int rc = measure(folder, &d->free, err);
    tell(d);
    return rc;
}

void dn_disk_tick(dn_app *app)
{
    dn_disk *d = app->disk;
    if (!d || d->measuring || app->closing)
        return;
    d->measuring = true;
    d->op = (dn_store_op){ .work = measure_work, .done = measured };
    dn_store_submit(app->server.store, &d->op);
}

void dn_disk_close(dn_app *app)
{
    free(app->disk);
    app->disk = NULL;
}

int dn_disk_check(const dn_app *app, int64_t bytes, dn_http_error *err)
{
    int64_t reserve = app->server.config->disk_reserve;
    if (!app->disk || app->disk->free - bytes >= reserve)
        return 0;
    return dn_http_fail(err, DN_H_DISK, NULL, "%lld bytes are free where the state is, disk-reserve is %lld",
                        (long long)app->disk->free, (long long)reserve);
}

int64_t dn_disk_room(const dn_app *app)
{
    int64_t room = app->disk ? app->disk->free - app->server.config->disk_reserve : INT64_MAX;
    return room > 0 ? room : 1;
}
