/* program.h - a recorded program: a flat list of coarse operations over values.
 *
 * Model code runs once, through the builders below, and records what it would compute. The program is then
 * differentiated (dn_grad), rewritten to keep less for the backward part (passes.c), pruned (dn_program_prune), lowered
 * by a backend (backend.h), planned into an arena (plan.h) and from then on only run.
 *
 * A value is a dn_val: an index into program->value, or DN_NONE. A ROW value has one copy for each row of the batch
 * and its shape is that of ONE row; a BATCH value has one copy per run (a sum over rows: a parameter's gradient); a
 * PARAM is read from a parameter block, or is a place of a state block, to which the program adds. The logical layout is dense C order, channels last: an image row is
 * [H,W,C], tokens are [L,C], a vector is [C].
 *
 * Errors are sticky: after the first failure builders do nothing and return DN_NONE; look once, at program->error.
 * Every builder accepts DN_NONE inputs then. Not thread-safe; one thread builds, later readers only read. */
#ifndef DN_CORE_PROGRAM_H
#define DN_CORE_PROGRAM_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int dn_val;
#define DN_NONE (-1)

enum { DN_RANK_MAX = 6, DN_IN_MAX = 8, DN_OUT_MAX = 3, DN_NAME_MAX = 128, DN_BLOCKS_MAX = 4, DN_MARKS_MAX = 256 };

enum dn_kind { DN_ROW, DN_BATCH, DN_PARAM };
enum dn_dtype { DN_F32, DN_F16, DN_BF16, DN_I32, DN_U8 };

typedef struct dn_shape {
    int rank; /* 0: one number */
    int64_t dim[DN_RANK_MAX];
} dn_shape;
#define dn_shape(...)                                                                                                  \
    ((dn_shape){ sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t), { __VA_ARGS__ } })
int64_t dn_shape_count(const dn_shape *s); /* product of the dims */
bool dn_shape_equal(const dn_shape *a, const dn_shape *b);
size_t dn_dtype_size(enum dn_dtype t);

/* name, inputs needed, inputs at the most, outputs, has a gradient */
#define DN_OPS(X)                                                                                                      \
    X(CONV2D, "conv2d", 2, 3, 1, 1)           /* x [H,W,C], w [kh,kw,C,K], bias [K]? -> [Ho,Wo,K] */                   \
    X(CONV2D_DX, "conv2d_dx", 2, 2, 1, 1)     /* dy [Ho,Wo,K], w -> [H,W,C] */                                         \
    X(CONV2D_DW, "conv2d_dw", 2, 2, 1, 0)     /* x, dy -> BATCH [kh,kw,C,K] */                                         \
    X(MATMUL, "matmul", 2, 3, 1, 1)           /* x [...,C], w [C,N] ([N,C] if transposed), bias [N]? -> [...,N] */     \
    X(MATMUL_DW, "matmul_dw", 2, 2, 1, 0)     /* x [...,C], dy [...,N] -> BATCH [C,N] */                               \
    X(ATTENTION, "attention", 3, 3, 1, 1)     /* q [L,C], k [M,C], v [M,C] -> [L,C]; head h is channels h*d.. */       \
    X(ATTENTION_BWD, "attention_bwd", 4, 4, 3, 0) /* q, k, v, dy -> dq, dk, dv */                                      \
    X(NORM, "norm", 1, 3, 2, 1)               /* x [...,C], gamma [C]?, beta [C]? -> y, stats [units,2] mean, rstd */  \
    X(NORM_DX, "norm_dx", 3, 4, 1, 0)         /* x, stats, dy, gamma? -> dx */                                         \
    X(NORM_DW, "norm_dw", 3, 3, 2, 0)         /* x, stats, dy -> BATCH dgamma [C], dbeta [C] */                        \
    X(UNARY, "unary", 1, 1, 1, 1)                                                                                      \
    X(UNARY_BWD, "unary_bwd", 2, 2, 1, 0)     /* x, dy -> dx */                                                        \
    X(BINARY, "binary", 2, 2, 1, 1)           /* right-aligned broadcast; PARAM and BATCH operands go to all rows */   \
    X(SUM_TO, "sum_to", 1, 1, 1, 1)           /* sum over broadcast dims; ROW -> ROW, or ROW -> BATCH over all rows */ \
    X(SOFTMAX, "softmax", 1, 1, 1, 1)         /* over the last dim */                                                  \
    X(SOFTMAX_BWD, "softmax_bwd", 2, 2, 1, 0) /* y, dy -> dx */                                                        \
    X(COPY, "copy", 1, 8, 1, 1)               /* strided copies, see dn_copy_part */                                   \
    X(EMBED, "embed", 3, 3, 1, 1)             /* table [V,C], ids I32 [2], w [1] -> (1-w)*E[a] + w*E[b]  [C] */        \
    X(EMBED_DW, "embed_dw", 3, 3, 1, 0)       /* ids, w, dy -> BATCH [V,C] */                                          \
    X(TIMESTEP, "timestep", 1, 1, 1, 0)       /* t [1] -> [dim], sinusoids */                                          \
    X(FOURIER, "fourier", 2, 2, 1, 0)         /* t [1], w PARAM [C] -> [2C] */                                         \
    X(FIR, "fir", 1, 1, 1, 1)                 /* x [H,W,C] -> [2H,2W,C] or [H/2,W/2,C], taps 1 3 3 1 */                \
    X(DROPOUT, "dropout", 2, 2, 1, 1)         /* x, rng I32 [4] -> x * keep / (1-p) */                                 \
    X(NORMAL, "normal", 1, 1, 1, 0)           /* rng I32 [4] -> N(0,1) */                                              \
    X(LOSS, "loss", 2, 2, 1, 1)               /* prediction, target -> [1], mean over the row */                       \
    X(LOSS_BWD, "loss_bwd", 3, 3, 1, 0)       /* prediction, target, dloss [1] -> dprediction */                       \
    X(CROSS_ENTROPY, "cross_entropy", 2, 2, 1, 1)         /* logits [V], label I32 [1] -> [1] */                       \
    X(CROSS_ENTROPY_BWD, "cross_entropy_bwd", 3, 3, 1, 0) /* logits, label, dloss [1] -> dlogits */                    \
    X(VQ, "vq", 2, 2, 2, 1)                   /* x [...,D], codebook [n,D] -> nearest code, its index I32 [...] */     \
    X(VQ_DW, "vq_dw", 3, 3, 1, 0)             /* index, dy, codebook -> BATCH [n,D] */                                 \
    X(CAST, "cast", 1, 1, 1, 1)                                                                                        \
    X(DETACH, "detach", 1, 1, 1, 0)           /* the value, with no gradient */                                        \
    X(ACCUMULATE, "accumulate", 2, 2, 0, 0)   /* place of a state block, BATCH of its shape: the place += it */

enum dn_op_kind {
#define X(code, name, in_min, in_max, outs, grad) DN_OP_##code,
    DN_OPS(X)
#undef X
        DN_OP_COUNT
};

enum dn_unary {
    DN_SILU, DN_GELU, DN_GELU_TANH, DN_RELU, DN_MISH, DN_SIGMOID, DN_TANH, DN_EXP, DN_LOG, DN_SQRT, DN_SQUARE,
    DN_RECIPROCAL, DN_ABS,
    DN_AFFINE, /* a*x + b */
    DN_CLAMP,  /* between a and b; the gradient passes inside, and on the bounds */
    DN_UNARY_COUNT
};
enum dn_binary { DN_ADD, DN_SUB, DN_MUL, DN_DIV };
enum dn_loss { DN_MSE, DN_L1, DN_HUBER };
enum dn_padding_side { DN_TOP, DN_LEFT, DN_BOTTOM, DN_RIGHT };

/* out[dst_off + sum i_k*dst_stride_k] += scale * in[src_off + sum i_k*src_stride_k] over all i with i_k < n_k, in
 * elements of one row, `out` starting from zero. The gradient is the same op with source and destination swapped.
 * Concat, slice, permute, patchify, nearest upsample, average pool, zero padding are all this. */
typedef struct dn_copy_part {
    int64_t n[DN_RANK_MAX], src_stride[DN_RANK_MAX], dst_stride[DN_RANK_MAX];
    int64_t src_off, dst_off;
} dn_copy_part;

/* What a COPY is, so that a backend can do better than a general loop. It never changes the meaning. */
enum dn_copy_hint { DN_COPY_GENERAL, DN_COPY_RESHAPE, DN_COPY_CONCAT, DN_COPY_SLICE, DN_COPY_UPSAMPLE2, DN_COPY_POOL2 };

typedef union dn_attr {
    struct { int stride, pad[4]; } conv;                          /* pad: top left bottom right */
    struct { bool transposed; } matmul;
    struct { int heads; double scale; } attention;
    struct { int groups; bool per_position; double eps; } norm;   /* per_position: LayerNorm, a unit per position */
    struct { enum dn_unary kind; double a, b; } unary;
    struct { enum dn_binary kind; } binary;
    struct { dn_copy_part *part; double scale; enum dn_copy_hint hint; } copy; /* a part per input, owned by the program */
    struct { bool flip_sin_to_cos; double freq_shift, max_period; } timestep;
    struct { bool up; double scale; } fir;
    struct { double p; int purpose, op_id; } random;              /* dropout and normal; rng.h */
    struct { enum dn_loss kind; double delta; } loss;
} dn_attr;

typedef struct dn_value {
    dn_shape shape;
    enum dn_kind kind;
    enum dn_dtype dtype;
    int op;           /* the op that makes it, or -1: an input or a parameter */
    int block, param; /* PARAM: which block, which parameter of it */
    bool output;      /* kept for the caller to read */
    const char *name; /* inputs, outputs and parameters; owned by the program; may be NULL */
} dn_value;

typedef struct dn_op {
    enum dn_op_kind kind;
    dn_val in[DN_IN_MAX], out[DN_OUT_MAX]; /* DN_NONE: not given, or pruned */
    int n_in, n_out;
    dn_attr attr;
    const char *scope; /* the layer's name, for traces */
    int mark;          /* the marked block of layers that it belongs to, or -1 */
} dn_op;

/* How a checkpoint (PyTorch order) holds a parameter that we hold channels-last. */
enum dn_param_form {
    DN_PARAM_PLAIN,  /* the same order */
    DN_PARAM_LINEAR, /* file [N,C], here [C,N] */
    DN_PARAM_CONV    /* file [K,C,kh,kw], here [kh,kw,C,K] */
};

typedef struct dn_param {
    char name[DN_NAME_MAX]; /* as in the checkpoint: "down_blocks.0.resnets.0.conv1.weight" */
    dn_shape shape;         /* ours */
    enum dn_param_form form;
    bool decay;             /* weight decay applies: not to norms and biases */
    int64_t offset;         /* in elements from the block's start, a multiple of 16 */
    dn_val val;             /* its value in the program */
} dn_param;

/* The layout of one parameter block, in registration order. Owned by its program. */
typedef struct dn_block {
    const char *name; /* the component: "unet" */
    dn_param *param;
    int n_params, cap;
    int64_t count; /* elements of the whole block, padding included (padding is zero) */
    bool state;    /* writable memory that the caller binds in dn_run.block and keeps between runs: gradients */
    bool trains;   /* its weights change between runs: no packed forms are kept */
    int *slot;     /* open addressing by name: the number of a parameter + 1, or 0 */
    int n_slots;   /* a power of two, more than twice n_params */
} dn_block;

typedef struct dn_program {
    dn_value *value;
    int n_values, values_cap;
    dn_op *op;
    int n_ops, ops_cap;
    dn_block block[DN_BLOCKS_MAX];
    int n_blocks;
    int first_backward; /* the first op that dn_grad appended; 0: not differentiated. The passes and prune keep it true */
    int mark, n_marks;  /* the mark that is open, or -1; how many there are */
    dn_error error; /* sticky; code 0 while all is well */
    char scope[DN_NAME_MAX];
    struct dn_heap_chunk *mem; /* names, copy parts */
} dn_program;

dn_program *dn_program_new(void); /* NULL: out of memory */
void dn_program_free(dn_program *p); /* NULL is fine */
void dn_program_print(const dn_program *p, void *file /* FILE* */);
const char *dn_op_name(enum dn_op_kind k);

/* Record a failure, unless one is recorded already. Returns DN_NONE. */
dn_val dn_program_fail(dn_program *p, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Names of layers nest: dn_scope_push(p, "mid_block.resnets.%d", 0) ... dn_scope_pop. Parameters and ops are named in it. */
int dn_scope_push(dn_program *p, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* returns a mark */
void dn_scope_pop(dn_program *p, int mark);

/* Values. `name` is copied. A parameter registered twice under one name is the same parameter (aliased). */
dn_val dn_input(dn_program *p, const char *name, enum dn_dtype t, dn_shape row_shape);
int dn_block_add(dn_program *p, const char *name); /* returns the block's number, or -1 */
dn_val dn_param_add(dn_program *p, int block, const char *name, dn_shape shape, enum dn_param_form form, bool decay);
/* A state block with the same parameters at the same offsets as `block` has now, so that gradient, moments and average are
 * flat loops beside the weights. Returns its number, or -1. */
int dn_block_mirror(dn_program *p, int block, const char *name);
int dn_block_find(const dn_block *b, const char *name); /* the number of a parameter, or -1 */
void dn_output(dn_program *p, const char *name, dn_val v);
dn_val dn_find(const dn_program *p, const char *name); /* an input or output; DN_NONE if there is none */
const dn_shape *dn_shape_of(const dn_program *p, dn_val v);

/* Operations. `bias`, `gamma`, `beta` may be DN_NONE where the table above says "?" - pass `dn_val none = DN_NONE`
 * only for that; after a failure everything is ignored. */
dn_val dn_conv2d(dn_program *p, dn_val x, dn_val w, dn_val bias, int stride, const int pad[4]);
dn_val dn_matmul(dn_program *p, dn_val x, dn_val w, dn_val bias, bool transposed);
dn_val dn_attention(dn_program *p, dn_val q, dn_val k, dn_val v, int heads, double scale);
dn_val dn_group_norm(dn_program *p, dn_val x, dn_val gamma, dn_val beta, int groups, double eps);
dn_val dn_layer_norm(dn_program *p, dn_val x, dn_val gamma, dn_val beta, double eps);
dn_val dn_unary(dn_program *p, enum dn_unary kind, dn_val x);
dn_val dn_affine(dn_program *p, dn_val x, double a, double b);
dn_val dn_clamp(dn_program *p, dn_val x, double lo, double hi);
dn_val dn_binary(dn_program *p, enum dn_binary kind, dn_val a, dn_val b);
dn_val dn_sum_to(dn_program *p, dn_val x, dn_shape shape, enum dn_kind kind);
dn_val dn_softmax(dn_program *p, dn_val x);
dn_val dn_copy(dn_program *p, const dn_val *in, const dn_copy_part *part, int n, dn_shape out, double scale,
               enum dn_copy_hint hint);
dn_val dn_reshape(dn_program *p, dn_val x, dn_shape shape);
dn_val dn_concat(dn_program *p, const dn_val *in, int n);                   /* along the last dim */
dn_val dn_slice(dn_program *p, dn_val x, int dim, int64_t from, int64_t n);
dn_val dn_permute(dn_program *p, dn_val x, const int *order);               /* out dim i is in dim order[i] */
dn_val dn_upsample2(dn_program *p, dn_val x);                               /* nearest: [H,W,C] -> [2H,2W,C] */
dn_val dn_avg_pool2(dn_program *p, dn_val x);                               /* [H,W,C] -> [H/2,W/2,C], floor */
dn_val dn_embed(dn_program *p, dn_val table, dn_val ids, dn_val w);
dn_val dn_timestep(dn_program *p, dn_val t, int dim, bool flip_sin_to_cos, double freq_shift);
dn_val dn_fourier(dn_program *p, dn_val t, dn_val w);                       /* of log(t), as diffusers */
dn_val dn_fir(dn_program *p, dn_val x, bool up);
dn_val dn_dropout(dn_program *p, dn_val x, dn_val rng, double rate, int op_id);
dn_val dn_normal(dn_program *p, dn_val rng, dn_shape shape, int purpose, int op_id);
dn_val dn_loss(dn_program *p, enum dn_loss kind, dn_val prediction, dn_val target, double delta);
dn_val dn_cross_entropy(dn_program *p, dn_val logits, dn_val label);
dn_val dn_vq(dn_program *p, dn_val x, dn_val codebook, dn_val *index /* NULL is fine */);
dn_val dn_cast(dn_program *p, dn_val x, enum dn_dtype t);
dn_val dn_detach(dn_program *p, dn_val x);
/* Add the BATCH value g to parameter `param` of the state block. It runs right after what makes g (dn_program_prune moves it
 * there), so that g lives no longer. Nothing for DN_NONE. */
void dn_accumulate(dn_program *p, int block, int param, dn_val g);

/* Mark a block of layers that dn_program_recompute may run again; marks do not nest. Returns its number, or -1 (no mark:
 * there are DN_MARKS_MAX already, or a failure). */
int dn_mark_begin(dn_program *p);
void dn_mark_end(dn_program *p);

/* Append the ops that compute grad[i] = d(sum over y * dy)/d(wrt[i]). dy has y's shape; DN_NONE means ones. A ROW's
 * gradient is a ROW, a PARAM's a BATCH (summed over rows). grad[i] is DN_NONE if wrt[i] does not reach y. */
void dn_grad(dn_program *p, dn_val y, dn_val dy, const dn_val *wrt, int n, dn_val *grad);

/* Remove every op from which no output and no ACCUMULATE comes, and every output of an op that nobody reads; move each
 * ACCUMULATE up to what makes its value. Values keep their numbers. */
void dn_program_prune(dn_program *p);

/* ---- less memory for training: after dn_grad, in this order, then prune (passes.c) ---- */

/* A bit for each mark. */
typedef struct dn_marks {
    uint64_t bit[DN_MARKS_MAX / 64];
} dn_marks;
static inline bool dn_marks_has(const dn_marks *m, int i) { return m->bit[i / 64] >> i % 64 & 1; }
static inline void dn_marks_set(dn_marks *m, int i, bool on)
{
    uint64_t bit = (uint64_t)1 << i % 64;
    m->bit[i / 64] = on ? m->bit[i / 64] | bit : m->bit[i / 64] & ~bit;
}

/* Gradient checkpointing (Chen et al. 2016): what the chosen blocks made for themselves alone is not kept but computed again
 * right before the backward part first reads it, from the same inputs. No bit of any result changes. */
void dn_program_recompute(dn_program *p, const dn_marks *chosen);

/* Keep what the backward part reads of the forward part as 16 bit (DN_F16, DN_BF16): narrowed after its last forward
 * reader, widened before its backward readers. What a norm, a function, a modulation or dropout made of one map is not kept
 * at all but made again from that map. Statistics, vectors, inputs, outputs and what the loss itself reads stay as they are.
 * No bit of the forward part changes, gradients do. With recomputing a block starts from its narrowed inputs. */
void dn_program_store16(dn_program *p, enum dn_dtype t);

/* What recomputing a marked block would save and cost, for one row. */
typedef struct dn_mark_cost {
    int64_t bytes; /* kept for the backward part now */
    double flop;   /* to compute it again */
} dn_mark_cost;
/* cost has p->n_marks entries; dn_program_recompute has not been called. Returns 0 or DN_E_MEMORY. */
int dn_program_mark_costs(dn_program *p, dn_mark_cost *cost);

/* Floating-point operations for one row, by the formulas for multiplying matrices; everything else counts a few for each
 * element. */
double dn_op_flop(const dn_program *p, const dn_op *op);
double dn_program_flop(const dn_program *p);

#endif
