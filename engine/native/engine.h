/* The state of a native engine between steps: the model, its threads and their scratch. */
#ifndef PDSERVE_ENGINE_H
#define PDSERVE_ENGINE_H

#include <stdatomic.h>

#include "attention.h"
#include "pool.h"
#include "rows.h"

#define MAX_CHUNK_ROWS 264 /* rows multiplied with a panel before the next panel */

/* Attention of some queries of one row with one KV head. */
typedef struct {
    int32_t row, kv_head, first_query, num_queries;
} AttentionItem;

struct Engine {
    Model model;
    Pool *pool;
    double seconds[NUM_PHASES];
    double phase_began;
    const Step *step;
    int64_t max_tokens, max_sampled, max_items; /* what the scratch holds */
    float *residual;  /* [tokens, padded hidden] */
    float *qkv;       /* [tokens, qkv_stride] */
    elem *normed;     /* [tokens] operand rows of hidden */
    elem *queries;    /* [tokens, heads * head_dim] */
    elem *attended;   /* [tokens] operand rows of heads * head_dim */
    elem *gated;      /* [tokens] operand rows of intermediate */
    elem *last;       /* [sampled] operand rows of hidden */
    AttentionItem *items;
    int64_t num_items;
    atomic_llong next_item; /* counts through all layers of a step */
    AttentionScratch *attention;  /* [threads] */
    void **attention_memory;      /* [threads] */
    float **tiles;                /* [threads] sums of a chunk of rows with one panel */
};

INLINE int64_t qkv_stride(const Model *m) {
    return panels_of((m->num_heads + 2 * m->num_kv_heads) * m->head_dim) * PANEL;
}

/* forward.c: every thread's part of e->step. */
void run_step(void *engine, int thread);

double now_seconds(void);

#endif
