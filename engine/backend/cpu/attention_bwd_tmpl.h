/* attention_bwd_tmpl.h - see attention_bwd.h. Included once per instruction set, with NAME(x) the exported name
 * and ROWS how many rows are handled side by side: the same bits.
 *
 * With p the weights, dp = dy v^T and ds = scale * p * (dp - sum of p * dp):
 *     dq = ds k,  dk = ds^T q,  dv = p^T dy.
 * Per strip of query rows: scores and dp by panels of keys [M/16][rows][16], then p and ds as blocks [M/8][rows][8]: as
 * they are, an operand of dq's product and of the outer products that dk and dv are sums of, strip by strip in order.
 */
#include "attention_bwd.h"
#include "attention_parts.h"
#include "gradients.h"
#include "choose.h"
#include "lanes16.h"

/* One head of one row: its operands packed, and its sums. */
typedef struct head {
    const dn_attention_bwd_args *a;
    int64_t row;
    int first, d;
    float *k_keys, *v_keys;                 /* [M/16][d][16], k times the scale */
    float *k_values, *q_values, *dy_values; /* [d/16][M][16], [d/16][L][16] twice */
    float *dk, *dv;                         /* [M][d], both rounded up to 8 and 16 */
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
                  { &h->dk, round_up(M, LANES) * wide },
                  { &h->dv, round_up(M, LANES) * wide },
                  { &h->q_packed, blocks },
                  { &h->dy_packed, blocks } };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].part = base ? base + at : NULL;
        at += round_up(parts[i].floats, PANEL);
    }
    return at;
}

static head_of_rows part_of(const head *h, const dn_rows *x, int64_t n)
{
    return (head_of_rows){ x, h->row, h->first, h->d, n };
}

/* `slot` is the room in the work memory, of which there are as many as heads of rows. */
static head head_of(const dn_attention_bwd_args *a, int64_t item, int64_t slot)
{
    int index = (int)(item % a->heads), d = a->channels / a->heads;
    head h = { .a = a, .row = item / a->heads, .first = index * d, .d = d };
    lay_out(&h, dn_block_at(&a->work, slot / a->heads, 0) + lay_out(&h, NULL) * (slot % a->heads));
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

/* A strip: `rows` queries from `from` on. */
typedef struct strip {
    int64_t from;
    int rows;
    float *scores, *dp; /* [M/16][rows][16] */
    float *p, *ds;      /* [M/8][rows][8] */
} strip;

/* Some rows of a strip, side by side, from one panel of keys to the next. */
typedef struct some_rows {
    v16 top[ROWS], sum[ROWS], dot[ROWS], mean[ROWS], left[ROWS], by[ROWS];
} some_rows;

/* x, and `other` in the lanes past n. */
always_inline v16 inside(int n, v16 x, float other) { return n < PANEL ? v16_first(n, x, v16_set(other)) : x; }

always_inline void find_top(const int rows, some_rows *s, const float *scores, int n)
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        s->top[r] = v16_max(s->top[r], inside(n, v16_load(scores + r * PANEL), -INFINITY));
}

/* exp(score - maximum) in the score's place, their sum, and their product with dp. */
always_inline void find_exponentials(const int rows, some_rows *s, float *scores, const float *dp, int n)
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const v16 e = inside(n, v16_exp(v16_sub(v16_load(scores + r * PANEL), s->top[r])), 0);
        v16_store(scores + r * PANEL, e);
        s->sum[r] = v16_add(s->sum[r], e);
        s->dot[r] = v16_fma(e, v16_load(dp + r * PANEL), s->dot[r]);
    }
}

always_inline void find_left(const int rows, some_rows *s, const float *e, const float *dp)
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        s->left[r] = v16_fma(v16_load(e + r * PANEL), v16_sub(v16_load(dp + r * PANEL), s->mean[r]), s->left[r]);
}

/* Sixteen numbers of a row, as two blocks that are `block` floats apart. */
always_inline void store_blocks(float *to, ptrdiff_t block, v16 x)
{
    _mm256_storeu_ps(to, v16_low(x));
    _mm256_storeu_ps(to + block, v16_high(x));
}

always_inline void write_weights(const int rows, const some_rows *s, const float *e, const float *dp, v16 scale,
                                 float *p, float *ds, ptrdiff_t block)
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const v16 weight = v16_mul(v16_load(e + r * PANEL), s->by[r]);
        store_blocks(p + r * LANES, block, weight);
        store_blocks(ds + r * LANES, block,
                     v16_mul(v16_mul(scale, weight), v16_sub(v16_load(dp + r * PANEL), s->mean[r])));
    }
}

/* p and ds of `rows` rows from i on. The mean of dp, weighed by p, is what makes a row of ds sum to nothing, which the
 * gradient by a bias of k is all made of: so it is found again from what the first one leaves. */
always_inline void settle(const int rows, const strip *t, int64_t keys, float scale, int i)
{
    const ptrdiff_t panel = (ptrdiff_t)t->rows * PANEL, block = (ptrdiff_t)t->rows * LANES;
    const int panels = (int)((keys + PANEL - 1) / PANEL), last = (int)(keys - (int64_t)(panels - 1) * PANEL);
    float *scores = t->scores + i * PANEL, *dp = t->dp + i * PANEL, *p = t->p + i * LANES, *ds = t->ds + i * LANES;
    some_rows s;
    for (int r = 0; r < rows; r++) {
        s.top[r] = v16_set(-INFINITY);
        s.sum[r] = s.dot[r] = s.left[r] = v16_set(0);
    }
    for (int m = 0; m < panels - 1; m++)
        find_top(rows, &s, scores + m * panel, PANEL);
    find_top(rows, &s, scores + (panels - 1) * panel, last);
    for (int r = 0; r < rows; r++)
        s.top[r] = v16_set(v16_highest(s.top[r]));
    for (int m = 0; m < panels - 1; m++)
        find_exponentials(rows, &s, scores + m * panel, dp + m * panel, PANEL);
    find_exponentials(rows, &s, scores + (panels - 1) * panel, dp + (panels - 1) * panel, last);
    float mean[ROWS], sum[ROWS];
    for (int r = 0; r < rows; r++) {
        sum[r] = v16_sum(s.sum[r]);
        mean[r] = v16_sum(s.dot[r]) / sum[r];
        s.mean[r] = v16_set(mean[r]);
        s.by[r] = v16_set(1 / sum[r]);
    }
    for (int m = 0; m < panels; m++)
        find_left(rows, &s, scores + m * panel, dp + m * panel);
    for (int r = 0; r < rows; r++)
        s.mean[r] = v16_set(mean[r] + v16_sum(s.left[r]) / sum[r]);
    for (int m = 0; m < panels; m++)
        write_weights(rows, &s, scores + m * panel, dp + m * panel, v16_set(scale), p + 2 * m * block,
                      ds + 2 * m * block, block);
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
        NAME(dn_cpu_strip)
        (s->rows, (int)(depth / LANES), s->ds, s->rows * LANES, h->k_values + c * depth, sums, false);
        for (int i = 0; i < s->rows; i++)
            put(&dq, s->from + i, c, sums + i * PANEL);
    }
}

/* sums [M][d] += the transpose of x [M/8][rows][8] by the strip's rows of the panels `values`. */
static void gather(const head *h, const strip *s, float *sums, const float *x, const float *values)
{
    const int64_t wide = round_up(h->d, PANEL), depth = round_up(h->a->queries, LANES);
    for (int64_t m = 0; m < h->a->keys; m += LANES)
        for (int c = 0; c < wide; c += 2 * PANEL)
            NAME(dn_cpu_outer)
            (s->rows, x + m * s->rows, values + c * depth + s->from * PANEL, depth * PANEL, c + PANEL < wide ? 2 : 1,
             sums + m * wide + c, wide, s->from > 0);
}

static void do_strip(const head *h, const strip *s)
{
    const dn_attention_bwd_args *a = h->a;
    const int depth = (int)round_up(h->d, LANES);
    for (int64_t m = 0; m < a->keys; m += PANEL) {
        NAME(dn_cpu_strip)
        (s->rows, depth / LANES, h->q + s->from * LANES, h->q_block, h->k_keys + m * depth, s->scores + m * s->rows,
         false);
        NAME(dn_cpu_strip)
        (s->rows, depth / LANES, h->dy + s->from * LANES, h->dy_block, h->v_keys + m * depth, s->dp + m * s->rows,
         false);
    }
    int i = 0;
    for (; i + ROWS <= s->rows; i += ROWS)
        settle(ROWS, s, a->keys, a->scale, i);
    for (; i < s->rows; i++)
        settle(1, s, a->keys, a->scale, i);
    if (a->dq.base)
        write_dq(h, s);
    if (a->dv.base)
        gather(h, s, h->dv, s->p, h->dy_values);
    if (a->dk.base)
        gather(h, s, h->dk, s->ds, h->q_values);
}

/* As many as the stack holds scores of, all strips about as high. */
static int strip_rows(const dn_attention_bwd_args *a)
{
    const int64_t most = min64(SCORES_MAX / round_up(a->keys, PANEL), STRIP_ROWS);
    const int64_t strips = (a->queries + most - 1) / most;
    return (int)min64(round_up((a->queries + strips - 1) / strips, TILE_ROWS), most);
}

static void write_sums(const head *h, const dn_rows *y, const float *sums)
{
    const head_of_rows part = part_of(h, y, h->a->keys);
    for (int c = 0; y->base && c < h->d; c += PANEL)
        for (int64_t m = 0; m < h->a->keys; m++)
            put(&part, m, c, sums + m * round_up(h->d, PANEL) + c);
}

typedef struct job {
    const dn_attention_bwd_args *a;
    bool by_thread; /* each thread has a room of its own, which stays in its cache; else each head of a row */
} job;

static void do_heads(void *arg, int64_t first, int64_t last, int thread)
{
    _Alignas(64) float scores[SCORES_MAX], dp[SCORES_MAX], p[SCORES_MAX], ds[SCORES_MAX];
    const job *j = arg;
    const dn_attention_bwd_args *a = j->a;
    const int size = strip_rows(a);
    for (int64_t item = first; item < last; item++) {
        head h = head_of(a, item, j->by_thread ? thread : item);
        pack(&h);
        for (int64_t from = 0; from < a->queries; from += size)
            do_strip(&h, &(strip){ from, (int)min64(size, a->queries - from), scores, dp, p, ds });
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

void NAME(dn_attention_bwd_blocked)(dn_pool *pool, const dn_attention_bwd_args *a)
{
    const int64_t heads = (int64_t)a->n * a->heads;
    dn_pool_run(pool, do_heads, &(job){ a, dn_pool_threads(pool) <= heads }, heads, 1);
    clear_padding(a, &a->dq, a->queries);
    clear_padding(a, &a->dk, a->keys);
    clear_padding(a, &a->dv, a->keys);
}
