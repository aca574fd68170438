"""The safetensors format, read through a memory map: u64 header length, JSON header, raw tensors.

Read here and not through the ``safetensors`` package because numpy has no bfloat16 for it to
return, and because a truncated file must be reported by the tensor that is cut. Not covered:
integer and 8-bit formats.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.modelfiles.field_reader import shorten
from engine.modelfiles.mapped_file import map_file
from engine.modelfiles.number_formats import ITEM_BYTES, StoredArray, from_bytes
from pdserve.errors import ModelFileError

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as the safetensors project limits it


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int  # in the file
    end: int


class SafetensorsFile:
    """One mapped file. Arrays that were read keep the mapping alive."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = map_file(path)
        self._entries = _read_entries(path, self._data)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def read(self, name: str, shape: tuple[int, ...]) -> StoredArray:
        """Raises ModelFileError: absent, of another shape, or of a format that is not read."""
        raw = self._entries.get(name)
        if raw is None:
            raise ModelFileError(f"{self._path}: tensor {name}: missing")
        entry = _check_entry(self._path, name, raw, len(self._data))
        if entry.shape != shape:
            raise ModelFileError(
                f"{self._path}: tensor {name}: shape {list(entry.shape)}, the config asks for "
                f"{list(shape)}"
            )
        return from_bytes(self._data[entry.start : entry.end], entry.dtype, shape)


def _read_entries(path: Path, data: memoryview) -> dict[str, dict[str, Any]]:
    """Header entries as they are, with ``data_start`` added; checked when they are read."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    data_start = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or length > _MAX_HEADER_BYTES or data_start > len(data):
        raise ModelFileError(f"{path}: truncated, or not a safetensors file")
    try:
        header = json.loads(bytes(data[_LENGTH_BYTES:data_start]))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: the safetensors header is not an object")
    header.pop("__metadata__", None)
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise ModelFileError(f"{path}: tensor {name}: header entry {shorten(entry)}")
        entries[name] = {**entry, "data_start": data_start}
    return entries


def _check_entry(path: Path, name: str, raw: dict[str, Any], file_bytes: int) -> _Entry:
    where = f"{path}: tensor {name}"
    dtype = _DTYPES.get(str(raw.get("dtype")))
    if dtype is None:
        raise ModelFileError(f"{where}: dtype {raw.get('dtype')!r}; F32, F16 and BF16 are read")
    shape, offsets = _sizes(raw.get("shape")), _sizes(raw.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise ModelFileError(f"{where}: header entry with unusable shape or data_offsets")
    start, end = (raw["data_start"] + offset for offset in offsets)
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ModelFileError(f"{where}: {end - start} bytes do not hold {list(shape)} of {dtype}")
    if end > file_bytes:
        raise ModelFileError(
            f"{where}: truncated: ends at byte {end}, the file has {file_bytes} bytes"
        )
    return _Entry(dtype, shape, start, end)


def _sizes(value: object) -> tuple[int, ...] | None:
    """None unless ``value`` is a list of whole numbers from 0 up."""
    if not isinstance(value, list):
        return None
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in value):
        return None
    return tuple(value)
