/* eval.c - the loss of the EMA weights on the held-out part, at noise and timesteps that are the same every time. */
#include "train_internal.h"
#include <math.h>

static int feed(dn_trainer *t)
{
    int64_t left = t->n_eval - t->eval.at;
    int n = left < t->plan.micro_batch ? (int)left : t->plan.micro_batch;
    t->run = (dn_run){ .lowered = t->eval_net.lowered,
                       .arena = t->arena,
                       .pool = t->device->pool,
                       .block = { (const char *)t->flat.ema },
                       .n = n };
    dn_feed_eval(t, t->eval.at, n);
    t->eval.fed = true;
    return dn_inspection_begin(t);
}

static void collect(dn_trainer *t)
{
    for (int i = 0; i < t->run.n; i++) {
        int bucket = (int)((t->eval.at + i) % DN_EVAL_BUCKETS);
        t->eval.sum[bucket] += *(float *)dn_place_at(&t->run, t->eval_net.loss, i);
        t->eval.n[bucket]++;
    }
    t->eval.at += t->run.n;
    t->eval.fed = false;
}

static void finish(dn_trainer *t, dn_eval_report *report)
{
    dn_eval_report r = { .n = t->n_eval };
    double sum = 0;
    for (int b = 0; b < DN_EVAL_BUCKETS; b++) {
        sum += t->eval.sum[b];
        r.bucket[b] = t->eval.n[b] ? t->eval.sum[b] / (double)t->eval.n[b] : NAN;
    }
    r.loss = sum / (double)t->n_eval;
    t->eval = (dn_evaluation){ 0 };
    *report = r;
}

int dn_trainer_eval_some(dn_trainer *t, double max_ms, dn_eval_report *report, dn_error *err)
{
    double end = max_ms > 0 ? dn_monotonic_ms() + max_ms : 0;
    if (!t->n_eval)
        return -dn_fail(err, DN_E_IMPOSSIBLE, "eval_fraction", "the job holds no images out");
    if (!t->eval.running && !dn_trainer_at_boundary(t))
        return -dn_fail(err, DN_E_INTERNAL, NULL, "an evaluation within an optimizer step");
    if (!t->eval.running)
        t->eval = (dn_evaluation){ .running = true };
    while (t->eval.at < t->n_eval) {
        int rc = t->eval.fed ? 0 : feed(t);
        rc = rc ? rc : dn_run_some(&t->run, end > 0 ? fmax(end - dn_monotonic_ms(), 1e-6) : 0);
        if (rc < 0) {
            t->eval = (dn_evaluation){ 0 };
            return -dn_fail(err, -rc, NULL, "the evaluation failed on the device: %s", dn_error_text(-rc));
        }
        if (rc)
            return 1;
        collect(t);
        if (end > 0 && t->eval.at < t->n_eval && dn_monotonic_ms() >= end)
            return 1;
    }
    finish(t, report);
    return 0;
}
