/* augment.h - what is done to an image between the store and the batch, each decision from Philox.
 *
 * An augmentation draws its four numbers u from (seed, optimizer step, DN_RNG_AUGMENT | its place in the list, sample):
 * u[0] < p decides whether it happens. A crop chooses the box that is resized, so it comes first wherever it stands;
 * the others follow in the order given, on values in [0, 1]. What a rotation uncovers is 0 (black); a cutout is filled
 * with 0.5. */
#ifndef DN_DATA_AUGMENT_H
#define DN_DATA_AUGMENT_H

#include "resize.h"

#include <denoised/dataset.h>

typedef struct dn_draws {
    uint64_t seed;
    int64_t step;
    int sample;
} dn_draws;

/* err->param is "augment". */
int dn_augment_check(const dn_augment *augment, int n, dn_error *err);
/* The part of a height by width image that becomes the target: the largest box of its shape, in the centre; or what a
 * crop draws. */
dn_box dn_augment_box(const dn_augment *augment, int n, const dn_draws *d, int height, int width, int to_height,
                      int to_width);
/* All but crops, in place on x [H,W,C] in [0, 1]; `other` has room for as much. */
void dn_augment_apply(const dn_augment *augment, int n, const dn_draws *d, float *x, float *other, int height,
                      int width, int channels);

#endif
