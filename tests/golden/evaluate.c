/* evaluate.c - evaluate MODEL_FOLDER IN.safetensors OUT.safetensors DEVICE: one forward of rows from a file.
 *
 * In: sample [n,C,H,W], timestep [n], class_labels [n] (I64) or [n,D] (F32); out: output [n,H,W,C']. For cross_check.py. */
#include "vectors.h"
#include <denoised/device.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    dn_error err = { 0 };
    dn_model *m;
    dn_device *d;
    dn_net *net;
    if (argc != 5)
        return 2;
    CHECK("model", dn_model_load(&m, argv[1], &err));
    CHECK("device", dn_device_open(&d, argv[4], &err));
    vectors *v = vectors_open("", argv[2]);
    const dn_st_tensor *shape = vectors_find(v, "sample"), *labels = vectors_find(v, "class_labels");
    int n = (int)shape->dim[0], h = (int)shape->dim[2], w = (int)shape->dim[3];
    const dn_model_info *info = dn_model_info_of(m);
    CHECK("net", dn_net_new(&net, d, m, h, w, 0, &err));
    float *x = vectors_nhwc(v, "sample"), *t = vectors_floats(v, "timestep"), *label = labels ? vectors_floats(v, "class_labels") : NULL;
    int64_t in = (int64_t)h * w * info->channels, out = (int64_t)h * w * info->out_channels;
    float *y = malloc(sizeof *y * (size_t)(out * n));
    dn_row row[64];
    for (int i = 0; i < n; i++) {
        dn_table table;
        CHECK("table", dn_table_plan_denoise(&table, t[i], 1, &err));
        dn_sample_params p = { .table = &table, .height = h, .width = w, .channels = info->channels, .out_channels = info->out_channels,
                               .label = -1, .temperature = 1, .x = x + i * in };
        if (labels && labels->rank == 2) {
            p.label_vector = label + i * labels->dim[1];
            p.label_dim = (int)labels->dim[1];
        } else if (labels) {
            p.label = (int)label[i];
        }
        row[i].kind = DN_ROW_COND;
        CHECK("sample", dn_sample_new(&row[i].sample, d, &p, &err));
    }
    dn_batch *b;
    CHECK("batch", dn_batch_begin(&b, d, net, row, n, &err));
    CHECK("run", dn_batch_some(b, 0));
    dn_batch_free(b);
    for (int i = 0; i < n; i++) {
        dn_sample_update(row[i].sample);
        dn_sample_read(row[i].sample, DN_READ_OUT, y + i * out);
        dn_sample_free(row[i].sample);
    }
    dn_st_tensor result = { "output", "F32", 4, { n, h, w, info->out_channels }, y, sizeof *y * (size_t)(out * n) };
    uint8_t *bytes;
    size_t len;
    CHECK("encode", dn_st_encode(&bytes, &len, &result, 1, &err));
    FILE *f = fopen(argv[3], "wb");
    if (!f || fwrite(bytes, 1, len, f) != len || fclose(f))
        return 1;
    free(bytes);
    free(y);
    free(label);
    free(t);
    free(x);
    vectors_close(v);
    dn_net_free(net);
    dn_device_close(d);
    dn_model_free(m);
    return 0;
}
