/* http_pages.c - JSON for the refusals that libmicrohttpd makes by itself.
 *
 * A head beyond its memory, a malformed request line or chunk never reach our handler: MHD answers with HTML of its own
 * and has no hook for it. But it announces each such answer to the logger, with the status, and then makes the response
 * with a public function, which as any symbol of a shared library can be defined by the program: this one is, and puts
 * the error object in place of the HTML. We never call that function ourselves. Should a libmicrohttpd ever bind it
 * internally, its HTML would be seen again, and tests/api would fail. */
#include "http_internal.h"
#include "http_parse.h"
#include <stdlib.h>
#include <string.h>

static _Thread_local unsigned announced; /* the status of the answer that MHD is about to make */

/* MHD's status -> our code */
static const struct {
    unsigned status;
    int id;
} pages[] = {
    { 413, DN_H_TOO_LARGE },
    { 414, DN_H_URI },
    { 431, DN_H_HEADERS },
    { 500, DN_H_INTERNAL },
};

/* A Content-Length that is none: MHD 0.9.75 sends the header of its refusal twice, so it must not come to that. It does
 * not say whose; it is the one head that has just become complete with such a length. */
static void refuse_bad_length(dn_listener *l)
{
    for (dn_conn *conn = l->http->conns; conn; conn = conn->next) {
        const char *length = conn->listener == l && conn->state == DN_CONN_HEAD
                                 ? MHD_lookup_connection_value(conn->mhd, MHD_HEADER_KIND, "Content-Length")
                                 : NULL;
        if (length && !dn_is_length(length))
            dn_conn_refuse(conn, DN_H_BAD_HEADER, "Content-Length is not a number of bytes");
    }
}

void dn_http_pages_log(void *cls, const char *fmt, va_list args)
{
    if (strstr(fmt, "Content-Length"))
        refuse_bad_length(cls);
    else if (strncmp(fmt, "Error processing request", 24) == 0)
        announced = va_arg(args, unsigned);
}

static void write_page(dn_buf *body)
{
    int id = DN_H_INVALID;
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
        if (pages[i].status == announced)
            id = pages[i].id;
    dn_http_error err;
    if (id == DN_H_INVALID)
        dn_http_fail(&err, id, NULL,
                     announced == 505 ? "only HTTP/1.x is spoken here" : "this is not a well-formed request");
    else
        dn_http_fail(&err, id, NULL, NULL);
    dn_http_error_write(&err, body);
}

__attribute__((visibility("default"))) struct MHD_Response *
MHD_create_response_from_buffer(size_t size, void *buffer, enum MHD_ResponseMemoryMode mode)
{
    (void)size, (void)buffer, (void)mode;
    dn_buf body;
    dn_buf_init(&body, 4096);
    write_page(&body);
    announced = 0;
    size_t n;
    char *data = dn_buf_take(&body, &n);
    dn_buf_fini(&body);
    struct MHD_Response *r = data ? MHD_create_response_from_buffer_with_free_callback(n, data, free) : NULL;
    if (!r)
        free(data);
    else
        MHD_add_response_header(r, "Content-Type", "application/json");
    return r;
}
