/* stored.h - a tensor as it lies in a source, and its way to float32.
 *
 * Invariant: whoever makes a dn_stored has checked that all its elements lie inside the source, that count is the
 * product of its dimensions, and that it has no more elements than its storage: a small file never asks for much
 * memory. */
#ifndef DN_IO_STORED_H
#define DN_IO_STORED_H

#include "checkpoint.h"
#include "source.h"

enum { DN_TENSORS_MAX = 16384 };

/* One row per element type; found by what safetensors or torch calls it. */
typedef struct dn_dtype {
    const char *name;    /* safetensors: "BF16" */
    const char *storage; /* torch: "BFloat16Storage"; NULL if it has none */
    int bits;
    enum dn_tensor_dtype kind;
} dn_dtype;
const dn_dtype *dn_dtype_find(const char *name);                  /* NULL: no such */
const dn_dtype *dn_dtype_find_storage(const char *s, size_t len); /* NULL: no such */

typedef struct dn_stored {
    char name[DN_TENSOR_NAME_MAX];
    const dn_dtype *dtype;
    int rank;
    int64_t dim[DN_TENSOR_RANK_MAX];
    int64_t stride[DN_TENSOR_RANK_MAX]; /* in elements */
    int64_t count;
    uint64_t offset; /* of element 0, in the source */
    uint64_t bytes;  /* from element 0 to the end of the last one */
    int source;      /* index of the source among its owner's */
} dn_stored;

typedef struct dn_stored_list {
    dn_stored *at;
    int len, cap;
} dn_stored_list;

/* Room for `more` further tensors; over DN_TENSORS_MAX in all is refused. */
int dn_stored_reserve(dn_stored_list *l, size_t more, const char *file, dn_error *err);
void dn_stored_fini(dn_stored_list *l);

/* count and C-order strides from rank and dim. -1 if a product does not fit. */
int dn_stored_set_shape(dn_stored *t);
/* Convert to float32 in C order; dst has t->count floats, undefined after a failure. */
int dn_stored_read(const dn_stored *t, const dn_source *src, float *dst, dn_error *err);

/* The formats. Each appends the tensors of `src` to `l`, with `source` as their index. */
int dn_safetensors_list(dn_stored_list *l, const dn_source *src, int source, dn_error *err);
int dn_torch_list(dn_stored_list *l, const dn_source *src, int source, dn_error *err);

#endif
