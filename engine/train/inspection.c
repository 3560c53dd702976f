/* inspection.c - DENOISED_TRACE and DENOISED_CHECK for a trainer's runs.
 *
 * The run that is compared with reads the same inputs and weights, but adds its gradients to a block of its own, which
 * starts as the trainer's: looking changes nothing. Its memory is in no plan. */
#include "train_internal.h"
#include <stdlib.h>
#include <string.h>

static const double least_gradient = 1e-6;

/* Of the largest value of a step: values kept as 16 bits may be rounded either way. */
static double tolerance_of(const dn_trainer *t) { return t->params.precision == DN_PRECISION_FP32 ? 1e-3 : 3e-2; }

int dn_inspection_init(dn_trainer *t, dn_error *err)
{
    t->look.trace = dn_trace_wanted();
    int rc = dn_check_prepare(&t->look.check, t->net.lowered, err);
    return rc || !t->n_eval ? rc : dn_check_prepare(&t->look.eval_check, t->eval_net.lowered, err);
}

static void drop_run(dn_inspection *look)
{
    free(look->ref.arena);
    free(look->gradient);
    look->ref = (dn_run){ 0 };
    look->gradient = NULL;
}

void dn_inspection_fini(dn_trainer *t)
{
    drop_run(&t->look);
    dn_lowered_free(t->look.check);
    dn_lowered_free(t->look.eval_check);
    t->look = (dn_inspection){ 0 };
}

static void copy_inputs(const dn_run *to, const dn_run *from)
{
    const dn_program *p = from->lowered->program;
    for (int v = 0; v < p->n_values; v++) {
        int source = from->lowered->value_place[v], target = to->lowered->value_place[v];
        if (p->value[v].op >= 0 || p->value[v].kind == DN_PARAM || source < 0 || target < 0)
            continue;
        size_t bytes = dn_dtype_size(p->value[v].dtype) * (size_t)dn_shape_count(&p->value[v].shape);
        for (int row = 0; row < from->n; row++)
            memcpy(dn_place_at(to, target, row), dn_place_at(from, source, row), bytes);
    }
}

static int run_ref(dn_trainer *t, const dn_lowered *l)
{
    dn_inspection *look = &t->look;
    size_t bytes = sizeof(float) * (size_t)t->flat.count;
    bool backward = t->run.block[1] != NULL;
    drop_run(look);
    look->gradient = backward ? malloc(bytes) : NULL;
    look->ref = (dn_run){ .lowered = l,
                          .arena = aligned_alloc(64, (l->arena_bytes + 63) / 64 * 64),
                          .block = { t->run.block[0], (const char *)look->gradient },
                          .pool = t->device->pool,
                          .n = t->run.n };
    if (!look->ref.arena || (backward && !look->gradient))
        return -DN_E_MEMORY;
    if (backward)
        memcpy(look->gradient, t->run.block[1], bytes);
    copy_inputs(&look->ref, &t->run);
    return dn_run_some(&look->ref, 0);
}

int dn_inspection_begin(dn_trainer *t)
{
    dn_inspection *look = &t->look;
    const dn_lowered *check = t->run.lowered == t->net.lowered ? look->check : look->eval_check;
    if (!look->trace && !check)
        return 0;
    int rc = check ? run_ref(t, check) : 0;
    look->inspector = (dn_inspector){
        .file = stderr,
        .trace = look->trace,
        .ref = check ? &look->ref : NULL,
        .tolerance = tolerance_of(t),
        .least = least_gradient * t->counters.loss_scale, /* the gradient of a key's bias, say */
    };
    t->run.inspector = &look->inspector;
    return rc;
}
