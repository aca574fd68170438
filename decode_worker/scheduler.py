"""What the next step of a decode worker does: pure functions over snapshots.

Order of claims on blocks: running > parked > committed > arriving (docs/protocol.md 4). A running
sequence that needs a block and finds none makes the youngest running one give way; parked ones
come back oldest first, before anything arriving may lease. Prompt chunks (colocated mode) fill
what the step's token budget leaves after the decode rows, oldest prompt first, as Sarathi-Serve
does (OSDI'24, arXiv 2403.02310); the oldest prompt's chunk always goes.

Knows no tensors, no sessions and no clock: a simulator runs the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.chunking import ChunkRequest, plan_chunks


@dataclass(frozen=True, slots=True)
class SequenceView:
    """One sequence that owns its request. ``order``: admission number, lower is older."""

    order: int
    num_tokens: int  # known tokens: every one needs a slot before the step that computes it
    num_computed: int
    num_blocks: int  # leased now; 0 while parked
    num_shared: int = 0  # of those, held by others too: parking does not free them


@dataclass(frozen=True, slots=True)
class Snapshot:
    running: tuple[SequenceView, ...]
    prefilling: tuple[SequenceView, ...]
    parked: tuple[SequenceView, ...]
    free_blocks: int
    block_size: int
    chunk_tokens: int
    step_tokens: int  # 0: one chunk beside the decode rows


@dataclass(frozen=True, slots=True)
class Chunk:
    order: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepDecision:
    """In this order: park, restore, grow each by one block, then run decode rows and chunks."""

    park: tuple[int, ...]
    restore: tuple[int, ...]
    grow: tuple[int, ...]
    decode: tuple[int, ...]
    chunks: tuple[Chunk, ...]


def plan_step(snapshot: Snapshot) -> StepDecision:
    """Decide one step. Every number in the result is an ``order`` of the snapshot."""
    kept, parked_now, grown, free = _make_growth_room(snapshot)
    restored, free = _restore(snapshot, bool(parked_now), len(kept), free)
    decode = tuple(view.order for view in kept) + tuple(view.order for view in restored)
    budget = snapshot.step_tokens or snapshot.chunk_tokens + len(decode)
    return StepDecision(
        park=parked_now,
        restore=tuple(view.order for view in restored),
        grow=grown,
        decode=decode,
        chunks=_chunks(snapshot, budget - len(decode)),
    )


def _blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _make_growth_room(
    snapshot: Snapshot,
) -> tuple[list[SequenceView], tuple[int, ...], tuple[int, ...], int]:
    """(running ones that stay, orders to park, orders to grow, blocks free afterwards)."""
    waiting = sorted(snapshot.running, key=lambda view: view.order)
    free = snapshot.free_blocks
    kept: list[SequenceView] = []
    parked: list[int] = []
    grown: list[int] = []
    while waiting:
        view = waiting.pop(0)
        missing = _blocks_for(view.num_tokens, snapshot.block_size) - view.num_blocks
        while missing > free and waiting:
            victim = waiting.pop()  # youngest
            parked.append(victim.order)
            free += victim.num_blocks - victim.num_shared
        if missing > free:
            parked.append(view.order)
            free += view.num_blocks - view.num_shared
            continue
        if missing > 0:
            free -= missing
            grown.append(view.order)
        kept.append(view)
    return kept, tuple(parked), tuple(grown), free


def _restore(
    snapshot: Snapshot, just_parked: bool, num_running: int, free: int
) -> tuple[list[SequenceView], int]:
    """Parked sequences that come back, oldest first; the first that does not fit ends the search.

    A comer leaves one growth block for each running sequence, unless nothing runs at all: then
    the oldest comes back whenever it fits, so that something always makes progress. Nothing comes
    back in the step that parks (it would only take the place of what had to leave).
    """
    restored: list[SequenceView] = []
    if just_parked:
        return restored, free
    for view in sorted(snapshot.parked, key=lambda view: view.order):
        need = _blocks_for(view.num_tokens, snapshot.block_size)
        spare = num_running + len(restored)
        if need + spare > free:
            break
        restored.append(view)
        free -= need
    return restored, free


def _chunks(snapshot: Snapshot, budget: int) -> tuple[Chunk, ...]:
    if not snapshot.prefilling:
        return ()
    waiting: Sequence[SequenceView] = sorted(snapshot.prefilling, key=lambda view: view.order)
    requests = [ChunkRequest(view.num_computed, view.num_tokens) for view in waiting]
    lengths = plan_chunks(requests, budget, snapshot.chunk_tokens)
    return tuple(
        Chunk(view.order, length)
        for view, length in zip(waiting, lengths, strict=True)
        if length > 0
    )
