/* forward.c - where a U-Net's forward pass spends its time on the CPU: per kind of step, or (-v) step by step.
 *
 *     forward [-bcsv] [-n rows] [-m rows_max] [-t threads] [-r repeats] config.json | resblock:CHANNELS:SIZE
 *
 * -b: a training step's program instead: forward, loss, gradients by all parameters. Steps of the ref backend say so.
 * resblock is a single ResNet block between maps of SIZE x SIZE. -s serves: lines "forward BATCH SECONDS" on stdin, as
 * forward_server takes them; what is timed begins and ends in the backend's own layout, as inside a network. -c takes
 * the calling thread's CPU time instead of the wall clock: with -t 1, what a busy machine allows to measure. Weights
 * are random: time does not depend on them. "eff" counts the FLOPs of direct convolution. */
#include "arch.h"
#include "backend.h"
#include "lower.h"
#include "nn.h"
#include "pool.h"
#include "ref.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef struct options {
    bool verbose, cpu_time, serve, backward;
    int rows, rows_max, threads, repeats;
    const char *config;
} options;

typedef struct timed {
    double ms, gflop;
} timed;

static double now_ms(const options *o)
{
    struct timespec t;
    clock_gettime(o->cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void die(const char *what, const char *message)
{
    fprintf(stderr, "%s: %s\n", what, message);
    exit(1);
}

static void *must(void *x)
{
    if (!x)
        die("forward", "out of memory");
    return x;
}

/* FLOPs of one row of an op. */
static double gflop_of(const dn_program *p, const dn_op *op)
{
    double out = op->out[0] == DN_NONE ? 0 : (double)dn_shape_count(&p->value[op->out[0]].shape);
    const dn_shape *b = op->n_in > 1 && op->in[1] != DN_NONE ? &p->value[op->in[1]].shape : NULL;
    if (op->kind == DN_OP_CONV2D || op->kind == DN_OP_MATMUL)
        return 2e-9 * out * (double)dn_shape_count(b) /
               (double)p->value[op->out[0]].shape.dim[p->value[op->out[0]].shape.rank - 1];
    if (op->kind == DN_OP_ATTENTION)
        return 4e-9 * out * (double)b->dim[0];
    return 0;
}

static const char *kind_of_fast(const dn_program *p, const dn_step *step)
{
    static char text[64];
    if (step->op_last < step->op_first)
        return "convert";
    const dn_op *op = &p->op[step->op_first];
    if (op->kind == DN_OP_CONV2D) {
        const dn_shape *w = &p->value[op->in[1]].shape, *y = &p->value[op->out[0]].shape;
        snprintf(text, sizeof text, "conv %dx%d/%d at %dx%d", (int)w->dim[0], (int)w->dim[1], op->attr.conv.stride,
                 (int)y->dim[0], (int)y->dim[1]);
        return text;
    }
    if (op->kind == DN_OP_COPY)
        return op->attr.copy.hint == DN_COPY_UPSAMPLE2 ? "upsample" : "copy";
    if (op->kind == DN_OP_MATMUL)
        return p->value[op->out[0]].shape.rank == 1 ? "linear of vectors" : "linear of tokens";
    return dn_op_name(op->kind);
}

static const char *kind_of(const dn_program *p, const dn_step *step)
{
    static char text[72];
    const char *kind = kind_of_fast(p, step);
    if (step->op_last < step->op_first || step->fn != dn_ref_step(p->op[step->op_first].kind))
        return kind;
    snprintf(text, sizeof text, "ref %s", kind);
    return text;
}

static void print_steps(const dn_program *p, const dn_lowered *l, const timed *t, int rows)
{
    for (int i = 0; i < l->n_steps; i++) {
        const dn_step *s = &l->step[i];
        const dn_op *op = &p->op[s->op_first < p->n_ops ? s->op_first : p->n_ops - 1];
        const dn_shape *x = &p->value[op->in[0]].shape, *y = op->out[0] == DN_NONE ? x : &p->value[op->out[0]].shape;
        printf("%4d %-20s %8.3f ms %7.1f GF/s  %lldx%lldx%lld -> %lldx%lldx%lld %s\n", i, kind_of(p, s), t[i].ms,
               t[i].gflop * rows / t[i].ms * 1e3, (long long)x->dim[0], (long long)x->dim[1], (long long)x->dim[2],
               (long long)y->dim[0], (long long)y->dim[1], (long long)y->dim[2], op->scope ? op->scope : "");
    }
}

static void print_kinds(const dn_program *p, const dn_lowered *l, const timed *t, int rows)
{
    char name[64][64];
    timed sum[64] = { 0 }, all = { 0 };
    int count[64] = { 0 }, n = 0;
    for (int i = 0; i < l->n_steps; i++) {
        const char *kind = kind_of(p, &l->step[i]);
        int k = 0;
        while (k < n && strcmp(name[k], kind))
            k++;
        if (k == n && n < 63)
            snprintf(name[n++], sizeof *name, "%s", kind);
        sum[k].ms += t[i].ms, sum[k].gflop += t[i].gflop * rows, count[k]++;
        all.ms += t[i].ms, all.gflop += t[i].gflop * rows;
    }
    for (int k = 0; k < n; k++)
        printf("%-24s %4d steps %9.3f ms %5.1f %% %8.1f GF/s\n", name[k], count[k], sum[k].ms, 100 * sum[k].ms / all.ms,
               sum[k].gflop / sum[k].ms * 1e3);
    printf("%-24s %4d steps %9.3f ms         %8.1f GF/s\n", "sum of the best", l->n_steps, all.ms,
           all.gflop / all.ms * 1e3);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

/* The mean squared error against another input, and its gradient by every parameter. */
static void differentiate(dn_program *p, const dn_arch_info *info)
{
    p->block[0].trains = true;
    dn_val target = dn_input(p, "target", DN_F32, dn_shape(info->height, info->width, info->out_channels));
    dn_val loss = dn_loss(p, DN_MSE, dn_find(p, "out"), target, 0);
    int n = p->block[0].n_params;
    dn_val *wrt = must(calloc((size_t)n, sizeof *wrt)), *grad = must(calloc((size_t)n, sizeof *grad));
    for (int v = 0; v < p->n_values; v++)
        if (p->value[v].kind == DN_PARAM)
            wrt[p->value[v].param] = v;
    dn_grad(p, loss, DN_NONE, wrt, n, grad);
    dn_output(p, "loss", loss);
    for (int i = 0; i < n; i++)
        dn_output(p, p->block[0].param[i].name, grad[i]);
    free(wrt);
    free(grad);
}

static dn_program *record(const char *path, bool backward)
{
    json_error_t why;
    dn_error err = { 0 };
    json_t *json = json_load_file(path, 0, &why);
    void *config;
    if (!json)
        die(path, why.text);
    if (dn_arch_unet2d.parse(&config, json, &err))
        die(path, err.message);
    dn_arch_info info;
    dn_arch_unet2d.describe(config, &info);
    dn_program *p = must(dn_program_new());
    dn_arch_unet2d.build(config, p, dn_block_add(p, "unet"), info.height, info.width);
    if (backward)
        differentiate(p, &info);
    if (p->error.code)
        die(path, p->error.message);
    dn_program_prune(p);
    free(config);
    json_decref(json);
    return p;
}

/* GroupNorm, SiLU, convolution, time, GroupNorm, SiLU, convolution, residual. */
static dn_program *record_resblock(int channels, int size)
{
    dn_program *p = must(dn_program_new());
    dn_nn m = { p, dn_block_add(p, "net") };
    dn_resnet r = { .channels = channels, .groups = 32, .eps = 1e-5, .act = DN_SILU, .output_scale_factor = 1 };
    dn_val x = dn_input(p, "x", DN_F32, dn_shape(size, size, channels));
    dn_val emb = dn_input(p, "emb", DN_F32, dn_shape(4 * channels));
    dn_output(p, "y", dn_nn_resnet(&m, "resblock", &r, x, dn_unary(p, DN_SILU, emb)));
    if (p->error.code)
        die("resblock", p->error.message);
    return p;
}

static float *random_block(const dn_block *b)
{
    size_t n = ((size_t)b->count + 31) / 16 * 16;
    float *x = must(aligned_alloc(64, n * sizeof *x));
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        x[i] = (float)(int32_t)state * 0x1p-31f * 0.05f;
    }
    return x;
}

static const void **pack(const dn_lowered *l, const float *block)
{
    const void **form = must(calloc((size_t)l->n_forms + 1, sizeof *form));
    double bytes = 0;
    for (int i = 0; i < l->n_forms; i++) {
        void *dst = must(aligned_alloc(64, (l->form[i].bytes + 63) / 64 * 64));
        dn_form_make(dst, &l->form[i], l->program, block);
        form[i] = dst;
        bytes += (double)l->form[i].bytes;
    }
    fprintf(stderr, "forms %.1f MB, arena %.1f MB, block %.1f MB\n", bytes / 1e6, (double)l->arena_bytes / 1e6,
            (double)l->program->block[0].count * 4e-6);
    return form;
}

/* The whole batch in chunks of rows_max, `repeats` times; the median and the best of whole passes, the best of
 * each step of a full chunk. */
static void measure(const options *o, const dn_lowered *l, dn_run *run, timed *t)
{
    double *whole = must(calloc((size_t)o->repeats, sizeof *whole));
    double *each = must(calloc((size_t)o->repeats * (size_t)l->n_steps, sizeof *each));
    for (int r = -1; r < o->repeats; r++) {
        double start = now_ms(o);
        for (int row = 0; row < o->rows; row += l->rows_max) {
            run->n = o->rows - row < l->rows_max ? o->rows - row : l->rows_max;
            run->next = 0;
            dn_run_some(run, 0);
        }
        if (r >= 0)
            whole[r] = now_ms(o) - start;
    }
    run->n = o->rows < l->rows_max ? o->rows : l->rows_max;
    for (int r = 0; r < o->repeats; r++)
        for (int i = 0; i < l->n_steps; i++) {
            double start = now_ms(o);
            l->step[i].fn(run, &l->step[i]);
            each[(size_t)i * (size_t)o->repeats + (size_t)r] = now_ms(o) - start;
        }
    for (int i = 0; i < l->n_steps; i++) {
        qsort(each + (size_t)i * (size_t)o->repeats, (size_t)o->repeats, sizeof *each, by_value);
        t[i].ms = each[(size_t)i * (size_t)o->repeats];
        const bool partial = i + 1 < l->n_steps && l->step[i + 1].op_first == l->step[i].op_first;
        for (int op = l->step[i].op_first; !partial && op <= l->step[i].op_last && op < l->program->n_ops; op++)
            t[i].gflop += op == l->step[i].op_first ? gflop_of(l->program, &l->program->op[op]) : 0;
    }
    double middle = median(whole, o->repeats); /* sorts */
    printf("%d rows in chunks of %d: median %.3f ms (%.3f a row), best %.3f ms (%.3f a row)\n", o->rows, l->rows_max,
           middle, middle / o->rows, whole[0], whole[0] / o->rows);
    free(whole);
    free(each);
}

/* ---- on request ---- */

/* A batch in chunks, each with an arena of its own that its input waits in. */
typedef struct chunks {
    dn_run *run;
    int n;
} chunks;

static void run_inner_steps(const dn_run *run)
{
    for (int i = 0; i < run->lowered->n_steps; i++) {
        const dn_step *s = &run->lowered->step[i];
        if (s->op_first <= s->op_last) /* no conversion */
            s->fn(run, s);
    }
}

static void chunk_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const chunks *c = arg;
    for (int64_t i = from; i < to; i++)
        run_inner_steps(&c->run[i]);
}

/* As the device does: with a chunk for each thread, each takes its own. */
static void run_chunks(const chunks *c, dn_pool *pool)
{
    const bool apart = c->n >= dn_pool_threads(pool);
    for (int i = 0; i < c->n; i++)
        c->run[i].pool = apart ? NULL : pool;
    dn_pool_run(apart ? pool : NULL, chunk_task, (void *)c, c->n, 1);
}

static chunks make_chunks(const dn_run *like, int rows)
{
    const dn_lowered *l = like->lowered;
    chunks c = { .n = (rows + l->rows_max - 1) / l->rows_max };
    c.run = must(calloc((size_t)c.n, sizeof *c.run));
    for (int i = 0; i < c.n; i++) {
        c.run[i] = *like;
        c.run[i].n = rows - i * l->rows_max < l->rows_max ? rows - i * l->rows_max : l->rows_max;
        c.run[i].arena = must(aligned_alloc(64, l->arena_bytes + 64));
        for (size_t k = 0; k < l->arena_bytes / sizeof(float); k++)
            ((float *)c.run[i].arena)[k] = (float)(k % 1999) * 1e-3f - 1;
        dn_run_some(&c.run[i], 0);
    }
    return c;
}

static void serve(const options *o, const dn_run *like)
{
    char line[128];
    int rows;
    double seconds;
    while (fgets(line, sizeof line, stdin) && sscanf(line, "forward %d %lf", &rows, &seconds) == 2) {
        chunks c = make_chunks(like, rows);
        double end = now_ms(o) + seconds * 1e3, start, ms;
        const char *before = "R[";
        do {
            start = now_ms(o);
            run_chunks(&c, like->pool);
            ms = now_ms(o);
            printf("%s%.4f", before, ms - start);
            before = ",";
        } while (ms < end);
        printf("]\n");
        fflush(stdout);
        for (int i = 0; i < c.n; i++)
            free(c.run[i].arena);
        free(c.run);
    }
}

static options parse(int argc, char **argv)
{
    options o = { .rows = 4, .threads = 2, .repeats = 9 };
    for (int c; (c = getopt(argc, argv, "bcsvn:m:t:r:")) != -1;)
        switch (c) {
        case 'b':
            o.backward = true;
            break;
        case 'c':
            o.cpu_time = true;
            break;
        case 's':
            o.serve = true;
            break;
        case 'v':
            o.verbose = true;
            break;
        case 'n':
            o.rows = atoi(optarg);
            break;
        case 'm':
            o.rows_max = atoi(optarg);
            break;
        case 't':
            o.threads = atoi(optarg);
            break;
        case 'r':
            o.repeats = atoi(optarg);
            break;
        default:
            exit(2);
        }
    if (optind + 1 != argc || o.rows < 1 || o.threads < 1 || o.repeats < 1)
        die("usage",
            "forward [-bcsv] [-n rows] [-m rows_max] [-t threads] [-r repeats] config.json | resblock:CHANNELS:SIZE");
    o.config = argv[optind];
    return o;
}

static void report(const options *o, const dn_program *p, const dn_lowered *l, dn_run *run)
{
    timed *t = must(calloc((size_t)l->n_steps, sizeof *t));
    measure(o, l, run, t);
    int chunk = o->rows < l->rows_max ? o->rows : l->rows_max;
    if (o->verbose)
        print_steps(p, l, t, chunk);
    print_kinds(p, l, t, chunk);
    free(t);
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    int channels, size;
    bool resblock = sscanf(o.config, "resblock:%d:%d", &channels, &size) == 2;
    dn_program *p = resblock ? record_resblock(channels, size) : record(o.config, o.backward);
    dn_lowered *l;
    dn_error err = { 0 };
    if (dn_lower(&l, &dn_backend_cpu, p, o.rows_max ? o.rows_max : dn_cpu_rows_default(p), &err))
        die(o.config, err.message);
    float *block = random_block(&p->block[0]);
    const void **form = pack(l, block);
    dn_run run = { .lowered = l,
                   .arena = must(aligned_alloc(1 << 21, (l->arena_bytes + (1 << 21)) >> 21 << 21)),
                   .block = { (char *)block },
                   .form = form,
                   .pool = o.threads > 1 ? must(dn_pool_new(o.threads, NULL)) : NULL };
    (void)madvise(run.arena, l->arena_bytes, MADV_HUGEPAGE); /* as a device's and a trainer's are */
    memset(run.arena, 0, l->arena_bytes);
    if (o.serve)
        serve(&o, &run);
    else
        report(&o, p, l, &run);
    for (int i = 0; i < l->n_forms; i++)
        free((void *)form[i]);
    free(form);
    free(block);
    free(run.arena);
    dn_pool_free(run.pool);
    dn_lowered_free(l);
    dn_program_free(p);
    return 0;
}
