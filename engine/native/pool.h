/* A few threads that run one function together, and a barrier inside it.
 *
 * Threads that wait spin for some microseconds (a phase of a step is as short), then sleep, so that
 * a pool does not burn a core it shares. Knows nothing of what is computed.
 */
#ifndef PDSERVE_POOL_H
#define PDSERVE_POOL_H

#include <stdint.h>

typedef struct Pool Pool;
typedef void (*Work)(void *context, int thread);

/* num_threads counts the caller, who is thread 0. NULL: no memory or no threads. */
Pool *pool_open(int num_threads);
void pool_close(Pool *pool);
int pool_size(const Pool *pool);

/* Run work on every thread, return when all have returned. One at a time. */
void pool_run(Pool *pool, Work work, void *context);

/* Inside work: wait until every thread is here. What was written before is seen after. A thread that
 * waits fetches `bytes` from `soon` on, what it will read next, into its second-level cache. */
void pool_barrier(Pool *pool, const void *soon, int64_t bytes);

#endif
