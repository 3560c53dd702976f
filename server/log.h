/* log.h - lines on stderr: logfmt or JSON, one for each request and each change of state.
 *
 * A line is built on the caller's stack and handed to a writer thread through a bounded ring, so a stderr that nobody
 * reads never holds up the loop: what does not fit is dropped and counted, and the count is said when there is room.
 * Before dn_log_start and after dn_log_stop lines are written at once. */
#ifndef DN_SERVER_LOG_H
#define DN_SERVER_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dn_log_level { DN_LOG_INFO, DN_LOG_WARN, DN_LOG_ERROR };

typedef struct dn_line {
    size_t n;
    char text[2048];
} dn_line;

/* Start the writer; 0, or -1 when no thread can be had (lines are then written at once). */
int dn_log_start(bool json);
/* Write what is queued (for a second at most) and stop. */
void dn_log_stop(void);

/* Any thread: begin, fields, end. A field that does not fit is left out; a string is cut at 512 bytes. */
void dn_line_begin(dn_line *line, enum dn_log_level level, const char *event);
void dn_line_str(dn_line *line, const char *key, const char *value); /* NULL: left out */
void dn_line_int(dn_line *line, const char *key, int64_t value);
void dn_line_ms(dn_line *line, const char *key, double value);
void dn_line_end(dn_line *line);

/* An event whose only field is `msg`. */
void dn_log(enum dn_log_level level, const char *event, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Plain text at once in order with the lines: "listening on ...". */
void dn_log_plain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
