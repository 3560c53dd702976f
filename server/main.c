/* main.c - the process: configuration, the order of starting and stopping, signals. Only this file exits. */
#include "daemon.h"
#include "tree.h"
#include "log.h"
#include "state.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    EXIT_USAGE = 2,
    CONFIG_BYTES_MAX = 1 << 20,
    FLUSH_MS = 2000, /* how long the last replies may take to leave */
    FLUSH_TICK_MS = 10,
    LANE_FAST_THREADS = 2,
    LANE_SLOW_THREADS = 1,
    LANE_SLOW_NICE = 5,
    LANE_UPLOAD_THREADS = 1,
};

/* ---- stopping -------------------------------------------------------------------------------------------- */

static void on_flush(uv_timer_t *timer)
{
    dn_daemon *d = timer->data;
    if (dn_http_busy(d->http) == 0 || dn_now_ms() >= d->flush_until_ms)
        dn_loop_quit(d->loop);
}

/* Nothing is running any more, or --drain-ms have passed: end what is left and wait for the last bytes to leave. */
static void finish(dn_daemon *d)
{
    if (d->flush_until_ms)
        return;
    if (!d->drained)
        dn_log(DN_LOG_WARN, "drain_timeout", "work is left after %lld ms", (long long)d->config.drain_ms);
    d->flush_until_ms = dn_now_ms() + FLUSH_MS;
    dn_app_abort(d->app);
    uv_timer_start(&d->timer, on_flush, 0, FLUSH_TICK_MS);
}

static void on_drain_timeout(uv_timer_t *timer) { finish(timer->data); }

static void on_drained(void *arg)
{
    dn_daemon *d = arg;
    d->drained = true;
    dn_log(DN_LOG_INFO, "drained", "nothing is running");
    if (d->stopping)
        finish(d);
}

void dn_daemon_drain(dn_daemon *d)
{
    if (d->draining)
        return;
    d->draining = true;
    dn_log(DN_LOG_INFO, "draining", "new work is refused");
    dn_http_drain(d->http);
    dn_app_drain(d->app, on_drained, d);
}

static void on_signal(uv_signal_t *handle, int signum)
{
    dn_daemon *d = handle->data;
    if (d->stopping)
        _exit(128 + signum); /* the second one means now */
    d->stopping = true;
    dn_log(DN_LOG_INFO, "stopping", "signal %d", signum);
    uv_timer_start(&d->timer, on_drain_timeout, (uint64_t)d->config.drain_ms, 0);
    dn_daemon_drain(d);
    if (d->drained)
        finish(d);
}

/* ---- starting -------------------------------------------------------------------------------------------- */

/* The folder of bodies that come in; what a crash left there is removed. */
static int open_incoming(dn_daemon *d, dn_error *err)
{
    const char *state = d->config.state;
    char *path = state ? dn_arena_alloc(d->arena, strlen(state) + sizeof "/incoming") : NULL;
    int rc = dn_lane_new(&d->uploads, d->loop, "uploads", LANE_UPLOAD_THREADS, 0, err);
    if (rc || !state)
        return rc;
    if (!path)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory");
    sprintf(path, "%s/incoming", state);
    d->incoming = path;
    dn_tree_clear(path, NULL, NULL);
    return dn_tree_make(path, err);
}

static int room(void *arg, int64_t bytes, dn_http_error *err)
{
    dn_daemon *d = arg;
    return d->app ? dn_app_room(d->app, bytes, err) : 0;
}

static dn_http_options http_options_of(const dn_daemon *d)
{
    const dn_config *c = &d->config;
    return *dn_http_options(.loop = d->loop, .auth = d->auth, .listen = c->listen.v, .n_listen = c->listen.n,
                            .host_names = c->host_names.v, .n_host_names = c->host_names.n,
                            .cors_origins = c->cors_origin.v, .n_cors_origins = c->cors_origin.n,
                            .incoming = d->incoming, .uploads = d->uploads, .upload_max = (size_t)c->upload_bytes,
                            .room = room, .room_arg = (void *)(uintptr_t)d, .assets = dn_web_assets, .n_assets = dn_web_n_assets, .done = dn_ops_record,
                            .done_arg = (void *)(uintptr_t)d);
}

static int start_signals(dn_daemon *d, dn_error *err)
{
    uv_loop_t *loop = dn_loop_uv(d->loop);
    d->sigterm.data = d->sigint.data = d->timer.data = d;
    uv_timer_init(loop, &d->timer);
    uv_signal_init(loop, &d->sigterm);
    uv_signal_init(loop, &d->sigint);
    if (uv_signal_start(&d->sigterm, on_signal, SIGTERM) || uv_signal_start(&d->sigint, on_signal, SIGINT))
        return dn_fail(err, DN_E_IO, NULL, "signals cannot be caught");
    return 0;
}

static int start_threads(dn_daemon *d, dn_error *err)
{
    int rc = dn_lane_new(&d->fast, d->loop, "fast", LANE_FAST_THREADS, 0, err);
    if (!rc)
        rc = dn_lane_new(&d->slow, d->loop, "slow", LANE_SLOW_THREADS, LANE_SLOW_NICE, err);
    if (!rc)
        rc = dn_lane_new(&d->imports, d->loop, "imports", LANE_SLOW_THREADS, LANE_SLOW_NICE, err);
    if (!rc)
        rc = dn_lane_new(&d->files, d->loop, "files", LANE_SLOW_THREADS, LANE_SLOW_NICE, err);
    if (!rc && !(d->metrics = dn_metrics_new()))
        rc = dn_fail(err, DN_E_MEMORY, NULL, "no memory for the metrics");
    if (!rc)
        rc = dn_store_open(&d->store, d->loop, d->config.state, err);
    if (!rc)
        dn_store_measure(d->store, d->metrics);
    d->server = (dn_server){ .config = &d->config,
                             .metrics = d->metrics,
                             .loop = d->loop,
                             .fast = d->fast,
                             .slow = d->slow,
                             .imports = d->imports,
                             .files = d->files,
                             .store = d->store };
    if (!rc)
        rc = dn_app_start(&d->app, &d->server, err);
    return rc ? rc : dn_store_start(d->store, err);
}

static int start_http(dn_daemon *d, dn_error *err)
{
    size_t n;
    const dn_endpoint *endpoints = dn_app_endpoints(&n);
    dn_http_bind(d->http, endpoints, n, d->app);
    dn_http_bind(d->http, dn_ops_endpoints, dn_ops_n_endpoints, d);
    return dn_http_start(d->http, err);
}

static int load_auth(dn_daemon *d, dn_error *err)
{
    return d->config.token_file ? dn_auth_load(&d->auth, d->config.token_file, err) : 0;
}

/* Addresses are bound first: a second daemon on the same port fails before it has loaded a model. */
static int start(dn_daemon *d, dn_error *err)
{
    int rc = load_auth(d, err);
    if (!rc && d->config.state)
        rc = dn_state_open(&d->state_lock, d->config.state, err);
    if (!rc)
        rc = dn_loop_new(&d->loop, err);
    if (!rc)
        rc = start_signals(d, err);
    if (!rc)
        rc = open_incoming(d, err);
    dn_http_options options = http_options_of(d);
    if (!rc)
        rc = dn_http_new(&d->http, &options, err);
    if (!rc)
        rc = start_threads(d, err);
    return rc ? rc : start_http(d, err);
}

/* Any part may be missing, after a start that failed. */
static void stop(dn_daemon *d)
{
    dn_http_free(d->http); /* calls are told, so that nobody answers them any more */
    dn_lane *lanes[] = { d->fast, d->slow, d->uploads, d->imports, d->files };
    for (size_t i = 0; i < sizeof lanes / sizeof *lanes; i++) {
        if (lanes[i])
            dn_lane_stop(lanes[i]);
    }
    if (d->app)
        dn_app_stop(d->app);
    dn_store_free(d->store);
    for (size_t i = 0; i < sizeof lanes / sizeof *lanes; i++)
        dn_lane_free(lanes[i]);
    if (d->loop) {
        uv_close((uv_handle_t *)&d->sigterm, NULL);
        uv_close((uv_handle_t *)&d->sigint, NULL);
        uv_close((uv_handle_t *)&d->timer, NULL);
        dn_loop_settle(d->loop);
        dn_loop_free(d->loop);
    }
    dn_auth_free(d->auth);
    dn_metrics_free(d->metrics);
    dn_buf_fini(&d->openapi);
    if (d->state_lock)
        close(d->state_lock);
}

static void announce(const dn_daemon *d)
{
    if (d->config.insecure && !d->auth)
        dn_log(DN_LOG_WARN, "insecure", "no tokens: everyone who can connect may do everything");
    const char *address;
    for (int i = 0; (address = dn_http_address(d->http, i)); i++)
        dn_log_plain("listening on %s", address);
}

static int run(dn_daemon *d)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error like a full disk */
    dn_log_start(d->config.log_format == DN_LOG_JSON);
    dn_error err = { 0 };
    int rc = start(d, &err);
    if (rc) {
        dn_log(DN_LOG_ERROR, "start_failed", "%s", err.message);
    } else {
        announce(d);
        dn_loop_run(d->loop);
    }
    stop(d);
    if (!rc)
        dn_log(DN_LOG_INFO, "stopped", "bye");
    dn_log_stop();
    return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- the other actions ----------------------------------------------------------------------------------- */

static int check(dn_daemon *d)
{
    dn_error err = { 0 };
    int rc = load_auth(d, &err);
    if (!rc)
        rc = dn_app_check(&d->config, &err);
    dn_auth_free(d->auth);
    if (rc)
        fprintf(stderr, "denoised: %s\n", err.message);
    else
        puts("ok");
    return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int print(void (*write)(dn_buf *), const dn_config *config)
{
    dn_buf b;
    dn_buf_init(&b, CONFIG_BYTES_MAX);
    if (config)
        dn_config_print(config, &b);
    else
        write(&b);
    bool good = !b.failed && fwrite(b.data, 1, b.len, stdout) == b.len && fflush(stdout) == 0;
    dn_buf_fini(&b);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int backup(const dn_config *c)
{
    dn_error err = { 0 };
    int missing = 0;
    int rc = c->state ? dn_store_backup(c->state, c->backup, &missing, &err)
                      : dn_fail(&err, DN_E_INVALID, "state", "--backup needs --state: what to copy");
    if (rc)
        fprintf(stderr, "denoised: %s\n", err.message);
    else if (missing)
        printf("%s is complete but for %d files that were dropped meanwhile\n", c->backup, missing);
    else
        printf("%s is complete\n", c->backup);
    return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}

static void write_version(dn_buf *b) { dn_buf_puts(b, "denoised " DN_VERSION "\n"); }

static int act(dn_daemon *d, enum dn_config_action action)
{
    switch (action) {
    case DN_ACTION_PRINT_CONFIG:
        return print(NULL, &d->config);
    case DN_ACTION_CHECK:
        return check(d);
    case DN_ACTION_BACKUP:
        return backup(&d->config);
    case DN_ACTION_HELP:
        return print(dn_config_help, NULL);
    case DN_ACTION_VERSION:
        return print(write_version, NULL);
    case DN_ACTION_RUN:
        break;
    }
    return run(d);
}

int main(int argc, char **argv)
{
    static dn_daemon d;
    dn_http_error err = { 0 };
    enum dn_config_action action = DN_ACTION_RUN;
    d.arena = dn_arena_new(CONFIG_BYTES_MAX);
    if (!d.arena || dn_config_load(&d.config, &action, d.arena, argc, argv, environ, &err) != 0) {
        fprintf(stderr, "denoised: %s\n", d.arena ? err.message : "no memory");
        dn_arena_free(d.arena);
        return EXIT_USAGE;
    }
    int rc = act(&d, action);
    dn_arena_free(d.arena);
    return rc;
}
