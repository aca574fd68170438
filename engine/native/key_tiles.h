/* The keys and values of KEY_TILE positions of a sequence, out of its blocks, as panels that rows of
 * queries and of softmax weights are multiplied with.
 *
 * Knows nothing of softmax. Not covered: keys and values in another type than the activations.
 */
#ifndef PDSERVE_KEY_TILES_H
#define PDSERVE_KEY_TILES_H

#include "panels.h"

#define KEY_TILE 64

/* Where the keys and values of one layer and KV head of a sequence lie. */
typedef struct {
    const elem *keys;     /* of block 0: [block_size, head_dim] */
    const elem *values;
    int64_t block_stride; /* elements from a block to the next */
    int64_t block_size, head_dim;
    const int32_t *table;
} PagedKv;

/* Rows of keys or values (base: kv->keys or kv->values) at the positions tile .. tile + KEY_TILE;
 * those from num_keys on are NULL. */
void tile_rows(const PagedKv *kv, const elem *base, int64_t tile, int64_t num_keys,
               const elem *rows[KEY_TILE]);

/* Keys as a weight with KEY_TILE outputs and head_dim inputs, zero from num_keys to the panel's end. */
void pack_keys(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels);

/* Values as a weight with head_dim outputs and KEY_TILE inputs; of those words_of(num_keys) are written. */
void pack_values(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels);

#endif
