/* Panels of int8 weights in blocks of BLOCK_INPUTS inputs with a float16 scale each (Q8_0's numbers).
 *
 * A panel is a list of blocks, each PANEL scales and then BLOCK_INPUTS * PANEL numbers in the order
 * in which the kernel widens them. An output adds its products block by block: the sum of a block
 * over numbers as they are (-128 .. 127 are exact in bfloat16), times the scale, added to the total
 * in float32. So its bits depend on its row and its weights alone, as in panels.h, whether numbers
 * are widened in registers (few rows) or once for many rows.
 *
 * Not covered: inputs that are no multiple of BLOCK_INPUTS (refused when a model is prepared).
 */
#ifndef PDSERVE_INT8_PANELS_H
#define PDSERVE_INT8_PANELS_H

#include "panels.h"

#define BLOCK_INPUTS 32
#define BLOCK_BYTES ((int64_t)PANEL * (2 + BLOCK_INPUTS))

/* out [rows][PANEL], stride out_stride: rows of x times one panel of num_blocks blocks. */
void multiply_int8_rows(int64_t rows, const elem *x, int64_t x_stride, const void *panel,
                        int64_t num_blocks, float *out, int64_t out_stride);

/* The numbers that a row of `size` int8 values and its scales stand for. */
void widen_int8_row(const int8_t *values, const uint16_t *scales, int64_t size, float *out);

#endif
