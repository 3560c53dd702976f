/* http_error.h - every refusal: one table of codes with HTTP status and OpenAI's `type`.
 *
 * The codes of the engine (engine/include/denoised/error.h) have their rows here by name, because proto knows no
 * engine. */
#ifndef DN_PROTO_HTTP_ERROR_H
#define DN_PROTO_HTTP_ERROR_H

#include "buf.h"

/* clang-format off */
/* code, name on the wire, HTTP status, type, meaning */
#define DN_HTTP_ERRORS(X)                                                                                              \
    X(INVALID, "invalid", 400, "invalid_request_error", "malformed or contradictory input")                            \
    X(BAD_JSON, "invalid_json", 400, "invalid_request_error", "the body is not JSON")                                  \
    X(TOO_DEEP, "too_complex", 400, "invalid_request_error", "nested too deep, or too many values")                    \
    X(DUPLICATE, "duplicate_field", 400, "invalid_request_error", "a field given twice")                               \
    X(TYPE, "wrong_type", 400, "invalid_request_error", "a value of the wrong type")                                   \
    X(RANGE, "out_of_range", 400, "invalid_request_error", "a value outside its range")                                \
    X(CHOICE, "unknown_value", 400, "invalid_request_error", "a name that is none of the choices")                     \
    X(UNKNOWN, "unknown_field", 400, "invalid_request_error", "a field that nothing here knows")                       \
    X(MISSING, "missing_field", 400, "invalid_request_error", "a field that must be given")                            \
    X(CONTRADICTION, "contradiction", 400, "invalid_request_error", "fields that exclude each other")                  \
    X(UNSUPPORTED, "not_supported", 400, "invalid_request_error", "something this build cannot do")                    \
    X(FORMAT, "bad_format", 400, "invalid_request_error", "bytes that are not what they claim to be")                  \
    X(LIMIT, "limit", 400, "invalid_request_error", "over a named limit")                                              \
    X(BAD_HEADER, "bad_header", 400, "invalid_request_error", "a header that is malformed, doubled or contradictory")  \
    X(UNAUTHORIZED, "unauthorized", 401, "authentication_error", "no token, or a wrong one")                           \
    X(FORBIDDEN, "forbidden", 403, "permission_error", "not yours")                                                    \
    X(ORIGIN, "origin_not_allowed", 403, "permission_error", "a foreign Origin")                                       \
    X(HOST, "host_not_allowed", 403, "permission_error", "a Host that this daemon does not answer to")                 \
    X(NOT_FOUND, "not_found", 404, "not_found_error", "no such object")                                                \
    X(MODEL_NOT_FOUND, "model_not_found", 404, "not_found_error", "no such model")                                     \
    X(METHOD, "method_not_allowed", 405, "invalid_request_error", "the path does not know this method")                \
    X(NOT_ACCEPTABLE, "not_acceptable", 406, "invalid_request_error", "nothing that Accept allows")                    \
    X(TIMEOUT, "request_timeout", 408, "invalid_request_error", "the request took too long to arrive")                 \
    X(CONFLICT, "conflict", 409, "conflict_error", "at odds with the present state")                                   \
    X(CANCELLED, "cancelled", 409, "conflict_error", "cancelled before it was done")                                   \
    X(EXPIRED, "expired", 410, "not_found_error", "the result is no longer kept")                                      \
    X(LENGTH, "length_required", 411, "invalid_request_error", "a body needs a Content-Length")                        \
    X(TOO_LARGE, "too_large", 413, "invalid_request_error", "the body is larger than allowed")                         \
    X(URI, "uri_too_long", 414, "invalid_request_error", "the path is too long")                                       \
    X(MEDIA, "unsupported_media_type", 415, "invalid_request_error", "a Content-Type that the path does not take")     \
    X(IMPOSSIBLE, "impossible", 422, "invalid_request_error", "understood, but impossible with this model or sampler") \
    X(IDEMPOTENCY, "idempotency_mismatch", 422, "invalid_request_error", "an Idempotency-Key that came with another body") \
    X(QUEUE_FULL, "queue_full", 429, "rate_limit_error", "more work is waiting than is allowed to")                    \
    X(DEADLINE, "deadline", 429, "rate_limit_error", "deadline_ms cannot be met")                                      \
    X(HEADERS, "headers_too_large", 431, "invalid_request_error", "the headers are larger than allowed")               \
    X(NON_FINITE, "non_finite", 500, "server_error", "the computation produced NaN or infinity")                       \
    X(BACKEND, "backend", 500, "server_error", "the device failed")                                                    \
    X(IO, "io", 500, "server_error", "reading or writing failed")                                                      \
    X(MODEL_FAILED, "model_failed", 500, "server_error", "the model could not be loaded")                              \
    X(CRASH_LOOP, "crash_loop", 500, "server_error", "the daemon ended each time that it was begun")                   \
    X(INTERNAL, "internal", 500, "server_error", "a bug in denoised")                                                  \
    X(NOT_IMPLEMENTED, "not_implemented", 501, "server_error", "an endpoint of a later version")                       \
    X(DRAINING, "draining", 503, "server_error", "the daemon is stopping")                                             \
    X(NOT_READY, "not_ready", 503, "server_error", "the daemon is still loading its models")                           \
    X(MEMORY, "memory", 503, "server_error", "out of memory, or over the memory budget")                               \
    X(DISK, "disk_reserve", 507, "server_error", "below the disk reserve")
/* clang-format on */

enum dn_http_code {
    DN_H_OK = 0,
#define X(code, name, status, type, text) DN_H_##code,
    DN_HTTP_ERRORS(X)
#undef X
        DN_H_COUNT
};

typedef struct dn_http_error {
    int id;            /* enum dn_http_code; 0 while nothing failed */
    int status;        /* 400 */
    const char *type;  /* "invalid_request_error"; static */
    const char *code;  /* "out_of_range"; static */
    char param[96];    /* the field at fault, dotted: "guidance.cfg.scale"; "" if none */
    char message[512]; /* one sentence for a person */
} dn_http_error;

/* Fill *err (NULL is fine) and return `id`. `param` may be NULL. A NULL `fmt` gives the table's text. */
int dn_http_fail(dn_http_error *err, int id, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The same for what the engine reported: `code` is dn_error_name()'s. An unknown name is a bug and becomes `internal`.
 */
int dn_http_fail_engine(dn_http_error *err, const char *code, const char *param, const char *message);
/* The id of a code by its name on the wire, or 0. */
int dn_http_code_find(const char *name);
int dn_http_code_status(int id);
const char *dn_http_code_name(int id);
/* {"error":{"type","code","param","message"}}; param is null if there is none. */
void dn_http_error_write(const dn_http_error *e, dn_buf *b);
/* Markdown: code, status, type, meaning. */
void dn_http_errors_markdown(dn_buf *b);

#endif
