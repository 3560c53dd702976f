/* nn.h - layers: each registers its parameters under the current scope and records its ops.
 *
 * Names of parameters are the checkpoint's. Shapes in comments are of one row. */
#ifndef DN_NN_H
#define DN_NN_H

#include "program.h"

/* Where layers put their parameters. */
typedef struct dn_nn {
    dn_program *p;
    int block;
    dn_val rng;     /* I32 [4] where dropout applies; DN_NONE: nowhere */
    int n_dropouts; /* so far: each draws from a stream of its own */
} dn_nn;

/* x [...,C] -> [...,n] */
dn_val dn_nn_linear(dn_nn *m, const char *name, dn_val x, int64_t n);
/* x [H,W,C] -> [Ho,Wo,n]; kernel k x k, the same padding on all sides. */
dn_val dn_nn_conv(dn_nn *m, const char *name, dn_val x, int64_t n, int k, int stride, int pad);
dn_val dn_nn_conv_pads(dn_nn *m, const char *name, dn_val x, int64_t n, int k, int stride, const int pad[4]);
/* x [...,C]; groups < 0: no normalisation at all, x comes back. */
dn_val dn_nn_group_norm(dn_nn *m, const char *name, dn_val x, int groups, double eps);
/* table [rows,n], ids I32 [2], w [1] -> [n] */
dn_val dn_nn_embedding(dn_nn *m, const char *name, int64_t rows, int64_t n, dn_val ids, dn_val w);
/* linear_2(silu(linear_1(x))): x [C] -> [n] (diffusers' TimestepEmbedding) */
dn_val dn_nn_time_mlp(dn_nn *m, const char *name, dn_val x, int64_t n);

enum dn_resample { DN_SAME, DN_UP, DN_DOWN };

/* diffusers' ResnetBlock2D. */
typedef struct dn_resnet {
    int64_t channels;          /* out */
    int groups;
    double eps;
    enum dn_unary act;
    bool scale_shift;          /* the time embedding scales and shifts norm2's output (ADM), else it is added before */
    double output_scale_factor;
    enum dn_resample resample;
    double dropout;            /* before conv2, in training */
} dn_resnet;
/* x [H,W,C], act_emb [T] = act(emb), or DN_NONE without time -> [H',W',channels] */
dn_val dn_nn_resnet(dn_nn *m, const char *name, const dn_resnet *c, dn_val x, dn_val act_emb);

/* diffusers' Attention as U-Nets use it: x [H,W,C] -> [H,W,C], with the residual. groups < 0: no group norm. */
dn_val dn_nn_attention(dn_nn *m, const char *name, dn_val x, int head_dim, int groups, double eps, double rescale);

#endif
