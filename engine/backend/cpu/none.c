/* none.c - the CPU backend where there are no kernels for the architecture: devices run on ref. */
#include "kernels.h"

static bool never(void) { return false; }

const dn_backend dn_backend_cpu = { .name = "cpu-none", .real_size = sizeof(float), .available = never };

void dn_cpu_rng_normal(float *out, int64_t first, int64_t n, const dn_rng_key *key) { dn_rng_normal(out, first, n, key); }
