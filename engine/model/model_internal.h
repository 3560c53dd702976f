/* model_internal.h - what engine/device sees of a dn_model. */
#ifndef DN_MODEL_INTERNAL_H
#define DN_MODEL_INTERNAL_H

#include "arch.h"
#include "backend.h"
#include "memory.h"

#define DN_INIT_MAX ((int64_t)1 << 30) /* parameters of a model that is made here */

/* A packed form of a model's parameters. */
typedef struct dn_packed {
    dn_form form;
    const void *data; /* in one of the model's form blocks */
} dn_packed;

struct dn_model {
    dn_model_info info;
    const dn_arch *arch;
    dn_arch_info arch_info;
    void *config;
    float *weights;              /* one block, in registration order */
    const char **labels;         /* into `extra` */
    struct json_t *index, *config_json, *scheduler_json, *extra;
    dn_packed *form;             /* grown on the slow thread only; entries never change */
    int n_forms;
    char **form_block;           /* the memory that they lie in */
    int n_form_blocks, form_blocks_cap;
};

/* A model without its weights: the folder's configuration. The caller frees it. *component: where the weights are. */
int dn_model_open(dn_model **out, const char *dir, const char **component, dn_error *err);

/* The network recorded for one size, pruned. NULL: out of memory; other failures are in p->error. The caller frees it. */
dn_program *dn_model_program(const dn_model *m, int height, int width);

/* A model without weights, from its JSON (copied; index and extra may be NULL, a NULL scheduler is DDPM's). */
int dn_model_describe(dn_model **out, const struct json_t *index, const struct json_t *config, const struct json_t *scheduler,
                      const struct json_t *extra, dn_error *err);
/* Give it a block of zeros for its weights. Whoever fills it sets info.hash afterwards. */
int dn_model_weights_new(dn_model *m, const dn_block *b, dn_error *err);
/* The same of undefined contents, not touched yet: whoever fills it fills all of it. */
int dn_model_weights_reserve(dn_model *m, const dn_block *b, dn_error *err);
/* The checkpoint's shape of a parameter, and our order turned into the checkpoint's. */
dn_shape dn_param_file_shape(const dn_param *q);
void dn_param_to_file(float *dst, const float *src, const dn_param *q);
/* What a form takes in memory. */
static inline size_t dn_form_room(const dn_form *f) { return (f->bytes + 63) / 64 * 64; }

/* The packed forms that a lowered program reads, out[n_forms]; what nobody asked for before is made (then *made grows by its
 * bytes). Slow thread only. */
int dn_model_forms(dn_model *m, const dn_lowered *l, const void **out, size_t *made, dn_error *err);

#endif
