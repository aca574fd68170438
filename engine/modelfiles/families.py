"""The model families that can be read, and what tells them apart.

One entry a family, by the ``model_type`` of config.json; a GGUF file names its family by
``general.architecture``. Defaults are those of the family's config class in transformers, for
fields that a config.json may leave out; sizes have none. Does not read files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROPE_TYPES = frozenset({"default", "linear", "dynamic", "llama3", "yarn"})


@dataclass(frozen=True, slots=True)
class Family:
    """``architecture`` is what ``ModelConfig`` and GGUF call it; ``model_class``: transformers."""

    architecture: str
    model_class: str
    max_positions: int
    rms_norm_eps: float = 1e-6
    num_kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / heads
    sliding_window: int | None = None
    has_window: bool = False  # whether ``sliding_window`` means anything
    has_window_switch: bool = False  # whether it needs ``use_sliding_window``
    qkv_bias: bool = False
    qk_norm: bool = False
    is_fused: bool = False  # q, k, v and gate, up are stored stacked
    is_reordered_in_gguf: bool = False  # rows of q and k, for llama.cpp's rotary layout
    ships_code: bool = False  # its checkpoints name code that transformers has since taken in
    rope_types: frozenset[str] = ROPE_TYPES
    original_positions: int | None = None  # stated beside the rotary settings; None: in them
    plain: Mapping[str, tuple[object, ...]] = field(default_factory=dict)  # refused otherwise


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "llama", "LlamaForCausalLM", max_positions=2048, is_reordered_in_gguf=True,
        plain={"sliding_window": (), "use_sliding_window": (False,)},
    ),
    "mistral": Family(
        "llama", "MistralForCausalLM", max_positions=131072, num_kv_heads=8,
        sliding_window=4096, has_window=True, plain={"use_sliding_window": (False,)},
    ),
    "qwen2": Family(
        "qwen2", "Qwen2ForCausalLM", max_positions=32768, num_kv_heads=32,
        sliding_window=4096, has_window=True, has_window_switch=True, qkv_bias=True,
    ),
    "qwen3": Family(
        "qwen3", "Qwen3ForCausalLM", max_positions=32768, num_kv_heads=32, head_dim=128,
        sliding_window=4096, has_window=True, has_window_switch=True, qk_norm=True,
    ),
    "phi3": Family(
        "phi3", "Phi3ForCausalLM", max_positions=4096, rms_norm_eps=1e-5,
        has_window=True, is_fused=True, ships_code=True, original_positions=4096,
        rope_types=frozenset({"default", "longrope", "su"}),
        plain={"use_sliding_window": (False,)},
    ),
}  # fmt: skip

# Mistral computes what Llama does, and GGUF files of it say "llama".
BY_ARCHITECTURE: dict[str, Family] = {
    family.architecture: family for name, family in FAMILIES.items() if name != "mistral"
}
