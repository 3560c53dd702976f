/* device.c - a device: its backend, its compute threads, its arena. */
#include "device_internal.h"
#include "kernels.h"
#include <denoised/caps.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "0-3,6" -> numbers; every one must be among the CPUs that we may use. Returns how many, or -1. */
static int parse_cpus(const char *s, int *cpus, int max)
{
    int allowed[DN_CPUS_MAX], n_allowed = dn_caps_affinity(allowed, DN_CPUS_MAX), n = 0;
    while (*s) {
        char *end;
        long from = strtol(s, &end, 10), to = from;
        if (end == s)
            return -1;
        if (*end == '-') {
            const char *second = end + 1;
            to = strtol(second, &end, 10);
            if (end == second)
                return -1;
        }
        for (long c = from; c <= to; c++) {
            bool ok = false;
            for (int i = 0; i < n_allowed; i++)
                ok |= allowed[i] == c;
            if (!ok || n == max)
                return -1;
            cpus[n++] = (int)c;
        }
        if (to < from || (*end && *end != ',') || (*end && !end[1]))
            return -1;
        s = *end ? end + 1 : end;
    }
    return n;
}

static const dn_backend *pick_backend(const char *kind)
{
    if (!strcmp(kind, "ref"))
        return &dn_backend_ref;
    if (!strcmp(kind, "cpu"))
        return dn_backend_cpu.available() ? &dn_backend_cpu : &dn_backend_ref;
    return NULL;
}

int dn_device_open(dn_device **out, const char *spec, dn_error *err)
{
    char kind[64];
    int cpus[DN_CPUS_MAX];
    if (snprintf(kind, sizeof kind, "%s", spec) >= (int)sizeof kind)
        return dn_fail(err, DN_E_INVALID, "devices", "device \"%.40s...\" is too long", spec);
    char *list = strchr(kind, ':');
    if (list)
        *list++ = 0;
    const dn_backend *backend = pick_backend(kind);
    if (!backend)
        return dn_fail(err, DN_E_UNSUPPORTED, "devices", "device \"%s\" is not supported: use cpu, cpu:0-1 or ref", spec);
    int n = list ? parse_cpus(list, cpus, DN_CPUS_MAX) : dn_caps_cpus(cpus, DN_CPUS_MAX);
    if (n < 1)
        return dn_fail(err, DN_E_RANGE, "devices", "device \"%s\" names CPUs that this process may not use", spec);
    dn_device *d = calloc(1, sizeof *d);
    if (d)
        d->pool = dn_pool_new(n, list ? cpus : NULL);
    if (!d || !d->pool) {
        free(d);
        return dn_fail(err, DN_E_MEMORY, "devices", "device \"%s\": cannot start %d threads", spec, n);
    }
    snprintf(d->spec, sizeof d->spec, "%s", spec);
    d->backend = backend;
    d->normal = backend == &dn_backend_cpu ? dn_cpu_rng_normal : dn_rng_normal;
    *out = d;
    return 0;
}

void dn_device_close(dn_device *d)
{
    if (!d)
        return;
    dn_pool_free(d->pool);
    free(d->arena);
    free(d->scratch);
    free(d);
}

void dn_device_trim(dn_device *d, size_t bytes)
{
    if (d->busy || d->arena_bytes <= bytes)
        return;
    free(d->arena);
    d->arena = NULL;
    d->arena_bytes = 0;
}

const char *dn_device_name(const dn_device *d) { return d->spec; }
const char *dn_device_backend(const dn_device *d) { return d->backend->name; }
int dn_device_threads(const dn_device *d) { return dn_pool_threads(d->pool); }
size_t dn_device_bytes(const dn_device *d) { return d->arena_bytes + 4 * sizeof(float) * d->scratch_count + d->slot_bytes; }
