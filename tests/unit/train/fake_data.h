/* fake_data.h - a dataset of made-up pictures, with the reader's interface. */
#ifndef FAKE_DATA_H
#define FAKE_DATA_H

#include <denoised/dataset.h>

/* n pictures; labels 0..n_classes-1 in turn (0: none). Freed by dn_dataset_close. */
dn_dataset *fake_dataset(int64_t n, int height, int width, int channels, int n_classes);
/* Later pictures hold this value everywhere (NAN: poison). Normal again after fake_poison(d, -1, 0). */
void fake_poison(dn_dataset *d, int64_t from_step, float value);

#endif
