/* test_torch.c - torch .bin: views of storages, and zips and pickles that are hostile or broken. */
#include "util.h"

#include "checkpoint.h"
#include "pickle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIN "diffusion_pytorch_model.bin"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    scratch_make(dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

/* Write and open a .bin of this pickle, with one storage "0" of 24 floats 0 .. 23. */
static int open_bin(dn_checkpoint **c, const blob *pickle, dn_error *err)
{
    blob data = { 0 };
    for (int i = 0; i < 24; i++)
        blob_add(&data, &(float){ (float)i }, 4);
    zip_item items[] = { { .name = "archive/data.pkl", .data = *pickle },
                         { .name = "archive/byteorder", .data = { (uint8_t *)"little", 6 } },
                         { .name = "archive/data/0", .data = data },
                         { .name = "archive/version", .data = { (uint8_t *)"3\n", 2 } } };
    blob zip = zip_make(items, 4);
    file_write(dir, BIN, zip.p, zip.len);
    blob_free(&zip);
    blob_free(&data);
    return dn_checkpoint_open(c, dir, NULL, err);
}

/* --- views --- */

static void views(void **state)
{
    (void)state;
    blob p = { 0 };
    pickle_begin(&p);
    pickle_tensor(&p, "all", "FloatStorage", "0", 24, 0, 3, (int64_t[]){ 2, 3, 4 }, (int64_t[]){ 12, 4, 1 });
    pickle_tensor(&p, "permuted", "FloatStorage", "0", 24, 0, 3, (int64_t[]){ 4, 2, 3 }, (int64_t[]){ 1, 12, 4 });
    pickle_tensor(&p, "slice", "FloatStorage", "0", 24, 5, 2, (int64_t[]){ 2, 2 }, (int64_t[]){ 12, 2 });
    pickle_tensor(&p, "expanded", "FloatStorage", "0", 24, 23, 2, (int64_t[]){ 3, 8 }, (int64_t[]){ 0, 0 });
    pickle_tensor(&p, "overlapping", "FloatStorage", "0", 24, 0, 2, (int64_t[]){ 3, 3 }, (int64_t[]){ 1, 1 });
    pickle_tensor(&p, "scalar", "FloatStorage", "0", 24, 7, 0, NULL, NULL);
    pickle_tensor(&p, "empty", "FloatStorage", "0", 24, 24, 2, (int64_t[]){ 0, 5 }, (int64_t[]){ 5, 1 });
    pickle_tensor(&p, "longs", "LongStorage", "0", 12, 0, 1, (int64_t[]){ 12 }, (int64_t[]){ 1 });
    pickle_end(&p);
    dn_checkpoint *c;
    dn_error err = { 0 };
    if (open_bin(&c, &p, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(dn_checkpoint_count(c), 8);
    static const struct {
        const char *name;
        int64_t count, offset, dim[3], stride[3];
    } want[] = {
        { "all", 24, 0, { 2, 3, 4 }, { 12, 4, 1 } },       { "permuted", 24, 0, { 4, 2, 3 }, { 1, 12, 4 } },
        { "slice", 4, 5, { 1, 2, 2 }, { 0, 12, 2 } },      { "expanded", 24, 23, { 1, 3, 8 }, { 0, 0, 0 } },
        { "overlapping", 9, 0, { 1, 3, 3 }, { 0, 1, 1 } }, { "scalar", 1, 7, { 1, 1, 1 }, { 0 } },
        { "empty", 0, 24, { 1, 0, 5 }, { 0, 5, 1 } },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const dn_tensor *t = dn_checkpoint_find(c, want[i].name);
        float f[24], *at = f;
        assert_non_null(t);
        assert_int_equal(t->count, want[i].count);
        assert_int_equal(dn_checkpoint_read(c, t, f, &err), 0);
        for (int64_t a = 0; a < want[i].dim[0]; a++)
            for (int64_t b = 0; b < want[i].dim[1]; b++)
                for (int64_t d = 0; d < want[i].dim[2]; d++) {
                    const int64_t *s = want[i].stride;
                    assert_true(*at++ == (float)(want[i].offset + a * s[0] + b * s[1] + d * s[2]));
                }
        assert_int_equal(at - f, t->count);
    }
    assert_int_equal(dn_checkpoint_find(c, "longs")->dtype, DN_T_I64);
    assert_string_equal(dn_checkpoint_find(c, "longs")->dtype_name, "I64");
    dn_checkpoint_close(c);
    blob_free(&p);
}

/* model.state_dict() is an OrderedDict that carries its modules' versions as an attribute. */
static void ordered_dict_with_metadata(void **state)
{
    (void)state;
    blob p = { 0 };
    blob_str(&p, "\x80\2ccollections\nOrderedDict\nq\x00)Rq\x01(");
    pickle_tensor(&p, "w", "FloatStorage", "0", 24, 1, 1, (int64_t[]){ 2 }, (int64_t[]){ 1 });
    blob_str(&p, "u}q\x02");
    pickle_text(&p, "_metadata");
    blob_str(&p, "h\x00)R(");
    pickle_text(&p, "");
    blob_str(&p, "}");
    pickle_text(&p, "version");
    blob_str(&p, "K\x01susb.");
    dn_checkpoint *c;
    dn_error err = { 0 };
    if (open_bin(&c, &p, &err) != 0)
        fail_msg("%s", err.message);
    float f[2];
    assert_int_equal(dn_checkpoint_count(c), 1);
    assert_int_equal(dn_checkpoint_read(c, dn_checkpoint_find(c, "w"), f, &err), 0);
    assert_true(f[0] == 1 && f[1] == 2);
    dn_checkpoint_close(c);
    blob_free(&p);
}

/* --- pickles that are not a map of tensors --- */

static void expect_refused(const blob *pickle, int code, const char *text)
{
    dn_checkpoint *untouched = (dn_checkpoint *)dir, *c = untouched;
    dn_error err = { 0 };
    int rc = open_bin(&c, pickle, &err);
    assert_error(&err, rc, code, BIN, text);
    assert_ptr_equal(c, untouched);
}

/* clang-format off */
#define P(s) { (uint8_t *)(s), sizeof(s) - 1 }
/* clang-format on */
static void hostile_pickles(void **state)
{
    (void)state;
    static const struct {
        blob pickle;
        int code;
        const char *text;
    } bad[] = {
        { P("\x80\2cos\nsystem\n(X\x04\0\0\0truetR."), DN_E_FORMAT, "nothing is run, but it names os.system" },
        { P("\x80\2cbuiltins\neval\n."), DN_E_FORMAT, "builtins.eval" },
        { P("\x80\2cposix\nsystem\n."), DN_E_FORMAT, "posix.system" },
        { P("\x80\2ctorch\nload\n."), DN_E_FORMAT, "torch.load" },
        { P("\x80\2ctorch.cuda\nFloatStorage\n."), DN_E_FORMAT, "torch.cuda.FloatStorage" },
        { P("\x80\2ctorch._utils\n_rebuild_parameter\n."), DN_E_FORMAT, "torch._utils._rebuild_parameter" },
        { P("\x80\2ccollections\nOrderedDict\x00\n."), DN_E_FORMAT, "collections.OrderedDict?" },
        { P("\x80\2ccollections\nOrderedDict\n(K\x01tR."), DN_E_FORMAT, "calls something" },
        { P("\x80\2ctorch\nFloatStorage\n)R."), DN_E_FORMAT, "calls something" },
        { P("\x80\x02}(ios\nsystem\n."), DN_E_FORMAT, "opcode that a map of tensors needs: 0x69" },
        { P("\x80\x02}\x82\x01."), DN_E_FORMAT, "0x82" },
        { P("\x80\x02}\x93."), DN_E_FORMAT, "0x93" },
        { P("\x80\x02}I99\n."), DN_E_FORMAT, "0x49" },
        { P("\x80\x04}."), DN_E_FORMAT, "protocol 2" },
        { P("\x80\x02}.}"), DN_E_FORMAT, "after its end" },
        { P("\x80\x02}"), DN_E_FORMAT, "cut short" },
        { P(""), DN_E_FORMAT, "cut short" },
        { P("\x80\x02."), DN_E_FORMAT, "not one map" },
        { P("\x80\x02}}."), DN_E_FORMAT, "not one map" },
        { P("\x80\x02}(."), DN_E_FORMAT, "not one map" },
        { P("\x80\x02K\x01."), DN_E_FORMAT, "expected a dict" },
        { P("\x80\x02R."), DN_E_FORMAT, "stack is empty" },
        { P("\x80\x02u."), DN_E_FORMAT, "a mark is missing" },
        { P("\x80\x02t."), DN_E_FORMAT, "a mark is missing" },
        { P("\x80\x02}(K\x01u."), DN_E_FORMAT, "key without a value" },
        { P("\x80\x02(K\x01K\x02u."), DN_E_FORMAT, "no dict" },
        { P("\x80\x02K\x01(K\x01K\x02u."), DN_E_FORMAT, "no dict" },
        { P("\x80\x02}K\x01s."), DN_E_FORMAT, "stack is empty" },
        { P("\x80\x02}(K\x01(K\x02s."), DN_E_FORMAT, "stack is empty" },
        { P("\x80\x02\x85."), DN_E_FORMAT, "stack is empty" },
        { P("\x80\x02K\x01(\x85."), DN_E_FORMAT, "stack is empty" },
        { P("\x80\x02q\x01."), DN_E_FORMAT, "stack is empty" },
        { P("\x80\x02h\x01."), DN_E_FORMAT, "memo entry that was never made" },
        { P("\x80\x02}q\x05h\x04."), DN_E_FORMAT, "memo entry that was never made" },
        { P("\x80\x02}r\xff\xff\xff\xff."), DN_E_LIMIT, "memo is too large" },
        { P("\x80\x02j\xff\xff\xff\xff."), DN_E_FORMAT, "memo entry that was never made" },
        { P("\x80\x02X\xff\xff\xff\377a."), DN_E_FORMAT, "cut short" },
        { P("\x80\2cos"), DN_E_FORMAT, "cut short" },
        { P("\x80\2cos\nsystem"), DN_E_FORMAT, "cut short" },
        { P("\x80\x02\x8a\x09\1\1\1\1\1\1\1\1\1."), DN_E_FORMAT, "64 bits" },
        { P("\x80\x02K\x01Q."), DN_E_FORMAT, "expected a tuple" },
        { P("\x80\x02)Q."), DN_E_FORMAT, "persistent id" },
        { P("\x80\x02}K\1b."), DN_E_FORMAT, "expected a dict" },
        { P("\x80\x02K\x01}b."), DN_E_FORMAT, "expected a dict" },
        /* a dict that holds itself, and one in the place of a tensor */
        { P("\x80\x02}q\x00X\x01\0\0\0ah\x00s."), DN_E_FORMAT, "\"a\" is a dict, not a tensor" },
        { P("\x80\x02}X\x04\0\0\0sizeK\x07s."), DN_E_FORMAT, "\"size\" is an integer, not a tensor" },
        { P("\x80\x02}K\x01K\x02s."), DN_E_FORMAT, "name is an integer" },
        { P("\x80\x02}X\x03\0\0\0a\0bK\x02s."), DN_E_FORMAT, "zero byte" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_refused(&bad[i].pickle, bad[i].code, bad[i].text);
}

static void lying_tensors(void **state)
{
    (void)state;
    const int64_t big = (int64_t)1 << 62;
    const struct {
        const char *type, *key;
        int64_t numel, offset;
        int rank;
        int64_t dims[10], strides[10];
        int code;
        const char *text;
    } bad[] = {
        { "FloatStorage", "1", 24, 0, 1, { 1 }, { 1 }, DN_E_FORMAT, "no storage of the size it says has the key 1" },
        { "FloatStorage", "../0", 24, 0, 1, { 1 }, { 1 }, DN_E_FORMAT, "key ../0" },
        { "FloatStorage", "0", 25, 0, 1, { 1 }, { 1 }, DN_E_FORMAT, "no storage of the size" },
        { "DoubleStorage", "0", 24, 0, 1, { 1 }, { 1 }, DN_E_FORMAT, "no storage of the size" },
        { "FloatStorage", "0", big, 0, 1, { 1 }, { 1 }, DN_E_FORMAT, "no storage of the size" },
        { "FloatStorage", "0", -24, 0, 1, { 1 }, { 1 }, DN_E_FORMAT, "persistent id that is no storage" },
        { "FloatStorage", "0", 24, 1, 1, { 24 }, { 1 }, DN_E_FORMAT, "reaches out of its storage" },
        { "FloatStorage", "0", 24, 24, 0, { 0 }, { 0 }, DN_E_FORMAT, "reaches out of its storage" },
        { "FloatStorage", "0", 24, 25, 1, { 0 }, { 1 }, DN_E_FORMAT, "reaches out of its storage" },
        { "FloatStorage", "0", 24, 0, 1, { 2 }, { 24 }, DN_E_FORMAT, "reaches out of its storage" },
        { "FloatStorage", "0", 24, 0, 2, { 2, 3 }, { big, big }, DN_E_FORMAT, "reaches out of its storage" },
        { "FloatStorage", "0", 24, big, 2, { 2, 2 }, { big, 1 }, DN_E_FORMAT, "reaches out of its storage" },
        /* a view of one number that asks for gigabytes */
        { "FloatStorage", "0", 24, 0, 1, { 1 << 30 }, { 0 }, DN_E_FORMAT, "reaches out of its storage" },
        { "FloatStorage", "0", 24, 0, 3, { big, big, big }, { 0, 0, 0 }, DN_E_FORMAT, "shape overflows" },
        { "FloatStorage", "0", 24, -1, 1, { 1 }, { 1 }, DN_E_FORMAT, "do not fit" },
        { "FloatStorage", "0", 24, 0, 1, { -1 }, { 1 }, DN_E_FORMAT, "below 0" },
        { "FloatStorage", "0", 24, 3, 1, { 2 }, { -1 }, DN_E_FORMAT, "below 0" },
        { "FloatStorage", "0", 24, 0, 9, { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, { 1 }, DN_E_LIMIT, "8 dimensions" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        blob p = { 0 };
        pickle_begin(&p);
        pickle_tensor(&p, "t", bad[i].type, bad[i].key, bad[i].numel, bad[i].offset, bad[i].rank, bad[i].dims,
                      bad[i].strides);
        pickle_end(&p);
        expect_refused(&p, bad[i].code, bad[i].text);
        blob_free(&p);
    }
    blob p = { 0 };
    pickle_begin(&p);
    for (int i = 0; i < 2; i++)
        pickle_tensor(&p, "t", "FloatStorage", "0", 24, 0, 0, NULL, NULL);
    pickle_end(&p);
    expect_refused(&p, DN_E_FORMAT, "tensor \"t\" is there twice");
    blob_free(&p);
}

static void repeat(blob *b, const char *s, size_t len, int n)
{
    for (int i = 0; i < n; i++)
        blob_add(b, s, len);
}

/* Small files that would make a naive reader deep or large. */
static void bounded(void **state)
{
    (void)state;
    blob p = { 0 };
    blob_str(&p, "\x80\x02");
    repeat(&p, "(", 1, DN_PICKLE_DEPTH_MAX + 1);
    expect_refused(&p, DN_E_LIMIT, "nested too deeply");
    blob_free(&p);

    blob_str(&p, "\x80\x02");
    repeat(&p, "}", 1, DN_PICKLE_STACK_MAX + 1);
    expect_refused(&p, DN_E_LIMIT, "stack is too deep");
    blob_free(&p);

    blob_str(&p, "\x80\x02)"); /* tuples of tuples of tuples: each doubles what a copy would take */
    repeat(&p, "q\x00h\x00\x86", 5, 10000);
    blob_str(&p, ".");
    expect_refused(&p, DN_E_FORMAT, "expected a dict");
    blob_free(&p);

    blob_str(&p, "\x80\x02}q\x00");
    repeat(&p, "h\x00h\x00s", 5, DN_PICKLE_VALUES_MAX);
    expect_refused(&p, DN_E_LIMIT, "too many values");
    blob_free(&p);

    p.p = calloc(DN_PICKLE_BYTES_MAX + 1, 1);
    p.len = DN_PICKLE_BYTES_MAX + 1;
    expect_refused(&p, DN_E_LIMIT, "data.pkl is 16777217 bytes long");
    blob_free(&p);

    pickle_begin(&p);
    char name[300];
    memset(name, 'n', sizeof name);
    name[256] = 0;
    pickle_tensor(&p, name, "FloatStorage", "0", 24, 0, 0, NULL, NULL);
    pickle_end(&p);
    expect_refused(&p, DN_E_LIMIT, "longer than 255");
    blob_free(&p);
}

/* --- zips --- */

static void expect_zip(const zip_item *items, int n, int code, const char *text)
{
    blob zip = zip_make(items, n);
    file_write(dir, BIN, zip.p, zip.len);
    blob_free(&zip);
    dn_checkpoint *c = NULL;
    dn_error err = { 0 };
    int rc = dn_checkpoint_open(&c, dir, NULL, &err);
    if (code != 0)
        assert_error(&err, rc, code, BIN, text);
    else if (rc != 0)
        fail_msg("%s", err.message);
    dn_checkpoint_close(c);
}

static void zips(void **state)
{
    (void)state;
    blob p = { 0 }, data = P("12345678");
    pickle_begin(&p);
    pickle_tensor(&p, "t", "FloatStorage", "0", 2, 0, 1, (int64_t[]){ 2 }, (int64_t[]){ 1 });
    pickle_end(&p);
    zip_item pickle = { .name = "m/data.pkl", .data = p }, storage = { .name = "m/data/0", .data = data };
    expect_zip((zip_item[]){ pickle, storage }, 2, 0, NULL);
    expect_zip((zip_item[]){ storage, pickle }, 2, 0, NULL);
    zip_item wide_pickle = pickle, wide_storage = storage;
    wide_pickle.zip64 = wide_storage.zip64 = 1;
    expect_zip((zip_item[]){ wide_pickle, wide_storage }, 2, 0, NULL);
    expect_zip((zip_item[]){ pickle, wide_storage }, 2, 0, NULL);
    expect_zip((zip_item[]){ pickle }, 1, DN_E_FORMAT, "no storage");
    expect_zip((zip_item[]){ storage }, 1, DN_E_FORMAT, "no data.pkl");
    expect_zip(NULL, 0, DN_E_FORMAT, "no data.pkl");

#define LIE(item, field, value) \
    ({                          \
        zip_item lie_ = item;   \
        lie_.field = value;     \
        lie_;                   \
    })
    const struct {
        zip_item item;
        const char *text;
    } lies[] = {
        { LIE(storage, method, 8), "\"m/data/0\" of the zip archive is compressed" },
        { LIE(storage, flags, 1), "is encrypted" },
        { LIE(storage, size_lie, -1), "no storage" },
        { LIE(storage, size_lie, 1000), "reaches out of the file" },
        { LIE(wide_storage, size_lie, INT64_MAX), "reaches out of the file" },
        { LIE(wide_storage, size_lie, -9), "reaches out of the file" },
        { LIE(storage, header_lie, 1), "is not where the directory says" },
        { LIE(storage, header_lie, 100000), "reaches out of the file" },
        { LIE(wide_storage, header_lie, -1000), "reaches out of the file" },
        { LIE(storage, name, "m/data.pkl"), "is there twice" },
        { LIE(storage, name, "m/data/1"), "no storage" },
        { LIE(storage, name, "n/data/0"), "no storage" },
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++)
        expect_zip((zip_item[]){ pickle, lies[i].item }, 2, DN_E_FORMAT, lies[i].text);
    expect_zip((zip_item[]){ LIE(pickle, size_lie, 1), storage }, 2, DN_E_FORMAT, "overlaps another");
    expect_zip((zip_item[]){ LIE(pickle, name, "a/b/data.pkl"), storage }, 2, DN_E_FORMAT, "no data.pkl");
    zip_item big_endian = { .name = "m/byteorder", .data = P("big") };
    expect_zip((zip_item[]){ pickle, storage, big_endian }, 3, DN_E_UNSUPPORTED, "byte order");
    blob_free(&p);
}

static void other_files(void **state)
{
    (void)state;
    static const struct {
        blob bytes;
        int code;
        const char *text;
    } bad[] = {
        { P("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19."), DN_E_UNSUPPORTED, "before 1.6" },
        { P("\x80\x04\x95"), DN_E_UNSUPPORTED, "before 1.6" },
        { P("hello"), DN_E_FORMAT, "is not a zip archive" },
        { P("PK"), DN_E_FORMAT, "its end is missing" },
        { P("PK\x05\x06\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0"), DN_E_FORMAT, "zip64 record is missing" },
        { P("PK\x05\x06\0\0\0\0\0\x70\0\x70\0\0\0\0\0\0\0\0\0\0"), DN_E_FORMAT, "directory is broken" },
        { P("PK\x05\x06\0\0\0\0\0\x90\0\x90\0\0\0\0\0\0\0\0\0\0"), DN_E_LIMIT, "more than 32768 entries" },
        { P("PK\x05\x06\0\0\0\0\1\0\1\0\0\0\0\2\0\0\0\0\0\0"), DN_E_LIMIT, "a directory of more than" },
        { P("PK\x05\x06\0\0\0\0\1\0\1\0\0\1\0\0\xf0\xff\xff\xff\0\0"), DN_E_FORMAT, "in the middle" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        file_write(dir, BIN, bad[i].bytes.p, bad[i].bytes.len);
        dn_checkpoint *c = NULL;
        dn_error err = { 0 };
        int rc = dn_checkpoint_open(&c, dir, NULL, &err);
        assert_error(&err, rc, bad[i].code, BIN, bad[i].text);
        assert_null(c);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(views),           TEST(ordered_dict_with_metadata),
        TEST(hostile_pickles), TEST(lying_tensors),
        TEST(bounded),         TEST(zips),
        TEST(other_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
