"""What every model file becomes before it is prepared: config, text part and a source of tensors.

Does not know where a checkpoint came from. Also here: the checks that hold for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from engine.modelfiles.block_array import BlockArray
from engine.modelfiles.number_formats import StoredArray
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig

_MAX_LAYERS = 4096  # a damaged number must not become a plan of a billion tensors


@dataclass(frozen=True, slots=True)
class TextPart:
    """Everything between text and token ids."""

    tokenizer_json: str
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    adds_bos: bool  # the caller of the tokenizer must put bos before a plain prompt


class TensorSource(Protocol):
    """Reads one tensor at a time, so that a model never lies in memory twice."""

    def read(self, name: str, shape: tuple[int, ...]) -> StoredArray | BlockArray:
        """The tensor of this Hugging Face name; ModelFileError if it is not there as asked."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    config: ModelConfig
    text: TextPart
    tensors: TensorSource


def load_tokenizer(tokenizer_json: str, where: str) -> Tokenizer:
    """Raises ModelFileError naming ``where`` when the ``tokenizers`` library cannot read it."""
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileError(f"{where}: not a usable tokenizer: {error}") from error


def check_token_ids(text: TextPart, tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Every id the text part can produce must have a row in the embedding."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise ModelFileError(
            f"{where}: the tokenizer has token id {largest}, the model only {vocab_size} tokens"
        )
    named = {"eos_token_id": text.eos_token_ids}
    if text.bos_token_id is not None:
        named["bos_token_id"] = (text.bos_token_id,)
    for field, ids in named.items():
        for token_id in ids:
            if token_id >= vocab_size:
                raise ModelFileError(f"{where}: {field} {token_id} is not below {vocab_size}")
    if text.adds_bos and text.bos_token_id is None:
        raise ModelFileError(f"{where}: a bos token is to be added, but none is named")


def check_config(config: ModelConfig, where: str) -> None:
    """Relations between the sizes that the engine relies on."""
    if config.num_heads % config.num_kv_heads:
        raise ModelFileError(
            f"{where}: {config.num_heads} attention heads cannot share "
            f"{config.num_kv_heads} key-value heads evenly"
        )
    if config.num_layers > _MAX_LAYERS:
        raise ModelFileError(f"{where}: {config.num_layers} layers; at most {_MAX_LAYERS}")
    if config.head_dim % 2:
        raise ModelFileError(f"{where}: head_dim {config.head_dim} is odd; rotary needs pairs")
