"""Matrices of 8-bit numbers in blocks with a scale each: Q8_0, as llama.cpp defines and stores it.

A row is cut into blocks of 32 numbers; number i of a block is scale * values[i], the scale a
float16. Kept apart as two arrays (values, scales) and not interleaved as in a GGUF file. The bytes
of a Q8_0 file are taken as they are; anything else is rounded to the same form by the ``gguf``
package. Knows no files. Not covered: other block types (decoded to float32 by gguf_file.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from engine.modelfiles.number_formats import StoredArray

BLOCK = 32  # numbers that share a scale
_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class BlockArray:
    """``values`` [rows, columns] int8, ``scales`` [rows, columns / BLOCK] float16."""

    values: NDArray[np.int8]
    scales: NDArray[np.float16]

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scales).all())

    def rows(self, chosen: slice | NDArray[np.int64]) -> BlockArray:
        return BlockArray(self.values[chosen], self.scales[chosen])

    def to_dtype(self, dtype: str) -> StoredArray:
        """The numbers the blocks stand for, rounded to ``dtype``."""
        with np.errstate(all="ignore"):  # damaged scales are found as non-finite values
            scales = self.scales.astype(np.float32)[..., None]
            blocks = self.values.reshape(*self.scales.shape, BLOCK) * scales
        return StoredArray(blocks.reshape(self.values.shape), "float32").to_dtype(dtype)


def from_q8_0(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> BlockArray:
    """``raw``: bytes of a GGUF tensor of type Q8_0 and this shape."""
    blocks = raw.reshape(*shape[:-1], shape[-1] // BLOCK, _SCALE_BYTES + BLOCK)
    scales = np.ascontiguousarray(blocks[..., :_SCALE_BYTES]).view("<f2")[..., 0]
    values = np.ascontiguousarray(blocks[..., _SCALE_BYTES:]).view(np.int8)
    return BlockArray(values.reshape(shape), scales.astype(np.float16))


def to_blocks(array: StoredArray | BlockArray) -> BlockArray:
    """The same numbers in blocks; already there, or rounded to the nearest.

    Raises:
        ValueError: rows do not divide into blocks.
    """
    if isinstance(array, BlockArray):
        return array
    shape = array.values.shape
    if shape[-1] % BLOCK:
        raise ValueError(f"rows of {shape[-1]} numbers do not divide into blocks of {BLOCK}")
    values = np.ascontiguousarray(array.to_dtype("float32").values)
    with np.errstate(over="ignore"):  # scales beyond float16 are found as non-finite
        raw = quantize(values, GGMLQuantizationType.Q8_0)
    return from_q8_0(raw, shape)
