"""Attention by FlashInfer's paged kernels (arXiv 2501.01005), for chunks and decode, on CUDA.

A page is a block of ours in its layout HND; the pool is handed over as strided views
(``KvCache.pages``), which its kernels take as long as keys and values have the same strides. A
step is planned on the host once (its ``plan``) and run once a layer. A step of one token a row
goes to its decode wrapper, any other to its prefill wrapper: causal, the last query sees all keys.

The library is the optional extra ``gpu``. It compiles its kernels on first use (a CUDA toolkit must
be there) and keeps them on disk. Not covered: KV in 8 bits, float32 (it has no such kernels).
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from engine.attention_ways import FixedDecode, LayerAttention
from engine.batch_plan import BatchPlan, Grouped, PagePlan
from engine.kv_cache import TORCH_DTYPES, KvCache
from pdserve.types import KVLayout

DTYPES = ("float16", "bfloat16")
HEAD_DIMS = (64, 128, 256)
LAYOUT = "HND"
WORKSPACE_BYTES = 128 * 2**20  # what its documentation recommends; zero before the first use
MIN_TENSOR_CORE_GROUP = 4  # query heads a KV head from which its tensor core decode pays


def unsupported(layout: KVLayout) -> str:
    """What the kernels lack for this KV; empty if nothing."""
    if layout.dtype not in DTYPES:
        return f"no kernels for {layout.dtype}"
    if layout.head_dim not in HEAD_DIMS:
        return f"no kernels for heads of {layout.head_dim}"
    return ""


class FlashInferAttention:
    """Satisfies ``Attention``.

    Raises:
        ImportError: the library is not installed.
    """

    grouped: Grouped = "none"

    def __init__(self, layout: KVLayout, num_heads: int, device: torch.device) -> None:
        library: Any = importlib.import_module("flashinfer")
        self.name = f"flashinfer {library.__version__}"
        self.output_dtype = TORCH_DTYPES[layout.dtype]
        self._layout = layout
        self._num_heads = num_heads
        self._device = device
        self._library = library
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._prefill = library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT)
        self._decode = self._decode_wrapper()

    def stage(self, plan: BatchPlan, cache: KvCache) -> LayerAttention:
        pages = plan.pages
        if pages.num_decode_rows == len(pages.tables):
            self.plan_decode(self._decode, pages.key_lens, list(pages.tables))
            return self.layers(self._decode, cache)
        indptr, indices, last = _page_arrays(
            pages.key_lens, list(pages.tables), self._layout.block_size
        )
        self._prefill.plan(
            _int32(pages.query_starts), indptr, indices, last, *self._shape(), causal=True,
            q_data_type=self.output_dtype, kv_data_type=self.output_dtype,
        )  # fmt: skip
        return self.layers(self._prefill, cache)

    def fixed_decode(self, num_rows: int, num_pages: int, cache: KvCache) -> FixedDecode | None:
        def buffer(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=self._device)

        wrapper = self._decode_wrapper(
            use_cuda_graph=True,
            paged_kv_indptr_buffer=buffer(num_rows + 1),
            paged_kv_indices_buffer=buffer(num_rows * num_pages),
            paged_kv_last_page_len_buffer=buffer(num_rows),
        )
        return _FixedDecode(self, wrapper, num_rows, cache)

    def plan_decode(
        self, wrapper: Any, key_lens: np.ndarray[Any, Any], tables: list[np.ndarray[Any, Any]]
    ) -> None:
        """Put a step of decode rows into ``wrapper``."""
        arrays = _page_arrays(key_lens, tables, self._layout.block_size)
        dtype = self.output_dtype
        wrapper.plan(*arrays, *self._shape(), q_data_type=dtype, kv_data_type=dtype)

    def layers(self, wrapper: Any, cache: KvCache) -> LayerAttention:
        """Of the step that ``wrapper`` was planned for."""

        def attend(layer: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            wrapper.run(queries.to(self.output_dtype), cache.pages(layer), out=out)

        return attend

    def _decode_wrapper(self, **fixed: Any) -> Any:
        group = self._num_heads // self._layout.num_kv_heads
        return self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, LAYOUT, use_tensor_cores=group >= MIN_TENSOR_CORE_GROUP, **fixed
        )

    def _shape(self) -> tuple[int, int, int, int]:
        layout = self._layout
        return self._num_heads, layout.num_kv_heads, layout.head_dim, layout.block_size


class _FixedDecode:
    """Satisfies ``FixedDecode``: a wrapper whose arrays stay where they are."""

    def __init__(
        self, attention: FlashInferAttention, wrapper: Any, num_rows: int, cache: KvCache
    ) -> None:
        self._attention = attention
        self._wrapper = wrapper
        self._num_rows = num_rows
        self._sink = np.array([cache.sink_block_id])
        self.attend = attention.layers(wrapper, cache)

    def load(self, pages: PagePlan) -> None:
        count = min(pages.num_decode_rows, self._num_rows)
        missing = self._num_rows - count
        key_lens = np.concatenate([pages.key_lens[:count], np.ones(missing, np.int64)])
        tables = [*pages.tables[:count], *[self._sink] * missing]
        self._attention.plan_decode(self._wrapper, key_lens, tables)


def _page_arrays(
    key_lens: np.ndarray[Any, Any], tables: list[np.ndarray[Any, Any]], block_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(first page of each row, pages of all rows, keys in each row's last page), on the host."""
    indptr = np.cumsum([0] + [len(table) for table in tables])
    return _int32(indptr), _int32(np.concatenate(tables)), _int32((key_lens - 1) % block_size + 1)


def _int32(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32))
