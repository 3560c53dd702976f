/* progress.c - see progress.h. */
#include "progress.h"
#include "cli.h"

#include <langinfo.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BAR_MIN = 10, BAR_MAX = 40, TAIL_MAX = 120, REDRAW_MS = 50 };

static int terminal_columns(int fd)
{
    struct winsize w;
    return ioctl(fd, TIOCGWINSZ, &w) || w.ws_col < 20 ? 80 : w.ws_col;
}

void dn_progress_init(dn_progress *p, FILE *out, bool silent)
{
    *p = (dn_progress){ .out = out, .silent = silent, .tty = isatty(fileno(out)), .said = -1 };
    p->utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
    p->columns = p->tty ? terminal_columns(fileno(out)) : 0;
    dn_progress_reserve(p, p->columns / 2 + 10);
}

void dn_progress_reserve(dn_progress *p, int columns)
{
    int width = p->columns - columns;
    p->width = width < BAR_MIN ? 0 : width < BAR_MAX ? width : BAR_MAX;
}

void dn_progress_clear(dn_progress *p)
{
    if (p->shown)
        fputs("\r\033[K", p->out);
    p->shown = false;
    fflush(p->out);
}

void dn_progress_queued(dn_progress *p, long ahead, double eta_s)
{
    char time[24];
    if (p->silent)
        return;
    dn_progress_clear(p);
    if (ahead > 0)
        fprintf(p->out, "queued behind %ld, about %s", ahead, dn_text_time(time, eta_s));
    else
        fprintf(p->out, "accepted, about %s", dn_text_time(time, eta_s));
    if (!p->tty)
        fputc('\n', p->out);
    p->shown = p->tty;
    fflush(p->out);
}

static void put_bar(const dn_progress *p, double part)
{
    int full = (int)(p->width * part);
    for (int i = 0; i < p->width; i++)
        fputs(p->utf8 ? i < full ? "\u2588" : "\u2591" : i < full ? "#" : ".", p->out);
}

/* As much of it as fits. */
static void put_columns(FILE *out, const char *text, int columns)
{
    for (; *text; text++) {
        columns -= ((unsigned char)*text & 0xc0) != 0x80;
        if (columns < 0)
            return;
        fputc(*text, out);
    }
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

bool dn_progress_due(const dn_progress *p) { return !p->tty || now_ms() - p->drawn_ms >= REDRAW_MS; }

void dn_progress_show(dn_progress *p, double part, const char *tail, const char *line)
{
    if (p->silent)
        return;
    part = part > 0 ? part < 1 ? part : 1 : 0;
    int tenth = (int)(10 * part);
    if (p->tty) {
        fputs("\r\033[K", p->out);
        put_bar(p, part);
        put_columns(p->out, tail, p->columns - 1 - p->width);
        p->shown = true;
        p->drawn_ms = now_ms();
    } else if (tenth > p->said) {
        fprintf(p->out, "%s\n", line);
    }
    p->said = tenth > p->said ? tenth : p->said;
    fflush(p->out);
}

void dn_progress_step(dn_progress *p, long step, long steps, double eta_s)
{
    char tail[TAIL_MAX], line[TAIL_MAX], time[24];
    int digits = snprintf(NULL, 0, "%ld", steps);
    dn_text_time(time, eta_s);
    int n = snprintf(tail, sizeof tail, " %*ld/%ld  %s left", digits, step, steps, time);
    if (p->rows)
        snprintf(tail + n, sizeof tail - n, "  %ld row%s of %ld request%s", p->rows, p->rows == 1 ? "" : "s",
                 p->requests, p->requests == 1 ? "" : "s");
    snprintf(line, sizeof line, "step %ld of %ld, %s left", step, steps, time);
    dn_progress_show(p, (double)step / steps, tail, line);
}

void dn_progress_share(dn_progress *p, long rows, long requests)
{
    p->rows = rows;
    p->requests = requests;
}
