/* ref.h - plain loops: the truth that every other backend is compared with.
 *
 * The same sources are compiled twice, with `real` = float (dn_backend_ref) and double (dn_backend_ref64, for finite
 * differences and error bars). Sums are accumulated in double in both. Every op is one step, every value one dense
 * place; nothing is fused. Another backend falls back to ref for an op by dn_ref_emit (float), over dense places. */
#ifndef DN_BACKEND_REF_H
#define DN_BACKEND_REF_H

#include "backend.h"

typedef struct dn_ref_operand {
    dn_shape shape;
    int64_t count; /* elements of one row; 0: not given, or pruned */
    enum dn_kind kind;
    enum dn_dtype dtype;
} dn_ref_operand;

/* What a ref step reads from step->attr, resolved when it is lowered. */
typedef struct dn_ref_attr {
    enum dn_op_kind kind;
    dn_attr attr; /* copy parts stay the program's */
    dn_ref_operand in[DN_IN_MAX], out[DN_OUT_MAX];
    bool row_out; /* some output is a ROW: the kernel runs once for each row, else once */
    bool row_in;  /* some input is a ROW: a BATCH output sums over the run's rows, in order */
} dn_ref_attr;

/* The step of an op; its attr is a dn_ref_attr, its workspace (if dn_ref_workspace is not 0) a place with a row for
 * each row when row_out, else with one copy. Needs no other preparation. */
dn_step_fn dn_ref_step(enum dn_op_kind k);

/* Resolve shapes. DN_E_UNSUPPORTED names the op when ref cannot compute it with these types. */
int dn_ref_resolve(dn_ref_attr *out, const dn_program *p, const dn_op *op, dn_error *err);
size_t dn_ref_workspace(const dn_ref_attr *a); /* bytes for one call of the kernel */

/* The whole of it: add the step of op number `op` over dense places, place[v] for each value v (-1: it has none).
 * Returns 0 or a DN_E code. */
int dn_ref_emit(dn_lowered *l, int op, const int *place, dn_error *err);

#endif
