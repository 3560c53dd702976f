/* progress.h - how far something is: a bar that is redrawn on a terminal, a few plain lines elsewhere. */
#ifndef DN_CLI_PROGRESS_H
#define DN_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct dn_progress {
    FILE *out;
    bool silent, tty, utf8;
    int columns; /* of the terminal */
    int width;   /* of the bar, the same whatever stands behind it */
    bool shown;  /* the bar stands on the current line */
    int64_t drawn_ms;
    int said;            /* plain: tenths of the run that were said */
    long rows, requests; /* of the last batch that this request was in; 0: not known */
} dn_progress;

void dn_progress_init(dn_progress *p, FILE *out, bool silent);
/* Leave so many columns behind the bar. */
void dn_progress_reserve(dn_progress *p, int columns);
/* Has the bar stood long enough to be drawn again? Elsewhere than on a terminal: always. */
bool dn_progress_due(const dn_progress *p);
/* So much of it (0..1) is done: `tail` stands behind the bar, `line` is said elsewhere, at every tenth. */
void dn_progress_show(dn_progress *p, double part, const char *tail, const char *line);
void dn_progress_queued(dn_progress *p, long ahead, double eta_s);
/* 0 <= step <= steps, steps > 0. */
void dn_progress_step(dn_progress *p, long step, long steps, double eta_s);
/* Who shares the batches; shown with the next step. */
void dn_progress_share(dn_progress *p, long rows, long requests);
/* Something else is to be printed: the bar goes. It comes back with the next step. */
void dn_progress_clear(dn_progress *p);

#endif
