/* models.h - models and their versions: what is known, what is loaded, who uses it.
 *
 * A folder of --models is version 1 of its name; uploads, copies and what jobs publish are further ones, in the state folder
 * (models_versions.c). One version of a name is live: the bare name means it, from admission on.
 *
 * A model is read and packed on the slow lane, its networks (one per size) are adopted by every worker at a step
 * boundary, and given back the same way before it is freed. Whoever has a request admitted on it holds it; only a model
 * that nobody holds can be evicted or finish unloading. One load at a time, in the order they were asked for. */
#ifndef DN_SERVER_MODELS_H
#define DN_SERVER_MODELS_H

#include "app_parts.h"

enum { DN_VERSIONS_MAX = 64 /* of one model */ };

typedef struct dn_known dn_known; /* a version of a model */

/* A model's network at one size. */
typedef struct dn_net_use {
    dn_link link;
    dn_known *known;
    uint64_t id;
    int height, width;
    dn_net *net;                     /* NULL while it is made */
    bool ready;                      /* every worker has it */
    int n_away;                      /* adoptions under way */
    dn_adoption *message[DN_DEVICES_MAX]; /* of the workers that have it: what gives it back needs no memory */
    bool lost;                       /* a worker could not take it */
    double price_ms[DN_DEVICES_MAX]; /* list price per row */
    dn_link waiters;
} dn_net_use;

struct dn_known {
    dn_link load_link; /* in the queue of loads */
    char name[DN_NAME_LEN_MAX + 1];
    char id[DN_NAME_LEN_MAX + 16]; /* name@version */
    int64_t version;
    bool live;   /* of its name the one that the bare name means */
    bool kept;   /* in the state folder, with a row in the store */
    bool doomed; /* deleted: nobody finds it any more, and it goes when it is unloaded */
    char owner[DN_TENANT_MAX]; /* of a kept one */
    char hash[65];             /* of a kept one's weights */
    char *dir;
    int64_t file_bytes; /* of its weight files: the estimate before it is read */
    enum dn_model_state state;
    dn_error error;   /* of DN_MODEL_FAILED */
    bool start;       /* of the start set */
    bool stay;        /* of "all that fit": nothing is evicted for it */
    int64_t asked_ms; /* when its load was asked for */
    int64_t begun_ms; /* when its load began */
    dn_footprint need; /* what it will hold; weights are 0 until that is known */
    dn_model *model;  /* DN_MODEL_LOADED and UNLOADING; while loading, until all workers have it */
    const dn_model_info *info;
    int64_t weights, forms, arena; /* bytes, of held[] */
    dn_link nets, waiters, calls;
    int holders;   /* requests */
    int readers;   /* of its folder, which stays as long */
    int busy;      /* lane work and adoptions under way */
    bool dropped;  /* unloading: the workers have been asked */
    uint64_t used; /* order of the last use */
    int label;     /* of the metrics */
    dn_work freeing;      /* the next three belong to the slow lane while it is under way */
    dn_model *freed;
    dn_link freed_nets;
    dn_app *app;
};

/* Somebody who needs a network. */
typedef struct dn_waiter {
    dn_link link;
    int height, width; /* 0: the model's own */
    /* Once, unless dn_waiter_leave comes first: `net`, or NULL and *err. */
    void (*ready)(struct dn_waiter *waiter, dn_net_use *net, const dn_http_error *err);
} dn_waiter;

/* Scan the folder; begin to load the start set. */
int dn_models_open(dn_app *app, dn_error *err);
/* Read every model of the folder, one after the other, as loads would: --check. */
int dn_models_check(const char *root, dn_error *err);
void dn_models_close(dn_app *app);          /* the workers have stopped */
bool dn_models_started(const dn_models *m); /* the start set is there, or has failed */

/* By "name" or "name@version"; NULL: the only one (loaded, or known). Returns 0 or a DN_H code. */
int dn_models_find(dn_known **out, dn_models *m, const char *name, dn_http_error *err);
int dn_models_count(const dn_models *m);
dn_known *dn_models_at(dn_models *m, int i);
dn_net_use *dn_models_net(dn_models *m, uint64_t id); /* NULL: none (any more) */

/* 0: the waiter will be told. A DN_H code: refused at once. `*out` is not NULL: it is there, nothing will be told. */
int dn_models_want(dn_app *app, dn_known *k, dn_waiter *waiter, dn_net_use **out, dn_http_error *err);
int dn_known_failed(const dn_known *k, dn_http_error *err); /* the refusal that a failed model is */
void dn_waiter_leave(dn_waiter *waiter);
void dn_known_hold(dn_app *app, dn_known *k);
void dn_known_release(dn_app *app, dn_known *k);

/* Ask for a load or an unload. 0 (or it is so already), or a DN_H code. */
int dn_models_load(dn_app *app, dn_known *k, dn_http_error *err);
int dn_models_unload(dn_app *app, dn_known *k, dn_http_error *err);
void dn_models_adopted(dn_app *app, dn_adoption *adoption);
/* `call` is answered when the model's state is settled. */
int dn_models_await(dn_known *k, dn_call *call);
/* Make room for `bytes`, by evicting idle models (not `keep`) if need be. 0: it fits now. 1: it will when what is being
 * unloaded is gone. -1: it does not. */
int dn_models_make_room(dn_app *app, int64_t bytes, const dn_known *keep);

/* Until a model that is being loaded, or waits to be, will be there: at the pace of the loads so far. */
double dn_models_wait_ms(const dn_app *app, const dn_known *k);

/* A card of what is known; borrowed strings. `size` (DN_SIZES_MAX) and `version` are scratch that it points into. */
typedef struct dn_card_scratch {
    dn_size size[DN_SIZES_MAX];
    dn_model_version version[DN_VERSIONS_MAX];
} dn_card_scratch;
void dn_known_card(const dn_known *k, dn_model_card *card, dn_card_scratch *scratch);

/* models_versions.c: what is in the state folder */
typedef struct dn_making dn_making;
/* Read the rows, before the store's thread starts; say which versions are live. */
int dn_versions_open(dn_app *app, dn_error *err);
void dn_versions_tick(dn_app *app); /* what was deleted goes when it is unloaded */
/* On the lane of files: make the folder `dir` of a diffusers model from `arg`; may end with DN_E_CANCELLED while *stop is true. */
typedef int dn_version_source(void *arg, const char *dir, const _Atomic(bool) *stop, dn_error *err);
/* A new version of the model `name`: made, loaded, tried with one evaluation, then committed and visible. `publish`: it is made
 * live; else only the first of a name is. `done` is told once, with the version or an error; it frees `arg`. Returns 0 or a DN_H code
 * (nothing is told then). */
typedef void dn_version_done(void *arg, dn_known *k, const dn_error *err);
int dn_versions_make(dn_app *app, const char *name, const char *owner, const char *source, bool publish, dn_version_source *make,
                     dn_version_done *done, void *arg, dn_http_error *err);
/* Stop what was asked for with this `arg`, if it is still made or tried: nothing stays of it, and `done` is told DN_E_CANCELLED. */
void dn_versions_stop(dn_app *app, const void *arg);
void dn_versions_abort(dn_app *app); /* stop all of them: the daemon ends */
/* What has been asked to become a version of a name and is not one: it is being made, or `error` says why it was refused. Refusals
 * stay until a later one of the name and owner becomes a version; the newest of them are kept. */
typedef struct dn_attempt {
    dn_link link;
    char name[DN_NAME_LEN_MAX + 1], owner[DN_TENANT_MAX], source[64];
    double created_at;
    dn_error error; /* code 0: it is being made */
} dn_attempt;
/* The last of the name; `tenant` not NULL: of those that are its own. NULL: none. */
const dn_attempt *dn_versions_attempt(const dn_app *app, const char *name, const char *tenant);
void dn_versions_close(dn_models *m);
/* Make it live: committed, then seen by the next admission. */
int dn_versions_alias(dn_app *app, dn_known *k, dn_version_done *done, void *arg, dn_http_error *err);
int dn_versions_delete(dn_app *app, dn_known *k, dn_version_done *done, void *arg, dn_http_error *err);
/* May the tenant change the model of this name? All versions in the state must be its own. */
bool dn_versions_mine(const dn_app *app, const char *name, const char *tenant);
/* The names of --models are the operator's: only the scope admin may add versions to one or say which is live, for the bare name is
 * what everybody else samples from. 0, or DN_H_FORBIDDEN. */
int dn_versions_may(const dn_app *app, const char *name, bool admin, dn_http_error *err);
dn_known *dn_models_live(dn_models *m, const char *name); /* NULL: there is none */

/* models.c, for it: takes dir. NULL: out of memory. */
dn_known *dn_models_add(dn_models *m, const char *name, int64_t version, char *dir, int64_t bytes);
char *dn_state_fresh(const dn_app *app); /* a new path in incoming/, malloc'ed. NULL: out of memory */
int64_t dn_model_file_bytes(const char *dir);

/* models_load.c: the queue of loads, adoption, freeing */
struct dn_models {
    dn_known **known; /* by name, then version */
    int n;
    dn_link attempts; /* oldest first */
    dn_link makings;  /* on the lane */
    int n_refused;    /* of them */
    dn_link loads;
    dn_known *loading; /* at its head, at work */
    int n_start;       /* of the start set, still to come */
    double byte_ms;    /* how long a byte of a weight file takes to load, smoothed; 0: not known yet */
    uint64_t order, net_id;
};
void dn_net_use_free(dn_net_use *u);
void dn_known_enqueue(dn_app *app, dn_known *k);
dn_net_use *dn_known_make_net(dn_app *app, dn_known *k, int height, int width);
void dn_known_settle(dn_app *app, dn_known *k); /* unloading and nobody left: go on with it */

#endif
