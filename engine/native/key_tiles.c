/* See key_tiles.h. */
#include "key_tiles.h"

#include <string.h>

const elem no_key[MAX_FAST_DIM];

void tile_rows(const PagedKv *kv, int64_t tile, int64_t num_keys, const elem *keys[KEY_TILE],
               const elem *values[KEY_TILE]) {
    const int64_t values_from_keys = kv->values - kv->keys;
    int64_t block = tile / kv->block_size, slot = tile % kv->block_size;
    for (int64_t j = 0; j < num_keys; slot = 0, block++) {
        const elem *key = kv->keys + kv->table[block] * kv->block_stride + slot * kv->head_dim;
        for (; slot < kv->block_size && j < num_keys; slot++, j++, key += kv->head_dim) {
            keys[j] = key;
            values[j] = key + values_from_keys;
        }
    }
    for (int64_t j = num_keys; j < KEY_TILE; j++) keys[j] = values[j] = NULL;
}

/* Keys as a weight with KEY_TILE outputs and head_dim inputs. */
void pack_keys(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels) {
    const int64_t num_words = words_of(head_dim);
    const int64_t whole_words = head_dim <= MAX_FAST_DIM ? head_dim / PER_WORD / 4 * 4 : 0;
    for (int64_t j = 0; j < round_up(num_keys, PANEL); j += LANES) {
        uint32_t *panel = (uint32_t *)panels + j / PANEL * num_words * PANEL + j % PANEL;
        const elem *some[LANES];
        for (int lane = 0; lane < LANES; lane++) some[lane] = rows[j + lane] ? rows[j + lane] : no_key;
        for (int64_t word = 0; word < whole_words; word += 4) {
            vi words[4];
            transpose_four(some, word, words);
            for (int i = 0; i < 4; i++) vi_store(panel + (word + i) * PANEL, words[i]);
        }
        for (int64_t word = whole_words; word < num_words; word++)
            for (int lane = 0; lane < LANES; lane++) {
                elem pair[PER_WORD] = {0};
                for (int i = 0; i < PER_WORD; i++) {
                    const int64_t k = word * PER_WORD + i;
                    if (rows[j + lane] && k < head_dim) pair[i] = rows[j + lane][k];
                }
                memcpy(panel + word * PANEL + lane, pair, 4);
            }
    }
}

/* Values as a weight with head_dim outputs and KEY_TILE inputs. */
void pack_values(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels) {
    const int64_t num_words = words_of(KEY_TILE), used = words_of(num_keys), dim = head_dim;
    for (int64_t word = 0; word < used; word++) {
        elem *out = (elem *)panels + word * PANEL * PER_WORD;
        const elem *first = rows[word * PER_WORD];
#ifdef ELEM_BF16
        const elem *second = rows[word * 2 + 1];
        for (int64_t p = 0; p * PANEL < dim; p++) {
            const int64_t width = dim - p * PANEL < PANEL ? dim - p * PANEL : PANEL;
            elem *pairs = out + p * num_words * PANEL * 2;
            int64_t i = 0;
            for (; i + LANES <= width && second; i += LANES)
                vi_store(pairs + 2 * i, vi_pairs(first + p * PANEL + i, second + p * PANEL + i));
            for (; i < width; i++) {
                pairs[2 * i] = first[p * PANEL + i];
                pairs[2 * i + 1] = second ? second[p * PANEL + i] : 0;
            }
        }
#else
        for (int64_t p = 0; p * PANEL < dim; p++) {
            const int64_t width = dim - p * PANEL < PANEL ? dim - p * PANEL : PANEL;
            memcpy(out + p * num_words * PANEL, first + p * PANEL, (size_t)width * 4);
        }
#endif
    }
}
