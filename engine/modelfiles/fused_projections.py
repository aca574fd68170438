"""Checkpoints that store q, k, v and gate, up stacked, read as if they were apart: Phi-3.

    model.layers.i.self_attn.qkv_proj    rows of q_proj, then k_proj, then v_proj
    model.layers.i.mlp.gate_up_proj      rows of gate_proj, then up_proj

Names are Hugging Face's. Knows neither files nor which families do this (``is_fused`` is told).
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.modelfiles.block_array import BlockArray
from engine.modelfiles.checkpoint import TensorSource
from engine.modelfiles.number_formats import StoredArray
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.prepared import ModelConfig

_FUSED_NAMES = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Where a part of the plan lies: rows ``first_row ..`` of a tensor of ``num_rows``."""

    name: str
    first_row: int
    num_rows: int


def stored_rows(config: ModelConfig, *, is_fused: bool) -> dict[str, StoredRows]:
    """For each part of the plan, by its name, where a checkpoint keeps it."""
    found: dict[str, StoredRows] = {}
    for planned in plan_tensors(config):
        first_row = 0
        for part in planned.parts:
            fused = _fused_name(part.name) if is_fused else part.name
            is_part = fused != part.name
            num_rows = planned.shape[0] if is_part else part.shape[0]
            found[part.name] = StoredRows(fused, first_row if is_part else 0, num_rows)
            first_row += part.shape[0]
    return found


class SplitTensors:
    """The parts of stacked tensors (a ``TensorSource``). Keeps the tensor read last."""

    def __init__(self, inner: TensorSource, config: ModelConfig) -> None:
        self._inner = inner
        self._rows = stored_rows(config, is_fused=True)
        self._last: tuple[str, StoredArray | BlockArray] | None = None

    def read(self, name: str, shape: tuple[int, ...]) -> StoredArray | BlockArray:
        rows = self._rows[name]
        if self._last is None or self._last[0] != rows.name:
            self._last = rows.name, self._inner.read(rows.name, (rows.num_rows, *shape[1:]))
        return self._last[1].rows(slice(rows.first_row, rows.first_row + shape[0]))


def _fused_name(name: str) -> str:
    for part, fused in _FUSED_NAMES.items():
        name = name.replace(f".{part}.", f".{fused}.")
    return name
