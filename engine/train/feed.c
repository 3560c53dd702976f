/* feed.c - rows of a micro-batch: read, noised, weighted, put into the program's inputs.
 *
 * Everything random is Philox of (seed, purpose, optimizer step, sample within the step): how the step is cut into
 * micro-batches changes nothing. */
#include "train_internal.h"
#include <string.h>

enum { NOISE, NOISE_OFFSET, NOISE_INPUT };        /* op ids of DN_RNG_NOISE */
static const uint32_t held_out_step = UINT32_MAX; /* no job has so many */

typedef struct {
    dn_trainer *t;
    const dn_train_net *net;
    uint32_t step;
    int64_t first;
    bool training;
} rows;

static dn_rng_key key_of(const rows *r, enum dn_purpose purpose, int op, int row)
{
    return (dn_rng_key){ r->t->params.seed, r->step, (uint32_t)purpose << 24 | (uint32_t)op,
                         (uint32_t)(r->first + row) };
}

/* One number in (0,1). */
static double uniform(const rows *r, enum dn_purpose purpose, int row)
{
    dn_rng_key k = key_of(r, purpose, 0, row);
    uint32_t bits[4];
    dn_philox(bits, (uint32_t[]){ 0, k.step, k.purpose, k.sample }, k.seed);
    return (bits[0] + 0.5) * 0x1p-32;
}

static int timestep(const rows *r, int row)
{
    const dn_trainer *t = r->t;
    const dn_objective *o = &t->params.objective;
    int64_t sample = r->first + row;
    double u = uniform(r, DN_RNG_TIMESTEP, row);
    if (!r->training) { /* every bucket in turn, evenly within */
        static const dn_objective even = { .timesteps = DN_TIMESTEPS_UNIFORM };
        return dn_timestep_of(&even, t->levels.n, ((double)(sample % DN_EVAL_BUCKETS) + u) / DN_EVAL_BUCKETS);
    }
    if (o->low_discrepancy)
        u = ((double)sample + u) / t->params.batch_size;
    return dn_timestep_of(o, t->levels.n, u);
}

static void settle_label(const rows *r, int row)
{
    const dn_trainer *t = r->t;
    double dropout = r->training ? t->params.objective.label_dropout : 0;
    if (t->feed.label[row] < 0 || (dropout > 0 && uniform(r, DN_RNG_LABEL_DROP, row) < dropout))
        t->feed.label[row] = t->model->info.null_label;
}

static void draw_noise(const rows *r, int row)
{
    const dn_trainer *t = r->t;
    float *noise = t->feed.noise + row * t->row;
    dn_rng_key key = key_of(r, DN_RNG_NOISE, NOISE, row);
    t->device->normal(noise, 0, t->row, &key);
    if (!r->training || !(t->params.objective.noise_offset > 0))
        return;
    dn_rng_key offset_key = key_of(r, DN_RNG_NOISE, NOISE_OFFSET, row);
    const float by = (float)t->params.objective.noise_offset;
    for (int c = 0; c < t->channels; c++) {
        float four[4];
        dn_rng_normal(four, c / 4 * 4, 4, &offset_key);
        for (int64_t i = c; i < t->row; i += t->channels)
            noise[i] += by * four[c % 4];
    }
}

static void draw_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    for (int64_t row = from; row < to; row++)
        draw_noise(arg, (int)row);
}

/* ---- into the program ---- */

static void *at(const rows *r, int place, int row) { return dn_place_at(&r->t->run, place, row); }

static void put(const rows *r, int place, int row, double value)
{
    if (place >= 0)
        *(float *)at(r, place, row) = (float)value;
}

/* x_t = alpha x0 + sigma (noise + perturbation), chunk by chunk. */
static void put_noisy(const rows *r, int row, const dn_row_terms *terms)
{
    enum { CHUNK = 256 };
    const dn_trainer *t = r->t;
    const float *x0 = t->feed.x0 + row * t->row, *noise = t->feed.noise + row * t->row;
    float *x = at(r, r->net->ports.x, row), more[CHUNK];
    const float by = r->training ? (float)t->params.objective.input_perturbation : 0;
    dn_rng_key key = key_of(r, DN_RNG_NOISE, NOISE_INPUT, row);
    for (int64_t from = 0; from < t->row; from += CHUNK) {
        int64_t n = t->row - from < CHUNK ? t->row - from : CHUNK;
        if (by > 0)
            t->device->normal(more, from, n, &key);
        for (int64_t i = 0; i < n; i++)
            x[from + i] = terms->alpha * x0[from + i] +
                          terms->sigma * (by > 0 ? noise[from + i] + by * more[i] : noise[from + i]);
    }
}

static void put_target(const rows *r, int row, const dn_row_terms *terms)
{
    const dn_trainer *t = r->t;
    const float *x0 = t->feed.x0 + row * t->row, *noise = t->feed.noise + row * t->row;
    float *target = at(r, r->net->target, row);
    for (int64_t i = 0; i < t->row; i++)
        target[i] = terms->of_x0 * x0[i] + terms->of_noise * noise[i];
}

/* What the variational term reads. A value of x0 within a thousandth of the end of its range has no bin beyond it. */
static void put_variance(const rows *r, int row, const dn_row_terms *terms)
{
    const dn_trainer *t = r->t;
    const dn_train_net *net = r->net;
    const double *range = t->model->info.range, margin = (range[1] - range[0]) / 2000;
    const float low = (float)(range[0] + margin), high = (float)(range[1] - margin), *x0 = t->feed.x0 + row * t->row;
    if (net->first < 0)
        return;
    put(r, net->mean_scale, row, terms->mean_scale);
    put(r, net->lv_min, row, terms->lv_min);
    put(r, net->lv_max, row, terms->lv_max);
    put(r, net->lv_true, row, terms->lv_true);
    put(r, net->first, row, t->feed.t[row] == 0);
    float *edge_low = at(r, net->edge_low, row), *edge_high = at(r, net->edge_high, row);
    for (int64_t i = 0; i < t->row; i++) {
        edge_low[i] = x0[i] < low;
        edge_high[i] = x0[i] > high;
    }
}

static void put_row(const rows *r, int row)
{
    const dn_trainer *t = r->t;
    const dn_train_net *net = r->net;
    int step = t->feed.t[row], label = t->feed.label[row];
    dn_row_terms terms = dn_row_terms_of(&t->levels, &t->params.objective, step);
    put_noisy(r, row, &terms);
    put_target(r, row, &terms);
    put_variance(r, row, &terms);
    put(r, net->weight, row, terms.weight);
    put(r, net->dloss, row, t->counters.loss_scale / t->params.batch_size);
    dn_ports_put_time(&net->ports, (int)t->model->arch_info.time_rows, &t->run, row, t->levels.time[step]);
    dn_ports_put_label(&net->ports, &t->run, row, label, label, 0);
    if (net->rng >= 0)
        memcpy(at(r, net->rng, row),
               (uint32_t[]){ (uint32_t)t->params.seed, (uint32_t)(t->params.seed >> 32), r->step,
                             (uint32_t)(r->first + row) },
               16);
}

static void put_task(void *arg, int64_t from, int64_t to, int thread)
{
    (void)thread;
    for (int64_t row = from; row < to; row++)
        put_row(arg, (int)row);
}

static void fill(rows *r, int n)
{
    dn_trainer *t = r->t;
    for (int i = 0; i < n; i++) {
        t->feed.t[i] = timestep(r, i);
        settle_label(r, i);
    }
    dn_pool_run(t->device->pool, draw_task, r, n, 1);
    if (t->inject && r->training)
        t->inject(t->inject_arg, t, (int)r->first, n);
    dn_pool_run(t->device->pool, put_task, r, n, 1);
}

void dn_feed_train(dn_trainer *t, int first, int n)
{
    rows r = { t, &t->net, (uint32_t)t->counters.step, first, true };
    double wait = 0;
    dn_reader_get(t->reader, t->counters.step, first, n, t->feed.x0, t->feed.label, &wait);
    t->report.wait_ms += wait;
    fill(&r, n);
}

void dn_feed_eval(dn_trainer *t, int64_t first, int n)
{
    rows r = { t, &t->eval_net, held_out_step, first, false };
    for (int i = 0; i < n; i++)
        dn_reader_get(t->eval_reader, first + i, 0, 1, t->feed.x0 + i * t->row, t->feed.label + i, NULL);
    fill(&r, n);
}
