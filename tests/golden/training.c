/* training.c - four optimizer steps of golden U-Nets, by the trainer itself, against PyTorch and diffusers
 * (train.safetensors): loss, gradient norm, learning rate, EMA decay of each step, the gradients of the first,
 * parameters and EMA after the last.
 *
 * AdamW (1e-3, 0.95, 0.999, 1e-8, 1e-6), clipping at 1, cosine with 2 warm-up steps of 6, EMA with warm-up (0.75). */
#include "fake_data.h"
#include "train_internal.h"
#include "vectors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 4, STEPS = 4 };

typedef struct {
    const vectors *v;
    int step;
} source;

static float *step_vector(const source *s, const char *name, bool pictures)
{
    char key[64];
    snprintf(key, sizeof key, "s%d.%s", s->step, name);
    return pictures ? vectors_nhwc(s->v, key) : vectors_floats(s->v, key);
}

static float scalar(const source *s, const char *name)
{
    float *x = step_vector(s, name, false), value = *x;
    free(x);
    return value;
}

/* The vectors' pictures, noise and timesteps; they were made with the labels 1, 2, 3, 4. */
static void inject(void *arg, const dn_trainer *t, int first, int n)
{
    const source *s = arg;
    float *x0 = step_vector(s, "images", true), *noise = step_vector(s, "noise", true),
          *time = step_vector(s, "timesteps", false);
    for (int i = 0; i < n; i++) {
        t->feed.t[i] = (int)time[first + i];
        t->feed.label[i] = 1 + first + i;
    }
    memcpy(t->feed.x0, x0 + first * t->row, sizeof *x0 * (size_t)(n * t->row));
    memcpy(t->feed.noise, noise + first * t->row, sizeof *x0 * (size_t)(n * t->row));
    free(x0);
    free(noise);
    free(time);
}

static void same(const char *what, int step, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fmax(1e-6, fabs(want))))
        fail_msg("step %d: %s is %.9g, expected %.9g", step, what, got, want);
}

/* A key's bias moves every logit of a softmax alike, so its gradient is zero but for rounding (1e-10 of the norm); Adam
 * makes a step of full length of that noise, in whatever direction. */
static bool is_noise(const vectors *v, const char *name, int64_t n)
{
    char key[256];
    snprintf(key, sizeof key, "grad0.%s", name);
    float *gradient = vectors_floats(v, key), *norm = vectors_floats(v, "s0.grad_norm");
    double most = 0;
    for (int64_t k = 0; k < n; k++)
        most = fmax(most, fabs((double)gradient[k]));
    bool noise = most < 1e-8 * *norm;
    free(gradient);
    free(norm);
    return noise;
}

/* The largest difference of a block from the vectors `prefix`NAME, as a share of the parameter's largest value or of
 * `floor`. Where PyTorch's own value is noise it is only bounded: by `noise_max`. */
static double check_block(const dn_trainer *t, const vectors *v, const char *prefix, const float *block, double floor,
                          double noise_max)
{
    const dn_block *b = &t->net.program->block[0];
    double worst = 0;
    for (int i = 0; i < b->n_params; i++) {
        const dn_param *q = &b->param[i];
        char key[256];
        snprintf(key, sizeof key, "%s%s", prefix, q->name);
        float *want = vectors_floats(v, key);
        int64_t n = dn_shape_count(&q->shape);
        float *got = malloc(sizeof *got * (size_t)n);
        dn_param_to_file(got, block + q->offset, q);
        double size = floor, error = 0;
        for (int64_t k = 0; k < n; k++) {
            size = fmax(size, fabs((double)want[k]));
            error = fmax(error, isfinite(got[k]) ? fabs((double)got[k] - want[k]) : INFINITY);
        }
        free(got);
        free(want);
        if (noise_max > 0 && is_noise(v, q->name, n)) {
            assert_true(error < noise_max);
            continue;
        }
        if (error / size > 1e-4)
            fail_msg("%s differs by %.2e", key, error / size);
        worst = fmax(worst, error / size);
    }
    return worst;
}

static dn_train_params job(int micro_batch)
{
    dn_train_params p;
    dn_train_params_init(&p);
    p.steps = 6;
    p.batch_size = ROWS;
    p.micro_batch = micro_batch;
    p.optimizer = (dn_optimizer){ DN_ADAMW, 1e-3, 0.95, 0.999, 1e-8, 1e-6, 1 };
    p.lr_schedule.kind = DN_LR_COSINE;
    p.lr_schedule.warmup_steps = 2;
    p.ema.warmup = true;
    return p;
}

static void run_step(dn_trainer *t, source *s)
{
    dn_train_report r;
    dn_error err = { 0 };
    int rc;
    while ((rc = dn_trainer_some(t, 0.5, &r, &err)) == 1)
        ;
    if (rc)
        fail_msg("%s", err.message);
    same("loss", s->step, r.loss, scalar(s, "loss"), 1e-4);
    same("grad_norm", s->step, r.grad_norm, scalar(s, "grad_norm"), 1e-4);
    same("lr", s->step, r.lr, scalar(s, "lr"), 1e-6);
    same("ema_decay", s->step, r.ema_decay, scalar(s, "ema_decay"), 1e-6);
    assert_false(r.skipped);
    assert_int_equal(r.step, s->step + 1);
}

static void check(const char *folder, const char *device, int micro_batch)
{
    char path[1024];
    dn_error err = { 0 };
    dn_model *m = NULL;
    dn_device *d = NULL;
    dn_trainer *t = NULL;
    dn_train_plan plan;
    dn_train_params p = job(micro_batch);
    snprintf(path, sizeof path, "%s/%s", GOLDEN_DIR, folder);
    if (dn_model_load(&m, path, &err) || dn_device_open(&d, device, &err))
        fail_msg("%s", err.message);
    dn_dataset *data = fake_dataset(16, m->info.height, m->info.width, m->info.channels, m->info.label_kind ? 5 : 0);
    if (dn_train_plan_make(&plan, d, m, data, &p, 0, &err) || dn_trainer_new(&t, d, m, data, &p, &plan, &err))
        fail_msg("%s", err.message);
    source s = { .v = vectors_open(folder, "train.safetensors") };
    t->inject = inject;
    t->inject_arg = &s;
    double worst[3] = { 0 }, moved = 0; /* Adam's steps are at most lr or so */
    for (; s.step < STEPS; s.step++) {
        float norm = scalar(&s, "grad_norm");
        moved += scalar(&s, "lr");
        run_step(t, &s);
        if (!s.step)
            worst[0] = check_block(t, s.v, "grad0.", t->flat.gradient, 1e-3 * norm, 0);
    }
    worst[1] = check_block(t, s.v, "final.", t->flat.weights, 1e-6, moved);
    worst[2] = check_block(t, s.v, "ema.", t->flat.ema, 1e-6, moved);
    print_message("%s on %s, micro_batch %d: gradients %.1e, parameters %.1e, EMA %.1e\n", folder, device, micro_batch,
                  worst[0], worst[1], worst[2]);
    vectors_close((vectors *)s.v);
    dn_trainer_free(t);
    dn_device_close(d);
    dn_dataset_close(data);
    dn_model_free(m);
}

static void test_training(void **state)
{
    (void)state;
    static const char *const folders[] = { "unet_ddpm", "unet_ldm", "unet_adm" };
    for (int i = 0; i < 3; i++) {
#ifndef __SANITIZE_THREAD__ /* ref has one */
        check(folders[i], "ref", 4);
#endif
        check(folders[i], "cpu", 4);
        check(folders[i], "cpu", 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_training) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
