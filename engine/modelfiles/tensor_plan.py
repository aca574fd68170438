"""Which tensors a prepared model holds and which tensors of a checkpoint they are made of.

A prepared tensor is its parts stacked by rows. Parts carry Hugging Face's names; a GGUF file
translates them (gguf_file.py). This module reads no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.modelfiles.block_array import BLOCK
from pdserve.prepared import ModelConfig

SCALES = ".scales"  # behind the name of a matrix whose numbers are int8


@dataclass(frozen=True, slots=True)
class TensorPart:
    name: str  # as in a Hugging Face checkpoint
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    name: str  # as in pdserve/prepared.py
    parts: tuple[TensorPart, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def stored(self, dtype: str, weights: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of what weights.bin holds of it, by name, in order."""
        shape = self.shape
        if weights != "int8" or len(shape) != 2:
            return {self.name: (shape, dtype)}
        scales = (shape[0], shape[1] // BLOCK)
        return {self.name: (shape, "int8"), self.name + SCALES: (scales, "float16")}


def plan_tensors(config: ModelConfig) -> tuple[PlannedTensor, ...]:
    """All tensors in the order in which they are written and computed."""
    hidden, vocab = config.hidden_size, config.vocab_size
    planned = [_plan("embed", ("model.embed_tokens.weight", (vocab, hidden)))]
    for layer in range(config.num_layers):
        planned.extend(_plan_layer(config, layer))
    planned.append(_plan("norm", ("model.norm.weight", (hidden,))))
    if not config.tied_embeddings:
        planned.append(_plan("lm_head", ("lm_head.weight", (vocab, hidden))))
    return tuple(planned)


def _plan_layer(config: ModelConfig, layer: int) -> list[PlannedTensor]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    target, source = f"layers.{layer}.", f"model.layers.{layer}."
    attention, mlp = source + "self_attn.", source + "mlp."
    return [
        _plan(target + "input_norm", (source + "input_layernorm.weight", (hidden,))),
        _plan(
            target + "qkv",
            (attention + "q_proj.weight", (q_size, hidden)),
            (attention + "k_proj.weight", (kv_size, hidden)),
            (attention + "v_proj.weight", (kv_size, hidden)),
        ),
        *_plan_qkv_extras(config, target, attention),
        _plan(target + "o", (attention + "o_proj.weight", (hidden, q_size))),
        _plan(target + "post_norm", (source + "post_attention_layernorm.weight", (hidden,))),
        _plan(
            target + "gate_up",
            (mlp + "gate_proj.weight", (intermediate, hidden)),
            (mlp + "up_proj.weight", (intermediate, hidden)),
        ),
        _plan(target + "down", (mlp + "down_proj.weight", (hidden, intermediate))),
    ]


def _plan_qkv_extras(config: ModelConfig, target: str, attention: str) -> list[PlannedTensor]:
    """The bias of qkv and the norms of q's and k's heads, of the families that have them."""
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    planned = []
    if config.qkv_bias:
        sizes = {"q": q_size, "k": kv_size, "v": kv_size}
        parts = [(f"{attention}{part}_proj.bias", (size,)) for part, size in sizes.items()]
        planned.append(_plan(target + "qkv_bias", *parts))
    if config.qk_norm:
        planned += [
            _plan(f"{target}{part}_norm", (f"{attention}{part}_norm.weight", (config.head_dim,)))
            for part in "qk"
        ]
    return planned


def _plan(name: str, *parts: tuple[str, tuple[int, ...]]) -> PlannedTensor:
    return PlannedTensor(name, tuple(TensorPart(*part) for part in parts))
