/* fake_device.h - what the tests can make the fake device do, and see of it. */
#ifndef FAKE_DEVICE_H
#define FAKE_DEVICE_H

#include <denoised/device.h>
#include <denoised/trainer.h>

enum {
    FAKE_SEED_NON_FINITE = 666, /* such a sample fails in its third update */
    FAKE_SLOW_MS = 40
};

dn_net *fake_net_new(double batch_ms, double row_ms); /* a batch takes batch_ms + rows * row_ms */
void fake_net_free(dn_net *n);
void fake_net_arena(dn_net *n, size_t bytes);
size_t fake_trimmed(void); /* what the device was told last that its arena need be */
/* A table of `entries` entries, each with the rows of `rows` and the end of a sampler step; `idle` of them, spread,
 * have none. */
dn_table fake_table(int entries, unsigned rows, int idle);
int fake_samples(void);        /* alive */
void fake_fail_batches(int n); /* the next n batches fail */
void fake_slow_batches(int n); /* the next n batches take FAKE_SLOW_MS longer */
void fake_fail_samples(int n); /* so many more samples can be made, then none; < 0: no limit */

/* A trainer whose optimizer step takes step_ms; step `fails_at` fails (0: none). An evaluation takes one step's time. */
dn_trainer *fake_trainer_new(double step_ms, int64_t fails_at);
void fake_copies(int pieces);  /* a snapshot takes so many segments (1) */
int fake_copied(void);         /* segments of snapshots that have run */
void fake_fail_copies(int n);  /* the next n snapshots find no memory */

#endif
