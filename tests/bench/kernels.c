/* kernels.c - times every convolution kernel on the layers that matter. Run by hand; never a test.
 *
 *     kernels [-t threads] [-n rows] [-r rounds] [-c] [-f name] [-l layer]
 *
 * Kernels take turns within one round; a figure is the median over rounds, in effective GFLOP/s per thread (the
 * operations of a direct convolution, so Winograd may pass the peak). The kernel that dn_cpu_conv_choose takes is
 * marked with *. -c walks through so many copies of the weights that they come from memory; -f runs one kernel only, -l
 * one layer, by its number in the list. */
#include "choose.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* clang-format off */
typedef struct layer { int C, K, H, k, stride; } layer;
static const layer layers[] = {
    {  64,  64, 28, 3, 1 }, { 128, 128, 14, 3, 1 }, { 256, 256,  7, 3, 1 }, { 128, 128, 32, 3, 1 }, { 256, 256, 16, 3, 1 },
    { 256, 256,  8, 3, 1 }, { 256, 256,  4, 3, 1 }, { 512, 512,  8, 3, 1 }, { 512, 512, 16, 3, 1 },
    {  32,  32, 28, 3, 1 }, {  64,  32, 28, 3, 1 }, {  96,  32, 28, 3, 1 }, {  32,  64, 14, 3, 1 }, {  64,  64, 14, 3, 1 },
    { 192,  64, 14, 3, 1 }, {  64, 128,  7, 3, 1 }, { 128, 128,  7, 3, 1 }, { 192, 128,  7, 3, 1 }, { 128, 128,  4, 3, 1 },
    {   1,  32, 28, 3, 1 }, {   3, 128, 32, 3, 1 }, {  32,   1, 28, 3, 1 }, { 128,   3, 32, 3, 1 },
    {  32,  32, 28, 3, 2 }, {  64,  64, 14, 3, 2 }, { 128, 128, 32, 3, 2 }, { 256, 256, 16, 3, 2 },
    {  96,  32, 28, 1, 1 }, { 128, 128,  7, 1, 1 }, { 256, 256, 16, 1, 1 }, { 256, 768, 16, 1, 1 }, {1152,4608, 16, 1, 1 },
};
/* clang-format on */
#define X(name) &dn_cpu_##name##_avx2, &dn_cpu_##name##_avx512,
static const dn_conv_kernel *const kernels[] = { DN_WINOGRADS(X) & dn_cpu_implicit, &dn_cpu_few_in, &dn_cpu_few_out,
                                                 &dn_cpu_pointwise };
#undef X
enum { LAYERS = sizeof layers / sizeof *layers, KERNELS = sizeof kernels / sizeof *kernels, ROUNDS_MAX = 1000 };
static const size_t cold_bytes = (size_t)256 << 20;

typedef struct setting {
    int threads, rows, rounds;
    bool cold;
    const char *only;
    int layer; /* -1: all */
} setting;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *fill(size_t floats)
{
    float *p = NULL;
    if (posix_memalign((void **)&p, 4096, floats * sizeof *p))
        exit(1);
    for (size_t i = 0; i < floats; i++)
        p[i] = (float)((i * 2654435761u >> 7) % 1000) * 1e-3f - 0.5f;
    return p;
}

static bool accepts(const dn_conv_kernel *k, const dn_conv_shape *s)
{
#define X(name) k == &dn_cpu_##name##_avx2 || k == &dn_cpu_##name##_avx512 ||
#define Y(name) k == &dn_cpu_##name##_avx512 ||
    if (DN_WINOGRADS(X) false)
        return s->kh == 3 && s->stride == 1 && (dn_cpu_has_avx512() || !(DN_WINOGRADS(Y) false));
#undef X
#undef Y
    return k == &dn_cpu_implicit || (k == &dn_cpu_few_in && s->C <= 4) || (k == &dn_cpu_few_out && s->K <= 7) ||
           (k == &dn_cpu_pointwise && s->kh == 1 && s->stride == 1);
}

/* One kernel on one layer: its call and its copies of the weights. */
typedef struct candidate {
    const dn_conv_kernel *kernel;
    dn_conv_call call;
    char *weights;
    size_t bytes;
    int copies, next;
    double seconds[ROUNDS_MAX];
} candidate;

static dn_rows rows_of(int n, int positions, int channels, bool dense)
{
    dn_rows r = { .plane = dense ? 0 : positions * 32 + 64, .pitch = channels * 4 };
    r.row_bytes = dense ? positions * r.pitch : (channels + 7) / 8 * r.plane;
    r.base = fill((size_t)n * (size_t)r.row_bytes / 4);
    return r;
}

static candidate *candidate_new(const dn_conv_kernel *k, const dn_conv_shape *s, const setting *set, dn_pool *pool)
{
    candidate *c = calloc(1, sizeof *c);
    dn_shape w = dn_shape(s->kh, s->kw, s->C, s->K);
    size_t count = (size_t)s->kh * s->kw * s->C * s->K;
    float *logical = fill(count), *bias = fill((size_t)(s->K + 15) / 16 * 16);
    c->kernel = k;
    c->bytes = k->form_key ? k->form_bytes(&w) : count * sizeof(float);
    c->bytes = (c->bytes + 63) / 64 * 64;
    c->copies = set->cold ? (int)(cold_bytes / c->bytes) + 1 : 1;
    c->weights = fill(c->bytes * c->copies / sizeof(float));
    for (int i = 0; i < c->copies; i++)
        if (k->form_key)
            k->pack(c->weights + i * c->bytes, logical, &w);
    free(logical);
    c->call = (dn_conv_call){ .shape = *s, .n = set->rows, .pool = pool, .epilogue = { .bias = bias, .scale = 1 } };
    c->call.x = rows_of(set->rows, s->H * s->W, s->C, k->dense_in);
    c->call.y = rows_of(set->rows, s->Ho * s->Wo, s->K, k->dense_out);
    c->call.workspace = fill(k->workspace_bytes(s, set->rows) / sizeof(float) + 1);
    return c;
}

static void candidate_free(candidate *c)
{
    free(c->weights);
    free((void *)c->call.epilogue.bias);
    free(c->call.x.base);
    free(c->call.y.base);
    free(c->call.workspace);
    free(c);
}

static double once(candidate *c, int calls)
{
    double t = now();
    for (int i = 0; i < calls; i++, c->next = (c->next + 1) % c->copies) {
        c->call.weights = c->weights + c->next * c->bytes;
        c->kernel->run(&c->call);
    }
    return (now() - t) / calls;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench(const layer *l, const setting *set, dn_pool *pool)
{
    const int pad = l->k / 2, out = (l->H + 2 * pad - l->k) / l->stride + 1;
    dn_conv_shape s = { l->C, l->K, l->H, l->H, out, out, l->k, l->k, l->stride, pad, pad };
    const double flops = 2.0 * set->rows * out * out * l->k * l->k * l->C * l->K;
    candidate *c[KERNELS];
    int n = 0;
    for (int i = 0; i < KERNELS; i++)
        if (accepts(kernels[i], &s) && (!set->only || !strcmp(set->only, kernels[i]->name)))
            c[n++] = candidate_new(kernels[i], &s, set, pool);
    const int calls = flops < 2e7 ? (int)(2e7 / flops) + 1 : 1;
    for (int r = -2; r < set->rounds; r++)
        for (int i = 0; i < n; i++)
            c[i]->seconds[r < 0 ? 0 : r] = once(c[i], calls);
    printf("%4d->%-4d @%-2d %dx%d/%d n%-2d", l->C, l->K, l->H, l->k, l->k, l->stride, set->rows);
    for (int i = 0; i < n; i++) {
        qsort(c[i]->seconds, set->rounds, sizeof(double), by_value);
        double seconds = c[i]->seconds[set->rounds / 2];
        printf("  %s%s %.0f (%.3f ms)", c[i]->kernel->name, c[i]->kernel == dn_cpu_conv_choose(&s, DN_FORM_KEPT) ? "*" : "",
               flops / seconds / set->threads * 1e-9, seconds * 1e3);
        candidate_free(c[i]);
    }
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    setting set = { .threads = 1, .rows = 1, .rounds = 41, .layer = -1 };
    for (int o; (o = getopt(argc, argv, "t:n:r:cf:l:")) != -1;) {
        /* clang-format off */
        switch (o) {
        case 't': set.threads = atoi(optarg); break;
        case 'n': set.rows = atoi(optarg); break;
        case 'r': set.rounds = atoi(optarg); break;
        case 'c': set.cold = true; break;
        case 'f': set.only = optarg; break;
        case 'l': set.layer = atoi(optarg); break;
        default: return 2;
        }
        /* clang-format on */
    }
    if (set.threads < 1 || set.rows < 1 || set.rounds < 1 || set.rounds > ROUNDS_MAX || !dn_cpu_has_avx2())
        return 2;
    dn_pool *pool = dn_pool_new(set.threads, NULL);
    if (!pool)
        return 1;
    for (int i = 0; i < LAYERS; i++)
        if (set.layer < 0 || set.layer == i)
            bench(&layers[i], &set, pool);
    dn_pool_free(pool);
    return 0;
}
