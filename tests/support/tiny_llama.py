"""A random Llama checkpoint small enough for unit tests, as a real Hugging Face folder.

Made without transformers or torch, so that the files are an independent statement of the format.
Weights are wide enough that logits lie far apart: greedy output varies with the prompt, sampled
output with the seed. The tokenizer is byte-level BPE: three special tokens, 256 bytes, then
merges of two lower-case letters (at most 676, as many as ``vocab`` leaves room for).

    0 <|endoftext|>    1 <|im_start|> (bos)    2 <|im_end|> (eos)    3 + b byte b    259.. merges

Not covered: Llama 2's sentencepiece tokenizer, quantised checkpoints, biases.
"""

from __future__ import annotations

import itertools
import json
import math
import string
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_TOKEN_ID = 1
EOS_TOKEN_ID = 2
FIRST_BYTE_TOKEN_ID = len(SPECIAL_TOKENS)
MIN_VOCAB = len(SPECIAL_TOKENS) + 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3_ROPE_SCALING: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LINEAR_ROPE_SCALING: dict[str, Any] = {"rope_type": "linear", "factor": 2.0}

# How much wider than variance-preserving; large enough that attention is sharp and the layers,
# not the embedding of the last token, decide the logits.
_LINEAR_GAIN = 2.0
_EMBED_STD = 0.35

_FIXED_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
}


def write_tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden: int = 64,
    intermediate: int = 128,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int | None = None,
    vocab: int = 320,
    tied: bool = True,
    rope_theta: float = 10000.0,
    rope_scaling: dict[str, Any] | None = None,
    max_positions: int = 2048,
    dtype: str = "float32",
    num_shards: int = 1,
    config_changes: dict[str, Any] | None = None,
) -> Path:
    """Write the folder and return it. ``dtype``: "float32", "bfloat16" or "float16".

    ``head_dim`` None derives it (hidden / heads) and leaves it out of config.json;
    ``config_changes`` are laid over config.json, e.g. to provoke a refusal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        **_FIXED_CONFIG,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "rope_theta": rope_theta,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    if rope_scaling is not None:
        config["rope_scaling"] = rope_scaling
    write_json(folder / "config.json", {**config, **(config_changes or {})})
    generation = {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID}
    write_json(folder / "generation_config.json", generation)
    write_text_part(folder, vocab)
    tensors = random_tensors(
        seed=seed, num_layers=num_layers, hidden=hidden, intermediate=intermediate,
        q_size=num_heads * (head_dim or hidden // num_heads),
        kv_size=num_kv_heads * (head_dim or hidden // num_heads), vocab=vocab, tied=tied,
    )  # fmt: skip
    write_checkpoint(folder, tensors, dtype=dtype, num_shards=num_shards)
    return folder


def random_tensors(
    *, seed: int, num_layers: int, hidden: int, intermediate: int, q_size: int, kv_size: int,
    vocab: int, tied: bool,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Hugging Face tensor names to random values; the same for the same arguments."""
    rng = np.random.default_rng(seed)

    def linear(rows: int, columns: int) -> NDArray[np.float32]:
        std = _LINEAR_GAIN / math.sqrt(columns)
        return (rng.standard_normal((rows, columns)) * std).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1.0 + 0.1 * rng.standard_normal(hidden)).astype(np.float32)

    def embedding() -> NDArray[np.float32]:
        return (rng.standard_normal((vocab, hidden)) * _EMBED_STD).astype(np.float32)

    tensors = {"model.embed_tokens.weight": embedding()}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = norm()
        tensors[prefix + "self_attn.q_proj.weight"] = linear(q_size, hidden)
        tensors[prefix + "self_attn.k_proj.weight"] = linear(kv_size, hidden)
        tensors[prefix + "self_attn.v_proj.weight"] = linear(kv_size, hidden)
        tensors[prefix + "self_attn.o_proj.weight"] = linear(hidden, q_size)
        tensors[prefix + "post_attention_layernorm.weight"] = norm()
        tensors[prefix + "mlp.gate_proj.weight"] = linear(intermediate, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = linear(intermediate, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = linear(hidden, intermediate)
    tensors["model.norm.weight"] = norm()
    if not tied:
        tensors["lm_head.weight"] = embedding()
    return tensors


def write_checkpoint(
    folder: Path, tensors: dict[str, NDArray[np.float32]], *, dtype: str, num_shards: int = 1
) -> None:
    """``model.safetensors``, or ``num_shards`` files with their index."""
    if num_shards == 1:
        _write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    shards = [names[i::num_shards] for i in range(num_shards)]
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        _write_safetensors(folder / file_name, {name: tensors[name] for name in shard}, dtype)
        weight_map.update(dict.fromkeys(shard, file_name))
    index = {"metadata": {}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_text_part(folder: Path, vocab: int) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tiny_tokenizer(vocab).save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_TOKEN_ID],
        "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def tiny_tokenizer(vocab: int = 320) -> Tokenizer:
    """Every id below ``vocab`` is a token; at least ``MIN_VOCAB``."""
    tokens, merges = tiny_vocabulary(vocab)
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def tiny_vocabulary(vocab: int) -> tuple[list[str], list[tuple[str, str]]]:
    """(tokens by id, merges by rank)."""
    if vocab < MIN_VOCAB:
        raise ValueError(f"vocab: {vocab}, at least {MIN_VOCAB} for the bytes")
    pairs = itertools.product(string.ascii_lowercase, string.ascii_lowercase)
    merges = list(itertools.islice(pairs, vocab - MIN_VOCAB))
    tokens = [*SPECIAL_TOKENS, *byte_level_characters()]
    tokens += [left + right for left, right in merges]
    tokens += [f"<|filler_{i}|>" for i in range(len(tokens), vocab)]
    return tokens, merges


def byte_level_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's byte-level vocabularies, by byte."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = itertools.count(256)
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: str) -> None:
    """The format by hand: u64 header length, JSON header, raw little-endian tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    offset = 0
    for name, array in tensors.items():
        data = _encode(array, dtype)
        end = offset + len(data)
        header[name] = {
            "dtype": {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        parts.append(data)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def _encode(array: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "float32":
        return array.tobytes()
    if dtype == "float16":
        return array.astype(np.float16).tobytes()
    if dtype == "bfloat16":  # round to nearest even
        bits = np.ascontiguousarray(array).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    raise ValueError(f"dtype: {dtype!r}")
