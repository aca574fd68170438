"""From rows of a step to index arrays: which tokens, which KV rows, which rows attend together.

Runs on the event loop thread before the engine thread starts, so that nothing the loop owns is
read while a step computes. Knows numpy, not torch; tensors are made from it in model.py.

Decode rows are put in order of length and cut into groups whose padding (to the longest of the
group, in key tiles) stays small; each prefill row is a group of its own, cut into query tiles.
Results do not depend on any of this (attention.py), only speed does. Kernels that read KV in place
need the block tables alone (``PagePlan``); ``grouped`` says which rows the groups are made for.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.step import StepRow
from pdserve.types import KVLayout

KEY_TILE = 128
QUERY_TILE = 64  # tokens of a chunk whose scores are held at once
MAX_PADDED_TILES = 6  # a group of its own costs about as much as attending to this much padding
MAX_GROUP_BYTES = 8 * 2**20  # gathered keys and values of one layer: should stay in cache

Indices = NDArray[np.int64]
Grouped = Literal["all", "chunks", "none"]
"""Which rows are put into groups: all, those of several tokens, none."""


@dataclass(frozen=True)
class QuerySpan:
    """Queries ``start .. start + count`` of each sequence of a group against ``num_keys`` keys.

    ``positions`` [sequences, count]: a query sees the keys up to its own position.
    """

    start: int
    count: int
    num_keys: int
    positions: Indices


@dataclass(frozen=True)
class GroupPlan:
    """Sequences that attend together; see ``attention.AttentionGroup``."""

    first: int
    num_sequences: int
    num_queries: int
    gather_rows: Indices  # flat, of [k and v, sequence, kv_head, block]
    spans: tuple[QuerySpan, ...]


@dataclass(frozen=True)
class PagePlan:
    """Every row of a step in batch order, for kernels that follow block tables.

    ``tables[i]`` holds the ids of the blocks of row i's ``key_lens[i]`` keys, in order; its queries
    are the tokens ``query_starts[i] .. query_starts[i + 1]``, the last of those keys.
    """

    query_starts: Indices  # [rows + 1]
    key_lens: Indices  # [rows]
    tables: tuple[Indices, ...]

    @property
    def num_decode_rows(self) -> int:
        """Rows of one token; they come first."""
        return int(np.count_nonzero(np.diff(self.query_starts) == 1))


@dataclass(frozen=True)
class BatchPlan:
    """One step. Tokens lie in an order of this module's choice; ``order`` gives the rows' order."""

    token_ids: Indices  # [tokens]
    positions: Indices  # [tokens]
    write_rows: Indices  # flat, of [tokens, k and v, kv_head]: rows of KvCache.token_rows
    groups: tuple[GroupPlan, ...]
    pages: PagePlan
    order: tuple[int, ...]  # index into the step's rows, in batch order
    sample_tokens: Indices  # batch indices of the tokens after which one is sampled
    sample_rows: tuple[int, ...]  # index into the step's rows, for each of them


def plan_batch(
    rows: SequenceOf[StepRow], layout: KVLayout, zero_block_id: int, grouped: Grouped = "all"
) -> BatchPlan:
    """``zero_block_id``: the block that stands where a sequence has none."""
    order = sorted(range(len(rows)), key=lambda index: _place(rows[index]))
    ordered = [rows[index] for index in order]
    firsts = np.cumsum([0] + [row.num_tokens for row in ordered])
    token_ids = np.concatenate(
        [np.array(row.sequence.token_ids[row.start : row.end], np.int64) for row in ordered]
    )
    positions = np.concatenate([np.arange(row.start, row.end) for row in ordered])
    tables = [np.array(row.sequence.lease.block_ids, np.int64) for row in ordered]
    slots = [(table, row) for table, row in zip(tables, ordered, strict=True)]
    write_rows = np.concatenate([_write_rows(table, row, layout) for table, row in slots])
    groups = []
    for start, end in _group_bounds(ordered, layout, _first_grouped(ordered, grouped)):
        first = int(firsts[start])
        groups.append(
            _plan_group(ordered[start:end], tables[start:end], first, layout, zero_block_id)
        )
    sampled = [place for place, row in enumerate(ordered) if row.samples]
    return BatchPlan(
        token_ids=token_ids,
        positions=positions,
        write_rows=write_rows,
        groups=tuple(groups),
        pages=PagePlan(
            query_starts=firsts,
            key_lens=np.array([row.end for row in ordered], np.int64),
            tables=tuple(table[: layout.num_blocks(row.end)] for table, row in slots),
        ),
        order=tuple(order),
        sample_tokens=np.array([firsts[place + 1] - 1 for place in sampled], np.int64),
        sample_rows=tuple(order[place] for place in sampled),
    )


def num_key_tiles(num_keys: int) -> int:
    return -(-num_keys // KEY_TILE)


def _place(row: StepRow) -> tuple[bool, int]:
    """Decode rows first, by length; then the rest in the order given (sorting is stable)."""
    is_chunk = row.num_tokens > 1
    return is_chunk, 0 if is_chunk else row.end


def _write_rows(table: Indices, row: StepRow, layout: KVLayout) -> Indices:
    """Row in KvCache.token_rows of each (token, k or v, head) of a row, flat."""
    positions = np.arange(row.start, row.end)
    blocks = table[positions // layout.block_size]
    planes = np.arange(2 * layout.num_kv_heads)
    block_planes = blocks[:, None] * (layout.num_layers * len(planes)) + planes
    rows = block_planes * layout.block_size + (positions % layout.block_size)[:, None]
    return rows.reshape(-1)


def _first_grouped(rows: SequenceOf[StepRow], grouped: Grouped) -> int:
    """Of rows in batch order, the first that is put into a group."""
    if grouped == "all":
        return 0
    if grouped == "none":
        return len(rows)
    return sum(row.num_tokens == 1 for row in rows)


def _group_bounds(
    rows: SequenceOf[StepRow], layout: KVLayout, first: int
) -> Iterator[tuple[int, int]]:
    """(start, end) of each group among rows in batch order, from ``first`` on."""
    if first == len(rows):
        return
    tile_bytes = layout.token_bytes // layout.num_layers * KEY_TILE
    max_tiles = max(1, MAX_GROUP_BYTES // tile_bytes)
    start, padded = first, 0
    for index, row in enumerate(rows):
        if index <= start:
            continue
        tiles = num_key_tiles(row.end)
        grown = tiles - num_key_tiles(rows[index - 1].end)
        padded += grown * (index - start)
        fits = padded <= MAX_PADDED_TILES and tiles * (index + 1 - start) <= max_tiles
        if row.num_tokens > 1 or rows[start].num_tokens > 1 or not fits:
            yield start, index
            start, padded = index, 0
    yield start, len(rows)


def _plan_group(
    rows: SequenceOf[StepRow],
    tables: SequenceOf[Indices],
    first: int,
    layout: KVLayout,
    zero_block_id: int,
) -> GroupPlan:
    num_tiles = num_key_tiles(max(row.end for row in rows))
    num_blocks = -(-num_tiles * KEY_TILE // layout.block_size)
    blocks = np.full((len(rows), num_blocks), zero_block_id, np.int64)
    for line, table, row in zip(blocks, tables, rows, strict=True):
        used = layout.num_blocks(row.end)
        line[:used] = table[:used]
    heads = layout.num_kv_heads
    planes = np.arange(2 * heads).reshape(2, 1, heads, 1)
    gather_rows = blocks[None, :, None, :] * (layout.num_layers * 2 * heads) + planes
    positions = np.array([np.arange(row.start, row.end) for row in rows], np.int64)
    return GroupPlan(
        first=first,
        num_sequences=len(rows),
        num_queries=rows[0].num_tokens,
        gather_rows=gather_rows.reshape(-1),
        spans=tuple(_spans(positions)),
    )


def _spans(positions: Indices) -> Iterator[QuerySpan]:
    for start in range(0, positions.shape[1], QUERY_TILE):
        part = positions[:, start : start + QUERY_TILE]
        num_keys = num_key_tiles(int(part.max()) + 1) * KEY_TILE
        yield QuerySpan(start, part.shape[1], num_keys, part)
