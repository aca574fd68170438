"""The C kernels' attention: against float64, and a query alone against the same in a run."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import pytest
import torch

from engine.native.compiler import build_library

ELEMENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCK_SIZE = 16


class PagedKv(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p), ("values", c_void_p), ("block_stride", c_int64),
        ("block_size", c_int64), ("head_dim", c_int64), ("table", POINTER(c_int32)),
    )  # fmt: skip


class Scratch(ctypes.Structure):
    """attention.h's AttentionScratch."""

    _fields_ = tuple(
        (name, c_void_p)
        for name in (
            "key_panels", "value_panels", "queries", "weights", "scores", "sums", "largest",
            "totals",
        )
    )  # fmt: skip


@dataclass
class Case:
    """Keys and values of one KV head in scrambled blocks, queries on its last positions."""

    dtype: str
    queries: torch.Tensor  # [queries, heads, dim]
    keys: torch.Tensor  # [keys, dim]
    values: torch.Tensor

    def attend(self, first: int, count: int) -> torch.Tensor:
        """The kernel's answer for queries first .. first + count, [count, heads, dim]."""
        library = ctypes.CDLL(str(build_library(self.dtype)))
        library.attention_scratch.restype = Scratch
        library.attention_scratch_bytes.restype = c_int64
        num_heads, dim = self.queries.shape[1:]
        rows = c_int64(count * num_heads)
        size = library.attention_scratch_bytes(rows, c_int64(dim))
        memory = (c_char * (size + 64))()
        start = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
        scratch = library.attention_scratch(c_void_p(start), rows, c_int64(dim))
        stride = -(-dim // 32) * 32 + 32
        operands = torch.zeros(count * num_heads, stride, dtype=ELEMENTS[self.dtype])
        operands[:, :dim] = self.queries[first : first + count].reshape(-1, dim)
        ctypes.memmove(scratch.queries, operands.data_ptr(), operands.nbytes)
        blocks, table = self._blocks()
        kv = PagedKv(
            blocks.data_ptr(), blocks[0, 1].data_ptr(), blocks.stride(0), BLOCK_SIZE, dim, table
        )
        out = torch.empty(count, num_heads, dim, dtype=ELEMENTS[self.dtype])
        position = len(self.keys) - len(self.queries) + first
        library.attend.restype = None
        library.attend(
            ctypes.byref(scratch), ctypes.byref(kv), c_int64(count), c_int64(num_heads),
            c_int64(position), c_float(dim**-0.5), c_void_p(out.data_ptr()),
            c_int64(num_heads * dim),
        )  # fmt: skip
        return out

    def expected(self) -> torch.Tensor:
        """In float64."""
        num_queries, num_keys = len(self.queries), len(self.keys)
        scores = torch.einsum("qhd,kd->qhk", self.queries.double(), self.keys.double())
        positions = torch.arange(num_keys - num_queries, num_keys)
        hidden = torch.arange(num_keys) > positions[:, None, None]
        scores = (scores * self.keys.shape[1] ** -0.5).masked_fill(hidden, -torch.inf)
        return scores.softmax(-1) @ self.values.double()

    def _blocks(self) -> tuple[torch.Tensor, ctypes.Array[c_int32]]:
        """[blocks, keys or values, BLOCK_SIZE, dim], what no position holds is NaN."""
        num_blocks = -(-len(self.keys) // BLOCK_SIZE)
        ids = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        shape = (num_blocks, 2, BLOCK_SIZE, self.keys.shape[1])
        blocks = torch.full(shape, torch.nan, dtype=ELEMENTS[self.dtype])
        for i, block in enumerate(ids):
            here = slice(i * BLOCK_SIZE, min((i + 1) * BLOCK_SIZE, len(self.keys)))
            blocks[block, 0, : here.stop - here.start] = self.keys[here]
            blocks[block, 1, : here.stop - here.start] = self.values[here]
        return blocks, (c_int32 * num_blocks)(*ids)


def draw(dtype: str, num_queries: int, num_keys: int, num_heads: int, dim: int) -> Case:
    generator = torch.Generator().manual_seed(num_keys)
    shapes = ((num_queries, num_heads, dim), (num_keys, dim), (num_keys, dim))
    return Case(dtype, *(torch.randn(s, generator=generator).to(ELEMENTS[dtype]) for s in shapes))


def check(case: Case) -> torch.Tensor:
    together = case.attend(0, len(case.queries))
    tolerance = 1e-5 if case.dtype == "float32" else 2e-2
    torch.testing.assert_close(together.double(), case.expected(), atol=tolerance, rtol=tolerance)
    return together


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "num_heads", "dim"),
    [
        (1, 1, 1, 64),
        (9, 9, 3, 24),
        (70, 200, 3, 64),
        (5, 67, 4, 48),
        (3, 1100, 13, 16),
        (40, 129, 1, 128),
    ],
)
def test_queries_of_odd_shapes(
    dtype: str, num_queries: int, num_keys: int, num_heads: int, dim: int
) -> None:
    """Also alone, with the same bits: few rows take another way than many."""
    case = draw(dtype, num_queries, num_keys, num_heads, dim)
    together = check(case)
    for i in range(0, num_queries, 3):
        assert torch.equal(case.attend(i, 1)[0], together[i])


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("step", [0.05, 2.0, -2.0, 40.0])
def test_scores_that_rise_and_fall(dtype: str, step: float) -> None:
    """By less and more than what weights may exceed before all sums are scaled."""
    case = draw(dtype, 6, 300, 2, 32)
    case.queries[:] = 1.0
    case.keys[:] = (torch.arange(300)[:, None] % 97 * step / 32).to(case.keys.dtype)
    together = check(case)
    assert torch.equal(case.attend(5, 1)[0], together[5])
