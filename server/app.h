/* app.h - what main.c needs of the modules that do the work (scheduler, workers, models, requests, routes), and what
 * it gives them. All of it is called on the loop's thread. */
#ifndef DN_SERVER_APP_H
#define DN_SERVER_APP_H

#include <denoised/error.h>
#include <stdbool.h>
#include "http.h"
#include "lanes.h"
#include "loop.h"
#include "store.h"

struct dn_config;  /* proto/daemon_config.h */
struct dn_metrics; /* proto/metric_set.h */

/* Made by main.c before the app starts, alive until after dn_app_stop. */
typedef struct dn_server {
    const struct dn_config *config;
    struct dn_metrics *metrics;
    dn_loop *loop;
    dn_lane *fast, *slow;
    dn_lane *imports; /* of datasets: they take minutes */
    dn_lane *files;   /* shorter work on folders, which neither waits for imports nor makes loads wait on `slow`: models that come are
                         tried, checkpoints packed, what was deleted removed */
    dn_store *store; /* always there: without --state it is in memory */
} dn_server;

typedef struct dn_app dn_app;

/* Check the configuration that only the app understands (devices, model folder) without starting: --check. */
int dn_app_check(const struct dn_config *config, dn_error *err);
/* Start threads and begin to load the start set; returns before it is loaded. The store's thread does not run yet:
 * modules read what they go on with (dn_store_db). */
int dn_app_start(dn_app **out, const dn_server *server, dn_error *err);
/* The app's endpoints; a static table. main.c adds metrics, healthz, readyz, openapi.json and admin/drain. */
const dn_endpoint *dn_app_endpoints(size_t *n);
/* The start set is loaded. What is missing is said in *why (static text), if not. */
bool dn_app_ready(const dn_app *app, const char **why);
/* May `bytes` more be kept where the state is? 0, or DN_H_DISK. */
int dn_app_room(const dn_app *app, int64_t bytes, struct dn_http_error *err);
/* Refresh gauges just before /metrics is written. */
void dn_app_measure(dn_app *app);
/* Draining has begun (http already refuses new work). Call done(arg) once, when nothing is running or waiting; it may
 * be called at once. */
void dn_app_drain(dn_app *app, void (*done)(void *arg), void *arg);
/* The process is about to stop: answer every open synchronous call with 503 (code "draining"), end every stream (those
 * of unfinished requests with an `error` event), cancel the rest at the next step. Also called after a drain that was
 * done, for streams that never end (/status). */
void dn_app_abort(dn_app *app);
/* Stop and join the app's threads, dn_loop_messages until there are none, free everything. The lanes are stopped before
 * (what they finished is among the loop's messages; more that is submitted runs at once, lanes.h), open calls were told
 * (on_gone). */
void dn_app_stop(dn_app *app);
#endif
