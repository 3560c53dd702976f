/* pool.h - the compute threads of one device.
 *
 * n - 1 workers at nice +10, pinned to the given CPUs, plus the calling thread. Workers spin a short while after a
 * parallel region, then sleep. Work is claimed in chunks by an atomic counter, so that a descheduled worker delays
 * only its own chunk. One region at a time; regions do not nest. Only outputs are ever divided: no result depends on
 * the number of threads. */
#ifndef DN_CORE_POOL_H
#define DN_CORE_POOL_H

#include <stdint.h>

typedef struct dn_pool dn_pool;
/* Items [from, to) of the region; `thread` is 0..n_threads-1, for scratch memory. */
typedef void (*dn_task)(void *arg, int64_t from, int64_t to, int thread);

dn_pool *dn_pool_new(int n_threads, const int *cpus /* n_threads of them; NULL: do not pin */); /* NULL: failed */
void dn_pool_free(dn_pool *p);
int dn_pool_threads(const dn_pool *p); /* 1 for NULL */
/* Run task over [0, n) in chunks of `chunk`; returns when all is done. A NULL pool runs it on the calling thread. */
void dn_pool_run(dn_pool *p, dn_task task, void *arg, int64_t n, int64_t chunk);

#endif
