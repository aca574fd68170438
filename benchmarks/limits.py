"""What a machine allows a model: the arithmetic behind fractions of the floor.

A prefill is bound by products, a decode step by the larger of products and bytes read: all weights
once, and the KV of every row. Norms, softmax, sampling and everything between are taken as free.
"""

from __future__ import annotations

from collections.abc import Mapping

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
INT8 = "int8"  # weights of 34 bytes for 32 numbers; everything else bfloat16
INT8_BYTES = 34 / 32


def number_options(dtype: str) -> dict[str, str]:
    """The engine's options for what a comparison calls ``dtype``."""
    if dtype == INT8:
        return {"dtype": "bfloat16", "weights": "int8"}
    return {"dtype": dtype}


def prefill_floor(shape: Mapping[str, int], num_tokens: int, operations_per_s: float) -> float:
    """Tokens/s; causal attention costs half a square, the head one row."""
    layers, head = matrix_parameters(shape)
    width = shape["num_heads"] * shape["head_dim"]
    attention = 2.0 * width * shape["num_layers"] * num_tokens**2
    return num_tokens * operations_per_s / (2.0 * layers * num_tokens + attention + 2.0 * head)


def decode_floor(
    shape: Mapping[str, int],
    batch: int,
    context: int,
    dtype: str,
    *,
    operations_per_s: float,
    bytes_per_s: float,
) -> float:
    """Tokens/s of all rows."""
    layers, head = matrix_parameters(shape)
    width, kv_width = (shape[name] * shape["head_dim"] for name in ("num_heads", "num_kv_heads"))
    size = ELEMENT_BYTES["bfloat16" if dtype == INT8 else dtype]
    weight_size = INT8_BYTES if dtype == INT8 else size
    kv_bytes = 2.0 * kv_width * shape["num_layers"] * size * context
    read_s = (weight_size * (layers + head) + batch * kv_bytes) / bytes_per_s
    attention = 4.0 * width * shape["num_layers"] * context
    products_s = batch * (2.0 * (layers + head) + attention) / operations_per_s
    return batch / max(read_s, products_s)


def matrix_parameters(shape: Mapping[str, int]) -> tuple[int, int]:
    """(of all layers, of the head)"""
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    heads, kv_heads = shape["num_heads"], shape["num_kv_heads"]
    attention = hidden * dim * (heads + 2 * kv_heads) + heads * dim * hidden
    layer = attention + 3 * hidden * shape["intermediate_size"]
    return shape["num_layers"] * layer, shape["vocab_size"] * hidden
