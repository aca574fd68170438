/* Attention of one run of queries of one sequence and KV head over paged KV.
 *
 * Keys are taken in tiles of KEY_TILE positions counted from position 0, with a running maximum and
 * sum (FlashAttention, arXiv 2205.14135). A query meets the same tiles in the same order whether it
 * is computed alone, in a chunk or beside others, and a masked key adds exactly nothing, so its
 * bits depend on its own position alone. Grouped queries share the packed keys and values.
 */
#ifndef PDSERVE_ATTENTION_H
#define PDSERVE_ATTENTION_H

#include "key_tiles.h"

#define MAX_QUERY_ROWS 192 /* queries x heads computed together; more only if one query has more */

/* Scratch of one thread. */
typedef struct {
    void *key_panels, *value_panels; /* of one tile */
    elem *queries;                   /* [rows] operands */
    elem *weights;                   /* [MAX_TILE_ROWS] operands of KEY_TILE */
    float *scores;                   /* [MAX_TILE_ROWS, KEY_TILE] */
    float *sums;                     /* [rows, padded head_dim] */
    float *largest;                  /* [rows] what softmax weights are relative to */
    float *totals;                   /* [rows, LANES] of the weights */
} AttentionScratch;

/* Bytes for the scratch of `rows` query rows. */
int64_t attention_scratch_bytes(int64_t rows, int64_t head_dim);
AttentionScratch attention_scratch(void *memory, int64_t rows, int64_t head_dim);

/* Rows are num_queries x heads_per_kv, query by query, in scratch->queries; query i stands at
 * position start + i. out: row r of query i, head g at out + i * out_stride + g * head_dim. */
void attend(const AttentionScratch *scratch, const PagedKv *kv, int64_t num_queries,
            int64_t heads_per_kv, int64_t start, float score_scale, elem *out, int64_t out_stride);

#endif
