/* lower.h - shared by the files that lower a program for the CPU.
 *
 * Operations are visited in order; each emits the steps that it needs, may swallow operations that follow it (a fusion:
 * the value between has that one reader and is no output), and may ask for small operations to be emitted early
 * (dn_lower_make). A value has at most one place per layout, made when it is first asked for: dense, channels last, or
 * blocked (kernels.h). A reshape that keeps the last dimension is the same value under another name: places belong to
 * the root. An operation without a kernel here is a step of ref over dense places. */
#ifndef DN_CPU_LOWER_H
#define DN_CPU_LOWER_H

#include "backend.h"
#include "copy.h"

typedef struct dn_lower_state {
    dn_lowered *l;
    const dn_program *p;
    dn_error *err;
    int rc;     /* sticky */
    int *root;  /* [n_values] the value whose storage this one is */
    int *dense; /* [n_values] places of roots, -1: none yet */
    int *blocked;
    int *home;      /* [n_values] of roots: the concat op whose output the blocked place lies in, -1: none */
    int *home_at;   /* ... at this channel */
    int *readers;   /* [n_values] how often it is read */
    int *reader;    /* the last op that reads it */
    int *place;     /* [n_values] scratch: what ref is told */
    int now;        /* the op that is being lowered */
    int *chained;   /* [n_ops] of a UNARY_BWD: 1 + the norm whose step computes what it is the gradient of; 0: none */
    int *stats;     /* [n_ops] of a norm whose chain was taken: the place of its statistics */
    bool gradients; /* the program has some: nothing is multiplied out, as what is recomputed must have the same bits */
    bool live;      /* packed convolution weights would take too much memory: transform them in every run */
    bool *made;     /* [n_values] steps that compute it are emitted */
    char *op_state; /* [n_ops] enum dn_op_state */
} dn_lower_state;

enum dn_op_state { DN_OP_WAITING, DN_OP_BUSY, DN_OP_DONE };

/* The channels and positions of a value: [H,W,C] and [L,C] have H*W and L, [C] and [1,1,C] have one. */
int64_t dn_value_positions(const dn_program *p, dn_val v);
int dn_value_channels(const dn_program *p, dn_val v);
/* An f32 row with more than one position: it is at home in the blocked layout. */
bool dn_value_is_map(const dn_program *p, dn_val v);
/* Is `v` a vector over the last dimension of `of`, or one number? */
bool dn_value_is_channels(const dn_program *p, dn_val v, dn_val of);

/* Record a failure, once; returns -1. */
int dn_lower_fail(dn_lower_state *s, int code, const char *message);
/* Places to read (a conversion is emitted if the value has only the other one) and to write. -1 after a failure. */
int dn_lower_dense(dn_lower_state *s, dn_val v);
int dn_lower_blocked(dn_lower_state *s, dn_val v);
int dn_lower_new_dense(dn_lower_state *s, dn_val v);
int dn_lower_new_blocked(dn_lower_state *s, dn_val v);
/* Let blocked v be a part of blocked place `from`, which has `of` channels, from channel `first` on: nothing is copied.
 * False: v has a place already, or its blocks are not whole ones there. */
bool dn_lower_within(dn_lower_state *s, dn_val v, int from, int first, int of);
/* Some bytes for one step: for each row, or once. */
int dn_lower_workspace(dn_lower_state *s, int64_t bytes, bool for_each_row);
/* The place of a packed form of parameter v: made once, or, if the parameter trains, right here in every run. */
int dn_lower_form(dn_lower_state *s, dn_val v, dn_form form);
/* A form of the weights of that shape at place `from`, packed here in every run. */
int dn_lower_pack(dn_lower_state *s, int from, const dn_shape *shape, dn_form form);
bool dn_lower_trains(const dn_lower_state *s, dn_val v);
void *dn_lower_attr(dn_lower_state *s, const void *attr, size_t bytes);
/* Into how many steps a convolution or a matrix of so many multiplications for each row is divided: no run should be away
 * for long from whoever shares the device. No bit depends on it. */
int dn_lower_parts(const dn_lower_state *s, double multiplications);
double dn_lower_conv_work(const dn_conv_shape *s);
/* Append a step that computes `op` and what was swallowed up to `last`, with value `y`. */
void dn_lower_step(dn_lower_state *s, dn_step step, int op, int last);

/* Is it computed, or can the ops that compute it be emitted now (they are then)? */
bool dn_lower_make(dn_lower_state *s, dn_val v);
/* The only op that reads v, if v may vanish into a fusion; else -1. */
int dn_lower_only_reader(const dn_lower_state *s, dn_val v);
/* Mark op as computed by the step of another. */
void dn_lower_swallow(dn_lower_state *s, int op);

/* Lower op number i if there is a kernel for it; false: ref does it. */
typedef bool (*dn_lower_fn)(dn_lower_state *s, int i);
bool dn_lower_conv(dn_lower_state *s, int i);
/* Is v a map that nearest upsampling doubles, and op i, a convolution of it or its gradient by the weights, one that
 * reads the small map instead? Returns that, or DN_NONE. */
dn_val dn_lower_doubled(const dn_lower_state *s, int i);
/* Does nobody need what op i, a nearest upsampling, makes? */
bool dn_lower_skip_upsample(dn_lower_state *s, int i);
bool dn_lower_conv_dx(dn_lower_state *s, int i);
bool dn_lower_conv_dw(dn_lower_state *s, int i);
bool dn_lower_matmul_dw(dn_lower_state *s, int i);
/* Op i as the convolution `shape` of x on `kernel`, making y, with what follows it. */
void dn_lower_conv_emit(dn_lower_state *s, int i, dn_val x, dn_val y, const dn_conv_shape *shape,
                        const dn_conv_kernel *kernel, int weights);
/* The shape of the convolution x -> y. */
dn_conv_shape dn_lower_conv_shape(const dn_program *p, dn_val x, dn_val w, dn_val y, const dn_attr *attr);
/* Bytes of the packed weights of all convolutions. */
int64_t dn_lower_conv_forms(const dn_program *p);
bool dn_lower_matmul(dn_lower_state *s, int i);
bool dn_lower_norm(dn_lower_state *s, int i);
bool dn_lower_attention(dn_lower_state *s, int i);
bool dn_lower_unary(dn_lower_state *s, int i);
bool dn_lower_binary(dn_lower_state *s, int i);
bool dn_lower_copy(dn_lower_state *s, int i);
bool dn_lower_accumulate(dn_lower_state *s, int i);

bool dn_lower_unary_bwd(dn_lower_state *s, int i);
bool dn_lower_norm_bwd(dn_lower_state *s, int i);
bool dn_lower_attention_bwd(dn_lower_state *s, int i);
bool dn_lower_sum_to(dn_lower_state *s, int i);
bool dn_lower_loss(dn_lower_state *s, int i);
bool dn_lower_loss_bwd(dn_lower_state *s, int i);
bool dn_lower_softmax(dn_lower_state *s, int i); /* and its gradient */
bool dn_lower_embed_dw(dn_lower_state *s, int i);
bool dn_lower_dropout(dn_lower_state *s, int i);
bool dn_lower_cast(dn_lower_state *s, int i);

/* A norm, then scale and shift (or not), then SiLU (or only its gradient), where only gradients read what is in
 * between; op numbers, -1: there is none. */
typedef struct dn_norm_chain {
    int norm, mul, add, silu;
    int silu_bwd, shift_sum, by_scale, by_norm, scale_sum, dx, dw; /* the gradients */
    dn_val scale, shift;                                           /* DN_NONE: no modulation */
} dn_norm_chain;
/* Make the norm's step compute the chain up to SiLU, if there is one. */
bool dn_norm_chain_take(dn_lower_state *s, int norm, dn_norm_chain *c);
/* Lower op i, SiLU's gradient, if its chain was taken. */
bool dn_lower_norm_chain_bwd(dn_lower_state *s, int i);

int dn_cpu_lower(dn_lowered *l, dn_error *err);
/* The number of rows, 1 to 8, that a run of this program should take. It changes time and memory, never bits. */
int dn_cpu_rows_default(const dn_program *p);

/* A place as kernels see it, in a run; place -1: a NULL base. */
static inline dn_rows dn_view(const dn_run *run, int place, int64_t channels)
{
    if (place < 0)
        return (dn_rows){ 0 };
    const dn_place *p = &run->lowered->place[place];
    return (dn_rows){ dn_place_at(run, place, 0), p->row_bytes, p->plane, channels * (int64_t)sizeof(float) };
}

#endif
