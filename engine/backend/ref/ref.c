/* ref.c - lowers a program op by op onto the kernels of this folder, and runs them row by row. */
#include "ref_impl.h"
#include "pool.h"
#include <stdatomic.h>

static const kernel kernels[DN_OP_COUNT] = {
#define X(code, name, doubles) [DN_OP_##code] = R(name),
    KERNELS(X)
#undef X
};

/* Bit i: operand i is I32; every other one is F32. */
/* clang-format off */
static const struct {
    unsigned in, out;
} integers[DN_OP_COUNT] = {
    [DN_OP_EMBED] = { 1 << 1, 0 },
    [DN_OP_EMBED_DW] = { 1 << 0, 0 },
    [DN_OP_DROPOUT] = { 1 << 1, 0 },
    [DN_OP_NORMAL] = { 1 << 0, 0 },
    [DN_OP_CROSS_ENTROPY] = { 1 << 1, 0 },
    [DN_OP_CROSS_ENTROPY_BWD] = { 1 << 1, 0 },
    [DN_OP_VQ] = { 0, 1 << 1 },
    [DN_OP_VQ_DW] = { 1 << 0, 0 },
};
/* clang-format on */

/* ---- running ---- */

typedef struct region {
    const call *c;
    _Atomic int rc; /* any failed row's */
} region;

static void run_rows(void *arg, int64_t from, int64_t to, int thread)
{
    region *r = arg;
    (void)thread;
    for (int64_t row = from; row < to; row++) {
        int rc = kernels[r->c->op->kind](r->c, row);
        if (rc)
            atomic_store(&r->rc, rc);
    }
}

static int run_step(const dn_run *run, const dn_step *step)
{
    call c = { run, step, step->attr };
    if (!c.op->row_out)
        return kernels[c.op->kind](&c, 0);
    region r = { .c = &c };
    dn_pool_run(run->pool, run_rows, &r, run->n, 1);
    return atomic_load(&r.rc);
}

dn_step_fn R(step)(enum dn_op_kind k) { return k < DN_OP_COUNT ? run_step : NULL; }

/* ---- lowering ---- */

/* Which dtype an operand must have; -1: any. */
static int dtype_of_operand(enum dn_op_kind kind, bool output, int i)
{
    if (kind == DN_OP_CAST || kind == DN_OP_DETACH)
        return -1;
    return (output ? integers[kind].out : integers[kind].in) >> i & 1 ? DN_I32 : DN_F32;
}

static int resolve_operand(dn_ref_operand *o, const dn_program *p, dn_val v, int dtype)
{
    if (v == DN_NONE)
        return 0;
    const dn_value *value = &p->value[v];
    *o = (dn_ref_operand){ value->shape, dn_shape_count(&value->shape), value->kind, value->dtype };
    return dtype < 0 || dtype == (int)value->dtype ? 0 : DN_E_UNSUPPORTED;
}

int R(resolve)(dn_ref_attr *out, const dn_program *p, const dn_op *op, dn_error *err)
{
    dn_ref_attr a = { .kind = op->kind, .attr = op->attr };
    int rc = 0;
    for (int i = 0; i < op->n_in && !rc; i++) {
        rc = resolve_operand(&a.in[i], p, op->in[i], dtype_of_operand(op->kind, false, i));
        a.row_in |= op->in[i] != DN_NONE && a.in[i].kind == DN_ROW;
    }
    for (int i = 0; i < op->n_out && !rc; i++) {
        rc = resolve_operand(&a.out[i], p, op->out[i], dtype_of_operand(op->kind, true, i));
        a.row_out |= op->out[i] != DN_NONE && a.out[i].kind == DN_ROW;
    }
    if (rc)
        return dn_fail(err, rc, op->scope, "%s: the reference backend has no such combination of types",
                       dn_op_name(op->kind));
    *out = a;
    return 0;
}

size_t R(workspace)(const dn_ref_attr *a)
{
    switch (a->kind) {
#define X(code, name, doubles) \
    case DN_OP_##code:         \
        return (size_t)(doubles) * sizeof(double);
        KERNELS(X)
#undef X
    case DN_OP_COUNT:
        break;
    }
    return 0;
}

static int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int out_of_memory(dn_error *err)
{
    return dn_fail(err, DN_E_MEMORY, NULL, "out of memory while lowering a program");
}

static int add_workspace(dn_lowered *l, const dn_ref_attr *a)
{
    int64_t bytes = padded((int64_t)R(workspace)(a));
    dn_place place = {
        .memory = DN_IN_ARENA, .bytes = bytes, .row_bytes = a->row_out ? bytes : 0, .inside = -1, .val = DN_NONE
    };
    return dn_place_add(l, place);
}

int R(emit)(dn_lowered *l, int index, const int *place, dn_error *err)
{
    const dn_op *op = &l->program->op[index];
    dn_ref_attr *a = dn_lowered_alloc(l, sizeof *a);
    if (!a)
        return out_of_memory(err);
    int rc = R(resolve)(a, l->program, op, err);
    if (rc)
        return rc;
    dn_step step = { .fn = R(step)(op->kind),
                     .attr = a,
                     .n_in = op->n_in,
                     .n_out = op->n_out,
                     .workspace = -1,
                     .op_first = index,
                     .op_last = index };
    for (int i = 0; i < op->n_in; i++)
        step.in[i] = op->in[i] == DN_NONE ? -1 : place[op->in[i]];
    for (int i = 0; i < op->n_out; i++)
        step.out[i] = op->out[i] == DN_NONE ? -1 : place[op->out[i]];
    if (R(workspace)(a) && (step.workspace = add_workspace(l, a)) < 0)
        return out_of_memory(err);
    return dn_step_add(l, step) < 0 ? out_of_memory(err) : 0;
}

static int64_t value_bytes(const dn_value *v)
{
    return dn_shape_count(&v->shape) * (int64_t)(v->dtype == DN_F32 ? sizeof(real) : dn_dtype_size(v->dtype));
}

static dn_place place_of(const dn_program *p, dn_val v)
{
    const dn_value *value = &p->value[v];
    int64_t bytes = value_bytes(value);
    if (value->kind == DN_PARAM && value->op < 0) {
        int64_t first = p->block[value->block].param[value->param].offset;
        return (dn_place){ .memory = DN_IN_BLOCK,
                           .block = value->block,
                           .offset = first * (int64_t)sizeof(real),
                           .bytes = bytes,
                           .inside = -1,
                           .val = v };
    }
    return (dn_place){ .memory = DN_IN_ARENA,
                       .bytes = padded(bytes),
                       .row_bytes = value->kind == DN_ROW ? padded(bytes) : 0,
                       .inside = -1,
                       .keep = value->output || value->op < 0,
                       .val = v };
}

/* A value needs a place when an op touches it or the caller does. */
static void mark_used(const dn_program *p, int *used)
{
    for (int v = 0; v < p->n_values; v++)
        used[v] = p->value[v].output || (p->value[v].op < 0 && p->value[v].kind != DN_PARAM);
    for (int i = 0; i < p->n_ops; i++) {
        for (int j = 0; j < p->op[i].n_in; j++)
            if (p->op[i].in[j] != DN_NONE)
                used[p->op[i].in[j]] = true;
        for (int j = 0; j < p->op[i].n_out; j++)
            if (p->op[i].out[j] != DN_NONE)
                used[p->op[i].out[j]] = true;
    }
}

static int lower(dn_lowered *l, dn_error *err)
{
    const dn_program *p = l->program;
    int *place = dn_lowered_alloc(l, sizeof *place * (size_t)(p->n_values + 1));
    if (!place)
        return out_of_memory(err);
    mark_used(p, place);
    for (int v = 0; v < p->n_values; v++) {
        bool used = place[v];
        place[v] = used ? dn_place_add(l, place_of(p, v)) : -1;
        if (used && place[v] < 0)
            return out_of_memory(err);
        if (p->value[v].output || (p->value[v].op < 0 && p->value[v].kind != DN_PARAM))
            l->value_place[v] = place[v];
    }
    int rc = 0;
    for (int i = 0; i < p->n_ops && !rc; i++)
        rc = R(emit)(l, i, place, err);
    return rc;
}

static bool available(void) { return true; }

/* Threads divide rows only. */
static int rows_default(const dn_program *p)
{
    (void)p;
    return 4;
}

#if REF_DOUBLE
const dn_backend dn_backend_ref64 = { "ref64", sizeof(real), available, rows_default, lower };
#else
const dn_backend dn_backend_ref = { "ref", sizeof(real), available, rows_default, lower };
#endif
