/* error.h - how the engine reports failure.
 *
 * A function that can fail returns 0 or a DN_E code. One at a boundary (file, network, user config) also takes
 * `dn_error *err` last (NULL is fine) and says there which field, tensor or line is at fault. Outputs are never
 * clobbered on failure. The engine never logs, never exits. */
#ifndef DENOISED_ERROR_H
#define DENOISED_ERROR_H

/* code, name on the wire, meaning */
#define DN_ERRORS(X)                                                                                                   \
    X(INVALID, "invalid", "malformed or contradictory input")                                                          \
    X(RANGE, "out_of_range", "a value outside its range")                                                              \
    X(UNKNOWN, "unknown_field", "a name that nothing here knows")                                                      \
    X(NOT_FOUND, "not_found", "no such object")                                                                        \
    X(FORMAT, "bad_format", "a file that is not what it claims to be")                                                 \
    X(UNSUPPORTED, "not_supported", "something this build cannot do")                                                  \
    X(IMPOSSIBLE, "impossible", "understood, but cannot be done with this model or sampler")                           \
    X(LIMIT, "limit", "over a named limit")                                                                            \
    X(MEMORY, "memory", "out of memory, or over the memory budget")                                                    \
    X(IO, "io", "reading or writing failed")                                                                           \
    X(CANCELLED, "cancelled", "ended before it was done, as it was asked to")                                          \
    X(NON_FINITE, "non_finite", "the computation produced NaN or infinity")                                            \
    X(BACKEND, "backend", "the device failed")                                                                         \
    X(INTERNAL, "internal", "a bug in denoised")

enum {
    DN_OK = 0,
#define X(code, name, text) DN_E_##code,
    DN_ERRORS(X)
#undef X
        DN_E_COUNT
};

typedef struct dn_error {
    int code;           /* DN_E_... ; 0 while nothing failed */
    char param[64];     /* the field, tensor or file at fault; "" if none */
    char message[400];  /* one sentence for a person */
} dn_error;

/* "out_of_range" for DN_E_RANGE; "unknown" for a code that does not exist. */
const char *dn_error_name(int code);
const char *dn_error_text(int code);

/* Fill *err (NULL is fine) and return `code`. `param` may be NULL. The message is cut to fit. */
int dn_fail(dn_error *err, int code, const char *param, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

#endif
