/* train_steps.c - train_steps MODEL_FOLDER IN.safetensors OUT.safetensors DEVICE [OPTION=NUMBER ...]: optimizer steps
 * of a job whose pictures, noise, timesteps and labels come from a file. For cross_train.py.
 *
 * In, for each step k: "s<k>.images" and "s<k>.noise" [n,C,H,W], "s<k>.timesteps" [n], with labels "s<k>.labels" [n].
 * Out: "loss", "grad_norm", "lr", "ema_decay" [steps]; "grad0.", "final." and "ema." of every parameter, as in a
 * checkpoint. */
#include "fake_data.h"
#include "train_internal.h"
#include "vectors.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 64 };

/* ---- the job ---- */

/* clang-format off */
#define REAL(path, member) { path, offsetof(dn_train_params, member), 'd' }
#define INT(path, member)  { path, offsetof(dn_train_params, member), 'i' }
#define LONG(path, member) { path, offsetof(dn_train_params, member), 'l' }
#define BOOL(path, member) { path, offsetof(dn_train_params, member), 'b' }
static const struct option { const char *name; size_t at; char type; } options[] = {
    LONG("steps", steps), INT("micro_batch", micro_batch), INT("precision", precision),
    INT("prediction", objective.prediction), INT("loss", objective.loss), REAL("huber_delta", objective.huber_delta),
    INT("weighting", objective.weighting), REAL("snr_gamma", objective.snr_gamma), REAL("p2_gamma", objective.p2_gamma),
    REAL("p2_k", objective.p2_k), REAL("sigma_data", objective.sigma_data), REAL("vlb_weight", objective.vlb_weight),
    INT("optimizer", optimizer.kind), REAL("lr", optimizer.lr), REAL("beta1", optimizer.beta1), REAL("beta2", optimizer.beta2),
    REAL("eps", optimizer.eps), REAL("weight_decay", optimizer.weight_decay), REAL("clip_norm", optimizer.clip_norm),
    INT("lr_schedule", lr_schedule.kind), LONG("warmup_steps", lr_schedule.warmup_steps), REAL("cycles", lr_schedule.cycles),
    REAL("power", lr_schedule.power), REAL("lr_end", lr_schedule.lr_end),
    REAL("ema_decay", ema.decay), INT("ema_every", ema.every), BOOL("ema_warmup", ema.warmup), REAL("ema_power", ema.power),
};
/* clang-format on */

static int set_option(dn_train_params *p, const char *text)
{
    const char *equals = strchr(text, '=');
    for (size_t i = 0; equals && i < sizeof options / sizeof *options; i++) {
        const struct option *o = &options[i];
        char *at = (char *)p + o->at;
        double v = atof(equals + 1);
        if (strlen(o->name) != (size_t)(equals - text) || strncmp(o->name, text, (size_t)(equals - text)) != 0)
            continue;
        if (o->type == 'd')
            *(double *)at = v;
        else if (o->type == 'l')
            *(int64_t *)at = (int64_t)v;
        else if (o->type == 'i')
            *(int *)at = (int)v;
        else
            *(bool *)at = v != 0;
        return 0;
    }
    fprintf(stderr, "no option %s\n", text);
    return 1;
}

/* ---- what goes in ---- */

typedef struct {
    const vectors *v;
    int step;
} source;

static void inject(void *arg, const dn_trainer *t, int first, int n)
{
    const source *s = arg;
    char images[32], noise[32], timesteps[32], labels[32];
    snprintf(images, sizeof images, "s%d.images", s->step);
    snprintf(noise, sizeof noise, "s%d.noise", s->step);
    snprintf(timesteps, sizeof timesteps, "s%d.timesteps", s->step);
    snprintf(labels, sizeof labels, "s%d.labels", s->step);
    float *x0 = vectors_nhwc(s->v, images), *eps = vectors_nhwc(s->v, noise), *at = vectors_floats(s->v, timesteps);
    float *label = vectors_find(s->v, labels) ? vectors_floats(s->v, labels) : NULL;
    for (int i = 0; i < n; i++) {
        t->feed.t[i] = (int)at[first + i];
        if (label)
            t->feed.label[i] = (int)label[first + i];
    }
    memcpy(t->feed.x0, x0 + first * t->row, sizeof *x0 * (size_t)(n * t->row));
    memcpy(t->feed.noise, eps + first * t->row, sizeof *eps * (size_t)(n * t->row));
    free(x0);
    free(eps);
    free(at);
    free(label);
}

/* ---- what comes out ---- */

static dn_st_tensor out[VECTORS_MAX];
static int n_out;

static void give(const char *name, const float *data, int rank, const int64_t *dim)
{
    dn_st_tensor *t = &out[n_out++];
    int64_t count = 1;
    snprintf(t->name, sizeof t->name, "%s", name);
    strcpy(t->dtype, "F32");
    t->rank = rank;
    for (int d = 0; d < rank; d++)
        count *= t->dim[d] = dim[d];
    t->bytes = sizeof *data * (size_t)count;
    float *copy = malloc(t->bytes + 1);
    memcpy(copy, data, t->bytes);
    t->data = copy;
}

static void give_block(const dn_trainer *t, const char *prefix, const float *block)
{
    const dn_block *b = &t->net.program->block[0];
    for (int i = 0; i < b->n_params; i++) {
        const dn_param *q = &b->param[i];
        dn_shape shape = dn_param_file_shape(q);
        char name[256];
        float *values = malloc(sizeof *values * (size_t)dn_shape_count(&q->shape));
        dn_param_to_file(values, block + q->offset, q);
        snprintf(name, sizeof name, "%s%s", prefix, q->name);
        give(name, values, shape.rank, shape.dim);
        free(values);
    }
}

static int write_out(const char *path)
{
    uint8_t *bytes;
    size_t len;
    dn_error err = { 0 };
    CHECK("encode", dn_st_encode(&bytes, &len, out, n_out, &err));
    FILE *f = fopen(path, "wb");
    int bad = !f || fwrite(bytes, 1, len, f) != len || fclose(f);
    free(bytes);
    while (n_out > 0)
        free((void *)out[--n_out].data);
    return bad;
}

int main(int argc, char **argv)
{
    dn_error err = { 0 };
    dn_model *m;
    dn_device *d;
    dn_trainer *t;
    dn_train_plan plan;
    dn_train_params p;
    if (argc < 5)
        return 2;
    dn_train_params_init(&p);
    vectors *v = vectors_open("", argv[2]);
    int steps = 0;
    for (char name[32]; snprintf(name, sizeof name, "s%d.images", steps), vectors_find(v, name); steps++)
        p.batch_size = (int)vectors_find(v, name)->dim[0];
    for (int i = 5; i < argc; i++)
        if (set_option(&p, argv[i]))
            return 2;
    CHECK("model", dn_model_load(&m, argv[1], &err));
    CHECK("device", dn_device_open(&d, argv[4], &err));
    const dn_model_info *info = dn_model_info_of(m);
    dn_dataset *data = fake_dataset(64, info->height, info->width, info->channels, info->label_kind ? 2 : 0);
    CHECK("plan", dn_train_plan_make(&plan, d, m, data, &p, 0, &err));
    CHECK("trainer", dn_trainer_new(&t, d, m, data, &p, &plan, &err));
    source s = { .v = v };
    float told[4][STEPS_MAX] = { { 0 } };
    t->inject = inject;
    t->inject_arg = &s;
    for (; s.step < steps && s.step < STEPS_MAX; s.step++) {
        dn_train_report r;
        CHECK("step", dn_trainer_some(t, 0, &r, &err));
        told[0][s.step] = (float)r.loss;
        told[1][s.step] = (float)r.grad_norm;
        told[2][s.step] = (float)r.lr;
        told[3][s.step] = (float)r.ema_decay;
        if (!s.step)
            give_block(t, "grad0.", t->flat.gradient);
    }
    static const char *const names[] = { "loss", "grad_norm", "lr", "ema_decay" };
    for (int i = 0; i < 4; i++)
        give(names[i], told[i], 1, (int64_t[]){ s.step });
    give_block(t, "final.", t->flat.weights);
    give_block(t, "ema.", t->flat.ema);
    dn_trainer_free(t);
    dn_dataset_close(data);
    dn_device_close(d);
    dn_model_free(m);
    vectors_close(v);
    return write_out(argv[3]);
}
