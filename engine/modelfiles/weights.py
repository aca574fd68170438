"""The tensors of a prepared model over a memory map: one copy in memory for all workers of a host.

Does not know what tensors are for. Not covered: moving them to a device (the model does).
"""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

from engine.modelfiles.number_formats import ITEM_BYTES
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.errors import ModelFileError
from pdserve.prepared import PreparedModel, TensorEntry

if TYPE_CHECKING:
    import torch


def map_weights(prepared: PreparedModel) -> dict[str, torch.Tensor]:
    """Every tensor by its prepared name, as CPU tensors that share the page cache.

    The mapping is private and never written: a write would copy the page for this process alone.
    It lives as long as any of the tensors.

    Raises:
        ModelFileError: weights.bin is missing or truncated, or does not fit the manifest.
    """
    import torch  # here, so that checking and preparing a model do not load it

    check_weights_file(prepared)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    with prepared.weights_path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {
        name: torch.frombuffer(
            mapping,
            dtype=dtypes[entry.dtype],
            count=math.prod(entry.shape),
            offset=entry.offset_bytes,
        ).view(entry.shape)
        for name, entry in prepared.tensors.items()
    }


def check_weights_file(prepared: PreparedModel) -> None:
    """Raises ModelFileError: a tensor is missing, has another shape or dtype, or is cut off."""
    path = prepared.weights_path
    planned = {tensor.name: tensor.shape for tensor in plan_tensors(prepared.config)}
    if not path.is_file():
        raise ModelFileError(f"{path}: missing")
    file_bytes = path.stat().st_size
    for name in planned.keys() | prepared.tensors.keys():
        entry = prepared.tensors.get(name)
        if entry is None:
            raise ModelFileError(f"{prepared.folder}: tensor {name}: missing in the manifest")
        if entry.shape != planned.get(name):
            raise ModelFileError(
                f"{prepared.folder}: tensor {name}: shape {list(entry.shape)} in the manifest, "
                f"the config asks for {list(planned.get(name, ()))}"
            )
        _check_extent(f"{path}: tensor {name}", entry, prepared.dtype, file_bytes)


def _check_extent(where: str, entry: TensorEntry, dtype: str, file_bytes: int) -> None:
    if entry.dtype != dtype or entry.dtype not in ITEM_BYTES:
        raise ModelFileError(f"{where}: dtype {entry.dtype!r}, the model is {dtype!r}")
    end = entry.offset_bytes + math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if entry.offset_bytes < 0 or end > file_bytes:
        raise ModelFileError(
            f"{where}: truncated: ends at byte {end}, the file has {file_bytes} bytes; "
            "remove this folder to prepare the model again"
        )
