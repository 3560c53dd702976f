/* gradients.c - the gradient of every parameter of golden U-Nets against PyTorch's (the first step of train.safetensors). */
#include "model_internal.h"
#include "vectors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 4, PARAMS_MAX = 512 };

typedef struct {
    dn_program *p;
    dn_val loss, grad[PARAMS_MAX];
    int n_params;
} training;

/* Forward, mean squared error against "target", and the gradient of the mean over ROWS rows by every parameter. */
static training record(const dn_model *m)
{
    const dn_model_info *info = &m->info;
    training t = { .p = dn_program_new() };
    m->arch->build(m->config, t.p, dn_block_add(t.p, "unet"), info->height, info->width);
    dn_val target = dn_input(t.p, "target", DN_F32, dn_shape(info->height, info->width, info->out_channels));
    t.loss = dn_loss(t.p, DN_MSE, dn_find(t.p, "out"), target, 0);
    dn_val wrt[PARAMS_MAX];
    for (int v = 0; v < t.p->n_values; v++)
        if (t.p->value[v].kind == DN_PARAM)
            wrt[t.p->value[v].param] = v;
    t.n_params = t.p->block[0].n_params;
    assert_true(t.n_params <= PARAMS_MAX);
    dn_grad(t.p, t.loss, dn_affine(t.p, t.loss, 0, 1.0 / ROWS), wrt, t.n_params, t.grad);
    dn_output(t.p, "loss", t.loss);
    for (int i = 0; i < t.n_params; i++)
        dn_output(t.p, t.p->block[0].param[i].name, t.grad[i]);
    dn_program_prune(t.p);
    if (t.p->error.code)
        fail_msg("%s", t.p->error.message);
    return t;
}

static void put(const dn_run *run, const training *t, const char *name, const float *rows, int64_t n)
{
    dn_val v = dn_find(t->p, name);
    if (v == DN_NONE)
        return;
    for (int i = 0; i < ROWS; i++)
        memcpy(dn_place_at(run, run->lowered->value_place[v], i), rows + i * n, sizeof *rows * (size_t)n);
}

/* The vectors were made with the labels 1, 2, 3, 4. */
static void put_labels(const dn_run *run, const training *t)
{
    dn_val label = dn_find(t->p, "label");
    if (label == DN_NONE)
        return;
    for (int i = 0; i < ROWS; i++) {
        int32_t *at = dn_place_at(run, run->lowered->value_place[label], i);
        at[0] = at[1] = 1 + i;
        *(float *)dn_place_at(run, run->lowered->value_place[dn_find(t->p, "label_w")], i) = 0;
    }
}

/* PyTorch's order to ours. */
static float *ours(const float *file, const dn_param *q)
{
    const int64_t *d = q->shape.dim;
    int64_t n = dn_shape_count(&q->shape);
    float *out = malloc(sizeof *out * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        int64_t to = i;
        if (q->form == DN_PARAM_LINEAR)
            to = i % d[0] * d[1] + i / d[0];
        if (q->form == DN_PARAM_CONV) { /* i = ((k*C + c)*kh + y)*kw + x */
            int64_t x = i % d[1], y = i / d[1] % d[0], c = i / (d[0] * d[1]) % d[2], k = i / (d[0] * d[1] * d[2]);
            to = ((y * d[1] + x) * d[2] + c) * d[3] + k;
        }
        out[to] = file[i];
    }
    return out;
}

static double largest(const float *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

/* Gradients that PyTorch itself only has as rounding noise (a bias before a GroupNorm) are compared with this floor. */
static double check_param(const dn_run *run, const training *t, const vectors *v, int i, double floor)
{
    const dn_param *q = &t->p->block[0].param[i];
    char name[256];
    snprintf(name, sizeof name, "grad0.%s", q->name);
    float *file = vectors_floats(v, name), *want = ours(file, q);
    const float *got = dn_place_at(run, run->lowered->value_place[t->grad[i]], 0);
    int64_t n = dn_shape_count(&q->shape);
    double worst = 0, size = fmax(largest(want, n), floor);
    for (int64_t k = 0; k < n; k++)
        worst = fmax(worst, isfinite(got[k]) ? fabs((double)got[k] - want[k]) / size : INFINITY);
    free(want);
    free(file);
    return worst;
}

static void check(const char *folder, const dn_backend *backend)
{
    char path[1024];
    dn_error err = { 0 };
    dn_model *m = NULL;
    snprintf(path, sizeof path, "%s/%s", GOLDEN_DIR, folder);
    if (dn_model_load(&m, path, &err))
        fail_msg("%s", err.message);
    training t = record(m);
    vectors *v = vectors_open(folder, "train.safetensors");
    dn_lowered *l = NULL;
    if (dn_lower(&l, backend, t.p, ROWS, &err))
        fail_msg("%s", err.message);
    dn_run run = { .lowered = l, .arena = aligned_alloc(64, l->arena_bytes), .block = { (const char *)m->weights }, .n = ROWS };
    const void **form = calloc((size_t)l->n_forms + 1, sizeof *form);
    size_t made = 0;
    assert_int_equal(dn_model_forms(m, l, form, &made, &err), 0);
    run.form = form;
    int64_t n = (int64_t)m->info.height * m->info.width * m->info.channels;
    float *x = vectors_nhwc(v, "s0.noisy"), *noise = vectors_nhwc(v, "s0.noise"), *time = vectors_floats(v, "s0.model_timestep");
    put(&run, &t, "x", x, n);
    put(&run, &t, "target", noise, n);
    put(&run, &t, "t", time, 1);
    put_labels(&run, &t);
    assert_int_equal(dn_run_some(&run, 0), 0);

    double loss = 0, worst = 0;
    for (int i = 0; i < ROWS; i++)
        loss += *(float *)dn_place_at(&run, l->value_place[t.loss], i) / ROWS;
    float *want_loss = vectors_floats(v, "s0.loss"), *norm = vectors_floats(v, "s0.grad_norm");
    assert_true(fabs(loss - *want_loss) <= 1e-5 * *want_loss);
    for (int i = 0; i < t.n_params; i++) {
        double e = check_param(&run, &t, v, i, 1e-3 * *norm);
        if (e > 1e-4)
            fail_msg("%s: gradient of %s differs by %.2e", folder, t.p->block[0].param[i].name, e);
        worst = fmax(worst, e);
    }
    print_message("%s on %s: %d gradients within %.2e\n", folder, backend->name, t.n_params, worst);
    free(want_loss);
    free(norm);
    free(x);
    free(noise);
    free(time);
    free(form);
    free(run.arena);
    dn_lowered_free(l);
    dn_program_free(t.p);
    vectors_close(v);
    dn_model_free(m);
}

static void test_gradients(void **state)
{
    (void)state;
    static const char *const folders[] = { "unet_ddpm", "unet_ldm", "unet_adm" };
    for (int i = 0; i < 3; i++) {
        check(folders[i], &dn_backend_ref);
        if (dn_backend_cpu.available())
            check(folders[i], &dn_backend_cpu);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_gradients) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
