/* params.c - the parameters of a job: defaults, ranges and names in one table. */
#include "augment.h"
#include "train_internal.h"
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum type { INT, INT64, UINT64, REAL, BOOL, CHOICE };

#define AT(field) offsetof(dn_train_params, field)
#define OBJ(field) "objective." #field, AT(objective.field)
#define OPT(field) "optimizer." #field, AT(optimizer.field)
#define LR(field) "lr_schedule." #field, AT(lr_schedule.field)
#define EMA(field) "ema." #field, AT(ema.field)
/* Path on the wire, where, type, least, largest (inclusive; of a CHOICE how many there are). */
/* clang-format off */
static const struct field {
    const char *path;
    size_t at;
    enum type type;
    double least, largest;
} fields[] = {
    { "seed", AT(seed), UINT64, 0, 0 },
    { "steps", AT(steps), INT64, 1, DN_TRAIN_STEPS_MAX },
    { "batch_size", AT(batch_size), INT, 1, DN_TRAIN_BATCH_MAX },
    { "micro_batch", AT(micro_batch), INT, 0, DN_TRAIN_BATCH_MAX },
    { "precision", AT(precision), CHOICE, 0, 3 },
    { OBJ(prediction), CHOICE, 0, 4 },
    { OBJ(timesteps), CHOICE, 0, 3 },
    { OBJ(timesteps_loc), REAL, -20, 20 },
    { OBJ(timesteps_scale), REAL, -1, 20 },
    { OBJ(low_discrepancy), BOOL, 0, 1 },
    { OBJ(loss), CHOICE, 0, 3 },
    { OBJ(huber_delta), REAL, 1e-6, 1e6 },
    { OBJ(weighting), CHOICE, 0, 5 },
    { OBJ(snr_gamma), REAL, 1e-6, 1e6 },
    { OBJ(p2_gamma), REAL, 0, 10 },
    { OBJ(p2_k), REAL, 1e-6, 1e6 },
    { OBJ(sigma_data), REAL, 1e-3, 1e3 },
    { OBJ(noise_offset), REAL, 0, 1 },
    { OBJ(input_perturbation), REAL, 0, 1 },
    { OBJ(label_dropout), REAL, 0, 1 },
    { OBJ(vlb_weight), REAL, 0, 1e6 },
    { OPT(kind), CHOICE, 0, 3 },
    { OPT(lr), REAL, 0, 100 },
    { "optimizer.betas", AT(optimizer.beta1), REAL, 0, 0.9999999 },
    { "optimizer.betas", AT(optimizer.beta2), REAL, 0, 0.9999999 },
    { OPT(eps), REAL, 0, 1 },
    { OPT(weight_decay), REAL, 0, 10 },
    { OPT(clip_norm), REAL, 0, 1e9 },
    { LR(kind), CHOICE, 0, 6 },
    { LR(warmup_steps), INT64, 0, DN_TRAIN_STEPS_MAX },
    { LR(cycles), REAL, 0.25, 1e4 },
    { LR(power), REAL, 0, 100 },
    { LR(lr_end), REAL, 0, 1 },
    { EMA(decay), REAL, 0, 1 },
    { EMA(every), INT, 1, 100000 },
    { EMA(warmup), BOOL, 0, 1 },
    { EMA(inv_gamma), REAL, 1e-6, 1e9 },
    { EMA(power), REAL, 0, 10 },
    { EMA(min_decay), REAL, 0, 1 },
    { "eval_fraction", AT(eval_fraction), REAL, 0, 0.9 },
    { "nan_max", AT(nan_max), INT, 1, 1000000 },
    { "height", AT(height), INT, 0, DN_DATASET_SIDE_MAX },
    { "width", AT(width), INT, 0, DN_DATASET_SIDE_MAX },
};
/* clang-format on */
enum { N_FIELDS = sizeof fields / sizeof *fields };

void dn_train_params_init(dn_train_params *p)
{
    *p = (dn_train_params){
        .objective = { .timesteps_scale = NAN,
                       .huber_delta = 1,
                       .snr_gamma = 5,
                       .p2_gamma = 1,
                       .p2_k = 1,
                       .sigma_data = 0.5,
                       .vlb_weight = 1 },
        .steps = 1,
        .batch_size = 1,
        .optimizer = { .kind = DN_ADAMW, .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip_norm = 1 },
        .lr_schedule = { .kind = DN_LR_CONSTANT, .cycles = 1, .power = 1 },
        .ema = { .decay = 0.9999, .every = 1, .inv_gamma = 1, .power = 0.75 },
        .nan_max = 10,
    };
}

static double value_of(const struct field *f, const dn_train_params *p)
{
    const char *at = (const char *)p + f->at;
    switch (f->type) {
    case INT:
        return *(const int *)at;
    case INT64:
        return (double)*(const int64_t *)at;
    case UINT64:
        return 0;
    case REAL:
        return f->at == AT(objective.timesteps_scale) ? dn_timesteps_scale(&p->objective) : *(const double *)at;
    case BOOL:
        return *(const bool *)at;
    case CHOICE:
        return *(const int *)at;
    }
    return NAN;
}

/* What no single field shows. */
static int check_together(const dn_train_params *p, dn_error *err)
{
    if (p->micro_batch && p->batch_size % p->micro_batch)
        return dn_fail(err, DN_E_INVALID, "micro_batch", "micro_batch %d does not divide batch_size %d", p->micro_batch,
                       p->batch_size);
    if (p->lr_schedule.warmup_steps > p->steps)
        return dn_fail(err, DN_E_RANGE, "lr_schedule.warmup_steps",
                       "warmup_steps must be at most steps (%lld), got %lld", (long long)p->steps,
                       (long long)p->lr_schedule.warmup_steps);
    double scale = dn_timesteps_scale(&p->objective), most = 2 / (M_PI - 2); /* of mode: where its law stops rising */
    if (p->objective.timesteps == DN_TIMESTEPS_MODE ? scale > most : scale < 0)
        return dn_fail(err, DN_E_RANGE, "objective.timesteps_scale",
                       "objective.timesteps_scale must be -1..%.4f for mode, 0..20 for "
                       "logit_normal; got %g",
                       most, scale);
    if (p->ema.min_decay > p->ema.decay)
        return dn_fail(err, DN_E_INVALID, "ema.min_decay", "ema.min_decay %g is above ema.decay %g", p->ema.min_decay,
                       p->ema.decay);
    if (!p->height != !p->width)
        return dn_fail(err, DN_E_INVALID, p->height ? "width" : "height", "height and width come together");
    return 0;
}

int dn_train_params_check(const dn_train_params *p, dn_error *err)
{
    for (int i = 0; i < N_FIELDS; i++) {
        const struct field *f = &fields[i];
        double v = value_of(f, p), most = f->type == CHOICE ? f->largest - 1 : f->largest;
        if (f->type != UINT64 && !(v >= f->least && v <= most))
            return dn_fail(err, DN_E_RANGE, f->path, "%s must be %g..%g, got %g", f->path, f->least, most, v);
    }
    int rc = dn_augment_check(p->augment, p->n_augment, err);
    return rc ? rc : check_together(p, err);
}

static json_t *field_json(const struct field *f, const dn_train_params *p)
{
    const char *at = (const char *)p + f->at;
    char text[32];
    switch (f->type) {
    case UINT64:
        snprintf(text, sizeof text, "%llu", (unsigned long long)*(const uint64_t *)at);
        return json_string(text);
    case REAL:
        return json_real(value_of(f, p));
    case BOOL:
        return json_boolean(*(const bool *)at);
    case INT:
    case INT64:
    case CHOICE:
        break;
    }
    return json_integer((json_int_t)value_of(f, p));
}

json_t *dn_train_params_json(const dn_train_params *p)
{
    json_t *all = json_object(), *augment = json_array();
    for (int i = 0; i < N_FIELDS; i++) {
        bool second = i && !strcmp(fields[i].path, fields[i - 1].path); /* the other of `betas` */
        json_object_set_new(all, second ? "optimizer.beta2" : fields[i].path, field_json(&fields[i], p));
    }
    for (int i = 0; i < p->n_augment; i++)
        json_array_append_new(augment, json_pack("{sisfsf}", "kind", (int)p->augment[i].kind, "p", p->augment[i].p,
                                                 "amount", p->augment[i].amount));
    json_object_set_new(all, "augment", augment);
    return all;
}
