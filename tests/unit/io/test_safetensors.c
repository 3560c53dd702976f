/* test_safetensors.c - the format, in memory and from files, against the conformance files and against its own writer's
 * and a foreign writer's bytes. */
#include "util.h"

#include "checkpoint.h"
#include "json.h"
#include "stored.h"

#include <denoised/image.h>
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char conformance_dir[] = GOLDEN_DIR "/safetensors_conformance";

/* Every file, in memory and as a checkpoint: the manifest says whether it is valid. */
static void conformance(void **state)
{
    (void)state;
    char dir[64];
    scratch_make(dir);
    json_error_t e;
    json_t *manifest = json_load_file(GOLDEN_DIR "/safetensors_conformance/manifest.json", 0, &e), *entry;
    assert_non_null(manifest);
    assert_int_equal(json_object_size(manifest), 33);
    const char *name;
    json_object_foreach(manifest, name, entry)
    {
        int valid = json_is_true(json_object_get(entry, "valid"));
        char file[128];
        snprintf(file, sizeof file, "%s.safetensors", name);
        blob b = file_read(conformance_dir, file);
        dn_st_tensor found[16];
        int n = 16;
        dn_error err = { 0 };
        int rc = dn_st_parse(found, &n, b.p, b.len, &err);
        if ((rc == 0) != valid)
            fail_msg("%s: %s in memory (%s)", name, valid ? "refused" : "accepted", err.message);
        assert_true(valid || err.message[0]);

        file_write(dir, "diffusion_pytorch_model.safetensors", b.p, b.len);
        dn_checkpoint *c = NULL;
        err = (dn_error){ 0 };
        rc = dn_checkpoint_open(&c, dir, NULL, &err);
        if ((rc == 0) != valid)
            fail_msg("%s: %s as a file (%s)", name, valid ? "refused" : "accepted", err.message);
        if (valid)
            assert_int_equal(dn_checkpoint_count(c), n);
        else
            assert_string_equal(err.param, "diffusion_pytorch_model.safetensors");
        dn_checkpoint_close(c);
        blob_free(&b);
    }
    json_decref(manifest);
    scratch_remove(dir);
}

/* Files that another writer made come out again byte by byte. */
static void foreign_bytes(void **state)
{
    (void)state;
    static const char *const dirs[] = { "/unet_adm", "/unet_misc", "/unet_ddpm_bf16" };
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        char dir[512];
        snprintf(dir, sizeof dir, "%s%s", GOLDEN_DIR, dirs[i]);
        blob b = file_read(dir, "io.safetensors");
        dn_st_tensor *t = calloc(256, sizeof *t);
        int n = 256;
        dn_error err = { 0 };
        assert_int_equal(dn_st_parse(t, &n, b.p, b.len, &err), 0);
        assert_true(n >= 3);
        uint8_t *out;
        size_t len;
        assert_int_equal(dn_st_encode(&out, &len, t, n, &err), 0);
        assert_int_equal(len, b.len);
        assert_memory_equal(out, b.p, len);
        free(out);
        free(t);
        blob_free(&b);
    }
}

static void round_trip(void **state)
{
    (void)state;
    float f[6] = { 0, -1.5f, INFINITY, 3e-40f, 7, 8 };
    int64_t labels[2] = { -3, 1LL << 40 };
    uint8_t mask[3] = { 1, 0, 1 };
    dn_st_tensor t[] = {
        { "mask", "BOOL", 1, { 3 }, mask, 3 },    { "sample", "F32", 3, { 1, 2, 3 }, f, sizeof f },
        { "q\"\\\n", "F32", 0, { 0 }, f, 4 },     { "labels", "I64", 1, { 2 }, labels, sizeof labels },
        { "empty", "F32", 2, { 0, 5 }, NULL, 0 },
    };
    static const char *const order[] = { "labels", "empty", "q\"\\\n", "sample", "mask" };
    uint8_t *out;
    size_t len;
    dn_error err = { 0 };
    assert_int_equal(dn_st_encode(&out, &len, t, 5, &err), 0);
    uint64_t header;
    memcpy(&header, out, 8);
    assert_int_equal(header % 8, 0);

    dn_st_tensor found[5];
    int n = 5;
    assert_int_equal(dn_st_parse(found, &n, out, len, &err), 0);
    assert_int_equal(n, 5);
    uint64_t at = 8 + header;
    for (int i = 0; i < 5; i++) {
        const dn_st_tensor *want = t;
        while (strcmp(want->name, found[i].name) != 0)
            want++;
        assert_string_equal(found[i].name, order[i]);
        assert_string_equal(found[i].dtype, want->dtype);
        assert_int_equal(found[i].rank, want->rank);
        assert_memory_equal(found[i].dim, want->dim, sizeof want->dim);
        assert_ptr_equal(found[i].data, out + at);
        assert_int_equal(found[i].bytes, want->bytes);
        if (want->bytes > 0)
            assert_memory_equal(found[i].data, want->data, want->bytes);
        at += want->bytes;
    }
    n = 4;
    int rc = dn_st_parse(found, &n, out, len, &err);
    assert_error(&err, rc, DN_E_LIMIT, "safetensors", "5 tensors; the limit is 4");
    assert_int_equal(n, 4);
    free(out);

    assert_int_equal(dn_st_encode(&out, &len, NULL, 0, &err), 0);
    assert_int_equal(len, 16);
    assert_memory_equal(out, "\x08\0\0\0\0\0\0\0{}      ", 16);
    free(out);
}

static void encode_refuses(void **state)
{
    (void)state;
    float f[2] = { 1, 2 };
    const struct {
        dn_st_tensor t[2];
        int n;
        const char *param, *text;
    } bad[] = {
        { { { "a", "F32", 1, { 3 }, f, 8 } }, 1, "a", "do not agree" },
        { { { "a", "F31", 1, { 2 }, f, 8 } }, 1, "a", "unknown dtype" },
        { { { "a", "F32", 9, { 2 }, f, 8 } }, 1, "a", "8 dimensions" },
        { { { "a", "F32", 1, { -2 }, f, 8 } }, 1, "a", "negative" },
        { { { "a", "F32", 3, { 1LL << 40, 1LL << 40, 2 }, f, 8 } }, 1, "a", "do not agree" },
        { { { "a", "F4", 1, { 3 }, f, 1 } }, 1, "a", "do not agree" },
        { { { "a", "F32", 1, { 2 }, f, 8 }, { "a", "F64", 1, { 1 }, f, 8 } }, 2, "a", "twice" },
        { { { "__metadata__", "F32", 1, { 2 }, f, 8 } }, 1, "__metadata__", "not a name" },
        { { { "\xff", "F32", 1, { 2 }, f, 8 } }, 1, "?", "UTF-8" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t *out = (uint8_t *)f;
        size_t len = 7;
        dn_error err = { 0 };
        int rc = dn_st_encode(&out, &len, bad[i].t, bad[i].n, &err);
        assert_error(&err, rc, DN_E_INVALID, bad[i].param, bad[i].text);
        assert_ptr_equal(out, f);
        assert_int_equal(len, 7);
    }
}

#define ENTRY "\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"
static void parse_refuses(void **state)
{
    (void)state;
    char long_name[400], deep[200], client_name[200];
    snprintf(long_name, sizeof long_name, "{\"%0300d\":{" ENTRY "}}", 7);
    snprintf(client_name, sizeof client_name, "{\"%0128d\":{" ENTRY "}}", 7);
    memset(deep, '[', sizeof deep);
    deep[sizeof deep - 1] = 0;
    const struct {
        const char *header;
        int code;
        const char *text;
    } bad[] = {
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", DN_E_LIMIT,
          "8 dimensions" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}", DN_E_FORMAT,
          "integer" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1e999],\"data_offsets\":[0,4]}}", DN_E_FORMAT, "overflow" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", DN_E_FORMAT, "tensor \"a\": its shape" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", DN_E_FORMAT,
          "tensor \"a\": its data_off" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", DN_E_FORMAT, "tensor \"a\": its data_off" },
        { "{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", DN_E_FORMAT, "tensor \"a\": its dtype" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", DN_E_FORMAT,
          "tensor \"a\": it has no shape" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,4]}}", DN_E_FORMAT,
          "overflow" },
        { "{\"a\":[1]}", DN_E_FORMAT, "tensor \"a\": its entry" },
        { "{\"a\\u0000b\":{" ENTRY "}}", DN_E_FORMAT, "\\u0000" },
        { "{}", DN_E_FORMAT, "there is data, but no tensor" },
        { "{\"__metadata__\":[]}", DN_E_FORMAT, "__metadata__" },
        { long_name, DN_E_LIMIT, "longer than 255" },
        { client_name, DN_E_LIMIT, "longer than 127" },
        { deep, DN_E_LIMIT, "deep" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        blob b = safetensors_make(bad[i].header, "data", 4);
        dn_st_tensor t[2];
        int n = 2;
        dn_error err = { 0 };
        int rc = dn_st_parse(t, &n, b.p, b.len, &err);
        assert_error(&err, rc, bad[i].code, "safetensors", bad[i].text);
        assert_int_equal(n, 2);
        blob_free(&b);
    }
}

/* Too many tensors, and too many values hidden in a tensor's entry: both refused, and fast. */
static void counts_are_bounded(void **state)
{
    (void)state;
    blob header = { 0 };
    for (int i = 0; i <= DN_TENSORS_MAX; i++) {
        char entry[100];
        int n = snprintf(entry, sizeof entry, "%c\"%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}",
                         i ? ',' : '{', i);
        blob_add(&header, entry, (size_t)n);
    }
    blob_add(&header, "}", 2);
    blob many = safetensors_make((char *)header.p, NULL, 0);
    dn_st_tensor t[1];
    int n = 1;
    dn_error err = { 0 };
    int rc = dn_st_parse(t, &n, many.p, many.len, &err);
    assert_error(&err, rc, DN_E_LIMIT, "safetensors", "more than 16384 tensors");
    blob_free(&many);
    blob_free(&header);

    blob_str(&header, "{\"a\":[0");
    for (int i = 0; i < DN_JSON_VALUES_MAX; i++)
        blob_str(&header, ",0");
    blob_add(&header, "]}", 3);
    many = safetensors_make((char *)header.p, NULL, 0);
    rc = dn_st_parse(t, &n, many.p, many.len, &err);
    assert_error(&err, rc, DN_E_LIMIT, "safetensors", "values");
    blob_free(&many);
    blob_free(&header);
}

/* --- conversion to float32 --- */

static void read_one(float *dst, const char *dtype, int64_t count, const void *data, size_t bytes)
{
    char dir[64], header[200];
    scratch_make(dir);
    /* Seven bytes of padding leave the data unaligned. */
    snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[%lld],\"data_offsets\":[0,%zu]}}", dtype,
             (long long)count, bytes);
    while (strlen(header) % 8 != 7)
        strcat(header, " ");
    blob b = safetensors_make(header, data, bytes);
    file_write(dir, "diffusion_pytorch_model.safetensors", b.p, b.len);
    dn_checkpoint *c;
    dn_error err = { 0 };
    assert_int_equal(dn_checkpoint_open(&c, dir, NULL, &err), 0);
    const dn_tensor *t = dn_checkpoint_find(c, "t");
    assert_non_null(t);
    assert_string_equal(t->dtype_name, dtype);
    assert_int_equal(t->count, count);
    assert_int_equal(dn_checkpoint_read(c, t, dst, &err), 0);
    dn_checkpoint_close(c);
    blob_free(&b);
    scratch_remove(dir);
}

/* All 65536 halves, by the definition of the format. More than one chunk of reading. */
static void halves(void **state)
{
    (void)state;
    enum { N = 65536 * 3 };
    uint16_t *h = malloc(N * sizeof *h);
    float *f = malloc(N * sizeof *f);
    for (int i = 0; i < N; i++)
        h[i] = (uint16_t)i;
    read_one(f, "F16", N, h, N * sizeof *h);
    for (int i = 0; i < N; i++) {
        int exponent = h[i] >> 10 & 31, fraction = h[i] & 1023;
        double sign = h[i] >> 15 ? -1 : 1;
        double want = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                     : ldexp(fraction, -24);
        if (isnan(want))
            assert_true(isnan(f[i]));
        else
            assert_true(f[i] == (float)(sign * want) && !!signbit(f[i]) == (sign < 0));
    }
    read_one(f, "BF16", N, h, N * sizeof *h);
    for (int i = 0; i < N; i++) {
        uint32_t bits;
        memcpy(&bits, &f[i], 4);
        assert_int_equal(bits, (uint32_t)h[i] << 16);
    }
    free(h);
    free(f);
}

static void wide_types(void **state)
{
    (void)state;
    double d[] = { 0.1, -1e300, 1e-46, 1 + 0x1p-24, NAN };
    int64_t i[] = { -1, 1 << 24, (1 << 24) + 1, INT64_MIN };
    float f[5], raw[] = { 1e-45f, -INFINITY, 0.1f };
    read_one(f, "F64", 5, d, sizeof d);
    assert_true(f[0] == 0.1f && f[1] == -INFINITY && f[2] == 0 && f[3] == 1 && isnan(f[4]));
    read_one(f, "I64", 4, i, sizeof i);
    assert_true(f[0] == -1 && f[1] == 16777216 && f[2] == 16777216 && f[3] == -0x1p63f);
    read_one(f, "F32", 3, raw, sizeof raw);
    assert_memory_equal(f, raw, sizeof raw);
}

static void other_types_are_listed_but_not_read(void **state)
{
    (void)state;
    char dir[64];
    scratch_make(dir);
    blob b = safetensors_make("{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", "abcd", 4);
    file_write(dir, "diffusion_pytorch_model.safetensors", b.p, b.len);
    dn_checkpoint *c;
    dn_error err = { 0 };
    float f[4] = { 5, 5, 5, 5 };
    assert_int_equal(dn_checkpoint_open(&c, dir, NULL, &err), 0);
    assert_int_equal(dn_checkpoint_tensor(c, 0)->dtype, DN_T_OTHER);
    int rc = dn_checkpoint_read(c, dn_checkpoint_tensor(c, 0), f, &err);
    assert_error(&err, rc, DN_E_UNSUPPORTED, "diffusion_pytorch_model.safetensors", "tensor \"t\" is of type F8_E4M3");
    assert_true(f[0] == 5);
    dn_checkpoint_close(c);
    blob_free(&b);
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conformance),
        cmocka_unit_test(foreign_bytes),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(encode_refuses),
        cmocka_unit_test(parse_refuses),
        cmocka_unit_test(counts_are_bounded),
        cmocka_unit_test(halves),
        cmocka_unit_test(wide_types),
        cmocka_unit_test(other_types_are_listed_but_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
