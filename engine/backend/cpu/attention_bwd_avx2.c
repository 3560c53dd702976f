/* attention_bwd_avx2.c - see attention_bwd.h.
 *
 * With p the weights, dp = dy v^T and ds = scale * p * (dp - sum of p * dp):
 *     dq = ds k,  dk = ds^T q,  dv = p^T dy.
 * Per strip of query rows: scores and dp by panels of keys, p and ds as blocks [M/8][rows][8], dq from ds; then both
 * turned into blocks [rows/8][M][8], and dk and dv continued: chains over all queries, in order. */
#include "attention_bwd.h"
#include "attention_parts.h"
#include <string.h>

/* One head of one row: its operands packed, and its sums. */
typedef struct head {
    const dn_attention_bwd_args *a;
    int64_t row;
    int first, d;
    float *k_keys, *v_keys;                 /* [M/16][d][16], k times the scale */
    float *k_values, *q_values, *dy_values; /* [d/16][M][16], [d/16][L][16] twice */
    float *dk, *dv;                         /* [d/16][M][16] */
    const float *q, *dy;                    /* blocks [d/8][L][8], packed or in place */
    ptrdiff_t q_block, dy_block;
    float *q_packed, *dy_packed;
} head;

/* Where the parts of a head lie; returns its floats. */
static int64_t lay_out(head *h, float *base)
{
    int64_t L = h->a->queries, M = h->a->keys, wide = round_up(h->d, PANEL), deep = round_up(h->d, LANES), at = 0;
    int64_t blocks = in_place(h->d) ? 0 : L * deep;
    struct {
        float **part;
        int64_t floats;
    } parts[] = { { &h->k_keys, round_up(M, PANEL) * deep },
                  { &h->v_keys, round_up(M, PANEL) * deep },
                  { &h->k_values, round_up(M, LANES) * wide },
                  { &h->q_values, round_up(L, LANES) * wide },
                  { &h->dy_values, round_up(L, LANES) * wide },
                  { &h->dk, M * wide },
                  { &h->dv, M * wide },
                  { &h->q_packed, blocks },
                  { &h->dy_packed, blocks } };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].part = base ? base + at : NULL;
        at += round_up(parts[i].floats, PANEL);
    }
    return at;
}

int64_t dn_attention_bwd_work(int64_t queries, int64_t keys, int channels, int heads)
{
    dn_attention_bwd_args a = { .queries = queries, .keys = keys };
    head h = { .a = &a, .d = channels / heads };
    return lay_out(&h, NULL) * heads * (int64_t)sizeof(float);
}

static head_of_rows part_of(const head *h, const dn_rows *x, int64_t n)
{
    return (head_of_rows){ x, h->row, h->first, h->d, n };
}

static head head_of(const dn_attention_bwd_args *a, int64_t item)
{
    int index = (int)(item % a->heads), d = a->channels / a->heads;
    head h = { .a = a, .row = item / a->heads, .first = index * d, .d = d };
    lay_out(&h, dn_block_at(&a->work, h.row, 0) + lay_out(&h, NULL) * index);
    h.q = h.q_packed;
    h.dy = h.dy_packed;
    h.q_block = h.dy_block = a->queries * LANES;
    if (in_place(d)) {
        h.q = dn_block_at(&a->q, h.row, h.first / LANES);
        h.dy = dn_block_at(&a->dy, h.row, h.first / LANES);
        h.q_block = a->q.plane / (ptrdiff_t)sizeof(float);
        h.dy_block = a->dy.plane / (ptrdiff_t)sizeof(float);
    }
    return h;
}

static void pack(const head *h)
{
    const dn_attention_bwd_args *a = h->a;
    head_of_rows q = part_of(h, &a->q, a->queries), dy = part_of(h, &a->dy, a->queries);
    head_of_rows k = part_of(h, &a->k, a->keys), v = part_of(h, &a->v, a->keys);
    pack_keys(h->k_keys, &k, a->scale);
    pack_keys(h->v_keys, &v, 1);
    pack_values(h->k_values, &k);
    pack_values(h->q_values, &q);
    pack_values(h->dy_values, &dy);
    if (!in_place(h->d)) {
        pack_blocks(h->q_packed, &q);
        pack_blocks(h->dy_packed, &dy);
    }
}

/* A strip: `rows` queries from `from` on. Blocks past the last row are zero up to `high`, a multiple of 8. */
typedef struct strip {
    int64_t from;
    int rows, high;
    float *scores, *dp; /* [M/16][rows][16]; afterwards p and ds turned, [high/8][M][8] */
    float *p, *ds;      /* [M/8][rows][8] */
} strip;

/* Eight numbers of row i of dp, at key m. */
static inline const float *dp_at(const strip *s, int i, int64_t m)
{
    return s->dp + (m / PANEL * s->rows + i) * PANEL + m % PANEL;
}

/* p /= its sum; returns in each lane the mean of dp, weighed by p, of row i. That mean is what makes a row of ds sum to
 * nothing, which the gradient by a bias of k is all made of: so it is found again from what the first one leaves. */
static __m256 settle_row(const strip *s, int64_t keys, int i, float factor)
{
    __m256 by = _mm256_set1_ps(factor), sum = _mm256_setzero_ps(), weights = sum, left = sum;
    for (int64_t m = 0; m < keys; m += LANES) {
        float *p = s->p + (m * s->rows + i * LANES);
        __m256 weight = _mm256_mul_ps(by, _mm256_loadu_ps(p));
        _mm256_storeu_ps(p, weight);
        weights = _mm256_add_ps(weights, weight);
        sum = _mm256_fmadd_ps(weight, _mm256_loadu_ps(dp_at(s, i, m)), sum);
    }
    float whole = lanes_sum(weights), mean = lanes_sum(sum) / whole;
    for (int64_t m = 0; m < keys; m += LANES) {
        __m256 d = _mm256_sub_ps(_mm256_loadu_ps(dp_at(s, i, m)), _mm256_set1_ps(mean));
        left = _mm256_fmadd_ps(_mm256_loadu_ps(s->p + (m * s->rows + i * LANES)), d, left);
    }
    return _mm256_set1_ps(mean + lanes_sum(left) / whole);
}

static void score_gradients(const strip *s, int64_t keys, float scale, const float *factor)
{
    __m256 by = _mm256_set1_ps(scale);
    for (int i = 0; i < s->rows; i++) {
        __m256 mean = settle_row(s, keys, i, factor[i]);
        for (int64_t m = 0; m < keys; m += LANES) {
            int64_t at = m * s->rows + i * LANES;
            __m256 d = _mm256_sub_ps(_mm256_loadu_ps(dp_at(s, i, m)), mean);
            _mm256_storeu_ps(s->ds + at, _mm256_mul_ps(_mm256_mul_ps(by, _mm256_loadu_ps(s->p + at)), d));
        }
    }
}

/* x [M/8][rows][8] -> y [high/8][M][8], zero past the rows. */
static void turn(float *y, const float *x, const strip *s, int64_t keys)
{
    for (int from = 0; from < s->high; from += LANES)
        for (int64_t m = 0; m < keys; m += LANES) {
            __m256 r[LANES];
            for (int i = 0; i < LANES; i++)
                r[i] = from + i < s->rows ? _mm256_loadu_ps(x + m * s->rows + (from + i) * LANES) : _mm256_setzero_ps();
            lanes_transpose(r);
            for (int i = 0; i < LANES && m + i < keys; i++)
                _mm256_storeu_ps(y + (from * keys + (m + i) * LANES), r[i]);
        }
}

/* n <= 16 channels from c on of one position into a blocked output. */
static void put(const head_of_rows *y, int64_t position, int c, const float *x)
{
    int n = y->d - c < PANEL ? y->d - c : PANEL;
    for (int i = 0; i < n; i += in_place(y->d) ? LANES : 1) {
        float *to = channel_at(y, c + i) + position * LANES;
        if (in_place(y->d))
            _mm256_storeu_ps(to, _mm256_loadu_ps(x + i));
        else
            *to = x[i];
    }
}

static void write_dq(const head *h, const strip *s)
{
    _Alignas(64) float sums[STRIP_ROWS * PANEL];
    int64_t depth = round_up(h->a->keys, LANES);
    head_of_rows dq = part_of(h, &h->a->dq, h->a->queries);
    for (int c = 0; c < h->d; c += PANEL) {
        dn_cpu_strip(s->rows, (int)(depth / LANES), s->ds, s->rows * LANES, h->k_values + c * depth, sums, false);
        for (int i = 0; i < s->rows; i++)
            put(&dq, s->from + i, c, sums + i * PANEL);
    }
}

/* sums [d/16][M][16] += turned x of the strip by its rows of the panels `values`. */
static void gather(const head *h, const strip *s, float *sums, const float *turned, const float *values)
{
    int64_t keys = h->a->keys, depth = round_up(h->a->queries, LANES);
    for (int c = 0; c < h->d; c += PANEL)
        dn_cpu_strip((int)keys, s->high / LANES, turned, keys * LANES, values + c * depth + s->from * PANEL,
                     sums + c * keys, s->from > 0);
}

static void do_strip(const head *h, const strip *s)
{
    const dn_attention_bwd_args *a = h->a;
    int depth = (int)round_up(h->d, LANES);
    __m256 top[STRIP_ROWS];
    float factor[STRIP_ROWS];
    find_scores(s->rows, h->q + s->from * LANES, h->q_block, h->k_keys, a->keys, depth, s->scores, top);
    find_weights(s->rows, a->keys, s->scores, top, s->p, factor);
    for (int64_t m = 0; m < a->keys; m += PANEL)
        dn_cpu_strip(s->rows, depth / LANES, h->dy + s->from * LANES, h->dy_block, h->v_keys + m * depth,
                     s->dp + m * s->rows, false);
    score_gradients(s, a->keys, a->scale, factor);
    if (a->dq.base)
        write_dq(h, s);
    if (a->dv.base) {
        turn(s->scores, s->p, s, a->keys);
        gather(h, s, h->dv, s->scores, h->dy_values);
    }
    if (a->dk.base) {
        turn(s->dp, s->ds, s, a->keys);
        gather(h, s, h->dk, s->dp, h->q_values);
    }
}

/* Whole blocks of eight rows, as many as the stack holds scores of. */
static int strip_rows(const dn_attention_bwd_args *a)
{
    int64_t most = SCORES_MAX / round_up(a->keys, PANEL) / LANES * LANES;
    return (int)min64(min64(most, STRIP_ROWS), round_up(a->queries, LANES));
}

static void write_sums(const head *h, const dn_rows *y, const float *sums)
{
    head_of_rows part = part_of(h, y, h->a->keys);
    for (int c = 0; y->base && c < h->d; c += PANEL)
        for (int64_t m = 0; m < h->a->keys; m++)
            put(&part, m, c, sums + c * h->a->keys + m * PANEL);
}

static void do_heads(void *arg, int64_t first, int64_t last, int thread)
{
    _Alignas(64) float scores[SCORES_MAX], dp[SCORES_MAX], p[SCORES_MAX], ds[SCORES_MAX];
    const dn_attention_bwd_args *a = arg;
    int size = strip_rows(a);
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        head h = head_of(a, item);
        pack(&h);
        for (int64_t from = 0; from < a->queries; from += size) {
            int rows = (int)min64(size, a->queries - from);
            do_strip(&h, &(strip){ from, rows, (int)round_up(rows, LANES), scores, dp, p, ds });
        }
        write_sums(&h, &a->dk, h.dk);
        write_sums(&h, &a->dv, h.dv);
    }
}

/* Lanes beyond the last channel, which no head writes. */
static void clear_padding(const dn_attention_bwd_args *a, const dn_rows *y, int64_t positions)
{
    for (int64_t row = 0; y->base && row < a->n; row++)
        for (int c = a->channels; c % LANES; c++)
            for (int64_t i = 0; i < positions; i++)
                dn_block_at(y, row, c / LANES)[i * LANES + c % LANES] = 0;
}

void dn_attention_bwd_blocked(dn_pool *pool, const dn_attention_bwd_args *a)
{
    dn_pool_run(pool, do_heads, (void *)a, (int64_t)a->n * a->heads, 1);
    clear_padding(a, &a->dq, a->queries);
    clear_padding(a, &a->dk, a->keys);
    clear_padding(a, &a->dv, a->keys);
}
