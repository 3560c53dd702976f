/* run.h - executes a table with dn_update against a model and a noise that the test gives. */
#ifndef TESTS_SAMPLERS_RUN_H
#define TESTS_SAMPLERS_RUN_H

#include <denoised/sampler.h>
#include <jansson.h>
#include "update.h"

typedef struct run {
    dn_slot slot;
    float *memory;
    int entry;
} run;

/* The network: out = f(in, timestep) for one row. `in` has n elements, `out` n / channels * out_channels. */
typedef void (*model_fn)(void *user, float *out, const float *in, const run *r, float timestep, enum dn_row_kind row);
/* Fill z with the noise of this entry. */
typedef void (*noise_fn)(void *user, float *z, const run *r, enum dn_basis b);

void run_init(run *r, int64_t n, int channels, int out_channels);
void run_fini(run *r);
/* Execute the next entry: rows, noise, update. Returns dn_update's count. */
int64_t run_entry(run *r, const dn_table *t, model_fn model, noise_fn noise, void *user);

/* A configuration from `file` (JSON text, NULL: none) with `request` (NULL: none) laid over; both must be accepted. */
dn_scheduler_config *config_of(const char *file, const char *request);
/* Parameters with every default. */
dn_plan_params params_of(int sampler, int steps);
json_t *json_file(const char *path);

#endif
