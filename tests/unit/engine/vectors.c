/* vectors.c - labels that are vectors. The class embedding of a golden is taken out of its network: given its rows as label
 * vectors, the network makes the same bytes as the golden with the classes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/device.h>
#include <denoised/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 16 * 16 * 3, TENSORS_MAX = 256, CLASSES = 10, DIM = 64 };

static char folder[64];
static float embedding[CLASSES][DIM];
static dn_device *device;
static dn_model *classes, *vectors;
static dn_net *class_net, *vector_net;

static uint8_t *read_golden(const char *name, size_t *n)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/unet_adm/%s", GOLDEN_DIR, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    enum { ROOM = 4 << 20 };
    uint8_t *data = calloc(1, ROOM);
    *n = fread(data, 1, ROOM - 1, f);
    fclose(f);
    return data;
}

static void write_file(const char *name, const void *data, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static void write_config(void)
{
    static const char from[] = "\"class_embed_type\": null", to[] = "\"class_embed_type\": \"identity\"";
    char changed[8192];
    size_t n;
    char *text = (char *)read_golden("config.json", &n), *at = strstr(text, from);
    assert_non_null(at);
    int len = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_file("config.json", changed, (size_t)len);
    free(text);
}

static void write_weights(void)
{
    static dn_st_tensor t[TENSORS_MAX];
    int n = TENSORS_MAX, kept = 0;
    size_t len, out_len;
    uint8_t *file = read_golden("diffusion_pytorch_model.safetensors", &len), *out = NULL;
    assert_int_equal(dn_st_parse(t, &n, file, len, NULL), 0);
    for (int i = 0; i < n; i++) {
        if (strcmp(t[i].name, "class_embedding.weight")) {
            t[kept++] = t[i];
        } else {
            assert_int_equal(t[i].bytes, sizeof embedding);
            memcpy(embedding, t[i].data, sizeof embedding);
        }
    }
    assert_int_equal(kept, n - 1);
    assert_int_equal(dn_st_encode(&out, &out_len, t, kept, NULL), 0);
    write_file("diffusion_pytorch_model.safetensors", out, out_len);
    free(out);
    free(file);
}

static int set_up(void **state)
{
    (void)state;
    dn_error err = { 0 };
    strcpy(folder, "/tmp/denoised-vectors-XXXXXX");
    assert_non_null(mkdtemp(folder));
    write_config();
    write_weights();
    if (dn_device_open(&device, "cpu", &err) || dn_model_load(&classes, GOLDEN_DIR "/unet_adm", &err) ||
        dn_model_load(&vectors, folder, &err) || dn_net_new(&class_net, device, classes, 16, 16, 0, &err) ||
        dn_net_new(&vector_net, device, vectors, 16, 16, 0, &err))
        fail_msg("%s", err.message);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char path[128];
    dn_net_free(class_net);
    dn_net_free(vector_net);
    dn_model_free(classes);
    dn_model_free(vectors);
    dn_device_close(device);
    snprintf(path, sizeof path, "%s/config.json", folder);
    remove(path);
    snprintf(path, sizeof path, "%s/diffusion_pytorch_model.safetensors", folder);
    remove(path);
    return rmdir(folder);
}

static dn_sample *make(const float *vector, int label)
{
    dn_table table = { 0 };
    dn_sample *s;
    assert_int_equal(dn_table_plan_denoise(&table, 500, 1, NULL), 0);
    dn_sample_params p = { .table = &table, .height = 16, .width = 16, .channels = 3, .out_channels = 3, .seed = 3, .label = label,
                           .label_b = -1, .null_label = -1, .temperature = 1, .label_vector = vector,
                           .label_dim = vector ? DIM : 0 };
    assert_int_equal(dn_sample_new(&s, device, &p, NULL), 0);
    return s;
}

/* All of them as one batch. */
static void evaluate(float (*y)[SIZE], const dn_net *net, dn_sample *const *s, int n)
{
    dn_row row[CLASSES];
    dn_batch *b = NULL;
    for (int i = 0; i < n; i++)
        row[i] = (dn_row){ s[i], DN_ROW_COND };
    assert_int_equal(dn_batch_begin(&b, device, net, row, n, NULL), 0);
    assert_int_equal(dn_batch_some(b, 0), 0);
    dn_batch_free(b);
    for (int i = 0; i < n; i++) {
        assert_int_equal(dn_sample_update(s[i]), 0);
        dn_sample_read(s[i], DN_READ_OUT, y[i]);
        dn_sample_free(s[i]);
    }
}

static void test_a_vector_is_what_the_table_would_give(void **state)
{
    (void)state;
    static float want[CLASSES][SIZE], got[CLASSES][SIZE];
    dn_sample *a[CLASSES], *b[CLASSES];
    const dn_model_info *info = dn_model_info_of(vectors);
    assert_int_equal(info->label_kind, DN_LABEL_VECTOR);
    assert_int_equal(info->label_dim, DIM);
    for (int k = 0; k < CLASSES; k++) {
        a[k] = make(NULL, k);
        b[k] = make(embedding[k], -1);
    }
    evaluate(want, class_net, a, CLASSES);
    evaluate(got, vector_net, b, CLASSES);
    assert_memory_equal(got, want, sizeof want);
    assert_memory_not_equal(got[0], got[1], sizeof got[0]);
}

/* Where others' vectors have lain before: a sample without one has zeros. */
static void test_without_a_vector_it_is_zeros(void **state)
{
    (void)state;
    static const float zeros[DIM];
    static float want[1][SIZE], got[2 * 4][SIZE];
    dn_sample *zero = make(zeros, -1), *loud[4], *mixed[4];
    evaluate(want, vector_net, &zero, 1);
    for (int k = 0; k < 4; k++) {
        loud[k] = make(embedding[k], -1);
        mixed[k] = make(k % 2 ? NULL : embedding[9 - k], -1);
    }
    evaluate(got, vector_net, loud, 4);
    evaluate(got + 4, vector_net, mixed, 4);
    for (int k = 0; k < 8; k++) {
        if (k >= 4 && k % 2)
            assert_memory_equal(got[k], want[0], sizeof want[0]);
        else
            assert_memory_not_equal(got[k], want[0], sizeof want[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_a_vector_is_what_the_table_would_give),
                                        cmocka_unit_test(test_without_a_vector_it_is_zeros) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
