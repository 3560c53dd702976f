/* attention_avx2.c - see attention.h.
 *
 * First q, k and v of every head are packed: queries [L][d], keys as panels [M/16][d][16], values as panels
 * [d/16][M][16], so that head dimension and layout matter nowhere else. Then strips of query rows: scores by a 6x16
 * kernel, softmax in place, times the values by the same kernel, written where they belong. Each score is one chain of
 * fused multiply-adds over d, each output one over M. */
#include "attention.h"
#include "elementwise_lanes.h"
#include <math.h>

enum { TILE_ROWS = 6, TILE_COLS = 16, STRIP_ROWS = 48, SCORES_MAX = 65536 /* floats of a strip, on the stack */ };

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* The packed parts of one head of one row. */
typedef struct head {
    float *q, *k, *v;
    int64_t floats; /* of all three */
} head;

static head head_of(const dn_attention_args *a, int64_t row, int h)
{
    int64_t d = a->channels / a->heads;
    int64_t nq = round_up(a->queries * d, 16), nk = round_up(a->keys, TILE_COLS) * d;
    int64_t nv = a->keys * round_up(d, TILE_COLS), all = nq + nk + nv;
    float *q = a->work.base ? dn_block_at(&a->work, row, 0) + h * all : NULL;
    return (head){ .q = q, .k = q ? q + nq : NULL, .v = q ? q + nq + nk : NULL, .floats = all };
}

int64_t dn_attention_work(int64_t queries, int64_t keys, int channels, int heads)
{
    dn_attention_args a = { .queries = queries, .keys = keys, .channels = channels, .heads = heads };
    return head_of(&a, 0, 0).floats * heads * (int64_t)sizeof(float);
}

/* Where channel c of position 0 is; positions are DN_LANES floats apart. */
static float *channel_at(const dn_rows *x, int64_t row, int64_t c)
{
    return dn_block_at(x, row, c / DN_LANES) + c % DN_LANES;
}

static void pack_queries(const dn_attention_args *a, int64_t row, int h)
{
    int64_t d = a->channels / a->heads;
    float *dst = head_of(a, row, h).q;
    for (int64_t c = 0; c < d;) {
        const float *src = channel_at(&a->q, row, h * d + c);
        bool whole = (h * d + c) % DN_LANES == 0 && c + DN_LANES <= d;
        for (int64_t i = 0; i < a->queries; i++)
            if (whole)
                _mm256_storeu_ps(dst + i * d + c, _mm256_loadu_ps(src + i * DN_LANES));
            else
                dst[i * d + c] = src[i * DN_LANES];
        c += whole ? DN_LANES : 1;
    }
}

static void pack_keys(const dn_attention_args *a, int64_t row, int h)
{
    int64_t d = a->channels / a->heads;
    float *dst = head_of(a, row, h).k;
    for (int64_t m0 = 0; m0 < a->keys; m0 += TILE_COLS, dst += d * TILE_COLS) {
        int64_t n = a->keys - m0 < TILE_COLS ? a->keys - m0 : TILE_COLS;
        for (int64_t c = 0; c < d; c++) {
            const float *src = channel_at(&a->k, row, h * d + c) + m0 * DN_LANES;
            for (int64_t i = 0; i < TILE_COLS; i++)
                dst[c * TILE_COLS + i] = i < n ? src[i * DN_LANES] : 0;
        }
    }
}

static void pack_values(const dn_attention_args *a, int64_t row, int h)
{
    int64_t d = a->channels / a->heads;
    float *dst = head_of(a, row, h).v;
    for (int64_t c0 = 0; c0 < d; c0 += TILE_COLS, dst += a->keys * TILE_COLS)
        for (int64_t c = 0; c < TILE_COLS;) {
            int64_t ch = h * d + c0 + c;
            bool whole = ch % DN_LANES == 0 && c0 + c + DN_LANES <= d && c % DN_LANES == 0;
            const float *src = c0 + c < d ? channel_at(&a->v, row, ch) : NULL;
            for (int64_t m = 0; m < a->keys; m++)
                if (whole)
                    _mm256_storeu_ps(dst + m * TILE_COLS + c, _mm256_loadu_ps(src + m * DN_LANES));
                else
                    dst[m * TILE_COLS + c] = src ? src[m * DN_LANES] : 0;
            c += whole ? DN_LANES : 1;
        }
}

static void pack_heads(void *arg, int64_t first, int64_t last, int thread)
{
    static void (*const pack[3])(const dn_attention_args *, int64_t, int) = { pack_queries, pack_keys, pack_values };
    const dn_attention_args *a = arg;
    (void)thread;
    for (int64_t item = first; item < last; item++)
        pack[item % 3](a, item / 3 / a->heads, (int)(item / 3 % a->heads));
}

/* tile[i] = row i of a (steps floats, pitch apart) times the panel b [steps][16]. */
static inline __attribute__((always_inline)) void tile_product(__m256 tile[][2], int rows, const float *a,
                                                               int64_t pitch, const float *b, int64_t steps)
{
    for (int i = 0; i < rows; i++)
        tile[i][0] = tile[i][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < steps; k++, b += TILE_COLS) {
        __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
        for (int i = 0; i < rows; i++) {
            __m256 s = _mm256_broadcast_ss(a + i * pitch + k);
            tile[i][0] = _mm256_fmadd_ps(s, b0, tile[i][0]);
            tile[i][1] = _mm256_fmadd_ps(s, b1, tile[i][1]);
        }
    }
}

/* Any number of rows up to six; every case has the same chains. */
static void tile_any(__m256 tile[TILE_ROWS][2], int rows, const float *a, int64_t pitch, const float *b, int64_t steps)
{
    switch (rows) {
    case 1:
        tile_product(tile, 1, a, pitch, b, steps);
        break;
    case 2:
        tile_product(tile, 2, a, pitch, b, steps);
        break;
    case 3:
        tile_product(tile, 3, a, pitch, b, steps);
        break;
    case 4:
        tile_product(tile, 4, a, pitch, b, steps);
        break;
    case 5:
        tile_product(tile, 5, a, pitch, b, steps);
        break;
    default:
        tile_product(tile, TILE_ROWS, a, pitch, b, steps);
    }
}

/* One strip: query rows from..from+rows-1 of a head. */
typedef struct strip {
    const dn_attention_args *a;
    int64_t row, from;
    int head, rows;
    int64_t pitch; /* floats between rows of scores */
} strip;

static void find_scores(const strip *s, const head *h, float *scores)
{
    int64_t d = s->a->channels / s->a->heads;
    for (int64_t m = 0; m < s->a->keys; m += TILE_COLS)
        for (int i = 0; i < s->rows; i += TILE_ROWS) {
            __m256 tile[TILE_ROWS][2];
            int rows = s->rows - i < TILE_ROWS ? s->rows - i : TILE_ROWS;
            tile_any(tile, rows, h->q + (s->from + i) * d, d, h->k + m * d, d);
            for (int j = 0; j < rows; j++) {
                _mm256_store_ps(scores + (i + j) * s->pitch + m, tile[j][0]);
                _mm256_store_ps(scores + (i + j) * s->pitch + m + 8, tile[j][1]);
            }
        }
}

/* x = exp(scale * (x - max)), not yet divided by the sum, which is returned. */
static float exponentials(float *x, int64_t n, float scale)
{
    const __m256 low = _mm256_set1_ps(-INFINITY);
    __m256 top = low, sum = _mm256_setzero_ps(), f = _mm256_set1_ps(scale);
    for (int64_t i = 0; i < n; i += DN_LANES) {
        __m256 valid = _mm256_castsi256_ps(lanes_mask(n - i));
        __m256 v = _mm256_blendv_ps(low, _mm256_mul_ps(_mm256_load_ps(x + i), f), valid);
        _mm256_store_ps(x + i, v);
        top = _mm256_max_ps(top, v);
    }
    top = _mm256_set1_ps(lanes_max(top));
    for (int64_t i = 0; i < n; i += DN_LANES) {
        __m256 valid = _mm256_castsi256_ps(lanes_mask(n - i));
        __m256 e = _mm256_and_ps(dn_v_exp(_mm256_sub_ps(_mm256_load_ps(x + i), top)), valid);
        _mm256_store_ps(x + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    return lanes_sum(sum);
}

/* Write 16 channels of one position, of which `n` exist, into the blocked output. */
static void put(const strip *s, int64_t position, int64_t c, int64_t n, const __m256 v[2])
{
    if (c % DN_LANES == 0 && n % DN_LANES == 0) {
        for (int i = 0; i * DN_LANES < n; i++)
            _mm256_storeu_ps(dn_block_at(&s->a->y, s->row, c / DN_LANES + i) + position * DN_LANES, v[i]);
        return;
    }
    float lanes[TILE_COLS];
    _mm256_storeu_ps(lanes, v[0]);
    _mm256_storeu_ps(lanes + 8, v[1]);
    for (int64_t i = 0; i < n; i++)
        channel_at(&s->a->y, s->row, c + i)[position * DN_LANES] = lanes[i];
}

static void weigh_values(const strip *s, const head *h, const float *scores, const float *sums)
{
    int64_t d = s->a->channels / s->a->heads;
    for (int64_t c = 0; c < d; c += TILE_COLS)
        for (int i = 0; i < s->rows; i += TILE_ROWS) {
            __m256 tile[TILE_ROWS][2];
            int rows = s->rows - i < TILE_ROWS ? s->rows - i : TILE_ROWS;
            tile_any(tile, rows, scores + i * s->pitch, s->pitch, h->v + c * s->a->keys, s->a->keys);
            for (int j = 0; j < rows; j++) {
                __m256 f = _mm256_set1_ps(1 / sums[i + j]);
                __m256 out[2] = { _mm256_mul_ps(tile[j][0], f), _mm256_mul_ps(tile[j][1], f) };
                put(s, s->from + i + j, s->head * d + c, d - c < TILE_COLS ? d - c : TILE_COLS, out);
            }
        }
}

/* Floats between two rows of scores: not a power of two, which would thrash the L1 cache. */
static int64_t score_pitch(int64_t keys) { return round_up(keys, TILE_COLS) + TILE_COLS; }

static int strip_rows(int64_t keys)
{
    int64_t rows = SCORES_MAX / score_pitch(keys) / TILE_ROWS * TILE_ROWS;
    return rows < STRIP_ROWS ? (int)rows : STRIP_ROWS;
}

static void strips(void *arg, int64_t first, int64_t last, int thread)
{
    const dn_attention_args *a = arg;
    int size = strip_rows(a->keys);
    int64_t per_head = (a->queries + size - 1) / size;
    float scores[SCORES_MAX] __attribute__((aligned(64))), sums[STRIP_ROWS];
    (void)thread;
    for (int64_t item = first; item < last; item++) {
        strip s = { .a = a, .row = item / per_head / a->heads, .head = (int)(item / per_head % a->heads) };
        s.from = item % per_head * size;
        s.rows = a->queries - s.from < size ? (int)(a->queries - s.from) : size;
        s.pitch = score_pitch(a->keys);
        head h = head_of(a, s.row, s.head);
        find_scores(&s, &h, scores);
        for (int i = 0; i < s.rows; i++)
            sums[i] = exponentials(scores + i * s.pitch, a->keys, a->scale);
        weigh_values(&s, &h, scores, sums);
    }
}

/* Lanes beyond the last channel, which no head writes. */
static void clear_padding(const dn_attention_args *a)
{
    for (int64_t row = 0; row < a->n; row++)
        for (int64_t c = a->channels; c % DN_LANES; c++)
            for (int64_t i = 0; i < a->queries; i++)
                channel_at(&a->y, row, c)[i * DN_LANES] = 0;
}

void dn_attention_blocked(dn_pool *pool, const dn_attention_args *a)
{
    int64_t heads = (int64_t)a->n * a->heads, size = strip_rows(a->keys);
    dn_pool_run(pool, pack_heads, (void *)a, heads * 3, 1);
    dn_pool_run(pool, strips, (void *)a, heads * ((a->queries + size - 1) / size), 1);
    clear_padding(a);
}
