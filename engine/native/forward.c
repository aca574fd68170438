/* The step: Llama's layers over paged KV, all threads together, a barrier between phases.
 *
 *   embed -> layers x (norm | qkv | rope, KV | attention | o, add | norm | gate and up, silu | down, add)
 *         -> norm -> logits
 *
 * Each phase is cut into items that threads share; an item's result does not depend on who
 * computes it or on the cut. The residual stream stays float32; operands of products are elem.
 */
#include <string.h>
#include <time.h>

#include "engine.h"
#include "int8_panels.h"

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t share(int64_t items, int thread, int threads) { return items * thread / threads; }

/* Bytes a thread fetches of the next weight while it waits (half of a second-level cache), and tokens
 * up to which reading weights is what a step waits for. */
#define FETCHED_BYTES (512 * 1024)
#define MAX_FETCHING_TOKENS 64

/* The barrier after a phase; `next` is the weight of the next product, or NULL. */
static void end_phase_before(Engine *e, int thread, int phase, const Linear *next) {
    const char *soon = NULL;
    int64_t bytes = 0;
    if (next && e->step->num_tokens <= MAX_FETCHING_TOKENS) {
        const int threads = pool_size(e->pool);
        const int64_t panels = panels_of(next->outputs), size = panel_bytes(next);
        const int64_t from = share(panels, thread, threads), end = share(panels, thread + 1, threads);
        soon = (const char *)next->panels + from * size;
        bytes = (end - from) * size;
        if (bytes > FETCHED_BYTES) bytes = FETCHED_BYTES;
    }
    pool_barrier(e->pool, soon, bytes);
    if (thread) return;
    const double time = now_seconds();
    e->seconds[phase] += time - e->phase_began;
    e->phase_began = time;
}

static void end_phase(Engine *e, int thread, int phase) { end_phase_before(e, thread, phase, NULL); }

/* What is done with the sums of `rows` rows from `row` on with one panel. */
typedef void (*Finish)(Engine *e, int64_t row, int64_t rows, int64_t panel, const float *sums);

static void multiply(Engine *e, int thread, const Linear *linear, const elem *x, int64_t num_rows,
                     Finish finish) {
    const int threads = pool_size(e->pool);
    const int64_t stride = operand_stride(linear->inputs);
    const int64_t num_panels = panels_of(linear->outputs);
    /* Few panels and many threads: cut the rows too. */
    int64_t num_chunks = (num_rows + MAX_CHUNK_ROWS - 1) / MAX_CHUNK_ROWS;
    if (num_panels < 4 * threads && num_chunks * num_panels < 4 * threads)
        num_chunks = (4 * threads + num_panels - 1) / num_panels;
    if (num_chunks > (num_rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS)
        num_chunks = (num_rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS;
    const int64_t end = share(num_panels * num_chunks, thread + 1, threads);
    for (int64_t i = share(num_panels * num_chunks, thread, threads); i < end; i++) {
        const int64_t panel = i % num_panels, chunk = i / num_panels;
        const int64_t row = num_rows * chunk / num_chunks;
        const int64_t rows = num_rows * (chunk + 1) / num_chunks - row;
        multiply_panel(linear, panel, rows, x + row * stride, stride, e->tiles[thread]);
        finish(e, row, rows, panel, e->tiles[thread]);
    }
}

static void keep_qkv(Engine *e, int64_t row, int64_t rows, int64_t panel, const float *sums) {
    const int64_t stride = qkv_stride(&e->model);
    for (int64_t r = 0; r < rows; r++)
        memcpy(e->qkv + (row + r) * stride + panel * PANEL, sums + r * PANEL, PANEL * sizeof(float));
}

static void add_to_residual(Engine *e, int64_t row, int64_t rows, int64_t panel, const float *sums) {
    const int64_t stride = padded(e->model.hidden);
    for (int64_t r = 0; r < rows; r++) {
        float *to = e->residual + (row + r) * stride + panel * PANEL;
        vf_store(to, vf_add(vf_load(to), vf_load(sums + r * PANEL)));
        vf_store(to + LANES, vf_add(vf_load(to + LANES), vf_load(sums + r * PANEL + LANES)));
    }
}

static void keep_gated(Engine *e, int64_t row, int64_t rows, int64_t panel, const float *sums) {
    const int64_t stride = operand_stride(e->model.intermediate);
    for (int64_t r = 0; r < rows; r++)
        gate_row(sums + r * PANEL, e->gated + (row + r) * stride + panel * LANES);
}

static void keep_logits(Engine *e, int64_t row, int64_t rows, int64_t panel, const float *sums) {
    const int64_t vocab = e->model.vocab, left = vocab - panel * PANEL;
    const int64_t width = left < PANEL ? left : PANEL;
    for (int64_t r = 0; r < rows; r++)
        memcpy(e->step->logits + (row + r) * vocab + panel * PANEL, sums + r * PANEL,
               (size_t)width * sizeof(float));
}

static void norm_tokens(Engine *e, int thread, const float *weight, const Linear *next) {
    const Model *m = &e->model;
    const int64_t end = share(e->step->num_tokens, thread + 1, pool_size(e->pool));
    for (int64_t t = share(e->step->num_tokens, thread, pool_size(e->pool)); t < end; t++)
        norm_row(e->residual + t * padded(m->hidden), weight, m->hidden, m->rms_norm_eps,
                 e->normed + t * operand_stride(m->hidden));
    end_phase_before(e, thread, PHASE_NORM, next);
}

/* Rotate a token's queries and write its keys and values into their block. */
static void place_token(Engine *e, const Layer *layer, int64_t layer_index, int64_t token, int64_t row) {
    const Model *m = &e->model;
    const Step *s = e->step;
    const int64_t position = s->start[row] + token - s->first[row], dim = m->head_dim;
    const float *cos = m->cos + position * dim, *sin = m->signed_sin + position * dim;
    float *heads = e->qkv + token * qkv_stride(m);
    const float *bias = layer->qkv_bias;
    for (int64_t h = 0; h < m->num_heads; h++)
        rope_head(heads + h * dim, bias ? bias + h * dim : NULL, layer->q_norm, m->rms_norm_eps, cos, sin,
                  dim, e->queries + (token * m->num_heads + h) * dim);
    const int64_t block = s->tables[s->table_of[row] + position / m->block_size];
    const int64_t plane = m->block_size * dim;
    elem *to = m->kv + ((block * m->num_layers + layer_index) * 2 * m->num_kv_heads) * plane
               + position % m->block_size * dim;
    for (int64_t h = 0; h < m->num_kv_heads; h++) {
        const int64_t key = (m->num_heads + h) * dim, value = key + m->num_kv_heads * dim;
        rope_head(heads + key, bias ? bias + key : NULL, layer->k_norm, m->rms_norm_eps, cos, sin, dim,
                  to + h * plane);
        round_row(heads + value, bias ? bias + value : NULL, dim, to + (m->num_kv_heads + h) * plane);
    }
}

static void place_tokens(Engine *e, int thread, const Layer *layer, int64_t layer_index) {
    const Step *s = e->step;
    const int64_t from = share(s->num_tokens, thread, pool_size(e->pool));
    const int64_t end = share(s->num_tokens, thread + 1, pool_size(e->pool));
    int64_t row = 0;
    for (int64_t t = from; t < end; t++) {
        while (t >= s->first[row] + s->count[row]) row++;
        place_token(e, layer, layer_index, t, row);
    }
    end_phase(e, thread, PHASE_ROPE);
}

static void attend_item(Engine *e, int thread, int64_t layer, const AttentionItem *item) {
    const Model *m = &e->model;
    const Step *s = e->step;
    const AttentionScratch *scratch = &e->attention[thread];
    const int64_t dim = m->head_dim, group = m->num_heads / m->num_kv_heads;
    const int64_t plane = m->block_size * dim, token = s->first[item->row] + item->first_query;
    const PagedKv kv = {
        .keys = m->kv + (layer * 2 * m->num_kv_heads + item->kv_head) * plane,
        .values = m->kv + ((layer * 2 + 1) * m->num_kv_heads + item->kv_head) * plane,
        .block_stride = m->num_layers * 2 * m->num_kv_heads * plane,
        .block_size = m->block_size, .head_dim = dim, .table = s->tables + s->table_of[item->row],
    };
    for (int64_t q = 0; q < item->num_queries; q++)
        for (int64_t g = 0; g < group; g++)
            memcpy(scratch->queries + (q * group + g) * operand_stride(dim),
                   e->queries + ((token + q) * m->num_heads + item->kv_head * group + g) * dim,
                   (size_t)dim * sizeof(elem));
    attend(scratch, &kv, item->num_queries, group, s->start[item->row] + item->first_query, m->score_scale,
           e->attended + token * operand_stride(m->num_heads * dim) + item->kv_head * group * dim,
           operand_stride(m->num_heads * dim));
}

static void attend_all(Engine *e, int thread, int64_t layer, const Linear *next) {
    for (;;) {
        const int64_t i = atomic_fetch_add_explicit(&e->next_item, 1, memory_order_relaxed);
        if (i >= e->num_items * (layer + 1)) break;
        attend_item(e, thread, layer, &e->items[i - e->num_items * layer]);
    }
    end_phase_before(e, thread, PHASE_ATTENTION, next);
    /* Each thread took one number too many. */
    if (thread == 0) atomic_store(&e->next_item, e->num_items * (layer + 1));
}

static void embed_tokens(Engine *e, int thread) {
    const Model *m = &e->model;
    const int64_t end = share(e->step->num_tokens, thread + 1, pool_size(e->pool));
    for (int64_t t = share(e->step->num_tokens, thread, pool_size(e->pool)); t < end; t++) {
        const int64_t id = e->step->token_ids[t];
        float *to = e->residual + t * padded(m->hidden);
        if (m->embed_values) {
            widen_int8_row(m->embed_values + id * m->hidden,
                           m->embed_scales + id * (m->hidden / BLOCK_INPUTS), m->hidden, to);
            continue;
        }
        const elem *from = m->embed + id * m->hidden;
        for (int64_t i = 0; i < m->hidden; i++) {
#ifdef ELEM_BF16
            union { uint32_t bits; float value; } u = {(uint32_t)from[i] << 16};
            to[i] = u.value;
#else
            to[i] = from[i];
#endif
        }
    }
}

static void compute_logits(Engine *e, int thread) {
    const Model *m = &e->model;
    const Step *s = e->step;
    if (!s->num_sampled) return;
    const int64_t end = share(s->num_sampled, thread + 1, pool_size(e->pool));
    for (int64_t i = share(s->num_sampled, thread, pool_size(e->pool)); i < end; i++)
        norm_row(e->residual + s->sampled[i] * padded(m->hidden), m->norm, m->hidden, m->rms_norm_eps,
                 e->last + i * operand_stride(m->hidden));
    end_phase(e, thread, PHASE_NORM);
    multiply(e, thread, &m->lm_head, e->last, s->num_sampled, keep_logits);
    pool_barrier(e->pool, NULL, 0);
    for (int64_t i = share(s->num_sampled, thread, pool_size(e->pool)); i < end; i++)
        s->best[i] = largest_at(s->logits + i * m->vocab, m->vocab);
    end_phase(e, thread, PHASE_LM_HEAD);
}

void run_step(void *context, int thread) {
    Engine *e = context;
    const Model *m = &e->model;
    const int64_t num_tokens = e->step->num_tokens;
    embed_tokens(e, thread);
    for (int64_t i = 0; i < m->num_layers; i++) {
        const Layer *layer = &m->layers[i];
        norm_tokens(e, thread, layer->input_norm, &layer->qkv);
        multiply(e, thread, &layer->qkv, e->normed, num_tokens, keep_qkv);
        end_phase(e, thread, PHASE_QKV);
        place_tokens(e, thread, layer, i);
        attend_all(e, thread, i, &layer->o);
        multiply(e, thread, &layer->o, e->attended, num_tokens, add_to_residual);
        end_phase_before(e, thread, PHASE_O, &layer->gate_up);
        norm_tokens(e, thread, layer->post_norm, &layer->gate_up);
        multiply(e, thread, &layer->gate_up, e->normed, num_tokens, keep_gated);
        end_phase_before(e, thread, PHASE_GATE_UP, &layer->down);
        multiply(e, thread, &layer->down, e->gated, num_tokens, add_to_residual);
        end_phase(e, thread, PHASE_DOWN);
    }
    compute_logits(e, thread);
}
