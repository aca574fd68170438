"""Whether a way to attend agrees with the plain one on this device, tried before it is used.

A kernel can be absent, fail to compile or be wrong for a head size; each shows here, on a few rows
of random KV in the model's own shape, before a request meets it. Not covered: speed, and lengths
beyond ``CONTEXTS``.
"""

from __future__ import annotations

import torch

from engine.attention_ways import Attention
from engine.batch_plan import BatchPlan, plan_batch
from engine.block_pool import BlockPool
from engine.kv_cache import TORCH_DTYPES, KvCache
from engine.sequence import Sequence
from engine.step import StepRow
from pdserve.types import Attempt, KVLayout, Request, RequestId, SamplingParams

CONTEXTS = ((40, 1), (601, 1), (1, 1), (37, 37), (600, 70))  # (keys, of them queries)
# Largest difference allowed: outputs are means of values that are about 1.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


def difference(attention: Attention, plain: Attention, cache: KvCache, num_heads: int) -> float:
    """Largest difference of outputs over decode rows alone, chunks alone and both; NaN counts.

    Overwrites the cache. ``cache`` holds one layer or more and at least ``num_check_blocks``.
    """
    layout = cache.layout
    with torch.inference_mode():
        cache.blocks.copy_(_random(cache.blocks.shape, cache.blocks))
        worst = 0.0
        for contexts in (CONTEXTS[:3], CONTEXTS[3:], CONTEXTS):
            rows = _rows(contexts, layout)
            try:
                worst = max(worst, _difference(rows, attention, plain, cache, num_heads))
            finally:
                for row in rows:
                    row.sequence.lease.release()
        cache.blocks.zero_()
    return worst


def num_check_blocks(layout: KVLayout) -> int:
    return sum(layout.num_blocks(keys) for keys, _ in CONTEXTS)


def _difference(
    rows: list[StepRow], attention: Attention, plain: Attention, cache: KvCache, num_heads: int
) -> float:
    layout = cache.layout
    num_tokens = sum(row.num_tokens for row in rows)
    queries = _random((num_tokens, num_heads, layout.head_dim), cache.blocks).float()
    found = []
    for way in (attention, plain):
        plan: BatchPlan = plan_batch(rows, layout, cache.zero_block_id, way.grouped)
        out = torch.empty(queries.shape, dtype=way.output_dtype, device=queries.device)
        way.stage(plan, cache)(layout.num_layers - 1, queries, out)
        found.append(out.float())
    worst = float((found[0] - found[1]).abs().max())
    return worst if worst == worst else float("inf")


def _rows(contexts: tuple[tuple[int, int], ...], layout: KVLayout) -> list[StepRow]:
    pool = BlockPool(num_check_blocks(layout))
    rows = []
    for num_keys, num_queries in contexts:
        lease = pool.lease(layout.num_blocks(num_keys))
        assert lease is not None
        request = Request(RequestId("check"), (0,) * num_keys, SamplingParams())
        sequence = Sequence(Attempt(request, epoch=0), lease)
        rows.append(StepRow(sequence, num_keys - num_queries, num_queries, samples=True))
    return rows


def _random(shape: torch.Size | tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Of ``like``'s dtype and device; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def check_cache(layout: KVLayout, device: torch.device) -> KvCache:
    """A pool of one layer for the check alone; close it."""
    one = KVLayout(1, layout.num_kv_heads, layout.head_dim, layout.block_size, layout.dtype)
    return KvCache(one, num_check_blocks(one), device)


def allowed(layout: KVLayout) -> float:
    assert layout.dtype in TORCH_DTYPES
    return TOLERANCES[layout.dtype]
