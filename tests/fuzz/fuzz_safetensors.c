/* fuzz_safetensors.c - any bytes as a safetensors file: what is accepted can be read as float32, and what comes out of
 * the writer is accepted again, the same. */
#include "stored.h"

#include <denoised/image.h>
#include <stdlib.h>
#include <string.h>

enum { TENSORS = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Both readers see one file; the one for memory has lower limits. */
static void read_all(const uint8_t *data, size_t size)
{
    dn_source src = dn_source_memory(data, size, "fuzz.safetensors");
    dn_stored_list l = { 0 };
    dn_error err = { 0 };
    if (dn_safetensors_list(&l, &src, 0, &err) != 0 && !err.message[0])
        abort();
    for (int i = 0; i < l.len; i++) {
        float *f = malloc((size_t)l.at[i].count * sizeof *f + 1);
        int rc = dn_stored_read(&l.at[i], &src, f, &err);
        if (!f || (rc != 0 && rc != DN_E_UNSUPPORTED))
            abort();
        free(f);
    }
    dn_stored_fini(&l);
}

static const dn_st_tensor *by_name(const dn_st_tensor *t, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(t[i].name, name) == 0)
            return &t[i];
    abort();
}

static void round_trip(const dn_st_tensor *t, int n)
{
    uint8_t *out;
    size_t len;
    dn_st_tensor again[TENSORS];
    int found = TENSORS;
    if (dn_st_encode(&out, &len, t, n, NULL) != 0 || dn_st_parse(again, &found, out, len, NULL) != 0 || found != n)
        abort();
    for (int i = 0; i < n; i++) {
        const dn_st_tensor *a = by_name(again, n, t[i].name);
        if (strcmp(a->dtype, t[i].dtype) != 0 || a->rank != t[i].rank || a->bytes != t[i].bytes ||
            memcmp(a->dim, t[i].dim, (size_t)a->rank * sizeof *a->dim) != 0 ||
            (a->bytes > 0 && memcmp(a->data, t[i].data, a->bytes) != 0))
            abort();
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dn_st_tensor t[TENSORS];
    int n = TENSORS;
    dn_error err = { 0 };
    read_all(data, size);
    if (dn_st_parse(t, &n, data, size, &err) == 0)
        round_trip(t, n);
    else if (!err.message[0] || n != TENSORS)
        abort();
    return 0;
}
