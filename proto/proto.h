/* proto.h - what is said on the wire: requests, responses, events, routes.
 *
 * Plain structs, each described once by a table of fields (field.h). No sockets, no engine. Strings in a parsed request
 * live in its arena; strings in a response struct are borrowed from the caller while it is written. */
#ifndef DN_PROTO_H
#define DN_PROTO_H

#include "arena.h"
#include "buf.h"
#include "field.h"
#include "http_error.h"

struct json_t;

enum {
    DN_GENERATE_BODY_MAX = 64 << 10, /* bytes of a POST /generate body */
    DN_JSON_BODY_MAX = 256 << 10,    /* of any other JSON body */
    DN_JSON_DEPTH_MAX = 16,
    DN_JSON_VALUES_MAX = 4096,        /* values and keys in one body */
    DN_REQUEST_BYTES_MAX = 256 << 10, /* budget for the arena of one request */
    DN_N_MAX = 64,
    DN_STEPS_LIMIT = 1000,
    DN_NAME_LEN_MAX = 64,
    DN_SIDE_MAX = 4096 /* pixels */
};

/* Every message begins with `uint64_t has`. The bit of field i is DN_BIT(DN_GENERATE_STEPS) and so on. */
#define DN_BIT(i) (1ull << (i))

/* ---- JSON in ---------------------------------------------------------------------------------------------------- */

/* Parse one JSON object. Depth and number of values are counted before anything is allocated, so memory is bounded by
 * DN_JSON_VALUES_MAX whatever the text is. Duplicate keys, NUL, numbers that overflow are refused and err->param is the
 * path of the member. NULL on failure. */
struct json_t *dn_json_parse(const char *text, size_t len, dn_http_error *err);

/* ---- POST /generate --------------------------------------------------------------------------------------------- */

enum dn_format { DN_FORMAT_PNG, DN_FORMAT_NPY, DN_FORMAT_SAFETENSORS };
enum dn_layout { DN_LAYOUT_LIST, DN_LAYOUT_GRID };
enum dn_on_disconnect { DN_ON_DISCONNECT_CANCEL, DN_ON_DISCONNECT_CONTINUE };
enum dn_rng { DN_RNG_PHILOX, DN_RNG_TORCH };
enum dn_priority { DN_PRIORITY_LOW, DN_PRIORITY_NORMAL, DN_PRIORITY_HIGH };
enum dn_cfg_schedule { DN_CFG_CONSTANT, DN_CFG_LINEAR, DN_CFG_COSINE };

enum { DN_CFG_SCALE, DN_CFG_INTERVAL, DN_CFG_RESCALE, DN_CFG_SCHEDULE, DN_CFG_FIELDS };
typedef struct dn_cfg {
    uint64_t has;
    double scale;       /* 1: no guidance */
    double interval[2]; /* [a,b) in fractions of the run ({0,1}) */
    double rescale;     /* 0..1 (0) */
    int schedule;       /* enum dn_cfg_schedule */
} dn_cfg;

enum { DN_GUIDANCE_CFG, DN_GUIDANCE_FIELDS };
typedef struct dn_guidance_in {
    uint64_t has;
    dn_cfg cfg; /* {1, {0,1}, 0, constant} when not given */
} dn_guidance_in;

enum { DN_OUTPUT_FORMAT, DN_OUTPUT_LAYOUT, DN_OUTPUT_TRAJECTORY_EVERY, DN_OUTPUT_FIELDS };
typedef struct dn_output {
    uint64_t has;
    int format;               /* enum dn_format */
    int layout;               /* enum dn_layout; grid only with png */
    int64_t trajectory_every; /* 0: the only value of this version */
} dn_output;

enum {
    DN_GENERATE_MODEL,
    DN_GENERATE_TASK,
    DN_GENERATE_N,
    DN_GENERATE_SEED,
    DN_GENERATE_CLASS_LABEL,
    DN_GENERATE_SAMPLER,
    DN_GENERATE_SCHEDULER,
    DN_GENERATE_STEPS,
    DN_GENERATE_TIMESTEPS,
    DN_GENERATE_ETA,
    DN_GENERATE_TEMPERATURE,
    DN_GENERATE_GUIDANCE,
    DN_GENERATE_HEIGHT,
    DN_GENERATE_WIDTH,
    DN_GENERATE_OUTPUT,
    DN_GENERATE_STREAM,
    DN_GENERATE_PREVIEW_EVERY,
    DN_GENERATE_ON_DISCONNECT,
    DN_GENERATE_RNG,
    DN_GENERATE_PRIORITY,
    DN_GENERATE_DEADLINE_MS,
    DN_GENERATE_FIELDS
};
typedef struct dn_generate_request {
    uint64_t has;
    const char *model;              /* "name" or "name@version"; NULL: the only one loaded */
    int task;                       /* 0: sample, the only task of this version */
    int64_t n;                      /* 1..64 (1) */
    int64_t seed;                   /* 0..2^53-1; sample k has seed + k; without its bit: to be drawn */
    dn_labels class_label;          /* n = 0: the null label; else 1 for all samples (list false), or one for each */
    const char *sampler;            /* one of DN_SAMPLERS' names; NULL: the checkpoint's own */
    const struct json_t *scheduler; /* object of diffusers' config keys, for dn_scheduler_config_overlay; NULL */
    int64_t steps;                  /* 1..1000 (50); the length of `timesteps` where those are given */
    dn_nums timesteps;              /* strictly descending; n = 0: by the schedule's spacing */
    double eta;                     /* 0..1 (0) */
    double temperature;             /* 0..2 (1) */
    dn_guidance_in guidance;
    int64_t height, width; /* without their bits 0: the model's */
    dn_output output;
    bool stream;
    int64_t preview_every; /* sampler steps between previews; 0: none */
    int on_disconnect;     /* enum dn_on_disconnect */
    int rng;               /* enum dn_rng */
    int priority;          /* enum dn_priority (normal) */
    int64_t deadline_ms;   /* without its bit 0: none */
} dn_generate_request;

extern const dn_fields dn_generate_fields;   /* indexed by DN_GENERATE_... */
extern const char *const dn_sampler_names[]; /* NULL-terminated */

/* Parse and validate. `out` is the caller's; what it points to lives in the arena and in `json` (of which the arena
 * keeps a reference). Returns 0 or a DN_H code with *err naming the field; *out is untouched on failure. Fields that
 * need the model (class labels, sizes, scheduler keys, eta's and temperature's fit to the sampler) are the caller's to
 * check. */
int dn_generate_parse(dn_generate_request *out, dn_arena *a, struct json_t *json, dn_http_error *err);
/* A model's "defaults" (denoised.json) under a request: a new object in which the request's members win, objects are
 * merged member by member, and a default that the request contradicts (steps and timesteps, a class_label list with
 * another n) is dropped. `defaults` may be NULL. NULL only when out of memory. Parse what comes out of it; check a
 * model's defaults by merging them under {} when the model is loaded. */
struct json_t *dn_generate_merge(const struct json_t *defaults, struct json_t *request);
/* A new object: the request with every default of the table written out, so that it means the same to a later version.
 * NULL only when out of memory. */
struct json_t *dn_generate_complete(const struct json_t *request);

/* ---- responses -------------------------------------------------------------------------------------------------- */

/* Writing: fill the struct, set `has` in it and in every struct inside it (DN_HAS_ALL: NULL strings, NULL bytes and
 * objects without a bit are left out anyway), call dn_fields_write(&dn_xxx_fields, &x, b), or dn_event_write for an
 * event. Lists (dn_items) point to arrays of the element struct. */
#define DN_HAS_ALL (~0ull)

typedef struct dn_timing {
    uint64_t has;
    double queue_ms;
    int64_t steps, row_steps;
    double batch_rows_mean; /* rows of the batches that this request's rows ran in, mean over its rows */
    double device_ms, decode_ms, encode_ms;
} dn_timing;

typedef struct dn_image {
    uint64_t has;
    int64_t index, seed;      /* for a grid: index 0 and the seed of sample 0 */
    const char *content_type; /* "image/png" */
    const char *sha256;       /* hex, of the float32 result; NULL for a grid */
    dn_bytes b64;             /* the encoded bytes; or */
    const char *url;          /* asynchronous: where to get them */
} dn_image;

typedef struct dn_result {
    uint64_t has;
    const char *id, *model, *numerics; /* model: "name@version" */
    int64_t seed;
    dn_items images; /* dn_image */
    dn_timing timing;
} dn_result;

typedef struct dn_event_queued {
    uint64_t has;
    const char *id;
    int64_t seed, position; /* requests ahead of it */
    double eta_ms;
} dn_event_queued;

typedef struct dn_event_progress {
    uint64_t has;
    int64_t step, steps; /* sampler steps, of the slowest sample */
    double eta_ms;
} dn_event_progress;

typedef struct dn_event_preview {
    uint64_t has;
    int64_t index, step;
    dn_bytes b64; /* PNG */
} dn_event_preview;

typedef struct dn_event_done {
    uint64_t has;
    const char *model, *numerics;
    int64_t seed;
    dn_timing timing;
} dn_event_done;

enum dn_request_state {
    DN_STATE_QUEUED,
    DN_STATE_RUNNING,
    DN_STATE_SUCCEEDED,
    DN_STATE_FAILED,
    DN_STATE_CANCELLED,
    DN_STATE_COUNT
};
extern const char *const dn_request_states[]; /* names, NULL-terminated */

typedef struct dn_error_body {
    uint64_t has;
    const char *type, *code, *param, *message; /* param NULL: null */
} dn_error_body;

/* GET /requests/{id}; also the 202 of `Prefer: respond-async` and the answer to DELETE. */
typedef struct dn_request_info {
    uint64_t has; /* bits: DN_REQUEST_... */
    const char *id;
    int state; /* enum dn_request_state */
    const char *model, *numerics, *numerics_before;
    int64_t seed, n, step, steps, position;
    double eta_ms;
    double created_at, finished_at; /* Unix seconds */
    dn_items images;                /* dn_image, with url; when succeeded */
    dn_timing timing;
    dn_error_body error; /* when failed */
} dn_request_info;
enum {
    DN_REQUEST_ID,
    DN_REQUEST_STATE,
    DN_REQUEST_MODEL,
    DN_REQUEST_NUMERICS,
    DN_REQUEST_NUMERICS_BEFORE,
    DN_REQUEST_SEED,
    DN_REQUEST_N,
    DN_REQUEST_STEP,
    DN_REQUEST_STEPS,
    DN_REQUEST_POSITION,
    DN_REQUEST_ETA_MS,
    DN_REQUEST_CREATED_AT,
    DN_REQUEST_FINISHED_AT,
    DN_REQUEST_IMAGES,
    DN_REQUEST_TIMING,
    DN_REQUEST_ERROR,
    DN_REQUEST_FIELDS
};

typedef struct dn_request_list {
    uint64_t has;
    dn_items requests; /* dn_request_info, newest first */
    const char *next;  /* `after` of the next page; NULL: this is the last (written as null) */
} dn_request_list;

/* GET /requests?state=&limit=&after= */
typedef struct dn_requests_query {
    uint64_t has;
    int state;     /* only with its bit DN_REQUESTS_STATE */
    int64_t limit; /* 1..1000 (100) */
    const char *after;
} dn_requests_query;
enum { DN_REQUESTS_STATE, DN_REQUESTS_LIMIT, DN_REQUESTS_AFTER };

enum dn_model_state { DN_MODEL_AVAILABLE, DN_MODEL_LOADING, DN_MODEL_LOADED, DN_MODEL_UNLOADING, DN_MODEL_FAILED };

/* What has been asked to become a version and is not one: it is being made (loading), or was refused. */
typedef struct dn_attempt_card {
    uint64_t has; /* without the bit DN_ATTEMPT_ERROR: none */
    int state;    /* enum dn_model_state: loading or failed */
    const char *source;
    double created_at;
    dn_error_body error;
} dn_attempt_card;
enum { DN_ATTEMPT_STATE, DN_ATTEMPT_SOURCE, DN_ATTEMPT_CREATED_AT, DN_ATTEMPT_ERROR };

/* GET /models/{name}, and each element of GET /models. What only a loaded model knows is left out of `has` until then.
 */
typedef struct dn_model_card {
    uint64_t has; /* bits: DN_CARD_... */
    const char *name;
    int state; /* enum dn_model_state */
    const char *description, *architecture, *pipeline;
    int64_t parameters, bytes;
    int64_t height, width, channels;
    dn_items sizes; /* dn_size: further sizes that are allowed */
    int64_t n_classes;
    dn_strs labels;
    const char *sampler; /* the checkpoint's own, by our name */
    double ms_per_row;   /* measured */
    dn_items versions;   /* dn_model_version */
    const char *numerics;
    const struct json_t *defaults;
    const char *error; /* why it is failed */
    dn_attempt_card attempt;
} dn_model_card;
enum {
    DN_CARD_NAME,
    DN_CARD_STATE,
    DN_CARD_DESCRIPTION,
    DN_CARD_ARCHITECTURE,
    DN_CARD_PIPELINE,
    DN_CARD_PARAMETERS,
    DN_CARD_BYTES,
    DN_CARD_HEIGHT,
    DN_CARD_WIDTH,
    DN_CARD_CHANNELS,
    DN_CARD_SIZES,
    DN_CARD_N_CLASSES,
    DN_CARD_LABELS,
    DN_CARD_SAMPLER,
    DN_CARD_MS_PER_ROW,
    DN_CARD_VERSIONS,
    DN_CARD_NUMERICS,
    DN_CARD_DEFAULTS,
    DN_CARD_ERROR,
    DN_CARD_ATTEMPT,
    DN_CARD_FIELDS
};
typedef struct dn_size {
    uint64_t has;
    int64_t height, width;
} dn_size;
typedef struct dn_model_version {
    uint64_t has;
    int64_t version;
    bool live;
    const char *hash; /* sha256 of the weights */
} dn_model_version;
typedef struct dn_model_list {
    uint64_t has;
    dn_items models; /* dn_model_card */
} dn_model_list;

/* GET /status, and its event `status` twice a second. */
typedef struct dn_status_share {
    uint64_t has;
    const char *id; /* of a request */
    int64_t rows;   /* that it had in the batch */
} dn_status_share;
typedef struct dn_status_device {
    uint64_t has;
    const char *name, *backend;
    int64_t threads, bytes;
    int64_t steps, row_steps; /* since the start */
    const char *model;        /* of the last step; NULL before the first */
    int64_t rows;             /* of the last step */
    double step_ms;           /* of the last step */
    dn_items shares;          /* dn_status_share, of the last step */
} dn_status_device;
typedef struct dn_status_memory {
    uint64_t has;
    int64_t limit, weights, forms, arenas, slots, results;
} dn_status_memory;
typedef struct dn_status {
    uint64_t has;
    const char *version;
    double uptime_s;
    bool draining;
    int64_t running, waiting;
    double queue_ms;   /* priced work that has not run */
    dn_items devices;  /* dn_status_device */
    dn_items requests; /* dn_request_info: running and queued, in the order of the queue; bounded by the caller */
    dn_items models;   /* dn_model_card (name, state, bytes, ms_per_row) */
    dn_status_memory memory;
} dn_status;

typedef struct dn_health {
    uint64_t has;
    const char *status; /* "ok", "ready", "loading", "draining" */
} dn_health;

extern const dn_fields dn_timing_fields, dn_image_fields, dn_result_fields;
extern const dn_fields dn_event_queued_fields, dn_event_progress_fields, dn_event_preview_fields, dn_event_done_fields;
extern const dn_fields dn_error_fields, dn_request_info_fields, dn_request_list_fields, dn_requests_query_fields;
extern const dn_fields dn_model_card_fields, dn_model_list_fields, dn_status_fields, dn_health_fields;

/* One server-sent event: "id: 7\nevent: progress\ndata: {...}\n\n". The data is one line. */
void dn_event_write(dn_buf *b, int64_t id, const char *event, const dn_fields *t, const void *data);
/* The same with an id that is no number: "2.1500". */
void dn_event_write_id(dn_buf *b, const char *id, const char *event, const dn_fields *t, const void *data);
/* The event `error`, whose data is the error object of http_error.h. */
void dn_event_error_write(dn_buf *b, int64_t id, const dn_http_error *e);

/* ---- routes ----------------------------------------------------------------------------------------------------- */

/* What uploads may call themselves; what they are is found out by looking, in a multipart body at its files. */
#define DN_UPLOAD_TYPES                                                                                                \
    "application/octet-stream application/x-tar application/zip application/zstd application/x-zstd application/gzip " \
    "application/x-gzip application/x-npy application/x-safetensors multipart/form-data"
#define DN_UPLOAD_BODY_MAX ((size_t)16 << 30) /* unless --upload-bytes says otherwise */

/* clang-format off */
/* route, method, path ({x} matches one segment), largest body, what it takes, what it gives, meaning */
#define DN_ROUTES(X)                                                                                                   \
    X(GENERATE, "POST", "/generate", DN_GENERATE_BODY_MAX, "application/json", "application/json", "Make pictures")    \
    X(DENOISE, "POST", "/denoise", 64 << 20, "application/x-safetensors", "application/x-safetensors",                 \
      "One evaluation of rows that the caller brings")                                                                 \
    X(REQUESTS, "GET", "/requests", 0, NULL, "application/json", "Your requests, newest first")                        \
    X(REQUEST, "GET", "/requests/{id}", 0, NULL, "application/json", "One request")                                    \
    X(REQUEST_CANCEL, "DELETE", "/requests/{id}", 0, NULL, "application/json", "Cancel within one step")               \
    X(REQUEST_IMAGE, "GET", "/requests/{id}/images/{k}", 0, NULL, "image/png", "One result of an asynchronous request")\
    X(REQUEST_EVENTS, "GET", "/requests/{id}/events", 0, NULL, "text/event-stream",                                    \
      "The request's events; resumes with Last-Event-ID")                                                              \
    X(MODELS, "GET", "/models", 0, NULL, "application/json", "All known models")                                       \
    X(MODEL, "GET", "/models/{name}", 0, NULL, "application/json", "One model")                                        \
    X(MODEL_LOAD, "POST", "/models/{name}/load", DN_JSON_BODY_MAX, NULL, "application/json", "Load it")                \
    X(MODEL_UNLOAD, "POST", "/models/{name}/unload", DN_JSON_BODY_MAX, NULL, "application/json",                       \
      "Refuse new requests, let admitted ones finish, unload")                                                         \
    X(MODEL_PUT, "PUT", "/models/{name}", DN_UPLOAD_BODY_MAX, DN_UPLOAD_TYPES, "application/json",                     \
      "Add a version: tar, tar.zst or zip of a diffusers folder, or a .safetensors file for the live one's config")    \
    X(MODEL_DELETE, "DELETE", "/models/{name}", 0, NULL, "application/json", "Delete the version name@version")        \
    X(MODEL_ALIAS, "POST", "/models/{name}/alias", DN_JSON_BODY_MAX, "application/json", "application/json",           \
      "Make a version live")                                                                                           \
    X(MODEL_SAVE, "POST", "/models/{name}/save", DN_JSON_BODY_MAX, "application/json", "application/json",             \
      "A durable copy of the live version")                                                                            \
    X(MODEL_CONFIG, "GET", "/models/{name}/config", 0, NULL, "application/json",                                       \
      "What a job for another network like it begins with")                                                            \
    X(MODEL_CHECKPOINT, "GET", "/models/{name}/checkpoint", 0, NULL, "application/zstd", "The version as tar.zst")     \
    X(JOBS, "GET", "/jobs", 0, NULL, "application/json", "Your training jobs, newest first")                            \
    X(JOBS_SUBMIT, "POST", "/jobs", DN_JSON_BODY_MAX, "application/json", "application/json", "Submit a training job") \
    X(JOB, "GET", "/jobs/{id}", 0, NULL, "application/json", "One job")                                                \
    X(JOB_CHANGE, "PATCH", "/jobs/{id}", DN_JSON_BODY_MAX, "application/json", "application/json",                     \
      "Change train_share or priority")                                                                                \
    X(JOB_PAUSE, "POST", "/jobs/{id}/pause", DN_JSON_BODY_MAX, NULL, "application/json",                               \
      "End the optimizer step, save, free the device")                                                                 \
    X(JOB_RESUME, "POST", "/jobs/{id}/resume", DN_JSON_BODY_MAX, NULL, "application/json", "Go on with a paused job")  \
    X(JOB_CANCEL, "POST", "/jobs/{id}/cancel", DN_JSON_BODY_MAX, NULL, "application/json", "End it for good")          \
    X(JOB_PUBLISH, "POST", "/jobs/{id}/publish", DN_JSON_BODY_MAX, "application/json", "application/json",             \
      "Make a live version of a model of it")                                                                          \
    X(JOB_CHECKPOINTS, "GET", "/jobs/{id}/checkpoints", 0, NULL, "application/json", "Its saved states")               \
    X(JOB_SAVE, "POST", "/jobs/{id}/checkpoints", DN_JSON_BODY_MAX, NULL, "application/json", "Save now")              \
    X(JOB_SAMPLES, "GET", "/jobs/{id}/samples", 0, NULL, "application/json", "Its previews, newest first")             \
    X(JOB_SAMPLE, "GET", "/jobs/{id}/samples/{k}", 0, NULL, "image/png", "One preview")                                \
    X(JOB_METRICS, "GET", "/jobs/{id}/metrics.csv", 0, NULL, "text/csv", "A line for each step and evaluation")        \
    X(JOB_EVENTS, "GET", "/jobs/{id}/events", 0, NULL, "text/event-stream",                                            \
      "Its events; goes on after Last-Event-ID")                                                                       \
    X(DATASETS, "GET", "/datasets", 0, NULL, "application/json", "Your data sets, newest first")                        \
    X(DATASET, "GET", "/datasets/{name}", 0, NULL, "application/json", "One data set: name (the newest) or name@hash") \
    X(DATASET_PUT, "PUT", "/datasets/{name}", DN_UPLOAD_BODY_MAX, DN_UPLOAD_TYPES, "application/json",                 \
      "Upload pictures, IDX, npy or safetensors")                                                                      \
    X(DATASET_DELETE, "DELETE", "/datasets/{name}", 0, NULL, "application/json",                                       \
      "Delete it: name (the newest; an import that is under way is stopped) or name@hash")                             \
    X(STATUS, "GET", "/status", 0, NULL, "application/json", "Devices, queue, models; an event stream twice a second") \
    X(METRICS, "GET", "/metrics", 0, NULL, "text/plain", "Prometheus metrics")                                         \
    X(HEALTHZ, "GET", "/healthz", 0, NULL, "application/json", "Alive")                                                \
    X(READYZ, "GET", "/readyz", 0, NULL, "application/json", "Ready: the start set is loaded, not draining")           \
    X(OPENAPI, "GET", "/openapi.json", 0, NULL, "application/json", "This description")                                \
    X(DRAIN, "POST", "/admin/drain", DN_JSON_BODY_MAX, NULL, "application/json", "Stop taking work")                   \
    X(PAGE, "GET", "/", 0, NULL, "text/html", "The page")
/* clang-format on */

enum dn_route_id {
#define X(id, ...) DN_ROUTE_##id,
    DN_ROUTES(X)
#undef X
        DN_ROUTE_COUNT
};

typedef struct dn_route {
    const char *method, *path;
    size_t body_max;
    const char *takes, *gives; /* media types; takes NULL: no body is needed */
    const char *summary;
} dn_route;
extern const dn_route dn_routes[DN_ROUTE_COUNT];

enum { DN_ROUTE_ARGS_MAX = 2, DN_ROUTE_ARG_LEN_MAX = 136 };
typedef struct dn_route_hit {
    int route; /* enum dn_route_id */
    int n_args;
    char arg[DN_ROUTE_ARGS_MAX][DN_ROUTE_ARG_LEN_MAX + 1]; /* what {..} matched */
    char allow[64];                                        /* for 405: "GET, DELETE" */
} dn_route_hit;

/* Names of models, datasets and jobs: [a-z0-9][a-z0-9._-]{0,63}. */
bool dn_name_ok(const char *name);

/* Find the route of a method and a path (decoded, without the query). HEAD counts as GET. Returns 0, DN_H_METHOD
 * (hit->allow is set), DN_H_NOT_IMPLEMENTED (an endpoint of a later version), DN_H_NOT_FOUND; *err says why. */
int dn_route_find(dn_route_hit *hit, const char *method, const char *path, dn_http_error *err);

/* Values from a query string, name by name: dn_requests_query and its like. Call once per parameter; `value` NULL
 * counts as "". `out` must have been filled by dn_query_init. Returns 0 or a DN_H code. */
int dn_query_init(const dn_fields *t, void *out, dn_arena *a, dn_http_error *err);
int dn_query_set(const dn_fields *t, void *out, dn_arena *a, const char *name, const char *value, dn_http_error *err);

/* POST /denoise?model=, POST /models/{name}/load?wait=, /unload?force=&wait= */
typedef struct dn_denoise_query {
    uint64_t has;
    const char *model;
} dn_denoise_query;
typedef struct dn_model_query {
    uint64_t has;
    bool wait;  /* block until it is done */
    bool force; /* unload: cancel admitted requests */
} dn_model_query;
extern const dn_fields dn_denoise_query_fields, dn_load_query_fields,
    dn_unload_query_fields; /* both into dn_model_query */

/* The OpenAPI 3.1 document of this build; deterministic. */
void dn_openapi_write(dn_buf *b, const char *version);

/* ---- the CLI ---------------------------------------------------------------------------------------------------- */

/* Map one flag of the command line ("--steps", "-n", "--optimizer-lr", "--label=sandal") into the JSON request that the
 * table describes. Returns how many of argv[0], argv[1] were used (1 or 2), 0 when it is no flag of the table, -1 with
 * *err on a bad value. */
int dn_cli_flag(const dn_fields *t, struct json_t *request, int argc, char *const *argv, dn_http_error *err);
/* The help text of those flags, one or more lines each. */
void dn_cli_help(const dn_fields *t, dn_buf *b);

#endif
