/* daemon_config.h - the daemon's configuration: one table.
 *
 * flag (--max-rows 16, --max-rows=16) > DENOISED_MAX_ROWS > key `max-rows` of the INI file > default. An unknown flag,
 * variable or key stops the start; so does a bad value, and the error says which source and key. */
#ifndef DN_PROTO_DAEMON_CONFIG_H
#define DN_PROTO_DAEMON_CONFIG_H

#include "arena.h"
#include "buf.h"
#include "field.h"

enum dn_log_format { DN_LOG_LOGFMT, DN_LOG_JSON };
enum dn_config_action {
    DN_ACTION_RUN,
    DN_ACTION_PRINT_CONFIG,
    DN_ACTION_CHECK,
    DN_ACTION_BACKUP,
    DN_ACTION_HELP,
    DN_ACTION_VERSION
};

enum {
    DN_CONFIG_CONFIG,
    DN_CONFIG_INSECURE,
    DN_CONFIG_LISTEN,
    DN_CONFIG_MODELS,
    DN_CONFIG_LOAD,
    DN_CONFIG_STATE,
    DN_CONFIG_DEVICES,
    DN_CONFIG_MEMORY,
    DN_CONFIG_MAX_ROWS,
    DN_CONFIG_STEP_MS,
    DN_CONFIG_YIELD_MS,
    DN_CONFIG_MAX_QUEUE_MS,
    DN_CONFIG_TOKEN_FILE,
    DN_CONFIG_HOST_NAMES,
    DN_CONFIG_CORS_ORIGIN,
    DN_CONFIG_DRAIN_MS,
    DN_CONFIG_LOG_FORMAT,
    DN_CONFIG_RESULT_BYTES,
    DN_CONFIG_RESULT_TTL,
    DN_CONFIG_DISK_RESERVE,
    DN_CONFIG_UPLOAD_BYTES,
    DN_CONFIG_FIELDS
};
typedef struct dn_config {
    uint64_t has;           /* fields that some source gave */
    const char *config;     /* the INI file; NULL: none */
    bool insecure;          /* listen beyond loopback without tokens */
    dn_strs listen;         /* "127.0.0.1:8760", "[::1]:8760", "unix:/path" */
    const char *models;     /* folder of models */
    dn_strs load;           /* models loaded at the start; without its bit: all that fit; "none": none */
    const char *state;      /* folder; NULL: nothing is kept */
    dn_strs devices;        /* "cpu", "cpu:0-3", "cpu:0,2", "ref"; as text cpu:0,2,cpu:1 is two devices */
    int64_t memory;         /* bytes; 0: 80% of the machine or cgroup */
    int64_t max_rows;       /* of one batch (64) */
    double step_ms;         /* target of one batch (100) */
    double yield_ms;        /* of a training segment beside samples (20) */
    int64_t max_queue_ms;   /* bound of the priced queue (300000) */
    const char *token_file; /* NULL: no tokens */
    dn_strs host_names;
    dn_strs cors_origin;
    int64_t drain_ms;      /* (30000) */
    int log_format;        /* enum dn_log_format */
    int64_t result_bytes;  /* kept asynchronous results (1 GiB) */
    int64_t result_ttl_ms; /* (1 h) */
    int64_t disk_reserve;  /* free bytes that are left to others where the state is (1 GiB) */
    int64_t upload_bytes;  /* of one upload (16 GiB) */
    const char *backup;    /* of DN_ACTION_BACKUP: the folder to make; no key of the table */
} dn_config;
extern const dn_fields dn_config_fields; /* indexed by DN_CONFIG_... */

/* Read all sources. `env` is environ-like ("NAME=value", NULL at the end). Returns 0 with *out and *action, or a DN_H
 * code with *err: param is the key, message names the source ("--step-ms: ...", "DENOISED_STEP_MS: ...",
 * "denoised.ini:12: step-ms: ..."). Strings live in the arena. On failure nothing is touched. */
int dn_config_load(dn_config *out, enum dn_config_action *action, dn_arena *a, int argc, char *const *argv,
                   char *const *env, dn_http_error *err);
/* A valid INI file with every effective value, each key under its help text. What has no value stands as a comment. */
void dn_config_print(const dn_config *c, dn_buf *b);
void dn_config_help(dn_buf *b);
void dn_config_markdown(dn_buf *b);

#endif
