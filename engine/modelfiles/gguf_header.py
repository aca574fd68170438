"""The header of a GGUF file: metadata and where each tensor lies.

Parsed here, over a memory map, so that a damaged or truncated file is reported by the key or
tensor it breaks at; quantised blocks are decoded by the ``gguf`` package (gguf_file.py). Does not
know what keys mean. Not covered: big-endian files, version 1.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pdserve.errors import ModelFileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4

# GGUF value types by number; 8 is a string, 9 an array.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """``shape`` is row-major as numpy has it (GGUF stores it reversed)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int  # byte in the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    metadata: dict[str, Any]  # str, int, float, bool, or a list of one of them
    tensors: dict[str, GGUFTensor]


def read_gguf_header(path: Path, data: memoryview) -> GGUFHeader:
    """Raises ModelFileError: not GGUF, another version, truncated (header or a tensor)."""
    cursor = _Cursor(path, data)
    if cursor.take(4, "magic") != _MAGIC:
        raise ModelFileError(f"{path}: not a GGUF file")
    version = cursor.scalar("I", "version")
    if version not in _VERSIONS:
        raise ModelFileError(f"{path}: GGUF version {version}; {_VERSIONS} are read, little-endian")
    num_tensors = cursor.scalar("Q", "tensor count")
    num_keys = cursor.scalar("Q", "key count")
    metadata: dict[str, Any] = {}
    for number in range(num_keys):
        key = cursor.string(f"key {number}")
        metadata[key] = cursor.value(f"key {key}")
    infos = [_read_tensor_info(cursor, number) for number in range(num_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ModelFileError(f"{path}: general.alignment: {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {info.name: _locate(path, info, data_start, len(data)) for info in infos}
    return GGUFHeader(metadata, tensors)


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int


def _read_tensor_info(cursor: _Cursor, number: int) -> _TensorInfo:
    name = cursor.string(f"tensor {number}")
    where = f"tensor {name}"
    num_dimensions = cursor.scalar("I", where)
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise cursor.error(where, f"{num_dimensions} dimensions")
    sizes = [cursor.scalar("Q", where) for _ in range(num_dimensions)]
    return _TensorInfo(
        name, tuple(reversed(sizes)), cursor.scalar("I", where), cursor.scalar("Q", where)
    )


def _locate(path: Path, info: _TensorInfo, data_start: int, file_bytes: int) -> GGUFTensor:
    where = f"{path}: tensor {info.name}"
    try:
        kind = GGMLQuantizationType(info.type_number)
    except ValueError as error:
        raise ModelFileError(f"{where}: unknown type number {info.type_number}") from error
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if info.shape[-1] % block_elements:
        raise ModelFileError(
            f"{where}: rows of {info.shape[-1]} are no whole {kind.name} blocks of {block_elements}"
        )
    num_bytes = math.prod(info.shape) // block_elements * block_bytes
    start = data_start + info.offset
    if start + num_bytes > file_bytes:
        raise ModelFileError(
            f"{where}: truncated: ends at byte {start + num_bytes}, the file has {file_bytes} bytes"
        )
    return GGUFTensor(info.name, info.shape, kind, start, num_bytes)


class _Cursor:
    """Reads the header from front to back."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self._path = path
        self._data = data
        self.position = 0

    def error(self, what: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: {what}: {problem}")

    def take(self, num_bytes: int, what: str) -> memoryview:
        end = self.position + num_bytes
        if end > len(self._data):
            raise self.error(what, f"truncated: the file ends at byte {len(self._data)}")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str, what: str) -> Any:
        layout = "<" + code
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def string(self, what: str) -> str:
        length = self.scalar("Q", what)
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(what, f"not UTF-8: {error}") from error

    def value(self, what: str) -> Any:
        return self._value_of(self.scalar("I", what), what)

    def _value_of(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        raise self.error(what, f"unknown value type {kind}")

    def _array(self, what: str) -> list[Any]:
        kind = self.scalar("I", what)
        length = self.scalar("Q", what)
        if kind == _STRING:
            return [self.string(what) for _ in range(length)]
        if kind not in _SCALARS:
            raise self.error(what, f"array of value type {kind}")
        item = np.dtype("<" + _SCALARS[kind])
        values: list[Any] = np.frombuffer(self.take(length * item.itemsize, what), item).tolist()
        return values
