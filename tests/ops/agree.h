/* agree.h - the promises that every backend makes about a program. Failures end the cmocka test, with the program's
 * name. */
#ifndef DN_TEST_AGREE_H
#define DN_TEST_AGREE_H

#include "subject.h"

/* ref against ref64. The tolerance is relative to the element plus half the output's largest plus 0.01. */
void agree_precision(subject *s, const char *name, double tol);

/* Every backend against ref. */
void agree_close(subject *s, const char *name, double tol);

/* That, and every backend against itself to the bit: rows alone and in smaller batches
 * (unless the program `mixes` rows by design), two threads, a plan where nothing shares a byte, dead places poisoned.
 * At least 5 rows. */
void agree_backends(subject *s, const char *name, double tol, bool mixes);

#endif
