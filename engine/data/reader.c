/* reader.c - samples for training, prefetched. See dataset.h.
 *
 * A sample is a function of its number g = step * batch_size + k alone: which image it is (two keyed permutations, no
 * state), and what augmentation does to it. So threads only decide when a sample is made, never what it is.
 *
 * The ring holds the samples head .. head+ring_len-1; sample g has slot g % ring_len. `next` is the first sample that
 * nobody has begun. One thread calls dn_reader_get; it makes samples itself that nobody has begun. Invariant: a slot in
 * the window is overwritten by nobody; a busy one neither. */
#include "augment.h"
#include "backend.h"
#include "rng.h"
#include "store.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { RING_STEPS = 4, ROUNDS = 8, SPLIT_ROUND = 128, THREADS_MAX = 64, ALIGN = 64 };
static const size_t ring_bytes_max = (size_t)64 << 20;

enum slot_state { SLOT_FREE, SLOT_BUSY, SLOT_READY };
typedef struct slot {
    int64_t g;
    enum slot_state state;
    int32_t label;
} slot;

/* What one thread needs to make a sample. */
struct desk {
    dn_resizer resizer;
    float *image; /* [H,W,C]: the larger C of source and target */
};

struct worker {
    dn_reader *reader;
    pthread_t thread;
    struct desk desk;
};

struct dn_reader {
    dn_reader_params p;
    size_t sample_floats;
    char *memory; /* one block: ring, then desks */
    float *ring;  /* [ring_len, H, W, C] */
    slot *slots;  /* [ring_len] */
    int64_t ring_len, head, next;
    int n_workers, n_idle;
    bool stop, caller_waits;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct desk desk; /* the caller's */
    struct worker worker[];
};

/* --- which image --- */

/* A keyed permutation of 0..n-1: a Feistel network over the next even power of two, walked until it falls below n
 * (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). */
static int64_t permute(int64_t i, int64_t n, uint64_t seed, uint64_t epoch, uint32_t first_round)
{
    int bits = 2;
    while (bits < 62 && (int64_t)1 << bits < n)
        bits += 2;
    uint32_t half = (uint32_t)bits / 2, mask = (uint32_t)(((uint64_t)1 << half) - 1);
    uint64_t v = (uint64_t)i;
    do {
        uint32_t left = (uint32_t)(v >> half), right = (uint32_t)v & mask;
        for (uint32_t round = 0; round < ROUNDS; round++) {
            uint32_t counter[4] = { right, (uint32_t)epoch, (uint32_t)DN_RNG_SHUFFLE << 24 | (first_round + round),
                                    (uint32_t)(epoch >> 32) };
            uint32_t out[4];
            dn_philox(out, counter, seed);
            uint32_t old = right;
            right = left ^ (out[0] & mask);
            left = old;
        }
        v = (uint64_t)left << half | right;
    } while (v >= (uint64_t)n);
    return (int64_t)v;
}

int64_t dn_reader_index(const dn_reader_params *p, int64_t step, int k)
{
    int64_t g = step * p->batch_size + k, epoch = g / p->n, place = g % p->n;
    if (p->shuffle)
        place = permute(place, p->n, p->seed, (uint64_t)epoch, 0);
    return permute(p->first + place, p->data->info.n, p->seed, 0, SPLIT_ROUND);
}

/* --- making a sample --- */

/* [H,W,from] in the source's units -> [H,W,to] in [0, 1]. */
static void convert(float *dst, const float *src, size_t pixels, int from, int to, const dn_dataset_info *info)
{
    float lo = (float)info->range[0], span = (float)(info->range[1] - info->range[0]);
    span = span > 0 ? span : 1; /* all values equal: 0 */
    if (from == to)
        for (size_t i = 0; i < pixels * (size_t)to; i++)
            dst[i] = (src[i] - lo) / span;
    else if (from == 1)
        for (size_t i = 0; i < pixels; i++)
            for (int c = 0; c < to; c++)
                *dst++ = (src[i] - lo) / span;
    else /* 3 to 1: Rec. 601, as PIL */
        for (size_t i = 0; i < pixels; i++)
            dst[i] = (0.299f * src[3 * i] + 0.587f * src[3 * i + 1] + 0.114f * src[3 * i + 2] - lo) / span;
}

static int32_t make(const dn_reader *r, struct desk *desk, int64_t g, float *x)
{
    const dn_reader_params *p = &r->p;
    dn_draws d = { p->seed, g / p->batch_size, (int)(g % p->batch_size) };
    int64_t i = dn_reader_index(p, d.step, d.sample);
    const dn_record *rec = &p->data->record[i];
    dn_box box = dn_augment_box(p->augment, p->n_augment, &d, rec->height, rec->width, p->height, p->width);
    dn_resize(&desk->resizer, desk->image, p->height, p->width, dn_dataset_pixels(p->data, i), p->data->info.floats,
              rec->width, rec->channels, &box);
    convert(x, desk->image, (size_t)p->height * (size_t)p->width, rec->channels, p->channels, &p->data->info);
    dn_augment_apply(p->augment, p->n_augment, &d, x, desk->image, p->height, p->width, p->channels);
    float lo = (float)p->range[0], span = (float)(p->range[1] - p->range[0]);
    for (size_t k = 0; k < r->sample_floats; k++)
        x[k] = x[k] * span + lo;
    return rec->label;
}

/* --- prefetching --- */

static bool can_begin(const dn_reader *r)
{
    return r->next < r->head + r->ring_len && r->slots[r->next % r->ring_len].state != SLOT_BUSY;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    dn_reader *r = w->reader;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (!can_begin(r)) {
            r->n_idle++;
            pthread_cond_wait(&r->work, &r->lock);
            r->n_idle--;
            continue;
        }
        int64_t g = r->next++;
        slot *s = &r->slots[g % r->ring_len];
        if (s->g == g && s->state == SLOT_READY) /* from before a jump back; it may be being read */
            continue;
        s->g = g;
        s->state = SLOT_BUSY;
        pthread_mutex_unlock(&r->lock);
        int32_t label = make(r, &w->desk, g, r->ring + (size_t)(g % r->ring_len) * r->sample_floats);
        pthread_mutex_lock(&r->lock);
        s->label = label;
        s->state = SLOT_READY;
        if (r->caller_waits)
            pthread_cond_signal(&r->done);
        if (r->n_idle > 0 && can_begin(r)) /* its own slot may be what another one waited for */
            pthread_cond_signal(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* The samples before g are not needed any more. */
static void advance(dn_reader *r, int64_t g)
{
    r->head = g;
    if (r->next < g)
        r->next = g;
    /* waking for every sample would cost more than small samples do */
    if (r->n_idle > 0 && r->head + r->ring_len - r->next >= r->ring_len / RING_STEPS)
        pthread_cond_broadcast(&r->work);
}

static int32_t get_one(dn_reader *r, int64_t g, float *x, double *waited_ms)
{
    pthread_mutex_lock(&r->lock);
    if (g < r->head || g >= r->head + r->ring_len)
        r->next = g; /* a jump: begin anew there */
    advance(r, g);
    slot *s = &r->slots[g % r->ring_len];
    double start = s->g == g && s->state == SLOT_READY ? 0 : dn_monotonic_ms();
    r->caller_waits = true;
    while (s->g == g && s->state == SLOT_BUSY)
        pthread_cond_wait(&r->done, &r->lock);
    r->caller_waits = false;
    bool ready = s->g == g && s->state == SLOT_READY;
    int32_t label = s->label;
    if (!ready)
        advance(r, g + 1);
    pthread_mutex_unlock(&r->lock);
    if (!ready) {
        label = make(r, &r->desk, g, x);
    } else {
        memcpy(x, r->ring + (size_t)(g % r->ring_len) * r->sample_floats, r->sample_floats * sizeof *x);
        pthread_mutex_lock(&r->lock);
        advance(r, g + 1);
        pthread_mutex_unlock(&r->lock);
    }
    *waited_ms += start > 0 ? dn_monotonic_ms() - start : 0;
    return label;
}

void dn_reader_get(dn_reader *r, int64_t step, int first, int n, float *x, int32_t *labels, double *wait_ms)
{
    double waited_ms = 0;
    for (int i = 0; i < n; i++) {
        int64_t g = step * r->p.batch_size + first + i;
        float *dst = x + (size_t)i * r->sample_floats;
        double start = r->n_workers == 0 ? dn_monotonic_ms() : 0;
        labels[i] = r->n_workers == 0 ? make(r, &r->desk, g, dst) : get_one(r, g, dst, &waited_ms);
        waited_ms += r->n_workers == 0 ? dn_monotonic_ms() - start : 0;
    }
    if (wait_ms)
        *wait_ms = waited_ms;
}

/* --- memory and life --- */

static size_t align_up(size_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

static int reader_threads(const dn_reader_params *p)
{
    return p->threads < 0 ? 0 : p->threads > THREADS_MAX ? THREADS_MAX : p->threads;
}

static size_t sample_bytes(const dn_reader_params *p)
{
    return (size_t)p->height * (size_t)p->width * (size_t)p->channels * sizeof(float);
}

static int64_t ring_length(const dn_reader_params *p)
{
    int64_t len = (int64_t)RING_STEPS * p->batch_size, room = (int64_t)(ring_bytes_max / sample_bytes(p));
    int threads = reader_threads(p);
    len = len < room ? len : room;
    return threads == 0 ? 0 : len > 2 * threads ? len : 2 * threads;
}

static size_t image_bytes(const dn_reader_params *p)
{
    int channels = p->data->info.channels > p->channels ? p->data->info.channels : p->channels;
    return align_up((size_t)p->height * (size_t)p->width * (size_t)channels * sizeof(float));
}

static size_t resizer_bytes(const dn_reader_params *p)
{
    const dn_dataset_info *info = &p->data->info;
    return align_up(dn_resizer_bytes(p->height, p->width, info->height_max, info->width_max, info->channels));
}

size_t dn_reader_bytes(const dn_reader_params *p)
{
    size_t ring = (size_t)ring_length(p) * sample_bytes(p), slots = (size_t)ring_length(p) * sizeof(slot);
    size_t threads = (size_t)reader_threads(p);
    return align_up(ring) + align_up(slots) + (threads + 1) * (image_bytes(p) + resizer_bytes(p)) + sizeof(dn_reader) +
           threads * sizeof(struct worker);
}

static char *lay_desk(struct desk *desk, const dn_reader_params *p, char *at)
{
    const dn_dataset_info *info = &p->data->info;
    desk->image = (float *)at;
    dn_resizer_init(&desk->resizer, at + image_bytes(p), p->height, p->width, info->height_max, info->width_max);
    return at + image_bytes(p) + resizer_bytes(p);
}

static int check(const dn_reader_params *p, int64_t start_step, dn_error *err)
{
    const dn_dataset_info *info = &p->data->info;
    if (p->height < 1 || p->width < 1 || p->height > DN_DATASET_SIDE_MAX || p->width > DN_DATASET_SIDE_MAX)
        return dn_fail(err, DN_E_RANGE, "height", "height and width must be 1..%d", DN_DATASET_SIDE_MAX);
    if (p->channels < 1 || p->channels > DN_CHANNELS_MAX ||
        (p->channels != info->channels && info->channels != 1 && !(info->channels == 3 && p->channels == 1)))
        return dn_fail(err, DN_E_IMPOSSIBLE, "channels", "images with %d channels cannot be read as %d", info->channels,
                       p->channels);
    if (p->batch_size < 1 || start_step < 0)
        return dn_fail(err, DN_E_RANGE, "batch_size", "batch_size must be at least 1 and the first step at least 0");
    if (p->first < 0 || p->n < 1 || p->first > info->n || p->n > info->n - p->first)
        return dn_fail(err, DN_E_RANGE, "dataset", "%lld images from number %lld of a dataset that has %lld",
                       (long long)p->n, (long long)p->first, (long long)info->n);
    if (!isfinite(p->range[0]) || !isfinite(p->range[1]) || p->range[0] >= p->range[1])
        return dn_fail(err, DN_E_RANGE, "range", "the range to map to must be finite and rising");
    return dn_augment_check(p->augment, p->n_augment, err);
}

/* Signals are the program's; they must not land in a thread of the engine. */
static int start_workers(dn_reader *r, int n, dn_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        r->worker[i].reader = r;
        rc = pthread_create(&r->worker[i].thread, NULL, work, &r->worker[i]);
        r->n_workers += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0 ? 0 : dn_fail(err, DN_E_MEMORY, NULL, "cannot start a thread: %s", strerror(rc));
}

int dn_reader_new(dn_reader **out, const dn_reader_params *p, int64_t start_step, dn_error *err)
{
    int rc = check(p, start_step, err);
    if (rc != 0)
        return rc;
    int threads = reader_threads(p);
    size_t head = sizeof(dn_reader) + (size_t)threads * sizeof(struct worker);
    dn_reader *r = calloc(1, head);
    char *memory = aligned_alloc(ALIGN, align_up(dn_reader_bytes(p) - head));
    if (!r || !memory) {
        free(r);
        free(memory);
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for %zu bytes of samples", dn_reader_bytes(p));
    }
    r->p = *p;
    r->memory = memory;
    r->sample_floats = sample_bytes(p) / sizeof(float);
    r->ring_len = ring_length(p);
    r->head = r->next = start_step * p->batch_size;
    r->ring = (float *)memory;
    r->slots = (slot *)(memory + align_up((size_t)r->ring_len * sample_bytes(p)));
    char *at = (char *)r->slots + align_up((size_t)r->ring_len * sizeof(slot));
    for (int64_t i = 0; i < r->ring_len; i++)
        r->slots[i] = (slot){ .g = -1 };
    at = lay_desk(&r->desk, p, at);
    for (int i = 0; i < threads; i++)
        at = lay_desk(&r->worker[i].desk, p, at);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->work, NULL);
    pthread_cond_init(&r->done, NULL);
    rc = start_workers(r, threads, err);
    if (rc == 0)
        *out = r;
    else
        dn_reader_free(r);
    return rc;
}

void dn_reader_free(dn_reader *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->work);
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < r->n_workers; i++)
        pthread_join(r->worker[i].thread, NULL);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->work);
    pthread_cond_destroy(&r->done);
    free(r->memory);
    free(r);
}
