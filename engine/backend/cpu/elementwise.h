/* elementwise.h - unary and binary operations on blocked or dense values, eight lanes at a time. */
#ifndef DN_CPU_ELEMENTWISE_H
#define DN_CPU_ELEMENTWISE_H

#include "copy.h"

/* The second operand of a binary operation. */
enum dn_operand {
    DN_OPERAND_SAME,     /* the shape and layout of x */
    DN_OPERAND_CHANNELS, /* a dense vector [C] for each row (row_bytes 0: one for all) */
    DN_OPERAND_SCALAR    /* a number for each row */
};

typedef struct dn_elementwise_args {
    dn_rows x, b, y; /* b of binary operations only; y may be x */
    dn_extent e;     /* dense values: positions * channels contiguous floats */
    enum dn_operand operand;
    float p, q;   /* parameters of unary kinds: DN_AFFINE p*x + q, DN_CLAMP between p and q */
    bool swapped; /* b op x */
} dn_elementwise_args;

bool dn_unary_has_kernel(enum dn_unary kind);
/* Padded lanes stay zero whatever the operation does to zero. */
void dn_unary_run(dn_pool *pool, enum dn_unary kind, const dn_elementwise_args *a);
/* y = b * the derivative at x; b has x's shape and layout. */
bool dn_unary_bwd_has_kernel(enum dn_unary kind);
void dn_unary_bwd_run(dn_pool *pool, enum dn_unary kind, const dn_elementwise_args *a);
/* A dense x takes DN_OPERAND_SAME and DN_OPERAND_SCALAR only. */
void dn_binary_run(dn_pool *pool, enum dn_binary kind, const dn_elementwise_args *a);

#endif
