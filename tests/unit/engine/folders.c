/* folders.c - model folders that lie: each is refused with the file, key or tensor at fault, and nothing leaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <denoised/device.h>
#include <denoised/image.h>
#include <denoised/model.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];

static void write_text(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(text, 1, strlen(text), f);
    fclose(f);
}

static void copy(const char *name)
{
    char from[1024], to[128];
    snprintf(from, sizeof from, "%s/unet_misc/%s", GOLDEN_DIR, name);
    snprintf(to, sizeof to, "%s/%s", folder, name);
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, in));)
        fwrite(buffer, 1, n, out);
    fclose(in);
    fclose(out);
}

static void remove_file(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    remove(path);
}

static const char *const names[] = { "config.json", "diffusion_pytorch_model.safetensors", "denoised.json", "scheduler_config.json",
                                     "model_index.json" };

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/denoised-folders-XXXXXX");
    assert_non_null(mkdtemp(folder));
    copy(names[0]);
    copy(names[1]);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        remove_file(names[i]);
    return rmdir(folder);
}

static void refused(const char *param, const char *text)
{
    dn_error err = { 0 };
    dn_model *m = NULL;
    if (!dn_model_load(&m, folder, &err))
        fail_msg("loaded, though %s", text);
    assert_null(m);
    if (strcmp(err.param, param) || !strstr(err.message, text))
        fail_msg("expected %s, \"%s\", got %s, \"%s\"", param, text, err.param, err.message);
}

static void loads(void)
{
    dn_error err = { 0 };
    dn_model *m = NULL;
    if (dn_model_load(&m, folder, &err))
        fail_msg("%s", err.message);
    dn_model_free(m);
}

/* {file, contents, param, text}: one at a time, over a folder that loads. */
static const char *const lies[][4] = {
    { "denoised.json", "{\"labels\":[1]}", "labels", "names of 1 to 64" },
    { "denoised.json", "{\"labels\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\"]}", "labels", "as many names" },
    { "denoised.json", "{\"labels\":7}", "labels", "as many names" },
    { "denoised.json", "{\"null_label\":5}", "null_label", "a class" },
    { "denoised.json", "{\"null_label\":-1}", "null_label", "a class" },
    { "denoised.json", "{\"null_label\":\"x\"}", "null_label", "a class" },
    { "denoised.json", "{\"range\":[1,-1]}", "range", "low < high" },
    { "denoised.json", "{\"range\":[0]}", "range", "low < high" },
    { "denoised.json", "{\"sizes\":[[7,8]]}", "sizes", "multiple" },
    { "denoised.json", "{\"sizes\":[[8]]}", "sizes", "multiple" },
    { "denoised.json", "{\"sizes\":[[99999998,8]]}", "sizes", "multiple" },
    { "denoised.json", "{\"defaults\":[]}", "defaults", "an object" },
    { "denoised.json", "{\"description\":1}", "description", "a string" },
    { "denoised.json", "{\"dtype\":\"fp16\"}", "dtype", "not supported" },
    { "denoised.json", "{\"latent_scale\":1}", "latent_scale", "not supported" },
    { "denoised.json", "{\"labels\":[]", "denoised.json", "denoised.json, line 1" },
    { "denoised.json", "[]", "denoised.json", "not a JSON object" },
    { "scheduler_config.json", "{\"_class_name\":\"KarrasVeScheduler\"", "scheduler_config.json", "line 1" },
    { "scheduler_config.json", "{\"_class_name\":\"DDPMScheduler\",\"beta_start\":\"x\"}", "beta_start", "beta_start" },
    { "model_index.json", "{\"_class_name\":\"DiTPipeline\",\"transformer\":[\"diffusers\",\"DiT\"]}", "model_index.json", "no unet" },
    { "model_index.json", "{\"_class_name\":\"DDPMPipeline\",\"unet\":[\"diffusers\",\"UNet2DModel\"]}", "scheduler_config.json", "scheduler_config.json" },
    { "model_index.json", "{\"unet\":[\"diffusers\",\"UNet2DModel\"],\"vae\":[\"diffusers\",\"X\"]}", "model_index.json", "latent" },
};

static void test_lies(void **state)
{
    (void)state;
    loads();
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        write_text(lies[i][0], lies[i][1]);
        refused(lies[i][2], lies[i][3]);
        remove_file(lies[i][0]);
    }
    write_text("denoised.json", "{\"labels\":[\"a\",\"B c\"],\"null_label\":4,\"range\":[0,1],\"sizes\":[[4,6]],\"description\":\"d\",\"defaults\":{\"steps\":3}}");
    loads();
    remove_file("denoised.json");
}

/* The golden's config with one pair of strings exchanged. */
static void with_config(const char *from, const char *to)
{
    char path[1024], text[8192], changed[8192];
    snprintf(path, sizeof path, "%s/unet_misc/config.json", GOLDEN_DIR);
    FILE *f = fopen(path, "rb");
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    char *at = strstr(text, from);
    if (!at)
        fail_msg("no %s in the config", from);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_text("config.json", changed);
}

static const char *const configs[][4] = {
    { "\"UNet2DModel\"", "\"UNet2DConditionModel\"", "_class_name", "UNet2DConditionModel" },
    { "\"UNet2DModel\"", "7", "_class_name", "not supported" },
    { "\"DownBlock2D\"", "\"SkipDownBlock2D\"", "down_block_types", "SkipDownBlock2D" },
    { "\"gelu\"", "\"snake\"", "act_fn", "snake" },
    { "\"layers_per_block\": 1", "\"layers_per_block\": 2", "down_blocks.0.resnets.1.norm1.weight", "has no tensor" },
    { "\"layers_per_block\": 1", "\"layers_per_block\": 0", "layers_per_block", "1..64" },
    { "\"layers_per_block\": 1", "\"layers_per_block\": 1.5", "layers_per_block", "whole number" },
    { "\"in_channels\": 2", "\"in_channels\": 3", "conv_in.weight", "[16,2,3,3]" },
    { "\"norm_num_groups\": 4", "\"norm_num_groups\": 5", "down_blocks.0.resnets.0.norm1", "5 groups" },
    { "\"norm_num_groups\": 4", "\"norm_num_groups\": null", "norm_num_groups", "not null" },
    { "\"num_class_embeds\": 5", "\"num_class_embeds\": null", "class_embedding.weight", "belongs to no layer" },
    { "\"num_class_embeds\": 5", "\"num_class_embeds\": 6", "class_embedding.weight", "[5,64]" },
    { "\"num_train_timesteps\": 100", "\"num_train_timesteps\": null", "num_train_timesteps", "learned" },
    { "\"attention_head_dim\": 4", "\"attention_head_dim\": \"x\"", "attention_head_dim", "whole number" },
    { "\"add_attention\": false", "\"add_attention\": 1", "add_attention", "true or false" },
    { "\"in_channels\": 2", "\"in_channels\": 99999999999", "in_channels", "1..4096" },
    { "\"in_channels\": 2", "\"in_channels\": 1e300", "in_channels", "1..4096" },
    /* 4 GiB: asked for by the config, refused by the file before any is allocated */
    { "\"num_class_embeds\": 5", "\"num_class_embeds\": 16777216", "class_embedding.weight", "[5,64]" },
};

static void test_configs(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        with_config(configs[i][0], configs[i][1]);
        dn_error err = { 0 };
        dn_model *m = NULL;
        if (!dn_model_load(&m, folder, &err))
            fail_msg("loaded with %s", configs[i][1]);
        if (!strstr(err.message, configs[i][3]))
            fail_msg("%s: expected \"%s\", got %s: \"%s\"", configs[i][1], configs[i][3], err.param, err.message);
        if (strcmp(configs[i][2], err.param))
            fail_msg("%s: expected param %s, got %s: \"%s\"", configs[i][1], configs[i][2], err.param, err.message);
    }
    copy("config.json");
    loads();
}

/* At the largest size nothing of the plan overflows: x and out alone are [8192,8192,2] and [8192,8192,4] floats a row. */
static void test_the_largest_size(void **state)
{
    (void)state;
    static const char own[] = "\"sample_size\": [\n    8,\n    16\n  ]";
    const size_t pixels = (size_t)8192 * 8192;
    dn_error err = { 0 };
    dn_device *d = NULL;
    dn_footprint small, large;
    assert_int_equal(dn_device_open(&d, "cpu:0", &err), 0);
    assert_int_equal(dn_net_foresee(&small, d, folder, &err), 0);
    with_config(own, "\"sample_size\": 8192");
    if (dn_net_foresee(&large, d, folder, &err))
        fail_msg("%s", err.message);
    assert_int_equal(large.weights, small.weights);
    assert_true(large.arena >= 6 * sizeof(float) * pixels && large.arena < 1000 * sizeof(float) * pixels);
    loads();
    with_config(own, "\"sample_size\": 8193");
    refused("sample_size", "1..8192");
    with_config(own, "\"sample_size\": [8192, 8193]");
    refused("sample_size", "1..8192");
    write_text("denoised.json", "{\"sizes\":[[8192,8192]]}");
    copy("config.json");
    loads();
    write_text("denoised.json", "{\"sizes\":[[8192,8194]]}");
    refused("sizes", "8192");
    remove_file("denoised.json");
    dn_device_close(d);
}

/* A network that takes vectors has no classes, so none of them can be the null label, whatever num_class_embeds says. */
static void test_vectors(void **state)
{
    (void)state;
    with_config("\"class_embed_type\": null", "\"class_embed_type\": \"identity\"");
    write_text("denoised.json", "{\"null_label\":1}");
    refused("null_label", "a class");
    remove_file("denoised.json");
    copy("config.json");
}

static void test_weights(void **state)
{
    (void)state;
    write_text("diffusion_pytorch_model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    refused("diffusion_pytorch_model.safetensors", "git-lfs");
    write_text("diffusion_pytorch_model.safetensors", "");
    refused("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors");
    remove_file("diffusion_pytorch_model.safetensors");
    dn_error err = { 0 };
    dn_model *m = NULL;
    assert_int_equal(dn_model_load(&m, folder, &err), DN_E_NOT_FOUND);
    assert_int_equal(dn_model_load(&m, "/tmp/denoised-no-such-folder", &err), DN_E_NOT_FOUND);
    copy("diffusion_pytorch_model.safetensors");
    loads();
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_lies), cmocka_unit_test(test_configs), cmocka_unit_test(test_vectors),
                                        cmocka_unit_test(test_the_largest_size),
                                        cmocka_unit_test(test_weights) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
