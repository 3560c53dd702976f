/* gradients.c - times a training step's convolutions: forward, by the input, by the weights. Run by hand; never a test.
 *
 *     gradients [-n rows] [-r rounds] [-l layer] [-2]
 *
 * One thread; lower quartile over rounds of its CPU time, in effective GFLOP/s (the operations of a direct convolution).
 * All three take turns within one round. Weights are packed in every call, as for parameters that train. -2: the
 * kernels for AVX2 of the gradient by the weights. */
#include "choose.h"
#include "gradients.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* clang-format off */
typedef struct layer { int C, K, H, k, stride; } layer;
static const layer layers[] = {
    {  32,  32, 28, 3, 1 }, {  96,  32, 28, 3, 1 }, {  64,  64, 14, 3, 1 }, { 192,  64, 14, 3, 1 }, { 128, 128,  7, 3, 1 },
    { 128, 128, 32, 3, 1 }, { 256, 128, 32, 3, 1 }, { 256, 256, 16, 3, 1 }, { 512, 256, 16, 3, 1 }, { 256, 256,  8, 3, 1 },
    { 512, 256,  8, 3, 1 }, { 256, 256,  4, 3, 1 }, { 512, 256,  4, 3, 1 }, { 512, 512,  8, 3, 1 },
    {   1,  32, 28, 3, 1 }, {   3, 128, 32, 3, 1 }, {  32,   1, 28, 3, 1 }, { 128,   3, 32, 3, 1 },
    {  64,  64, 14, 3, 2 }, { 128, 128, 32, 3, 2 }, { 256, 256, 16, 3, 2 },
    {  96,  32, 28, 1, 1 }, { 128, 128,  7, 1, 1 }, { 256, 256, 16, 1, 1 }, { 512, 256, 16, 1, 1 },
};
/* clang-format on */
enum { LAYERS = sizeof layers / sizeof *layers, ROUNDS_MAX = 1000, PASSES = 3 };

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *fill(size_t floats)
{
    float *p = NULL;
    if (posix_memalign((void **)&p, 4096, (floats + 16) * sizeof *p))
        exit(1);
    (void)madvise(p, (floats + 16) * sizeof *p, MADV_HUGEPAGE); /* as a trainer's arena is */
    for (size_t i = 0; i < floats; i++)
        p[i] = (float)((i * 2654435761u >> 7) % 1000) * 1e-3f - 0.5f;
    return p;
}

static dn_rows rows_of(int n, int positions, int channels, bool dense)
{
    dn_rows r = { .plane = dense ? 0 : positions * 32 + 64, .pitch = channels * 4 };
    r.row_bytes = dense ? positions * r.pitch : (channels + 7) / 8 * r.plane;
    r.base = fill((size_t)n * (size_t)r.row_bytes / 4);
    return r;
}

/* A convolution and how its weights come to be: rotated or not, then packed. */
typedef struct pass {
    const dn_conv_kernel *kernel;
    dn_conv_call call;
    dn_shape weights;
    float *logical, *rotated, *form;
    bool rotate, strided;
} pass;

static pass pass_new(const dn_conv_shape *s, int n, bool rotate, const dn_conv_kernel *kernel)
{
    pass p = { .kernel = kernel, .rotate = rotate, .weights = dn_shape(s->kh, s->kw, s->C, s->K) };
    const size_t count = (size_t)dn_shape_count(&p.weights);
    p.logical = fill(count);
    p.rotated = fill(count);
    p.form = kernel->form_key ? fill(kernel->form_bytes(&p.weights) / 4) : NULL;
    p.call = (dn_conv_call){ .shape = *s, .n = n, .epilogue = { .scale = 1 } };
    p.call.x = rows_of(n, s->H * s->W, s->C, kernel->dense_in);
    p.call.y = rows_of(n, s->Ho * s->Wo, s->K, kernel->dense_out);
    p.call.workspace = fill(kernel->workspace_bytes(s, n) / 4);
    return p;
}

static void pass_run(pass *p)
{
    const float *plain = p->rotate ? p->rotated : p->logical;
    dn_shape forward = p->weights;
    forward.dim[2] = p->weights.dim[3];
    forward.dim[3] = p->weights.dim[2];
    if (p->rotate && p->kernel->rotated_key) {
        p->kernel->pack_rotated(p->form, p->logical, &forward);
    } else {
        if (p->rotate)
            dn_cpu_rotate(p->rotated, p->logical, &forward);
        if (p->form)
            p->kernel->pack(p->form, plain, &p->weights);
    }
    p->call.weights = p->form ? p->form : plain;
    if (p->strided)
        dn_cpu_implicit_dx(&p->call);
    else
        p->kernel->run(&p->call);
}

static void pass_free(pass *p)
{
    free(p->logical);
    free(p->rotated);
    free(p->form);
    free(p->call.x.base);
    free(p->call.y.base);
    free(p->call.workspace);
}

static pass by_input(const dn_conv_shape *s, int n)
{
    if (s->stride == 1) {
        dn_conv_shape dual = { s->K, s->C, s->Ho, s->Wo, s->H, s->W, s->kh, s->kw, 1, s->kh - 1 - s->pad_top,
                               s->kw - 1 - s->pad_left };
        return pass_new(&dual, n, true, dn_cpu_conv_choose(&dual, DN_FORM_EACH_RUN));
    }
    pass p = pass_new(s, n, true, &dn_cpu_implicit);
    p.strided = true;
    p.weights = dn_shape(s->kh, s->kw, s->K, s->C);
    free(p.form);
    free(p.call.workspace);
    p.form = fill(dn_cpu_implicit.form_bytes(&p.weights) / 4);
    p.call.workspace = fill(dn_cpu_implicit_dx_workspace(s, n) / 4);
    return p;
}

static dn_conv_dw_call by_weights(const dn_conv_shape *s, int n, const dn_conv_dw_kernel *kernel)
{
    return (dn_conv_dw_call){ .shape = *s,
                              .n = n,
                              .parts = 1,
                              .x = rows_of(n, s->H * s->W, s->C, false),
                              .dy = rows_of(n, s->Ho * s->Wo, s->K, false),
                              .dw = fill((size_t)s->kh * s->kw * s->C * s->K),
                              .workspace = fill(kernel->workspace_bytes(s, n) / 4) };
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static const dn_conv_dw_kernel *dw_kernel(const dn_conv_shape *s, bool avx2)
{
    const dn_conv_dw_kernel *k = dn_cpu_conv_dw_choose(s);
    if (avx2 && k == &dn_cpu_winograd4_dw_avx512)
        return &dn_cpu_winograd4_dw_avx2;
    return avx2 && k == &dn_cpu_winograd2_dw_avx512 ? &dn_cpu_winograd2_dw_avx2 : k;
}

static void bench(const layer *l, int n, int rounds, bool avx2)
{
    static double seconds[PASSES][ROUNDS_MAX];
    static const char *const names[PASSES] = { "forward", "by input", "by weights" };
    const int pad = l->k / 2, out = (l->H + 2 * pad - l->k) / l->stride + 1;
    const dn_conv_shape s = { l->C, l->K, l->H, l->H, out, out, l->k, l->k, l->stride, pad, pad };
    const double flops = 2.0 * n * out * out * l->k * l->k * l->C * l->K;
    const dn_conv_dw_kernel *dw = dw_kernel(&s, avx2);
    pass forward = pass_new(&s, n, false, dn_cpu_conv_choose(&s, DN_FORM_EACH_RUN)), input = by_input(&s, n);
    dn_conv_dw_call weights = by_weights(&s, n, dw);
    for (int r = -1; r < rounds; r++)
        for (int i = 0; i < PASSES; i++) {
            double t = cpu_seconds();
            if (i < 2)
                pass_run(i ? &input : &forward);
            else
                dw->run(&weights);
            seconds[i][r < 0 ? 0 : r] = cpu_seconds() - t;
        }
    printf("%4d->%-4d @%-2d %dx%d/%d n%-2d", l->C, l->K, l->H, l->k, l->k, l->stride, n);
    for (int i = 0; i < PASSES; i++) {
        qsort(seconds[i], (size_t)rounds, sizeof(double), by_value);
        double t = seconds[i][rounds / 4];
        printf("  %s %.0f (%.2f ms)", names[i], flops / t * 1e-9, t * 1e3);
    }
    printf("  %s\n", dw->name);
    fflush(stdout);
    pass_free(&forward);
    pass_free(&input);
    free(weights.x.base);
    free(weights.dy.base);
    free(weights.dw);
    free(weights.workspace);
}

int main(int argc, char **argv)
{
    int rows = 16, rounds = 15, only = -1;
    bool avx2 = false;
    for (int o; (o = getopt(argc, argv, "n:r:l:2")) != -1;) {
        /* clang-format off */
        switch (o) {
        case 'n': rows = atoi(optarg); break;
        case 'r': rounds = atoi(optarg); break;
        case 'l': only = atoi(optarg); break;
        case '2': avx2 = true; break;
        default: return 2;
        }
        /* clang-format on */
    }
    if (rows < 1 || rounds < 1 || rounds > ROUNDS_MAX || !dn_cpu_has_avx2())
        return 2;
    for (int i = 0; i < LAYERS; i++)
        if (only < 0 || only == i)
            bench(&layers[i], rows, rounds, avx2);
    return 0;
}
