"""Decode steps recorded once for a few batch sizes and repeated: CUDA graphs.

A step of a small batch is hundreds of short kernels; repeating a recording starts them all at
once. A recording has fixed shapes and addresses, so a batch is padded to the next of ``SIZES`` and
its inputs are copied to where the recording reads them. A padding row has position 0, writes its
KV into the cache's sink and reads one key from there; no row reads what another one computes, so
it changes nothing but time.

Knows no CUDA: ``Recorder`` (devices.py) does, and tests record with one that computes again.
Not covered: chunks, steps in which a row does not sample, batches beyond the largest size; they
are computed as always.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention_ways import Attention, FixedDecode
from engine.batch_plan import BatchPlan, PagePlan
from engine.devices import Recorder, Recording
from engine.kv_cache import KvCache
from engine.model import LlamaModel, StepInputs

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)


class DecodeGraphs:
    """Recordings of one model over one pool. Make and use it in the thread that computes."""

    def __init__(
        self, recorder: Recorder, model: LlamaModel, attention: Attention, cache: KvCache,
        *, num_positions: int, sizes: tuple[int, ...] = SIZES,
    ) -> None:  # fmt: skip
        """Records all sizes, the largest first so that the smaller ones find its memory."""
        num_pages = cache.layout.num_blocks(num_positions)
        self._steps: dict[int, _RecordedStep] = {}
        for size in sorted(sizes, reverse=True):
            fixed = attention.fixed_decode(size, num_pages, cache)
            if fixed is None:
                return
            self._steps[size] = _RecordedStep(recorder, model, fixed, cache, size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ascending; empty where attention cannot be recorded."""
        return tuple(sorted(self._steps))

    def fits(self, plan: BatchPlan) -> bool:
        """Whether every row is one token that samples, and not too many."""
        num_rows = len(plan.pages.tables)
        is_decode = len(plan.token_ids) == len(plan.sample_tokens) == num_rows
        return is_decode and num_rows <= max(self._steps, default=0)

    def run(self, plan: BatchPlan) -> torch.Tensor:
        """Logits [rows, vocab] float32, valid until the next step."""
        num_rows = len(plan.pages.tables)
        size = min(size for size in self._steps if size >= num_rows)
        return self._steps[size].run(plan)[:num_rows]


class _RecordedStep:
    def __init__(
        self, recorder: Recorder, model: LlamaModel, fixed: FixedDecode, cache: KvCache, size: int
    ) -> None:
        device, layout = cache.blocks.device, cache.layout
        planes = 2 * layout.num_kv_heads
        sink_row = cache.sink_block_id * layout.num_layers * planes * layout.block_size
        sink_rows = sink_row + np.arange(planes) * layout.block_size
        self._fixed = fixed
        self._inputs = (
            _Input(np.zeros(size, np.int64), device),
            _Input(np.zeros(size, np.int64), device),
            _Input(np.tile(sink_rows, size), device),
        )
        everything = torch.arange(size, device=device)
        tokens, positions, write_rows = (each.on_device for each in self._inputs)
        inputs = StepInputs(tokens, positions, write_rows, everything)
        fixed.load(_no_rows())
        self._recording: Recording = recorder.record(
            lambda: model.compute(inputs, fixed.attend, cache)
        )

    def run(self, plan: BatchPlan) -> torch.Tensor:
        arrays = (plan.token_ids, plan.positions, plan.write_rows)
        for each, array in zip(self._inputs, arrays, strict=True):
            each.load(array)
        self._fixed.load(plan.pages)
        return self._recording.repeat()


class _Input:
    """An index array at a fixed address, padded with what it was made of."""

    def __init__(self, padding: NDArray[np.int64], device: torch.device) -> None:
        self._padding = padding
        self._host = padding.copy()
        self.on_device = torch.from_numpy(padding).to(device, copy=True)

    def load(self, array: NDArray[np.int64]) -> None:
        count = len(array)
        self._host[:count] = array
        self._host[count:] = self._padding[count:]
        self.on_device.copy_(torch.from_numpy(self._host))


def _no_rows() -> PagePlan:
    return PagePlan(np.zeros(1, np.int64), np.zeros(0, np.int64), ())
