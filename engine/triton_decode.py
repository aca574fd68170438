"""Paged decode attention in Triton: one query token a row, KV read in place, on CUDA.

Keys are cut at multiples of ``SPLIT_KEYS``; each part is a program of its own (Flash-Decoding:
Dao, Haziza, Massa, Sizov 2023), and a second kernel adds the parts of a row in order. The cuts
depend on nothing but positions, so a row's bits depend on neither its batch nor its padding; a
program whose part begins beyond its row's keys ends at once, so one grid serves every length and
can be recorded. Softmax runs over tiles with the running rescale of FlashAttention (arXiv
2205.14135), in float32; products are of the KV's dtype, float32 without TF32.

Triton comes with CUDA builds of torch. The kernels are plain functions here and compiled when
asked for, so this module loads without it. Not covered: several query tokens, sliding windows.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

SPLIT_KEYS = 512
TILE_KEYS = {2: 64, 4: 16}  # by bytes of a number: float32 has no tensor cores, 64 keys spill
MIN_DOT_ROWS = 16  # what a matrix instruction takes at least; query heads of a KV head are padded
NUM_WARPS = 4
NUM_STAGES = 2


def attend_part(  # type: ignore[no-untyped-def]
    queries, keys, values, tables, key_lens, partial, partial_lse, scale,
    query_row, query_head, page_stride, head_stride, slot_stride, table_row,
    kv_heads: tl.constexpr, group: tl.constexpr, group_rows: tl.constexpr,
    head_dim: tl.constexpr, dim_columns: tl.constexpr, page_size: tl.constexpr,
    split: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Program (row, KV head, part): the part's weighted values and log of its sum of weights."""
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_keys = tl.load(key_lens + row)
    start = part * split
    if start >= num_keys:
        return
    heads = tl.arange(0, group_rows)
    dims = tl.arange(0, dim_columns)
    is_head, is_dim = heads < group, dims < head_dim
    own = is_head[:, None] & is_dim[None, :]
    query_at = row * query_row + (kv_head * group + heads)[:, None] * query_head + dims[None, :]
    query = tl.load(queries + query_at, mask=own, other=0.0).to(keys.dtype.element_ty)
    best = tl.full([group_rows], -float("inf"), tl.float32)
    total = tl.zeros([group_rows], tl.float32)
    summed = tl.zeros([group_rows, dim_columns], tl.float32)
    for first in range(start, tl.minimum(start + split, num_keys), tile):
        positions = first + tl.arange(0, tile)
        is_key = positions < num_keys
        page = tl.load(tables + row * table_row + positions // page_size, mask=is_key, other=0)
        # In 64 bits: a pool holds more elements than 32 bits count.
        at = page.to(tl.int64) * page_stride + kv_head * head_stride
        at = (at + (positions % page_size) * slot_stride)[:, None] + dims[None, :]
        used = is_key[:, None] & is_dim[None, :]
        key = tl.load(keys + at, mask=used, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(is_key[None, :], scores, -float("inf"))
        now_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - now_best[:, None])
        kept = tl.exp(best - now_best)
        value = tl.load(values + at, mask=used, other=0.0)
        summed = summed * kept[:, None]
        summed += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        best = now_best
    part_row = (row * kv_heads * group + kv_head * group + heads) * tl.num_programs(2) + part
    tl.store(partial + part_row[:, None] * head_dim + dims[None, :], summed / total[:, None], own)
    tl.store(partial_lse + part_row, best + tl.log(total), is_head)


def add_parts(  # type: ignore[no-untyped-def]
    partial, partial_lse, key_lens, out, out_row, out_head, num_parts,
    head_dim: tl.constexpr, dim_columns: tl.constexpr, split: tl.constexpr,
):  # fmt: skip
    """Program (row, head): the parts of a row, each at the weight of its sum, in order."""
    row, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, dim_columns)
    is_dim = dims < head_dim
    used = tl.cdiv(tl.load(key_lens + row), split)
    first = (row * tl.num_programs(1) + head) * num_parts
    best = -float("inf")
    total = 0.0
    summed = tl.zeros([dim_columns], tl.float32)
    for part in range(used):
        lse = tl.load(partial_lse + first + part)
        now_best = tl.maximum(best, lse)
        kept, weight = tl.exp(best - now_best), tl.exp(lse - now_best)
        value = tl.load(partial + (first + part) * head_dim + dims, mask=is_dim, other=0.0)
        summed = summed * kept + value * weight
        total = total * kept + weight
        best = now_best
    tl.store(out + row * out_row + head * out_head + dims, summed / total, mask=is_dim)


@cache
def _compiled() -> tuple[Any, Any]:
    return triton.jit(attend_part), triton.jit(add_parts)


def part_constants(
    heads: int, kv_heads: int, head_dim: int, page_size: int, item_bytes: int
) -> dict[str, int]:
    """What ``attend_part`` is compiled for. ``item_bytes``: of a number of the KV."""
    group = heads // kv_heads
    return {
        "kv_heads": kv_heads,
        "group": group,
        "group_rows": max(MIN_DOT_ROWS, _power_of_two(group)),
        "head_dim": head_dim,
        "dim_columns": max(MIN_DOT_ROWS, _power_of_two(head_dim)),
        "page_size": page_size,
        "split": SPLIT_KEYS,
        "tile": TILE_KEYS[item_bytes],
    }


def triton_paged_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    key_lens: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Satisfies ``PagedDecodeKernel``; the current device must be the tensors' own."""
    rows, heads, head_dim = queries.shape
    _, kv_heads, page_size, _ = keys.shape
    num_parts = -(-block_tables.shape[1] * page_size // SPLIT_KEYS)
    # From torch's allocator: a recorded step gets them from its own pool.
    partial = queries.new_empty((rows, heads, num_parts, head_dim), dtype=torch.float32)
    partial_lse = queries.new_empty((rows, heads, num_parts), dtype=torch.float32)
    constants = part_constants(heads, kv_heads, head_dim, page_size, keys.element_size())
    attend, add = _compiled()
    attend[(rows, kv_heads, num_parts)](
        queries, keys, values, block_tables, key_lens, partial, partial_lse,
        1.0 / math.sqrt(head_dim), queries.stride(0), queries.stride(1), keys.stride(0),
        keys.stride(1), keys.stride(2), block_tables.stride(0),
        **constants, num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    add[(rows, heads)](
        partial, partial_lse, key_lens, out, out.stride(0), out.stride(1), num_parts,
        head_dim=head_dim, dim_columns=constants["dim_columns"], split=SPLIT_KEYS,
    )  # fmt: skip


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
