#include "rng.h"
#include "fmath.h"

static void draw(float *u, int64_t block, const dn_rng_key *key)
{
    uint32_t counter[4] = { (uint32_t)block, key->step, key->purpose, key->sample }, bits[4];
    dn_philox(bits, counter, key->seed);
    for (int i = 0; i < 4; i++)
        u[i] = dn_uniform(bits[i]);
}

void dn_rng_uniform(float *out, int64_t first, int64_t n, const dn_rng_key *key)
{
    for (int64_t i = 0; i < n; i += 4) {
        float u[4];
        draw(u, (first + i) / 4, key);
        for (int j = 0; j < 4 && i + j < n; j++)
            out[i + j] = u[j];
    }
}

void dn_rng_normal(float *out, int64_t first, int64_t n, const dn_rng_key *key)
{
    for (int64_t i = 0; i < n; i += 4) {
        float u[4], z[4];
        draw(u, (first + i) / 4, key);
        dn_f_box_muller(u[0], u[1], &z[0], &z[1]);
        dn_f_box_muller(u[2], u[3], &z[2], &z[3]);
        for (int j = 0; j < 4 && i + j < n; j++)
            out[i + j] = z[j];
    }
}
