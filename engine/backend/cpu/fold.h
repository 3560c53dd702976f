/* fold.h - attention of one head between linear layers, with half of the layers multiplied out ahead.
 *
 * For square weights, scores and result are
 *     (x Wq + bq) (x Wk + bk)^T = (x A + a) x^T + what is the same for all keys, which softmax does not see,
 *     softmax(scores) (x Wv + bv) Wo + bo = softmax(scores) (x V) + b,      as each row of softmax sums to 1,
 * with A = Wq Wk^T, a = bq Wk^T, V = Wv Wo, b = bv Wo + bo, computed in double precision: two products of all positions
 * instead of four, and x itself is the keys. */
#ifndef DN_CPU_FOLD_H
#define DN_CPU_FOLD_H

#include "backend.h"

enum { DN_FOLD_CHANNELS_MAX = 1024, DN_FOLD_CHANNELS = 16 /* a multiple of */ };

/* As dn_form.pack_all, weights [C,C], biases [C]. */
void dn_fold_weights(void *dst, const float *const *q_k_v_out, const dn_shape *shape); /* [A V], as dn_cpu_gemm_pack */
void dn_fold_bias_in(void *dst, const float *const *bias_q_k, const dn_shape *shape);  /* [2C]: a, zeros */
void dn_fold_bias_out(void *dst, const float *const *bias_out_bias_v_out, const dn_shape *shape); /* b */

#endif
