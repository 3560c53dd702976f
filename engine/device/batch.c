/* batch.c - rows run together: gathered from their slots, through the network, back into their slots.
 *
 * A batch is cut into chunks of the net's rows_max; a chunk can be suspended between two steps of the program. No
 * row's result depends on the others (the kernels' contract), so neither the cut nor the order shows in any byte. */
#include "device_internal.h"
#include "inspect.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

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

static int grow_arena(dn_device *d, size_t bytes, dn_error *err)
{
    enum { HUGE = 2 << 20 };
    if (bytes <= d->arena_bytes)
        return 0;
    bytes = (bytes + HUGE - 1) / HUGE * HUGE;
    char *p = aligned_alloc(HUGE, bytes);
    if (!p)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for an arena of %zu bytes", bytes);
    (void)madvise(p, bytes, MADV_HUGEPAGE); /* only a hint */
    free(d->arena);
    d->arena = p;
    d->arena_bytes = bytes;
    return 0;
}

int dn_batch_begin(dn_batch **out, dn_device *d, const dn_net *net, const dn_row *rows, int n, dn_error *err)
{
    if (d->busy || n < 1)
        return dn_fail(err, DN_E_INTERNAL, NULL, "a batch of %d rows while %s", n, d->busy ? "another is under way" : "idle");
    int rc = grow_arena(d, net->lowered->arena_bytes, err);
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
static void put_time(const dn_ports *to, int rows, const dn_run *run, int row, float t)
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

static void put_label(const dn_ports *to, const dn_run *run, int row, const dn_row *r)
{
    const dn_sample *s = r->sample;
    bool conditional = r->kind != DN_ROW_UNCOND;
    int a = conditional ? s->label : s->null_label, b = conditional ? s->label_b : s->null_label;
    float w = conditional ? s->label_w : 0;
    put_pair(run, to->label, row, a, b);
    put_float(run, to->label_w, row, w);
    put_float(run, to->label_value, row, (float)a + w * (float)(b - a));
    if (to->label_vector >= 0 && s->label_vector)
        memcpy(dn_place_at(run, to->label_vector, row), s->label_vector, sizeof(float) * (size_t)s->label_dim);
}

static void gather(const dn_batch *b, const dn_run *run, const dn_ports *to)
{
    for (int row = 0; row < run->n; row++) {
        const dn_row *r = &b->row[b->from + row];
        const dn_sample *s = r->sample;
        const dn_entry *e = &s->table.entry[s->entry];
        float *x = dn_place_at(run, to->x, row);
        for (int64_t i = 0; i < s->slot.n; i++)
            x[i] = e->c_in * s->slot.x[i];
        put_time(to, (int)b->net->model->arch_info.time_rows, run, row, e->timestep);
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
    gather(b, &b->check, &net->check_ports);
    return dn_run_some(&b->check, 0);
}

static int inspect_chunk(dn_batch *b)
{
    int rc = b->net->check ? run_check(b) : 0;
    b->inspector = (dn_inspector){ .file = stderr, .trace = b->net->trace, .ref = b->net->check ? &b->check : NULL, .tolerance = 1e-3 };
    b->run.inspector = &b->inspector;
    return rc;
}

static int begin_chunk(dn_batch *b)
{
    const dn_lowered *l = b->net->lowered;
    int left = b->n - b->from;
    b->run = (dn_run){ .lowered = l, .arena = b->device->arena, .block = { (const char *)b->net->model->weights },
                       .form = (const void *const *)b->net->form, .pool = b->device->pool, .n = left < l->rows_max ? left : l->rows_max };
    gather(b, &b->run, &b->net->ports);
    b->running = true;
    return b->net->trace || b->net->check ? inspect_chunk(b) : 0;
}

static void end_chunk(dn_batch *b)
{
    for (int i = 0; i < b->run.n; i++) {
        const dn_row *r = &b->row[b->from + i];
        const dn_slot *s = &r->sample->slot;
        int64_t n = s->n / s->channels * s->out_channels;
        memcpy(s->out[r->kind], dn_place_at(&b->run, b->net->ports.out, i), sizeof(float) * (size_t)n);
    }
    b->from += b->run.n;
    b->running = false;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

int dn_batch_some(dn_batch *b, double max_ms)
{
    double end = max_ms > 0 ? now_ms() + max_ms : 0;
    while (b->from < b->n) {
        int rc = b->running ? 0 : begin_chunk(b);
        rc = rc ? rc : dn_run_some(&b->run, end > 0 ? fmax(end - now_ms(), 1e-6) : 0); /* at least one step */
        if (rc)
            return rc;
        end_chunk(b);
        if (end > 0 && b->from < b->n && now_ms() >= end)
            return 1;
    }
    for (int i = 0; i < b->n; i++)
        b->row[i].sample->rows_done |= 1u << b->row[i].kind;
    return 0;
}
