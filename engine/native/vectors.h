/* Vectors of float32 on AVX-512 or AVX2, and the few operations the kernels are made of.
 *
 * Nothing here knows about models. Every operation rounds each lane by itself, so a value's bits
 * do not depend on its neighbours. Reductions have one fixed shape.
 */
#ifndef PDSERVE_VECTORS_H
#define PDSERVE_VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#include "native.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define LANES 16
typedef __m512 vf;
typedef __m512i vi;
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float vf_sum(vf x) { return _mm512_reduce_add_ps(x); }
INLINE float vf_largest(vf x) { return _mm512_reduce_max_ps(x); }
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vf vf_from_low(vi w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
INLINE vf vf_from_high(vi w) { return _mm512_castsi512_ps(_mm512_and_si512(w, vi_set((int32_t)0xffff0000))); }
/* Lanes below count keep x, the others become other. */
INLINE vf vf_first(int count, vf x, vf other) {
    __mmask16 mask = (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
    return _mm512_mask_blend_ps(mask, other, x);
}
INLINE int vf_any_above(vf x, vf limit) { return _mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ) != 0; }
INLINE vf vf_select_negative(vf sign, vf if_negative, vf otherwise) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), otherwise, if_negative);
}
INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_times_power(vf x, vf power) { return _mm512_scalef_ps(x, power); }
INLINE vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
INLINE void vi_store(void *p, vi x) { _mm512_storeu_si512(p, x); }
/* Interleaved inside each 128 bits. */
INLINE vi vi_low16(vi a, vi b) { return _mm512_unpacklo_epi16(a, b); }
INLINE vi vi_high16(vi a, vi b) { return _mm512_unpackhi_epi16(a, b); }
INLINE vi vi_low32(vi a, vi b) { return _mm512_unpacklo_epi32(a, b); }
INLINE vi vi_high32(vi a, vi b) { return _mm512_unpackhi_epi32(a, b); }
INLINE vi vi_low64(vi a, vi b) { return _mm512_unpacklo_epi64(a, b); }
INLINE vi vi_high64(vi a, vi b) { return _mm512_unpackhi_epi64(a, b); }
/* 128 bits from each of LANES / 4 places, every fourth in the list. */
INLINE vi vi_quads(const void *const *at, int64_t bytes) {
    const char *const *from = (const char *const *)at;
    vi x = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(from[0] + bytes)));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(from[4] + bytes)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(from[8] + bytes)), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(from[12] + bytes)), 3);
}
/* Floats that lie as vi_low16 and vi_high16 leave pairs, in their order. */
INLINE void vf_restore(vf *low, vf *high) {
    const vf a = _mm512_shuffle_f32x4(*low, *high, 0x44), b = _mm512_shuffle_f32x4(*low, *high, 0xee);
    *low = _mm512_shuffle_f32x4(a, a, 0xd8);
    *high = _mm512_shuffle_f32x4(b, b, 0xd8);
}
/* Lane i: low half from a, high half from b. */
INLINE vi vi_pairs(const uint16_t *a, const uint16_t *b) {
    vi low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)a));
    vi high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
INLINE void vf_store_bf16(uint16_t *p, vf x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(x));
#else
    vi bits = _mm512_castps_si512(x);
    vi odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), vi_set(1));
    vi rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, vi_set(0x7fff))), 16);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), vi_set(0x7fc0));
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(rounded));
#endif
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES 8
typedef __m256 vf;
typedef __m256i vi;
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE float vf_sum(vf x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE float vf_largest(vf x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
INLINE vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vf vf_from_low(vi w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
INLINE vf vf_from_high(vi w) { return _mm256_castsi256_ps(_mm256_and_si256(w, vi_set((int32_t)0xffff0000))); }
INLINE vf vf_first(int count, vf x, vf other) {
    vi lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(vi_set(count), lane)));
}
INLINE int vf_any_above(vf x, vf limit) { return _mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_GT_OQ)) != 0; }
INLINE vf vf_select_negative(vf sign, vf if_negative, vf otherwise) {
    return _mm256_blendv_ps(otherwise, if_negative, sign);
}
INLINE vf vf_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_times_power(vf x, vf power) {
    vi exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
INLINE vf vf_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
INLINE void vi_store(void *p, vi x) { _mm256_storeu_si256(p, x); }
INLINE vi vi_low16(vi a, vi b) { return _mm256_unpacklo_epi16(a, b); }
INLINE vi vi_high16(vi a, vi b) { return _mm256_unpackhi_epi16(a, b); }
INLINE vi vi_low32(vi a, vi b) { return _mm256_unpacklo_epi32(a, b); }
INLINE vi vi_high32(vi a, vi b) { return _mm256_unpackhi_epi32(a, b); }
INLINE vi vi_low64(vi a, vi b) { return _mm256_unpacklo_epi64(a, b); }
INLINE vi vi_high64(vi a, vi b) { return _mm256_unpackhi_epi64(a, b); }
INLINE vi vi_quads(const void *const *at, int64_t bytes) {
    const char *const *from = (const char *const *)at;
    const vi x = _mm256_castsi128_si256(_mm_loadu_si128((const void *)(from[0] + bytes)));
    return _mm256_inserti128_si256(x, _mm_loadu_si128((const void *)(from[4] + bytes)), 1);
}
INLINE void vf_restore(vf *low, vf *high) {
    const vf a = _mm256_permute2f128_ps(*low, *high, 0x20), b = _mm256_permute2f128_ps(*low, *high, 0x31);
    *low = a;
    *high = b;
}
INLINE vi vi_pairs(const uint16_t *a, const uint16_t *b) {
    vi low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)a));
    vi high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)b));
    return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
}
INLINE void vf_store_bf16(uint16_t *p, vf x) {
    vi bits = _mm256_castps_si256(x);
    vi odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), vi_set(1));
    vi rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, vi_set(0x7fff))), 16);
    vi nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, vi_set(0x7fc0), nan);
    vi packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(packed));
}
#else
#error "needs AVX2 with FMA and F16C, or AVX-512"
#endif

#ifdef ELEM_BF16
INLINE vf vf_load_elems(const elem *p) { return vf_load_bf16(p); }
INLINE void vf_store_elems(elem *p, vf x) { vf_store_bf16(p, x); }
#else
INLINE vf vf_load_elems(const elem *p) { return vf_load(p); }
INLINE void vf_store_elems(elem *p, vf x) { vf_store(p, x); }
#endif

/* exp for x <= 0, within 2 units in the last place; below -87 it stays at about 1e-38. */
INLINE vf vf_exp(vf x) {
    x = vf_max(x, vf_set(-87.0f));
    vf power = vf_round(vf_mul(x, vf_set(1.44269504088896341f)));
    vf r = vf_fma(power, vf_set(-0.693359375f), x);
    r = vf_fma(power, vf_set(2.12194440e-4f), r);
    vf y = vf_set(1.9875691500e-4f);
    y = vf_fma(y, r, vf_set(1.3981999507e-3f));
    y = vf_fma(y, r, vf_set(8.3334519073e-3f));
    y = vf_fma(y, r, vf_set(4.1665795894e-2f));
    y = vf_fma(y, r, vf_set(1.6666665459e-1f));
    y = vf_fma(y, r, vf_set(5.0000001201e-1f));
    y = vf_fma(y, vf_mul(r, r), vf_add(r, vf_set(1.0f)));
    return vf_times_power(y, power);
}

/* 2^x for x <= 100 (coefficients of Cephes' exp2f), within 2 units in the last place; below -126 it
 * stays at about 1e-38. */
INLINE vf vf_exp2(vf x) {
    x = vf_max(x, vf_set(-126.0f));
    const vf power = vf_round(x), r = vf_sub(x, power);
    vf y = vf_set(1.535336188319500e-4f);
    y = vf_fma(y, r, vf_set(1.339887440266574e-3f));
    y = vf_fma(y, r, vf_set(9.618437357674640e-3f));
    y = vf_fma(y, r, vf_set(5.550332471162809e-2f));
    y = vf_fma(y, r, vf_set(2.402264791363012e-1f));
    y = vf_fma(y, r, vf_set(6.931472028550421e-1f));
    y = vf_fma(y, r, vf_set(1.0f));
    return vf_times_power(y, power);
}

INLINE int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

#endif
