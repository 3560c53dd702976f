/* rng_avx2.c - Philox4x32-10 on eight counters at a time, and normals from it: the bits of dn_rng_normal. */
#include "kernels.h"
#include "rng_lanes.h"

#include "fmath.h"
#include "fmath_avx2.h"

/* The 32 normals of the draws `draw` .. `draw` + 7. */
static inline void normal32(float *out, uint32_t draw, const dn_rng_key *key)
{
    __m256i c[4];
    draw8(c, _mm256_add_epi32(_mm256_set1_epi32((int)draw), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)), key);
    __m256 v[4];
    dn_v_box_muller(uniform8(c[0]), uniform8(c[1]), &v[0], &v[1]);
    dn_v_box_muller(uniform8(c[2]), uniform8(c[3]), &v[2], &v[3]);
    store_draws(out, v);
}

void dn_cpu_rng_normal(float *out, int64_t first, int64_t n, const dn_rng_key *key)
{
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        normal32(out + i, (uint32_t)((first + i) / 4), key);
    if (i < n) {
        float tail[32];
        normal32(tail, (uint32_t)((first + i) / 4), key);
        memcpy(out + i, tail, (size_t)(n - i) * sizeof *out);
    }
}
