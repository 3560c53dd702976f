/* metric_set.h - the daemon's metrics: one table, fixed arrays, Prometheus text.
 *
 * Every series has its place from the start: label values come from bounded sets that are registered up front (models,
 * routes, HTTP codes), so no client can make memory grow. Recording is lock-free (C11 atomics) and safe from any
 * thread; so is registering a value, under a lock. */
#ifndef DN_PROTO_METRIC_SET_H
#define DN_PROTO_METRIC_SET_H

#include "buf.h"

/* sets of label values: name of the label, most values (the last is kept for "other") */
#define DN_LABEL_SETS(X)      \
    X(NONE, "", 1)            \
    X(MODEL, "model", 64)     \
    X(ROUTE, "route", 64)     \
    X(CODE, "code", 32)       \
    X(REASON, "reason", 8)    \
    X(ROWS, "rows", 9)        \
    X(DEVICE_KIND, "kind", 3) \
    X(MEMORY_KIND, "kind", 8) \
    X(VERSION, "version", 16)   \
    X(JOB, "job", 17)

enum dn_label_set {
#define X(id, label, max) DN_L_##id,
    DN_LABEL_SETS(X)
#undef X
        DN_L_COUNT
};

enum dn_metric_type { DN_COUNTER, DN_GAUGE, DN_HISTOGRAM };

/* clang-format off */
/* metric, type, name, up to three labels, buckets of a histogram, unit, help */
#define DN_METRICS(X)                                                                                                  \
    X(REQUESTS, COUNTER, "denoised_requests_total", MODEL, ROUTE, CODE, NONE, "", "Requests answered, by HTTP status.")\
    X(REQUESTS_FAILED, COUNTER, "denoised_requests_failed_total", MODEL, REASON, NONE, NONE, "", "Generate and denoise requests that did not succeed.") \
    X(REQUESTS_RUNNING, GAUGE, "denoised_requests_running", NONE, NONE, NONE, NONE, "", "Requests with a sample on a device.") \
    X(REQUESTS_WAITING, GAUGE, "denoised_requests_waiting", NONE, NONE, NONE, NONE, "", "Requests in the scheduler's queue that have not started.") \
    X(REQUEST_QUEUE_SECONDS, HISTOGRAM, "denoised_request_queue_seconds", NONE, NONE, NONE, SECONDS, "s", "From admission to the first step.") \
    X(REQUEST_DURATION_SECONDS, HISTOGRAM, "denoised_request_duration_seconds", NONE, NONE, NONE, SECONDS, "s", "From admission to the end.") \
    X(TIME_TO_FIRST_PREVIEW_SECONDS, HISTOGRAM, "denoised_time_to_first_preview_seconds", NONE, NONE, NONE, SECONDS, "s", "From admission to the first preview.") \
    X(STEPS, COUNTER, "denoised_steps_total", NONE, NONE, NONE, NONE, "", "Batches run.") \
    X(ROW_STEPS, COUNTER, "denoised_row_steps_total", NONE, NONE, NONE, NONE, "", "Rows run, summed over batches.") \
    X(BATCH_ROWS, HISTOGRAM, "denoised_batch_rows", NONE, NONE, NONE, ROWS, "", "Rows of a batch.") \
    X(STEP_SECONDS, HISTOGRAM, "denoised_step_seconds", ROWS, NONE, NONE, SECONDS, "s", "Time of one batch, by its rows (upper bound of the bucket).") \
    X(DECODE_SECONDS, HISTOGRAM, "denoised_decode_seconds", NONE, NONE, NONE, SECONDS, "s", "From the last step of a sample to its result on the host.") \
    X(ENCODE_SECONDS, HISTOGRAM, "denoised_encode_seconds", NONE, NONE, NONE, SECONDS, "s", "Encoding one result (PNG, npy, safetensors).") \
    X(IMAGES, COUNTER, "denoised_images_total", NONE, NONE, NONE, NONE, "", "Samples finished.") \
    X(DEVICE_SECONDS, COUNTER, "denoised_device_seconds_total", DEVICE_KIND, NONE, NONE, NONE, "s", "Time that devices were busy.") \
    X(MEMORY_BYTES, GAUGE, "denoised_memory_bytes", MEMORY_KIND, NONE, NONE, NONE, "B", "Memory held, by what for.") \
    X(TRAIN_STEPS, COUNTER, "denoised_train_steps_total", JOB, NONE, NONE, NONE, "", "Optimizer steps of a job; the series exist while it runs.") \
    X(TRAIN_LOSS, GAUGE, "denoised_train_loss", JOB, NONE, NONE, NONE, "", "Of its last optimizer step.") \
    X(TRAIN_PREEMPTED, COUNTER, "denoised_train_preempted_seconds_total", NONE, NONE, NONE, NONE, "s", "Device time of samples while a training job could have run.") \
    X(MODEL_LOADED, GAUGE, "denoised_model_loaded", MODEL, VERSION, NONE, NONE, "", "1 while the model version is loaded.") \
    X(STORE_COMMIT_SECONDS, HISTOGRAM, "denoised_store_commit_seconds", NONE, NONE, NONE, SECONDS, "s", "Time of one commit of the store: of all that had queued up and writes.") \
    X(STORE_OPERATIONS, COUNTER, "denoised_store_operations_total", NONE, NONE, NONE, NONE, "", "Operations done, those that only read among them.") \
    X(STORE_FAILED, COUNTER, "denoised_store_failed_total", NONE, NONE, NONE, NONE, "", "Operations of which nothing was kept.") \
    X(STORE_WAITING, GAUGE, "denoised_store_waiting", NONE, NONE, NONE, NONE, "", "Operations that are not committed yet.") \
    X(DISK_FREE, GAUGE, "denoised_disk_free_bytes", NONE, NONE, NONE, NONE, "B", "Free where the state is; 0 without --state.") \
    X(DISK_RESERVE, GAUGE, "denoised_disk_reserve_bytes", NONE, NONE, NONE, NONE, "B", "Below so many free bytes nothing more is taken in; 0 without --state.")
/* clang-format on */

enum dn_metric {
#define X(id, ...) DN_M_##id,
    DN_METRICS(X)
#undef X
        DN_M_COUNT
};

/* DN_L_REASON, DN_L_DEVICE_KIND, DN_L_MEMORY_KIND: fixed, registered by dn_metrics_new in this order */
enum dn_reason {
    DN_REASON_REJECTED,
    DN_REASON_CANCELLED,
    DN_REASON_DEADLINE,
    DN_REASON_MEMORY,
    DN_REASON_NON_FINITE,
    DN_REASON_BACKEND,
    DN_REASON_OTHER
};
enum dn_device_kind { DN_KIND_INFER, DN_KIND_TRAIN };
enum dn_memory_kind {
    DN_MEMORY_LIMIT,
    DN_MEMORY_WEIGHTS,
    DN_MEMORY_FORMS,
    DN_MEMORY_ARENAS,
    DN_MEMORY_SLOTS,
    DN_MEMORY_RESULTS,
    DN_MEMORY_TRAINING
};

typedef struct dn_metrics dn_metrics;

/* NULL when out of memory. The paths of the routes are registered, so are the fixed sets, and the model "" as index 0
 * for what belongs to no model. */
dn_metrics *dn_metrics_new(void);
void dn_metrics_free(dn_metrics *m);
/* The index of a label value, registered if new: give it names that the daemon knows, not a client's words. A full set,
 * or a value longer than 64 bytes, gives the index of "other". */
int dn_metrics_label(dn_metrics *m, enum dn_label_set set, const char *value);
/* From now on index i of the set is this value, and its series begin anew; "" or NULL: they are not written until they are used
 * again. On the thread that writes. */
void dn_metrics_reuse(dn_metrics *m, enum dn_label_set set, int i, const char *value);
/* The index of a batch's `rows` label: "1" "2" "4" "8" "16" "32" "64" "+Inf". */
int dn_metrics_rows(int rows);
/* Labels are indices, in the order of the table; 0 where the metric has none. An index out of range is a bug (assert).
 */
void dn_metrics_add(dn_metrics *m, enum dn_metric id, int l0, int l1, int l2, double v); /* counters (v >= 0), gauges */
void dn_metrics_set(dn_metrics *m, enum dn_metric id, int l0, int l1, double v);         /* gauges */
void dn_metrics_observe(dn_metrics *m, enum dn_metric id, int l0, double v);             /* histograms */
/* Prometheus text format 0.0.4. */
void dn_metrics_write(const dn_metrics *m, dn_buf *b);
void dn_metrics_markdown(dn_buf *b);

#endif
