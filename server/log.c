/* log.c - building lines, and the writer thread with its ring.
 *
 * The ring is the only state, under one lock that is held for a memcpy; write(2) happens outside of it. */
#include "log.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RING_BYTES = 256 << 10, VALUE_BYTES_MAX = 512, FLUSH_MS = 1000, GATHER_NS = 2000000 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    pthread_t writer;
    bool json, running, stopping;
    size_t head, used; /* bytes of ring: from head on, `used` of them */
    uint64_t lost;     /* lines that did not fit */
    char ring[RING_BYTES];
} lg = { .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER };

static const char *const level_names[] = { "info", "warn", "error" };

/* ---- lines ----------------------------------------------------------------------------------------------- */

static void put(dn_line *line, const char *s, size_t n)
{
    memcpy(line->text + line->n, s, n);
    line->n += n;
}

/* `s` as it stands between quotes in JSON, which logfmt readers understand too: at most six bytes for each of its own.
 */
static size_t escape(char *dst, const char *s, size_t n)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\') {
            dst[len++] = '\\';
            dst[len++] = (char)c;
        } else if (c < 0x20 || c >= 0x7f) { /* no terminal sequences in a log, and always valid UTF-8 */
            len += (size_t)sprintf(dst + len, "\\u%04x", c);
        } else {
            dst[len++] = (char)c;
        }
    }
    return len;
}

static bool is_bare(const char *s)
{
    if (!*s)
        return false;
    for (; *s; s++)
        if (*s <= ' ' || *s >= 0x7f || strchr("\"\\=", *s))
            return false;
    return true;
}

/* key=value or "key":value, `value` being ready text. */
static void field(dn_line *line, const char *key, const char *value, size_t n)
{
    size_t key_len = strlen(key);
    if (line->n + key_len + n + 8 > sizeof line->text)
        return;
    if (line->n > 1)
        put(line, lg.json ? "," : " ", 1);
    if (lg.json)
        put(line, "\"", 1);
    put(line, key, key_len);
    put(line, lg.json ? "\":" : "=", lg.json ? 2 : 1);
    put(line, value, n);
}

void dn_line_str(dn_line *line, const char *key, const char *value)
{
    if (!value)
        return;
    if (!lg.json && is_bare(value)) {
        field(line, key, value, strnlen(value, VALUE_BYTES_MAX));
        return;
    }
    char text[VALUE_BYTES_MAX * 6 + 2];
    size_t n = escape(text + 1, value, strnlen(value, VALUE_BYTES_MAX)) + 1;
    text[0] = text[n++] = '"';
    field(line, key, text, n);
}

void dn_line_int(dn_line *line, const char *key, int64_t value)
{
    char text[32];
    field(line, key, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)value));
}

void dn_line_ms(dn_line *line, const char *key, double value)
{
    char text[64];
    field(line, key, text, (size_t)snprintf(text, sizeof text, "%.3f", value < 1e15 ? value : 1e15));
}

void dn_line_begin(dn_line *line, enum dn_log_level level, const char *event)
{
    line->n = 0;
    if (lg.json)
        put(line, "{", 1);
    struct timespec now;
    struct tm tm;
    char stamp[64];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);
    dn_line_str(line, "time", stamp);
    dn_line_str(line, "level", level_names[level]);
    dn_line_str(line, "event", event);
}

/* ---- the writer ------------------------------------------------------------------------------------------ */

/* All of it, or as much as is taken before `deadline` (0: no deadline). */
static void write_all(const char *s, size_t n, time_t deadline)
{
    while (n) {
        struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };
        if (poll(&p, 1, 100) == 0) {
            if (deadline && time(NULL) > deadline)
                return;
            continue;
        }
        ssize_t done = write(STDERR_FILENO, s, n);
        if (done < 0 && errno != EINTR && errno != EAGAIN)
            return; /* nobody is there to tell */
        if (done > 0) {
            s += done;
            n -= (size_t)done;
        }
    }
}

/* Under the lock. */
static bool ring_put(const char *s, size_t n)
{
    if (lg.used + n > RING_BYTES)
        return false;
    size_t at = (lg.head + lg.used) % RING_BYTES, first = n < RING_BYTES - at ? n : RING_BYTES - at;
    memcpy(lg.ring + at, s, first);
    memcpy(lg.ring, s + first, n - first);
    lg.used += n;
    return true;
}

/* Under the lock. The lines lost so far, as one line. */
static void ring_put_lost(void)
{
    dn_line line;
    dn_line_begin(&line, DN_LOG_WARN, "log_lost");
    dn_line_int(&line, "lines", (int64_t)lg.lost);
    put(&line, lg.json ? "}\n" : "\n", lg.json ? 2 : 1);
    if (ring_put(line.text, line.n))
        lg.lost = 0;
}

static void *writer_main(void *arg)
{
    (void)arg;
    static char chunk[4096];
    pthread_setname_np(pthread_self(), "log");
    pthread_mutex_lock(&lg.lock);
    for (;;) {
        while (!lg.used && !lg.stopping)
            pthread_cond_wait(&lg.more, &lg.lock);
        if (!lg.used)
            break;
        size_t n = lg.used < sizeof chunk ? lg.used : sizeof chunk;
        n = n < RING_BYTES - lg.head ? n : RING_BYTES - lg.head;
        memcpy(chunk, lg.ring + lg.head, n);
        lg.head = (lg.head + n) % RING_BYTES;
        lg.used -= n;
        if (lg.lost)
            ring_put_lost();
        pthread_mutex_unlock(&lg.lock);
        write_all(chunk, n, 0);
        if (n < sizeof chunk) /* let the next lines gather: waking up for each costs more than the line */
            nanosleep(&(struct timespec){ .tv_nsec = GATHER_NS }, NULL);
        pthread_mutex_lock(&lg.lock);
    }
    pthread_mutex_unlock(&lg.lock);
    return NULL;
}

static void hand_over(const char *s, size_t n)
{
    pthread_mutex_lock(&lg.lock);
    bool queued = lg.running;
    if (queued && !ring_put(s, n))
        lg.lost++;
    pthread_mutex_unlock(&lg.lock);
    if (queued)
        pthread_cond_signal(&lg.more);
    else
        write_all(s, n, time(NULL) + FLUSH_MS / 1000);
}

int dn_log_start(bool json)
{
    lg.json = json;
    lg.stopping = false;
    if (pthread_create(&lg.writer, NULL, writer_main, NULL) != 0)
        return -1;
    pthread_mutex_lock(&lg.lock);
    lg.running = true;
    pthread_mutex_unlock(&lg.lock);
    return 0;
}

void dn_log_stop(void)
{
    pthread_mutex_lock(&lg.lock);
    bool running = lg.running;
    lg.running = false;
    lg.stopping = true;
    pthread_mutex_unlock(&lg.lock);
    if (!running)
        return;
    pthread_cond_signal(&lg.more);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += FLUSH_MS / 1000;
    if (pthread_timedjoin_np(lg.writer, NULL, &until) != 0)
        pthread_detach(lg.writer); /* stuck in a write that nobody reads; the process is about to end */
}

void dn_line_end(dn_line *line)
{
    put(line, lg.json ? "}\n" : "\n", lg.json ? 2 : 1);
    hand_over(line->text, line->n);
}

void dn_log(enum dn_log_level level, const char *event, const char *fmt, ...)
{
    char msg[VALUE_BYTES_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(msg, sizeof msg, fmt, args);
    va_end(args);
    dn_line line;
    dn_line_begin(&line, level, event);
    dn_line_str(&line, "msg", msg);
    dn_line_end(&line);
}

void dn_log_plain(const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text - 1, fmt, args);
    va_end(args);
    if (n > (int)sizeof text - 2)
        n = (int)sizeof text - 2;
    text[n++] = '\n';
    hand_over(text, (size_t)n);
}
