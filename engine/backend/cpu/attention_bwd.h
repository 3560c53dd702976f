/* attention_bwd.h - the gradients of attention.h's softmax(q k^T * scale) v, head by head, on blocked values.
 *
 * The weights are computed again, strip by strip of query rows; a head of a row is one thread's, so sums over queries
 * have one order. */
#ifndef DN_CPU_ATTENTION_BWD_H
#define DN_CPU_ATTENTION_BWD_H

#include "copy.h"

enum { DN_ATTENTION_BWD_KEYS_MAX = 4096 };

typedef struct dn_attention_bwd_args {
    int n;
    int64_t queries, keys; /* L, M <= DN_ATTENTION_BWD_KEYS_MAX */
    int channels, heads;
    float scale;
    dn_rows q, k, v, dy;
    dn_rows dq, dk, dv; /* base NULL: not wanted */
    dn_rows work;       /* dn_attention_bwd_work bytes for each row, dense, 64-byte aligned */
} dn_attention_bwd_args;

int64_t dn_attention_bwd_work(int64_t queries, int64_t keys, int channels, int heads);
void dn_attention_bwd_blocked(dn_pool *pool, const dn_attention_bwd_args *a);
/* With vectors of 8 and of 16: the same bits. */
void dn_attention_bwd_blocked_avx2(dn_pool *pool, const dn_attention_bwd_args *a);
void dn_attention_bwd_blocked_avx512(dn_pool *pool, const dn_attention_bwd_args *a);

#endif
