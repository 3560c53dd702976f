/* forward_server.c - times the network of a model folder on request, so that a driver can alternate it with its peers.
 *
 * forward_server FOLDER DEVICE; then a line "forward BATCH SECONDS" on stdin gives "R" and a line of JSON: the
 * milliseconds of each forward. The timed work is a whole batch: gather, network, scatter. */
#include <denoised/device.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BATCH_MAX = 64 };

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static dn_sample *sample(dn_device *d, const dn_model_info *info, int i)
{
    dn_table table;
    dn_error err;
    dn_sample *s;
    if (dn_table_plan_denoise(&table, 37 + 13 * i, 1, &err))
        exit(1);
    dn_sample_params p = { .table = &table, .height = info->height, .width = info->width, .channels = info->channels,
                           .out_channels = info->out_channels, .seed = (uint64_t)i, .label = info->n_classes ? i % info->n_classes : -1,
                           .temperature = 1 };
    if (dn_sample_new(&s, d, &p, &err))
        exit(1);
    return s;
}

static double forward(dn_device *d, const dn_net *net, dn_sample *const *s, int n)
{
    dn_row row[BATCH_MAX];
    dn_batch *b;
    dn_error err;
    for (int i = 0; i < n; i++)
        row[i] = (dn_row){ s[i], DN_ROW_COND };
    double start = now_ms();
    if (dn_batch_begin(&b, d, net, row, n, &err) || dn_batch_some(b, 0))
        exit(1);
    double ms = now_ms() - start;
    dn_batch_free(b);
    return ms;
}

int main(int argc, char **argv)
{
    dn_error err = { 0 };
    dn_model *m;
    dn_device *d;
    dn_net *net;
    dn_sample *s[BATCH_MAX];
    int n;
    double seconds;
    if (argc != 3 || dn_model_load(&m, argv[1], &err) || dn_device_open(&d, argv[2], &err)) {
        fprintf(stderr, "forward_server: %s\n", err.message);
        return 1;
    }
    const dn_model_info *info = dn_model_info_of(m);
    if (dn_net_new(&net, d, m, info->height, info->width, 0, &err))
        return 1;
    for (int i = 0; i < BATCH_MAX; i++)
        s[i] = sample(d, info, i);
    fprintf(stderr, "%s: %.2f GFLOP a row, %zu bytes of arena\n", argv[1], dn_net_gflop_per_row(net), dn_net_arena_bytes(net));
    char line[128];
    while (fgets(line, sizeof line, stdin) && sscanf(line, "forward %d %lf", &n, &seconds) == 2) {
        forward(d, net, s, n);
        double end = now_ms() + seconds * 1e3;
        printf("R[%.4f", forward(d, net, s, n));
        while (now_ms() < end)
            printf(",%.4f", forward(d, net, s, n));
        printf("]\n");
        fflush(stdout);
    }
    for (int i = 0; i < BATCH_MAX; i++)
        dn_sample_free(s[i]);
    dn_net_free(net);
    dn_device_close(d);
    dn_model_free(m);
    return 0;
}
