/* rows.h - the table of what is tested: one row per op and shape. */
#ifndef DN_TEST_ROWS_H
#define DN_TEST_ROWS_H

#include "subject.h"

typedef struct row {
    const char *name;
    enum dn_op_kind op; /* what the row is about; it must be in the row's forward program */
    dn_val (*build)(subject *s, const struct row *r);
    int64_t a[8];       /* shapes and such, as the builder says */
    double lo, hi;      /* range of the inputs; both 0: -1 .. 1 */
    double tol;         /* of ref against ref64, relative; 0: 2e-6 */
    double backend_tol; /* of a backend against ref; 0: 2e-5 */
    const char *no_fd;  /* why finite differences cannot check it, and what does */
    bool mixes;         /* its outputs depend on all rows of the batch, by design */
    bool timed;         /* the size of a real network: --bench times it; forward only and one row in the test */
} row;

extern const row rows[];
extern const int n_rows;

#endif
