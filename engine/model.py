"""The transformer itself: Llama's layers and their near relatives over paged KV, in plain torch.

    tokens -> embed -> layers x (norm, qkv, rope, write KV, attend, o, add,
                                 norm, gate and up, silu, down, add) -> norm -> logits

Qwen2 adds a bias to qkv, Qwen3 a norm of each head of q and k before rope.

Norms, rotation, softmax and silu compute in float32; what goes between layers is rounded to the
model's dtype. Every operation treats rows alone and in the same order whatever the batch
(linear.py, attention.py; element-wise operations are IEEE-exact or, like exp, the same in vector
bodies and tails; silu's and sigmoid's own kernels are not and are avoided).

Knows neither sequences nor sampling. Not covered: tensor parallelism, adapters, mixtures of
experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention_ways import Attention, LayerAttention
from engine.batch_plan import BatchPlan
from engine.kv_cache import KvCache
from engine.linear import Linear, LinearKernel
from engine.rope import RopeTable
from pdserve.prepared import ModelConfig

LINEAR_NAMES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class StepInputs:
    """Indices of a step on the model's device, int64; see ``BatchPlan``."""

    token_ids: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    write_rows: torch.Tensor  # [tokens * 2 * kv_heads]
    sample_tokens: torch.Tensor  # [sampled tokens]


@dataclass(frozen=True)
class _Layer:
    input_norm: torch.Tensor
    qkv: Linear
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None  # [heads + kv_heads, head_dim]
    o: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class LlamaModel:
    """Weights on a device. ``weights`` are named as pdserve/prepared.py says, all of one dtype.

    ``kernel`` is the way to multiply (``linear.choose_kernel``), ``attention`` that to attend
    (``attention_choice.choose_attention``).
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        device: torch.device,
        kernel: LinearKernel,
        attention: Attention,
        num_positions: int,
    ) -> None:
        self._config = config
        self._device = device
        self._kernel = kernel
        self._attention = attention
        self._rope = RopeTable(config, num_positions, device)
        self._embed = weights["embed"].to(device)
        self.dtype = self._embed.dtype
        self._layers = [self._load_layer(weights, i) for i in range(config.num_layers)]
        self._norm = weights["norm"].to(device)
        head = self._embed if config.tied_embeddings else weights["lm_head"].to(device)
        self._lm_head = kernel.pack(head)

    def forward(self, plan: BatchPlan, cache: KvCache) -> torch.Tensor:
        """Compute a step, write its KV; logits [sampled tokens, vocab] float32."""
        inputs = StepInputs(
            self._indices(plan.token_ids),
            self._indices(plan.positions),
            self._indices(plan.write_rows),
            self._indices(plan.sample_tokens),
        )
        return self.compute(inputs, self._attention.stage(plan, cache), cache)

    def compute(self, inputs: StepInputs, attend: LayerAttention, cache: KvCache) -> torch.Tensor:
        """The same on indices that are on the device already: what a recorded step repeats."""
        config = self._config
        cos = self._rope.cos[inputs.positions].unsqueeze(1)
        signed_sin = self._rope.signed_sin[inputs.positions].unsqueeze(1)
        x = self._embed[inputs.token_ids]
        shape = (x.shape[0], config.num_heads, config.head_dim)
        attended = torch.empty(shape, dtype=self._attention.output_dtype, device=self._device)
        for index, layer in enumerate(self._layers):
            queries, keys_values = self._project_qkv(layer, x, cos, signed_sin)
            cache.token_rows(index).index_copy_(0, inputs.write_rows, keys_values)
            attend(index, queries, attended)
            x.add_(self._apply(layer.o, attended.view(x.shape[0], -1)))
            x.add_(self._mlp(layer, x))
        if not len(inputs.sample_tokens):
            return torch.empty((0, config.vocab_size), device=self._device)
        last = self._normed(x[inputs.sample_tokens], self._norm)
        return self._lm_head(last.to(self._kernel.dtype)).float()

    def _project_qkv(
        self, layer: _Layer, x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(queries [tokens, heads, dim] float32, rows [tokens * 2 * kv_heads, dim] in dtype)."""
        config = self._config
        qkv = self._apply(layer.qkv, self._normed(x, layer.input_norm), layer.qkv_bias)
        heads = qkv.float().view(x.shape[0], -1, config.head_dim)
        rotated = heads[:, : config.num_heads + config.num_kv_heads]
        if layer.qk_norm is not None:
            rotated.copy_(self._normed(rotated, layer.qk_norm))
        rolled = rotated.roll(config.head_dim // 2, -1).mul_(signed_sin)
        rotated.mul_(cos).add_(rolled)
        keys_values = heads[:, config.num_heads :].to(self.dtype).reshape(-1, config.head_dim)
        return heads[:, : config.num_heads], keys_values

    def _mlp(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        gate_up = self._apply(layer.gate_up, self._normed(x, layer.post_norm)).float()
        gate, up = gate_up.chunk(2, dim=-1)
        denominator = gate.neg().exp_().add_(1.0)
        return self._apply(layer.down, torch.div(gate, denominator, out=denominator).mul_(up))

    def _apply(
        self, linear: Linear, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The linear layer on the model's dtype: inputs and outputs are rounded to it."""
        out = linear(x.to(self.dtype).to(self._kernel.dtype))
        return (out if bias is None else out + bias).to(self.dtype)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm (arXiv 1910.07467) in float32, rounded before the weight as in transformers."""
        x = x.float()
        scale = torch.mul(x, x).mean(-1, keepdim=True).add_(self._config.rms_norm_eps).rsqrt_()
        return torch.mul(x, scale).to(self.dtype).mul_(weight)

    def _indices(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _load_layer(self, weights: Mapping[str, torch.Tensor], index: int) -> _Layer:
        prefix = f"layers.{index}."
        linears = {
            name: self._kernel.pack(weights[prefix + name].to(self._device))
            for name in LINEAR_NAMES
        }
        config = self._config
        bias = weights[prefix + "qkv_bias"].to(self._device) if config.qkv_bias else None
        qk_norm = None
        if config.qk_norm:
            q_norm = weights[prefix + "q_norm"].expand(config.num_heads, -1)
            k_norm = weights[prefix + "k_norm"].expand(config.num_kv_heads, -1)
            qk_norm = torch.cat([q_norm, k_norm]).to(self._device)
        return _Layer(
            input_norm=weights[prefix + "input_norm"].to(self._device),
            qkv_bias=bias,
            qk_norm=qk_norm,
            post_norm=weights[prefix + "post_norm"].to(self._device),
            **linears,
        )
