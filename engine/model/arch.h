/* arch.h - architectures: from a component's config.json to a recorded program.
 *
 * Adding a model is one file that fills a dn_arch, and one line in registry.c. */
#ifndef DN_MODEL_ARCH_H
#define DN_MODEL_ARCH_H

#include "nn.h"
#include <denoised/model.h>

struct json_t;

/* What the rest of the engine needs to know about a network. Labels arrive as inputs: DN_LABEL_EMBED as "label" I32 [2] and
 * "label_w" [1], DN_LABEL_NUMBER as "label_value" [1], DN_LABEL_VECTOR as "label_vector" [label_dim]. */
typedef struct dn_arch_info {
    int height, width;           /* sample_size; 0: the config does not say */
    int in_channels, out_channels;
    int size_multiple;           /* height and width must be multiples of it */
    enum dn_label_kind label_kind;
    int64_t label_rows, label_dim;
    double dropout;              /* of training; only in programs that have the input "rng" I32 [4] */
    int64_t time_rows;           /* learned time embedding: rows of its table (inputs "time" I32 [2], "time_w" [1]), else 0 */
} dn_arch_info;

/* Every network has inputs "x" [H,W,in_channels], "t" [1] (unless time_rows), label inputs as above, and output "out"
 * [H,W,out_channels]. */
typedef struct dn_arch {
    const char *class_name; /* "UNet2DModel" */
    /* Parse and check a config. *config is malloc'ed, freed with free(). */
    int (*parse)(void **config, const struct json_t *json, dn_error *err);
    void (*describe)(const void *config, dn_arch_info *info);
    /* Record the network for pictures of height x width into p, parameters in block `block`. Errors are p->error. */
    void (*build)(const void *config, dn_program *p, int block, int height, int width);
    const struct dn_config_key *keys; /* all that a config can have */
    int n_keys;
} dn_arch;

extern const dn_arch dn_arch_unet2d;

const dn_arch *dn_arch_find(const char *class_name); /* NULL: unknown */

/* Config keys as a table: what a value may be and where it goes. */
enum dn_config_type { DN_CONFIG_INT, DN_CONFIG_DOUBLE, DN_CONFIG_BOOL, DN_CONFIG_CHOICE, DN_CONFIG_INTS, DN_CONFIG_CHOICES };
enum { DN_CONFIG_LIST_MAX = 16 };

typedef struct dn_config_list {
    int n, value[DN_CONFIG_LIST_MAX];
} dn_config_list;

typedef struct dn_config_key {
    const char *name;
    enum dn_config_type type;
    size_t offset;              /* INT, CHOICE: int; DOUBLE: double; BOOL: bool; INTS, CHOICES: dn_config_list */
    double lo, hi;              /* of numbers */
    const char *const *choices; /* NULL-terminated; the index is stored */
    bool null_ok;               /* null leaves what is there */
    int null_value;             /* INT, CHOICE: what null means */
} dn_config_key;

/* Lay the keys of `json` over the struct; keys that it has not keep the struct's values, unknown keys are ignored. */
int dn_arch_read(void *config, const dn_config_key *keys, int n, const struct json_t *json, dn_error *err);

#endif
