/* requests_start.c - an admitted request on its way to a device: what is reserved for it, its 202, the store, the
 * worker. */
#include "requests.h"

#include <stdlib.h>

char *dn_request_accepted_text(dn_request *r, size_t *n)
{
    dn_request_info info;
    dn_info_scratch scratch;
    dn_buf b;
    dn_request_info_of(r, &info, &scratch);
    dn_buf_init(&b, 64 << 10);
    dn_fields_write(&dn_request_info_fields, &info, &b);
    return dn_buf_take(&b, n);
}

void dn_request_reply_accepted(dn_request *r, char *text, size_t n)
{
    dn_call *call = r->call;
    r->call = NULL;
    if (!call) {
        free(text);
        return;
    }
    dn_call_facts_of(call)->model = r->known->name;
    dn_reply_header(call, "Location", "/requests/%s", r->id);
    dn_reply_take(call, 202, "application/json", text, text ? n : 0, free);
}

void dn_request_accept(dn_request *r)
{
    size_t n = 0;
    char *text = r->call ? dn_request_accepted_text(r, &n) : NULL;
    dn_request_reply_accepted(r, text, n);
}

void dn_request_launch(dn_request *r, dn_run *run)
{
    r->on_device = true;
    dn_request_forget_asked(r);
    if (r->answer == DN_ANSWER_EVENTS && r->call) {
        dn_call_facts_of(r->call)->model = r->known->name;
        r->stream = dn_stream_open(r->call);
        r->call = NULL; /* without a stream the call has been refused */
        r->cancelling = !r->stream;
    }
    dn_request_event_queued(r);
    dn_worker_run(r->place->worker, run);
    if (r->cancelling)
        (void)dn_worker_cancel(r->place->worker, r->run);
}

void dn_request_undo_start(dn_request *r, dn_run *run)
{
    r->place->figures.backlog_ms -= r->left_ms;
    r->app->budget.held[DN_HOLD_SLOTS] -= r->slot_bytes;
    r->app->budget.held[DN_HOLD_RESULTS] -= r->result_bytes;
    r->rows_left = r->slot_bytes = r->result_bytes = 0;
    r->left_ms = 0;
    free(r->picture);
    free(r->encoded);
    r->picture = NULL;
    r->encoded = NULL;
    dn_run_free(run);
}

void dn_request_start(dn_request *r, int64_t rows, dn_run *run)
{
    r->rows_left = rows;
    r->left_ms = rows * r->price_ms;
    r->place->figures.backlog_ms += r->left_ms;
    r->app->budget.held[DN_HOLD_SLOTS] += r->slot_bytes;
    r->app->budget.held[DN_HOLD_RESULTS] += r->result_bytes;
    if (r->answer == DN_ANSWER_LATER && dn_requests_durable(r->app)) {
        if (!dn_request_store_start(r, run))
            return;
        dn_http_error err = { 0 };
        dn_http_fail(&err, DN_H_MEMORY, NULL, "no memory to keep the request");
        dn_request_undo_start(r, run);
        dn_request_refuse(r, &err, 0);
        return;
    }
    if (r->answer == DN_ANSWER_LATER)
        dn_request_accept(r);
    dn_request_launch(r, run);
}
