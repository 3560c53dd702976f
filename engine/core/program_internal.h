/* program_internal.h - shared by program.c, ops.c and grad.c. */
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

/* The copy op that takes the gradient of op (a COPY) back to its input i. */
dn_val dn_copy_adjoint(dn_program *p, const dn_op *op, int i, dn_val g);

#endif
