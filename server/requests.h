/* requests.h - requests from admission to the end of what is kept of them.
 *
 * A request is the loop's. Its samples are a dn_run while a worker has them, its pictures are encoded by lane work that
 * carries its own copies; the request itself is never seen by another thread. It ends once, and is freed when neither a
 * worker nor a lane has anything of it.
 *
 * States: queued (waiting for its model, or for its first step) -> running -> succeeded | failed | cancelled. What is
 * kept afterwards (asynchronous requests, and those that outlive their client) is bounded by bytes, number and age; the
 * ids of others are remembered in a ring, so that they are 410, not 404. */
#ifndef DN_SERVER_REQUESTS_H
#define DN_SERVER_REQUESTS_H

#include "app_parts.h"
#include "models.h"

/* How the answer goes out. */
enum dn_answer { DN_ANSWER_JSON, DN_ANSWER_BARE, DN_ANSWER_EVENTS, DN_ANSWER_LATER };

typedef struct dn_logged {
    int64_t id;
    int key; /* < 0: kept; else a later one of the same key replaces it */
    char *text;
    size_t n;
} dn_logged;

/* One encoded result. Answers under way and what is kept share its bytes. */
typedef struct dn_encoded {
    void *data;
    size_t n;
    struct dn_shared *shared; /* the loop's; NULL: it has never been lent */
    char sha256[65]; /* "" for a grid */
} dn_encoded;

/* What the store has of an asynchronous request (requests_store.c); all zero for any other. */
typedef struct dn_request_row {
    bool there;    /* it has a row, or one is on its way */
    bool resolved; /* the row's spec is: the model's defaults are in it */
    bool moved;    /* a step of it was done since it was begun */
    bool saving, saved;
    bool leaving;       /* the daemon stops: it goes on after the next start */
    bool parked;        /* accepted, and waits for room (or for its turn) to begin */
    bool suspect;       /* the daemon ended before a step of it was done */
    int starts, tries;  /* runs begun; of those the last ones without a step */
    int end_state;      /* what is being saved */
    int64_t file_bytes; /* of its results on the disk; 0: they are in memory */
    dn_run *run;        /* waits until its start is committed */
    char numerics_before[160];
} dn_request_row;

typedef struct dn_request {
    dn_link link, alive, by_id, by_run; /* alive: until it has ended */
    dn_app *app;
    char id[DN_REQUEST_ID_LEN + 1];
    uint64_t run; /* its number, for workers */
    char tenant[DN_TENANT_MAX];
    double weight;
    enum dn_request_state state;
    double arrived_ms;              /* dn_clock_ms() */
    double created_at, finished_at; /* Unix seconds */

    /* what was asked: until the samples are made */
    dn_arena *arena;
    struct json_t *json;
    dn_generate_request in;
    struct dn_rows *rows;                     /* POST /denoise: the rows it brings */
    bool denoise, async, accept_given, keyed; /* keyed: with an Idempotency-Key */
    char accept[40];                          /* the media type that Accept prefers */

    /* resolved */
    dn_known *known;
    bool holds; /* known is held */
    dn_waiter waiter;
    bool waiting; /* for its network */
    char model[DN_NAME_LEN_MAX + 16], numerics[160];
    enum dn_answer answer;
    int n, steps, height, width, channels, out_channels;
    int format, layout;
    double range[2];
    int64_t seed;
    int preview_every;
    bool keep_on; /* runs on without its client */

    /* on its device */
    dn_place *place; /* NULL before */
    bool on_device;  /* the worker has its run */
    bool cancelling;
    double price_ms, left_ms; /* per row; list price of what has not run */
    int64_t rows_left;
    int step;
    int64_t slot_bytes, result_bytes; /* held in the budget */
    dn_timing timing;
    dn_http_error failure; /* why it did not succeed; id 0: nothing */

    /* its results */
    int jobs;             /* lane work under way */
    dn_picture **picture; /* n; NULL before it came, and when it is no longer needed */
    dn_encoded *encoded;  /* n, or 1 of a grid or array */
    bool previewing[DN_N_MAX];
    bool previewed;
    bool body_made;
    void *body; /* of the JSON answer */
    size_t body_n;

    /* who listens */
    dn_call *call;     /* waits for the answer */
    dn_stream *stream; /* reads its events as they come, pictures inside */
    dn_link watchers;
    bool eventful; /* events are kept from here on */
    int64_t event_id;
    dn_logged *log;
    int n_log, log_cap;
    bool ended;
    dn_request_row row;
} dn_request;

/* ---- requests.c: life ------------------------------------------------------------------------------------------ */

int dn_requests_open(dn_app *app, dn_error *err);
void dn_requests_close(dn_app *app); /* no worker and no lane has anything of any request */
/* A request with an id, in no state yet. NULL when out of memory. */
dn_request *dn_request_new(dn_app *app, dn_call *call);
/* One that an earlier process had: with this id, without a call. NULL when out of memory, or it is no id. */
dn_request *dn_request_again(dn_app *app, const char *id);
void dn_request_kept_again(dn_request *r);                  /* it had ended */
void dn_request_remember_gone(dn_app *app, const char *id); /* 410 from now on */
int dn_request_results(const dn_request *r);                /* of encoded[] */
/* Accepted, but it cannot begin now: it is not active, and dn_requests_resume tries it again. */
void dn_request_park(dn_request *r);
int dn_requests_parked(const dn_app *app);
void dn_request_unpark(dn_request *r);
/* It is over before it began: the call is answered with `err`. */
void dn_request_refuse(dn_request *r, const dn_http_error *err, double retry_ms);
dn_request *dn_request_find(dn_app *app, const char *id);
dn_request *dn_request_by_run(dn_app *app, uint64_t run);
bool dn_request_forgotten(dn_app *app, const char *id); /* 410 rather than 404 */
void dn_request_cancel(dn_request *r);                  /* within one step; harmless when it has ended */
/* Something of it came back: go on, or end. */
void dn_request_advance(dn_request *r);
void dn_requests_abort(dn_app *app); /* the time to drain is over */
void dn_requests_cancel_all(dn_app *app, const dn_known *k);
int dn_requests_active(const dn_app *app);
uint64_t dn_requests_total(const dn_app *app); /* since the start */
void dn_requests_count(const dn_app *app, int *running, int *waiting);
/* Drop the oldest kept results until `bytes` fit into the memory budget; false: they do not even so. */
bool dn_requests_shed(dn_app *app, int64_t bytes);
void dn_request_forget_asked(dn_request *r); /* arena, JSON: it is resolved */
/* Drop kept results that are too old, too many, or too large together. */
void dn_requests_trim(dn_app *app);
/* Of those that have not ended, in the order of arrival; NULL: the first, the end. */
dn_request *dn_requests_next(dn_app *app, dn_request *r);
/* Of all, what is kept too, newest first. */
dn_request *dn_requests_prev(dn_app *app, dn_request *r);
/* dn_request_info of it; `images` is its scratch, DN_N_MAX, and `urls` what those point to. */
typedef struct dn_info_scratch {
    dn_image images[DN_N_MAX];
    char urls[DN_N_MAX][64];
} dn_info_scratch;
void dn_request_info_of(dn_request *r, dn_request_info *info, dn_info_scratch *scratch);
double dn_request_eta_ms(const dn_request *r);
const char *dn_format_type(int format);
/* Answer 200 with these bytes, without a copy of them. */
void dn_encoded_reply(dn_encoded *e, dn_call *call, const char *type);
void dn_encoded_drop(dn_encoded *e); /* its bytes; length and hash stay */

/* ---- requests_admit.c: from a parsed request to a run on a device ---------------------------------------------- */

/* Find its model, wait for its network if need be, resolve, price, admit; every refusal answers the call. */
void dn_request_begin(dn_request *r);
void dn_request_stop_waiting(dn_request *r); /* for its model; harmless when it does not */
/* Refuse those whose deadline has passed while they wait for a model. */
void dn_requests_expire(dn_app *app);

/* ---- requests_start.c ------------------------------------------------------------------------------------------- */

/* It is taken, and begins when the store knows of it, if it has to. */
void dn_request_start(dn_request *r, int64_t rows, dn_run *run);
/* What the plan and dn_request_start reserved is given back; the run is not the worker's and is freed. */
void dn_request_undo_start(dn_request *r, dn_run *run);
/* It is committed, or need not be: its client hears of it, and the run is the worker's from here. */
void dn_request_launch(dn_request *r, dn_run *run);
/* The body of its 202; NULL when out of memory. */
char *dn_request_accepted_text(dn_request *r, size_t *n);
void dn_request_reply_accepted(dn_request *r, char *text, size_t n); /* takes the text; without a call it frees it */
void dn_request_accept(dn_request *r);                               /* its 202, now */

/* ---- requests_events.c ---------------------------------------------------------------------------------------- */

void dn_request_event_queued(dn_request *r);
void dn_request_event_progress(dn_request *r);
void dn_request_event_image(dn_request *r, int index, char *text_b64, size_t n); /* text may be NULL; takes it */
void dn_request_event_preview(dn_request *r, int index, char *text, size_t n);   /* takes it */
void dn_request_event_end(dn_request *r);   /* `done` or `error`; closes all streams */
void dn_request_event_leave(dn_request *r); /* closes all streams: the story goes on after the next start */
int64_t dn_request_event_id(dn_request *r); /* the next */
enum { DN_EVENTS_PER_RUN = 1000000 };       /* ids of a later run are greater than any of an earlier one */
void dn_request_event_again(dn_request *r, int64_t id, const char *text, size_t n); /* kept before a restart */
/* A stream of its events from after `last_id` on. */
int dn_request_watch(dn_request *r, dn_call *call, int64_t last_id);
/* `call` is answered with the request's info when it has ended. */
int dn_request_await(dn_request *r, dn_call *call);
void dn_request_log_free(dn_request *r);

/* ---- requests_encode.c: lane work ----------------------------------------------------------------------------- */

int dn_request_encode_picture(dn_request *r, int index);           /* r->picture[index] has come */
int dn_request_encode_preview(dn_request *r, dn_picture *picture); /* takes the picture */
int dn_request_encode_body(dn_request *r);
bool dn_request_needs_pictures(const dn_request *r); /* each sample is encoded by itself */
bool dn_request_needs_body(const dn_request *r);

/* ---- requests_store.c: asynchronous requests, on the disk ------------------------------------------------------- */

bool dn_requests_durable(const dn_app *app); /* there is a folder to keep them in */
/* Its row, before its 202: it waits for its model. On failure it is refused later. */
int dn_request_store_accept(dn_request *r);
/* Count the start, and have the resolved form kept; dn_request_launch follows. Takes the run if it returns 0. */
int dn_request_store_start(dn_request *r, dn_run *run);
void dn_request_store_moved(dn_request *r); /* a step of it is done */
/* Its end and its results. true: dn_request_advance comes when they are kept. false: there is nothing to be kept (any
 * more). */
bool dn_request_store_end(dn_request *r, enum dn_request_state state);
void dn_request_store_drop(dn_request *r); /* row and results; the request may be freed at once */
void dn_requests_store_leave(dn_app *app); /* the daemon stops in good order: nobody is a suspect */

/* ---- requests_file.c -------------------------------------------------------------------------------------------- */

/* On a lane: the results, one after the other, as `part`, which becomes `path` in `folder` once it is synced. Not 0:
 * errno says why, and nothing is left. */
int dn_results_write(const dn_encoded *v, int n, const char *folder, const char *part, const char *path);
/* Answer with the k-th result, from the disk. */
int dn_request_send_file(dn_request *r, int k, dn_call *call, const char *type);

/* ---- requests_recover.c ----------------------------------------------------------------------------------------- */

/* Read what an earlier process left: the store's thread does not run yet, the models are known. */
int dn_requests_recover(dn_app *app, dn_error *err);
void dn_requests_resume(dn_app *app); /* begin what is parked, as far as there is room */
bool dn_requests_suspects(dn_app *app); /* is there one that may be why the daemon ended, and has not cleared itself yet? */

/* ---- events of workers ---------------------------------------------------------------------------------------- */

/* requests_steps.c */
extern const dn_worker_events dn_requests_events; /* arg: the dn_app; `adopted` goes to the models */

#endif
