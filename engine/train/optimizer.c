/* optimizer.c - flat passes over the blocks: clearing and norm of the gradient; AdamW, Adam or SGD with the EMA behind
 * it.
 *
 * A chunk is computed by one thread in one order, whatever the number of threads, and the chunks' sums are added in
 * order. */
#include "train_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t dn_flat_chunks(const dn_flat *f) { return (f->count + DN_FLAT_CHUNK - 1) / DN_FLAT_CHUNK; }

size_t dn_flat_bytes(int64_t count, enum dn_optimizer_kind kind, size_t *gradients, size_t *moments)
{
    size_t block = sizeof(float) * (size_t)count;
    dn_flat f = { .count = count };
    *gradients = block + sizeof(double) * (size_t)dn_flat_chunks(&f);
    *moments = kind == DN_SGD ? block : 2 * block;
    return block;
}

/* Runs of parameters with the same decay. */
static void make_segments(dn_flat *f, const dn_block *b)
{
    for (int i = 0; i < b->n_params; i++) {
        const dn_param *q = &b->param[i];
        int64_t to = i + 1 < b->n_params ? b->param[i + 1].offset : b->count;
        dn_segment *last = f->n_segments ? &f->segment[f->n_segments - 1] : NULL;
        if (last && last->decay == q->decay)
            last->to = to;
        else
            f->segment[f->n_segments++] = (dn_segment){ q->offset, to, q->decay };
    }
}

static float *zeros(int64_t count)
{
    float *x = aligned_alloc(64, (sizeof *x * (size_t)count + 63) / 64 * 64);
    if (x)
        memset(x, 0, sizeof *x * (size_t)count);
    return x;
}

int dn_flat_init(dn_flat *f, const dn_block *b, enum dn_optimizer_kind kind, dn_error *err)
{
    *f = (dn_flat){ .count = b->count };
    f->segment = calloc((size_t)b->n_params + 1, sizeof *f->segment);
    f->partial = calloc((size_t)dn_flat_chunks(f) + 1, sizeof *f->partial);
    float **block[] = { &f->weights, &f->gradient, &f->m, &f->ema, &f->v };
    bool all = f->segment && f->partial;
    for (int i = 0; i < (kind == DN_SGD ? 4 : 5); i++)
        all &= (*block[i] = zeros(f->count)) != NULL;
    if (!all) {
        dn_flat_fini(f);
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for blocks of %lld parameters", (long long)b->count);
    }
    make_segments(f, b);
    return 0;
}

void dn_flat_fini(dn_flat *f)
{
    free(f->weights);
    free(f->gradient);
    free(f->m);
    free(f->v);
    free(f->ema);
    free(f->partial);
    free(f->segment);
    *f = (dn_flat){ 0 };
}

/* ---- the norm ---- */

static double sum_of_squares(const float *x, int64_t n)
{
    enum { LANES = 8 };
    double lane[LANES] = { 0 }, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lane[k] += (double)x[i + k] * x[i + k];
    for (; i < n; i++)
        lane[0] += (double)x[i] * x[i];
    for (int k = 0; k < LANES; k++)
        sum += lane[k];
    return sum;
}

static int64_t chunk_end(const dn_flat *f, int64_t chunk)
{
    int64_t end = (chunk + 1) * DN_FLAT_CHUNK;
    return end < f->count ? end : f->count;
}

typedef struct {
    const dn_flat *f;
    const dn_update_terms *u;
    int64_t first;
} pass;

static void clear_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const pass *s = arg;
    int64_t first = (s->first + from) * DN_FLAT_CHUNK, end = chunk_end(s->f, s->first + to - 1);
    memset(s->f->gradient + first, 0, sizeof(float) * (size_t)(end - first));
}

void dn_flat_clear(const dn_flat *f, dn_pool *pool, int64_t from, int64_t to)
{
    pass s = { .f = f, .first = from };
    dn_pool_run(pool, clear_task, &s, to - from, 1);
}

static void squares_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const pass *s = arg;
    for (int64_t c = s->first + from; c < s->first + to; c++)
        s->f->partial[c] = sum_of_squares(s->f->gradient + c * DN_FLAT_CHUNK, chunk_end(s->f, c) - c * DN_FLAT_CHUNK);
}

void dn_flat_squares(const dn_flat *f, dn_pool *pool, int64_t from, int64_t to)
{
    pass s = { .f = f, .first = from };
    dn_pool_run(pool, squares_task, &s, to - from, 1);
}

double dn_flat_norm(const dn_flat *f)
{
    double sum = 0;
    for (int64_t c = 0; c < dn_flat_chunks(f); c++)
        sum += f->partial[c];
    return sqrt(sum);
}

/* ---- the update ---- */

dn_update_terms dn_update_terms_of(const dn_optimizer *o, double lr, int64_t k, double factor)
{
    dn_update_terms u = {
        .kind = o->kind,
        .factor = (float)factor,
        .keep = (float)(1 - lr * o->weight_decay),
        .weight_decay = (float)o->weight_decay,
        .beta1 = (float)o->beta1,
        .beta2 = (float)o->beta2,
        .one_minus_beta1 = (float)(1 - o->beta1),
        .one_minus_beta2 = (float)(1 - o->beta2),
        .eps = (float)o->eps,
        .step = (float)lr,
        .ema = -1,
    };
    if (o->kind != DN_SGD) {
        u.step = (float)(lr / (1 - pow(o->beta1, (double)k)));
        u.root = (float)sqrt(1 - pow(o->beta2, (double)k));
    }
    return u;
}

/* PyTorch's order of operations: decay of the weights (AdamW) or in the gradient (Adam), lerp of m, v, the step. */
static void adam(const dn_flat *f, const dn_update_terms *u, bool decay, int64_t from, int64_t to)
{
    float *restrict w = f->weights, *restrict m = f->m, *restrict v = f->v;
    const float *restrict g = f->gradient;
    const float keep = decay && u->kind == DN_ADAMW ? u->keep : 1,
                l2 = decay && u->kind == DN_ADAM ? u->weight_decay : 0;
    const dn_update_terms c = *u;
    for (int64_t i = from; i < to; i++) {
        float x = w[i] * keep, gi = g[i] * c.factor + l2 * x;
        m[i] += c.one_minus_beta1 * (gi - m[i]);
        v[i] = v[i] * c.beta2 + c.one_minus_beta2 * gi * gi;
        w[i] = x - c.step * (m[i] / (sqrtf(v[i]) / c.root + c.eps));
    }
}

static void sgd(const dn_flat *f, const dn_update_terms *u, bool decay, int64_t from, int64_t to)
{
    float *restrict w = f->weights, *restrict m = f->m;
    const float *restrict g = f->gradient;
    const float l2 = decay ? u->weight_decay : 0, factor = u->factor, momentum = u->beta1, step = u->step;
    for (int64_t i = from; i < to; i++) {
        m[i] = momentum * m[i] + (g[i] * factor + l2 * w[i]);
        w[i] -= step * m[i];
    }
}

static void average(const dn_flat *f, float rate, int64_t from, int64_t to)
{
    float *restrict e = f->ema;
    const float *restrict w = f->weights;
    for (int64_t i = from; i < to; i++)
        e[i] -= rate * (e[i] - w[i]);
}

static const dn_segment *segment_at(const dn_flat *f, int64_t at)
{
    int low = 0, high = f->n_segments - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (f->segment[middle].to > at)
            high = middle;
        else
            low = middle + 1;
    }
    return &f->segment[low];
}

static void update_chunk(const dn_flat *f, const dn_update_terms *u, int64_t from, int64_t to)
{
    void (*step)(const dn_flat *, const dn_update_terms *, bool, int64_t, int64_t) = u->kind == DN_SGD ? sgd : adam;
    for (int64_t at = from; at < to;) {
        const dn_segment *s = segment_at(f, at);
        int64_t end = s->to < to ? s->to : to;
        step(f, u, s->decay, at, end);
        at = end;
    }
    if (u->ema >= 0)
        average(f, u->ema, from, to);
}

static void update_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const pass *s = arg;
    for (int64_t c = s->first + from; c < s->first + to; c++)
        update_chunk(s->f, s->u, c * DN_FLAT_CHUNK, chunk_end(s->f, c));
}

void dn_flat_update(const dn_flat *f, const dn_update_terms *u, dn_pool *pool, int64_t from, int64_t to)
{
    pass s = { f, u, from };
    dn_pool_run(pool, update_task, &s, to - from, 1);
}
