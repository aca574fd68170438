/* See pool.h. A waiter spins until a counter moves, then sleeps on it (futex). Counters may wrap: they
 * are compared for equality alone. */
#define _GNU_SOURCE
#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Pauses before sleeping: between steps some 50 microseconds, inside one some 500, since waking a
 * thread takes as long as a phase. */
#define SPINS_BETWEEN_STEPS 4000
#define SPINS_IN_STEP 40000
#define CACHE_LINE 64

struct Pool {
    int num_threads;
    pthread_t *threads;
    Work work;
    void *context;
    int is_closing;
    _Alignas(64) atomic_uint rounds; /* work handed out so far; threads wait on it */
    _Alignas(64) atomic_uint arrived; /* at the barrier under way */
    _Alignas(64) atomic_uint passed;  /* barriers completed */
    _Alignas(64) atomic_uint sleepers;
};

static void wait_while(Pool *pool, atomic_uint *value, unsigned old, int spins) {
    for (int spin = 0; spin < spins; spin++) {
        if (atomic_load_explicit(value, memory_order_acquire) != old) return;
        _mm_pause();
    }
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(value) == old)
        syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void advance(Pool *pool, atomic_uint *value) {
    atomic_fetch_add(value, 1);
    if (atomic_load(&pool->sleepers)) syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Until the value moves or everything is fetched. A few lines at a time: each look at the value costs
 * as much as they do. */
static void fetch_while(atomic_uint *value, unsigned old, const char *soon, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 8 * CACHE_LINE) {
        if (atomic_load_explicit(value, memory_order_acquire) != old) return;
        for (int line = 0; line < 8; line++) _mm_prefetch(soon + at + line * CACHE_LINE, _MM_HINT_T1);
    }
}

void pool_barrier(Pool *pool, const void *soon, int64_t bytes) {
    if (pool->num_threads == 1) return;
    unsigned passed = atomic_load_explicit(&pool->passed, memory_order_acquire);
    unsigned arrived = atomic_fetch_add(&pool->arrived, 1) + 1;
    if (arrived == (unsigned)pool->num_threads) {
        atomic_store(&pool->arrived, 0); /* before anybody can come to the next barrier */
        advance(pool, &pool->passed);
    } else {
        fetch_while(&pool->passed, passed, soon, bytes);
        wait_while(pool, &pool->passed, passed, SPINS_IN_STEP);
    }
}

typedef struct {
    Pool *pool;
    int thread;
} Seat;

static void *serve(void *argument) {
    Seat seat = *(Seat *)argument;
    free(argument);
    for (unsigned round = 0;; round++) {
        wait_while(seat.pool, &seat.pool->rounds, round, SPINS_BETWEEN_STEPS);
        if (seat.pool->is_closing) return NULL;
        seat.pool->work(seat.pool->context, seat.thread);
        pool_barrier(seat.pool, NULL, 0);
    }
}

void pool_run(Pool *pool, Work work, void *context) {
    pool->work = work;
    pool->context = context;
    if (pool->num_threads > 1) advance(pool, &pool->rounds);
    work(context, 0);
    pool_barrier(pool, NULL, 0);
}

/* End the threads that were started, all but the caller. */
static void stop(Pool *pool, int num_started) {
    pool->is_closing = 1;
    advance(pool, &pool->rounds);
    for (int i = 0; i < num_started; i++) pthread_join(pool->threads[i], NULL);
    free(pool->threads);
    free(pool);
}

Pool *pool_open(int num_threads) {
    Pool *pool = aligned_alloc(64, (sizeof(Pool) + 63) / 64 * 64);
    if (!pool) return NULL;
    *pool = (Pool){.num_threads = num_threads};
    pool->threads = calloc((size_t)num_threads, sizeof(pthread_t));
    if (!pool->threads) {
        free(pool);
        return NULL;
    }
    for (int i = 1; i < num_threads; i++) {
        Seat *seat = malloc(sizeof(Seat));
        if (seat) *seat = (Seat){pool, i};
        if (!seat || pthread_create(&pool->threads[i - 1], NULL, serve, seat)) {
            free(seat);
            stop(pool, i - 1);
            return NULL;
        }
    }
    return pool;
}

void pool_close(Pool *pool) { stop(pool, pool->num_threads - 1); }

int pool_size(const Pool *pool) { return pool->num_threads; }
