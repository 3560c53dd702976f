/* program_internal.h - shared by program.c, ops.c, grad.c and passes.c. */
#ifndef DN_CORE_PROGRAM_INTERNAL_H
#define DN_CORE_PROGRAM_INTERNAL_H

#include "memory.h"
#include "program.h"

enum { DN_PARAM_ALIGN = 16 };                       /* elements */
#define DN_ELEMENTS_MAX ((int64_t)1 << 36)          /* of one value */

dn_val dn_value_add(dn_program *p, dn_shape shape, enum dn_kind kind, enum dn_dtype dtype, int op);

/* An output of the op to be added. */
typedef struct dn_out {
    dn_shape shape;
    enum dn_kind kind;
    enum dn_dtype dtype;
} dn_out;

/* Append an op; out[] (n_out of the op's kind) describes what it makes. Returns the first output, or DN_NONE. */
dn_val dn_op_add(dn_program *p, enum dn_op_kind kind, const dn_val *in, int n_in, const dn_attr *attr, const dn_out *out);

/* A new list of ops for a program, in place of the old one. */
typedef struct dn_rewrite {
    dn_program *p;
    dn_op *op;
    int n, cap;
} dn_rewrite;
/* Append an op; its outputs are values that exist. Failures are the program's. */
void dn_rewrite_add(dn_rewrite *r, const dn_op *op);
/* Replace the program's ops, unless it has failed. */
void dn_rewrite_finish(dn_rewrite *r, int first_backward);

/* The copy op that takes the gradient of op (a COPY) back to its input i. */
dn_val dn_copy_adjoint(dn_program *p, const dn_op *op, int i, dn_val g);

#endif
