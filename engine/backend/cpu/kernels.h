/* kernels.h - convolutions, linear layers and normals of the CPU backend: what the lowering chooses and calls.
 *
 * Layout. A row (sample) is ceil(C/8) planes of 8 channels each (nChw8c): element (y, x, c) of row r is at
 *     base + r*row_bytes + (c/8)*plane + (y*W + x)*32 + (c%8)*4        bytes.
 * A plane holds H*W*8 floats; lanes beyond C are zero, and every kernel leaves them zero. `plane` is a multiple of 32
 * and at least H*W*32; the lowering uses H*W*32 + 64. Dense (plane 0) is [positions, C], channels last, `pitch` bytes
 * from one position to the next. Bases are 32-byte aligned or not, as they come.
 *
 * The same bits, always. Algorithm and order of sums come from the shape of one row; each output is one chain of
 * fused multiply-adds; threads divide outputs only. So no result depends on n, on the row's place or on the pool.
 * Nothing here allocates. */
#ifndef DN_CPU_KERNELS_H
#define DN_CPU_KERNELS_H

#include "backend.h"
#include "pool.h"
#include "rng.h"

typedef struct dn_rows {
    void *base;        /* of row 0; NULL where a tensor is optional: none. Never written when it is an input */
    int64_t row_bytes; /* from row to row */
    int64_t plane;     /* nChw8c: bytes from one block of 8 channels to the next; 0: dense */
    int64_t pitch;     /* dense: bytes from position to position (channels * 4, or more); nChw8c: ignored */
} dn_rows;

/* y = act((sum + bias + row_bias + residual) * scale) */
typedef struct dn_epilogue {
    const float *bias;      /* [K]; NULL: none */
    const float *row_bias;  /* [K] for each row, as a time embedding; not padded; NULL: none */
    int64_t row_bias_bytes; /* from row to row; 0: the same for all rows */
    dn_rows residual;       /* same shape as y; blocked or dense like y; may be y's own memory */
    float scale;            /* 1: none */
    bool silu;
} dn_epilogue;

typedef struct dn_conv_shape {
    int C, K, H, W, Ho, Wo;
    int kh, kw, stride;
    int pad_top, pad_left; /* bottom and right follow from Ho, Wo: what lies outside is zero */
} dn_conv_shape;

typedef struct dn_conv_call {
    dn_conv_shape shape;
    int n; /* rows */
    dn_rows x, y;
    dn_epilogue epilogue;
    const void *weights; /* the form, 64-byte aligned; the parameter itself if the kernel has no form */
    void *workspace;     /* 64-byte aligned, workspace_bytes(shape, n or more) */
    dn_pool *pool;       /* NULL: the calling thread alone */
} dn_conv_call;

/* One algorithm. form_key NULL: it reads the logical weights [kh,kw,C,K]. */
typedef struct dn_conv_kernel {
    const char *name;
    const char *form_key;
    bool dense_in, dense_out; /* reads x, writes y (and reads the residual) dense; otherwise nChw8c */
    size_t (*form_bytes)(const dn_shape *weights);
    void (*pack)(void *dst, const float *weights, const dn_shape *shape); /* as dn_form.pack */
    size_t (*workspace_bytes)(const dn_conv_shape *s, int rows_max);
    void (*run)(const dn_conv_call *call);
    void (*pack_part)(void *dst, const float *weights, const dn_shape *shape, int part, int parts); /* or NULL */
    /* The form of rotated weights (gradients.h), straight from the weights themselves; NULL: rotate, then pack. */
    const char *rotated_key;
    void (*pack_rotated)(void *dst, const float *weights, const dn_shape *shape);
    void (*pack_rotated_part)(void *dst, const float *weights, const dn_shape *shape, int part, int parts);
} dn_conv_kernel;

/* How weights come to the variants of a kernel, which all give the same bits. */
enum dn_form_use {
    DN_FORM_KEPT,    /* packed once */
    DN_FORM_NONE,    /* read from the logical weights, if there is such a variant */
    DN_FORM_EACH_RUN /* packed in every run, before they are used: by parameters that train */
};

/* The kernel for a layer, from its shape alone; never NULL. */
const dn_conv_kernel *dn_cpu_conv_choose(const dn_conv_shape *s, enum dn_form_use use);

/* The same for a 3x3 convolution of padding 1 of a map that is made twice as large first, nearest: the call's x is the
 * small one, Ho and Wo are 2H and 2W. NULL: none, double it and convolve. */
const dn_conv_kernel *dn_cpu_doubled_choose(const dn_conv_shape *s, enum dn_form_use use);

/* Its gradient by the small map: a convolution of the large map's gradient (the call's x; H and W are 2Ho and 2Wo) with
 * rotated weights, and then sums of 2x2. NULL: none. */
const dn_conv_kernel *dn_cpu_halved_choose(const dn_conv_shape *s);

/* y[m] = act((x[m] W + bias ...) * scale): linear layers and 1x1 convolutions. x and y are each blocked or dense. */
typedef struct dn_gemm_call {
    int n;     /* rows */
    int64_t M; /* positions of one row */
    int C, N;  /* x [M,C], W [C,N], y [M,N] */
    dn_rows x, y;
    dn_epilogue epilogue;
    const void *weights; /* the form, 64-byte aligned */
    dn_pool *pool;
} dn_gemm_call;

extern const char dn_cpu_gemm_key[];            /* form key of weights [C,N] or [1,1,C,N] */
extern const char dn_cpu_gemm_key_transposed[]; /* of weights [N,C] or [1,1,N,C] */
size_t dn_cpu_gemm_form_bytes(int64_t C, int64_t N);
void dn_cpu_gemm_pack(void *dst, const float *weights, const dn_shape *shape);            /* [C,N] or [1,1,C,N] */
void dn_cpu_gemm_pack_transposed(void *dst, const float *weights, const dn_shape *shape); /* [N,C] or [1,1,N,C] */
void dn_cpu_gemm_pack_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts);
void dn_cpu_gemm_pack_transposed_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts);
void dn_cpu_gemm(const dn_gemm_call *call);

/* dn_rng_normal with the same bits, 8 lanes at a time. */
void dn_cpu_rng_normal(float *out, int64_t first, int64_t n, const dn_rng_key *key);

bool dn_cpu_has_avx2(void); /* AVX2 and FMA: what every kernel here needs */

#endif
