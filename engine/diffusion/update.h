/* update.h - the one kernel that executes every entry of every sampler (table.h), for one sample on the CPU.
 *
 * Plain C over flat arrays of n = H*W*C elements; element order and arithmetic are fixed, so results do not depend on
 * threads. Reductions (std of rescale, quantile of thresholding) run over the whole sample. */
#ifndef DN_DIFFUSION_UPDATE_H
#define DN_DIFFUSION_UPDATE_H

#include <denoised/table.h>
#include <stdint.h>

typedef struct dn_slot {
    int64_t n;                  /* elements of x: H*W*C */
    int channels, out_channels; /* out rows have n/channels*out_channels elements, channels last */
    float *x;
    float *out[DN_ROWS_MAX]; /* by dn_row_kind; [H,W,out_channels] */
    float *h[DN_HISTORY_MAX];
    float *z, *z2;  /* noise of this entry, made by the caller where a coefficient needs it; else NULL */
    float *x0;      /* where the predicted x0 goes; scratch, never NULL */
    float *scratch; /* n floats */
} dn_slot;

/* Does the entry read z / z2 (a coefficient that is not zero, in x' or a write)? */
bool dn_entry_uses(const dn_entry *e, enum dn_basis b);
/* Execute the entry. Returns the number of non-finite values in the outputs of its rows and in x': clipping makes a
 * number of an infinite output, but not a sample of a spoilt one. */
int64_t dn_update(const dn_slot *s, const dn_entry *e);

/* diffusers' torch CPU generator (reference/diffusers.md 1.9): mt19937 and torch.randn's exact algorithm. */
typedef struct dn_torch_rng {
    uint32_t state[624];
    int index;
    bool has_cached;
    double cached;
} dn_torch_rng;
void dn_torch_seed(dn_torch_rng *r, uint64_t seed);
void dn_torch_randn(dn_torch_rng *r, float *dst, int64_t n); /* torch.randn(n) in its own (NCHW) order */

#endif
