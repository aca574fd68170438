"""A GGUF file of a Llama model as a ``Checkpoint``: names translated, blocks decoded to float32.

llama.cpp's converter reorders the rows of q and k for its own rotary layout; reading undoes that.
Quantised blocks are decoded by the ``gguf`` package. Not covered: tensor types other than the six
below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from engine.modelfiles.checkpoint import Checkpoint, check_token_ids
from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_config import ROPE_FACTORS_TENSOR, parse_gguf_config
from engine.modelfiles.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from engine.modelfiles.gguf_tokenizer import read_gguf_text
from engine.modelfiles.mapped_file import map_file
from engine.modelfiles.number_formats import StoredArray, from_bytes
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig

_PLAIN_TYPES = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
}
_BLOCK_TYPES = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)

_EMBEDDING = "token_embd.weight"
_HEAD = "output.weight"
_MODEL_NAMES = {
    "model.embed_tokens.weight": _EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": _HEAD,
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROTARY_SUFFIXES = (".attn_q.weight", ".attn_k.weight")


class GGUFTensors:
    """Tensors by Hugging Face name (a ``TensorSource``). Decodes whatever is asked for anew."""

    def __init__(self, path: Path, data: memoryview, header: GGUFHeader, head_dim: int) -> None:
        self._path = path
        self._data = data
        self._header = header
        self._head_dim = head_dim

    def read(self, name: str, shape: tuple[int, ...]) -> StoredArray:
        gguf_name = to_gguf_name(name)
        tensor = self._header.tensors.get(gguf_name)
        if tensor is None:
            raise ModelFileError(f"{self._path}: tensor {gguf_name}: missing")
        if tensor.shape != shape:
            raise ModelFileError(
                f"{self._path}: tensor {gguf_name}: shape {list(tensor.shape)}, the metadata asks "
                f"for {list(shape)}"
            )
        array = _decode(self._path, self._data, tensor)
        if gguf_name.endswith(_ROTARY_SUFFIXES):
            return StoredArray(_undo_rotary_order(array.values, self._head_dim), array.dtype)
        return array


def open_gguf_file(path: Path) -> Checkpoint:
    """Read metadata and text part; tensors are decoded later, one by one.

    Raises:
        ModelFileError: naming the key or tensor that is missing, damaged or not supported.
    """
    data = map_file(path)
    header = read_gguf_header(path, data)
    fields = FieldReader(str(path), header.metadata)
    embedding = header.tensors.get(_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFileError(f"{path}: tensor {_EMBEDDING}: missing or not a matrix")
    factors = header.tensors.get(ROPE_FACTORS_TENSOR)
    config = parse_gguf_config(
        fields,
        vocab_size=embedding.shape[0],
        tied=_HEAD not in header.tensors,
        rope_factors=None if factors is None else _decode_float32(path, data, factors),
    )
    _refuse_unexpected(path, header, config)
    text, tokenizer = read_gguf_text(fields)
    check_token_ids(text, tokenizer, config.vocab_size, str(path))
    return Checkpoint(config, text, GGUFTensors(path, data, header, config.head_dim))


def to_gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` to ``blk.3.ffn_up.weight``."""
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _decode(path: Path, data: memoryview, tensor: GGUFTensor) -> StoredArray:
    raw = data[tensor.start : tensor.start + tensor.num_bytes]
    plain = _PLAIN_TYPES.get(tensor.type)
    if plain is not None:
        return from_bytes(raw, plain, tensor.shape)
    if tensor.type not in _BLOCK_TYPES:
        names = ", ".join(kind.name for kind in (*_PLAIN_TYPES, *_BLOCK_TYPES))
        raise ModelFileError(
            f"{path}: tensor {tensor.name}: type {tensor.type.name}; {names} are read"
        )
    blocks = np.frombuffer(raw, np.uint8).reshape(*tensor.shape[:-1], -1)
    with np.errstate(all="ignore"):  # damaged scales are found as non-finite values later
        values = dequantize(blocks, tensor.type)
    return StoredArray(values, "float32")


def _decode_float32(path: Path, data: memoryview, tensor: GGUFTensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = _decode(path, data, tensor).to_dtype("float32").values
    return values


def _undo_rotary_order(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """[rows, hidden] with each head's pairs adjacent, to first halves then second halves."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _refuse_unexpected(path: Path, header: GGUFHeader, config: ModelConfig) -> None:
    """A tensor the plan does not use (a bias, an expert) would be silently left out."""
    expected = {
        to_gguf_name(part.name) for planned in plan_tensors(config) for part in planned.parts
    }
    expected.add(ROPE_FACTORS_TENSOR)
    for name in sorted(header.tensors.keys() - expected):
        raise ModelFileError(f"{path}: tensor {name}: not part of the configured model")
