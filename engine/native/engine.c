/* Opening, closing and feeding a native engine: see native.h. Scratch grows to the largest step seen
 * and is then reused. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#define ITEMS_PER_THREAD 4 /* of attention in a layer of a long chunk */

/* Zeroed memory at a cache line, or NULL. */
static void *new_memory(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)round_up(bytes + 64, 64));
    if (memory) memset(memory, 0, (size_t)bytes);
    return memory;
}

static void *instead_of(void *memory, int64_t bytes) {
    free(memory);
    return new_memory(bytes);
}

static int grow_tokens(Engine *e, int64_t tokens) {
    const Model *m = &e->model;
    if (tokens <= e->max_tokens) return 0;
    const int64_t size = (int64_t)sizeof(elem), heads = m->num_heads * m->head_dim;
    e->max_tokens = 0; /* until all of it is there */
    e->residual = instead_of(e->residual, tokens * padded(m->hidden) * 4);
    e->qkv = instead_of(e->qkv, tokens * qkv_stride(m) * 4);
    e->normed = instead_of(e->normed, tokens * operand_stride(m->hidden) * size);
    e->queries = instead_of(e->queries, tokens * heads * size);
    e->attended = instead_of(e->attended, tokens * operand_stride(heads) * size);
    e->gated = instead_of(e->gated, tokens * operand_stride(m->intermediate) * size);
    if (!e->residual || !e->qkv || !e->normed || !e->queries || !e->attended || !e->gated) return -1;
    e->max_tokens = tokens;
    return 0;
}

static int grow_sampled(Engine *e, int64_t sampled) {
    if (sampled <= e->max_sampled) return 0;
    e->max_sampled = 0;
    e->last = instead_of(e->last, sampled * operand_stride(e->model.hidden) * (int64_t)sizeof(elem));
    if (!e->last) return -1;
    e->max_sampled = sampled;
    return 0;
}

/* As many as keep every thread at work: packed keys then serve more queries. */
static int32_t queries_at_once(const Engine *e) {
    const Model *m = &e->model;
    const int64_t group = m->num_heads / m->num_kv_heads;
    const int64_t most = MAX_QUERY_ROWS / group, fewest = most / 4;
    int64_t queries = e->step->num_tokens * m->num_kv_heads / (ITEMS_PER_THREAD * pool_size(e->pool));
    if (queries < fewest) queries = fewest;
    if (queries > most) queries = most;
    return queries > 0 ? (int32_t)queries : 1;
}

static int add_item(Engine *e, AttentionItem item) {
    if (e->num_items == e->max_items) {
        const int64_t max = e->max_items ? 2 * e->max_items : 64;
        AttentionItem *items = realloc(e->items, (size_t)max * sizeof(AttentionItem));
        if (!items) return -1;
        e->items = items;
        e->max_items = max;
    }
    e->items[e->num_items++] = item;
    return 0;
}

/* Long rows first and their last queries first, so that threads end together. */
static int plan_items(Engine *e) {
    const Step *s = e->step;
    const int32_t at_once = queries_at_once(e);
    e->num_items = 0;
    for (int is_single = 0; is_single < 2; is_single++)
        for (int32_t row = 0; row < s->num_rows; row++) {
            if ((s->count[row] == 1) != is_single) continue;
            for (int32_t end = s->count[row]; end > 0; end -= at_once)
                for (int32_t head = 0; head < e->model.num_kv_heads; head++) {
                    const int32_t first = end > at_once ? end - at_once : 0;
                    if (add_item(e, (AttentionItem){row, head, first, end - first})) return -1;
                }
        }
    return 0;
}

int pd_forward(Engine *e, const Step *step) {
    e->step = step;
    if (grow_tokens(e, step->num_tokens) || grow_sampled(e, step->num_sampled) || plan_items(e)) return -1;
    atomic_store(&e->next_item, 0);
    e->phase_began = now_seconds();
    pool_run(e->pool, run_step, e);
    return 0;
}

void pd_phase_seconds(Engine *e, double seconds[NUM_PHASES]) {
    memcpy(seconds, e->seconds, sizeof(e->seconds));
    memset(e->seconds, 0, sizeof(e->seconds));
}

Engine *pd_open(const Model *model, int num_threads) {
    Engine *e = calloc(1, sizeof(Engine));
    if (!e) return NULL;
    e->model = *model;
    const int64_t group = model->num_heads / model->num_kv_heads;
    const int64_t rows = group > MAX_QUERY_ROWS ? group : MAX_QUERY_ROWS;
    e->attention = calloc((size_t)num_threads, sizeof(AttentionScratch));
    e->attention_memory = calloc((size_t)num_threads, sizeof(void *));
    e->tiles = calloc((size_t)num_threads, sizeof(float *));
    e->pool = e->attention && e->attention_memory && e->tiles ? pool_open(num_threads) : NULL;
    for (int i = 0; e->pool && i < num_threads; i++) {
        e->attention_memory[i] = new_memory(attention_scratch_bytes(rows, model->head_dim));
        e->tiles[i] = new_memory(MAX_CHUNK_ROWS * PANEL * 4);
        if (!e->attention_memory[i] || !e->tiles[i]) {
            pd_close(e);
            return NULL;
        }
        e->attention[i] = attention_scratch(e->attention_memory[i], rows, model->head_dim);
    }
    if (e->pool) return e;
    pd_close(e);
    return NULL;
}

void pd_close(Engine *e) {
    for (int i = 0; e->pool && i < pool_size(e->pool); i++) {
        free(e->attention_memory[i]);
        free(e->tiles[i]);
    }
    if (e->pool) pool_close(e->pool);
    free(e->attention);
    free(e->attention_memory);
    free(e->tiles);
    free(e->residual);
    free(e->qkv);
    free(e->normed);
    free(e->queries);
    free(e->attended);
    free(e->gated);
    free(e->last);
    free(e->items);
    free(e);
}
