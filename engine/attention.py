"""Causal attention over paged KV whose bits depend on a query's own position alone.

Keys are taken in tiles of 128 positions (0-127, 128-255, ...) whatever the block size, chunk cuts
or batch: a query at position p meets the same tiles in the same order when it is computed in a
chunk of 256, alone, or beside longer sequences. Two passes: the exact maximum of all scores, then
exp(score - maximum); sums run inside a tile in one fixed shape and over tiles in order, in
float32. A masked key has weight exactly 0, so a tile of masked keys changes nothing and batches
may be padded with them. Query rows are padded to the multiple from which the matrix library's
kernel no longer depends on their number; ``choose_row_padding`` finds it at start.

The plain twin of every other way to attend (attention_ways.py), and the only one on a CPU.
Grouped-query attention; softmax as in FlashAttention's tiles (arXiv 2205.14135), without the
running rescale, since scores of one query tile fit memory. Which rows go together is
batch_plan.py's choice. Not covered: sliding windows, attention sinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from engine.attention_ways import FixedDecode, LayerAttention
from engine.batch_plan import KEY_TILE, BatchPlan, Grouped, GroupPlan, QuerySpan
from engine.kv_cache import KvCache
from engine.threads import one_thread
from pdserve.types import KVLayout

ROW_MULTIPLES = (4, 8, 16, 32, 64)
MASKED = -math.inf


@dataclass(frozen=True)
class QueryTile:
    """Queries ``start .. start + count`` of each sequence of a group, and the keys they may see.

    ``bias`` [sequences, 1, 1 or rows, num_keys - masked_from] is 0 or -inf; keys before
    ``masked_from`` are seen by all. ``queries`` is filled anew for every layer.
    """

    start: int
    count: int
    num_keys: int
    masked_from: int
    bias: torch.Tensor
    queries: torch.Tensor  # [sequences * kv_heads, rows, head_dim] float32, zero in padded rows
    scores: torch.Tensor  # [sequences * kv_heads, rows, num_keys] float32, scratch


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences computed together: many of one token, or one of many tokens.

    Their tokens lie at ``first ..`` in the batch, sequence by sequence. ``gather_rows`` names rows
    of ``KvCache.block_rows``, ordered [k and v, sequence, kv_head, block].
    """

    first: int
    num_sequences: int
    num_queries: int
    gather_rows: torch.Tensor
    gathered: torch.Tensor  # [len(gather_rows), block_size * head_dim] in KV's dtype, scratch
    tiles: tuple[QueryTile, ...]


class GroupBuilder:
    """Puts the groups of a step on the device. Groups share scratch: they are used one by one."""

    def __init__(
        self, layout: KVLayout, num_heads: int, row_multiple: int, like: torch.Tensor
    ) -> None:
        """``like``: a tensor of the KV's dtype and device."""
        self._layout = layout
        self._queries_per_kv_head = num_heads // layout.num_kv_heads
        self._row_multiple = row_multiple
        self._like = like

    def build(self, plans: tuple[GroupPlan, ...]) -> list[AttentionGroup]:
        if not plans:
            return []
        width = self._layout.block_size * self._layout.head_dim
        gathered = self._like.new_empty((max(len(plan.gather_rows) for plan in plans), width))
        size = max(math.prod(self._scores_shape(s, p)) for p in plans for s in p.spans)
        scores = self._like.new_empty(size, dtype=torch.float32)
        return [
            AttentionGroup(
                first=plan.first,
                num_sequences=plan.num_sequences,
                num_queries=plan.num_queries,
                gather_rows=torch.from_numpy(plan.gather_rows).to(self._like.device),
                gathered=gathered[: len(plan.gather_rows)],
                tiles=tuple(self._tile(span, plan, scores) for span in plan.spans),
            )
            for plan in plans
        ]

    def _scores_shape(self, span: QuerySpan, plan: GroupPlan) -> tuple[int, int, int]:
        num_rows = span.count * self._queries_per_kv_head
        num_rows += -num_rows % self._row_multiple
        return plan.num_sequences * self._layout.num_kv_heads, num_rows, span.num_keys

    def _tile(self, span: QuerySpan, plan: GroupPlan, scratch: torch.Tensor) -> QueryTile:
        batch, num_rows, num_keys = shape = self._scores_shape(span, plan)
        masked_from = int(span.positions.min()) + 1
        positions = torch.from_numpy(span.positions).to(scratch.device)
        keys = torch.arange(masked_from, num_keys, device=scratch.device)
        hidden = keys > positions[..., None]  # [sequences, count, keys]
        bias = scratch.new_zeros(hidden.shape).masked_fill_(hidden, MASKED)
        if span.count > 1:
            bias = bias.repeat_interleave(self._queries_per_kv_head, dim=1)
            bias = F.pad(bias, (0, 0, 0, num_rows - bias.shape[1]))
        return QueryTile(
            start=span.start,
            count=span.count,
            num_keys=num_keys,
            masked_from=masked_from,
            bias=bias.unsqueeze(1),
            queries=scratch.new_zeros((batch, num_rows, self._layout.head_dim)),
            scores=scratch[: math.prod(shape)].view(shape),
        )


def attend(
    queries: torch.Tensor, block_rows: torch.Tensor, group: AttentionGroup, out: torch.Tensor
) -> None:
    """Attention of one layer for one group, written into ``out``.

    queries, out: [tokens, heads, head_dim] float32, of the whole batch. block_rows: of this layer;
    the keys and values of the queries' own positions are already written.
    """
    num_heads, head_dim = queries.shape[1:]
    num_sequences = group.num_sequences
    torch.index_select(block_rows, 0, group.gather_rows, out=group.gathered)
    kv_batch = group.tiles[0].queries.shape[0]
    keys, values = group.gathered.float().view(2, kv_batch, -1, head_dim).unbind(0)
    kv_heads = kv_batch // num_sequences
    end = group.first + num_sequences * group.num_queries
    shape = (num_sequences, group.num_queries, kv_heads, num_heads // kv_heads, head_dim)
    grouped_queries = queries[group.first : end].view(shape).transpose(1, 2)
    grouped_out = out[group.first : end].view(shape).transpose(1, 2)
    scale = 1.0 / math.sqrt(head_dim)
    for tile in group.tiles:
        cut = slice(tile.start, tile.start + tile.count)
        tile_queries = grouped_queries[:, :, cut]
        num_rows = tile.count * (num_heads // kv_heads)
        used = tile.queries.view(num_sequences, kv_heads, -1, head_dim)[:, :, :num_rows]
        torch.mul(tile_queries, scale, out=used.view(tile_queries.shape))
        weighted, totals = _attend_tile(tile, keys, values, kv_heads)
        weighted = weighted.view(num_sequences, kv_heads, -1, head_dim)[:, :, :num_rows]
        totals = totals.view(num_sequences, kv_heads, -1, 1)[:, :, :num_rows]
        torch.div(
            weighted.view(tile_queries.shape),
            totals.view(*tile_queries.shape[:-1], 1),
            out=grouped_out[:, :, cut],
        )


def _attend_tile(
    tile: QueryTile, keys: torch.Tensor, values: torch.Tensor, kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weighted values [batch, rows, head_dim], sum of weights [batch, rows])."""
    num_keys, scores = tile.num_keys, tile.scores
    batch, rows, _ = scores.shape
    torch.bmm(tile.queries, keys[:, :num_keys].transpose(1, 2), out=scores)
    by_head = scores.view(batch // kv_heads, kv_heads, rows, num_keys)
    by_head[..., tile.masked_from :].add_(tile.bias)
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    tile_sums = scores.view(batch, rows, num_keys // KEY_TILE, KEY_TILE).sum(-1)
    weighted = torch.bmm(scores[..., :KEY_TILE], values[:, :KEY_TILE])
    totals = tile_sums[..., 0]
    for index in range(1, num_keys // KEY_TILE):
        span = slice(index * KEY_TILE, (index + 1) * KEY_TILE)
        weighted.baddbmm_(scores[..., span], values[:, span])
        totals = totals + tile_sums[..., index]
    return weighted, totals


@dataclass(frozen=True)
class RowPadding:
    """How query rows must be computed for their bits not to depend on how many there are."""

    multiple: int
    is_serial: bool = False  # with one thread; MKL splits some head sizes along what it sums over
    is_checked: bool = True  # False: nothing tried keeps rows apart on this device

    def __str__(self) -> str:
        serial = ", one thread" if self.is_serial else ""
        varies = "" if self.is_checked else ", bits may depend on the batch"
        return f"attention rows {self.multiple}{serial}{varies}"


def choose_row_padding(head_dim: int, device: torch.device) -> RowPadding:
    """The cheapest padding that works. Call it in the thread that will compute."""
    for is_serial in (False, True):
        with one_thread(is_serial):
            for multiple in ROW_MULTIPLES:
                if _rows_are_independent(multiple, head_dim, device):
                    return RowPadding(multiple, is_serial)
    return RowPadding(ROW_MULTIPLES[-1], is_checked=False)


def _rows_are_independent(multiple: int, head_dim: int, device: torch.device) -> bool:
    """Compare products of several numbers of rows and sequences with one large product."""
    generator = torch.Generator().manual_seed(0)
    shape = (12, 4 * ROW_MULTIPLES[-1], head_dim)
    queries = torch.randn(shape, generator=generator).to(device)
    keys = torch.randn((12, KEY_TILE, head_dim), generator=generator).to(device)
    with one_thread():
        scores = torch.bmm(queries, keys.transpose(1, 2))
        weighted = torch.baddbmm(queries, scores, keys)
    for batch in (1, 2, 3, 12):
        for rows in (factor * multiple for factor in (1, 2, 3, 4)):
            part = torch.bmm(queries[:batch, :rows], keys[:batch].transpose(1, 2))
            sums = torch.baddbmm(queries[:batch, :rows], part, keys[:batch])
            same = torch.equal(part, scores[:batch, :rows])
            if not same or not torch.equal(sums, weighted[:batch, :rows]):
                return False
    return True


class TiledAttention:
    """Satisfies ``Attention`` on any device. It cannot be recorded: shapes follow the lengths."""

    grouped: Grouped = "all"
    output_dtype = torch.float32

    def __init__(self, num_heads: int, padding: RowPadding) -> None:
        self._num_heads = num_heads
        self._padding = padding

    @property
    def name(self) -> str:
        return str(self._padding)

    def stage(self, plan: BatchPlan, cache: KvCache) -> LayerAttention:
        multiple = self._padding.multiple
        groups = GroupBuilder(cache.layout, self._num_heads, multiple, cache.blocks).build(
            plan.groups
        )

        def attend_layer(layer: int, queries: torch.Tensor, out: torch.Tensor) -> None:
            block_rows = cache.block_rows(layer)
            with one_thread(self._padding.is_serial):
                for group in groups:
                    attend(queries, block_rows, group, out)

        return attend_layer

    def fixed_decode(self, num_rows: int, num_pages: int, cache: KvCache) -> FixedDecode | None:
        return None
