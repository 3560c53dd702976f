/* trainer.c - the trainer as a whole: the same bits however it is cut, interrupted or threaded; what it refuses. */
#include "fixture.h"
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void assert_same_state(const dn_trainer *a, const dn_trainer *b)
{
    size_t n = sizeof(float) * (size_t)a->flat.count;
    assert_memory_equal(a->flat.weights, b->flat.weights, n);
    assert_memory_equal(a->flat.m, b->flat.m, n);
    assert_memory_equal(a->flat.v, b->flat.v, n);
    assert_memory_equal(a->flat.ema, b->flat.ema, n);
    assert_memory_equal(&a->counters, &b->counters, sizeof a->counters);
}

static double distance(const float *a, const float *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++)
        worst = fmax(worst, fabs((double)a[i] - b[i]));
    return worst;
}

/* Everything that draws at random. */
static void all_randomness(dn_train_params *p)
{
    p->objective.label_dropout = 0.3;
    p->objective.noise_offset = 0.1;
    p->objective.input_perturbation = 0.1;
    p->objective.timesteps = DN_TIMESTEPS_LOGIT_NORMAL;
    p->objective.low_discrepancy = true;
    p->ema.every = 2;
    p->lr_schedule.kind = DN_LR_COSINE;
    p->lr_schedule.warmup_steps = 3;
}

static void test_segments(void **state)
{
    (void)state;
    fixture whole, cut;
    fixture_init(&whole, &(fixture_wish){ .config = "{\"dropout\":0.1}" });
    fixture_init(&cut, &(fixture_wish){ .config = "{\"dropout\":0.1}" });
    whole.params.micro_batch = cut.params.micro_batch = 2;
    all_randomness(&whole.params);
    all_randomness(&cut.params);
    fixture_start(&whole);
    fixture_start(&cut);
    fixture_steps(whole.trainer, 5, 0);
    fixture_steps(cut.trainer, 5, 1e-6);
    assert_same_state(whole.trainer, cut.trainer);
    fixture_fini(&whole);
    fixture_fini(&cut);
}

static void test_threads(void **state)
{
    (void)state;
    fixture one, two;
    fixture_init(&one, &(fixture_wish){ .device = "cpu:0" });
    fixture_init(&two, &(fixture_wish){ .device = "cpu:0-1" });
    all_randomness(&one.params);
    all_randomness(&two.params);
    fixture_start(&one);
    fixture_start(&two);
    assert_int_equal(dn_device_threads(two.device), 2);
    fixture_steps(one.trainer, 5, 0);
    fixture_steps(two.trainer, 5, 0);
    assert_same_state(one.trainer, two.trainer);
    fixture_fini(&one);
    fixture_fini(&two);
}

static void test_micro_batches(void **state)
{
    (void)state;
    fixture f[3];
    dn_train_report r[3];
    for (int i = 0; i < 3; i++) {
        fixture_init(&f[i], &(fixture_wish){ 0 });
        all_randomness(&f[i].params);
        f[i].params.micro_batch = 1 << i;
        fixture_start(&f[i]);
        r[i] = fixture_steps(f[i].trainer, 1, 0);
        assert_true(fabs(r[i].loss - r[0].loss) < 1e-5 * r[0].loss);
        assert_true(fabs(r[i].grad_norm - r[0].grad_norm) < 1e-4 * r[0].grad_norm);
        assert_true(distance(f[i].trainer->flat.gradient, f[0].trainer->flat.gradient, f[0].trainer->flat.count) <
                    1e-5 * r[0].grad_norm);
    }
    for (int i = 0; i < 3; i++)
        fixture_fini(&f[i]);
}

/* ---- checkpoints ---- */

static char path[64];

static int make_path(void **state)
{
    (void)state;
    strcpy(path, "/tmp/denoised-train-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    return 0;
}

static int remove_path(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static void write_checkpoint(dn_trainer *t)
{
    dn_snapshot *s = NULL;
    dn_error err = { 0 };
    if (dn_trainer_snapshot(&s, t, true, 0, &err) || dn_snapshot_write(s, path, &err))
        fail_msg("%s", err.message);
    dn_snapshot_free(s);
}

static void resume_at(int step, enum dn_precision precision, enum dn_optimizer_kind kind)
{
    fixture straight, before, after;
    fixture *all[] = { &straight, &before, &after };
    dn_error err = { 0 };
    for (int i = 0; i < 3; i++) {
        fixture_init(all[i], &(fixture_wish){ 0 });
        all_randomness(&all[i]->params);
        all[i]->params.precision = precision;
        all[i]->params.optimizer.kind = kind;
        fixture_start(all[i]);
    }
    fixture_steps(straight.trainer, 6, 0);
    fixture_steps(before.trainer, step, 0);
    write_checkpoint(before.trainer);
    fixture_steps(after.trainer, 1, 0); /* what is there is replaced */
    if (dn_trainer_restore(after.trainer, path, &err))
        fail_msg("%s", err.message);
    assert_int_equal(dn_trainer_step(after.trainer), step);
    fixture_steps(after.trainer, 6 - step, 0);
    size_t n = sizeof(float) * (size_t)straight.trainer->flat.count;
    assert_memory_equal(straight.trainer->flat.weights, after.trainer->flat.weights, n);
    assert_memory_equal(straight.trainer->flat.ema, after.trainer->flat.ema, n);
    assert_memory_equal(&straight.trainer->counters, &after.trainer->counters, sizeof(dn_train_counters));
    for (int i = 0; i < 3; i++)
        fixture_fini(all[i]);
}

static void test_resume(void **state)
{
    (void)state;
    for (int step = 0; step <= 6; step++)
        resume_at(step, DN_PRECISION_FP32, DN_ADAMW);
    resume_at(3, DN_PRECISION_FP16, DN_ADAMW);
    resume_at(2, DN_PRECISION_BF16, DN_ADAM);
    resume_at(3, DN_PRECISION_FP32, DN_SGD);
}

static long file_size(void)
{
    FILE *f = fopen(path, "rb");
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    fclose(f);
    return n;
}

/* Segments of a snapshot until it is whole; between them the trainer can do nothing else. */
static dn_snapshot *copy_in_pieces(dn_trainer *t, bool all, int *segments)
{
    dn_snapshot *s = NULL;
    dn_train_report report;
    dn_error err = { 0 };
    for (*segments = 1; dn_trainer_snapshot(&s, t, all, 1e-9, &err) == 1; ++*segments) {
        assert_null(s);
        assert_false(dn_trainer_at_boundary(t));
        assert_int_equal(dn_trainer_some(t, 0, &report, &err), -DN_E_INTERNAL);
        assert_int_equal(dn_trainer_restore(t, path, &err), DN_E_INTERNAL);
    }
    assert_non_null(s);
    assert_true(dn_trainer_at_boundary(t));
    return s;
}

static char *read_all(long *n)
{
    *n = file_size();
    char *text = malloc((size_t)*n);
    FILE *f = fopen(path, "rb");
    assert_int_equal(fread(text, 1, (size_t)*n, f), *n);
    fclose(f);
    return text;
}

/* A copy cut into pieces is the whole copy, a piece has a bounded number of bytes, and one that never ends is no loss.
 */
static void test_snapshot_in_pieces(void **state)
{
    (void)state;
    static const fixture_wish wide = { .config = "{\"block_out_channels\":[64,128]}" };
    fixture f, after;
    dn_error err = { 0 };
    dn_snapshot *s = NULL;
    int segments;
    long n, m;
    fixture_init(&f, &wide);
    fixture_init(&after, &wide);
    fixture_start(&f);
    fixture_start(&after);
    fixture_steps(f.trainer, 1, 0);
    write_checkpoint(f.trainer);
    char *whole = read_all(&n);
    int64_t pieces = (f.trainer->flat.count + DN_COPY_PIECE - 1) / DN_COPY_PIECE;
    assert_true(pieces > 2 && DN_COPY_PIECE * sizeof(float) <= 1 << 20);
    s = copy_in_pieces(f.trainer, true, &segments);
    assert_int_equal(segments, 4 * pieces);
    assert_int_equal(dn_snapshot_write(s, path, &err), 0);
    char *cut = read_all(&m);
    assert_int_equal(m, n);
    assert_memory_equal(whole, cut, (size_t)n);
    dn_snapshot_free(s);
    dn_snapshot_free(copy_in_pieces(f.trainer, false, &segments));
    assert_int_equal(segments, pieces);
    fixture_steps(f.trainer, 2, 0); /* as if nothing had been */
    assert_int_equal(dn_trainer_restore(after.trainer, path, &err), 0);
    fixture_steps(after.trainer, 1, 0);
    s = NULL;
    assert_int_equal(dn_trainer_snapshot(&s, after.trainer, true, 1e-9, &err), 1);
    dn_trainer_free(after.trainer); /* the end, in the middle of a copy */
    after.trainer = NULL;
    fixture_start(&after);
    assert_int_equal(dn_trainer_restore(after.trainer, path, &err), 0);
    fixture_steps(after.trainer, 2, 0);
    assert_same_state(f.trainer, after.trainer);
    free(whole);
    free(cut);
    fixture_fini(&f);
    fixture_fini(&after);
}

static void refused(dn_trainer *t, int code, const char *param)
{
    size_t n = sizeof(float) * (size_t)t->flat.count;
    float *before = malloc(n);
    memcpy(before, t->flat.weights, n);
    dn_error err = { 0 };
    int rc = dn_trainer_restore(t, path, &err);
    if (rc != code || strcmp(err.param, param))
        fail_msg("restore gave %s, param \"%s\": %s", dn_error_name(rc), err.param, err.message);
    assert_memory_equal(before, t->flat.weights, n);
    free(before);
}

static void spoil(long at, long cut)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    if (at >= 0) {
        fseek(f, at, SEEK_SET);
        int c = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(c ^ 1, f);
    }
    fclose(f);
    if (cut >= 0)
        assert_int_equal(truncate(path, cut), 0);
}

static void test_damaged_checkpoints(void **state)
{
    (void)state;
    fixture f;
    fixture_init(&f, &(fixture_wish){ 0 });
    fixture_start(&f);
    fixture_steps(f.trainer, 1, 0);
    write_checkpoint(f.trainer);
    long size = file_size();
    for (int i = 0; i < 20; i++) { /* cut anywhere */
        write_checkpoint(f.trainer);
        spoil(-1, size * i / 20);
        refused(f.trainer, DN_E_FORMAT, "checkpoint");
    }
    for (int i = 0; i < 20; i++) { /* one bit anywhere */
        write_checkpoint(f.trainer);
        spoil(size * i / 20, -1);
        refused(f.trainer, DN_E_FORMAT, "checkpoint");
    }
    write_checkpoint(f.trainer);
    FILE *more = fopen(path, "ab");
    fputc(0, more);
    fclose(more);
    refused(f.trainer, DN_E_FORMAT, "checkpoint");
    unlink(path);
    refused(f.trainer, DN_E_NOT_FOUND, "checkpoint");
    fixture_fini(&f);
}

static void test_foreign_checkpoints(void **state)
{
    (void)state;
    fixture f, other;
    fixture_init(&f, &(fixture_wish){ 0 });
    fixture_start(&f);
    write_checkpoint(f.trainer);
    fixture_init(&other, &(fixture_wish){ 0 });
    other.params.objective.prediction = DN_PREDICT_V;
    fixture_start(&other);
    refused(other.trainer, DN_E_INVALID, "objective.prediction");
    fixture_fini(&other);
    fixture_init(&other, &(fixture_wish){ .config = "{\"norm_eps\":1e-4,\"block_out_channels\":[8,24]}" });
    fixture_start(&other);
    refused(other.trainer, DN_E_INVALID, "model");
    fixture_fini(&other);
    fixture_init(&other, &(fixture_wish){ 0 });
    other.params.micro_batch = 2;
    fixture_start(&other);
    refused(other.trainer, DN_E_INVALID, "numerics");
    fixture_fini(&other);
    fixture_fini(&f);
}

/* ---- DENOISED_CHECK and DENOISED_TRACE ---- */

static char said[1 << 20];
static int stderr_before = -1;

static void listen_to_stderr(void)
{
    int fd = open(path, O_RDWR | O_TRUNC | O_CLOEXEC);
    assert_true(fd >= 0);
    fflush(stderr);
    stderr_before = dup(2);
    dup2(fd, 2);
    close(fd);
}

static void stop_listening(void)
{
    fflush(stderr);
    dup2(stderr_before, 2);
    close(stderr_before);
    FILE *f = fopen(path, "rb");
    said[fread(said, 1, sizeof said - 1, f)] = 0;
    fclose(f);
}

static void start_with(fixture *f, enum dn_precision precision, const char *variable, const char *value)
{
    fixture_init(f, &(fixture_wish){ 0 });
    all_randomness(&f->params);
    f->params.precision = precision;
    f->params.micro_batch = 2;
    f->params.eval_fraction = 0.2;
    if (variable)
        setenv(variable, value, 1);
    fixture_start(f);
    if (variable)
        unsetenv(variable);
}

static double evaluate(dn_trainer *t)
{
    dn_eval_report report;
    dn_error err = { 0 };
    assert_int_equal(dn_trainer_eval_some(t, 0, &report, &err), 0);
    return report.loss;
}

/* The run on ref beside each run of a step changes nothing, not the gradient either that both add to, and agrees. */
static void test_check(void **state)
{
    (void)state;
    for (int precision = DN_PRECISION_FP32; precision <= DN_PRECISION_FP16; precision++) {
        fixture plain, checked;
        start_with(&plain, precision, NULL, NULL);
        start_with(&checked, precision, "DENOISED_CHECK", "ref");
        assert_non_null(checked.trainer->look.check);
        listen_to_stderr();
        fixture_steps(checked.trainer, 2, 0);
        double loss = evaluate(checked.trainer);
        stop_listening();
        fixture_steps(plain.trainer, 2, 0);
        assert_same_state(plain.trainer, checked.trainer);
        assert_true(loss == evaluate(plain.trainer));
        if (strstr(said, "first difference"))
            fail_msg("precision %d: %s", precision, said);
        fixture_fini(&plain);
        fixture_fini(&checked);
    }
}

/* A weight that changes between the two runs is found. */
static void test_check_finds(void **state)
{
    (void)state;
    fixture f;
    dn_train_report r;
    dn_error err = { 0 };
    start_with(&f, DN_PRECISION_FP32, "DENOISED_CHECK", "ref");
    dn_trainer *t = f.trainer;
    listen_to_stderr();
    while (t->phase != DN_PHASE_RUN)
        assert_int_equal(dn_trainer_some(t, 1e-6, &r, &err), 1);
    int w = dn_block_find(&t->net.program->block[0], "mid_block.resnets.0.conv1.weight");
    assert_true(w >= 0);
    t->flat.weights[t->net.program->block[0].param[w].offset] += 1;
    fixture_steps(t, 1, 0);
    stop_listening();
    assert_non_null(strstr(said, "first difference from ref:"));
    assert_non_null(strstr(said, "mid_block.resnets.0"));
    fixture_fini(&f);
}

static void test_trace(void **state)
{
    (void)state;
    fixture f;
    start_with(&f, DN_PRECISION_FP32, "DENOISED_TRACE", "1");
    assert_null(f.trainer->look.check);
    listen_to_stderr();
    fixture_steps(f.trainer, 1, 0);
    stop_listening();
    assert_non_null(strstr(said, "conv_out"));
    assert_non_null(strstr(said, "deviation"));
    fixture_fini(&f);
}

/* ---- non-finite steps, loss scaling ---- */

static void test_nan_guard(void **state)
{
    (void)state;
    fixture f;
    fixture_init(&f, &(fixture_wish){ 0 });
    f.params.nan_max = 3;
    fixture_start(&f);
    fixture_steps(f.trainer, 2, 0);
    size_t n = sizeof(float) * (size_t)f.trainer->flat.count;
    float *before = malloc(n);
    memcpy(before, f.trainer->flat.weights, n);
    fake_poison(f.data, 2, NAN);
    for (int i = 0; i < 2; i++) {
        dn_train_report r = fixture_steps(f.trainer, 1, 0);
        assert_true(r.skipped);
        assert_int_equal(r.step, 3 + i);
    }
    assert_memory_equal(before, f.trainer->flat.weights, n);
    assert_int_equal(f.trainer->counters.updates, 2);
    fake_poison(f.data, -1, 0); /* a good step: counted anew */
    assert_false(fixture_steps(f.trainer, 1, 0).skipped);
    fake_poison(f.data, 0, INFINITY);
    fixture_steps(f.trainer, 2, 0);
    dn_train_report r;
    dn_error err = { 0 };
    assert_int_equal(dn_trainer_some(f.trainer, 0, &r, &err), -DN_E_NON_FINITE);
    assert_true(r.skipped);
    free(before);
    fixture_fini(&f);
}

static void test_loss_scale(void **state)
{
    (void)state;
    fixture f, plain;
    fixture_init(&f, &(fixture_wish){ 0 });
    fixture_init(&plain, &(fixture_wish){ 0 });
    f.params.precision = DN_PRECISION_FP16;
    f.params.nan_max = 1;
    f.params.objective.weighting = plain.params.objective.weighting = DN_WEIGHT_EDM; /* large gradients */
    fixture_start(&f);
    fixture_start(&plain);
    dn_train_report r = fixture_steps(f.trainer, 1, 0), p = fixture_steps(plain.trainer, 1, 0);
    assert_true(r.loss_scale == 0x1p15);
    assert_true(fabs(r.grad_norm - p.grad_norm) < 1e-2 * p.grad_norm); /* unscaled, kept as 16 bit */
    assert_true(fabs(r.loss - p.loss) < 1e-5 * p.loss);
    f.trainer->counters.loss_scale = 0x1p127; /* the gradient overflows, the loss does not */
    r = fixture_steps(f.trainer, 1, 0);
    assert_true(r.skipped && isfinite(r.loss) && f.trainer->counters.loss_scale == 0x1p126);
    assert_int_equal(f.trainer->counters.nan_run, 0);
    f.trainer->counters.loss_scale = 64;
    f.trainer->counters.good_steps = 1999;
    fixture_steps(f.trainer, 1, 0);
    assert_true(f.trainer->counters.loss_scale == 128 && f.trainer->counters.good_steps == 0);
    fixture_fini(&f);
    fixture_fini(&plain);
}

/* ---- what is drawn ---- */

static void test_label_dropout(void **state)
{
    (void)state;
    enum { STEPS = 40, BATCH = 64 };
    fixture f;
    fixture_init(&f, &(fixture_wish){ .images = 4000 });
    f.params.batch_size = f.params.micro_batch = BATCH;
    f.params.objective.label_dropout = 0.25;
    f.params.objective.low_discrepancy = true;
    fixture_start(&f);
    dn_trainer *t = f.trainer;
    int dropped = 0;
    t->run = (dn_run){ .lowered = t->net.lowered, .arena = t->arena, .n = BATCH };
    for (; t->counters.step < STEPS; t->counters.step++) {
        int stratum[BATCH] = { 0 };
        dn_feed_train(t, 0, BATCH);
        for (int i = 0; i < BATCH; i++) {
            assert_in_range(t->feed.label[i], 0, 4);
            dropped += t->feed.label[i] == 4;
            stratum[t->feed.t[i] * BATCH / 1000 < BATCH ? t->feed.t[i] * BATCH / 1000 : 0]++;
        }
        for (int i = 0; i < BATCH; i++) /* one in each, but for rounding at a border */
            assert_in_range(stratum[i], 0, 2);
    }
    double share = (double)dropped / (STEPS * BATCH), deviation = sqrt(0.25 * 0.75 / (STEPS * BATCH));
    assert_true(fabs(share - 0.25) < 4 * deviation);
    fixture_fini(&f);
}

/* Offset noise: the mean over a picture has variance offset^2 + 1/pixels; perturbation shows in x_t alone. */
static void test_noise(void **state)
{
    (void)state;
    enum { BATCH = 512 };
    fixture f;
    fixture_init(&f, &(fixture_wish){ 0 });
    f.params.batch_size = f.params.micro_batch = BATCH;
    f.params.objective.noise_offset = 0.5;
    f.params.objective.input_perturbation = 0.4;
    fixture_start(&f);
    dn_trainer *t = f.trainer;
    t->run = (dn_run){ .lowered = t->net.lowered, .arena = t->arena, .n = BATCH };
    dn_feed_train(t, 0, BATCH);
    double means = 0, perturbed = 0;
    for (int row = 0; row < BATCH; row++) {
        const float *noise = t->feed.noise + row * t->row, *x0 = t->feed.x0 + row * t->row;
        const float *x = dn_place_at(&t->run, t->net.ports.x, row), *target = dn_place_at(&t->run, t->net.target, row);
        double mean = 0, a = t->levels.alpha[t->feed.t[row]], s = t->levels.sigma[t->feed.t[row]];
        for (int64_t i = 0; i < t->row; i++) {
            mean += noise[i] / (double)t->row;
            double extra = (x[i] - a * x0[i]) / s - noise[i];
            perturbed += extra * extra / (double)(BATCH * t->row);
            assert_true(target[i] == noise[i]);
        }
        means += mean * mean / BATCH;
    }
    double want = 0.25 + 1.0 / (double)t->row;
    assert_true(fabs(means / want - 1) < 4 * sqrt(2.0 / BATCH));
    assert_true(fabs(perturbed / 0.16 - 1) < 0.05);
    fixture_fini(&f);
}

/* ---- learning ---- */

static double mean_loss(dn_trainer *t, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += fixture_steps(t, 1, 0).loss / n;
    return sum;
}

/* Each prediction, weighting and loss trains: the loss falls. */
static void test_learning(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        fixture f;
        fixture_init(&f, &(fixture_wish){ .scheduler = k == DN_PREDICT_FLOW
                                                           ? "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}"
                                                           : NULL });
        f.params.batch_size = 16;
        f.params.steps = 200;
        f.params.optimizer.lr = 3e-3;
        f.params.objective.prediction = k;
        f.params.objective.loss = k % 3;
        f.params.objective.weighting = k == DN_PREDICT_V ? DN_WEIGHT_MIN_SNR : DN_WEIGHT_UNIFORM;
        f.params.objective.low_discrepancy = true;
        fixture_start(&f);
        double first = mean_loss(f.trainer, 8);
        mean_loss(f.trainer, 80);
        double last = mean_loss(f.trainer, 8);
        if (!(last < 0.9 * first))
            fail_msg("prediction %d: loss %.4f at first, %.4f at last", k, first, last);
        fixture_fini(&f);
    }
}

static void test_evaluation(void **state)
{
    (void)state;
    fixture f;
    fixture_init(&f, &(fixture_wish){ .images = 100 });
    f.params.eval_fraction = 0.22;
    f.params.micro_batch = 4;
    fixture_start(&f);
    dn_eval_report a = { 0 }, b = { 0 };
    dn_error err = { 0 };
    int rc, segments = 0;
    assert_int_equal(dn_trainer_eval_some(f.trainer, 0, &a, &err), 0);
    while ((rc = dn_trainer_eval_some(f.trainer, 1e-6, &b, &err)) == 1) {
        assert_false(dn_trainer_at_boundary(f.trainer));
        segments++;
    }
    assert_int_equal(rc, 0);
    assert_true(segments > 20);
    assert_int_equal(a.n, 22);
    assert_memory_equal(&a, &b, sizeof a);
    double sum = 0;
    for (int i = 0; i < DN_EVAL_BUCKETS; i++)
        sum += a.bucket[i] * (i < 22 % 8 ? 3 : 2) / 22;
    assert_true(fabs(sum - a.loss) < 1e-6 * a.loss);
    fixture_steps(f.trainer, 15, 0);
    assert_int_equal(dn_trainer_eval_some(f.trainer, 0, &b, &err), 0);
    assert_true(b.loss < a.loss);
    fixture_fini(&f);
}

/* A part too small for an image is one image: an evaluation that was asked for takes place. */
static void test_small_evaluation(void **state)
{
    (void)state;
    fixture f;
    fixture_init(&f, &(fixture_wish){ .images = 40 });
    f.params.eval_fraction = 0.02;
    fixture_start(&f);
    dn_eval_report r = { 0 };
    dn_error err = { 0 };
    assert_int_equal(dn_trainer_eval_some(f.trainer, 0, &r, &err), 0);
    assert_int_equal(r.n, 1);
    assert_true(r.loss > 0 && r.loss == r.bucket[0]);
    fixture_fini(&f);
}

/* ---- what is refused ---- */

static void refuse(fixture *f, const fixture_wish *w, void (*change)(dn_train_params *p), int code, const char *param)
{
    fixture_init(f, w);
    if (change)
        change(&f->params);
    dn_error err = { 0 };
    int rc = dn_train_plan_make(&f->plan, f->device, f->model, f->data, &f->params, 0, &err);
    if (rc != code || strcmp(err.param, param))
        fail_msg("plan gave %s, param \"%s\": %s; expected %s, \"%s\"", dn_error_name(rc), err.param, err.message,
                 dn_error_name(code), param);
    fixture_fini(f);
}

static void bad_batch(dn_train_params *p) { p->batch_size = 0; }
static void bad_micro(dn_train_params *p) { p->micro_batch = 3; }
static void bad_lr(dn_train_params *p) { p->optimizer.lr = NAN; }
static void bad_beta(dn_train_params *p) { p->optimizer.beta2 = 1; }
static void bad_kind(dn_train_params *p) { p->lr_schedule.kind = 6; }
static void bad_warmup(dn_train_params *p) { p->lr_schedule.warmup_steps = 21; }
static void bad_augment(dn_train_params *p)
{
    p->n_augment = 1;
    p->augment[0] = (dn_augment){ DN_AUG_FLIP, 1.5, 0 };
}
static void bad_size(dn_train_params *p) { p->height = p->width = 16; }
static void flow(dn_train_params *p) { p->objective.prediction = DN_PREDICT_FLOW; }
static void steep(dn_train_params *p)
{
    p->objective.timesteps = DN_TIMESTEPS_MODE;
    p->objective.timesteps_scale = 1.8;
}
static void drop(dn_train_params *p) { p->objective.label_dropout = 0.1; }
static void hold_all(dn_train_params *p) { p->eval_fraction = 0.95; }
static void variational(dn_train_params *p) { p->objective.vlb_weight = 0.5; }

static void test_refusals(void **state)
{
    (void)state;
    fixture f;
    const fixture_wish none = { 0 };
    refuse(&f, &none, bad_batch, DN_E_RANGE, "batch_size");
    refuse(&f, &none, bad_micro, DN_E_INVALID, "micro_batch");
    refuse(&f, &none, bad_lr, DN_E_RANGE, "optimizer.lr");
    refuse(&f, &none, bad_beta, DN_E_RANGE, "optimizer.betas");
    refuse(&f, &none, bad_kind, DN_E_RANGE, "lr_schedule.kind");
    refuse(&f, &none, bad_warmup, DN_E_RANGE, "lr_schedule.warmup_steps");
    refuse(&f, &none, bad_augment, DN_E_RANGE, "augment");
    refuse(&f, &none, bad_size, DN_E_IMPOSSIBLE, "height");
    refuse(&f, &none, flow, DN_E_IMPOSSIBLE, "objective.prediction");
    refuse(&f, &none, steep, DN_E_RANGE, "objective.timesteps_scale");
    refuse(&f, &none, hold_all, DN_E_RANGE, "eval_fraction");
    refuse(&f, &(fixture_wish){ .config = "{\"time_embedding_type\":\"learned\",\"num_train_timesteps\":100}" }, NULL,
           DN_E_IMPOSSIBLE, "model");
    refuse(&f, &none, variational, DN_E_IMPOSSIBLE, "objective.vlb_weight");
    refuse(&f, &(fixture_wish){ .extra = "{}" }, drop, DN_E_IMPOSSIBLE, "objective.label_dropout");
    refuse(&f, &(fixture_wish){ .extra = "{}", .classes = -1 }, NULL, DN_E_INVALID, "dataset");
    refuse(&f, &(fixture_wish){ .classes = 6 }, NULL, DN_E_RANGE, "dataset");
    refuse(&f, &(fixture_wish){ .scheduler = "{\"_class_name\":\"DDIMScheduler\",\"rescale_betas_zero_snr\":true}" },
           NULL, DN_E_IMPOSSIBLE, "objective.prediction");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_micro_batches),
        cmocka_unit_test_setup_teardown(test_resume, make_path, remove_path),
        cmocka_unit_test_setup_teardown(test_snapshot_in_pieces, make_path, remove_path),
        cmocka_unit_test_setup_teardown(test_damaged_checkpoints, make_path, remove_path),
        cmocka_unit_test_setup_teardown(test_foreign_checkpoints, make_path, remove_path),
        cmocka_unit_test_setup_teardown(test_check, make_path, remove_path),
        cmocka_unit_test_setup_teardown(test_check_finds, make_path, remove_path),
        cmocka_unit_test_setup_teardown(test_trace, make_path, remove_path),
        cmocka_unit_test(test_nan_guard),
        cmocka_unit_test(test_loss_scale),
        cmocka_unit_test(test_label_dropout),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_learning),
        cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_small_evaluation),
        cmocka_unit_test(test_refusals),
    };
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("test_threads"); /* the others have one */
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
