"""What every way to attend offers to the model, whoever computes it.

    attention.py             tiles in plain torch: any device, bits that depend on the query alone
    paged_attention.py       decode rows by a kernel that follows block tables, chunks in tiles
    flashinfer_attention.py  FlashInfer's kernels for both, on CUDA
    attention_choice.py      picks one

``stage`` lays a step out once; the result is called once a layer. Ways that can run with every
address fixed also make a ``FixedDecode``, which a recorded step (decode_graphs.py) is built on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from engine.batch_plan import BatchPlan, Grouped, PagePlan
from engine.kv_cache import KvCache

LayerAttention = Callable[[int, torch.Tensor, torch.Tensor], None]
"""(layer, queries [tokens, heads, head_dim] float32, out of the same shape in ``output_dtype``).

The keys and values of the queries' own positions are already written.
"""


class FixedDecode(Protocol):
    """Attention of a fixed number of decode rows whose inputs stay where they are.

    ``load`` puts a step's block tables in place, outside of what is recorded; a row beyond the
    step's own reads one key of the cache's sink. ``attend`` is a ``LayerAttention`` that may be
    recorded: it neither waits for the device nor looks at a value.
    """

    def load(self, pages: PagePlan) -> None: ...

    def attend(self, layer: int, queries: torch.Tensor, out: torch.Tensor) -> None: ...


class Attention(Protocol):
    """One for a model. ``stage`` and what it returns are called in the thread that computes."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def output_dtype(self) -> torch.dtype: ...

    @property
    def grouped(self) -> Grouped:
        """Rows that ``plan_batch`` must put into groups."""

    def stage(self, plan: BatchPlan, cache: KvCache) -> LayerAttention: ...

    def fixed_decode(self, num_rows: int, num_pages: int, cache: KvCache) -> FixedDecode | None:
        """For rows of at most ``num_pages`` blocks each; None: this way cannot be recorded."""
