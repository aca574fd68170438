"""Stored arrays and their conversion between float32, bfloat16 and float16, in numpy.

numpy has no bfloat16: such values travel as their bits in uint16. Not covered: 8-bit numbers in
blocks (block_array.py) and other integer or 8-bit float formats (GGUF's are turned into float32 by
the ``gguf`` package before they get here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
PREPARED_DTYPES = ("float32", "bfloat16", "float16")
_NUMPY_TYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}

_BFLOAT16_EXPONENT = 0x7F80  # all ones: infinity or not a number


@dataclass(frozen=True, slots=True)
class StoredArray:
    """``values`` hold numbers of ``dtype``; bfloat16 as bits in uint16."""

    values: NDArray[Any]
    dtype: str  # "float32" | "bfloat16" | "float16"

    def is_finite(self) -> bool:
        if self.dtype == "bfloat16":
            return not bool(((self.values & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any())
        return bool(np.isfinite(self.values).all())

    def rows(self, chosen: slice | NDArray[np.int64]) -> StoredArray:
        return StoredArray(self.values[chosen], self.dtype)

    def to_dtype(self, dtype: str) -> StoredArray:
        """The same numbers as ``dtype``, rounded; no copy when they already are.

        Numbers beyond the range of ``dtype`` become infinite.
        """
        if dtype == self.dtype:
            return self
        as_float32 = self._to_float32()
        if dtype == "float32":
            return StoredArray(as_float32, dtype)
        if dtype == "bfloat16":
            return StoredArray(_round_to_bfloat16(as_float32), dtype)
        if dtype == "float16":
            with np.errstate(over="ignore"):
                return StoredArray(as_float32.astype(np.float16), dtype)
        raise ValueError(f"no conversion to {dtype}")

    def _to_float32(self) -> NDArray[np.float32]:
        if self.dtype == "bfloat16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.astype(np.float32)


def from_bytes(data: memoryview, dtype: str, shape: tuple[int, ...]) -> StoredArray:
    """A view of little-endian ``data``, which stays alive as long as the array."""
    little_endian = np.dtype(_NUMPY_TYPES[dtype]).newbyteorder("<")
    return StoredArray(np.frombuffer(data, dtype=little_endian).reshape(shape), dtype)


def _round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Nearest, ties to even, as torch does; for finite values."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)
