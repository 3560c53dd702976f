/* test_checkpoint.c - which files a component is read from, that every storage form gives the same tensors, and that
 * folders which lie are refused by name. */
#include "util.h"

#include "checkpoint.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WEIGHTS "diffusion_pytorch_model.safetensors"
#define INDEX "diffusion_pytorch_model.safetensors.index.json"
#define BIN "diffusion_pytorch_model.bin"

static dn_checkpoint *open_good(const char *dir, const char *component)
{
    dn_checkpoint *c = NULL;
    dn_error err = { 0 };
    if (dn_checkpoint_open(&c, dir, component, &err) != 0)
        fail_msg("%s: %s", dir, err.message);
    return c;
}

static void expect_error(const char *dir, int code, const char *param, const char *text)
{
    dn_checkpoint *untouched = (dn_checkpoint *)dir, *c = untouched;
    dn_error err = { 0 };
    int rc = dn_checkpoint_open(&c, dir, NULL, &err);
    assert_error(&err, rc, code, param, text);
    assert_ptr_equal(c, untouched);
}

static float *read_tensor(const dn_checkpoint *c, const dn_tensor *t)
{
    float *f = malloc((size_t)t->count * sizeof *f + 1);
    dn_error err = { 0 };
    assert_int_equal(dn_checkpoint_read(c, t, f, &err), 0);
    return f;
}

/* --- storage forms --- */

/* The same names, shapes and values, within `ulp` relative (of the narrower type), or the smallest subnormal `tiny`. */
static void compare(const char *other_dir, double ulp, double tiny, const char *dtype, int files)
{
    char dir[512];
    snprintf(dir, sizeof dir, "%s/%s", GOLDEN_DIR, other_dir);
    dn_checkpoint *want = open_good(GOLDEN_DIR, "unet_ddpm"), *got = open_good(dir, NULL);
    assert_true(dn_checkpoint_count(want) > 100);
    assert_int_equal(dn_checkpoint_count(got), dn_checkpoint_count(want));
    int first_file = 0;
    for (int i = 0; i < dn_checkpoint_count(want); i++) {
        const dn_tensor *w = dn_checkpoint_tensor(want, i), *g = dn_checkpoint_tensor(got, i);
        assert_string_equal(g->name, w->name);
        assert_ptr_equal(dn_checkpoint_find(got, w->name), g);
        assert_string_equal(g->dtype_name, dtype);
        assert_int_equal(g->rank, w->rank);
        assert_memory_equal(g->dim, w->dim, sizeof w->dim);
        assert_int_equal(g->count, w->count);
        first_file += strcmp(g->file, dn_checkpoint_tensor(got, 0)->file) == 0;
        float *a = read_tensor(want, w), *b = read_tensor(got, g);
        for (int64_t k = 0; k < w->count; k++)
            if (!(fabs((double)a[k] - b[k]) <= fabs(a[k]) * ulp + tiny))
                fail_msg("%s[%lld]: %.9g, not %.9g", w->name, (long long)k, b[k], a[k]);
        free(a);
        free(b);
    }
    assert_true((first_file < dn_checkpoint_count(got)) == (files > 1));
    assert_null(dn_checkpoint_find(got, "conv_in"));
    dn_checkpoint_close(want);
    dn_checkpoint_close(got);
}

static void storage_forms(void **state)
{
    (void)state;
    compare("unet_ddpm_bin", 0, 0, "F32", 1);
    compare("unet_ddpm_sharded", 0, 0, "F32", 2);
    compare("unet_ddpm_legacy_attn", 0, 0, "F32", 1);
    compare("unet_ddpm_fp16", 0x1p-11, 0x1p-25, "F16", 1);
    compare("unet_ddpm_bf16", 0x1p-8, 0, "BF16", 1);
}

/* --- lookup: files whose one tensor tells which file it is --- */

static blob one_tensor(const char *name)
{
    char header[400];
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", name);
    return safetensors_make(header, "\0\0\0\0", 4);
}

static void write_one(const char *dir, const char *file, const char *tensor)
{
    blob b = one_tensor(tensor);
    file_write(dir, file, b.p, b.len);
    blob_free(&b);
}

static void write_text(const char *dir, const char *file, const char *text)
{
    file_write(dir, file, text, strlen(text));
}

static void write_bin(const char *dir, const char *file, const char *tensor)
{
    blob pickle = { 0 }, data = { 0 };
    pickle_begin(&pickle);
    pickle_tensor(&pickle, tensor, "FloatStorage", "0", 1, 0, 0, NULL, NULL);
    pickle_end(&pickle);
    blob_le(&data, 0x40000000, 4);
    zip_item items[] = { { .name = "m/data.pkl", .data = pickle }, { .name = "m/data/0", .data = data } };
    blob zip = zip_make(items, 2);
    file_write(dir, file, zip.p, zip.len);
    blob_free(&pickle);
    blob_free(&data);
    blob_free(&zip);
}

static void expect_tensor(const char *dir, const char *component, const char *name, const char *file)
{
    dn_checkpoint *c = open_good(dir, component);
    const dn_tensor *t = dn_checkpoint_find(c, name);
    if (!t)
        fail_msg("\"%s\" is not there; \"%s\" is", name, dn_checkpoint_tensor(c, 0)->name);
    assert_string_equal(t->file, file);
    dn_checkpoint_close(c);
}

/* From the worst file to the best: each new one wins. */
static void precedence(void **state)
{
    (void)state;
    char dir[64];
    scratch_make(dir);
    expect_error(dir, DN_E_NOT_FOUND, WEIGHTS, "no weights");
    write_one(dir, "model.safetensors", "x");
    write_one(dir, "diffusion_pytorch_model-00001-of-00002.safetensors", "s1");
    write_one(dir, "diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "v1");
    expect_error(dir, DN_E_NOT_FOUND, WEIGHTS, "no weights");
    write_bin(dir, "diffusion_pytorch_model.fp16.bin", "variant bin");
    expect_tensor(dir, NULL, "variant bin", "diffusion_pytorch_model.fp16.bin");
    write_one(dir, "diffusion_pytorch_model.fp16.safetensors", "variant");
    expect_tensor(dir, NULL, "variant", "diffusion_pytorch_model.fp16.safetensors");
    write_text(dir, "diffusion_pytorch_model.safetensors.fp16.index.json",
               "{\"weight_map\":{\"v1\":\"diffusion_pytorch_model.fp16-00001-of-00002.safetensors\"}}");
    expect_tensor(dir, NULL, "v1", "diffusion_pytorch_model.fp16-00001-of-00002.safetensors");
    write_text(dir, "diffusion_pytorch_model.safetensors.index.fp16.json",
               "{\"weight_map\":{\"s1\":\"diffusion_pytorch_model-00001-of-00002.safetensors\"}}");
    expect_tensor(dir, NULL, "s1", "diffusion_pytorch_model-00001-of-00002.safetensors");
    write_one(dir, "diffusion_pytorch_model.non_ema.safetensors", "other variant");
    expect_error(dir, DN_E_IMPOSSIBLE, WEIGHTS, "several variants");
    write_bin(dir, BIN, "bin");
    expect_tensor(dir, NULL, "bin", BIN);
    write_one(dir, WEIGHTS, "plain");
    expect_tensor(dir, NULL, "plain", WEIGHTS);
    write_text(dir, INDEX, "{\"weight_map\":{\"s1\":\"diffusion_pytorch_model-00001-of-00002.safetensors\"}}");
    expect_tensor(dir, NULL, "s1", "diffusion_pytorch_model-00001-of-00002.safetensors");
    scratch_remove(dir);
}

static void sharded_bin(void **state)
{
    (void)state;
    char dir[64];
    scratch_make(dir);
    write_bin(dir, "pytorch-1.bin", "a");
    write_bin(dir, "pytorch-2.bin", "b");
    write_text(dir, "diffusion_pytorch_model.bin.index.json",
               "{\"metadata\":{},\"weight_map\":{\"a\":\"pytorch-1.bin\",\"b\":\"pytorch-2.bin\"}}");
    expect_tensor(dir, NULL, "a", "pytorch-1.bin");
    expect_tensor(dir, NULL, "b", "pytorch-2.bin");
    scratch_remove(dir);
}

static void component_or_root(void **state)
{
    (void)state;
    char dir[64], sub[80];
    scratch_make(dir);
    write_one(dir, WEIGHTS, "root");
    expect_tensor(dir, NULL, "root", WEIGHTS);
    expect_tensor(dir, "unet", "root", WEIGHTS);
    snprintf(sub, sizeof sub, "%s/unet", dir);
    assert_int_equal(mkdir(sub, 0777), 0);
    write_one(sub, WEIGHTS, "component");
    expect_tensor(dir, "unet", "component", WEIGHTS);

    dn_checkpoint *c = NULL;
    dn_error err = { 0 };
    int rc = dn_checkpoint_open(&c, dir, "../unet", &err);
    assert_error(&err, rc, DN_E_IO, "../unet", "component");
    rc = dn_checkpoint_open(&c, dir, WEIGHTS, &err);
    assert_error(&err, rc, DN_E_IO, WEIGHTS, "component");
    rc = dn_checkpoint_open(&c, "no-such-folder", NULL, &err);
    assert_error(&err, rc, DN_E_NOT_FOUND, "", "folder");
    assert_null(c);
    scratch_remove(dir);
}

/* Only the layers of attention, only in a single file. */
static void legacy_names(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        { "a.query.weight", "a.to_q.weight" },        { "a.key.bias", "a.to_k.bias" },
        { "a.value.weight", "a.to_v.weight" },        { "a.proj_attn.bias", "a.to_out.0.bias" },
        { "a.query.scale", "a.query.scale" },         { "query.weight", "query.weight" },
        { "a.subquery.weight", "a.subquery.weight" }, { "a.group_norm.weight", "a.group_norm.weight" },
    };
    char dir[64];
    scratch_make(dir);
    write_text(dir, INDEX, "{\"weight_map\":{\"a.key.weight\":\"s.safetensors\"}}");
    write_one(dir, "s.safetensors", "a.key.weight");
    expect_tensor(dir, NULL, "a.key.weight", "s.safetensors");
    scratch_remove(dir);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        scratch_make(dir);
        write_one(dir, WEIGHTS, names[i][0]);
        expect_tensor(dir, NULL, names[i][1], WEIGHTS);
        scratch_remove(dir);
    }
    scratch_make(dir);
    blob b = safetensors_make("{\"a.key.bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                              "\"a.to_k.bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                              "12345678", 8);
    file_write(dir, WEIGHTS, b.p, b.len);
    blob_free(&b);
    expect_error(dir, DN_E_FORMAT, WEIGHTS, "tensor \"a.to_k.bias\" is there twice");
    char name[256];
    memset(name, 'n', sizeof name);
    strcpy(name + 255 - strlen(".key.weight"), ".key.weight");
    write_one(dir, WEIGHTS, name);
    expect_error(dir, DN_E_LIMIT, WEIGHTS, "its name is too long");
    scratch_remove(dir);
}

/* --- folders that lie --- */

#define MAP(text) "{\"weight_map\":" text "}"
static void lying_indices(void **state)
{
    (void)state;
    static const struct {
        const char *index;
        int code;
        const char *param, *text;
    } lies[] = {
        { MAP("{\"a\":\"a.safetensors\",\"b\":\"c.safetensors\"}"), DN_E_NOT_FOUND, "c.safetensors",
          "shard c.safetensors, where " INDEX " looks for tensor \"b\", is missing" },
        { MAP("{\"a\":\"a.safetensors\",\"c\":\"b.safetensors\"}"), DN_E_FORMAT, "b.safetensors",
          "tensor \"c\" is not in b.safetensors" },
        { MAP("{\"a\":\"b.safetensors\",\"b\":\"a.safetensors\"}"), DN_E_FORMAT, "b.safetensors",
          "tensor \"a\" is not in b.safetensors" },
        { MAP("{\"a\":\"a.safetensors\",\"b\":\"also-a.safetensors\"}"), DN_E_FORMAT, "also-a.safetensors",
          "tensor \"a\" is there twice: in a.safetensors and in also-a.safetensors" },
        { MAP("{\"a\":\"a.safetensors\",\"b\":\"broken.safetensors\"}"), DN_E_FORMAT, "broken.safetensors",
          "too short" },
        { MAP("{\"a\":\"../a.safetensors\"}"), DN_E_FORMAT, INDEX, "tensor \"a\": its shard is not the plain name" },
        { MAP("{\"a\":\"sub/a.safetensors\"}"), DN_E_FORMAT, INDEX, "tensor \"a\": its shard is not the plain name" },
        { MAP("{\"a\":\".a.safetensors\"}"), DN_E_FORMAT, INDEX, "not the plain name" },
        { MAP("{\"a\":\"\"}"), DN_E_FORMAT, INDEX, "not the plain name" },
        { MAP("{\"a\":\"config.json\"}"), DN_E_FORMAT, INDEX, "not the plain name" },
        { MAP("{\"a\":7}"), DN_E_FORMAT, INDEX, "not the plain name" },
        { MAP("[]"), DN_E_FORMAT, INDEX, "no weight_map" },
        { "{}", DN_E_FORMAT, INDEX, "no weight_map" },
        { "{\"weight_map\":\n{\"a\":1,\n\"a\":2}}", DN_E_FORMAT, INDEX, "line 3" },
        { "", DN_E_FORMAT, INDEX, "line 1" },
        { "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", DN_E_FORMAT, INDEX,
          "git-lfs pointer" },
    };
    char dir[64];
    scratch_make(dir);
    write_one(dir, "a.safetensors", "a");
    write_one(dir, "also-a.safetensors", "a");
    write_one(dir, "b.safetensors", "b");
    write_text(dir, "broken.safetensors", "");
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        write_text(dir, INDEX, lies[i].index);
        expect_error(dir, lies[i].code, lies[i].param, lies[i].text);
    }
    blob many = { 0 };
    blob_str(&many, "{\"weight_map\":{\"b\":\"b.safetensors\"");
    for (int i = 0; i < 200; i++) {
        char entry[64], name[32];
        snprintf(name, sizeof name, "m%d.safetensors", i);
        write_one(dir, name, name);
        blob_add(&many, entry, (size_t)snprintf(entry, sizeof entry, ",\"%s\":\"%s\"", name, name));
    }
    blob_str(&many, "}}");
    file_write(dir, INDEX, many.p, many.len);
    expect_error(dir, DN_E_LIMIT, INDEX, "more than 128 shards");
    blob_free(&many);
    scratch_remove(dir);
}

static void lying_files(void **state)
{
    (void)state;
    char dir[64], path[160];
    scratch_make(dir);
    static const char *const names[] = { WEIGHTS, BIN };
    for (int i = 0; i < 2; i++) {
        write_text(dir, names[i], "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n");
        expect_error(dir, DN_E_FORMAT, names[i], "git-lfs pointer");
        write_text(dir, names[i], "");
        expect_error(dir, DN_E_FORMAT, names[i], names[i]);
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0777), 0);
        expect_error(dir, DN_E_FORMAT, names[i], "not a regular file");
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(mkfifo(path, 0666), 0);
        expect_error(dir, DN_E_FORMAT, names[i], "not a regular file");
        assert_int_equal(unlink(path), 0);
        assert_int_equal(symlink("nowhere", path), 0);
        expect_error(dir, DN_E_NOT_FOUND, names[i], "No such file");
        assert_int_equal(unlink(path), 0);
    }
    scratch_remove(dir);
}

/* Every way to cut a file short is an error, whichever the form. */
static void truncated(void **state)
{
    (void)state;
    char dir[64];
    scratch_make(dir);
    write_one(dir, WEIGHTS, "tensor");
    blob b = file_read(dir, WEIGHTS);
    for (size_t n = 0; n < b.len; n++) {
        file_write(dir, WEIGHTS, b.p, n);
        expect_error(dir, DN_E_FORMAT, WEIGHTS, "");
    }
    blob_free(&b);
    scratch_remove(dir);
    scratch_make(dir);
    write_bin(dir, BIN, "tensor");
    b = file_read(dir, BIN);
    for (size_t n = 0; n < b.len; n++) {
        file_write(dir, BIN, b.p, n);
        expect_error(dir, DN_E_FORMAT, BIN, "");
    }
    blob_free(&b);
    scratch_remove(dir);
}

/* A file that is cut short after it was opened is an error of reading, not a crash. */
static void cut_while_open(void **state)
{
    (void)state;
    char dir[64], path[160];
    scratch_make(dir);
    write_one(dir, WEIGHTS, "tensor");
    dn_checkpoint *c = open_good(dir, NULL);
    snprintf(path, sizeof path, "%s/%s", dir, WEIGHTS);
    assert_int_equal(truncate(path, 20), 0);
    float f;
    dn_error err = { 0 };
    int rc = dn_checkpoint_read(c, dn_checkpoint_find(c, "tensor"), &f, &err);
    assert_error(&err, rc, DN_E_IO, WEIGHTS, "tensor \"tensor\": " WEIGHTS " was cut short");
    dn_checkpoint_close(c);
    scratch_remove(dir);
}

static int open_files(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) != -1;
    return n;
}

static int files_before;
static int count_before(void **state)
{
    (void)state;
    files_before = open_files();
    return 0;
}

static int none_left_open(void **state)
{
    (void)state;
    return open_files() == files_before ? 0 : -1;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, count_before, none_left_open)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(storage_forms), TEST(precedence),  TEST(sharded_bin), TEST(component_or_root), TEST(legacy_names),
        TEST(lying_indices), TEST(lying_files), TEST(truncated),   TEST(cut_while_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
