"""Vocabularies of real models from installed packages: as GGUF metadata, and their own encoders.

    qwen2      dashscope        qwen.tiktoken                       tiktoken
    llama-bpe  llama-models     llama3/tokenizer.model (tiktoken)   tiktoken
    tekken     mistral-common   tekken_240911.json                  tiktoken
    llama      mistral-common   tokenizer.model.v1 and others       sentencepiece

The packages' code is not imported. Of tiktoken's vocabularies the first ``NUM_RANKS`` tokens are
used on both sides: a byte-pair vocabulary cut short is one, and its merges are found in seconds.
"""

from __future__ import annotations

import base64
import importlib.metadata
import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.tiny_llama import byte_level_characters

NUM_RANKS = 30_000
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6

# As the packages' own tokenizer.py give them.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"\p{N}| ", r"\p{N}{1,3}| ")


@dataclass(frozen=True)
class RealTokenizer:
    """``keys``: GGUF metadata as llama.cpp's converter writes it; ``encode``: the original's."""

    keys: dict[str, Any]
    encode: Callable[[str], list[int]]


def package_file(package: str, name: str) -> Path:
    files = importlib.metadata.files(package) or []
    return Path(str(next(file for file in files if file.as_posix() == name).locate()))


def qwen2() -> RealTokenizer:
    ranks = _tiktoken_ranks(package_file("dashscope", "dashscope/resources/qwen.tiktoken"))
    return _byte_pairs("qwen2", ranks, QWEN_PATTERN)


def llama3() -> RealTokenizer:
    path = package_file("llama-models", "llama_models/llama3/tokenizer.model")
    return _byte_pairs("llama-bpe", _tiktoken_ranks(path), LLAMA3_PATTERN)


def tekken() -> RealTokenizer:
    path = package_file("mistral-common", "mistral_common/data/tekken_240911.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    first = document["vocab"][:NUM_RANKS]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in first}
    return _byte_pairs("tekken", ranks, document["config"]["pattern"])


def sentencepiece(file_name: str) -> RealTokenizer:
    """One of the models in mistral-common's data folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its SWIG types
        from sentencepiece import SentencePieceProcessor

    path = package_file("mistral-common", f"mistral_common/data/{file_name}")
    model = SentencePieceProcessor(model_file=str(path))

    def kind(token_id: int) -> int:
        checks = {
            UNKNOWN: model.IsUnknown, CONTROL: model.IsControl, UNUSED: model.IsUnused,
            BYTE: model.IsByte,
        }  # fmt: skip
        return next((kind for kind, is_it in checks.items() if is_it(token_id)), NORMAL)

    ids = range(model.vocab_size())
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.IdToPiece(token_id) for token_id in ids],
        "tokenizer.ggml.scores": [model.GetScore(token_id) for token_id in ids],
        "tokenizer.ggml.token_type": [kind(token_id) for token_id in ids],
    }
    return RealTokenizer(keys, model.encode)


def _tiktoken_ranks(path: Path) -> dict[bytes, int]:
    with path.open("rb") as file:
        lines = [line.split() for line in itertools.islice(file, NUM_RANKS)]
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _byte_pairs(pre: str, ranks: dict[bytes, int], pattern: str) -> RealTokenizer:
    from tiktoken import Encoding

    encoding = Encoding(pre, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    characters = byte_level_characters()

    def written(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    halves = [_last_merge(ranks, token) for token in ranks if len(token) > 1]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [written(token) for token in ranks],
        "tokenizer.ggml.merges": [
            " ".join(map(written, parts)) for parts in halves if len(parts) == 2
        ],
    }
    return RealTokenizer(keys, encoding.encode_ordinary)


def _last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two tokens that were merged into this one; more if no order of merges leads to it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, NUM_RANKS) for a, b in itertools.pairwise(parts)]
        best = min(pairs)
        if best >= ranks[token]:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
