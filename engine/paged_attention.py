"""Decode rows by a kernel that reads KV in place through block tables; chunks in tiles.

Two kernels have this interface: ``plain_paged_decode`` below, in torch, the twin; and
triton_decode.py's on CUDA. The pool needs no copy for either: the pages of a layer are views of it
(``KvCache.pages``). Not covered: several query tokens a row.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from engine.attention import TiledAttention
from engine.attention_ways import FixedDecode, LayerAttention
from engine.batch_plan import BatchPlan, Grouped, PagePlan
from engine.kv_cache import KvCache


class PagedDecodeKernel(Protocol):
    """Attention of one query token a row over that row's pages.

    queries, out: [rows, heads, head_dim]; keys, values: [pages, kv_heads, page_size, head_dim] of
    one dtype, the last dimension contiguous, any strides; block_tables: [rows, max_pages] int32;
    key_lens: [rows] int32, each at least 1 and at most max_pages * page_size.
    """

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        block_tables: torch.Tensor,
        key_lens: torch.Tensor,
        out: torch.Tensor,
    ) -> None: ...


def plain_paged_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    key_lens: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Satisfies ``PagedDecodeKernel``: gathers every page of every row, softmax in float32."""
    rows, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    gathered = [
        pages[block_tables].transpose(1, 2).reshape(rows, kv_heads, -1, head_dim).float()
        for pages in (keys, values)
    ]
    grouped = queries.float().view(rows, kv_heads, heads // kv_heads, head_dim)
    scores = grouped @ gathered[0].transpose(-1, -2) / math.sqrt(head_dim)
    hidden = torch.arange(scores.shape[-1], device=scores.device) >= key_lens[:, None]
    weights = scores.masked_fill(hidden[:, None, None], -math.inf).softmax(-1)
    out.copy_((weights @ gathered[1]).view(rows, heads, head_dim))


class PagedAttention:
    """Satisfies ``Attention``. ``tiled`` computes the rows of several tokens."""

    grouped: Grouped = "chunks"
    output_dtype = torch.float32

    def __init__(self, name: str, kernel: PagedDecodeKernel, tiled: TiledAttention) -> None:
        self.name = f"{name}, chunks {tiled.name}"
        self._kernel = kernel
        self._tiled = tiled

    def stage(self, plan: BatchPlan, cache: KvCache) -> LayerAttention:
        attend_chunks = self._tiled.stage(plan, cache)
        num_rows = plan.pages.num_decode_rows
        if not num_rows:
            return attend_chunks
        width = max(len(table) for table in plan.pages.tables[:num_rows])
        decode = _PagedDecode(self._kernel, num_rows, width, cache)
        decode.load(plan.pages)

        def attend(layer: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            decode.attend(layer, queries[:num_rows], out[:num_rows])
            attend_chunks(layer, queries, out)

        return attend

    def fixed_decode(self, num_rows: int, num_pages: int, cache: KvCache) -> FixedDecode | None:
        return _PagedDecode(self._kernel, num_rows, num_pages, cache)


class _PagedDecode:
    """Satisfies ``FixedDecode``: block tables and lengths at fixed addresses on the device."""

    def __init__(
        self, kernel: PagedDecodeKernel, num_rows: int, num_pages: int, cache: KvCache
    ) -> None:
        self._kernel = kernel
        self._cache = cache
        device = cache.blocks.device
        self._host_tables = np.full((num_rows, num_pages), cache.sink_block_id, np.int32)
        self._host_lens = np.ones(num_rows, np.int32)
        self._tables = torch.empty((num_rows, num_pages), dtype=torch.int32, device=device)
        self._lens = torch.empty(num_rows, dtype=torch.int32, device=device)

    def load(self, pages: PagePlan) -> None:
        count = min(pages.num_decode_rows, len(self._host_lens))
        self._host_tables[count:, 0] = self._cache.sink_block_id
        self._host_lens[:count] = pages.key_lens[:count]
        self._host_lens[count:] = 1
        for line, table in zip(self._host_tables, pages.tables[:count], strict=False):
            line[: len(table)] = table
        self._tables.copy_(torch.from_numpy(self._host_tables))
        self._lens.copy_(torch.from_numpy(self._host_lens))

    def attend(self, layer: int, queries: torch.Tensor, out: torch.Tensor) -> None:
        keys, values = self._cache.pages(layer)
        self._kernel(queries, keys, values, self._tables, self._lens, out)
