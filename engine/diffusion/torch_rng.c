/* torch_rng.c - torch's CPU generator: mt19937, and randn's two algorithms (16 and more numbers, fewer than 16). */
#include "update.h"
#include <math.h>

enum { N = 624, M = 397, BLOCK = 16 };

void dn_torch_seed(dn_torch_rng *r, uint64_t seed)
{
    *r = (dn_torch_rng){ .index = N };
    r->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ r->state[i - 1] >> 30) + i;
}

static void refill(dn_torch_rng *r)
{
    uint32_t *s = r->state;
    for (int i = 0; i < N; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % N] & 0x7fffffffu);
        s[i] = s[(i + M) % N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->index = 0;
}

static uint32_t next32(dn_torch_rng *r)
{
    if (r->index == N)
        refill(r);
    uint32_t y = r->state[r->index++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static float uniform24(dn_torch_rng *r) { return (float)(next32(r) & 0xffffff) * 0x1p-24f; }

static double uniform53(dn_torch_rng *r)
{
    uint64_t high = next32(r), low = next32(r);
    return (double)((high << 32 | low) & ((1ull << 53) - 1)) * 0x1p-53;
}

/* Box-Muller in place, element j with element j + 8. */
static void transform(float d[BLOCK])
{
    for (int j = 0; j < BLOCK / 2; j++) {
        float u1 = 1 - d[j], u2 = d[j + BLOCK / 2];
        float radius = sqrtf(-2 * (float)log(u1)), angle = (float)(2 * M_PI) * u2;
        d[j] = (float)(radius * cos(angle));
        d[j + BLOCK / 2] = (float)(radius * sin(angle));
    }
}

static void randn_large(dn_torch_rng *r, float *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = uniform24(r);
    for (int64_t i = 0; i + BLOCK <= n; i += BLOCK)
        transform(dst + i);
    if (n % BLOCK == 0)
        return;
    for (int64_t i = n - BLOCK; i < n; i++)
        dst[i] = uniform24(r);
    transform(dst + n - BLOCK);
}

static float randn_one(dn_torch_rng *r)
{
    if (r->has_cached) {
        r->has_cached = false;
        return (float)r->cached;
    }
    double u1 = uniform53(r), u2 = uniform53(r), radius = sqrt(-2 * log1p(-u2)), angle = 2 * M_PI * u1;
    r->cached = radius * sin(angle);
    r->has_cached = true;
    return (float)(radius * cos(angle));
}

void dn_torch_randn(dn_torch_rng *r, float *dst, int64_t n)
{
    if (n >= BLOCK) {
        randn_large(r, dst, n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        dst[i] = randn_one(r);
}
