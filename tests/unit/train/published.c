/* published.c - models made, trained and published; plans and what is really handed out. With a stored dataset and its
 * reader. */
#include "train_internal.h"
#include <jansson.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/image.h>
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], path[160], data_path[160];

/* ---- what the allocator hands out ---- */

static size_t handed_out, handed_most; /* now; the most since it was last set */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void __wrap_free(void *p);

/* Of large blocks what was asked for: the C library maps an aligned one with room to spare that nobody touches. */
enum { LARGE = 1 << 16, LARGE_MAX = 4096 };
static struct {
    void *p;
    size_t n;
} large[LARGE_MAX];
static pthread_mutex_t large_lock = PTHREAD_MUTEX_INITIALIZER;

static size_t *large_size(void *p)
{
    for (int i = 0; i < LARGE_MAX; i++)
        if (large[i].p == p) {
            large[i].p = NULL;
            return &large[i].n;
        }
    return NULL;
}

static void *count(void *p, size_t n)
{
    if (!p)
        return NULL;
    pthread_mutex_lock(&large_lock);
    for (int i = 0; i < LARGE_MAX && n >= LARGE; i++)
        if (!large[i].p) {
            large[i].p = p;
            large[i].n = n;
            break;
        }
    handed_out += n >= LARGE ? n : malloc_usable_size(p);
    handed_most = handed_out > handed_most ? handed_out : handed_most;
    pthread_mutex_unlock(&large_lock);
    return p;
}

static void uncount(void *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&large_lock);
    size_t *n = large_size(p);
    handed_out -= n ? *n : malloc_usable_size(p);
    pthread_mutex_unlock(&large_lock);
}

void *__wrap_malloc(size_t n) { return count(__real_malloc(n), n); }
void *__wrap_calloc(size_t n, size_t size) { return count(__real_calloc(n, size), n * size); }
void *__wrap_aligned_alloc(size_t align, size_t n) { return count(__real_aligned_alloc(align, n), n); }
void *__wrap_realloc(void *p, size_t n)
{
    uncount(p);
    return count(__real_realloc(p, n), n);
}
void __wrap_free(void *p)
{
    uncount(p);
    __real_free(p);
}

/* ---- a disk that fails at the n-th call ---- */

static int calls_left = -1; /* -1: it never fails */
ssize_t __real_write(int fd, const void *data, size_t n);
int __real_fsync(int fd);
int __real_rename(const char *from, const char *to);
ssize_t __wrap_write(int fd, const void *data, size_t n);
int __wrap_fsync(int fd);
int __wrap_rename(const char *from, const char *to);

static bool fails(int with)
{
    if (calls_left < 0 || calls_left--)
        return false;
    errno = with;
    return true;
}
ssize_t __wrap_write(int fd, const void *data, size_t n) { return fails(ENOSPC) ? -1 : __real_write(fd, data, n); }
int __wrap_fsync(int fd) { return fails(EIO) ? -1 : __real_fsync(fd); }
int __wrap_rename(const char *from, const char *to) { return fails(EIO) ? -1 : __real_rename(from, to); }

/* ---- a stored dataset of grey pictures ---- */

static int remove_one(const char *name, const struct stat *st, int kind, struct FTW *where)
{
    (void)st, (void)kind, (void)where;
    return remove(name);
}

static int set_up(void **state)
{
    (void)state;
    enum { N = 96, SIDE = 28 };
    strcpy(folder, "/tmp/denoised-published-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/model", folder);
    snprintf(data_path, sizeof data_path, "%s/data", folder);
    char file[160];
    snprintf(file, sizeof file, "%s/pictures.safetensors", folder);
    static float pictures[N * SIDE * SIDE];
    static int64_t labels[N];
    for (int i = 0; i < N * SIDE * SIDE; i++)
        pictures[i] = 0.5f + 0.5f * sinf((float)(i % 97) * 0.1f + (float)(i / (SIDE * SIDE)));
    for (int i = 0; i < N; i++)
        labels[i] = i % 10;
    const dn_st_tensor t[] = { { "images", "F32", 4, { N, SIDE, SIDE, 1 }, pictures, sizeof pictures },
                               { "labels", "I64", 1, { N }, labels, sizeof labels } };
    uint8_t *bytes;
    size_t n;
    dn_error err = { 0 };
    assert_int_equal(dn_st_encode(&bytes, &n, t, 2, &err), 0);
    FILE *f = fopen(file, "wb");
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    free(bytes);
    dn_import_report report = { 0 };
    if (dn_dataset_import(file, data_path, &(dn_import_params){ .threads = 1 }, &report, &err))
        fail_msg("%s: %s", err.param, err.message);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void clear_model(void) { nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

typedef struct {
    dn_device *device;
    dn_model *model;
    dn_dataset *data;
    dn_train_params params;
    dn_train_plan plan;
    dn_trainer *trainer;
} job;

static json_t *model_json(const char *name)
{
    char file[1024];
    snprintf(file, sizeof file, "%s/%s", MODEL_DIR, name);
    json_t *j = json_load_file(file, 0, NULL);
    assert_non_null(j);
    return j;
}

/* The bundled model's network with fresh weights, but for what `change` says. */
static dn_model *fresh_model(const char *change, const char *scheduler_change)
{
    json_t *config = model_json("unet/config.json"), *scheduler = model_json("scheduler/scheduler_config.json");
    json_t *extra = model_json("denoised.json"), *more = change ? json_loads(change, 0, NULL) : NULL;
    json_t *other = scheduler_change ? json_loads(scheduler_change, 0, NULL) : NULL;
    if (more)
        json_object_update(config, more);
    if (other)
        json_object_update(scheduler, other);
    dn_model *m = NULL;
    dn_error err = { 0 };
    if (dn_model_init(&m, config, scheduler, extra, 42, &err))
        fail_msg("%s: %s", err.param, err.message);
    json_decref(config);
    json_decref(scheduler);
    json_decref(extra);
    json_decref(more);
    json_decref(other);
    return m;
}

static void prepare(job *j, const char *change, const char *scheduler_change)
{
    dn_error err = { 0 };
    *j = (job){ .model = fresh_model(change, scheduler_change) };
    if (dn_device_open(&j->device, "cpu:0", &err) || dn_dataset_open(&j->data, data_path, &err))
        fail_msg("%s", err.message);
    dn_train_params_init(&j->params);
    j->params.batch_size = 4;
    j->params.steps = 10;
}

static void start(job *j)
{
    dn_error err = { 0 };
    if (dn_train_plan_make(&j->plan, j->device, j->model, j->data, &j->params, 0, &err) ||
        dn_trainer_new(&j->trainer, j->device, j->model, j->data, &j->params, &j->plan, &err))
        fail_msg("%s: %s", err.param, err.message);
}

static void step(job *j)
{
    dn_train_report r;
    dn_error err = { 0 };
    if (dn_trainer_some(j->trainer, 0, &r, &err))
        fail_msg("%s", err.message);
    assert_false(r.skipped);
}

static void end(job *j)
{
    dn_trainer_free(j->trainer);
    dn_dataset_close(j->data);
    dn_model_free(j->model);
    dn_device_close(j->device);
}

/* ---- bytes ---- */

enum { PICTURES = 10 };

static void is_planned(const char *what, size_t plan, size_t real)
{
    double off = (double)real / (double)plan - 1;
    print_message("%s: plan %.2f MB, handed out %.2f MB (%+.2f%%)\n", what, (double)plan * 1e-6, (double)real * 1e-6,
                  100 * off);
    assert_true(fabs(off) < 0.02);
}

static void check_bytes(enum dn_precision precision, enum dn_optimizer_kind kind, double eval_fraction)
{
    job j;
    prepare(&j, NULL, NULL);
    j.params.batch_size = 64;
    j.params.micro_batch = 16;
    j.params.precision = precision;
    j.params.optimizer.kind = kind;
    j.params.eval_fraction = eval_fraction;
    dn_error err = { 0 };
    if (dn_train_plan_make(&j.plan, j.device, j.model, j.data, &j.params, 0, &err))
        fail_msg("%s", err.message);
    const dn_train_plan *p = &j.plan;
    assert_int_equal(p->total, p->weights + p->gradients + p->moments + p->ema + p->arena + p->data + p->copies);
    size_t before = handed_out, lasting = p->total - p->copies;
    assert_int_equal(dn_trainer_new(&j.trainer, j.device, j.model, j.data, &j.params, &j.plan, &err), 0);
    is_planned("trainer", lasting, handed_out - before);
    assert_int_equal(dn_trainer_bytes(j.trainer), lasting);
    end(&j);
}

static dn_snapshot *copy_of(dn_trainer *t, bool all)
{
    dn_snapshot *s = NULL;
    dn_error err = { 0 };
    if (dn_trainer_snapshot(&s, t, all, 0, &err))
        fail_msg("%s", err.message);
    return s;
}

/* A preview as the daemon makes it: model and network of the EMA, and a row of each of its samples. Frees the copy. */
static void preview(job *j, dn_snapshot *ema, const dn_sample_params *like)
{
    dn_model *m = NULL;
    dn_net *net = NULL;
    dn_batch *batch = NULL;
    dn_sample *sample[PICTURES];
    dn_row row[PICTURES];
    dn_error err = { 0 };
    int rc = dn_snapshot_model(&m, ema, &err);
    dn_snapshot_free(ema);
    rc = rc ? rc : dn_net_new(&net, j->device, m, like->height, like->width, 0, &err);
    for (int k = 0; k < PICTURES && !rc; k++) {
        rc = dn_sample_new(&sample[k], j->device, like, &err);
        row[k] = (dn_row){ sample[k], DN_ROW_COND };
    }
    rc = rc ? rc : dn_batch_begin(&batch, j->device, net, row, PICTURES, &err);
    if (rc || dn_batch_some(batch, 0))
        fail_msg("%s", err.message);
    dn_batch_free(batch);
    for (int k = 0; k < PICTURES; k++)
        dn_sample_free(sample[k]);
    dn_net_free(net);
    dn_model_free(m);
}

/* The most that is handed out at once while steps are made, a checkpoint is written and a preview is made is what the
 * plan says, copies and all. */
static void check_copies(enum dn_optimizer_kind kind, int batch_size)
{
    job j;
    char file[160];
    dn_table table = { 0 };
    dn_error err = { 0 };
    prepare(&j, NULL, NULL);
    j.params.optimizer.kind = kind;
    j.params.batch_size = j.params.micro_batch = batch_size;
    assert_int_equal(dn_table_plan_denoise(&table, 0, 1, &err), 0);
    const dn_model_info *i = &j.model->info;
    const dn_sample_params like = { .table = &table,
                                    .table_shared = true,
                                    .height = i->height,
                                    .width = i->width,
                                    .channels = i->channels,
                                    .out_channels = i->out_channels,
                                    .label = 1,
                                    .label_b = -1,
                                    .null_label = i->null_label,
                                    .temperature = 1 };
    j.params.preview_bytes = PICTURES * dn_sample_bytes(&like);
    size_t before = handed_most = handed_out;
    start(&j);
    const dn_train_plan *p = &j.plan;
    assert_int_equal(p->copies, p->weights + p->moments + p->ema);
    assert_true(p->previews >= 2 * p->weights + j.params.preview_bytes);
    size_t planned = handed_most = handed_out; /* what planning itself took is gone */
    step(&j);
    assert_true(handed_most - planned < p->total / 100);
    dn_snapshot *ema = copy_of(j.trainer, false), *all = copy_of(j.trainer, true);
    snprintf(file, sizeof file, "%s/checkpoint", folder);
    preview(&j, ema, &like);
    if (dn_snapshot_write(all, file, &err))
        fail_msg("%s", err.message);
    is_planned("all of a job", p->total, handed_most - before);
    dn_snapshot_free(all);
    dn_device_trim(j.device, 0);
    dn_table_fini(&table);
    end(&j);
    remove(file);
}

static void test_copies(void **state)
{
    (void)state;
    check_copies(DN_ADAMW, 16);
    check_copies(DN_SGD, 2);
}

static void test_bytes(void **state)
{
    (void)state;
    check_bytes(DN_PRECISION_FP32, DN_ADAMW, 0);
    check_bytes(DN_PRECISION_BF16, DN_ADAMW, 0.25);
    check_bytes(DN_PRECISION_FP16, DN_SGD, 0);
}

static size_t total_within(job *j, size_t budget)
{
    dn_error err = { 0 };
    if (dn_train_plan_make(&j->plan, j->device, j->model, j->data, &j->params, budget, &err))
        fail_msg("%s", err.message);
    assert_true(!budget || j->plan.total <= budget);
    return j->plan.total;
}

static void test_budget(void **state)
{
    (void)state;
    job j;
    prepare(&j, NULL, NULL);
    j.params.batch_size = 24;
    size_t all = total_within(&j, 0);
    assert_int_equal(j.plan.micro_batch, 24);
    assert_int_equal(j.plan.n_recomputed, 0);
    total_within(&j, all - 1); /* the next divisor */
    assert_int_equal(j.plan.micro_batch, 12);
    j.params.micro_batch = 24; /* given: recompute instead */
    total_within(&j, all - (4 << 20));
    assert_int_equal(j.plan.micro_batch, 24);
    assert_true(j.plan.n_recomputed > 0);
    j.params.precision = DN_PRECISION_BF16;
    assert_true(total_within(&j, 0) < all);
    j.params.precision = DN_PRECISION_FP32;
    dn_error err = { 0 };
    size_t little = j.plan.total - j.plan.arena + (48 << 20);
    assert_int_equal(dn_train_plan_make(&j.plan, j.device, j.model, j.data, &j.params, little, &err), DN_E_MEMORY);
    assert_string_equal(err.param, "micro_batch");
    char number[32];
    snprintf(number, sizeof number, "%zu are allowed", little);
    assert_non_null(strstr(err.message, number));
    assert_non_null(strstr(err.message, "would fit"));
    assert_int_equal(dn_train_plan_make(&j.plan, j.device, j.model, j.data, &j.params, 1000, &err), DN_E_MEMORY);
    assert_non_null(strstr(err.message, "the budget"));
    end(&j);
}

/* Recomputing changes time and memory, not one bit. */
static void test_recomputing(void **state)
{
    (void)state;
    job a, b;
    prepare(&a, NULL, NULL);
    prepare(&b, NULL, NULL);
    start(&a);
    dn_error err = { 0 };
    a.params.micro_batch = b.params.micro_batch = 4;
    dn_train_plan whole;
    assert_int_equal(dn_train_plan_make(&whole, b.device, b.model, b.data, &b.params, 0, &err), 0);
    if (dn_train_plan_make(&b.plan, b.device, b.model, b.data, &b.params, whole.total - (2 << 20), &err) ||
        dn_trainer_new(&b.trainer, b.device, b.model, b.data, &b.params, &b.plan, &err))
        fail_msg("%s", err.message);
    assert_true(b.plan.n_recomputed > 0);
    step(&a);
    step(&b);
    assert_memory_equal(a.trainer->flat.weights, b.trainer->flat.weights,
                        sizeof(float) * (size_t)a.trainer->flat.count);
    end(&a);
    end(&b);
}

/* ---- models ---- */

static double deviation(const float *x, int64_t n, double *most)
{
    double sum = 0;
    *most = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i] * x[i] / (double)n;
        *most = fmax(*most, fabs((double)x[i]));
    }
    return sqrt(sum);
}

static void test_first_weights(void **state)
{
    (void)state;
    dn_model *m = fresh_model(NULL, NULL), *again = fresh_model(NULL, NULL);
    assert_string_equal(m->info.hash, again->info.hash);
    dn_program *p = dn_model_program(m, 28, 28);
    const dn_block *b = &p->block[0];
    for (int i = 0; i < b->n_params; i++) {
        const dn_param *q = &b->param[i];
        const float *x = m->weights + q->offset;
        int64_t n = dn_shape_count(&q->shape);
        double most, d = deviation(x, n, &most);
        const char *last = strrchr(q->name, '.');
        if (q->form != DN_PARAM_PLAIN) { /* uniform: bound over sqrt(3) */
            double bound = 1 / sqrt((double)(n / q->shape.dim[q->shape.rank - 1]));
            assert_true(most <= bound && most > 0.9 * bound);
            assert_true(n < 500 || fabs(d * sqrt(3) / bound - 1) < 0.1);
        } else if (q->shape.rank == 2)
            assert_true(fabs(d - 1) < 0.1);
        else if (strstr(q->name, "norm"))
            assert_true(fabs(d - !strcmp(last, ".weight")) < 1e-9);
        else
            assert_true(d > 0 && most < 1);
    }
    dn_program_free(p);
    dn_model_free(m);
    dn_model_free(again);
    json_t *bad = json_pack("{ss}", "_class_name", "Transformer");
    dn_error err = { 0 };
    assert_int_equal(dn_model_init(&m, bad, NULL, NULL, 1, &err), DN_E_UNSUPPORTED);
    assert_string_equal(err.param, "_class_name");
    json_decref(bad);
}

static char *hash_of_ema(dn_trainer *t, char *hash)
{
    dn_snapshot *s = NULL;
    dn_model *m = NULL;
    dn_error err = { 0 };
    if (dn_trainer_snapshot(&s, t, false, 0, &err) || dn_snapshot_model(&m, s, &err))
        fail_msg("%s", err.message);
    memcpy(hash, m->info.hash, 65);
    dn_model_free(m);
    dn_snapshot_free(s);
    return hash;
}

static void publish(dn_trainer *t)
{
    dn_snapshot *s = NULL;
    dn_error err = { 0 };
    if (dn_trainer_snapshot(&s, t, false, 0, &err) || dn_snapshot_publish(s, path, &err))
        fail_msg("%s", err.message);
    assert_int_equal(dn_snapshot_publish(s, path, &err), DN_E_INVALID); /* never over something */
    dn_snapshot_free(s);
}

static json_t *published_json(const char *name)
{
    char file[256];
    snprintf(file, sizeof file, "%s/%s", path, name);
    json_t *j = json_load_file(file, 0, NULL);
    assert_non_null(j);
    return j;
}

/* What is published loads again, as the same weights. */
static void test_publish(void **state)
{
    (void)state;
    static const char *const names[] = { "epsilon", "v_prediction", "sample" };
    for (int prediction = 0; prediction < 3; prediction++) {
        job j;
        char want[65];
        dn_error err = { 0 };
        prepare(&j, NULL, NULL);
        j.params.objective.prediction = prediction;
        start(&j);
        step(&j);
        publish(j.trainer);
        dn_model *m = NULL;
        if (dn_model_load(&m, path, &err))
            fail_msg("%s", err.message);
        assert_string_equal(m->info.hash, hash_of_ema(j.trainer, want));
        assert_string_not_equal(m->info.hash, j.model->info.hash);
        assert_int_equal(m->info.null_label, 10);
        assert_int_equal(m->info.n_labels, 10);
        assert_string_equal(m->info.pipeline, "DDPMPipeline");
        json_t *scheduler = published_json("scheduler/scheduler_config.json");
        assert_string_equal(json_string_value(json_object_get(scheduler, "prediction_type")), names[prediction]);
        json_decref(scheduler);
        dn_model_free(m);
        end(&j);
        clear_model();
    }
}

static int entries(const char *dir)
{
    DIR *d = opendir(dir);
    int n = 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* ---- a checkpoint published without a trainer ---- */

static void write_checkpoint(dn_trainer *t, const char *file)
{
    dn_snapshot *s = NULL;
    dn_error err = { 0 };
    if (dn_trainer_snapshot(&s, t, true, 0, &err) || dn_snapshot_write(s, file, &err))
        fail_msg("%s", err.message);
    dn_snapshot_free(s);
}

static int read_ema(dn_snapshot **s, const job *j, const char *file, dn_error *err)
{
    *err = (dn_error){ 0 };
    return dn_snapshot_read(s, fresh_model(NULL, NULL), j->data, &j->params, &j->plan, file, err);
}

static void assert_same_file(const char *a, const char *b, const char *name)
{
    static char text[2][12 << 20];
    const char *folders[] = { a, b };
    size_t n[2];
    for (int i = 0; i < 2; i++) {
        char file[256];
        snprintf(file, sizeof file, "%s/%s", folders[i], name);
        FILE *f = fopen(file, "rb");
        assert_non_null(f);
        n[i] = fread(text[i], 1, sizeof text[i], f);
        assert_in_range(n[i], 1, sizeof text[i] - 1);
        fclose(f);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(text[0], text[1], n[0]);
}

/* What is published of a file is, byte for byte, what is published of the trainer that wrote it; the EMA goes into the
 * memory of the model that is given: beside it there are a few buffers. */
static void check_read(enum dn_optimizer_kind kind)
{
    static const char *const names[] = { "model_index.json", "denoised.json", "unet/config.json",
                                         "scheduler/scheduler_config.json",
                                         "unet/diffusion_pytorch_model.safetensors" };
    job j;
    char file[160], other[160];
    dn_error err;
    dn_snapshot *s = NULL;
    prepare(&j, NULL, NULL);
    j.params.optimizer.kind = kind;
    j.params.objective.prediction = DN_PREDICT_V;
    start(&j);
    step(&j);
    step(&j);
    snprintf(file, sizeof file, "%s/checkpoint", folder);
    snprintf(other, sizeof other, "%s/other", folder);
    write_checkpoint(j.trainer, file);
    publish(j.trainer);
    dn_model *m = fresh_model(NULL, NULL);
    size_t before = handed_most = handed_out;
    if (dn_snapshot_read(&s, m, j.data, &j.params, &j.plan, file, &err))
        fail_msg("%s", err.message);
    assert_true(handed_most - before < (2 << 20) && m->info.bytes > (4 << 20));
    assert_int_equal(dn_snapshot_write(s, other, &err), DN_E_INTERNAL); /* it is no checkpoint */
    assert_int_equal(dn_snapshot_publish(s, other, &err), 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_same_file(path, other, names[i]);
    dn_snapshot_free(s);
    nftw(other, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    clear_model();
    remove(file);
    end(&j);
}

static void test_read(void **state)
{
    (void)state;
    check_read(DN_ADAMW);
    check_read(DN_SGD);
}

/* Damage at the places that a reader of another kind would step over: all blocks count, and the end. */
static void test_read_refuses(void **state)
{
    (void)state;
    job j;
    char file[160];
    dn_error err;
    dn_snapshot *s = NULL;
    prepare(&j, NULL, NULL);
    start(&j);
    snprintf(file, sizeof file, "%s/checkpoint", folder);
    assert_int_equal(read_ema(&s, &j, file, &err), DN_E_NOT_FOUND);
    write_checkpoint(j.trainer, file);
    job other = j;
    other.params.optimizer.lr *= 2;
    assert_int_equal(read_ema(&s, &other, file, &err), DN_E_INVALID);
    assert_string_equal(err.param, "optimizer.lr");
    other = j;
    strcpy(other.plan.numerics, "another");
    assert_int_equal(read_ema(&s, &other, file, &err), DN_E_INVALID);
    assert_string_equal(err.param, "numerics");
    dn_model *m = fresh_model("{\"block_out_channels\":[8,8,8],\"attention_head_dim\":8}", NULL);
    assert_int_equal(dn_snapshot_read(&s, m, j.data, &j.params, &j.plan, file, &err), DN_E_INVALID);
    assert_string_equal(err.param, "model");
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    for (int at = 1; at < 4; at++) { /* in each quarter */
        FILE *f = fopen(file, "r+b");
        fseek(f, st.st_size / 4 * at, SEEK_SET);
        int c = fgetc(f);
        fseek(f, st.st_size / 4 * at, SEEK_SET);
        fputc(c ^ 1, f);
        fclose(f);
        assert_int_equal(read_ema(&s, &j, file, &err), DN_E_FORMAT);
        f = fopen(file, "r+b");
        fseek(f, st.st_size / 4 * at, SEEK_SET);
        fputc(c, f);
        fclose(f);
    }
    assert_int_equal(read_ema(&s, &j, file, &err), 0);
    dn_snapshot_free(s);
    s = NULL;
    assert_int_equal(truncate(file, st.st_size - 1), 0);
    assert_int_equal(read_ema(&s, &j, file, &err), DN_E_FORMAT);
    assert_null(s);
    remove(file);
    end(&j);
}

/* Fail the n-th call of each write, for all n: the old file stays, nothing is left beside it, and the error says so. */
static void test_failing_disk(void **state)
{
    (void)state;
    job j;
    char file[160];
    dn_error err = { 0 };
    dn_snapshot *first = NULL, *second = NULL;
    prepare(&j, "{\"block_out_channels\":[8,8,8],\"attention_head_dim\":8}", NULL);
    start(&j);
    snprintf(file, sizeof file, "%s/checkpoint", folder);
    assert_int_equal(dn_trainer_snapshot(&first, j.trainer, true, 0, &err), 0);
    assert_int_equal(dn_snapshot_write(first, file, &err), 0);
    step(&j);
    assert_int_equal(dn_trainer_snapshot(&second, j.trainer, true, 0, &err), 0);
    int before = entries(folder), failures = 0;
    for (int n = 0;; n++) { /* the last call is the folder's fsync: the new file is there then */
        calls_left = n;
        int rc = dn_snapshot_write(second, file, &err);
        bool done = calls_left >= 0;
        calls_left = -1;
        assert_int_equal(entries(folder), before);
        if (done) {
            assert_int_equal(rc, 0);
            break;
        }
        assert_int_equal(rc, DN_E_IO);
        assert_int_equal(dn_trainer_restore(j.trainer, file, &err), 0);
        failures++;
    }
    assert_true(failures > 4);
    assert_int_equal(dn_trainer_step(j.trainer), 1);
    for (int n = failures = 0;; n++) {
        calls_left = n;
        int rc = dn_snapshot_publish(second, path, &err);
        bool done = calls_left >= 0;
        calls_left = -1;
        if (done) {
            assert_int_equal(rc, 0);
            break;
        }
        assert_int_equal(rc, DN_E_IO);
        if (access(path, F_OK)) /* all but the last: nothing is there */
            assert_int_equal(entries(folder), before);
        clear_model();
        failures++;
    }
    assert_true(failures > 12);
    clear_model();
    remove(file);
    dn_snapshot_free(first);
    dn_snapshot_free(second);
    end(&j);
}

/* ---- learned variance ---- */

static double cdf(double x) { return 0.5 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

/* The variational term of one element in nats, as IDDPM's gaussian_diffusion.py writes it. */
static double vlb(double t0, double mean, double lv, double x0, double mean_true, double lv_true)
{
    if (!t0)
        return 0.5 * (-1 + lv - lv_true + exp(lv_true - lv) + (mean_true - mean) * (mean_true - mean) * exp(-lv));
    double centered = x0 - mean, inv = exp(-0.5 * lv), up = cdf(inv * (centered + 1.0 / 255)),
           low = cdf(inv * (centered - 1.0 / 255));
    double mass = x0 < -0.999 ? up : x0 > 0.999 ? 1 - low : up - low;
    return -log(fmax(mass, 1e-12));
}

static void pick_timesteps(void *arg, const dn_trainer *t, int first, int n)
{
    (void)arg, (void)first;
    static const int at[] = { 0, 1, 300, 999 };
    for (int i = 0; i < n; i++) {
        t->feed.t[i] = at[i];
        t->feed.x0[i * t->row] = -1; /* both ends of the range */
        t->feed.x0[i * t->row + 1] = 1;
    }
}

/* One step at learning rate 0 gives the loss of a network whose output is read by the plain program. */
static void test_learned_variance(void **state)
{
    (void)state;
    job j;
    prepare(&j, "{\"out_channels\":2,\"block_out_channels\":[8,8,8],\"attention_head_dim\":8}",
            "{\"variance_type\":\"learned_range\"}");
    j.params.objective.vlb_weight = 0.7;
    j.params.optimizer.lr = 0;
    start(&j);
    dn_trainer *t = j.trainer;
    t->inject = pick_timesteps;
    dn_train_report r;
    dn_error err = { 0 };
    assert_int_equal(dn_trainer_some(t, 0, &r, &err), 0);
    /* The network alone on the same inputs. */
    float *x = malloc(sizeof(float) * (size_t)(4 * t->row));
    dn_program *p = dn_model_program(j.model, 28, 28);
    dn_lowered *l = NULL;
    assert_int_equal(dn_lower(&l, &dn_backend_ref, p, 4, &err), 0);
    dn_run run = {
        .lowered = l, .arena = aligned_alloc(64, l->arena_bytes), .block = { (const char *)j.model->weights }, .n = 4
    };
    dn_ports ports = dn_ports_find(l);
    for (int row = 0; row < 4; row++) {
        int s = t->feed.t[row];
        float *to = dn_place_at(&run, ports.x, row);
        for (int64_t i = 0; i < t->row; i++)
            to[i] = (float)(t->levels.alpha[s] * t->feed.x0[row * t->row + i] +
                            t->levels.sigma[s] * t->feed.noise[row * t->row + i]);
        dn_ports_put_time(&ports, 0, &run, row, (float)s);
        dn_ports_put_label(&ports, &run, row, t->feed.label[row], t->feed.label[row], 0);
        memcpy(x + row * t->row, to, sizeof *x * (size_t)t->row);
    }
    assert_int_equal(dn_run_some(&run, 0), 0);
    double want = 0;
    for (int row = 0; row < 4; row++) {
        int s = t->feed.t[row];
        const double *bar = t->levels.abar, beta = t->levels.beta[s], before = s ? bar[s - 1] : 1;
        int c = s ? s : 1;
        double lv_min = log((1 - bar[c - 1]) / (1 - bar[c]) * t->levels.beta[c]), lv_max = log(beta);
        double of_x0 = sqrt(before) * beta / (1 - bar[s]), of_x = sqrt(1 - beta) * (1 - before) / (1 - bar[s]);
        const float *out = dn_place_at(&run, ports.out, row);
        for (int64_t i = 0; i < t->row; i++) {
            double x0 = t->feed.x0[row * t->row + i], noise = t->feed.noise[row * t->row + i], xt = x[row * t->row + i];
            double eps = out[2 * i], f = (out[2 * i + 1] + 1) / 2, lv = f * lv_max + (1 - f) * lv_min;
            double guess = (xt - t->levels.sigma[s] * eps) / t->levels.alpha[s];
            double term = vlb(s == 0, of_x0 * guess + of_x * xt, lv, x0, of_x0 * x0 + of_x * xt, lv_min);
            want += ((eps - noise) * (eps - noise) + 0.7 * term / M_LN2) / (double)(4 * t->row);
        }
    }
    if (!(fabs(r.loss - want) < 2e-4 * want))
        fail_msg("hybrid loss %.7g, expected %.7g", r.loss, want);
    publish(t);
    json_t *scheduler = published_json("scheduler/scheduler_config.json");
    assert_string_equal(json_string_value(json_object_get(scheduler, "variance_type")), "learned_range");
    json_decref(scheduler);
    clear_model();
    free(run.arena);
    free(x);
    dn_lowered_free(l);
    dn_program_free(p);
    end(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_recomputing),
        cmocka_unit_test(test_first_weights),
        cmocka_unit_test(test_publish),
        cmocka_unit_test(test_learned_variance),
        cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_refuses),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
