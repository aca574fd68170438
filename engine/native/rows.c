/* See rows.h. Plain loops that the compiler turns into vectors: an index is always computed by the
 * same instructions, so bits do not depend on the batch. */
#include "rows.h"

#include <math.h>

void norm_row(const float *x, const float *weight, int64_t size, float epsilon, elem *out) {
    vf squares = vf_zero();
    for (int64_t i = 0; i < padded(size); i += LANES) {
        const vf value = vf_load(x + i);
        squares = vf_fma(value, value, squares);
    }
    const vf scale = vf_set(1.0f / sqrtf(vf_sum(squares) / (float)size + epsilon));
    for (int64_t i = 0; i < padded(size); i += LANES)
        vf_store_elems(out + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(weight + i)));
}

/* One value, rounded as vf_store_elems rounds. */
INLINE elem rounded(float x) {
#ifdef ELEM_BF16
    union { float value; uint32_t bits; } u = {x};
    if (x != x) return 0x7fc0;
    return (elem)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
#else
    return x;
#endif
}

void round_row(const float *values, const float *bias, int64_t size, elem *out) {
    for (int64_t i = 0; i < size; i++) out[i] = rounded(bias ? values[i] + bias[i] : values[i]);
}

void rope_head(float *head, const float *bias, const float *norm, float epsilon, const float *cos,
               const float *signed_sin, int64_t head_dim, elem *out) {
    if (bias)
        for (int64_t i = 0; i < head_dim; i++) head[i] += bias[i];
    if (norm) {
        float squares = 0;
        for (int64_t i = 0; i < head_dim; i++) squares += head[i] * head[i];
        const float scale = 1.0f / sqrtf(squares / (float)head_dim + epsilon);
        for (int64_t i = 0; i < head_dim; i++) head[i] = head[i] * scale * norm[i];
    }
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = head[i], second = head[i + half];
        out[i] = rounded(first * cos[i] + second * signed_sin[i]);
        out[i + half] = rounded(second * cos[i + half] + first * signed_sin[i + half]);
    }
}

int32_t largest_at(const float *values, int64_t size) {
    vf largest = vf_set(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) largest = vf_max(largest, vf_load(values + i));
    float found = vf_largest(largest);
    for (; i < size; i++) found = values[i] > found ? values[i] : found;
    for (i = 0; i < size && values[i] != found; i++) continue;
    return (int32_t)(i < size ? i : 0); /* none: there is no number among them */
}
