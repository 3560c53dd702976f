/* training.c - where an optimizer step's time goes: training MODEL_FOLDER BATCH STEPS [DEVICE [MICRO_BATCH [PRECISION]]]
 *
 * On made-up pictures, stored and read like real ones. Whole steps are timed first, by the wall clock; then steps cut into
 * single ops are attributed to their phases, by the process's CPU time, so that a busy machine shows less. Medians.
 * With 0 STEPS it serves training.py: lines "step BATCH SECONDS" on stdin, answered by the steps' milliseconds, and at their end
 * the peak of resident memory and the share of the time that steps waited for data. */
#include "train_internal.h"
#include <denoised/image.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

static dn_error err;

static void check(int rc)
{
    if (!rc)
        return;
    fprintf(stderr, "training: %s\n", err.message);
    exit(1);
}

static int remove_one(const char *name, const struct stat *st, int kind, struct FTW *where)
{
    (void)st, (void)kind, (void)where;
    return remove(name);
}

/* A store of n pictures of the model's size and classes. */
static dn_dataset *made_up(const dn_model_info *m, int n, const char *folder)
{
    char file[128], stored[128];
    int64_t row = (int64_t)m->height * m->width * m->channels, *labels = calloc((size_t)n, sizeof *labels);
    uint8_t *pictures = malloc((size_t)(n * row)), *bytes;
    for (int64_t i = 0; i < n * row; i++)
        pictures[i] = (uint8_t)(127 + 120 * sin((double)(i % row) * 0.05 + (double)(i / row)));
    for (int i = 0; i < n && m->n_classes > 1; i++)
        labels[i] = i % (m->n_classes - 1);
    dn_st_tensor t[] = { { "images", "U8", 4, { n, m->height, m->width, m->channels }, pictures, (size_t)(n * row) },
                         { "labels", "I64", 1, { n }, labels, sizeof *labels * (size_t)n } };
    size_t len;
    check(dn_st_encode(&bytes, &len, t, 2, &err));
    snprintf(file, sizeof file, "%s/pictures.safetensors", folder);
    snprintf(stored, sizeof stored, "%s/data", folder);
    FILE *f = fopen(file, "wb");
    if (!f || fwrite(bytes, 1, len, f) != len || fclose(f))
        exit(1);
    dn_import_report report;
    dn_dataset *d;
    check(dn_dataset_import(file, stored, &(dn_import_params){ .threads = 1 }, &report, &err));
    check(dn_dataset_open(&d, stored, &err));
    free(labels);
    free(pictures);
    free(bytes);
    return d;
}

static int by_value(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

enum part { DATA, FORWARD, BACKWARD, OPTIMIZER, PARTS };

static enum part part_of(const dn_trainer *t)
{
    if (t->phase == DN_PHASE_FEED)
        return DATA;
    if (t->phase != DN_PHASE_RUN)
        return OPTIMIZER;
    return t->run.lowered->step[t->run.next].op_first < t->net.program->first_backward ? FORWARD : BACKWARD;
}

static void print_split(dn_trainer *t, int steps)
{
    static const char *const names[] = { "rows", "forward", "backward", "optimizer" };
    double *ms[PARTS];
    for (int k = 0; k < PARTS; k++)
        ms[k] = calloc((size_t)steps, sizeof(double));
    for (int i = 0; i < steps; i++)
        for (int rc = 1; rc;) {
            dn_train_report r;
            enum part part = part_of(t);
            double start = cpu_ms();
            rc = dn_trainer_some(t, 1e-6, &r, &err);
            check(rc < 0 ? -rc : 0);
            ms[part][i] += cpu_ms() - start;
        }
    for (int k = 0; k < PARTS; k++) {
        printf("%s %.1f%s", names[k], median(ms[k], steps), k < PARTS - 1 ? ", " : "\n");
        free(ms[k]);
    }
}

static double step_ms(dn_trainer *t, double *wait)
{
    dn_train_report r;
    double start = dn_monotonic_ms();
    check(-dn_trainer_some(t, 0, &r, &err));
    *wait += r.wait_ms;
    return dn_monotonic_ms() - start;
}

static void print_times(dn_trainer *t, const char *name, const dn_train_plan *plan, int steps)
{
    printf("%s, batch %d, micro_batch %d, %s: %.1f MB (arena %.1f), %.1f GFLOP\n", name, t->params.batch_size, plan->micro_batch,
           plan->numerics, (double)(plan->total - plan->copies) * 1e-6, (double)plan->arena * 1e-6, plan->gflop_per_step);
    double *ms = calloc((size_t)steps, sizeof *ms), wait = 0;
    step_ms(t, &wait); /* touches all memory */
    wait = 0;
    for (int i = 0; i < steps; i++)
        ms[i] = step_ms(t, &wait);
    double middle = median(ms, steps); /* sorts */
    printf("step %.1f ms (least %.1f), waited for data %.2f\nCPU ms: ", middle, ms[0], wait / steps);
    print_split(t, steps < 3 ? steps : 3);
    free(ms);
}

static void serve(dn_trainer *t)
{
    char line[128];
    double seconds, wait = 0, all = 0, ms;
    while (fgets(line, sizeof line, stdin) && sscanf(line, "step %*d %lf", &seconds) == 1) {
        double end = dn_monotonic_ms() + seconds * 1e3;
        const char *before = "R[";
        do {
            all += ms = step_ms(t, &wait);
            printf("%s%.4f", before, ms);
            before = ",";
        } while (dn_monotonic_ms() < end);
        printf("]\n");
        fflush(stdout);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"peak_mb\": %.1f, \"waited\": %.6f}\n", (double)usage.ru_maxrss / 1024, all > 0 ? wait / all : 0);
}

int main(int argc, char **argv)
{
    char folder[] = "/tmp/denoised-bench-XXXXXX";
    if (argc < 4 || !mkdtemp(folder))
        return 2;
    int batch = atoi(argv[2]), steps = atoi(argv[3]);
    dn_model *m;
    dn_device *d;
    dn_train_plan plan;
    dn_trainer *t;
    check(dn_model_load(&m, argv[1], &err));
    check(dn_device_open(&d, argc > 4 ? argv[4] : "cpu", &err));
    dn_dataset *data = made_up(dn_model_info_of(m), 4 * batch, folder);
    dn_train_params p;
    dn_train_params_init(&p);
    p.batch_size = batch;
    p.steps = 1000;
    p.micro_batch = argc > 5 ? atoi(argv[5]) : 0;
    p.precision = argc > 6 ? (enum dn_precision)atoi(argv[6]) : DN_PRECISION_FP32;
    check(dn_train_plan_make(&plan, d, m, data, &p, 0, &err));
    check(dn_trainer_new(&t, d, m, data, &p, &plan, &err));
    if (steps)
        print_times(t, argv[1], &plan, steps);
    else
        serve(t);
    dn_trainer_free(t);
    dn_dataset_close(data);
    dn_device_close(d);
    dn_model_free(m);
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}
