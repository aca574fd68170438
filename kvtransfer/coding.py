"""Forms in which KV may travel: as it is, or in 8 bits a value.

Names and sizes; compress.py makes the bytes. A coded block is its scales (float32), then its
values, both in layout order: [layer, k or v, head, token] and [layer, k or v, head, token, dim]
for int8; one scale for all tokens of a head for fp8, whose values have an exponent of their own.
"""

from __future__ import annotations

from pdserve.types import KVLayout

EXACT = "exact"
INT8 = "int8"
FP8 = "fp8"
CODINGS = (INT8, FP8)  # beside EXACT, which everybody has
SCALE_BYTES = 4


def num_scales(layout: KVLayout, coding: str) -> int:
    """Scales of one coded block."""
    rows = layout.num_layers * 2 * layout.num_kv_heads
    return rows * layout.block_size if coding == INT8 else rows


def coded_block_bytes(layout: KVLayout, coding: str) -> int:
    """Bytes of one block on the wire."""
    if coding == EXACT:
        return layout.block_bytes
    num_values = layout.block_bytes // layout.dtype_bytes
    return num_scales(layout, coding) * SCALE_BYTES + num_values
