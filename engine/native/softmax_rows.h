/* Softmax of rows of scores that come tile by tile, with a running maximum (FlashAttention, arXiv
 * 2205.14135): the one order of operations that every way through attention keeps.
 *
 * Knows neither keys nor where scores come from.
 */
#ifndef PDSERVE_SOFTMAX_ROWS_H
#define PDSERVE_SOFTMAX_ROWS_H

#include <math.h>

#include "attention.h"

#define KEY_VECTORS (KEY_TILE / LANES)

/* How far (in powers of two) a score may exceed what weights are relative to before sums are scaled
 * anew: weights stay below 2^8 and most tiles change nothing. */
#define SLACK 8.0f

INLINE int64_t padded_dim(int64_t head_dim) { return panels_of(head_dim) * PANEL; }
INLINE int64_t weights_stride(void) { return operand_stride(KEY_TILE); }

/* Weights of a row become relative to a larger score. */
static inline void raise_largest(const AttentionScratch *s, int64_t row, float now, float scale, int64_t dim) {
    float *sums = s->sums + row * padded_dim(dim), *totals = s->totals + row * LANES;
    const float before = s->largest[row];
    const vf factor = before == -INFINITY ? vf_zero() : vf_exp2(vf_set((before - now) * scale));
    for (int64_t i = 0; i < padded_dim(dim); i += LANES)
        vf_store(sums + i, vf_mul(vf_load(sums + i), factor));
    vf_store(totals, vf_mul(vf_load(totals), factor));
    s->largest[row] = now;
}

/* Scores of one row (of them num_visible count) become weights 2^((score - largest) * scale). */
INLINE void soften(const AttentionScratch *s, int64_t row, const float *scores, elem *weights,
                   const int is_masked, int64_t num_visible, float scale, int64_t dim) {
    vf x[KEY_VECTORS], largest = vf_set(-INFINITY);
    UNROLL for (int i = 0; i < KEY_VECTORS; i++) {
        x[i] = vf_load(scores + i * LANES);
        if (is_masked)
            x[i] = vf_first((int)(num_visible < i * LANES ? 0 : num_visible - i * LANES), x[i], vf_set(-INFINITY));
        largest = vf_max(largest, x[i]);
    }
    if (vf_any_above(largest, vf_set(s->largest[row] + SLACK / scale)))
        raise_largest(s, row, vf_largest(largest), scale, dim);
    const vf offset = vf_set(-s->largest[row] * scale);
    vf total = vf_load(s->totals + row * LANES);
    UNROLL for (int i = 0; i < KEY_VECTORS; i++) {
        vf weight = vf_exp2(vf_fma(x[i], vf_set(scale), offset));
        if (is_masked)
            weight = vf_first((int)(num_visible < i * LANES ? 0 : num_visible - i * LANES), weight, vf_zero());
        total = vf_add(total, weight);
        vf_store_elems(weights + i * LANES, weight);
    }
    vf_store(s->totals + row * LANES, total);
}

#endif
