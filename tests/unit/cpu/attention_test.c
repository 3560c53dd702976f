/* Attention of the CPU backend against double loops. */
#include "attention.h"
#include "attention_bwd.h"
#include "choose.h"
#include "lower_blocks.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct spec {
    int queries, keys, channels, heads;
    float size; /* of queries and keys: large ones overflow an exponential without the maximum */
} spec;

/* clang-format off */
static const spec specs[] = {
    { 64, 64, 32, 4, 1 }, { 49, 49, 128, 8, 1 }, { 256, 256, 16, 1, 1 }, { 16, 16, 72, 1, 1 },
    { 35, 35, 20, 4, 1 }, { 9, 9, 21, 7, 1 },    { 1, 1, 8, 1, 1 },      { 50, 7, 24, 2, 1 },
    { 7, 90, 40, 1, 1 },  { 97, 33, 10, 2, 1 },  { 33, 33, 32, 2, 30 },  { 20, 1030, 12, 1, 2 },
};
/* clang-format on */
enum { SPECS = sizeof specs / sizeof *specs, ROWS = 3 };

typedef struct tensors {
    dn_rows q, k, v, y;
    void *work;
} tensors;

static tensors inputs(const spec *s, int n, int first)
{
    return (tensors){ .q = blocks_random(n, first, s->queries, s->channels, 1, s->size, 0),
                      .k = blocks_random(n, first, s->keys, s->channels, 2, s->size, 0),
                      .v = blocks_random(n, first, s->keys, s->channels, 3, 1, 0.25f),
                      .y = blocks_new(n, s->queries, s->channels) };
}

static void attend(const spec *s, tensors *t, int n, int threads)
{
    int64_t work = (dn_attention_work(s->queries, s->keys, s->channels, s->heads) + 63) / 64 * 64;
    dn_attention_args a = { .n = n,
                            .queries = s->queries,
                            .keys = s->keys,
                            .channels = s->channels,
                            .heads = s->heads,
                            .scale = 0.7f,
                            .q = t->q,
                            .k = t->k,
                            .v = t->v,
                            .y = t->y };
    t->work = aligned_alloc(64, (size_t)(work * n));
    memset(t->work, 0xff, (size_t)(work * n)); /* NaN */
    a.work = (dn_rows){ .base = t->work, .row_bytes = work };
    dn_pool *pool = threads > 1 ? dn_pool_new(threads, NULL) : NULL;
    dn_attention_blocked(pool, &a);
    dn_pool_free(pool);
}

static tensors run(const spec *s, int n, int first, int threads)
{
    tensors t = inputs(s, n, first);
    attend(s, &t, n, threads);
    return t;
}

static void tensors_free(tensors *t)
{
    blocks_free(t->q);
    blocks_free(t->k);
    blocks_free(t->v);
    blocks_free(t->y);
    free(t->work);
}

/* One query row of one head. */
static void check_query(const spec *s, const tensors *t, int row, int head, int i, double *weight)
{
    int d = s->channels / s->heads, first = head * d;
    double top = -INFINITY, sum = 0;
    for (int m = 0; m < s->keys; m++) {
        weight[m] = 0;
        for (int c = first; c < first + d; c++)
            weight[m] += (double)*block_at(&t->q, row, i, c) * *block_at(&t->k, row, m, c) * (double)0.7f;
        top = fmax(top, weight[m]);
    }
    for (int m = 0; m < s->keys; m++)
        sum += weight[m] = exp(weight[m] - top);
    for (int c = first; c < first + d; c++) {
        double want = 0, got = *block_at(&t->y, row, i, c);
        for (int m = 0; m < s->keys; m++)
            want += weight[m] / sum * *block_at(&t->v, row, m, c);
        if (!(fabs(got - want) <= 2e-6 * (1 + s->size * s->size)))
            fail_msg("%d queries, %d keys, %d channels, %d heads: %.8g, not %.8g", s->queries, s->keys, s->channels,
                     s->heads, got, want);
    }
}

static void against_loops(void **state)
{
    (void)state;
    for (int n = 0; n < SPECS; n++) {
        const spec *s = &specs[n];
        tensors t = run(s, ROWS, 0, 2);
        double *weight = malloc(sizeof *weight * (size_t)s->keys);
        for (int row = 0; row < ROWS; row++)
            for (int h = 0; h < s->heads; h++)
                for (int i = 0; i < s->queries; i++)
                    check_query(s, &t, row, h, i, weight);
        check_padding(&t.y, ROWS, s->queries, s->channels);
        free(weight);
        tensors_free(&t);
    }
}

static void rows_alone(void **state)
{
    (void)state;
    for (int n = 0; n < SPECS; n++) {
        tensors all = run(&specs[n], ROWS, 0, 3);
        for (int row = 0; row < ROWS; row++) {
            tensors one = run(&specs[n], 1, row, 1);
            check_row_bits(&all.y, row, &one.y, specs[n].queries, specs[n].channels);
            tensors_free(&one);
        }
        tensors_free(&all);
    }
}

/* A spoilt query spoils its own position, a spoilt key every position: softmax must not turn them into numbers. */
static void nan_shows(void **state)
{
    (void)state;
    const spec s = { 50, 21, 8, 1, 1 };
    for (int key = 0; key < 2; key++) {
        tensors t = inputs(&s, 1, 0);
        *block_at(key ? &t.k : &t.q, 0, 3, 5) = NAN;
        attend(&s, &t, 1, 1);
        for (int i = 0; i < s.queries; i++)
            for (int c = 0; c < s.channels; c++)
                if (!isnan(*block_at(&t.y, 0, i, c)) == (key || i == 3))
                    fail_msg("NaN in a %s: position %d, channel %d is %g", key ? "key" : "query", i, c,
                             *block_at(&t.y, 0, i, c));
        tensors_free(&t);
    }
}

typedef void (*backward_fn)(dn_pool *pool, const dn_attention_bwd_args *a);

/* dq, dk, dv of both instruction sets are the same bits; that they are right is backward_test's concern. */
static void gradients_agree(void **state)
{
    (void)state;
    const backward_fn backward[2] = { dn_attention_bwd_blocked_avx2, dn_attention_bwd_blocked_avx512 };
    for (int n = 0; n < SPECS && dn_cpu_has_avx512(); n++) {
        const spec *s = &specs[n];
        tensors t = inputs(s, ROWS, 0);
        const dn_rows dy = blocks_random(ROWS, 0, s->queries, s->channels, 4, 1, 0.25f);
        const int64_t work = (dn_attention_bwd_work(s->queries, s->keys, s->channels, s->heads) + 63) / 64 * 64;
        dn_rows out[2][3];
        for (int k = 0; k < 2; k++) {
            for (int j = 0; j < 3; j++)
                out[k][j] = blocks_new(ROWS, j ? s->keys : s->queries, s->channels);
            t.work = aligned_alloc(64, (size_t)(work * ROWS));
            memset(t.work, 0xff, (size_t)(work * ROWS)); /* NaN */
            dn_pool *pool = k ? dn_pool_new(2, NULL) : NULL;
            backward[k](pool, &(dn_attention_bwd_args){ .n = ROWS,
                                                        .queries = s->queries,
                                                        .keys = s->keys,
                                                        .channels = s->channels,
                                                        .heads = s->heads,
                                                        .scale = 0.7f,
                                                        .q = t.q,
                                                        .k = t.k,
                                                        .v = t.v,
                                                        .dy = dy,
                                                        .dq = out[k][0],
                                                        .dk = out[k][1],
                                                        .dv = out[k][2],
                                                        .work = { .base = t.work, .row_bytes = work } });
            dn_pool_free(pool);
            free(t.work);
        }
        for (int j = 0; j < 3; j++) {
            for (int row = 0; row < ROWS; row++) {
                dn_rows one = out[1][j];
                one.base = (char *)one.base + row * one.row_bytes;
                check_row_bits(&out[0][j], row, &one, j ? s->keys : s->queries, s->channels);
            }
            blocks_free(out[0][j]);
            blocks_free(out[1][j]);
        }
        t.work = NULL;
        blocks_free(dy);
        tensors_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(against_loops), cmocka_unit_test(rows_alone),
                                        cmocka_unit_test(nan_shows), cmocka_unit_test(gradients_agree) };
    if (!dn_cpu_has_avx2()) {
        printf("SKIPPED: this machine has no AVX2\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
