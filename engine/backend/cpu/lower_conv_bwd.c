/* lower_conv_bwd.c - gradients of convolutions and matrices.
 *
 * The gradient by the input of a convolution of stride 1 is a convolution with rotated weights, on the kernels of the
 * forward pass; with a stride it has its own. Rotated weights come straight in the kernel's form where that is worth it;
 * else they are a form, and the kernel's own is packed from it before each use. */
#include "lower.h"
#include "choose.h"
#include "gradients.h"

static bool is_param(const dn_program *p, dn_val v) { return p->value[v].kind == DN_PARAM && p->value[v].op < 0; }
static bool is_row(const dn_program *p, dn_val v) { return p->value[v].kind == DN_ROW; }

static int any_layout(dn_lower_state *s, dn_val v)
{
    int blocked = s->blocked[s->root[v]];
    return blocked >= 0 ? blocked : dn_lower_dense(s, v);
}

/* ---- by the input ---- */

/* The convolution, of stride 1, that computes dx from dy with rotated weights. */
static dn_conv_shape dual_of(const dn_conv_shape *s)
{
    return (dn_conv_shape){ .C = s->K, .K = s->C, .H = s->Ho, .W = s->Wo, .Ho = s->H, .Wo = s->W, .kh = s->kh,
                            .kw = s->kw, .stride = 1, .pad_top = s->kh - 1 - s->pad_top,
                            .pad_left = s->kw - 1 - s->pad_left };
}

/* A form of a parameter, kept if it may be. */
static int form_of(dn_lower_state *s, dn_val w, dn_form form)
{
    return s->live ? dn_lower_pack(s, dn_lower_dense(s, w), &s->p->value[w].shape, form) : dn_lower_form(s, w, form);
}

/* The rotated weights in the form that a kernel wants. */
static int rotated(dn_lower_state *s, dn_val w, const dn_conv_kernel *kernel)
{
    const dn_shape *shape = &s->p->value[w].shape;
    dn_shape turned = *shape;
    turned.dim[2] = shape->dim[3];
    turned.dim[3] = shape->dim[2];
    if (kernel->rotated_key)
        return form_of(s, w,
                       (dn_form){ .key = kernel->rotated_key,
                                  .bytes = kernel->form_bytes(&turned),
                                  .pack = kernel->pack_rotated,
                                  .pack_part = kernel->pack_rotated_part });
    int plain = form_of(s, w,
                        (dn_form){ .key = dn_cpu_rotated_key,
                                   .bytes = dn_cpu_rotated_bytes(shape),
                                   .pack = dn_cpu_rotate,
                                   .pack_part = dn_cpu_rotate_part });
    dn_form form = { .key = kernel->form_key,
                     .bytes = kernel->form_key ? kernel->form_bytes(&turned) : 0,
                     .pack = kernel->pack,
                     .pack_part = kernel->pack_part };
    return kernel->form_key ? dn_lower_pack(s, plain, &turned, form) : plain;
}

static int run_strided(const dn_run *run, const dn_step *step)
{
    const dn_conv_shape *s = step->attr;
    dn_cpu_implicit_dx(&(dn_conv_call){ .shape = *s,
                                        .n = run->n,
                                        .x = dn_view(run, step->out[0], s->C),
                                        .y = dn_view(run, step->in[0], s->K),
                                        .weights = dn_place_at(run, step->in[1], 0),
                                        .workspace = dn_place_at(run, step->workspace, 0),
                                        .pool = run->pool });
    return 0;
}

static void emit_strided(dn_lower_state *s, int i, const dn_conv_shape *shape)
{
    const dn_op *op = &s->p->op[i];
    dn_step step = { .fn = run_strided, .n_in = 2, .n_out = 1 };
    step.in[0] = dn_lower_blocked(s, op->in[0]);
    step.in[1] = rotated(s, op->in[1], &dn_cpu_implicit);
    step.out[0] = dn_lower_new_blocked(s, op->out[0]);
    step.workspace = dn_lower_workspace(s, (int64_t)dn_cpu_implicit_dx_workspace(shape, s->l->rows_max), false);
    step.attr = dn_lower_attr(s, shape, sizeof *shape);
    dn_lower_step(s, step, i, i);
}

/* The sums of 2x2 that are the only reader of op i's result: it is the gradient of a doubled map; -1: it is not. */
static int pool_of(const dn_lower_state *s, int i)
{
    const dn_val large = s->p->op[i].out[0];
    const int next = dn_lower_only_reader(s, large);
    const dn_op *op = next < 0 ? NULL : &s->p->op[next];
    return op && op->kind == DN_OP_COPY && op->attr.copy.hint == DN_COPY_POOL2 && op->attr.copy.scale == 1 &&
                   s->p->value[large].shape.rank == 3 && s->op_state[next] == DN_OP_WAITING
               ? next
               : -1;
}

static bool emit_halved(dn_lower_state *s, int i, dn_conv_shape shape)
{
    const dn_op *op = &s->p->op[i];
    const int pool = pool_of(s, i);
    if (pool < 0)
        return false;
    const dn_val small = s->p->op[pool].out[0];
    shape.Ho = (int)s->p->value[small].shape.dim[0];
    shape.Wo = (int)s->p->value[small].shape.dim[1];
    const dn_conv_kernel *kernel = dn_cpu_halved_choose(&shape);
    if (!kernel)
        return false;
    dn_lower_swallow(s, pool);
    dn_lower_conv_emit(s, i, op->in[0], small, &shape, kernel, rotated(s, op->in[1], kernel));
    return true;
}

bool dn_lower_conv_dx(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    if (!is_param(s->p, op->in[1]) || !is_row(s->p, op->in[0]))
        return false;
    dn_conv_shape shape = dn_lower_conv_shape(s->p, op->out[0], op->in[1], op->in[0], &op->attr),
                  dual = dual_of(&shape);
    if (shape.stride > 1) {
        emit_strided(s, i, &shape);
        return true;
    }
    if (dual.pad_top < 0 || dual.pad_left < 0)
        return false;
    if (emit_halved(s, i, dual))
        return true;
    const dn_conv_kernel *kernel = dn_cpu_conv_choose(&dual, DN_FORM_EACH_RUN);
    dn_lower_conv_emit(s, i, op->in[0], op->out[0], &dual, kernel, rotated(s, op->in[1], kernel));
    return true;
}

/* ---- by the weights ---- */

typedef struct dw_attr {
    dn_conv_shape shape;
    const dn_conv_dw_kernel *kernel;
    int part, parts;
} dw_attr;

enum { DW_OUT, DW_WORKSPACE };

static int run_dw(const dn_run *run, const dn_step *step)
{
    const dw_attr *a = step->attr;
    a->kernel->run(&(dn_conv_dw_call){ .shape = a->shape,
                                       .n = run->n,
                                       .x = dn_view(run, step->in[0], a->shape.C),
                                       .dy = dn_view(run, step->in[1], a->shape.K),
                                       .dw = dn_place_at(run, step->out[DW_OUT], 0),
                                       .workspace = dn_place_at(run, step->out[DW_WORKSPACE], 0),
                                       .pool = run->pool,
                                       .part = a->part,
                                       .parts = a->parts });
    return 0;
}

/* The workspace lives through all parts: an output of each. */
static void emit_dw(dn_lower_state *s, int i, dn_val x, dw_attr *a)
{
    const dn_op *op = &s->p->op[i];
    const bool any[2] = { a->kernel->any_x, a->kernel->any_dy };
    const int64_t bytes = (int64_t)a->kernel->workspace_bytes(&a->shape, s->l->rows_max);
    dn_step step = { .fn = run_dw, .n_in = 2, .n_out = 2, .workspace = -1 };
    const dn_val in[2] = { x, op->in[1] };
    for (int j = 0; j < 2; j++)
        step.in[j] = any[j] ? any_layout(s, in[j]) : dn_lower_blocked(s, in[j]);
    step.out[DW_OUT] = dn_lower_new_dense(s, op->out[0]);
    step.out[DW_WORKSPACE] = dn_lower_workspace(s, bytes, false);
    a->parts = dn_lower_parts(s, dn_lower_conv_work(&a->shape));
    for (; a->part < a->parts; a->part++) {
        step.attr = dn_lower_attr(s, a, sizeof *a);
        dn_lower_step(s, step, i, i);
    }
}

bool dn_lower_conv_dw(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    if (!is_row(s->p, op->in[0]) || !is_row(s->p, op->in[1]))
        return false;
    const dn_val small = dn_lower_doubled(s, i), x = small == DN_NONE ? op->in[0] : small;
    dw_attr a = { .shape = dn_lower_conv_shape(s->p, x, op->out[0], op->in[1], &op->attr) };
    a.kernel = small == DN_NONE ? dn_cpu_conv_dw_choose(&a.shape) : dn_cpu_doubled_dw_choose(&a.shape);
    emit_dw(s, i, x, &a);
    return true;
}

bool dn_lower_matmul_dw(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    if (!is_row(s->p, op->in[0]) || !is_row(s->p, op->in[1]))
        return false;
    const int C = dn_value_channels(s->p, op->in[0]), N = dn_value_channels(s->p, op->in[1]);
    const int positions = (int)dn_value_positions(s->p, op->in[0]);
    dw_attr a = { { C, N, positions, 1, positions, 1, 1, 1, 1, 0, 0 }, &dn_cpu_implicit_dw, 0, 0 };
    emit_dw(s, i, op->in[0], &a);
    return true;
}
