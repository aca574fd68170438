/* Weights in panels and the product of rows with one panel: the kernel everything is made of.
 *
 * A weight [outputs, inputs] lies in panels of PANEL outputs. A panel is a list of words of 4
 * bytes, [inputs / PER_WORD][PANEL]: a word holds one float32, or two bfloat16 that follow each
 * other along the inputs. Missing outputs and inputs are zero. So a kernel reads one stream, and an
 * output is one lane that adds its products in the order of the inputs: its bits depend on its row
 * and its weights, not on how many rows are computed with it.
 *
 * Rows of activations ("operands") are elem arrays whose length is a whole number of words, zero
 * behind the end.
 */
#ifndef PDSERVE_PANELS_H
#define PDSERVE_PANELS_H

#include "vectors.h"

#define PANEL (2 * LANES)

#ifdef ELEM_BF16
#define PER_WORD 2
#if LANES == 16
#define MAX_TILE_ROWS 12
#else
#define MAX_TILE_ROWS 4
#endif
#else
#define PER_WORD 1
#if LANES == 16
#define MAX_TILE_ROWS 12
#else
#define MAX_TILE_ROWS 6
#endif
#endif

/* Elements from one operand row to the next. The extra line keeps rows of a power of two apart in
 * the cache's sets. */
INLINE int64_t operand_stride(int64_t inputs) { return round_up(inputs, 32) + 32; }

INLINE int64_t words_of(int64_t inputs) { return (inputs + PER_WORD - 1) / PER_WORD; }

INLINE int64_t panels_of(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

/* out [rows][PANEL], stride out_stride: rows of x times one panel, over num_words words. With
 * adds_to_out the sums go on from what is there. rows <= MAX_TILE_ROWS. */
void multiply_tile(int rows, const elem *x, int64_t x_stride, const void *panel, int64_t num_words,
                   float *out, int64_t out_stride, int adds_to_out);

/* The same for any number of rows. */
void multiply_rows(int64_t rows, const elem *x, int64_t x_stride, const void *panel,
                   int64_t num_words, float *out, int64_t out_stride, int adds_to_out);

/* Bytes of one panel of a weight, whatever its numbers are. */
int64_t panel_bytes(const Linear *linear);

/* out [rows][PANEL]: rows of x times one panel of a weight, whatever its numbers are. */
void multiply_panel(const Linear *linear, int64_t panel, int64_t rows, const elem *x, int64_t x_stride,
                    float *out);

/* Which row of the weight stands at a lane of a panel; -1: none. */
INLINE int64_t packed_row(int64_t panel, int lane, int64_t outputs, int is_gated) {
    int64_t row = panel * PANEL + lane;
    if (!is_gated) return row < outputs ? row : -1;
    int64_t half = outputs / 2;
    row = panel * LANES + lane % LANES;
    return row < half ? row + (lane < LANES ? 0 : half) : -1;
}

#endif
