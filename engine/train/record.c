/* record.c - the program of a training step: the network, the loss of each row, the gradient by every parameter.
 *
 * Inputs beside the network's own, all per row: "target" [H,W,C], "weight" [1], "dloss" [1] (the factor of the row's
 * loss in what is minimised: loss scale / batch size), "rng" I32 [4] where the network has dropout. With learned
 * variance also "mean_scale", "lv_min", "lv_max", "lv_true", "first" (1 at t = 0) [1] and "edge_low", "edge_high"
 * [H,W,C] (1 where a value of x0 lies at the end of the range). Output "loss" [1]. */
#include "train_internal.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    dn_program *p;
    const dn_train_params *params;
    const dn_levels *levels;
    const dn_model_info *info;
    dn_shape picture; /* [H,W,C] */
} recorder;

static dn_val number(recorder *r, const char *name) { return dn_input(r->p, name, DN_F32, dn_shape(1)); }
static dn_val add(recorder *r, dn_val a, dn_val b) { return dn_binary(r->p, DN_ADD, a, b); }
static dn_val sub(recorder *r, dn_val a, dn_val b) { return dn_binary(r->p, DN_SUB, a, b); }
static dn_val mul(recorder *r, dn_val a, dn_val b) { return dn_binary(r->p, DN_MUL, a, b); }

/* Log variance of the model's step [H,W,C]. */
static dn_val log_variance(recorder *r, dn_val v, dn_val lv_min, dn_val lv_max)
{
    if (!r->levels->learned_range) /* the output is the variance */
        return dn_unary(r->p, DN_LOG, dn_clamp(r->p, v, 1e-20, 1e20));
    dn_val fraction = dn_affine(r->p, v, 0.5, 0.5);
    return add(r, mul(r, fraction, sub(r, lv_max, lv_min)), lv_min);
}

/* KL between Gaussians, q first: (lv - lv_q + exp(lv_q - lv) + d^2 exp(-lv) - 1) / 2. */
static dn_val divergence(recorder *r, dn_val lv, dn_val lv_true, dn_val d)
{
    dn_val gap = sub(r, lv, lv_true);
    dn_val square = mul(r, dn_unary(r->p, DN_SQUARE, d), dn_unary(r->p, DN_EXP, dn_affine(r->p, lv, -1, 0)));
    dn_val sum = add(r, add(r, gap, dn_unary(r->p, DN_EXP, dn_affine(r->p, gap, -1, 0))), square);
    return dn_affine(r->p, sum, 0.5, -0.5);
}

/* The approximation of the normal distribution function that IDDPM uses. */
static dn_val normal_cdf(recorder *r, dn_val x)
{
    dn_val cube = mul(r, dn_unary(r->p, DN_SQUARE, x), x);
    dn_val inner = dn_affine(r->p, add(r, x, dn_affine(r->p, cube, 0.044715, 0)), sqrt(2 / M_PI), 0);
    return dn_affine(r->p, dn_unary(r->p, DN_TANH, inner), 0.5, 0.5);
}

/* -log p(x0 | x_1), the mass of the 1/255 wide bin around x0 (Ho et al. 2020, eq. 13). d: mean - x0. */
static dn_val decoder_nll(recorder *r, dn_val lv, dn_val d)
{
    double half = (r->info->range[1] - r->info->range[0]) / 510;
    dn_val low = dn_input(r->p, "edge_low", DN_F32, r->picture), high = dn_input(r->p, "edge_high", DN_F32, r->picture);
    dn_val scale = dn_unary(r->p, DN_EXP, dn_affine(r->p, lv, -0.5, 0));
    dn_val above = normal_cdf(r, mul(r, dn_affine(r->p, d, -1, half), scale));
    dn_val below = normal_cdf(r, mul(r, dn_affine(r->p, d, -1, -half), scale));
    above = add(r, above, mul(r, high, dn_affine(r->p, above, -1, 1)));
    below = mul(r, below, dn_affine(r->p, low, -1, 1));
    dn_val mass = dn_clamp(r->p, sub(r, above, below), 1e-12, 1);
    return dn_affine(r->p, dn_unary(r->p, DN_LOG, mass), -1, 0);
}

/* The variational term of a row in bits per dimension [1]; the mean gets no gradient from it (Nichol and Dhariwal
 * 2021). */
static dn_val variational(recorder *r, dn_val out, dn_val target)
{
    int64_t c = r->info->channels;
    dn_val mean_scale = number(r, "mean_scale"), lv_min = number(r, "lv_min"), lv_max = number(r, "lv_max");
    dn_val lv_true = number(r, "lv_true"), first = number(r, "first");
    dn_val lv = log_variance(r, dn_slice(r->p, out, 2, c, c), lv_min, lv_max);
    dn_val d = mul(r, sub(r, dn_detach(r->p, dn_slice(r->p, out, 2, 0, c)), target), mean_scale);
    dn_val kl = divergence(r, lv, lv_true, d), nll = decoder_nll(r, lv, d);
    dn_val each = add(r, kl, mul(r, first, sub(r, nll, kl)));
    double bits = 1 / (M_LN2 * (double)dn_shape_count(&r->picture));
    return dn_affine(r->p, dn_sum_to(r->p, each, dn_shape(1), DN_ROW), bits, 0);
}

static dn_val row_loss(recorder *r, dn_val out)
{
    static const enum dn_loss kind[] = { [DN_TRAIN_MSE] = DN_MSE, [DN_TRAIN_L1] = DN_L1, [DN_TRAIN_HUBER] = DN_HUBER };
    const dn_objective *o = &r->params->objective;
    dn_val target = dn_input(r->p, "target", DN_F32, r->picture);
    dn_val mean = r->info->learned_variance ? dn_slice(r->p, out, 2, 0, r->info->channels) : out;
    dn_val loss = mul(r, dn_loss(r->p, kind[o->loss], mean, target, o->huber_delta), number(r, "weight"));
    if (!r->info->learned_variance)
        return loss;
    return add(r, loss, dn_affine(r->p, variational(r, out, target), o->vlb_weight * r->levels->n / 1000, 0));
}

/* ---- gradients ---- */

/* Every parameter's gradient is added to the block beside the weights. */
static void differentiate(recorder *r, dn_val loss)
{
    dn_program *p = r->p;
    int n = p->block[0].n_params, gradients = dn_block_mirror(p, 0, "gradient");
    dn_val dloss = number(r, "dloss"), *values = calloc(2 * (size_t)n + 1, sizeof *values), *grad = values + n;
    if (!values) {
        dn_program_fail(p, DN_E_MEMORY, "out of memory");
        return;
    }
    for (int i = 0; i < n; i++)
        values[i] = p->block[0].param[i].val;
    dn_grad(p, loss, dloss, values, n, grad);
    for (int i = 0; i < n; i++)
        dn_accumulate(p, gradients, i, grad[i]);
    free(values);
}

static void keep_less(recorder *r, const dn_marks *recompute)
{
    static const enum dn_dtype stored[] = { [DN_PRECISION_BF16] = DN_BF16, [DN_PRECISION_FP16] = DN_F16 };
    dn_program_recompute(r->p, recompute);
    if (r->params->precision != DN_PRECISION_FP32)
        dn_program_store16(r->p, stored[r->params->precision]);
}

dn_program *dn_train_record(const dn_train_recipe *c, const dn_marks *recompute)
{
    dn_program *p = dn_program_new();
    if (!p)
        return NULL;
    recorder r = { p, c->params, c->levels, &c->model->info, dn_shape(c->height, c->width, c->model->info.channels) };
    int block = dn_block_add(p, "unet");
    if (c->backward && c->model->arch_info.dropout > 0)
        dn_input(p, "rng", DN_I32, dn_shape(4));
    c->model->arch->build(c->model->config, p, block, c->height, c->width);
    dn_val out = dn_find(p, "out");
    if (p->error.code)
        return p;
    p->block[block].trains = true;
    p->value[out].output = false;
    dn_val loss = row_loss(&r, out);
    dn_output(p, "loss", loss);
    if (c->backward) {
        differentiate(&r, loss);
        keep_less(&r, recompute);
    }
    dn_program_prune(p);
    return p;
}

/* ---- places ---- */

static int place_of(const dn_lowered *l, const char *name)
{
    dn_val v = dn_find(l->program, name);
    return v == DN_NONE ? -1 : l->value_place[v];
}

static void find_places(dn_train_net *t)
{
    const struct {
        const char *name;
        int *place;
    } places[] = {
        { "target", &t->target }, { "weight", &t->weight },     { "dloss", &t->dloss },
        { "rng", &t->rng },       { "loss", &t->loss },         { "mean_scale", &t->mean_scale },
        { "lv_min", &t->lv_min }, { "lv_max", &t->lv_max },     { "lv_true", &t->lv_true },
        { "first", &t->first },   { "edge_low", &t->edge_low }, { "edge_high", &t->edge_high },
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        *places[i].place = place_of(t->lowered, places[i].name);
    t->ports = dn_ports_find(t->lowered);
}

int dn_train_net_init(dn_train_net *t, const dn_train_recipe *c, const dn_marks *recompute, const dn_device *d,
                      dn_error *err)
{
    dn_train_net net = { .program = dn_train_record(c, recompute) };
    if (!net.program)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    int rc = dn_lower(&net.lowered, d->backend, net.program, c->rows, err);
    if (rc) {
        dn_train_net_fini(&net);
        return rc;
    }
    find_places(&net);
    assert(!net.lowered->n_forms); /* of weights that train no form is kept */
    *t = net;
    return 0;
}

void dn_train_net_fini(dn_train_net *t)
{
    dn_lowered_free(t->lowered);
    dn_program_free(t->program);
    *t = (dn_train_net){ 0 };
}

/* The lists that program and lowered program consist of. */
size_t dn_train_net_bytes(const dn_train_net *t)
{
    const dn_program *p = t->program;
    const dn_lowered *l = t->lowered;
    size_t n = dn_heap_bytes(p->mem) + dn_heap_bytes(l->mem);
    n += (size_t)p->values_cap * sizeof *p->value + (size_t)p->ops_cap * sizeof *p->op +
         (size_t)p->n_values * sizeof *l->value_place;
    n += (size_t)l->places_cap * sizeof *l->place + (size_t)l->steps_cap * sizeof *l->step;
    for (int i = 0; i < p->n_blocks; i++)
        n += (size_t)p->block[i].cap * sizeof *p->block[i].param +
             (size_t)p->block[i].n_slots * sizeof *p->block[i].slot;
    return n;
}
