/* idempotency.h - the header Idempotency-Key: nothing is done twice.
 *
 * A key belongs to an owner, a method and a path, and is good for 24 hours. While its first call is worked on, further
 * calls with the same body and query wait for that answer; later ones get the stored one, bytes and headers. Another
 * body or query is 422 `idempotency_mismatch`. Only answers that did something (2xx) are kept: after a refusal the next call tries again,
 * and so does the next that waits when the first one's client leaves before its answer.
 *
 * A route is made so by handing its handler to dn_idem_handle. What an operation makes durable, it keeps together with
 * the answer (dn_idem_answer_of, dn_idem_keep), so that no crash can come between them; of other routes the answer is
 * kept when it has been given. */
#ifndef DN_SERVER_IDEMPOTENCY_H
#define DN_SERVER_IDEMPOTENCY_H

#include "app_parts.h"

/* An answer that is on its way into the store. */
typedef struct dn_idem_answer dn_idem_answer;

int dn_idem_open(dn_app *app, dn_error *err);
void dn_idem_tick(dn_app *app);  /* drops what is too old, or too much */
void dn_idem_close(dn_app *app); /* the store has stopped, calls were told */

/* handler(call): at once without the header, or when the store says that the key is new. Otherwise the call is answered
 * here. */
void dn_idem_handle(dn_app *app, dn_call *call, void (*handler)(dn_call *call));

/* The answer that the call is about to get, with the header `Location` if not NULL: for an operation that keeps it with
 * what it makes. *out is NULL when the call has no key. Returns 0 or DN_E_MEMORY. The loop's thread. */
int dn_idem_answer_of(dn_idem_answer **out, dn_app *app, const dn_call *call, int status, const char *location,
                      const char *content_type, const void *data, size_t n);
/* In dn_store_op.work; `a` NULL is fine. */
int dn_idem_keep(struct sqlite3 *db, const dn_idem_answer *a, dn_error *err);
void dn_idem_answer_free(dn_idem_answer *a);

#endif
