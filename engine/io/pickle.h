/* pickle.h - reads the one kind of pickle that is a map of tensors: what torch.save makes of a state dict.
 *
 * It is a reader of data, not a virtual machine: nothing is imported, called or run. A pickle that names anything but
 * the few globals of a tensor, or uses an opcode that a state dict does not need, is refused by name. */
#ifndef DN_IO_PICKLE_H
#define DN_IO_PICKLE_H

#include "stored.h"

enum {
    DN_PICKLE_BYTES_MAX = 16 << 20,
    DN_PICKLE_VALUES_MAX = 1 << 20, /* likewise memo entries, tuple items, dict pairs */
    DN_PICKLE_STACK_MAX = 1 << 14,
    DN_PICKLE_DEPTH_MAX = 64 /* open marks */
};

/* Where the raw bytes of storage `key` are: sets *offset; false: there is no storage of exactly that many bytes. */
typedef bool dn_storage_lookup(void *ctx, const char *key, size_t key_len, uint64_t bytes, uint64_t *offset);

/* Append the tensors of the pickle to `l`. `file` is for messages. */
int dn_pickle_list(dn_stored_list *l, const uint8_t *buf, size_t len, dn_storage_lookup *lookup, void *ctx,
                   const char *file, dn_error *err);

#endif
