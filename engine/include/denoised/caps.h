/* caps.h - what this machine offers: CPUs that affinity and the cgroup leave us, memory, instruction sets. */
#ifndef DENOISED_CAPS_H
#define DENOISED_CAPS_H
#include <stddef.h>
#include <stdint.h>
enum { DN_CPUS_MAX = 1024 };
/* CPUs in our affinity mask. Fills at most `max` numbers; returns how many. */
int dn_caps_affinity(int *cpus, int max);
/* The same, cut to the cgroup's cpu.max (rounded up). Fills at most `max` numbers; returns how many. */
int dn_caps_cpus(int *cpus, int max);
/* The smaller of the machine's memory and the cgroup's limit, in bytes. */
int64_t dn_caps_memory(void);
/* The best CPU kernels here: "avx2" or "c". */
const char *dn_caps_isa(void);
#endif
