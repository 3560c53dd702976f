/* cli.h - what the files of the command line share: exit codes, options, the arguments of one run, text for people. */
#ifndef DN_CLI_H
#define DN_CLI_H

#include "proto.h"
#include <stdbool.h>
#include <stdio.h>

/* clang-format off */
/* name, code, meaning */
#define DN_EXITS(X)                                                                                                    \
    X(OK, 0, "done")                                                                                                   \
    X(FAILED, 1, "something failed on this side: a file could not be read or written, no memory")                      \
    X(USAGE, 2, "the command line is wrong; nothing was asked of the daemon")                                          \
    X(REFUSED, 3, "the daemon refused the request (HTTP 4xx), or it, or the job, was cancelled")                       \
    X(UNREACHABLE, 4, "the daemon cannot be reached, or went away")                                                    \
    X(SERVER, 5, "the daemon failed (HTTP 5xx), the job failed, or what was said cannot be understood")                \
    X(INTERRUPTED, 130, "Ctrl-C")

/* Options beside those that proto's tables give: name, long, short, argument (NULL: none), commands, help */
#define DN_OPTIONS(X)                                                                                                  \
    X(SERVER, "server", 0, "URL", DN_ALL, "Where denoised listens: http://HOST:PORT, https://HOST or unix:/PATH.")      \
    X(TOKEN, "token", 0, "TOKEN", DN_ALL, "Bearer token. It is wiped from the process list; --token-file is safer.")   \
    X(TOKEN_FILE, "token-file", 0, "FILE", DN_ALL, "Read the token from FILE: the first word that is no # comment.")    \
    X(HELP, "help", 'h', NULL, DN_ALL, "This text, or that of a command.")                                             \
    X(VERSION, "version", 'V', NULL, DN_ALL, "Print the version.")                                                     \
    X(OUTPUT, "output", 'o', "FILE", DN_MAKES, "Where the result goes; - is standard output. %d (or %03d) stands for "  \
      "the number of the sample; without it -0, -1, ... is put before the extension when there are several files.")    \
    X(FILE, "output", 'o', "FILE", DN_FETCH_C, "Where it goes; - is standard output. A file appears when it is whole.") \
    X(FOLDER, "output", 'o', "DIR", DN_SAVES, "Save every preview in this folder, made if need be, as STEP-SEED-NUMBER-LABEL.png.") \
    X(SHOW, "show", 0, "HOW", DN_PICTURES, "Show pictures here: auto, never, kitty, iterm, sixel or blocks (auto).")      \
    X(QUIET, "quiet", 'q', NULL, DN_QUIET, "Say nothing but errors.")                                                  \
    X(JSON, "json", 0, "FILE", DN_GENERATE_C, "Take the request from a JSON file (- is standard input); flags win.")    \
    X(ASYNC, "async", 0, NULL, DN_GENERATE_C, "Print the id and leave; `denoise wait ID` fetches the result.")          \
    X(WAIT, "wait", 0, NULL, DN_GENERATE_C, "When the queue is full, come back as often as the daemon says.")           \
    X(FOLLOW, "follow", 'f', NULL, DN_TRAIN_C, "Stay until the job ends; Ctrl-C leaves it running.")                   \
    X(DATASET_NAME, "dataset-name", 0, "NAME", DN_TRAIN_C, "What an uploaded --dataset is called (its own name).")      \
    X(WATCH, "watch", 0, NULL, DN_STATUS_C, "Go on, twice a second, until Ctrl-C.")                                    \
    X(RAW, "raw", 0, NULL, DN_LISTS, "Print the daemon's JSON as it is.")
/* clang-format on */

enum dn_exit {
#define X(name, code, text) DN_EXIT_##name = code,
    DN_EXITS(X)
#undef X
};

/* Kinds of commands, by the options that they have. */
enum {
    DN_GENERATE_C = 1,
    DN_WAIT_C = 2,
    DN_LIST_C = 4,
    DN_STATUS_C = 8,
    DN_CHANGE_C = 16,
    DN_TRAIN_C = 32,
    DN_FOLLOW_C = 64,
    DN_PUSH_C = 128,
    DN_FETCH_C = 256,
    DN_SAMPLES_C = 512
};
enum {
    DN_ALL = ~0,
    DN_MAKES = DN_GENERATE_C | DN_WAIT_C,
    DN_PICTURES = DN_MAKES | DN_TRAIN_C | DN_FOLLOW_C,
    DN_SAVES = DN_TRAIN_C | DN_FOLLOW_C | DN_SAMPLES_C,
    DN_QUIET = DN_PICTURES | DN_PUSH_C | DN_FETCH_C | DN_SAMPLES_C,
    DN_LISTS = DN_LIST_C | DN_STATUS_C | DN_SAMPLES_C
};

enum dn_option_id {
#define X(name, ...) DN_OPT_##name,
    DN_OPTIONS(X)
#undef X
        DN_OPT_COUNT
};

typedef struct dn_option {
    const char *name, *argument, *help;
    char short_name;
    int commands;
} dn_option;
extern const dn_option dn_options[DN_OPT_COUNT];

enum { DN_OPERANDS_MAX = 16, DN_QUERY_MAX = 4096 };

struct dn_args;
typedef struct dn_command {
    const char *name;     /* "load", or "jobs pause" */
    const char *operands; /* "ID NAME"; the last one may be "[NAME]" (left out) or "PATH..." (repeated); NULL: none */
    int id;
    const dn_fields *query;   /* flags that become the query string; NULL: none */
    const dn_fields *request; /* flags that become the JSON request; NULL: none */
    const char *summary, *text;
    int (*run)(struct dn_args *args); /* returns a dn_exit */
} dn_command;
extern const dn_command dn_commands[]; /* ends with a NULL name */

typedef struct dn_args {
    const dn_command *command;       /* NULL: only --help or --version */
    const char *value[DN_OPT_COUNT]; /* NULL: not given; "" where there is no argument */
    const char *operand[DN_OPERANDS_MAX];
    int n_operands;
    char *token;            /* of --token, whose place in argv is wiped; NULL: none */
    struct json_t *request; /* what the flags of command->request say */
    dn_buf query;           /* "limit=3&state=queued" */
} dn_args;

/* options.c. Returns 0, or DN_EXIT_USAGE (or _FAILED) after a complaint. dn_args_fini frees what it holds. */
int dn_args_read(dn_args *args, int argc, char **argv);
void dn_args_fini(dn_args *args);

/* help.c */
void dn_help_print(const dn_command *command, FILE *out);

/* text.c: what a server says never reaches the terminal unfiltered: control characters become U+FFFD. */
void dn_text_put(FILE *out, const char *text);
void dn_text_printf(FILE *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void dn_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* "denoise: ...\n" */
const char *dn_text_bytes(char out[24], double bytes);                        /* "6.3 MB" */
const char *dn_text_time(char out[24], double seconds);                       /* "0.84 s", "3 min 12 s" */
const char *dn_text_date(char out[24], double unix_s);                        /* "2026-11-24 10:56:58", "" of no time */
int dn_text_columns(const char *text); /* of a terminal; wide characters count one */

/* Members of what a server sent, whatever it is: a missing one, or one of another type, is "", 0 or false. */
const char *dn_json_text(const struct json_t *object, const char *key);
double dn_json_number(const struct json_t *object, const char *key);
long dn_json_count(const struct json_t *object, const char *key); /* clamped to 0 .. 10^9 */
bool dn_json_true(const struct json_t *object, const char *key);

/* input.c: what the user named. Each returns 0 or a dn_exit after a complaint.
 *
 * A JSON object of at most `max` bytes from a file ("-": standard input); complaints begin with `label`. */
int dn_json_read(struct json_t **out, const char *path, const char *label, size_t max);
int dn_id_check(const char *id);
enum dn_name_kind { DN_NAME, DN_NAME_OR_VERSION, DN_NAME_VERSION }; /* of a model or a dataset: NAME, NAME@VERSION */
int dn_name_check(const char *name, enum dn_name_kind kind);
/* May the daemon's `id` be put into a path? */
enum { DN_ID_MAX = 80 };
bool dn_id_is_plain(const char *id);

/* The commands. */
int dn_run_generate(dn_args *args); /* generate.c */
int dn_run_wait(dn_args *args);     /* wait.c */
int dn_run_models(dn_args *args);   /* models.c */
int dn_run_load(dn_args *args);
int dn_run_unload(dn_args *args);
int dn_run_model_push(dn_args *args); /* versions.c */
int dn_run_model_pull(dn_args *args);
int dn_run_model_config(dn_args *args);
int dn_run_model_alias(dn_args *args);
int dn_run_model_save(dn_args *args);
int dn_run_model_delete(dn_args *args);
int dn_run_status(dn_args *args);   /* status.c */
int dn_run_requests(dn_args *args); /* requests.c */
int dn_run_cancel(dn_args *args);
int dn_run_train(dn_args *args); /* train.c */
int dn_run_jobs(dn_args *args);  /* jobs.c */
int dn_run_job(dn_args *args);
int dn_run_job_checkpoints(dn_args *args);
int dn_run_job_samples(dn_args *args);
int dn_run_job_follow(dn_args *args);
int dn_run_job_pause(dn_args *args);
int dn_run_job_resume(dn_args *args);
int dn_run_job_cancel(dn_args *args);
int dn_run_job_save(dn_args *args);
int dn_run_job_set(dn_args *args);
int dn_run_job_publish(dn_args *args);
int dn_run_job_metrics(dn_args *args);
int dn_run_datasets(dn_args *args); /* datasets.c */
int dn_run_dataset(dn_args *args);
int dn_run_dataset_push(dn_args *args);
int dn_run_dataset_delete(dn_args *args);

#endif
