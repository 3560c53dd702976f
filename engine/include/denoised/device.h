/* device.h - a device and what runs on it: networks, samples, rows.
 *
 * One thread, the device's worker, owns a dn_device and alone touches its samples. Networks (dn_net) are made on a slow
 * thread (they lower, plan and pack) and only read afterwards.
 *
 * Life of a sample: dn_sample_new -> while entries are left: its rows run in any batches (dn_batch_begin, dn_batch_some),
 * and when the last row of the current entry is done dn_sample_update moves it on -> dn_sample_read -> dn_sample_free. */
#ifndef DENOISED_DEVICE_H
#define DENOISED_DEVICE_H

#include <denoised/error.h>
#include <denoised/model.h>
#include <denoised/table.h>

typedef struct dn_device dn_device;
typedef struct dn_net dn_net;
typedef struct dn_sample dn_sample;
typedef struct dn_batch dn_batch;

/* `spec`: "cpu" (all CPUs that affinity and the cgroup allow), "cpu:0-1", "cpu:0,2" or "ref" (plain loops: the truth,
 * slow). The compute threads start here. */
int dn_device_open(dn_device **out, const char *spec, dn_error *err);
void dn_device_close(dn_device *d); /* every sample and batch of it must be gone */
const char *dn_device_name(const dn_device *d);    /* the spec */
const char *dn_device_backend(const dn_device *d); /* "ref", "cpu-avx2" */
int dn_device_threads(const dn_device *d);
size_t dn_device_bytes(const dn_device *d);        /* arenas and slots it holds now */
/* Give back the arena if it is larger than `bytes`, what the networks that are left need; no batch is under way. */
void dn_device_trim(dn_device *d, size_t bytes);

/* The network of a model at one size, ready for devices of one backend. `rows_max` 0: the backend's choice (a chunk that
 * keeps activations in cache). Packed weight forms are shared with other nets of the same model. Slow. */
int dn_net_new(dn_net **out, const dn_device *d, dn_model *m, int height, int width, int rows_max, dn_error *err);
void dn_net_free(dn_net *n);
/* What a model of the folder `dir` will hold at its own size, from its configuration: no weight is read. Slow. */
typedef struct dn_footprint {
    size_t weights, forms; /* of the model */
    size_t arena;          /* of each device that runs it */
} dn_footprint;
int dn_net_foresee(dn_footprint *out, const dn_device *d, const char *dir, dn_error *err);
size_t dn_net_arena_bytes(const dn_net *n);
size_t dn_net_form_bytes(const dn_net *n); /* packed forms that this net was the first to ask for */
double dn_net_gflop_per_row(const dn_net *n);
/* "cpu-avx2/k2/w<hash>/fp32": names every source of different bytes. Owned by the net. */
const char *dn_net_numerics(const dn_net *n);

typedef struct dn_sample_params {
    const dn_table *table;   /* taken over by value (moved) on success; the caller's stays zeroed */
    bool table_shared;       /* instead it is only read, and lives longer than the sample */
    int height, width, channels, out_channels;
    uint64_t seed;
    int label;               /* the conditional label; -1: the null label, or none */
    const float *label_vector; /* DN_LABEL_VECTOR: label_dim numbers, copied */
    int label_dim;
    int label_b;             /* labels can be interpolated: (1-w)*E[label] + w*E[label_b] */
    float label_w;           /* 0: label alone */
    int null_label;          /* of unconditional rows */
    float temperature;       /* factor on z and z2 (1) */
    bool torch_rng;          /* diffusers' generator=Generator().manual_seed(seed), NCHW order, instead of Philox */
    bool keep_x0;            /* dn_sample_read may ask for the predicted x0 (previews) */
    const float *x;          /* start from this [H,W,C] instead of noise; NULL: noise */
} dn_sample_params;

/* Reserve the slot and fill it. */
int dn_sample_new(dn_sample **out, dn_device *d, const dn_sample_params *p, dn_error *err);
void dn_sample_free(dn_sample *s); /* NULL is fine */
size_t dn_sample_bytes(const dn_sample_params *p);
int dn_sample_entry(const dn_sample *s);      /* the current entry; n_entries when done */
int dn_sample_step(const dn_sample *s);       /* finished sampler steps */
bool dn_sample_done(const dn_sample *s);
/* Rows of the current entry that have not run yet: a bit set of dn_row_kind. */
unsigned dn_sample_rows(const dn_sample *s);
enum dn_what {
    DN_READ_X,  /* [H,W,C], in the model's own range */
    DN_READ_X0, /* [H,W,C]: the x0 that the last entry predicted (keep_x0; else x) */
    DN_READ_OUT /* [H,W,out_channels]: the last entry's network output, guidance applied (POST /denoise) */
};
/* Copy floats out. */
void dn_sample_read(const dn_sample *s, enum dn_what what, float *dst);

typedef struct dn_row {
    dn_sample *sample;
    enum dn_row_kind kind;
} dn_row;

/* Start a run of rows (all of `net`'s size) as one batch; nothing is computed yet. */
int dn_batch_begin(dn_batch **out, dn_device *d, const dn_net *net, const dn_row *rows, int n, dn_error *err);
/* Compute for about max_ms (<= 0: to the end). 0: done, and the rows are marked as run; 1: more to do; < 0: negated DN_E code. */
int dn_batch_some(dn_batch *b, double max_ms);
void dn_batch_free(dn_batch *b);

/* All rows of the current entry have run: update the sample, then every NO_FORWARD entry that follows. DN_E_NON_FINITE when the
 * sample is spoilt (it must be freed; the others of its batch are not touched). */
int dn_sample_update(dn_sample *s);

#endif
