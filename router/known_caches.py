"""What the router knows of the workers' prefix caches: what they told, and what it has asked for.

A worker tells what it stores and evicts (docs/protocol.md 1). Between a dispatch and its word the
router goes by its own: the blocks of a context count as there from the Submit on, until the worker
tells of them, or its leg has ended without. So prompts with one beginning that come close together
go to one worker. Knows sessions as refs; the index is prefix_index.py's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pdserve.messages import CacheChanges
from router.bookings import LegKey
from router.fleet import Column, Fleet, Rows, WorkerRef
from router.prefix_index import Hashes, PrefixIndex, hashes_of
from router.prompt_hashes import Space


@dataclass(slots=True)
class _Leg:
    chain: Hashes
    brings: set[int]  # blocks of it that were not known when it was sent


@dataclass(slots=True)
class _Worker:
    bit: int
    seq: int | None = None  # of the last change; None: unknown, a reset is due
    expected: set[int] = field(default_factory=set)  # not told yet
    legs: dict[LegKey, _Leg] = field(default_factory=dict)


class KnownCaches:
    def __init__(self, max_blocks: int) -> None:
        self.index = PrefixIndex(max_blocks)
        self._workers: dict[WorkerRef, _Worker] = {}
        self._bits: dict[Space, tuple[Rows, Rows]] = {}  # rows of a fleet, their workers' bits

    def join(self, ref: WorkerRef) -> None:
        self._workers[ref] = _Worker(self.index.add_worker())

    def leave(self, ref: WorkerRef) -> None:
        self.index.remove_worker(self._workers.pop(ref).bit)

    def changed(self, ref: WorkerRef, changes: CacheChanges) -> bool:
        """Take over what a worker tells. False: something was missed, it must tell all again."""
        worker = self._workers[ref]
        stored = hashes_of(changes.stored)
        if changes.is_reset:
            self.index.forget(worker.bit)
            expected = np.fromiter(worker.expected, dtype=np.uint64, count=len(worker.expected))
            self.index.store(worker.bit, expected)
        elif worker.seq is None:
            return True  # the reset is on its way
        elif changes.seq != worker.seq + 1:
            self.index.forget(worker.bit)
            worker.seq = None
            return False
        worker.seq = changes.seq
        if changes.evicted:
            self.index.evict(worker.bit, hashes_of(changes.evicted))
        if len(stored):
            self._told(worker, stored)
        return True

    def _told(self, worker: _Worker, stored: Hashes) -> None:
        """The index has what was expected already; that is nearly all that workers tell."""
        if worker.expected:
            told = set(stored.tolist())
            known = worker.expected & told
            worker.expected -= known
            told -= known
            stored = np.fromiter(told, dtype=np.uint64, count=len(told))
        if len(stored):
            self.index.store(worker.bit, stored)

    def expect(self, ref: WorkerRef, key: LegKey, hashes: Hashes) -> None:
        """This leg will bring these blocks, as far as the worker has not got them."""
        self.expect_of_all(((ref, key),), hashes)

    def expect_of_all(self, legs: Sequence[tuple[WorkerRef, LegKey]], hashes: Hashes) -> None:
        """``expect`` for legs of one attempt, each at another worker."""
        asked = [(self._workers[ref], key) for ref, key in legs]
        # Who has no ``seq`` keeps nothing, or has not said yet.
        known = [(worker, key) for worker, key in asked if worker.seq is not None]
        lacked = self.index.store_for_all([worker.bit for worker, _ in known], hashes)
        for (worker, key), new in zip(known, lacked, strict=True):
            brings = set(new.tolist())
            worker.legs[key] = _Leg(hashes, brings)
            worker.expected |= brings

    def num_known(self, ref: WorkerRef, hashes: Hashes) -> int:
        """Blocks of this chain that the worker has told of, from its start on."""
        worker = self._workers[ref]
        depth = self.index.depth(worker.bit, hashes)
        told = itertools.takewhile(
            lambda each: each not in worker.expected, hashes[:depth].tolist()
        )
        return sum(1 for _ in told) if worker.expected else depth

    def settle(self, ref: WorkerRef, key: LegKey) -> None:
        """The leg has ended: what it has not brought by now will not come by it."""
        worker = self._workers[ref]
        leg = worker.legs.pop(key, None)
        missing = set() if leg is None else leg.brings & worker.expected
        if leg is not None and missing:
            _leave_to_others(missing, leg.chain, worker.legs.values())
        if missing:
            worker.expected -= missing
            gone = np.fromiter(missing, dtype=np.uint64, count=len(missing))
            self.index.evict(worker.bit, gone)

    def cached_tokens(self, fleet: Fleet, hashes: Mapping[Space, Hashes]) -> Column:
        """For each row how many tokens of a context it has; ``hashes`` by space (fleet.spaces)."""
        of_space: dict[Space, Column] = {
            space: self.index.depths(chain)[self._bits_of(fleet, space)].astype(np.float64)
            * space[1]
            for space, chain in hashes.items()
        }
        if len(of_space) == len(fleet.spaces) == 1:
            (cached,) = of_space.values()  # rows of the one space are all rows, in order
            return cached
        cached = np.zeros(len(fleet))
        for space, of_rows in of_space.items():
            cached[fleet.spaces[space]] = of_rows
        return cached

    def _bits_of(self, fleet: Fleet, space: Space) -> Rows:
        """Kept as long as the fleet has the same workers: it makes new rows for others."""
        rows = fleet.spaces[space]
        known = self._bits.get(space)
        if known is None or known[0] is not rows:
            if known is not None:
                self._bits.clear()  # of a fleet that is no more
            bits = [self._workers[fleet.views[row].ref].bit for row in rows.tolist()]
            known = self._bits[space] = rows, np.array(bits, dtype=np.int64)
        return known[1]


def _leave_to_others(missing: set[int], chain: Hashes, others: Iterable[_Leg]) -> None:
    """Take out what another leg needs too, and will bring: without it that one's blocks, known or
    expected, would lie behind a gap. A block has one place in every chain that it is in."""
    first, value = next(each for each in enumerate(chain.tolist()) if each[1] in missing)
    for other in others:
        if len(other.chain) > first and other.chain.item(first) == value:
            shared = missing.intersection(other.chain.tolist())
            other.brings |= shared
            missing -= shared
            if not missing:
                return
            first, value = next(each for each in enumerate(chain.tolist()) if each[1] in missing)
