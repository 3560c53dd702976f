/* attention_avx2.c - see attention.h.
 *
 * Keys and values of every head are packed as panels for dn_cpu_strip: keys (times the scale) [M/16][d][16], values
 * [d/16][M][16], zero where a panel ends. Queries are read where they are if heads begin at whole blocks, else packed
 * as blocks [d/8][L][8]. Then, strip by strip of query rows: scores panel by panel with the running maximum of each
 * row, exponentials as blocks [M/8][rows][8], times the values, divided by their sum. Each score is one chain over d,
 * each output one over M. */
#include "attention.h"
#include "attention_parts.h"

/* One head of one row. */
typedef struct head {
    const dn_attention_args *a;
    int64_t row;
    int first; /* channel */
    int d;
    float *k, *v; /* packed */
    float *q;     /* packed, or in place */
    ptrdiff_t q_block;
} head;

/* Floats of the packed parts of one head. */
static int64_t k_floats(const dn_attention_args *a, int d) { return round_up(a->keys, PANEL) * round_up(d, LANES); }
static int64_t v_floats(const dn_attention_args *a, int d) { return round_up(a->keys, LANES) * round_up(d, PANEL); }
static int64_t q_floats(const dn_attention_args *a, int d) { return in_place(d) ? 0 : a->queries * round_up(d, LANES); }

int64_t dn_attention_work(int64_t queries, int64_t keys, int channels, int heads)
{
    dn_attention_args a = { .queries = queries, .keys = keys };
    int d = channels / heads;
    return (k_floats(&a, d) + v_floats(&a, d) + q_floats(&a, d)) * heads * (int64_t)sizeof(float);
}

static head head_of(const dn_attention_args *a, int64_t item)
{
    int index = (int)(item % a->heads), d = a->channels / a->heads;
    head h = { .a = a, .row = item / a->heads, .first = index * d, .d = d };
    h.k = dn_block_at(&a->work, h.row, 0) + (k_floats(a, d) + v_floats(a, d) + q_floats(a, d)) * index;
    h.v = h.k + k_floats(a, d);
    h.q = h.v + v_floats(a, d);
    h.q_block = a->queries * LANES;
    if (in_place(d)) {
        h.q = dn_block_at(&a->q, h.row, h.first / LANES);
        h.q_block = a->q.plane / (ptrdiff_t)sizeof(float);
    }
    return h;
}

static head_of_rows part_of(const head *h, const dn_rows *x, int64_t n)
{
    return (head_of_rows){ x, h->row, h->first, h->d, n };
}

static void pack_heads(void *arg, int64_t first, int64_t last, int thread)
{
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        head h = head_of(arg, item / 2);
        head_of_rows q = part_of(&h, &h.a->q, h.a->queries), k = part_of(&h, &h.a->k, h.a->keys);
        head_of_rows v = part_of(&h, &h.a->v, h.a->keys);
        if (item % 2)
            pack_values(h.v, &v);
        else
            pack_keys(h.k, &k, h.a->scale);
        if (item % 2 && !in_place(h.d))
            pack_blocks(h.q, &q);
    }
}

/* n <= 16 channels of one position into the blocked output. */
static void put(const head *h, int64_t position, int c, int n, const float *x, float factor)
{
    if (in_place(h->d)) {
        for (int i = 0; i < n; i += LANES) {
            float *y = dn_block_at(&h->a->y, h->row, (h->first + c + i) / LANES) + position * LANES;
            _mm256_storeu_ps(y, _mm256_mul_ps(_mm256_load_ps(x + i), _mm256_set1_ps(factor)));
        }
        return;
    }
    head_of_rows y = part_of(h, &h->a->y, h->a->queries);
    for (int i = 0; i < n; i++)
        channel_at(&y, c + i)[position * LANES] = x[i] * factor;
}

static void put_finished(const head *h, int64_t from, int rows, int c, const float *sums, const float *factor)
{
    for (int i = 0; i < PANEL && c + i < h->d; i += LANES) {
        const sink s = sink_open(h->a->finish, &h->a->y, h->a->channels, h->row, h->first + c + i);
        for (int r = 0; r < rows; r++)
            sink_put(&s, from + r, _mm256_mul_ps(_mm256_load_ps(sums + r * PANEL + i), _mm256_set1_ps(factor[r])));
    }
}

static void weigh_values(const head *h, int64_t from, int rows, const float *weights, const float *factor)
{
    _Alignas(64) float sums[STRIP_ROWS * PANEL];
    int depth = (int)round_up(h->a->keys, LANES);
    for (int c = 0; c < h->d; c += PANEL) {
        dn_cpu_strip(rows, depth / LANES, weights, rows * LANES, h->v + (int64_t)c * depth, sums, false);
        if (h->a->finish)
            put_finished(h, from, rows, c, sums, factor);
        for (int i = 0; i < rows && !h->a->finish; i++)
            put(h, from + i, c, h->d - c < PANEL ? h->d - c : PANEL, sums + i * PANEL, factor[i]);
    }
}

/* Rows of a strip: as many as the stack holds scores of, all strips about as high, whole tiles of six. */
static int strip_rows(const dn_attention_args *a)
{
    int64_t most = SCORES_MAX / round_up(a->keys, PANEL);
    most = most < STRIP_ROWS ? most : STRIP_ROWS;
    int64_t strips = (a->queries + most - 1) / most, rows = round_up((a->queries + strips - 1) / strips, 6);
    return (int)(rows < most ? rows : most);
}

static void strips(void *arg, int64_t first, int64_t last, int thread)
{
    _Alignas(64) float scores[SCORES_MAX], weights[SCORES_MAX];
    const dn_attention_args *a = arg;
    int size = strip_rows(a);
    int64_t per_head = (a->queries + size - 1) / size;
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        head h = head_of(a, item / per_head);
        int64_t from = item % per_head * size;
        int rows = a->queries - from < size ? (int)(a->queries - from) : size;
        __m256 top[STRIP_ROWS];
        float factor[STRIP_ROWS];
        find_scores(rows, h.q + from * LANES, h.q_block, h.k, a->keys, (int)round_up(h.d, LANES), scores, top);
        find_weights(rows, a->keys, scores, top, weights, factor);
        weigh_values(&h, from, rows, weights, factor);
    }
}

/* Lanes beyond the last channel, which no head writes. */
static void clear_padding(const dn_attention_args *a)
{
    for (int64_t row = 0; row < a->n; row++)
        for (int c = a->channels; c % LANES; c++)
            for (int64_t i = 0; i < a->queries; i++)
                dn_block_at(&a->y, row, c / LANES)[i * LANES + c % LANES] = 0;
}

void dn_attention_blocked(dn_pool *pool, const dn_attention_args *a)
{
    int64_t heads = (int64_t)a->n * a->heads, size = strip_rows(a);
    dn_pool_run(pool, pack_heads, (void *)a, heads * 2, 1);
    dn_pool_run(pool, strips, (void *)a, heads * ((a->queries + size - 1) / size), 1);
    clear_padding(a);
}
