"""From whatever a person names as a model to a prepared folder that all processes map.

The work is done once for each content and dtype; later calls find the folder in the cache. Tensors
are converted one at a time, straight into the file; with ``weights`` "int8" matrices become
Q8_0's blocks, and those of a Q8_0 file stay what they are. Does not know how a model is computed.
Not covered: other quantised prepared weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from engine.modelfiles.block_array import BlockArray, to_blocks
from engine.modelfiles.cache import ModelCache
from engine.modelfiles.checkpoint import Checkpoint
from engine.modelfiles.extents import check_weights_file
from engine.modelfiles.gguf_file import open_gguf_file
from engine.modelfiles.gguf_split import gguf_parts
from engine.modelfiles.hf_folder import hf_source_files, open_hf_folder
from engine.modelfiles.number_formats import PREPARED_DTYPES, StoredArray
from engine.modelfiles.resolve import ModelSource, SourceKind, resolve_source
from engine.modelfiles.summary import ModelSummary, model_summary
from engine.modelfiles.tensor_plan import PlannedTensor, TensorPart, plan_tensors
from pdserve.config import cache_folder
from pdserve.errors import ConfigError, ModelFileError
from pdserve.log import event_log
from pdserve.prepared import (
    CHAT_TEMPLATE_NAME,
    FORMAT_VERSION,
    TENSOR_ALIGNMENT_BYTES,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    ModelConfig,
    PreparedModel,
    TensorEntry,
    read_prepared,
    write_manifest,
)

__all__ = ["ModelSummary", "model_summary", "prepare_model"]

logger = event_log(__name__)

# Part of every cache key: raise it when the same source gives another prepared folder.
_CONVERSION_VERSION = 2
_TENSORS_BETWEEN_REPORTS = 60
_KV_PART_DIGITS = 16
PREPARED_WEIGHTS = ("full", "int8")


def prepare_model(
    model: str,
    dtype: str,
    *,
    weights: str = "full",
    cache_dir: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> PreparedModel:
    """The prepared folder of ``model`` in ``dtype``, made now if it is not in the cache.

    ``model``: "smollm2", a Hugging Face folder, a .gguf file, or a prepared folder, which is used
    where it lies. ``weights``: "full" (in ``dtype``) or "int8". ``cache_dir``: root of the cache,
    else ``$PDSERVE_CACHE`` or ~/.cache/pdserve.
    ``progress`` gets a line for people now and then, nothing when the model is cached.

    Raises:
        ModelFileError: a file is missing, damaged or not supported; names file, tensor or field.
        ConfigError: ``dtype`` is not "float32", "bfloat16" or "float16".
    """
    if dtype not in PREPARED_DTYPES:
        raise ConfigError(f"dtype: {dtype!r}; one of {', '.join(PREPARED_DTYPES)}")
    if weights not in PREPARED_WEIGHTS:
        raise ConfigError(f"weights: {weights!r}; one of {', '.join(PREPARED_WEIGHTS)}")
    source = resolve_source(model)
    if source.kind is SourceKind.PREPARED:
        return _open_prepared(source.path, dtype, weights)
    cache = ModelCache(cache_dir or cache_folder())
    digest = cache.digest_of(_source_files(source), f"{_CONVERSION_VERSION}.{FORMAT_VERSION}")
    kind = dtype if weights == "full" else f"{dtype}-{weights}"
    target = cache.folder_of(source.name, digest, kind)
    if target.is_dir():
        return _open_prepared(target, dtype, weights)
    report = progress or _report_nothing
    report(f"preparing {source.name} from {source.path} as {kind}")
    with cache.partial_folder() as partial:
        try:
            _write_folder(partial, source, dtype, weights, report)
            cache.install(partial, target)
        except OSError as error:
            raise ModelFileError(f"{target}: cannot be written: {error}").advise(
                "set PDSERVE_CACHE to a folder with room for the model"
            ) from error
    report(f"prepared {source.name} in {target}")
    logger.info("model_prepared", model=source.name, dtype=kind, folder=target)
    return _open_prepared(target, dtype, weights)


def _report_nothing(line: str) -> None:
    pass


def _source_files(source: ModelSource) -> tuple[Path, ...]:
    is_gguf = source.kind is SourceKind.GGUF
    return gguf_parts(source.path) if is_gguf else hf_source_files(source.path)


def _open_prepared(folder: Path, dtype: str, weights: str) -> PreparedModel:
    prepared = read_prepared(folder)
    if prepared.dtype != dtype:
        raise ModelFileError(f"{folder}: prepared as {prepared.dtype}, {dtype} is asked for")
    if prepared.weights != weights:
        raise ModelFileError(
            f"{folder}: prepared with {prepared.weights} weights, {weights} ones are asked for"
        )
    if not prepared.tokenizer_path.is_file():
        raise ModelFileError(f"{prepared.tokenizer_path}: missing")
    check_weights_file(prepared)
    return prepared


def _write_folder(
    folder: Path,
    source: ModelSource,
    dtype: str,
    weights: str,
    report: Callable[[str], None],
) -> None:
    is_gguf = source.kind is SourceKind.GGUF
    checkpoint = open_gguf_file(source.path) if is_gguf else open_hf_folder(source.path)
    _report_context(source, checkpoint.config, report)
    text = checkpoint.text
    (folder / TOKENIZER_NAME).write_text(text.tokenizer_json, encoding="utf-8")
    if text.chat_template is not None:
        (folder / CHAT_TEMPLATE_NAME).write_text(text.chat_template, encoding="utf-8")
    with (folder / WEIGHTS_NAME).open("wb") as file:
        writer = _WeightsWriter(file, checkpoint, dtype, weights, where=str(source.path))
        planned = plan_tensors(checkpoint.config)
        for number, tensor in enumerate(planned, start=1):
            writer.write(tensor)
            if number % _TENSORS_BETWEEN_REPORTS == 0:
                report(f"converted {number} of {len(planned)} tensors")
    prepared = PreparedModel(
        folder=folder,
        name=source.name,
        fingerprint=writer.fingerprint(),
        dtype=dtype,
        weights=weights,
        source=str(source.path),
        config=checkpoint.config,
        tensors=writer.entries,
        bos_token_id=text.bos_token_id,
        eos_token_ids=text.eos_token_ids,
        adds_bos=text.adds_bos,
        num_parameters=sum(tensor.num_elements for tensor in planned),
    )
    write_manifest(prepared)


def _report_context(
    source: ModelSource, config: ModelConfig, report: Callable[[str], None]
) -> None:
    if config.rope_scaling.kind == "longrope":
        original = config.rope_scaling.original_max_positions
        report(f"{source.name}: the context ends at longrope's original one, {original} tokens")
    if config.sliding_window and config.sliding_window == config.max_positions:
        report(
            f"{source.name}: the context ends at its sliding window, {config.max_positions} tokens"
        )


class _WeightsWriter:
    """Writes tensors one after the other and hashes what it writes.

    The fingerprint covers all that makes two workers compute the same tokens from the same ids:
    dtype, config, end tokens, tokenizer and every weight. The chat template is the router's alone.
    Its first part covers all but the weights.
    """

    def __init__(
        self, file: BinaryIO, checkpoint: Checkpoint, dtype: str, weights: str, where: str
    ) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self._file = file
        self._tensors = checkpoint.tensors
        self._dtype = dtype
        self._weights = weights
        self._where = where
        text = checkpoint.text
        facts = [
            dtype, asdict(checkpoint.config), text.bos_token_id, text.eos_token_ids, text.adds_bos,
        ]  # fmt: skip
        self._digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
        self._digest.update(text.tokenizer_json.encode())
        self._kv_part = self._digest.hexdigest()[:_KV_PART_DIGITS]

    def fingerprint(self) -> str:
        return f"{self._kv_part}.{self._digest.hexdigest()}"

    def write(self, planned: PlannedTensor) -> None:
        """Raises ModelFileError when a part is not there as planned or not finite."""
        stored = planned.stored(self._dtype, self._weights)
        if len(stored) == 1:
            self._begin(planned.name, *stored[planned.name])
            for part in planned.parts:
                self._append(self._rounded(part))
            return
        blocks = [self._blocks(part) for part in planned.parts]
        values, scales = stored
        self._begin(values, *stored[values])
        for block in blocks:
            self._append(block.values)
        self._begin(scales, *stored[scales])
        for block in blocks:
            self._append(block.scales)

    def _begin(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        position = self._file.tell()
        start = -(-position // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
        self._file.write(bytes(start - position))
        self._digest.update(f"{name}{shape}".encode())
        self.entries[name] = TensorEntry(start, shape, dtype)

    def _append(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).data.cast("B")
        self._file.write(data)
        self._digest.update(data)

    def _read(self, part: TensorPart) -> StoredArray | BlockArray:
        stored = self._tensors.read(part.name, part.shape)
        if not stored.is_finite():
            raise self._error(part, "holds infinite or undefined numbers")
        return stored

    def _rounded(self, part: TensorPart) -> NDArray[Any]:
        rounded = self._read(part).to_dtype(self._dtype)
        if not rounded.is_finite():
            raise self._error(
                part,
                f"holds numbers beyond the range of {self._dtype}; prepare it as another dtype",
            )
        return rounded.values

    def _blocks(self, part: TensorPart) -> BlockArray:
        stored = self._read(part)
        try:
            blocks = to_blocks(stored)
        except ValueError as error:
            raise self._error(part, f"{error}: not as int8") from error
        if not blocks.is_finite():
            raise self._error(part, "holds numbers beyond the range of int8 blocks")
        return blocks

    def _error(self, part: TensorPart, problem: str) -> ModelFileError:
        return ModelFileError(f"{self._where}: tensor {part.name}: {problem}")
