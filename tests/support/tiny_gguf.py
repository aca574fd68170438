"""Tiny checkpoints as GGUF files, written as llama.cpp's converter would.

``write_tiny_gguf``: that of tiny_llama.py. ``write_family_gguf``: any of tiny_families.py. Not
covered: SentencePiece's tokenizers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray

from support.tiny_llama import (
    BOS_TOKEN_ID,
    CHAT_TEMPLATE,
    EOS_TOKEN_ID,
    SPECIAL_TOKENS,
    random_tensors,
    tiny_vocabulary,
)

NORMAL, CONTROL = 1, 3
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    weight_type: str = "F32",
    num_layers: int = 2,
    hidden: int = 64,
    intermediate: int = 128,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    vocab: int = 320,
    tied: bool = True,
    pre: str = "smollm",
    num_parts: int = 1,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[np.float32] | None] | None = None,
) -> Path:
    """Write the file and return its path. Matrices are of ``weight_type``, vectors F32.

    Of several parts, ``path`` is the name without suffix, and the first part's path is returned.

    The same arguments as for ``write_tiny_llama`` give the same numbers (before rounding to
    ``weight_type``). ``metadata`` and ``tensors`` (by GGUF name) are laid over what would be
    written; None leaves an entry out.
    """
    head_dim = hidden // num_heads
    by_hf_name = random_tensors(
        seed=seed, num_layers=num_layers, hidden=hidden, intermediate=intermediate,
        q_size=hidden, kv_size=num_kv_heads * head_dim, vocab=vocab, tied=tied,
    )  # fmt: skip
    arrays: dict[str, NDArray[np.float32] | None] = {}
    for name, array in by_hf_name.items():
        if "q_proj" in name or "k_proj" in name:
            array = to_adjacent_pairs(array, head_dim)
        arrays[_gguf_name(name)] = array
    keys = tiny_keys(
        num_layers=num_layers, hidden=hidden, intermediate=intermediate, num_heads=num_heads,
        num_kv_heads=num_kv_heads, vocab=vocab, pre=pre,
    )  # fmt: skip
    _write(
        path, {**keys, **(metadata or {})}, {**arrays, **(tensors or {})}, weight_type, num_parts
    )
    return path if num_parts == 1 else path.with_name(f"{path.name}-00001-of-{num_parts:05d}.gguf")


def tiny_keys(
    *,
    num_layers: int = 2,
    hidden: int = 64,
    intermediate: int = 128,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    vocab: int = 320,
    pre: str = "smollm",
) -> dict[str, Any]:
    """All metadata of the model of ``write_tiny_gguf``."""
    return {
        "llama.block_count": num_layers,
        "llama.context_length": 2048,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": intermediate,
        "llama.attention.head_count": num_heads,
        "llama.attention.head_count_kv": num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": hidden // num_heads,
        "llama.vocab_size": vocab,
        **text_keys(vocab, pre),
    }


def write_family_gguf(path: Path, peer: Any, **changes: Any) -> Path:
    """The weights and config of one of transformers' models, as F32.

    ``changes``: keys below the architecture's name, dots as double underscores.
    """
    config = peer.config
    arch = {"mistral": "llama"}.get(config.model_type, config.model_type)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    arrays: dict[str, NDArray[np.float32] | None] = {}
    for name, tensor in peer.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            array = to_adjacent_pairs(array, head_dim)
        arrays[_gguf_name(name)] = array
    for name, factors in _longrope_factors(config).items():
        arrays[name] = np.array(factors, np.float32)
    keys = {
        "general.architecture": arch,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.rope.dimension_count": head_dim,
        **_family_extras(arch, config, head_dim),
        **{f"{arch}.{key.replace('__', '.')}": value for key, value in changes.items()},
        **text_keys(config.vocab_size, "gpt-2"),
    }
    _write(path, keys, arrays, "F32", num_parts=1)
    return path


def _longrope_factors(config: Any) -> dict[str, list[float]]:
    rope = config.rope_parameters
    return {
        f"rope_factors_{part}.weight": rope[f"{part}_factor"]
        for part in ("long", "short")
        if rope["rope_type"] == "longrope"
    }


def _family_extras(arch: str, config: Any, head_dim: int) -> dict[str, Any]:
    rope, extras = config.rope_parameters, {}
    if head_dim * config.num_attention_heads != config.hidden_size:
        extras = {f"{arch}.attention.{part}_length": head_dim for part in ("key", "value")}
    if arch == "phi3":
        extras[f"{arch}.attention.sliding_window"] = config.sliding_window or 0
    if rope["rope_type"] in ("linear", "yarn"):
        extras[f"{arch}.rope.scaling.type"] = rope["rope_type"]
        extras[f"{arch}.rope.scaling.factor"] = rope["factor"]
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        extras[f"{arch}.rope.scaling.original_context_length"] = original
        extras[f"{arch}.rope.scaling.attn_factor"] = math.sqrt(
            1 + math.log(scale) / math.log(original)
        )
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        extras[f"{arch}.rope.scaling.original_context_length"] = original
    return extras


def text_keys(vocab: int, pre: str) -> dict[str, Any]:
    """The metadata of the tokenizer and the chat template."""
    tokens, merges = tiny_vocabulary(vocab)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            CONTROL if token in SPECIAL_TOKENS else NORMAL for token in tokens
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": BOS_TOKEN_ID,
        "tokenizer.ggml.eos_token_id": EOS_TOKEN_ID,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def to_adjacent_pairs(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Reorder the rows of q or k from halves to adjacent pairs, head by head.

    Row ``2 * i + s`` of a head becomes what was row ``s * head_dim / 2 + i``.
    """
    half = head_dim // 2
    order = [
        head * head_dim + side * half + i
        for head in range(rows.shape[0] // head_dim)
        for i in range(half)
        for side in range(2)
    ]
    return rows[order]


def _gguf_name(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _write(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, NDArray[np.float32] | None],
    weight_type: str,
    num_parts: int,
) -> None:
    present = {name: array for name, array in tensors.items() if array is not None}
    per_part = -(-len(present) // num_parts)
    writer = GGUFWriter(
        path,
        metadata.get("general.architecture", "llama"),
        split_max_tensors=per_part if num_parts > 1 else 0,
    )
    write_keys(writer, metadata)
    for name, array in present.items():
        kind = GGMLQuantizationType[weight_type] if array.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_keys(writer: GGUFWriter, metadata: dict[str, Any]) -> None:
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            _add_key(writer, key, value)


def _add_key(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
