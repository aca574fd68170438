"""What stands where a GPU's libraries would be: FlashInfer's wrappers, and a recorder.

``FlashInferStandIn`` has the part of FlashInfer 0.7 that is used, in plain torch, and refuses what
the real one refuses: arrays that are not int32, keys and values of unlike strides, other dtypes
than were planned, another batch than was fixed. ``RepeatingRecorder`` computes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class RepeatingRecorder:
    """Satisfies ``Recorder``: the same tensor at the same address, its values computed anew."""

    def __init__(self) -> None:
        self.num_recorded = self.num_repeated = 0

    def record(self, work: Callable[[], torch.Tensor]) -> Any:
        self.num_recorded += 1
        return _Repeated(self, work)


class _Repeated:
    def __init__(self, recorder: RepeatingRecorder, work: Callable[[], torch.Tensor]) -> None:
        self._recorder, self._work = recorder, work
        self._result = work()

    def repeat(self) -> torch.Tensor:
        self._recorder.num_repeated += 1
        return self._result.copy_(self._work())


class FlashInferStandIn:
    """Instead of the module ``flashinfer``; ``planned`` counts plans by wrapper."""

    __version__ = "0.0"

    def __init__(self) -> None:
        self.planned: dict[str, int] = {}

    def BatchPrefillWithPagedKVCacheWrapper(  # noqa: N802
        self, workspace: torch.Tensor, kv_layout: str
    ) -> Any:
        return _Wrapper(self, "prefill", workspace, kv_layout, None)

    def BatchDecodeWithPagedKVCacheWrapper(  # noqa: N802
        self, workspace: torch.Tensor, kv_layout: str, *, use_tensor_cores: bool = False,
        use_cuda_graph: bool = False, paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
    ) -> Any:  # fmt: skip
        fixed = None
        if use_cuda_graph:
            assert paged_kv_indptr_buffer is not None
            assert paged_kv_indices_buffer is not None
            assert paged_kv_last_page_len_buffer is not None
            fixed = (len(paged_kv_last_page_len_buffer), len(paged_kv_indices_buffer))
        return _Wrapper(self, "decode", workspace, kv_layout, fixed)


class _Wrapper:
    def __init__(
        self, library: FlashInferStandIn, name: str, workspace: torch.Tensor, kv_layout: str,
        fixed: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        assert workspace.dtype == torch.uint8
        assert not workspace.any()
        assert kv_layout == "HND"
        self._library, self._name, self._fixed = library, name, fixed

    def plan(self, *arrays: Any, causal: bool = False, **dtypes: torch.dtype) -> None:
        self._library.planned[self._name] = self._library.planned.get(self._name, 0) + 1
        if self._name == "prefill":
            assert causal
            self._query_starts, *arrays = arrays  # type: ignore[assignment]
        self._indptr, self._indices, self._last, *shape = arrays
        if self._name == "decode":
            self._query_starts = torch.arange(len(self._last) + 1, dtype=torch.int32)
        self._shape, self._dtypes = shape, dtypes
        for array in (self._query_starts, self._indptr, self._indices, self._last):
            assert (array.dtype, array.device.type) == (torch.int32, "cpu")
        if self._fixed is not None:
            assert (len(self._last), True) == (self._fixed[0], len(self._indices) <= self._fixed[1])

    def run(
        self, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], *, out: torch.Tensor
    ) -> None:
        heads, kv_heads, head_dim, page_size = self._shape
        keys, values = kv
        assert keys.stride() == values.stride()
        assert keys.shape[1:] == (kv_heads, page_size, head_dim)
        assert q.shape[1:] == (heads, head_dim)
        assert q.dtype == out.dtype == self._dtypes["q_data_type"]
        assert keys.dtype == self._dtypes["kv_data_type"]
        for row in range(len(self._last)):
            pages = self._indices[self._indptr[row] : self._indptr[row + 1]]
            num_keys = (len(pages) - 1) * page_size + int(self._last[row])
            cut = slice(int(self._query_starts[row]), int(self._query_starts[row + 1]))
            out[cut] = _attention(q[cut], keys[pages], values[pages], num_keys)


def _attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_keys: int
) -> torch.Tensor:
    """q [queries, heads, dim], keys and values [pages, kv_heads, page_size, dim]."""
    group = q.shape[1] // keys.shape[1]
    flat = [x.transpose(0, 1).flatten(1, 2)[:, :num_keys].float() for x in (keys, values)]
    k, v = (x.repeat_interleave(group, 0) for x in flat)
    scores = q.float().transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    seen = num_keys - len(q) + torch.arange(len(q))
    hidden = torch.arange(num_keys) > seen[:, None]
    return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1).to(q.dtype)
