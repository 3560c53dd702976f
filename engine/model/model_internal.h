/* model_internal.h - what engine/device sees of a dn_model. */
#ifndef DN_MODEL_INTERNAL_H
#define DN_MODEL_INTERNAL_H

#include "arch.h"
#include "backend.h"
#include "memory.h"

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
    struct json_t *index, *config_json, *extra;
    dn_packed *form;             /* grown on the slow thread only; entries never change */
    int n_forms;
    char **form_block;           /* the memory that they lie in */
    int n_form_blocks, form_blocks_cap;
};

/* The network recorded for one size, pruned. NULL: out of memory; other failures are in p->error. The caller frees it. */
dn_program *dn_model_program(const dn_model *m, int height, int width);

/* The packed forms that a lowered program reads, out[n_forms]; what nobody asked for before is made (then *made grows by its
 * bytes). Slow thread only. */
int dn_model_forms(dn_model *m, const dn_lowered *l, const void **out, size_t *made, dn_error *err);

#endif
