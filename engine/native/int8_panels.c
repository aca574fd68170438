/* See int8_panels.h. */
#include "int8_panels.h"

#include <string.h>

#include "products.h"

#define BLOCK_WORDS (BLOCK_INPUTS / PER_WORD)

/* Rows at once: twice the sums of panels.c, those of the block and those of all. */
#define MAX_INT8_TILE_ROWS (LANES == 16 ? 6 : 2)

/* Blocks widened at once for many rows: 64 KiB of bfloat16, which stay in the second-level cache. */
#define BLOCKS_AT_ONCE 32

#if LANES == 16
INLINE vf vf_from_int8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vf vf_from_halves(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
#else
INLINE vf vf_from_int8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE vf vf_from_halves(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
#endif

/* LANES words of weights from PER_WORD * LANES numbers, exactly. */
#ifdef ELEM_BF16
INLINE weights_vector widen(const int8_t *p) {
    const vf even = vf_from_int8(p), odd = vf_from_int8(p + LANES);
#if LANES == 16
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(even), 16),
                                   _mm512_castps_si512(odd));
#else
    return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd),
                              0xaa);
#endif
}
INLINE void store_weights(word *p, weights_vector weights) { vi_store(p, weights); }
#else
INLINE weights_vector widen(const int8_t *p) { return vf_from_int8(p); }
INLINE void store_weights(word *p, weights_vector weights) { vf_store(p, weights); }
#endif

/* Where in its block the number of an input and a lane lies. */
INLINE int64_t place_in_block(int64_t input, int64_t lane) {
    const int64_t half = lane / LANES * PER_WORD + input % PER_WORD;
    return input / PER_WORD * PER_WORD * PANEL + half * LANES + lane % LANES;
}

/* `widened`: words of the blocks, or NULL: they are widened from `panel` on the way. */
INLINE void tile(const int rows, const elem *x, int64_t x_stride, const uint8_t *panel,
                 const word *widened, int64_t num_blocks, float *out, int64_t out_stride,
                 int adds_to_out) {
    const word *operand = (const word *)x;
    const int64_t stride = x_stride / PER_WORD;
    vf totals[MAX_INT8_TILE_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        totals[r][0] = adds_to_out ? vf_load(out + r * out_stride) : vf_zero();
        totals[r][1] = adds_to_out ? vf_load(out + r * out_stride + LANES) : vf_zero();
    }
    for (int64_t b = 0; b < num_blocks; b++, panel += BLOCK_BYTES, operand += BLOCK_WORDS) {
        const int8_t *numbers = (const int8_t *)panel + 2 * PANEL;
        vf sums[MAX_INT8_TILE_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = vf_zero();
        for (int64_t k = 0; k < BLOCK_WORDS; k++) {
            const int8_t *from = numbers + k * PER_WORD * PANEL;
            const word *ready = widened ? widened + (b * BLOCK_WORDS + k) * PANEL : NULL;
            const weights_vector left = widened ? load_weights(ready) : widen(from);
            const weights_vector right =
                widened ? load_weights(ready + LANES) : widen(from + PER_WORD * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                sums[r][0] = add_products(sums[r][0], left, operand + r * stride + k);
                sums[r][1] = add_products(sums[r][1], right, operand + r * stride + k);
            }
        }
        const vf left = vf_from_halves((const uint16_t *)panel);
        const vf right = vf_from_halves((const uint16_t *)panel + LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            totals[r][0] = vf_fma(sums[r][0], left, totals[r][0]);
            totals[r][1] = vf_fma(sums[r][1], right, totals[r][1]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vf_store(out + r * out_stride, totals[r][0]);
        vf_store(out + r * out_stride + LANES, totals[r][1]);
    }
}

#define TILE(N, WIDENED) \
    case N: tile(N, x, x_stride, panel, WIDENED, num_blocks, out, out_stride, adds_to_out); break;
#if LANES == 16
#define TILES(WIDENED) \
    TILE(1, WIDENED) TILE(2, WIDENED) TILE(3, WIDENED) TILE(4, WIDENED) TILE(5, WIDENED) TILE(6, WIDENED)
#else
#define TILES(WIDENED) TILE(1, WIDENED) TILE(2, WIDENED)
#endif

static void multiply_narrow(int rows, const elem *x, int64_t x_stride, const uint8_t *panel,
                            int64_t num_blocks, float *out, int64_t out_stride) {
    const int adds_to_out = 0;
    switch (rows) { TILES(NULL) }
}

static void multiply_widened(int rows, const elem *x, int64_t x_stride, const uint8_t *panel,
                             const word *widened, int64_t num_blocks, float *out, int64_t out_stride,
                             int adds_to_out) {
    switch (rows) { TILES(widened) }
}

static void widen_blocks(const uint8_t *panel, int64_t num_blocks, word *out) {
    for (int64_t b = 0; b < num_blocks; b++, panel += BLOCK_BYTES) {
        const int8_t *from = (const int8_t *)panel + 2 * PANEL;
        for (int64_t i = 0; i < 2 * BLOCK_WORDS; i++, from += PER_WORD * LANES, out += LANES)
            store_weights(out, widen(from));
    }
}

void multiply_int8_rows(int64_t rows, const elem *x, int64_t x_stride, const void *panel,
                        int64_t num_blocks, float *out, int64_t out_stride) {
    if (rows <= MAX_INT8_TILE_ROWS) {
        multiply_narrow((int)rows, x, x_stride, panel, num_blocks, out, out_stride);
        return;
    }
    _Alignas(64) word widened[BLOCKS_AT_ONCE * BLOCK_WORDS * PANEL];
    const int64_t num_tiles = (rows + MAX_INT8_TILE_ROWS - 1) / MAX_INT8_TILE_ROWS;
    for (int64_t first = 0; first < num_blocks; first += BLOCKS_AT_ONCE) {
        const int64_t left = num_blocks - first, part = left < BLOCKS_AT_ONCE ? left : BLOCKS_AT_ONCE;
        const uint8_t *blocks = (const uint8_t *)panel + first * BLOCK_BYTES;
        widen_blocks(blocks, part, widened);
        for (int64_t t = 0; t < num_tiles; t++) {
            const int64_t row = rows * t / num_tiles, end = rows * (t + 1) / num_tiles;
            multiply_widened((int)(end - row), x + row * x_stride + first * BLOCK_INPUTS, x_stride, blocks,
                             widened, part, out + row * out_stride, out_stride, first > 0);
        }
    }
}

void widen_int8_row(const int8_t *values, const uint16_t *scales, int64_t size, float *out) {
    for (int64_t b = 0; b < size / BLOCK_INPUTS; b++) {
        const vf scale = vf_set(_cvtsh_ss(scales[b]));
        for (int64_t i = b * BLOCK_INPUTS; i < (b + 1) * BLOCK_INPUTS; i += LANES)
            vf_store(out + i, vf_mul(vf_from_int8(values + i), scale));
    }
}

int64_t pd_packed_int8_words(int64_t outputs, int64_t inputs) {
    return panels_of(outputs) * (inputs / BLOCK_INPUTS) * BLOCK_BYTES / 4;
}

void pd_pack_int8(const int8_t *values, const uint16_t *scales, int64_t outputs, int64_t inputs,
                  int is_gated, void *panels) {
    const int64_t num_blocks = inputs / BLOCK_INPUTS;
    memset(panels, 0, (size_t)pd_packed_int8_words(outputs, inputs) * 4);
    for (int64_t p = 0; p < panels_of(outputs); p++)
        for (int lane = 0; lane < PANEL; lane++) {
            const int64_t row = packed_row(p, lane, outputs, is_gated);
            if (row < 0) continue;
            for (int64_t b = 0; b < num_blocks; b++) {
                uint8_t *block = (uint8_t *)panels + (p * num_blocks + b) * BLOCK_BYTES;
                ((uint16_t *)block)[lane] = scales[row * num_blocks + b];
                const int8_t *from = values + row * inputs + b * BLOCK_INPUTS;
                for (int64_t i = 0; i < BLOCK_INPUTS; i++)
                    ((int8_t *)block)[2 * PANEL + place_in_block(i, lane)] = from[i];
            }
        }
}
