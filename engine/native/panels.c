/* See panels.h. Tiles after Goto and van de Geijn (ACM TOMS 34, 2008): sums stay in registers,
 * the panel comes from the second-level cache, rows from the first. */
#include "int8_panels.h"
#include "products.h"

#include <stdlib.h>
#include <string.h>

/* Words of a panel taken at once: with MAX_TILE_ROWS rows they stay in the second-level cache. */
#define WORDS_AT_ONCE 2048

const char *pd_instructions(void) { return INSTRUCTIONS; }

INLINE void tile(const int rows, const elem *x, int64_t x_stride, const void *panel,
                 int64_t num_words, float *out, int64_t out_stride, int adds_to_out) {
    const word *weights = panel, *operand = (const word *)x;
    const int64_t stride = x_stride / PER_WORD;
    vf sums[MAX_TILE_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        sums[r][0] = adds_to_out ? vf_load(out + r * out_stride) : vf_zero();
        sums[r][1] = adds_to_out ? vf_load(out + r * out_stride + LANES) : vf_zero();
    }
    for (int64_t k = 0; k < num_words; k++, weights += PANEL) {
        weights_vector left = load_weights(weights), right = load_weights(weights + LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            sums[r][0] = add_products(sums[r][0], left, operand + r * stride + k);
            sums[r][1] = add_products(sums[r][1], right, operand + r * stride + k);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vf_store(out + r * out_stride, sums[r][0]);
        vf_store(out + r * out_stride + LANES, sums[r][1]);
    }
}

#define TILE(N) \
    case N: tile(N, x, x_stride, panel, num_words, out, out_stride, adds_to_out); break;

void multiply_tile(int rows, const elem *x, int64_t x_stride, const void *panel, int64_t num_words,
                   float *out, int64_t out_stride, int adds_to_out) {
    switch (rows) {
        TILE(1) TILE(2) TILE(3) TILE(4)
#if MAX_TILE_ROWS >= 6
        TILE(5) TILE(6)
#endif
#if MAX_TILE_ROWS >= 12
        TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
    }
}

void multiply_rows(int64_t rows, const elem *x, int64_t x_stride, const void *panel,
                   int64_t num_words, float *out, int64_t out_stride, int adds_to_out) {
    const int64_t num_tiles = (rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS;
    for (int64_t word_at = 0; word_at < num_words; word_at += WORDS_AT_ONCE) {
        const int64_t part = num_words - word_at < WORDS_AT_ONCE ? num_words - word_at : WORDS_AT_ONCE;
        for (int64_t t = 0; t < num_tiles; t++) {
            const int64_t row = rows * t / num_tiles, end = rows * (t + 1) / num_tiles;
            multiply_tile((int)(end - row), x + row * x_stride + word_at * PER_WORD, x_stride,
                          (const word *)panel + word_at * PANEL, part, out + row * out_stride,
                          out_stride, adds_to_out || word_at);
        }
    }
}

int64_t panel_bytes(const Linear *linear) {
    return linear->is_int8 ? linear->inputs / BLOCK_INPUTS * BLOCK_BYTES : words_of(linear->inputs) * PANEL * 4;
}

void multiply_panel(const Linear *linear, int64_t panel, int64_t rows, const elem *x, int64_t x_stride,
                    float *out) {
    const uint8_t *at = (const uint8_t *)linear->panels + panel * panel_bytes(linear);
    if (linear->is_int8)
        multiply_int8_rows(rows, x, x_stride, at, linear->inputs / BLOCK_INPUTS, out, PANEL);
    else
        multiply_rows(rows, x, x_stride, at, words_of(linear->inputs), out, PANEL, 0);
}

int64_t pd_panel_width(void) { return PANEL; }

int64_t pd_packed_words(int64_t outputs, int64_t inputs) {
    return panels_of(outputs) * PANEL * words_of(inputs);
}

void pd_pack(const elem *weight, int64_t outputs, int64_t inputs, int is_gated, void *panels) {
    const int64_t num_words = words_of(inputs);
    /* A gated weight has LANES of each half in a panel. */
    const int64_t num_panels = panels_of(outputs);
    memset(panels, 0, (size_t)pd_packed_words(outputs, inputs) * 4);
    for (int64_t p = 0; p < num_panels; p++) {
        elem *panel = (elem *)panels + p * num_words * PANEL * PER_WORD;
        for (int lane = 0; lane < PANEL; lane++) {
            const int64_t row = packed_row(p, lane, outputs, is_gated);
            if (row < 0) continue;
            const elem *from = weight + row * inputs;
            for (int64_t k = 0; k < inputs; k++)
                panel[(k / PER_WORD * PANEL + lane) * PER_WORD + k % PER_WORD] = from[k];
        }
    }
}

int pd_multiply(const Linear *linear, const elem *x, int64_t rows, float *out) {
    const int64_t stride = operand_stride(linear->inputs);
    elem *operand = calloc((size_t)(rows * stride), sizeof(elem));
    float *sums = malloc((size_t)rows * PANEL * sizeof(float));
    if (operand && sums) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(operand + r * stride, x + r * linear->inputs, (size_t)linear->inputs * sizeof(elem));
        for (int64_t p = 0; p < panels_of(linear->outputs); p++) {
            const int64_t left = linear->outputs - p * PANEL, width = left < PANEL ? left : PANEL;
            multiply_panel(linear, p, rows, operand, stride, sums);
            for (int64_t r = 0; r < rows; r++)
                memcpy(out + r * linear->outputs + p * PANEL, sums + r * PANEL, (size_t)width * 4);
        }
    }
    const int status = operand && sums ? 0 : -1;
    free(operand);
    free(sums);
    return status;
}
