/* attention_avx2.c - see attention.h.
 *
 * Keys and values of every head are packed as panels for dn_cpu_strip: keys (times the scale) [M/16][d][16], values
 * [d/16][M][16], zero where a panel ends. Queries are read where they are if heads begin at whole blocks, else packed
 * as blocks [d/8][L][8]. Then, strip by strip of query rows: scores panel by panel with the running maximum of each
 * row, exponentials as blocks [M/8][rows][8], times the values, divided by their sum. Each score is one chain over d,
 * each output one over M. */
#include "attention.h"
#include "elementwise_fours.h"
#include "elementwise_lanes.h"
#include "tile_avx2.h"

enum { STRIP_ROWS = 48, SCORES_MAX = 32768 /* floats of a strip, on the stack, twice */ };

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

static bool in_place(int d) { return d % LANES == 0; }

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

/* Channel c of the head at position 0; positions are LANES floats apart. */
static float *channel_at(const head *h, const dn_rows *x, int c)
{
    return dn_block_at(x, h->row, (h->first + c) / LANES) + (h->first + c) % LANES;
}

/* Queries as blocks [d/8][L][8], zero past d. */
static void pack_queries(const head *h)
{
    for (int c = 0; c < round_up(h->d, LANES); c++) {
        const float *src = c < h->d ? channel_at(h, &h->a->q, c) : NULL;
        float *dst = h->q + c / LANES * h->q_block + c % LANES;
        for (int64_t i = 0; i < h->a->queries; i++)
            dst[i * LANES] = src ? src[i * LANES] : 0;
    }
}

/* Eight whole channels of up to eight keys: dst[c*16 + m], zero past `keys`. */
static void pack_key_block(float *dst, const float *src, int keys, float scale)
{
    __m256 r[LANES];
    for (int m = 0; m < LANES; m++)
        r[m] = m < keys ? _mm256_loadu_ps(src + m * LANES) : _mm256_setzero_ps();
    lanes_transpose(r);
    for (int c = 0; c < LANES; c++)
        _mm256_store_ps(dst + c * PANEL, _mm256_mul_ps(r[c], _mm256_set1_ps(scale)));
}

/* Keys as panels [M/16][d][16], zero past d and past M. */
static void pack_keys(const head *h)
{
    int64_t depth = round_up(h->d, LANES), keys = h->a->keys;
    for (int c = 0; c < depth;) {
        bool whole = in_place(h->d);
        const float *src = c < h->d ? channel_at(h, &h->a->k, c) : NULL;
        for (int64_t m = 0; m < round_up(keys, PANEL); m += LANES) {
            float *dst = h->k + (m / PANEL * depth + c) * PANEL + m % PANEL;
            int n = m < keys ? (int)min64(LANES, keys - m) : 0;
            if (whole)
                pack_key_block(dst, src + m * LANES, n, h->a->scale);
            else
                for (int i = 0; i < LANES; i++)
                    dst[i] = src && i < n ? src[(m + i) * LANES] * h->a->scale : 0;
        }
        c += whole ? LANES : 1;
    }
}

/* Values as panels [d/16][M][16], zero past d and past M. */
static void pack_values(const head *h)
{
    int64_t depth = round_up(h->a->keys, LANES);
    for (int c = 0; c < round_up(h->d, PANEL);) {
        bool whole = (h->first + c) % LANES == 0 && c % LANES == 0 && c + LANES <= h->d;
        const float *src = c < h->d ? channel_at(h, &h->a->v, c) : NULL;
        float *dst = h->v + c / PANEL * depth * PANEL + c % PANEL;
        for (int64_t m = 0; m < depth; m++)
            if (whole)
                _mm256_store_ps(dst + m * PANEL,
                                m < h->a->keys ? _mm256_loadu_ps(src + m * LANES) : _mm256_setzero_ps());
            else
                dst[m * PANEL] = src && m < h->a->keys ? src[m * LANES] : 0;
        c += whole ? LANES : 1;
    }
}

static void pack_heads(void *arg, int64_t first, int64_t last, int thread)
{
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        head h = head_of(arg, item / 2);
        if (item % 2)
            pack_values(&h);
        else
            pack_keys(&h);
        if (item % 2 && !in_place(h.d))
            pack_queries(&h);
    }
}

/* scores [M/16][rows][16], top[i] the lanewise maximum of row i. */
static void find_scores(const head *h, int64_t from, int rows, float *scores, __m256 *top)
{
    int depth = (int)round_up(h->d, LANES);
    for (int i = 0; i < rows; i++)
        top[i] = _mm256_set1_ps(-INFINITY);
    for (int64_t m = 0; m < h->a->keys; m += PANEL, scores += rows * PANEL) {
        __m256 left = _mm256_castsi256_ps(lanes_mask(h->a->keys - m));
        __m256 right = _mm256_castsi256_ps(lanes_mask(h->a->keys - m - LANES));
        dn_cpu_strip(rows, depth / LANES, h->q + from * LANES, h->q_block, h->k + m * depth, scores, false);
        for (int i = 0; i < rows; i++) {
            __m256 a = _mm256_blendv_ps(top[i], _mm256_load_ps(scores + i * PANEL), left);
            __m256 b = _mm256_blendv_ps(top[i], _mm256_load_ps(scores + i * PANEL + LANES), right);
            top[i] = _mm256_max_ps(_mm256_max_ps(top[i], a), b);
        }
    }
}

/* Eight scores of a row less its maximum. */
static inline __m256 below(const float *scores, float highest)
{
    return _mm256_sub_ps(_mm256_load_ps(scores), _mm256_set1_ps(highest));
}

static inline void weigh(float *weight, __m256 *sum, __m256 exponential, __m256 inside)
{
    __m256 e = _mm256_and_ps(exponential, inside);
    _mm256_store_ps(weight, e);
    *sum = _mm256_add_ps(*sum, e);
}

/* The weights of eight keys, for all rows. */
static void weigh_keys(int rows, const float *scores, const float *highest, __m256 inside, float *weight, __m256 *sum)
{
    int i = 0;
    for (; i + 4 <= rows; i += 4, scores += 4 * PANEL, weight += 4 * LANES) {
        fours e = { below(scores, highest[i]), below(scores + PANEL, highest[i + 1]),
                    below(scores + 2 * PANEL, highest[i + 2]), below(scores + 3 * PANEL, highest[i + 3]) };
        e = dn_w_exp(e);
        weigh(weight, sum + i, e.a, inside);
        weigh(weight + LANES, sum + i + 1, e.b, inside);
        weigh(weight + 2 * LANES, sum + i + 2, e.c, inside);
        weigh(weight + 3 * LANES, sum + i + 3, e.d, inside);
    }
    for (; i < rows; i++, scores += PANEL, weight += LANES)
        weigh(weight, sum + i, dn_v_exp(below(scores, highest[i])), inside);
}

/* weights [M/8][rows][8] = exp(score - maximum), zero past M; factor[i] = 1 / their sum. */
static void find_weights(const head *h, int rows, const float *scores, const __m256 *top, float *weights, float *factor)
{
    float highest[STRIP_ROWS];
    __m256 sum[STRIP_ROWS];
    for (int i = 0; i < rows; i++) {
        highest[i] = lanes_max(top[i]);
        sum[i] = _mm256_setzero_ps();
    }
    for (int64_t m = 0; m < h->a->keys; m += LANES, weights += rows * LANES) {
        __m256 inside = _mm256_castsi256_ps(lanes_mask(h->a->keys - m));
        weigh_keys(rows, scores + m / PANEL * rows * PANEL + m % PANEL, highest, inside, weights, sum);
    }
    for (int i = 0; i < rows; i++)
        factor[i] = 1 / lanes_sum(sum[i]);
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
    for (int i = 0; i < n; i++)
        channel_at(h, &h->a->y, c + i)[position * LANES] = x[i] * factor;
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
        find_scores(&h, from, rows, scores, top);
        find_weights(&h, rows, scores, top, weights, factor);
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
