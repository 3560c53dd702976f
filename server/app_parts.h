/* app_parts.h - the app as its own files see it: devices and their workers, what they last said, the memory budget, the
 * models, the requests. All of it belongs to the loop's thread. */
#ifndef DN_SERVER_APP_PARTS_H
#define DN_SERVER_APP_PARTS_H

#include <denoised/device.h>
#include "app.h"
#include "daemon_config.h"
#include "metric_set.h"
#include "price.h"
#include "proto.h"
#include "worker.h"

enum { DN_DEVICES_MAX = 16, DN_REQUEST_ID_LEN = 32 };

typedef struct dn_models dn_models;
typedef struct dn_requests dn_requests;
typedef struct dn_watch dn_watch;
typedef struct dn_jobs dn_jobs;
struct dn_datasets;
typedef struct dn_idem dn_idem;
typedef struct dn_disk dn_disk;

/* A device, and the last step that its worker told of. */
typedef struct dn_place {
    dn_device *device;
    dn_worker *worker;
    const char *name, *backend;
    int threads;
    dn_figures figures;
    int64_t steps, row_steps;
    size_t bytes; /* arenas and slots that the device holds */
    uint64_t net; /* of the last step; 0: none yet */
    int rows;
    double step_ms;
    int n_shares;
    struct {
        char id[DN_REQUEST_ID_LEN + 1];
        int rows;
    } share[DN_N_MAX];
} dn_place;

struct dn_app {
    dn_server server;
    dn_place place[DN_DEVICES_MAX];
    int n_places;
    dn_budget budget;
    dn_models *models;
    dn_requests *requests;
    dn_watch *watch; /* streams of /status */
    dn_jobs *jobs;
    struct dn_datasets *datasets;
    dn_idem *idem;   /* idempotency.h */
    dn_disk *disk;   /* disk.h */
    uv_timer_t *timer;
    dn_work trim; /* gives freed memory back when there is nothing to do */
    bool trimming;
    uint64_t trimmed_at; /* the number of requests there had been */
    int64_t started_ms;
    bool draining;
    bool closing; /* the lanes take no more work */
    void (*drained)(void *arg);
    void *drained_arg;
};

/* Nothing runs or waits any more: if the app drains, it is done. */
void dn_app_idle(dn_app *app);

#endif
