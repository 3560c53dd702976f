#include "fake_data.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct dn_dataset {
    dn_dataset_info info;
    int64_t poison_from;
    float poison;
};

struct dn_reader {
    dn_reader_params p;
};

dn_dataset *fake_dataset(int64_t n, int height, int width, int channels, int n_classes)
{
    dn_dataset *d = calloc(1, sizeof *d);
    d->info = (dn_dataset_info){ .n = n,
                                 .channels = channels,
                                 .height_min = height,
                                 .height_max = height,
                                 .width_min = width,
                                 .width_max = width,
                                 .range = { 0, 255 },
                                 .n_classes = n_classes };
    memset(d->info.hash, 'a', 64);
    d->poison_from = -1;
    return d;
}

void fake_poison(dn_dataset *d, int64_t from_step, float value)
{
    d->poison_from = from_step;
    d->poison = value;
}

void dn_dataset_close(dn_dataset *d) { free(d); }
const dn_dataset_info *dn_dataset_info_of(const dn_dataset *d) { return &d->info; }
int dn_dataset_label(const dn_dataset *d, int64_t i) { return d->info.n_classes ? (int)(i % d->info.n_classes) : -1; }

int dn_reader_new(dn_reader **out, const dn_reader_params *p, int64_t start_step, dn_error *err)
{
    (void)start_step, (void)err;
    *out = calloc(1, sizeof **out);
    (*out)->p = *p;
    return 0;
}
void dn_reader_free(dn_reader *r) { free(r); }
size_t dn_reader_bytes(const dn_reader_params *p) { return sizeof(dn_reader_params) + (size_t)p->n * 0; }

int64_t dn_reader_index(const dn_reader_params *p, int64_t step, int k)
{
    int64_t at = step * p->batch_size + k;
    return p->first + (p->shuffle ? at * 7 + step : at) % p->n;
}

void dn_reader_get(dn_reader *r, int64_t step, int first, int n, float *x, int32_t *labels, double *wait_ms)
{
    const dn_dataset *d = r->p.data;
    int64_t pixels = (int64_t)r->p.height * r->p.width * r->p.channels;
    for (int k = 0; k < n; k++) {
        int64_t image = dn_reader_index(&r->p, step, first + k);
        labels[k] = dn_dataset_label(d, image);
        for (int64_t i = 0; i < pixels; i++)
            x[k * pixels + i] = sinf(0.1f * (float)i + (float)image) * cosf(0.37f * (float)image);
        if (d->poison_from >= 0 && step >= d->poison_from)
            x[k * pixels] = d->poison;
    }
    if (wait_ms)
        *wait_ms = 0;
}
