"""What a person wants to know of a model before serving it: sizes and costs.

Worked out from the manifest; nothing is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.modelfiles.number_formats import ITEM_BYTES
from engine.modelfiles.tensor_plan import SCALES
from pdserve.prepared import PreparedModel


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Costs are of one token; attention is given for each token of context it looks at."""

    name: str
    architecture: str
    dtype: str
    weights: str  # "full" | "int8"
    source: str
    fingerprint: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions_tokens: int
    sliding_window_tokens: int  # 0: none
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    layer_flops_per_token: int  # matrix products in the layers: every prompt token
    head_flops_per_token: int  # output projection: only where a token is sampled
    attention_flops_per_context_token: int  # for each token attended to

    @property
    def flops_per_token(self) -> int:
        """A decode step at an empty context."""
        return self.layer_flops_per_token + self.head_flops_per_token


def model_summary(prepared: PreparedModel) -> ModelSummary:
    """A multiply-add counts as two FLOPs; norms, rotary and softmax are left out."""
    config = prepared.config
    elements = {name: math.prod(entry.shape) for name, entry in prepared.tensors.items()}
    layer_matrices = sum(
        elements[name]
        for name, entry in prepared.tensors.items()
        if name.startswith("layers.") and len(entry.shape) == 2 and not name.endswith(SCALES)
    )
    per_head = config.num_layers * config.head_dim
    item_bytes = ITEM_BYTES[prepared.dtype]
    return ModelSummary(
        name=prepared.name,
        architecture=config.architecture,
        dtype=prepared.dtype,
        weights=prepared.weights,
        source=prepared.source,
        fingerprint=prepared.fingerprint,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions_tokens=config.max_positions,
        sliding_window_tokens=config.sliding_window,
        num_parameters=prepared.num_parameters,
        weight_bytes=sum(
            elements[name] * ITEM_BYTES[entry.dtype] for name, entry in prepared.tensors.items()
        ),
        kv_bytes_per_token=2 * per_head * config.num_kv_heads * item_bytes,
        layer_flops_per_token=2 * layer_matrices,
        head_flops_per_token=2 * config.vocab_size * config.hidden_size,
        attention_flops_per_context_token=4 * per_head * config.num_heads,
    )
