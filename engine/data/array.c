/* array.c - IDX, npy and safetensors as images and labels. See array.h. */
#include "array.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IDX_U8 = 8, NPY_HEADER_MAX = 1 << 16, ROW_LABELS = 4096 };
static const char npy_magic[6] = "\x93NUMPY";

enum dn_array_kind dn_array_kind_of(const uint8_t *head, size_t len, uint64_t size)
{
    uint64_t st_header;
    if (len >= 4 && head[0] == 0 && head[1] == 0 && head[2] >= 8 && head[2] <= 14 && head[3] >= 1 && head[3] <= 8)
        return DN_IDX;
    if (len >= sizeof npy_magic && memcmp(head, npy_magic, sizeof npy_magic) == 0)
        return DN_NPY;
    if (len < sizeof st_header + 1)
        return DN_NO_ARRAY;
    memcpy(&st_header, head, sizeof st_header);
    return st_header >= 2 && st_header <= size - sizeof st_header && head[8] == '{' ? DN_SAFETENSORS : DN_NO_ARRAY;
}

static int bad(const dn_source *src, int code, const char *why, dn_error *err)
{
    return dn_fail(err, code, src->name, "%s: %s", dn_show(src->name, strlen(src->name)).text, why);
}

/* "a/images.npy" -> "images" */
static void base_name(char out[DN_TENSOR_NAME_MAX], const char *file)
{
    const char *slash = strrchr(file, '/'), *base = slash ? slash + 1 : file, *dot = strrchr(base, '.');
    snprintf(out, DN_TENSOR_NAME_MAX, "%.*s", (int)(dot ? dot - base : (int)strlen(base)), base);
}

/* Append `t`, whose dtype, shape and offset are set: its data is the rest of the source. */
static int append(dn_stored_list *l, dn_stored *t, const dn_source *src, int source, dn_error *err)
{
    int64_t bytes;
    base_name(t->name, src->name);
    t->source = source;
    if (dn_stored_set_shape(t) != 0 || __builtin_mul_overflow(t->count, (int64_t)(t->dtype->bits / 8), &bytes))
        return bad(src, DN_E_FORMAT, "the product of its shape overflows", err);
    t->bytes = (uint64_t)bytes;
    if (t->offset > src->size || t->bytes != src->size - t->offset)
        return dn_fail(err, DN_E_FORMAT, src->name, "%s: its header speaks of %llu bytes of data; there are %llu",
                       dn_show(src->name, strlen(src->name)).text, (unsigned long long)t->bytes,
                       (unsigned long long)(src->size > t->offset ? src->size - t->offset : 0));
    int rc = dn_stored_reserve(l, 1, src->name, err);
    if (rc == 0)
        l->at[l->len++] = *t;
    return rc;
}

/* --- IDX: 0, 0, type, rank, big-endian sizes, data --- */

static int list_idx(dn_stored_list *l, const dn_source *src, int source, dn_error *err)
{
    uint8_t magic[4];
    uint32_t dim[DN_TENSOR_RANK_MAX];
    int rc = dn_source_read(src, 0, magic, sizeof magic, err);
    if (rc != 0)
        return rc;
    if (magic[2] != IDX_U8)
        return bad(src, DN_E_UNSUPPORTED, "an IDX file of a type other than unsigned bytes", err);
    if (magic[3] < 1 || magic[3] > DN_TENSOR_RANK_MAX)
        return bad(src, DN_E_FORMAT, "an IDX file of no or too many dimensions", err);
    dn_stored t = { .dtype = dn_dtype_find("U8"), .rank = magic[3], .offset = sizeof magic + 4u * magic[3] };
    rc = dn_source_read(src, sizeof magic, dim, 4u * magic[3], err);
    if (rc != 0)
        return rc;
    for (int d = 0; d < t.rank; d++)
        t.dim[d] = be32toh(dim[d]);
    return append(l, &t, src, source, err);
}

/* --- npy: magic, version, length, a Python dictionary, data --- */

/* clang-format off */
static const struct { const char *descr, *dtype; } npy_types[] = {
    { "|u1", "U8" }, { "|i1", "I8" }, { "<u2", "U16" }, { "<i2", "I16" }, { "<u4", "U32" }, { "<i4", "I32" },
    { "<u8", "U64" }, { "<i8", "I64" }, { "<f2", "F16" }, { "<f4", "F32" }, { "<f8", "F64" },
};
/* clang-format on */

/* After "'key':" and spaces; NULL: it is not there. */
static const char *npy_field(const char *text, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *p = strstr(text, quoted);
    return p ? p + strlen(quoted) + strspn(p + strlen(quoted), " ") : NULL;
}

static const dn_dtype *npy_dtype(const char *p)
{
    for (size_t i = 0; p && *p == '\'' && i < sizeof npy_types / sizeof *npy_types; i++)
        if (strncmp(p + 1, npy_types[i].descr, 3) == 0 && p[4] == '\'')
            return dn_dtype_find(npy_types[i].dtype);
    return NULL;
}

/* "(60000, 28, 28)": false if it is not that. */
static bool npy_shape(dn_stored *t, const char *p)
{
    if (!p || *p++ != '(')
        return false;
    for (p += strspn(p, " "); *p != ')'; p += strspn(p, " ")) {
        int64_t v = 0;
        if (t->rank == DN_TENSOR_RANK_MAX || *p < '0' || *p > '9')
            return false;
        for (; *p >= '0' && *p <= '9'; p++)
            if (__builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_add_overflow(v, (int64_t)(*p - '0'), &v))
                return false;
        t->dim[t->rank++] = v;
        p += strspn(p, " ");
        if (*p != ',' && *p != ')')
            return false;
        p += *p == ',';
    }
    return true;
}

static int list_npy(dn_stored_list *l, const dn_source *src, int source, dn_error *err)
{
    uint8_t head[12] = { 0 };
    int rc = dn_source_read(src, 0, head, 10, err);
    if (rc == 0 && head[6] > 1)
        rc = dn_source_read(src, 0, head, 12, err);
    if (rc != 0)
        return rc;
    if (head[6] < 1 || head[6] > 3)
        return bad(src, DN_E_UNSUPPORTED, "a version of npy that is not 1, 2 or 3", err);
    size_t start = head[6] == 1 ? 10 : 12;
    uint32_t len =
        head[8] | (uint32_t)head[9] << 8 | (head[6] == 1 ? 0 : (uint32_t)head[10] << 16 | (uint32_t)head[11] << 24);
    if (len > NPY_HEADER_MAX)
        return bad(src, DN_E_LIMIT, "an npy header of more than 65536 bytes", err);
    uint8_t *text;
    rc = dn_source_load(&text, src, start, len, err);
    if (rc != 0)
        return rc;
    const char *order = npy_field((char *)text, "fortran_order");
    dn_stored t = { .offset = start + len, .dtype = npy_dtype(npy_field((char *)text, "descr")) };
    if (!order || !npy_shape(&t, npy_field((char *)text, "shape")))
        rc = bad(src, DN_E_FORMAT, "its npy header has no fortran_order or no shape that could be read", err);
    else if (!t.dtype)
        rc = bad(src, DN_E_UNSUPPORTED, "its dtype is none of u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8, little-endian", err);
    else if (strncmp(order, "False", 5) != 0 && t.rank > 1)
        rc = bad(src, DN_E_UNSUPPORTED, "an array in Fortran order", err);
    free(text);
    return rc == 0 ? append(l, &t, src, source, err) : rc;
}

int dn_array_list(dn_stored_list *l, enum dn_array_kind kind, const dn_source *src, int source, dn_error *err)
{
    static int (*const list[])(dn_stored_list *, const dn_source *, int, dn_error *) = {
        [DN_IDX] = list_idx, [DN_NPY] = list_npy, [DN_SAFETENSORS] = dn_safetensors_list
    };
    return list[kind](l, src, source, err);
}

/* [n], or [n,1] as Keras and MedMNIST write them. */
bool dn_array_is_labels(const dn_stored *t) { return t->rank == 1 || (t->rank == 2 && t->dim[1] == 1); }

/* --- labels --- */

static bool is_type(const dn_stored *t, const char *name) { return strcmp(t->dtype->name, name) == 0; }

static bool is_integer(const dn_stored *t)
{
    return (t->dtype->name[0] == 'U' || t->dtype->name[0] == 'I') && t->dtype->bits >= 8;
}

/* One little-endian integer; an unsigned one beyond int64 becomes -1, which no label is. */
static int64_t get_integer(const uint8_t *p, const dn_stored *t)
{
    int bytes = t->dtype->bits / 8;
    uint64_t v = 0;
    memcpy(&v, p, (size_t)bytes);
    if (t->dtype->name[0] == 'I' && bytes < 8 && v >> (8 * bytes - 1))
        v |= ~(uint64_t)0 << (8 * bytes);
    return v > INT64_MAX ? -1 : (int64_t)v;
}

static int read_labels(int32_t *out, int *n_classes, const dn_stored *t, const dn_source *src, dn_error *err)
{
    uint8_t row[ROW_LABELS * 8];
    size_t size = (size_t)t->dtype->bits / 8;
    for (int64_t i = 0; i < t->count; i += ROW_LABELS) {
        int64_t n = t->count - i < ROW_LABELS ? t->count - i : ROW_LABELS;
        int rc = dn_source_read(src, t->offset + (uint64_t)i * size, row, (size_t)n * size, err);
        if (rc != 0)
            return rc;
        for (int64_t j = 0; j < n; j++) {
            int64_t v = get_integer(row + (size_t)j * size, t);
            if (v < 0 || v >= DN_DATASET_CLASSES_MAX)
                return dn_fail(err, DN_E_RANGE, src->name, "%s: label %lld of image %lld is not 0..%d",
                               dn_show(src->name, strlen(src->name)).text, (long long)v, (long long)(i + j),
                               DN_DATASET_CLASSES_MAX - 1);
            out[i + j] = (int32_t)v;
            *n_classes = v >= *n_classes ? (int)v + 1 : *n_classes;
        }
    }
    return 0;
}

static int load_labels(int32_t **out, int *n_classes, int64_t n, const dn_stored *t, const dn_source *src,
                       dn_error *err)
{
    if (!is_integer(t))
        return bad(src, DN_E_UNSUPPORTED, "labels that are not integers", err);
    if (t->count != n)
        return dn_fail(err, DN_E_FORMAT, src->name, "%s: %lld labels for %lld images",
                       dn_show(src->name, strlen(src->name)).text, (long long)t->count, (long long)n);
    int32_t *labels = malloc((size_t)n * sizeof *labels);
    if (!labels)
        return dn_fail(err, DN_E_MEMORY, src->name, "no memory for %lld labels", (long long)n);
    int rc = read_labels(labels, n_classes, t, src, err);
    if (rc == 0)
        *out = labels;
    else
        free(labels);
    return rc;
}

/* --- images --- */

/* [n,C,H,W], as PyTorch has them: one or three channels where a height would be, and where channels would be more than
 * any picture has. */
static bool is_planar(const dn_stored *t)
{
    return t->rank == 4 && (t->dim[1] == 1 || t->dim[1] == 3) && t->dim[2] > 4 && t->dim[3] > 4;
}

/* The images as [n,H,W,C]. */
static void sides(int64_t *height, int64_t *width, int64_t *channels, const dn_stored *t)
{
    bool planar = is_planar(t);
    *height = t->dim[planar ? 2 : 1];
    *width = t->dim[planar ? 3 : 2];
    *channels = planar ? t->dim[1] : t->rank == 4 ? t->dim[3] : 1;
}

static int check_images(const dn_stored *t, const dn_source *src, dn_error *err)
{
    if (t->rank != 3 && t->rank != 4)
        return bad(src, DN_E_FORMAT, "images must be [n,H,W] or [n,H,W,C]", err);
    int64_t h, w, c;
    sides(&h, &w, &c, t);
    if (t->dim[0] < 1 || t->dim[0] > INT32_MAX)
        return bad(src, DN_E_FORMAT, "there is no image in it, or too many", err);
    if (h < 1 || w < 1 || h > DN_DATASET_SIDE_MAX || w > DN_DATASET_SIDE_MAX)
        return bad(src, DN_E_RANGE, "height and width of its images must be 1..8192", err);
    if (c < 1 || c > DN_CHANNELS_MAX || h * w * c > ((int64_t)1 << 28))
        return bad(src, DN_E_RANGE, "its images must have 1..64 channels and 2^28 values at most (are they [n,C,H,W]?)",
                   err);
    if (!is_type(t, "U8") && t->dtype->kind != DN_T_F32 && t->dtype->kind != DN_T_F16 && t->dtype->kind != DN_T_F64 &&
        t->dtype->kind != DN_T_BF16)
        return bad(src, DN_E_UNSUPPORTED, "images must be of unsigned bytes or floats", err);
    return 0;
}

/* Image i, as it will be stored. */
static int read_image(void *dst, const dn_stored *t, int64_t i, const dn_source *src, dn_error *err)
{
    int64_t count = t->count / t->dim[0];
    uint64_t bytes = (uint64_t)count * (uint64_t)(t->dtype->bits / 8);
    if (is_type(t, "U8"))
        return dn_source_read(src, t->offset + (uint64_t)i * bytes, dst, (size_t)bytes, err);
    dn_stored one = { .dtype = t->dtype, .rank = 1, .dim = { count }, .stride = { 1 }, .count = count, .bytes = bytes };
    one.offset = t->offset + (uint64_t)i * bytes;
    snprintf(one.name, sizeof one.name, "%s", t->name);
    return dn_stored_read(&one, src, dst, err);
}

/* [C,pixels] -> [pixels,C], values of `size` bytes. */
static void interleave(uint8_t *dst, const uint8_t *src, int64_t pixels, int64_t channels, size_t size)
{
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels; c++, dst += size)
            memcpy(dst, src + (size_t)(c * pixels + i) * size, size);
}

/* `image`: room for two. */
static int add_images(dn_store *s, const dn_stored *t, const dn_source *src, const int32_t *labels, uint8_t *image,
                      dn_error *err)
{
    int64_t height, width, channels;
    size_t size = is_type(t, "U8") ? 1 : sizeof(float), bytes = (size_t)(t->count / t->dim[0]) * size;
    sides(&height, &width, &channels, t);
    bool planar = is_planar(t);
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < t->dim[0]; i++) {
        uint8_t digest[32];
        rc = read_image(planar ? image + bytes : image, t, i, src, err);
        if (rc == 0 && planar)
            interleave(image, image + bytes, height * width, channels, size);
        if (rc == 0 && dn_store_digest(digest, image, bytes) != 0)
            rc = dn_fail(err, DN_E_BACKEND, src->name, "cannot hash an image");
        if (rc == 0)
            rc = dn_store_add(s, NULL, image, (int)height, (int)width, (int)channels, labels ? labels[i] : -1, digest,
                              err);
    }
    return rc;
}

int dn_array_import(dn_store *s, const dn_stored *t, const dn_source *src, const dn_stored *labels,
                    const dn_source *labels_src, int *n_classes, dn_error *err)
{
    int32_t *label = NULL;
    int classes = 0, rc = check_images(t, src, err);
    if (rc == 0 && labels)
        rc = load_labels(&label, &classes, t->dim[0], labels, labels_src, err);
    uint8_t *image = rc == 0 ? malloc(2 * (size_t)(t->count / t->dim[0]) * sizeof(float)) : NULL;
    if (rc == 0 && !image)
        rc = dn_fail(err, DN_E_MEMORY, src->name, "no memory for one image");
    dn_store_set_floats(s, !is_type(t, "U8"));
    if (rc == 0)
        rc = add_images(s, t, src, label, image, err);
    if (rc == 0)
        *n_classes = classes;
    free(image);
    free(label);
    return rc;
}
