/* fuzz_pickle.c - any bytes as a torch .bin, or, if they are no zip, as the pickle inside of one. */
#include "pickle.h"

#include <stdlib.h>
#include <string.h>

enum { STORAGE_BYTES_MAX = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool any_storage(void *ctx, const char *key, size_t key_len, uint64_t bytes, uint64_t *offset)
{
    (void)ctx;
    *offset = key_len > 0 ? (uint64_t)(key[0] & 1) : 0;
    return bytes <= STORAGE_BYTES_MAX;
}

static void read_all(const dn_stored_list *l, const dn_source *src)
{
    for (int i = 0; i < l->len; i++) {
        float *f = malloc((size_t)l->at[i].count * sizeof *f + 1);
        dn_error err = { 0 };
        int rc = dn_stored_read(&l->at[i], src, f, &err);
        if (!f || (rc != 0 && rc != DN_E_UNSUPPORTED))
            abort();
        free(f);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t storage[STORAGE_BYTES_MAX + 1];
    dn_source src = dn_source_memory(data, size, "fuzz.bin");
    dn_stored_list l = { 0 };
    dn_error err = { 0 };
    int rc;
    if (size >= 2 && memcmp(data, "PK", 2) == 0)
        rc = dn_torch_list(&l, &src, 0, &err);
    else {
        rc = dn_pickle_list(&l, data, size, any_storage, NULL, "fuzz.bin", &err);
        src = dn_source_memory(storage, sizeof storage, "storage");
    }
    if (rc != 0 && (!err.message[0] || l.len != 0))
        abort();
    read_all(&l, &src);
    dn_stored_fini(&l);
    return 0;
}
