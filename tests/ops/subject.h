/* subject.h - what the op tests share: a program under test with its data, and running it on a backend.
 *
 * Data are doubles that hold float values, so that every backend starts from the same numbers. A builder records the
 * program through feed_* and weight, which also note how to fill what they make. */
#ifndef DN_TEST_SUBJECT_H
#define DN_TEST_SUBJECT_H

#include "backend.h"

enum { TENSORS_MAX = 48, OUTPUTS_MAX = 48 };

typedef struct tensor {
    dn_val val;
    int64_t count;      /* of one row */
    bool differentiate; /* check the gradient by it */
    double *data;       /* [rows, count], a parameter: [count] */
} tensor;

typedef struct output {
    dn_val val;
    int64_t count;
    bool batch;   /* one copy for all rows */
    bool sum;     /* a place of the state block that keep_sum adds to */
    double *data; /* [rows, count] or [count], of the last run */
} output;

typedef struct subject {
    dn_program *p;
    int rows, seed;
    tensor tensor[TENSORS_MAX];
    output output[OUTPUTS_MAX];
    int n_tensors, n_outputs;
} subject;

void subject_init(subject *s, int rows);
void subject_fini(subject *s);

/* Values between lo and hi, different in each row. */
dn_val feed(subject *s, const char *name, dn_shape shape, double lo, double hi);       /* differentiated */
dn_val feed_fixed(subject *s, const char *name, dn_shape shape, double lo, double hi); /* not differentiated */
dn_val feed_int(subject *s, const char *name, dn_shape shape, int lo, int hi);         /* I32, hi included */
dn_val weight(subject *s, const char *name, dn_shape shape, double lo, double hi);     /* a parameter */
void keep(subject *s, dn_val v); /* an output to compare; nothing for DN_NONE */
/* Accumulate `v` into the state that mirrors the parameter `param` (all have been made), which is SUM_START before each
 * run. */
enum { SUM_START = 1 };
void keep_sum(subject *s, int param, dn_val v);
tensor *subject_tensor(subject *s, const char *name);

/* Set a tensor of one row (or a parameter), n numbers. */
void subject_set(subject *s, const char *name, const double *x, int64_t n);

/* Every backend that this build has. */
extern const dn_backend *const backends[];
extern const int n_backends;

enum run_mode {
    RUN_PLANNED,
    RUN_ROOMY,   /* planned for more rows than are run */
    RUN_APART,   /* every place on its own */
    RUN_POISONED /* planned; each place is filled with NaN when its life ends */
};

/* Run rows first .. first+n-1 and read the outputs into output[].data from row 0 on. Returns what dn_run_some would. */
int subject_run(subject *s, const dn_backend *b, int first, int n, dn_pool *pool, enum run_mode mode);

/* Milliseconds of the best run of all rows within about `ms`. */
double subject_time(subject *s, const dn_backend *b, dn_pool *pool, double ms);

#endif
