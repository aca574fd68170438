"""What a model costs, from its shape alone: parameters, FLOPs, bytes of KV, places on a roofline.

A multiply-add counts as two FLOPs; norms, rotary and softmax are left out. Prefill is causal: a
token attends to half of the prompt on average. KV leaves as fast as it is computed at a bandwidth
of kv_bytes * rate / (2 P + 2 L d n), P the matrices of the layers, d the width of all heads, n the
prompt. Reads no weights; nothing is measured but by ``measure_cpu``. Not covered: several cards.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.modelfiles.field_reader import read_json_object
from engine.modelfiles.hf_config import parse_hf_config
from engine.modelfiles.number_formats import ITEM_BYTES
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.prepared import ModelConfig

SHAPES_FOLDER = Path(__file__).with_name("shapes")


@dataclass(frozen=True, slots=True)
class Card:
    """Dense peak in the dtype asked for, and memory bandwidth."""

    name: str
    flops_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which work is bound by compute."""
        return self.flops_per_s / self.bytes_per_s


# Vendor data sheets: dense 16-bit tensor peak, SXM forms of H100 and A100 80 GB. float32 runs
# through TF32 at half of it.
_CARDS_16_BIT = {
    "H100": Card("H100", 989e12, 3.35e12),
    "A100": Card("A100", 312e12, 2.039e12),
    "L4": Card("L4", 121e12, 0.300e12),
}


@dataclass(frozen=True, slots=True)
class Costs:
    num_parameters: int
    layer_parameters: int  # matrices of the layers
    estimate_parameters: int  # 12 L d^2
    weight_bytes: int
    kv_bytes_per_token: int
    layer_flops_per_token: int
    head_flops: int
    attention_flops_per_context_token: int

    @property
    def flops_per_token(self) -> int:
        return self.layer_flops_per_token + self.head_flops

    def prefill_flops(self, num_tokens: int) -> float:
        half = self.attention_flops_per_context_token * num_tokens / 2
        return num_tokens * (self.layer_flops_per_token + half) + self.head_flops

    def prefill_bytes(self, num_tokens: int) -> float:
        return self.weight_bytes + num_tokens * self.kv_bytes_per_token

    def decode_flops(self, context_tokens: int, batch: int) -> float:
        attention = self.attention_flops_per_context_token * context_tokens
        return batch * (self.flops_per_token + attention)

    def decode_bytes(self, context_tokens: int, batch: int) -> float:
        return self.weight_bytes + batch * context_tokens * self.kv_bytes_per_token

    def memory_bytes(self, context_tokens: int, batch: int) -> int:
        """Weights and KV."""
        return self.weight_bytes + batch * context_tokens * self.kv_bytes_per_token

    def hiding_bytes_per_s(self, num_tokens: int, flops_per_s: float) -> float:
        """Bandwidth at which the KV of a prompt leaves as fast as it is computed."""
        half = self.attention_flops_per_context_token * num_tokens / 2
        return self.kv_bytes_per_token * flops_per_s / (self.layer_flops_per_token + half)


def model_costs(config: ModelConfig, dtype: str, weights: str = "full") -> Costs:
    """``weights``: as they are prepared, "full" or "int8"."""
    planned = plan_tensors(config)
    elements = sum(each.num_elements for each in planned)
    matrices = sum(
        each.num_elements
        for each in planned
        if each.name.startswith("layers.") and len(each.shape) == 2
    )
    item_bytes = ITEM_BYTES[dtype]
    per_head = config.num_layers * config.head_dim
    return Costs(
        num_parameters=elements,
        layer_parameters=matrices,
        estimate_parameters=12 * config.num_layers * config.hidden_size**2,
        weight_bytes=sum(
            math.prod(shape) * ITEM_BYTES[kind]
            for each in planned
            for shape, kind in each.stored(dtype, weights).values()
        ),
        kv_bytes_per_token=2 * per_head * config.num_kv_heads * item_bytes,
        layer_flops_per_token=2 * matrices,
        head_flops=2 * config.vocab_size * config.hidden_size,
        attention_flops_per_context_token=4 * per_head * config.num_heads,
    )


def shipped_shapes() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in SHAPES_FOLDER.glob("*.json")))


def shape_of(model: str) -> ModelConfig | None:
    """A shipped shape by name, or the config.json of a folder; None: neither.

    Raises:
        ModelFileError: the config.json is not usable; names the field.
    """
    name = model.lower()
    if name in shipped_shapes():
        path = SHAPES_FOLDER / f"{name}.json"
    else:
        path = Path(model).expanduser() / "config.json"
        if not path.is_file():
            return None
    return parse_hf_config(str(path), read_json_object(path))


def cards(dtype: str) -> dict[str, Card]:
    share = 0.5 if dtype == "float32" else 1.0
    return {
        name: Card(name, card.flops_per_s * share, card.bytes_per_s)
        for name, card in _CARDS_16_BIT.items()
    }


def measure_cpu() -> Card:
    """This CPU now: a float32 matrix product and a copy, the best of five each. About a second."""
    size = 1024
    left = np.ones((size, size), dtype=np.float32)
    product_s = min(_timed(lambda: left @ left) for _ in range(5))
    block = np.ones(64 << 20, dtype=np.uint8)
    target = np.empty_like(block)
    copy_s = min(_timed(lambda: np.copyto(target, block)) for _ in range(5))
    name = f"this CPU ({len(os.sched_getaffinity(0))} cores, float32, measured)"
    return Card(name, 2 * size**3 / product_s, 2 * block.nbytes / copy_s)


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
