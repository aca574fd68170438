/* See few_rows.h. */
#include "few_rows.h"

#include "products.h"
#include "softmax_rows.h"

#ifdef ELEM_BF16
#define KEYS_PER_WORD 2
INLINE weights_vector as_weights(vi words) { return words; }
/* PANEL dimensions of two keys that follow each other, as words of both; lanes are out of order. */
INLINE void load_values(const elem *const keys[], int64_t at, weights_vector out[2]) {
    const vi first = vi_load(keys[0] + at), second = vi_load(keys[1] + at);
    out[0] = vi_low16(first, second);
    out[1] = vi_high16(first, second);
}
#else
#define KEYS_PER_WORD 1
INLINE weights_vector as_weights(vi words) {
    union { vi words; vf values; } u = {words};
    return u.values;
}
INLINE void load_values(const elem *const keys[], int64_t at, weights_vector out[2]) {
    out[0] = vf_load(keys[0] + at);
    out[1] = vf_load(keys[0] + at + LANES);
}
#endif

/* Scores of LANES keys: their words are transposed in registers, four at a time. */
INLINE void score_keys(const AttentionScratch *s, const int rows, const elem *const keys[LANES],
                       int64_t num_words, float *scores) {
    const word *queries = (const word *)s->queries;
    const int64_t stride = operand_stride(num_words * PER_WORD) / PER_WORD;
    vf sums[MAX_FEW_ROWS];
    UNROLL for (int r = 0; r < rows; r++) sums[r] = vf_zero();
    for (int64_t k = 0; k < num_words; k += 4) {
        vi words[4];
        transpose_four(keys, k, words);
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int r = 0; r < rows; r++)
                sums[r] = add_products(sums[r], as_weights(words[i]), queries + r * stride + k + i);
    }
    UNROLL for (int r = 0; r < rows; r++) vf_store(scores + r * KEY_TILE, sums[r]);
}

/* PANEL dimensions of the values, weighted, onto the sums. */
INLINE void add_values(const AttentionScratch *s, const int rows, const elem *const *values, int64_t at,
                       int64_t num_words, int64_t dim) {
    const word *weights = (const word *)s->weights;
    const int64_t stride = weights_stride() / PER_WORD;
    vf sums[MAX_FEW_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) sums[r][h] = vf_load(s->sums + r * dim + at + h * LANES);
    for (int64_t k = 0; k < num_words; k++) {
        weights_vector words[2];
        load_values(values + k * KEYS_PER_WORD, at, words);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < 2; h++)
                sums[r][h] = add_products(sums[r][h], words[h], weights + r * stride + k);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) vf_store(s->sums + r * dim + at + h * LANES, sums[r][h]);
}

INLINE void attend_tiles(const AttentionScratch *s, const PagedKv *kv, const int rows, int64_t num_keys,
                         float scale) {
    const int64_t dim = kv->head_dim;
    for (int64_t tile = 0; tile < num_keys; tile += KEY_TILE) {
        const int64_t here = num_keys - tile < KEY_TILE ? num_keys - tile : KEY_TILE;
        const elem *keys[KEY_TILE], *values[KEY_TILE];
        tile_rows(kv, tile, here, keys, values);
        for (int64_t j = here; j < round_up(here, LANES); j++) keys[j] = values[j] = no_key;
        for (int64_t j = 0; j < here; j += LANES)
            score_keys(s, rows, keys + j, words_of(dim), s->scores + j);
        for (int r = 0; r < rows; r++) {
            const float *scores = s->scores + r * KEY_TILE;
            elem *weights = s->weights + r * weights_stride();
            if (here == KEY_TILE)
                soften(s, r, scores, weights, 0, KEY_TILE, scale, dim);
            else
                soften(s, r, scores, weights, 1, here, scale, dim);
        }
        for (int64_t at = 0; at < dim; at += PANEL)
            add_values(s, rows, values, at, words_of(here), dim);
    }
}

/* Sums whose lanes load_values left out of order. */
static void restore_order(const AttentionScratch *s, int64_t rows, int64_t dim) {
#ifdef ELEM_BF16
    for (int64_t i = 0; i < rows * dim; i += PANEL) {
        vf low = vf_load(s->sums + i), high = vf_load(s->sums + i + LANES);
        vf_restore(&low, &high);
        vf_store(s->sums + i, low);
        vf_store(s->sums + i + LANES, high);
    }
#else
    (void)s, (void)rows, (void)dim;
#endif
}

void attend_few_rows(const AttentionScratch *s, const PagedKv *kv, int64_t rows, int64_t num_keys,
                     float scale) {
    switch (rows) {
        case 1: attend_tiles(s, kv, 1, num_keys, scale); break;
        case 2: attend_tiles(s, kv, 2, num_keys, scale); break;
        case 3: attend_tiles(s, kv, 3, num_keys, scale); break;
        case 4: attend_tiles(s, kv, 4, num_keys, scale); break;
    }
    restore_order(s, rows, kv->head_dim);
}
