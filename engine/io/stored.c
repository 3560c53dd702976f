/* stored.c - element types, and reading a stored tensor as float32. See stored.h. */
#include "stored.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 1 << 18 };

/* The order is the one in which a safetensors writer lays out the types: the widest first. */
/* clang-format off */
static const dn_dtype dtypes[] = {
    { "U64",         NULL,              64, DN_T_OTHER },
    { "I64",         "LongStorage",     64, DN_T_I64 },
    { "F64",         "DoubleStorage",   64, DN_T_F64 },
    { "C64",         NULL,              64, DN_T_OTHER },
    { "F32",         "FloatStorage",    32, DN_T_F32 },
    { "U32",         NULL,              32, DN_T_OTHER },
    { "I32",         "IntStorage",      32, DN_T_OTHER },
    { "BF16",        "BFloat16Storage", 16, DN_T_BF16 },
    { "F16",         "HalfStorage",     16, DN_T_F16 },
    { "U16",         NULL,              16, DN_T_OTHER },
    { "I16",         "ShortStorage",    16, DN_T_OTHER },
    { "F8_E5M2FNUZ", NULL,               8, DN_T_OTHER },
    { "F8_E4M3FNUZ", NULL,               8, DN_T_OTHER },
    { "F8_E8M0",     NULL,               8, DN_T_OTHER },
    { "F8_E4M3",     NULL,               8, DN_T_OTHER },
    { "F8_E5M2",     NULL,               8, DN_T_OTHER },
    { "I8",          "CharStorage",      8, DN_T_OTHER },
    { "U8",          "ByteStorage",      8, DN_T_OTHER },
    { "F6_E3M2",     NULL,               6, DN_T_OTHER },
    { "F6_E2M3",     NULL,               6, DN_T_OTHER },
    { "F4",          NULL,               4, DN_T_OTHER },
    { "BOOL",        "BoolStorage",      8, DN_T_OTHER },
};
/* clang-format on */
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

const dn_dtype *dn_dtype_find(const char *name)
{
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return &dtypes[i];
    return NULL;
}

const dn_dtype *dn_dtype_find_storage(const char *s, size_t len)
{
    for (int i = 0; i < DTYPES; i++)
        if (dtypes[i].storage && strlen(dtypes[i].storage) == len && memcmp(dtypes[i].storage, s, len) == 0)
            return &dtypes[i];
    return NULL;
}

int dn_stored_reserve(dn_stored_list *l, size_t more, const char *file, dn_error *err)
{
    if (more > (size_t)(DN_TENSORS_MAX - l->len))
        return dn_fail(err, DN_E_LIMIT, file, "%s: more than %d tensors", file, DN_TENSORS_MAX);
    int need = l->len + (int)more;
    if (need <= l->cap)
        return 0;
    int cap = need > l->cap * 2 ? need : l->cap * 2;
    dn_stored *at = realloc(l->at, (size_t)cap * sizeof *at);
    if (!at)
        return dn_fail(err, DN_E_MEMORY, file, "%s: no memory for its list of tensors", file);
    l->at = at;
    l->cap = cap;
    return 0;
}

void dn_stored_fini(dn_stored_list *l)
{
    free(l->at);
    *l = (dn_stored_list){ 0 };
}

int dn_stored_set_shape(dn_stored *t)
{
    int64_t count = 1;
    for (int d = 0; d < t->rank; d++)
        if (__builtin_mul_overflow(count, t->dim[d], &count))
            return -1;
    int64_t stride = 1;
    for (int d = t->rank - 1; d >= 0; d--) {
        t->stride[d] = stride;
        if (count > 0) /* then no suffix of the shape overflows either */
            stride *= t->dim[d];
    }
    t->count = count;
    return 0;
}

static bool is_contiguous(const dn_stored *t)
{
    int64_t stride = 1;
    for (int d = t->rank - 1; d >= 0; d--) {
        if (t->dim[d] != 1 && t->stride[d] != stride)
            return false;
        stride *= t->dim[d];
    }
    return true;
}

static float f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff, bits;
    if (mag >= 0x7c00) /* infinity, NaN */
        bits = 0x7f800000 | (mag & 0x3ff) << 13;
    else if (mag >= 0x400)
        bits = (mag << 13) + 0x38000000;
    else { /* subnormal: mag * 2^-24 is exact */
        float f = (float)mag * 0x1p-24f;
        memcpy(&bits, &f, sizeof bits);
    }
    bits |= sign;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float f32_from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void read_f32(float *dst, const uint8_t *src, size_t n) { memcpy(dst, src, n * sizeof *dst); }

#define READER(name, type, convert)                            \
    static void name(float *dst, const uint8_t *src, size_t n) \
    {                                                          \
        for (size_t i = 0; i < n; i++) {                       \
            type v; /* the source may be unaligned */          \
            memcpy(&v, src + i * sizeof v, sizeof v);          \
            dst[i] = convert(v);                               \
        }                                                      \
    }
READER(read_f16, uint16_t, f32_from_f16)
READER(read_bf16, uint16_t, f32_from_bf16)
READER(read_f64, double, (float))
READER(read_i64, int64_t, (float))
#undef READER

static void (*const readers[])(float *dst, const uint8_t *src, size_t n) = {
    [DN_T_F32] = read_f32, [DN_T_F16] = read_f16, [DN_T_BF16] = read_bf16,
    [DN_T_F64] = read_f64, [DN_T_I64] = read_i64, [DN_T_OTHER] = NULL,
};

static int read_contiguous(const dn_stored *t, const dn_source *src, uint8_t *chunk, float *dst, dn_error *err)
{
    size_t size = (size_t)t->dtype->bits / 8, step = CHUNK_BYTES / size;
    for (size_t i = 0, n; i < (size_t)t->count; i += n) {
        n = (size_t)t->count - i < step ? (size_t)t->count - i : step;
        int rc = dn_source_read(src, t->offset + i * size, chunk, n * size, err);
        if (rc != 0)
            return rc;
        readers[t->dtype->kind](dst + i, chunk, n);
    }
    return 0;
}

/* Gather the elements, `chunk` by chunk, from `span`, the bytes from the first element to the last. */
static void gather(const dn_stored *t, const uint8_t *span, uint8_t *chunk, float *dst)
{
    size_t size = (size_t)t->dtype->bits / 8, step = CHUNK_BYTES / size;
    int64_t at[DN_TENSOR_RANK_MAX] = { 0 }, element = 0;
    for (size_t i = 0, n; i < (size_t)t->count; i += n) {
        n = (size_t)t->count - i < step ? (size_t)t->count - i : step;
        for (size_t k = 0; k < n; k++) {
            memcpy(chunk + k * size, span + (size_t)element * size, size);
            for (int d = t->rank - 1; d >= 0; d--) {
                element += t->stride[d];
                if (++at[d] < t->dim[d])
                    break;
                element -= t->dim[d] * t->stride[d];
                at[d] = 0;
            }
        }
        readers[t->dtype->kind](dst + i, chunk, n);
    }
}

static int read_strided(const dn_stored *t, const dn_source *src, uint8_t *chunk, float *dst, dn_error *err)
{
    uint8_t *span;
    int rc = dn_source_load(&span, src, t->offset, t->bytes, err);
    if (rc != 0)
        return rc;
    gather(t, span, chunk, dst);
    free(span);
    return 0;
}

int dn_stored_read(const dn_stored *t, const dn_source *src, float *dst, dn_error *err)
{
    if (!readers[t->dtype->kind])
        return dn_fail(err, DN_E_UNSUPPORTED, src->name, "%s: tensor \"%s\" is of type %s, which is not supported",
                       src->name, dn_show(t->name, strlen(t->name)).text, t->dtype->name);
    if (t->count == 0)
        return 0;
    uint8_t *chunk = malloc(CHUNK_BYTES);
    if (!chunk)
        return dn_fail(err, DN_E_MEMORY, src->name, "%s: no memory to read it", src->name);
    dn_error why = { 0 };
    int rc = is_contiguous(t) ? read_contiguous(t, src, chunk, dst, &why) : read_strided(t, src, chunk, dst, &why);
    free(chunk);
    if (rc != 0)
        return dn_fail(err, rc, src->name, "tensor \"%s\": %s", dn_show(t->name, strlen(t->name)).text, why.message);
    return 0;
}
