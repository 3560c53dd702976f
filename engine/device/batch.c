/* batch.c - rows run together: gathered from their slots, through the network, back into their slots.
 *
 * A batch is cut into chunks of the net's rows_max. As long as there is a full chunk for every thread each thread takes
 * its own through the whole network (a stream: nothing to wait for); the threads share the steps of what is left, and
 * of a batch that must be able to stop between two steps. No row's result depends on the others or on the threads (the
 * kernels' contract), so none of this shows in any byte. */
#include "device_internal.h"
#include "inspect.h"
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct dn_batch {
    dn_device *device;
    const dn_net *net;
    int n, from;      /* rows; the first row of the current chunk */
    bool running;     /* the current chunk has been gathered */
    dn_run run;
    dn_run check; /* of an inspected net */
    dn_inspector inspector;
    dn_row row[];
};

/* `bytes` are what dn_net_arena_bytes says. What the old one holds is nobody's: it goes first. */
static int grow_arena(dn_device *d, size_t bytes, dn_error *err)
{
    if (bytes <= d->arena_bytes)
        return 0;
    dn_device_trim(d, 0);
    d->arena = aligned_alloc(dn_arena_align(bytes), bytes);
    if (!d->arena)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for an arena of %zu bytes", bytes);
    if (bytes >= DN_HUGE_PAGE)
        (void)madvise(d->arena, bytes, MADV_HUGEPAGE); /* only a hint */
    d->arena_bytes = bytes;
    return 0;
}

int dn_batch_begin(dn_batch **out, dn_device *d, const dn_net *net, const dn_row *rows, int n, dn_error *err)
{
    if (d->busy || n < 1)
        return dn_fail(err, DN_E_INTERNAL, NULL, "a batch of %d rows while %s", n, d->busy ? "another is under way" : "idle");
    int rc = grow_arena(d, dn_net_arena_bytes(net), err);
    if (rc)
        return rc;
    dn_batch *b = calloc(1, sizeof *b + sizeof *rows * (size_t)n);
    if (!b)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    b->device = d;
    b->net = net;
    b->n = n;
    memcpy(b->row, rows, sizeof *rows * (size_t)n);
    d->busy = true;
    *out = b;
    return 0;
}

void dn_batch_free(dn_batch *b)
{
    if (!b)
        return;
    b->device->busy = false;
    free(b->check.arena);
    free(b);
}

static void put_float(const dn_run *run, int place, int row, float value)
{
    if (place >= 0)
        *(float *)dn_place_at(run, place, row) = value;
}

static void put_pair(const dn_run *run, int place, int row, int a, int b)
{
    if (place < 0)
        return;
    int32_t *at = dn_place_at(run, place, row);
    at[0] = a;
    at[1] = b;
}

/* A learned time embedding at a fractional timestep lies between two rows of its table. */
void dn_ports_put_time(const dn_ports *to, int rows, const dn_run *run, int row, float t)
{
    int below;
    if (!rows) {
        put_float(run, to->t, row, t);
        return;
    }
    t = fminf(fmaxf(t, 0), (float)(rows - 1));
    below = (int)t;
    put_pair(run, to->time, row, below, below + 1 < rows ? below + 1 : below);
    put_float(run, to->time_w, row, t - (float)below);
}

void dn_ports_put_label(const dn_ports *to, const dn_run *run, int row, int a, int b, float w)
{
    put_pair(run, to->label, row, a, b);
    put_float(run, to->label_w, row, w);
    put_float(run, to->label_value, row, (float)a + w * (float)(b - a));
}

static void put_label(const dn_ports *to, const dn_run *run, int row, const dn_row *r)
{
    const dn_sample *s = r->sample;
    bool conditional = r->kind != DN_ROW_UNCOND;
    dn_ports_put_label(to, run, row, conditional ? s->label : s->null_label, conditional ? s->label_b : s->null_label,
                       conditional ? s->label_w : 0);
    if (to->label_vector < 0)
        return;
    float *vector = dn_place_at(run, to->label_vector, row);
    if (s->label_vector)
        memcpy(vector, s->label_vector, sizeof *vector * (size_t)s->label_dim);
    else /* what another run left there is nobody's label */
        memset(vector, 0, (size_t)run->lowered->place[to->label_vector].bytes);
}

/* The batch's rows from `first` on into the inputs of a run. */
static void gather(const dn_batch *b, int first, const dn_run *run, const dn_ports *to)
{
    for (int row = 0; row < run->n; row++) {
        const dn_row *r = &b->row[first + row];
        const dn_sample *s = r->sample;
        const dn_entry *e = &s->table.entry[s->entry];
        float *x = dn_place_at(run, to->x, row);
        for (int64_t i = 0; i < s->slot.n; i++)
            x[i] = e->c_in * s->slot.x[i];
        dn_ports_put_time(to, (int)b->net->model->arch_info.time_rows, run, row, e->timestep);
        put_label(to, run, row, r);
    }
}

/* The same rows on ref, all of it, for the inspector to compare with. */
static int run_check(dn_batch *b)
{
    const dn_net *net = b->net;
    free(b->check.arena);
    b->check = (dn_run){ .lowered = net->check, .arena = aligned_alloc(64, (net->check->arena_bytes + 63) / 64 * 64),
                         .block = { (const char *)net->model->weights }, .pool = b->device->pool, .n = b->run.n };
    if (!b->check.arena)
        return -DN_E_MEMORY;
    gather(b, b->from, &b->check, &net->check_ports);
    return dn_run_some(&b->check, 0);
}

static int inspect_chunk(dn_batch *b)
{
    int rc = b->net->check ? run_check(b) : 0;
    b->inspector = (dn_inspector){ .file = stderr, .trace = b->net->trace, .ref = b->net->check ? &b->check : NULL, .tolerance = 1e-3 };
    b->run.inspector = &b->inspector;
    return rc;
}

static dn_run run_of(const dn_batch *b, char *arena, dn_pool *pool, int rows)
{
    return (dn_run){ .lowered = b->net->lowered, .arena = arena, .block = { (const char *)b->net->model->weights },
                     .form = (const void *const *)b->net->form, .pool = pool, .n = rows };
}

static int begin_chunk(dn_batch *b)
{
    int left = b->n - b->from, rows_max = b->net->lowered->rows_max;
    b->run = run_of(b, b->device->arena, b->device->pool, left < rows_max ? left : rows_max);
    gather(b, b->from, &b->run, &b->net->ports);
    b->running = true;
    return b->net->trace || b->net->check ? inspect_chunk(b) : 0;
}

/* The outputs of a run into the slots of the batch's rows from `first` on. */
static void scatter(const dn_batch *b, int first, const dn_run *run)
{
    for (int i = 0; i < run->n; i++) {
        const dn_row *r = &b->row[first + i];
        const dn_slot *s = &r->sample->slot;
        int64_t n = s->n / s->channels * s->out_channels;
        memcpy(s->out[r->kind], dn_place_at(run, b->net->ports.out, i), sizeof(float) * (size_t)n);
    }
}

static void end_chunk(dn_batch *b)
{
    scatter(b, b->from, &b->run);
    b->from += b->run.n;
    b->running = false;
}

typedef struct {
    dn_batch *batch;
    atomic_int rc; /* of a run that failed */
} streams;

static void stream_task(void *arg, int64_t from, int64_t to, int thread)
{
    streams *s = arg;
    const dn_batch *b = s->batch;
    const int rows = b->net->lowered->rows_max;
    for (int64_t i = from; i < to; i++) {
        int first = b->from + (int)i * rows;
        dn_run run = run_of(b, b->device->arena + (size_t)thread * b->net->lowered->arena_bytes, NULL, rows);
        gather(b, first, &run, &b->net->ports);
        int rc = dn_run_some(&run, 0);
        if (rc)
            s->rc = rc;
        else
            scatter(b, first, &run);
    }
}

/* Full chunks, one to a thread, as many times as there is one for each. */
static int run_streams(dn_batch *b)
{
    const int rows = b->net->lowered->rows_max, threads = b->net->streams;
    int chunks = b->n / rows / threads * threads;
    if (threads < 2 || !chunks || b->net->trace || b->net->check)
        return 0;
    streams s = { b, 0 };
    dn_pool_run(b->device->pool, stream_task, &s, chunks, 1);
    b->from += chunks * rows;
    return s.rc;
}

int dn_batch_some(dn_batch *b, double max_ms)
{
    double end = max_ms > 0 ? dn_monotonic_ms() + max_ms : 0;
    int rc = end > 0 || b->from || b->running ? 0 : run_streams(b);
    while (!rc && b->from < b->n) {
        rc = b->running ? 0 : begin_chunk(b);
        rc = rc ? rc : dn_run_some(&b->run, end > 0 ? fmax(end - dn_monotonic_ms(), 1e-6) : 0); /* at least one step */
        if (rc)
            return rc;
        end_chunk(b);
        if (end > 0 && b->from < b->n && dn_monotonic_ms() >= end)
            return 1;
    }
    if (rc)
        return rc;
    for (int i = 0; i < b->n; i++)
        b->row[i].sample->rows_done |= 1u << b->row[i].kind;
    return 0;
}
