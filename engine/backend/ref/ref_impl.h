/* ref_impl.h - what the sources of ref share: the type `real`, a build's names, and how a kernel finds its rows. */
#ifndef DN_BACKEND_REF_IMPL_H
#define DN_BACKEND_REF_IMPL_H

#include <math.h>
#include <string.h>
#include "ref.h"

#if REF_DOUBLE
typedef double real;
#define R(name) dn_ref64_##name
#else
typedef float real;
#define R(name) dn_ref_##name
#endif

typedef struct call {
    const dn_run *run;
    const dn_step *step;
    const dn_ref_attr *op;
} call;

/* Computes row `row` of its outputs, or (BATCH outputs) everything, with row 0. Returns 0 or a DN_E code. */
typedef int (*kernel)(const call *c, int64_t row);

/* NULL: the operand is not given, or pruned. */
static inline const void *in(const call *c, int i, int64_t row)
{
    int place = i < c->step->n_in ? c->step->in[i] : -1;
    return place < 0 ? NULL : dn_place_at(c->run, place, row);
}

static inline void *out(const call *c, int i, int64_t row)
{
    int place = i < c->step->n_out ? c->step->out[i] : -1;
    return place < 0 ? NULL : dn_place_at(c->run, place, row);
}

static inline double *workspace(const call *c, int64_t row)
{
    return c->step->workspace < 0 ? NULL : dn_place_at(c->run, c->step->workspace, row);
}

/* The rows that go into output row `row`: itself, or all of them for a BATCH output. */
static inline int64_t rows_end(const call *c, int64_t row)
{
    return c->op->row_out || !c->op->row_in ? row + 1 : c->run->n;
}

static inline int64_t last_dim(const dn_shape *s) { return s->rank ? s->dim[s->rank - 1] : 1; }

static inline void clear(double *x, int64_t n) { memset(x, 0, n * sizeof *x); }

static inline void round_all(real *dst, const double *src, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = (real)src[i];
}

/* op, kernel, doubles of workspace as an expression over `const dn_ref_attr *a` */
#define KERNELS(X)                                                                \
    X(CONV2D, conv2d, a->out[0].shape.dim[2])                                     \
    X(CONV2D_DX, conv2d_dx, a->out[0].shape.dim[2])                               \
    X(CONV2D_DW, conv2d_dw, a->out[0].shape.dim[3])                               \
    X(MATMUL, matmul, last_dim(&a->out[0].shape))                                 \
    X(MATMUL_DW, matmul_dw, last_dim(&a->out[0].shape))                           \
    X(ATTENTION, attention, a->in[1].shape.dim[0])                                \
    X(ATTENTION_BWD, attention_bwd, 2 * (a->in[1].shape.dim[0] + a->in[1].count)) \
    X(NORM, norm, 0)                                                              \
    X(NORM_DX, norm_dx, 0)                                                        \
    X(NORM_DW, norm_dw, 2 * last_dim(&a->in[0].shape))                            \
    X(UNARY, unary, 0)                                                            \
    X(UNARY_BWD, unary_bwd, 0)                                                    \
    X(BINARY, binary, 0)                                                          \
    X(SUM_TO, sum_to, a->out[0].count)                                            \
    X(SOFTMAX, softmax, 0)                                                        \
    X(SOFTMAX_BWD, softmax_bwd, 0)                                                \
    X(COPY, copy, 0)                                                              \
    X(EMBED, embed, 0)                                                            \
    X(EMBED_DW, embed_dw, a->out[0].count)                                        \
    X(TIMESTEP, timestep, 0)                                                      \
    X(FOURIER, fourier, 0)                                                        \
    X(FIR, fir, 0)                                                                \
    X(DROPOUT, dropout, 0)                                                        \
    X(NORMAL, normal, 0)                                                          \
    X(LOSS, loss, 0)                                                              \
    X(LOSS_BWD, loss_bwd, 0)                                                      \
    X(CROSS_ENTROPY, cross_entropy, 0)                                            \
    X(CROSS_ENTROPY_BWD, cross_entropy_bwd, 0)                                    \
    X(VQ, vq, 0)                                                                  \
    X(VQ_DW, vq_dw, a->out[0].count)                                              \
    X(CAST, cast, 0)                                                              \
    X(DETACH, detach, 0)                                                          \
    X(ACCUMULATE, accumulate, 0)

/* ref.h's functions, of this build. */
dn_step_fn R(step)(enum dn_op_kind k);
int R(resolve)(dn_ref_attr *out, const dn_program *p, const dn_op *op, dn_error *err);
size_t R(workspace)(const dn_ref_attr *a);
int R(emit)(dn_lowered *l, int op, const int *place, dn_error *err);

#define X(code, name, doubles) int R(name)(const call *c, int64_t row);
KERNELS(X)
#undef X

#endif
