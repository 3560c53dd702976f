/* fit.c - first fit by lists of what is taken against first fit by looking at every place: the same offsets, so the same arenas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include "fit.h"

typedef struct {
    int first, last;
    int64_t bytes, offset;
} life;

static uint64_t seed;

static int below(int n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (uint64_t)n);
}

static bool meet(const life *a, const life *b) { return a->first <= b->last && b->first <= a->last; }

/* The lowest offset is 0 or the end of what it meets. */
static int64_t plain(const life *s, int n)
{
    int64_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int j = 0; j < n; j++) {
            if (meet(&s[j], &s[n]) && s[j].offset < at + s[n].bytes && s[j].offset + s[j].bytes > at) {
                at = s[j].offset + s[j].bytes;
                moved = true;
            }
        }
    }
    return at;
}

static void place(life *s, int n, int n_steps)
{
    dn_fit *f = dn_fit_new(n_steps);
    assert_non_null(f);
    for (int i = 0; i < n; i++) {
        assert_int_equal(dn_fit_place(f, s[i].first, s[i].last, s[i].bytes, &s[i].offset), 0);
        assert_int_equal(s[i].offset, plain(s, i));
        for (int j = 0; j < i; j++)
            assert_true(!meet(&s[i], &s[j]) || s[j].offset >= s[i].offset + s[i].bytes ||
                        s[i].offset >= s[j].offset + s[j].bytes);
    }
    dn_fit_free(f);
}

/* In any order of sizes, some of them none, of short and long lives. */
static void test_random(void **state)
{
    (void)state;
    life s[240];
    for (int round = 0; round < 300; round++) {
        seed = (uint64_t)round;
        int n_steps = 1 + below(round % 3 ? 40 : 1000), n = 1 + below(240), sizes = round % 2 ? 4 : 1000, lengths = 1 + below(n_steps);
        for (int i = 0; i < n; i++) {
            int first = below(n_steps), last = first + below(lengths);
            s[i] = (life){ first, last < n_steps ? last : n_steps - 1, 64 * (int64_t)below(sizes), 0 };
        }
        place(s, n, n_steps);
    }
}

/* What a U-Net is: what a step writes for the next, and what waits for its mirror image. */
static void test_nested(void **state)
{
    (void)state;
    enum { N = 1000 };
    static life s[2 * N];
    for (int i = 0; i < N; i++) {
        s[2 * i] = (life){ i, 2 * N - i, 64 * (1 + i % 7), 0 };
        s[2 * i + 1] = (life){ 2 * i, 2 * i + 1, 64 * (1 + i % 5), 0 };
    }
    place(s, 2 * N, 2 * N + 1);
}

/* Sizes beyond what is ever allocated stay exact. */
static void test_huge(void **state)
{
    (void)state;
    life s[] = { { 0, 1, INT64_C(1) << 60, 0 }, { 1, 2, INT64_C(1) << 60, 0 }, { 2, 2, 64, 0 }, { 0, 2, 1 << 20, 0 }, { 0, 0, 0, 0 } };
    place(s, 5, 3);
    assert_int_equal(s[1].offset, INT64_C(1) << 60);
    assert_int_equal(s[3].offset, INT64_C(1) << 61);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random), cmocka_unit_test(test_nested), cmocka_unit_test(test_huge) };
    return cmocka_run_group_tests_name("engine fit", tests, NULL, NULL);
}
