/* fuzz_array.c - any bytes as an array, IDX, npy or safetensors: all elements that a header promises lie in the file.
 */
#include "array.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dn_source src = dn_source_memory(data, size, "a/fuzz.npy");
    dn_stored_list l = { 0 };
    dn_error err = { 0 };
    enum dn_array_kind kind = dn_array_kind_of(data, size, size);
    if (kind == DN_NO_ARRAY)
        return 0;
    if (dn_array_list(&l, kind, &src, 0, &err) != 0 && (!err.message[0] || l.len > 0))
        abort();
    for (int i = 0; i < l.len; i++) {
        const dn_stored *t = &l.at[i];
        if (t->offset > size || t->bytes > size - t->offset ||
            (uint64_t)t->count * (uint64_t)t->dtype->bits > t->bytes * 8)
            abort();
        uint8_t *copy = malloc((size_t)t->bytes + 1);
        if (!copy || dn_source_read(&src, t->offset, copy, (size_t)t->bytes, &err) != 0)
            abort();
        free(copy);
    }
    dn_stored_fini(&l);
    return 0;
}
