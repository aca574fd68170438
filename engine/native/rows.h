/* What happens to one token's row between the large products: norm, bias, rotation, gate.
 *
 * Arrays that end at "padded" lengths are zero behind their end, so loops need no tails.
 */
#ifndef PDSERVE_ROWS_H
#define PDSERVE_ROWS_H

#include "panels.h"

/* Length of a float32 row of `size` values, a whole number of vectors. */
INLINE int64_t padded(int64_t size) { return round_up(size, 32); }

/* RMSNorm (arXiv 1910.07467) of x [padded size] times weight, rounded once, into an operand row. */
void norm_row(const float *x, const float *weight, int64_t size, float epsilon, elem *out);

/* Rotary embedding (arXiv 2104.09864) of one head in its half-rotated order, after an optional bias
 * and an optional norm of the head. head [head_dim] is changed; out gets it rounded. */
void rope_head(float *head, const float *bias, const float *norm, float epsilon, const float *cos,
               const float *signed_sin, int64_t head_dim, elem *out);

/* values + bias (may be NULL), rounded. */
void round_row(const float *values, const float *bias, int64_t size, elem *out);

/* Where the largest of `size` values is, the first among equals. */
int32_t largest_at(const float *values, int64_t size);

/* A tile's row of a gated weight: LANES gates, then LANES values -> silu(gate) * value, rounded. */
INLINE void gate_row(const float *sums, elem *out) {
    const vf gate = vf_load(sums), value = vf_load(sums + LANES);
    /* 1 / (1 + exp(-g)) by way of exp(-|g|), which does not overflow. */
    const vf small = vf_exp(vf_min(gate, vf_sub(vf_zero(), gate)));
    const vf share = vf_div(vf_set(1.0f), vf_add(vf_set(1.0f), small));
    const vf sigmoid = vf_select_negative(gate, vf_mul(small, share), share);
    vf_store_elems(out, vf_mul(vf_mul(gate, sigmoid), value));
}

#endif
