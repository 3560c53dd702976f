/* cost.c - how much arithmetic ops are. */
#include "program.h"

static double count(const dn_program *p, dn_val v) { return (double)dn_shape_count(dn_shape_of(p, v)); }

/* Of what it makes or, where that is nothing, takes. */
static double elements(const dn_program *p, const dn_op *op)
{
    for (int j = 0; j < op->n_out; j++)
        if (op->out[j] != DN_NONE)
            return count(p, op->out[j]);
    return count(p, op->in[op->n_in - 1]);
}

double dn_op_flop(const dn_program *p, const dn_op *op)
{
    const int64_t *a = dn_shape_of(p, op->in[0])->dim, *b = dn_shape_of(p, op->in[1])->dim;
    const dn_shape *x = dn_shape_of(p, op->in[0]), *y = dn_shape_of(p, op->out[0]);
    switch (op->kind) {
    case DN_OP_CONV2D: /* for each output: kh * kw * C */
        return 2 * count(p, op->out[0]) * (double)(b[0] * b[1] * b[2]);
    case DN_OP_CONV2D_DX:
        return 2 * count(p, op->in[0]) * (double)(b[0] * b[1] * b[2]);
    case DN_OP_CONV2D_DW:
        return 2 * count(p, op->in[1]) * (double)(y->dim[0] * y->dim[1] * y->dim[2]);
    case DN_OP_MATMUL:
        return 2 * count(p, op->out[0]) * (double)a[x->rank - 1];
    case DN_OP_MATMUL_DW:
        return 2 * count(p, op->in[0]) * (double)y->dim[1];
    case DN_OP_ATTENTION: /* scores, and the mean of the values */
        return 4 * count(p, op->out[0]) * (double)b[0];
    case DN_OP_ATTENTION_BWD: /* the scores again, and both gradients of both products */
        return 10 * count(p, op->in[0]) * (double)b[0];
    default:
        return elements(p, op);
    }
}

double dn_program_flop(const dn_program *p)
{
    double sum = 0;
    for (int i = 0; i < p->n_ops; i++)
        sum += dn_op_flop(p, &p->op[i]);
    return sum;
}
