/* table.h - every sampler is numbers: a table of entries, one per update of a sample.
 *
 * A plan function per sampler fills the table from the schedule in double precision; one kernel (the update, a backend
 * call) executes every entry of every sampler. An entry needs 0 to 3 rows (network evaluations); when the last is
 * done the sample is updated, element by element, everything on the right read before anything on the left is
 * written:
 *
 *     out  = out_u + w * (out_c - out_u)                      (only with an unconditional row; else out = out_c)
 *     out  = out + g * grad                                   (only with a gradient row)
 *     x0   = c_s * (c_x * x + c_o * out)                      (epsilon, v, x0 or flow prediction: only these differ; the
 *                                                              order is diffusers', whose cancellation shows at high noise)
 *     x0   = clip or threshold                                (per sample)
 *     x'   = sum over the basis (x, x0, out, z, z2, h_0 .. h_7) of coefficient * term
 *     h_k' = the same, for each history vector that the entry writes
 *
 * `z` and `z2` are standard normals times the request's temperature (entry index as counter: rng.h). A row evaluates the
 * network at c_in * x and `timestep`. */
#ifndef DENOISED_TABLE_H
#define DENOISED_TABLE_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stdint.h>

enum { DN_HISTORY_MAX = 8, DN_WRITES_MAX = 4, DN_STEPS_MAX = 4096 };

enum dn_basis { DN_B_X, DN_B_X0, DN_B_OUT, DN_B_Z, DN_B_Z2, DN_B_H0, DN_BASIS = DN_B_H0 + DN_HISTORY_MAX };

enum dn_entry_flags {
    DN_NO_FORWARD = 1,     /* no rows: runs at once, within the same boundary */
    DN_CLIP = 2,           /* x0 = clamp(x0, -clip, clip) */
    DN_THRESHOLD = 4,      /* dynamic: s = quantile(|x0|, ratio) clamped to [1, clip]; x0 = clamp(x0, -s, s) / s */
    DN_SIGMA_LEARNED = 8,  /* x' += z * z_scale * exp(0.5 * lerp(lv_min, lv_max, (v+1)/2)), v: the row's 2nd half */
    DN_SIGMA_RAW = 16,     /* x' += z * z_scale * sqrt(v) */
    DN_RESCALE = 32,       /* guidance rescale: out *= rescale * std(out_c)/std(out) + (1 - rescale), before x0 */
    DN_STEP_END = 64       /* the last entry of one of the request's sampler steps: progress and previews count these */
};

enum dn_row_kind { DN_ROW_COND, DN_ROW_UNCOND, DN_ROW_GRAD, DN_ROWS_MAX = 3 };

typedef struct dn_linear {
    float a[DN_BASIS];
} dn_linear;

typedef struct dn_entry {
    uint32_t flags;
    uint8_t rows;      /* bit set of dn_row_kind; 0 with DN_NO_FORWARD */
    uint8_t n_writes;
    int8_t write[DN_WRITES_MAX]; /* history index 0..7 that writes[i] goes to */
    float timestep;    /* what the network is told; may be fractional */
    float c_in, w, g, c_s, c_x, c_o;
    float clip, ratio; /* clip range or sample_max_value; quantile of thresholding */
    float lv_min, lv_max, z_scale;
    float rescale;
    dn_linear x;       /* x' */
    dn_linear writes[DN_WRITES_MAX];
} dn_entry;

typedef struct dn_table {
    dn_entry *entry;
    int n_entries;
    int n_history;     /* history vectors used, 0..8 */
    int n_steps;       /* entries with DN_STEP_END: the request's sampler steps */
    float init_scale;  /* x at the start = init_scale * N(0,1) (init_noise_sigma) */
    bool draws_noise;  /* some entry uses z or z2 with a coefficient that is not zero */
} dn_table;

void dn_table_fini(dn_table *t); /* NULL is fine; leaves it zeroed */
/* Row evaluations of the whole table. */
int64_t dn_table_rows(const dn_table *t);

#endif
