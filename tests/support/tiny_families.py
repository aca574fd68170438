"""Tiny random checkpoints of every family, written by transformers' own classes.

Biases and norm weights are random too (transformers starts them at 0 and 1, where forgetting them
would go unseen). Each family's config states only what is not the same for all. The tokenizer is
tiny_llama.py's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.tiny_llama import write_text_part

VOCAB = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 10000.0,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_theta": 500000.0,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0],
    "long_factor": [2.0] * 8,
    "rope_theta": 10000.0,
}
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

# Name of the case: (class prefix in transformers, changes to its config).
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, dynamic": ("Llama", {"rope_parameters": DYNAMIC}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn, own numbers": (
        "Llama",
        {
            "rope_parameters": {
                **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False,
                "attention_factor": 1.3,
            },
        },
    ),
    "llama, yarn, deepseek's scale": (
        "Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4}},
    ),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral, window": ("Mistral", {"sliding_window": 340}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window, yarn": (
        "Qwen2",
        {
            "use_sliding_window": True, "sliding_window": 340, "max_window_layers": 1,
            "rope_parameters": YARN,
        },
    ),
    "qwen2, llama3": ("Qwen2", {"rope_parameters": LLAMA3, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3, linear, tied": (
        "Qwen3", {"head_dim": 16, "rope_parameters": LINEAR, "tie_word_embeddings": True},
    ),
    "qwen3, yarn": ("Qwen3", {"head_dim": 64, "rope_parameters": YARN}),
    "phi3": ("Phi3", {}),
    "phi3, longrope": (
        "Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 512},
    ),
    "phi3, window, no gqa": ("Phi3", {"sliding_window": 340, "num_key_value_heads": 4}),
}  # fmt: skip


def write_tiny_family(folder: Path, case: str, *, seed: int = 5, **changes: Any) -> Any:
    """Write the folder; returns transformers' model, float32, for comparison."""
    prefix, own = CASES[case]
    return write_tiny_peer(folder, prefix, seed=seed, **{**own, **changes})


def write_tiny_peer(folder: Path, prefix: str, *, seed: int = 5, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(seed)
    settings = {**_SIZES, "initializer_range": 0.25, **changes}
    config = getattr(transformers, f"{prefix}Config")(**settings)
    peer = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.5)
            elif name.endswith("norm.weight"):
                parameter.normal_(mean=1.0, std=0.3)
    peer.save_pretrained(folder)
    write_text_part(folder, VOCAB)
    return peer
