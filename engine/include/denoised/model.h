/* model.h - a model version: a diffusers folder, read, checked, ready to be put on devices.
 *
 * A dn_model is immutable once loaded. It is read and packed on a slow thread, never on a device's worker. */
#ifndef DENOISED_MODEL_H
#define DENOISED_MODEL_H

#include <denoised/error.h>
#include <denoised/sampler.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dn_model dn_model;

enum { DN_LABEL_MAX = 64, DN_SIZES_MAX = 32 };

enum dn_label_kind {
    DN_LABEL_NONE,   /* the network takes no label */
    DN_LABEL_EMBED,  /* a class: 0..n_classes-1 */
    DN_LABEL_NUMBER, /* any whole number (class_embed_type "timestep") */
    DN_LABEL_VECTOR  /* label_dim numbers (class_embed_type "identity") */
};

typedef struct dn_model_info {
    const char *architecture;       /* "UNet2DModel" */
    const char *pipeline;           /* "DDPMPipeline"; "" for a bare component */
    const char *description;        /* of denoised.json; "" */
    int height, width, channels;    /* of a sample; pixels (or latents) and channels, NHWC */
    int out_channels;               /* channels, or twice that with learned variance */
    bool learned_variance;          /* out_channels is twice channels */
    int size_multiple;              /* height and width must be multiples of it */
    enum dn_label_kind label_kind;
    int n_classes;                  /* DN_LABEL_EMBED: rows of the table */
    int label_dim;                  /* DN_LABEL_VECTOR: its length */
    int null_label;                 /* -1: none, so no guidance */
    const char *const *labels;      /* names; n_labels of them */
    int n_labels;
    double range[2];                /* of the data: [-1, 1] */
    int sizes[DN_SIZES_MAX][2];     /* further H, W allowed by denoised.json */
    int n_sizes;
    int64_t parameters;
    size_t bytes;                   /* of the weights in host memory, packed forms not counted */
    char hash[65];                  /* sha256 of the weights as we hold them, hex */
    const dn_scheduler_config *scheduler;
    const struct json_t *defaults;  /* denoised.json "defaults": request fields; NULL if none */
} dn_model_info;

/* Read the folder `dir`. On failure *out is untouched and *err names file, tensor and both shapes. */
int dn_model_load(dn_model **out, const char *dir, dn_error *err);
/* Before anything is made of it: lay diffusers' scheduler keys over its own, strictly; `_class_name` makes it another scheduler with
 * the keys of the old one that it knows. err->param is "scheduler.KEY". */
int dn_model_reschedule(dn_model *m, const struct json_t *keys, dn_error *err);
void dn_model_free(dn_model *m); /* NULL is fine */
const dn_model_info *dn_model_info_of(const dn_model *m);
/* The index of a label name (exact, case-insensitive), or -1. */
int dn_model_label(const dn_model *m, const char *name);
/* Is H x W the model's own size or allowed by its `sizes`? */
bool dn_model_size_ok(const dn_model *m, int height, int width);

#endif
