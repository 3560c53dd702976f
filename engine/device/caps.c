/* caps.c - what this machine offers to this process. */
#include <denoised/caps.h>
#include "backend.h"
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int dn_caps_affinity(int *cpus, int max)
{
    cpu_set_t set;
    int n = 0;
    if (sched_getaffinity(0, sizeof set, &set))
        return 0;
    for (int c = 0; c < CPU_SETSIZE && n < max; c++)
        if (CPU_ISSET(c, &set))
            cpus[n++] = c;
    return n;
}

/* Two numbers of a cgroup file; "max" counts as -1. Returns how many were read. */
static int read_pair(const char *path, long long *a, long long *b)
{
    char word[2][32] = { "", "" };
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    int n = fscanf(f, "%31s %31s", word[0], word[1]);
    fclose(f);
    long long *const to[] = { a, b };
    for (int i = 0; i < n; i++)
        if (sscanf(word[i], "%lld", to[i]) != 1)
            *to[i] = -1;
    return n;
}

/* CPUs' worth of time that the cgroup grants, rounded up; 0: no limit. */
static int quota_cpus(void)
{
    long long quota = -1, period = 0, unused = 0;
    if (read_pair("/sys/fs/cgroup/cpu.max", &quota, &period) < 2) {
        read_pair("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota, &unused);
        read_pair("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, &unused);
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int dn_caps_cpus(int *cpus, int max)
{
    int n = dn_caps_affinity(cpus, max), quota = quota_cpus();
    return quota && quota < n ? quota : n;
}

int64_t dn_caps_memory(void)
{
    long long machine = (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), limit = -1, unused = 0;
    if (!read_pair("/sys/fs/cgroup/memory.max", &limit, &unused))
        read_pair("/sys/fs/cgroup/memory/memory.limit_in_bytes", &limit, &unused);
    return limit > 0 && limit < machine ? limit : machine;
}

const char *dn_caps_isa(void) { return dn_backend_cpu.available() ? "avx2" : "c"; }
