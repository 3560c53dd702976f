#include "inspect.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A row of an f32 value as dense channels-last floats, whatever the place's layout. */
static void read_row(const dn_run *run, int place, int64_t row, float *dst)
{
    const dn_place *p = &run->lowered->place[place];
    const dn_shape *s = dn_shape_of(run->lowered->program, p->val);
    const char *base = dn_place_at(run, place, row);
    int64_t n = dn_shape_count(s), c = s->rank ? s->dim[s->rank - 1] : 1;
    if (!p->plane) {
        memcpy(dst, base, sizeof *dst * (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t channel = i % c, position = i / c;
        dst[i] = ((const float *)(base + channel / 8 * p->plane))[position * 8 + channel % 8];
    }
}

static bool readable(const dn_run *run, int place)
{
    if (place < 0 || run->lowered->place[place].val == DN_NONE)
        return false;
    return run->lowered->program->value[run->lowered->place[place].val].dtype == DN_F32;
}

static int64_t rows_of(const dn_run *run, int place) { return run->lowered->place[place].row_bytes ? run->n : 1; }

static void print_name(FILE *f, const dn_run *run, const dn_step *step, int place)
{
    const dn_program *p = run->lowered->program;
    const dn_shape *s = dn_shape_of(p, run->lowered->place[place].val);
    fprintf(f, "%4d..%-4d %-14s %-48s [", step->op_first, step->op_last, dn_op_name(p->op[step->op_last].kind),
            p->op[step->op_last].scope);
    for (int i = 0; i < s->rank; i++)
        fprintf(f, "%s%lld", i ? "," : "", (long long)s->dim[i]);
    fprintf(f, "]");
}

static void trace(dn_inspector *in, const dn_run *run, const dn_step *step, int place, float *row, int64_t n)
{
    double sum = 0, squares = 0;
    int64_t spoilt = 0, rows = rows_of(run, place), count = n * rows;
    for (int64_t r = 0; r < rows; r++) {
        read_row(run, place, r, row);
        for (int64_t i = 0; i < n; i++) {
            spoilt += !isfinite(row[i]);
            sum += row[i];
            squares += (double)row[i] * row[i];
        }
    }
    double mean = sum / (double)count;
    print_name(in->file, run, step, place);
    fprintf(in->file, " rows %lld mean %.6g deviation %.6g not finite %lld\n", (long long)rows, mean,
            sqrt(fmax(0, squares / (double)count - mean * mean)), (long long)spoilt);
}

/* Where the run on ref keeps a value: each value has one place there. */
static int ref_place(const dn_run *ref, dn_val v)
{
    for (int i = 0; i < ref->lowered->n_places; i++)
        if (ref->lowered->place[i].val == v)
            return i;
    return -1;
}

/* The same infinity, or NaN twice, is no difference; a number beside one is the largest. */
static double distance(float got, float want)
{
    if (got == want || (isnan(got) && isnan(want)))
        return 0;
    double d = fabs((double)got - want);
    return isfinite(d) ? d : INFINITY;
}

static void check(dn_inspector *in, const dn_run *run, const dn_step *step, int place, float *row, float *want,
                  int64_t n)
{
    int other = ref_place(in->ref, run->lowered->place[place].val);
    double worst = 0, largest = 0;
    for (int64_t r = 0; other >= 0 && r < rows_of(run, place); r++) {
        read_row(run, place, r, row);
        read_row(in->ref, other, r, want);
        for (int64_t i = 0; i < n; i++) {
            worst = fmax(worst, distance(row[i], want[i]));
            largest = isfinite(want[i]) ? fmax(largest, fabs((double)want[i])) : largest;
        }
    }
    if (worst > fmax(in->tolerance * largest, in->least) && in->differences++ == 0) {
        fprintf(in->file, "first difference from ref: ");
        print_name(in->file, run, step, place);
        fprintf(in->file, " by %.3g, the largest value is %.3g\n", worst, largest);
    }
}

/* Does the next step write this place too? An op may be divided into several steps. */
static bool is_partial(const dn_run *run, int place)
{
    const dn_lowered *l = run->lowered;
    return run->next + 1 < l->n_steps && l->step[run->next + 1].out[0] == place;
}

void dn_inspect_step(dn_inspector *in, const dn_run *run, const dn_step *step)
{
    for (int i = 0; i < step->n_out; i++) {
        int place = step->out[i];
        if (!readable(run, place) || is_partial(run, place))
            continue;
        int64_t n = dn_shape_count(dn_shape_of(run->lowered->program, run->lowered->place[place].val));
        float *row = malloc(sizeof *row * 2 * (size_t)n);
        if (row && in->trace)
            trace(in, run, step, place, row, n);
        if (row && in->ref)
            check(in, run, step, place, row, row + n, n);
        free(row);
    }
}
