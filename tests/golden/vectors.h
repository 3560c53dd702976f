/* vectors.h - reading golden vectors: safetensors files in diffusers' NCHW order. */
#ifndef DN_TESTS_VECTORS_H
#define DN_TESTS_VECTORS_H

#include <denoised/image.h>
#include <stdint.h>

enum { VECTORS_MAX = 2048 };

typedef struct vectors {
    char *bytes;
    int n;
    dn_st_tensor t[VECTORS_MAX];
} vectors;

/* Fails the test if the file cannot be read. */
vectors *vectors_open(const char *dir, const char *file);
void vectors_close(vectors *v);
const dn_st_tensor *vectors_find(const vectors *v, const char *name); /* NULL: there is none */
int64_t vectors_count(const dn_st_tensor *t);
/* The tensor as floats in file order (F32 or I64), malloc'ed. */
float *vectors_floats(const vectors *v, const char *name);
/* [N,C,H,W] -> [N,H,W,C], malloc'ed. */
float *vectors_nhwc(const vectors *v, const char *name);
/* The largest |a - b| over the largest |b|. */
double worst_error(const float *a, const float *b, int64_t n);

/* In the main of a program for people and scripts, with `dn_error err`: what failed, said, ends it. */
#define CHECK(what, call)                                                                                              \
    do {                                                                                                               \
        if (call) {                                                                                                    \
            fprintf(stderr, "%s: %s\n", what, err.message);                                                            \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

#endif
