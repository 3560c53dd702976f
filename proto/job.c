/* job.c - training on the wire: the tables of job.h, and the rules that one field alone cannot decide. */
#include "job.h"
#include "json.h"

#include <string.h>

#define LIST(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define TABLE(name, help, v, type)                                  \
    {                                                               \
        name, help, v, (int)(sizeof(v) / sizeof *(v)), sizeof(type) \
    }
#define ALWAYS .flags = DN_F_REQUIRED

const char *const dn_job_states[] = { "queued", "running", "paused", "succeeded", "failed", "cancelled", NULL };
static const char *const priorities[] = { "low", "normal", "high", NULL };

/* clang-format off */
#define AT(member) .offset = offsetof(dn_objective_in, member)
static const dn_field objective_v[DN_OBJ_FIELDS] = {
    [DN_OBJ_PREDICTION] = { "prediction", DN_T_ENUM, AT(prediction), .choices = LIST("epsilon", "v", "sample", "flow"),
        .help = "What the network learns to predict: the noise, v, the clean sample, or the flow's velocity. Not given: what the model of from predicts; epsilon for a new one." },
    [DN_OBJ_TIMESTEPS] = { "timesteps", DN_T_ENUM, AT(timesteps), .choices = LIST("uniform", "logit_normal", "mode"), .def = "uniform",
        .help = "The law that timesteps are drawn from." },
    [DN_OBJ_TIMESTEPS_LOC] = { "timesteps_loc", DN_T_NUM, AT(timesteps_loc), .min = -10, .max = 10, .def = "0",
        .help = "logit_normal: its location." },
    [DN_OBJ_TIMESTEPS_SCALE] = { "timesteps_scale", DN_T_NUM, AT(timesteps_scale), .min = -10, .max = 10,
        .help = "logit_normal: its scale (1); mode: SD3's s (1.29)." },
    [DN_OBJ_LOW_DISCREPANCY] = { "low_discrepancy", DN_T_BOOL, AT(low_discrepancy), .def = "false",
        .help = "Spread the timesteps of one optimizer step evenly over their law." },
    [DN_OBJ_LOSS] = { "loss", DN_T_ENUM, AT(loss), .choices = LIST("mse", "l1", "huber"), .def = "mse", .help = "Per element." },
    [DN_OBJ_HUBER_DELTA] = { "huber_delta", DN_T_NUM, AT(huber_delta), .min = 1e-6, .max = 1e6, .def = "1", .help = "huber: where it turns linear." },
    [DN_OBJ_WEIGHTING] = { "weighting", DN_T_ENUM, AT(weighting), .choices = LIST("uniform", "snr", "min_snr", "edm", "p2"), .def = "uniform",
        .help = "A sample's weight by its timestep." },
    [DN_OBJ_SNR_GAMMA] = { "snr_gamma", DN_T_NUM, AT(snr_gamma), .min = 1e-3, .max = 1e6, .def = "5", .help = "min_snr: where the SNR is cut." },
    [DN_OBJ_P2_GAMMA] = { "p2_gamma", DN_T_NUM, AT(p2_gamma), .min = 0, .max = 10, .def = "1", .help = "p2: the exponent." },
    [DN_OBJ_P2_K] = { "p2_k", DN_T_NUM, AT(p2_k), .min = 1e-6, .max = 1e6, .def = "1", .help = "p2: k in (k + SNR)^-gamma." },
    [DN_OBJ_SIGMA_DATA] = { "sigma_data", DN_T_NUM, AT(sigma_data), .min = 1e-3, .max = 100, .def = "0.5", .help = "edm: the data's standard deviation." },
    [DN_OBJ_NOISE_OFFSET] = { "noise_offset", DN_T_NUM, AT(noise_offset), .min = 0, .max = 1, .def = "0",
        .help = "Standard deviation of noise that is constant over a sample's channel." },
    [DN_OBJ_INPUT_PERTURBATION] = { "input_perturbation", DN_T_NUM, AT(input_perturbation), .min = 0, .max = 1, .def = "0",
        .help = "Further noise on the network's input, not on its target." },
    [DN_OBJ_LABEL_DROPOUT] = { "label_dropout", DN_T_NUM, AT(label_dropout), .min = 0, .max = 1, .def = "0",
        .help = "How often a label is replaced by the null label, for guidance." },
    [DN_OBJ_VLB_WEIGHT] = { "vlb_weight", DN_T_NUM, AT(vlb_weight), .min = 0, .max = 1e6, .def = "1",
        .help = "Learned variance: the weight of the variational term, in units of T/1000." },
};
#undef AT
static const dn_fields objective_fields = TABLE("Objective", "What is minimised.", objective_v, dn_objective_in);

#define AT(member) .offset = offsetof(dn_optimizer_in, member)
static const dn_field optimizer_v[DN_OPT_FIELDS] = {
    [DN_OPT_KIND] = { "kind", DN_T_ENUM, AT(kind), .choices = LIST("adamw", "adam", "sgd"), .def = "adamw", .help = "Which." },
    [DN_OPT_LR] = { "lr", DN_T_NUM, AT(lr), .min = 0, .max = 100, .def = "1e-4", .help = "The schedule's peak." },
    [DN_OPT_BETAS] = { "betas", DN_T_PAIR, AT(betas), .flags = DN_F_ANY_ORDER, .min = 0, .max = 0.9999999, .count_max = 2, .def = "0.9,0.999",
        .help = "adam, adamw: decay of the moments." },
    [DN_OPT_MOMENTUM] = { "momentum", DN_T_NUM, AT(momentum), .min = 0, .max = 0.9999999, .def = "0.9", .help = "sgd." },
    [DN_OPT_EPS] = { "eps", DN_T_NUM, AT(eps), .min = 0, .max = 1, .def = "1e-8", .help = "adam, adamw: added to the denominator." },
    [DN_OPT_WEIGHT_DECAY] = { "weight_decay", DN_T_NUM, AT(weight_decay), .min = 0, .max = 10, .def = "0",
        .help = "Not on norms and biases." },
    [DN_OPT_CLIP_NORM] = { "clip_norm", DN_T_NUM, AT(clip_norm), .min = 0, .max = 1e9, .def = "1",
        .help = "Gradients are scaled down to this global norm; 0: never." },
};
#undef AT
static const dn_fields optimizer_fields = TABLE("Optimizer", "How weights move.", optimizer_v, dn_optimizer_in);

#define AT(member) .offset = offsetof(dn_lr_in, member)
static const dn_field lr_v[DN_LRS_FIELDS] = {
    [DN_LRS_KIND] = { "kind", DN_T_ENUM, AT(kind), .choices = LIST("constant", "linear", "cosine", "cosine_restarts", "polynomial", "one_cycle"),
        .def = "constant", .help = "The learning rate's way to the last step." },
    [DN_LRS_WARMUP_STEPS] = { "warmup_steps", DN_T_INT, AT(warmup_steps), .min = 0, .max = DN_JOB_STEPS_MAX, .def = "0", .unit = "optimizer steps",
        .help = "Linear from 0; one_cycle: half a cosine from lr/25, over 30% of the steps if not given." },
    [DN_LRS_CYCLES] = { "cycles", DN_T_NUM, AT(cycles), .min = 1, .max = 1000, .def = "1", .help = "cosine_restarts: how many." },
    [DN_LRS_POWER] = { "power", DN_T_NUM, AT(power), .min = 0, .max = 100, .def = "1", .help = "polynomial: the exponent." },
    [DN_LRS_LR_END] = { "lr_end", DN_T_NUM, AT(lr_end), .min = 0, .max = 1,
        .help = "linear, polynomial (0), one_cycle (4e-6): the last rate as a fraction of lr." },
};
#undef AT
static const dn_fields lr_fields = TABLE("LrSchedule", "The learning rate by optimizer step.", lr_v, dn_lr_in);

#define AT(member) .offset = offsetof(dn_ema_in, member)
static const dn_field ema_v[] = {
    { "decay", DN_T_NUM, AT(decay), .min = 0, .max = 1, .def = "0.9999", .help = "Per optimizer step." },
    { "every", DN_T_INT, AT(every), .min = 1, .max = 10000, .def = "1", .unit = "optimizer steps", .help = "Update every so many; the decay is corrected for it." },
    { "warmup", DN_T_BOOL, AT(warmup), .def = "true", .help = "Begin with a small decay: 1 - (1 + s/inv_gamma)^-power; else (1 + s)/(10 + s)." },
    { "inv_gamma", DN_T_NUM, AT(inv_gamma), .min = 1e-6, .max = 1e9, .def = "1", .help = "Of the warm-up." },
    { "power", DN_T_NUM, AT(power), .min = 0, .max = 10, .def = "0.75", .help = "Of the warm-up." },
    { "min_decay", DN_T_NUM, AT(min_decay), .min = 0, .max = 1, .def = "0", .help = "Never less." },
};
#undef AT
static const dn_fields ema_fields = TABLE("Ema", "The moving average of the weights: what previews and publish use.", ema_v, dn_ema_in);

#define AT(member) .offset = offsetof(dn_augment_in, member)
static const dn_field augment_v[DN_AUGMENT_FIELDS] = {
    [DN_AUGMENT_KIND] = { "kind", DN_T_ENUM, AT(kind), .flags = DN_F_REQUIRED,
        .choices = LIST("flip", "crop", "rotate", "brightness", "contrast", "cutout"), .help = "Which." },
    [DN_AUGMENT_P] = { "p", DN_T_NUM, AT(p), .min = 0, .max = 1, .def = "1", .help = "How often." },
    [DN_AUGMENT_AMOUNT] = { "amount", DN_T_NUM, AT(amount), .min = 0, .max = 180,
        .help = "rotate: degrees (10); brightness, contrast: factor 1 +- amount (0.2); crop: least fraction of the shorter side (0.8); cutout: fraction of the side (0.25); flip: none." },
};
#undef AT
static const dn_fields augment_fields = TABLE("Augment", "A random change of each image as it is read.", augment_v, dn_augment_in);

#define AT(member) .offset = offsetof(dn_checkpoint_in, member)
static const dn_field checkpoint_v[] = {
    { "every_steps", DN_T_INT, AT(every_steps), .min = 0, .max = DN_JOB_STEPS_MAX, .def = "500", .unit = "optimizer steps", .help = "0: not by steps." },
    { "every_s", DN_T_INT, AT(every_s), .min = 0, .max = 86400 * 7, .def = "600", .unit = "s", .help = "0: not by time." },
    { "keep_last", DN_T_INT, AT(keep_last), .min = 1, .max = 1000, .def = "2", .help = "How many of the newest are kept." },
    { "keep_best", DN_T_INT, AT(keep_best), .min = 0, .max = 1000, .def = "1", .help = "How many of those with the least held-out loss are kept besides." },
};
#undef AT
static const dn_fields checkpoint_fields = TABLE("CheckpointRule", "When the job is saved, and what is kept.", checkpoint_v, dn_checkpoint_in);

#define AT(member) .offset = offsetof(dn_preview_in, member)
static const dn_field preview_v[] = {
    { "every_steps", DN_T_INT, AT(every_steps), .min = 0, .max = DN_JOB_STEPS_MAX, .def = "0", .unit = "optimizer steps", .help = "0: none." },
    { "seeds", DN_T_NUMS, AT(seeds), .flags = DN_F_ANY_ORDER, .min = 0, .max = 0x1p53 - 1, .count_max = DN_JOB_PREVIEW_SEEDS_MAX, .def = "0",
        .help = "A picture for each, of each label." },
    { "labels", DN_T_LABELS, AT(labels), .min = 0, .max = 1 << 20, .count_max = DN_N_MAX, .help = "\"all\": every class; left out: the null label." },
    { "steps", DN_T_INT, AT(steps), .min = 1, .max = DN_STEPS_LIMIT, .def = "20", .help = "Sampler steps (DDIM)." },
    { "scale", DN_T_NUM, AT(scale), .min = 0, .max = 100, .def = "1", .help = "Of classifier-free guidance." },
};
#undef AT
static const dn_fields preview_fields = TABLE("PreviewRule", "Pictures from the EMA weights, at fixed seeds.", preview_v, dn_preview_in);

#define AT(member) .offset = offsetof(dn_eval_in, member)
static const dn_field eval_v[] = {
    { "fraction", DN_T_NUM, AT(fraction), .min = 0, .max = 0.9, .def = "0", .help = "Of the dataset, never trained on." },
    { "every_steps", DN_T_INT, AT(every_steps), .min = 0, .max = DN_JOB_STEPS_MAX, .def = "500", .unit = "optimizer steps", .help = "0: never." },
};
#undef AT
static const dn_fields eval_fields = TABLE("EvalRule", "The held-out loss at fixed noise.", eval_v, dn_eval_in);

#define AT(member) .offset = offsetof(dn_job_request, member)
static const dn_field job_v[DN_JOB_FIELDS] = {
    [DN_JOB_KIND] = { "kind", DN_T_ENUM, AT(kind), .choices = LIST("train"), .later = LIST("distill", "invert"), .def = "train", .help = "What to do." },
    [DN_JOB_NAME] = { "name", DN_T_STR, AT(name), .flags = DN_F_REQUIRED, .min = 1, .max = DN_NAME_LEN_MAX, .help = "For people: [a-z0-9][a-z0-9._-]*." },
    [DN_JOB_DATASET] = { "dataset", DN_T_STR, AT(dataset), .flags = DN_F_REQUIRED, .min = 1, .max = DN_NAME_LEN_MAX + 66,
        .help = "A name (its newest upload), or name@hash." },
    [DN_JOB_FROM] = { "from", DN_T_STR, AT(from), .min = 1, .max = DN_NAME_LEN_MAX + 12, .help = "Start from this model's weights: a name, or name@version." },
    [DN_JOB_MODEL] = { "model", DN_T_JSON, AT(model), .help = "Or train a new network: a diffusers config, with _class_name." },
    [DN_JOB_SEED] = { "seed", DN_T_INT, AT(seed), .min = 0, .max = 0x1p53 - 1, .def = "0", .help = "Of everything random in the job." },
    [DN_JOB_DEVICE] = { "device", DN_T_STR, AT(device), .min = 1, .max = 64, .def = "auto", .help = "One of --devices; auto: the one with the least to do." },
    [DN_JOB_TRAIN_SHARE] = { "train_share", DN_T_NUM, AT(train_share), .min = 0, .max = 1, .def = "0.2",
        .help = "The job's guaranteed share of the device while requests wait; without them it has all of it. A tenth at least while somebody "
                "waits for the end of its step." },
    [DN_JOB_PRIORITY] = { "priority", DN_T_ENUM, AT(priority), .choices = priorities, .def = "normal", .help = "Among queued jobs; then by age." },
    [DN_JOB_STEPS] = { "steps", DN_T_INT, AT(steps), .flags = DN_F_REQUIRED, .min = 1, .max = DN_JOB_STEPS_MAX, .unit = "optimizer steps", .help = "Of the whole job." },
    [DN_JOB_BATCH_SIZE] = { "batch_size", DN_T_INT, AT(batch_size), .flags = DN_F_REQUIRED, .min = 1, .max = 65536, .help = "Samples of one optimizer step." },
    [DN_JOB_MICRO_BATCH] = { "micro_batch", DN_T_INT, AT(micro_batch), .flags = DN_F_AUTO, .min = 1, .max = 65536, .def = "auto",
        .help = "Samples of one forward and backward pass, a divisor of batch_size; auto: what fits, chosen once." },
    [DN_JOB_PRECISION] = { "precision", DN_T_ENUM, AT(precision), .choices = LIST("fp32", "bf16", "fp16"), .def = "fp32",
        .help = "Of what is kept for the backward pass; on a CPU the arithmetic is fp32. fp16 scales the loss dynamically." },
    [DN_JOB_HEIGHT] = { "height", DN_T_INT, AT(height), .min = 1, .max = DN_SIDE_MAX, .unit = "px", .help = "Default the model's." },
    [DN_JOB_WIDTH] = { "width", DN_T_INT, AT(width), .min = 1, .max = DN_SIDE_MAX, .unit = "px", .help = "Default the model's." },
    [DN_JOB_OBJECTIVE] = { "objective", DN_T_OBJECT, AT(objective), .sub = &objective_fields, .help = "What is minimised." },
    [DN_JOB_SCHEDULE] = { "schedule", DN_T_JSON, AT(schedule), .help = "diffusers' scheduler keys, laid over the model's: beta_schedule, num_train_timesteps, ..." },
    [DN_JOB_OPTIMIZER] = { "optimizer", DN_T_OBJECT, AT(optimizer), .sub = &optimizer_fields, .help = "How weights move." },
    [DN_JOB_LR_SCHEDULE] = { "lr_schedule", DN_T_OBJECT, AT(lr_schedule), .sub = &lr_fields, .help = "The learning rate by optimizer step." },
    [DN_JOB_EMA] = { "ema", DN_T_OBJECT, AT(ema), .sub = &ema_fields, .help = "The moving average of the weights." },
    [DN_JOB_AUGMENT] = { "augment", DN_T_LIST, AT(augment), .sub = &augment_fields, .count_max = DN_JOB_AUGMENT_MAX, .help = "Applied in this order." },
    [DN_JOB_CHECKPOINT] = { "checkpoint", DN_T_OBJECT, AT(checkpoint), .sub = &checkpoint_fields, .help = "When the job is saved." },
    [DN_JOB_PREVIEW] = { "preview", DN_T_OBJECT, AT(preview), .sub = &preview_fields, .help = "Pictures along the way." },
    [DN_JOB_EVAL] = { "eval", DN_T_OBJECT, AT(eval), .sub = &eval_fields, .help = "The held-out loss." },
    [DN_JOB_NAN_MAX] = { "nan_max", DN_T_INT, AT(nan_max), .min = 1, .max = 10000, .def = "10", .help = "So many non-finite steps in a row end the job." },
};
#undef AT
const dn_fields dn_job_fields = TABLE("JobRequest", "A training job.", job_v, dn_job_request);

#define AT(member) .offset = offsetof(dn_job_patch, member)
static const dn_field patch_v[DN_JOB_PATCH_FIELDS] = {
    [DN_JOB_PATCH_TRAIN_SHARE] = { "train_share", DN_T_NUM, AT(train_share), .min = 0, .max = 1, .help = "From now on." },
    [DN_JOB_PATCH_PRIORITY] = { "priority", DN_T_ENUM, AT(priority), .choices = priorities, .help = "From now on." },
};
#undef AT
const dn_fields dn_job_patch_fields = TABLE("JobPatch", "What can be changed in a living job.", patch_v, dn_job_patch);

#define AT(member) .offset = offsetof(dn_publish_in, member)
static const dn_field publish_v[] = {
    { "as", DN_T_STR, AT(as), .flags = DN_F_REQUIRED, .min = 1, .max = DN_NAME_LEN_MAX, .help = "The model's name; a new version is added to it." },
};
#undef AT
const dn_fields dn_publish_fields = TABLE("PublishRequest", NULL, publish_v, dn_publish_in);

#define AT(member) .offset = offsetof(dn_alias_in, member)
static const dn_field alias_v[] = {
    { "version", DN_T_INT, AT(version), .flags = DN_F_REQUIRED, .min = 1, .max = 1e9, .help = "Which one a bare name means from now on." },
};
#undef AT
const dn_fields dn_alias_fields = TABLE("AliasRequest", NULL, alias_v, dn_alias_in);

/* ---- answers ---- */

#define AT(member) .offset = offsetof(dn_job_recipe, member)
static const dn_field recipe_v[] = {
    { "model", DN_T_JSON, AT(model), ALWAYS, .help = "Its diffusers config." },
    { "schedule", DN_T_JSON, AT(schedule), ALWAYS, .help = "What its scheduler says." },
    { "objective", DN_T_OBJECT, AT(objective), ALWAYS, .sub = &objective_fields, .help = "The prediction that it learned." },
};
#undef AT
const dn_fields dn_job_recipe_fields = TABLE("JobRecipe", "Of a JobRequest, what makes another network like it.", recipe_v, dn_job_recipe);

#define AT(member) .offset = offsetof(dn_job_plan, member)
static const dn_field plan_v[] = {
    { "micro_batch", DN_T_INT, AT(micro_batch), ALWAYS, .help = "Rows of one forward and backward pass." },
    { "recomputed_blocks", DN_T_INT, AT(recomputed_blocks), ALWAYS, .help = "Blocks of layers that are run again in the backward pass." },
    { "weights", DN_T_INT, AT(weights), ALWAYS, .unit = "bytes" },
    { "gradients", DN_T_INT, AT(gradients), ALWAYS, .unit = "bytes" },
    { "moments", DN_T_INT, AT(moments), ALWAYS, .unit = "bytes" },
    { "ema", DN_T_INT, AT(ema), ALWAYS, .unit = "bytes" },
    { "arena", DN_T_INT, AT(arena), ALWAYS, .unit = "bytes", .help = "Activations and workspaces." },
    { "data", DN_T_INT, AT(data), ALWAYS, .unit = "bytes", .help = "Images read ahead." },
    { "copies", DN_T_INT, AT(copies), ALWAYS, .unit = "bytes", .help = "While a checkpoint is written: weights, moments and EMA once more." },
    { "previews", DN_T_INT, AT(previews), ALWAYS, .unit = "bytes", .help = "While a preview is made: a model of the EMA, and what it needs to run." },
    { "total", DN_T_INT, AT(total), ALWAYS, .unit = "bytes", .help = "Reserved from the start of the job to its end." },
    { "gflop_per_step", DN_T_NUM, AT(gflop_per_step), ALWAYS, .help = "Of one optimizer step." },
    { "numerics", DN_T_STR, AT(numerics), ALWAYS, .help = "The same job gives the same weights wherever this is the same." },
};
#undef AT
const dn_fields dn_job_plan_fields = TABLE("JobPlan", "What the job was resolved to before its first step.", plan_v, dn_job_plan);

#define AT(member) .offset = offsetof(dn_job_info, member)
static const dn_field info_v[DN_JOBINFO_FIELDS] = {
    [DN_JOBINFO_ID] = { "id", DN_T_STR, AT(id), ALWAYS },
    [DN_JOBINFO_NAME] = { "name", DN_T_STR, AT(name), ALWAYS },
    [DN_JOBINFO_STATE] = { "state", DN_T_ENUM, AT(state), .flags = DN_F_REQUIRED, .choices = dn_job_states },
    [DN_JOBINFO_REASON] = { "reason", DN_T_STR, AT(reason), .help = "Why it is paused or failed." },
    [DN_JOBINFO_DATASET] = { "dataset", DN_T_STR, AT(dataset), .help = "name@hash." },
    [DN_JOBINFO_FROM] = { "from", DN_T_STR, AT(from), .help = "name@version that it started from." },
    [DN_JOBINFO_DEVICE] = { "device", DN_T_STR, AT(device) },
    [DN_JOBINFO_STEP] = { "step", DN_T_INT, AT(step), .help = "Finished optimizer steps." },
    [DN_JOBINFO_STEPS] = { "steps", DN_T_INT, AT(steps), .help = "Of how many." },
    [DN_JOBINFO_ATTEMPT] = { "attempt", DN_T_INT, AT(attempt), .help = "How often it was started or resumed." },
    [DN_JOBINFO_LOSS] = { "loss", DN_T_NUM, AT(loss), .help = "Of the last step." },
    [DN_JOBINFO_LR] = { "lr", DN_T_NUM, AT(lr) },
    [DN_JOBINFO_GRAD_NORM] = { "grad_norm", DN_T_NUM, AT(grad_norm), .help = "Before clipping." },
    [DN_JOBINFO_EVAL_LOSS] = { "eval_loss", DN_T_NUM, AT(eval_loss), .help = "Held-out, the last one measured." },
    [DN_JOBINFO_IMAGES_PER_S] = { "images_per_s", DN_T_NUM, AT(images_per_s) },
    [DN_JOBINFO_ETA_S] = { "eta_s", DN_T_NUM, AT(eta_s), .unit = "s" },
    [DN_JOBINFO_DATA_WAIT] = { "data_wait", DN_T_NUM, AT(data_wait), .help = "Share of the time that the device waited for data." },
    [DN_JOBINFO_TRAIN_SHARE] = { "train_share", DN_T_NUM, AT(train_share) },
    [DN_JOBINFO_PRIORITY] = { "priority", DN_T_ENUM, AT(priority), .choices = priorities },
    [DN_JOBINFO_POSITION] = { "position", DN_T_INT, AT(position), .help = "Queued: jobs ahead of it." },
    [DN_JOBINFO_CREATED_AT] = { "created_at", DN_T_NUM, AT(created_at), .unit = "s", .help = "Unix time." },
    [DN_JOBINFO_STARTED_AT] = { "started_at", DN_T_NUM, AT(started_at), .unit = "s", .help = "Unix time." },
    [DN_JOBINFO_FINISHED_AT] = { "finished_at", DN_T_NUM, AT(finished_at), .unit = "s", .help = "Unix time." },
    [DN_JOBINFO_PLAN] = { "plan", DN_T_OBJECT, AT(plan), .sub = &dn_job_plan_fields },
    [DN_JOBINFO_REQUEST] = { "request", DN_T_JSON, AT(request), .help = "The job as it was resolved; POST it again for the same weights." },
    [DN_JOBINFO_PUBLISHED] = { "published", DN_T_STR, AT(published), .help = "model@version that last came of it." },
    [DN_JOBINFO_ERROR] = { "error", DN_T_OBJECT, AT(error), .sub = &dn_error_fields, .help = "When it failed." },
};
#undef AT
const dn_fields dn_job_info_fields = TABLE("Job", "A training job.", info_v, dn_job_info);

#define AT(member) .offset = offsetof(dn_job_list, member)
static const dn_field job_list_v[] = {
    { "jobs", DN_T_LIST, AT(jobs), ALWAYS, .sub = &dn_job_info_fields, .help = "Newest first." },
    { "next", DN_T_STR, AT(next), .flags = DN_F_REQUIRED | DN_F_NULL, .help = "`after` of the next page." },
};
#undef AT
const dn_fields dn_job_list_fields = TABLE("JobList", "A page of jobs.", job_list_v, dn_job_list);

#define AT(member) .offset = offsetof(dn_jobs_query, member)
static const dn_field jobs_query_v[] = {
    [DN_JOBS_STATE] = { "state", DN_T_ENUM, AT(state), .choices = dn_job_states, .help = "Only these." },
    [DN_JOBS_LIMIT] = { "limit", DN_T_INT, AT(limit), .min = 1, .max = 50, .def = "20", .help = "Most of them." },
    [DN_JOBS_AFTER] = { "after", DN_T_STR, AT(after), .min = 1, .max = 64, .help = "Older than this one." },
};
#undef AT
const dn_fields dn_jobs_query_fields = TABLE("JobsQuery", NULL, jobs_query_v, dn_jobs_query);

#define AT(member) .offset = offsetof(dn_job_checkpoint, member)
static const dn_field job_checkpoint_v[] = {
    { "step", DN_T_INT, AT(step), ALWAYS, .help = "Finished optimizer steps in it." },
    { "bytes", DN_T_INT, AT(bytes), ALWAYS },
    { "created_at", DN_T_NUM, AT(created_at), ALWAYS, .unit = "s", .help = "Unix time." },
    { "eval_loss", DN_T_NUM, AT(eval_loss), .help = "Held-out, when it was measured." },
    { "best", DN_T_BOOL, AT(best), ALWAYS, .help = "Kept for its held-out loss." },
};
#undef AT
const dn_fields dn_job_checkpoint_fields = TABLE("Checkpoint", "A saved state of a job.", job_checkpoint_v, dn_job_checkpoint);

#define AT(member) .offset = offsetof(dn_job_checkpoint_list, member)
static const dn_field checkpoint_list_v[] = {
    { "checkpoints", DN_T_LIST, AT(checkpoints), ALWAYS, .sub = &dn_job_checkpoint_fields, .help = "Newest first." },
};
#undef AT
const dn_fields dn_job_checkpoint_list_fields = TABLE("CheckpointList", NULL, checkpoint_list_v, dn_job_checkpoint_list);

#define AT(member) .offset = offsetof(dn_job_sample, member)
static const dn_field job_sample_v[] = {
    { "step", DN_T_INT, AT(step), ALWAYS, .help = "Finished optimizer steps when it was made." },
    { "seed", DN_T_INT, AT(seed), ALWAYS },
    { "label", DN_T_STR, AT(label), .flags = DN_F_REQUIRED | DN_F_NULL, .help = "null: the null label." },
    { "sha256", DN_T_STR, AT(sha256), ALWAYS, .help = "Of the float32 result." },
    { "url", DN_T_STR, AT(url), ALWAYS, .help = "Where the PNG is." },
};
#undef AT
const dn_fields dn_job_sample_fields = TABLE("JobSample", "A preview.", job_sample_v, dn_job_sample);

#define AT(member) .offset = offsetof(dn_job_sample_list, member)
static const dn_field sample_list_v[] = {
    { "samples", DN_T_LIST, AT(samples), ALWAYS, .sub = &dn_job_sample_fields, .help = "Newest first." },
    { "next", DN_T_STR, AT(next), .flags = DN_F_REQUIRED | DN_F_NULL, .help = "`after` of the next page." },
};
#undef AT
const dn_fields dn_job_sample_list_fields = TABLE("JobSampleList", "A page of previews.", sample_list_v, dn_job_sample_list);

#define AT(member) .offset = offsetof(dn_samples_query, member)
static const dn_field samples_query_v[] = {
    { "limit", DN_T_INT, AT(limit), .min = 1, .max = DN_JOB_SAMPLES_MAX, .def = "256", .help = "Most of them." },
    { "after", DN_T_STR, AT(after), .min = 1, .max = 64, .help = "Older than this one: the last part of its url." },
};
#undef AT
const dn_fields dn_samples_query_fields = TABLE("SamplesQuery", NULL, samples_query_v, dn_samples_query);

#define AT(member) .offset = offsetof(dn_event_step, member)
static const dn_field event_step_v[] = {
    { "step", DN_T_INT, AT(step), ALWAYS }, { "steps", DN_T_INT, AT(steps), ALWAYS },
    { "loss", DN_T_NUM, AT(loss) }, { "lr", DN_T_NUM, AT(lr), ALWAYS }, { "grad_norm", DN_T_NUM, AT(grad_norm) },
    { "images_per_s", DN_T_NUM, AT(images_per_s) }, { "eta_s", DN_T_NUM, AT(eta_s), .unit = "s" },
    { "skipped", DN_T_BOOL, AT(skipped), .help = "Its gradients were not finite: nothing was changed." },
};
#undef AT
const dn_fields dn_event_step_fields = TABLE("EventStep", "Event `step`.", event_step_v, dn_event_step);

#define AT(member) .offset = offsetof(dn_event_eval, member)
static const dn_field event_eval_v[] = {
    { "step", DN_T_INT, AT(step), ALWAYS }, { "loss", DN_T_NUM, AT(loss), ALWAYS, .help = "Held-out." },
    { "buckets", DN_T_NUMS, AT(buckets), ALWAYS, .help = "By timestep, eight of equal width, low to high." },
};
#undef AT
const dn_fields dn_event_eval_fields = TABLE("EventEval", "Event `eval`.", event_eval_v, dn_event_eval);

#define AT(member) .offset = offsetof(dn_event_resumed, member)
static const dn_field event_resumed_v[] = {
    { "step", DN_T_INT, AT(step), ALWAYS, .help = "What was told of later steps is void." },
};
#undef AT
const dn_fields dn_event_resumed_fields = TABLE("EventResumed", "Event `resumed`.", event_resumed_v, dn_event_resumed);

#define AT(member) .offset = offsetof(dn_dataset_query, member)
static const dn_field dataset_query_v[] = {
    { "skip_broken", DN_T_BOOL, AT(skip_broken), .def = "false", .help = "Leave out what cannot be read, and say so; else it is refused as a whole." },
};
#undef AT
const dn_fields dn_dataset_query_fields = TABLE("DatasetQuery", NULL, dataset_query_v, dn_dataset_query);

#define AT(member) .offset = offsetof(dn_dataset_delete_query, member)
static const dn_field dataset_delete_query_v[] = {
    { "importing", DN_T_BOOL, AT(importing), .def = "false", .help = "true: only stop an import that is under way; what is stored stays." },
};
#undef AT
const dn_fields dn_dataset_delete_query_fields =
    TABLE("DatasetDeleteQuery", NULL, dataset_delete_query_v, dn_dataset_delete_query);

#define AT(member) .offset = offsetof(dn_broken_file, member)
static const dn_field broken_v[] = {
    { "file", DN_T_STR, AT(file), ALWAYS }, { "why", DN_T_STR, AT(why), ALWAYS },
};
#undef AT
static const dn_fields broken_fields = TABLE("BrokenFile", NULL, broken_v, dn_broken_file);

#define AT(member) .offset = offsetof(dn_dataset_card, member)
static const dn_field dataset_v[DN_DATASET_CARD_FIELDS] = {
    [DN_DATASET_CARD_NAME] = { "name", DN_T_STR, AT(name), ALWAYS },
    [DN_DATASET_CARD_HASH] = { "hash", DN_T_STR, AT(hash), ALWAYS, .help = "sha256 of the decoded content; jobs pin it." },
    [DN_DATASET_CARD_IMAGES] = { "images", DN_T_INT, AT(images), ALWAYS },
    [DN_DATASET_CARD_BYTES] = { "bytes", DN_T_INT, AT(bytes), ALWAYS },
    [DN_DATASET_CARD_CHANNELS] = { "channels", DN_T_INT, AT(channels), ALWAYS },
    [DN_DATASET_CARD_HEIGHT_MIN] = { "height_min", DN_T_INT, AT(height_min), ALWAYS, .unit = "px" },
    [DN_DATASET_CARD_HEIGHT_MAX] = { "height_max", DN_T_INT, AT(height_max), ALWAYS, .unit = "px" },
    [DN_DATASET_CARD_WIDTH_MIN] = { "width_min", DN_T_INT, AT(width_min), ALWAYS, .unit = "px" },
    [DN_DATASET_CARD_WIDTH_MAX] = { "width_max", DN_T_INT, AT(width_max), ALWAYS, .unit = "px" },
    [DN_DATASET_CARD_CLASSES] = { "classes", DN_T_STRS, AT(classes), .help = "Names, in the order of their numbers; at most 1,000 are listed." },
    [DN_DATASET_CARD_N_CLASSES] = { "n_classes", DN_T_INT, AT(n_classes), ALWAYS, .help = "0: without labels." },
    [DN_DATASET_CARD_CREATED_AT] = { "created_at", DN_T_NUM, AT(created_at), ALWAYS, .unit = "s", .help = "Unix time." },
    [DN_DATASET_CARD_PINNED_BY] = { "pinned_by", DN_T_INT, AT(pinned_by), .help = "Jobs that are not over." },
    [DN_DATASET_CARD_N_BROKEN] = { "n_broken", DN_T_INT, AT(n_broken), .help = "Files that were left out." },
    [DN_DATASET_CARD_BROKEN] = { "broken", DN_T_LIST, AT(broken), .sub = &broken_fields, .help = "The first of them." },
    [DN_DATASET_CARD_CANCELLED] = { "cancelled", DN_T_BOOL, AT(cancelled), .help = "true: an import that was stopped; nothing is stored." },
};
#undef AT
const dn_fields dn_dataset_card_fields = TABLE("Dataset", "A stored dataset.", dataset_v, dn_dataset_card);

#define AT(member) .offset = offsetof(dn_dataset_list, member)
static const dn_field dataset_list_v[] = {
    { "datasets", DN_T_LIST, AT(datasets), ALWAYS, .sub = &dn_dataset_card_fields },
};
#undef AT
const dn_fields dn_dataset_list_fields = TABLE("DatasetList", NULL, dataset_list_v, dn_dataset_list);
/* clang-format on */

/* ---- rules over several fields ---- */

/* An option that has an effect only beside one choice of another field. */
typedef struct dependency {
    size_t has;         /* offset of the object's `has` in dn_job_request */
    int field;          /* the option's number in it */
    size_t chooser;     /* offset of the int that must be one of ... */
    unsigned choices;   /* ... these, a bit set */
    const char *param, *needs;
} dependency;

#define IN(object, member) (offsetof(dn_job_request, object) + offsetof(__typeof__(((dn_job_request *)0)->object), member))
#define ONE(i) (1u << (i))
/* clang-format off */
static const dependency dependencies[] = {
    { IN(objective, has), DN_OBJ_TIMESTEPS_LOC, IN(objective, timesteps), ONE(1), "objective.timesteps_loc", "timesteps logit_normal" },
    { IN(objective, has), DN_OBJ_TIMESTEPS_SCALE, IN(objective, timesteps), ONE(1) | ONE(2), "objective.timesteps_scale", "timesteps logit_normal or mode" },
    { IN(objective, has), DN_OBJ_HUBER_DELTA, IN(objective, loss), ONE(2), "objective.huber_delta", "loss huber" },
    { IN(objective, has), DN_OBJ_SNR_GAMMA, IN(objective, weighting), ONE(2), "objective.snr_gamma", "weighting min_snr" },
    { IN(objective, has), DN_OBJ_SIGMA_DATA, IN(objective, weighting), ONE(3), "objective.sigma_data", "weighting edm" },
    { IN(objective, has), DN_OBJ_P2_GAMMA, IN(objective, weighting), ONE(4), "objective.p2_gamma", "weighting p2" },
    { IN(objective, has), DN_OBJ_P2_K, IN(objective, weighting), ONE(4), "objective.p2_k", "weighting p2" },
    { IN(optimizer, has), DN_OPT_BETAS, IN(optimizer, kind), ONE(0) | ONE(1), "optimizer.betas", "kind adam or adamw" },
    { IN(optimizer, has), DN_OPT_EPS, IN(optimizer, kind), ONE(0) | ONE(1), "optimizer.eps", "kind adam or adamw" },
    { IN(optimizer, has), DN_OPT_MOMENTUM, IN(optimizer, kind), ONE(2), "optimizer.momentum", "kind sgd" },
    { IN(lr_schedule, has), DN_LRS_CYCLES, IN(lr_schedule, kind), ONE(3), "lr_schedule.cycles", "kind cosine_restarts" },
    { IN(lr_schedule, has), DN_LRS_POWER, IN(lr_schedule, kind), ONE(4), "lr_schedule.power", "kind polynomial" },
    { IN(lr_schedule, has), DN_LRS_LR_END, IN(lr_schedule, kind), ONE(1) | ONE(4) | ONE(5), "lr_schedule.lr_end", "kind linear, polynomial or one_cycle" },
};

/* How far `amount` may go, and what it is when it is not given; in the order of the kinds. */
static const struct { double max, def; } amounts[] = { { 0, 0 }, { 1, 0.8 }, { 180, 10 }, { 1, 0.2 }, { 1, 0.2 }, { 1, 0.25 } };
/* clang-format on */

static int check_dependencies(const dn_job_request *r, dn_http_error *err)
{
    for (size_t i = 0; i < sizeof dependencies / sizeof *dependencies; i++) {
        const dependency *d = &dependencies[i];
        uint64_t has = *(const uint64_t *)((const char *)r + d->has);
        int choice = *(const int *)((const char *)r + d->chooser);
        if (has >> d->field & 1 && !(d->choices >> choice & 1))
            return dn_http_fail(err, DN_H_CONTRADICTION, d->param, "%s has an effect only with %s", d->param, d->needs);
    }
    return 0;
}

/* The list lies in the request's arena, so it may be completed in place. */
static int check_augment(dn_job_request *r, dn_http_error *err)
{
    dn_augment_in *a = (dn_augment_in *)r->augment.v;
    for (int i = 0; i < r->augment.n; i++) {
        char param[48];
        snprintf(param, sizeof param, "augment[%d].amount", i);
        if (!(a[i].has >> DN_AUGMENT_AMOUNT & 1))
            a[i].amount = amounts[a[i].kind].def;
        else if (!amounts[a[i].kind].max)
            return dn_http_fail(err, DN_H_CONTRADICTION, param, "%s has no effect on a flip", param);
        else if (a[i].amount > amounts[a[i].kind].max)
            return dn_http_fail(err, DN_H_RANGE, param, "%s must be 0..%g here", param, amounts[a[i].kind].max);
    }
    return 0;
}

static int check(dn_job_request *r, dn_http_error *err)
{
    if (!r->from == !r->model)
        return dn_http_fail(err, r->from ? DN_H_CONTRADICTION : DN_H_MISSING, "from",
                            "a job needs either from (weights to start from) or model (a config of a new network)");
    if (r->micro_batch > r->batch_size || (r->micro_batch && r->batch_size % r->micro_batch))
        return dn_http_fail(err, DN_H_CONTRADICTION, "micro_batch", "micro_batch must divide batch_size, %d",
                            (int)r->batch_size);
    if (!(r->objective.has >> DN_OBJ_TIMESTEPS_SCALE & 1))
        r->objective.timesteps_scale = r->objective.timesteps == 2 ? 1.29 : 1;
    if (!(r->lr_schedule.has >> DN_LRS_LR_END & 1))
        r->lr_schedule.lr_end = r->lr_schedule.kind == 5 ? 4e-6 : 0; /* PyTorch's */
    if (r->objective.timesteps == 1 && !(r->objective.timesteps_scale > 0))
        return dn_http_fail(err, DN_H_RANGE, "objective.timesteps_scale", "objective.timesteps_scale must be above 0");
    if (r->lr_schedule.warmup_steps > r->steps)
        return dn_http_fail(err, DN_H_CONTRADICTION, "lr_schedule.warmup_steps",
                            "lr_schedule.warmup_steps is more than steps, %lld", (long long)r->steps);
    static const char *const types[] = { "epsilon", "v_prediction", "sample", "flow_prediction" };
    const char *type = json_string_value(json_object_get(r->schedule, "prediction_type"));
    bool given = r->objective.has >> DN_OBJ_PREDICTION & 1;
    for (int i = 0; type && !given && i < 4; i++)
        if (!strcmp(type, types[i]))
            r->objective.prediction = i;
    if (type && given && strcmp(type, types[r->objective.prediction]))
        return dn_http_fail(err, DN_H_CONTRADICTION, "schedule.prediction_type", "objective.prediction is %s: schedule.prediction_type must be %s",
                            objective_v[DN_OBJ_PREDICTION].choices[r->objective.prediction], types[r->objective.prediction]);
    int rc = check_dependencies(r, err);
    return rc ? rc : check_augment(r, err);
}

static void drop_json(void *json) { json_decref(json); }

int dn_job_parse(dn_job_request *out, dn_arena *a, json_t *json, dn_http_error *err)
{
    dn_job_request r = { 0 };
    int code = dn_fields_parse(&dn_job_fields, &r, a, json, err);
    if (!code)
        code = check(&r, err);
    if (code)
        return code;
    if (dn_arena_cleanup(a, drop_json, json_incref(json)))
        return dn_http_fail(err, DN_H_MEMORY, NULL, NULL);
    *out = r;
    return 0;
}

/* Is the option without effect beside what is chosen? */
static uint64_t without_effect(const dn_job_request *r, size_t has)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < sizeof dependencies / sizeof *dependencies; i++) {
        const dependency *d = &dependencies[i];
        if (d->has == has && !(d->choices >> *(const int *)((const char *)r + d->chooser) & 1))
            bits |= DN_BIT(d->field);
    }
    return bits;
}

void dn_job_write(const dn_job_request *r, dn_buf *b)
{
    dn_job_request all = *r;
    dn_augment_in augment[DN_JOB_AUGMENT_MAX];
    all.has = DN_HAS_ALL & ~((r->height ? 0 : DN_BIT(DN_JOB_HEIGHT)) | (r->width ? 0 : DN_BIT(DN_JOB_WIDTH)) |
                             (r->augment.n ? 0 : DN_BIT(DN_JOB_AUGMENT)) | (r->micro_batch ? 0 : DN_BIT(DN_JOB_MICRO_BATCH)));
    all.objective.has = ~without_effect(r, IN(objective, has));
    all.optimizer.has = ~without_effect(r, IN(optimizer, has));
    all.lr_schedule.has = ~without_effect(r, IN(lr_schedule, has));
    all.ema.has = all.checkpoint.has = all.preview.has = all.eval.has = DN_HAS_ALL;
    for (int i = 0; i < r->augment.n; i++) {
        augment[i] = ((const dn_augment_in *)r->augment.v)[i];
        augment[i].has = amounts[augment[i].kind].max > 0 ? DN_HAS_ALL : ~DN_BIT(DN_AUGMENT_AMOUNT);
    }
    all.augment.v = augment;
    dn_fields_write(&dn_job_fields, &all, b);
}
