"""KV in 8 bits a value and back (coding.py has the forms).

Method: the largest magnitude that a scale covers becomes the largest number of 8 bits: 127, or 448
in e4m3. A value is then off by at most half a scale (int8), or by 2^-4 of itself and 2^-10 of a
scale, whichever is more (fp8), before it is rounded to the layout's dtype. Magnitudes below 2^-100
become 0. What is no number, or infinite, makes all that its scale covers so too, never a number.

Host memory alone. Knows neither frames nor leases. Not covered: scales by channel, fewer bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtransfer.coding import INT8, SCALE_BYTES, coded_block_bytes, num_scales
from pdserve.types import KVLayout

LARGEST = {"int8": 127.0, "fp8": 448.0}
LEAST_PEAK = 2.0**-100
_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def compress(
    layout: KVLayout, coding: str, pieces: Sequence[memoryview], num_tokens: int
) -> memoryview:
    """Whole blocks of ``layout``, one after another in ``pieces``, as one payload.

    ``num_tokens`` of them count, from the first on; what the last block holds beyond is not sent.
    """
    values = _values(layout, pieces)
    filled = num_tokens - (len(values) - 1) * layout.block_size
    values[-1, :, filled:] = 0
    largest = LARGEST[coding]
    over = (-1,) if coding == INT8 else (-2, -1)
    peak = torch.maximum(values.amax(over, keepdim=True), -values.amin(over, keepdim=True))
    scales = torch.where(peak < LEAST_PEAK, 0.0, peak / largest)
    values.mul_(torch.where(scales == 0, 0.0, 1 / scales))
    eight = values.round_().to(torch.int8) if coding == INT8 else values.to(torch.float8_e4m3fn)
    size, start = coded_block_bytes(layout, coding), num_scales(layout, coding) * SCALE_BYTES
    out = bytearray(len(values) * size)
    coded = torch.frombuffer(out, dtype=torch.uint8).view(len(values), size)
    coded[:, :start] = scales.view(len(values), -1).view(torch.uint8)
    coded[:, start:] = eight.view(torch.uint8).view(len(values), -1)
    return memoryview(out)


def expand(
    layout: KVLayout, coding: str, coded: Sequence[memoryview], out: Sequence[memoryview]
) -> None:
    """Coded blocks into as many blocks of ``layout``."""
    start = num_scales(layout, coding) * SCALE_BYTES
    rows = (layout.num_layers * 2 * layout.num_kv_heads, layout.block_size, layout.head_dim)
    for came, piece in zip(coded, out, strict=True):
        block = torch.frombuffer(came, dtype=torch.uint8)
        scales = block[:start].clone().view(torch.float32).view(rows[0], -1, 1)
        eight = block[start:]
        # A table is four times as fast as torch's conversion of float8, and the same.
        values = eight.view(torch.int8).float() if coding == INT8 else _E4M3[eight.int()]
        target = torch.frombuffer(piece, dtype=getattr(torch, layout.dtype)).view(rows)
        target.copy_(values.view(rows).mul_(scales))


def _values(layout: KVLayout, pieces: Sequence[memoryview]) -> torch.Tensor:
    """A copy in float32: [block, layer * k or v * head, token, dim]."""
    dtype = getattr(torch, layout.dtype)
    num_blocks = sum(piece.nbytes for piece in pieces) // layout.block_bytes
    values = torch.empty(num_blocks * (layout.block_bytes // layout.dtype_bytes))
    start = 0
    for piece in pieces:
        held = torch.frombuffer(piece, dtype=dtype)
        values[start : start + len(held)].copy_(held)
        start += len(held)
    return values.view(num_blocks, -1, layout.block_size, layout.head_dim)
