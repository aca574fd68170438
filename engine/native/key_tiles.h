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

/* Keys and values at the positions tile .. tile + KEY_TILE; those from num_keys on are NULL. */
void tile_rows(const PagedKv *kv, int64_t tile, int64_t num_keys, const elem *keys[KEY_TILE],
               const elem *values[KEY_TILE]);

/* Up to this head_dim a row of zeros can stand where there is no key. */
#define MAX_FAST_DIM 1024
extern const elem no_key[MAX_FAST_DIM];

/* Four words from `word` on of LANES rows, transposed: lane i of out[j] is word j of row i. */
INLINE void transpose_four(const elem *const rows[LANES], int64_t word, vi out[4]) {
    vi a[4];
    UNROLL for (int i = 0; i < 4; i++) a[i] = vi_quads((const void *const *)rows + i, word * 4);
    const vi b = vi_low32(a[0], a[1]), c = vi_low32(a[2], a[3]);
    const vi d = vi_high32(a[0], a[1]), e = vi_high32(a[2], a[3]);
    out[0] = vi_low64(b, c);
    out[1] = vi_high64(b, c);
    out[2] = vi_low64(d, e);
    out[3] = vi_high64(d, e);
}

/* Keys as a weight with KEY_TILE outputs and head_dim inputs, zero from num_keys to the panel's end. */
void pack_keys(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels);

/* Values as a weight with head_dim outputs and KEY_TILE inputs; of those words_of(num_keys) are written. */
void pack_values(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels);

#endif
