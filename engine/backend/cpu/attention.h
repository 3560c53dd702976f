/* attention.h - softmax(q k^T * scale) v, head by head, on blocked values.
 *
 * q [L,C], k [M,C], v [M,C] -> [L,C]; head h is channels h*d .. (h+1)*d-1, d = C/heads, any number. Scores exist only
 * for a strip of query rows at a time, in cache. */
#ifndef DN_CPU_ATTENTION_H
#define DN_CPU_ATTENTION_H

#include "copy.h"

enum { DN_ATTENTION_KEYS_MAX = 32768 };

typedef struct dn_attention_args {
    int n;
    int64_t queries, keys; /* L, M <= DN_ATTENTION_KEYS_MAX */
    int channels, heads;
    float scale;
    dn_rows q, k, v, y;
    dn_rows work; /* dn_attention_work bytes for each row, dense, 64-byte aligned */
    const dn_epilogue *finish; /* what happens to y on the way, heads of whole blocks; NULL: nothing */
} dn_attention_args;

int64_t dn_attention_work(int64_t queries, int64_t keys, int channels, int heads);
void dn_attention_blocked(dn_pool *pool, const dn_attention_args *a);

#endif
