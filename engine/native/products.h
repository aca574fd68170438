/* A word of weights times a word of an operand: what every product of panels is made of. */
#ifndef PDSERVE_PRODUCTS_H
#define PDSERVE_PRODUCTS_H

#include "panels.h"

#ifdef ELEM_BF16
typedef uint32_t word;
typedef vi weights_vector;
INLINE vi load_weights(const word *p) { return vi_load(p); }
#if LANES == 16 && defined(__AVX512BF16__)
#define INSTRUCTIONS "avx512-bf16"
INLINE vf add_products(vf sum, vi weights, const word *x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)vi_set((int32_t)*x));
}
#else
INLINE vf add_products(vf sum, vi weights, const word *x) {
    vi both = vi_set((int32_t)*x);
    sum = vf_fma(vf_from_low(weights), vf_from_low(both), sum);
    return vf_fma(vf_from_high(weights), vf_from_high(both), sum);
}
#endif
#else
typedef float word;
typedef vf weights_vector;
INLINE vf load_weights(const word *p) { return vf_load(p); }
INLINE vf add_products(vf sum, vf weights, const word *x) { return vf_fma(weights, vf_set(*x), sum); }
#endif

#ifndef INSTRUCTIONS
#define INSTRUCTIONS (LANES == 16 ? "avx512" : "avx2")
#endif

#endif
