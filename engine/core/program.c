/* program.c - the record itself: values, parameters, names, pruning, printing. The operations are in ops.c. */
#include "program_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const op_names[DN_OP_COUNT] = {
#define X(code, name, in_min, in_max, outs, grad) [DN_OP_##code] = name,
    DN_OPS(X)
#undef X
};

const char *dn_op_name(enum dn_op_kind k) { return k < DN_OP_COUNT ? op_names[k] : "?"; }

int64_t dn_shape_count(const dn_shape *s)
{
    int64_t n = 1;
    for (int i = 0; i < s->rank; i++)
        n *= s->dim[i];
    return n;
}

bool dn_shape_equal(const dn_shape *a, const dn_shape *b)
{
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i])
            return false;
    return true;
}

size_t dn_dtype_size(enum dn_dtype t)
{
    static const size_t size[] = { [DN_F32] = 4, [DN_F16] = 2, [DN_BF16] = 2, [DN_I32] = 4, [DN_U8] = 1 };
    return size[t];
}

dn_program *dn_program_new(void)
{
    dn_program *p = calloc(1, sizeof *p);
    if (p)
        p->mark = -1;
    return p;
}

void dn_program_free(dn_program *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_blocks; i++) {
        free(p->block[i].param);
        free(p->block[i].slot);
    }
    dn_heap_free(p->mem);
    free(p->value);
    free(p->op);
    free(p);
}

dn_val dn_program_fail(dn_program *p, int code, const char *fmt, ...)
{
    if (p->error.code)
        return DN_NONE;
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    dn_fail(&p->error, code, p->scope, "%s%s%s", p->scope, *p->scope ? ": " : "", text);
    return DN_NONE;
}

int dn_scope_push(dn_program *p, const char *fmt, ...)
{
    int mark = (int)strlen(p->scope), n = mark;
    if (n && n < DN_NAME_MAX - 1)
        p->scope[n++] = '.';
    va_list args;
    va_start(args, fmt);
    int wrote = vsnprintf(p->scope + n, (size_t)(DN_NAME_MAX - n), fmt, args);
    va_end(args);
    if (wrote >= DN_NAME_MAX - n)
        dn_program_fail(p, DN_E_LIMIT, "layer names are too long");
    return mark;
}

void dn_scope_pop(dn_program *p, int mark) { p->scope[mark] = 0; }

dn_val dn_value_add(dn_program *p, dn_shape shape, enum dn_kind kind, enum dn_dtype dtype, int op)
{
    if (p->error.code)
        return DN_NONE;
    if (shape.rank < 0 || shape.rank > DN_RANK_MAX)
        return dn_program_fail(p, DN_E_INTERNAL, "rank %d", shape.rank);
    int64_t count = 1;
    for (int i = 0; i < shape.rank; i++)
        if (shape.dim[i] <= 0 || __builtin_mul_overflow(count, shape.dim[i], &count) || count > DN_ELEMENTS_MAX)
            return dn_program_fail(p, DN_E_LIMIT, "a dimension of %lld, or too many elements", (long long)shape.dim[i]);
    if (dn_grow(&p->value, p->n_values, &p->values_cap, sizeof *p->value))
        return dn_program_fail(p, DN_E_MEMORY, "out of memory");
    p->value[p->n_values] =
        (dn_value){ .shape = shape, .kind = kind, .dtype = dtype, .op = op, .block = -1, .param = -1 };
    return p->n_values++;
}

static const char *keep_name(dn_program *p, const char *name)
{
    char *copy = dn_heap_string(&p->mem, name);
    if (!copy)
        dn_program_fail(p, DN_E_MEMORY, "out of memory");
    return copy;
}

dn_val dn_input(dn_program *p, const char *name, enum dn_dtype t, dn_shape row_shape)
{
    dn_val v = dn_value_add(p, row_shape, DN_ROW, t, -1);
    if (v != DN_NONE)
        p->value[v].name = keep_name(p, name);
    return v;
}

int dn_block_add(dn_program *p, const char *name)
{
    if (p->error.code)
        return -1;
    if (p->n_blocks == DN_BLOCKS_MAX)
        return dn_program_fail(p, DN_E_INTERNAL, "more than %d parameter blocks", DN_BLOCKS_MAX);
    p->block[p->n_blocks] = (dn_block){ .name = keep_name(p, name) };
    return p->n_blocks++;
}

/* The slot of a name: where it is, or where it would go (FNV-1a, linear probing). */
static int slot_of(const dn_block *b, const char *name)
{
    uint32_t hash = 2166136261u;
    for (const char *c = name; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    uint32_t last = (uint32_t)b->n_slots - 1, i = hash & last;
    while (b->slot[i] && strcmp(b->param[b->slot[i] - 1].name, name))
        i = (i + 1) & last;
    return (int)i;
}

int dn_block_find(const dn_block *b, const char *name) { return b->n_slots ? b->slot[slot_of(b, name)] - 1 : -1; }

/* Append a parameter whose name is new. Returns 0, or -1 when memory is out. */
static int append_param(dn_block *b, const dn_param *q)
{
    if (dn_grow(&b->param, b->n_params, &b->cap, sizeof *b->param))
        return -1;
    if (b->n_slots <= 2 * (b->n_params + 1)) {
        int n = b->n_slots ? 4 * b->n_slots : 64;
        int *grown = calloc((size_t)n, sizeof *grown);
        if (!grown)
            return -1;
        free(b->slot);
        b->slot = grown;
        b->n_slots = n;
        for (int i = 0; i < b->n_params; i++)
            b->slot[slot_of(b, b->param[i].name)] = i + 1;
    }
    b->slot[slot_of(b, q->name)] = b->n_params + 1;
    b->param[b->n_params++] = *q;
    return 0;
}

dn_val dn_param_add(dn_program *p, int block, const char *name, dn_shape shape, enum dn_param_form form, bool decay)
{
    if (p->error.code)
        return DN_NONE;
    dn_param q = { .shape = shape, .form = form, .decay = decay };
    int n = snprintf(q.name, sizeof q.name, "%s%s%s", p->scope, *p->scope ? "." : "", name);
    if (n >= (int)sizeof q.name)
        return dn_program_fail(p, DN_E_LIMIT, "parameter names are too long");
    dn_block *b = &p->block[block];
    int known = dn_block_find(b, q.name);
    if (known >= 0) {
        if (!dn_shape_equal(&b->param[known].shape, &shape))
            return dn_program_fail(p, DN_E_INTERNAL, "parameter %s is registered twice with different shapes", q.name);
        return b->param[known].val;
    }
    q.offset = b->count;
    q.val = dn_value_add(p, shape, DN_PARAM, DN_F32, -1);
    if (q.val == DN_NONE || append_param(b, &q))
        return dn_program_fail(p, DN_E_MEMORY, "out of memory");
    b->count += (dn_shape_count(&shape) + DN_PARAM_ALIGN - 1) / DN_PARAM_ALIGN * DN_PARAM_ALIGN;
    p->value[q.val].block = block;
    p->value[q.val].param = b->n_params - 1;
    p->value[q.val].name = keep_name(p, q.name);
    return q.val;
}

int dn_block_mirror(dn_program *p, int block, const char *name)
{
    int mirror = dn_block_add(p, name);
    if (mirror < 0)
        return -1;
    p->block[mirror].state = true;
    for (int i = 0; i < p->block[block].n_params; i++) {
        dn_param q = p->block[block].param[i];
        q.val = dn_value_add(p, q.shape, DN_PARAM, DN_F32, -1);
        if (q.val == DN_NONE || append_param(&p->block[mirror], &q))
            return dn_program_fail(p, DN_E_MEMORY, "out of memory");
        p->value[q.val].block = mirror;
        p->value[q.val].param = i;
        p->value[q.val].name = p->value[p->block[block].param[i].val].name;
    }
    p->block[mirror].count = p->block[block].count;
    return mirror;
}

void dn_output(dn_program *p, const char *name, dn_val v)
{
    if (p->error.code)
        return;
    if (v == DN_NONE) {
        dn_program_fail(p, DN_E_INTERNAL, "output %s has no value", name);
        return;
    }
    p->value[v].output = true;
    p->value[v].name = keep_name(p, name);
}

dn_val dn_find(const dn_program *p, const char *name)
{
    for (int v = 0; v < p->n_values; v++)
        if (p->value[v].kind != DN_PARAM && p->value[v].name && !strcmp(p->value[v].name, name))
            return v;
    return DN_NONE;
}

const dn_shape *dn_shape_of(const dn_program *p, dn_val v)
{
    static const dn_shape none;
    return v == DN_NONE ? &none : &p->value[v].shape;
}

int dn_mark_begin(dn_program *p)
{
    if (p->error.code)
        return -1;
    if (p->mark >= 0)
        return dn_program_fail(p, DN_E_INTERNAL, "a marked block of layers inside another");
    return p->n_marks == DN_MARKS_MAX ? -1 : (p->mark = p->n_marks++);
}

void dn_mark_end(dn_program *p) { p->mark = -1; }

/* ---- pruning ---- */

/* Which values does an output or an ACCUMULATE depend on? needed has n_values bytes. */
static void mark_needed(const dn_program *p, char *needed)
{
    for (int v = 0; v < p->n_values; v++)
        needed[v] = p->value[v].output;
    for (int i = p->n_ops - 1; i >= 0; i--) {
        const dn_op *op = &p->op[i];
        bool any = op->kind == DN_OP_ACCUMULATE;
        for (int j = 0; j < op->n_out; j++)
            any |= op->out[j] != DN_NONE && needed[op->out[j]];
        for (int j = 0; any && j < op->n_in; j++)
            if (op->in[j] != DN_NONE)
                needed[op->in[j]] = 1;
    }
}

/* Forget the outputs of an op that nobody needs. Returns whether any is left. */
static bool drop_outputs(dn_op *op, const char *needed)
{
    bool any = false;
    for (int j = 0; j < op->n_out; j++) {
        if (op->out[j] != DN_NONE && !needed[op->out[j]])
            op->out[j] = DN_NONE;
        any |= op->out[j] != DN_NONE;
    }
    return any;
}

void dn_rewrite_add(dn_rewrite *r, const dn_op *op)
{
    if (r->p->error.code)
        return;
    if (dn_grow(&r->op, r->n, &r->cap, sizeof *r->op)) {
        dn_program_fail(r->p, DN_E_MEMORY, "out of memory");
        return;
    }
    r->op[r->n++] = *op;
}

void dn_rewrite_finish(dn_rewrite *r, int first_backward)
{
    dn_program *p = r->p;
    if (p->error.code) {
        free(r->op);
        return;
    }
    free(p->op);
    p->op = r->op;
    p->n_ops = r->n;
    p->ops_cap = r->cap;
    p->first_backward = first_backward;
    for (int i = 0; i < p->n_ops; i++)
        for (int j = 0; j < p->op[i].n_out; j++)
            if (p->op[i].out[j] != DN_NONE)
                p->value[p->op[i].out[j]].op = i;
}

/* Every ACCUMULATE, by the op that makes what it adds: first[op], then next[] in the program's order. */
static void list_accumulates(const dn_program *p, int *first, int *next)
{
    for (int i = 0; i < p->n_ops; i++)
        first[i] = next[i] = -1;
    for (int i = p->n_ops - 1; i >= 0; i--) {
        if (p->op[i].kind != DN_OP_ACCUMULATE)
            continue;
        int maker = p->value[p->op[i].in[1]].op;
        next[i] = first[maker];
        first[maker] = i;
    }
}

static void write_pruned(dn_program *p, const char *needed, const int *first, const int *next)
{
    dn_rewrite r = { .p = p };
    int backward = 0;
    for (int i = 0; i < p->n_ops; i++) {
        if (i == p->first_backward)
            backward = r.n;
        if (drop_outputs(&p->op[i], needed))
            dn_rewrite_add(&r, &p->op[i]);
        for (int k = first[i]; k >= 0; k = next[k])
            dn_rewrite_add(&r, &p->op[k]);
    }
    dn_rewrite_finish(&r, backward);
}

void dn_program_prune(dn_program *p)
{
    char *needed = p->error.code ? NULL : calloc((size_t)p->n_values + 1, 1);
    int *first = p->error.code ? NULL : calloc((size_t)p->n_ops + 1, sizeof *first);
    int *next = p->error.code ? NULL : calloc((size_t)p->n_ops + 1, sizeof *next);
    if (needed && first && next) {
        mark_needed(p, needed);
        list_accumulates(p, first, next);
        write_pruned(p, needed, first, next);
    } else {
        dn_program_fail(p, DN_E_MEMORY, "out of memory");
    }
    free(needed);
    free(first);
    free(next);
}

static void print_value(const dn_program *p, FILE *f, dn_val v)
{
    if (v == DN_NONE) {
        fprintf(f, " -");
        return;
    }
    const dn_value *value = &p->value[v];
    fprintf(f, " %%%d%s[", v, value->kind == DN_PARAM ? "p" : value->kind == DN_BATCH ? "b" : "");
    for (int i = 0; i < value->shape.rank; i++)
        fprintf(f, "%s%lld", i ? "," : "", (long long)value->shape.dim[i]);
    fprintf(f, "]");
}

void dn_program_print(const dn_program *p, void *file)
{
    FILE *f = file;
    for (int i = 0; i < p->n_ops; i++) {
        const dn_op *op = &p->op[i];
        fprintf(f, "%4d", i);
        for (int j = 0; j < op->n_out; j++)
            print_value(p, f, op->out[j]);
        fprintf(f, " = %s", dn_op_name(op->kind));
        for (int j = 0; j < op->n_in; j++)
            print_value(p, f, op->in[j]);
        fprintf(f, "  # %s\n", op->scope ? op->scope : "");
    }
}
