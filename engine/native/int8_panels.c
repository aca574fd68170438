/* See int8_panels.h. */
#include "int8_panels.h"

#include <string.h>

#include "products.h"

#define BLOCK_WORDS (BLOCK_INPUTS / PER_WORD)

/* Rows at once with both halves of a panel: twice the sums of panels.c, those of the block and
 * those of all. With one half it is twice as many rows. */
#define MAX_INT8_TILE_ROWS (LANES == 16 ? 6 : 2)
#define MAX_HALF_TILE_ROWS (2 * MAX_INT8_TILE_ROWS)

/* Up to here widening again for each tile costs less than widening once and reading it back. */
#define MAX_NARROW_ROWS (6 * MAX_INT8_TILE_ROWS)

/* Blocks widened at once for many rows: half a panel of them stays in the first-level cache. */
#define BLOCKS_AT_ONCE 18

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

/* Some rows with both halves of a panel, or more rows with the half that begins at `lane`.
 * `widened`: words of that half's blocks, or NULL: they are widened from `panel` on the way. */
INLINE void tile(const int rows, const int halves, int64_t lane, const elem *x, int64_t x_stride,
                 const uint8_t *panel, const word *widened, int64_t num_blocks, float *out,
                 int64_t out_stride, int adds_to_out) {
    const word *operand = (const word *)x;
    const int64_t stride = x_stride / PER_WORD;
    vf totals[MAX_HALF_TILE_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < halves; h++)
            totals[r][h] = adds_to_out ? vf_load(out + r * out_stride + lane + h * LANES) : vf_zero();
    for (int64_t b = 0; b < num_blocks; b++, panel += BLOCK_BYTES, operand += BLOCK_WORDS) {
        const int8_t *numbers = (const int8_t *)panel + 2 * PANEL + PER_WORD * lane;
        vf sums[MAX_HALF_TILE_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < halves; h++) sums[r][h] = vf_zero();
        for (int64_t k = 0; k < BLOCK_WORDS; k++) {
            const int8_t *from = numbers + k * PER_WORD * PANEL;
            const word *ready = widened ? widened + (b * BLOCK_WORDS + k) * LANES : NULL;
            weights_vector weights[2];
            UNROLL for (int h = 0; h < halves; h++)
                weights[h] = widened ? load_weights(ready + h * LANES) : widen(from + h * PER_WORD * LANES);
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int h = 0; h < halves; h++)
                    sums[r][h] = add_products(sums[r][h], weights[h], operand + r * stride + k);
        }
        UNROLL for (int h = 0; h < halves; h++) {
            const vf scale = vf_from_halves((const uint16_t *)panel + lane + h * LANES);
            UNROLL for (int r = 0; r < rows; r++) totals[r][h] = vf_fma(sums[r][h], scale, totals[r][h]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < halves; h++)
            vf_store(out + r * out_stride + lane + h * LANES, totals[r][h]);
}

#define TILE(N, HALVES, LANE, WIDENED) \
    case N: tile(N, HALVES, LANE, x, x_stride, panel, WIDENED, num_blocks, out, out_stride, adds_to_out); break;
#if LANES == 16
#define SMALL_TILES(HALVES, LANE, WIDENED) \
    TILE(1, HALVES, LANE, WIDENED) TILE(2, HALVES, LANE, WIDENED) TILE(3, HALVES, LANE, WIDENED) \
    TILE(4, HALVES, LANE, WIDENED) TILE(5, HALVES, LANE, WIDENED) TILE(6, HALVES, LANE, WIDENED)
#define LARGE_TILES(LANE, WIDENED) \
    TILE(7, 1, LANE, WIDENED) TILE(8, 1, LANE, WIDENED) TILE(9, 1, LANE, WIDENED) \
    TILE(10, 1, LANE, WIDENED) TILE(11, 1, LANE, WIDENED) TILE(12, 1, LANE, WIDENED)
#else
#define SMALL_TILES(HALVES, LANE, WIDENED) TILE(1, HALVES, LANE, WIDENED) TILE(2, HALVES, LANE, WIDENED)
#define LARGE_TILES(LANE, WIDENED) TILE(3, 1, LANE, WIDENED) TILE(4, 1, LANE, WIDENED)
#endif

/* Few rows: every tile widens the panel again, in registers, beside its products. */
static void multiply_narrow(int64_t num_rows, const elem *all_x, int64_t x_stride, const uint8_t *panel,
                            int64_t num_blocks, float *all_out, int64_t out_stride) {
    const int adds_to_out = 0;
    const int64_t num_tiles = (num_rows + MAX_INT8_TILE_ROWS - 1) / MAX_INT8_TILE_ROWS;
    for (int64_t t = 0; t < num_tiles; t++) {
        const int64_t row = num_rows * t / num_tiles, end = num_rows * (t + 1) / num_tiles;
        const elem *x = all_x + row * x_stride;
        float *out = all_out + row * out_stride;
        switch (end - row) { SMALL_TILES(2, 0, NULL) }
    }
}

static void multiply_widened(int rows, int64_t lane, const elem *x, int64_t x_stride,
                             const uint8_t *panel, const word *widened, int64_t num_blocks, float *out,
                             int64_t out_stride, int adds_to_out) {
    switch (rows) { SMALL_TILES(1, lane, widened) LARGE_TILES(lane, widened) }
}

/* The half of the blocks that begins at `lane`. */
static void widen_half(const uint8_t *panel, int64_t lane, int64_t num_blocks, word *out) {
    for (int64_t b = 0; b < num_blocks; b++, panel += BLOCK_BYTES) {
        const int8_t *from = (const int8_t *)panel + 2 * PANEL + PER_WORD * lane;
        for (int64_t k = 0; k < BLOCK_WORDS; k++, from += PER_WORD * PANEL, out += LANES)
            store_weights(out, widen(from));
    }
}

void multiply_int8_rows(int64_t rows, const elem *x, int64_t x_stride, const void *panel,
                        int64_t num_blocks, float *out, int64_t out_stride) {
    if (rows <= MAX_NARROW_ROWS) {
        multiply_narrow(rows, x, x_stride, panel, num_blocks, out, out_stride);
        return;
    }
    _Alignas(64) word widened[BLOCKS_AT_ONCE * BLOCK_WORDS * LANES];
    const int64_t num_tiles = (rows + MAX_HALF_TILE_ROWS - 1) / MAX_HALF_TILE_ROWS;
    for (int64_t first = 0; first < num_blocks; first += BLOCKS_AT_ONCE) {
        const int64_t left = num_blocks - first, part = left < BLOCKS_AT_ONCE ? left : BLOCKS_AT_ONCE;
        const uint8_t *blocks = (const uint8_t *)panel + first * BLOCK_BYTES;
        for (int64_t lane = 0; lane < PANEL; lane += LANES) {
            widen_half(blocks, lane, part, widened);
            for (int64_t t = 0; t < num_tiles; t++) {
                const int64_t row = rows * t / num_tiles, end = rows * (t + 1) / num_tiles;
                multiply_widened((int)(end - row), lane, x + row * x_stride + first * BLOCK_INPUTS,
                                 x_stride, blocks, widened, part, out + row * out_stride, out_stride,
                                 first > 0);
            }
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
