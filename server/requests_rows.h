/* requests_rows.h - the rows that POST /denoise brings. */
#ifndef DN_SERVER_REQUESTS_ROWS_H
#define DN_SERVER_REQUESTS_ROWS_H

#include <stdint.h>

typedef struct dn_rows {
    int n, height, width, channels;
    float *x;           /* [n,H,W,C], malloc'ed; the run takes it */
    float timestep[64]; /* n */
    float scale[64];    /* guidance; 1 where none was brought */
    int64_t label[64];
    bool labelled;
    float *label_vector; /* [n,label_dim], malloc'ed, for a model that takes vectors; the run takes it */
    int label_dim;
} dn_rows;

#endif
