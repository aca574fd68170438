"""The checkpoint of tiny_llama.py as a GGUF file, written as llama.cpp's converter would.

Not covered: other architectures and tokenizer models.
"""

from __future__ import annotations

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
    "self_attn.o_proj": "attn_output",
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
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[np.float32] | None] | None = None,
) -> Path:
    """Write the file and return its path. Matrices are of ``weight_type``, vectors F32.

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
    keys: dict[str, Any] = {
        "llama.block_count": num_layers,
        "llama.context_length": 2048,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": intermediate,
        "llama.attention.head_count": num_heads,
        "llama.attention.head_count_kv": num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": head_dim,
        "llama.vocab_size": vocab,
        **text_keys(vocab, pre),
    }
    _write(path, {**keys, **(metadata or {})}, {**arrays, **(tensors or {})}, weight_type)
    return path


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
) -> None:
    writer = GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            _add_key(writer, key, value)
    for name, array in tensors.items():
        if array is None:
            continue
        kind = GGMLQuantizationType[weight_type] if array.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
