/* lower.c - walks a program and decides places and layouts. See lower.h. */
#include "lower.h"
#include "ref.h"
#include <string.h>

enum { ALIGN = 64, PLANE_PAD = 64, ROWS_MIN = 4, ROWS_MAX = 8, PACK_PARTS = 8 };

/* Packed weights stand beside the plain ones, one to four times their size. Networks that would need more than this
 * read the plain weights instead, which costs some percent and gives the same bits. */
static const int64_t conv_forms_max = (int64_t)3 << 29;

/* Of one step: 10 ms of a core for a 3x3 convolution, 30 for other products. */
static const double multiplications_max = 1.5e9;

/* clang-format off */
static const dn_lower_fn table[DN_OP_COUNT] = {
    [DN_OP_CONV2D_DX] = dn_lower_conv_dx, [DN_OP_CONV2D_DW] = dn_lower_conv_dw, [DN_OP_MATMUL_DW] = dn_lower_matmul_dw,
    [DN_OP_CONV2D] = dn_lower_conv,       [DN_OP_MATMUL] = dn_lower_matmul, [DN_OP_NORM] = dn_lower_norm,
    [DN_OP_ATTENTION] = dn_lower_attention, [DN_OP_UNARY] = dn_lower_unary, [DN_OP_BINARY] = dn_lower_binary,
    [DN_OP_ACCUMULATE] = dn_lower_accumulate,
    [DN_OP_COPY] = dn_lower_copy,         [DN_OP_NORM_DX] = dn_lower_norm_bwd, [DN_OP_NORM_DW] = dn_lower_norm_bwd,
    [DN_OP_ATTENTION_BWD] = dn_lower_attention_bwd, [DN_OP_UNARY_BWD] = dn_lower_unary_bwd,
    [DN_OP_SUM_TO] = dn_lower_sum_to,     [DN_OP_LOSS] = dn_lower_loss,     [DN_OP_LOSS_BWD] = dn_lower_loss_bwd,
    [DN_OP_SOFTMAX] = dn_lower_softmax,   [DN_OP_SOFTMAX_BWD] = dn_lower_softmax, [DN_OP_CAST] = dn_lower_cast,
    [DN_OP_EMBED_DW] = dn_lower_embed_dw, [DN_OP_DROPOUT] = dn_lower_dropout,
};
/* clang-format on */

/* ---- values ---- */

int dn_value_channels(const dn_program *p, dn_val v)
{
    const dn_shape *s = &p->value[v].shape;
    return s->rank ? (int)s->dim[s->rank - 1] : 1;
}

int64_t dn_value_positions(const dn_program *p, dn_val v)
{
    return dn_shape_count(&p->value[v].shape) / dn_value_channels(p, v);
}

bool dn_value_is_map(const dn_program *p, dn_val v)
{
    const dn_value *value = &p->value[v];
    return value->dtype == DN_F32 && value->kind == DN_ROW && dn_value_positions(p, v) > 1;
}

bool dn_value_is_channels(const dn_program *p, dn_val v, dn_val of)
{
    int64_t count = dn_shape_count(&p->value[v].shape);
    return p->value[v].dtype == DN_F32 && dn_value_positions(p, v) == 1 && count == dn_value_channels(p, of);
}

int dn_lower_fail(dn_lower_state *s, int code, const char *message)
{
    if (!s->rc)
        s->rc = dn_fail(s->err, code, NULL, "%s", message);
    return -1;
}

static int add_place(dn_lower_state *s, dn_place place)
{
    int i = s->rc ? -1 : dn_place_add(s->l, place);
    return i < 0 ? dn_lower_fail(s, DN_E_MEMORY, "out of memory while lowering a program") : i;
}

static int64_t padded(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* ---- places ---- */

static bool kept(const dn_value *v) { return v->output || (v->op < 0 && v->kind != DN_PARAM); }

int dn_lower_new_dense(dn_lower_state *s, dn_val v)
{
    dn_val root = s->root[v];
    const dn_value *value = &s->p->value[root];
    if (s->dense[root] >= 0)
        return s->dense[root];
    int64_t bytes = dn_shape_count(&value->shape) * (int64_t)dn_dtype_size(value->dtype);
    dn_place place = { .memory = DN_IN_ARENA, .bytes = padded(bytes), .inside = -1, .val = root };
    if (value->kind == DN_PARAM && value->op < 0) {
        int64_t first = s->p->block[value->block].param[value->param].offset;
        place = (dn_place){ .memory = DN_IN_BLOCK, .block = value->block, .bytes = bytes, .inside = -1, .val = root };
        place.offset = first * (int64_t)sizeof(float);
    } else if (value->kind == DN_ROW)
        place.row_bytes = place.bytes;
    return s->dense[root] = add_place(s, place);
}

int dn_lower_new_blocked(dn_lower_state *s, dn_val v)
{
    dn_val root = s->root[v];
    if (s->blocked[root] >= 0)
        return s->blocked[root];
    int64_t lanes = DN_LANES * (int64_t)dn_dtype_size(s->p->value[root].dtype);
    int64_t plane = dn_value_positions(s->p, root) * lanes + PLANE_PAD;
    int64_t bytes = dn_blocks_of(dn_value_channels(s->p, root)) * plane;
    dn_place place = { .memory = DN_IN_ARENA, .bytes = padded(bytes), .plane = plane, .inside = -1, .val = root };
    place.row_bytes = place.bytes;
    if (s->home[root] >= 0) {
        place.inside = dn_lower_new_blocked(s, s->p->op[s->home[root]].out[0]);
        place.inside_offset = s->home_at[root] / DN_LANES * plane;
    }
    int i = add_place(s, place);
    return s->blocked[root] = i;
}

bool dn_lower_within(dn_lower_state *s, dn_val v, int from, int first, int of)
{
    dn_val root = s->root[v];
    int channels = dn_value_channels(s->p, v);
    if (s->rc || s->blocked[root] >= 0 || s->home[root] >= 0 || first % DN_LANES ||
        (channels % DN_LANES && first + channels != of))
        return false;
    dn_place place = s->l->place[from];
    place.bytes = dn_blocks_of(channels) * place.plane;
    place.inside = from;
    place.inside_offset = first / DN_LANES * place.plane;
    place.keep = false;
    place.val = root;
    s->blocked[root] = add_place(s, place);
    return true;
}

typedef struct conversion {
    int64_t positions;
    int channels;
} conversion;

static int run_to_blocked(const dn_run *run, const dn_step *step)
{
    const conversion *c = step->attr;
    dn_copy_to_blocked(run->pool, dn_view(run, step->out[0], c->channels), dn_view(run, step->in[0], c->channels),
                       (dn_extent){ run->n, c->positions, c->channels });
    return 0;
}

static int run_to_dense(const dn_run *run, const dn_step *step)
{
    const conversion *c = step->attr;
    dn_copy_to_dense(run->pool, dn_view(run, step->out[0], c->channels), dn_view(run, step->in[0], c->channels),
                     (dn_extent){ run->n, c->positions, c->channels });
    return 0;
}

/* A step from place to place that computes no op. */
static void helper_step(dn_lower_state *s, dn_step_fn fn, const void *attr, int from, int to)
{
    dn_step step = { .fn = fn,
                     .attr = attr,
                     .in = { from },
                     .n_in = 1,
                     .out = { to },
                     .n_out = 1,
                     .workspace = -1 };
    int last = s->now < s->p->n_ops ? s->now : s->p->n_ops - 1;
    dn_lower_step(s, step, last + 1, last);
}

static void convert(dn_lower_state *s, dn_val v, dn_step_fn fn, int from, int to)
{
    conversion c = { dn_value_positions(s->p, v), dn_value_channels(s->p, v) };
    helper_step(s, fn, dn_lower_attr(s, &c, sizeof c), from, to);
}

int dn_lower_dense(dn_lower_state *s, dn_val v)
{
    dn_val root = s->root[v];
    if (s->dense[root] < 0 && s->blocked[root] >= 0) {
        int to = dn_lower_new_dense(s, root);
        convert(s, root, run_to_dense, s->blocked[root], to);
    }
    return dn_lower_new_dense(s, root);
}

int dn_lower_blocked(dn_lower_state *s, dn_val v)
{
    dn_val root = s->root[v];
    if (s->blocked[root] < 0) {
        int from = dn_lower_dense(s, root), to = dn_lower_new_blocked(s, root);
        convert(s, root, run_to_blocked, from, to);
    }
    return s->blocked[root];
}

int dn_lower_workspace(dn_lower_state *s, int64_t bytes, bool for_each_row)
{
    if (!bytes)
        return -1;
    dn_place place = { .memory = DN_IN_ARENA, .bytes = padded(bytes), .inside = -1, .val = DN_NONE };
    place.row_bytes = for_each_row ? place.bytes : 0;
    return add_place(s, place);
}

bool dn_lower_trains(const dn_lower_state *s, dn_val v) { return s->p->block[s->p->value[v].block].trains; }

int dn_lower_form(dn_lower_state *s, dn_val v, dn_form form)
{
    const dn_value *value = &s->p->value[v];
    if (dn_lower_trains(s, v))
        return dn_lower_pack(s, dn_lower_dense(s, v), &value->shape, form);
    form.block = value->block;
    form.param = value->param;
    int n = s->rc ? -1 : dn_form_add(s->l, form);
    if (n < 0)
        return dn_lower_fail(s, DN_E_MEMORY, "out of memory while lowering a program");
    return add_place(
        s, (dn_place){ .memory = DN_IN_FORM, .block = n, .bytes = (int64_t)form.bytes, .inside = -1, .val = v });
}

typedef struct packing {
    dn_form form;
    dn_shape shape;
    void *dst;
    const float *src;
} packing;

static void pack_task(void *arg, int64_t from, int64_t to, int thread)
{
    const packing *p = arg;
    (void)thread;
    for (int64_t i = from; i < to; i++)
        p->form.pack_part(p->dst, p->src, &p->shape, (int)i, PACK_PARTS);
}

static int run_pack(const dn_run *run, const dn_step *step)
{
    packing p = *(const packing *)step->attr;
    p.dst = dn_place_at(run, step->out[0], 0);
    p.src = dn_place_at(run, step->in[0], 0);
    if (p.form.pack_part)
        dn_pool_run(run->pool, pack_task, &p, PACK_PARTS, 1);
    else
        p.form.pack(p.dst, p.src, &p.shape);
    return 0;
}

int dn_lower_pack(dn_lower_state *s, int from, const dn_shape *shape, dn_form form)
{
    packing p = { .form = form, .shape = *shape };
    int to = dn_lower_workspace(s, (int64_t)form.bytes, false);
    helper_step(s, run_pack, dn_lower_attr(s, &p, sizeof p), from, to);
    return to;
}

void *dn_lower_attr(dn_lower_state *s, const void *attr, size_t bytes)
{
    void *own = s->rc ? NULL : dn_lowered_alloc(s->l, bytes);
    if (own)
        memcpy(own, attr, bytes);
    else
        dn_lower_fail(s, DN_E_MEMORY, "out of memory while lowering a program");
    return own;
}

int dn_lower_parts(const dn_lower_state *s, double multiplications)
{
    double parts = multiplications * s->l->rows_max / multiplications_max + 1;
    return parts < s->l->rows_max ? (int)parts : s->l->rows_max;
}

double dn_lower_conv_work(const dn_conv_shape *s)
{
    return (double)s->Ho * s->Wo * s->kh * s->kw * s->C * s->K;
}

void dn_lower_step(dn_lower_state *s, dn_step step, int op, int last)
{
    step.op_first = op;
    step.op_last = last;
    if (s->rc || dn_step_add(s->l, step) < 0)
        dn_lower_fail(s, DN_E_MEMORY, "out of memory while lowering a program");
}

/* ---- the walk ---- */

static void emit_ref(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    for (int j = 0; j < op->n_in; j++)
        if (op->in[j] != DN_NONE)
            s->place[op->in[j]] = dn_lower_dense(s, op->in[j]);
    for (int j = 0; j < op->n_out; j++)
        if (op->out[j] != DN_NONE)
            s->place[op->out[j]] = dn_lower_new_dense(s, op->out[j]);
    if (!s->rc)
        s->rc = dn_ref_emit(s->l, i, s->place, s->err);
}

/* Kernels know f32 only, but for those whose ops have other types by their nature; a copy may be no more than a second
 * name. */
static bool types_fit(const dn_program *p, const dn_op *op)
{
    if (op->kind == DN_OP_COPY || op->kind == DN_OP_CAST || op->kind == DN_OP_EMBED_DW || op->kind == DN_OP_DROPOUT)
        return true;
    bool all = true;
    for (int j = 0; j < op->n_in; j++)
        all &= op->in[j] == DN_NONE || p->value[op->in[j]].dtype == DN_F32;
    for (int j = 0; j < op->n_out; j++)
        all &= op->out[j] == DN_NONE || p->value[op->out[j]].dtype == DN_F32;
    return all;
}

static void emit(dn_lower_state *s, int i)
{
    if (s->rc || s->op_state[i] != DN_OP_WAITING)
        return;
    int before = s->now;
    s->now = i;
    s->op_state[i] = DN_OP_BUSY;
    const dn_op *op = &s->p->op[i];
    if (!table[op->kind] || !types_fit(s->p, op) || !table[op->kind](s, i))
        emit_ref(s, i);
    dn_lower_swallow(s, i);
    s->now = before;
}

void dn_lower_swallow(dn_lower_state *s, int i)
{
    const dn_op *op = &s->p->op[i];
    s->op_state[i] = DN_OP_DONE;
    for (int j = 0; j < op->n_out; j++)
        if (op->out[j] != DN_NONE)
            s->made[op->out[j]] = true;
}

/* Can v be computed without what is being lowered now? `budget` bounds the search. */
static bool can_make(const dn_lower_state *s, dn_val v, int *budget)
{
    if (v == DN_NONE || s->made[v])
        return true;
    int i = s->p->value[v].op;
    if (i < 0 || s->op_state[i] != DN_OP_WAITING || --*budget < 0)
        return false;
    for (int j = 0; j < s->p->op[i].n_in; j++)
        if (!can_make(s, s->p->op[i].in[j], budget))
            return false;
    return true;
}

static void make(dn_lower_state *s, dn_val v)
{
    if (v == DN_NONE || s->made[v])
        return;
    int i = s->p->value[v].op;
    for (int j = 0; j < s->p->op[i].n_in; j++)
        make(s, s->p->op[i].in[j]);
    emit(s, i);
}

bool dn_lower_make(dn_lower_state *s, dn_val v)
{
    int budget = 64;
    if (!can_make(s, v, &budget))
        return false;
    make(s, v);
    return !s->rc;
}

int dn_lower_only_reader(const dn_lower_state *s, dn_val v)
{
    return s->readers[v] == 1 && !s->p->value[v].output ? s->reader[v] : -1;
}

/* A reshape whose result is the same bytes in both layouts. */
static bool is_alias(const dn_program *p, const dn_op *op)
{
    return op->kind == DN_OP_COPY && op->attr.copy.hint == DN_COPY_RESHAPE && op->attr.copy.scale == 1 &&
           dn_value_channels(p, op->in[0]) == dn_value_channels(p, op->out[0]) &&
           p->value[op->in[0]].kind == p->value[op->out[0]].kind;
}

static void look_around(dn_lower_state *s)
{
    const dn_program *p = s->p;
    for (int v = 0; v < p->n_values; v++) {
        s->root[v] = v;
        s->dense[v] = s->blocked[v] = s->home[v] = s->reader[v] = -1;
        s->made[v] = p->value[v].op < 0;
    }
    for (int i = 0; i < p->n_ops; i++) {
        const dn_op *op = &p->op[i];
        for (int j = 0; j < op->n_in; j++)
            if (op->in[j] != DN_NONE) {
                s->readers[op->in[j]]++;
                s->reader[op->in[j]] = i;
            }
        if (is_alias(p, op))
            s->root[op->out[0]] = s->root[op->in[0]];
    }
}

/* Concatenation by placement: the blocked place of each input that begins at a whole block lies inside the result's. */
static void find_homes(dn_lower_state *s)
{
    const dn_program *p = s->p;
    for (int i = 0; i < p->n_ops; i++) {
        const dn_op *op = &p->op[i];
        if (op->kind != DN_OP_COPY || op->attr.copy.hint != DN_COPY_CONCAT || !dn_value_is_map(p, op->out[0]))
            continue;
        int at = 0;
        for (int j = 0; j < op->n_in; at += dn_value_channels(p, op->in[j++])) {
            dn_val root = s->root[op->in[j]];
            bool whole = at % DN_LANES == 0 && (j == op->n_in - 1 || dn_value_channels(p, root) % DN_LANES == 0);
            if (!whole || s->home[root] >= 0 || p->value[root].op < 0 || !dn_value_is_map(p, root))
                continue;
            s->home[root] = i;
            s->home_at[root] = at;
        }
    }
}

/* The caller writes inputs and reads outputs in dense places that live to the end. */
static void keep_borders(dn_lower_state *s)
{
    for (int v = 0; v < s->p->n_values && !s->rc; v++) {
        if (!kept(&s->p->value[v]))
            continue;
        int place = dn_lower_dense(s, v);
        if (place < 0)
            return;
        s->l->place[place].keep = true;
        s->l->value_place[v] = place;
    }
}

static bool get_tables(dn_lower_state *s)
{
    size_t n = (size_t)s->p->n_values + 1, ints = sizeof(int) * n;
    int **tables[] = { &s->root, &s->dense, &s->blocked, &s->home, &s->home_at, &s->readers, &s->reader, &s->place };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!(*tables[i] = dn_lowered_alloc(s->l, ints)))
            return false;
    s->made = dn_lowered_alloc(s->l, n);
    s->op_state = dn_lowered_alloc(s->l, (size_t)s->p->n_ops + 1);
    s->chained = dn_lowered_alloc(s->l, sizeof(int) * ((size_t)s->p->n_ops + 1));
    s->stats = dn_lowered_alloc(s->l, sizeof(int) * ((size_t)s->p->n_ops + 1));
    return s->made && s->op_state && s->chained && s->stats;
}

/* Measured (docs/SPEED.md): rows share each reading of the weights, so four are better than one even when activations
 * leave the cache; up to eight are, while those of the largest layer stay in it. One, where four would take too much
 * memory. */
int dn_cpu_rows_default(const dn_program *p)
{
    const int64_t cached = 6500000, affordable = 64000000;
    int64_t largest = 1;
    for (int v = 0; v < p->n_values; v++) {
        int64_t bytes = dn_shape_count(&p->value[v].shape) * (int64_t)sizeof(float);
        if (dn_value_is_map(p, v) && bytes > largest)
            largest = bytes;
    }
    int64_t rows = cached / largest;
    return rows > ROWS_MAX ? ROWS_MAX : rows >= ROWS_MIN ? (int)rows : largest * ROWS_MIN <= affordable ? ROWS_MIN : 1;
}

static bool is_gradient(enum dn_op_kind kind)
{
    return kind == DN_OP_CONV2D_DX || kind == DN_OP_CONV2D_DW || kind == DN_OP_MATMUL_DW || kind == DN_OP_ATTENTION_BWD ||
           kind == DN_OP_NORM_DX || kind == DN_OP_NORM_DW || kind == DN_OP_UNARY_BWD;
}

int dn_cpu_lower(dn_lowered *l, dn_error *err)
{
    dn_lower_state s = { .l = l, .p = l->program, .err = err };
    if (!get_tables(&s))
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory while lowering a program");
    s.live = dn_lower_conv_forms(s.p) > conv_forms_max;
    for (int i = 0; i < s.p->n_ops; i++)
        s.gradients |= is_gradient(s.p->op[i].kind);
    look_around(&s);
    find_homes(&s);
    for (int i = 0; i < s.p->n_ops && !s.rc; i++)
        emit(&s, i);
    s.now = s.p->n_ops;
    keep_borders(&s);
    return s.rc;
}
