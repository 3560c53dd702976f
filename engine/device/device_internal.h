/* device_internal.h - shared by the files of engine/device. */
#ifndef DN_DEVICE_INTERNAL_H
#define DN_DEVICE_INTERNAL_H

#include "backend.h"
#include "model_internal.h"
#include "pool.h"
#include "rng.h"
#include "update.h"
#include <denoised/device.h>

struct dn_device {
    char spec[64];
    const dn_backend *backend;
    dn_pool *pool;
    void (*normal)(float *out, int64_t first, int64_t n, const dn_rng_key *key);
    char *arena;          /* of steps: as large as the largest net that ran needs, for all its streams */
    size_t arena_bytes;
    float *scratch;       /* z, z2, x0, scratch of the sample that is being updated */
    size_t scratch_count; /* floats of each */
    size_t slot_bytes;    /* of all samples */
    bool busy;            /* a batch is under way */
};

/* Places of a network's inputs and output, -1 where it has none. */
typedef struct dn_ports {
    int x, t, time, time_w, label, label_w, label_value, label_vector, out;
} dn_ports;

dn_ports dn_ports_find(const dn_lowered *l);
/* The timestep of a row; `rows`: of the table of a learned time embedding, else 0. */
void dn_ports_put_time(const dn_ports *to, int rows, const dn_run *run, int row, float t);
/* Label a, or (1-w)*E[a] + w*E[b]; nothing where the network takes none. */
void dn_ports_put_label(const dn_ports *to, const dn_run *run, int row, int a, int b, float w);

/* What the environment asks for (inspect.h). DENOISED_TRACE=1? With DENOISED_CHECK=ref, *out is the program on ref with every value
 * apart, to be freed; else it is untouched. */
bool dn_trace_wanted(void);
int dn_check_prepare(dn_lowered **out, const dn_lowered *l, dn_error *err);

/* Bump when a kernel's result bits may change: it is part of the numerics id. */
enum { DN_KERNEL_VERSION = 2 };

struct dn_net {
    const dn_model *model;
    dn_program *program;
    dn_lowered *lowered;
    const void **form;
    size_t form_bytes;
    double gflop_per_row;
    int streams;            /* threads that may each have an arena of their own; 1: none */
    int height, width;
    dn_ports ports;
    char numerics[96];
    bool trace;             /* DENOISED_TRACE=1: tell what each step makes */
    dn_lowered *check;      /* DENOISED_CHECK=ref: the same program on ref, every value apart; else NULL */
    dn_ports check_ports;
};

/* What a model, whose weights need not be there, will hold at its own size. */
int dn_model_footprint(dn_footprint *out, const dn_device *d, const dn_model *m, dn_error *err);

struct dn_sample {
    dn_device *device;
    dn_table table;
    bool table_shared;    /* its entries are not ours */
    dn_slot slot;         /* z, z2, scratch (and x0 unless kept) are lent by the device during an update */
    void *memory;
    size_t bytes;
    int height, width;
    uint64_t seed;
    int label, label_b, null_label;
    float label_w, temperature;
    float *label_vector;
    int label_dim;
    float *x0;            /* kept for previews, or NULL */
    dn_torch_rng *torch;  /* NULL: Philox */
    int entry, step;
    unsigned rows_done;   /* of the current entry: a bit set of dn_row_kind */
};

/* An arena is whole huge pages where it is worth one, else whole lines. */
enum { DN_HUGE_PAGE = 2 << 20 };
static inline size_t dn_arena_align(size_t bytes) { return bytes >= DN_HUGE_PAGE ? DN_HUGE_PAGE : 64; }
static inline size_t dn_arena_room(size_t bytes)
{
    size_t align = dn_arena_align(bytes);
    return (bytes + align - 1) / align * align;
}

#endif
