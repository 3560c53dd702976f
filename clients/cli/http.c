/* http.c - see http.h. */
#include "http.h"
#include "token.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#ifndef DN_VERSION
#error "the build gives DN_VERSION"
#endif

enum {
    CONNECT_TIMEOUT_S = 10,
    SILENCE_MAX_S = 300, /* of a stream; the daemon pings every 15 s, but not while it loads a model */
    POLL_MS = 200,       /* how late an interrupt may be noticed */
    RETRY_AFTER_MAX_S = 3600,
    PAUSE_FIRST_MS = 200,
    PAUSE_MAX_S = 30,
    REFUSAL_MAX = 64 << 10,
    URL_MAX = 2048
};
static const char default_server[] = "http://127.0.0.1:8760";

/* ---- interrupts ------------------------------------------------------------------------------------------------ */

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

void dn_interrupt_catch(void)
{
    struct sigaction a = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

bool dn_interrupted(void) { return interrupted; }
void dn_interrupt_forget(void) { interrupted = 0; }

void dn_pause(double seconds)
{
    for (; seconds > 0 && !interrupted; seconds -= POLL_MS / 1e3)
        poll(NULL, 0, seconds < POLL_MS / 1e3 ? (int)(seconds * 1e3) : POLL_MS);
}

void dn_pause_again(int n)
{
    double seconds = PAUSE_FIRST_MS / 1e3;
    while (--n && seconds < PAUSE_MAX_S)
        seconds *= 2;
    dn_pause(seconds < PAUSE_MAX_S ? seconds : PAUSE_MAX_S);
}

/* ---- the client ------------------------------------------------------------------------------------------------ */

static int no_memory(void)
{
    dn_complain("no memory for a connection");
    return DN_EXIT_FAILED;
}

static bool is_loopback(const char *url)
{
    static const char *const names[] = { "localhost", "127.", "[::1]" };
    const char *host = strstr(url, "://");
    for (int i = 0; host && i < 3; i++)
        if (!strncasecmp(host + 3, names[i], strlen(names[i])))
            return true;
    return false;
}

static int set_url(dn_client *c, const char *server)
{
    static const char unix_scheme[] = "unix:";
    c->named = server;
    if (!strncmp(server, unix_scheme, sizeof unix_scheme - 1)) {
        c->unix_path = server + sizeof unix_scheme - 1;
        server = "http://localhost";
    }
    bool known = !strncmp(server, "http://", 7) || !strncmp(server, "https://", 8);
    if ((c->unix_path && *c->unix_path != '/') || (!known && strstr(server, "://")) || !*server ||
        strlen(server) > URL_MAX) {
        dn_complain("--server must be http://HOST:PORT, https://HOST or unix:/PATH, got \"%.100s\"", c->named);
        return DN_EXIT_USAGE;
    }
    if (asprintf(&c->url, "%s%s", known ? "" : "http://", server) < 0) {
        c->url = NULL;
        return no_memory();
    }
    for (size_t n = strlen(c->url); n && c->url[n - 1] == '/'; n--)
        c->url[n - 1] = 0;
    c->direct = is_loopback(c->url);
    return 0;
}

static int set_token(dn_client *c, const dn_args *args)
{
    char token[DN_TOKEN_MAX + 1], header[DN_TOKEN_MAX + 40];
    int rc = dn_token_find(token, args->token, args->value[DN_OPT_TOKEN_FILE], getenv("DENOISED_TOKEN"));
    if (!rc && *token) {
        snprintf(header, sizeof header, "Authorization: Bearer %s", token);
        c->auth = curl_slist_append(NULL, header);
        rc = c->auth ? 0 : no_memory();
    }
    explicit_bzero(token, sizeof token);
    explicit_bzero(header, sizeof header);
    return rc;
}

int dn_client_init(dn_client *c, const dn_args *args)
{
    *c = (dn_client){ 0 };
    const char *server = args->value[DN_OPT_SERVER];
    if (!server)
        server = getenv("DENOISED_URL");
    int rc = set_url(c, server && *server ? server : default_server);
    if (!rc)
        rc = set_token(c, args);
    if (!rc && (curl_global_init(CURL_GLOBAL_DEFAULT) || !(c->multi = curl_multi_init())))
        rc = no_memory();
    if (rc)
        dn_client_fini(c);
    return rc;
}

void dn_client_fini(dn_client *c)
{
    if (c->multi) {
        curl_multi_cleanup(c->multi);
        curl_global_cleanup();
    }
    curl_slist_free_all(c->auth);
    free(c->url);
    *c = (dn_client){ 0 };
}

/* ---- one transfer ---------------------------------------------------------------------------------------------- */

/* The value of the header `name`, cut to `size`; false when `line` is another one. */
static bool header_value(const char *line, size_t len, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);
    if (len <= n || line[n] != ':' || strncasecmp(line, name, n))
        return false;
    for (line += n + 1, len -= n + 1; len && (*line == ' ' || *line == '\t'); len--)
        line++;
    while (len && strchr("\r\n \t", line[len - 1]))
        len--;
    snprintf(out, size, "%.*s", len < size ? (int)len : (int)size - 1, line);
    return true;
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    dn_transfer *t = arg;
    char value[80];
    if (header_value(line, size * n, "Content-Type", value, sizeof value))
        snprintf(t->content_type, sizeof t->content_type, "%.*s", (int)strcspn(value, "; "), value);
    else if (header_value(line, size * n, "Transfer-Encoding", value, sizeof value))
        t->framed = true;
    else if (header_value(line, size * n, "Content-Length", value, sizeof value)) {
        t->framed = true;
        t->length = strtoll(value, NULL, 10);
    } else if (header_value(line, size * n, "Retry-After", value, sizeof value)) {
        char *end;
        long s = strtol(value, &end, 10);
        t->retry_after_s = end == value || *end || s < 0 ? -1 : s < RETRY_AFTER_MAX_S ? s : RETRY_AFTER_MAX_S;
    }
    return size * n;
}

static const char too_large[] = "the answer is larger than it can be";
static const char no_file[] = "the answer is no file, or does not say where it ends";

static bool is_file(const dn_transfer *t, long status) { return status == 200 && t->framed; }

static size_t on_body(char *bytes, size_t size, size_t n, void *arg)
{
    dn_transfer *t = arg;
    long status = 0;
    n *= size;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status / 100 != 2)
        t->answer.max = REFUSAL_MAX;
    if (t->sse && status == 200 && !strcmp(t->content_type, "text/event-stream")) {
        int rc = dn_sse_feed(t->sse, bytes, n);
        t->stopped = rc && rc != DN_SSE_OVERFLOW;
        t->why = rc == DN_SSE_OVERFLOW ? too_large : NULL;
        return rc ? 0 : n;
    }
    if (t->taker && status / 100 == 2) {
        t->why = is_file(t, status) ? NULL : no_file;
        t->failed = !t->why && t->taker->take(t->taker->arg, bytes, n);
        return t->why || t->failed ? 0 : n;
    }
    dn_buf_add(&t->answer, bytes, n);
    t->why = t->answer.failed ? too_large : NULL;
    return t->answer.failed ? 0 : n;
}

static size_t on_send(char *out, size_t size, size_t n, void *arg)
{
    dn_transfer *t = arg;
    ssize_t given = t->giver->give(t->giver->arg, out, size * n);
    t->failed = given < 0;
    return t->failed ? CURL_READFUNC_ABORT : (size_t)given;
}

static void add_header(dn_transfer *t, const char *header)
{
    struct curl_slist *list = curl_slist_append(t->headers, header);
    if (list)
        t->headers = list;
}

static void set_headers(dn_client *c, dn_transfer *t)
{
    char accept[100], type[100];
    snprintf(accept, sizeof accept, "Accept: %s", t->accept ? t->accept : "*/*");
    add_header(t, accept);
    snprintf(type, sizeof type, "Content-Type: %s", t->giver ? t->giver->type : t->body ? "application/json" : "");
    add_header(t, type);
    if (t->header)
        add_header(t, t->header);
    if (c->auth)
        add_header(t, c->auth->data);
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
}

static void set_method(dn_transfer *t)
{
    if (t->giver) {
        curl_easy_setopt(t->easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(t->easy, CURLOPT_READFUNCTION, on_send);
        curl_easy_setopt(t->easy, CURLOPT_READDATA, t);
        curl_easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)t->giver->size); /* -1: chunks */
    } else if (t->body || !strcmp(t->method, "POST")) {
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->body ? t->body : "");
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(t->body ? strlen(t->body) : 0));
    }
    if (strcmp(t->method, "GET"))
        curl_easy_setopt(t->easy, CURLOPT_CUSTOMREQUEST, t->method);
}

static void set_options(dn_client *c, dn_transfer *t)
{
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, t->error);
    curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(t->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(t->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(t->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(t->easy, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(t->easy, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_TIMEOUT_S);
    curl_easy_setopt(t->easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(t->easy, CURLOPT_USERAGENT, "denoise/" DN_VERSION);
    curl_easy_setopt(t->easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(t->easy, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
    if (c->unix_path)
        curl_easy_setopt(t->easy, CURLOPT_UNIX_SOCKET_PATH, c->unix_path);
    if (c->direct)
        curl_easy_setopt(t->easy, CURLOPT_PROXY, "");
    if (t->sse) {
        curl_easy_setopt(t->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(t->easy, CURLOPT_LOW_SPEED_TIME, (long)SILENCE_MAX_S);
    }
}

static int start(dn_client *c, dn_transfer *t)
{
    char *url = NULL;
    t->status = 0;
    t->retry_after_s = -1;
    t->length = -1;
    t->finished = t->framed = t->failed = false;
    t->why = NULL;
    t->result = CURLE_OUT_OF_MEMORY;
    dn_buf_init(&t->answer, t->max ? t->max : DN_ANSWER_MAX);
    if (!(t->easy = curl_easy_init()) || asprintf(&url, "%s%s", c->url, t->path) < 0)
        return -1;
    set_options(c, t);
    set_method(t);
    set_headers(c, t);
    curl_easy_setopt(t->easy, CURLOPT_URL, url); /* copied */
    free(url);
    return curl_multi_add_handle(c->multi, t->easy) ? -1 : 0;
}

static void detach(dn_client *c, dn_transfer *t)
{
    if (!t->easy)
        return;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &t->status);
    curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &t->os_errno);
    long bytes = 0;
    curl_easy_getinfo(t->easy, CURLINFO_REQUEST_SIZE, &bytes);
    t->sent = bytes > 0;
    curl_multi_remove_handle(c->multi, t->easy);
    curl_easy_cleanup(t->easy);
    t->easy = NULL;
    curl_slist_free_all(t->headers);
    t->headers = NULL;
}

static void note_finished(dn_client *c)
{
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left));) {
        dn_transfer *t = NULL;
        if (m->msg != CURLMSG_DONE || curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t) || !t)
            continue;
        t->result = m->data.result;
        t->finished = true;
    }
}

static int outcome(dn_transfer *t)
{
    static const CURLcode unreachable[] = { CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_RESOLVE_PROXY,
                                            CURLE_COULDNT_CONNECT,      CURLE_OPERATION_TIMEDOUT,
                                            CURLE_SEND_ERROR,           CURLE_RECV_ERROR,
                                            CURLE_GOT_NOTHING,          CURLE_PARTIAL_FILE };
    if (t->failed)
        return DN_EXIT_FAILED;
    if (t->result == CURLE_OK && t->taker && t->status / 100 == 2 && !is_file(t, t->status)) {
        snprintf(t->error, sizeof t->error, "%s", no_file); /* an empty one */
        return DN_EXIT_SERVER;
    }
    if (t->result == CURLE_OK || t->stopped)
        return 0;
    if (t->giver && t->status >= 400) /* refused while it was sent: how the connection ended does not matter */
        return 0;
    if (t->result == CURLE_COULDNT_CONNECT && t->os_errno)
        snprintf(t->error, sizeof t->error, "%s", strerror((int)t->os_errno));
    if (t->why || !t->error[0])
        snprintf(t->error, sizeof t->error, "%s", t->why ? t->why : curl_easy_strerror(t->result));
    for (size_t i = 0; i < sizeof unreachable / sizeof *unreachable; i++)
        if (t->result == unreachable[i])
            return DN_EXIT_UNREACHABLE;
    return DN_EXIT_SERVER;
}

int dn_client_run(dn_client *c, dn_transfer *t, dn_transfer *side)
{
    bool begun = !start(c, t);
    if (side)
        start(c, side);
    int running;
    while (begun && !t->finished && !interrupted) {
        if (curl_multi_perform(c->multi, &running))
            break;
        note_finished(c);
        if (t->between)
            t->between(t->between_arg);
        if (!t->finished)
            curl_multi_poll(c->multi, NULL, 0, POLL_MS, NULL);
    }
    bool finished = t->finished;
    detach(c, t);
    if (side)
        detach(c, side);
    return interrupted && (!finished || t->failed) ? DN_EXIT_INTERRUPTED : outcome(t);
}

void dn_transfer_fini(dn_transfer *t) { dn_buf_fini(&t->answer); }

/* ---- answers --------------------------------------------------------------------------------------------------- */

int dn_error_complain(const json_t *error, int status)
{
    const char *param = dn_json_text(error, "param"), *code = dn_json_text(error, "code");
    const char *message = dn_json_text(error, "message");
    int id = dn_http_code_find(code);
    if (!status && id)
        status = dn_http_code_status(id);
    dn_complain("%s (%s%s%s)", *message ? message : "refused without a reason", *code ? code : "no code",
                *param ? ", " : "", param);
    return status / 100 == 4 ? DN_EXIT_REFUSED : DN_EXIT_SERVER;
}

static int complain_status(const dn_transfer *t)
{
    dn_http_error err;
    json_t *body = t->answer.data ? dn_json_parse(t->answer.data, t->answer.len, &err) : NULL;
    json_t *error = json_object_get(body, "error");
    int rc = DN_EXIT_SERVER;
    if (json_is_object(error)) {
        rc = dn_error_complain(error, (int)t->status);
        if (t->retry_after_s >= 0)
            dn_complain("worth another try in %ld s", t->retry_after_s);
    } else {
        dn_complain("%s %s was answered with HTTP %ld and no reason; is this a denoised?", t->method, t->path,
                    t->status);
    }
    json_decref(body);
    return rc;
}

int dn_client_complain(const dn_client *c, const dn_transfer *t, int rc)
{
    if (!rc)
        return t->status / 100 == 2 ? 0 : complain_status(t);
    if (rc == DN_EXIT_UNREACHABLE)
        dn_complain("no connection with %s: %s", c->named, t->error);
    else if (rc == DN_EXIT_SERVER)
        dn_complain("%s: %s", c->named, t->error);
    return rc;
}

int dn_client_ask(dn_client *c, dn_transfer *t) { return dn_client_complain(c, t, dn_client_run(c, t, NULL)); }

int dn_client_parse(const dn_transfer *t, json_t **out)
{
    json_error_t e;
    json_t *body = t->answer.data ? json_loadb(t->answer.data, t->answer.len, 0, &e) : NULL;
    if (!json_is_object(body)) {
        json_decref(body);
        dn_complain("%s %s was not answered with a JSON object; is this a denoised?", t->method, t->path);
        return DN_EXIT_SERVER;
    }
    *out = body;
    return 0;
}

int dn_client_json(dn_client *c, dn_transfer *t, json_t **out)
{
    int rc = dn_client_ask(c, t);
    return rc ? rc : dn_client_parse(t, out);
}
