/* sample.c - a sample: its slot, its place in its table, its noise. */
#include "device_internal.h"
#include <stdlib.h>
#include <string.h>

static int64_t elements(const dn_sample_params *p) { return (int64_t)p->height * p->width * p->channels; }

static int64_t out_elements(const dn_sample_params *p) { return (int64_t)p->height * p->width * p->out_channels; }

static unsigned rows_used(const dn_table *t)
{
    unsigned used = 0;
    for (int i = 0; i < t->n_entries; i++)
        used |= t->entry[i].rows;
    return used;
}

/* Floats of the slot: x, an output per kind of row, the history, x0 if it is kept; each padded to a cache line. */
static size_t slot_floats(const dn_sample_params *p)
{
    size_t x = (size_t)(elements(p) + 15) / 16 * 16, out = (size_t)(out_elements(p) + 15) / 16 * 16;
    size_t n = x * (size_t)(1 + p->table->n_history + p->keep_x0);
    return n + out * (size_t)__builtin_popcount(rows_used(p->table)) + (size_t)(p->label_vector ? p->label_dim : 0);
}

size_t dn_sample_bytes(const dn_sample_params *p)
{
    size_t entries = p->table_shared ? 0 : (size_t)p->table->n_entries;
    return sizeof(dn_sample) + sizeof(float) * slot_floats(p) + sizeof(dn_entry) * entries +
           (p->torch_rng ? sizeof(dn_torch_rng) : 0);
}

static float *take(float **at, int64_t n)
{
    float *p = *at;
    *at += (n + 15) / 16 * 16;
    return p;
}

static void lay_out(dn_sample *s, const dn_sample_params *p)
{
    float *at = s->memory;
    unsigned used = rows_used(p->table);
    s->slot = (dn_slot){ .n = elements(p), .channels = p->channels, .out_channels = p->out_channels };
    s->slot.x = take(&at, s->slot.n);
    for (int k = 0; k < DN_ROWS_MAX; k++)
        if (used & 1u << k)
            s->slot.out[k] = take(&at, out_elements(p));
    for (int k = 0; k < p->table->n_history; k++)
        s->slot.h[k] = take(&at, s->slot.n);
    if (p->keep_x0)
        s->x0 = take(&at, s->slot.n);
    if (p->label_vector) {
        s->label_vector = at;
        s->label_dim = p->label_dim;
        memcpy(at, p->label_vector, sizeof *at * (size_t)p->label_dim);
    }
}

/* torch draws in NCHW order; slots are channels last. scratch has n floats. */
static void torch_normal(dn_sample *s, float *dst, float *scratch)
{
    int64_t c = s->slot.channels, pixels = s->slot.n / c;
    dn_torch_randn(s->torch, scratch, s->slot.n);
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t k = 0; k < c; k++)
            dst[i * c + k] = scratch[k * pixels + i];
}

static void draw(dn_sample *s, float *dst, float *scratch, enum dn_purpose purpose, int entry)
{
    dn_rng_key key = { .seed = s->seed, .step = (uint32_t)entry, .purpose = (uint32_t)purpose << 24 };
    if (s->torch)
        torch_normal(s, dst, scratch);
    else
        s->device->normal(dst, 0, s->slot.n, &key);
}

static void scale(float *x, int64_t n, float by)
{
    for (int64_t i = 0; by != 1 && i < n; i++)
        x[i] *= by;
}

/* The device's four scratch vectors of n floats: z, z2, x0, scratch. */
static int lend_scratch(dn_device *d, int64_t n, dn_error *err)
{
    size_t count = (size_t)(n + 15) / 16 * 16;
    if (count <= d->scratch_count)
        return 0;
    float *p = aligned_alloc(64, sizeof *p * count * 4);
    if (!p)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory for %zu floats of scratch", count * 4);
    free(d->scratch);
    d->scratch = p;
    d->scratch_count = count;
    return 0;
}

static float *scratch_at(const dn_device *d, int i) { return d->scratch + d->scratch_count * (size_t)i; }

static int seed_rng(dn_sample *s, const dn_sample_params *p, dn_error *err)
{
    if (!p->torch_rng)
        return 0;
    s->torch = malloc(sizeof *s->torch);
    if (!s->torch)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    dn_torch_seed(s->torch, p->seed);
    return 0;
}

static void start(dn_sample *s, const dn_sample_params *p)
{
    if (p->x) {
        memcpy(s->slot.x, p->x, sizeof(float) * (size_t)s->slot.n);
        return;
    }
    draw(s, s->slot.x, scratch_at(s->device, 3), DN_RNG_INIT, 0);
    scale(s->slot.x, s->slot.n, p->table->init_scale);
}

static int check(const dn_sample_params *p, dn_error *err)
{
    if (p->height < 1 || p->width < 1 || p->channels < 1 || p->table->n_entries < 1)
        return dn_fail(err, DN_E_INTERNAL, NULL, "a sample of no size or with no entries");
    if (p->out_channels != p->channels && p->out_channels != 2 * p->channels)
        return dn_fail(err, DN_E_IMPOSSIBLE, "model", "a network of %d channels in and %d out cannot be sampled from", p->channels,
                       p->out_channels);
    return 0;
}

int dn_sample_new(dn_sample **out, dn_device *d, const dn_sample_params *p, dn_error *err)
{
    int rc = check(p, err);
    rc = rc ? rc : lend_scratch(d, elements(p), err);
    if (rc)
        return rc;
    dn_sample *s = calloc(1, sizeof *s);
    if (s)
        s->memory = aligned_alloc(64, (sizeof(float) * slot_floats(p) + 63) / 64 * 64);
    rc = s && s->memory ? seed_rng(s, p, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory for a sample");
    if (rc) {
        if (s)
            free(s->memory);
        free(s);
        return rc;
    }
    s->device = d;
    s->bytes = dn_sample_bytes(p);
    s->height = p->height;
    s->width = p->width;
    s->seed = p->seed;
    s->label = p->label < 0 ? p->null_label : p->label;
    s->label_b = p->label_w != 0 ? p->label_b : s->label;
    s->label_w = p->label_w;
    s->null_label = p->null_label;
    s->temperature = p->temperature;
    lay_out(s, p);
    start(s, p);
    s->table = *p->table;
    s->table_shared = p->table_shared;
    if (!p->table_shared)
        *(dn_table *)p->table = (dn_table){ 0 };
    d->slot_bytes += s->bytes;
    *out = s;
    return 0;
}

void dn_sample_free(dn_sample *s)
{
    if (!s)
        return;
    s->device->slot_bytes -= s->bytes;
    if (!s->table_shared)
        dn_table_fini(&s->table);
    free(s->torch);
    free(s->memory);
    free(s);
}

int dn_sample_entry(const dn_sample *s) { return s->entry; }
int dn_sample_step(const dn_sample *s) { return s->step; }
bool dn_sample_done(const dn_sample *s) { return s->entry >= s->table.n_entries; }

unsigned dn_sample_rows(const dn_sample *s) { return dn_sample_done(s) ? 0 : s->table.entry[s->entry].rows & ~s->rows_done; }

/* out_u + w * (out_c - out_u), of the entry that was executed last. */
static void read_out(const dn_sample *s, float *dst)
{
    const dn_entry *e = &s->table.entry[s->entry ? s->entry - 1 : 0];
    const float *c = s->slot.out[DN_ROW_COND], *u = e->rows & 1u << DN_ROW_UNCOND ? s->slot.out[DN_ROW_UNCOND] : NULL;
    int64_t n = s->slot.n / s->slot.channels * s->slot.out_channels;
    for (int64_t i = 0; i < n; i++)
        dst[i] = u ? u[i] + e->w * (c[i] - u[i]) : c[i];
}

void dn_sample_read(const dn_sample *s, enum dn_what what, float *dst)
{
    if (what == DN_READ_OUT) {
        read_out(s, dst);
        return;
    }
    const float *src = what == DN_READ_X0 && s->x0 ? s->x0 : s->slot.x;
    memcpy(dst, src, sizeof *dst * (size_t)s->slot.n);
}

/* Execute the current entry and go to the next. */
static int64_t do_entry(dn_sample *s)
{
    const dn_entry *e = &s->table.entry[s->entry];
    dn_device *d = s->device;
    float *const noise[] = { scratch_at(d, 0), scratch_at(d, 1) }, *scratch = scratch_at(d, 3);
    float **const slot[] = { &s->slot.z, &s->slot.z2 };
    for (int i = 0; i < 2; i++) {
        *slot[i] = NULL;
        if (!dn_entry_uses(e, i ? DN_B_Z2 : DN_B_Z))
            continue;
        draw(s, noise[i], scratch, i ? DN_RNG_STEP2 : DN_RNG_STEP, s->entry);
        scale(noise[i], s->slot.n, s->temperature);
        *slot[i] = noise[i];
    }
    s->slot.x0 = s->x0 ? s->x0 : scratch_at(d, 2);
    s->slot.scratch = scratch;
    int64_t spoilt = dn_update(&s->slot, e);
    s->step += (e->flags & DN_STEP_END) != 0;
    s->entry++;
    s->rows_done = 0;
    return spoilt;
}

int dn_sample_update(dn_sample *s)
{
    do {
        if (do_entry(s))
            return DN_E_NON_FINITE;
    } while (!dn_sample_done(s) && !s->table.entry[s->entry].rows);
    return 0;
}
