"""A Hugging Face folder: config.json, model.safetensors or its shards, text part.

Which of two layouts is there is decided as transformers does: one file before an index. Not
covered: pytorch_model.bin (pickle), adapters.
"""

from __future__ import annotations

from pathlib import Path

from engine.modelfiles.checkpoint import Checkpoint, TensorSource, check_token_ids
from engine.modelfiles.families import BY_ARCHITECTURE
from engine.modelfiles.field_reader import FieldReader, read_json_object
from engine.modelfiles.fused_projections import SplitTensors, stored_rows
from engine.modelfiles.hf_config import parse_hf_config
from engine.modelfiles.hf_tokenizer import (
    CHAT_TEMPLATE_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    read_hf_text,
)
from engine.modelfiles.number_formats import StoredArray
from engine.modelfiles.safetensors_file import SafetensorsFile
from pdserve.errors import ModelFileError
from pdserve.prepared import ModelConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_TEXT_FILES = (
    CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE,
)  # fmt: skip
# Written by old releases of transformers; computed from the config, never a weight.
_DERIVED_SUFFIX = ".rotary_emb.inv_freq"


class HFTensors:
    """Tensors by name over one or several safetensors files (a ``TensorSource``)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {path: SafetensorsFile(path) for path in weight_files(folder)}
        self._path_of = {
            name: path for path, opened in self._files.items() for name in opened.names
        }

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._path_of)

    def read(self, name: str, shape: tuple[int, ...]) -> StoredArray:
        path = self._path_of.get(name)
        if path is None:
            raise ModelFileError(f"{self._folder}: tensor {name}: missing")
        return self._files[path].read(name, shape)


def open_hf_folder(folder: Path) -> Checkpoint:
    """Read config and text part; tensors are read later, one by one.

    Raises:
        ModelFileError: naming the file, field or tensor that is missing or not supported.
    """
    config_path = folder / CONFIG_FILE
    document = read_json_object(config_path)
    config = parse_hf_config(str(config_path), document)
    text, tokenizer = read_hf_text(folder, document)
    check_token_ids(text, tokenizer, config.vocab_size, str(folder))
    tensors = HFTensors(folder)
    _refuse_unexpected(folder, tensors.names, config)
    is_fused = BY_ARCHITECTURE[config.architecture].is_fused
    source: TensorSource = SplitTensors(tensors, config) if is_fused else tensors
    return Checkpoint(config, text, source)


def hf_source_files(folder: Path) -> tuple[Path, ...]:
    """Every file whose content decides what the folder is prepared into."""
    text_files = [folder / name for name in _TEXT_FILES if (folder / name).is_file()]
    return (*text_files, *weight_files(folder))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Raises ModelFileError: no weights, an index that is unusable, or a shard that is missing."""
    single, index_path = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        return (single,)
    if not index_path.is_file():
        raise ModelFileError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    index = FieldReader(str(index_path), read_json_object(index_path))
    weight_map = index.values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise index.error("weight_map", "missing or empty")
    names = dict.fromkeys(weight_map.values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise index.error("weight_map", f"{name!r} is not the name of a file beside it")
        if not (folder / name).is_file():
            raise ModelFileError(f"{folder / name}: missing, but named in {INDEX_FILE}")
    return tuple(folder / name for name in names)


def _refuse_unexpected(folder: Path, names: frozenset[str], config: ModelConfig) -> None:
    """A tensor the plan does not use (a bias, an adapter) would be silently left out."""
    is_fused = BY_ARCHITECTURE[config.architecture].is_fused
    expected = {rows.name for rows in stored_rows(config, is_fused=is_fused).values()}
    expected.add("lm_head.weight")  # a tied model may carry its copy
    for name in sorted(names - expected):
        if not name.endswith(_DERIVED_SUFFIX):
            raise ModelFileError(f"{folder}: tensor {name}: not part of the configured model")
