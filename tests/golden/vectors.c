#include "vectors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

vectors *vectors_open(const char *dir, const char *file)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s/%s", GOLDEN_DIR, dir, file);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot open %s", path);
    vectors *v = calloc(1, sizeof *v);
    fseek(f, 0, SEEK_END);
    size_t size = (size_t)ftell(f);
    rewind(f);
    v->bytes = malloc(size);
    assert_int_equal(fread(v->bytes, 1, size, f), size);
    fclose(f);
    v->n = VECTORS_MAX;
    dn_error err = { 0 };
    if (dn_st_parse(v->t, &v->n, v->bytes, size, &err))
        fail_msg("%s: %s", path, err.message);
    return v;
}

void vectors_close(vectors *v)
{
    free(v->bytes);
    free(v);
}

const dn_st_tensor *vectors_find(const vectors *v, const char *name)
{
    for (int i = 0; i < v->n; i++)
        if (!strcmp(v->t[i].name, name))
            return &v->t[i];
    return NULL;
}

int64_t vectors_count(const dn_st_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dim[i];
    return n;
}

float *vectors_floats(const vectors *v, const char *name)
{
    const dn_st_tensor *t = vectors_find(v, name);
    if (!t)
        fail_msg("no vector %s", name);
    int64_t n = vectors_count(t);
    float *out = malloc(sizeof *out * (size_t)(n ? n : 1));
    if (!strcmp(t->dtype, "F32")) {
        memcpy(out, t->data, t->bytes);
        return out;
    }
    assert_string_equal(t->dtype, "I64");
    for (int64_t i = 0; i < n; i++) {
        int64_t x;
        memcpy(&x, (const char *)t->data + 8 * i, 8);
        out[i] = (float)x;
    }
    return out;
}

float *vectors_nhwc(const vectors *v, const char *name)
{
    const dn_st_tensor *t = vectors_find(v, name);
    float *src = vectors_floats(v, name);
    assert_int_equal(t->rank, 4);
    int64_t n = t->dim[0], c = t->dim[1], pixels = t->dim[2] * t->dim[3];
    float *out = malloc(sizeof *out * (size_t)(n * c * pixels));
    for (int64_t b = 0; b < n; b++)
        for (int64_t k = 0; k < c; k++)
            for (int64_t i = 0; i < pixels; i++)
                out[(b * pixels + i) * c + k] = src[(b * c + k) * pixels + i];
    free(src);
    return out;
}

double worst_error(const float *a, const float *b, int64_t n)
{
    double diff = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        diff = fmax(diff, fabs((double)a[i] - b[i]));
        size = fmax(size, fabs((double)b[i]));
        if (!isfinite(a[i]))
            return INFINITY;
    }
    return size > 0 ? diff / size : diff;
}
