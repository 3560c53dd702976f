/* openapi.c - the OpenAPI 3.1 document: paths from the table of routes, schemas from the tables of fields. */
#include "job.h"
#include "proto.h"

#include <ctype.h>
#include <string.h>

enum { SCHEMAS_MAX = 64, STATUSES_MAX = 40 };

/* What a route adds to its row in DN_ROUTES: the query, the JSON that it takes and gives, further media types, the
 * refusals that can happen there besides those of every route, and request headers that change the answer. */
struct operation {
    const dn_fields *query, *body, *answer, *accepted;
    const char *also_gives[4];
    int errors[12];
    const struct header *headers; /* up to one without a name */
    const struct event *events;   /* of text/event-stream, up to one without a name */
};

struct header {
    const char *name, *help;
};

/* A server-sent event: its name, and the schema of its data. */
struct event {
    const char *name;
    const dn_fields *data; /* NULL: ErrorBody */
};

/* clang-format off */
static const struct header generate_headers[] = {
    { "Prefer", "respond-async: answer 202 at once; the request runs on whoever disconnects." },
    { "Idempotency-Key", "For 24 hours the same key with the same body gets the same answer, and nothing is done twice." },
    { "Accept", "The envelope: JSON, text/event-stream, or the bare body, which must agree with output.format." },
    { NULL, NULL },
};
static const struct header denoise_headers[] = {
    { "Idempotency-Key", "For 24 hours the same key with the same body and query gets the same answer, and nothing is done twice." },
    { NULL, NULL },
};
static const struct event request_events[] = {
    { "queued", &dn_event_queued_fields }, { "progress", &dn_event_progress_fields }, { "preview", &dn_event_preview_fields },
    { "image", &dn_image_fields }, { "done", &dn_event_done_fields }, { "error", NULL }, { NULL, NULL },
};
static const struct event status_events[] = { { "status", &dn_status_fields }, { NULL, NULL } };
static const struct header events_headers[] = { { "Last-Event-ID", "Go on after this event." }, { NULL, NULL } };

static const struct header upload_headers[] = {
    { "X-Content-SHA256", "Checked if given: 64 hexadecimal digits." }, { NULL, NULL } };

static const struct operation operations[DN_ROUTE_COUNT] = {
    [DN_ROUTE_GENERATE] = { .body = &dn_generate_fields, .answer = &dn_result_fields, .accepted = &dn_request_info_fields,
        .also_gives = { "text/event-stream", "image/png", "application/x-npy", "application/x-safetensors" },
        .errors = { DN_H_MODEL_NOT_FOUND, DN_H_NOT_ACCEPTABLE, DN_H_CANCELLED, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_IMPOSSIBLE,
                    DN_H_QUEUE_FULL, DN_H_INTERNAL, DN_H_DRAINING, DN_H_DISK },
        .headers = generate_headers, .events = request_events },
    [DN_ROUTE_DENOISE] = { .query = &dn_denoise_query_fields,
        .errors = { DN_H_MODEL_NOT_FOUND, DN_H_NOT_ACCEPTABLE, DN_H_CANCELLED, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_IMPOSSIBLE,
                    DN_H_QUEUE_FULL, DN_H_INTERNAL, DN_H_DRAINING },
        .headers = denoise_headers },
    [DN_ROUTE_REQUESTS] = { .query = &dn_requests_query_fields, .answer = &dn_request_list_fields },
    [DN_ROUTE_REQUEST] = { .answer = &dn_request_info_fields, .errors = { DN_H_NOT_FOUND, DN_H_EXPIRED } },
    [DN_ROUTE_REQUEST_CANCEL] = { .answer = &dn_request_info_fields, .errors = { DN_H_NOT_FOUND, DN_H_EXPIRED } },
    [DN_ROUTE_REQUEST_IMAGE] = { .also_gives = { "application/x-npy", "application/x-safetensors" },
        .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT, DN_H_EXPIRED } },
    [DN_ROUTE_REQUEST_EVENTS] = { .errors = { DN_H_NOT_FOUND, DN_H_EXPIRED }, .headers = events_headers,
        .events = request_events },
    [DN_ROUTE_MODELS] = { .answer = &dn_model_list_fields },
    [DN_ROUTE_MODEL] = { .answer = &dn_model_card_fields, .errors = { DN_H_MODEL_NOT_FOUND } },
    [DN_ROUTE_MODEL_LOAD] = { .query = &dn_load_query_fields, .answer = &dn_model_card_fields, .accepted = &dn_model_card_fields,
        .errors = { DN_H_MODEL_NOT_FOUND, DN_H_CONFLICT, DN_H_MODEL_FAILED, DN_H_MEMORY } },
    [DN_ROUTE_MODEL_UNLOAD] = { .query = &dn_unload_query_fields, .answer = &dn_model_card_fields, .accepted = &dn_model_card_fields,
        .errors = { DN_H_MODEL_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_DATASETS] = { .answer = &dn_dataset_list_fields },
    [DN_ROUTE_DATASET] = { .answer = &dn_dataset_card_fields, .errors = { DN_H_NOT_FOUND } },
    [DN_ROUTE_DATASET_PUT] = { .query = &dn_dataset_query_fields, .answer = &dn_dataset_card_fields, .headers = upload_headers,
        .errors = { DN_H_FORMAT, DN_H_CANCELLED, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_IMPOSSIBLE, DN_H_IO, DN_H_DRAINING,
                    DN_H_DISK } },
    [DN_ROUTE_DATASET_DELETE] = { .query = &dn_dataset_delete_query_fields, .answer = &dn_dataset_card_fields, .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_MODEL_PUT] = { .query = &dn_load_query_fields, .answer = &dn_model_card_fields, .accepted = &dn_model_card_fields,
        .headers = upload_headers, .errors = { DN_H_FORMAT, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_IMPOSSIBLE, DN_H_IO,
                                               DN_H_DRAINING, DN_H_DISK } },
    [DN_ROUTE_MODEL_DELETE] = { .answer = &dn_model_card_fields, .errors = { DN_H_MODEL_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_MODEL_ALIAS] = { .body = &dn_alias_fields, .answer = &dn_model_card_fields,
        .errors = { DN_H_MODEL_NOT_FOUND, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA } },
    [DN_ROUTE_MODEL_SAVE] = { .query = &dn_load_query_fields, .body = &dn_publish_fields, .answer = &dn_model_card_fields,
        .accepted = &dn_model_card_fields,
        .errors = { DN_H_MODEL_NOT_FOUND, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_IMPOSSIBLE, DN_H_DISK } },
    [DN_ROUTE_MODEL_CONFIG] = { .answer = &dn_job_recipe_fields, .errors = { DN_H_MODEL_NOT_FOUND, DN_H_FORMAT, DN_H_IMPOSSIBLE, DN_H_IO } },
    [DN_ROUTE_MODEL_CHECKPOINT] = { .errors = { DN_H_MODEL_NOT_FOUND, DN_H_IMPOSSIBLE, DN_H_DISK } },
    [DN_ROUTE_JOBS] = { .query = &dn_jobs_query_fields, .answer = &dn_job_list_fields },
    [DN_ROUTE_JOBS_SUBMIT] = { .body = &dn_job_fields, .answer = &dn_job_info_fields,
        .errors = { DN_H_NOT_FOUND, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_IMPOSSIBLE, DN_H_MEMORY, DN_H_DRAINING } },
    [DN_ROUTE_JOB] = { .answer = &dn_job_info_fields, .errors = { DN_H_NOT_FOUND } },
    [DN_ROUTE_JOB_CHANGE] = { .body = &dn_job_patch_fields, .answer = &dn_job_info_fields,
        .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA } },
    [DN_ROUTE_JOB_PAUSE] = { .answer = &dn_job_info_fields, .accepted = &dn_job_info_fields, .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_JOB_RESUME] = { .answer = &dn_job_info_fields, .accepted = &dn_job_info_fields, .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_JOB_CANCEL] = { .answer = &dn_job_info_fields, .accepted = &dn_job_info_fields, .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_JOB_PUBLISH] = { .body = &dn_publish_fields, .answer = &dn_job_info_fields,
        .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT, DN_H_LENGTH, DN_H_TOO_LARGE, DN_H_MEDIA, DN_H_MEMORY, DN_H_DISK } },
    [DN_ROUTE_JOB_CHECKPOINTS] = { .answer = &dn_job_checkpoint_list_fields, .errors = { DN_H_NOT_FOUND } },
    [DN_ROUTE_JOB_SAVE] = { .answer = &dn_job_info_fields, .accepted = &dn_job_info_fields, .errors = { DN_H_NOT_FOUND, DN_H_CONFLICT } },
    [DN_ROUTE_JOB_SAMPLES] = { .query = &dn_samples_query_fields, .answer = &dn_job_sample_list_fields, .errors = { DN_H_NOT_FOUND } },
    [DN_ROUTE_JOB_SAMPLE] = { .errors = { DN_H_NOT_FOUND } },
    [DN_ROUTE_JOB_METRICS] = { .errors = { DN_H_NOT_FOUND } },
    [DN_ROUTE_JOB_EVENTS] = { .errors = { DN_H_NOT_FOUND }, .headers = events_headers },
    [DN_ROUTE_STATUS] = { .answer = &dn_status_fields, .also_gives = { "text/event-stream" }, .events = status_events },
    [DN_ROUTE_HEALTHZ] = { .answer = &dn_health_fields },
    [DN_ROUTE_READYZ] = { .answer = &dn_health_fields, .errors = { DN_H_NOT_READY } },
    [DN_ROUTE_DRAIN] = { .answer = &dn_health_fields },
};

/* Refusals that every route can give. */
static const int common_errors[] = { DN_H_INVALID, DN_H_UNAUTHORIZED, DN_H_FORBIDDEN, DN_H_TIMEOUT };
/* clang-format on */

struct schemas {
    const dn_fields *v[SCHEMAS_MAX];
    int n;
};

/* The table and all it refers to, each once. */
static void collect(struct schemas *s, const dn_fields *t)
{
    if (!t)
        return;
    for (int i = 0; i < s->n; i++)
        if (s->v[i] == t)
            return;
    if (s->n == SCHEMAS_MAX)
        return;
    s->v[s->n++] = t;
    for (int i = 0; i < t->n; i++)
        collect(s, t->v[i].sub);
}

static void write_string(dn_buf *b, const char *key, const char *value)
{
    dn_buf_printf(b, "\"%s\":", key);
    dn_buf_json_string(b, value);
}

static void write_lower(dn_buf *b, const char *word)
{
    for (; *word; word++)
        dn_buf_add(b, (char[]){ (char)tolower((unsigned char)*word) }, 1);
}

static void write_ref(dn_buf *b, const char *name) { dn_buf_printf(b, "{\"$ref\":\"#/components/schemas/%s\"}", name); }

/* "text/event-stream":{"schema":...,"x-events":{"name":schema of its data}} */
static void write_stream(dn_buf *b, const struct event *e)
{
    dn_buf_puts(b, "\"text/event-stream\":{\"schema\":{\"type\":\"string\",\"description\":\"Server-sent events with id, event and "
                   "data, one line of JSON. x-events has the schema of each event's data.\"},\"x-events\":{");
    for (int i = 0; e[i].name; i++) {
        dn_buf_printf(b, "%s\"%s\":", i ? "," : "", e[i].name);
        write_ref(b, e[i].data ? e[i].data->name : "ErrorBody");
    }
    dn_buf_puts(b, "}}");
}

/* "media/type":{"schema":...} */
static void write_media(dn_buf *b, const char *type, const dn_fields *t)
{
    dn_buf_printf(b, "\"%s\":{\"schema\":", type);
    if (t)
        write_ref(b, t->name);
    else if (!strncmp(type, "text/", 5))
        dn_buf_puts(b, "{\"type\":\"string\"}");
    else
        dn_buf_puts(b, "{}");
    dn_buf_puts(b, "}");
}

static void write_gives(dn_buf *b, const char *type, const dn_fields *t, const struct operation *o)
{
    if (o->events && !strcmp(type, "text/event-stream"))
        write_stream(b, o->events);
    else
        write_media(b, type, t);
}

static void write_path_params(dn_buf *b, const char *path, int *n)
{
    for (const char *s = strchr(path, '{'); s; s = strchr(s + 1, '{'))
        dn_buf_printf(b, "%s{\"name\":\"%.*s\",\"in\":\"path\",\"required\":true,\"schema\":{\"type\":\"string\"}}",
                      (*n)++ ? "," : "", (int)strcspn(s + 1, "}"), s + 1);
}

static void write_params(dn_buf *b, const dn_route *r, const struct operation *o)
{
    const dn_fields *query = o->query;
    int n = 0;
    dn_buf_puts(b, ",\"parameters\":[");
    write_path_params(b, r->path, &n);
    for (int i = 0; query && i < query->n; i++) {
        dn_buf_printf(b, "%s{\"name\":\"%s\",\"in\":\"query\",\"schema\":", n++ ? "," : "", query->v[i].name);
        dn_field_schema(&query->v[i], b);
        dn_buf_puts(b, "}");
    }
    for (const struct header *h = o->headers; h && h->name; h++) {
        dn_buf_printf(b, "%s{\"name\":\"%s\",\"in\":\"header\",\"schema\":{\"type\":\"string\"},", n++ ? "," : "",
                      h->name);
        write_string(b, "description", h->help);
        dn_buf_puts(b, "}");
    }
    dn_buf_puts(b, "]");
}

static void write_answer(dn_buf *b, const dn_route *r, const struct operation *o)
{
    dn_buf_puts(b, "\"200\":{\"description\":\"Done.\",\"content\":{");
    write_gives(b, r->gives, o->answer, o);
    for (int i = 0; i < 4 && o->also_gives[i]; i++) {
        dn_buf_puts(b, ",");
        write_gives(b, o->also_gives[i], NULL, o);
    }
    dn_buf_puts(b, "}}");
    if (!o->accepted)
        return;
    dn_buf_puts(b, ",\"202\":{\"description\":\"Accepted; Location says where to look.\",\"content\":{");
    write_media(b, "application/json", o->accepted);
    dn_buf_puts(b, "}}");
}

static void write_error(dn_buf *b, int id, int seen[], int *n)
{
    int status = dn_http_code_status(id);
    for (int i = 0; i < *n; i++)
        if (seen[i] == status)
            return;
    seen[(*n)++] = status;
    dn_buf_printf(b, ",\"%d\":{\"$ref\":\"#/components/responses/E%d\"}", status, status);
}

/* No body means {}, where that would do. */
static bool needs_body(const struct operation *o)
{
    bool needs = !o->body;
    for (int i = 0; !needs && i < o->body->n; i++)
        needs = o->body->v[i].flags & DN_F_REQUIRED;
    return needs;
}

static void write_operation(dn_buf *b, int route)
{
    const dn_route *r = &dn_routes[route];
    const struct operation *o = &operations[route];
    int seen[STATUSES_MAX], n = 0;
    static const char *const ids[] = {
#define X(id, ...) #id,
        DN_ROUTES(X)
#undef X
    };
    dn_buf_puts(b, "{");
    dn_buf_puts(b, "\"operationId\":\"");
    write_lower(b, ids[route]);
    dn_buf_puts(b, "\",");
    write_string(b, "summary", r->summary);
    write_params(b, r, o);
    if (r->takes) {
        dn_buf_printf(b, ",\"requestBody\":{\"required\":%s,\"content\":{", needs_body(o) ? "true" : "false");
        write_media(b, r->takes, o->body);
        dn_buf_puts(b, "}}");
    }
    dn_buf_puts(b, ",\"responses\":{");
    write_answer(b, r, o);
    for (size_t i = 0; i < sizeof common_errors / sizeof *common_errors; i++)
        write_error(b, common_errors[i], seen, &n);
    for (int i = 0; o->errors[i]; i++)
        write_error(b, o->errors[i], seen, &n);
    dn_buf_puts(b, "}}");
}

/* Routes of one path stand together in the document, at the place of the first. */
static void write_paths(dn_buf *b)
{
    for (int i = 0, n = 0; i < DN_ROUTE_COUNT; i++) {
        int first = 0;
        while (strcmp(dn_routes[first].path, dn_routes[i].path))
            first++;
        if (first < i)
            continue;
        dn_buf_printf(b, "%s\"%s\":{", n++ ? "," : "", dn_routes[i].path);
        for (int k = i, m = 0; k < DN_ROUTE_COUNT; k++) {
            if (strcmp(dn_routes[k].path, dn_routes[i].path))
                continue;
            dn_buf_puts(b, m++ ? ",\"" : "\"");
            write_lower(b, dn_routes[k].method);
            dn_buf_puts(b, "\":");
            write_operation(b, k);
        }
        dn_buf_puts(b, "}");
    }
}

static void write_schemas(dn_buf *b)
{
    struct schemas s = { .n = 0 };
    for (int i = 0; i < DN_ROUTE_COUNT; i++) {
        collect(&s, operations[i].body);
        collect(&s, operations[i].answer);
        collect(&s, operations[i].accepted);
        for (const struct event *e = operations[i].events; e && e->name; e++)
            collect(&s, e->data);
    }
    for (int i = 0; i < s.n; i++) {
        dn_buf_printf(b, "\"%s\":", s.v[i]->name);
        dn_fields_schema(s.v[i], b);
        dn_buf_puts(b, ",");
    }
    dn_buf_puts(
        b, "\"ErrorBody\":{\"type\":\"object\",\"properties\":{\"error\":{\"$ref\":\"#/components/schemas/Error\"}},"
           "\"required\":[\"error\"]}");
}

/* One response for each status that the table of errors knows, with its codes. */
static void write_responses(dn_buf *b)
{
    int n = 0;
    for (int status = 400; status < 600; status++) {
        dn_buf codes;
        dn_buf_init(&codes, 4096);
        for (int id = 1; id < DN_H_COUNT; id++)
            if (dn_http_code_status(id) == status)
                dn_buf_printf(&codes, "%s%s", codes.len ? ", " : "Codes: ", dn_http_code_name(id));
        if (codes.len) {
            dn_buf_printf(b, "%s\"E%d\":{", n++ ? "," : "", status);
            write_string(b, "description", codes.data);
            dn_buf_puts(b, ",\"content\":{\"application/json\":{\"schema\":");
            write_ref(b, "ErrorBody");
            dn_buf_puts(b, "}}}");
        }
        dn_buf_fini(&codes);
    }
}

void dn_openapi_write(dn_buf *b, const char *version)
{
    dn_buf_puts(b, "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"denoised\",");
    write_string(b, "description", "Samples diffusion models; requests of all clients share batches.");
    dn_buf_puts(b, ",");
    write_string(b, "version", version);
    dn_buf_puts(b, "},\"security\":[{},{\"token\":[]}],\"paths\":{");
    write_paths(b);
    dn_buf_puts(
        b,
        "},\"components\":{\"securitySchemes\":{\"token\":{\"type\":\"http\",\"scheme\":\"bearer\"}},\"responses\":{");
    write_responses(b);
    dn_buf_puts(b, "},\"schemas\":{");
    write_schemas(b);
    dn_buf_puts(b, "}}}");
}
