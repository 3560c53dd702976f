/* lower_gradients_test.c - programs of convolutions and linear layers with their gradients, on the CPU backend: close to
 * ref; the same bits with one thread and two, packed once or in every run (blocks that train); and weights that change
 * from run to run are seen. */
#include "lower_run.h"
#include "plan.h"
#include "ref.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* clang-format off */
typedef struct layer { int n, C, K, H, W, kernel, stride, top, bottom, width; } layer;
static const layer layers[] = {
    { 1, 12, 20,  4,  4, 3, 1, 1, 1, 24 }, { 2, 40, 64,  8,  8, 3, 1, 1, 1, 24 }, { 5, 20, 12, 14, 14, 3, 1, 1, 1, 24 },
    { 2, 64, 20, 32, 32, 3, 1, 1, 1, 24 }, { 3,  3, 40, 16, 16, 3, 1, 1, 1, 24 }, { 4,  1, 12,  9, 11, 3, 1, 1, 1, 24 },
    { 3, 40,  3, 16, 16, 3, 1, 1, 1, 24 }, { 2, 12,  1,  9,  7, 3, 1, 1, 1, 24 }, { 2,  4,  4,  7,  6, 3, 1, 1, 1, 24 },
    { 2, 20, 40,  8,  8, 3, 2, 1, 1, 24 }, { 3, 12, 12,  8,  8, 3, 2, 0, 1, 24 }, { 2, 40, 20, 15, 13, 3, 2, 0, 1, 24 },
    { 2, 40, 20,  9,  9, 1, 1, 0, 0, 24 }, { 5, 64, 12,  4,  4, 1, 1, 0, 0, 24 }, { 2,  4, 64,  8,  8, 2, 2, 0, 0, 24 },
    { 1, 40, 40,  5,  6, 3, 1, 1, 1, 24 }, { 2, 20, 20,  6,  6, 5, 1, 2, 2, 24 }, { 2, 20, 20,  6,  6, 3, 1, 2, 0, 24 },
};
/* clang-format on */
enum { LAYERS = sizeof layers / sizeof *layers, GRADS = 8 };

/* Of the largest element; measured: 1.5e-6. */
static const double tolerance = 5e-6;

static const char *const names[GRADS] = { "y", "db", "dw", "dt", "dm", "dz", "dx", "dv" };

/* A convolution + a linear layer of z, SiLU, a linear layer; and the gradient of sum(y * dy) by everything. */
static dn_program *program_new(const layer *l, bool trains)
{
    dn_program *p = dn_program_new();
    int block = dn_block_add(p, "net");
    dn_val x = dn_input(p, "x", DN_F32, dn_shape(l->H, l->W, l->C)), z = dn_input(p, "z", DN_F32, dn_shape(9));
    dn_val w = dn_param_add(p, block, "w", dn_shape(l->kernel, l->kernel, l->C, l->K), DN_PARAM_CONV, true);
    dn_val b = dn_param_add(p, block, "b", dn_shape(l->K), DN_PARAM_PLAIN, false);
    dn_val t = dn_param_add(p, block, "t", dn_shape(9, l->K), DN_PARAM_LINEAR, true);
    dn_val m = dn_param_add(p, block, "m", dn_shape(l->K, l->width), DN_PARAM_LINEAR, true);
    dn_val v = dn_param_add(p, block, "v", dn_shape(l->width), DN_PARAM_PLAIN, false);
    const int pad[4] = { l->top, l->top, l->bottom, l->bottom };
    dn_val h = dn_conv2d(p, x, w, b, l->stride, pad);
    h = dn_binary(p, DN_ADD, h, dn_matmul(p, z, t, DN_NONE, false));
    const dn_shape *hs = dn_shape_of(p, h);
    dn_val tokens = dn_reshape(p, h, dn_shape(hs->dim[0] * hs->dim[1], l->K));
    dn_val y = dn_matmul(p, dn_unary(p, DN_SILU, tokens), m, v, false);
    dn_val dy = dn_input(p, "dy", DN_F32, *dn_shape_of(p, y)), grad[7];
    dn_grad(p, y, dy, (dn_val[]){ b, w, t, m, z, x, v }, 7, grad);
    dn_output(p, names[0], y);
    for (int i = 0; i < 7; i++)
        dn_output(p, names[i + 1], grad[i]);
    dn_program_prune(p);
    assert_int_equal(p->error.code, 0);
    p->block[block].trains = trains;
    return p;
}

static bool is_batch(const dn_program *p, const char *name) { return p->value[dn_find(p, name)].kind == DN_BATCH; }

static void check(const layer *l, int i)
{
    dn_program *p = program_new(l, false), *training = program_new(l, true);
    float *block = parameters(p, 0, 9);
    for (int g = 0; g < GRADS; g++) {
        int64_t n;
        batch how = { .n = l->n }, two = { .n = l->n, .threads = 2 }, roomy = { .n = l->n, .rows_max = l->n + 3 };
        float *want = run_program(&dn_backend_ref, p, block, names[g], how, &n);
        float *got = run_program(&dn_backend_cpu, p, block, names[g], how, &n);
        float *others[] = { run_program(&dn_backend_cpu, p, block, names[g], two, &n),
                            run_program(&dn_backend_cpu, training, block, names[g], two, &n),
                            run_program(&dn_backend_cpu, training, block, names[g], roomy, &n) };
        const int64_t count = is_batch(p, names[g]) ? n : n * l->n;
        double error = difference(got, want, count);
        if (!(error <= tolerance))
            fail_msg("layer %d, %s: error %g", i, names[g], error);
        for (int j = 0; j < 3; j++) {
            if (memcmp(got, others[j], (size_t)count * sizeof *got))
                fail_msg("layer %d, %s: other bits in way %d", i, names[g], j);
            free(others[j]);
        }
        free(want);
        free(got);
    }
    free(block);
    dn_program_free(p);
    dn_program_free(training);
}

static void test_layers(void **state)
{
    (void)state;
    for (int i = 0; i < LAYERS; i++)
        check(&layers[i], i);
}

/* Programs for many rows divide large ops into several steps: no bit depends on it. */
static void test_parts(void **state)
{
    (void)state;
    static const layer large[] = { { 3, 512, 512, 16, 16, 3, 1, 1, 1, 20 }, { 2, 12, 1024, 32, 32, 1, 1, 0, 0, 512 } };
    for (int i = 0; i < 2; i++) {
        dn_program *p = program_new(&large[i], true);
        float *block = parameters(p, 0, 9);
        for (int g = 0; g < GRADS; g += 2) { /* y, dw, dm, dx */
            int64_t n;
            batch how = { .n = large[i].n }, roomy = { .n = large[i].n, .rows_max = 7, .threads = 2 };
            float *one = run_program(&dn_backend_cpu, p, block, names[g], how, &n);
            float *parts = run_program(&dn_backend_cpu, p, block, names[g], roomy, &n);
            if (memcmp(one, parts, (size_t)(is_batch(p, names[g]) ? n : n * how.n) * sizeof *one))
                fail_msg("large layer %d, %s: other bits in parts", i, names[g]);
            free(one);
            free(parts);
        }
        dn_lowered *few = NULL, *many = NULL;
        dn_error err;
        assert_int_equal(dn_lower(&few, &dn_backend_cpu, p, large[i].n, &err), 0);
        assert_int_equal(dn_lower(&many, &dn_backend_cpu, p, 7, &err), 0);
        assert_true(many->n_steps > few->n_steps);
        dn_lowered_free(few);
        dn_lowered_free(many);
        free(block);
        dn_program_free(p);
    }
}

/* No form of a block that trains is kept, and ref computes no gradient of a convolution or a matrix. */
static void test_no_forms(void **state)
{
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        dn_program *p = program_new(&layers[i], true), *kept = program_new(&layers[i], false);
        dn_lowered *l = NULL, *k = NULL;
        dn_error err;
        assert_int_equal(dn_lower(&l, &dn_backend_cpu, p, 4, &err), 0);
        assert_int_equal(dn_lower(&k, &dn_backend_cpu, kept, 4, &err), 0);
        assert_int_equal(l->n_forms, 0);
        assert_true(k->n_forms > 0);
        for (int s = 0; s < l->n_steps; s++) {
            const dn_op *op = &p->op[l->step[s].op_first];
            if (l->step[s].op_first > l->step[s].op_last || op->kind == DN_OP_UNARY_BWD || op->kind == DN_OP_SUM_TO)
                continue;
            if (l->step[s].fn == dn_ref_step(op->kind))
                fail_msg("layer %d: %s runs on ref", i, dn_op_name(op->kind));
        }
        dn_lowered_free(l);
        dn_lowered_free(k);
        dn_program_free(p);
        dn_program_free(kept);
    }
}

/* One lowered program, two sets of weights, one after the other. */
static void test_weights_change(void **state)
{
    (void)state;
    dn_program *p = program_new(&layers[1], true);
    float *first = parameters(p, 0, 1), *second = parameters(p, 0, 2), *moving = parameters(p, 0, 1);
    dn_lowered *l = NULL;
    dn_error err;
    assert_int_equal(dn_lower(&l, &dn_backend_cpu, p, 2, &err), 0);
    char *arena = aligned_alloc(64, l->arena_bytes + 64);
    dn_val dx = dn_find(p, "dx");
    const int64_t n = dn_shape_count(dn_shape_of(p, dx));
    float *result[2];
    for (int i = 0; i < 2; i++) {
        memcpy(moving, i ? second : first, (size_t)p->block[0].count * sizeof *moving);
        memset(arena, 0, l->arena_bytes);
        for (int v = 0; v < p->n_values; v++)
            if (p->value[v].op < 0 && p->value[v].kind == DN_ROW) {
                uint64_t seed = 4;
                dn_place at = l->place[l->value_place[v]];
                noise_fill((float *)(arena + at.offset), dn_shape_count(&p->value[v].shape), &seed);
            }
        dn_run run = { .lowered = l, .arena = arena, .block = { (const char *)moving }, .n = 1 };
        assert_int_equal(dn_run_some(&run, 0), 0);
        result[i] = malloc((size_t)n * sizeof(float));
        memcpy(result[i], dn_place_at(&run, l->value_place[dx], 0), (size_t)n * sizeof(float));
    }
    assert_true(difference(result[0], result[1], n) > 0.1);
    free(result[0]);
    free(result[1]);
    free(arena);
    free(first);
    free(second);
    free(moving);
    dn_lowered_free(l);
    dn_program_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_no_forms),
        cmocka_unit_test(test_weights_change),
    };
    if (!dn_backend_cpu.available())
        return 77; /* meson: skipped */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
