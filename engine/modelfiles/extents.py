"""Whether weights.bin holds what its manifest and the config say, by sizes alone.

Does not read the weights (their digest is the fingerprint, made when they were written).
"""

from __future__ import annotations

import math

from engine.modelfiles.number_formats import ITEM_BYTES
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.errors import ModelFileError
from pdserve.prepared import PreparedModel, TensorEntry


def check_weights_file(prepared: PreparedModel) -> None:
    """Raises ModelFileError: a tensor is missing, has another shape or dtype, or is cut off."""
    path = prepared.weights_path
    planned: dict[str, tuple[tuple[int, ...], str]] = {}
    for tensor in plan_tensors(prepared.config):
        planned |= tensor.stored(prepared.dtype, prepared.weights)
    if not path.is_file():
        raise ModelFileError(f"{path}: missing")
    file_bytes = path.stat().st_size
    for name in [*planned, *(name for name in prepared.tensors if name not in planned)]:
        entry = prepared.tensors.get(name)
        if entry is None:
            raise ModelFileError(f"{prepared.folder}: tensor {name}: missing in the manifest")
        shape, dtype = planned.get(name, ((), ""))
        if entry.shape != shape:
            raise ModelFileError(
                f"{prepared.folder}: tensor {name}: shape {list(entry.shape)} in the manifest, "
                f"the config asks for {list(shape)}"
            )
        _check_extent(f"{path}: tensor {name}", entry, dtype, file_bytes)


def _check_extent(where: str, entry: TensorEntry, dtype: str, file_bytes: int) -> None:
    if entry.dtype != dtype or entry.dtype not in ITEM_BYTES:
        raise ModelFileError(f"{where}: dtype {entry.dtype!r}, the model is {dtype!r}")
    end = entry.offset_bytes + math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if entry.offset_bytes < 0 or end > file_bytes:
        raise ModelFileError(
            f"{where}: truncated: ends at byte {end}, the file has {file_bytes} bytes; "
            "remove this folder to prepare the model again"
        )
