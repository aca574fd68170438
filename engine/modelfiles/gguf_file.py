"""A GGUF file, or its parts, as a ``Checkpoint``: names translated, blocks decoded.

For models of the Llama architecture llama.cpp's converter reorders the rows of q and k for its own
rotary layout; reading undoes that. Q8_0 stays as it is (block_array.py); other blocks are decoded
to float32 by the ``gguf`` package. Not covered: tensor types other than those below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from engine.modelfiles.block_array import BlockArray, from_q8_0
from engine.modelfiles.checkpoint import Checkpoint, TensorSource, check_token_ids
from engine.modelfiles.families import Family
from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.fused_projections import SplitTensors, stored_rows
from engine.modelfiles.gguf_config import (
    LONG_FACTORS_TENSOR,
    ROPE_FACTORS_TENSOR,
    SHORT_FACTORS_TENSOR,
    RopeFactors,
    parse_gguf_config,
    read_family,
)
from engine.modelfiles.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from engine.modelfiles.gguf_names import EMBEDDING, HEAD, is_rotated, to_gguf_name
from engine.modelfiles.gguf_split import check_part, gguf_parts
from engine.modelfiles.gguf_tokenizer import read_gguf_text
from engine.modelfiles.mapped_file import map_file
from engine.modelfiles.number_formats import StoredArray, from_bytes
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig

_FACTORS_TENSORS = (ROPE_FACTORS_TENSOR, SHORT_FACTORS_TENSOR)
_PLAIN_TYPES = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
}
# All of the types that mixtures called Q2_K ... Q8_0 and IQ4_* are made of.
BLOCK_TYPES = (
    GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q5_1, GGMLQuantizationType.Q2_K,
    GGMLQuantizationType.Q3_K, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K, GGMLQuantizationType.IQ4_NL, GGMLQuantizationType.IQ4_XS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Stored:
    """One tensor and the file it lies in."""

    path: Path
    data: memoryview
    tensor: GGUFTensor


class GGUFTensors:
    """Tensors by Hugging Face name (a ``TensorSource``). Decodes whatever is asked for anew."""

    def __init__(self, stored: Mapping[str, _Stored], where: Path, head_dim: int | None) -> None:
        """``head_dim``: None unless q and k are in llama.cpp's rotary order."""
        self._stored = stored
        self._where = where
        self._head_dim = head_dim

    def read(self, name: str, shape: tuple[int, ...]) -> StoredArray | BlockArray:
        gguf_name = to_gguf_name(name)
        stored = self._stored.get(gguf_name)
        if stored is None:
            raise ModelFileError(f"{self._where}: tensor {gguf_name}: missing")
        if stored.tensor.shape != shape:
            raise ModelFileError(
                f"{stored.path}: tensor {gguf_name}: shape {list(stored.tensor.shape)}, the "
                f"metadata asks for {list(shape)}"
            )
        array = _decode(stored)
        if self._head_dim is not None and is_rotated(name):
            return array.rows(_rotary_order(shape[0], self._head_dim))
        return array


def open_gguf_file(path: Path) -> Checkpoint:
    """Read config and text part; tensors are read later, one by one. ``path``: any part.

    Raises:
        ModelFileError: naming the file, key or tensor that is missing or not supported.
    """
    headers, stored = _open_parts(gguf_parts(path))
    fields = FieldReader(str(path), headers[0].metadata)
    family = read_family(fields)
    embedding = stored.get(EMBEDDING)
    if embedding is None or len(embedding.tensor.shape) != 2:
        raise ModelFileError(f"{path}: tensor {EMBEDDING}: missing or not a matrix")
    factors = {name: _decode_float32(stored[name]) for name in _FACTORS_TENSORS if name in stored}
    config = parse_gguf_config(
        fields,
        family,
        vocab_size=embedding.tensor.shape[0],
        tied=HEAD not in stored,
        factors=RopeFactors(factors.get(ROPE_FACTORS_TENSOR), factors.get(SHORT_FACTORS_TENSOR)),
    )
    _refuse_unexpected(stored, family, config)
    text, tokenizer = read_gguf_text(fields)
    check_token_ids(text, tokenizer, config.vocab_size, str(path))
    tensors: TensorSource = GGUFTensors(
        stored, path, config.head_dim if family.is_reordered_in_gguf else None
    )
    if family.is_fused:
        tensors = SplitTensors(tensors, config)
    return Checkpoint(config, text, tensors)


def _open_parts(paths: tuple[Path, ...]) -> tuple[list[GGUFHeader], dict[str, _Stored]]:
    headers: list[GGUFHeader] = []
    stored: dict[str, _Stored] = {}
    for number, path in enumerate(paths):
        data = map_file(path)
        header = read_gguf_header(path, data)
        check_part(path, header, number, len(paths))
        headers.append(header)
        for name, tensor in header.tensors.items():
            if name in stored:
                raise ModelFileError(f"{path}: tensor {name}: also in {stored[name].path}")
            stored[name] = _Stored(path, data, tensor)
    return headers, stored


def _decode(stored: _Stored) -> StoredArray | BlockArray:
    tensor = stored.tensor
    raw = stored.data[tensor.start : tensor.start + tensor.num_bytes]
    plain = _PLAIN_TYPES.get(tensor.type)
    if plain is not None:
        return from_bytes(raw, plain, tensor.shape)
    if tensor.type not in BLOCK_TYPES:
        names = ", ".join(kind.name for kind in (*_PLAIN_TYPES, *BLOCK_TYPES))
        raise ModelFileError(
            f"{stored.path}: tensor {tensor.name}: type {tensor.type.name}; {names} are read"
        )
    if tensor.type is GGMLQuantizationType.Q8_0:
        return from_q8_0(np.frombuffer(raw, np.uint8), tensor.shape)
    blocks = np.frombuffer(raw, np.uint8).reshape(*tensor.shape[:-1], -1)
    with np.errstate(all="ignore"):  # damaged scales are found as non-finite values later
        values = dequantize(blocks, tensor.type)
    return StoredArray(values, "float32")


def _decode_float32(stored: _Stored) -> NDArray[np.float32]:
    values: NDArray[np.float32] = _decode(stored).to_dtype("float32").values
    return values


def _rotary_order(num_rows: int, head_dim: int) -> NDArray[np.int64]:
    """Which stored row, each head's pairs adjacent, comes where: first halves, second halves."""
    pairs = np.arange(num_rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def _refuse_unexpected(stored: Mapping[str, _Stored], family: Family, config: ModelConfig) -> None:
    """A tensor the plan does not use (a bias, an expert) would be silently left out."""
    parts = stored_rows(config, is_fused=family.is_fused).values()
    expected = {to_gguf_name(part.name) for part in parts} | {ROPE_FACTORS_TENSOR}
    if config.rope_scaling.kind == "longrope":
        expected |= {SHORT_FACTORS_TENSOR, LONG_FACTORS_TENSOR}
    for name in sorted(stored.keys() - expected):
        raise ModelFileError(
            f"{stored[name].path}: tensor {name}: not part of the configured model"
        )
