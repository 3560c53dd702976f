/* gradients.h - the kernels of gradients by a convolution's weights and input and by a matrix.
 *
 * Layouts are those of kernels.h. Gradients by the input of a stride of 1 are convolutions of the output's gradient with
 * rotated weights, and so have no kernel here. Gradients by weights are sums over all positions (or Winograd tiles) of
 * all rows: in chunks of a fixed number, counted through the rows; each chunk's sum is one chain from zero, and is added
 * to the total in order. So no bit depends on the number of threads. Nothing here allocates. */
#ifndef DN_CPU_GRADIENTS_H
#define DN_CPU_GRADIENTS_H

#include "kernels.h"

/* dst [kh,kw,K,C] of weights [kh,kw,C,K]: the image rotated by half a turn, channels exchanged. As dn_form.pack. */
extern const char dn_cpu_rotated_key[];
size_t dn_cpu_rotated_bytes(const dn_shape *weights);
void dn_cpu_rotate(void *dst, const float *weights, const dn_shape *shape);
void dn_cpu_rotate_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts);
/* The same at once in the form of plain taps [C/16][K up to a multiple of 8][kh*kw][16]. */
void dn_cpu_rotate_taps(void *dst, const float *weights, const dn_shape *shape);
void dn_cpu_rotate_taps_part(void *dst, const float *weights, const dn_shape *shape, int part, int parts);

/* dw [kh,kw,C,K] += over all rows and positions. `shape` is the forward convolution's. */
typedef struct dn_conv_dw_call {
    dn_conv_shape shape;
    int n;         /* rows */
    dn_rows x, dy; /* blocked, or any layout if the kernel says so */
    float *dw;     /* written whole */
    void *workspace;
    dn_pool *pool;
    int part, parts; /* the work may be divided: calls for all parts in order, with one workspace. Of no effect on bits */
} dn_conv_dw_call;

typedef struct dn_conv_dw_kernel {
    const char *name;
    size_t (*workspace_bytes)(const dn_conv_shape *s, int rows_max);
    void (*run)(const dn_conv_dw_call *call);
    bool any_x, any_dy; /* reads them dense too */
} dn_conv_dw_kernel;

/* From the layer's shape alone; never NULL. */
const dn_conv_dw_kernel *dn_cpu_conv_dw_choose(const dn_conv_shape *s);
/* Of a map that is doubled first (dn_cpu_doubled_choose): x is the small one. NULL: none. */
const dn_conv_dw_kernel *dn_cpu_doubled_dw_choose(const dn_conv_shape *s);

/* F(4,3) and F(2,3), once for each instruction set: the same bits. */
extern const dn_conv_dw_kernel dn_cpu_winograd4_dw_avx2, dn_cpu_winograd4_dw_avx512;
extern const dn_conv_dw_kernel dn_cpu_winograd2_dw_avx2, dn_cpu_winograd2_dw_avx512;
extern const dn_conv_dw_kernel dn_cpu_doubled_dw_avx2, dn_cpu_doubled_dw_avx512;
extern const dn_conv_dw_kernel dn_cpu_implicit_dw;                  /* any shape */
extern const dn_conv_dw_kernel dn_cpu_few_in_dw, dn_cpu_few_out_dw; /* 3x3, stride 1, padding 1; 1..4 of C, of K */

/* The gradient by the input of any stride, from the form dn_cpu_implicit of the rotated weights: dy and dx blocked, no
 * epilogue. `shape` is the forward convolution's; x and y of the call are dx and dy. */
size_t dn_cpu_implicit_dx_workspace(const dn_conv_shape *s, int rows_max);
void dn_cpu_implicit_dx(const dn_conv_call *call);

/* c[8][16 * panels] = (or +=, with `more`) sum over t < n of a[t][8] * b[t][16]: the product that gradients by weights
 * are made of. panels is 1 or 2, the second `b_panel` floats after the first; rows of c are `pitch` floats apart. Each sum
 * is a chain of fused multiply-adds from zero in the order of t; then it is stored, or added to c. */
void dn_cpu_outer(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c, ptrdiff_t pitch,
                  bool more);
void dn_cpu_outer_avx2(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c, ptrdiff_t pitch,
                       bool more);
void dn_cpu_outer_avx512(int n, const float *a, const float *b, ptrdiff_t b_panel, int panels, float *c,
                         ptrdiff_t pitch, bool more);
/* The same of 1..4 planes [t][8] of b, `plane` floats apart; c has whole panels, and beyond the last plane anything. */
void dn_cpu_outer_planes(int n, const float *a, const float *b, ptrdiff_t plane, int planes, float *c, ptrdiff_t pitch,
                         bool more);
void dn_cpu_outer_planes_avx2(int n, const float *a, const float *b, ptrdiff_t plane, int planes, float *c,
                              ptrdiff_t pitch, bool more);
void dn_cpu_outer_planes_avx512(int n, const float *a, const float *b, ptrdiff_t plane, int planes, float *c,
                                ptrdiff_t pitch, bool more);

#endif
