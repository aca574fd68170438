"""The tensors of a prepared model over a memory map: one copy in memory for all workers of a host.

Does not know what tensors are for. Not covered: moving them to a device (the model does).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping

import torch

from engine.modelfiles.extents import check_weights_file
from engine.modelfiles.tensor_plan import SCALES
from pdserve.prepared import PreparedModel

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def map_weights(prepared: PreparedModel) -> dict[str, torch.Tensor]:
    """Every tensor by its prepared name, as CPU tensors that share the page cache.

    The mapping is private and never written: a write would copy the page for this process alone.
    It lives as long as any of the tensors.

    Raises:
        ModelFileError: weights.bin is missing or truncated, or does not fit the manifest.
    """
    check_weights_file(prepared)
    with prepared.weights_path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {
        name: torch.frombuffer(
            mapping,
            dtype=_DTYPES[entry.dtype],
            count=math.prod(entry.shape),
            offset=entry.offset_bytes,
        ).view(entry.shape)
        for name, entry in prepared.tensors.items()
    }


def dequantised(weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> torch.Tensor:
    """The matrix ``name`` in ``dtype``: as it is, or the numbers its int8 blocks stand for."""
    matrix = weights[name]
    if matrix.dtype != torch.int8:
        return matrix.to(dtype)
    scales = weights[name + SCALES].float()
    blocks = matrix.float().view(*scales.shape, -1) * scales.unsqueeze(-1)
    return blocks.view(matrix.shape).to(dtype)
