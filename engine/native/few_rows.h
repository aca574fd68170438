/* Attention of one query of a few heads, straight out of the blocks: nothing is packed.
 *
 * A score is a lane that adds its products in the order of the head's dimensions, an output one that
 * adds them in the order of the keys, over the same tiles and with the same softmax as many rows have
 * (attention.c): so the bits are those of the same query in a chunk.
 *
 * Not covered (they are packed): more heads than MAX_FEW_ROWS, a head_dim that is no multiple of PANEL.
 */
#ifndef PDSERVE_FEW_ROWS_H
#define PDSERVE_FEW_ROWS_H

#include "attention.h"

#define MAX_FEW_ROWS 4

INLINE int takes_few_rows(int64_t rows, int64_t head_dim) {
    return rows <= MAX_FEW_ROWS && head_dim % PANEL == 0 && head_dim <= MAX_FAST_DIM;
}

/* Add the first num_keys keys to s->sums, s->totals and s->largest of `rows` rows. */
void attend_few_rows(const AttentionScratch *s, const PagedKv *kv, int64_t rows, int64_t num_keys,
                     float scale);

#endif
