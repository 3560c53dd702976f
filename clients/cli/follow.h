/* follow.h - the events of one request, as they come: progress, previews, results, the end. */
#ifndef DN_CLI_FOLLOW_H
#define DN_CLI_FOLLOW_H

#include "http.h"
#include "output.h"
#include "progress.h"

typedef struct dn_follow {
    dn_client *client;
    dn_output_to *output;
    dn_progress progress;
    char id[DN_ID_MAX + 1]; /* of the request; "" until it is known */
    char last_event[DN_SSE_NAME_MAX + 1];
    bool done; /* the last event came: `exit` is what became of it */
    int exit;
    dn_sse sse, status_sse;
} dn_follow;

void dn_follow_init(dn_follow *f, dn_client *client, dn_output_to *output, bool silent);
void dn_follow_fini(dn_follow *f);
/* Ask for an event stream and follow it to its end, with /status beside it on a terminal. Returns what dn_client_run
 * does; t->sse, t->accept are set here. */
int dn_follow_run(dn_follow *f, dn_transfer *t);
/* "seed 7, model ..., 20 steps": what is needed to have it again, and where the time went. `done` is the event's data
 * or a request's object. */
void dn_follow_summary(const dn_follow *f, const struct json_t *done);

#endif
