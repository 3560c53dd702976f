/* laws.c - every schedule, average, law, weight and optimizer against its formula (make_numbers.py, or double precision
 * here). */
#include "numbers.h"
#include "rng.h"
#include "train_internal.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void near_to(double got, double want, double tolerance, const char *what, int i)
{
    if (!(fabs(got - want) <= tolerance * fmax(1e-3, fabs(want))))
        fail_msg("%s[%d] is %.9g, expected %.9g", what, i, got, want);
}

static void test_learning_rates(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        dn_lr_schedule s;
        const double *want;
    } rows[] = {
        { "constant", { DN_LR_CONSTANT, LR_WARM }, lr_constant },
        { "linear", { DN_LR_LINEAR, LR_WARM }, lr_linear },
        { "cosine", { DN_LR_COSINE, LR_WARM }, lr_cosine },
        { "restarts", { DN_LR_COSINE_RESTARTS, LR_WARM, 3 }, lr_restarts },
        { "polynomial", { DN_LR_POLYNOMIAL, LR_WARM, 1, 2, 0.1 }, lr_polynomial },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int k = 0; k < LR_STEPS; k++)
            near_to(dn_lr_at(&rows[i].s, 2e-4, k, LR_STEPS), 2e-4 * rows[i].want[k], 1e-6, rows[i].name, k);
}

/* PyTorch's OneCycleLR: its own warm-up of 30% and its own end, a given one of both, a peak between two steps. */
static void test_one_cycle(void **state)
{
    (void)state;
    const dn_lr_schedule s = { .kind = DN_LR_ONE_CYCLE, .lr_end = 4e-6 },
                         warm = { .kind = DN_LR_ONE_CYCLE, .warmup_steps = LR_WARM, .lr_end = 0.1 };
    for (int k = 0; k < LR_STEPS; k++) {
        near_to(dn_lr_at(&s, 1, k, LR_STEPS), lr_one_cycle[k], 1e-6, "one_cycle", k);
        near_to(dn_lr_at(&warm, 1, k, LR_STEPS), lr_one_cycle_warm[k], 1e-6, "one_cycle, warm-up given", k);
    }
    for (int k = 0; k < 33; k++)
        near_to(dn_lr_at(&s, 1, k, 33), lr_one_cycle_odd[k], 1e-6, "one_cycle of 33", k);
    near_to(dn_lr_at(&s, 1, 0, 1), 4e-6, 1e-6, "one_cycle of 1", 0);
}

static void test_averages(void **state)
{
    (void)state;
    static const int64_t at[] = { 1, 2, 3, 4, 10, 100, 1000, 100000 };
    const dn_ema warm = { 0.9999, 1, true, 1, 0.75, 0 }, plain = { 0.99, 1, false, 1, 1, 0 },
                 low = { 0.9999, 1, true, 2, 2.0 / 3, 0.5 };
    for (int i = 0; i < 8; i++) {
        near_to(dn_ema_decay(&warm, at[i]), ema_warm[i], 1e-7, "warm", i);
        near_to(dn_ema_decay(&plain, at[i]), ema_plain[i], 1e-7, "plain", i);
        near_to(dn_ema_decay(&low, at[i]), ema_floor[i], 1e-7, "floor", i);
    }
    dn_ema seldom = { 0.99, 10, false, 1, 1, 0 };
    near_to(dn_ema_decay(&seldom, 100000), pow(0.99, 10), 1e-12, "every 10", 0);
    near_to(dn_ema_decay(&seldom, 10), 0, 1e-12, "the first of every 10", 0);
}

static void test_timesteps(void **state)
{
    (void)state;
    enum { N = 1000000 };
    dn_objective o = { .timesteps = DN_TIMESTEPS_LOGIT_NORMAL, .timesteps_scale = NAN };
    for (int i = 0; i < 8; i++)
        near_to((dn_timestep_of(&o, N, law_at[i]) + 0.5) / N, law_logit[i], 2e-5, "logit_normal", i);
    o.timesteps_loc = -0.5;
    o.timesteps_scale = 1.7;
    for (int i = 0; i < 8; i++)
        near_to((dn_timestep_of(&o, N, law_at[i]) + 0.5) / N, law_logit_moved[i], 1e-3, "logit_normal moved", i);
    o = (dn_objective){ .timesteps = DN_TIMESTEPS_MODE, .timesteps_scale = NAN };
    for (int i = 0; i < 8; i++)
        near_to((dn_timestep_of(&o, N, law_at[i]) + 0.5) / N, law_mode[i], 2e-3, "mode", i);
    o.timesteps = DN_TIMESTEPS_UNIFORM;
    assert_int_equal(dn_timestep_of(&o, 1000, 0.25), 250);
    assert_int_equal(dn_timestep_of(&o, 1000, 1 - 1e-12), 999);
    assert_int_equal(dn_timestep_of(&o, 1000, 1e-12), 0);
}

static void test_weights(void **state)
{
    (void)state;
    static const enum dn_train_weighting kinds[] = { DN_WEIGHT_SNR, DN_WEIGHT_MIN_SNR, DN_WEIGHT_EDM, DN_WEIGHT_P2 };
    static const double(*const want[])[4] = {
        [DN_PREDICT_EPSILON] = weights_epsilon, [DN_PREDICT_V] = weights_v, [DN_PREDICT_SAMPLE] = weights_sample
    };
    for (int i = 0; i < 5; i++) {
        double abar = alpha_bars[i], alpha = sqrt(abar), sigma = sqrt(1 - abar), beta = 1e-4;
        float time = 0;
        dn_levels l = { .n = 1, .alpha = &alpha, .sigma = &sigma, .time = &time, .beta = &beta, .abar = &abar };
        for (int prediction = 0; prediction < 3; prediction++)
            for (int k = 0; k < 4; k++) {
                dn_objective o = { .prediction = prediction,
                                   .weighting = kinds[k],
                                   .snr_gamma = 5,
                                   .p2_gamma = 1,
                                   .p2_k = 1,
                                   .sigma_data = 0.5 };
                near_to(dn_row_terms_of(&l, &o, 0).weight, want[prediction][i][k], 1e-6, "weight", 4 * i + k);
                o.weighting = DN_WEIGHT_UNIFORM;
                assert_true(dn_row_terms_of(&l, &o, 0).weight == 1);
            }
    }
}

/* |u - u'|^2 sigma^2 = |x0 - x0'|^2 with x_t = (1 - sigma) x0 + sigma n. */
static void test_flow_weights(void **state)
{
    (void)state;
    for (int i = 1; i < 10; i++) {
        double sigma = i / 10.0, alpha = 1 - sigma, snr = alpha * alpha / (sigma * sigma);
        float time = 0;
        dn_levels l = { .n = 1, .flow = true, .alpha = &alpha, .sigma = &sigma, .time = &time };
        dn_objective o = {
            .prediction = DN_PREDICT_FLOW, .weighting = DN_WEIGHT_EDM, .snr_gamma = 5, .sigma_data = 0.5
        };
        dn_row_terms r = dn_row_terms_of(&l, &o, 0);
        near_to(r.weight, (1 / snr + 0.25) / (0.25 / snr) * sigma * sigma, 1e-9, "edm", i);
        o.weighting = DN_WEIGHT_MIN_SNR;
        near_to(dn_row_terms_of(&l, &o, 0).weight, fmin(snr, 5) * sigma * sigma, 1e-9, "min_snr", i);
        near_to(r.of_x0, -1, 0, "target", i);
        near_to(r.of_noise, 1, 0, "target", i);
    }
}

/* From the target and x_t, x0 comes back: the target is what the prediction is said to be. */
static void test_targets(void **state)
{
    (void)state;
    double abar = 0.3, alpha = sqrt(abar), sigma = sqrt(1 - abar), beta = 0.01, x0 = 0.7, n = -1.3;
    float time = 0;
    dn_levels l = { .n = 1, .alpha = &alpha, .sigma = &sigma, .time = &time, .beta = &beta, .abar = &abar };
    double x = alpha * x0 + sigma * n, out[3];
    for (int k = 0; k < 3; k++) {
        dn_objective o = { .prediction = k };
        dn_row_terms r = dn_row_terms_of(&l, &o, 0);
        near_to(r.alpha * x0 + r.sigma * n, x, 1e-6, "x_t", k);
        out[k] = r.of_x0 * x0 + r.of_noise * n;
    }
    near_to((x - sigma * out[DN_PREDICT_EPSILON]) / alpha, x0, 1e-6, "epsilon", 0);
    near_to(alpha * x - sigma * out[DN_PREDICT_V], x0, 1e-6, "v", 0);
    near_to(out[DN_PREDICT_SAMPLE], x0, 1e-6, "sample", 0);
}

/* ---- optimizers ---- */

enum { COUNT = 70000, STEPS = 3, SPLIT = 40000 };

static void block_of_two(dn_block *b, dn_param q[2])
{
    memset(q, 0, 2 * sizeof *q);
    q[0] = (dn_param){ .shape = dn_shape(SPLIT), .decay = true };
    q[1] = (dn_param){ .shape = dn_shape(COUNT - SPLIT), .offset = SPLIT };
    *b = (dn_block){ .param = q, .n_params = 2, .count = COUNT };
}

static double gradient_at(int i, int k) { return sin(0.7 * i + 1.3 * k) * (i % 7 == 0 ? 1e-3 : 1); }

/* One weight by the textbook, in double. */
static void textbook(const dn_optimizer *o, double lr, bool decay, int i, double *w, double *ema)
{
    double m = 0, v = 0;
    for (int k = 1; k <= STEPS; k++) {
        double g = gradient_at(i, k) * 0.5;
        if (decay && o->kind != DN_ADAMW)
            g += o->weight_decay * *w;
        if (decay && o->kind == DN_ADAMW)
            *w -= lr * o->weight_decay * *w;
        if (o->kind == DN_SGD) {
            m = o->beta1 * m + g;
            *w -= lr * m;
        } else {
            m = o->beta1 * m + (1 - o->beta1) * g;
            v = o->beta2 * v + (1 - o->beta2) * g * g;
            *w -= lr * (m / (1 - pow(o->beta1, k))) / (sqrt(v / (1 - pow(o->beta2, k))) + o->eps);
        }
        *ema = 0.8 * *ema + 0.2 * *w;
    }
}

static void run_optimizer(const dn_optimizer *o, dn_pool *pool, dn_flat *f)
{
    dn_block b;
    dn_param q[2];
    block_of_two(&b, q);
    assert_int_equal(dn_flat_init(f, &b, o->kind, NULL), 0);
    for (int i = 0; i < COUNT; i++)
        f->weights[i] = f->ema[i] = cosf((float)i);
    for (int k = 1; k <= STEPS; k++) {
        for (int i = 0; i < COUNT; i++)
            f->gradient[i] = (float)gradient_at(i, k);
        dn_update_terms u = dn_update_terms_of(o, 0.01, k, 0.5);
        u.ema = 0.2f;
        dn_flat_update(f, &u, pool, 0, 2);
        dn_flat_update(f, &u, pool, 2, dn_flat_chunks(f));
    }
}

static void test_optimizers(void **state)
{
    (void)state;
    dn_pool *pool = dn_pool_new(2, NULL);
    for (int kind = DN_ADAMW; kind <= DN_SGD; kind++) {
        dn_optimizer o = { kind, 0.01, 0.9, 0.99, 1e-8, 0.1, 0 };
        dn_flat one, two;
        run_optimizer(&o, NULL, &one);
        run_optimizer(&o, pool, &two);
        assert_memory_equal(one.weights, two.weights, sizeof(float) * COUNT);
        assert_memory_equal(one.ema, two.ema, sizeof(float) * COUNT);
        for (int i = 0; i < COUNT; i += 37) {
            double w = cosf((float)i), ema = w;
            textbook(&o, 0.01, i < SPLIT, i, &w, &ema);
            if (fabs(one.weights[i] - w) > 2e-6 || fabs(one.ema[i] - ema) > 2e-6)
                fail_msg("optimizer %d, weight %d: %.9g, expected %.9g", kind, i, one.weights[i], w);
        }
        dn_flat_fini(&one);
        dn_flat_fini(&two);
    }
    dn_pool_free(pool);
}

static void test_norm(void **state)
{
    (void)state;
    dn_block b;
    dn_param q[2];
    dn_flat f;
    block_of_two(&b, q);
    assert_int_equal(dn_flat_init(&f, &b, DN_ADAMW, NULL), 0);
    double sum = 0;
    for (int i = 0; i < COUNT; i++) {
        f.gradient[i] = (float)gradient_at(i, 1);
        sum += (double)f.gradient[i] * f.gradient[i];
    }
    dn_flat_squares(&f, NULL, 0, dn_flat_chunks(&f));
    near_to(dn_flat_norm(&f), sqrt(sum), 1e-12, "norm", 0);
    f.gradient[COUNT - 1] = NAN;
    dn_flat_squares(&f, NULL, 0, dn_flat_chunks(&f));
    assert_true(isnan(dn_flat_norm(&f)));
    dn_flat_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learning_rates), cmocka_unit_test(test_one_cycle),  cmocka_unit_test(test_averages),
        cmocka_unit_test(test_timesteps),      cmocka_unit_test(test_weights),    cmocka_unit_test(test_flow_weights),
        cmocka_unit_test(test_targets),        cmocka_unit_test(test_optimizers), cmocka_unit_test(test_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
