/* messages.c - the tables of every response and event. */
#include "proto.h"

#include <inttypes.h>
#include <stddef.h>

#define LIST(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define TABLE(name, help, v, type)                                  \
    {                                                               \
        name, help, v, (int)(sizeof(v) / sizeof *(v)), sizeof(type) \
    }
#define ALWAYS .flags = DN_F_REQUIRED

const char *const dn_request_states[] = { "queued", "running", "succeeded", "failed", "cancelled", NULL };

/* clang-format off */
#define AT(member) .offset = offsetof(dn_timing, member)
static const dn_field timing_v[] = {
    { "queue_ms", DN_T_NUM, AT(queue_ms), ALWAYS, .unit = "ms", .help = "From admission to the first step." },
    { "steps", DN_T_INT, AT(steps), ALWAYS, .help = "Sampler steps." },
    { "row_steps", DN_T_INT, AT(row_steps), ALWAYS, .help = "Network evaluations." },
    { "batch_rows_mean", DN_T_NUM, AT(batch_rows_mean), ALWAYS, .help = "Rows of the batches that this request's rows ran in, their mean." },
    { "device_ms", DN_T_NUM, AT(device_ms), ALWAYS, .unit = "ms", .help = "This request's share of the steps that it took part in." },
    { "decode_ms", DN_T_NUM, AT(decode_ms), ALWAYS, .unit = "ms", .help = "From the last step to the result on the host." },
    { "encode_ms", DN_T_NUM, AT(encode_ms), ALWAYS, .unit = "ms", .help = "Making PNG, npy or safetensors." },
};
#undef AT
const dn_fields dn_timing_fields = TABLE("Timing", "Where the time went.", timing_v, dn_timing);

#define AT(member) .offset = offsetof(dn_image, member)
static const dn_field image_v[] = {
    { "index", DN_T_INT, AT(index), ALWAYS, .help = "k: which sample of the request." },
    { "seed", DN_T_INT, AT(seed), ALWAYS, .help = "The request's seed + k." },
    { "content_type", DN_T_STR, AT(content_type), ALWAYS, .help = "image/png, application/x-npy or application/x-safetensors." },
    { "sha256", DN_T_STR, AT(sha256), .help = "Of the float32 result, little-endian [H,W,C], never of its encoding. Left out for a grid." },
    { "b64", DN_T_BYTES, AT(b64), .help = "The encoded bytes." },
    { "url", DN_T_STR, AT(url), .help = "Asynchronous answers: where the bytes are." },
};
#undef AT
const dn_fields dn_image_fields = TABLE("Image", "One result.", image_v, dn_image);

#define AT(member) .offset = offsetof(dn_result, member)
static const dn_field result_v[] = {
    { "id", DN_T_STR, AT(id), ALWAYS, .help = "Of the request." },
    { "model", DN_T_STR, AT(model), ALWAYS, .help = "name@version that made it." },
    { "numerics", DN_T_STR, AT(numerics), ALWAYS, .help = "The same request gives the same bytes wherever this is the same." },
    { "seed", DN_T_INT, AT(seed), ALWAYS, .help = "Given or drawn." },
    { "images", DN_T_LIST, AT(images), ALWAYS, .sub = &dn_image_fields },
    { "timing", DN_T_OBJECT, AT(timing), ALWAYS, .sub = &dn_timing_fields },
};
#undef AT
const dn_fields dn_result_fields = TABLE("GenerateResult", "The answer of POST /generate.", result_v, dn_result);

#define AT(member) .offset = offsetof(dn_event_queued, member)
static const dn_field queued_v[] = {
    { "id", DN_T_STR, AT(id), ALWAYS, .help = "Of the request." },
    { "seed", DN_T_INT, AT(seed), ALWAYS, .help = "Given or drawn." },
    { "position", DN_T_INT, AT(position), ALWAYS, .help = "Requests ahead of it." },
    { "eta_ms", DN_T_NUM, AT(eta_ms), ALWAYS, .unit = "ms", .help = "Until it is done." },
};
#undef AT
const dn_fields dn_event_queued_fields = TABLE("EventQueued", "Event `queued`.", queued_v, dn_event_queued);

#define AT(member) .offset = offsetof(dn_event_progress, member)
static const dn_field progress_v[] = {
    { "step", DN_T_INT, AT(step), ALWAYS, .help = "Finished sampler steps, of the slowest sample." },
    { "steps", DN_T_INT, AT(steps), ALWAYS, .help = "Of how many." },
    { "eta_ms", DN_T_NUM, AT(eta_ms), ALWAYS, .unit = "ms", .help = "Until it is done." },
};
#undef AT
const dn_fields dn_event_progress_fields = TABLE("EventProgress", "Event `progress`.", progress_v, dn_event_progress);

#define AT(member) .offset = offsetof(dn_event_preview, member)
static const dn_field preview_v[] = {
    { "index", DN_T_INT, AT(index), ALWAYS, .help = "Which sample." },
    { "step", DN_T_INT, AT(step), ALWAYS, .help = "After which step." },
    { "b64", DN_T_BYTES, AT(b64), ALWAYS, .help = "The predicted x0 as a PNG." },
};
#undef AT
const dn_fields dn_event_preview_fields = TABLE("EventPreview", "Event `preview`.", preview_v, dn_event_preview);

#define AT(member) .offset = offsetof(dn_event_done, member)
static const dn_field done_v[] = {
    { "model", DN_T_STR, AT(model), ALWAYS, .help = "name@version that made it." },
    { "numerics", DN_T_STR, AT(numerics), ALWAYS, .help = "The same request gives the same bytes wherever this is the same." },
    { "seed", DN_T_INT, AT(seed), ALWAYS, .help = "Given or drawn." },
    { "timing", DN_T_OBJECT, AT(timing), ALWAYS, .sub = &dn_timing_fields },
};
#undef AT
const dn_fields dn_event_done_fields = TABLE("EventDone", "Event `done`.", done_v, dn_event_done);

#define AT(member) .offset = offsetof(dn_error_body, member)
static const dn_field error_v[] = {
    { "type", DN_T_STR, AT(type), ALWAYS, .help = "The class of the error, OpenAI's names." },
    { "code", DN_T_STR, AT(code), ALWAYS, .help = "What happened." },
    { "param", DN_T_STR, AT(param), .flags = DN_F_REQUIRED | DN_F_NULL, .help = "The field at fault." },
    { "message", DN_T_STR, AT(message), ALWAYS, .help = "One sentence for a person." },
};
#undef AT
const dn_fields dn_error_fields = TABLE("Error", "Why a request was refused or failed.", error_v, dn_error_body);

#define AT(member) .offset = offsetof(dn_request_info, member)
static const dn_field request_v[DN_REQUEST_FIELDS] = {
    [DN_REQUEST_ID] = { "id", DN_T_STR, AT(id), ALWAYS, .help = "128 random bits." },
    [DN_REQUEST_STATE] = { "state", DN_T_ENUM, AT(state), ALWAYS, .choices = dn_request_states, .help = "Where it stands." },
    [DN_REQUEST_MODEL] = { "model", DN_T_STR, AT(model), .help = "name@version." },
    [DN_REQUEST_NUMERICS] = { "numerics", DN_T_STR, AT(numerics), .help = "The same request gives the same bytes wherever this is the same." },
    [DN_REQUEST_NUMERICS_BEFORE] = { "numerics_before", DN_T_STR, AT(numerics_before),
        .help = "What it was accepted for: a restart elsewhere has begun it anew, and its bytes are those of numerics." },
    [DN_REQUEST_SEED] = { "seed", DN_T_INT, AT(seed), .help = "Given or drawn." },
    [DN_REQUEST_N] = { "n", DN_T_INT, AT(n), .help = "How many samples." },
    [DN_REQUEST_STEP] = { "step", DN_T_INT, AT(step), .help = "Finished sampler steps, of the slowest sample." },
    [DN_REQUEST_STEPS] = { "steps", DN_T_INT, AT(steps), .help = "Of how many." },
    [DN_REQUEST_POSITION] = { "position", DN_T_INT, AT(position), .help = "Requests ahead of it, while queued." },
    [DN_REQUEST_ETA_MS] = { "eta_ms", DN_T_NUM, AT(eta_ms), .unit = "ms", .help = "Until it is done." },
    [DN_REQUEST_CREATED_AT] = { "created_at", DN_T_NUM, AT(created_at), .unit = "s", .help = "Unix time." },
    [DN_REQUEST_FINISHED_AT] = { "finished_at", DN_T_NUM, AT(finished_at), .unit = "s", .help = "Unix time." },
    [DN_REQUEST_IMAGES] = { "images", DN_T_LIST, AT(images), .sub = &dn_image_fields, .help = "When succeeded." },
    [DN_REQUEST_TIMING] = { "timing", DN_T_OBJECT, AT(timing), .sub = &dn_timing_fields, .help = "When it has ended." },
    [DN_REQUEST_ERROR] = { "error", DN_T_OBJECT, AT(error), .sub = &dn_error_fields, .help = "When failed." },
};
#undef AT
const dn_fields dn_request_info_fields = TABLE("Request", "One request.", request_v, dn_request_info);

#define AT(member) .offset = offsetof(dn_request_list, member)
static const dn_field request_list_v[] = {
    { "requests", DN_T_LIST, AT(requests), ALWAYS, .sub = &dn_request_info_fields, .help = "Newest first." },
    { "next", DN_T_STR, AT(next), .flags = DN_F_REQUIRED | DN_F_NULL, .help = "`after` of the next page; null: there is none." },
};
#undef AT
const dn_fields dn_request_list_fields = TABLE("RequestList", "A page of requests.", request_list_v, dn_request_list);

#define AT(member) .offset = offsetof(dn_size, member)
static const dn_field size_v[] = {
    { "height", DN_T_INT, AT(height), ALWAYS, .unit = "px" },
    { "width", DN_T_INT, AT(width), ALWAYS, .unit = "px" },
};
#undef AT
static const dn_fields size_fields = TABLE("Size", "Height and width.", size_v, dn_size);

#define AT(member) .offset = offsetof(dn_model_version, member)
static const dn_field version_v[] = {
    { "version", DN_T_INT, AT(version), ALWAYS, .help = "1, 2, ... in order of arrival." },
    { "live", DN_T_BOOL, AT(live), ALWAYS, .help = "What a bare name means." },
    { "hash", DN_T_STR, AT(hash), .help = "sha256 of the weights as held in memory." },
};
#undef AT
static const dn_fields version_fields = TABLE("ModelVersion", "One version of a model.", version_v, dn_model_version);

#define MODEL_STATES LIST("available", "loading", "loaded", "unloading", "failed")
#define AT(member) .offset = offsetof(dn_attempt_card, member)
static const dn_field attempt_v[] = {
    [DN_ATTEMPT_STATE] = { "state", DN_T_ENUM, AT(state), ALWAYS, .choices = MODEL_STATES, .help = "loading: it is being made and tried; failed: it was refused." },
    [DN_ATTEMPT_SOURCE] = { "source", DN_T_STR, AT(source), ALWAYS, .help = "upload, save, or job:ID." },
    [DN_ATTEMPT_CREATED_AT] = { "created_at", DN_T_NUM, AT(created_at), ALWAYS, .unit = "s", .help = "Unix time." },
    [DN_ATTEMPT_ERROR] = { "error", DN_T_OBJECT, AT(error), .sub = &dn_error_fields, .help = "When failed." },
};
#undef AT
static const dn_fields attempt_fields = TABLE("ModelAttempt", "What has been asked to become a version, and is not one.", attempt_v, dn_attempt_card);

#define AT(member) .offset = offsetof(dn_model_card, member)
static const dn_field card_v[DN_CARD_FIELDS] = {
    [DN_CARD_NAME] = { "name", DN_T_STR, AT(name), ALWAYS },
    [DN_CARD_STATE] = { "state", DN_T_ENUM, AT(state), ALWAYS, .choices = MODEL_STATES },
    [DN_CARD_DESCRIPTION] = { "description", DN_T_STR, AT(description), .help = "Of its denoised.json." },
    [DN_CARD_ARCHITECTURE] = { "architecture", DN_T_STR, AT(architecture), .help = "diffusers' class of the network." },
    [DN_CARD_PIPELINE] = { "pipeline", DN_T_STR, AT(pipeline), .help = "diffusers' class of the pipeline." },
    [DN_CARD_PARAMETERS] = { "parameters", DN_T_INT, AT(parameters) },
    [DN_CARD_BYTES] = { "bytes", DN_T_INT, AT(bytes), .unit = "B", .help = "Of the weights in memory." },
    [DN_CARD_HEIGHT] = { "height", DN_T_INT, AT(height), .unit = "px" },
    [DN_CARD_WIDTH] = { "width", DN_T_INT, AT(width), .unit = "px" },
    [DN_CARD_CHANNELS] = { "channels", DN_T_INT, AT(channels) },
    [DN_CARD_SIZES] = { "sizes", DN_T_LIST, AT(sizes), .sub = &size_fields, .help = "Further sizes that are allowed." },
    [DN_CARD_N_CLASSES] = { "n_classes", DN_T_INT, AT(n_classes), .help = "Rows of the label table, the null label included; 0: takes no label." },
    [DN_CARD_LABELS] = { "labels", DN_T_STRS, AT(labels), .help = "Names of the labels 0, 1, ..." },
    [DN_CARD_SAMPLER] = { "sampler", DN_T_STR, AT(sampler), .help = "The checkpoint's own." },
    [DN_CARD_MS_PER_ROW] = { "ms_per_row", DN_T_NUM, AT(ms_per_row), .unit = "ms", .help = "Measured at the best batch size." },
    [DN_CARD_VERSIONS] = { "versions", DN_T_LIST, AT(versions), .sub = &version_fields },
    [DN_CARD_NUMERICS] = { "numerics", DN_T_STR, AT(numerics), .help = "Of the live version." },
    [DN_CARD_DEFAULTS] = { "defaults", DN_T_JSON, AT(defaults), .help = "Request fields laid under every request." },
    [DN_CARD_ERROR] = { "error", DN_T_STR, AT(error), .help = "Why it is failed." },
    [DN_CARD_ATTEMPT] = { "attempt", DN_T_OBJECT, AT(attempt), .sub = &attempt_fields,
        .help = "What you last asked to become a version of it and is not one; until the next does, or a restart." },
};
#undef AT
const dn_fields dn_model_card_fields = TABLE("Model", "One model.", card_v, dn_model_card);

#define AT(member) .offset = offsetof(dn_model_list, member)
static const dn_field model_list_v[] = { { "models", DN_T_LIST, AT(models), ALWAYS, .sub = &dn_model_card_fields } };
#undef AT
const dn_fields dn_model_list_fields = TABLE("ModelList", "All known models.", model_list_v, dn_model_list);

#define AT(member) .offset = offsetof(dn_status_share, member)
static const dn_field share_v[] = {
    { "id", DN_T_STR, AT(id), ALWAYS, .help = "Of a request." },
    { "rows", DN_T_INT, AT(rows), ALWAYS, .help = "That it had in the batch." },
};
#undef AT
static const dn_fields share_fields = TABLE("StatusShare", "Who shared a batch.", share_v, dn_status_share);

#define AT(member) .offset = offsetof(dn_status_device, member)
static const dn_field device_v[] = {
    { "name", DN_T_STR, AT(name), ALWAYS, .help = "As in --devices." },
    { "backend", DN_T_STR, AT(backend), ALWAYS },
    { "threads", DN_T_INT, AT(threads), ALWAYS },
    { "bytes", DN_T_INT, AT(bytes), ALWAYS, .unit = "B", .help = "Arenas and slots that it holds." },
    { "steps", DN_T_INT, AT(steps), ALWAYS, .help = "Batches run." },
    { "row_steps", DN_T_INT, AT(row_steps), ALWAYS, .help = "Rows run." },
    { "model", DN_T_STR, AT(model), .flags = DN_F_REQUIRED | DN_F_NULL, .help = "Of the last step." },
    { "rows", DN_T_INT, AT(rows), ALWAYS, .help = "Of the last step." },
    { "step_ms", DN_T_NUM, AT(step_ms), ALWAYS, .unit = "ms", .help = "Of the last step." },
    { "shares", DN_T_LIST, AT(shares), ALWAYS, .sub = &share_fields, .help = "Of the last step." },
};
#undef AT
static const dn_fields device_fields = TABLE("StatusDevice", "One device.", device_v, dn_status_device);

#define AT(member) .offset = offsetof(dn_status_memory, member)
static const dn_field memory_v[] = {
    { "limit", DN_T_INT, AT(limit), ALWAYS, .unit = "B" },
    { "weights", DN_T_INT, AT(weights), ALWAYS, .unit = "B" },
    { "forms", DN_T_INT, AT(forms), ALWAYS, .unit = "B", .help = "Packed weights." },
    { "arenas", DN_T_INT, AT(arenas), ALWAYS, .unit = "B" },
    { "slots", DN_T_INT, AT(slots), ALWAYS, .unit = "B" },
    { "results", DN_T_INT, AT(results), ALWAYS, .unit = "B" },
};
#undef AT
static const dn_fields memory_fields = TABLE("StatusMemory", "Memory, by what for.", memory_v, dn_status_memory);

#define AT(member) .offset = offsetof(dn_status, member)
static const dn_field status_v[] = {
    { "version", DN_T_STR, AT(version), ALWAYS },
    { "uptime_s", DN_T_NUM, AT(uptime_s), ALWAYS, .unit = "s" },
    { "draining", DN_T_BOOL, AT(draining), ALWAYS },
    { "running", DN_T_INT, AT(running), ALWAYS, .help = "Requests with a sample on a device." },
    { "waiting", DN_T_INT, AT(waiting), ALWAYS, .help = "Requests that have not started." },
    { "queue_ms", DN_T_NUM, AT(queue_ms), ALWAYS, .unit = "ms", .help = "Priced work that has not run." },
    { "devices", DN_T_LIST, AT(devices), ALWAYS, .sub = &device_fields },
    { "requests", DN_T_LIST, AT(requests), ALWAYS, .sub = &dn_request_info_fields, .help = "Running and queued, in the order of the queue." },
    { "models", DN_T_LIST, AT(models), ALWAYS, .sub = &dn_model_card_fields },
    { "memory", DN_T_OBJECT, AT(memory), ALWAYS, .sub = &memory_fields },
};
#undef AT
const dn_fields dn_status_fields = TABLE("Status", "The daemon at this moment.", status_v, dn_status);

#define AT(member) .offset = offsetof(dn_health, member)
static const dn_field health_v[] = {
    { "status", DN_T_STR, AT(status), ALWAYS, .help = "ok, ready, loading or draining." },
};
#undef AT
const dn_fields dn_health_fields = TABLE("Health", "Alive, or ready.", health_v, dn_health);

#define AT(member) .offset = offsetof(dn_requests_query, member)
static const dn_field requests_query_v[] = {
    [DN_REQUESTS_STATE] = { "state", DN_T_ENUM, AT(state), .choices = dn_request_states, .help = "Only those in this state." },
    [DN_REQUESTS_LIMIT] = { "limit", DN_T_INT, AT(limit), .min = 1, .max = 1000, .def = "100", .help = "Most of them; a page also ends at 64 KiB." },
    [DN_REQUESTS_AFTER] = { "after", DN_T_STR, AT(after), .min = 1, .max = 64, .help = "`next` of the page before." },
};
#undef AT
const dn_fields dn_requests_query_fields = TABLE("RequestsQuery", NULL, requests_query_v, dn_requests_query);

#define AT(member) .offset = offsetof(dn_denoise_query, member)
static const dn_field denoise_query_v[] = {
    { "model", DN_T_STR, AT(model), .min = 1, .max = DN_NAME_LEN_MAX + 12, .help = "May be left out when one model is loaded." },
};
#undef AT
const dn_fields dn_denoise_query_fields = TABLE("DenoiseQuery", NULL, denoise_query_v, dn_denoise_query);

#define AT(member) .offset = offsetof(dn_model_query, member)
static const dn_field model_query_v[] = {
    { "wait", DN_T_BOOL, AT(wait), .def = "false", .help = "Answer when it is done, not at once." },
    { "force", DN_T_BOOL, AT(force), .def = "false", .help = "Cancel the requests that use it." },
};
#undef AT
const dn_fields dn_load_query_fields = { "LoadQuery", NULL, model_query_v, 1, sizeof(dn_model_query) };
const dn_fields dn_unload_query_fields = { "UnloadQuery", NULL, model_query_v, 2, sizeof(dn_model_query) };
/* clang-format on */

static void event_begin(dn_buf *b, int64_t id, const char *event)
{
    dn_buf_printf(b, "id: %" PRId64 "\nevent: %s\ndata: ", id, event);
}

void dn_event_write(dn_buf *b, int64_t id, const char *event, const dn_fields *t, const void *data)
{
    event_begin(b, id, event);
    dn_fields_write(t, data, b);
    dn_buf_puts(b, "\n\n");
}

void dn_event_write_id(dn_buf *b, const char *id, const char *event, const dn_fields *t, const void *data)
{
    dn_buf_printf(b, "id: %s\nevent: %s\ndata: ", id, event);
    dn_fields_write(t, data, b);
    dn_buf_puts(b, "\n\n");
}

void dn_event_error_write(dn_buf *b, int64_t id, const dn_http_error *e)
{
    event_begin(b, id, "error");
    dn_http_error_write(e, b);
    dn_buf_puts(b, "\n\n");
}
