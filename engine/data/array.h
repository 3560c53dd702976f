/* array.h - datasets that are arrays: MNIST's IDX, .npy, .safetensors.
 *
 * Headers are read into io's dn_stored; elements are read image by image, so that an array of any size needs the memory
 * of one image. */
#ifndef DN_DATA_ARRAY_H
#define DN_DATA_ARRAY_H

#include "store.h"
#include "stored.h"

enum dn_array_kind { DN_NO_ARRAY, DN_IDX, DN_NPY, DN_SAFETENSORS };

/* By the first bytes and, for safetensors, the size of the whole. */
enum dn_array_kind dn_array_kind_of(const uint8_t *head, size_t len, uint64_t size);

/* Append the arrays of `src` to `l`, all of whose elements lie inside it. Their name is src->name without its ending
 * (IDX, .npy) or the tensor's (.safetensors). */
int dn_array_list(dn_stored_list *l, enum dn_array_kind kind, const dn_source *src, int source, dn_error *err);

/* Whose part an array has in a dataset. */
bool dn_array_is_labels(const dn_stored *t);

/* Add all images of `t` ([n,H,W], [n,H,W,C], or [n,C,H,W] with C 1 or 3 and sides above 4) with the labels of `labels`
 * ([n] or [n,1], integers; NULL: none) to the store,
 * which is new. *n_classes is the largest label + 1, or 0. */
int dn_array_import(dn_store *s, const dn_stored *t, const dn_source *src, const dn_stored *labels,
                    const dn_source *labels_src, int *n_classes, dn_error *err);

#endif
