/* random_model.c - a diffusers folder with random weights, for benchmarks: random_model CONFIG.json FOLDER
 *
 * Weights are normal with the variance that keeps activations near one, gammas are one, so numbers stay finite. */
#include "arch.h"
#include "rng.h"
#include <denoised/image.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void die(const char *what)
{
    fprintf(stderr, "random_model: %s\n", what);
    exit(1);
}

/* The shape as a checkpoint has it. */
static void file_dims(dn_st_tensor *t, const dn_param *q)
{
    static const int order[3][4] = { [DN_PARAM_PLAIN] = { 0, 1, 2, 3 }, [DN_PARAM_LINEAR] = { 1, 0 }, [DN_PARAM_CONV] = { 3, 2, 0, 1 } };
    t->rank = q->shape.rank;
    for (int i = 0; i < t->rank; i++)
        t->dim[i] = q->shape.dim[order[q->form][i]];
}

static float *values(const dn_param *q, uint32_t number)
{
    int64_t n = dn_shape_count(&q->shape), fan_in = q->shape.rank > 1 ? n / q->shape.dim[q->shape.rank - 1] : 0;
    float *x = malloc(sizeof *x * (size_t)n);
    dn_rng_key key = { .seed = 1, .step = number, .purpose = (uint32_t)DN_RNG_WEIGHTS << 24 };
    if (!x)
        die("out of memory");
    dn_rng_normal(x, 0, n, &key);
    bool gamma = !fan_in && strstr(q->name, "norm") && strstr(q->name, "weight");
    for (int64_t i = 0; i < n; i++)
        x[i] = gamma ? 1 : fan_in ? x[i] / sqrtf((float)fan_in) : 0.1f * x[i];
    return x;
}

static void write_file(const char *folder, const char *name, const void *data, size_t n)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f))
        die("cannot write");
}

int main(int argc, char **argv)
{
    dn_error err = { 0 };
    json_t *json = argc == 3 ? json_load_file(argv[1], 0, NULL) : NULL;
    const dn_arch *arch = json ? dn_arch_find(json_string_value(json_object_get(json, "_class_name"))) : NULL;
    void *config = NULL;
    dn_arch_info info;
    if (!arch || arch->parse(&config, json, &err))
        die(err.code ? err.message : "usage: random_model CONFIG.json FOLDER");
    arch->describe(config, &info);
    dn_program *p = dn_program_new();
    arch->build(config, p, dn_block_add(p, "unet"), info.height, info.width);
    if (p->error.code)
        die(p->error.message);
    const dn_block *b = &p->block[0];
    dn_st_tensor *t = calloc((size_t)b->n_params, sizeof *t);
    for (int i = 0; i < b->n_params; i++) {
        snprintf(t[i].name, sizeof t[i].name, "%s", b->param[i].name);
        strcpy(t[i].dtype, "F32");
        file_dims(&t[i], &b->param[i]);
        t[i].data = values(&b->param[i], (uint32_t)i);
        t[i].bytes = sizeof(float) * (size_t)dn_shape_count(&b->param[i].shape);
    }
    uint8_t *bytes;
    size_t n;
    if (dn_st_encode(&bytes, &n, t, b->n_params, &err))
        die(err.message);
    char *text = json_dumps(json, JSON_INDENT(2));
    mkdir(argv[2], 0777);
    write_file(argv[2], "config.json", text, strlen(text));
    write_file(argv[2], "diffusion_pytorch_model.safetensors", bytes, n);
    for (int i = 0; i < b->n_params; i++)
        free((void *)t[i].data);
    free(text);
    free(bytes);
    free(t);
    free(config);
    dn_program_free(p);
    json_decref(json);
    return 0;
}
