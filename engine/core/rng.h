/* rng.h - everything random: Philox4x32-10 and the fixed arithmetic that turns its bits into numbers.
 *
 * Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Key: a 64-bit seed. Counter: {element / 4,
 * entry or optimizer step, purpose << 24 | op id, sample index within the optimizer step}. One draw gives four
 * numbers. u = ((bits >> 8) + 0.5) * 2^-24. Normals: Box-Muller on pairs (0,1) and (2,3) with the polynomials of
 * fmath.h, the same sequence of operations on every backend: the bits are part of the contract. */
#ifndef DN_CORE_RNG_H
#define DN_CORE_RNG_H

#include <stdint.h>

enum dn_purpose {
    DN_RNG_INIT = 1, /* the first latent */
    DN_RNG_STEP,     /* z */
    DN_RNG_STEP2,    /* z2 */
    DN_RNG_KNOWN,
    DN_RNG_CORRECTOR,
    DN_RNG_JUMP,
    DN_RNG_AUGMENT,
    DN_RNG_TIMESTEP,
    DN_RNG_NOISE,
    DN_RNG_DROPOUT,
    DN_RNG_LABEL_DROP,
    DN_RNG_SHUFFLE,
    DN_RNG_WEIGHTS,
    DN_RNG_TEST
};

typedef struct dn_rng_key {
    uint64_t seed;
    uint32_t step;    /* entry index, or optimizer step */
    uint32_t purpose; /* purpose << 24 | op id */
    uint32_t sample;
} dn_rng_key;

static inline void dn_philox(uint32_t out[4], const uint32_t counter[4], uint64_t seed)
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

static inline float dn_uniform(uint32_t bits) { return ((float)(bits >> 8) + 0.5f) * 0x1p-24f; }

/* Elements first .. first+n-1 of the stream; `first` a multiple of 4. */
void dn_rng_uniform(float *out, int64_t first, int64_t n, const dn_rng_key *key);
void dn_rng_normal(float *out, int64_t first, int64_t n, const dn_rng_key *key);

#endif
