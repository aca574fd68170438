/* See attention.h. */
#include "attention.h"

#include <string.h>

#include "few_rows.h"
#include "softmax_rows.h"

#define KEY_PANELS (KEY_TILE / PANEL)
#define LOG2_E 1.44269504088896341f

static int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

/* Sizes in the order of the fields of AttentionScratch. */
static void scratch_sizes(int64_t rows, int64_t head_dim, int64_t sizes[8]) {
    sizes[0] = aligned(KEY_PANELS * words_of(head_dim) * PANEL * 4);
    sizes[1] = aligned(padded_dim(head_dim) * words_of(KEY_TILE) * 4);
    sizes[2] = aligned(rows * operand_stride(head_dim) * (int64_t)sizeof(elem));
    sizes[3] = aligned(MAX_TILE_ROWS * weights_stride() * (int64_t)sizeof(elem));
    sizes[4] = aligned(MAX_TILE_ROWS * KEY_TILE * 4);
    sizes[5] = aligned(rows * padded_dim(head_dim) * 4);
    sizes[6] = aligned(rows * 4);
    sizes[7] = aligned(rows * LANES * 4);
}

int64_t attention_scratch_bytes(int64_t rows, int64_t head_dim) {
    int64_t sizes[8], total = 0;
    scratch_sizes(rows, head_dim, sizes);
    for (int i = 0; i < 8; i++) total += sizes[i];
    return total;
}

AttentionScratch attention_scratch(void *memory, int64_t rows, int64_t head_dim) {
    int64_t sizes[8];
    void *parts[8];
    scratch_sizes(rows, head_dim, sizes);
    memset(memory, 0, (size_t)attention_scratch_bytes(rows, head_dim));
    for (int i = 0; i < 8; i++) {
        parts[i] = memory;
        memory = (char *)memory + sizes[i];
    }
    return (AttentionScratch){parts[0], parts[1], parts[2], parts[3],
                              parts[4], parts[5], parts[6], parts[7]};
}

/* What all rows of a tile have in common. */
typedef struct {
    int64_t dim, heads_per_kv, first_visible; /* keys of the tile that the first query sees */
    float scale;
} Tile;

/* At most MAX_TILE_ROWS rows and one packed tile, all of whose first key every row sees. */
static void attend_rows(const AttentionScratch *s, const Tile *t, int64_t row, int64_t rows) {
    const int64_t dim = t->dim, stride = operand_stride(dim);
    const int64_t first = t->first_visible + row / t->heads_per_kv;
    const int64_t last = t->first_visible + (row + rows - 1) / t->heads_per_kv;
    const int64_t num_keys = last < KEY_TILE ? last : KEY_TILE;
    for (int64_t p = 0; p * PANEL < num_keys; p++)
        multiply_tile((int)rows, s->queries + row * stride, stride,
                      (const uint32_t *)s->key_panels + p * words_of(dim) * PANEL, words_of(dim),
                      s->scores + p * PANEL, KEY_TILE, 0);
    for (int64_t r = 0; r < rows; r++) {
        const float *scores = s->scores + r * KEY_TILE;
        elem *weights = s->weights + r * weights_stride();
        if (first >= KEY_TILE)
            soften(s, row + r, scores, weights, 0, KEY_TILE, t->scale, dim);
        else
            soften(s, row + r, scores, weights, 1, t->first_visible + (row + r) / t->heads_per_kv, t->scale, dim);
    }
    for (int64_t p = 0; p * PANEL < dim; p++)
        multiply_tile((int)rows, s->weights, weights_stride(),
                      (const uint32_t *)s->value_panels + p * words_of(KEY_TILE) * PANEL, words_of(num_keys),
                      s->sums + row * padded_dim(dim) + p * PANEL, padded_dim(dim), 1);
}

static void attend_tile(const AttentionScratch *s, const PagedKv *kv, int64_t num_queries,
                        int64_t heads_per_kv, int64_t start, int64_t tile, float scale) {
    const int64_t last = start + num_queries - 1;
    const int64_t num_keys = last + 1 - tile < KEY_TILE ? last + 1 - tile : KEY_TILE;
    const elem *keys[KEY_TILE], *values[KEY_TILE];
    tile_rows(kv, tile, num_keys, keys, values);
    pack_keys(keys, num_keys, kv->head_dim, s->key_panels);
    pack_values(values, num_keys, kv->head_dim, s->value_panels);
    /* Queries before the tile see none of it. */
    const int64_t skipped = (tile > start ? tile - start : 0) * heads_per_kv;
    const int64_t num_rows = num_queries * heads_per_kv - skipped;
    const int64_t num_parts = (num_rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS;
    const Tile t = {kv->head_dim, heads_per_kv, start + 1 - tile, scale};
    for (int64_t i = 0; i < num_parts; i++) {
        const int64_t row = num_rows * i / num_parts, end = num_rows * (i + 1) / num_parts;
        attend_rows(s, &t, skipped + row, end - row);
    }
}

void attend(const AttentionScratch *s, const PagedKv *kv, int64_t num_queries, int64_t heads_per_kv,
            int64_t start, float score_scale, elem *out, int64_t out_stride) {
    const int64_t dim = kv->head_dim, num_rows = num_queries * heads_per_kv;
    memset(s->sums, 0, (size_t)(num_rows * padded_dim(dim)) * 4);
    memset(s->totals, 0, (size_t)(num_rows * LANES) * 4);
    for (int64_t row = 0; row < num_rows; row++) s->largest[row] = -INFINITY;
    const float scale = score_scale * LOG2_E;
    if (num_queries == 1 && takes_few_rows(num_rows, dim)) {
        attend_few_rows(s, kv, num_rows, start + 1, scale);
    } else {
        for (int64_t tile = 0; tile < start + num_queries; tile += KEY_TILE)
            attend_tile(s, kv, num_queries, heads_per_kv, start, tile, scale);
    }
    for (int64_t row = 0; row < num_rows; row++) {
        const vf total = vf_set(vf_sum(vf_load(s->totals + row * LANES)));
        const float *sums = s->sums + row * padded_dim(dim);
        elem *to = out + row / heads_per_kv * out_stride + row % heads_per_kv * dim;
        elem last[LANES];
        for (int64_t i = 0; i < dim; i += LANES) {
            const vf x = vf_div(vf_load(sums + i), total);
            if (i + LANES <= dim) {
                vf_store_elems(to + i, x);
            } else {
                vf_store_elems(last, x);
                memcpy(to + i, last, (size_t)(dim - i) * sizeof(elem));
            }
        }
    }
}
