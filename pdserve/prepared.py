"""A prepared model folder, as every process reads it: manifest, text part, tensor table.

``pdserve model prepare`` (engine/modelfiles) writes the folder once; workers map ``weights.bin``,
the router reads only the tokenizer and the template. This module needs neither torch nor the
libraries that read model files. It does not know how tensors are used (engine/model.py).

    manifest.json         this module's PreparedModel, as JSON
    weights.bin           raw little-endian tensors, each at a multiple of 4096 bytes
    tokenizer.json        Hugging Face ``tokenizers`` format
    chat_template.jinja   absent if the model has none

Tensor names: ``embed`` [vocab, hidden]; per layer i ``layers.i.`` + ``input_norm`` [hidden],
``qkv`` [(heads + 2 kv_heads) * head_dim, hidden] (rows: all q heads, all k heads, all v heads, in
Hugging Face's half-rotated RoPE order), ``qkv_bias`` [rows of qkv] if the config says so,
``q_norm`` and ``k_norm`` [head_dim] likewise, ``o``, ``post_norm``,
``gate_up`` [2 * intermediate, hidden] (gate rows first), ``down``; ``norm``; ``lm_head`` unless
tied to ``embed``. With ``weights`` "int8" every matrix NAME is int8 and has float16
``NAME.scales`` [rows, columns / 32] beside it: Q8_0's blocks (docs/decisions/0008).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pdserve.errors import ModelFileError

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"
TOKENIZER_NAME = "tokenizer.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
FORMAT_VERSION = 4
TENSOR_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Change of the rotary frequencies. ``kind``: none, linear, dynamic, llama3, yarn or longrope.

    Which fields a kind uses: engine/rope.py. ``attention_factor`` multiplies cosines and sines.
    """

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()  # longrope: divisors of the frequencies, one a pair


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder-only transformer of the Llama kind."""

    architecture: str  # "llama", "qwen2", "qwen3", "phi3"; "fake": the engine without a model
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    max_positions: int  # longest context, tokens
    tied_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head of q and k, before the rotation
    sliding_window: int = (
        0  # tokens; 0: none. ``max_positions`` is never longer, so none is cut off
    )


@dataclass(frozen=True, slots=True)
class TensorEntry:
    offset_bytes: int
    shape: tuple[int, ...]
    dtype: str  # "float32" | "bfloat16" | "float16" | "int8"


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """The manifest. ``folder`` is where it was read from and is not part of the JSON."""

    folder: Path
    name: str  # served name unless another is given
    fingerprint: str  # KV part "." all: weights + tokenizer + dtype; see ``kv_fingerprint``
    dtype: str  # of activations and KV, and of weights unless they are int8
    weights: str  # "full": in ``dtype`` | "int8"
    source: str  # for people: file or folder it was made from
    config: ModelConfig
    tensors: dict[str, TensorEntry]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    adds_bos: bool  # whether plain (not chat) prompts start with the bos token
    num_parameters: int

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHTS_NAME

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER_NAME

    @property
    def chat_template(self) -> str | None:
        path = self.folder / CHAT_TEMPLATE_NAME
        return path.read_text(encoding="utf-8") if path.exists() else None


def kv_fingerprint(fingerprint: str) -> str:
    """What workers must share for one to go on from the other's KV: shape, dtype and tokenizer,
    but not how exactly weights are held. ``fingerprint``: of a prepared model."""
    return fingerprint.partition(".")[0]


def write_manifest(model: PreparedModel) -> None:
    """Write ``manifest.json``; last, so that a folder with a manifest is complete."""
    document = {"format_version": FORMAT_VERSION, **asdict(model)}
    del document["folder"]
    target = model.folder / MANIFEST_NAME
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(target)


def read_prepared(folder: Path) -> PreparedModel:
    """Read a prepared folder.

    Raises:
        ModelFileError: no manifest, another format version, or a field missing or of a wrong kind.
    """
    path = folder / MANIFEST_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{folder}: not a prepared model (no {MANIFEST_NAME})") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path}: must be a JSON object")
    if document.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: format_version {document.get('format_version')!r}, this build reads "
            f"{FORMAT_VERSION}; run `pdserve model prepare` again"
        )
    try:
        return _from_document(folder, document)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: field missing or of a wrong kind: {error}") from error


def _from_document(folder: Path, document: dict[str, Any]) -> PreparedModel:
    config = dict(document["config"])
    scaling = dict(config["rope_scaling"])
    scaling["short_factors"] = tuple(scaling["short_factors"])
    config["rope_scaling"] = RopeScaling(**scaling)
    tensors = {
        name: TensorEntry(entry["offset_bytes"], tuple(entry["shape"]), entry["dtype"])
        for name, entry in document["tensors"].items()
    }
    plain = {
        f.name: document[f.name]
        for f in fields(PreparedModel)
        if f.name not in {"folder", "config", "tensors", "eos_token_ids"}
    }
    return PreparedModel(
        folder=folder,
        config=ModelConfig(**config),
        tensors=tensors,
        eos_token_ids=tuple(document["eos_token_ids"]),
        **plain,
    )
