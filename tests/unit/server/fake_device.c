/* fake_device.c - device.h without arithmetic: a batch sleeps. A sample's x is its seed plus the updates it has had;
 * what the worker promises (whole entries, one network a batch, only live samples) is asserted here. */
#include "fake_device.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct dn_device {
    int open;
};

struct dn_net {
    double batch_ms, row_ms;
    size_t arena;
};

struct dn_sample {
    dn_sample_params p;
    dn_table table;
    int entry, step, updates;
    unsigned rows;
    bool live;
};

struct dn_batch {
    const dn_net *net;
    dn_row rows[256];
    int n;
};

struct dn_trainer {
    double step_ms, done_ms, eval_ms;
    int64_t step, fails_at;
    struct dn_snapshot *copy; /* under way */
    int pieces;               /* of it that are copied */
};

struct dn_snapshot {
    int64_t step;
    bool all;
};

static atomic_int samples, fail_batches;
static atomic_size_t trimmed;
static atomic_int samples_left = -1, slow_batches, pieces = 1, fail_copies, pieces_copied;

static void sleep_ms(double ms)
{
    struct timespec t = { (time_t)(ms / 1000), (long)(ms * 1e6) % 1000000000 };
    nanosleep(&t, NULL);
}

int fake_samples(void) { return samples; }
void fake_fail_batches(int n) { fail_batches = n; }
void fake_slow_batches(int n) { slow_batches = n; }
void fake_fail_samples(int n) { samples_left = n; }
void fake_copies(int n) { pieces = n; }
int fake_copied(void) { return pieces_copied; }
void fake_fail_copies(int n) { fail_copies = n; }

dn_net *fake_net_new(double batch_ms, double row_ms)
{
    dn_net *n = calloc(1, sizeof *n);
    assert(n);
    *n = (dn_net){ batch_ms, row_ms };
    return n;
}

void fake_net_free(dn_net *n) { free(n); }
void fake_net_arena(dn_net *n, size_t bytes) { n->arena = bytes; }
size_t fake_trimmed(void) { return trimmed; }
size_t dn_net_arena_bytes(const dn_net *n) { return n->arena; }

dn_table fake_table(int entries, unsigned rows, int idle)
{
    dn_table t = { .entry = calloc(entries, sizeof *t.entry), .n_entries = entries, .init_scale = 1 };
    assert(t.entry);
    for (int i = 0; i < entries; i++) {
        bool none = idle && i % (entries / idle) == 0;
        t.entry[i].rows = none ? 0 : rows;
        t.entry[i].flags = DN_STEP_END | (none ? DN_NO_FORWARD : 0);
        t.n_steps++;
    }
    return t;
}

void dn_table_fini(dn_table *t)
{
    if (t) {
        free(t->entry);
        *t = (dn_table){ 0 };
    }
}

int dn_table_plan_denoise(dn_table *out, double timestep, double guidance_scale, dn_error *err)
{
    (void)timestep, (void)guidance_scale, (void)err;
    *out = fake_table(1, 1, 0);
    return 0;
}

int dn_device_open(dn_device **out, const char *spec, dn_error *err)
{
    (void)spec, (void)err;
    *out = calloc(1, sizeof **out);
    return *out ? 0 : DN_E_MEMORY;
}

void dn_device_close(dn_device *d)
{
    assert(!samples);
    free(d);
}

const char *dn_device_name(const dn_device *d) { return d ? "fake" : ""; }

void dn_device_trim(dn_device *d, size_t bytes)
{
    (void)d;
    trimmed = bytes;
}

size_t dn_device_bytes(const dn_device *d) { return d ? 1000u * (unsigned)samples : 0; }

int dn_sample_new(dn_sample **out, dn_device *d, const dn_sample_params *p, dn_error *err)
{
    (void)d;
    if (samples_left == 0)
        return dn_fail(err, DN_E_MEMORY, NULL, "no slot");
    samples_left -= samples_left > 0;
    dn_sample *s = calloc(1, sizeof *s);
    assert(s);
    s->p = *p;
    s->table = *p->table;
    if (!p->table_shared)
        *(dn_table *)p->table = (dn_table){ 0 };
    s->rows = s->table.n_entries ? s->table.entry[0].rows : 0;
    s->live = true;
    samples++;
    *out = s;
    return 0;
}

void dn_sample_free(dn_sample *s)
{
    if (!s)
        return;
    assert(s->live);
    s->live = false;
    if (!s->p.table_shared)
        dn_table_fini(&s->table);
    free(s);
    samples--;
}

int dn_sample_entry(const dn_sample *s) { return s->entry; }
int dn_sample_step(const dn_sample *s) { return s->step; }
bool dn_sample_done(const dn_sample *s) { return s->entry == s->table.n_entries; }
unsigned dn_sample_rows(const dn_sample *s) { return s->rows; }

void dn_sample_read(const dn_sample *s, enum dn_what what, float *dst)
{
    for (int i = 0; i < s->p.height * s->p.width * s->p.channels; i++)
        dst[i] = what != DN_READ_X0 ? (float)s->p.seed + (float)s->updates : (float)s->step;
}

static void entry_done(dn_sample *s)
{
    s->updates++;
    s->step += !!(s->table.entry[s->entry].flags & DN_STEP_END);
    s->entry++;
    s->rows = dn_sample_done(s) ? 0 : s->table.entry[s->entry].rows;
}

int dn_sample_update(dn_sample *s)
{
    assert(s->live && !dn_sample_done(s) && !s->rows);
    if (s->p.seed == FAKE_SEED_NON_FINITE && s->updates == 2)
        return DN_E_NON_FINITE;
    entry_done(s);
    while (!dn_sample_done(s) && s->table.entry[s->entry].flags & DN_NO_FORWARD)
        entry_done(s);
    return 0;
}

int dn_batch_begin(dn_batch **out, dn_device *d, const dn_net *net, const dn_row *rows, int n, dn_error *err)
{
    (void)d, (void)err;
    dn_batch *b = calloc(1, sizeof *b);
    assert(b && n > 0 && n <= 256);
    b->net = net;
    b->n = n;
    memcpy(b->rows, rows, n * sizeof *rows);
    *out = b;
    return 0;
}

int dn_batch_some(dn_batch *b, double max_ms)
{
    (void)max_ms;
    double ms = b->net->batch_ms + b->n * b->net->row_ms;
    if (slow_batches > 0) {
        slow_batches--;
        ms += FAKE_SLOW_MS;
    }
    sleep_ms(ms);
    if (fail_batches > 0) {
        fail_batches--;
        return -DN_E_BACKEND;
    }
    for (int i = 0; i < b->n; i++) {
        assert(b->rows[i].sample->live && b->rows[i].sample->rows & 1u << b->rows[i].kind);
        b->rows[i].sample->rows &= ~(1u << b->rows[i].kind);
    }
    return 0;
}

void dn_batch_free(dn_batch *b) { free(b); }

dn_trainer *fake_trainer_new(double step_ms, int64_t fails_at)
{
    dn_trainer *t = calloc(1, sizeof *t);
    assert(t);
    t->step_ms = step_ms;
    t->fails_at = fails_at;
    return t;
}

void dn_trainer_free(dn_trainer *t)
{
    free(t->copy);
    free(t);
}
int64_t dn_trainer_step(const dn_trainer *t) { return t->step; }
bool dn_trainer_at_boundary(const dn_trainer *t) { return t->done_ms == 0 && t->eval_ms == 0 && !t->copy; }

/* Sleep for a segment; true when all of `whole` has been slept. */
static bool segment(double *done, double whole, double max_ms)
{
    double ms = max_ms > 0 && whole - *done > max_ms ? max_ms : whole - *done;
    sleep_ms(ms);
    *done += ms;
    if (*done < whole)
        return false;
    *done = 0;
    return true;
}

int dn_trainer_some(dn_trainer *t, double max_ms, dn_train_report *report, dn_error *err)
{
    assert(t->eval_ms == 0 && !t->copy);
    if (!segment(&t->done_ms, t->step_ms, max_ms))
        return 1;
    t->step++;
    if (t->step == t->fails_at)
        return -dn_fail(err, DN_E_NON_FINITE, NULL, "step %d", (int)t->step);
    *report = (dn_train_report){ .step = t->step, .loss = 1.0 / (double)t->step };
    return 0;
}

int dn_trainer_eval_some(dn_trainer *t, double max_ms, dn_eval_report *report, dn_error *err)
{
    (void)err;
    assert(t->done_ms == 0 && !t->copy);
    if (!segment(&t->eval_ms, t->step_ms, max_ms))
        return 1;
    *report = (dn_eval_report){ .loss = (double)t->step, .n = 1 };
    return 0;
}

int dn_trainer_snapshot(dn_snapshot **out, dn_trainer *t, bool all, double max_ms, dn_error *err)
{
    assert(max_ms > 0);
    if (!t->copy && fail_copies > 0) {
        fail_copies--;
        return -dn_fail(err, DN_E_MEMORY, NULL, "no memory for a copy");
    }
    assert(t->copy ? t->copy->all == all : dn_trainer_at_boundary(t));
    t->copy = t->copy ? t->copy : malloc(sizeof *t->copy);
    assert(t->copy);
    *t->copy = (dn_snapshot){ t->step, all };
    pieces_copied++;
    if (++t->pieces < pieces)
        return 1;
    *out = t->copy;
    t->copy = NULL;
    t->pieces = 0;
    return 0;
}

void dn_snapshot_free(dn_snapshot *s) { free(s); }
